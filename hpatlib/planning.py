"""What a study would train, found by running it up to there: it announces its trainings before the first.

Nothing here knows how to train, so that a chapter which trains nothing depends on nothing that does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpatlib import data

if TYPE_CHECKING:
    from hpatlib.runs import Run


@dataclass
class Noted:
    """What was asked for on a dry walk: runs; ``later``, stand-ins for runs that only those decide; ``assumed``, the
    data sets that are not at hand, and how many images their documents use. ``there``: whether a run is trained."""

    there: "Callable[[Run], bool]"
    runs: "list[Run]" = field(default_factory=list)
    later: "list[Run]" = field(default_factory=list)
    assumed: dict[str, int] = field(default_factory=dict)


class Planned(Exception):
    """Raised on a dry walk in place of a training: nothing is measured."""


_noted: ContextVar[Noted | None] = ContextVar("_noted", default=None)
_settling: ContextVar[bool] = ContextVar("_settling", default=False)


@contextmanager
def dry_walk(there: "Callable[[Run], bool]") -> Iterator[Noted]:
    """Inside, nothing trains: what is asked for is noted, and ``Planned`` unwinds whoever asked."""
    noted = Noted(there)
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def announce(
    runs: "Iterable[Run]", *, later: "Iterable[Run]" = (), settle: "Callable[[], Iterable[Run]] | None" = None
) -> None:
    """Say which trainings follow, before the first. It does nothing but on a `dry_walk`, where it raises ``Planned``.

    ``settle`` returns the runs that hang on what ``runs`` become, as one that is scaled to another's dose does; it is
    called when all of ``runs`` are trained, and until then, or where one of them must be trained anew, for its images
    or its first weights have changed, ``later`` stands for them.
    """
    noted = _noted.get()
    if noted is None:
        return
    several = list(runs)
    noted.runs += several
    if settle is not None and all(map(noted.there, several)):
        tokens = _noted.set(None), _settling.set(True)
        try:
            noted.runs += settle()
        except Planned:
            noted.later += later
        finally:
            _noted.reset(tokens[0])
            _settling.reset(tokens[1])
    else:
        noted.later += later
    raise Planned


def training() -> None:
    """Called before every training. Raises ``Planned`` while a `dry_walk` settles what follows from stored models."""
    if _settling.get():
        raise Planned


def even_count(dataset: str) -> int:
    """``data.even_count``; on a `dry_walk` without the images at hand, the document's own number of them."""
    try:
        return data.even_count(dataset)
    except FileNotFoundError:
        source, noted = data.SOURCES[dataset], _noted.get()
        if noted is None or source.each is None:
            raise
        return noted.assumed.setdefault(dataset, len(source.classes) * source.each)
