"""Hybrid perturbations T_s(A_ε(x)) of equation 1, who makes them in training, and the environments H0…H6."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hpatlib import attacks
from hpatlib._model import check_fraction, check_images, check_whole, is_whole, ordinary_tensors
from hpatlib.spatial import Box, SearchResult, random_search, transform
from hpatlib.stbo import stbo

PixelAttack = Callable[[nn.Module, Tensor, Tensor], Tensor]
SpatialAttack = Callable[[nn.Module, Tensor, Tensor], SearchResult | Tensor]

REFERENCE_SIZE = 300  # the image side, in pixels, that the document's translations are given for


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    pixel: PixelAttack | None = None,
    spatial: SpatialAttack | None = None,
) -> Tensor:
    """X_h = T_s(A_ε(X)): the pixel attack first, then one transform of its result (equation 14; L15).

    ``pixel`` and ``spatial`` are attacks with their settings bound, called as ``attack(model, images, labels)``, for
    instance ``partial(attacks.pgd, eps=6 / 255, step=1 / 255, iterations=6)`` and ``partial(stbo, box=Box(12, 180))``;
    ``None`` leaves that part out. ``images [B, C, H, W]`` in [0, 1]; returns the same shape and range.
    """
    check_images(images, labels)
    if pixel is not None:
        images = pixel(model, images, labels)
    if spatial is not None:
        found = spatial(model, images, labels)
        images = found.images if isinstance(found, SearchResult) else found
    return images


def fixed(model: nn.Module, images: Tensor, labels: Tensor, *, s: tuple[float, float, float]) -> Tensor:
    """The same transform ``s`` = (ξ, ζ, α) for every image: a spatial "attack" that asks the model nothing."""
    if len(s) != 3 or not all(map(math.isfinite, s)):
        raise ValueError(f"s must be three finite numbers, (ξ px, ζ px, α degrees), found {s}")
    return transform(images, torch.tensor(s, device=images.device, dtype=torch.float64).expand(len(images), 3))


@dataclass(frozen=True)
class Adversary:
    """Who perturbs the images that a model learns from beside the clean ones: PGD, STBO, or one after the other.

    Called as ``adversary(model, images, labels)``, it returns T_s(A_ε(x)) ``[B, C, H, W]`` of equation 14.

    ``eps``, ``step`` in [0, 1], ``iterations``, ``start``: PGD as in ``attacks.pgd``, none where ``eps`` is 0; one
    step of ``eps`` without a start is FGSM. ``translation`` (± pixels), ``rotation`` (± degrees): the range of STBO
    with ``evaluations`` queries an image, none where that is 0. ``literal`` reads line 8 of Algorithm 1 as printed:
    STBO after each step, on what the last one left (L15), from a Gaussian start; ``eps`` is no bound then. ``warmup``:
    in so many epochs of a training, the first ones, all ranges grow in equal steps, and PGD's iterations with them
    (`at`); the documents have none (L36).

    Raises ``ValueError`` where nothing is left to do, or nothing could come of it: a pixel budget without a step, a
    search in a box without room.
    """

    eps: float = 0.0
    step: float = 0.0
    iterations: int = 1
    start: attacks.Start = None
    translation: float = 0.0
    rotation: float = 0.0
    evaluations: int = 0
    literal: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        box = Box(self.translation, self.rotation)
        plain = {
            "eps": check_fraction("eps", self.eps),
            "step": check_fraction("step", self.step, "1/255"),
            "iterations": check_whole("iterations", self.iterations),
            "translation": box.translation,
            "rotation": box.rotation,
            "evaluations": check_whole("evaluations", self.evaluations, least=0),
            "warmup": check_whole("warmup", self.warmup, least=0),
        }
        for name, value in plain.items():  # NumPy's numbers become Python's: a run's key is made of them
            object.__setattr__(self, name, value)
        if not self.eps and not self.evaluations:
            raise ValueError("an adversary needs eps > 0 or evaluations > 0: this one would change nothing")
        if self.literal and not (self.eps and self.evaluations):
            raise ValueError("line 8 as printed needs both a pixel budget (eps) and a search (evaluations)")
        if self.eps and not self.step:
            raise ValueError(f"an adversary with eps = {self.eps!r} needs a step > 0, such as step=eps: found 0")
        if self.evaluations and not (self.translation or self.rotation):
            raise ValueError("a search needs room: found evaluations > 0 but translation and rotation both 0")

    def at(self, epoch: int) -> "Adversary":
        """The adversary of an epoch, counted from 0: itself, and (epoch + 1) / (warmup + 1) of it while it warms up.

        With ``warmup`` 5, that of H6 (`environment`) is that of H1 in the first epoch, of H2 in the second, and so on.
        """
        if epoch >= self.warmup:
            return self
        share = (epoch + 1) / (self.warmup + 1)
        eps = share * self.eps
        return replace(
            self,
            eps=eps,
            step=min(self.step, eps),
            iterations=-(-self.iterations * (epoch + 1) // (self.warmup + 1)),  # rounded up
            translation=share * self.translation,
            rotation=share * self.rotation,
            warmup=0,
        )

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        spatial = None
        if self.evaluations:
            spatial = partial(stbo, box=Box(self.translation, self.rotation), evaluations=self.evaluations)
        if self.literal:
            images = images + attacks.GAUSSIAN_START * attacks.drawn(torch.randn, images, None)
            for _ in range(self.iterations):
                # No ball around the original: after a turn, its pixels are no longer in their places.
                step = partial(attacks.fgsm, eps=self.step)
                images = perturb(model, images.clamp(0, 1), labels, pixel=step, spatial=spatial)
            return images
        pixel = None
        if self.eps:
            pixel = partial(attacks.pgd, eps=self.eps, step=self.step, iterations=self.iterations, start=self.start)
        return perturb(model, images, labels, pixel=pixel, spatial=spatial)


@dataclass(frozen=True)
class Environment:
    """One hybrid environment H_k: a pixel budget and a spatial one, for images of side ``size``.

    ``eps`` in [0, 1]; ``step`` and ``iterations`` of PGD; ``s`` = (ξ px, ζ px, α°), the environment read as one fixed
    transform; ``box``, the same numbers read as the range of a search. The document does not say which is meant (L25).
    """

    name: str
    eps: float
    step: float
    iterations: int
    s: tuple[float, float, float]
    box: Box

    @property
    def pixel(self) -> "partial[Tensor] | None":
        """PGD as in Algorithm 1 (start 0.001 · N(0, 1)), or None in H0."""
        if self.eps == 0:
            return None
        return partial(attacks.pgd, eps=self.eps, step=self.step, iterations=self.iterations, start="gaussian")

    @property
    def fixed(self) -> SpatialAttack | None:
        """The fixed transform ``s``, or None where that moves nothing; a search is ``partial(stbo, box=place.box)``."""
        return partial(fixed, s=self.s) if any(self.s) else None


def environment(k: int, *, size: int = REFERENCE_SIZE) -> Environment:
    """H_k, k = 0…6: ε = k/255, translation 2k px, rotation 30k°; H0 is the clean image.

    PGD takes k steps of 1/255, which gives the document's one stated case, six steps for 6/255 (L13). Translations
    hold for 300 px and scale with ``size``. Raises ``ValueError`` for any other k.
    """
    if not is_whole(k, least=0) or k > 6:
        raise ValueError(f"k must be a whole number from 0 to 6, found {k!r}")
    k = int(k)
    pixels = 2 * k * size / REFERENCE_SIZE
    return Environment(
        name=f"H{k}",
        eps=k / 255,
        step=1 / 255,
        iterations=k,
        s=(pixels, pixels, 30.0 * k),
        box=Box(translation=pixels, rotation=30.0 * k),
    )


def pixel_and_rotation(k: int, rotation: float) -> Environment:
    """A cell of figure 5: ε = k/255 with k steps of 1/255, and ``rotation`` degrees (or up to so many), no shift."""
    still = environment(k)
    return replace(still, name=f"{k}/255, {rotation:g}°", s=(0.0, 0.0, float(rotation)), box=Box(0, rotation))


@ordinary_tensors()
def random_noise(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform noise in ±``eps``, clipped to [0, 1]: a pixel perturbation that asks the model nothing."""
    check_images(images, labels)
    return attacks.noisy(images, check_fraction("eps", eps), generator).clamp_(0, 1)


class _Masked(nn.Module):
    """``model`` asked for the first channels of ``[B, C + 1, H, W]``, black wherever the last one is below one half."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[:, :-1] * (images[:, -1:] > 0.5))


def masked(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A network and images ``[B, C + 1, H, W]`` that keep any pixel attack inside the cell: what is black stays black.

    The last channel is 1 where a pixel is not black. Changes of less than one half cannot flip it, and outside of it no
    gradient is left.
    """
    cell = (images.amax(dim=1, keepdim=True) > 0).to(images)  # [B, 1, H, W]
    return _Masked(model), torch.cat([images, cell], dim=1)


def within_cell(model: nn.Module, images: Tensor, labels: Tensor, *, attack: PixelAttack) -> Tensor:
    """``attack`` kept to the cell: pixels that are black in every channel stay black.

    Raises ``ValueError`` where it moved the mask by one half or more, as an ``eps`` of 0.5 can.
    """
    network, with_mask = masked(model, images)
    attacked = attack(network, with_mask, labels)
    if (attacked[:, -1:] - with_mask[:, -1:]).abs().max() >= 0.5:
        raise ValueError("the attack moved pixels by 0.5 or more, beyond which the cell is lost: take a smaller eps")
    return attacked[:, :-1] * with_mask[:, -1:]


def showcase(eps: float, box: Box, *, seed: int = 0) -> dict[str, PixelAttack]:
    """Random and searched perturbations of one size, by name: what figure 1 of the leukemia paper is about.

    Searched: PGD with six steps of eps/6 (the document's setting at 6/255) and STBO with 100 queries. "…, in the cell":
    noise that leaves the black background black.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = partial(random_noise, eps=eps, generator=generator)
    turn = partial(random_search, box=box, evaluations=1, generator=generator)
    pgd = partial(attacks.pgd, eps=eps, step=eps / 6, iterations=6, start="gaussian", generator=generator)
    parts: dict[str, tuple[PixelAttack | None, SpatialAttack | None]] = {
        "clean": (None, None),
        "random noise": (noise, None),
        "random noise, in the cell": (partial(within_cell, attack=noise), None),
        "random transform": (None, turn),
        "random both": (noise, turn),
        "worst noise": (pgd, None),
        "worst noise, in the cell": (partial(within_cell, attack=pgd), None),
        "worst transform": (None, partial(stbo, box=box, generator=generator)),
    }
    return {name: partial(perturb, pixel=pixel, spatial=spatial) for name, (pixel, spatial) in parts.items()}
