"""Rotations and translations as an attack: equation 4 of the leukemia paper, and the searches STBO is measured against.

A transform is ``s = (ξ, ζ, α)``: ξ pixels to the right, ζ pixels down, α degrees counter-clockwise as displayed. The
image is rotated about its centre, then translated (Engstrom et al. 2019), sampled bilinearly through the inverse map,
zeros outside. Equation 4 as printed turns about a corner and pushes pixels forward: see the interpretations page, H17.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
    held_still,
    objective,
    ordinary_tensors,
)


@dataclass(frozen=True)
class Box:
    """What a search may do: ξ, ζ in ±``translation`` pixels, α in ±``rotation`` degrees."""

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


@dataclass(frozen=True)
class SearchResult:
    """The worst transform a search found for each image.

    ``images [B, C, H, W]``: the transformed images; ``s [B, 3]``: their transforms; ``loss [B]``: their loss, by
    default the cross-entropy; ``history [B, evaluations]``: the highest loss after each evaluation, never falling.
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
    ``loss``: what is searched for its highest value, as in ``hpatlib.attacks``.
    """
    check_images(images, labels)
    sides = check_wholes("counts", counts, ("ξ", "ζ", "α"))
    axes = [torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5]) for count in sides]
    points = box.place(torch.cartesian_prod(*axes).reshape(-1, 3))  # [Q, 3]
    return _sweep(model, images, labels, points.unsqueeze(1).expand(-1, len(images), -1), loss)


@ordinary_tensors()
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

    ``sobol``: a scrambled Sobol sequence (evenly spread) instead of independent uniform draws. ``loss``: what is
    searched for its highest value, as in ``hpatlib.attacks``.
    """
    check_images(images, labels)
    evaluations = check_whole("evaluations", evaluations)
    if sobol:
        unit = sobol_points(evaluations, len(images), generator)  # [Q, B, 3]
    else:
        unit = uniform((evaluations, len(images), 3), generator)
    return _sweep(model, images, labels, box.place(unit), loss)


def losses(model: nn.Module, images: Tensor, labels: Tensor, s: Tensor, loss: Loss = "cross-entropy") -> Tensor:
    """g(s) of equation 5: the loss ``[B]`` of each transformed image. The model must be held still."""
    return objective(loss)(model(transform(images, s)), labels)  # [B]


def sobol_points(count: int, images: int, generator: torch.Generator | None) -> Tensor:
    """``count`` points ``[count, images, 3]`` in [0, 1)³: one Sobol sequence, shifted at random for each image."""
    sequence = torch.quasirandom.SobolEngine(3).draw(count + 1)[1:]  # [count, 3]; the first point is a corner
    shift = uniform((1, images, 3), generator)  # [1, images, 3]
    return (sequence.unsqueeze(1).to(shift) + shift) % 1  # a Cranley–Patterson rotation keeps the even spread


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), drawn where the generator lives: one seed gives one search on every device."""
    return torch.rand(shape, generator=generator, device=generator.device if generator is not None else "cpu")


@torch.no_grad()
def _sweep(model: nn.Module, images: Tensor, labels: Tensor, candidates: Iterable[Tensor], loss: Loss) -> SearchResult:
    """Evaluate transforms that were chosen beforehand, ``candidates`` ``Q`` times ``[B, 3]``, and keep the worst."""
    best_loss: Tensor
    best_s: Tensor
    history: list[Tensor] = []
    with held_still(model):
        check_logits(model(images[:1]), labels)
        for s in candidates:
            s = s.to(images.device, single(images.dtype))
            value = losses(model, images, labels, s, loss)  # [B]
            if not history:
                best_loss, best_s = value, s
            else:
                best_s = torch.where((value > best_loss).unsqueeze(1), s, best_s)
                best_loss = torch.maximum(value, best_loss)
            history.append(best_loss)
    check_losses(best_loss)
    return SearchResult(transform(images, best_s), best_s, best_loss, torch.stack(history, dim=1))
