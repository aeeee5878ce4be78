"""Rotations and translations as an attack: equation 4 of the leukemia paper, and the searches STBO is measured against.

A transform is ``s = (ξ, ζ, α)``: ξ pixels to the right, ζ pixels down, α degrees counter-clockwise as displayed. The
image is rotated about its centre, then translated (Engstrom et al. 2019), sampled bilinearly through the inverse map,
zeros outside. Equation 4 as printed turns about a corner and pushes pixels forward: see the interpretations page, L17.

Searches take images ``[B, C, H, W]``, floats in ``[0, 1]``, and labels ``[B]``, longs; they return a ``SearchResult``
and leave the model as found. They raise ``ValueError`` for other images and labels, labels that the model has no class
for, logits or losses that are not finite, and budgets below 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib._model import (
    Loss,
    check_images,
    check_logits,
    check_losses,
    check_number,
    check_whole,
    check_wholes,
    derivative,
    held_still,
    objective,
    ordinary_tensors,
)
from hpatlib._sharing import drawn


@dataclass(frozen=True)
class Box:
    """What a search may do: ξ, ζ in ±``translation`` pixels, α in ±``rotation`` degrees.

    Raises ``ValueError`` for a translation that is negative or not finite, and a rotation outside [0, 180].
    """

    translation: float
    rotation: float

    def __post_init__(self) -> None:
        pixels = check_number(
            "translation", self.translation, lambda side: 0 <= side < math.inf, "be finite and at least 0 pixels"
        )
        degrees = check_number("rotation", self.rotation, lambda side: 0 <= side <= 180, "lie in [0, 180] degrees")
        object.__setattr__(self, "translation", pixels)
        object.__setattr__(self, "rotation", degrees)

    @property
    def spans_circle(self) -> bool:
        """Whether −rotation and +rotation are the same picture."""
        return self.rotation == 180

    def place(self, unit: Tensor) -> Tensor:
        """Map ``unit [..., 3]`` in [0, 1]³ to transforms ``s [..., 3]`` in this box."""
        right, down, angle = (2 * unit - 1).unbind(dim=-1)
        return torch.stack([right * self.translation, down * self.translation, angle * self.rotation], dim=-1)

    def inside(self, unit: Tensor) -> Tensor:
        """The nearest ``unit [..., 3]`` in [0, 1]³; in a box that spans the circle, angles go round it instead."""
        angle = unit[..., 2:] % 1 if self.spans_circle else unit[..., 2:].clamp(0, 1)
        return torch.cat([unit[..., :2].clamp(0, 1), angle], dim=-1)


@dataclass(frozen=True)
class SearchResult:
    """The worst transform a search found for each image.

    ``images [B, C, H, W]``: the transformed images; ``s [B, 3]``: their transforms; ``loss [B]``: their loss, by
    default the cross-entropy; ``history [B, evaluations]``: the highest loss after each unit of the budget, never
    falling. A forward pass is one unit; a gradient, a forward and a backward pass, is three.
    """

    images: Tensor
    s: Tensor
    loss: Tensor
    history: Tensor


@ordinary_tensors()
def transform(images: Tensor, s: Tensor) -> Tensor:
    """T_s(x), equation 4: rotate each image about its centre, then translate it.

    ``images [B, C, H, W]``; ``s [B, 3]`` = (ξ px right, ζ px down, α degrees counter-clockwise). Returns
    ``[B, C, H, W]``, differentiable in both. The result is linear in the image and never exceeds its range:
    ‖T_s(x + δ) − T_s(x)‖∞ ≤ ‖δ‖∞. Whole shifts and quarter turns are exact to 1e-5 up to 128 px, to 1e-4 above, where
    float32 no longer tells the sampling points apart finely enough; half precision is computed in float32. Raises
    ``ValueError`` for any other shape.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor [B, C, H, W], found {found}")
    if not isinstance(s, Tensor) or s.shape != (len(images), 3):
        found = f"{list(s.shape)}" if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(f"s must be [{len(images)}, 3] = (ξ, ζ, α) for each image, found {found}")
    height, width = images.shape[-2:]
    # cos and sin in float64: at float32 a turn by 90° would be off by a visible fraction of a pixel in large images.
    right, down, angle = s.double().unbind(dim=1)  # [B] each
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    # The inverse map p = Rᵀ(p' − t), y pointing down, in affine_grid's units of half an image side.
    rows = [
        torch.stack([cos, -sin * height / width, (sin * down - cos * right) * 2 / width], dim=1),
        torch.stack([sin * width / height, cos, (-sin * right - cos * down) * 2 / height], dim=1),
    ]
    theta = torch.stack(rows, dim=1).to(single(images.dtype))  # [B, 2, 3]
    # Autocast would make the grid in half precision, wrong by several pixels; a meta tensor has none to switch off.
    with torch.autocast("cpu" if images.is_meta else images.device.type, enabled=False):
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # [B, H, W, 2]
        x = images.to(theta.dtype)
        moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.to(images.dtype)


def single(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` or float32, whichever is finer: sampling points and transforms are too coarse in half precision."""
    return torch.promote_types(dtype, torch.float32)


@ordinary_tensors()
@torch.no_grad()
def grid_search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    counts: tuple[int, int, int] = (5, 5, 31),
    loss: Loss = "cross-entropy",
) -> SearchResult:
    """The spatial transformation method (STM, Engstrom et al. 2019): every point of a regular grid.

    ``counts``: points along ξ, ζ and α, ends included (one point: the middle); the default asks 775 queries an image.
    In a box that spans the circle, both ends of α are one picture: its points are then spread evenly around 0°, no two
    alike. ``loss``: what is searched for its highest value, as in ``hpatlib.attacks``.
    """
    check_images(images, labels)
    sides = check_wholes("counts", counts, ("ξ", "ζ", "α"))
    axes = [torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5]) for count in sides]
    if box.spans_circle:
        axes[2] = 0.5 + (torch.arange(sides[2]) - sides[2] // 2) / sides[2]
    points = torch.cartesian_prod(*axes).reshape(-1, 1, 3).expand(-1, len(images), -1)  # [Q, B, 3]
    with held_still(model):
        search = Search(model, images, labels, box, loss)
        search.ask(points)
    return search.result()


@ordinary_tensors()
@torch.no_grad()
def random_search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    evaluations: int,
    sobol: bool = False,
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Worst of ``evaluations`` random transforms, drawn for each image on its own.

    ``sobol``: a Sobol sequence (evenly spread), shifted at random for each image, instead of independent draws.
    ``loss``: what is searched for its highest value, as in ``hpatlib.attacks``.
    """
    check_images(images, labels)
    evaluations = check_whole("evaluations", evaluations)
    if sobol:
        unit = sobol_points(evaluations, len(images), generator)  # [Q, B, 3]
    else:
        unit = drawn(uniform, (evaluations, len(images), 3), dim=1, generator=generator)  # [Q, B, 3]
    with held_still(model):
        search = Search(model, images, labels, box, loss)
        search.ask(unit)
    return search.result()


@ordinary_tensors()
@torch.no_grad()
def local_search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    evaluations: int = 100,
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Half of the budget Sobol points, then normal steps away from the worst transform so far, from 20 % of the box
    down to 1 % of it.

    ``loss``: what is searched for its highest value, as in ``hpatlib.attacks``.
    """
    check_images(images, labels)
    evaluations = check_whole("evaluations", evaluations)
    first = -(-evaluations // 2)
    with held_still(model):
        search = Search(model, images, labels, box, loss)
        search.ask(sobol_points(first, len(images), generator))
        draws = drawn(uniform, (evaluations - first, len(images), 3), dim=1, generator=generator)
        draws = draws.clamp(1e-6, 1 - 1e-6).to(images.device)
        deviations = 0.2 * 0.05 ** torch.linspace(0, 1, len(draws))
        for draw, deviation in zip(draws, deviations.tolist(), strict=True):
            search.ask(box.inside(search.unit + deviation * torch.special.ndtri(draw)).unsqueeze(0))
    return search.result()


@ordinary_tensors()
@torch.no_grad()
def gradient_ascent(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    evaluations: int = 100,
    starts: int = 4,
    steps: int = 5,
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Adam through the warp, ``steps`` from each of the ``starts`` worst Sobol points, of which there are
    ``evaluations`` − ``starts`` · (3 · ``steps`` + 1): a gradient is three units of the budget, a last look is one.

    Steps shrink from 10 % of the box to 1 % of it. ``loss``: what is searched for its highest value, as in
    ``hpatlib.attacks``. Raises ``ValueError`` for a budget that leaves fewer first points than starts.
    """
    check_images(images, labels)
    evaluations, starts = check_whole("evaluations", evaluations), check_whole("starts", starts)
    steps = check_whole("steps", steps)
    needed = starts * (3 * steps + 1)
    first = evaluations - needed
    if first < starts:
        raise ValueError(
            f"{starts} starts of {steps} steps, 3 units each and 1 for a last look, and {starts} points to start from "
            f"need evaluations of at least {needed + starts}, found {evaluations}"
        )
    with held_still(model):
        search = Search(model, images, labels, box, loss)
        points = sobol_points(first, len(images), generator).to(images.device, single(images.dtype))
        order = search.ask(points).topk(starts, dim=0).indices  # [starts, B]
        unit = points.gather(0, order.unsqueeze(-1).expand(-1, -1, 3)).requires_grad_()  # [starts, B, 3]
        adam = torch.optim.Adam([unit], lr=0.1, maximize=True)
        shrink = torch.optim.lr_scheduler.ExponentialLR(adam, 0.1 ** (1 / max(steps - 1, 1)))
        for _ in range(steps):
            unit.grad = torch.stack([search.slope(start) for start in unit])
            adam.step()
            shrink.step()
            unit.copy_(box.inside(unit))
        search.ask(unit.detach())
    return search.result()


@ordinary_tensors()
@torch.no_grad()
def direct_search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box,
    *,
    evaluations: int = 100,
    loss: Loss = "cross-entropy",
) -> SearchResult:
    """DIRECT (Jones et al. 1993) as SciPy has it: rectangles that could hold the worst transform are cut in three.

    It asks about one image and one transform at a time, which no batch makes faster: for comparisons only. ``loss``:
    what is searched for its highest value, as in ``hpatlib.attacks``.
    """
    from scipy.optimize import direct

    check_images(images, labels)
    evaluations = check_whole("evaluations", evaluations)
    found = []
    with held_still(model):
        check_logits(model(images[:1]), labels)
        for n in range(len(images)):
            search = Search(model, images[n : n + 1], labels[n : n + 1], box, loss)

            def descended(point: np.ndarray, search: Search = search) -> float:
                if len(search.history) == evaluations:  # SciPy looks at its budget after whole rounds only
                    return math.inf
                return -search.ask(torch.from_numpy(point).view(1, 1, 3)).item()

            direct(descended, [(0, 1)] * 3, maxfun=evaluations, maxiter=evaluations, vol_tol=0, len_tol=0)
            found.append(search.result())
    return SearchResult(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in found), strict=True)))


class Search:
    """What every search does with a query: ask the model, keep the worst transform of each image, count the budget.

    The model must be held still. ``unit [B, 3]``: each image's worst so far, in [0, 1]³; ``loss [B]``: its loss;
    ``history``: the highest loss so far ``[B]``, once for each unit of the budget. ``together``: one transform for all
    images, the worst on average; ``history`` then holds the average.

    Queries are told apart by a score: the loss, but for cross-entropy its ``log_odds``, which is in the same order and
    still rises where exp underflows and the loss is 0 or flat.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, box: Box, loss: Loss, *, together: bool = False
    ) -> None:
        self.model, self.images, self.labels, self.box, self.together = model, images, labels, box, together
        self.objective, self.saturates = objective(loss), loss == "cross-entropy" and not together
        self.unit = torch.full((len(images), 3), 0.5, dtype=single(images.dtype), device=images.device)
        self.loss = self.highest = self.score = images.new_full((len(images),), -math.inf)
        self.history: list[Tensor] = []
        check_logits(model(images[:1]), labels)

    def ask(self, points: Tensor) -> Tensor:
        """The scores ``[Q, B]`` of ``points [Q, B, 3]`` in [0, 1]³, one unit of the budget each."""
        return torch.stack([self._keep(unit, self._answers(unit), 1) for unit in points.to(self.unit)])

    def slope(self, unit: Tensor) -> Tensor:
        """∂score/∂unit ``[B, 3]`` at ``unit [B, 3]``; three units of the budget."""
        with torch.enable_grad():
            unit = unit.detach().requires_grad_()
            logits = self._answers(unit)
            gradient = derivative(self._score(logits).sum(), unit)
        self._keep(unit.detach(), logits.detach(), 3)
        return gradient.mean(dim=0, keepdim=True).expand_as(gradient) if self.together else gradient

    def result(self) -> SearchResult:
        """The highest loss of each image so far and its transform. Raises ``ValueError`` where a loss was NaN."""
        check_losses(self.highest)  # unlike the loss, it remembers a NaN from any of the queries
        s = self.box.place(self.unit)
        return SearchResult(transform(self.images, s), s, self.loss, torch.stack(self.history, dim=1))

    def _answers(self, unit: Tensor) -> Tensor:
        return self.model(transform(self.images, self.box.place(unit)))

    def _score(self, logits: Tensor) -> Tensor:
        score = log_odds(logits, self.labels) if self.saturates else self.objective(logits, self.labels)
        return score.mean().expand_as(score) if self.together else score

    def _keep(self, unit: Tensor, logits: Tensor, units: int) -> Tensor:
        loss, score = self.objective(logits, self.labels), self._score(logits)
        value = loss.mean().expand_as(loss) if self.together else loss
        better = (value > self.highest) | ((value == self.highest) & (score > self.score))
        self.unit = torch.where(better.unsqueeze(1), unit, self.unit)
        self.loss, self.score = torch.where(better, loss, self.loss), torch.where(better, score, self.score)
        before = self.highest if self.history else value  # a gradient's first units tell nothing yet
        self.highest = torch.maximum(value, self.highest)
        self.history += [before] * (units - 1) + [self.highest]
        return score


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 − p)) ``[B]`` of p, the probability of all wrong classes together: for two classes, the margin.

    Cross-entropy is softplus of it, so that both have one order.
    """
    own = labels.unsqueeze(1)
    return logits.scatter(1, own, -math.inf).logsumexp(dim=1) - logits.gather(1, own).squeeze(1)


def sobol_points(count: int, images: int, generator: torch.Generator | None) -> Tensor:
    """``count`` points ``[count, images, 3]`` in [0, 1)³: one Sobol sequence, shifted at random for each image."""
    sequence = torch.quasirandom.SobolEngine(3).draw(count + 1)[1:]  # [count, 3]; the first point is a corner
    shift = drawn(uniform, (1, images, 3), dim=1, generator=generator)  # [1, images, 3]
    return (sequence.unsqueeze(1).to(shift) + shift) % 1  # a Cranley–Patterson rotation keeps the even spread


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), drawn where the generator lives: one seed gives one search on every device."""
    return torch.rand(shape, generator=generator, device=generator.device if generator is not None else "cpu")
