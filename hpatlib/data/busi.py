"""BUSI: breast ultrasound images, normal or with a benign or a malignant lesion, about 500 × 500 pixels, grey.

Expected under `<root>/busi/`, in `Dataset_BUSI_with_GT/` or at the top: `<class>/<class> (<n>).png`, and beside an
image the masks of its lesions, `<class> (<n>)_mask.png`, `…_mask_1.png`, …, which are never taken for images.

BUSI names no patients, and many of its pictures are the same scan twice. What stays together in a split are therefore
its near-duplicates: images whose perceptual hashes differ in at most `NEAR` bits, or in `FOLLOW` where one number
follows the other, and whatever these chain together. One picture stands there twice, as benign and as malignant: it is
left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpatlib.data.images import Item, Source, find, listing, opened
from hpatlib.data.ultrasound_phantom import ultrasound, ultrasound_two_classes

CLASSES = ("normal", "benign", "malignant")
# Of 255 bits. Looking at all pairs in order: up to 80 both show one breast, at 82 the first two strangers are alike.
NEAR = 80
# Scans of one lesion often have neighbouring numbers: beyond 80 and up to 98 all six such pairs show one, at 100 the
# first strangers are alike. Of pairs 30 numbers apart 0.1 % are.
FOLLOW = 98
ALSO = {"malignant (6)": "malignant (5)"}  # the end and the start of two chains that show one lesion, at 108 bits
CONTRADICTED = {"benign (433)", "malignant (145)"}  # equal in every pixel: nobody can learn, or be right, on both


def scans(folder: Path) -> list[Item]:
    """The images under `folder` but those in `CONTRADICTED`, by class and number, none when it has no class folders.

    Raises ValueError that names the files whose name does not parse or contradicts its folder and the classes without
    an image, and when there is more than one copy of the data set.
    """
    paths = [path for path, mask in _files(folder) if not mask and path.stem not in CONTRADICTED]
    items = [Item(path, CLASSES.index(path.parent.name), ALSO.get(path.stem, path.stem)) for path in paths]
    if items and (missing := [name for n, name in enumerate(CLASSES) if all(item.label != n for item in items)]):
        raise ValueError(f"BUSI under {folder} has no images of {' and '.join(missing)}, only masks: unpack all of it.")
    return items


def two_classes(folder: Path) -> list[Item]:
    """The same images, malignant or not: normal and benign are one class."""
    return [replace(item, label=int(CLASSES[item.label] == "malignant")) for item in scans(folder)]


def masks(folder: Path) -> dict[Path, list[Path]]:
    """For each image under `folder` the files of its lesion masks, one a lesion: none where none were kept.

    Raises ValueError for names as `scans` does, and for masks without an image.
    """
    files = list(_files(folder))
    found: dict[Path, list[Path]] = {path: [] for path, mask in files if not mask}
    orphans: list[Path] = []
    for path, mask in files:
        if mask:
            image = path.with_name(path.name.replace(mask, ""))
            found.get(image, orphans).append(path)
    if orphans:
        raise ValueError(listing(f"{len(orphans)} BUSI masks have no image", [str(path) for path in orphans]))
    return found


def lesion(paths: Sequence[Path]) -> np.ndarray:
    """The union of the masks of one image: bool [H, W], True inside a lesion. Raises ValueError when sizes differ."""
    drawn = []
    for path in paths:
        with opened(path) as image:
            drawn.append(np.asarray(image.convert("L")) > 127)
    if len({mask.shape for mask in drawn}) != 1:
        sizes = [f"{path.name} {mask.shape}" for path, mask in zip(paths, drawn, strict=True)]
        raise ValueError(f"Expected one or more masks of one size, found {', '.join(sizes) or 'none'}.")
    return np.any(drawn, axis=0)


def _files(folder: Path) -> list[tuple[Path, str]]:
    """Image files by class and number, each with the part of its name that makes it a mask, empty for images."""
    wanted = {
        name: (rf"{name} \([1-9]\d*\)(?P<mask>_mask(_\d+)?)?", f"{name} (12).png or …_mask.png") for name in CLASSES
    }
    return [(path, match["mask"] or "") for path, match in find(folder, wanted, title="BUSI", suffixes=(".png",))]


SOURCE = Source(
    key="busi",
    title="BUSI",
    classes=CLASSES,
    parts={"all": scans},
    crop=None,
    mode="L",
    label="breast ultrasound",
    colour="#CC79A7",
    kaggle="aryashah2k/breast-ultrasound-images-dataset",
    citation="W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy: Dataset of breast ultrasound images, Data in Brief 28, "
    "2020, 104863, doi:10.1016/j.dib.2019.104863",
    licence="article CC BY 4.0; images offered for research, CC0 on Kaggle",
    phantom=ultrasound,
    near=NEAR,
    follow=FOLLOW,
    published=780,
)

TWO_CLASSES = replace(
    SOURCE,
    key="busi2",
    title="two-class BUSI",
    classes=("no-cancer", "cancer"),
    parts={"all": two_classes},
    phantom=ultrasound_two_classes,
    each=210,
    folder="busi",
)
