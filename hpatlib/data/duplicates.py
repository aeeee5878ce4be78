"""Near-duplicates: pictures that are the same but for size, brightness, callipers or a slight shift of the probe.

The perceptual hash is pHash: which of the coarsest cosine coefficients of a small version of the image are above their
median. It ignores brightness and contrast, and hardly feels a change of size.
"""

import math
from collections.abc import Sequence

import numpy as np

SIDE = 32  # pixels of the small version; groups do not depend on the size that a model is trained at
WAVES = 16  # coefficients on each axis; without the constant one they make 255 bits


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """pHash of small grey images [N, 32, 32]: bool [N, 255]. Raises ValueError for another shape."""
    from scipy.fft import dctn

    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"images are {list(images.shape)}, expected [N, {SIDE}, {SIDE}].")
    waves = dctn(images.astype(np.float64), axes=(1, 2), norm="ortho")[:, :WAVES, :WAVES]
    waves = waves.reshape(len(images), WAVES**2)[:, 1:]
    return waves > np.median(waves, axis=1, keepdims=True)


def same_pairs(images: np.ndarray) -> np.ndarray:
    """Each image of [N, …] with the first one that equals it in every pixel: int64 [N, 3] of that one, itself and 0."""
    here = np.arange(len(images))
    rows = np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))
    whole = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]  # a row is one thing to compare
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    return np.stack([first[which], here, np.zeros_like(here)], axis=1)


def near_pairs(hashes: np.ndarray, within: int, others: np.ndarray | None = None, *, block: int = 2048) -> np.ndarray:
    """All pairs i < j of hashes bool [N, bits] that differ in at most `within` bits: int64 [pairs, 3] of i, j, bits.

    `others`, bool [N, bits]: hashes of the same images seen otherwise, such as mirrored; j is then one of these.
    `block` hashes at a time are compared with all others, so memory stays at about block × N × 8 bytes.
    """
    signs = np.where(hashes, 1, -1).astype(np.float32)
    against = signs if others is None else np.where(others, 1, -1).astype(np.float32)
    found = [np.empty((0, 3), np.int64)]
    for start in range(0, len(signs), block):
        # The product counts equal bits minus different ones; float32 is exact for such small integers.
        differ = (signs.shape[1] - signs[start : start + block] @ against[start:].T).astype(np.int64) // 2
        i, j = np.nonzero(np.triu(differ <= within, 1))
        found.append(np.stack([i + start, j + start, differ[i, j]], axis=1))
    return np.concatenate(found)


def merge(groups: Sequence[str], pairs: np.ndarray) -> list[str]:
    """The groups [N] after joining those of each pair, transitively; a joined group has the name of its first image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, first, codes = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    i, j = first[codes[pairs[:, 0]]], first[codes[pairs[:, 1]]]
    links = coo_array((np.ones(len(pairs)), (i, j)), shape=(len(groups), len(groups)))
    _, component = connected_components(links, directed=False)
    # An image stands for its group by that group's first image, and a component by the first image in it.
    _, leader, member = np.unique(component[first[codes]], return_index=True, return_inverse=True)
    return [groups[n] for n in leader[member]]
