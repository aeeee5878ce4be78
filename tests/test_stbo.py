"""STBO against BoTorch, GPyTorch, Monte Carlo and random search; and no transfer to the host in its loop."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from botorch.acquisition import ExpectedImprovement
from botorch.models import SingleTaskGP
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hpatlib.spatial import Box, random_search
from hpatlib.stbo import (
    ANGLES,
    LENGTHSCALE,
    NOISE,
    SHIFTS,
    Process,
    expected_improvement,
    features,
    kernel,
    stbo,
)

BOXES = [Box(3, 30), Box(12, 180)]


def test_the_interpretations_name_the_constants():
    page = (Path(__file__).parents[1] / "book" / "interpretations.md").read_text("utf-8")
    entry = page.split("(l22)=")[1].split("\n(l")[0]
    defaults = {name: p.default for name, p in inspect.signature(stbo).parameters.items()}
    anywhere, near = defaults["candidates"]
    shifts, angles = (", ".join(map(str, scales[:-1])) + f" or {scales[-1]}" for scales in (SHIFTS, ANGLES))
    assert f"{shifts} of the box for shifts and {angles} for the angle" in entry and defaults["refit_every"] == 1
    assert defaults["initial"] == 10 and "first ten queries" in entry
    assert f"{anywhere + near} candidates, {anywhere} anywhere and {near} near" in entry


def observed(box: Box, t: int, groups: int = 3, *, refit: bool = False) -> tuple[Process, torch.Tensor, torch.Tensor]:
    """A process after t queries of a smooth function, its inputs [G, t, d] and raw values [G, t]."""
    generator = torch.Generator().manual_seed(t)
    process = Process(kernel(box, groups, refit=refit), groups, t)
    points = features(torch.rand(groups, t, 3, generator=generator), box)
    values = points.sum(dim=-1).mul(7).sin() + torch.arange(groups).unsqueeze(1)
    for n in range(t):
        process.add(points[:, n], values[:, n])
    return process, points, values


def botorch_twin(points: torch.Tensor, values: torch.Tensor) -> SingleTaskGP:
    """BoTorch's process with the same kernel, noise and zero mean, on standardised values [t]."""
    values = (values - values.mean()) / values.std(unbiased=False)
    matern = MaternKernel(nu=2.5, ard_num_dims=points.shape[-1])
    twin = SingleTaskGP(points, values.unsqueeze(1), covar_module=matern, outcome_transform=None)
    twin.double()
    twin.covar_module.lengthscale = LENGTHSCALE
    twin.likelihood.noise_covar.register_constraint(
        "raw_noise", type(twin.likelihood.noise_covar.raw_noise_constraint)(0)
    )
    twin.likelihood.noise = NOISE
    twin.mean_module.constant.data.zero_()
    return twin.eval()


@pytest.mark.parametrize("box", BOXES, ids=["±30°", "±180°"])
@pytest.mark.parametrize("t", [2, 10, 60])
def test_posterior_and_improvement_equal_botorchs(box, t):
    process, points, values = observed(box, t)
    where = features(torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(1)), box)
    mean, deviation = process.posterior(where)
    best = process.standardised().amax(dim=1)
    improvement = expected_improvement(mean, deviation, best)
    for n in range(3):
        twin = botorch_twin(points[n], values[n])
        with torch.no_grad():
            expected = twin.posterior(where[n])
            torch.testing.assert_close(mean[n], expected.mean.squeeze(-1), atol=1e-5, rtol=0)
            torch.testing.assert_close(deviation[n].square(), expected.variance.squeeze(-1), atol=1e-5, rtol=0)
            reference = ExpectedImprovement(twin, best_f=best[n].item())(where[n].unsqueeze(1))
        torch.testing.assert_close(improvement[n], reference, atol=1e-5, rtol=0)


def test_the_growing_inverse_is_the_inverse_of_the_cholesky_factor():
    process, points, _ = observed(BOXES[1], 30)
    covariance = process.kernel(points, points).to_dense() + NOISE * torch.eye(30)
    expected = torch.linalg.inv(torch.linalg.cholesky(covariance.double()))
    torch.testing.assert_close(process.inverse, expected, atol=1e-6, rtol=0)


def test_expected_improvement_equals_its_definition():
    """E[max(g − g*, 0)] of a normal g, by two million draws; and never negative where equation 8's misprint is."""
    mean, deviation = torch.tensor([-1.0, 0.0, 0.4, 2.0]), torch.tensor([0.5, 1.0, 2.0, 0.1])
    draws = torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0))
    monte_carlo = (mean + deviation * draws - 0.3).clamp_min(0).mean(dim=0)
    torch.testing.assert_close(expected_improvement(mean, deviation, torch.tensor(0.3)), monte_carlo, atol=3e-3, rtol=0)
    grid = torch.linspace(-30, 30, 200, dtype=torch.float64)
    assert (expected_improvement(grid, torch.full_like(grid, 1e-3), grid.new_zeros(())) >= 0).all()


@pytest.mark.parametrize("box", BOXES, ids=["±30°", "±180°"])
def test_the_marginal_likelihood_of_every_rival_equals_gpytorchs(box):
    process, points, _ = observed(box, 12, refit=True)
    values, found = process.standardised(), process.log_marginal_likelihood()
    assert found.shape == (3, len(SHIFTS) * len(ANGLES))
    for n in range(3):
        for rival, (shift, angle) in enumerate((shift, angle) for shift in SHIFTS for angle in ANGLES):
            twin = MaternKernel(nu=2.5, ard_num_dims=points.shape[-1]).double()
            twin.lengthscale = torch.tensor([shift, shift, *[angle] * (points.shape[-1] - 2)])
            covariance = twin(points[n]).to_dense() + NOISE * torch.eye(12)
            expected = MultivariateNormal(torch.zeros(12).double(), covariance).log_prob(values[n, :, 0])
            torch.testing.assert_close(found[n, rival], expected.detach(), atol=1e-5, rtol=0)


def test_a_flat_loss_promises_nothing_anywhere():
    """Where all values are one, the posterior mean is that everywhere, to the bit: no hill is made of rounding."""
    _, points, _ = observed(BOXES[1], 12)
    process = Process(kernel(BOXES[1], 3), 3, 12)
    for n in range(12):
        process.add(points[:, n], torch.tensor([0.1, 3.7, 1e6]))
    assert not process.posterior(points[:, :5] + 0.01)[0].any()


def test_each_process_takes_its_own_likeliest_length_scales_and_stays_exact():
    """Two processes see functions of short and long waves: the posterior of each is that of a lone process."""
    box, t = Box(3, 30), 40
    units = torch.rand(t, 3, generator=torch.Generator().manual_seed(0)).double()
    waves = torch.stack([(units[:, 2] * 60).sin(), (units[:, 2] * 4).sin()], dim=1)  # [t, 2]
    process = Process(kernel(box, 2), 2, t)
    for unit, value in zip(units, waves, strict=True):
        process.add(features(unit.expand(2, 3), box), value)
    process.choose()
    scales = process.kernel.lengthscale[process.chosen, 0]
    assert scales[:, 2].tolist() == pytest.approx([min(ANGLES), max(ANGLES)])
    where = features(torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(1)), box)
    mean, deviation = process.posterior(where)
    for n in range(2):
        twin = botorch_twin(process.inputs[n], waves[:, n])
        twin.covar_module.lengthscale = scales[n]
        with torch.no_grad():
            expected = twin.posterior(where[n])
        torch.testing.assert_close(mean[n], expected.mean.squeeze(-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(deviation[n].square(), expected.variance.squeeze(-1), atol=1e-5, rtol=0)


def test_a_full_turn_is_one_place_and_a_side_of_length_zero_is_none():
    ends = features(torch.tensor([[0.2, 0.4, 0.0], [0.2, 0.4, 1.0]]), Box(3, 180))
    torch.testing.assert_close(ends[0], ends[1])
    near = features(torch.tensor([[0.2, 0.4, 0.5], [0.2, 0.4, 0.52]]), Box(3, 180))
    assert (near[0] - near[1]).norm().item() == pytest.approx(0.02, rel=1e-3)  # neighbours keep their distance
    flat = features(torch.rand(5, 3), Box(0, 30))
    assert (flat[:, :2] == 0).all() and (flat[:, 2] != 0).all()


class Bump(nn.Module):
    """The loss is highest when a bright blob, drawn at a corner, is moved to one place: smooth, and narrow."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        axis = torch.arange(size) - 0.5 * (size - 1)
        self.register_buffer("target", self.blob(axis, 4.5, -3.0))
        self.axis = axis

    @staticmethod
    def blob(axis: torch.Tensor, x: float, y: float) -> torch.Tensor:
        return torch.exp(-((axis - x).square() + (axis.unsqueeze(1) - y).square()) / 4)

    def forward(self, images):
        match = (images[:, 0] * self.target).sum(dim=(1, 2)) / self.target.square().sum()
        return torch.stack([-8 * match, 8 * match], dim=1)


def bumps(model: Bump, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    places = 8 * torch.rand(count, 2, generator=generator) - 4
    return torch.stack([model.blob(model.axis, x, y) for x, y in places.tolist()]).unsqueeze(1), torch.zeros(
        count
    ).long()


@pytest.mark.parametrize("box", [Box(6, 60), Box(4, 180)], ids=["±60°", "±180°"])
def test_finds_more_than_random_search_with_the_same_budget(box):
    model = Bump()
    images, labels = bumps(model)
    found = stbo(model, images, labels, box, evaluations=60, generator=torch.Generator().manual_seed(0)).loss
    blind = random_search(model, images, labels, box, evaluations=60, generator=torch.Generator().manual_seed(0)).loss
    assert found.mean() > 1.1 * blind.mean() and (found >= blind - 0.05).float().mean() > 0.8


def test_never_milder_than_no_attack(model, images, labels):
    clean = F.cross_entropy(model(images), labels, reduction="none")
    for evaluations in (1, 5, 15):
        found = stbo(model, images, labels, Box(3, 180), evaluations=evaluations)
        assert (found.loss >= clean - 1e-5).all() and found.history.shape == (6, evaluations)


def test_one_transform_for_the_batch_is_the_worst_on_average(model, images, labels):
    box = Box(3, 30)
    found = stbo(model, images, labels, box, evaluations=30, scope="batch", generator=torch.Generator().manual_seed(0))
    assert (found.s == found.s[0]).all()
    torch.testing.assert_close(found.history, found.history[:1].expand(6, -1))
    assert found.loss.mean().item() == pytest.approx(found.history[0, -1].item(), abs=1e-5)
    alone = stbo(model, images, labels, box, evaluations=30, generator=torch.Generator().manual_seed(0))
    assert alone.loss.mean() >= found.loss.mean() - 1e-3


class Transfers(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # Tensors of different shapes are told apart without looking at their values.
        compared = str(function) == "aten.equal.default" and args[0].shape == args[1].shape
        self.count += compared or any(name in str(function) for name in ("_local_scalar_dense", "nonzero"))
        return function(*args, **(kwargs or {}))


def test_the_loop_never_waits_for_the_device(model, images, labels):
    counts = []
    for evaluations in (15, 45):
        with Transfers() as transfers:
            stbo(model, images, labels, Box(3, 180), evaluations=evaluations)
        counts.append(transfers.count)
    assert counts[0] == counts[1] > 0


def test_a_margin_makes_no_host_wait_either(model, images, labels):
    counts = []
    for evaluations in (15, 45):
        with Transfers() as transfers:
            stbo(model, images, labels, Box(3, 180), evaluations=evaluations, loss="margin")
        counts.append(transfers.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evaluations": 0}, "found 0"),
        ({"initial": 0}, "initial must"),
        ({"candidates": (0, 0)}, r"found \(0, 0\)"),
        ({"refit_every": 0}, "refit_every"),
        ({"scope": "dataset"}, "found 'dataset'"),
        ({"loss": "hinge"}, "found 'hinge'"),
    ],
)
def test_settings_without_meaning_are_refused(changed, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        stbo(model, images, labels, Box(3, 30), **changed)


def test_constant_losses_do_no_harm(images):
    class Even(nn.Module):
        def forward(self, images):
            return images.new_zeros(len(images), 2)

    found = stbo(Even(), images, torch.zeros(6).long(), Box(3, 180), evaluations=20)
    assert found.loss.tolist() == pytest.approx([math.log(2)] * 6)
