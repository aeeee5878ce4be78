"""Scores, intervals and comparisons against scikit-learn, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import nn

from hpatlib import evaluation, hybrid
from hpatlib.data import ImageSet
from hpatlib.spatial import Box


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_equal_scikit_learns(classes):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(90) % classes
    answers = torch.randn(90, classes, generator=generator) + nn.functional.one_hot(labels, classes)
    truth, guess, share = labels.numpy(), answers.argmax(1).numpy(), answers.softmax(1).numpy()
    found = evaluation.scores(answers, labels)
    assert found["ACC"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found["PRE"] == pytest.approx(metrics.precision_score(truth, guess, average="macro"))
    assert found["REC"] == pytest.approx(metrics.recall_score(truth, guess, average="macro"))
    assert found["F1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    one_against_rest = [metrics.roc_auc_score(truth == k, share[:, k]) for k in range(classes)]
    assert found["AUC"] == pytest.approx(np.mean(one_against_rest))


def test_binary_scores_count_the_malignant_class_and_reproduce_a_printed_row():
    """1088 of 1219 malignant and 189 of 648 healthy cells right is Adv_p of table 2 (printed truncated; H4)."""
    labels = torch.cat([torch.ones(1219), torch.zeros(648)]).long()
    guess = torch.cat([torch.ones(1088), torch.zeros(131), torch.ones(459), torch.zeros(189)]).long()
    found = evaluation.scores(nn.functional.one_hot(guess, 2).float(), labels, average="binary")
    assert [math.floor(1e5 * found[key]) / 1e3 for key in ("ACC", "PRE", "F1")] == [68.398, 70.329, 78.669]


def test_unknown_averages_are_refused():
    with pytest.raises(ValueError, match='"binary" or "macro", found \'weighted\''):
        evaluation.scores(torch.eye(2), torch.tensor([0, 1]), average="weighted")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.data())
def test_roi_is_the_share_of_equal_predictions(before, data):
    after = data.draw(st.lists(st.integers(0, 2), min_size=len(before), max_size=len(before)))
    expected = sum(a == b for a, b in zip(before, after, strict=True)) / len(before)
    assert evaluation.roi(torch.tensor(before), torch.tensor(after)).mean().item() == pytest.approx(expected)


def test_roi_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"found \[2\] and \[3\]"):
        evaluation.roi(torch.zeros(2), torch.zeros(3))


def test_the_bootstrap_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(0).normal(3, 2, (400, 2))
    mean, low, high = evaluation.bootstrap(values, resamples=8000)
    error = 1.96 * values.std(axis=0) / 20
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(low, mean - error, atol=0.02)
    np.testing.assert_allclose(high, mean + error, atol=0.02)
    assert evaluation.bootstrap(np.ones(5)) == (1, pytest.approx(1), pytest.approx(1))
    with pytest.raises(ValueError, match=r"found \[0\]"):
        evaluation.bootstrap([])


class Left(nn.Module):
    """Class 1 where the left half is brighter: a turn by 180° flips it, noise hardly does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        left, right = images.mean(1).chunk(2, dim=2)
        margin = self.scale * (left.mean((1, 2)) - right.mean((1, 2)))
        return torch.stack([-margin, margin], dim=1)


@pytest.fixture
def halves() -> ImageSet:
    labels = np.arange(12) % 2
    images = np.full((12, 3, 16, 16), 90, np.uint8)
    for n, label in enumerate(labels):
        images[n, :, :, slice(0, 8) if label else slice(8, 16)] += 40 + 5 * n
    return ImageSet("halves", images, labels, labels.astype(str), ("right", "left"), False, "f00d")


def test_flips_counts_what_changes(halves):
    def turned(model, images, labels):
        return images.flip(-1)

    kept = {"clean": lambda m, x, y: x, "turned": turned, "same": lambda m, x, y: x}
    found = evaluation.flips(Left(), halves, kept, batch_size=5)
    table = found.table.set_index("perturbation")
    assert table["accuracy"].to_dict() == {"clean": 1, "turned": 0, "same": 1}
    assert table["roi"].to_dict() == table["accuracy"].to_dict()
    assert table["flipped"].to_dict() == {"clean": 0, "turned": 1, "same": 0}
    assert torch.equal(found.images["clean"], halves.tensors()[0])


def test_the_showcase_gives_the_names_and_budgets_figure_1_speaks_of(halves):
    found = evaluation.flips(Left(), halves, hybrid.showcase(6 / 255, Box(1, 180), seed=0))
    clean = found.images["clean"]
    for name in ("random noise", "worst noise"):
        assert 0 < (found.images[name] - clean).abs().max() <= 6 / 255 + 1e-6
    table = found.table.set_index("perturbation")
    assert table["flipped"]["worst transform"] == 1 and table["flipped"]["random noise"] == 0
    effects = evaluation.flip_effects(found)
    assert effects["noise"].mean() == pytest.approx(-0.01)
    assert effects["both"].mean() == pytest.approx(table["flipped"]["random both"])


def test_compared_searches_share_images_and_agree_on_the_ends(halves):
    model, box = Left(), Box(0, 180)
    compared = evaluation.compare_searches(model, halves, box, budget=100, batch_size=5)
    assert {name: list(h.shape) for name, h in compared.histories.items()} == {
        "STBO": [12, 100],
        "Sobol": [12, 100],
        "random": [12, 100],
    }
    assert list(compared.grids) == [9, 27, 99, 775]
    curves = evaluation.search_curves(compared)
    # Left loses everything under a half turn, which all searches find.
    for method, rows in curves.groupby("method"):
        assert rows["roi"].iloc[-1] == 0, method
    assert (curves["loss_low"] <= curves["loss"]).all() and (curves["loss"] <= curves["loss_high"]).all()
    effects = evaluation.search_effects(compared)
    expected = compared.histories["STBO"][:, -1].mean() - compared.grids[775].mean()
    assert effects["efficiency"].mean() == pytest.approx(expected.item(), abs=1e-5)


def test_the_loss_tells_the_prediction_for_two_classes(halves):
    model = Left()
    images, labels = halves.tensors()
    answers = evaluation.logits(model, images, batch_size=5)
    loss = nn.functional.cross_entropy(answers, labels, reduction="none")
    turned = evaluation.logits(model, images.flip(-1))
    turned_loss = nn.functional.cross_entropy(turned, labels, reduction="none")
    compared = evaluation.Comparison(Box(0, 0), loss.detach(), {}, {})
    expected = evaluation.roi(answers.argmax(1), turned.argmax(1))
    assert torch.equal(evaluation.unchanged(compared, turned_loss.detach()), expected)


def test_a_sample_is_evenly_spaced(halves):
    assert evaluation.sample(halves, 4).labels.tolist() == halves.labels[[0, 4, 7, 11]].tolist()
    assert len(evaluation.sample(halves, 99)) == 12
