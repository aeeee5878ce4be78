"""BreastMNIST and PneumoniaMNIST: BUSI and the chest X-rays at 28 × 28 pixels, each one small file of MedMNIST v2.

They stand in where the full images cannot be had, under names of their own, and never take their place by themselves.
Lost are the file names, so that images cannot be traced to the originals and nobody knows whose they are, and whatever
is smaller than a twenty-eighth of the picture's side. BreastMNIST also has no masks, and normal and benign are one.

Expected: `<root>/medmnist/{breast,pneumonia}mnist.npz`, with `{train,val,test}_images` uint8 [n, 28, 28] and `…_labels`
[n, 1].
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hpatlib.data import busi, chest_xray
from hpatlib.data.images import Item, Source

PARTS = ("train", "val", "test")


def listed(folder: Path, *, name: str, positive: int) -> list[Item]:
    """One item for each image of the file, MedMNIST's three parts one after the other, none when it is absent.

    `positive` is MedMNIST's label of the disease, 0 or 1; here it is 1, as everywhere in this library. Raises
    ValueError when the file is unreadable or holds something else.
    """
    path = folder / name
    if not path.is_file():
        return []
    _, labels = _read(path)
    return [Item(path, int(label == positive), f"{name} {n}") for n, label in enumerate(labels)]


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


def _source(key: str, *, positive: int, of: Source, doi: str, md5: str, **fields) -> Source:
    name = f"{key}.npz"
    return Source(
        key=key,
        parts={"all": partial(listed, name=name, positive=positive)},
        citation="J. Yang et al.: MedMNIST v2, Scientific Data 10, 2023, 41, doi:10.1038/s41597-022-01721-8; "
        f"derived from {of.title}, doi:{doi}",
        licence="CC BY 4.0",
        near=of.near,
        folder="medmnist",
        decode=pixels,
        url=f"https://zenodo.org/records/10519652/files/{name}",
        checksum=f"md5:{md5}",
        **fields,
    )


BREAST = _source(
    "breastmnist",
    title="BreastMNIST",
    colour="#3D9BD9",
    classes=("not malignant", "malignant"),
    positive=0,
    of=busi.SOURCE,
    doi="10.1016/j.dib.2019.104863",
    md5="750601b1f35ba3300ea97c75c52ff8f6",
)
PNEUMONIA = _source(
    "pneumoniamnist",
    title="PneumoniaMNIST",
    colour="#009E73",
    classes=chest_xray.SOURCE.classes,
    positive=1,
    of=chest_xray.SOURCE,
    doi="10.17632/rscbjbr9sj.2",
    md5="28209eda62fecd6e6a2d98b1501bb15f",
)
