"""Domain assimilation: identity at the start, bounded colours, the GLCM loss against loops, attacks from end to end."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpatlib import attacks, data, models
from hpatlib.assimilation import (
    RANGES,
    Assimilated,
    GLCMLoss,
    Objective,
    Repaint,
    Replicated,
    channel_spread,
    grayscale,
    repaint_at_random,
)
from hpatlib.glcm import FEATURES, texture_features
from hpatlib.training import Recipe, fit

SMALL = GLCMLoss(window=16)  # 2 × 2 windows at 32 px


def grey(count: int = 4, size: int = 32) -> torch.Tensor:
    """Bright squares on black, every other image with noise in the square: pixels at both ends of the range."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 1, size, size)
    images[:, :, 6:-6, 6:-6] = 1
    images[::2, :, 8:-8, 8:-8] = torch.rand(len(images[::2]), 1, size - 16, size - 16, generator=generator)
    return images


@pytest.fixture
def small() -> Assimilated:
    """An assembled network in eval mode, T and C as they start."""
    torch.manual_seed(0)
    return Assimilated(models.build("simple_cnn", 2, weights="scratch")).eval()


def stirred(module: nn.Module, std: float = 1.0) -> nn.Module:
    """The module with last convolutions that no longer do nothing."""
    generator = torch.Generator().manual_seed(1)
    for repaint in (part for part in module.modules() if isinstance(part, Repaint)):
        with torch.no_grad():
            repaint.propose[-1].weight.normal_(std=std, generator=generator)
            repaint.propose[-1].bias.normal_(std=std, generator=generator)
    return module


def test_grayscale_weighs_the_channels():
    colours = torch.eye(3)[:, :, None, None]
    torch.testing.assert_close(grayscale(colours).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    images = grey()
    torch.testing.assert_close(grayscale(images.expand(-1, 3, -1, -1)), images)
    with pytest.raises(ValueError, match=r"found \[4, 1, 32, 32\]"):
        grayscale(images)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_starts_as_the_backbone_on_the_grey_image(name):
    torch.manual_seed(0)
    network = models.build(name, 2, weights="scratch").eval()
    with torch.no_grad():
        found = Assimilated(network)(grey())
        torch.testing.assert_close(found, network(grey().repeat(1, 3, 1, 1)), atol=1e-6, rtol=0)
        torch.testing.assert_close(found, Replicated(network)(grey()), atol=1e-6, rtol=0)


def test_parameter_counts_are_the_documented_ones(small):
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (small.texture, small.colour)]
    assert counts == [2625, 2915] and sum(counts) == 5540


def test_repaint_equals_its_formula():
    repaint, images = stirred(Repaint(3)), grey()
    t = 0.5 * torch.tanh(repaint.propose(2 * images - 1))
    assert t.min() < -0.1 and t.max() > 0.1
    torch.testing.assert_close(repaint(images), (1 - t.abs()) * images + t.clamp(min=0))


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50), st.floats(0, 1, width=32), st.floats(0.1, 0.9))
def test_pictures_stay_pictures_and_even_ones_even(bias, value, strength):
    repaint = stirred(Repaint(3, strength=strength))
    with torch.no_grad():
        repaint.propose[-1].bias.fill_(bias)
        made = repaint(torch.full((1, 1, 6, 6), value))
    assert made.min() >= -1e-6 and made.max() <= 1 + 1e-6
    assert (made - made[:, :, :1, :1]).abs().max() <= 1e-5
    assert (made - value).abs().max() <= strength + 1e-6


def test_no_pixel_is_hidden_from_an_attack():
    """Where a clamp would leave black and white pixels without a gradient, every pixel keeps at least 1 − strength."""
    images = grey()
    for bias in (-30.0, 30.0):  # as far towards black and towards white as the modules go
        chain = nn.Sequential(Repaint(1), Repaint(3))
        with torch.no_grad():
            for part in chain:
                part.propose[-1].bias.fill_(bias)
        x = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(chain(x).mean(dim=1).sum(), x)
        assert slope.min() >= 0.5**2 - 1e-6
        (clamped,) = torch.autograd.grad((x + math.copysign(0.5, bias)).clamp(0, 1).sum(), x)
        assert (clamped == 0).float().mean() > 0.2  # what this design avoids


@pytest.mark.parametrize("trained", [False, True])
def test_every_pixel_has_a_gradient_through_the_whole_chain(trained):
    """A linear network, so that a missing gradient can only be the modules' doing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    model = Assimilated(network)
    if trained:
        stirred(model, std=0.3)
    slope = attacks.gradient(model, grey(), torch.tensor([0, 1, 0, 1]))
    assert (slope == 0).float().mean() == 0


def test_every_parameter_of_the_start_can_be_moved(small):
    """At t = 0 the last layers have a slope, on black and on white pixels alike."""
    for value in (0.0, 1.0):
        small.zero_grad()
        small.texture(torch.full((1, 1, 8, 8), value)).sum().backward()
        assert small.texture.propose[-1].bias.grad.item() == pytest.approx(0.5 * 0.5 * 64)


@pytest.mark.parametrize("form", ["max", "mean"])
def test_loss_equals_an_explicit_loop(form):
    images = grey(3)
    pictures = stirred(Repaint(3), std=0.5)(images).detach()
    loss = GLCMLoss(form=form, window=10, distance=2, angles=4, stride=7)
    before, after = (
        texture_features(x, window=10, distance=2, angles=4, stride=7) for x in (images, grayscale(pictures))
    )
    expected = 0.0
    for b in range(3):
        sums = []
        for row in range(4):
            for column in range(4):
                total = 0.0
                for name in FEATURES:
                    for angle in range(4):
                        moved = after[name][b, angle, row, column] - before[name][b, angle, row, column]
                        total += abs(moved.item()) / RANGES[name]
                sums.append(total)
        expected += (max(sums) if form == "max" else sum(sums) / len(sums)) / 3
    assert loss(pictures, images).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["max", "mean"])
def test_loss_is_zero_for_the_same_texture_and_positive_otherwise(form, small):
    images, loss = grey(), GLCMLoss(form=form, window=16)
    assert loss(images.expand(-1, 3, -1, -1), images).item() == pytest.approx(0, abs=1e-5)
    stirred(small, std=0.3)
    value = loss(small.colour_image(images), images)
    assert 0.01 < value < 40
    value.backward()
    for part in (small.texture, small.colour):
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in part.parameters())


def test_scaled_textures_span_at_most_one():
    random = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)).round()  # black and white noise
    extremes = torch.cat([SMALL.textures(random), SMALL.textures(torch.zeros(1, 1, 32, 32))])
    assert extremes.shape == (9, 4, 40)
    spread = extremes.amax(dim=(0, 1)) - extremes.amin(dim=(0, 1))
    assert spread.max() <= 1 and spread.min() > 0.2


def test_objective_is_equation_18(small):
    stirred(small, std=0.3)
    images, labels = grey(), torch.tensor([0, 1, 0, 1])
    entropy = F.cross_entropy(small(images), labels)
    for target, held in (("C(T(x))", small.colour_image(images)), ("C(x)", small.colour(images))):
        found = Objective(alpha=0.3, texture=SMALL, target=target)(small, images, labels)[0]
        torch.testing.assert_close(found, 0.3 * entropy + 0.7 * SMALL(held, images))
    torch.testing.assert_close(Objective(alpha=1)(small, images, labels)[0], entropy)
    torch.testing.assert_close(
        Objective(alpha=0.5)(small, images, labels)[0],
        0.5 * entropy + 0.5 * GLCMLoss()(small.colour_image(images), images),
    )


def test_the_printed_target_leaves_the_texture_module_unrestrained(small):
    stirred(small, std=0.3)
    images, labels = grey(), torch.tensor([0, 1, 0, 1])
    for target, reached in (("C(T(x))", True), ("C(x)", False)):
        small.zero_grad()
        Objective(alpha=0, texture=SMALL, target=target)(small, images, labels)[0].backward()
        slope = small.texture.propose[-1].weight.grad
        assert bool(slope.abs().sum() > 0) == reached


BUDGET = {"eps": 4 / 255, "step": 1 / 255, "iterations": 3}
EVERY = {
    "fgsm": lambda *args: attacks.fgsm(*args, eps=4 / 255),
    "bim": lambda *args: attacks.bim(*args, **BUDGET),
    "mifgsm": lambda *args: attacks.mifgsm(*args, **BUDGET),
    "pgd": lambda *args: attacks.pgd(*args, **BUDGET, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("vanilla", [False, True])
def test_attacks_run_from_end_to_end(name, vanilla, small):
    model = Replicated(small.network) if vanilla else stirred(small, std=0.2)
    images, labels = grey(), torch.tensor([0, 1, 0, 1])
    attacked = EVERY[name](model, images, labels)
    assert attacked.shape == images.shape and attacked.min() >= 0 and attacked.max() <= 1
    assert 0 < (attacked - images).abs().max() <= 4 / 255 + 1e-6
    with torch.no_grad():
        assert F.cross_entropy(model(attacked), labels) > F.cross_entropy(model(images), labels)


@pytest.mark.parametrize("form", ["max", "mean"])
def test_training_lowers_the_objective(form, small):
    stirred(small, std=0.3)
    images, labels = grey(8), torch.tensor([0, 1] * 4)
    before = copy.deepcopy(small.state_dict())
    optimizer = torch.optim.Adam(small.parameters(), lr=2e-3)
    history = []
    for _ in range(8):
        loss = Objective(alpha=0.7, texture=GLCMLoss(form=form, window=16))(small, images, labels)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]
    assert all(not torch.equal(tensor, before[name]) for name, tensor in small.named_parameters())


def test_the_texture_loss_pulls_a_distorted_picture_back(small):
    """α = 0: only the texture counts, and following its gradient lowers it."""
    stirred(small, std=0.3)
    images, labels = grey(), torch.tensor([0, 1, 0, 1])
    parameters = [*small.texture.parameters(), *small.colour.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    history = []
    for _ in range(10):
        loss = Objective(alpha=0, texture=GLCMLoss(form="mean", window=16))(small, images, labels)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_bad_input_is_named(small):
    images, labels = grey(), torch.tensor([0, 1, 0, 1])
    for model in (small, Replicated(small.network)):
        with pytest.raises(ValueError, match=r"grey images.*found \[4, 3, 32, 32\]"):
            model(images.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"alpha .* found 1.5"):
        Objective(alpha=1.5)(small, images, labels)[0]
    with pytest.raises(ValueError, match=r"target .* found 'CT'"):
        Objective(alpha=0.5, target="CT")(small, images, labels)[0]
    with pytest.raises(ValueError, match=r"form .* found 'sum'"):
        GLCMLoss(form="sum")
    with pytest.raises(ValueError, match=r"found .'energy'"):
        GLCMLoss(features=("energy",))(images.repeat(1, 3, 1, 1), images)
    with pytest.raises(ValueError, match="differ in batch or size"):
        SMALL(images[:2].repeat(1, 3, 1, 1), images)
    for bad in ({"outputs": 0}, {"outputs": 3, "strength": 1.0}, {"outputs": 3, "width": 0}):
        with pytest.raises(ValueError, match="found"):
            Repaint(**bad)


# A random repaint, and a rate of its own


def assimilated() -> Assimilated:
    torch.manual_seed(0)
    return Assimilated(nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 2)))


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
def test_a_random_repaint_colours_as_much_as_it_is_told_to_and_stays(spread):
    model, images = assimilated(), torch.rand(6, 1, 24, 24)
    repaint_at_random(model, iter([images[:4], images[4:]]), spread)
    picture = model.colour_image(images)
    assert float(channel_spread(picture).mean()) == pytest.approx(spread, rel=2e-3)
    assert picture.min() >= 0 and picture.max() <= 1
    assert not any(parameter.requires_grad for parameter in model.front())
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_a_draw_that_cannot_colour_an_even_background_is_drawn_anew():
    images = torch.zeros(2, 1, 24, 24)
    images[:, :, 8:16, 8:16] = torch.rand(8, 8)
    draws = []
    for seed in range(20):
        model = assimilated()
        torch.manual_seed(seed)
        draws.append(resets := [])
        reset = model.colour.last.reset_parameters
        model.colour.last.reset_parameters = lambda resets=resets, reset=reset: (resets.append(1), reset())
        repaint_at_random(model, [images], 0.3)
        assert float(channel_spread(model.colour_image(images)).mean()) == pytest.approx(0.3, rel=2e-3)
    assert {len(resets) for resets in draws} > {1}  # some needed more than one


def test_a_spread_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"random colours spread by .* at most"):
        repaint_at_random(assimilated(), [torch.rand(2, 1, 24, 24)], 0.95, tries=5)
    with pytest.raises(ValueError, match="spread must lie between 0 and 1"):
        repaint_at_random(assimilated(), [torch.rand(2, 1, 24, 24)], 0.0)


def test_channel_spread_is_the_distance_of_the_outer_channels():
    picture = torch.zeros(2, 3, 2, 2)
    picture[0, 0], picture[0, 1], picture[1, 2, 0, 0] = 0.5, 0.25, 1.0
    assert channel_spread(picture).tolist() == [0.5, 0.25]


def test_the_front_learns_at_its_own_rate_and_the_rest_at_its_own(tmp_path):
    images, start = data.load("chest_ct", real=False, size=24, count=16, seed=0), assimilated()
    moved = {}
    for rate in (None, 1e-3, 1e-2):
        model = assimilated()
        recipe = Recipe(epochs=1, batch_size=16, lr=1e-3, front_lr=rate)
        fit(model, images, recipe, objective=Objective(alpha=1.0))
        pairs = zip(model.colour.last.parameters(), start.colour.last.parameters(), strict=True)
        colour = max((after - before).detach().abs().max().item() for after, before in pairs)
        head = (model.network[1].bias - start.network[1].bias).detach().abs().max().item()
        moved[rate] = (colour, head)
    assert moved[None] == moved[1e-3]
    assert moved[1e-2][0] == pytest.approx(10 * moved[1e-3][0], rel=1e-3)  # Adam's first step is the rate
    assert moved[1e-2][1] == pytest.approx(moved[1e-3][1])
    with pytest.raises(ValueError, match="needs a model with a front"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 2)), images, Recipe(epochs=1, front_lr=1e-2))
    with pytest.raises(ValueError, match="front_lr must be positive and finite"):
        Recipe(front_lr=0.0)


def test_a_training_with_two_rates_goes_on_where_it_stopped(tmp_path):
    images, file = data.load("chest_ct", real=False, size=24, count=16, seed=0), tmp_path / "checkpoint"
    recipe = Recipe(epochs=2, batch_size=8, lr=1e-3, front_lr=1e-2)
    whole, parts = assimilated(), assimilated()
    fit(whole, images, recipe, objective=Objective(alpha=1.0))
    fit(parts, images, replace(recipe, epochs=1), objective=Objective(alpha=1.0), checkpoint=file)
    parts = assimilated()
    assert len(fit(parts, images, recipe, objective=Objective(alpha=1.0), checkpoint=file)) == 2
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
