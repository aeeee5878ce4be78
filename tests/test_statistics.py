"""Estimates against scikit-learn, SciPy, statsmodels, closed forms, invariants, and simulated coverage."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from hpatlib.statistics import (
    Estimate,
    Greatest,
    Leaf,
    Least,
    auc_of,
    average,
    exact,
    greatest,
    least,
    mean_of,
    over_trainings,
    spread,
)


def draw(seed=0, trainings=4, images=30, shared=True, clusters=None, arms=1, mean=0.5):
    """Rows of several arms on the same images: ([values of each arm], training, cluster)."""
    rng = np.random.default_rng(seed)
    image = np.tile(np.arange(images), trainings)
    training = np.repeat(np.arange(trainings), images)
    named = image if shared else image + images * training
    level = rng.normal(size=named.max() + 1)[named]
    values = [mean + level + rng.normal(size=trainings)[training] + rng.normal(size=len(image)) for _ in range(arms)]
    return values, training, named if clusters is None else named % clusters


@pytest.fixture
def arms() -> list[Estimate]:
    values, training, cluster = draw(arms=3)
    return [mean_of(v, training, cluster) for v in values]


def same(a: Estimate, b: Estimate) -> None:
    np.testing.assert_allclose(a.values, b.values)
    np.testing.assert_allclose(a.variances, b.variances, atol=1e-15)
    np.testing.assert_allclose(a.interval(), b.interval())


# Oracles


def test_number_a_training_is_a_t_interval():
    values = np.random.default_rng(0).normal(size=5)
    estimate, oracle = over_trainings(values, range(5)), stats.ttest_1samp(values, 0.1)
    np.testing.assert_allclose(estimate.interval(0.9), tuple(oracle.confidence_interval(0.9)))
    np.testing.assert_allclose(estimate.above(0.1), stats.ttest_1samp(values, 0.1, alternative="greater").pvalue)
    np.testing.assert_allclose(estimate.below(0.1), stats.ttest_1samp(values, 0.1, alternative="less").pvalue)


def test_own_images_add_nothing_to_the_trainings():
    (values,), training, cluster = draw(shared=False)
    seeds = values.reshape(4, 30).mean(axis=1)
    estimate = mean_of(values, training, cluster)
    np.testing.assert_allclose(estimate.interval(), over_trainings(seeds, range(4)).interval())


def test_one_network_on_independent_images_is_a_t_interval():
    outcomes = np.array([1.0, -1.0] * 30)  # outcomes of one size: each of 60 images decides as much
    outcomes += 0.3
    oracle = stats.ttest_1samp(outcomes, 0).confidence_interval()
    np.testing.assert_allclose(mean_of(outcomes, None, np.arange(60)).interval(), tuple(oracle))
    values = np.random.default_rng(1).exponential(size=60)
    assert mean_of(values, None, np.arange(60)).error == pytest.approx(stats.sem(values))


def test_three_equal_clusters_are_three_numbers():
    (values,), _, cluster = draw(trainings=1, clusters=3)
    means = [values[cluster == name].mean() for name in range(3)]
    oracle = stats.ttest_1samp(means, 0).confidence_interval()
    np.testing.assert_allclose(mean_of(values, None, cluster).interval(), tuple(oracle))


def test_auc_is_scikit_learns_and_its_error_is_delongs():
    rng = np.random.default_rng(2)
    positive = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=80) + positive, 1)  # rounded: with ties
    estimate = auc_of(scores, positive, None, np.arange(80))
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores))
    kernel = np.sign(scores[positive][:, None] - scores[~positive]) / 2 + 0.5  # DeLong, DeLong and Clarke-Pearson 1988
    delong = kernel.mean(1).var(ddof=1) / positive.sum() + kernel.mean(0).var(ddof=1) / (~positive).sum()
    assert estimate.error**2 == pytest.approx(delong)


def test_an_auc_over_one_patient_of_a_class_has_no_finite_interval():
    rng = np.random.default_rng(4)
    training, positive = np.repeat([0, 1, 2], 40), np.tile(np.arange(40) < 20, 3)
    cluster = np.where(positive, "one patient", np.tile(np.arange(40), 3).astype(str))
    scores = rng.normal(size=120) + positive
    for each in (training, None):
        estimate = auc_of(scores, positive, each, cluster)
        assert estimate.interval() == (-np.inf, np.inf)
        swapped = auc_of(-scores, ~positive, each, cluster)
        assert swapped.value == pytest.approx(estimate.value) and swapped.interval() == (-np.inf, np.inf)
    assert np.isfinite(auc_of(scores, positive, training, np.tile(np.arange(40), 3)).interval()).all()


def test_auc_of_each_training():
    rng = np.random.default_rng(3)
    training, scores, positive = np.repeat([3, 1, 2], 40), rng.normal(size=120), rng.random(120) < 0.5
    estimate = auc_of(scores, positive, training, np.arange(120))
    assert estimate.trainings == (1, 2, 3) and estimate.n == 40
    for value, name in zip(estimate.values, estimate.trainings, strict=True):
        assert value == pytest.approx(roc_auc_score(positive[training == name], scores[training == name]))


def test_equal_clusters_are_cluster_robust_least_squares():
    sm = pytest.importorskip("statsmodels.api")
    (values,), training, cluster = draw(trainings=1, images=60, clusters=12)
    fit = sm.OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    assert mean_of(values, None, cluster).error == pytest.approx(fit.bse[0])
    (values,), training, cluster = draw(trainings=4, clusters=10)  # one test set: rows of all trainings in a cluster
    centred = values - np.repeat(values.reshape(4, 30).mean(axis=1), 30)
    fit = sm.OLS(centred, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    pull = mean_of(values, training, cluster).influence.mean(axis=0)
    assert np.sqrt(np.square(pull).sum()) == pytest.approx(fit.bse[0])


def test_one_large_cluster_is_made_up_for():
    """The error is right on average where cluster means vary alike; a plain cluster-robust one is far too small."""
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(6), [100, 10, 10, 10, 10, 10])
    share = np.bincount(cluster) / 150
    drawn = [mean_of(rng.normal(size=6)[cluster], None, cluster) for _ in range(4000)]
    truth = np.square(share).sum()
    assert np.mean([e.error**2 for e in drawn]) == pytest.approx(truth, rel=0.06)
    plain = [np.square(e.influence[0]) @ (1 - 2 * share + truth) for e in drawn]
    assert np.mean(plain) < 0.3 * truth


def test_random_intercepts_of_a_balanced_design():
    """Own images: the standard error of the grand mean is that of a mixed model."""
    pytest.importorskip("statsmodels")
    from statsmodels.regression.mixed_linear_model import MixedLM

    (values,), training, cluster = draw(seed=5, trainings=6, shared=False)
    fit = MixedLM(values, np.ones((180, 1)), training).fit(reml=True)
    assert mean_of(values, training, cluster).error == pytest.approx(fit.bse_fe[0], rel=1e-3)


def test_equivalence_is_two_one_sided_tests():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    sign = np.array([1.0, -1.0] * 20)
    a = np.random.default_rng(6).normal(size=40)
    b = a + 0.1 + 0.5 * sign
    p, *_ = weightstats.ttost_paired(a, b, -0.3, 0.3)
    difference = mean_of(a, None, np.arange(40)) - mean_of(b, None, np.arange(40))
    assert max(difference.above(-0.3), difference.below(0.3)) == pytest.approx(p, rel=1e-6)
    low, high = difference.interval(0.9)
    assert (p < 0.05) == (low > -0.3 and high < 0.3)


def test_paired_difference_is_the_mean_of_differences():
    (a, b), training, cluster = draw(arms=2)
    same(mean_of(a, training, cluster) - mean_of(b, training, cluster), mean_of(a - b, training, cluster))


def test_f1_and_its_jackknife():
    rng = np.random.default_rng(7)
    truth = rng.random(150) < 0.4
    called = truth ^ (rng.random(150) < 0.25)
    names = np.arange(150)
    f1 = mean_of(2.0 * (truth & called), None, names) / mean_of(1.0 * truth + called, None, names)
    assert f1.value == pytest.approx(f1_score(truth, called))
    left = np.array([f1_score(np.delete(truth, k), np.delete(called, k)) for k in range(150)])
    assert f1.error == pytest.approx(np.sqrt(149 / 150 * np.square(left - left.mean()).sum()), rel=0.03)


def test_product_and_ratio_against_a_bootstrap():
    rng = np.random.default_rng(8)
    a = rng.normal(2, 1, 200)
    b = a + rng.normal(1, 1, 200)
    picks = rng.integers(200, size=(4000, 200))
    x, y = (mean_of(v, None, np.arange(200)) for v in (a, b))
    assert (x / y).error == pytest.approx((a[picks].mean(1) / b[picks].mean(1)).std(), rel=0.06)
    assert (x * y).error == pytest.approx((a[picks].mean(1) * b[picks].mean(1)).std(), rel=0.06)
    assert (x / y).value == pytest.approx(a.mean() / b.mean())


def test_spread_is_near_the_standard_deviation():
    values = np.random.default_rng(9).normal(size=400)
    estimate = spread(over_trainings(values, range(400)))
    assert estimate.value == pytest.approx(values.std(ddof=1), rel=0.01)
    assert estimate.error == pytest.approx(1 / np.sqrt(2 * 400), rel=0.15)  # of a normal sample's σ


# Invariants

floats = st.floats(-10, 10).map(lambda x: round(x, 3))


@st.composite
def rows(draw):
    trainings, images = draw(st.integers(1, 5)), draw(st.integers(3, 8))
    size = trainings * images
    a, b = (np.array(draw(st.lists(floats, min_size=size, max_size=size))) for _ in range(2))
    few = draw(st.integers(2, images))
    return a, b, np.repeat(np.arange(trainings), images), np.tile(np.arange(images), trainings) % few


@settings(max_examples=50, deadline=None)
@given(rows(), floats, st.integers(0, 10**6))
def test_algebra_and_names(data, threshold, seed):
    a, b, training, cluster = data
    x, y = mean_of(a, training, cluster), mean_of(b, training, cluster)
    assert (x - x).error == 0 and (x - x).value == 0
    np.testing.assert_allclose(((x + y) - y).influence, x.influence, atol=1e-9)
    np.testing.assert_allclose(average(x, y).values, (x.values + y.values) / 2)
    np.testing.assert_allclose((2 * x - x + 1 - 1).values, x.values, atol=1e-9)
    order = np.random.default_rng(seed).permutation(len(a))
    shuffled = mean_of(a[order], training[order], cluster[order])
    renamed = mean_of(a, training, np.array([f"patient {7 * c % 100}" for c in range(100)])[cluster])
    for other in (shuffled, renamed):
        np.testing.assert_allclose(other.value, x.value, atol=1e-12)
        np.testing.assert_allclose(other.variances, x.variances, rtol=1e-6, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(rows(), floats, st.floats(0.01, 0.98))
def test_p_values_and_intervals_agree(data, threshold, level):
    a, b, training, cluster = data
    x, y = mean_of(a, training, cluster), mean_of(b, training, cluster)
    for quantity in (x, x - y, least(x, y), greatest(x, y)):
        (low, high), (lower, higher) = quantity.interval(level), quantity.interval(level + 0.01)
        assert lower <= low <= high <= higher
        tail = (1 - level) / 2
        if abs(low - threshold) > 1e-6:
            assert (quantity.above(threshold) < tail) == (threshold < low)
        if abs(high - threshold) > 1e-6:
            assert (quantity.below(threshold) < tail) == (threshold > high)
    if x.error > 1e-6:
        assert x.above(threshold) + x.below(threshold) == pytest.approx(1)
        assert x.above(x.interval(level)[0]) == pytest.approx((1 - level) / 2, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(rows(), floats)
def test_least_and_greatest(data, threshold):
    a, b, training, cluster = data
    parts = mean_of(a, training, cluster), mean_of(b, training, cluster)
    low, high = Least(parts), Greatest(tuple(-part for part in parts))
    assert low.value == min(part.value for part in parts) == -high.value
    assert all(low.interval()[0] <= part.interval()[0] for part in parts)
    assert low.interval() == tuple(-end for end in reversed(high.interval()))
    assert low.above(threshold) == high.below(-threshold) and low.below(threshold) == high.above(-threshold)
    assert low.above(threshold) == max(part.above(threshold) for part in parts)
    assert low.would_decide(threshold) == high.would_decide(-threshold)
    assert Least(parts[:1]).interval() == parts[0].interval()


def test_a_doubled_image_is_news_only_as_a_cluster_of_its_own():
    values = np.random.default_rng(10).normal(size=50)
    once, names = mean_of(values, None, np.arange(50)), np.arange(50)
    grouped = mean_of(np.tile(values, 2), None, np.tile(names, 2))
    own = mean_of(np.tile(values, 2), None, np.arange(100))
    assert grouped.interval() == pytest.approx(once.interval())
    assert own.error == pytest.approx(once.error / np.sqrt(2), rel=0.02)


def test_shared_images_count_once_for_all_trainings():
    values = np.random.default_rng(11).normal(size=50)
    training = np.repeat([0, 1, 2], 50)
    shared = mean_of(np.tile(values, 3), training, np.tile(np.arange(50), 3))
    assert shared.error == pytest.approx(mean_of(values, None, np.arange(50)).error)
    own = mean_of(np.tile(values, 3), training, np.arange(150))  # three equal trainings, as far as it knows
    assert own.error == pytest.approx(0, abs=1e-15)


def test_an_estimate_without_trainings_goes_with_every_training(arms):
    (values,), _, cluster = draw(trainings=1)
    fixed = mean_of(values, None, cluster)
    np.testing.assert_allclose((arms[0] - fixed).values, arms[0].values - fixed.value)
    assert (fixed - arms[0]).trainings == arms[0].trainings
    for combined in (arms[0] + exact(1), exact(1) + arms[0]):
        same(combined, arms[0] + 1)
    same(1 - arms[0], -(arms[0] - 1))


def test_leaves_and_counts_follow(arms):
    a = mean_of([1.0, 0, 1], None, [0, 1, 2], (Leaf("correct", ("a",), 0.7, frozenset({1})),))
    b = mean_of([1.0, 0], None, [0, 1], (Leaf("correct", ("b",), 0.5, frozenset({2})),))
    assert (a - b).leaves == a.leaves + b.leaves == least(a, b).leaves == greatest(a, b).leaves
    assert (a - b + a).leaves == a.leaves + b.leaves
    assert (a - b).n == least(a, b).n == greatest(a, b).n == 2
    assert least(*arms).trainings == greatest(*arms).trainings == (0, 1, 2, 3)


# Coverage


def covered(design: str, repetitions: int = 1000) -> tuple[float, float]:
    """Shares held by `Estimate.interval` and by percentiles of a bootstrap over the trainings."""
    rng, ours, theirs = np.random.default_rng(12), 0, 0
    trainings, images = (1, 60) if design == "one network" else (3, 40)
    cluster = np.repeat(np.arange(30), [1, 2, 3] * 10) if design == "one network" else np.arange(images)
    resampled = np.stack(np.meshgrid(*[range(trainings)] * trainings), axis=-1).reshape(-1, trainings)
    for _ in range(repetitions):
        level = rng.normal(size=(1 if design == "one test set" else trainings, cluster.max() + 1))
        effect = rng.normal(size=(trainings, 1)) / np.sqrt(images) if trainings > 1 else 0
        values = level[:, cluster] + effect + 0.5 * rng.normal(size=(trainings, images))
        names = cluster + np.zeros((trainings, 1), int)
        if design == "own images":
            names = names + images * np.arange(trainings)[:, None]
        rows = None if trainings == 1 else np.repeat(np.arange(trainings), images)
        low, high = mean_of(values.ravel(), rows, names.ravel()).interval()
        ours += low <= 0 <= high
        low, high = np.percentile(values.mean(axis=1)[resampled].mean(axis=1), [2.5, 97.5])
        theirs += low <= 0 <= high
    return ours / repetitions, theirs / repetitions


@pytest.mark.parametrize("design", ["one network", "own images", "one test set"])
def test_intervals_hold_the_truth(design):
    ours, bootstrap = covered(design)
    # Four standard errors of a thousand draws; how sharp an interval is, closed forms say.
    assert 0.92 <= ours <= (0.995 if design == "one test set" else 0.98)
    assert bootstrap < 0.85  # percentiles of so few trainings do not pass this test


def number(text: str) -> float:
    return float(re.findall(r"[\d.]+", text.replace("1e+02", "100"))[0])


def test_would_decide_more_trainings():
    """With the number it names, about half of all intervals pass the threshold."""
    rng = np.random.default_rng(13)
    pilot = over_trainings(0.5 + np.array([-1.0, 0, 0, 0, 1]) * np.sqrt(2), range(5))  # mean 0.5, variance 1
    text = pilot.would_decide(0)
    total = int(number(text))
    assert text == f"about {total} trainings" and 5 < total < 40
    passed = [over_trainings(0.5 + rng.normal(size=total), range(total)).interval()[0] > 0 for _ in range(1000)]
    assert 0.4 < np.mean(passed) < 0.6


def test_would_decide_asks_the_part_that_is_least_sure():
    """The least of two lies above 0 when both do: one that is sure of it already is not asked."""
    sure = over_trainings(0.2 + 0.01 * np.array([-1.0, 0, 0, 0, 1]), range(5))
    unsure = over_trainings(0.5 + np.array([-1.0, 0, 0, 0, 1]) * np.sqrt(2), range(5))
    assert least(sure, unsure).value == sure.value
    assert least(sure, unsure).would_decide(0) == unsure.would_decide(0)
    assert greatest(-sure, -unsure).would_decide(0) == unsure.would_decide(0)
    below = least(-sure, -unsure)  # for one to lie below, the surest will do, at half the level
    assert below.value == -unsure.value and below.would_decide(0) == (-sure).would_decide(0, 0.0125)


def test_would_decide_more_trainings_on_shared_images():
    rng = np.random.default_rng(14)

    def estimate(trainings: int) -> Estimate:
        values = 0.45 + rng.normal(size=60) + 0.7 * rng.normal(size=(trainings, 1)) + np.zeros((trainings, 60))
        return mean_of(values.ravel(), np.repeat(np.arange(trainings), 60), np.tile(np.arange(60), trainings))

    told = [number(text) for text in (estimate(5).would_decide(0) for _ in range(300)) if "trainings" in text]
    total = int(np.median(told))
    assert 5 < total < 40
    assert 0.4 < np.mean([estimate(total).interval()[0] > 0 for _ in range(500)]) < 0.8


def test_would_decide_more_images():
    rng = np.random.default_rng(15)
    values = rng.normal(size=50)
    pilot = mean_of(0.2 + (values - values.mean()) / values.std(ddof=1), None, np.arange(50))
    text = pilot.would_decide(0)
    times = number(text)
    assert text.endswith("times as many images") and times > 1.5
    images = round(50 * times)
    passed = [mean_of(0.2 + rng.normal(size=images), None, np.arange(images)).interval()[0] > 0 for _ in range(1000)]
    assert 0.4 < np.mean(passed) < 0.6


def test_would_decide_more_images_of_each_trainings_own():
    """All spread between trainings comes from their images, so three times the images narrow it threefold."""
    values = np.random.default_rng(16).normal(size=(3, 40))
    values -= values.mean(axis=1, keepdims=True) - np.array([[-0.01], [0.0], [0.01]])
    pilot = mean_of(values.ravel(), np.repeat(np.arange(3), 40), np.arange(120))
    _, high = pilot.interval()
    assert pilot.would_decide(high / np.sqrt(3), most=4) == "about 3 times as many images"


def test_would_decide_where_nothing_would():
    (values,), training, cluster = draw(trainings=2)
    flat = over_trainings([1.0, 1.0, 1.0], range(3))
    assert flat.would_decide(0.5) == "the effect lies at the threshold" == exact(1).would_decide(1)
    assert mean_of(values, training, cluster).would_decide(values.mean() + 1e-6).startswith("more than 100 ")
    assert mean_of(values[:30], training[:30], cluster[:30]).would_decide(5) == "more than one training"
    assert mean_of(values, None, np.zeros(60)).would_decide(5) == "images of other clusters"


# The edges


def test_certainty_and_ignorance():
    assert exact(2).interval() == (2, 2) and exact(2).above(1) == 0 and exact(2).above(2) == 1 == exact(2).below(1)
    alone = mean_of([1.0, 2, 3], None, ["a", "a", "a"])
    assert alone.value == 2 and alone.interval() == (-np.inf, np.inf) and alone.above(0) == 0.5 == alone.below(0)
    values = over_trainings([1.0, 2, 3], range(3))
    assert values.above(2) == pytest.approx(0.5) and values.above(-1e200) == 0 and values.above(1e200) == 1


def test_missing_values_are_left_out():
    values, training, cluster = [1.0, np.nan, 0, 1, 0, np.nan], [0, 0, 0, 1, 1, 1], [0, 9, 1, 0, 1, 2]
    kept = [0, 2, 3, 4]
    same(mean_of(values, training, cluster), mean_of(*(np.array(x)[kept] for x in (values, training, cluster))))
    assert 9 not in mean_of(values, training, cluster).clusters
    positive = [True, False, False, True, False, True]
    a = auc_of(values, positive, training, cluster)
    np.testing.assert_allclose(a.values, [1, 1])
    with pytest.raises(ValueError, match="found none in 1"):
        mean_of([1.0, np.nan], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="found none in any"):
        mean_of([], None, [])
    with pytest.raises(ValueError, match="both classes"):
        auc_of([0.1, np.nan], [True, False], None, [0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_of([1.0, np.inf], None, [0, 1]), "finite.*1 infinite"),
        (lambda: mean_of([[1.0]], None, [0]), r"\[M\]"),
        (lambda: mean_of([1.0, 2], [0], [0, 1]), r"\[M\] each, found \[2\], \[1\], \[2\]"),
        (lambda: mean_of([1.0, 2], None, [0]), r"\[M\]"),
        (lambda: auc_of([1.0, 2], [True, True], None, [0, 1]), "both classes"),
        (lambda: auc_of([1.0, 2], [True], None, [0, 1]), "positive"),
        (lambda: over_trainings([1.0, 2], [0]), "one number a training"),
        (lambda: over_trainings([1.0, 2], [0, 0]), "one finite number"),
        (lambda: over_trainings([1.0, np.nan], [0, 1]), "one finite number"),
        (lambda: over_trainings([], []), "one number a training"),
        (lambda: exact(np.nan), "finite"),
        (lambda: average(), "at least one"),
        (lambda: least(), "at least one"),
        (lambda: greatest(), "at least one"),
        (lambda: spread(over_trainings([1.0, 2], [0, 1])), "at least 3"),
        (lambda: spread(exact(1)), "at least 3"),
        (lambda: over_trainings([1.0, 2], [0, 1]) - over_trainings([1.0, 2], [0, 2]), "same trainings"),
        (lambda: mean_of([1.0, 2], None, [0, 1]) + mean_of([1.0, 2], None, ["0", "1"]), "clusters of one kind"),
        (lambda: exact(1).interval(95), "between 0 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_ratio_over_nothing_is_nought():
    called = mean_of([0.0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1])
    precision = mean_of([0.0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]) / called
    np.testing.assert_allclose(precision.values, [0, 1])


# Classes as strata.


def test_with_an_image_a_cluster_the_error_is_that_of_a_stratified_sample():
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], [30, 70])
    values = rng.normal(size=100) + 5 * kind
    within = sum((kind == k).mean() ** 2 * values[kind == k].var(ddof=1) / (kind == k).sum() for k in (0, 1))
    estimate = mean_of(values, None, np.arange(100), (), kind)
    assert estimate.value == pytest.approx(values.mean()) and estimate.error == pytest.approx(math.sqrt(within))
    assert estimate.error < mean_of(values, None, np.arange(100)).error / 2  # that classes differ is no uncertainty


def test_strata_of_one_class_or_with_a_lone_cluster_change_nothing():
    rng = np.random.default_rng(1)
    values, training, cluster = rng.normal(size=60), np.repeat([0, 1], 30), np.tile(np.arange(15), 4)
    same(mean_of(values, training, cluster, (), np.ones(60)), mean_of(values, training, cluster))
    alone = (cluster == 3).astype(int)  # the only cluster of its class: nobody knows how its like differ
    same(mean_of(values, training, cluster, (), alone), mean_of(values, training, cluster))
    values[:4] = np.nan
    kind = cluster % 2
    kept = ~np.isnan(values)
    same(
        mean_of(values, training, cluster, (), kind),
        mean_of(values[kept], training[kept], cluster[kept], (), kind[kept]),
    )
    with pytest.raises(ValueError, match=r"strata must be \[M\] as values, found \[3\] for \[60\]"):
        mean_of(values, training, cluster, (), [0, 1, 1])


def few_healthy(rng, subject: float, effect: float) -> tuple[np.ndarray, ...]:
    """Six tests as C-NMC has them: one of three large healthy subjects, three tiny ones, four of twelve patients."""
    names = [*(f"H{k}" for k in range(9)), *(f"p{k}" for k in range(12))]
    level = dict(zip(names, rng.normal(0, subject, len(names)), strict=True))
    rows = []
    for seed in range(6):
        drift = rng.normal(0, effect)
        tested = [(f"H{seed % 3}", 273, 0), *((n, 2, 0) for n in rng.choice(names[3:9], 3, replace=False))]
        tested += [(n, 77, 1) for n in rng.choice(names[9:], 4, replace=False)]
        for name, count, kind in tested:
            right = rng.random(count) < stats.norm.cdf((1.5 if kind else -1.0) + level[name] + drift)
            rows.append((right.astype(float), np.full(count, seed), np.full(count, name), np.full(count, kind)))
    return tuple(map(np.concatenate, zip(*rows, strict=True)))


def test_an_interval_of_few_healthy_subjects_holds_the_truth_and_is_of_use():
    rng, subject, effect = np.random.default_rng(2), 0.3, 0.2
    scale = math.sqrt(1 + subject**2 + effect**2)
    truth = (279 * stats.norm.cdf(-1.0 / scale) + 308 * stats.norm.cdf(1.5 / scale)) / 587
    held, widths, plain = 0, [], []
    for _ in range(300):
        values, training, cluster, kind = few_healthy(rng, subject, effect)
        low, high = mean_of(values, training, cluster, (), kind).interval()
        held += low <= truth <= high
        widths.append(high - low)
        plain.append(np.diff(mean_of(values, training, cluster).interval())[0])
    assert 0.88 <= held / 300 <= 0.995  # nominal 0.95, less for three subjects that decide
    assert np.median(widths) < 0.25 < 0.5 < np.median(plain)  # without strata the interval says nothing


def test_two_images_that_decide_alone_are_two_degrees_of_freedom():
    values = np.r_[10.0, -10, np.zeros(40)]
    expected = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert mean_of(values, None, np.arange(42)).interval() == pytest.approx((-expected, expected))


def test_a_dominated_class_is_compared_with_that_of_other_trainings():
    """Three trainings, a healthy subject each, without noise: V₂ is 0, for nothing is shared, and V₁ holds it all."""
    values = np.r_[np.zeros(8), np.ones(2), np.full(8, 0.3), np.ones(2), np.full(8, 0.6), np.ones(2)]
    training, cluster = np.repeat([0, 1, 2], 10), np.array([*"aaaaaaaaxybbbbbbbbxyccccccccxy"])
    kind = np.tile(np.r_[np.zeros(8), np.ones(2)], 3)
    estimate = mean_of(values, training, cluster, (), kind)
    assert estimate.variances[1] == 0
    np.testing.assert_allclose(estimate.influence[0][:3], [0.8 * (0 - 0.3) / math.sqrt(2 / 3), 0, 0])
    twice = np.r_[training, training + 3]
    shared = mean_of(np.tile(values, 2), twice, np.tile(cluster, 2), (), np.tile(kind, 2))
    assert shared.variances[1] > 0  # each subject in two trainings
