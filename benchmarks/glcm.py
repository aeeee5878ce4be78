"""Second-order texture features with gradients against scikit-image in a loop without: 224 px, 20 × 20 windows.

Batch of 8 images, 8 orientations at distance 3, float32; forward and backward here, values alone there, at 256 levels;
processor time of one thread, so that what else the machine does counts for neither. Claims: ≥ 500 × faster for the four
pair features (contrast, homogeneity, correlation, dissimilarity), ≥ 50 × with ASM. Each round times scikit-image on a
few of the 121 windows of an image, and says so; the values of those windows are compared.
"""

import math
import resource
import time

import numpy as np
import torch
from _timing import arguments, compare, row, save
from skimage.feature import graycomatrix, graycoprops

from hpatlib.glcm import FEATURES, texture_features

BATCH, SIZE, WINDOW, DISTANCE = 8, 224, 20, 3
CROPS = 6  # how many windows scikit-image is timed on
ANGLES = [2 * math.pi * n / 8 for n in range(8)]
PAIR_FEATURES = tuple(name for name in FEATURES if name != "asm")


def pictures() -> torch.Tensor:
    """Smooth shapes with noise on a black background, ``[B, 1, H, W]`` at 256 grey levels, as medical images are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 1, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    return (255 * noisy.clamp(0, 1) * (smooth > 0.3)).round().double() / 255


def differentiate(images: torch.Tensor, features: tuple[str, ...]) -> None:
    x = images.clone().requires_grad_()
    sum(values.sum() for values in texture_features(x, features=features).values()).backward()


def by_skimage(crops: list[np.ndarray], features: tuple[str, ...]) -> dict[str, np.ndarray]:
    """``{feature: [crops, orientations]}``."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in features}
    for crop in crops:
        matrix = graycomatrix(crop, [DISTANCE], ANGLES, 256)
        for name in features:
            found[name].append(graycoprops(matrix, "ASM" if name == "asm" else name)[0])
    return {name: np.stack(values) for name, values in found.items()}


def main() -> None:
    options = arguments(__doc__, repeats=5)
    torch.set_num_threads(1)
    images = pictures()
    grey = (255 * images[0, 0]).round().byte().numpy()
    side = SIZE // WINDOW
    places = [divmod(n * side * side // CROPS, side) for n in range(CROPS)]
    crops = [grey[r * WINDOW : (r + 1) * WINDOW, c * WINDOW : (c + 1) * WINDOW] for r, c in places]

    ours = texture_features(images[:1], homogeneity="squared")
    theirs = by_skimage(crops, FEATURES)
    worst = max(
        np.abs(ours[name][0, :, r, c].numpy() - theirs[name][n]).max() / max(1, np.abs(theirs[name][n]).max())
        for name in FEATURES
        for n, (r, c) in enumerate(places)
    )
    print(f"largest difference on {CROPS} windows, relative above 1: {worst:.1e} (float64, claim: ≤ 1e-6)")

    images = images.float()
    print(
        f"{SIZE} px, batch {BATCH}, processor time of 1 thread; "
        f"scikit-image timed on {CROPS} of {side * side} windows, no gradients"
    )
    rows = []
    for title, features, claim in (("four pair features", PAIR_FEATURES, 500), ("all five", FEATURES, 50)):
        commands = {
            f"hpatlib, {BATCH} images": lambda features=features: differentiate(images, features),
            f"scikit-image, {CROPS} windows": lambda features=features: by_skimage(crops, features),
        }
        seconds = compare(commands, options.repeats, time.process_time)
        (mine, peer) = commands
        windows = BATCH * side * side / CROPS
        rows.append(
            row(f"texture features with gradients, {title}", seconds, mine, peer, target=1 / claim, scale=windows)
        )
    save("glcm", rows, options, largest_difference=float(worst))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process, PyTorch's own included: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
