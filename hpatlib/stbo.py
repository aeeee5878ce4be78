"""STBO: spatial adversarial examples by Bayesian optimisation, equations 5–9 of the leukemia paper.

The loss of an image under the transform s is an unknown function g(s) that costs one forward pass to query. A Gaussian
process over the queries so far predicts it everywhere, expected improvement picks the next query. Every image has a
process of its own, and all images of a batch search in lock-step: each step is one forward pass of the batch and a
handful of batched matrix products, with no transfer to the host.

Shapes: B images, G processes (B of them, or one for ``scope="batch"``), t queries so far, C candidates, d features.
Where the document is silent (kernel, design, candidates) or misprinted (equations 7 and 8), the interpretations page
says what is done here: H18, H20, H21, H22.
"""

import math
from typing import Literal

import torch
from gpytorch.kernels import Kernel, MaternKernel
from torch import Tensor, nn

from hpatlib._model import (
    Loss,
    check_images,
    check_logits,
    check_losses,
    check_whole,
    check_wholes,
    held_still,
    ordinary_tensors,
)
from hpatlib.spatial import Box, SearchResult, losses, single, sobol_points, transform, uniform

NOISE = 1e-4  # variance of the standardised loss taken for noise: keeps the kernel matrix of close queries invertible
LENGTHSCALE = 0.1  # of the side of the box


@ordinary_tensors()
def stbo(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    evaluations: int = 100,
    initial: int = 10,
    candidates: tuple[int, int] = (48, 48),
    refit_every: int | None = None,
    scope: Literal["image", "batch"] = "image",
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Search each image's worst transform in ``box`` with a budget of ``evaluations`` forward passes.

    ``initial``: size of the first design, the untouched image followed by Sobol points; ``candidates``: how many
    transforms expected improvement chooses from, drawn all over the box and near the best one so far; ``refit_every``:
    refit the kernel's length-scales by marginal likelihood after that many evaluations (default: never; they stay
    at ``LENGTHSCALE``). ``scope="batch"`` reads equation 5 literally: one s for all images, the worst on average; then
    ``history`` holds the average loss, the same for each image. ``loss``: what is searched for its highest value, as in
    ``hpatlib.attacks``.

    ``images [B, C, H, W]`` in [0, 1], ``labels [B]``. The model is left as found. Raises ``ValueError`` for bad inputs
    and for budgets that make no sense.
    """
    check_images(images, labels)
    evaluations, initial = check_whole("evaluations", evaluations), check_whole("initial", initial)
    anywhere, near = check_wholes("candidates", candidates, ("all over the box", "near the best"), least=0)
    if anywhere + near < 1:
        raise ValueError(f"candidates must hold at least one, found {candidates!r}")
    if refit_every is not None:
        refit_every = check_whole("refit_every", refit_every)
    if scope not in ("image", "batch"):
        raise ValueError(f'scope must be "image" or "batch", found {scope!r}')

    with torch.no_grad(), held_still(model):
        check_logits(model(images[:1]), labels)
        processes = len(images) if scope == "image" else 1
        process = Process(kernel(box, processes), processes, evaluations, images.device)
        design = sobol_points(min(initial, evaluations), processes, generator)  # [initial, G, 3]
        design[0] = 0.5  # the untouched image: the result is never milder than no attack
        design = design.to(images.device)
        # All draws of the search at once: copying them to the device step by step would make the host wait for it.
        draws = uniform((max(evaluations - len(design), 0), anywhere + near, 4), generator).to(images.device)
        best_unit = torch.full((processes, 3), 0.5, device=images.device)
        best_value = images.new_full((processes,), -math.inf)
        best_loss, history = best_value.expand(len(images)), []
        for t in range(evaluations):
            if t < len(design):
                unit = design[t]  # [G, 3]
            else:
                if refit_every is not None and t % refit_every == 0:
                    process.refit()
                unit = _propose(process, box, best_unit, draws[t - len(design)], anywhere)
            s = box.place(unit).to(single(images.dtype))  # [G, 3]
            each = losses(model, images, labels, s.expand(len(images), -1), loss)  # [B]
            value = each if scope == "image" else each.mean(dim=0, keepdim=True)  # [G]
            process.add(features(unit, box), value)
            better = value > best_value  # [G]
            best_unit = torch.where(better.unsqueeze(1), unit, best_unit)
            best_loss = torch.where(better, each, best_loss)  # [B]
            best_value = torch.maximum(value, best_value)
            history.append(best_value)
        check_losses(best_value)  # unlike best_loss, it remembers a NaN from any of the evaluations
        best_s = box.place(best_unit).to(single(images.dtype)).expand(len(images), -1)
        best_history = torch.stack(history, dim=1).expand(len(images), -1)  # [B, evaluations]
        return SearchResult(transform(images, best_s), best_s, best_loss, best_history)


def kernel(box: Box, processes: int) -> Kernel:
    """k(s, s') of equation 6 for ``processes`` independent processes: Matérn-5/2, one length-scale a feature."""
    matern = MaternKernel(nu=2.5, ard_num_dims=4 if box.spans_circle else 3, batch_shape=torch.Size([processes]))
    matern.lengthscale = LENGTHSCALE
    return matern.requires_grad_(False)


def features(unit: Tensor, box: Box) -> Tensor:
    """What the kernel sees of ``unit [..., 3]`` in [0, 1]³: float64 ``[..., d]``.

    In a box that spans the circle, α becomes a point on a circle of circumference 1 (d = 4), so that −180° and +180°
    are one place and neighbours keep their distance. A side of length zero is no feature to tell transforms by.
    """
    right, down, angle = unit.double().unbind(dim=-1)
    seen = [right * (box.translation > 0), down * (box.translation > 0)]
    if box.spans_circle:
        seen += [torch.cos(2 * math.pi * angle) / (2 * math.pi), torch.sin(2 * math.pi * angle) / (2 * math.pi)]
    else:
        seen += [angle * (box.rotation > 0)]
    return torch.stack(seen, dim=-1)


class Process:
    """G independent Gaussian processes over growing data, conditioned one query at a time.

    Keeps ``inverse [G, T, T]``, the inverse of the Cholesky factor L of K + noise·I, which grows by one row a query:
    posterior moments are then matrix products, faster in batches than triangular solves.
    """

    def __init__(self, kernel: Kernel, processes: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.kernel = kernel.to(device=device, dtype=torch.float64)
        self.t = 0
        self.inputs: Tensor  # [G, T, d], from the first query on, which says what d is
        self.values = torch.zeros(processes, capacity, 1, dtype=torch.float64, device=device)
        self.inverse = torch.zeros(processes, capacity, capacity, dtype=torch.float64, device=device)

    def add(self, point: Tensor, value: Tensor) -> None:
        """Condition each process on g(``point [G, d]``) = ``value [G]``."""
        t, groups = self.t, len(self.values)
        if t == 0:
            self.inputs = point.new_zeros(groups, self.values.shape[1], point.shape[-1])
        self.inputs[:, t], self.values[:, t, 0] = point, value
        inverse = self.inverse[:, :t, :t]
        covariance = self.kernel.forward(self.inputs[:, :t], point.unsqueeze(1))  # [G, t, 1]
        row = inverse @ covariance  # [G, t, 1], L's new row
        pivot = (1 + NOISE - row.square().sum(dim=1)).clamp_min(NOISE).sqrt()  # [G, 1]
        self.inverse[:, t, :t] = -(row.mT @ inverse).squeeze(1) / pivot
        self.inverse[:, t, t] = 1 / pivot.squeeze(1)
        self.t += 1

    def standardised(self) -> Tensor:
        """The values so far ``[G, t, 1]`` with mean 0 and deviation 1, so that one kernel scale fits all images."""
        values = self.values[:, : self.t]
        deviation = values.std(dim=1, keepdim=True, unbiased=False)
        return (values - values.mean(dim=1, keepdim=True)) / deviation.clamp_min(1e-12)

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 6–7 in standardised units: mean and standard deviation ``[G, C]`` at ``points [G, C, d]``."""
        inverse = self.inverse[:, : self.t, : self.t]
        covariance = self.kernel.forward(self.inputs[:, : self.t], points)  # [G, t, C]
        half = inverse @ covariance  # [G, t, C]: L⁻¹κ
        mean = (half.mT @ (inverse @ self.standardised())).squeeze(-1)  # κᵀK⁻¹g
        variance = 1 - half.square().sum(dim=1)  # k − κᵀK⁻¹κ
        return mean, variance.clamp_min(1e-12).sqrt()

    def refit(self, steps: int = 10, rate: float = 0.1) -> None:
        """Raise the marginal likelihood of all processes at once by Adam over the log length-scales."""
        inputs, values = self.inputs[:, : self.t], self.standardised()
        with torch.enable_grad():
            self.kernel.requires_grad_(True)
            optimizer = torch.optim.Adam(self.kernel.parameters(), lr=rate)
            for _ in range(steps):
                optimizer.zero_grad()
                (-log_marginal_likelihood(self.kernel, inputs, values).sum()).backward()
                optimizer.step()
            self.kernel.requires_grad_(False)
        factor = torch.linalg.cholesky(_with_noise(self.kernel.forward(inputs, inputs)))
        identity = torch.eye(self.t, dtype=factor.dtype, device=factor.device)
        self.inverse[:, : self.t, : self.t] = torch.linalg.solve_triangular(factor, identity, upper=False)


def log_marginal_likelihood(kernel: Kernel, inputs: Tensor, values: Tensor) -> Tensor:
    """log p(g | s) ``[G]`` for ``inputs [G, t, d]`` and standardised ``values [G, t, 1]``."""
    factor = torch.linalg.cholesky(_with_noise(kernel.forward(inputs, inputs)))  # [G, t, t]
    half = torch.linalg.solve_triangular(factor, values, upper=False)  # [G, t, 1]
    log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return -0.5 * (half.square().sum(dim=(1, 2)) + log_determinant + values.shape[1] * math.log(2 * math.pi))


def expected_improvement(mean: Tensor, deviation: Tensor, best: Tensor) -> Tensor:
    """Equation 8 with Φ and φ in their places: (μ − g*) Φ(u) + σ φ(u), u = (μ − g*) / σ; any shape, never negative."""
    u = (mean - best) / deviation
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    return deviation * (density + u * torch.special.ndtr(u))


def _with_noise(covariance: Tensor) -> Tensor:
    return covariance + NOISE * torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)


def _propose(process: Process, box: Box, best: Tensor, draws: Tensor, anywhere: int) -> Tensor:
    """Equation 9: the candidate ``[G, 3]`` of highest expected improvement for each process.

    ``draws [C, 4]`` in [0, 1), shared by the processes: the first ``anywhere`` are candidates all over the box, the
    others become steps away from ``best [G, 3]``, on all scales from 0.3 % to 30 % of the box.
    """
    scale = 0.3 * 10 ** (-2 * draws[anywhere:, 3:])
    steps = torch.special.ndtri(draws[anywhere:, :3].clamp(1e-6, 1 - 1e-6)) * scale  # [near, 3]
    local = best.unsqueeze(1) + steps  # [G, near, 3]
    around = local[..., 2:] % 1 if box.spans_circle else local[..., 2:].clamp(0, 1)
    local = torch.cat([local[..., :2].clamp(0, 1), around], dim=-1)
    unit = torch.cat([draws[:anywhere, :3].expand(len(best), -1, -1), local], dim=1)  # [G, C, 3]
    mean, deviation = process.posterior(features(unit, box))
    improvement = expected_improvement(mean, deviation, process.standardised().amax(dim=1))  # [G, C]
    choice = improvement.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 3)
    return unit.gather(1, choice).squeeze(1)
