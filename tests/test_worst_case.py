"""Auto-PGD, the nearest misclassified image, the suite and the smallest ε: equal to closed forms and to their peers."""

import math

import numpy as np
import pytest
import torch
import torchattacks
from hpatlib.fab import fab
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checks import EPS, fitted, generator, gratings
from torch import nn
from torch.nn import functional as F

from hpatlib.apgd import _checkpoints, apgd, distance
from hpatlib.measure import logits

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
HARD = {"linf": 0.3 * EPS, "l2": 0.25}  # budgets at which some images fall and some stand


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fitted(0)


@pytest.fixture(scope="module")
def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    return gratings(120, 7)


def right(model, images, labels):
    return logits(model, images).argmax(dim=1) == labels


class Linear(nn.Module):
    """Logits ±(⟨w, x − ½⟩ + b) / 2 of two classes: every distance to the boundary is known."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, images):
        z = ((images - 0.5) * self.weight).sum(dim=(1, 2, 3)) + self.bias
        return torch.stack([z, -z], dim=1) / 2


# Auto-PGD


def auto_pgd(model, image, label, eps, iterations, norm):
    """Algorithm 1 of the paper from the image itself, one image, one line of it after another."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    w = [math.ceil(round(p * iterations, 9)) for p in fractions]

    def f(x):
        x = x.clone().requires_grad_()
        value = F.cross_entropy(model(x[None]), label[None])
        return value.item(), torch.autograd.grad(value, x)[0]

    def project(x):
        delta = x - image
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / max(delta.norm().item(), 1e-12))
        return (image + delta).clamp(0, 1)

    def up(x, eta):
        gradient = f(x)[1]
        return project(x + eta * (gradient.sign() if norm == "linf" else gradient / gradient.norm()))

    eta, points, halved = [2 * eps], [image, up(image, 2 * eps)], False
    values = [f(points[0])[0], f(points[1])[0]]
    highest = int(np.argmax(values))
    at_check, rises = values[0], int(values[1] > values[0])
    maximum, best = values[highest], points[highest]
    previous, current, value = points[0], points[1], values[1]
    passed = list(points)
    for k in range(1, iterations):
        z = up(current, eta[-1])
        following = project(current + 0.75 * (z - current) + 0.25 * (current - previous))
        previous, current, before = current, following, value
        value = f(current)[0]
        passed.append(current)
        rises += value > before
        if value > maximum:
            maximum, best = value, current
        if k + 1 in w:
            length = k + 1 - w[w.index(k + 1) - 1]
            if rises < 0.75 * length or (not halved and maximum == at_check):
                eta.append(eta[-1] / 2)
                current, value, halved = best, maximum, True
            else:
                halved = False
            at_check, rises = maximum, 0
    wrong = [model(x[None]).argmax().item() != label.item() for x in passed]
    return max(zip(wrong, (f(x)[0] for x in passed), passed, strict=True), key=lambda each: each[:2])[2], len(eta)


@NORMS
def test_apgd_is_algorithm_1(norm, model, images):
    model, images = model.double(), images.double()
    labels, eps = model(images).argmax(dim=1), {"linf": 0.05, "l2": 0.6}[norm]
    found = apgd(model, images, labels, eps=eps, iterations=30, norm=norm, start=None)
    expected = [auto_pgd(model, x, y, eps, 30, norm) for x, y in zip(images, labels, strict=True)]
    torch.testing.assert_close(found, torch.stack([x for x, _ in expected]))
    assert len({steps for _, steps in expected}) > 1  # steps were halved, not all as often


def test_steps_are_looked_at_when_the_paper_does():
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(1000)) == [220, 410, 570, 700, 800, 870, 930, 990] and _checkpoints(1) == {1}


@NORMS
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_apgd_agrees_with_torchattacks(norm, loss, plain, test_set):
    images, labels = test_set
    effort = {"eps": HARD[norm], "iterations": 30, "norm": norm, "loss": loss}
    ours = right(plain, apgd(plain, images, labels, generator=generator(), **effort), labels)
    attack = torchattacks.APGD(plain, norm=norm.capitalize(), eps=HARD[norm], steps=30)
    theirs = right(plain, attack(images, labels), labels)
    assert (ours == theirs).double().mean() >= 0.99 and 0.2 < ours.double().mean() < 0.8


@NORMS
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), size=st.floats(0, 1))
def test_found_images_are_pixels_inside_the_ball(norm, seed, count, size):
    torch.manual_seed(seed % 1000)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    images = torch.rand(count, 1, 6, 6, generator=generator(seed)).round(decimals=1)
    labels = torch.randint(3, (count,), generator=generator(seed))
    eps = size if norm == "linf" else 6 * size
    found = apgd(model, images, labels, eps=eps, iterations=5, norm=norm, generator=generator(seed))
    again = apgd(model, images, labels, eps=eps, iterations=5, norm=norm, generator=generator(seed))
    nearest = fab(model, images, labels, norm=norm, iterations=5)
    assert torch.equal(found, again) and (distance(found - images, norm) <= eps + 1e-5).all()
    for x in (found, nearest):
        assert x.shape == images.shape and x.isfinite().all() and x.min() >= 0 and x.max() <= 1 and not x.requires_grad
    moved = distance(nearest - images, norm) > 0
    assert not right(model, nearest[moved], labels[moved]).any() if moved.any() else True
