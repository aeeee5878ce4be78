"""What a model answers, as rows of outcomes; and `Study`, which collects them and keeps neither models nor pixels."""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hpatlib import claims, outcomes, records
from hpatlib._files import home, sealed, source, unsealed, write
from hpatlib._model import device_of, held_still, margin_loss
from hpatlib.data import ImageSet
from hpatlib.documents.profiles import Chosen
from hpatlib.frozen import frozen
from hpatlib.hybrid import Environment, perturb
from hpatlib.records import Header, Images, Model, Record
from hpatlib.runs import Run, Trained, default_device, environment, train_or_load
from hpatlib.spatial import gradient_ascent
from hpatlib.stbo import stbo
from hpatlib.worst_case import worst_case

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
Item = TypeVar("Item")
BATCH = 64
SOURCE = source()  # of the code that runs: a checkout may move on while it does
SUITE = partial(worst_case, iterations=50, restarts=1)  # the worst case's pixel part: what a CPU affords


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """The model's answers ``[N, classes]`` to ``images [N, C, H, W]``, in eval mode and in batches."""
    with held_still(model):
        return torch.cat([model(batch) for batch in images.split(batch_size)])


def logits_of(model: nn.Module, images: ImageSet, *, batch_size: int = BATCH) -> Tensor:
    """The model's answers ``[N, classes]`` to a set of images, on the CPU."""
    device = device_of(model)
    return torch.cat([logits(model, x).cpu() for x, _ in images.batches(batch_size, device=device)])


def rows(images: ImageSet, answers: Tensor, **values: Any) -> pd.DataFrame:
    """A row of outcomes an image: its id, group and label, the prediction and margin of ``answers [N, classes]``, and
    ``values``, each a number or text for all, or an array ``[N]``.

    Raises ``ValueError`` for answers that are not finite, as those of a network whose training diverged.
    """
    if count := int((~answers.isfinite()).sum()):
        raise ValueError(f"answers must be finite, found {count} that are not: see whether the training diverged")
    labels = torch.from_numpy(np.asarray(images.labels))
    own = labels[:, None] == torch.arange(answers.shape[1])
    scores = answers.detach().double().cpu()
    if scores.shape[1] == 2:
        margin = scores[:, 1] - scores[:, 0]
    else:
        margin = scores[own] - scores.masked_fill(own, -math.inf).amax(dim=1)
    limit = float(np.finfo(np.float16).max)
    about = {
        "label": images.labels,
        "prediction": scores.argmax(dim=1).numpy(),
        "margin": margin.clamp(-limit, limit).numpy(),
    }
    return pd.DataFrame(named(images) | about | values)


def named(images: ImageSet) -> dict[str, np.ndarray]:
    """The columns that say which image a row is about: its id, and what belongs together with it."""
    return {"image": images.ids, "group": np.array([f"{images.name}/{group}" for group in images.groups])}


def attacked(
    model: nn.Module,
    images: ImageSet,
    attacks: Mapping[str, Attack | None],
    *,
    asked: nn.Module | None = None,
    batch_size: int = BATCH,
) -> Iterator[tuple[str, Tensor]]:
    """The model's answers ``[N, classes]`` under each attack by name (None: the images as they are).

    ``asked``: the network that attacks ask, such as ``frozen(model)`` (None: the model); answers are the model's own.
    """
    device, asked = device_of(model), model if asked is None else asked
    parts: dict[str, list[Tensor]] = {name: [] for name in attacks}
    with tqdm(total=len(images) * len(attacks), desc="attack", unit="image", leave=False) as bar:
        for x, labels in images.batches(batch_size, device=device):
            for name, attack in attacks.items():
                parts[name].append(logits(model, x if attack is None else attack(asked, x, labels)).cpu())
                bar.update(len(x))
    return ((name, torch.cat(each)) for name, each in parts.items())


def environments(
    model: nn.Module,
    data: ImageSet,
    places: Sequence[Environment],
    *,
    readings: Sequence[str] = ("fixed", "searched"),
    searches: int = 100,
    queries: int = 5000,
    seed: int = 0,
    batch_size: int = BATCH,
) -> dict[tuple[str, str], Tensor]:
    """The model's answers ``[N, classes]`` on the CPU in each environment, by its name and reading (L25).

    ``"fixed"`` takes the environment's transform, ``"searched"`` the worst one that STBO finds in its box with
    ``searches`` queries an image; both after PGD at its ε. Where there is nothing to turn or shift, both are PGD alone.
    ``"worst"`` is what none of four leaves right: that search, the pixel part alone by `worst_case` with so many
    ``queries``, another search of its kind and one by gradients, of ``searches`` units each; each is asked about what
    is still right.

    A pixel attack is made once for all environments and readings that share it. Attacks ask a frozen copy of the model;
    what they return is judged by the model itself.
    """
    if unknown := set(readings) - {"fixed", "searched", "worst"}:
        raise ValueError(f"unknown reading {unknown.pop()!r}: choose fixed, searched or worst")
    device, quick = device_of(model), frozen(model)
    answers: dict[tuple[str, str], list[Tensor]] = {(p.name, r): [] for p in places for r in readings}
    with tqdm(total=len(data) * len(answers), desc="environments", unit="image", leave=False) as bar:
        for number, (images, labels) in enumerate(data.batches(batch_size, device=device)):
            attacked_images: dict[tuple, Tensor] = {}

            def draws(number: int = number, again: int = 0) -> torch.Generator:
                # Anew for each attack: an environment's result must not hang on which others are asked for.
                return torch.Generator().manual_seed(1_000_003 * seed + number + 500_000 * again)

            for place in places:
                pixels = (place.eps, place.step, place.iterations)
                if pixels not in attacked_images:
                    pixel = partial(place.pixel, generator=draws()) if place.pixel else None
                    attacked_images[pixels] = perturb(quick, images, labels, pixel=pixel)
                noisy = attacked_images[pixels]
                searched = noisy
                if place.fixed is not None and set(readings) != {"fixed"}:
                    searched = stbo(quick, noisy, labels, place.box, evaluations=searches, generator=draws()).images
                for reading in readings:
                    shown = perturb(quick, noisy, labels, spatial=place.fixed) if reading == "fixed" else searched
                    found = logits(model, shown, batch_size=batch_size)
                    if reading == "worst":
                        attempts = _harder(quick, place, searches, queries, [draws(again=k) for k in (1, 2, 3)])
                        found = _worst(model, attempts, found, images, noisy, labels)
                    answers[place.name, reading].append(found.cpu())
                    bar.update(len(images))
    return {key: torch.cat(parts) for key, parts in answers.items()}


Attempt = Callable[..., Any]  # images, labels → what has .images


def _harder(
    model: nn.Module, place: Environment, searches: int, queries: int, draws: Sequence[torch.Generator]
) -> tuple[list[Attempt], list[Attempt]]:
    """What else the worst case tries: attacks on the images themselves, and transforms of the noisy ones."""
    suite: Attempt = partial(SUITE, model, eps=place.eps, queries=queries, generator=draws[2])
    pixels = [suite] if place.eps else []
    if place.fixed is None:
        return pixels, []
    # Where the usual 4 · (3 · 5 + 1) units of gradients do not fit into the budget, one start has half of it.
    starts, steps = (4, 5) if searches >= 68 else (1, max(1, (searches - 2) // 6))
    ascent = partial(gradient_ascent, model, box=place.box, starts=starts, steps=steps, evaluations=max(5, searches))
    again = partial(stbo, model, box=place.box, evaluations=searches, generator=draws[0])
    return pixels, [again, partial(ascent, generator=draws[1])]


def _worst(
    model: nn.Module,
    attempts: tuple[list[Attempt], list[Attempt]],
    answers: Tensor,
    images: Tensor,
    noisy: Tensor,
    labels: Tensor,
) -> Tensor:
    """``answers [B, classes]``, and for those still right the hardest of what each attempt makes of them."""
    answers = answers.clone()
    for shown, several in zip((images, noisy), attempts, strict=True):
        for attempt in several:
            if len(left := (answers.argmax(dim=1) == labels).nonzero().squeeze(1)):
                found = logits(model, attempt(shown[left], labels[left]).images)
                answers[left] = hardest([answers[left], found], labels[left])
    return answers


def hardest(answers: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Of several answers ``[B, classes]`` to each image, the one that speaks least for its label: ``[B, classes]``."""
    least = torch.stack([margin_loss(each, labels) for each in answers]).argmax(dim=0)
    return torch.stack(list(answers))[least, torch.arange(len(labels), device=labels.device)]


def sample(data: ImageSet, count: int) -> ImageSet:
    """At most ``count`` images, evenly spaced through the set, so that classes and patients keep their shares."""
    return data.subset(spaced(len(data), count))


def spaced(length: int, count: int) -> np.ndarray:
    """At most ``count`` whole numbers, evenly spaced from 0 to ``length`` − 1."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int)


class Study:
    """Collects what one chapter measures. Starting one checks the chapter's claims, before anything trains.

    It keeps provenance and outcomes, never a model or a pixel. What the `steps` of a chapter have added lies below
    ``home()/measured`` until the record is written, so that one that was stopped goes on at the step it was in.
    """

    def __init__(self, chapter: str, chosen: Chosen, conditions: Sequence[str]) -> None:
        self.chapter, self.chosen, self.conditions = chapter, chosen, tuple(conditions)
        self.claims = claims.check(chapter)
        self.environment = environment(default_device())
        self.parts: list[pd.DataFrame] = []
        self.models: dict[str, Model] = {}
        self.images: dict[str, Images] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.seconds = 0.0  # that kept steps took
        self._number = itertools.count()
        self._kept = home() / "measured" / chapter / f"{chosen.profile}-{chosen.data}-seed{chosen.seed}"

    def steps(self, items: Iterable[Item], key: Callable[[Item], str]) -> Iterator[Item]:
        """Those of ``items`` that nothing is kept of; whatever is added until the next is asked for is kept.

        ``key`` is what decides a step beside its place in the chapter, the chapter's parameters, the library's source,
        and device and versions: as a rule the key of the model that is asked, which stands for its images too.
        """
        where = self.environment
        decided = [self.chapter, self.chosen, SOURCE, where["device"], where["versions"]]
        for item in items:
            told = repr([*decided, next(self._number), key(item)]).encode()
            path = self._kept / f"{hashlib.blake2b(told, digest_size=8).hexdigest()}.json"
            if path.is_file() and self._recall(path):
                continue
            started, parts = time.perf_counter(), len(self.parts)
            before = {name: len(rows) for name, rows in self.tables.items()}
            yield item
            rows = pd.concat(self.parts[parts:], ignore_index=True) if self.parts[parts:] else pd.DataFrame()
            about = {
                "models": msgspec.to_builtins(list(self.models.values())),
                "images": msgspec.to_builtins(list(self.images.values())),
                "tables": {name: table[before.get(name, 0) :] for name, table in self.tables.items()},
                "seconds": time.perf_counter() - started,
            }
            content = outcomes.encode(rows)
            write(path.with_suffix(".parquet"), content)
            write(path, sealed(about | {"sha256": hashlib.sha256(content).hexdigest()}))

    def _recall(self, path: Path) -> bool:
        """Add what a step has kept at ``path``; whether it was whole."""
        try:
            about, content = unsealed(path), path.with_suffix(".parquet").read_bytes()
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise ValueError(f"{path.with_suffix('.parquet')} is damaged: it is not what {path.name} speaks of")
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}: its step is measured anew", stacklevel=3)
            return False
        for images in msgspec.convert(about["images"], list[Images]):
            self.images.setdefault(images.fingerprint, images)
        numbers = [self.model(model) for model in msgspec.convert(about["models"], list[Model])]
        rows = outcomes.decode(content)
        if len(rows):
            self.parts.append(rows.assign(model=np.array(numbers or [0])[rows["model"]]))
        for name, table in about["tables"].items():
            self.tables.setdefault(name, []).extend(table)
        self.seconds += about["seconds"]
        return True

    def add(self, asked: Trained | Model | None, rows: pd.DataFrame, **conditions: object) -> None:
        """Rows of outcomes (`rows`) of a model under ``conditions``; None: no model is asked, as for textures.

        A trained model is asked for its clean accuracy once. Raises ``ValueError`` for conditions other than the
        study's, those that are columns of ``rows`` included.
        """
        given = {name for name in self.conditions if name in rows} | conditions.keys()
        if given != set(self.conditions):
            raise ValueError(f"outcomes of {self.chapter} need the conditions {self.conditions}, found {sorted(given)}")
        number = 0 if asked is None else self.model(asked)
        self.parts.append(rows.assign(model=number, **{k: str(v) for k, v in conditions.items()}))

    def model(self, asked: Trained | Model) -> int:
        """The number of a model in the record, after taking down its provenance."""
        model = asked if isinstance(asked, Model) else self._taken_down(asked)
        self.models.setdefault(model.key, model)
        return list(self.models).index(model.key)

    def saw(self, images: ImageSet) -> None:
        """Take down a set of images that no model was trained on, as for textures."""
        self.images.setdefault(images.fingerprint, Images(images.name, images.fingerprint, len(images), images.size))

    def table(self, name: str, content: pd.DataFrame) -> None:
        """Rows of a small tidy table that belongs to no image, behind those it has; missing values are left out."""
        found = [{k: v for k, v in row.items() if not pd.isna(v)} for row in content.to_dict("records")]
        plain = [{str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in found]
        self.tables.setdefault(name, []).extend(plain)

    def taken(self, name: str) -> pd.DataFrame:
        """A table, taken out again: what steps have noted for one that sums them up."""
        return pd.DataFrame(self.tables.pop(name))

    def record(self) -> Record:
        """Write the record to ``$HPAT_RECORDS`` (or the library's own folder) and return it; what steps kept goes."""
        empty = pd.DataFrame(columns=["model", *self.conditions, "image", "group"])
        header = Header(
            chapter=self.chapter,
            profile=self.chosen.profile,
            data=self.chosen.data,
            seed=self.chosen.seed,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            seconds=round(time.perf_counter() - self.chosen.started + self.seconds, 1),
            claims=self.claims,
            conditions=self.conditions,
            models=list(self.models.values()),
            images=list(self.images.values()),
            tables=self.tables,
            environment=self.environment,
            sha256="",
        )
        content = pd.concat(self.parts, ignore_index=True) if self.parts else empty
        record = records.save(header, content, records.scratch())
        shutil.rmtree(self._kept, ignore_errors=True)
        return record

    def _taken_down(self, trained: Trained) -> Model:
        about, run = trained.provenance, trained.provenance["run"]
        if about["key"] in self.models:
            return self.models[about["key"]]
        data = about["data"]
        count = data["train"] + data["test"]
        images = Images(data["name"], data["fingerprint"], count, trained.test.size)
        self.images.setdefault(images.fingerprint, images)
        right = logits_of(trained.model, trained.test).argmax(dim=1).numpy() == trained.test.labels
        treated = any(run.get(name) for name in ("static_eps", "adversary", "mixbn", "objective"))
        return Model(
            key=about["key"],
            run={name: value for name, value in run.items() if value not in (None, False, 0, "")}
            | {"seed": run["seed"]},
            seed=run["seed"],
            baseline=not treated and run.get("front") in (None, "replicated"),
            dose=about.get("dose", {}),
            losses=[round(epoch["loss"], 5) for epoch in about["epochs"]],
            accuracy=round(float(right.mean()), 5),
            trivial=round(float(np.bincount(trained.test.labels).max() / len(trained.test)), 5),
            train=data["train"],
            test=data["test"],
            seconds=about["seconds"],
            device=about["device"],
            start=about.get("start", ""),
        )


def each_training(study: Study, runs: Sequence[Run], title: str) -> Iterator[Run]:
    """Those of ``runs`` that are still to be asked, each trained and a step of ``study``, behind a progress bar."""
    return study.steps(tqdm(runs, title, unit="training"), lambda run: train_or_load(run).provenance["key"])
