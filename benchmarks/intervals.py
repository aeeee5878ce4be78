"""How often an interval of `hpatlib.statistics` holds the truth, in every design that the documents use.

Outcomes come from a probit model whose truth has a closed form: an image's level (shared in part by its cluster), what
one training adds on one image, and a training's effect on each arm. Nominal are 95 % held and 2.5 % falsely *above* the
true value. The ratio is the spread between trainings over the standard error of one test set.

Claim: 93 to 98 % held (the least of four: at least 93 %) where many clusters decide and the values of trainings are not
skewed. A setting that seems to fail is simulated once more, eight times as long, and that decides. The cells without a
claim are printed as well, so that one sees what happens there: a few large patients, an AUC, F1 or precision of few
patients, a mean near 1, and an F1 whose threshold shifts off its peak between trainings, so that all of them err low.
The claim is about two sides: in skewed cells the share falsely above grows to about 5 %, and that below shrinks.
"""

import argparse
import itertools
import json
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from tqdm import tqdm

from hpatlib.statistics import auc_of, half_width, mean_of, variance_parts

Floats = NDArray[np.float64]
Part = tuple[Floats, Floats]  # of R repetitions of one training: values [R] and influences [R, C]

DESIGNS = ("one network", "a third a training", "a fifth a training", "one test set")
CLUSTERS = ("images", "duplicates", "patients", "few patients")
LABELLED, SKEWED = ("AUC", "F1", "precision", "F1 off its peak"), ("mean near 1", "F1 off its peak")
STATISTICS = ("mean", "difference", "least of four", "ratio", "mean near 1", *LABELLED)
RATIOS, TRAININGS = (0, 1, 3), (3, 5, 6, 10)
LOW, HIGH = 0.93, 0.98

BLOCK = 10  # repetitions that share one draw of cluster sizes and test sets
NOISE = 0.4  # of an outcome's unit variance: what one training adds on one image
CLUSTER = {"images": 0.0, "duplicates": 0.9, "patients": 0.15, "few patients": 0.15}  # of the variance between images
# Of the first arm, in standard deviations; else 1.
LEVEL = {"mean": 0.6, "mean near 1": 1.9, "AUC": 0.8, "F1": 0.6, "F1 off its peak": 0.6, "precision": 0.6}
GAPS = {"difference": (0.7,), "ratio": (0.7,), "least of four": (0.3, 0.5, 0.7, 0.9)}  # of the other arms below it


@dataclass(frozen=True)
class Setting:
    """What is simulated in one go."""

    design: str
    clusters: str
    statistic: str
    ratio: int

    @property
    def guaranteed(self) -> bool:
        """Whether many clusters decide and trainings are not skewed, as the claim demands."""
        if self.statistic in SKEWED or self.clusters == "few patients":
            return False
        return not (self.clusters == "patients" and self.statistic in LABELLED)


@dataclass(frozen=True)
class Cell:
    """A row of the table: the share of repetitions held, and falsely above, with that many trainings."""

    setting: Setting
    trainings: int
    repetitions: int
    held: float
    above: float

    @property
    def high(self) -> float:
        """The most that is claimed; a least of several may be held always."""
        return 1.0 if self.setting.statistic == "least of four" else HIGH

    def outside(self) -> bool:
        """Whether coverage leaves the range claimed for it by more than two standard errors of the simulation."""
        slack = 2 * np.sqrt(0.05 * 0.95 / self.repetitions)
        return self.setting.guaranteed and not LOW - slack <= self.held <= self.high + slack


@dataclass(frozen=True)
class Images:
    """A data set: cluster and class of its images ``[N]``, and which of them each training is tested on."""

    cluster: NDArray[np.intp]
    positive: NDArray[np.bool_]
    tests: list[NDArray[np.intp]]


def draw_images(design: str, clusters: str, trainings: int, rng: np.random.Generator) -> Images:
    """Cluster sizes and test sets. Clusters stay whole; thirds of patients are stratified by class and size."""
    times = {"a third a training": 3, "a fifth a training": 5}.get(design, 1)
    if "patients" in clusters:  # healthy: 3 large patients and 10 small ones; diseased: 24 of 10 to 80 images
        healthy = np.r_[rng.integers(250, 290, 3), rng.integers(2, 12, 10)]
        diseased = np.round(10 * 8 ** rng.uniform(0, 1, 24)).astype(int)
        sizes = healthy if clusters == "few patients" else np.r_[healthy, diseased]
        positive = np.arange(len(sizes)) >= len(healthy)
    else:
        sizes = np.round(2 ** rng.uniform(0, 4 if clusters == "duplicates" else 0, 100 * times)).astype(int)
        positive = rng.random(len(sizes)) < 0.4
    everyone = np.arange(len(sizes))
    picks = [everyone] * trainings
    if design == "a third a training":
        fold = np.empty(len(sizes), int)
        order = np.lexsort((-sizes, positive)) if "patients" in clusters else rng.permutation(len(sizes))
        fold[order] = everyone % 3
        picks = [np.flatnonzero(fold == training % 3) for training in range(trainings)]
    elif design == "a fifth a training":
        picks = []
        while len(picks) < trainings:
            pick = rng.permutation(len(sizes))[: max(2, len(sizes) // 5)]
            if not positive.any() or 2 <= positive[pick].sum() <= len(pick) - 2:
                picks.append(pick)
    cluster = np.repeat(everyone, sizes)
    return Images(cluster, positive[cluster], [np.flatnonzero(np.isin(cluster, pick)) for pick in picks])


def simulate(
    setting: Setting, images: Images, effects: Floats, rng: np.random.Generator
) -> list[tuple[Floats, Floats]]:
    """``(values [R, S], influences [R, S, C])`` of each part of the statistic; ``effects [R, S, arms]``."""
    share, count = CLUSTER[setting.clusters], int(images.cluster.max()) + 1
    of_cluster = rng.standard_normal((len(effects), count))[:, images.cluster]
    image = np.sqrt(share) * of_cluster + np.sqrt(1 - share) * rng.standard_normal(of_cluster.shape)
    trained: list[list[Part]] = []
    for number, test in enumerate(images.tests):
        arms: list[Part] = []
        for gap in (0.0, *GAPS.get(setting.statistic, ())):
            noise = rng.standard_normal((len(effects), len(test)))
            latent = np.sqrt(1 - NOISE) * image[:, test] + np.sqrt(NOISE) * noise
            arms.append((latent, LEVEL.get(setting.statistic, 1.0) - gap + effects[:, number, len(arms)][:, None]))
        trained.append(statistic(setting.statistic, arms, images.cluster[test], images.positive[test], count))
    return [
        (np.stack([v for v, _ in part], 1), np.stack([d for _, d in part], 1)) for part in zip(*trained, strict=True)
    ]


def statistic(
    name: str, arms: list[tuple[Floats, Floats]], cluster: NDArray[np.intp], positive: NDArray[np.bool_], count: int
) -> list[Part]:
    """The parts of a statistic in one training, from each arm's (latent [R, n], level [R, 1])."""
    latent, level = arms[0]
    if name == "AUC":
        return [auc_part(latent + positive * level, positive, cluster, count)]
    if name in LABELLED:
        shifted = level - 2 * LEVEL[name]  # a threshold that moves; else trainings differ in how well they separate
        called = latent + np.where(positive, level, shifted if name == "F1 off its peak" else -level) > 0
        value, pull = mean_part(called & positive, cluster, count)
        if name == "precision":
            return [ratio((value, pull), mean_part(called, cluster, count))]
        return [ratio((2 * value, 2 * pull), mean_part(called * 1.0 + positive, cluster, count))]
    first, *others = (mean_part(latent + level > 0, cluster, count) for latent, level in arms)
    if name.startswith("mean"):
        return [first]
    return [ratio(b, first) if name == "ratio" else (first[0] - b[0], first[1] - b[1]) for b in others]


def mean_part(values: NDArray[Any], cluster: NDArray[np.intp], count: int) -> Part:
    """`hpatlib.statistics.mean_of`, of many repetitions at once."""
    means, share = values.mean(axis=1), np.bincount(cluster, minlength=count) / len(cluster)
    member = np.zeros((len(cluster), count))
    member[np.arange(len(cluster)), cluster] = 1 / len(cluster)
    left = np.where(share == 1, 1.0, 1 - 2 * share + np.square(share).sum())
    return means, (values @ member - means[:, None] * share) / np.sqrt(left)


def auc_part(scores: Floats, positive: NDArray[np.bool_], cluster: NDArray[np.intp], count: int) -> Part:
    """`hpatlib.statistics.auc_of`, of many repetitions at once, without ties."""
    order = np.argsort(scores, axis=1)
    hit = positive[order]
    below, above = np.cumsum(~hit, axis=1) / (~positive).sum(), 1 - np.cumsum(hit, axis=1) / positive.sum()
    placed = np.empty_like(scores)
    np.put_along_axis(placed, order, np.where(hit, below, above), axis=1)
    area, up = mean_part(placed[:, positive], cluster[positive], count)
    return area, up + mean_part(placed[:, ~positive], cluster[~positive], count)[1]


def ratio(a: Part, b: Part) -> Part:
    """Division of estimates, of many repetitions at once; 0 where the denominator is 0."""
    inverse = np.divide(1, b[0], out=np.zeros_like(b[0]), where=b[0] != 0)
    value = a[0] * inverse
    return value, (a[1] - value[:, None] * b[1]) * inverse[:, None]


def population(name: str, spread: float, share: float) -> tuple[float, float]:
    """Mean and standard deviation, over trainings, of the statistic on endless images, ``share`` of them positive.

    Of several arms it is the first pair: the least of four is least there.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    weight, level = np.outer(weights, weights) / weights.sum() ** 2, LEVEL.get(name, 1.0)
    a, b = level + spread * nodes[:, None], level - GAPS.get(name, (0.0,))[0] + spread * nodes
    hit, wrong = share * ndtr(a), (1 - share) * ndtr(a - 2 * level if name == "F1 off its peak" else -a)
    values = {
        "mean": ndtr(a),
        "mean near 1": ndtr(a),
        "difference": ndtr(a) - ndtr(b),
        "least of four": ndtr(a) - ndtr(b),
        "ratio": ndtr(b) / ndtr(a),
        "AUC": ndtr(a / np.sqrt(2)),
        "precision": hit / (hit + wrong),
        "F1": 2 * hit / (hit + wrong + share),
        "F1 off its peak": 2 * hit / (hit + wrong + share),
    }[name] * np.ones_like(weight)
    mean = float((weight * values).sum())
    return mean, float(np.sqrt(max(0.0, (weight * values**2).sum() - mean**2)))


def spread_for(name: str, wanted: float, share: float) -> float:
    """The spread of effects that makes the statistic spread by ``wanted`` between trainings, at most 1."""
    low, high = 0.0, 1.0  # beyond, most trainings would be at the floor or the ceiling
    for _ in range(30 if wanted else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if population(name, middle, share)[1] < wanted else (low, middle)
    return low


def cover(setting: Setting, repetitions: int, seed: list[int]) -> list[Cell]:
    """Simulate one setting with each number of trainings."""
    rng, arms = np.random.default_rng(seed), 1 + len(GAPS.get(setting.statistic, ()))
    most = 1 if setting.design == "one network" else max(TRAININGS)
    alone, positives = [], []
    for _ in range(50):
        images = draw_images(setting.design, setting.clusters, 1, rng)
        alone.append(simulate(setting, images, np.zeros((BLOCK, 1, arms)), rng)[0][0])
        positives.append((images.positive.sum(), len(images.positive)))
    share = float(np.divide(*np.sum(positives, axis=0)))
    spread = spread_for(setting.statistic, setting.ratio * float(np.std(np.concatenate(alone))), share)
    truth, _ = population(setting.statistic, spread, share)
    ends: dict[int, list[Floats]] = defaultdict(list)
    for _ in range(-(-repetitions // BLOCK)):
        images = draw_images(setting.design, setting.clusters, most, rng)
        effects = spread * rng.standard_normal((BLOCK, most, arms))
        parts = simulate(setting, images, effects, rng)
        for count in (1,) if most == 1 else TRAININGS:
            low, high = [], []
            for values, influence in parts:
                v, variances = values[:, :count], variance_parts(values[:, :count], influence[:, :count])
                low.append(v.mean(axis=1) - half_width(*variances, count, 0.025))
                high.append(v.mean(axis=1) + half_width(*variances, count, 0.025 / len(parts)))
            ends[count].append(np.stack([np.min(low, axis=0), np.min(high, axis=0)]))
    cells = []
    for count, blocks in ends.items():
        below, beyond = np.concatenate(blocks, axis=1)
        held = float(np.mean((below <= truth) & (truth <= beyond)))
        cells.append(Cell(setting, count, len(below), held, float(np.mean(below > truth))))
    return cells


def check_against_library(rng: np.random.Generator) -> None:
    """That the vectorised statistics above are the library's own."""
    images = draw_images("one network", "patients", 1, rng)
    scores = rng.standard_normal((2, len(images.cluster)))
    count = int(images.cluster.max()) + 1
    hit, part = mean_part(scores > 0, images.cluster, count), auc_part(scores, images.positive, images.cluster, count)
    for row in range(2):
        for (value, pull), own in (
            (hit, mean_of(scores[row] > 0, None, images.cluster)),
            (part, auc_of(scores[row], images.positive, None, images.cluster)),
        ):
            np.testing.assert_allclose(value[row], own.value)
            np.testing.assert_allclose(pull[row], own.influence[0], atol=1e-12)


def settings() -> list[Setting]:
    return [
        Setting(design, clusters, name, ratio)
        for design, clusters, name, ratio in itertools.product(DESIGNS, CLUSTERS, STATISTICS, RATIOS)
        if not (design == "one network" and ratio) and not (clusters == "few patients" and name in LABELLED)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rows", type=int, default=40, help="rows of the table that are printed (all are in --out)")
    parser.add_argument("--out", type=Path, help="write every cell to this JSON file")
    options = parser.parse_args()
    check_against_library(np.random.default_rng(options.seed))
    todo = settings()
    seeds = [[options.seed, number] for number in range(len(todo))]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = pool.map(cover, todo, [options.repetitions] * len(todo), seeds)
        results = list(tqdm(found, total=len(todo), unit="setting"))
        doubtful = [k for k, cells in enumerate(results) if any(cell.outside() for cell in cells)]
        longer = pool.map(
            cover,
            [todo[k] for k in doubtful],
            [8 * options.repetitions] * len(todo),
            [[*seeds[k], 1] for k in doubtful],
        )
        for k, cells in zip(doubtful, tqdm(longer, total=len(doubtful), unit="setting"), strict=True):
            results[k] = cells
    cells = [cell for some in results for cell in some]
    cells.sort(key=lambda cell: min(cell.held - LOW, cell.high - cell.held))
    failed = [cell for cell in cells if cell.outside()]
    print("| design | clusters | statistic | ratio | trainings | held % | above % | |", "|---|" + 7 * "---|", sep="\n")
    for cell in cells[: options.rows]:
        s, mark = cell.setting, "fails" if cell in failed else "" if cell.setting.guaranteed else "not claimed"
        where = f"{s.design} | {s.clusters} | {s.statistic} | {s.ratio} | {cell.trainings}"
        print(f"| {where} | {100 * cell.held:.1f} | {100 * cell.above:.1f} | {mark} |")
    claimed = [cell.held for cell in cells if cell.setting.guaranteed]
    print(f"{len(claimed)} cells claimed: {100 * min(claimed):.1f} to {100 * max(claimed):.1f} %; {len(failed)} fail")
    if options.out:
        options.out.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
