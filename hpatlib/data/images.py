"""The one interface of every data set, `ImageSet`, and the way to it from files: find, decode, cache.

A data-set module finds its files and describes them in one `Source`; everything else stands here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # listing or fetching data should not wait seconds for torch
    import torch

DECODER = 2  # raise it whenever `decode` gives other pixels or `_grouped` other groups: it is part of every cache key
# Colour carries the diagnosis where it is asked for, so a grey file among colour ones is a fault; grey sets are often
# saved as RGB with three equal channels, so those are converted.
READABLE = {"RGB": ("RGB",), "L": ("L", "RGB", "RGBA", "P")}
SUFFIXES = {".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}  # of files that somebody may mean to be images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known about them; row n of each array is image n.

    `images` is uint8 [N, C, H, W] in 0…255 (memory-mapped when it comes from files), `labels` int64 [N] counts into
    `classes`, `groups` str [N] names what must stay on one side of a split (the patient), `real` is False for phantoms.
    `fingerprint` is a hexadecimal hash of pixels, labels and groups, the same on every machine.
    Raises ValueError when the arrays do not fit together.
    """

    name: str
    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    real: bool
    fingerprint: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise ValueError(f"{self.name}: images are {found}, expected uint8 [N, C, H, W].")
        if not len(self.images) == len(self.labels) == len(self.groups):
            found = f"{len(self.images)} images, {len(self.labels)} labels and {len(self.groups)} groups"
            raise ValueError(f"{self.name}: {found}, expected as many of each.")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet:
        """The images at `index` (positions, a boolean mask or a slice), in that order; copied, but for a slice."""
        rows = np.arange(len(self))[index]
        # Follows from the parent's fingerprint, so that no pixel is hashed twice.
        digest = hashlib.blake2b(self.fingerprint.encode() + rows.astype("<i8").tobytes(), digest_size=8)
        arrays = {name: getattr(self, name)[index] for name in ("images", "labels", "groups")}
        return replace(self, **arrays, fingerprint=digest.hexdigest())

    def tensors(
        self, device: str | torch.device = "cpu", *, index: np.ndarray | Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float32 [N, C, H, W] in [0, 1] and labels long [N] on `device`: all, or those at positions `index`."""
        import torch

        index = np.arange(len(self)) if index is None else np.asarray(index)
        # Fancy indexing copies just these rows out of the map; bytes travel to the device, a quarter of the floats.
        images, labels = torch.from_numpy(self.images[index]), torch.from_numpy(self.labels[index])
        return images.to(device).float().div_(255), labels.to(device)

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass in batches as from `tensors`, shuffled when a generator is given; the last may be smaller."""
        import torch

        if generator is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=generator, device=generator.device).cpu()
        for index in order.split(batch_size):
            yield self.tensors(device, index=index.numpy())


@dataclass(frozen=True)
class Item:
    """One image file, the number of its class and the group (patient) it belongs to."""

    path: Path
    label: int
    group: str


@dataclass(frozen=True)
class Source:
    """What has to be known about one data set; each data-set module has one, called `SOURCE`.

    `parts` maps the name of a part (the default first) to a function that lists its files under `<root>/<key>/`: none
    when it is absent, ValueError when names or labels are wrong. `crop` is the side in pixels of the central square
    that is kept of the original (None: all of it), `mode` "RGB" (C = 3) or "L" (C = 1), `kaggle` the handle at Kaggle,
    `phantom` draws this modality, called as `phantom(count, size=…, seed=…)` for images, labels and groups (None: no
    phantom).

    `near`: images whose perceptual hashes differ in at most so many bits share a group (None: groups stay as they
    are); `follow`: the same for files that follow each other in one folder, where numbers run through the patients.
    `pad`: black borders make a picture square before it is resized (otherwise it is stretched). `each`: images of each
    class in the document that uses the set (None: all). For sets that are not loose image files at Kaggle: `folder`
    under the root when it is not the key, `url` of the one file, `decode` in place of the function below.
    """

    key: str
    title: str
    classes: tuple[str, ...]
    parts: Mapping[str, Callable[[Path], list[Item]]]
    crop: int | None
    mode: str
    kaggle: str
    citation: str
    licence: str
    phantom: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None
    near: int | None = None
    follow: int | None = None
    pad: bool = False
    each: int | None = None
    folder: str = ""
    url: str = ""
    decode: Callable[..., np.ndarray] | None = None


def home() -> Path:
    """The folder for what the library keeps: $HPAT_HOME, else runs/ of the checkout, else ~/.cache/hpatlib."""
    if chosen := os.environ.get("HPAT_HOME"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "runs" if (checkout / "pyproject.toml").is_file() else Path.home() / ".cache" / "hpatlib"


def fingerprint(images: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> str:
    """Sixteen hexadecimal digits that follow from shape, pixels, labels and groups alone."""
    digest = hashlib.blake2b(repr(images.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(labels, dtype="<i8"))
    digest.update("\0".join(groups).encode())
    return digest.hexdigest()


def find(
    folder: Path, wanted: Mapping[str, tuple[str, str]], *, title: str, suffixes: Sequence[str]
) -> list[tuple[Path, re.Match]]:
    """The image files of a data set, each with what its name says: in the order of `wanted`, then of their numbers.

    `wanted` maps folders, below `folder` or one folder further down, to the pattern that the names in them match (less
    the suffix, one of `suffixes`) and to an example. Raises ValueError that names the files whose name does not fit or
    occurs twice, and when there is more than one copy of the data set.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    tops = [top for top in (folder, *below) if any((top / name).is_dir() for name in wanted)]
    if len(tops) > 1:
        found = ", ".join(map(str, tops))
        raise ValueError(
            f"{title} stands more than once under {folder} ({found}): keep one copy, or images count twice."
        )
    files, faults, seen = [], [], {}
    for top in tops:
        for name, (pattern, example) in wanted.items():
            for path in sorted(filter(is_image, (top / name).glob("*")), key=_by_number):
                match = re.fullmatch(pattern, path.stem)
                if not match or path.suffix.lower() not in suffixes:
                    faults.append(f"{path}: expected a name like {example}")
                elif (twin := seen.setdefault(path.with_suffix(""), path)) != path:
                    faults.append(f"{path}: the same image as {twin}")
                else:
                    files.append((path, match))
    if faults:
        raise ValueError(listing(f"{len(faults)} {title} files contradict their names", faults))
    return files


def complete(items: list[Item], folders: Sequence[str], *, title: str) -> list[Item]:
    """`items`, if there are none or some from a folder of each of these names; ValueError that names the others."""
    found = {item.path.parent.name for item in items}
    missing = [name for name in folders if name not in found]
    if items and missing:
        raise ValueError(f"{title} has no images of {' and '.join(missing)}: unpack all of it.")
    return items


def is_image(path: Path) -> bool:
    """Whether somebody may mean this file to be an image: not notes, thumbnails or what an archiver left."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _by_number(path: Path) -> list:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def decode(
    items: Sequence[Item], *, crop: int | None, size: int, mode: str, pad: bool = False, progress: bool = True
) -> np.ndarray:
    """Read the files of `items` as uint8 [N, C, size, size], after cropping the central `crop` pixels or padding.

    Raises one ValueError that names the files that are unreadable, truncated, of the wrong mode or smaller than `crop`.
    """
    from PIL import Image
    from tqdm import tqdm

    images = np.empty((len(items), len(mode), size, size), np.uint8)

    def read(n: int) -> str | None:
        try:
            with Image.open(items[n].path) as image:
                image.load()
                if image.mode not in READABLE[mode]:
                    return f"mode {image.mode}, expected {' or '.join(READABLE[mode])}"
                if crop and min(image.size) < crop:
                    return f"{image.width}×{image.height} pixels, expected at least {crop}×{crop}"
                image = image.convert(mode)
                if crop:
                    left, top = (image.width - crop) // 2, (image.height - crop) // 2
                    image = image.crop((left, top, left + crop, top + crop))
                if pad:
                    side = max(image.size)
                    square = Image.new(mode, (side, side))  # black
                    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
                    image = square
                # Bicubic with Pillow's antialiasing: what the pretrained backbones were fed with.
                pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
                images[n] = pixels.reshape(size, size, -1).transpose(2, 0, 1)
        except Exception as error:
            return f"unreadable ({error})"
        return None

    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes and resizes
        results = pool.map(read, range(len(items)))
        bar = tqdm(results, "decoding", len(items), unit="image", delay=2, disable=not progress)
        faults = [f"{item.path}: {fault}" for fault, item in zip(bar, items, strict=True) if fault]
    if faults:
        raise ValueError(listing(f"{len(faults)} of {len(items)} images cannot be used", faults))
    return images


def listing(title: str, faults: Sequence[str]) -> str:
    """An error message for the faults of many files at once."""
    lines = [f"{title}:", *faults[:20], *([f"… and {len(faults) - 20} more"] if len(faults) > 20 else [])]
    return "\n  ".join(lines) + "\nReplace these files by the originals or remove them, then run again."


def cached(source: Source, part: str, folder: Path, items: Sequence[Item], *, size: int, cache: Path) -> ImageSet:
    """The decoded `items`, memory-mapped from `cache`; decoded now if these files have not been seen at this size.

    An entry is either whole or absent, and of two processes that want the same one, one decodes and the other waits.
    """
    from filelock import FileLock

    names = [item.path.relative_to(folder).as_posix() for item in items]
    files = [(name, item.label, item.group, *_stamp(item.path)) for name, item in zip(names, items, strict=True)]
    decided_by = [source.key, part, source.crop, size, source.mode, source.near, DECODER, files]
    decided_by += [f"{name}={value}" for name in ("follow", "pad") if (value := getattr(source, name))]
    key = hashlib.blake2b(json.dumps(decided_by).encode(), digest_size=8).hexdigest()
    entry = Path(cache) / f"{source.key}-{part}-{size}px-{key}"
    if not entry.is_dir():
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.is_dir():
                images = _decoded(source, items, size=size, mode=source.mode)
                about = {"names": names, "labels": [i.label for i in items], "groups": _grouped(source, items)}
                about["fingerprint"] = fingerprint(images, np.array(about["labels"]), np.array(about["groups"]))
                _write(entry, images, about)
    about = json.loads((entry / "about.json").read_text("utf-8"))
    return ImageSet(
        name=source.key if part == next(iter(source.parts)) else f"{source.key}-{part}",
        images=np.load(entry / "images.npy", mmap_mode="r"),
        labels=np.array(about["labels"], np.int64),
        groups=np.array(about["groups"]),
        classes=source.classes,
        real=True,
        fingerprint=about["fingerprint"],
    )


def _grouped(source: Source, items: Sequence[Item]) -> list[str]:
    """The group of each item: its own, joined with those of its near-duplicates where the source asks for that.

    The files are read once more, small: whether two images are alike must not depend on the size that was asked for.
    """
    groups = [item.group for item in items]
    if source.near is None:
        return groups
    from hpatlib.data import duplicates

    small = _decoded(source, items, size=duplicates.SIDE, mode="L", progress=False)
    hashes = duplicates.perceptual_hash(small[:, 0])
    pairs = [duplicates.near_pairs(hashes, source.near)]
    if source.follow is not None:
        folders = np.array([str(item.path.parent) for item in items])
        bits = (hashes[1:] != hashes[:-1]).sum(1)
        first = np.flatnonzero((bits <= source.follow) & (folders[1:] == folders[:-1]))
        pairs.append(np.stack([first, first + 1, bits[first]], axis=1))
    return duplicates.merge(groups, np.concatenate(pairs))


def _decoded(source: Source, items: Sequence[Item], **options) -> np.ndarray:
    if source.decode is not None:
        return source.decode(items, crop=source.crop, **options)
    return decode(items, crop=source.crop, pad=source.pad, **options)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return (stat := path.stat()).st_size, stat.st_mtime_ns
    except OSError:  # such as a dangling link: `decode` reports it together with all others
        return -1, -1


def _write(entry: Path, images: np.ndarray, about: dict) -> None:
    """Write beside, flush to the disk, rename: called under the entry's lock, so a leftover is a dead process's."""
    beside = entry.with_name(f"{entry.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    with open(beside / "images.npy", "wb") as file:
        np.save(file, images)
        file.flush()
        os.fsync(file.fileno())
    with open(beside / "about.json", "w", encoding="utf-8") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, entry)
