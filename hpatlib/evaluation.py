"""How good and how steady a classifier is: scores, the rate of invariance of equation 15, and search comparisons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hpatlib import attacks
from hpatlib._model import held_still
from hpatlib.data import ImageSet
from hpatlib.hybrid import Environment, perturb
from hpatlib.spatial import Box, grid_search, random_search
from hpatlib.stbo import stbo
from hpatlib.training import Examples, attacked

Perturbation = Callable[[nn.Module, Tensor, Tensor], Tensor]


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """The model's answers ``[N, classes]`` to ``images [N, C, H, W]``, in eval mode and in batches."""
    with held_still(model):
        return torch.cat([model(batch) for batch in images.split(batch_size)])


def scores(answers: Tensor, labels: Tensor, *, average: str = "macro") -> dict[str, float]:
    """ACC, PRE, REC, F1 and AUC of logits ``[N, classes]`` against ``labels [N]``, each in [0, 1].

    ``average``: ``"binary"`` counts the positive class, number 1, alone (the leukemia paper's table 2);
    ``"macro"`` is the plain mean over classes (its table 1; H4). AUC ranks by the softmax score: for two classes the
    averages agree, for more it is the mean of one class against the rest. Raises ``ValueError`` for another average.
    """
    from sklearn import metrics  # a second to import

    if average not in ("binary", "macro"):
        raise ValueError(f'average must be "binary" or "macro", found {average!r}')
    truth, guess = labels.cpu().numpy(), answers.argmax(dim=1).cpu().numpy()
    share = answers.softmax(dim=1).double().cpu().numpy()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess, average=average, zero_division=0)
    if answers.shape[1] == 2:
        area = metrics.roc_auc_score(truth, share[:, 1])
    else:
        area = metrics.roc_auc_score(truth, share, multi_class="ovr", labels=range(answers.shape[1]))
    return {
        "ACC": float((truth == guess).mean()),
        "PRE": float(precision),
        "REC": float(recall),
        "F1": float(f1),
        "AUC": float(area),
    }


def roi(before: Tensor, after: Tensor) -> Tensor:
    """Equation 15 image by image: 1.0 where the prediction is the same before and after; its mean is the ROI.

    ``before``, ``after``: predicted classes of the same shape ``[N, …]``. A classifier that always answers the same
    has a ROI of 1: print the accuracy beside it.
    """
    if before.shape != after.shape:
        raise ValueError(f"both must have one shape, found {list(before.shape)} and {list(after.shape)}")
    return (before == after).double()


def resampled_means(
    values: np.ndarray, groups: np.ndarray | None, *, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """Means of ``values [N, …]`` over images in ``resamples`` bootstrap samples: ``[resamples, …]``.

    ``groups [N]`` names what belongs together (a patient, near-duplicates): whole groups are drawn, because the slices
    of one patient are no independent images. None: each image stands for itself. Raises ``ValueError`` for no image,
    or for another number of groups.
    """
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"values must be [N, …] with N ≥ 1, found {list(values.shape)}")
    if groups is None:
        counts, sums = np.ones(len(values)), values
    elif len(groups) != len(values):
        raise ValueError(f"groups must name one of each image, found {len(groups)} for {len(values)} images")
    else:
        _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), *values.shape[1:]))
        np.add.at(sums, member, values)
    # How often each group is drawn in each resample: one matrix product replaces a copy of the values a resample.
    drawn = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    images = (drawn @ counts).reshape(-1, *[1] * (values.ndim - 1))
    return np.tensordot(drawn, sums, axes=1) / images


def bootstrap(
    values: Tensor | np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of ``values [N, …]`` over images and its percentile bootstrap interval: ``(mean, low, high)``, ``[…]`` each

    The interval is about the images that might have been drawn (whole ``groups [N]`` where they are named), not about
    other trainings.
    """
    values = np.asarray(values, dtype=float)
    means = resampled_means(values, groups, resamples=resamples, random=np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return values.mean(axis=0), low, high


def bootstrap_seeds(
    values: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[np.ndarray] | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of several trainings and its percentile interval over trainings and images: (value, low, high).

    A statistic of K numbers ``[…, K]``, comparisons that a claim makes all at once, gives the least of them. Its
    interval goes from the least of their lower ends to the least of their upper ends, these at a level that allows for
    K of them (an intersection-union test): the bootstrap of a minimum would lie below the truth.

    ``values``: for each training (seed) an array ``[N_s, K]``, K measures of each of its test images. ``statistic``
    takes their means over images ``[…, S, K]`` to ``[…]``, such as ``lambda means: means.mean(axis=(-2, -1))``. Each
    resample draws S trainings, and for each of them its images anew (whole ``groups``, an array ``[N_s]`` a training,
    where they are named): the interval is about both.
    """
    value, means = seeds_drawn(values, groups, resamples=resamples, seed=seed)
    own, drawn = np.atleast_1d(statistic(value)), statistic(means).reshape(resamples, -1)  # [K], [resamples, K]
    low = np.quantile(drawn, (1 - level) / 2, axis=0).min()
    high = np.quantile(drawn, 1 - (1 - level) / 2 / len(own), axis=0).min()
    # Sums in another order differ in the last bit: rounded, a value without any spread lies inside its interval.
    least, low, high = (round(float(x), 12) for x in (own.min(), low, high))
    return least, low, high


def seeds_drawn(
    values: Sequence[np.ndarray], groups: Sequence[np.ndarray] | None, *, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Means over images of each training ``[S, K]``, and those of its bootstrap samples ``[resamples, S, K]``."""
    if not values or any(v.ndim != 2 or len(v) == 0 for v in values):
        raise ValueError(f"values must be [N, K] with N ≥ 1 for each seed, found {[v.shape for v in values]}")
    random = np.random.default_rng(seed)
    drawn = random.integers(len(values), size=(resamples, len(values)))
    means = np.empty((*drawn.shape, values[0].shape[1]))  # [resamples, S, K]
    for number, measured in enumerate(values):
        here, own = drawn == number, None if groups is None else groups[number]
        means[here] = resampled_means(measured, own, resamples=int(here.sum()), random=random)
    return np.stack([v.mean(axis=0) for v in values]), means


TESTS = ("clean", "perturbed", "white-box FGSM", "white-box PGD", "transfer FGSM")
PGD_STEPS = 10


def test_sets(source: nn.Module, other: nn.Module, data: ImageSet, *, eps: float) -> dict[str, Examples]:
    """The test sets made once, by name: ``"clean"``, ``"perturbed"`` (FGSM on ``source``), ``"transfer FGSM"``."""
    fgsm = partial(attacks.fgsm, eps=eps)
    return {
        "clean": Examples(*data.tensors()),
        "perturbed": attacked(source, data, fgsm),
        "transfer FGSM": attacked(other, data, fgsm),
    }


def attack_hits(
    model: nn.Module, sets: dict[str, Examples], *, eps: float, seed: int = 0, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """1.0 where ``model`` is right, ``[N]`` for each of ``TESTS``: on ``sets`` and under attacks on itself.

    White-box FGSM takes one step of ``eps``, PGD ``PGD_STEPS`` of 2.5 · eps / ``PGD_STEPS`` from a random start.
    """
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    pgd = {"step": min(1.0, 2.5 * eps / PGD_STEPS), "iterations": PGD_STEPS, "generator": generator}
    whitebox = {"white-box FGSM": attacks.fgsm, "white-box PGD": partial(attacks.pgd, **pgd)}
    right: dict[str, list[Tensor]] = {name: [] for name in TESTS}
    for name, examples in sets.items():
        for images, labels in examples.batches(batch_size, device=device):
            right[name].append(logits(model, images).argmax(dim=1) == labels)
    for name, attack in whitebox.items():
        for images, labels in sets["clean"].batches(batch_size, device=device):
            right[name].append(logits(model, attack(model, images, labels, eps=eps)).argmax(dim=1) == labels)
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in right.items()}


LEAKS = ("δ alone", "predicted labels", "wrong labels: the truth", "wrong labels: the wrong label")


def leak_hits(
    model: nn.Module, source: nn.Module, data: ImageSet, *, eps: float, seed: int = 0, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Does ``model`` read the label off the perturbation (label leaking, C3)? 1.0 or 0.0 an image, ``[N]`` each.

    FGSM follows the gradient of the loss at a label, so its noise δ = ε · sign ∇ℓ of ``source`` knows that label.
    ``"δ alone"``: right on grey 0.5 + δ, the image left out; ``"predicted labels"``: right where δ was made from
    ``source``'s own answer instead of the truth; ``"wrong labels: …"``: δ made from another class drawn at random,
    does ``model`` answer the truth, or that class?
    """
    device, random = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    classes = len(data.classes)
    right: dict[str, list[Tensor]] = {name: [] for name in LEAKS}
    for images, labels in data.batches(batch_size, device=device):
        noise = eps * attacks.gradient(source, images, labels).sign()
        guess = logits(source, images).argmax(dim=1)
        shift = torch.randint(1, classes, (len(labels),), generator=random).to(device)
        wrong = (labels + shift) % classes
        answers = {
            "δ alone": logits(model, (0.5 + noise).clamp(0, 1)),
            "predicted labels": logits(model, attacks.fgsm(source, images, guess, eps=eps)),
            "wrong labels": logits(model, attacks.fgsm(source, images, wrong, eps=eps)),
        }
        said = {name: answer.argmax(dim=1) for name, answer in answers.items()}
        right["δ alone"].append(said["δ alone"] == labels)
        right["predicted labels"].append(said["predicted labels"] == labels)
        right["wrong labels: the truth"].append(said["wrong labels"] == labels)
        right["wrong labels: the wrong label"].append(said["wrong labels"] == wrong)
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in right.items()}


def formula_sizes(
    model: nn.Module, data: ImageSet, *, eps: float, batch_size: int = 64
) -> dict[tuple[str, str], np.ndarray]:
    """The report's formula as printed (``"printed"``, no sign) beside FGSM (``"sign"``), image by image ``[N]``.

    By (formula, measure): ``"accuracy"`` (1.0 where right), ``"mean change"`` and ``"largest change"`` of a pixel, in
    grey levels of 255.
    """
    device = next(model.parameters()).device
    formulas = {"printed": attacks.gradient_step, "sign": attacks.fgsm}
    measured: dict[tuple[str, str], list[Tensor]] = {}
    for images, labels in data.batches(batch_size, device=device):
        for name, formula in formulas.items():
            perturbed = formula(model, images, labels, eps=eps)
            change = 255 * (perturbed - images).abs().flatten(1)
            found = {
                "accuracy": (logits(model, perturbed).argmax(dim=1) == labels).double(),
                "mean change": change.mean(dim=1),
                "largest change": change.amax(dim=1),
            }
            for measure, values in found.items():
                measured.setdefault((name, measure), []).append(values)
    return {key: torch.cat(parts).double().cpu().numpy() for key, parts in measured.items()}


def environments(
    model: nn.Module,
    data: ImageSet,
    places: Sequence[Environment],
    *,
    readings: Sequence[str] = ("fixed", "searched"),
    searches: int = 100,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[tuple[str, str], Tensor]:
    """The model's answers ``[N, classes]`` on the CPU in each environment, by its name and reading (H25).

    ``"fixed"`` takes the environment's transform, ``"searched"`` the worst one that STBO finds in its box with
    ``searches`` queries an image; both after PGD at its ε. Where there is nothing to turn or shift, both are PGD alone.
    A pixel attack is made once for all environments and readings that share it.
    """
    if unknown := set(readings) - {"fixed", "searched"}:
        raise ValueError(f"unknown reading {unknown.pop()!r}: choose fixed or searched")
    device = next(model.parameters()).device
    answers: dict[tuple[str, str], list[Tensor]] = {(p.name, r): [] for p in places for r in readings}
    with tqdm(total=len(data) * len(answers), desc="environments", unit="image", leave=False) as bar:
        for number, (images, labels) in enumerate(data.batches(batch_size, device=device)):
            attacked_images: dict[tuple, Tensor] = {}

            def draws(number: int = number) -> torch.Generator:
                # Anew for each attack: an environment's result must not hang on which others are asked for.
                return torch.Generator().manual_seed(1_000_003 * seed + number)

            for place in places:
                asked = (place.eps, place.step, place.iterations)
                if asked not in attacked_images:
                    pixel = partial(place.pixel, generator=draws()) if place.pixel else None
                    attacked_images[asked] = perturb(model, images, labels, pixel=pixel)
                for reading in readings:
                    spatial = place.fixed
                    if reading == "searched" and spatial is not None:
                        spatial = partial(stbo, box=place.box, evaluations=searches, generator=draws())
                    shown = perturb(model, attacked_images[asked], labels, spatial=spatial)
                    answers[place.name, reading].append(logits(model, shown).cpu())
                    bar.update(len(images))
    return {key: torch.cat(parts) for key, parts in answers.items()}


def sample(data: ImageSet, count: int) -> ImageSet:
    """At most ``count`` images, evenly spaced through the set, so that classes and patients keep their shares."""
    return data.subset(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))


@dataclass(frozen=True)
class Flips:
    """What perturbations did to predictions: one column of each tensor an image.

    ``table``: a row a perturbation; ``images``, ``predictions``, ``confidences``: by its name, each on all images.
    """

    table: pd.DataFrame
    images: dict[str, Tensor]
    predictions: dict[str, Tensor]
    confidences: dict[str, Tensor]
    labels: Tensor


def flips(model: nn.Module, data: ImageSet, perturbations: dict[str, Perturbation], *, batch_size: int = 64) -> Flips:
    """How many predictions each perturbation turns over (figure 1 of the leukemia paper); the first one is "clean".

    The table has, with bootstrap intervals (``_low``, ``_high``): ``accuracy``, ``roi`` (equation 15) and ``flipped``,
    the share of the correctly classified images that are no longer so.
    """
    device = next(model.parameters()).device
    shown: dict[str, list[Tensor]] = {name: [] for name in perturbations}
    for images, truth in tqdm(list(data.batches(batch_size, device=device)), "perturb", unit="batch", leave=False):
        for name, perturbation in perturbations.items():
            shown[name].append(perturbation(model, images, truth))
    images = {name: torch.cat(batches) for name, batches in shown.items()}
    labels = torch.from_numpy(data.labels).to(device)
    answers = {name: logits(model, perturbed).softmax(dim=1) for name, perturbed in images.items()}
    predictions = {name: answer.argmax(dim=1) for name, answer in answers.items()}
    clean = predictions["clean"]
    rows = []
    for name, guess in predictions.items():
        right, hit = clean == labels, guess == labels
        row = {"perturbation": name, "n": len(labels), "n_correct": int(right.sum())}
        measured = {"accuracy": hit.double(), "roi": roi(clean, guess), "flipped": (~hit[right]).double()}
        for metric, values in measured.items():
            row |= interval(metric, values.cpu())
        rows.append(row)
    confidences = {name: answer.amax(dim=1) for name, answer in answers.items()}
    return Flips(pd.DataFrame(rows), images, predictions, confidences, labels)


def flip_effects(result: Flips) -> dict[str, Tensor]:
    """What figure 1's claims are about, for each correctly classified image ``[M]``; above zero speaks for them.

    ``noise``, ``transform``: whether the random one flips the prediction, less 0.01; ``both``: what the two together
    flip more than the noise alone.
    """
    right = result.predictions["clean"] == result.labels
    flipped = {name: (guess != result.labels)[right].double() for name, guess in result.predictions.items()}
    return {
        "noise": flipped["random noise"] - 0.01,
        "transform": flipped["random transform"] - 0.01,
        "both": flipped["random both"] - flipped["random noise"],
    }


def interval(name: str, values: Tensor | np.ndarray) -> dict[str, float]:
    """Mean of ``values [N]`` and its bootstrap interval as the columns ``name``, ``name_low``, ``name_high``."""
    mean, low, high = bootstrap(values)
    return {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}


QUERIES = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
GRIDS = ((1, 1, 9), (3, 3, 3), (3, 3, 11), (5, 5, 31))  # 9, 27, 99 and Engstrom's 775 points


@dataclass(frozen=True)
class Comparison:
    """Searches of one box on the same images: worst loss ``[N, queries]`` by method, and what the images were before.

    ``histories``: method → ``[N, evaluations]``; a grid's whole budget is one point, so STM has one entry
    ``[N, 1]`` a grid, named by its number of queries.
    """

    box: Box
    clean: Tensor
    histories: dict[str, Tensor]
    grids: dict[int, Tensor]


def compare_searches(
    model: nn.Module, data: ImageSet, box: Box, *, budget: int = 100, batch_size: int = 32, seed: int = 0
) -> Comparison:
    """STBO, random search and Sobol points at ``budget`` queries, and STM's grids, on every image of ``data``.

    The images are those of figure 6 of the leukemia paper: its STM and STBO, and the two baselines it leaves out.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    methods = {
        "STBO": partial(stbo, evaluations=budget, generator=generator),
        "Sobol": partial(random_search, evaluations=budget, sobol=True, generator=generator),
        "random": partial(random_search, evaluations=budget, generator=generator),
    }
    clean: list[Tensor] = []
    histories: dict[str, list[Tensor]] = {name: [] for name in methods}
    grids: dict[int, list[Tensor]] = {math.prod(counts): [] for counts in GRIDS}
    queries = len(methods) * budget + sum(grids)
    title = f"±{box.rotation:g}°, ±{box.translation:.3g} px"
    with tqdm(total=queries * len(data), desc=title, unit="query", unit_scale=True, leave=False) as bar:
        for images, labels in data.batches(batch_size, device=device):
            clean.append(F.cross_entropy(logits(model, images), labels, reduction="none").cpu())
            for name, method in methods.items():
                histories[name].append(method(model, images, labels, box).history.cpu())
                bar.update(budget * len(images))
            for counts in GRIDS:
                grids[math.prod(counts)].append(grid_search(model, images, labels, box, counts=counts).loss.cpu())
                bar.update(math.prod(counts) * len(images))
    return Comparison(
        box,
        torch.cat(clean),
        {name: torch.cat(parts) for name, parts in histories.items()},
        {count: torch.cat(parts) for count, parts in grids.items()},
    )


def unchanged(comparison: Comparison, loss: Tensor) -> Tensor:
    """Equation 15 image by image from the worst loss ``[N, …]`` a search found, for two classes.

    There the prediction is right exactly when the cross-entropy is below ln 2, so the loss tells the prediction.
    """
    before = comparison.clean < math.log(2)  # [N]
    return roi(before.view(-1, *[1] * (loss.ndim - 1)).expand_as(loss), loss < math.log(2))


def search_curves(comparison: Comparison) -> pd.DataFrame:
    """Worst loss and ROI against queries: a row a method and number of queries, with bootstrap intervals."""
    points = {name: (h, [q for q in QUERIES if q <= h.shape[1]]) for name, h in comparison.histories.items()}
    rows = []
    for name, (history, queries) in points.items():
        picked = history[:, [query - 1 for query in queries]]  # [N, Q]
        rows += [_row(comparison, name, query, picked[:, i]) for i, query in enumerate(queries)]
    rows += [_row(comparison, "STM", count, loss) for count, loss in comparison.grids.items()]
    return pd.DataFrame(rows)


def search_effects(comparison: Comparison, *, budget: int = 99) -> dict[str, Tensor]:
    """What figure 6's claims are about, image by image ``[N]``; above zero speaks for STBO.

    ``roi``: how much more often STM (a grid of ``budget`` points) than STBO at as many queries leaves the prediction
    unchanged; ``efficiency``: how much higher a loss STBO's whole history finds than STM's largest grid.
    """
    stbo_history, grids = comparison.histories["STBO"], comparison.grids
    return {
        "roi": unchanged(comparison, grids[budget]) - unchanged(comparison, stbo_history[:, budget - 1]),
        "efficiency": stbo_history[:, -1] - grids[max(grids)],
    }


def _row(comparison: Comparison, method: str, queries: int, loss: Tensor) -> dict:
    box = comparison.box
    row = {"rotation": box.rotation, "translation": round(box.translation, 4), "method": method, "queries": queries}
    return row | interval("loss", loss) | interval("roi", unchanged(comparison, loss)) | {"n": len(loss)}
