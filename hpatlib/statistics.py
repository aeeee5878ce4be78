"""What a number measured over trainings and images is worth: estimates that know their own uncertainty.

A statistic varies because networks are trained anew (seeds: first weights, batches, splits) and because other images
might have been drawn. An `Estimate` carries both: the statistic's value in each training, and how much each *cluster*
of images (a patient, a set of near-duplicates, or one image) pulls it in each training. Estimates can be added,
subtracted, multiplied and divided, so that a claim is written as one line of arithmetic, and the uncertainty follows.

For S trainings with values v_s and influences d_sc of clusters c, write u_c = Σ_s d_sc / S. The variance of the mean v̄
has two parts. V₁ is what differs from training to training, their own images included; V₂ is what the trainings have in
common because they were tested on the same clusters, of which V₁ sees nothing. For S > 1,

    V₁ = Σ_s (v_s − v̄)² / (S (S − 1)),    V₂ = S / (S − 1) · max(0, Σ_c u_c² − Σ_s Σ_c d_sc² / S²),

and V₁ = 0, V₂ = Σ_c u_c² for S = 1. V₁ + V₂ is unbiased but for the max. The interval is Banerjee's (Sankhyā A, 1961)
for a sum of two variances, with t the quantile of Student's distribution,

    v̄ ± √(t²_{S−1} V₁ + t²_df V₂),    df = 3 (Σ_c u_c²)² / Σ_c u_c⁴ − 4, at least 1 and at most C − 1,

and a p-value is the tail at which an end of the interval meets the threshold. The df counts how many clusters decide,
not how many there are. For a mean over images of which cluster c holds the share w_c in training s,

    d_sc = w_c (mean of c − v_s) / √(1 − 2 w_c + Σ_k w_k²),

where the root makes up for v_s having followed c: with one image a cluster Σ_c d_sc² is the familiar variance over n,
and with large clusters it is unbiased if the means of all clusters vary alike.

Classes are strata: c is compared with its own class, w_c being its share of it, and d_sc is weighted by the share of
the class. Where one cluster is more than half of a class in a test, as a single healthy subject is, the class is
centred on its mean over all trainings, with the shares w_k of all their tests: such a cluster tells nothing by itself
about others, but those of other trainings do.

``benchmarks/intervals.py`` shows how often such an interval holds the truth where classes do not differ, and
``tests/test_statistics.py`` where they do and few subjects decide. It is too narrow where it cannot know
better: outcomes that are all alike have no variance, however few they are; a single training says nothing about others;
and where values are skewed, as near 0 or 1, the truth lies beyond one end more often than beyond the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Leaf:
    """One measured cell that went into an estimate: what was measured, where, its mean, and on which models."""

    measure: str
    key: tuple[Hashable, ...]
    value: float
    models: frozenset[int]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic with its uncertainty over trainings and images.

    ``values [S]``: its value in each of ``trainings`` (None: no training is drawn, S = 1); ``influence [S, C]``: how
    far each of ``clusters`` moves it in each training, the d_sc above; ``n``: images measured in a training;
    ``leaves``: the cells it is made of. Make one with `mean_of`, `auc_of`, `over_trainings` or `exact`, and combine
    them by arithmetic.
    """

    values: Floats
    influence: Floats
    trainings: tuple[Hashable, ...] | None
    clusters: NDArray[Any]
    n: int
    leaves: tuple[Leaf, ...] = ()

    @property
    def value(self) -> float:
        """The mean over trainings."""
        return float(self.values.mean())

    @functools.cached_property
    def variances(self) -> tuple[float, float]:
        """(V₁, V₂): what differs between trainings, and what they share because of their images."""
        return self._parts[0], self._parts[1]

    @functools.cached_property
    def _parts(self) -> tuple[float, float, float]:
        between, shared, degrees = (float(part) for part in variance_parts(self.values, self.influence))
        return between, shared, degrees

    @property
    def error(self) -> float:
        """Standard error √(V₁ + V₂) of `value`; infinite where all images are one cluster."""
        return math.sqrt(sum(self.variances))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval at ``level``, between 0 and 1: (low, high)."""
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, such as 0.95, found {level}")
        return self._bound((1 - level) / 2), self._bound((1 + level) / 2)

    def _bound(self, probability: float) -> float:
        if self.error == 0:
            return self.value
        width = float(half_width(*self._parts, len(self.values), min(probability, 1 - probability)))
        return self.value + math.copysign(width, probability - 0.5)

    def above(self, threshold: float) -> float:
        """One-sided p-value of the data where the truth is at most ``threshold``: small speaks for *above*.

        It is below α / 2 exactly where the interval at level 1 − α lies above ``threshold``.
        """
        distance = self.value - threshold
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        tail = self._tail(abs(distance))
        return tail if distance > 0 else 1 - tail

    def _tail(self, distance: float) -> float:
        """The probability at which the half-width is ``distance``."""
        from scipy.optimize import brentq

        def excess(log: float) -> float:
            return float(half_width(*self._parts, len(self.values), math.exp(log))) - distance

        smallest, largest = math.log(1e-100), math.log(0.5)
        if distance == 0 or math.isinf(self.error):
            return 0.5
        return math.exp(brentq(excess, smallest, largest, xtol=1e-10)) if excess(smallest) > 0 else 0.0

    def below(self, threshold: float) -> float:
        """One-sided p-value of the data where the truth is at least ``threshold``: small speaks for *below*."""
        return (-self).above(-threshold)

    def would_decide(self, threshold: float, tail: float = 0.025, *, most: int = 100) -> str:
        """What would carry the interval of this effect past ``threshold``: more trainings, or more images.

        ``tail``: what lies beyond each end of the interval, less than 0.025 where many claims are judged at once.

        More trainings narrow V₁; more images narrow V₂ and the share of V₁ that comes from each training's own images.
        """
        from scipy.special import stdtrit

        distance, (between, shared, degrees), count = abs(self.value - threshold), self._parts, len(self.values)
        if distance == 0 or self.error == 0:
            return "the effect lies at the threshold"
        if math.isinf(shared):
            return "images of other clusters"
        if self.trainings is not None and count == 1:
            return "more than one training"
        for total in range(count + 1, most + 1) if between else ():
            if half_width(between * count / total, shared, degrees, total, tail) < distance:
                return f"about {total} trainings"
        own = min(between, max(0.0, float(np.square(self.influence).sum()) / count**2 - shared / count))
        fixed, narrowed = between - own, own
        if between:
            squared = float(stdtrit(count - 1, tail)) ** 2
            fixed, narrowed = squared * fixed, squared * narrowed
        narrowed += float(stdtrit(degrees, tail)) ** 2 * shared
        if fixed < distance**2 and (times := narrowed / (distance**2 - fixed)) < most:
            return f"about {max(times, 1.1):.2g} times as many {self._units}"
        return f"more than {most} trainings, or {most} times as many {self._units}"

    @property
    def _units(self) -> str:
        """What clusters are: images, or fewer patients or groups of images than there are images."""
        return "patients or groups of images" if len(self.clusters) < self.n else "images"

    def __neg__(self) -> Estimate:
        return self * -1.0

    def __add__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            return _combined(self, other, lambda a, b: (a + b, np.ones_like(a), np.ones_like(b)))
        return replace(self, values=self.values + other)

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + (-other)

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    def __mul__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            return _combined(self, other, lambda a, b: (a * b, b, a))
        return replace(self, values=self.values * other, influence=self.influence * other)

    def __truediv__(self, other: Estimate | float) -> Estimate:
        """The ratio in each training, its influences to first order; 0 where the denominator is 0."""
        if not isinstance(other, Estimate):
            return self * (1 / other)

        def ratio(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
            safe = np.where(b == 0, 1.0, b)
            return np.where(b == 0, 0.0, a / safe), np.where(b == 0, 0.0, 1 / safe), np.where(b == 0, 0.0, -a / safe**2)

        return _combined(self, other, ratio)

    __radd__, __rmul__ = __add__, __mul__


@dataclass(frozen=True, eq=False)
class Least:
    """The least of several estimates, for a claim about all of them at once (an intersection–union test).

    It lies above a threshold when each part does, at the full level; and below it when any part does, at a level that
    allows for having looked at all of them. A bootstrap of the minimum itself would lie below the truth.
    """

    parts: tuple[Estimate, ...]

    @property
    def value(self) -> float:
        return min(part.value for part in self.parts)

    @property
    def deciding(self) -> Estimate:
        """The part that is least."""
        return min(self.parts, key=lambda part: part.value)

    @property
    def trainings(self) -> tuple[Hashable, ...] | None:
        return self.deciding.trainings

    @property
    def n(self) -> int:
        return min(part.n for part in self.parts)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(dict.fromkeys(leaf for part in self.parts for leaf in part.leaves))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """From the least lower end, to the least upper end at a level that allows for the number of parts."""
        low = min(part.interval(level)[0] for part in self.parts)
        return low, min(part._bound(1 - (1 - level) / 2 / len(self.parts)) for part in self.parts)

    def above(self, threshold: float) -> float:
        """`Estimate.above` of the least: all parts must lie there, so the one that does so least surely decides."""
        return max(part.above(threshold) for part in self.parts)

    def below(self, threshold: float) -> float:
        """`Estimate.below` of the least: one part is enough, after Bonferroni's correction for their number."""
        return min(1.0, len(self.parts) * min(part.below(threshold) for part in self.parts))

    def would_decide(self, threshold: float, tail: float = 0.025) -> str:
        """`Estimate.would_decide` of the part that decides."""
        if self.value > threshold:  # all must lie above it: ask the one that does so least surely
            return max(self.parts, key=lambda part: part.above(threshold)).would_decide(threshold, tail)
        surest = min(self.parts, key=lambda part: part.below(threshold))
        return surest.would_decide(threshold, tail / len(self.parts))


@dataclass(frozen=True, eq=False)
class Greatest:
    """The greatest of several estimates: the mirror image of `Least`, for claims that all of them lie below."""

    parts: tuple[Estimate, ...]

    @functools.cached_property
    def _mirror(self) -> Least:
        return Least(tuple(-part for part in self.parts))

    @property
    def value(self) -> float:
        return -self._mirror.value

    @property
    def trainings(self) -> tuple[Hashable, ...] | None:
        return self._mirror.trainings

    @property
    def n(self) -> int:
        return self._mirror.n

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return self._mirror.leaves

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        low, high = self._mirror.interval(level)
        return -high, -low

    def above(self, threshold: float) -> float:
        """`Least.below` of the mirror image."""
        return self._mirror.below(-threshold)

    def below(self, threshold: float) -> float:
        """`Least.above` of the mirror image."""
        return self._mirror.above(-threshold)

    def would_decide(self, threshold: float, tail: float = 0.025) -> str:
        """`Least.would_decide` of the mirror image."""
        return self._mirror.would_decide(-threshold, tail)


Quantity = Estimate | Least | Greatest


def variance_parts(values: Floats, influence: Floats) -> tuple[Floats, Floats, Floats]:
    """(V₁, V₂, df) of ``values [..., S]`` and ``influence [..., S, C]``, the formulas at the top of this module.

    V₂ is infinite where C = 1: one cluster cannot tell how others differ.
    """
    count, clusters = influence.shape[-2:]
    pull = np.square(influence.mean(axis=-2))  # [..., C]
    total, fourth = pull.sum(axis=-1), np.square(pull).sum(axis=-1)
    degrees = np.clip(3 * total**2 / np.where(fourth > 0, fourth, 1.0) - 4, 1, max(clusters - 1, 1))
    if count == 1:
        return np.zeros_like(total), total if clusters != 1 else np.full_like(total, np.inf), degrees
    shared = total - np.square(influence).sum(axis=(-2, -1)) / count**2
    shared = np.where(shared > 1e-12 * total, shared * count / (count - 1), 0.0)  # less is rounding
    if clusters == 1:
        shared = np.full_like(total, np.inf)
    return values.var(axis=-1, ddof=1) / count, shared, degrees


def half_width(
    between: float | Floats, shared: float | Floats, degrees: float | Floats, count: int, probability: float
) -> Floats:
    """√(t²_{S−1} V₁ + t²_df V₂) where each tail holds ``probability``, of ``count`` = S trainings."""
    from scipy.special import stdtrit

    squared = stdtrit(degrees, probability) ** 2 * shared
    return np.sqrt(stdtrit(count - 1, probability) ** 2 * between + squared if count > 1 else squared)


def mean_of(
    values: ArrayLike,
    trainings: ArrayLike | None,
    clusters: ArrayLike,
    leaves: tuple[Leaf, ...] = (),
    strata: ArrayLike | None = None,
) -> Estimate:
    """The mean of ``values [M]`` over the images of each training: the row's training ``[M]`` (None: there is none) and
    its cluster ``[M]``. NaN counts as missing. Raises ``ValueError`` for infinite values and where nothing is left.

    ``strata [M]``: the row's class. That classes differ is then no uncertainty, for their shares are those of the data
    set: a cluster is compared with its own class (see the top of this module)."""
    v, names, row, groups, column = _coded(values, trainings, clusters)
    counts = np.bincount(row, minlength=len(names))
    if not len(v) or counts.min() == 0:
        missing = [str(name) for name, count in zip(names, counts, strict=True) if not count]
        raise ValueError(f"a mean needs a value in each training, found none in {', '.join(missing) or 'any'}")
    kind = _strata(strata, np.asarray(values, dtype=float), column)
    means = np.bincount(row, v, len(names)) / counts
    influence = np.zeros((len(names), len(groups)))
    for each in np.unique(kind):
        mine = kind == each
        pull = _pulls(v[mine], row[mine], column[mine], len(names), len(groups))
        influence += pull * (np.bincount(row[mine], minlength=len(names)) / counts)[:, None]
    drawn = None if trainings is None else tuple(names.tolist())
    return Estimate(means, influence, drawn, groups, int(counts.min()), leaves)


def _strata(strata: ArrayLike | None, values: Floats, column: NDArray[np.intp]) -> NDArray[np.intp]:
    """The class of each value that is not missing; one for all where a class has a single cluster, whose like nobody
    knows."""
    if strata is None:
        return np.zeros(len(column), int)
    given = np.asarray(strata)
    if given.shape != values.shape:
        raise ValueError(f"strata must be [M] as values, found {list(given.shape)} for {list(values.shape)}")
    _, kind = np.unique(given[~np.isnan(values)], return_inverse=True)
    lone = any(len(np.unique(column[kind == each])) == 1 for each in range(kind.max() + 1))
    return np.zeros(len(column), int) if lone else kind


DOMINATED = 0.5  # of a class in one test: from this share on a cluster is compared with those of other trainings


def _pulls(v: Floats, row: NDArray[np.intp], column: NDArray[np.intp], count: int, clusters: int) -> Floats:
    """How far each cluster pulls the mean of one class in each training ``[S, C]``; 0 where it has no image there."""
    at, size = row * clusters + column, count * clusters
    images = np.bincount(at, minlength=size).reshape(count, clusters)
    sums = np.bincount(at, v, size).reshape(count, clusters)
    total = images.sum(axis=1, keepdims=True)
    there = total[:, 0] > 0
    share = images / np.where(total > 0, total, 1)
    means = sums.sum(axis=1, keepdims=True) / np.where(total > 0, total, 1)
    pooled, centre = share[there].mean(axis=0), means[there].mean()
    if there.sum() > 1 and pooled.max() < 1:
        dominated = share.max(axis=1, keepdims=True) > DOMINATED
    else:  # no other trainings to compare with
        dominated = np.zeros((count, 1), bool)
    means = np.where(dominated, centre, means)
    known = np.where(dominated, pooled, share)  # how much of its own mean a cluster is
    left = 1 - 2 * known + np.square(known).sum(axis=1, keepdims=True)
    pull = (sums - images * means) / np.where(total > 0, total, 1)
    return pull / np.sqrt(np.where(known == 1, 1.0, left))


def auc_of(
    scores: ArrayLike,
    positive: ArrayLike,
    trainings: ArrayLike | None,
    clusters: ArrayLike,
    leaves: tuple[Leaf, ...] = (),
) -> Estimate:
    """The area under the ROC curve of ``scores [M]`` for ``positive [M]`` in each training, ties counted half.

    Influences are DeLong's placements: how many images of the other class each one is ranked on the right side of.
    Where a class has a single cluster, no interval is finite: nobody knows how others of its like would be ranked.
    NaN counts as missing. Raises ``ValueError`` for infinite scores and where a training lacks one of the classes.
    """
    s, names, row, groups, column = _coded(scores, trainings, clusters)
    missing, hit = np.isnan(np.asarray(scores, dtype=float)), np.asarray(positive, dtype=bool)
    if hit.shape != missing.shape:
        raise ValueError(f"scores and positive must be [M] each, found {len(missing)} scores and {list(hit.shape)}")
    hit = hit[~missing]
    areas, placed, counts = np.empty(len(names)), np.empty(len(s)), []
    for number in range(len(names)):
        up, down = (row == number) & hit, (row == number) & ~hit
        if not up.any() or not down.any():
            raise ValueError(f"an AUC needs images of both classes, found one alone in training {names[number]}")
        placed[up], placed[down] = _placements(s[up], s[down]), 1 - _placements(s[down], s[up])
        areas[number] = placed[up].mean()
        counts.append(int(up.sum() + down.sum()))
    # The mean of either class is the area.
    up, down = (_pulls(placed[c], row[c], column[c], len(names), len(groups)) for c in (hit, ~hit))
    influence = up + down
    for each in (hit, ~hit):
        # Its like nobody knows, and unlike in `mean_of` the other class cannot stand in for it.
        if len(lone := np.unique(column[each])) == 1:
            groups, influence = groups[lone], influence.sum(axis=1, keepdims=True)
            break
    drawn = None if trainings is None else tuple(names.tolist())
    return Estimate(areas, influence, drawn, groups, min(counts), leaves)


def _placements(scores: Floats, others: Floats) -> Floats:
    """For each score the share of ``others`` below it, ties counted half."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return ranks / (2 * len(ordered))


def over_trainings(
    values: ArrayLike, trainings: Sequence[Hashable], leaves: tuple[Leaf, ...] = (), n: int = 0
) -> Estimate:
    """A number of each training that belongs to no image, such as its final loss: ``values [S]``."""
    v = np.asarray(values, dtype=float)
    if v.shape != (len(trainings),) or not len(v):
        raise ValueError(f"values must be one number a training, found {list(v.shape)} for {len(trainings)} trainings")
    if not np.isfinite(v).all() or len(set(trainings)) < len(v):
        raise ValueError(f"each training needs one finite number, found {v.tolist()} for {list(trainings)}")
    order = sorted(range(len(trainings)), key=lambda k: trainings[k])  # type: ignore[arg-type,return-value]
    names = tuple(trainings[k] for k in order)
    return Estimate(v[order], np.zeros((len(v), 0)), names, np.array([], dtype=str), n or len(v), leaves)


def exact(value: float) -> Estimate:
    """A number without uncertainty, such as one computed from a printed table. Raises ``ValueError`` for NaN."""
    if not math.isfinite(value):
        raise ValueError(f"an exact number must be finite, found {value}")
    return Estimate(np.array([float(value)]), np.zeros((1, 0)), None, np.array([], dtype=str), 0)


def average(*estimates: Estimate) -> Estimate:
    """The plain mean of several estimates. Raises ``ValueError`` for none."""
    if not estimates:
        raise ValueError("an average needs at least one estimate")
    return functools.reduce(lambda a, b: a + b, estimates) * (1 / len(estimates))


def least(*estimates: Estimate) -> Least:
    """The least of several estimates; raises ``ValueError`` for none."""
    if not estimates:
        raise ValueError("the least needs at least one estimate")
    return Least(estimates)


def greatest(*estimates: Estimate) -> Greatest:
    """The greatest of several estimates; raises ``ValueError`` for none."""
    if not estimates:
        raise ValueError("the greatest needs at least one estimate")
    return Greatest(estimates)


def spread(estimate: Estimate) -> Estimate:
    """The jackknife's estimate of the standard deviation σ over trainings: the mean of the pseudo-values
    S·σ − (S − 1)·σ₍₋ₛ₎, one a training, which takes out the bias that σ has in few trainings.

    Raises ``ValueError`` for fewer than three trainings.
    """
    values, count = estimate.values, len(estimate.values)
    if estimate.trainings is None or count < 3:
        raise ValueError(f"a spread over trainings needs at least 3 of them, found {count}")
    without = np.array([np.delete(values, k).std(ddof=1) for k in range(count)])
    pseudo = count * values.std(ddof=1) - (count - 1) * without
    empty = np.array([], dtype=str)
    return replace(estimate, values=pseudo, influence=np.zeros((count, 0)), clusters=empty)


def _coded(
    values: ArrayLike, trainings: ArrayLike | None, clusters: ArrayLike
) -> tuple[Floats, NDArray[Any], NDArray[np.intp], NDArray[Any], NDArray[np.intp]]:
    """Values that are not missing, with names and codes of their trainings and clusters.

    Returns (values [M], names [S] of all trainings, row [M], groups [C], column [M]).
    """
    v, groups = np.asarray(values, dtype=float), np.asarray(clusters)
    drawn = np.zeros(v.size, int) if trainings is None else np.asarray(trainings)
    if v.ndim != 1 or not v.shape == drawn.shape == groups.shape:
        shapes = ", ".join(str(list(array.shape)) for array in (v, drawn, groups))
        raise ValueError(f"values, trainings and clusters must be [M] each, found {shapes}")
    if np.isinf(v).any():
        raise ValueError(f"values must be finite, or NaN where missing, found {np.isinf(v).sum()} infinite ones")
    there = ~np.isnan(v)
    names, row = np.unique(drawn, return_inverse=True)
    groups, column = np.unique(groups[there], return_inverse=True)
    return v[there], names, row[there], groups, column


def _combined(a: Estimate, b: Estimate, rule: Callable[[Floats, Floats], tuple[Floats, Floats, Floats]]) -> Estimate:
    """``rule`` of two values and its slope in each of them, training by training; clusters are joined by name.

    An estimate without trainings goes with every training of the other. Raises ``ValueError`` for other trainings, and
    for clusters named by numbers on one side and by words on the other.
    """
    if a.trainings is not None and b.trainings is not None and a.trainings != b.trainings:
        raise ValueError(f"both sides need the same trainings, found {a.trainings} and {b.trainings}")
    if len(a.clusters) and len(b.clusters) and (a.clusters.dtype.kind in "biuf") != (b.clusters.dtype.kind in "biuf"):
        raise ValueError(f"both sides need clusters of one kind, found {a.clusters.dtype} and {b.clusters.dtype}")
    trainings = a.trainings if a.trainings is not None else b.trainings
    value, slope_a, slope_b = rule(*np.broadcast_arrays(a.values, b.values))
    count = len(value)
    clusters = (
        np.union1d(*(e.clusters for e in (a, b)))
        if len(a.clusters) and len(b.clusters)
        else (a.clusters if len(a.clusters) else b.clusters)
    )
    influence = np.zeros((count, len(clusters)))
    for part, slope in ((a, slope_a), (b, slope_b)):
        if len(part.clusters):
            influence[:, np.searchsorted(clusters, part.clusters)] += slope[:, None] * part.influence
    n = min((e.n for e in (a, b) if e.n), default=0)
    return Estimate(value, influence, trainings, clusters, n, tuple(dict.fromkeys(a.leaves + b.leaves)))
