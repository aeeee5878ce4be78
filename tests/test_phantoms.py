"""The cell phantom: the same bits for the same arguments, no cheap way to the label, and a fragile classifier."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hpatlib.attacks import pgd
from hpatlib.data.phantoms import cells
from hpatlib.models import build
from hpatlib.spatial import Box, random_search


def best_threshold(values: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of the best cut on one number, either way round."""
    ranked = labels[np.argsort(values)]
    below = np.concatenate([[0], np.cumsum(ranked == 0)]) + (ranked == 1).sum()
    below = below - np.concatenate([[0], np.cumsum(ranked == 1)])
    share = below / len(labels)
    return max(share.max(), 1 - share.min())


def test_the_same_arguments_give_the_same_bits_and_fewer_are_the_first_of_more():
    few, more, other = cells(30, size=32), cells(50, size=32), cells(30, size=32, seed=1)
    for a, b in zip(few, more, strict=True):
        assert np.array_equal(a, b[:30])
    assert not np.array_equal(few[0], other[0])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_types_and_a_black_background(size):
    images, labels, patients = cells(40, size=size)
    assert images.shape == (40, 3, size, size) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert labels.sum() == 20
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all() and images.max() > 100
    assert not set(patients[labels == 0]) & set(patients[labels == 1])
    assert all(name.startswith("H") for name in patients[labels == 0])


def test_patients_have_a_dozen_cells_or_two():
    _, _, patients = cells(600, size=16)
    _, counts = np.unique(patients, return_counts=True)
    assert counts.max() <= 24 and (np.sort(counts)[2:] >= 12).all()  # the last of each class may be cut short


@pytest.mark.parametrize("size", [32, 64, 96])
def test_neither_brightness_nor_area_tells_the_classes_apart(size):
    images, labels, _ = cells(600, size=size)
    numbers = {
        "mean intensity": images.mean(axis=(1, 2, 3)),
        "cell area": (images.max(axis=1) > 0).mean(axis=(1, 2)),
        **{f"mean of channel {c}": images[:, c].mean(axis=(1, 2)) for c in range(3)},
    }
    for name, values in numbers.items():
        assert best_threshold(values, labels) <= 0.65, name


def test_the_threshold_oracle_knows_a_separable_number():
    labels = np.arange(10) % 2
    assert best_threshold(labels + 0.1, labels) == best_threshold(-labels, labels) == 1


def test_a_small_network_learns_it_in_seconds_and_stays_fragile():
    torch.manual_seed(0)
    tensors = [torch.from_numpy(array) for array in cells(1000, size=32)[:2]]
    images, labels = tensors[0].float() / 255, tensors[1]
    model = build("simple_cnn", 2, weights="scratch")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(12):
        if epoch == 9:
            optimizer.param_groups[0]["lr"] = 2e-4
        for index in torch.randperm(1000).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    fresh, truth, _ = cells(400, size=32, seed=1)  # other patients
    fresh, truth = torch.from_numpy(fresh).float() / 255, torch.from_numpy(truth)

    def accuracy(shown: torch.Tensor) -> float:
        return (model(shown).argmax(dim=1) == truth).float().mean().item()

    model.eval()
    assert accuracy(fresh) >= 0.88
    generator = torch.Generator().manual_seed(0)
    noisy = pgd(model, fresh, truth, eps=6 / 255, step=1 / 255, iterations=6, start="gaussian", generator=generator)
    assert accuracy(noisy) < 0.5
    moved = random_search(model, fresh, truth, Box(3, 30), evaluations=60, generator=generator)
    assert accuracy(moved.images) < accuracy(fresh) - 0.15


@pytest.mark.parametrize(("count", "size"), [(0, 32), (-1, 32), (5, 15)])
def test_bad_arguments_are_named(count, size):
    with pytest.raises(ValueError, match=f"found count={count} and size={size}"):
        cells(count, size=size)
