"""Texture features with gradients against a compiled loop and libraries, both without: 224 px, 121 windows an image.

20 × 20 pixels a window, 256 levels, 8 orientations at distance 3, float32, batches of 8 images, one thread; on a CPU
processor time, so that what else the machine does counts for neither. Ours computes opposite orientations once.

The measure of what is possible is a loop over windows, orientations and pairs, compiled by numba: one pass a window
over a table that is reset pair by pair. ``counts`` is the textbook's, for whole levels and all 8 orientations;
``shares`` computes the very function that ours does, for any grey value and the 4 distinct orientations. Both have no
gradients. Of the libraries, those that are installed take part, each with what it offers: scikit-image our five
features, mahotas and cp-measure 13 in 4 orientations, fastrad 24 in 13 at distance 1. They are slow, so that they are
timed on 6 of the 968 windows.
"""

import importlib
import math
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from _timing import arguments, compare, row, save
from skimage.feature import graycomatrix, graycoprops
from torch import Tensor

from hpatlib.glcm import FEATURES, texture_features

BATCH, SIZE, WINDOW, DISTANCE = 8, 224, 20, 3
CROPS = 6  # how many windows the libraries are timed on
ANGLES = [2 * math.pi * n / 8 for n in range(8)]
OFFSETS = np.array([(0, 3), (2, 2), (3, 0), (2, -2), (0, -3), (-2, -2), (-3, 0), (-2, 2)])
LEVELS, BOTH = "texture features, whole levels", "texture features and gradients"
PAIR_FEATURES = tuple(name for name in FEATURES if name != "asm")


def pictures() -> Tensor:
    """Smooth shapes with noise on a black background, ``[B, 1, H, W]`` at 256 grey levels, as medical images are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 1, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    return (255 * noisy.clamp(0, 1) * (smooth > 0.3)).round().double() / 255


def differentiate(images: Tensor, features: tuple[str, ...] = FEATURES) -> None:
    x = images.clone().requires_grad_()
    sum(values.sum() for values in texture_features(x, features=features).values()).backward()


def by_skimage(crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """``{feature: [crops, orientations]}``."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
    for crop in crops:
        matrix = graycomatrix(crop, [DISTANCE], ANGLES, 256)
        for name in FEATURES:
            found[name].append(graycoprops(matrix, "ASM" if name == "asm" else name)[0])
    return {name: np.stack(values) for name, values in found.items()}


def by_mahotas(crops: list[np.ndarray]) -> None:
    features = importlib.import_module("mahotas.features")
    for crop in crops:
        features.haralick(crop, distance=DISTANCE)


def by_cp_measure(crops: list[np.ndarray]) -> None:
    texture = importlib.import_module("cp_measure.core.measuretexture")
    labels = np.repeat(np.arange(1, len(crops) + 1), WINDOW)[None].repeat(WINDOW, 0)
    texture.get_texture(labels, np.concatenate(crops, axis=1) / 255, scale=DISTANCE)


def by_fastrad(crops: list[np.ndarray]) -> None:
    glcm, settings = (importlib.import_module(f"fastrad.{name}") for name in ("features.glcm", "settings"))
    for crop in crops:
        volume = torch.from_numpy(crop).float()[None]
        glcm.compute(volume, torch.ones_like(volume), settings.FeatureSettings(bin_width=1))


LIBRARIES = {
    "scikit-image": by_skimage,
    "mahotas": by_mahotas,
    "cp-measure": by_cp_measure,
    "fastrad": by_fastrad,
}


def compiled() -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """``counts`` and ``shares``: five features ``[B, rows, columns, offsets, 5]`` of ``grey [B, H, W]``."""
    numba = importlib.import_module("numba")

    @numba.njit
    def finish(out, squares, contrast, inverse, dissimilarity, i, j, ii, jj, ij, n):
        flat = min(n * ii - i * i, n * jj - j * j) < n / 4
        out[0], out[1], out[2], out[4] = squares / (n * n), contrast / n, inverse / n, dissimilarity / n
        out[3] = 1 if flat else (n * ij - i * j) / math.sqrt((n * ii - i * i) * float(n * jj - j * j))

    @numba.njit(fastmath=True)
    def counts(grey, offsets, window):
        batch, height, width = grey.shape
        rows, columns = height // window, width // window
        out = np.zeros((batch, rows, columns, len(offsets), 5), np.float32)
        table = np.zeros((256, 257), np.int32)  # 257: rows that lie a power of two apart share cache lines' places
        for b, r, c, o in np.ndindex(batch, rows, columns, len(offsets)):
            down, right = offsets[o]
            top, bottom = r * window + max(0, -down), (r + 1) * window - max(0, down)
            left, end = c * window + max(0, -right), (c + 1) * window - max(0, right)
            squares = contrast = dissimilarity = si = sj = sii = sjj = sij = 0
            inverse = np.float32(0)
            for y in range(top, bottom):
                for x in range(left, end):
                    i, j = np.int64(grey[b, y, x]), np.int64(grey[b, y + down, x + right])
                    squares += 2 * table[i, j] + 1  # (p + 1)² − p²
                    table[i, j] += 1
                    size = abs(i - j)
                    contrast, dissimilarity = contrast + size * size, dissimilarity + size
                    inverse += np.float32(1) / (1 + size)
                    si, sj, sii, sjj, sij = si + i, sj + j, sii + i * i, sjj + j * j, sij + i * j
            for y in range(top, bottom):
                for x in range(left, end):
                    table[grey[b, y, x], grey[b, y + down, x + right]] = 0
            n = (bottom - top) * (end - left)
            finish(out[b, r, c, o], squares, contrast, inverse, dissimilarity, si, sj, sii, sjj, sij, n)
        return out

    @numba.njit(fastmath=True)
    def shares(grey, lower, cos, sin, offsets, window):
        batch, height, width = grey.shape
        rows, columns = height // window, width // window
        out = np.zeros((batch, rows, columns, len(offsets), 5), np.float32)
        table = np.zeros((257, 257), np.float32)
        for b, r, c, o in np.ndindex(batch, rows, columns, len(offsets)):
            down, right = offsets[o]
            top, bottom = r * window + max(0, -down), (r + 1) * window - max(0, down)
            left, end = c * window + max(0, -right), (c + 1) * window - max(0, right)
            squares = contrast = dissimilarity = inverse = np.float32(0)
            si = sj = sii = sjj = sij = 0.0
            for y in range(top, bottom):
                for x in range(left, end):
                    i, j = lower[b, y, x], lower[b, y + down, x + right]
                    first = cos[b, y, x], sin[b, y, x]
                    second = cos[b, y + down, x + right], sin[b, y + down, x + right]
                    for k in range(2):
                        for m in range(2):
                            weight, before = first[k] * second[m], table[i + k, j + m]
                            squares += weight * (2 * before + weight)  # (p + w)² − p²
                            table[i + k, j + m] = before + weight
                    g, h = grey[b, y, x], grey[b, y + down, x + right]
                    size = abs(g - h)
                    contrast, dissimilarity = contrast + size * size, dissimilarity + size
                    inverse += np.float32(1) / (1 + size)
                    si, sj, sii, sjj, sij = si + g, sj + h, sii + g * g, sjj + h * h, sij + g * h
            for y in range(top, bottom):
                for x in range(left, end):
                    i, j = lower[b, y, x], lower[b, y + down, x + right]
                    table[i, j] = table[i, j + 1] = table[i + 1, j] = table[i + 1, j + 1] = 0
            n = (bottom - top) * (end - left)
            finish(out[b, r, c, o], squares, contrast, inverse, dissimilarity, si, sj, sii, sjj, sij, n)
        return out

    def with_shares(grey: np.ndarray, offsets: np.ndarray, window: int) -> np.ndarray:
        lower = np.floor(grey)
        angle = (grey - lower) * np.float32(np.pi / 2)
        return shares(grey, lower.astype(np.int64), np.cos(angle), np.sin(angle), offsets, window)

    return counts, with_shares


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, np.ndarray]) -> float:
    """Over all features, relative above 1; the same shape each, or one that broadcasts."""
    gaps = [np.abs(ours[name].cpu().numpy() - other) / np.maximum(1, np.abs(other)) for name, other in theirs.items()]
    return float(max(gap.max() for gap in gaps))


def main() -> None:
    options = arguments(__doc__, repeats=7)
    torch.set_num_threads(1)
    clock = time.perf_counter if torch.device(options.device).type == "cuda" else time.process_time
    exact = pictures()
    whole = exact.float().to(options.device)
    noise = torch.rand(whole.shape, generator=torch.Generator().manual_seed(1))
    between = (exact.float() + 0.5 / 255 * noise).clamp(0, 1).to(options.device)
    side = SIZE // WINDOW
    places = [divmod(n * side * side // CROPS, side) for n in range(CROPS)]
    levels = (255 * exact[:, 0]).round().byte().numpy()
    crops = [levels[0, r * WINDOW : (r + 1) * WINDOW, c * WINDOW : (c + 1) * WINDOW] for r, c in places]
    rows, differences = [], {}

    squared = texture_features(exact[:1], homogeneity="squared")  # as scikit-image's, in float64
    at_places = {name: torch.stack([values[0, :, r, c] for r, c in places]) for name, values in squared.items()}
    differences["scikit-image"] = largest_difference(at_places, by_skimage(crops))

    mine = {
        LEVELS: lambda: texture_features(whole),
        "texture features": lambda: texture_features(between),
        BOTH: lambda: differentiate(between),
        f"{BOTH}, no ASM": lambda: differentiate(between, PAIR_FEATURES),
    }
    try:
        counts, shares = compiled()
    except ImportError:
        print("numba is not installed: no compiled loop to compare with")
        loops = {}
    else:
        grey = 255 * between[:, 0].cpu().numpy()
        loops = {
            "numba, counts": lambda: counts(levels, OFFSETS, WINDOW),
            "numba, shares": lambda: shares(grey, OFFSETS[:4], WINDOW),
        }
        for name, images, (loop, run) in zip(("whole", "between"), (whole, between), loops.items(), strict=True):
            theirs = dict(zip(FEATURES, run().transpose(4, 0, 3, 1, 2), strict=True))
            ours = texture_features(images, angles=ANGLES[: theirs["asm"].shape[1]])
            differences[f"{loop}, {name}"] = largest_difference(ours, theirs)
    seconds = compare(mine | loops, options.repeats, clock)
    if loops:
        rows.append(row(LEVELS, seconds, LEVELS, "numba, counts", target=2))
        rows.append(row("texture features, any grey values", seconds, "texture features", "numba, shares", target=2))
    for name, limit in ((BOTH, 10), (f"{BOTH}, no ASM", 5)):
        an_image = {name: [1e3 * taken / BATCH for taken in seconds[name]], "a limit": [limit] * options.repeats}
        rows.append(row(f"{name}, an image", an_image, name, "a limit", target=1, unit="ms"))

    for name, library in LIBRARIES.items():
        try:
            library(crops)
        except ImportError as missing:
            print(f"{name} does not take part: {missing}")
            continue
        once = {"hpatlib": mine[BOTH], name: lambda library=library: library(crops)}
        part = BATCH * side * side / CROPS
        target = 1 / 50 if name == "scikit-image" else None
        taken = compare(once, options.repeats, clock)
        rows.append(row(f"{BOTH}, against values alone", taken, "hpatlib", name, target=target, scale=part))

    print("largest differences, relative above 1:", {name: f"{gap:.1e}" for name, gap in differences.items()})
    save("glcm", rows, options, largest_differences=differences)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process, PyTorch's own included: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
