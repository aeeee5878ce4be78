"""Transforms and searches: slicing, rot90, scipy and brute force as oracles."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import affine_transform
from scipy.stats import qmc
from torch.nn import functional as F

from hpatlib import hybrid
from hpatlib.spatial import (
    Box,
    Search,
    direct_search,
    gradient_ascent,
    grid_search,
    local_search,
    log_odds,
    random_search,
    sobol_points,
    transform,
)
from hpatlib.stbo import stbo

close = {"atol": 1e-5, "rtol": 0}


def moved(images: torch.Tensor, *s: float) -> torch.Tensor:
    return transform(images, torch.tensor(s, dtype=torch.float64).expand(len(images), 3))


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 0), (-2, 0), (0, 4), (0, -1), (5, -7)])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 48)])
def test_whole_pixels_equal_slicing(right, down, size):
    images = torch.rand(2, 3, *size)
    height, width = size
    expected = torch.zeros_like(images)
    to_y, to_x = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    from_y, from_x = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    expected[..., to_y, to_x] = images[..., from_y, from_x]
    torch.testing.assert_close(moved(images, right, down, 0), expected, **close)


@pytest.mark.parametrize("turns", [-2, -1, 1, 2])
@pytest.mark.parametrize("size", [15, 32, 64])
def test_quarter_turns_equal_rot90_counter_clockwise(turns, size):
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(moved(images, 0, 0, 90 * turns), torch.rot90(images, turns, (2, 3)), **close)


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-180, 180), st.sampled_from([(16, 16), (12, 20)]))
def test_any_transform_equals_scipy(right, down, degrees, size):
    """Equation 4 about the centre: p' = R p + t, y down, sampled through its inverse."""
    image = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = math.radians(degrees)
    # (row, column) offsets: counter-clockwise as displayed is clockwise where rows point down.
    rotation = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    inverse, centre = rotation.T, (np.array(size) - 1) / 2
    offset = centre - inverse @ (centre + np.array([down, right]))
    padded = np.pad(image.numpy(), 1)  # scipy cuts off hard at the border, grid_sample fades to the zeros outside
    expected = affine_transform(padded, inverse, offset + 1 - inverse @ [1, 1], order=1, mode="constant")[1:-1, 1:-1]
    np.testing.assert_allclose(moved(image[None, None], right, down, degrees)[0, 0], expected, atol=1e-6)


def test_rotates_first_then_translates():
    image = torch.zeros(1, 1, 17, 17)
    image[..., 8, 12] = 1  # four pixels right of the centre
    found = moved(image, 2, 0, 90)  # turned up, then moved right
    assert found[..., 4, 10].item() == pytest.approx(1, abs=1e-5)


pixels = arrays(np.float32, (2, 1, 9, 9), elements=st.floats(0, 1, width=32))


@settings(max_examples=40, deadline=None)
@given(pixels, pixels, st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.floats(-180, 180)))
def test_linear_and_never_larger(x, z, s):
    x, z = torch.from_numpy(x), torch.from_numpy(z)
    difference = moved(x, *s) - moved(z, *s)
    torch.testing.assert_close(moved(x - z, *s), difference, **close)
    assert difference.abs().max() <= (x - z).abs().max() + 1e-5
    assert moved(x, *s).min() >= 0 and moved(x, *s).max() <= 1 + 1e-5


def test_each_image_has_a_transform_of_its_own():
    images, s = torch.rand(3, 3, 16, 16), torch.tensor([[1.0, 2, 10], [0, 0, 0], [-3, 0.5, -90]])
    together = transform(images, s)
    for n in range(3):
        torch.testing.assert_close(together[n : n + 1], transform(images[n : n + 1], s[n : n + 1]))
    torch.testing.assert_close(together[1], images[1], atol=1e-6, rtol=0)


def test_differentiable_in_the_image_and_the_transform():
    images = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    s = torch.tensor([[0.3, -0.2, 7.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform, (images, s))


def test_boxes():
    box = Box(3, 30)
    assert box.place(torch.tensor([0.5, 0.5, 0.5])).tolist() == [0, 0, 0]
    assert box.place(torch.tensor([0.0, 1.0, 1.0])).tolist() == [-3, 3, 30]
    assert Box(0, 180).spans_circle and not box.spans_circle
    for bad in ((-1, 30), (3, 181), (3, -1), (float("nan"), 0)):
        with pytest.raises(ValueError, match="found"):
            Box(*bad)


def test_grid_search_equals_brute_force(model, images, labels):
    found = grid_search(model, images, labels, Box(2, 30), counts=(3, 2, 3))
    points = [(x, y, a) for x in (-2, 0, 2) for y in (-2, 2) for a in (-30, 0, 30)]
    losses = torch.stack([F.cross_entropy(model(moved(images, *s)), labels, reduction="none") for s in points], dim=1)
    torch.testing.assert_close(found.loss, losses.amax(dim=1))
    torch.testing.assert_close(found.s, torch.tensor(points)[losses.argmax(dim=1)].float())
    torch.testing.assert_close(found.history, losses.cummax(dim=1).values)


def test_the_default_grid_is_engstroms_775_points_and_holds_the_untouched_image(model, images, labels):
    found = grid_search(model, images[:1], labels[:1], Box(3, 30))
    assert found.history.shape == (1, 775)
    one = grid_search(model, images, labels, Box(3, 30), counts=(1, 1, 1))
    torch.testing.assert_close(one.images, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 4, 31])
def test_a_grid_round_the_circle_asks_no_picture_twice(count, images, labels, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Search, "_answers", lambda self, unit: asked.append(self.box.place(unit)[0]) or torch.ones(6, 3)
    )
    grid_search(torch.nn.Flatten(), images, labels, Box(2, 180), counts=(1, 1, count))
    angles = torch.stack(asked)[:, 2]
    apart = (angles.unsqueeze(1) - angles + 180) % 360 - 180  # [Q, Q] on the circle
    assert len(angles) == count and angles.abs().min() < 1e-4  # not turning at all is among them
    assert (apart.abs() + 360 * torch.eye(count)).min().item() == pytest.approx(360 / count, rel=1e-3)


SEARCHES = {
    "grid": lambda *args, **options: grid_search(*args, **options, counts=(2, 2, 5)),
    "random": lambda *args, **options: random_search(
        *args, **options, evaluations=20, generator=torch.Generator().manual_seed(0)
    ),
    "sobol": lambda *args, **options: random_search(
        *args, **options, evaluations=20, sobol=True, generator=torch.Generator().manual_seed(0)
    ),
    "local": lambda *args, **options: local_search(
        *args, **options, evaluations=20, generator=torch.Generator().manual_seed(0)
    ),
    "gradient": lambda *args, **options: gradient_ascent(
        *args, **options, evaluations=20, starts=2, steps=2, generator=torch.Generator().manual_seed(0)
    ),
    "direct": lambda *args, **options: direct_search(*args, **options, evaluations=20),
    "stbo": lambda *args, **options: stbo(*args, **options, evaluations=20, generator=torch.Generator().manual_seed(0)),
}
BLIND = ("grid", "random", "sobol", "local")  # see no more of a loss than its order
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


@every
@pytest.mark.parametrize("box", [Box(2, 30), Box(2, 180), Box(0, 90), Box(3, 0)])
def test_results_fit_together(search, box, model, images, labels):
    found = search(model, images, labels, box)
    torch.testing.assert_close(found.images, transform(images, found.s))
    loss = F.cross_entropy(model(found.images), labels, reduction="none")
    torch.testing.assert_close(found.loss, loss.detach())
    assert found.history.shape == (6, 20) and torch.equal(found.history[:, -1], found.loss)
    assert (found.history.diff(dim=1) >= 0).all()
    limits = torch.tensor([box.translation, box.translation, box.rotation])
    assert (found.s.abs() <= limits + 1e-5).all()
    assert not found.images.requires_grad
    again = search(model, images, labels, box)
    assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(again).values(), strict=True))


@every
def test_searches_leave_the_model_as_found(search, model, images, labels):
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    search(model, images, labels, Box(2, 30))
    assert [module.training for module in model] == [n != 1 for n in range(len(model))]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@every
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * 255, y), "found values from"),
        (lambda x, y: (x, y.float()), "torch.float32"),
        (lambda x, y: (x, y + 1), "found 1…3"),
        (lambda x, y: (x[:0], y[:0]), "at least one"),
    ],
)
def test_bad_inputs_are_named(search, spoil, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        search(model, *spoil(images, labels), Box(2, 30))


@every
def test_a_model_that_answers_nan_is_refused(search, model, images, labels):
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        search(model, images, labels, Box(2, 30))


@every
def test_searches_may_look_for_another_loss(search, model, images, labels):
    def margin(logits, labels):
        own = F.one_hot(labels, 3).bool()
        return logits.masked_fill(own, -math.inf).amax(dim=1) - logits[own]

    searched = partial(search, model, images, labels, Box(2, 30))
    found, own, default = searched(loss="margin"), searched(loss=margin), searched()
    torch.testing.assert_close(found.loss, margin(model(found.images), labels).detach())
    assert torch.equal(found.s, own.s) and torch.equal(found.history, own.history)
    assert not torch.equal(found.history, default.history)
    if search in [SEARCHES[name] for name in BLIND]:
        same = searched(loss=partial(F.cross_entropy, reduction="none"))
        assert torch.equal(same.s, default.s) and torch.equal(same.history, default.history)


def test_shapes_and_counts_without_meaning_are_refused(model, images, labels):
    with pytest.raises(ValueError, match=r"s must be \[6, 3\].*found \[3\]"):
        transform(images, torch.zeros(3))
    with pytest.raises(ValueError, match=r"torch.uint8"):
        transform(images.byte(), torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"found \(5, 5\)"):
        grid_search(model, images, labels, Box(2, 30), counts=(5, 5))
    for evaluations in (0, 2.5):
        with pytest.raises(ValueError, match=f"found {evaluations}"):
            random_search(model, images, labels, Box(2, 30), evaluations=evaluations)


def test_log_odds_are_the_losses_order_without_their_floor():
    logits = 3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(200) % 4
    found = log_odds(logits, labels)
    wrong = 1 - logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found, wrong.logit())
    torch.testing.assert_close(F.softplus(found), F.cross_entropy(logits, labels, reduction="none"))
    sure = torch.tensor([[200.0, 0.0], [210.0, 0.0]])
    assert F.cross_entropy(sure, torch.tensor([0, 0])).item() == 0
    assert log_odds(sure, torch.tensor([0, 0])).tolist() == [-200, -210]


class Sure(torch.nn.Module):
    """Its cross-entropy is 0 in floating point everywhere, and still one place is the worst: the brightest row up."""

    def forward(self, images):
        ramp = torch.linspace(1, 0, images.shape[2]).view(1, 1, -1, 1)
        return torch.stack([300 - (images * ramp).mean(dim=(1, 2, 3)), images.new_zeros(len(images))], dim=1)


@pytest.mark.parametrize("name", ["random", "local", "gradient", "direct", "stbo"])
def test_searches_go_on_where_the_cross_entropy_is_zero(name):
    images = torch.zeros(4, 1, 16, 16)
    images[..., 6:10, 6:10] = 1
    found = SEARCHES[name](Sure(), images, torch.zeros(4).long(), Box(4, 0))
    assert (found.loss == 0).all() and (found.s[:, 1] < -2).all()  # moved up


def test_local_search_and_ascent_climb_further_than_they_started(model, images, labels):
    draws = [torch.Generator().manual_seed(0) for _ in range(3)]
    first = random_search(model, images, labels, Box(4, 60), evaluations=40, sobol=True, generator=draws[0])
    local = local_search(model, images, labels, Box(4, 60), evaluations=80, generator=draws[1])
    torch.testing.assert_close(local.history[:, :40], first.history)
    assert (local.loss > first.loss + 1e-4).float().mean() > 0.6
    climbed = gradient_ascent(model, images, labels, Box(4, 60), evaluations=104, generator=draws[2])
    torch.testing.assert_close(climbed.history[:, :40], first.history)
    assert (climbed.loss > first.loss + 1e-4).any()
    steps = climbed.history[:, 39:100].diff(dim=1).reshape(6, 20, 3)
    assert (steps[..., :2] == 0).all() and (steps[..., 2] > 0).any()  # a gradient is paid for before it tells anything
    assert (climbed.history[:, 103] > climbed.history[:, 99]).any()  # where the last step leads is looked at


def test_a_single_step_up_the_gradient_leads_somewhere():
    """From the best of 8 Sobol points up, at 3 units for the gradient and 1 for the place that it leads to."""
    images = torch.zeros(4, 1, 16, 16)
    images[..., 6:10, 6:10] = 1
    asked, draws = (Sure(), images, torch.zeros(4).long(), Box(4, 0)), torch.Generator()
    first = random_search(*asked, evaluations=8, sobol=True, generator=draws.manual_seed(0))
    found = gradient_ascent(*asked, evaluations=12, starts=1, steps=1, generator=draws.manual_seed(0))
    assert (found.s[:, 1] < first.s[:, 1]).all()


def test_ascent_reaches_the_end_of_a_slope():
    images = torch.zeros(4, 1, 16, 16)
    images[..., 6:10, 6:10] = 1
    for method, reached in ((gradient_ascent, -4), (partial(random_search, evaluations=100, sobol=True), None)):
        draws = torch.Generator().manual_seed(0)
        found = method(Sure(), images, torch.zeros(4).long(), Box(4, 0), generator=draws).s[:, 1]
        assert (found == reached).all() if reached else (found > -4).all()


def test_a_slope_is_the_difference_quotient(model, images, labels):
    model, images = model.double(), images.double()
    search = Search(model, images, labels, Box(2, 30), "cross-entropy")
    unit, h = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double(), 1e-6
    found = search.slope(unit)
    for axis, step in enumerate(h * torch.eye(3).double()):
        low, high = search.ask(torch.stack([unit - step, unit + step]))
        torch.testing.assert_close(found[:, axis], ((high - low) / (2 * h)).detach(), rtol=1e-3, atol=1e-4)
    assert len(search.history) == 3 + 6


def test_direct_search_equals_scipys_on_each_image(model, images, labels):
    from scipy.optimize import direct

    box = Box(3, 40)
    found = direct_search(model, images[:2], labels[:2], box, evaluations=50)
    for n in range(2):

        def descended(unit, n=n):
            s = box.place(torch.from_numpy(unit).float().view(1, 3))
            return -log_odds(model(transform(images[n : n + 1], s)), labels[n : n + 1]).item()

        expected = direct(descended, [(0, 1)] * 3, maxfun=50, vol_tol=0, len_tol=0)
        assert (
            found.loss[n].item() <= F.softplus(torch.tensor(-expected.fun)).item() + 1e-5
        )  # SciPy's may ask a few more
        assert found.loss[n].item() > 0.98 * F.softplus(torch.tensor(-expected.fun)).item()


def test_a_budget_too_small_for_its_gradients_is_refused(model, images, labels):
    with pytest.raises(ValueError, match="at least 68, found 67"):
        gradient_ascent(model, images, labels, Box(2, 30), evaluations=67)
    with pytest.raises(ValueError, match=r"starts.*found 0"):
        gradient_ascent(model, images, labels, Box(2, 30), starts=0)


def test_sobol_points_spread_more_evenly_than_random_ones():
    generator = torch.Generator().manual_seed(0)
    points = sobol_points(128, 3, generator)
    assert points.shape == (128, 3, 3) and points.min() >= 0 and points.max() < 1
    random = torch.rand(128, 3, generator=generator)
    for image in range(3):
        assert qmc.discrepancy(points[:, image].double().numpy()) < 0.5 * qmc.discrepancy(random.double().numpy())


def test_hybrid_is_the_transform_of_the_pixel_attack(model, images, labels):
    environment = hybrid.environment(6, size=16)
    found = hybrid.perturb(model, images, labels, pixel=environment.pixel, spatial=environment.fixed)
    clean = hybrid.perturb(model, images, labels, spatial=environment.fixed)
    torch.testing.assert_close(clean, moved(images, *environment.s))
    difference = (found - clean).abs().max()
    assert 0 < difference <= 6 / 255 + 1e-5
    searched = hybrid.perturb(model, images, labels, spatial=lambda *args: stbo(*args, environment.box, evaluations=12))
    assert searched.shape == images.shape
    assert torch.equal(hybrid.perturb(model, images, labels), images)


@pytest.mark.parametrize("k", range(7))
def test_environments_are_the_documents(k):
    environment = hybrid.environment(k)
    assert (environment.name, environment.eps, environment.s) == (f"H{k}", k / 255, (2 * k, 2 * k, 30 * k))
    assert environment.box == Box(2 * k, 30 * k) and environment.step * environment.iterations == pytest.approx(k / 255)
    assert hybrid.environment(k, size=75).s == (k / 2, k / 2, 30 * k)
    assert (environment.pixel is None) == (environment.fixed is None) == (k == 0)


@pytest.mark.parametrize("k", [-1, 7, 1.5, "H1"])
def test_other_environments_are_refused(k):
    with pytest.raises(ValueError, match="from 0 to 6, found"):
        hybrid.environment(k)
