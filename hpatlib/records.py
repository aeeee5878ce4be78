"""Records: what one run of one chapter measured, as a JSON header beside a Parquet file of per-image outcomes.

Records of runs on real data are committed under ``evidence/``; phantom records never count as evidence about patients.
Nothing here is a conclusion: those are computed from the outcomes whenever they are read (``hpatlib.claims``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd

from hpatlib import outcomes
from hpatlib._files import alone, home, sweep, write
from hpatlib.outcomes import ANSWERS, KEYS, Outcomes

PROFILES = ("smoke", "laptop", "study", "paper")  # in the order of their size
PACKAGE = Path(__file__).parent
MARKUP = re.compile(
    r"<[a-zA-Z/!?]|&#?\w+;|[\x00-\x08\x0b-\x1f\x7f]"
)  # names and texts are shown on pages as they stand
WHOLE = ("model", "label", "prediction")  # columns of whole numbers


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One network that was asked: how it came about, and how good it is on clean test images.

    ``run``: what decided it, as ``runs.Run`` has it (defaults left out); ``start``: its first weights, as
    ``models.weights_identity`` has them ("" in records that were made before this was kept); ``seed``: the training it
    stands for (None: it was not trained anew); ``baseline``: trained on clean images alone; ``dose``: how strong a
    treatment it was given; ``losses``: of its epochs; ``accuracy`` on all ``test`` clean images, ``trivial`` the share
    of their largest class.
    """

    key: str
    run: dict[str, Any]
    seed: int | None = None
    baseline: bool = False
    dose: dict[str, float] = {}
    losses: list[float] = []
    accuracy: float | None = None
    trivial: float | None = None
    train: int = 0
    test: int = 0
    seconds: float = 0.0
    device: str = ""
    start: str = ""

    @property
    def network(self) -> str:
        """Name and start of the network, such as "resnet50 (imagenet)"."""
        return f"{self.run['model']} ({self.run['weights']})"


class Images(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set of images: its name, fingerprint, how many there are, and the side of an image in pixels."""

    name: str
    fingerprint: str
    count: int
    size: int


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Provenance of a record. ``claims``: the hash of each claim as it stood when this was measured; ``tables``: small
    tidy tables that belong to no image; ``sha256``: of the Parquet file beside it; ``checksum``: of all the rest of the
    header."""

    chapter: str
    profile: str
    data: str
    seed: int
    date: str
    seconds: float
    claims: dict[str, str]
    conditions: tuple[str, ...]
    models: list[Model]
    images: list[Images]
    tables: dict[str, list[dict[str, str | float | int | None]]]
    environment: dict[str, Any]
    sha256: str
    schema: Literal[2] = 2
    checksum: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """A header and its outcomes."""

    header: Header
    outcomes: Outcomes

    @property
    def real(self) -> bool:
        """Whether real images were measured: phantoms are no evidence about patients."""
        return self.header.data == "real"

    @property
    def seeds(self) -> list[int]:
        """The trainings that were measured; the chapter's own seed where none was."""
        return sorted({m.seed for m in self.header.models if m.seed is not None}) or [self.header.seed]

    @property
    def networks(self) -> list[str]:
        """The networks that were asked, each once."""
        return list(dict.fromkeys(m.network for m in self.header.models))

    @property
    def file(self) -> str:
        """Where it stands below ``evidence/``, without suffix."""
        h = self.header
        return f"{h.chapter}/{h.profile}-{h.data}-seed{h.seed}"

    @property
    def label(self) -> str:
        """Profile, data, n, sizes of samples and trainings in a few words, for captions and legends."""
        h, kind = self.header, "real" if self.real else "phantom"
        rows = self.outcomes.rows
        cells = rows.groupby(["model", *h.conditions], observed=True)["image"].nunique()
        few = sorted({int(n) for n in cells[cells < cells.groupby("model").transform("max")]} - {1})  # 1: of no image
        rows = rows[rows["label"] != outcomes.NONE] if "label" in rows else rows
        counts = rows.groupby("model", observed=True)["image"].nunique()
        n = ""
        if len(counts):
            low, high = int(counts.min()), int(counts.max())
            n = f"n = {low if low == high else f'{low} to {high}'} images"
            n += " a training" if len(self.seeds) > 1 else ""
            n += f", {' or '.join(map(str, few))} where a sample was asked" if few else ""
        names = ", ".join(dict.fromkeys(images.name for images in h.images))
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return ", ".join(filter(None, (f"{h.profile.capitalize()} profile", f"{kind} data ({names})", n, seeds)))

    def table(self, name: str) -> pd.DataFrame:
        """One of the header's small tables. Raises ``Unmeasured`` where it is not there."""
        if name not in self.header.tables:
            raise outcomes.Unmeasured(f"no table {name!r}: there are {', '.join(self.header.tables) or 'none'}")
        return pd.DataFrame(self.header.tables[name])

    @property
    def device(self) -> str:
        """What it was measured on."""
        return _device(self.header.environment.get("device", "–"))

    def stamp(self) -> pd.DataFrame:
        """Where its numbers came from: what and its value, a row each."""
        h, env = self.header, self.header.environment
        kind = "real" if self.real else "phantom (no evidence about patients)"
        sets = "; ".join(f"{i.name} {i.fingerprint}, {i.count} images, {i.size} px" for i in h.images)
        trained = [m for m in h.models if m.seed is not None]
        splits = ", ".join(dict.fromkeys(m.run.get("split_by", "–") for m in trained))
        asked = f"{len(h.models)} networks: {', '.join(self.networks)}" if h.models else "none is asked"
        if trained:
            seconds, device = sum(m.seconds for m in trained), _device(trained[0].device)
            asked += f"; split by {splits}, trained in {seconds:.0f} s on {device}"
        rows = {
            "record": f"{self.file}.json, outcomes sha256 {h.sha256[:16]}",
            "profile, data, seeds": f"{h.profile}, {kind}, {', '.join(map(str, self.seeds))}",
            "images": sets or "–",
            "models": asked,
            "device, wall time": f"{self.device}, {h.seconds} s",
            "versions": ", ".join(f"{name} {version}" for name, version in env.get("versions", {}).items()),
            "commit": str(env.get("commit") or "outside a checkout"),
            "date": h.date,
        }
        return pd.DataFrame({"what": rows.keys(), "value": rows.values()})


def save(header: Header, rows: pd.DataFrame, folder: Path) -> Record:
    """Write a record below ``folder``: its outcomes first, its header last, so that a header has its outcomes.

    Raises ``ValueError``, and writes nothing, where it contradicts itself.
    """
    content = outcomes.encode(outcomes.tidy(rows, header.conditions))
    header = msgspec.structs.replace(header, sha256=hashlib.sha256(content).hexdigest())
    header = msgspec.json.decode(msgspec.json.encode(header), type=Header)  # as it will be read, or ValueError
    header = msgspec.structs.replace(header, checksum=_checksum(header))
    path = folder / header.chapter / f"{header.profile}-{header.data}-seed{header.seed}.json"
    record = _record(path, header, content)
    with alone(folder):  # of two that measure the same at once, both files are the last one's
        for each in (path.with_suffix(".parquet"), path):
            sweep(each)
        write(path.with_suffix(".parquet"), content)
        write(path, msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n")
    return record


def _device(name: str) -> str:
    return name.replace(", 1 threads", ", 1 thread")  # early records know no singular


def _checksum(header: Header) -> str:
    """Of everything in a header but the checksum itself, however its text is laid out."""
    plain = msgspec.to_builtins(msgspec.structs.replace(header, checksum=""))
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def read(path: Path) -> Record:
    """One record. Raises ``ValueError`` that names the file when it is not a whole, valid record."""
    try:
        content = path.read_bytes()
        header = msgspec.json.decode(content, type=Header)
        json.loads(content, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a record of this version ({error}): measure it anew, hpat run … --record"
        ) from error
    if not header.checksum:
        raise ValueError(f"{path} has no checksum, as records of earlier versions: measure it anew")
    if header.checksum != _checksum(header):
        raise ValueError(f"{path} was changed after it was written: it does not have the checksum that stands in it")
    beside = path.with_suffix(".parquet")
    if not beside.is_file():
        raise ValueError(f"{path} has no outcomes beside it: {beside.name} is missing")
    try:
        return _record(path, header, beside.read_bytes())
    except OSError as error:
        raise ValueError(f"{beside} cannot be read ({error.strerror}): allow it, or measure it anew") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names occur once: of two, a reader would silently take the last."""
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"it says {', '.join(sorted(twice))} twice")
    return dict(pairs)


def _record(path: Path, header: Header, content: bytes) -> Record:
    if (found := hashlib.sha256(content).hexdigest()) != header.sha256:
        raise ValueError(
            f"{path.with_suffix('.parquet')} is not what {path.name} was written with: "
            f"its sha256 is {found[:16]}…, the header's {header.sha256[:16]}…"
        )
    try:
        rows = outcomes.decode(content)
    except Exception as error:  # pyarrow raises what it likes
        raise ValueError(f"{path.with_suffix('.parquet')} is no Parquet file of outcomes ({error})") from error
    if faults := [*_misplaced(path, header), *_header_faults(header), *_row_faults(header, rows)]:
        raise ValueError(f"{path} contradicts itself: {'; '.join(faults)}")
    return Record(header, Outcomes(rows, header.conditions, tuple(m.seed for m in header.models)))


def _misplaced(path: Path, header: Header) -> Iterator[str]:
    """How a record contradicts its own name and folder, a clause each."""
    name = f"{header.profile}-{header.data}-seed{header.seed}"
    if path.stem != name:
        yield f"it is called {path.stem}, and should be {name}"
    if path.parent.parts[-2:] != tuple(header.chapter.split("/")):
        yield f"it stands in {path.parent.name}, and speaks of {header.chapter}"


def _header_faults(header: Header) -> Iterator[str]:
    """What is wrong with a header, a clause each."""
    if header.profile not in PROFILES:
        yield f"its profile is {header.profile!r}, none of {', '.join(PROFILES)}"
    if header.data not in ("phantom", "real"):
        yield f"its data are {header.data!r}, neither phantom nor real"
    if header.seed < 0 or any((model.seed or 0) < 0 for model in header.models):
        yield "it has a negative seed"
    if not _is_day(header.date):
        yield f"its date is {header.date!r}, expected a day such as 2024-05-17"
    if not 0 <= header.seconds < math.inf:
        yield f"it took {header.seconds} s"
    if header.data == "real" and any(images.name.startswith("phantom") for images in header.images):
        yield "it calls phantoms real"
    named = {
        "condition": header.conditions,
        "model": [model.key for model in header.models],
        "set of images": [images.fingerprint for images in header.images],
    }
    yield from (f"it names a {what} twice" for what, names in named.items() if len(set(names)) < len(names))
    if reserved := set(header.conditions) & {*KEYS, *ANSWERS}:
        yield f"its conditions have the names of columns ({', '.join(sorted(reserved))})"
    for images in header.images:
        if images.count < 1 or images.size < 1:
            yield f"its images {images.name} are {images.count} of {images.size} px, expected at least one of each"
    for model in header.models:
        yield from (f"its model {model.key} {fault}" for fault in _model_faults(header, model))
    if marked := next((text for text in _texts(msgspec.to_builtins(header)) if MARKUP.search(text)), None):
        yield f"it holds a text with markup ({marked[:40]!r})"


def _model_faults(header: Header, model: Model) -> Iterator[str]:
    """What is wrong with one model of a record, a clause each."""
    if not all(isinstance(model.run.get(name), str) for name in ("model", "weights")):
        yield "does not say which network and weights it has"
    if model.seed is not None and model.run.get("seed", model.seed) != model.seed:
        yield f"stands for the training {model.seed}, and its run for {model.run['seed']}"
    if "dataset" in model.run and (real := bool(model.run.get("real"))) != (header.data == "real"):
        yield f"was trained on {'real images' if real else 'phantoms'}, and its record is {header.data}"
    for name in ("accuracy", "trivial"):
        if (share := getattr(model, name)) is not None and not 0 <= share <= 1:
            yield f"has the {name} {share}, expected a share"
    if min(model.train, model.test) < 0 or not 0 <= model.seconds < math.inf:
        yield f"has {model.train} and {model.test} images and took {model.seconds} s"
    if not all(map(math.isfinite, [*model.losses, *model.dose.values()])):
        yield "has a loss or a dose that is not finite"


def _row_faults(header: Header, rows: pd.DataFrame) -> Iterator[str]:
    """What is wrong with outcomes, a clause each."""
    if not len(rows):
        return
    if missing := [c for c in (*KEYS, *header.conditions) if c not in rows]:
        yield f"its outcomes lack {', '.join(missing)}"
        return
    texts = (*header.conditions, "image", "group")
    wrong = {column: kind for column in rows if (kind := _kind(rows[column])) != _expected(column, texts)}
    if wrong:
        yield from (f"its column {column} holds {kind}" for column, kind in wrong.items())
        return
    for column in texts:
        if marked := next(filter(MARKUP.search, rows[column].cat.categories), None):
            yield f"its column {column} holds a text with markup ({marked[:40]!r})"
    if not rows["model"].between(0, max(0, len(header.models) - 1)).all():
        yield f"its outcomes name models beyond its {len(header.models)}"
    if rows.duplicated(["model", *header.conditions, "image"]).any():
        yield "it holds two outcomes of one model, condition and image"
    for column in rows.columns.intersection(WHOLE[1:]):
        if (rows[column] < outcomes.NONE).any():
            yield f"its column {column} has negative classes"
    for column in rows.select_dtypes(np.floating):
        if np.isinf(rows[column]).any():
            yield f"its column {column} has infinite values"


def _kind(column: pd.Series) -> str:
    """What a column holds: text (each in its categories), whole numbers, numbers, or else what it is."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        whole = all(isinstance(each, str) for each in categories) and not column.isna().any()
        return "text" if whole else "categories that are not all text"
    if column.dtype.kind in "iu":
        return "whole numbers"
    return "numbers" if column.dtype.kind == "f" else str(column.dtype)


def _expected(column: str, texts: Sequence[str]) -> str:
    return "text" if column in texts else "whole numbers" if column in WHOLE else "numbers"


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain JSON data, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain(map(str, value), *map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain(*map(_texts, value))


def folder() -> Path:
    """Where committed records are: ``evidence/`` of the checkout, or the copy inside an installed package."""
    checkout = PACKAGE.parent / "evidence"
    return checkout if checkout.is_dir() else PACKAGE / "_evidence"


def scratch() -> Path:
    """Where a run writes its record: ``$HPAT_RECORDS``, else ``records/`` of the library's own folder."""
    return Path(os.environ.get("HPAT_RECORDS") or home() / "records").expanduser()


def of(chapter: str) -> list[Record]:
    """The committed records of ``chapter``: those of real images first, from the largest profile down.

    Raises ``ValueError`` that names a broken file.
    """
    found = [_cached(path, *_changed(path)) for path in sorted((folder() / chapter).glob("*.json"))]
    return sorted(found, key=lambda r: (not r.real, -PROFILES.index(r.header.profile), r.header.seed))


def best(chapter: str) -> Record | None:
    """The record that decides a chapter's claims: on real images, of the largest profile; None without one."""
    found = of(chapter)
    return found[0] if found and found[0].real else None


def everything() -> list[Path]:
    """Every committed record's header."""
    return sorted(folder().rglob("*.json"))


def _changed(path: Path) -> list[int]:
    """When the two files of a record were last changed, 0 for one that is missing."""
    return [file.stat().st_mtime_ns if file.is_file() else 0 for file in (path, path.with_suffix(".parquet"))]


@lru_cache(maxsize=64)
def _cached(path: Path, header: int, outcomes: int) -> Record:
    return read(path)
