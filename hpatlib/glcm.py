"""Grey-level co-occurrence matrices and the five texture features of the domain-assimilation slides, differentiable.

A co-occurrence matrix P counts, for one offset, how often grey level i has grey level j beside it. Hard counts have no
gradient, so nothing can be learned through them (D4). Means over pixel pairs have one:

- contrast ``(i − j)²``, dissimilarity ``|i − j|`` and homogeneity ``1 / (1 + |i − j|)``: means over a window's pairs;
- correlation: Pearson's, between first and second pixels;
- ASM, Σ P²: a grey value i + u between two levels belongs to both, to i with weight cos(πu/2) and to i + 1 with
  sin(πu/2), and a pair counts in four cells of P with products of weights. As their *squares* sum to one, an even
  window has ASM 1 at any brightness; with shares that sum to one, as ``glcm(soft=True)`` counts, it would fall to
  1/4 halfway between two levels.

On whole grey levels all five equal scikit-image's at 256 levels, and between them they have slopes. Images are
``[B, 1, H, W]`` floats in ``[0, 1]``, read as grey levels 0…255; angles are radians. As in scikit-image, distance d and
angle θ mean the offset (d · sin θ rows down, d · cos θ columns to the right), rounded half away from zero, so π/2 is
the pixel *below*. Pairs that leave the image, or the window, do not count.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hpatlib._model import check_images, check_number, check_whole, is_whole

FEATURES = ("asm", "contrast", "homogeneity", "correlation", "dissimilarity")  # in the slides' order
GREY_LEVELS = 256

Offset = tuple[int, int]  # rows down, columns to the right

WINDOWS_AT_ONCE = 8192  # pair features: 20 × 20 pixels, 4 offsets and their gradients then stay below 500 MB
TABLE = GREY_LEVELS + 1  # levels along a side of ASM's tables: the last also has one above it
TABLES_AT_ONCE = {"cpu": 32, "cuda": 2048}  # enough to outweigh starting an operation, few enough for caches and memory


def glcm(
    images: Tensor, distances: Sequence[float], angles: Sequence[float], levels: int, *, soft: bool = False
) -> Tensor:
    """Co-occurrence matrices of whole images: counts ``P [B, levels, levels, distances, angles]``, not normalised.

    ``P[b]`` is laid out as by ``skimage.feature.graycomatrix(symmetric=False, normed=False)``; axis 1 is the pixel,
    axis 2 the one at the offset. ``images [B, 1, H, W]`` become levels (levels − 1) · x: rounded to the nearest (hard
    counts, no gradient), or with ``soft`` shared between the two nearest by ``tri(u) = max(0, 1 − |u|)``,
    differentiable. Both agree wherever the levels are whole. Raises ``ValueError`` for other images, fewer than 2
    levels, no distance or angle, or distances below 1.
    """
    grey = _grey(images)
    levels = check_whole("levels", levels, least=2)
    distances, angles = _sequence("distances", distances), _sequence("angles", angles)
    if len(distances) == 0 or len(angles) == 0:
        raise ValueError(f"glcm needs at least one distance and angle, found {list(distances)} and {list(angles)}")
    grey = (levels - 1) * grey.permute(1, 2, 0)  # [H, W, B]
    batch = len(images)
    which = torch.arange(batch, device=images.device) * levels**2
    by_distance = []
    for distance in distances:
        by_angle = []
        for angle in angles:
            first, second = _pairs(grey, _offset(distance, angle))  # [h, w, B] each
            counts = grey.new_zeros(batch * levels**2)
            for i, weight_i in _shares(first, levels, soft):
                for j, weight_j in _shares(second, levels, soft):
                    cells = (which + i * levels + j).flatten()
                    counts = counts.index_add(0, cells, (weight_i * weight_j).flatten())
            by_angle.append(counts.view(batch, levels, levels))
        by_distance.append(torch.stack(by_angle, dim=-1))
    return torch.stack(by_distance, dim=-2)


def texture_features(
    images: Tensor,
    *,
    distance: float = 3,
    angles: int | Sequence[float] = 8,
    window: int = 20,
    stride: int | None = None,
    features: Sequence[str] = FEATURES,
    homogeneity: Literal["absolute", "squared"] = "absolute",
) -> dict[str, Tensor]:
    """The slides' second-order texture features of every window: ``{name: [B, angles, rows, columns]}``.

    ``images [B, 1, H, W]``; ``angles``: radians, or how many to spread evenly over the circle (8: 0°, 45° … 315°).
    Each ``window`` × ``window`` area is an image of its own, as if cut out first. ``stride`` pixels lie between
    windows; by default they tile: 11 × 11 windows of 20 px at 224 px, where the last 4 rows and columns belong to none
    (D5); a smaller stride slides and covers more. ``features``: which, in what order; ``asm`` costs most.
    ``homogeneity``: ``"absolute"`` is the slides' ``1 / (1 + |i − j|)``, ``"squared"`` scikit-image's
    ``1 / (1 + (i − j)²)``.

    Values are in grey levels 0…255. Turned by 180°, P is transposed and no feature changes (D6), so opposite angles are
    computed once. Correlation is 1, with zero gradient, where either half of the pairs is flat: its variance below
    1 / (4 · pairs), at most half of what a single pixel that is one grey level off would make. An 8-bit image sits on
    the kinks of ASM and ``|·|``, where the gradient is taken as 0. Half precision is computed in float32.

    Raises ``ValueError`` for images that are not ``[B, 1, H, W]`` in [0, 1], unknown features, windows that do not fit
    the image, or offsets that do not fit the window.
    """
    grey = (GREY_LEVELS - 1) * _grey(images)  # [B, H, W]
    offsets = _offsets(distance, angles)
    window = _checked_window(images, window, offsets)
    stride = window if stride is None else check_whole("stride", stride)
    features = _sequence("features", features)
    unknown = [name for name in features if name not in FEATURES]
    if unknown or not features:
        raise ValueError(f"features must be some of {', '.join(FEATURES)}, found {list(features)}")
    if homogeneity not in ("absolute", "squared"):
        raise ValueError(f'homogeneity must be "absolute" or "squared", found {homogeneity!r}')

    distinct = list(dict.fromkeys(max(offset, _opposite(offset)) for offset in offsets))
    repeat = [distinct.index(max(offset, _opposite(offset))) for offset in offsets]
    cut = grey.unfold(1, window, stride).unfold(2, window, stride)  # [B, rows, columns, window, window], a view
    places = cut.shape[:3]
    # Windows last: then every step below runs along contiguous memory, whatever part of the window it takes.
    windows = cut.permute(3, 4, 0, 1, 2).reshape(window, window, -1)  # [window, window, M]

    found: dict[str, Tensor] = {}
    if "asm" in features:
        found["asm"] = _ASM.apply(windows, distinct)  # [offsets, M]
    if pair_features := [name for name in FEATURES if name in features and name != "asm"]:
        chunks = windows.split(WINDOWS_AT_ONCE, dim=-1)
        several = len(chunks) > 1 and torch.is_grad_enabled() and windows.requires_grad
        # Sliding by a pixel makes so many windows that their intermediate results are better computed twice than kept.
        run: Callable[..., Any] = _keep_nothing if several else _pair_features
        parts = [run(chunk, distinct, pair_features, homogeneity) for chunk in chunks]
        found |= dict(zip(pair_features, map(torch.cat, zip(*parts, strict=True), [-1] * len(FEATURES)), strict=False))
    return {name: found[name][repeat].unflatten(1, places).transpose(0, 1) for name in features}


def _keep_nothing(*arguments: Any) -> list[Tensor]:
    return checkpoint(_pair_features, *arguments, use_reentrant=False)


def _pair_features(windows: Tensor, offsets: list[Offset], features: list[str], homogeneity: str) -> list[Tensor]:
    """Means over pairs: one ``[offsets, M]`` for each of ``features``, from ``windows [window, window, M]``."""
    rows: dict[str, list[Tensor]] = {name: [] for name in features}
    for offset in offsets:
        first, second = _pairs(windows, offset)  # [h, w, M] each
        difference = first - second
        size = difference.abs()
        for name, values in rows.items():
            if name == "contrast":
                values.append(difference.square().mean(dim=(0, 1)))
            elif name == "dissimilarity":
                values.append(size.mean(dim=(0, 1)))
            elif name == "homogeneity":
                distance = size if homogeneity == "absolute" else difference.square()
                values.append((1 + distance).reciprocal().mean(dim=(0, 1)))
            else:
                values.append(_correlation(first, second))
    return [torch.stack(values) for values in rows.values()]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation ``[M]`` of ``first`` and ``second [h, w, M]``; 1 where either is flat."""
    # Centred before anything is squared: E[ij] − E[i]E[j] would cancel to nothing in float32 on a bright, even window.
    first = first - first.mean(dim=(0, 1))
    second = second - second.mean(dim=(0, 1))
    covariance = (first * second).mean(dim=(0, 1))
    variances = first.square().mean(dim=(0, 1)), second.square().mean(dim=(0, 1))
    flat = torch.minimum(*variances) < 1 / (4 * first.shape[0] * first.shape[1])
    # Two wheres: 0 · ∞ would be NaN in the gradient of the branch that is not taken.
    product = torch.where(flat, 1.0, variances[0] * variances[1])
    return torch.where(flat, 1.0, covariance * product.rsqrt())


class _ASM(torch.autograd.Function):
    """Angular second moment ``[offsets, M]`` of ``windows [window, window, M]``, for pairs at each of ``offsets``.

    N² · ASM = Σ P² = Σ weight · P over the cells of a window's N pairs, so that only those cells are ever touched, and
    time grows with N. At any grey values 1 / N ≤ ASM ≤ 1: to P, every pair adds an array of length 1 with no entry
    below 0. The slopes are taken on the way, for autograd would keep the tables.
    """

    @staticmethod
    def forward(ctx: Any, windows: Tensor, offsets: list[Offset]) -> Tensor:
        at_once = TABLES_AT_ONCE.get(windows.device.type, TABLES_AT_ONCE["cuda"])
        tables = windows.new_zeros(min(at_once, windows.shape[-1]) * TABLE**2)
        between = bool(windows.frac().any())  # on whole levels, those of 8-bit images, pairs have one cell and no slope
        parts = [
            _asm(chunk.contiguous(), offsets, tables, between, ctx.needs_input_grad[0])
            for chunk in windows.split(at_once, dim=-1)
        ]
        values, slopes = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors  # [offsets, window, window, M]
        return (slopes * slope[:, None, None]).sum(dim=0), None


def _asm(
    windows: Tensor, offsets: list[Offset], tables: Tensor, between: bool, with_slopes: bool
) -> tuple[Tensor, Tensor]:
    """ASM ``[offsets, M]`` and its slopes ``[offsets, window, window, M]``, if wanted.

    ``tables``: zeros, before and after; ``between``: whether any grey value lies between two levels.
    """
    lower = windows.floor().clamp_(min=0)  # images may leave [0, 1] by a rounding error
    angle = (windows - lower).mul_(math.pi / 2)
    shares = [angle.cos(), angle.sin()] if between else [torch.ones_like(angle)]
    column = lower.long()
    row = column * TABLE + torch.arange(windows.shape[-1], device=windows.device) * TABLE**2
    corners = [tables[i * TABLE + j :] for i in range(len(shares)) for j in range(len(shares))]
    zeros = torch.zeros_like(windows).flatten()
    values, slopes = [], windows.new_zeros(len(offsets) if with_slopes else 0, *windows.shape)
    for n, offset in enumerate(offsets):
        pairs = _count(len(windows), offset)
        a, b = zip(*(_pairs(share, offset) for share in shares), strict=True)  # [h, w, M] each
        weights = [(a_i * b_j).flatten() for a_i in a for b_j in b]
        cells = (_pairs(row, offset)[0] + _pairs(column, offset)[1]).flatten()
        for corner, weight in zip(corners, weights, strict=True):
            corner.scatter_add_(0, cells, weight)
        counts = [corner.index_select(0, cells) for corner in corners]
        for corner in corners:
            corner.scatter_(0, cells, zeros[: len(cells)])
        total = weights[0] * counts[0]
        for weight, count in zip(weights[1:], counts[1:], strict=True):
            total.addcmul_(weight, count)
        values.append(total.view(pairs, -1).sum(dim=0) / pairs**2)
        if with_slopes and between:
            p00, p01, p10, p11 = (count.view_as(a[0]) for count in counts)
            to_first, to_second = _pairs(slopes[n], offset)
            for to, own, other, (c00, c01, c10, c11) in (
                (to_first, a, b, (p00, p01, p10, p11)),
                (to_second, b, a, (p00, p10, p01, p11)),
            ):
                to.addcmul_(own[0], torch.addcmul(c10 * other[0], c11, other[1]))
                to.addcmul_(own[1], torch.addcmul(c00 * other[0], c01, other[1]), value=-1)
            slopes[n] *= math.pi / pairs**2  # 2 / N² of Σ P², π/2 of the angle
    return torch.stack(values), slopes.masked_fill_(angle == 0, 0)  # a kink: left and right slopes differ


def _count(window: int, offset: Offset) -> int:
    """How many pairs a window holds."""
    return (window - abs(offset[0])) * (window - abs(offset[1]))


def _pairs(x: Tensor, offset: Offset) -> tuple[Tensor, Tensor]:
    """First and second pixels of all pairs in ``x [H, W, …]``, two views ``[H − |down|, W − |right|, …]``."""
    first, second = [], []
    for side, step in zip(x.shape, offset, strict=False):
        first.append(slice(max(0, -step), max(0, side - max(0, step))))
        second.append(slice(max(0, step), max(0, side - max(0, -step))))
    return x[tuple(first)], x[tuple(second)]


def _shares(grey: Tensor, levels: int, soft: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The levels a pixel counts for, longs, and with what weight."""
    if not soft:
        yield grey.detach().round().long().clamp_(0, levels - 1), torch.ones_like(grey)
        return
    lower = grey.detach().floor().long().clamp_(0, levels - 2)
    upper = (grey - lower).clamp(0, 1)  # images may leave [0, 1] by a rounding error
    yield lower, 1 - upper
    yield lower + 1, upper


def _grey(images: Tensor) -> Tensor:
    """``images [B, 1, H, W]``, checked, as ``[B, H, W]`` in at least single precision."""
    check_images(images)
    if images.shape[1] != 1:
        raise ValueError(
            f"textures are those of grey images [B, 1, H, W], found {list(images.shape)}: convert colour images first "
            "(hpatlib.assimilation.grayscale)"
        )
    return images[:, 0].to(torch.promote_types(images.dtype, torch.float32))


def _offset(distance: float, angle: float) -> Offset:
    distance = check_number("distance", distance, lambda d: 1 <= d < math.inf, "be finite and at least 1 pixel")
    angle = check_number("angle", angle, math.isfinite, "be finite radians")
    return _round(math.sin(angle) * distance), _round(math.cos(angle) * distance)


def _round(value: float) -> int:
    """The nearest whole number, halves away from zero, as C does; Python's round() takes them to the even one."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _offsets(distance: float, angles: int | Sequence[float]) -> list[Offset]:
    if is_whole(angles):
        count = check_whole("angles", angles)
        angles = [2 * math.pi * n / count for n in range(count)]
    radians = _sequence("angles", angles, "radians, or how many (at least 1)")
    if len(radians) == 0:
        raise ValueError("angles must name at least one angle, found none")
    return [_offset(distance, angle) for angle in radians]


def _sequence(name: str, values: Any, of: str = "a sequence") -> Sequence[Any]:
    try:
        return list(values)
    except TypeError:
        raise ValueError(f"{name} must be {of}, found {values!r}") from None


def _opposite(offset: Offset) -> Offset:
    return -offset[0], -offset[1]


def _checked_window(images: Tensor, window: int, offsets: list[Offset]) -> int:
    height, width = images.shape[-2:]
    if not is_whole(window, least=2) or window > min(height, width):
        raise ValueError(
            f"window must be whole pixels, from 2 to the shorter side of {height} × {width} images, found {window!r}"
        )
    if far := [offset for offset in offsets if max(map(abs, offset)) >= window]:
        raise ValueError(f"offsets must stay inside a window of {window} px, found {far[0]} (rows, columns)")
    return int(window)
