"""BreastMNIST: the images of BUSI at 28 × 28 pixels, malignant or not, from one small file of MedMNIST v2.

It stands in for BUSI where 780 full images cannot be had, under a name of its own, and never takes BUSI's place by
itself. Lost are: the difference between normal and benign, the masks, the file names (so that images cannot be traced
to BUSI's), and everything smaller than a twentieth of the picture's side: spicules, rims, speckle.

Expected: `<root>/medmnist/breastmnist.npz`, with `{train,val,test}_images` uint8 [n, 28, 28] and `…_labels` [n, 1].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpatlib.data.busi import NEAR
from hpatlib.data.images import Item, Source

PARTS = ("train", "val", "test")
NAME = "breastmnist.npz"


def breast(folder: Path) -> list[Item]:
    """One item for each image of the file, MedMNIST's three parts one after the other, none when it is absent.

    MedMNIST says 0 for malignant; here malignant is 1, as everywhere in this library. Raises ValueError when the file
    is unreadable or holds something else.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    _, labels = _read(path)
    return [Item(path, int(1 - label), f"{NAME} {n}") for n, label in enumerate(labels)]


def pixels(items: Sequence[Item], *, crop: int | None, size: int, mode: str, progress: bool = True) -> np.ndarray:
    """Stands in for `images.decode`: all images of the one file, uint8 [N, 1, size, size]."""
    from PIL import Image

    images, _ = _read(items[0].path)
    resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return np.stack(resized)[:, None]


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            images, labels = (np.concatenate([file[f"{p}_{what}"] for p in PARTS]) for what in ("images", "labels"))
    except Exception as error:  # zipfile, zlib and NumPy raise what they like
        raise ValueError(f"{path} is unreadable ({error}): fetch it again.") from error
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.size != len(images) or labels.max() > 1:
        found = f"{images.dtype} {list(images.shape)} with labels {list(labels.shape)} up to {labels.max()}"
        raise ValueError(f"{path} holds {found}, expected uint8 [N, 28, 28] with labels [N, 1] of 0 and 1.")
    return images, labels.ravel().astype(np.int64)


BREAST = Source(
    key="breastmnist",
    title="BreastMNIST",
    classes=("not malignant", "malignant"),
    parts={"all": breast},
    crop=None,
    mode="L",
    kaggle="",
    citation="J. Yang et al.: MedMNIST v2, Scientific Data 10, 2023, 41, doi:10.1038/s41597-022-01721-8; "
    "derived from BUSI, doi:10.1016/j.dib.2019.104863",
    licence="CC BY 4.0",
    phantom=None,
    near=NEAR,
    folder="medmnist",
    decode=pixels,
    url=f"https://zenodo.org/records/10519652/files/{NAME}",
)
