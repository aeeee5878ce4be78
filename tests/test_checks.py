"""Square attack, random restarts and the checks: strong, honest, and raised by models that mask their gradients."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpatlib.attacks import bim, pgd, random_restarts
from hpatlib.checks import CHECKS, Evidence, gather, verdicts
from hpatlib.measure import logits
from hpatlib.square import _side, square

EPS = 0.05  # the test images' grey levels are multiples of it


def gratings(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Faint stripes across or along, under noise: ``[N, 1, 16, 16]`` and which of the two."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    phase = torch.rand(count, 1, 1, generator=random) * 2 * math.pi
    across = 0.5 + 0.12 * torch.sin(torch.arange(16.0) * math.pi / 3 + phase).expand(-1, 16, -1)
    images = torch.where((labels == 0).view(-1, 1, 1), across, across.transpose(1, 2))
    noisy = images + 0.1 * torch.randn(images.shape, generator=random)
    return (noisy.clamp(0, 1) / EPS).round().mul(EPS).clamp(max=1).unsqueeze(1), labels


def fitted(seed: int) -> nn.Module:
    """Random filters and a ridge regression on them: a real classifier after a tenth of a second."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    ).extend([nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 2)])
    images, labels = gratings(512, seed)
    with torch.no_grad():
        features = model[:-1](images).double()
        centre = features.mean(dim=0)
        spread = (features - centre).T @ (features - centre) / len(images)
        target = F.one_hot(labels).double() * 2 - 1
        weight = torch.linalg.solve(spread + 1e-6 * torch.eye(64), (features - centre).T @ target / len(images)).T
        model[-1].weight.copy_(5 * weight)
        model[-1].bias.copy_(-5 * weight @ centre)
    return model.eval()


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fitted(0)


@pytest.fixture(scope="module")
def surrogate() -> nn.Module:
    return fitted(1)


@pytest.fixture(scope="module")
def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    return gratings(48, 7)


class Before(nn.Module):
    """``model`` behind a stage of pixels, and its logits behind a factor."""

    def __init__(self, model, stage=lambda x: x, factor=1.0):
        super().__init__()
        self.model, self.stage, self.factor = model, stage, factor

    def forward(self, images):
        return self.factor * self.model(self.stage(images))


class Cut(Before):
    def forward(self, images):
        return super().forward(images).detach()


class Unrecorded(Before):
    @torch.inference_mode()
    def forward(self, images):
        return super().forward(images)


def accuracy(model, images, labels):
    return (logits(model, images).argmax(dim=1) == labels).double().mean().item()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Square attack


def test_square_is_as_strong_as_torchattacks(plain, test_set):
    images, labels = test_set
    budget = 0.3 * EPS
    ours = square(plain, images, labels, eps=budget, queries=300, generator=generator())
    theirs = torchattacks.Square(plain, eps=budget, n_queries=300)(images, labels)
    assert 0 < accuracy(plain, ours, labels) <= accuracy(plain, theirs, labels) + 0.05
    assert accuracy(plain, images, labels) > 0.95


@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
def test_more_queries_are_never_weaker(loss, plain, test_set):
    images, labels = test_set

    def goal(x):
        own, other = logits(plain, x).gather(1, torch.stack([labels, 1 - labels], dim=1)).unbind(dim=1)
        return own - other  # with two classes the cross-entropy falls as this rises: one order for both losses

    budget = {"eps": 0.3 * EPS, "loss": loss}
    found = {q: goal(square(plain, images, labels, queries=q, generator=generator(), **budget)) for q in (2, 30, 200)}
    assert (found[2] <= goal(images)).all() and (found[30] <= found[2]).all()  # one seed, one first guess
    assert (found[200] <= found[2]).all() and found[200].mean() < found[30].mean() < found[2].mean()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    eps=st.floats(0, 1),
    queries=st.integers(2, 30),
    shape=st.sampled_from([(1, 1, 6, 6), (3, 3, 5, 9), (2, 1, 1, 4)]),
    loss=st.sampled_from(["margin", "cross-entropy"]),
)
def test_square_gives_pixels_inside_the_ball(seed, eps, queries, shape, loss):
    torch.manual_seed(seed % 1000)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape[1:]), 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(shape, generator=generator(seed)).round(decimals=1)
    labels = torch.randint(3, shape[:1], generator=generator(seed))
    found = square(model, images, labels, eps=eps, queries=queries, loss=loss, generator=generator(seed))
    assert found.shape == images.shape and found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert (found - images).abs().max() <= eps + 1e-6
    again = square(model, images, labels, eps=eps, queries=queries, loss=loss, generator=generator(seed))
    assert torch.equal(found, again)


def test_square_spends_its_queries_and_no_more(plain, test_set):
    images, labels = test_set
    passes = []
    handle = plain.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    square(plain, images, labels, eps=1e-4, queries=20, generator=generator())  # hopeless: nobody drops out
    handle.remove()
    assert passes == [48] * 20


def test_square_leaves_the_misclassified_alone(plain, test_set):
    images, labels = test_set
    found = square(plain, images, 1 - labels, eps=EPS, queries=50, generator=generator())
    wrong = logits(plain, images).argmax(dim=1) == labels  # nearly all, asked about the other class
    assert wrong.any() and torch.equal(found[wrong], images[wrong])


def test_square_shrinks_on_the_published_schedule():
    # p = 0.8 of 100 × 100 px, halved after 10, 50, 200, … of 10 000 iterations.
    sides = [_side(0.8, iteration / 10_000, 100, 100) for iteration in (0, 10, 11, 51, 201, 501, 1001, 9000)]
    assert sides == [round(100 * math.sqrt(0.8 / 2**k)) for k in (0, 0, 1, 2, 3, 4, 5, 9)]
    assert _side(0.8, 0.99, 4, 4) == 1 and _side(1.0, 0.0, 2, 50) == 2


# PGD with restarts


def test_restarts_keep_the_worst_of_each_image(plain, test_set):
    images, labels = test_set
    whole = {"eps": 0.3 * EPS, "step": 0.2 * EPS, "iterations": 3}
    random = generator(3)
    runs = [bim(plain, images, labels, **whole)]
    runs += [pgd(plain, images, labels, generator=random, **whole) for _ in range(3)]
    loss = torch.stack([F.cross_entropy(logits(plain, run), labels, reduction="none") for run in runs])  # [4, B]
    found = random_restarts(plain, images, labels, restarts=4, generator=generator(3), **whole)
    torch.testing.assert_close(F.cross_entropy(logits(plain, found), labels, reduction="none"), loss.amax(dim=0))
    assert len(loss.argmax(dim=0).unique()) > 1
    assert torch.equal(random_restarts(plain, images, labels, restarts=1, **whole), runs[0])


class Ends(nn.Module):
    """Three classes by the sign of the pixel's change: up is a higher loss but right, down is a lower loss but wrong"""

    def forward(self, images):
        shares = torch.where(
            images.flatten(1)[:, :1] > 0.5, torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.45, 0.55, 0])
        )
        return shares.clamp_min(1e-9).log() + 0 * images.flatten(1)[:, :1]


def test_restarts_prefer_misclassified_to_a_higher_loss():
    images, labels = torch.full((20, 1, 1, 1), 0.5 + 1e-6), torch.zeros(20, dtype=torch.long)
    still = {"eps": 0.1, "step": 1e-12, "iterations": 1}
    found = random_restarts(Ends(), images, labels, **still, restarts=8, generator=generator())
    assert (logits(Ends(), found).argmax(dim=1) != labels).double().mean() > 0.9


# The checks


def waves(depth: float, period: float):
    """x + depth · sin(2π x / period) · period / 2π: right slopes at multiples of the period, wrong ones between."""
    return lambda x: x + depth * period / math.tau * torch.sin(math.tau / period * x)


MASKED = {
    "rounded pixels": (
        lambda model: Before(model, lambda x: (16 * x).round() / 16),
        {},
        {"zero gradients", "transfer beats white-box", "gradient-free beats gradient"},
    ),
    "huge logits": (
        lambda model: Before(model, factor=1e4),
        {},
        {"zero gradients", "transfer beats white-box", "gradient-free beats gradient"},
    ),
    "rugged loss": (
        lambda model: Before(model, waves(3, EPS / 4)),
        {"iterations": 20},
        {"transfer beats white-box", "gradient-free beats gradient", "one step beats iterated"},
    ),
    # One step of the whole budget: from a quarter of a period it reaches a crest, a whole period is lost on it.
    "overshooting": (lambda model: Before(model, waves(8, EPS)), {"iterations": 1, "restarts": 1}, {"rises with ε"}),
}
MASKED |= {
    # The gradient is cut altogether: a sign to report like any other, not an error.
    "detached": (
        lambda model: Cut(model),
        {},
        {"zero gradients", "gradient-free beats gradient", "transfer beats white-box"},
    ),
}
EFFORT = {"eps": EPS, "iterations": 10, "restarts": 2, "queries": 120}


@pytest.mark.parametrize(("mask", "effort", "expected"), MASKED.values(), ids=MASKED.keys())
def test_masked_gradients_raise_their_checks(mask, effort, expected, plain, surrogate, test_set):
    table = verdicts(gather(mask(plain), surrogate, *test_set, **EFFORT | effort))
    assert set(table["check"][table["verdict"] == "raised"]) == expected


def test_an_honest_model_raises_none(plain, surrogate, test_set):
    for eps in (0.2 * EPS, EPS):
        table = verdicts(gather(plain, surrogate, *test_set, **EFFORT | {"eps": eps}))
        assert set(table["verdict"]) == {"not raised"}
    assert (table["value_low"] <= table["value"]).all() and (table["value"] <= table["value_high"]).all()
    assert (table["n"] == 48).all() and list(table["check"]) == [check.name for check in CHECKS]


def test_the_same_seed_gives_the_same_table(plain, surrogate, test_set):
    images, labels = (tensor[:16] for tensor in test_set)
    effort = EFFORT | {"queries": 20, "iterations": 2}
    first, second = (gather(plain, surrogate, images, labels, **effort, seed=3) for _ in range(2))
    for field in dataclasses.fields(Evidence):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name
    assert first.budgets == (0.25 * EPS, 0.5 * EPS, EPS, 2 * EPS, 0.5) and first.by_budget.shape == (16, 5)
    assert np.array_equal(first.pgd, first.by_budget[:, 2])


def evidence(**changed) -> Evidence:
    """Twenty images of an honest model: everything falls, and all is wrong at the end."""
    rates = np.linspace(0, 1, 20, endpoint=False)[:, None]
    by_budget = (rates < np.array([0.9, 0.6, 0.0])).astype(float)
    whole = {"labels": np.arange(20) % 2, "zero_gradient": np.zeros(20), "budgets": (0.1, 0.2, 0.5)}
    whole |= {"pgd": by_budget[:, 1], "fgsm": by_budget[:, 0], "transfer": by_budget[:, 0], "square": by_budget[:, 0]}
    return Evidence(**whole | {"by_budget": by_budget} | changed)


ALL, NONE = np.ones(20), np.zeros(20)
SIGNS = {
    "zero gradients": {"zero_gradient": ALL},
    "rises with ε": {"by_budget": np.stack([ALL, NONE, np.arange(20) < 10], axis=1)},
    "survives grey": {"by_budget": np.stack([ALL, ALL, ALL], axis=1)},
    "transfer beats white-box": {"transfer": NONE},
    "gradient-free beats gradient": {"square": NONE},
    "one step beats iterated": {"fgsm": NONE},
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_raises_its_own_check(name):
    assert set(verdicts(evidence())["verdict"]) == {"not raised"}
    table = verdicts(evidence(**SIGNS[name])).set_index("check")
    assert table["verdict"][name] == "raised" and (table["verdict"] == "raised").sum() == 1


def test_the_values_are_what_they_say():
    one = np.arange(20) == 0
    table = verdicts(evidence(zero_gradient=one.astype(float), **SIGNS["rises with ε"])).set_index("check")
    assert table["value"]["zero gradients"] == 0.05 and table["verdict"]["zero gradients"] == "unclear"
    assert table["value"]["rises with ε"] == 0.5  # from the second budget to the third
    assert table["value"]["survives grey"] == 0 and table["value"]["one step beats iterated"] == pytest.approx(-0.3)


def test_intervals_count_groups_of_images_that_belong_together():
    right = np.repeat([1.0, 0.0], [12, 8])
    single = verdicts(evidence(zero_gradient=right)).iloc[0]
    pairs = verdicts(evidence(zero_gradient=right), np.arange(20) // 2).iloc[0]
    error = right.std(ddof=1) / math.sqrt(20)  # the mean's, of twenty images; pairs that agree are ten
    widths = [(row["value_high"] - row["value_low"]) / 2 for row in (single, pairs)]
    assert single["value"] == pairs["value"] == pytest.approx(0.6) and single["n"] == 20
    assert widths[0] == pytest.approx(2.09 * error, rel=0.05) and widths[1] > 1.4 * widths[0]


def test_each_check_says_what_to_do():
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 6
    for check in CHECKS:
        assert check.explanation.endswith(".") and check.advice.endswith(".") and not check.raised_if.endswith(".")


def state(model: nn.Module) -> list:
    return [
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad is not None) for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()],
        [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
    ]


def test_the_models_are_left_as_found(model, images, labels):
    model.train()
    model[1].eval()
    model[4].requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = state(model)
    gather(model, model, images, labels, eps=0.1, iterations=1, restarts=2, queries=4)
    after = state(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2] + before[3], after[2] + after[3], strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode, model, images, labels):
    effort = {"eps": 0.1, "iterations": 2, "restarts": 2, "queries": 5}
    expected = verdicts(gather(model, model, images, labels, **effort))
    with mode():
        found = verdicts(gather(model, model, images.clone(), labels.clone(), **effort))
    assert found.equals(expected)


class Broken(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] * float("nan")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": -0.1}, "found -0.1"),
        ({"eps": 8}, "such as 6/255, found 8"),
        ({"queries": 1}, "at least 2, found 1"),
        ({"queries": 2.5}, "found 2.5"),
        ({"loss": "hinge"}, "found 'hinge'"),
        ({"p": 0}, "share of the image, found 0"),
    ],
)
def test_square_names_bad_budgets(changed, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        square(model, images, labels, **{"eps": 0.1, "queries": 5} | changed)


@pytest.mark.parametrize("cut", [Cut, Unrecorded])
def test_a_cut_gradient_is_reported_and_a_cut_surrogate_refused(cut, model, images, labels):
    effort = {"eps": 0.1, "iterations": 1, "restarts": 2, "queries": 4}
    assert (gather(cut(model), model, images, labels, **effort).zero_gradient == 1).all()
    with pytest.raises(ValueError, match="no gradient"):
        gather(model, cut(model), images, labels, **effort)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": "x"}, "found 'x'"),
        ({"iterations": 0}, "iterations must .* found 0"),
        ({"restarts": True}, "restarts must .* found True"),
        ({"queries": 1}, "queries must .* found 1"),
        ({"batch_size": 0}, "batch_size must .* found 0"),
        ({"seed": None}, "seed must .* found None"),
    ],
)
def test_an_effort_without_meaning_is_refused(changed, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        gather(model, model, images, labels, **{"eps": 0.1} | changed)


def test_numpys_numbers_are_an_effort(model, images, labels):
    effort = {"iterations": 1, "restarts": 2, "queries": 4, "batch_size": 4, "seed": 3}
    found = gather(model, model, images, labels, eps=np.float64(0.1), **{k: np.int64(v) for k, v in effort.items()})
    expected = gather(model, model, images, labels, eps=0.1, **effort)
    assert verdicts(found).equals(verdicts(expected)) and found.budgets == expected.budgets


def test_both_models_must_answer_with_logits(model, images, labels):
    class Pair(nn.Module):
        def forward(self, images):
            return model(images), None

    for one, other in ((Pair(), model), (model, Pair())):
        with pytest.raises(ValueError, match="found a tuple"):
            gather(one, other, images, labels, eps=0.1)


def test_square_takes_a_loss_of_ones_own(model, images, labels):
    def run(loss):
        return square(model, images, labels, eps=0.05, queries=30, loss=loss, generator=generator())

    def own(logits, labels):
        return -logits.gather(1, labels[:, None])[:, 0]

    assert torch.equal(run(lambda z, y: F.cross_entropy(z, y, reduction="none")), run("cross-entropy"))
    lowered = logits(model, run(own)).gather(1, labels[:, None]) <= logits(model, images).gather(1, labels[:, None])
    right = (logits(model, run(own)).argmax(dim=1) == labels)[:, None]
    assert (lowered | ~right).all()


def test_bad_inputs_are_named(model, images, labels):
    with pytest.raises(ValueError, match=r"\[0, 1\], found values from"):
        square(model, images * 255, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"0…2 .*found 1…3"):
        square(model, images, labels + 1, eps=0.1)
    with pytest.raises(ValueError, match="logits are not finite"):
        square(Broken(), images, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"\[0, 1\], found values from"):
        gather(model, model, images - 1, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"\(0, 0.5\).*found 0.5"):
        gather(model, model, images, labels, eps=0.5)
    with pytest.raises(ValueError, match=r"\(0, 0.5\).*found 0"):
        gather(model, model, images, labels, eps=0)
    two = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    with pytest.raises(ValueError, match=r"0…1 .the model has 2 classes"):
        gather(model, two, images, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"restarts must be .* found 0"):
        random_restarts(model, images, labels, eps=0.1, step=0.1, iterations=1, restarts=0)


def test_no_budget_returns_the_input_bit_for_bit(model, images, labels):
    assert torch.equal(square(model, images, labels, eps=0), images)
    assert torch.equal(random_restarts(model, images, labels, eps=0, step=0.1, iterations=1, restarts=2), images)
