"""Photographs of everyday things that come with scikit-image: the natural images of the slides' "why" pages.

Six of them, all free to show (CC0, or no known copyright restrictions, as scikit-image states): no download, and far
too few to stand for natural images. Crops of them make as many samples as are asked for, and crops of one photograph
are no independent images: whoever averages over them has `groups` to resample.
"""

from collections.abc import Sequence

import numpy as np

from hpatlib.data.images import Source

KEY = "photographs"
# The names of `skimage.data`, by class. Astronaut (NASA), rocket (SpaceX): public domain; chelsea (a cat), camera (a
# photographer), coffee: CC0; coins (Brooklyn Museum): no known copyright restrictions.
CLASSES = {"living": ("astronaut", "chelsea", "camera"), "thing": ("coffee", "rocket", "coins")}
SHARES = (0.6, 1.0)  # side of a crop, of the shorter side of what it is cut from


def picture(name: str) -> np.ndarray:
    """One photograph, RGB uint8 [H, W, 3], read from the scikit-image package; grey ones have equal channels."""
    import skimage.data

    found = getattr(skimage.data, name)()
    return found if found.ndim == 3 else np.repeat(found[..., None], 3, axis=2)


def quarters(count: int, *, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey square crops in two classes, "living" and "thing": what a medical set is, with photographs in it.

    Returns images uint8 [count, 1, size, size], labels int64 [count] and groups str [count], classes and photographs
    in turns. Each crop comes from one quarter of its photograph, and groups name that quarter: quarters stay on one
    side of a split, so that no pixel is on both. What is left to learn is closer to telling six photographs apart than
    to telling cats from cups.
    """
    _check(count, size)
    pictures = {name: picture(name) for names in CLASSES.values() for name in names}
    classes, each = list(CLASSES.values()), len(CLASSES["living"])
    images, groups = np.empty((count, 1, size, size), np.uint8), []
    labels = np.arange(count) % 2
    for n, label in enumerate(labels):
        random = np.random.default_rng([seed, 20, n])
        name = classes[label][n // 2 % each]
        whole = pictures[name]
        down, right = (int(k) for k in random.integers(2, size=2))
        height, width = (side // 2 for side in whole.shape[:2])
        quarter = whole[down * height : (down + 1) * height, right * width : (right + 1) * width]
        images[n, 0] = _crop(quarter, size, random, "L")
        groups.append(f"{name}, {'lower' if down else 'upper'} {'right' if right else 'left'}")
    return images, labels, np.array(groups)


def crops(count: int, *, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colour crops of whole photographs, uint8 [count, 3, size, size], and each one's photograph, str [count]."""
    _check(count, size)
    names: Sequence[str] = [name for names in zip(*CLASSES.values(), strict=True) for name in names]
    pictures = {name: picture(name) for name in names}
    chosen = [names[n % len(names)] for n in range(count)]
    images = np.empty((count, 3, size, size), np.uint8)
    for n, name in enumerate(chosen):
        images[n] = _crop(pictures[name], size, np.random.default_rng([seed, 21, n]), "RGB").transpose(2, 0, 1)
    return images, np.array(chosen)


def _crop(whole: np.ndarray, size: int, random: np.random.Generator, mode: str) -> np.ndarray:
    """A square crop at a random place, its side a random share of the shorter one of `whole`, at `size` pixels."""
    from PIL import Image

    height, width = whole.shape[:2]
    side = round(random.uniform(*SHARES) * min(height, width))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    cut = Image.fromarray(np.ascontiguousarray(whole[top : top + side, left : left + side])).convert(mode)
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))  # as medical images are


def _check(count: int, size: int) -> None:
    for name, value in (("count", count), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1.")


SOURCE = Source(
    key=KEY,
    title="photographs of scikit-image",
    classes=tuple(CLASSES),
    label="photographs",
    colour="#D55E00",
    citation="S. van der Walt et al.: scikit-image: image processing in Python, PeerJ 2, 2014, e453, "
    "doi:10.7717/peerj.453",
    licence="CC0, public domain, or no known copyright restrictions",
    phantom=quarters,
)
