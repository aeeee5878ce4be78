"""Auto-PGD, the nearest misclassified image, the suite and the smallest ε: equal to closed forms and to their peers."""

import math

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checks import EPS, Before, fitted, generator, gratings
from torch import nn
from torch.nn import functional as F

from hpatlib.apgd import _checkpoints, apgd, distance
from hpatlib.attacks import worse
from hpatlib.fmn import fmn
from hpatlib.measure import logits
from hpatlib.worst_case import smallest_eps, worst_case

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
    model, images = model.double(), images[:4].double()
    labels, eps = model(images).argmax(dim=1), {"linf": 0.05, "l2": 0.6}[norm]
    found = apgd(model, images, labels, eps=eps, iterations=24, norm=norm, start=None)
    expected = [auto_pgd(model, x, y, eps, 24, norm) for x, y in zip(images, labels, strict=True)]
    torch.testing.assert_close(found, torch.stack([x for x, _ in expected]))
    assert all(steps > 2 for _, steps in expected)  # steps were halved


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
    nearest = fmn(model, images, labels, norm=norm, iterations=5)
    assert torch.equal(found, again) and (distance(found - images, norm) <= eps + 1e-5).all()
    for x in (found, nearest):
        assert x.shape == images.shape and x.isfinite().all() and x.min() >= 0 and x.max() <= 1 and not x.requires_grad
    moved = distance(nearest - images, norm) > 0
    assert not right(model, nearest[moved], labels[moved]).any() if moved.any() else True


# The nearest misclassified image


def lines(count: int = 5) -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear model, images far from black and white, their labels, and the margin that must be overcome."""
    weight = torch.randn(1, 8, 8, generator=generator(1))
    images = 0.5 + 0.1 * torch.rand(count, 1, 8, 8, generator=generator(2)) - 0.05
    model = Linear(weight)
    z = logits(model, images)
    return model, images, z.argmax(dim=1), (z[:, 0] - z[:, 1]).abs().detach()


@NORMS
def test_fmn_finds_the_boundary_of_a_linear_model(norm):
    model, images, labels, lead = lines()
    found = fmn(model, images, labels, norm=norm, iterations=100)
    assert not right(model, found, labels).any()
    dual = model.weight.detach().abs().sum() if norm == "linf" else model.weight.detach().norm()
    ratio = distance(found - images, norm) / (lead / dual)
    assert (ratio > 1 - 1e-4).all() and (ratio < 1.05).all()


@NORMS
def test_fmn_is_no_weaker_than_fab_of_torchattacks(norm, plain, test_set):
    images, labels = test_set
    eps = HARD[norm]
    theirs = torchattacks.FAB(plain, norm=norm.capitalize(), eps=1.0, steps=20, n_classes=2)(images, labels)
    stands = {}
    for name, found in {"ours": fmn(plain, images, labels, norm=norm, iterations=50), "theirs": theirs}.items():
        stands[name] = right(plain, found, labels) | (distance(found - images, norm) > eps)
    assert (stands["ours"] <= stands["theirs"]).double().mean() >= 0.99 and stands["ours"].any()


def test_fmn_leaves_what_is_wrong_or_hopeless(model, images, labels):
    wrong = ~right(model, images, labels)
    assert wrong.any() and torch.equal(fmn(model, images, labels, iterations=5)[wrong], images[wrong])
    hopeless = Linear(torch.zeros(3, 16, 16), bias=1.0)
    hopeless.weight.data[0, 0, 0] = 1e-3
    assert torch.equal(fmn(hopeless, images, torch.zeros_like(labels), iterations=5), images)


# The smallest ε


def test_smallest_eps_of_a_linear_model_is_its_closed_form():
    model, images, labels, lead = lines()
    exact = lead / model.weight.detach().abs().sum()
    for steps, near in ((8, 1.01), (4, 1.1)):  # half an octave, halved so often, is off by less
        found = smallest_eps(model, images, labels, most=0.3, steps=steps, iterations=10, generator=generator())
        assert ((found / exact > 1 - 1e-4) & (found / exact < near)).all()


def test_smallest_eps_has_no_floor_and_says_what_it_did_not_find():
    model, images, labels, lead = lines()
    exact = lead / model.weight.detach().abs().sum()
    found = smallest_eps(model, images, labels, most=1.0, steps=8, iterations=2, generator=generator())
    assert exact.min() < 1 / 4**6 and (found / exact < 1.5).all()  # far below the smallest ball of the first look, 1/4⁴
    effort = {"iterations": 5, "generator": generator()}
    assert (smallest_eps(model, images, 1 - labels, most=0.3, **effort) == 0).all()
    assert smallest_eps(model, images, labels, most=exact.min().item() / 2, **effort).isinf().all()


class Moat(nn.Module):
    """Two classes; the first leads at 0.5, trails where pixels are 0.05 to 0.15 away, and leads again beyond: uphill
    from there is farther away, where it leads all the same."""

    def forward(self, images):
        away = (images - 0.5).abs()
        lead = torch.where(away < 0.15, 0.05 - away, 0.3 - 0.2 * (away - 0.15)).mean(dim=(1, 2, 3))
        return 10 * torch.stack([lead, -lead], dim=1)


def test_smallest_eps_looks_nearby_where_a_large_ball_leads_astray():
    images, labels = torch.full((3, 1, 4, 4), 0.51), torch.zeros(3, dtype=torch.long)
    found = smallest_eps(Moat(), images, labels, most=0.49, steps=6, generator=generator())
    assert (found > 0.04 - 1e-6).all() and (found < 0.041).all()


class Distracted(nn.Module):
    """A linear model that for the first ``calls`` of its forward pass answers label 0 to all that lies nearer by."""

    def __init__(self, model, images, calls):
        super().__init__()
        self.model, self.images, self.calls = model, images, calls

    def forward(self, images):
        self.calls -= 1
        logits = self.model(images)
        near = (distance(images - self.images[: len(images)], "linf") < 0.05) & (self.calls > 0)
        return torch.where(near.unsqueeze(1), logits + torch.tensor([100.0, 0.0]), logits)


def test_smallest_eps_looks_again_below_what_once_stood():
    model, images, labels, lead = lines()
    first = labels == 0
    images, labels, exact = images[first], labels[first], (lead / model.weight.detach().abs().sum())[first]
    distracted = Distracted(model, images, 1 + 6 * 11 + 3 * 11)  # until the third step of the first bisection is over
    found = smallest_eps(distracted, images, labels, most=0.2, steps=8, iterations=10, generator=generator())
    assert exact.max() < 0.05 / 4 and ((found / exact > 1 - 1e-4) & (found / exact < 1.01)).all()


def test_smallest_eps_is_no_larger_than_what_fmn_finds(plain, test_set):
    images, labels = (each[:40] for each in test_set)
    found = smallest_eps(plain, images, labels, most=EPS, steps=1, iterations=4, generator=generator())
    size = distance(fmn(plain, images, labels, iterations=40) - images, "linf")
    assert (size > 0).any() and (found <= torch.where(size <= EPS, size, torch.inf)).all()


def test_smallest_eps_asks_as_often_as_it_says(plain, test_set):
    images, labels = (each[:8] for each in test_set)
    calls = []
    handle = plain.register_forward_hook(lambda *_: calls.append(1))
    try:
        smallest_eps(plain, images, labels, most=0.5, steps=3, iterations=2, generator=generator())
    finally:
        handle.remove()
    assert len(calls) == 1 + (6 + 2 * 3) * (2 + 1) + 10 * 2 + 1  # the answers, PGD with its looks, FMN and a look


def test_smallest_eps_is_that_of_the_suite(plain, test_set):
    images, labels = (each[:40] for each in test_set)
    found = smallest_eps(plain, images, labels, most=EPS, generator=generator())
    suite = worst_case(plain, images, labels, eps=HARD["linf"], queries=50, generator=generator())
    near = (found - HARD["linf"]).abs() < 0.05 * HARD["linf"]
    assert torch.equal((found > HARD["linf"])[~near], suite.right[~near]) and near.double().mean() < 0.2
    again = smallest_eps(plain, images, labels, most=EPS, batch_size=16, generator=generator())
    assert ((again / found)[found > 0] - 1).abs().median() < 0.03  # other draws, the same answer


# The suite


@pytest.mark.parametrize("eps", [0.3, 0.49])
def test_the_suite_looks_nearby_where_a_large_ball_leads_astray(eps):
    images, labels = torch.full((3, 1, 4, 4), 0.51), torch.zeros(3, dtype=torch.long)
    found = worst_case(Moat(), images, labels, eps=eps, iterations=10, queries=2, generator=generator())
    assert found.felled_by == ("PGD, smaller ε",) * 3  # at ε it goes past what misleads


@NORMS
def test_the_suite_is_never_weaker_than_one_attack(norm, plain, test_set):
    images, labels = test_set
    found = worst_case(plain, images, labels, eps=HARD[norm], norm=norm, iterations=10, queries=50, batch_size=50)
    assert (distance(found.images - images, norm) <= HARD[norm] + 1e-6).all()
    assert torch.equal(right(plain, found.images, labels), found.right) and 0.2 < found.right.double().mean() < 0.8
    felled = np.array(found.felled_by)
    assert np.array_equal(felled == "", found.right.numpy()) and {"", "clean"} < set(felled)
    alone = right(plain, apgd(plain, images, labels, eps=HARD[norm], norm=norm, iterations=10, start=None), labels)
    assert (found.right & ~alone).double().mean() <= 0.01
    answers = [logits(plain, x) for x in (images, found.images)]
    gaps = [z.gather(1, labels[:, None]) - z.gather(1, 1 - labels[:, None]) for z in answers]
    assert (gaps[1] <= gaps[0]).all()


@pytest.mark.parametrize(
    ("mask", "feller"),
    [
        (lambda model: Before(model, factor=1e4), "APGD-margin"),  # cross-entropies of exactly 0
        (lambda model: Before(model, lambda x: (16 * x).round() / 16), "Square"),  # no gradient at all
    ],
    ids=["huge logits", "rounded pixels"],
)
def test_masked_gradients_fall_to_the_attack_that_sees_through(mask, feller, plain, test_set):
    images, labels = (each[:40] for each in test_set)
    found = worst_case(mask(plain), images, labels, eps=EPS, iterations=10, queries=120, generator=generator())
    names = np.array(found.felled_by)
    assert (names == feller).sum() > 20 and (names == "PGD").sum() <= 2  # a random start may hit


def test_what_only_transfers_is_found_by_a_surrogate(plain, test_set):
    images, labels = (each[:40] for each in test_set)
    blind = Before(plain, lambda x: (16 * x).round() / 16)
    found = worst_case(blind, images, labels, eps=EPS, surrogates=[fitted(1)], iterations=10, queries=2)
    assert "transfer" in found.felled_by
    alone = worst_case(blind, images, labels, eps=EPS, iterations=10, queries=2)
    assert found.right.sum() < alone.right.sum()


@NORMS
def test_queries_are_the_passes_of_the_model(norm, plain, test_set):
    passes = []

    def count(module, inputs, output):
        passes.append(3 if inputs[0].requires_grad else 1)

    handle = plain.register_forward_hook(count)
    try:
        for number in range(3):
            images, labels = (each[number : number + 1] for each in test_set)
            for eps in (1e-4, 0.8 * HARD[norm], EPS if norm == "linf" else 1.0):
                passes.clear()
                effort = {"iterations": 4, "queries": 9, "norm": norm, "surrogates": [fitted(1)]}
                effort |= {"auto_iterations": 6} if number else {}
                found = worst_case(plain, images, labels, eps=eps, generator=generator(), **effort)
                assert found.queries.item() == sum(passes)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("size", "dtype", "norm", "eps", "first"),
    [
        (160, torch.float32, "l2", 2.0, "APGD-CE"),
        (16, torch.float16, "linf", 2.51 / 255, "PGD"),
    ],
)
def test_no_attack_fails_by_rounding_alone(size, dtype, norm, eps, first):
    weight = F.normalize(torch.randn(3, size, size, generator=generator(1)), dim=(0, 1, 2))
    images = 0.1 + 0.8 * torch.rand(16, *weight.shape, generator=generator(2))
    images -= weight * ((images - 0.5) * weight).sum(dim=(1, 2, 3), keepdim=True)  # so that the bias alone decides
    bias = 0.9 * eps * (weight.abs().sum().item() if norm == "linf" else 1)  # falls at 0.9 ε
    model, images, labels = Linear(weight, bias).to(dtype), images.to(dtype), torch.zeros(16, dtype=torch.long)
    found = worst_case(model, images, labels, eps=eps, norm=norm, iterations=20, queries=2, restarts=1)
    assert set(found.felled_by) == {first}


def test_what_is_wrong_already_costs_one_query(plain, test_set):
    images, labels = test_set
    found = worst_case(plain, images, 1 - labels, eps=1e-4, iterations=1, queries=2)
    clean = np.array(found.felled_by) == "clean"
    assert clean.any() and torch.equal(found.images[clean], images[clean]) and set(found.queries[clean].tolist()) == {1}
    assert torch.equal(worst_case(plain, images, labels, eps=0, iterations=1, queries=2).images, images)


def test_worse_is_misclassified_first():
    wrong, value = torch.tensor([True, False, True, False]), torch.tensor([1.0, 9.0, 3.0, 2.0])
    than_wrong, than_value = torch.tensor([False, True, True, False]), torch.tensor([9.0, 1.0, 2.0, 2.0])
    assert worse(wrong, value, than_wrong, than_value).tolist() == [True, False, True, False]


METHODS = {
    "apgd": lambda m, x, y: apgd(m, x, y, eps=0.1, iterations=3),
    "fmn": lambda m, x, y: fmn(m, x, y, iterations=3),
    "smallest": lambda m, x, y: smallest_eps(m, x, y, steps=1, iterations=2),
    "suite": lambda m, x, y: worst_case(m, x, y, eps=0.1, iterations=2, queries=3).images,
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every
def test_the_model_is_left_as_found(method, model, images, labels):
    model.train()
    model[1].eval()
    model[4].requires_grad_(False)

    def state():
        flags = [[m.training for m in model.modules()], [(p.requires_grad, p.grad) for p in model.parameters()]]
        return flags, [tensor.clone() for tensor in model.state_dict().values()]

    (flags, tensors), _ = state(), method(model, images, labels)
    assert state()[0] == flags and all(torch.equal(a, b) for a, b in zip(state()[1], tensors, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every
def test_works_where_gradients_are_off(method, mode, model, images):
    labels = logits(model, images).argmax(dim=1)
    torch.manual_seed(0)
    expected = method(model, images, labels)
    torch.manual_seed(0)
    with mode():
        found = method(model, images.clone(), labels.clone())
    assert torch.equal(found, expected)


class Broken(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] * math.nan


@every
def test_bad_inputs_are_named(method, model, images, labels):
    for m, x, y, message in (
        (model, images * 255, labels, r"\[0, 1\], found values from"),
        (model, images, labels.float(), "torch.float32"),
        (model, images, labels + 1, "0…2 .*found 1…3"),
        (Broken(), images, labels, "not finite"),
        (Before(model, factor=torch.ones(1, 1, 1)), images, labels, r"logits \[B, classes\], found"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 1)), images, 0 * labels, "two classes|no gradient"),
    )[: 5 if method is METHODS["apgd"] else 6]:
        with pytest.raises(ValueError, match=message):
            method(m, x, y)


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        (apgd, {"eps": 8}, "such as 6/255, found 8"),
        (apgd, {"eps": -1, "norm": "l2"}, "at least 0, a length in L2, found -1"),
        (apgd, {"norm": "l1"}, "found 'l1'"),
        (apgd, {"start": "gaussian"}, "found 'gaussian'"),
        (apgd, {"loss": "dlr"}, "found 'dlr'"),
        (apgd, {"iterations": 0}, "iterations must .* found 0"),
        (worst_case, {"eps": math.nan}, "found nan"),
        (worst_case, {"restarts": 0}, "restarts must .* found 0"),
        (worst_case, {"auto_iterations": 0}, "auto_iterations must .* found 0"),
        (worst_case, {"queries": 1}, "queries must .* found 1"),
        (worst_case, {"batch_size": 0}, "batch_size must .* found 0"),
        (worst_case, {"norm": 2}, "found 2"),
        (smallest_eps, {"most": 0}, r"lie in \(0, 1\].* found 0"),
        (smallest_eps, {"steps": -1}, "steps must .* found -1"),
        (fmn, {"norm": "linfty"}, "found 'linfty'"),
        (fmn, {"iterations": True}, "iterations must .* found True"),
    ],
)
def test_budgets_without_meaning_are_refused(method, changed, message, model, images, labels):
    budget = {"eps": 0.1} if method in (apgd, worst_case) else {}
    with pytest.raises(ValueError, match=message):
        method(model, images, labels, **budget | changed)
