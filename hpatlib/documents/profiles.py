"""What a chapter's three parameters mean: the profile of its document, the run of a training, and the trainings."""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import msgspec

from hpatlib import documents
from hpatlib.records import PROFILES
from hpatlib.runs import Run
from hpatlib.training import Recipe


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One size of running a document's chapters; each document adds fields of its own in ``profiles.toml``.

    ``data``: "phantom" or "real" where a chapter is not told otherwise; ``size``: image side in pixels; ``count``: at
    most so many images (None: all real ones, or 512 phantoms); ``model``, ``weights``, ``recipe``: the main network and
    how it is trained; ``trainings``: how often; ``shown``: how many test images a search or an attack is measured on.
    """

    data: Literal["phantom", "real"]
    size: int
    model: str
    weights: str
    recipe: Recipe
    shown: int
    trainings: int
    count: int | None = None


P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class Chosen(Generic[P]):
    """A chapter's parameters after checking, and what follows from them: ``settings`` are the profile's."""

    profile: str
    data: str
    seed: int
    settings: P
    run: Run
    started: float = field(default_factory=time.perf_counter, repr=False)  # the clock of the chapter's wall time

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.run.size

    def runs(self, trainings: int | None = None, **changed: Any) -> list[Run]:
        """A run a training, from ``seed`` on: so many (default: the profile's), with fields changed."""
        trainings = self.settings.trainings if trainings is None else trainings
        return [replace(self.run, seed=self.seed + k, **changed) for k in range(trainings)]


def choose(
    document: str,
    kind: type[P],
    profile: str,
    data: str | None,
    seed: int,
    *,
    dataset: str,
    split_by: str = "patient",
    test: float = 1 / 3,
) -> Chosen[P]:
    """Check a chapter's parameters and look up what they mean in the document's ``profiles.toml``.

    ``data`` None means the profile's own. Raises ``ValueError`` that lists what is valid.
    """
    profiles = documents.toml(document, "profiles")
    if not isinstance(profile, str) or profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    if not isinstance(data, str | None) or data not in (None, "phantom", "real"):
        raise ValueError(f"unknown data {data!r}: choose phantom or real, or None for the profile's own")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2³² − 1, found {seed!r}")
    settings = msgspec.convert(profiles[profile], kind)
    data = data or settings.data
    run = Run(
        dataset=dataset,
        real=data == "real",
        size=settings.size,
        count=settings.count,
        split_by=split_by,
        test=test,
        model=settings.model,
        weights=settings.weights,
        recipe=settings.recipe,
        seed=seed,
    )
    return Chosen(profile, data, seed, settings, run)
