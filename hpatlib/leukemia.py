"""The leukemia paper's experiment: networks, training strategies and MixBN, measured in the environments H0…H6.

The document prints one number a cell. Here each cell is measured over seeds, on held-out patients, through each branch
of MixBN, and in both readings of an environment (H25).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib import attacks, evidence
from hpatlib._model import held_still
from hpatlib.data import ImageSet
from hpatlib.evaluation import environments, roi, sample, scores
from hpatlib.hybrid import Environment, environment, pixel_and_rotation
from hpatlib.mixbn import MixBatchNorm2d, branch
from hpatlib.runs import Run, Trained, train_or_load
from hpatlib.settings import Settings
from hpatlib.spatial import Box
from hpatlib.stbo import stbo

METRICS = ("ACC", "PRE", "F1", "AUC")  # the columns of the document's tables
ABLATED = ("Adv_PGD", "Adv_RT", "Adv_h")  # table 2's rows; it calls the first Adv_p
READINGS = ("fixed", "searched")


@dataclass(frozen=True)
class Study:
    """What was measured: a cell is (split, name, environment, reading), a name one of a network or of a training.

    ``outcomes[cell]``: for each seed ``[N_s, 5]``: 1.0 where an image is right, a true positive, a false positive, a
    false negative, unchanged (equation 15); ``areas[cell]``: the AUC of each seed; ``rows``: all of it, tidy;
    ``trained``: every model, that of the first name and seed first.
    """

    rows: pd.DataFrame
    outcomes: dict[tuple[str, str, str, str], list[np.ndarray]]
    areas: dict[tuple[str, str, str, str], list[float]]
    trained: list[Trained]

    def values(self, *cells: tuple[str, str, str, str]) -> list[np.ndarray]:
        """For each seed ``[N_s, 6 K]``: the five outcomes of each of K cells and its AUC, side by side."""
        found = []
        for seed in range(len(self.outcomes[cells[0]])):
            parts = []
            for cell in cells:
                outcome = self.outcomes[cell][seed]
                # The AUC belongs to the seed, not to an image: its interval is over trainings alone.
                parts += [outcome, np.full((len(outcome), 1), self.areas[cell][seed])]
            found.append(np.concatenate(parts, axis=1))
        return found


def networks(chosen: Settings) -> dict[str, list[Run]]:
    """The networks of table 1 by name, a run a seed, trained on clean images."""
    return {f"{runs[0].model} ({runs[0].weights})": runs for runs in chosen.large}


def strategies(chosen: Settings) -> dict[str, list[Run]]:
    """The training strategies of figure 4 by name: a run a split and seed, of one network."""
    return {
        name: [
            replace(run, adversary=adversary, split_by=split) for split in chosen.chosen.splits for run in chosen.small
        ]
        for name, adversary in chosen.adversaries.items()
    }


def ablation(chosen: Settings) -> dict[str, list[Run]]:
    """The six rows of table 2 by name: three strategies, each without and with MixBN."""
    without = strategies(chosen)
    rows: dict[str, list[Run]] = {}
    for name in ABLATED:
        rows |= {name: without[name], f"{name}+MixBN": [replace(run, mixbn=True) for run in without[name]]}
    return rows


def compared(chosen: Settings) -> dict[str, list[Run]]:
    """Figure 5's two trainings, split as the claims are."""
    named = strategies(chosen)
    return {n: [run for run in named[n] if run.split_by == chosen.run.split_by] for n in ("Standard", "Adv_h")}


def places(chosen: Settings) -> list[Environment]:
    """H0 … H6 at this image size."""
    return [environment(k, size=chosen.size) for k in range(7)]


def grid(chosen: Settings) -> list[Environment]:
    """Figure 5's cells, ε by ε: every step of 1/255 from 0 to 6 and of 30° from 0 to 180; smoke takes every third."""
    levels = range(0, 7, chosen.chosen.grid_step)
    return [pixel_and_rotation(k, 30.0 * turn) for k in levels for turn in levels]


def study(
    named: Mapping[str, Sequence[Run]],
    places: Sequence[Environment],
    *,
    shown: int,
    searches: int,
    readings: Sequence[str] = READINGS,
    all_clean: bool = False,
) -> Study:
    """Train or load every run of ``named`` and measure it in ``places``; with MixBN once through each branch.

    ``shown``: how many test images; ``all_clean``: all of them in H0; ``searches``: STBO's queries an image. Attacks go
    through the branch that is measured. Rows: ``name``, ``branch`` (``"clean"`` or ``"adv"``, ``"shared"`` without
    MixBN), ``model``, ``weights``, ``split``, ``seed``, ``environment``, ``reading`` (``"clean"`` in H0), ``n``,
    ``ACC``, ``ROI``, ``AUC``, and ``PRE``, ``REC``, ``F1`` both ``macro`` and ``binary`` (malignant is positive; H4).
    """
    rows, trained = [], []
    outcomes: dict[tuple[str, str, str, str], list[np.ndarray]] = {}
    areas: dict[tuple[str, str, str, str], list[float]] = {}
    for name, runs in named.items():
        for run in runs:
            found = train_or_load(run)
            trained.append(found)
            for side in ("clean", "adv") if run.mixbn else ("shared",):
                label = name if side == "shared" else f"{name}, {side} branch"
                about = {"name": name, "branch": side, "model": run.model, "weights": run.weights}
                about |= {"split": run.split_by, "seed": run.seed}
                with nullcontext() if side == "shared" else branch(found.model, side):
                    measure = partial(environments, found.model, searches=searches, seed=run.seed)
                    answers = _answers(measure, found.test, places, readings, shown=shown, all_clean=all_clean)
                for (place, reading), (labels, before, after) in answers.items():
                    cell = (run.split_by, label, place, reading)
                    outcomes.setdefault(cell, []).append(_outcomes(labels, before, after))
                    row = _scores(labels, before, after)
                    areas.setdefault(cell, []).append(row["AUC"])
                    rows.append(about | {"environment": place, "reading": reading, "n": len(labels)} | row)
    return Study(pd.DataFrame(rows), outcomes, areas, trained)


def _answers(
    measure: Callable[..., dict[tuple[str, str], Tensor]],
    test: ImageSet,
    places: Sequence[Environment],
    readings: Sequence[str],
    *,
    shown: int,
    all_clean: bool,
) -> dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]]:
    """Labels, logits on clean images and logits in an environment, by (environment, reading)."""
    still, few = environment(0), sample(test, shown)
    before, answers = measure(few, [still], readings=("fixed",))["H0", "fixed"], {}
    if still.name in {place.name for place in places}:
        clean, images = before, few
        if all_clean:
            clean, images = measure(test, [still], readings=("fixed",))["H0", "fixed"], test
        answers["H0", "clean"] = (torch.from_numpy(images.labels), clean, clean)
    moved = [place for place in places if place.name != still.name]
    for key, after in measure(few, moved, readings=readings).items():
        answers[key] = (torch.from_numpy(few.labels), before, after)
    return answers


def _outcomes(labels: Tensor, before: Tensor, after: Tensor) -> np.ndarray:
    guess, truth = after.argmax(dim=1), labels
    positive, malignant = guess == 1, truth == 1
    columns = [guess == truth, positive & malignant, positive & ~malignant, ~positive & malignant]
    return torch.stack([*(c.double() for c in columns), roi(before.argmax(dim=1), guess)], dim=1).numpy()


def _scores(labels: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    macro, binary = (scores(after, labels, average=average) for average in ("macro", "binary"))
    row = {"ACC": macro["ACC"], "AUC": macro["AUC"]}
    row["ROI"] = float(roi(before.argmax(dim=1), after.argmax(dim=1)).mean())
    for average, values in (("macro", macro), ("binary", binary)):
        row |= {f"{average} {metric}": values[metric] for metric in ("PRE", "REC", "F1")}
    return row


def _metrics(means: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of each cell from means over images ``[…, S, 6 K]``: ``[…, S, K]`` each, binary as in table 2."""
    right, hit, false, missed, same, area = (means[..., column::6] for column in range(6))
    with np.errstate(invalid="ignore", divide="ignore"):  # without a positive answer, precision counts as 0
        precision = np.nan_to_num(hit / (hit + false))
        f1 = np.nan_to_num(2 * hit / (2 * hit + false + missed))
    return {"ACC": right, "PRE": precision, "F1": f1, "AUC": area, "ROI": same}


def _seeds(values: np.ndarray) -> np.ndarray:
    """Mean over seeds of ``[…, S]``."""
    return values.mean(axis=-1)


def table1_effects(measured: Study, chosen: Settings) -> list[evidence.Effect]:
    """Is the document's best network the best one on clean images, by its smallest lead over the others?

    The claim is about pretrained networks; of networks from scratch there is no effect.
    """
    if any(weights == "scratch" for _, weights in chosen.chosen.large):
        return []
    names = list(networks(chosen))
    best = next((name for name in names if name.startswith("efficientnet_b3")), names[-1])
    others = [name for name in names if name != best and not name.startswith("tf_efficientnet")]
    cells = [(chosen.run.split_by, name, "H0", "clean") for name in (best, *others)]

    def lead(metric: str, means: np.ndarray) -> np.ndarray:
        value = _metrics(means)[metric].mean(axis=-2)  # [..., 1 + others]
        return value[..., :1] - value[..., 1:]

    values = measured.values(*cells)
    return [evidence.effect(f"table1-best-{m}".lower(), values, partial(lead, m)) for m in ("ACC", "AUC")]


def vulnerability_effects(measured: Study, chosen: Settings) -> list[evidence.Effect]:
    """How much accuracy and ROI the networks of table 1 lose from H0 to H6, on average over networks, less a fifth."""
    names, split = list(networks(chosen)), chosen.run.split_by
    effects = []
    for reading in READINGS:
        values = measured.values(
            *[(split, n, "H0", "clean") for n in names], *[(split, n, "H6", reading) for n in names]
        )

        def lost(means: np.ndarray) -> np.ndarray:
            right = _metrics(means)["ACC"]
            return _seeds((right[..., : len(names)] - right[..., len(names) :]).mean(axis=-1)) - 0.2

        def unsteady(means: np.ndarray) -> np.ndarray:
            return 0.8 - _seeds(_metrics(means)["ROI"][..., len(names) :].mean(axis=-1))

        effects.append(evidence.effect(f"fig3-accuracy-{reading}", values, lost))
        effects.append(evidence.effect(f"fig3-roi-{reading}", values, unsteady))
    return effects


def strategy_effects(measured: Study, chosen: Settings) -> list[evidence.Effect]:
    """What figure 4 claims: standard training falls, hybrid training stays flat, and no other strategy comes near."""
    names, split = list(chosen.adversaries), chosen.run.split_by
    effects = []
    for reading in READINGS:
        values = measured.values(
            *[(split, n, "H0", "clean") for n in names], *[(split, n, "H6", reading) for n in names]
        )

        def drop(means: np.ndarray, name: str) -> np.ndarray:
            right = _metrics(means)["ACC"]
            return _seeds(right[..., names.index(name)] - right[..., len(names) + names.index(name)])

        def lead(means: np.ndarray, metric: str) -> np.ndarray:
            value = _metrics(means)[metric][..., len(names) :].mean(axis=-2)  # [..., strategies]
            single = [value[..., names.index(name)] for name in names if name != "Adv_h"]
            return value[..., names.index("Adv_h"), None] - np.stack(single, axis=-1)

        effects += [
            evidence.effect(f"fig4-standard-{reading}", values, lambda means: drop(means, "Standard") - 0.2),
            evidence.effect(f"fig4-flat-{reading}", values, lambda means: 0.1 - drop(means, "Adv_h")),
            evidence.effect(f"fig4-acc-{reading}", values, lambda means: lead(means, "ACC")),
            evidence.effect(f"fig4-roi-{reading}", values, lambda means: lead(means, "ROI")),
        ]
    return effects


def grid_effects(measured: Study, chosen: Settings, places: Sequence[Environment]) -> list[evidence.Effect]:
    """Figure 5: mean ROI over the grid of hybrid training less that of standard training, in both readings."""

    def gain(means: np.ndarray) -> np.ndarray:
        same = _metrics(means)["ROI"]
        return _seeds(same[..., : len(places)].mean(axis=-1) - same[..., len(places) :].mean(axis=-1))

    effects = []
    for reading in READINGS:
        cells = [(chosen.run.split_by, name, p.name, reading) for name in ("Adv_h", "Standard") for p in places]
        effects.append(evidence.effect(f"fig5-roi-{reading}", measured.values(*cells), gain))
    return effects


def mixbn_effects(measured: Study, chosen: Settings) -> list[evidence.Effect]:
    """Table 2: the smallest gain of MixBN over the four metrics, on clean images through the clean branch, and on
    hybrid ones through the adversarial branch; and what a split by image adds to the accuracy of all rows."""
    effects, split = [], chosen.run.split_by
    for name in ABLATED:
        for side, place, reading in (("clean", "H0", "clean"), ("adv", "H6", "searched")):
            cells = [(split, label, place, reading) for label in (f"{name}+MixBN, {side} branch", name)]

            def least(means: np.ndarray) -> np.ndarray:
                metrics = _metrics(means)
                return np.stack([_seeds(metrics[m][..., 0] - metrics[m][..., 1]) for m in METRICS], axis=-1)

            effects.append(evidence.effect(f"table2-{name}-{side}".lower(), measured.values(*cells), least))
    if {"patient", "image"} <= set(chosen.chosen.splits):
        effects.append(_flattery(measured))
    return effects


def _flattery(measured: Study) -> evidence.Effect:
    """Accuracy on clean images split by image less that split by patient, over the rows of table 2 without MixBN."""
    by = {split: measured.values(*[(split, name, "H0", "clean") for name in ABLATED]) for split in ("image", "patient")}
    size = min(len(v) for values in by.values() for v in values)
    # The two splits test on other images: a seed's difference is one of means, so its images are paired at random.
    order = np.random.default_rng(0)
    pairs = [
        np.concatenate([order.permutation(a)[:size], order.permutation(b)[:size]], axis=1)
        for a, b in zip(by["image"], by["patient"], strict=True)
    ]

    def more(means: np.ndarray) -> np.ndarray:
        right = _metrics(means)["ACC"]
        half = right.shape[-1] // 2
        return _seeds(right[..., :half].mean(axis=-1) - right[..., half:].mean(axis=-1))

    return evidence.effect("table2-split", pairs, more)


@dataclass(frozen=True)
class Walk:
    """Algorithm 1 on one batch. ``rows``: a row a step, with the objects, shapes and numbers that came out.

    ``images``: pictures by stage ``[B, C, H, W]``; ``network``: what the two halves go through, (name, shape) each;
    ``louder [B]``: the loss after line 8 as printed less that after line 8 as we read it; ``tied``: the share of clean
    answers that change with an image's partner, by variant of MixBN.
    """

    rows: pd.DataFrame
    images: dict[str, Tensor]
    network: list[tuple[str, str]]
    louder: Tensor
    tied: dict[str, float]
    trained: Trained


def walk(run: Run, *, batch: int = 16, searches: int = 100, lr: float = 1e-3) -> Walk:
    """Algorithm 1 line by line on ``batch`` test images, with the hybrid adversary and the MixBN model of ``run``.

    ``searches``: STBO's queries an image, the document's 100, however many the model was trained with.
    """
    found = train_or_load(run)
    model, adversary = copy.deepcopy(found.model), replace(run.adversary, evaluations=searches)
    few = sample(found.test, batch)
    images, labels = few.tensors(next(model.parameters()).device)
    box = Box(adversary.translation, adversary.rotation)
    # Started by hand from line 5's images, so that its noise can be shown.
    generator = torch.Generator().manual_seed(run.seed)
    noisy = images + attacks.GAUSSIAN_START * torch.randn(images.shape, generator=generator).to(images)
    generator.manual_seed(run.seed)
    with branch(model, "adv"), _Counter(model) as counter:
        start = {"start": adversary.start, "generator": generator}
        pixel = attacks.pgd(
            model, images, labels, eps=adversary.eps, step=adversary.step, iterations=adversary.iterations, **start
        )
        turned = stbo(model, pixel, labels, box, evaluations=adversary.evaluations, generator=generator)
        read = counter.count / len(images)
        with torch.random.fork_rng():  # the adversary draws from the global generator, as in training
            torch.manual_seed(run.seed)
            printed = replace(adversary, literal=True)(model, images, labels)
        as_printed = counter.count / len(images) - read
        before, after_pixel, after, after_printed = (
            _cross_entropy(model, x, labels) for x in (images, pixel, turned.images, printed)
        )
    tied = {name: _tied(model, images, turned.images, name) for name in ("mix", "sum")}
    shapes, distance = _inside(model, images, turned.images)
    step = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(step.parameters(), lr=lr)
    with branch(step, "mix"):
        first = [F.cross_entropy(half, labels) for half in step(torch.cat([images, turned.images])).chunk(2)]
        sum(first).backward()
        optimizer.step()
        second = [F.cross_entropy(half, labels) for half in step(torch.cat([images, turned.images])).chunk(2)]
    shape = list(images.shape)
    told = [
        ("3", "a batch (X, y)", shape, f"cross-entropy {before.mean():.3f} through the adversarial branch"),
        ("5", "X + 0.001 · N(0, 1)", shape, f"largest change {255 * (noisy - images).abs().max():.2f}/255"),
        (
            "6–7",
            f"PGD, {adversary.iterations} steps of {255 * adversary.step:g}/255",
            shape,
            f"cross-entropy {after_pixel.mean():.3f}; largest change {255 * (pixel - images).abs().max():.2f}/255",
        ),
        (
            "8",
            f"STBO, {adversary.evaluations} queries in ±{box.rotation:g}°, ±{box.translation:.3g} px",
            list(turned.s.shape),
            f"cross-entropy {after.mean():.3f}; mean turn {turned.s[:, 2].abs().mean():.0f}°",
        ),
        ("8 as printed", "STBO after each step of PGD", shape, f"cross-entropy {after_printed.mean():.3f}"),
        ("8 as we read it", "forward passes an image", [], f"{read:.1f}"),
        ("8 as printed", "forward passes an image", [], f"{as_printed:.1f}"),
        ("11", "first MixBN, each half its own branch", shapes[1], f"means of the branches differ by {distance:.2f} σ"),
        (
            "eq. 10 as printed",
            "clean answers that hang on the partner",
            [],
            f"{tied['sum']:.0%}; MixBN {tied['mix']:.0%}",
        ),
        ("12", "ℓ(f(X), y) + ℓ(f(X′), y)", [], f"{sum(first):.3f}; after one step of Adam {sum(second):.3f}"),
    ]
    rows = pd.DataFrame([{"line": a, "what": b, "shape": str(c) if c else "–", "result": d} for a, b, c, d in told])
    enlarged = 0.5 + (pixel - images) / (2 * adversary.eps)
    pictures = {"X": images, "noise δ, enlarged": enlarged, "A_ε(X)": pixel, "T_s(A_ε(X))": turned.images}
    both = [2 * len(images), *shape[1:]]
    network = [
        ("X and X′,\none batch", str(both)),
        ("convolution,\nshared", str(shapes[0])),
        ("MixBN:\nclean | adversarial", f"{shapes[1]} each"),
        ("… logits,\nshared", str([2 * len(images), len(few.classes)])),
        ("loss, eq. 14:\nclean + adversarial", " + ".join(f"{half:.2f}" for half in first)),
    ]
    shown = {name: picture.cpu() for name, picture in pictures.items()}
    return Walk(rows, shown, network, (after_printed - after).cpu(), tied, found)


class _Counter:
    """Counts the images that go forward through a model inside a ``with`` block."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> "_Counter":
        self.handle = self.model.register_forward_hook(self._add)
        return self

    def __exit__(self, *_) -> None:
        self.handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.count += len(output)


@torch.no_grad()
def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with held_still(model):
        return F.cross_entropy(model(images), labels, reduction="none")


@torch.no_grad()
def _inside(model: nn.Module, clean: Tensor, adversarial: Tensor) -> tuple[list[list[int]], float]:
    """Shapes into the first MixBN: both halves, and one; how far apart the branches' means are, in deviations."""
    first = next(module for module in model.modules() if isinstance(module, MixBatchNorm2d))
    seen = []
    handle = first.register_forward_hook(lambda module, inputs, output: seen.append(list(inputs[0].shape)))
    with handle, held_still(model), branch(model, "mix"):
        model(torch.cat([clean, adversarial]))
    difference = (first.clean.running_mean - first.adv.running_mean).abs()
    distance = (difference / first.clean.running_var.clamp_min(1e-12).sqrt()).mean()
    return [seen[0], [len(clean), *seen[0][1:]]], float(distance)


@torch.no_grad()
def _tied(model: nn.Module, clean: Tensor, adversarial: Tensor, name: str) -> float:
    """The share of the clean half's answers that change when the other half is put in another order (H23)."""
    with held_still(model), branch(model, name):
        answers = [
            model(torch.cat([clean, other]))[: len(clean)].argmax(dim=1)
            for other in (adversarial, adversarial.roll(1, 0))
        ]
    return float((answers[0] != answers[1]).double().mean())


def walk_effects(walked: Walk) -> list[evidence.Effect]:
    """Does line 8 as printed find a higher loss than PGD followed by one search?"""
    return [evidence.effect("fig2-line8", walked.louder)]
