"""What a number measured over trainings and images is worth: estimates that know their own uncertainty.

A statistic varies because networks are trained anew (seeds: first weights, batches, splits) and because other images
might have been drawn. An `Estimate` carries both: the statistic's value in each training, and how much each *cluster*
of images (a patient, a set of near-duplicates, or one image) pulls it in each training. Estimates can be added,
subtracted, multiplied and divided, so that a claim is written as one line of arithmetic, and the uncertainty follows.

For S trainings with values v_s and influences d_sc of clusters c (Σ_c d_sc = 0), the mean v̄ has variance V = V₁ + V₂,

    V₁ = var(v_s) / S,    V₂ = C / (C − 1) · Σ_c (Σ_s d_sc / S)²,

and the interval is v̄ ± t_df √V with Satterthwaite's df = V² / (V₁² / (S − 1) + V₂² / df₂). A cluster is summed over all
trainings that were tested on it before it is squared, so shared test sets are not counted as if they were new, and
df₂ = 3 (Σ u_c²)² / Σ u_c⁴ − 2, at most C − 1, counts how many clusters decide, not how many there are. ``benchmarks/
coverage.py`` shows how often such an interval holds the truth.
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
    far each of ``clusters`` moves it in each training; ``n``: images measured in a training; ``leaves``: the cells it
    is made of. Make one with `mean_of`, `auc_of`, `over_trainings` or `exact`, and combine them by arithmetic.
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
        """(V₁, V₂): what trainings and what images contribute to the variance of `value`."""
        between = float(self.values.var(ddof=1) / len(self.values)) if len(self.values) > 1 else 0.0
        pull = self.influence.mean(axis=0)  # [C]
        count = len(pull)
        return between, float(np.square(pull).sum() * count / (count - 1)) if count > 1 else 0.0

    @functools.cached_property
    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom; infinite where nothing varies."""
        between, within = self.variances
        if between + within == 0:
            return math.inf
        lost = between**2 / (len(self.values) - 1) if between else 0.0
        if within:
            squares = np.square(self.influence.mean(axis=0))
            lost += within**2 / float(
                np.clip(3 * squares.sum() ** 2 / np.square(squares).sum() - 2, 1, len(squares) - 1)
            )
        return (between + within) ** 2 / lost

    @property
    def error(self) -> float:
        """Standard error √V of `value`."""
        return math.sqrt(sum(self.variances))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval at ``level``: (low, high)."""
        return self._bound((1 - level) / 2), self._bound((1 + level) / 2)

    def _bound(self, probability: float) -> float:
        from scipy.special import stdtrit

        return self.value + float(stdtrit(self.degrees, probability)) * self.error if self.error else self.value

    def above(self, threshold: float) -> float:
        """One-sided p-value of the data where the truth is at most ``threshold``: small speaks for *above*."""
        from scipy.special import stdtr

        distance = self.value - threshold
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(self.degrees, -distance / self.error))

    def below(self, threshold: float) -> float:
        """One-sided p-value of the data where the truth is at least ``threshold``: small speaks for *below*."""
        return (-self).above(-threshold)

    def would_decide(self, threshold: float, *, most: int = 1000) -> str:
        """What would carry an interval of this effect past ``threshold``: more trainings, or more images.

        Trainings on test images of their own narrow both parts of the variance, on shared ones V₁ alone.
        """
        from scipy.special import stdtrit

        distance, (between, within), count = abs(self.value - threshold), self.variances, len(self.values)
        if distance == 0 or between + within == 0:
            return "the effect lies at the threshold"
        if self.trainings is not None and count > 1:
            apart = float(np.square(self.influence).sum()) / count**2  # V₂ if no two trainings shared an image
            shared = max(0.0, within - apart) * count / (count - 1)
            for total in range(count + 1, most + 1):
                width = stdtrit(total - 1, 0.975) * math.sqrt(
                    (between + max(0.0, within - shared)) * count / total + shared
                )
                if width < distance:
                    return f"about {total} trainings"
        if 1.96 * math.sqrt(between) < distance:
            times = within * 1.96**2 / (distance**2 - 1.96**2 * between)
            if times < most:
                return f"about {max(times, 1.1):.2g} times as many images"
        return f"more than {most} trainings, or another thousand times the images"

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
        return max(part.above(threshold) for part in self.parts)

    def below(self, threshold: float) -> float:
        return min(1.0, len(self.parts) * min(part.below(threshold) for part in self.parts))

    def would_decide(self, threshold: float) -> str:
        return self.deciding.would_decide(threshold)


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
        return self._mirror.below(-threshold)

    def below(self, threshold: float) -> float:
        return self._mirror.above(-threshold)

    def would_decide(self, threshold: float) -> str:
        return self._mirror.would_decide(-threshold)


Quantity = Estimate | Least | Greatest


def mean_of(
    values: ArrayLike, trainings: ArrayLike | None, clusters: ArrayLike, leaves: tuple[Leaf, ...] = ()
) -> Estimate:
    """The mean of ``values [M]`` over the images of each training: the row's training ``[M]`` (None: there is none) and
    its cluster ``[M]``. NaN counts as missing. Raises ``ValueError`` where nothing is left."""
    v = np.asarray(values, dtype=float)
    names, row, groups, column = _coded(v, trainings, clusters)
    there = np.isfinite(v)
    v, row, column = v[there], row[there], column[there]
    counts = np.bincount(row, minlength=len(names))
    if not len(v) or counts.min() == 0:
        missing = [str(name) for name, count in zip(names, counts, strict=True) if not count]
        raise ValueError(f"a mean needs a value in each training, found none in {', '.join(missing) or 'any'}")
    means = np.bincount(row, v, minlength=len(names)) / counts
    influence = np.zeros((len(names), len(groups)))
    np.add.at(influence, (row, column), (v - means[row]) / counts[row])
    drawn = None if trainings is None else tuple(names.tolist())
    return Estimate(means, influence, drawn, groups, int(counts.min()), leaves)


def auc_of(
    scores: ArrayLike,
    positive: ArrayLike,
    trainings: ArrayLike | None,
    clusters: ArrayLike,
    leaves: tuple[Leaf, ...] = (),
) -> Estimate:
    """The area under the ROC curve of ``scores [M]`` for ``positive [M]`` in each training, ties counted half.

    Influences are DeLong's placements: how many images of the other class each one is ranked on the right side of.
    Raises ``ValueError`` where a training lacks one of the classes.
    """
    s, hit = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    names, row, groups, column = _coded(s, trainings, clusters)
    areas, influence, counts = np.empty(len(names)), np.zeros((len(names), len(groups))), []
    for number in range(len(names)):
        up, down = (row == number) & hit, (row == number) & ~hit
        if not up.any() or not down.any():
            raise ValueError(f"an AUC needs images of both classes, found one alone in training {names[number]}")
        placed_up, placed_down = _placements(s[up], s[down]), 1 - _placements(s[down], s[up])
        areas[number] = placed_up.mean()
        np.add.at(influence[number], column[up], (placed_up - areas[number]) / up.sum())
        np.add.at(influence[number], column[down], (placed_down - areas[number]) / down.sum())
        counts.append(int(up.sum() + down.sum()))
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
    order = sorted(range(len(trainings)), key=lambda k: trainings[k])  # type: ignore[arg-type,return-value]
    names = tuple(trainings[k] for k in order)
    return Estimate(v[order], np.zeros((len(v), 0)), names, np.array([], dtype=str), n or len(v), leaves)


def exact(value: float) -> Estimate:
    """A number without uncertainty, such as one computed from a printed table."""
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
    """The standard deviation over trainings, with jackknife pseudo-values S·σ − (S − 1)·σ₍₋ₛ₎ in each training.

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
    values: Floats, trainings: ArrayLike | None, clusters: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[Any], NDArray[np.intp]]:
    """Names and codes of trainings and clusters: (names [S], row [M], groups [C], column [M])."""
    groups, column = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = np.zeros(len(values), int) if trainings is None else np.asarray(trainings)
    names, row = np.unique(drawn, return_inverse=True)
    if values.ndim != 1 or not len(values) == len(row) == len(column):
        raise ValueError(
            f"values, trainings and clusters must be [M], found {len(values)}, {len(row)} and {len(column)}"
        )
    return names, row, groups, column


def _combined(a: Estimate, b: Estimate, rule: Callable[[Floats, Floats], tuple[Floats, Floats, Floats]]) -> Estimate:
    """``rule`` of two values and its slope in each of them, training by training; clusters are joined by name.

    An estimate without trainings goes with every training of the other. Raises ``ValueError`` for other trainings.
    """
    if a.trainings is not None and b.trainings is not None and a.trainings != b.trainings:
        raise ValueError(f"both sides need the same trainings, found {a.trainings} and {b.trainings}")
    trainings = a.trainings if a.trainings is not None else b.trainings
    value, slope_a, slope_b = rule(*np.broadcast_arrays(a.values, b.values))
    count = len(value)
    clusters = np.union1d(a.clusters, b.clusters) if len(b.clusters) else a.clusters
    influence = np.zeros((count, len(clusters)))
    for part, slope in ((a, slope_a), (b, slope_b)):
        if len(part.clusters):
            influence[:, np.searchsorted(clusters, part.clusters)] += slope[:, None] * part.influence
    n = min((e.n for e in (a, b) if e.n), default=0)
    return Estimate(value, influence, trainings, clusters, n, tuple(dict.fromkeys(a.leaves + b.leaves)))
