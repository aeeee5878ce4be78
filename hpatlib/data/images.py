"""The one interface of every data set, `ImageSet`, and the way to it from files: find, decode, cache.

A data-set module finds its files and describes them in one `Source`; everything else stands here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpatlib._files import alone, home, sealed, storing, unsealed, write

if TYPE_CHECKING:  # listing or fetching data should not wait seconds for torch
    import PIL.Image
    import torch

DECODER = 3  # raise it whenever `decode` gives other pixels or `_grouped` other groups: it is part of every cache key
# Colour carries the diagnosis where it is asked for, so a grey file among colour ones is a fault; grey sets are often
# saved as RGB with three equal channels, so those are converted.
READABLE = {"RGB": ("RGB",), "L": ("L", "RGB", "RGBA", "P")}
SUFFIXES = {".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}  # of files that somebody may mean to be images
FORMATS = ("BMP", "PNG", "JPEG", "TIFF")  # what they may be inside: Pillow would start Ghostscript for an EPS
LEAST, MOST = 8, 100_000_000  # pixels of an image's shorter side, and of all of it: no medical image is beyond


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known about them; row n of each array is image n.

    `store` holds pixels, uint8 [M, C, H, W] in 0…255 (memory-mapped when it comes from files), and `rows` int64 [N]
    says which of them are this set's (None: all M), so that the sides of a split share one store and copy no pixel.
    `labels` int64 [N] counts into `classes`, `groups` str [N] names what must stay on one side of a split (the
    patient), `real` is False for phantoms. `fingerprint` is a hexadecimal hash of pixels, labels and groups, the same
    on every machine. `ids` str [N] tells the images of a set apart, whatever subset they stand in: a file's path
    relative to the folder of its set, or the number of a drawn image (the default); it does not change the fingerprint.
    Raises ValueError when the arrays do not fit together, and when an id occurs twice.
    """

    name: str
    store: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    real: bool
    fingerprint: str
    ids: np.ndarray = field(default=None, repr=False, kw_only=True)  # type: ignore[arg-type]  # set below
    rows: np.ndarray | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.store.ndim != 4 or self.store.dtype != np.uint8:
            found = f"{self.store.dtype} {list(self.store.shape)}"
            raise ValueError(f"{self.name}: images are {found}, expected uint8 [N, C, H, W].")
        count = len(self.store) if self.rows is None else len(self.rows)
        ids = np.arange(count) if self.ids is None else np.asarray(self.ids)
        for name, values in {"ids": ids.astype(str), "labels": self.labels, "groups": self.groups}.items():
            object.__setattr__(self, name, np.asarray(values))
        if not count == len(self.labels) == len(self.groups) == len(ids):
            found = f"{count} images, {len(self.labels)} labels and {len(self.groups)} groups"
            found = found if len(ids) == count else f"{found.replace(' and', ',')} and {len(ids)} ids"
            raise ValueError(f"{self.name}: {found}, expected as many of each.")
        once, times = np.unique(self.ids, return_counts=True)
        if len(once) < count:
            twice = f"{times.max()} images have the id '{once[times.argmax()]}'"
            raise ValueError(f"{self.name}: {twice}, expected another for each: take no image twice into a set.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> np.ndarray:
        """All pixels of the set, uint8 [N, C, H, W]: the store itself, read only when mapped, or a copy of its rows."""
        return self.pixels(slice(None))

    @property
    def size(self) -> int:
        """Image side W in pixels."""
        return self.store.shape[3]

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB."""
        return self.store.shape[1]

    def pixels(self, index: int | np.ndarray | Sequence[int] | slice) -> np.ndarray:
        """The pixels at `index` alone, uint8 [n, C, H, W], or [C, H, W] for a single position."""
        return _unread(self.store)[index if self.rows is None else self.rows[index]]

    def subset(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet:
        """The images at `index` (positions, a boolean mask or a slice), in that order; no pixel is read or copied."""
        at = np.arange(len(self))[index]
        # Follows from the parent's fingerprint, so that no pixel is hashed twice.
        digest = hashlib.blake2b(self.fingerprint.encode() + at.astype("<i8").tobytes(), digest_size=8)
        arrays = {name: getattr(self, name)[at] for name in ("labels", "groups", "ids")}
        rows = at if self.rows is None else self.rows[at]
        return replace(self, **arrays, rows=rows, fingerprint=digest.hexdigest())

    def tensors(
        self, device: str | torch.device = "cpu", *, index: np.ndarray | Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float32 [N, C, H, W] in [0, 1] and labels long [N] on `device`: all, or those at positions `index`."""
        import torch

        index = np.arange(len(self)) if index is None else np.asarray(index)
        # Fancy indexing copies just these rows out of the map; bytes travel to the device, a quarter of the floats.
        images, labels = torch.from_numpy(self.pixels(index)), torch.from_numpy(self.labels[index])
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

    @staticmethod
    def from_folder(
        path: Path | str,
        *,
        size: int,
        mode: str = "L",
        classes: Sequence[str] | None = None,
        crop: int | None = None,
        pad: bool = False,
        cache: Path | str | None = None,
    ) -> ImageSet:
        """Images of your own at `size` × `size` pixels: one folder a class, `<path>/<class>/<any name>.png` or so.

        `classes`: the folders to take, in the order of their labels (all of them, sorted, by default). `mode`, `crop`
        and `pad`: see `Source`. Images that are the same picture share a group, all others are groups of their own:
        where several show one patient, put the patients' names in with `dataclasses.replace(images, groups=…)` before
        you split. Decoded images are kept in `cache` (`home()`/data), as those of `load` are.

        Raises FileNotFoundError when there is no such folder, and ValueError for arguments without meaning, for fewer
        than two classes, classes without an image, and for files that cannot be used, all of them at once.
        """
        folder = Path(path).expanduser().resolve()
        if mode not in READABLE:
            raise ValueError(f"Unknown mode {mode!r}: choose one of {', '.join(READABLE)}.")
        for name, value in (("size", size), ("crop", crop)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1.")
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}: expected one that holds a folder for each class.")
        items, named = _by_class(folder, classes)
        source = Source(folder.name, folder.name, named, {"all": lambda _: items}, crop=crop, mode=mode, pad=pad)
        return cached(source, "all", folder, items, size=size, cache=Path(cache) if cache else home() / "data")


def _unread(store: np.ndarray) -> np.ndarray:
    """`store`, or for a mapped file a map for one read: pages count as memory in use for as long as they are mapped."""
    if isinstance(store, np.memmap) and isinstance(store.base, mmap) and store.mode == "r" and store.flags.c_contiguous:
        return np.memmap(store.filename, store.dtype, "r", store.offset, store.shape)
    return store


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
    when it is absent, ValueError when names or labels are wrong; a set without parts is drawn, never read. `crop` is
    the side in pixels of the central square that is kept of the original (None: all of it), `mode` "RGB" (C = 3) or "L"
    (C = 1). `label` (the title by default) and `colour` stand for the set in figures. `kaggle` is the handle at Kaggle,
    `phantom` draws this modality, called as `phantom(count, size=…, seed=…)` for images, labels and groups (None: no
    phantom).

    `near`: images whose perceptual hashes differ in at most so many bits share a group (None: only those that are the
    same picture do). Where it is set, `follow` is the same for files that follow each other in one folder, as numbers
    run through the patients, and `mirror` for one image and another that is mirrored, upside down, or both.
    `pad`: black borders make a picture square before it is resized (otherwise it is stretched). `each`: images of each
    class in the document that uses the set (None: all, which are `published` in the set as its authors count them). For
    sets that are not loose image files at Kaggle: `folder` under the root when it is not the key, `url` of the one file
    and its `checksum` ("md5:…"), `arrange`, called as `arrange(unpacked, folder)`, where that file is a zip to be made
    into the folder, `decode` in place of the function below.
    """

    key: str
    title: str
    classes: tuple[str, ...]
    parts: Mapping[str, Callable[[Path], list[Item]]] = field(default_factory=dict)
    crop: int | None = None
    mode: str = "L"
    label: str = ""
    colour: str = "#777777"
    kaggle: str = ""
    citation: str = ""
    licence: str = ""
    phantom: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
    near: int | None = None
    follow: int | None = None
    mirror: int | None = None
    pad: bool = False
    each: int | None = None
    published: int | None = None
    folder: str = ""
    url: str = ""
    checksum: str = ""
    arrange: Callable[[Path, Path], None] | None = None
    decode: Callable[..., np.ndarray] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.title)


def fingerprint(images: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> str:
    """Sixteen hexadecimal digits that follow from shape, pixels, labels and groups alone."""
    digest = hashlib.blake2b(repr(images.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    digest.update("\0".join(groups).encode())
    return digest.hexdigest()


def find(
    folder: Path, wanted: Mapping[str, tuple[str, str]], *, title: str, suffixes: Sequence[str]
) -> list[tuple[Path, re.Match]]:
    """The image files of a data set, each with what its name says: in the order of `wanted`, then of their numbers.

    `wanted` maps folders, below `folder` or one folder further down, to the pattern that the names in them match (less
    the suffix, one of `suffixes`) and to an example. Raises ValueError that names the files whose name does not fit or
    occurs twice, the folders without an image in a part (such as "Training" of "Training/glioma") that is there, and
    when there is more than one copy of the data set.
    """
    below = [path for path in entries(folder) if path.is_dir()]
    tops = [top for top in (folder, *below) if any((top / name).is_dir() for name in wanted)]
    if len(tops) > 1:
        found = ", ".join(map(str, tops))
        raise ValueError(
            f"{title} stands more than once under {folder} ({found}): keep one copy, or images count twice."
        )
    files, faults = [], []
    seen: dict[Path, Path] = {}
    for top in tops:
        for name, (pattern, example) in wanted.items():
            for path in sorted(filter(is_image, entries(top / name)), key=_by_number):
                match = re.fullmatch(pattern, path.stem)
                if not match or path.suffix.lower() not in suffixes:
                    faults.append(f"{path}: expected a name like {example}")
                elif (twin := seen.setdefault(path.with_suffix(""), path)) != path:
                    faults.append(f"{path}: the same image as {twin}")
                else:
                    files.append((path, match))
    if faults:
        raise ValueError(listing(f"{len(faults)} {title} files contradict their names", faults))
    for top in tops:  # a part of the set, such as its training images, is there with all its folders or not at all
        parts = {name.rpartition("/")[0] for name in wanted if (top / name).is_dir()}
        due = [top / name for name in wanted if name.rpartition("/")[0] in parts]
        have = {path.parent for path, _ in files}
        if missing := [str(folder) for folder in due if folder not in have]:
            raise ValueError(f"{title} has no images in {' and '.join(missing)}: unpack all of it.")
    return files


def entries(folder: Path) -> list[Path]:
    """What stands in `folder`, by name; nothing where there is no such folder. Raises ValueError where it is closed."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): allow it, or take the folder away.") from error


def table(path: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, column → value ("" where a row is short).

    Raises ValueError that names the file where it is no text, no table, or lacks one of these `columns`.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table ({error}): fetch it again.") from error
    if missing := set(columns) - set(reader.fieldnames or ()):
        raise ValueError(f"{path} lacks {sorted(missing)}: found the columns {reader.fieldnames}.")
    return rows


def _by_class(folder: Path, classes: Sequence[str] | None) -> tuple[list[Item], tuple[str, ...]]:
    """The images in the class folders below `folder`, and the names of the classes."""
    there = [path.name for path in entries(folder) if path.is_dir() and not path.name.startswith((".", "__"))]
    named = tuple(there if classes is None else classes)
    faults = [f"{folder / name}: named more than once" for name in dict.fromkeys(named) if named.count(name) > 1]
    items, kinds = [], ", ".join(sorted(SUFFIXES))
    for label, name in enumerate(named):
        files = sorted(filter(is_image, entries(folder / name)), key=_by_number)
        if not files:
            faults.append(f"{folder / name}: {f'no {kinds} in it' if name in there else 'no such folder'}")
        items += [Item(path, label, f"{name}/{path.name}") for path in files]
    if len(named) < 2:
        faults.append(f"{folder}: expected at least two classes, found {' and '.join(named) or 'none'}")
    if faults:
        do = "Expected a folder with images for each class: add what is missing, or say classes=[…]"
        raise ValueError(listing(f"{len(faults)} faults in the class folders of {folder.name}", faults, do))
    return items, named


def is_image(path: Path) -> bool:
    """Whether somebody may mean this file to be an image: not notes, thumbnails or what an archiver left."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _by_number(path: Path) -> list:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def decode(
    items: Sequence[Item], *, crop: int | None, size: int, mode: str, pad: bool = False, progress: bool = True
) -> np.ndarray:
    """Read the files of `items` as uint8 [N, C, size, size], after cropping the central `crop` pixels or padding.

    Raises one ValueError that names the files that are unreadable, truncated, of the wrong mode or smaller than `crop`,
    and those that `opened` refuses.
    """
    from PIL import Image
    from tqdm import tqdm

    images = np.empty((len(items), len(mode), size, size), np.uint8)

    def read(n: int) -> str | None:
        try:
            with opened(items[n].path) as found:
                found.load()
                if found.mode not in READABLE[mode]:
                    modes = " or ".join(READABLE[mode])
                    return f"mode {found.mode}, expected {modes} (8 bits a channel; of your own images, see mode=)"
                if crop and min(found.size) < crop:
                    return f"{found.width}×{found.height} pixels, expected at least {crop}×{crop}"
                image: Image.Image = found.convert(mode)
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
        except Unusable as error:
            return str(error)
        except Exception as error:  # Pillow raises what it likes
            return f"unreadable ({error})"
        return None

    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes and resizes
        results = pool.map(read, range(len(items)))
        bar = tqdm(results, "decoding", len(items), unit="image", delay=2, disable=not progress)
        faults = [f"{item.path}: {fault}" for fault, item in zip(bar, items, strict=True) if fault]
    if faults:
        raise ValueError(listing(f"{len(faults)} of {len(items)} images cannot be used", faults))
    return images


class Unusable(ValueError):
    """An image file that is none, or none that we take: what was found and expected, without its path."""


@contextmanager
def opened(path: Path) -> Iterator[PIL.Image.Image]:
    """The image in a regular file, its pixels not yet read.

    Raises `Unusable` for pipes, devices and folders (which may hold up whoever opens them), for formats other than
    `FORMATS`, for several frames, and for sizes outside `LEAST` and `MOST`; OSError for a file that cannot be opened.
    """
    from PIL import Image, UnidentifiedImageError

    if not stat.S_ISREG(path.stat().st_mode):
        raise Unusable("a pipe, device or folder, expected a file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
        try:
            image = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise Unusable(f"more than {MOST:,} pixels ({error})") from error
        except UnidentifiedImageError as error:
            raise Unusable(f"unreadable as {', '.join(FORMATS)}") from error
    with image:
        if min(image.size) < LEAST or image.width * image.height > MOST:
            found = f"{image.width}×{image.height} pixels"
            raise Unusable(f"{found}, expected at least {LEAST} a side and at most {MOST:,} in all")
        if (frames := getattr(image, "n_frames", 1)) != 1:
            raise Unusable(f"{frames} frames, expected one: save the one that is meant as a file of its own")
        yield image


def listing(
    title: str, faults: Sequence[str], do: str = "Replace these files by the originals or remove them, then run again"
) -> str:
    """An error message for the faults of many files at once, and what to ``do``."""
    lines = [f"{title}:", *faults[:20], *([f"… and {len(faults) - 20} more"] if len(faults) > 20 else [])]
    return "\n  ".join(lines) + f"\n{do}."


def cached(source: Source, part: str, folder: Path, items: Sequence[Item], *, size: int, cache: Path) -> ImageSet:
    """The decoded `items`, memory-mapped from `cache`; decoded now if these files have not been seen at this size.

    An entry is either whole or absent, and of two processes that want the same one, one decodes and the other waits.
    One that is damaged is decoded anew, with a warning. Raises `StorageError` where the cache cannot be written.
    """
    names = [item.path.relative_to(folder).as_posix() for item in items]
    files = [(name, item.label, item.group, *_stamp(item.path)) for name, item in zip(names, items, strict=True)]
    decided_by = [source.key, part, source.crop, size, source.mode, source.near, DECODER, files]
    decided_by += [f"{name}={value}" for name in ("follow", "mirror", "pad") if (value := getattr(source, name))]
    key = hashlib.blake2b(json.dumps(decided_by).encode(), digest_size=8).hexdigest()
    entry = Path(cache).expanduser() / f"{source.key}-{part}-{size}px-{key}"
    # Without the lock first: the folder may be one to read from alone, and nobody changes an entry that is whole.
    if (about := _entry(entry, warn=entry.is_dir())) is None:
        with alone(entry, locks=entry.parent / "locks"):
            if (about := _entry(entry, warn=False)) is None:
                images = _decoded(source, items, size=size, mode=source.mode)
                about = {"names": names, "labels": [i.label for i in items], "groups": _grouped(source, items)}
                about["fingerprint"] = fingerprint(images, np.array(about["labels"]), np.array(about["groups"]))
                with storing(entry):
                    _write(entry, images, about)
    ids = names if len(set(names)) == len(names) else [f"{name}/{n}" for n, name in enumerate(names)]  # one file a set
    return ImageSet(
        name=source.key if part == next(iter(source.parts)) else f"{source.key}-{part}",
        store=np.load(entry / "images.npy", mmap_mode="r"),
        labels=np.array(about["labels"], np.int64),
        groups=np.array(about["groups"]),
        classes=source.classes,
        real=True,
        fingerprint=about["fingerprint"],
        ids=np.array(ids),
    )


def _entry(entry: Path, *, warn: bool) -> dict | None:
    """What is known about the images in a cache entry; None where it is absent, or damaged (and then says so)."""
    pixels = entry / "images.npy"
    try:
        state = pixels.stat()
        return _verified(entry, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError) as error:
        if warn:
            warnings.warn(f"the decoded images in {entry} are damaged, and are decoded anew ({error})", stacklevel=4)
        return None


@lru_cache(maxsize=64)
def _verified(entry: Path, size: int, modified: int) -> dict:
    """`about.json` of an entry whose pixels, labels and groups have its fingerprint; once a process for each state.

    Raises ValueError or OSError for any other.
    """
    about = unsealed(entry / "about.json")
    images = np.load(entry / "images.npy", mmap_mode="r")
    if not len(about["names"]) == len(about["labels"]) == len(about["groups"]) == len(images):
        raise ValueError("there are not as many images as names")
    found = fingerprint(images, np.array(about["labels"]), np.array(about["groups"]))
    if found != about["fingerprint"]:
        raise ValueError(f"their fingerprint is {found}, and was {about['fingerprint']}")
    return about


def _grouped(source: Source, items: Sequence[Item]) -> list[str]:
    """The group of each item: its own, joined with those of the same picture, and of near ones if the source says so.

    The files are read once more, small: whether two images are alike must not depend on the size that was asked for.
    """
    from hpatlib.data import duplicates

    small = _decoded(source, items, size=duplicates.SIDE, mode=source.mode, progress=False)
    pairs = [duplicates.same_pairs(small)]
    if source.near is not None:
        pairs += _near(source, items, small.mean(1))
    return duplicates.merge([item.group for item in items], np.concatenate(pairs))


def _near(source: Source, items: Sequence[Item], small: np.ndarray) -> list[np.ndarray]:
    """The pairs of near-duplicates that the rules of the source find among grey images [N, 32, 32]."""
    from hpatlib.data import duplicates

    hashes = duplicates.perceptual_hash(small)
    pairs = [duplicates.near_pairs(hashes, source.near or 0)]
    if source.mirror is not None:
        for view in (small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]):
            pairs.append(duplicates.near_pairs(hashes, source.mirror, duplicates.perceptual_hash(view)))
    if source.follow is not None:
        folders = np.array([str(item.path.parent) for item in items])
        bits = (hashes[1:] != hashes[:-1]).sum(1)
        first = np.flatnonzero((bits <= source.follow) & (folders[1:] == folders[:-1]))
        pairs.append(np.stack([first, first + 1, bits[first]], axis=1))
    return pairs


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
    try:
        beside.mkdir(parents=True)
        with open(beside / "images.npy", "wb") as file:
            np.save(file, images)
            file.flush()
            os.fsync(file.fileno())
        write(beside / "about.json", sealed(about))
        if entry.exists():  # damaged
            shutil.rmtree(entry)
        os.rename(beside, entry)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
