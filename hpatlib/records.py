"""Records: what one run of one chapter measured, as a JSON header beside a Parquet file of per-image outcomes.

Records of runs on real data are committed under ``evidence/``; phantom records never count as evidence about patients.
Nothing here is a conclusion: those are computed from the outcomes whenever they are read (``hpatlib.claims``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
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
NAME = re.compile(rf"({'|'.join(PROFILES)})-(phantom|real)-seed(\d+)")


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One network that was asked: how it came about, and how good it is on clean test images.

    ``run``: what decided it, as ``runs.Run`` has it (defaults left out); ``seed``: the training it stands for (None: it
    was not trained anew); ``baseline``: trained on clean images alone; ``dose``: how strong a treatment it was given;
    ``losses``: of its epochs; ``accuracy`` on all ``test`` clean images, ``trivial`` the share of their largest class.
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
    tidy tables that belong to no image; ``sha256``: of the Parquet file beside it."""

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
        """Profile, data, n and trainings in a few words, for captions and legends."""
        h, kind = self.header, "real" if self.real else "phantom"
        rows = self.outcomes.rows
        rows = rows[rows["label"] != outcomes.NONE] if "label" in rows else rows
        counts = rows.groupby("model", observed=True)["image"].nunique()
        n = ""
        if len(counts):
            low, high = int(counts.min()), int(counts.max())
            n = f"n = {low if low == high else f'{low} to {high}'} images"
            n += " a training" if len(self.seeds) > 1 else ""
        names = ", ".join(dict.fromkeys(images.name for images in h.images))
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return ", ".join(filter(None, (f"{h.profile.capitalize()} profile", f"{kind} data ({names})", n, seeds)))

    def table(self, name: str) -> pd.DataFrame:
        """One of the header's small tables. Raises ``Unmeasured`` where it is not there."""
        if name not in self.header.tables:
            raise outcomes.Unmeasured(f"no table {name!r}: there are {', '.join(self.header.tables) or 'none'}")
        return pd.DataFrame(self.header.tables[name])

    def stamp(self) -> pd.DataFrame:
        """Where its numbers came from: what and its value, a row each."""
        h, env = self.header, self.header.environment
        kind = "real" if self.real else "phantom (no evidence about patients)"
        sets = "; ".join(f"{i.name} {i.fingerprint}, {i.count} images, {i.size} px" for i in h.images)
        trained = [m for m in h.models if m.seed is not None]
        splits = ", ".join(dict.fromkeys(m.run.get("split_by", "–") for m in trained))
        asked = f"{len(h.models)} networks: {', '.join(self.networks)}" if h.models else "none is asked"
        if trained:
            asked += f"; split by {splits}, trained in {sum(m.seconds for m in trained):.0f} s on {trained[0].device}"
        rows = {
            "record": f"{self.file}.json, outcomes sha256 {h.sha256[:16]}",
            "profile, data, seeds": f"{h.profile}, {kind}, {', '.join(map(str, self.seeds))}",
            "images": sets or "–",
            "models": asked,
            "device, wall time": f"{env.get('device', '–')}, {h.seconds} s",
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
    path = folder / header.chapter / f"{header.profile}-{header.data}-seed{header.seed}.json"
    record = _record(path, header, content)
    write(path.with_suffix(".parquet"), content)
    write(path, msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n")
    return record


def read(path: Path) -> Record:
    """One record. Raises ``ValueError`` that names the file when it is not a whole, valid record."""
    try:
        content = path.read_bytes()
        header = msgspec.json.decode(content, type=Header)
        json.loads(content, object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a record of this version ({error}): measure it anew, hpat run … --record"
        ) from error
    beside = path.with_suffix(".parquet")
    if not beside.is_file():
        raise ValueError(f"{path} has no outcomes beside it: {beside.name} is missing")
    return _record(path, header, beside.read_bytes())


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
    rows = outcomes.decode(content)
    if faults := list(_faults(path, header, rows)):
        raise ValueError(f"{path} contradicts itself: {'; '.join(faults)}")
    return Record(header, Outcomes(rows, header.conditions, tuple(m.seed for m in header.models)))


def _faults(path: Path, header: Header, rows: pd.DataFrame) -> list[str]:
    """What is wrong with a record, a clause each."""
    found = []
    name = f"{header.profile}-{header.data}-seed{header.seed}"
    if path.stem != name or not NAME.fullmatch(name):
        found.append(f"it is called {path.stem}, and should be {name}")
    if path.parent.parts[-2:] != tuple(header.chapter.split("/")):
        found.append(f"it stands in {path.parent.name}, and speaks of {header.chapter}")
    if header.data == "real" and any(images.name.startswith("phantom") for images in header.images):
        found.append("it calls phantoms real")
    if not len(rows):
        return found
    if missing := [c for c in (*KEYS, *header.conditions) if c not in rows]:
        return [*found, f"its outcomes lack {', '.join(missing)}"]
    if not rows["model"].between(0, len(header.models) - 1).all() and header.models:
        found.append(f"its outcomes name models beyond its {len(header.models)}")
    if rows.duplicated(["model", *header.conditions, "image"]).any():
        found.append("it holds two outcomes of one model, condition and image")
    for column in ANSWERS:
        if column in rows and column != "margin" and (rows[column] < outcomes.NONE).any():
            found.append(f"its column {column} has negative classes")
    for column in rows.select_dtypes(np.floating):
        if np.isinf(rows[column]).any():
            found.append(f"its column {column} has infinite values")
    return found


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
