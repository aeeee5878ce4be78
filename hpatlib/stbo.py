"""STBO: spatial adversarial examples by Bayesian optimisation, equations 5–9 of the leukemia paper.

The loss of an image under the transform s is an unknown function g(s) that costs one forward pass to query. A Gaussian
process over the queries so far predicts it everywhere, expected improvement picks the next query. Every image has a
process of its own, and all images of a batch search in lock-step: each step is one forward pass of the batch and a
handful of batched matrix products, with no transfer to the host.

Shapes: B images, G processes (B of them, or one for ``scope="batch"``), t queries so far, C candidates, d features.
Where the document is silent (kernel, design, candidates) or misprinted (equations 7 and 8), the interpretations page
says what is done here: L18, L20, L21, L22.
"""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib._model import Loss, check_images, check_whole, check_wholes, held_still, ordinary_tensors
from hpatlib.spatial import Box, Search, SearchResult, sobol_points, uniform

with warnings.catch_warnings():  # that linear_operator uses torch.jit.script, about which no reader can do anything
    warnings.simplefilter("ignore", FutureWarning)
    from gpytorch.kernels import Kernel, MaternKernel

NOISE = 1e-4  # variance of the standardised loss taken for noise: keeps the kernel matrix of close queries invertible
LENGTHSCALE = 0.1  # of the side of the box
SHIFTS, ANGLES = (0.1, 0.2, 0.4), (0.025, 0.05, 0.1, 0.2)  # length-scales that compete


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
    refit_every: int | None = 1,
    scope: Literal["image", "batch"] = "image",
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Search each image's worst transform in ``box`` with a budget of ``evaluations`` forward passes.

    ``initial``: size of the first design, the untouched image followed by Sobol points; ``candidates``: how many
    transforms expected improvement chooses from, drawn all over the box and near the best one so far; ``refit_every``:
    after how many evaluations each process takes the length-scales of highest marginal likelihood, of all pairs of
    ``SHIFTS`` and ``ANGLES`` (None: they stay at ``LENGTHSCALE``). ``scope="batch"`` reads equation 5 literally: one s
    for all images, the worst on average; then ``history`` holds the average loss, the same for each image. ``loss``:
    what is searched for its highest value, as in ``hpatlib.attacks``; for cross-entropy, the process models its
    ``spatial.log_odds``, which has the same order and does not flatten out.

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

    groups = len(images) if scope == "image" else 1
    with torch.no_grad(), held_still(model):
        search = Search(model, images, labels, box, loss, together=scope == "batch")
        process = Process(kernel(box, groups, refit=refit_every is not None), groups, evaluations, images.device)
        design = sobol_points(min(initial, evaluations), groups, generator)  # [initial, G, 3]
        design[0] = 0.5  # the untouched image: the result is never milder than no attack
        design = design.to(search.unit)
        # All draws of the search at once: copying them to the device step by step would make the host wait for it.
        draws = uniform((evaluations - len(design), anywhere + near, 4), generator).to(images.device)
        for t in range(evaluations):
            if t < len(design):
                unit = design[t]  # [G, 3]
            else:
                if refit_every is not None and t % refit_every == 0:
                    process.choose()
                unit = _propose(process, box, search.unit[:groups], draws[t - len(design)], anywhere)
            score = search.ask(unit.expand(1, len(images), -1))  # [1, B]
            process.add(features(unit, box), score[0, :groups])
    return search.result()


def kernel(box: Box, processes: int, *, refit: bool = True) -> Kernel:
    """k(s, s') of equation 6 for ``processes`` independent processes: Matérn-5/2, one length-scale a feature.

    Each process has a kernel for every pair of ``SHIFTS`` and ``ANGLES``, one after the other; without ``refit``, one
    of length-scale ``LENGTHSCALE``.
    """
    pairs = [(shift, angle) for shift in SHIFTS for angle in ANGLES] if refit else [(LENGTHSCALE, LENGTHSCALE)]
    angles = 2 if box.spans_circle else 1
    scales = torch.tensor([[shift, shift, *[angle] * angles] for shift, angle in pairs])  # [R, d]
    matern = MaternKernel(nu=2.5, ard_num_dims=2 + angles, batch_shape=torch.Size([processes * len(pairs)]))
    matern.lengthscale = scales.repeat(processes, 1).unsqueeze(1)
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

    ``kernel`` may hold R rival kernels for each process; all of them are conditioned, ``choose`` takes the likeliest.
    Keeps ``inverse [G·R, T, T]``, the inverse of each Cholesky factor L of K + noise·I, which grows by one row a query:
    posterior moments and likelihoods are then matrix products, faster in batches than triangular solves, and no
    length-scale has to be fitted step by step. ``white [G·R, T, 2]`` is L⁻¹ times the values and times ones, which
    gives L⁻¹ of the values at whatever mean and deviation they have by now.
    """

    def __init__(self, kernel: Kernel, processes: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.kernel = kernel.to(device=device, dtype=torch.float64)
        self.rivals = self.kernel.batch_shape.numel() // processes
        self.first = self.rivals * torch.arange(processes, device=device)
        self.chosen = self.first  # [G], in 0…G·R − 1
        self.t = 0
        self.inputs: Tensor  # [G, T, d], from the first query on, which says what d is
        self.origin: Tensor  # [G], the first value, which ``values`` are counted from
        self.values = torch.zeros(processes, capacity, 1, dtype=torch.float64, device=device)
        self.inverse = torch.zeros(processes * self.rivals, capacity, capacity, dtype=torch.float64, device=device)
        self.white = torch.zeros(processes * self.rivals, capacity, 2, dtype=torch.float64, device=device)

    def add(self, point: Tensor, value: Tensor) -> None:
        """Condition each process on g(``point [G, d]``) = ``value [G]``."""
        t, groups = self.t, len(self.values)
        if t == 0:
            self.inputs = point.new_zeros(groups, self.values.shape[1], point.shape[-1])
            self.origin = value.double()
        value = value - self.origin  # what all values share would be lost in rounding where they hardly differ
        self.inputs[:, t], self.values[:, t, 0] = point, value
        inverse = self.inverse[:, :t, :t]
        covariance = self.kernel.forward(self._each(self.inputs[:, :t]), self._each(point.unsqueeze(1)))  # [G·R, t, 1]
        row = inverse @ covariance  # [G·R, t, 1], L's new row
        pivot = (1 + NOISE - row.square().sum(dim=1)).clamp_min(NOISE).sqrt()  # [G·R, 1]
        self.inverse[:, t, :t] = -(row.mT @ inverse).squeeze(1) / pivot
        self.inverse[:, t, t] = 1 / pivot.squeeze(1)
        last = F.pad(self._each(value.unsqueeze(1)), (0, 1), value=1)  # [G·R, 2]: the value, and one
        self.white[:, t] = (last - (row.mT @ self.white[:, :t]).squeeze(1)) / pivot
        self.t += 1

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``[G, 1]`` of the values so far."""
        values = self.values[:, : self.t, 0]
        return values.mean(dim=1, keepdim=True), values.std(dim=1, keepdim=True, unbiased=False).clamp_min(1e-12)

    def standardised(self) -> Tensor:
        """The values so far ``[G, t, 1]`` with mean 0 and deviation 1, so that one kernel scale fits all images."""
        mean, deviation = self.scale()
        return ((self.values[:, : self.t, 0] - mean) / deviation).unsqueeze(2)

    def whitened(self) -> Tensor:
        """L⁻¹ of the standardised values ``[G·R, t]``, for each rival."""
        mean, deviation = map(self._each, self.scale())
        values, ones = self.white[:, : self.t].unbind(dim=2)
        return (values - mean * ones) / deviation

    def log_marginal_likelihood(self) -> Tensor:
        """log p(g | s) ``[G, R]`` of the standardised values under each rival."""
        half = self.whitened()
        log_determinant = -2 * self.inverse[:, : self.t, : self.t].diagonal(dim1=1, dim2=2).log().sum(dim=1)
        found = -0.5 * (half.square().sum(dim=1) + log_determinant + self.t * math.log(2 * math.pi))
        return found.view(-1, self.rivals)

    def choose(self) -> None:
        """Take each process's likeliest rival."""
        self.chosen = self.first + self.log_marginal_likelihood().argmax(dim=1)

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 6–7 in standardised units: mean and standard deviation ``[G, C]`` at ``points [G, C, d]``."""
        inverse = self.inverse[self.chosen, : self.t, : self.t]
        covariance = self.kernel[self.chosen].forward(self.inputs[:, : self.t], points)  # [G, t, C]
        half = inverse @ covariance  # [G, t, C]: L⁻¹κ
        mean = (half.mT @ self.whitened()[self.chosen].unsqueeze(2)).squeeze(2)  # κᵀK⁻¹g
        variance = 1 - half.square().sum(dim=1)  # k − κᵀK⁻¹κ
        return mean, variance.clamp_min(1e-12).sqrt()

    def _each(self, processes: Tensor) -> Tensor:
        """``[G, …]`` for each rival ``[G·R, …]``."""
        return processes.repeat_interleave(self.rivals, dim=0)


def expected_improvement(mean: Tensor, deviation: Tensor, best: Tensor) -> Tensor:
    """Equation 8 with Φ and φ in their places: (μ − g*) Φ(u) + σ φ(u), u = (μ − g*) / σ; any shape, never negative."""
    u = (mean - best) / deviation
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    return deviation * (density + u * torch.special.ndtr(u))


def _propose(process: Process, box: Box, best: Tensor, draws: Tensor, anywhere: int) -> Tensor:
    """Equation 9: the candidate ``[G, 3]`` of highest expected improvement for each process.

    ``draws [C, 4]`` in [0, 1), shared by the processes: the first ``anywhere`` are candidates all over the box, the
    others become steps away from ``best [G, 3]``, on all scales from 0.3 % to 30 % of the box.
    """
    scale = 0.3 * 10 ** (-2 * draws[anywhere:, 3:])
    steps = torch.special.ndtri(draws[anywhere:, :3].clamp(1e-6, 1 - 1e-6)) * scale  # [near, 3]
    local = box.inside(best.unsqueeze(1) + steps)  # [G, near, 3]
    unit = torch.cat([draws[:anywhere, :3].expand(len(best), -1, -1), local], dim=1)  # [G, C, 3]
    mean, deviation = process.posterior(features(unit, box))
    improvement = expected_improvement(mean, deviation, process.standardised().amax(dim=1))  # [G, C]
    choice = improvement.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 3)
    return unit.gather(1, choice).squeeze(1)
