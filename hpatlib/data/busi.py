"""BUSI: breast ultrasound images, normal or with a benign or a malignant lesion, about 500 × 500 pixels, grey.

Expected under `<root>/busi/`, in `Dataset_BUSI_with_GT/` or at the top: `<class>/<class> (<n>).png`, and beside an
image the masks of its lesions, `<class> (<n>)_mask.png`, `…_mask_1.png`, …, which are never taken for images.

BUSI names no patients, and many of its pictures are the same scan twice. What stays together in a split are therefore
its near-duplicates: images whose perceptual hashes differ in at most `NEAR` bits, and whatever these chain together.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpatlib.data.images import Item, Source, listing
from hpatlib.data.ultrasound_phantom import ultrasound

CLASSES = ("normal", "benign", "malignant")
NAME = re.compile(r"(?P<label>normal|benign|malignant) \((?P<number>[1-9]\d*)\)(?P<mask>_mask(_\d+)?)?\.png")
IMAGES = {".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
TOP = "Dataset_BUSI_with_GT"
# Of 255 bits. Looking at all pairs in order: up to 80 both show one breast, at 82 the first two strangers are alike.
NEAR = 80


def scans(folder: Path) -> list[Item]:
    """The images under `folder`, by class and number, none when it has no class folders.

    Raises ValueError that names the files whose name does not parse or contradicts its folder and the classes without
    an image, and when there is more than one copy of the data set.
    """
    items = [Item(path, CLASSES.index(path.parent.name), path.stem) for path, mask in _files(folder) if not mask]
    labels = {item.label for item in items}
    missing = [name for label, name in enumerate(CLASSES) if label not in labels]
    if items and missing:
        raise ValueError(f"BUSI under {folder} has no images of {' and '.join(missing)}: unpack all of it.")
    return items


def masks(folder: Path) -> dict[Path, list[Path]]:
    """For each image under `folder` the files of its lesion masks, one a lesion: none where none were kept.

    Raises ValueError for names as `scans` does, and for masks without an image.
    """
    files = list(_files(folder))
    found: dict[Path, list[Path]] = {path: [] for path, mask in files if not mask}
    orphans = []
    for path, mask in files:
        if mask:
            image = path.with_name(path.name.replace(mask, ""))
            found.get(image, orphans).append(path)
    if orphans:
        raise ValueError(listing(f"{len(orphans)} BUSI masks have no image", [str(path) for path in orphans]))
    return found


def lesion(paths: Sequence[Path]) -> np.ndarray:
    """The union of the masks of one image: bool [H, W], True inside a lesion. Raises ValueError when sizes differ."""
    from PIL import Image

    drawn = []
    for path in paths:
        with Image.open(path) as image:
            drawn.append(np.asarray(image.convert("L")) > 127)
    if len({mask.shape for mask in drawn}) != 1:
        sizes = [f"{path.name} {mask.shape}" for path, mask in zip(paths, drawn, strict=True)]
        raise ValueError(f"Expected one or more masks of one size, found {', '.join(sizes) or 'none'}.")
    return np.any(drawn, axis=0)


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Image files by class and number, each with the part of its name that makes it a mask, empty for images."""
    tops = [top for top in (folder, folder / TOP) if any((top / name).is_dir() for name in CLASSES)]
    if len(tops) > 1:
        found = ", ".join(map(str, tops))
        raise ValueError(f"BUSI stands more than once under {folder} ({found}): keep one copy, or images count twice.")
    files, faults = [], []
    for top in tops:
        for path in (path for name in CLASSES for path in sorted((top / name).glob("*"))):
            if path.suffix.lower() not in IMAGES or path.name.startswith("."):
                continue
            match = NAME.fullmatch(path.name)
            if not match:
                faults.append(f"{path}: expected a name like {path.parent.name} (12).png or …_mask.png")
            elif match["label"] != path.parent.name:
                faults.append(f"{path}: its name says {match['label']}, its folder {path.parent.name}")
            else:
                order = CLASSES.index(match["label"]), int(match["number"]), path.name
                files.append((order, path, match["mask"] or ""))
    if faults:
        raise ValueError(listing(f"{len(faults)} BUSI files contradict their names", faults))
    return ((path, mask) for _, path, mask in sorted(files))


SOURCE = Source(
    key="busi",
    title="BUSI",
    classes=CLASSES,
    parts={"all": scans},
    crop=None,
    mode="L",
    kaggle="aryashah2k/breast-ultrasound-images-dataset",
    citation="W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy: Dataset of breast ultrasound images, Data in Brief 28, "
    "2020, 104863, doi:10.1016/j.dib.2019.104863",
    licence="article CC BY 4.0; images offered for research, CC0 on Kaggle",
    phantom=ultrasound,
    near=NEAR,
)
