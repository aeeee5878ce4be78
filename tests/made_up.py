"""Records and documents that are made up, for tests that must know the truth. It needs no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pytest

from hpatlib import claims, documents, outcomes, records
from hpatlib.outcomes import Outcomes
from hpatlib.records import Header, Images, Model, Record

Right = Mapping[tuple[str, ...], float | np.ndarray]


def pattern(share: float, trainings: int, images: int) -> np.ndarray:
    """Which images are answered right ``[S, N]``: ``share`` of them in every training, others in each."""
    right = np.arange(images) < round(share * images)
    return np.stack([np.random.default_rng(seed).permutation(right) for seed in range(trainings)])


def cells(
    conditions: Sequence[str], right: Right, *, by: str | None = None, trainings: int = 6, images: int = 40
) -> tuple[pd.DataFrame, list[Model]]:
    """Rows of two classes by turns and the models that gave them: ``right`` has a share, or ``[S, N]``, for each cell.

    ``by``: the condition that has models of its own (None: the same models everywhere). Margins have the answer's sign.
    """
    parts, models, draws = [], {}, np.random.default_rng(0)
    labels = np.arange(images) % 2
    for key, share in right.items():
        answers = share if isinstance(share, np.ndarray) else pattern(share, trainings, images)
        name = key[conditions.index(by)] if by else "network"
        for seed, correct in enumerate(answers):
            number = models.setdefault((name, seed), len(models))
            said = np.where(correct, labels, 1 - labels)
            margin = np.where(said, 1, -1) * draws.uniform(0.1, 4, images)
            about = {"model": number, "image": np.arange(images).astype(str), "group": np.arange(images) // 2}
            about |= {"label": labels, "prediction": said, "margin": margin}
            parts.append(pd.DataFrame(about | dict(zip(conditions, key, strict=True))))
    made = [model(seed, key=f"{name}-{seed}", baseline=name in ("network", "Standard")) for name, seed in models]
    return pd.concat(parts, ignore_index=True), made


def model(seed: int | None, **changed) -> Model:
    """A model, competent where not told otherwise."""
    run = {"model": "resnet50", "weights": "imagenet", "dataset": "cnmc", "real": True, "split_by": "patient"}
    given = {"key": f"model-{seed}", "run": run, "seed": seed, "accuracy": 0.9, "trivial": 0.5, "test": 40} | changed
    return Model(**given)


def measured(conditions: Sequence[str], right: Right, **options) -> Outcomes:
    """Outcomes as they come out of a record: in the types that are stored."""
    rows, models = cells(conditions, right, **options)
    return Outcomes(outcomes.tidy(rows, tuple(conditions)), tuple(conditions), tuple(m.seed for m in models))


def header(chapter: str, conditions: Sequence[str], models: Iterable[Model], **changed) -> Header:
    """The header of a laptop run on real images."""
    given = {
        "chapter": chapter,
        "profile": "laptop",
        "data": "real",
        "seed": 0,
        "date": "2024-05-17",
        "seconds": 12.5,
        "claims": {},
        "conditions": tuple(conditions),
        "models": list(models),
        "images": [Images("cnmc", "f00d", 120, 64)],
        "tables": {},
        "environment": {"device": "CPU, 1 threads", "versions": {"torch": "2.0"}, "commit": "abc"},
        "sha256": "",
    }
    return Header(**given | changed)


def record(folder: Path, chapter: str, conditions: Sequence[str], right: Right, **changed) -> Record:
    """Save a record of made-up cells below ``folder``; ``changed``: options of `cells`, or fields of its header."""
    options = {name: changed.pop(name) for name in ("by", "trainings", "images") if name in changed}
    if isinstance(options.get("images"), list):  # the header's
        changed["images"] = options.pop("images")
    rows, models = cells(conditions, right, **options)
    models = changed.pop("models", models)
    if changed.get("data") == "phantom":
        models = [msgspec.structs.replace(each, run={**each.run, "real": False}) for each in models]
    return records.save(header(chapter, conditions, models, **changed), rows, folder)


def vouched(plain: dict) -> dict:
    """A header as plain data, with the checksum of what it says where it is one at all."""
    with suppress(msgspec.ValidationError):
        plain["checksum"] = records._checksum(msgspec.convert(plain, Header))
    return plain


def forget() -> None:
    """Clear what documents and claims have read."""
    for cached in (documents.names, documents.toml, claims.of):
        cached.cache_clear()


def toml(value: object) -> str:
    """A value as TOML has it inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class World:
    """One made-up document, "made", in a folder of its own, with its evidence beside it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, quantities: Mapping[str, object] | ModuleType) -> None:
        self.documents, self.evidence = folder / "documents", folder / "evidence"
        (self.documents / "made").mkdir(parents=True)
        self.evidence.mkdir()
        self.write("published", {"document": {"title": "A document", "cite": "made2024", "order": 1}})
        self.rule()
        patch.setattr(documents, "FOLDER", self.documents)
        patch.setattr(documents, "quantities", lambda document: SimpleNamespace(**quantities))
        patch.setattr(records, "folder", lambda: self.evidence)
        forget()

    def write(self, name: str, content: dict) -> None:
        """One of the document's TOML files, anew."""
        text = "".join(f"{key} = {toml(value)}\n" for key, value in content.items())
        (self.documents / "made" / f"{name}.toml").write_text(text)
        forget()

    def rule(self, *several: dict, gates: Mapping[str, object] | None = None) -> None:
        """The document's claims, each with what it does not say filled in."""
        filled = [{**CLAIM, "id": f"claim-{number}"} | one for number, one in enumerate(several)]
        self.write("claims", {"gates": dict(gates or {}), "claims": filled})

    def judge(self) -> list[claims.Judgement]:
        return claims.judge("made")

    def lock(self) -> dict:
        return json.loads((self.documents / "made" / "claims.lock").read_text())


def check_held_out(record: records.Record) -> None:
    """Every image that a record speaks of was kept from the model that it asks, and a split is that of its models."""
    from hpatlib import runs

    rows = record.outcomes.rows
    for number, model in enumerate(record.header.models):
        run = runs.from_dict({"count": None, "real": False} | model.run)
        mine = rows[rows["model"] == number]
        asked = set(mine["image"].astype(str)) - {"training"}
        assert asked <= set(runs.train_or_load(run).test.ids), (record.file, model.key)
        assert "split" not in mine or set(mine["split"].astype(str)) <= {run.split_by}, (record.file, model.key)


CHAPTER = "made/fig1"
CLAIM = {
    "chapter": CHAPTER,
    "place": "Figure 1",
    "sentence": "It rises.",
    "quantity": "gain",
    "measure": "gain",
    "direction": ">",
    "threshold": 0.0,
}
