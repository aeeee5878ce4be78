"""Domain assimilation: a texture and a colour module before a pretrained backbone, and the GLCM loss; equation 18.

The modules T and C turn a grey medical image into a colour picture nearer to those the backbone was trained on; the
GLCM loss keeps that picture's texture near the original's. The whole chain F ∘ B ∘ norm ∘ C ∘ T takes grey images
``[B, 1, H, W]`` in ``[0, 1]``, so that attacks act on what a scanner made (D7). The slides give no architecture for T
and C; these are ours.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib._model import check_number, check_whole
from hpatlib.glcm import FEATURES, texture_features

LUMA = (0.299, 0.587, 0.114)  # red, green and blue in a grey value, ITU-R BT.601
# How far a feature can move: between the least and the most it can be on grey levels 0…255.
RANGES: Mapping[str, float] = MappingProxyType(
    {"asm": 1.0, "contrast": 255.0**2, "homogeneity": 1.0, "correlation": 2.0, "dissimilarity": 255.0}
)

Target = Literal["C(T(x))", "C(x)"]


def grayscale(images: Tensor) -> Tensor:
    """Grey values ``[B, 1, H, W]`` of colour ``images [B, 3, H, W]``: 0.299 R + 0.587 G + 0.114 B."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be colour images [B, 3, H, W], found {list(images.shape)}")
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)


class Repaint(nn.Module):
    """T (1 output) or C (3 outputs): grey images ``[B, 1, H, W]`` in [0, 1] → ``[B, outputs, H, W]`` in [0, 1].

    Three 3 × 3 convolutions, 16 channels wide, propose r for every pixel and output. Of each pixel, a share
    ``|t|``, t = strength · tanh(r), is replaced by white (t > 0) or black (t < 0): ``y = (1 − |t|) · x + max(0, t)``.
    2625 parameters with 1 output, 2915 with 3. The last convolution starts at zero: y = x until training moves it.

    Why not x + r, clamped: a clamp passes no gradient where it acts, on the black background and the bright bone of
    most medical images, and what an attack cannot see looks robust (gradient masking). Here y stays in [0, 1] by
    construction and, at fixed r, ``∂y/∂x = 1 − |t|`` is never below 1 − ``strength``, 0 < ``strength`` < 1. There is no
    batch norm: images do not depend on their batch mates.
    """

    def __init__(self, outputs: int, *, width: int = 16, strength: float = 0.5) -> None:
        super().__init__()
        outputs, width = check_whole("outputs", outputs), check_whole("width", width)
        expected = "lie between 0 and 1, both excluded"
        self.strength = check_number("strength", strength, lambda share: 0 < share < 1, expected)
        # Repeating the border keeps an even picture even; zeros would draw a frame around it.
        last = nn.Conv2d(width, outputs, 3, padding=1, padding_mode="replicate")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.propose = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            last,
        )

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that proposes r."""
        layer = self.propose[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, images: Tensor) -> Tensor:
        t = self.strength * torch.tanh(self.propose(2 * images - 1))  # [B, outputs, H, W]
        # max(0, t) written as (t + |t|) / 2: at the start, t = 0, every pixel then has slope 1/2 in t and none is dead.
        return images + t / 2 + t.abs() * (0.5 - images)


class Assimilated(nn.Module):
    """F ∘ B ∘ norm ∘ C ∘ T: grey images ``[B, 1, H, W]`` in [0, 1] → logits ``[B, classes]``.

    ``network``: a classifier of colour images in [0, 1] that normalises them itself, ``models.build(name, classes)``;
    its normalisation thus follows C. ``texture`` and ``colour`` are T and C, 5540 parameters together. Untrained, the
    picture is the grey image three times and the logits are those of ``Replicated(network)``. Raises ``ValueError``
    for images of another shape.
    """

    def __init__(self, network: nn.Module, *, strength: float = 0.5) -> None:
        super().__init__()
        self.texture = Repaint(1, strength=strength)
        self.colour = Repaint(3, strength=strength)
        self.network = network

    def front(self) -> Iterator[nn.Parameter]:
        """The parameters of T and C, which may learn at a rate of their own (``Recipe.front_lr``)."""
        yield from self.texture.parameters()
        yield from self.colour.parameters()

    def colour_image(self, images: Tensor) -> Tensor:
        """C(T(x)): the picture the backbone sees, ``[B, 3, H, W]`` in [0, 1]."""
        _check_grey(images)
        return self.colour(self.texture(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.colour_image(images))


def repaint_at_random(model: Assimilated, images: Iterable[Tensor], spread: float, *, tries: int = 100) -> None:
    """Give T and C random weights for good, such that pictures are coloured as much as ``spread`` says; in place.

    Both keep the random first layers that they were made with and get random last ones (PyTorch's default), drawn from
    torch's global generator; then one factor on both last layers is sought by bisection until the mean channel spread
    of the pictures of ``images``, batches ``[B, 1, H, W]``, is ``spread`` to a thousandth of it. Where a draw pushes
    most pixels of all three channels the same way, as one in four does with an even background, large factors make them
    grey again: then the last layers are drawn anew, ``tries`` times at most. Their parameters need no gradient
    afterwards: training leaves them as they are. Raises ``ValueError`` where no draw reaches ``spread``.
    """
    check_number("spread", spread, lambda share: 0 < share < 1, "lie between 0 and 1, both excluded")
    tries = check_whole("tries", tries)
    parameters = [each for module in (model.texture, model.colour) for each in module.last.parameters()]
    batches = list(images)

    @torch.no_grad()
    def reached(drawn: list[Tensor], log: float) -> float:
        for parameter, value in zip(parameters, drawn, strict=True):
            parameter.copy_(value * math.exp(log))
        return float(torch.cat([channel_spread(model.colour_image(batch)) for batch in batches]).mean())

    low, high, most = -10.0, 10.0, 0.0
    for _ in range(tries):
        model.texture.last.reset_parameters()
        model.colour.last.reset_parameters()
        drawn = [parameter.detach().clone() for parameter in parameters]
        if (found := reached(drawn, high)) > spread:
            break
        most = max(most, found)
    else:
        raise ValueError(
            f"random colours spread by {most:.3f} at most where they saturate on these images, found spread={spread}"
        )
    for _ in range(60):
        middle = (low + high) / 2
        if abs(excess := reached(drawn, middle) - spread) < 1e-3 * spread:
            break
        low, high = (middle, high) if excess < 0 else (low, middle)
    for parameter in model.front():
        parameter.requires_grad_(False)


def channel_spread(pictures: Tensor) -> Tensor:
    """How coloured ``pictures [B, 3, H, W]`` are: the largest less the smallest channel, mean over pixels, ``[B]``."""
    return (pictures.amax(dim=1) - pictures.amin(dim=1)).mean(dim=(1, 2))


class Replicated(nn.Module):
    """Vanilla transfer learning, the slides' dashed lines: ``network`` on the grey image in all three channels.

    Grey images ``[B, 1, H, W]`` in [0, 1] → logits ``[B, classes]``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        _check_grey(images)
        return self.network(images.expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class GLCMLoss:
    """How far a colour picture's texture is from the grey image's: ``max_i Σ_j |SOT(grey)_ij − SOT(x)_ij|``.

    Rows i are the windows of an image, columns j its features in every orientation (m = 121 and n = 5 · 8 = 40 at
    224 px; D2): with ``form="max"`` no place may be distorted much, but only the worst window of each image has a
    gradient; ``"mean"`` takes the mean over windows instead of the maximum. Each feature is divided by ``RANGES``, how
    far it can move at all (contrast 255², dissimilarity 255, correlation 2, ASM and homogeneity 1), or contrast would
    drown the others; a window's sum thus lies in [0, n]. On chest CT, breast ultrasound, chest X-rays and brain MRI,
    repainted at random, each of the five then moves by 0.001 to 0.035. ``features`` and the rest go to
    ``glcm.texture_features``; ASM takes about three quarters of the loss's time.
    """

    form: Literal["max", "mean"] = "max"
    features: tuple[str, ...] = FEATURES
    distance: float = 3
    angles: int | tuple[float, ...] = 8
    window: int = 20
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.form not in ("max", "mean"):
            raise ValueError(f'form must be "max" or "mean", found {self.form!r}')

    def textures(self, images: Tensor) -> Tensor:
        """The matrix SOT ``[B, windows, features · orientations]`` of grey images ``[B, 1, H, W]``, scaled."""
        found = texture_features(
            images,
            distance=self.distance,
            angles=self.angles,
            window=self.window,
            stride=self.stride,
            features=self.features,
        )
        scaled = [values / RANGES[name] for name, values in found.items()]  # [B, orientations, rows, columns] each
        return torch.cat(scaled, dim=1).flatten(2).transpose(1, 2)

    def __call__(self, picture: Tensor, images: Tensor) -> Tensor:
        """The mean over the batch, a scalar, for ``picture [B, 3, H, W]`` made of ``images [B, 1, H, W]``."""
        if picture.shape[:1] + picture.shape[2:] != images.shape[:1] + images.shape[2:]:
            raise ValueError(f"picture {list(picture.shape)} and images {list(images.shape)} differ in batch or size")
        moved = (self.textures(grayscale(picture)) - self.textures(images)).abs().sum(dim=2)  # [B, windows]
        return (moved.amax(dim=1) if self.form == "max" else moved.mean(dim=1)).mean()


@dataclass(frozen=True)
class Objective:
    """Equation 18: α · cross-entropy + (1 − α) · GLCM loss, called as ``objective(model, images, labels)``.

    Takes an ``Assimilated`` model, ``images [B, 1, H, W]`` and ``labels [B]``; returns the loss, a scalar, and the
    logits ``[B, classes]``. ``target`` is the picture whose texture is held: ``"C(T(x))"``, what the backbone sees, or
    ``"C(x)"`` as printed, which leaves T unrestrained (D1). The slides give no value for ``alpha``, in [0, 1] (1: no
    texture loss, and none is computed). Raises ``ValueError`` for another α or target.
    """

    alpha: float
    texture: GLCMLoss = GLCMLoss()
    target: Target = "C(T(x))"

    def __post_init__(self) -> None:
        alpha = check_number("alpha", self.alpha, lambda weight: 0 <= weight <= 1, "lie in [0, 1]")
        object.__setattr__(self, "alpha", alpha)
        if self.target not in ("C(T(x))", "C(x)"):
            raise ValueError(f'target must be "C(T(x))" or "C(x)", found {self.target!r}')

    def __call__(self, model: Assimilated, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        picture = model.colour_image(images)
        logits = model.network(picture)
        loss = self.alpha * F.cross_entropy(logits, labels)
        if self.alpha < 1:
            held = picture if self.target == "C(T(x))" else model.colour(images)
            loss = loss + (1 - self.alpha) * self.texture(held, images)
        return loss, logits


def _check_grey(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images must be grey images [B, 1, H, W], found {list(images.shape)}")
