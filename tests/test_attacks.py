"""Pixel attacks: equal to torchattacks, inside their budget, and without a trace in the model."""

import math
from functools import partial

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpatlib.apgd import apgd
from hpatlib.attacks import bim, fgsm, gradient, mifgsm, pgd, random_restarts
from hpatlib.fmn import fmn

EPS, STEP, ITERATIONS = 8 / 255, 2 / 255, 7
ATTACKS = {
    "fgsm": partial(fgsm, eps=EPS),
    "bim": partial(bim, eps=EPS, step=STEP, iterations=ITERATIONS),
    "mifgsm": partial(mifgsm, eps=EPS, step=STEP, iterations=ITERATIONS),
    "pgd": partial(pgd, eps=EPS, step=STEP, iterations=ITERATIONS),
    "apgd": partial(apgd, eps=EPS, iterations=ITERATIONS),
    "pgd-gaussian": partial(pgd, eps=EPS, step=STEP, iterations=ITERATIONS, start="gaussian"),
}
DRAWN = (pgd, apgd)  # from a start that is drawn
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("fgsm", lambda m: torchattacks.FGSM(m, eps=EPS)),
        ("bim", lambda m: torchattacks.BIM(m, eps=EPS, alpha=STEP, steps=ITERATIONS)),
        ("mifgsm", lambda m: torchattacks.MIFGSM(m, eps=EPS, alpha=STEP, steps=ITERATIONS, decay=1.0)),
    ],
)
def test_equal_to_torchattacks(ours, theirs, model, images, labels):
    expected = theirs(model)(images, labels)
    torch.testing.assert_close(ATTACKS[ours](model, images, labels), expected, atol=1e-6, rtol=0)


def test_pgd_equals_torchattacks_from_the_same_start(model, images, labels, monkeypatch):
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(7))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(low + (high - low) * noise))
    expected = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=ITERATIONS)(images, labels)
    found = ATTACKS["pgd"](model, images, labels, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@every
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), eps=st.floats(0, 1))
def test_outputs_are_pixels_inside_the_ball(attack, seed, count, eps):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed % 1000)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    images = torch.rand(count, 1, 6, 6, generator=generator).round(decimals=1)
    found = attack(model, images, torch.randint(2, (count,), generator=generator), eps=eps)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert (found - images).abs().max() <= eps + 1e-6


@every
def test_no_budget_returns_the_input_bit_for_bit(attack, model, images, labels):
    images[0, 0, 0, 0] = 1 + 5e-8  # a legal rounding error must survive too
    assert torch.equal(attack(model, images, labels, eps=0), images)


def test_the_attacks_contain_each_other(model, images, labels):
    whole = {"eps": EPS, "step": STEP, "iterations": ITERATIONS}
    iterated = bim(model, images, labels, **whole)
    assert torch.equal(
        bim(model, images, labels, eps=EPS, step=EPS, iterations=1), fgsm(model, images, labels, eps=EPS)
    )
    assert torch.equal(pgd(model, images, labels, start=None, **whole), iterated)
    assert torch.equal(mifgsm(model, images, labels, decay=0.0, **whole), iterated)


@every
def test_each_image_is_attacked_on_its_own(attack, model, images, labels):
    attack = partial(attack, start=None) if attack.func in DRAWN else attack  # noise differs by position
    together = attack(model, images, labels)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(attack(model, images[order], labels[order]), together[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(attack(model, images[:1], labels[:1]), together[:1], atol=1e-6, rtol=0)


@every
def test_the_loss_rises_on_a_linear_model(attack, images, labels):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(model(attack(model, images, labels)), labels) > loss(model(images), labels)).all()


class Constant(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] * 0


@every
def test_zero_gradients_give_no_nan(attack, images, labels):
    found = attack(Constant(), images, labels)
    assert found.isfinite().all() and (found - images).abs().max() <= EPS + 1e-6


@pytest.mark.parametrize("attack", [ATTACKS["pgd"], ATTACKS["apgd"], fmn], ids=["pgd", "apgd", "fmn"])
def test_sums_over_many_images_fit_into_half_precision(attack):
    """Losses of 30 on 600 images, which are finite, add up to more than half precision holds."""

    class Sure(nn.Module):
        def forward(self, images):
            lead = 30 + images.flatten(1).mean(dim=1)
            return torch.stack([torch.zeros_like(lead), lead], dim=1)

    images, labels = (
        torch.rand(600, 1, 4, 4, generator=torch.Generator().manual_seed(0)).half(),
        torch.zeros(600).long(),
    )
    found = attack(Sure(), images, labels)
    assert found.dtype == torch.float16 and found.isfinite().all()


def state(model: nn.Module) -> list:
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]  # values, not the same tensor
    return [modes, flags, gradients, {name: tensor.clone() for name, tensor in model.state_dict().items()}]


def assert_same(before: list, after: list) -> None:
    assert before[:3] == after[:3]
    assert all(torch.equal(tensor, after[3][name]) for name, tensor in before[3].items())


@pytest.fixture
def mixed(model) -> nn.Module:
    model.train()
    model[1].eval()
    model[4].requires_grad_(False)
    return model


@every
def test_the_model_is_left_as_found(attack, mixed, images, labels):
    before = state(mixed)
    attack(mixed, images, labels)
    assert_same(before, state(mixed))


def test_the_model_is_left_as_found_when_it_fails(mixed, images, labels):
    before = state(mixed)
    with pytest.raises(RuntimeError):
        fgsm(mixed, images[:, :2], labels, eps=EPS)
    assert_same(before, state(mixed))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every
def test_works_where_gradients_are_off(attack, mode, model, images, labels):
    attack = partial(attack, generator=torch.Generator().manual_seed(0)) if attack.func in DRAWN else attack
    with mode():
        found = attack(model, images.clone(), labels)
    if attack.func not in DRAWN:
        assert torch.equal(found, attack(model, images, labels))
    assert (found - images).abs().max() > 0


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_a_generator_decides_the_start(start, model, images, labels):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return pgd(model, images, labels, eps=EPS, step=1e-12, iterations=1, start=start, generator=generator)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    size = (run(1) - images).abs().max()
    assert size <= EPS + 1e-6 if start == "uniform" else size < 0.006


class Broken(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] * float("nan")


BAD = {
    "range": (lambda x, y: (x * 255, y), r"\[0, 1\], found values from"),
    "negative": (lambda x, y: (x - 0.1, y), r"\[0, 1\], found values from -"),
    "nan": (lambda x, y: (x * float("nan"), y), "found values from nan"),
    "infinite": (lambda x, y: (x / 0, y), "inf"),
    "bytes": (lambda x, y: ((x * 255).byte(), y), "torch.uint8"),
    "no batch": (lambda x, y: (x[0], y), r"\[3, 16, 16\]"),
    "no tensor": (lambda x, y: (x.numpy(), y), "ndarray"),
    "empty": (lambda x, y: (x[:0], y[:0]), "at least one"),
    "float labels": (lambda x, y: (x, y.float()), "torch.float32"),
    "too few labels": (lambda x, y: (x, y[:4]), r"\[4\]"),
    "label too large": (lambda x, y: (x, y + 1), "0…2 .*found 1…3"),
    "label negative": (lambda x, y: (x, y - 1), "found -1…1"),
}


@every
@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_inputs_are_named(attack, spoil, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        attack(model, *spoil(images, labels))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": -0.1}, "found -0.1"),
        ({"eps": 8}, "such as 6/255, found 8"),
        ({"eps": float("nan")}, "found nan"),
        ({"step": -1}, "step must"),
        ({"step": 0}, "step is 0"),
        ({"iterations": 0}, "found 0"),
        ({"iterations": 2.5}, "found 2.5"),
        ({"iterations": True}, "found True"),
        ({"iterations": None}, "found None"),
        ({"eps": "x"}, "eps must .* found 'x'"),
        ({"eps": None}, "eps must .* found None"),
        ({"step": True}, "step must .* found True"),
        ({"start": "normal"}, "found 'normal'"),
        ({"loss": "hinge"}, "found 'hinge'"),
        ({"loss": nn.CrossEntropyLoss()}, r"a value an image, \[6\], found \[\]"),
    ],
)
def test_budgets_without_meaning_are_refused(changed, message, model, images, labels):
    budget = {"eps": EPS, "step": STEP, "iterations": 2} | changed
    with pytest.raises(ValueError, match=message):
        pgd(model, images, labels, **budget)


def test_a_step_that_is_not_given_can_reach_the_edge_of_the_ball(model, images, labels):
    for attack in (partial(pgd, start=None), partial(random_restarts, restarts=1)):
        expected = attack(model, images, labels, eps=EPS, step=2.5 * EPS / 4, iterations=4)
        assert torch.equal(attack(model, images, labels, eps=EPS, iterations=4), expected)


def test_models_that_answer_nonsense_are_refused(images, labels):
    with pytest.raises(ValueError, match=r"logits \[B, classes\], found \[6, 3, 16, 16\]"):
        fgsm(nn.Identity(), images, labels, eps=EPS)
    with pytest.raises(ValueError, match="not finite"):
        fgsm(Broken(), images, labels, eps=EPS)


LOSSES = {"restarts": partial(random_restarts, eps=EPS, step=STEP, iterations=3, restarts=1)} | ATTACKS
ascending = pytest.mark.parametrize("attack", LOSSES.values(), ids=LOSSES.keys())


@ascending
def test_a_loss_of_ones_own_may_be_the_default(attack, model, images, labels):
    def run(**options):
        torch.manual_seed(3)
        return attack(model, images, labels, **options)

    own = partial(F.cross_entropy, reduction="none")
    assert torch.equal(run(loss=own), run()) and torch.equal(run(loss="cross-entropy"), run())
    assert not torch.equal(run(loss="margin"), run())


def test_the_margin_of_a_linear_model_rises_along_a_difference_of_its_rows(images, labels):
    torch.manual_seed(4)
    layer = nn.Linear(768, 3)
    model, z = nn.Sequential(nn.Flatten(), layer), layer(images.flatten(1))
    best = [max({0, 1, 2} - {y}, key=lambda k, n=n: z[n, k].item()) for n, y in enumerate(labels.tolist())]
    slope = (layer.weight[best] - layer.weight[labels]).detach().view_as(images)
    torch.testing.assert_close(gradient(model, images, labels, loss="margin"), slope)
    expected = (images + EPS * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, images, labels, eps=EPS, loss="margin"), expected)


@ascending
def test_the_margin_moves_where_the_cross_entropy_is_saturated(attack, model, images):
    class Loud(nn.Module):
        def forward(self, images):
            return 1e6 * model(images)

    labels = model(images).argmax(dim=1)  # all right, and each cross-entropy exactly 0
    assert (gradient(Loud(), images, labels) == 0).all()
    moved = attack(Loud(), images, labels, loss="margin")
    torch.manual_seed(0)

    def gap(x):
        z = model(x)
        return z.gather(1, labels[:, None])[:, 0] - z.scatter(1, labels[:, None], -math.inf).amax(dim=1)

    assert (gap(moved) < gap(images)).all()


def test_restarts_under_a_margin_are_never_weaker_than_one_run(model, images, labels):
    def gap(restarts):
        random = torch.Generator().manual_seed(0)
        effort = {"eps": EPS, "step": EPS, "iterations": 2, "restarts": restarts, "generator": random}
        z = model(random_restarts(model, images, labels, loss="margin", **effort))
        return z.gather(1, labels[:, None])[:, 0] - z.scatter(1, labels[:, None], -math.inf).amax(dim=1)

    assert (gap(4) <= gap(1) + 1e-6).all()
