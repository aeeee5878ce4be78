"""Data sets behind one small interface: `load` real or phantom images, `split` them without leaks, `fetch` them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from hpatlib._files import home, storing
from hpatlib.data import brain_mri, busi, chest_ct, chest_xray, cnmc, medmnist, natural, photographs
from hpatlib.data.download import download, unpack
from hpatlib.data.images import ImageSet, Item, Source, cached, fingerprint

__all__ = ["SOURCES", "ImageSet", "Item", "Source", "count", "even_count", "fetch", "load", "split", "status"]

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels and groups
SOURCES: dict[str, Source] = {
    source.key: source
    for source in (
        cnmc.SOURCE,
        busi.SOURCE,
        busi.TWO_CLASSES,
        brain_mri.SOURCE,
        chest_xray.SOURCE,
        chest_ct.SOURCE,
        medmnist.BREAST,
        medmnist.PNEUMONIA,
        natural.SOURCE,
        photographs.SOURCE,
    )
}


def load(
    key: str,
    *,
    real: bool,
    size: int,
    count: int | None = None,
    part: str | None = None,
    seed: int = 0,
    root: Path | str | None = None,
    cache: Path | str | None = None,
) -> ImageSet:
    """The data set `key` at `size` × `size` pixels: its real images, or phantoms of its modality.

    Real images come from `<root>/<key>/` (root: $HPAT_DATA; `Source.folder` where it is set) through a cache of decoded
    images (`home()`/data). At most `count` of them are taken, drawn with `seed`, as evenly from the classes as they
    allow; `part` names a part of the data set (a key of `Source.parts`, the first by default). Phantoms are drawn with
    `seed`, 512 unless `count` says otherwise, and have no parts; so are sets that come without files ("photographs").

    Raises FileNotFoundError when the real images are not there (phantoms never take their place) and ValueError for
    arguments without meaning and for files that cannot be used, all of them at once.
    """
    source = _source(key)
    for name, value in (("size", size), ("count", count)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1.")
    if real:
        _has_parts(source)
    if part is not None and part not in (source.parts if real else ()):
        valid = f"choose one of {', '.join(source.parts)}" if real else "phantoms have none, leave it out"
        raise ValueError(f"Unknown part {part!r} of {'' if real else 'the phantom of '}{key}: {valid}.")
    if not real:
        return _phantom(source, 512 if count is None else count, size, seed)

    part = part or next(iter(source.parts))
    folder, items = _found(source, part, root)
    images = cached(source, part, folder, items, size=size, cache=Path(cache) if cache else home() / "data")
    return images if count is None or count >= len(images) else images.subset(_balanced(images.labels, count, seed))


def even_count(key: str, *, part: str | None = None, root: Path | str | None = None) -> int:
    """The `count` with which `load` takes as many real images of each class: those of the document, or all there are.

    That is `Source.each` of each class, less where the smallest class at hand has less. Raises FileNotFoundError and
    ValueError as `load` does.
    """
    source = _source(key)
    _has_parts(source)
    _, items = _found(source, part or next(iter(source.parts)), root)
    have = np.bincount([item.label for item in items], minlength=len(source.classes)).min()
    return len(source.classes) * int(min(have, source.each or have))


def count(key: str, *, root: Path | str | None = None) -> int:
    """How many real images `load` finds. Raises FileNotFoundError and ValueError as `load` does."""
    source = _source(key)
    _has_parts(source)
    return len(_found(source, next(iter(source.parts)), root)[1])


def split(images: ImageSet, *, by: str, test: float = 1 / 3, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Split into (train, test): by "patient" and "image" stratified by label, one of round(1 / test) folds for testing.

    by="patient" keeps each of `groups` on one side; by="image" keeps only images with identical pixels together.
    by="random" is scikit-learn's plain `train_test_split`, as the ultrasound report has it: neither stratified nor
    aware of patients, it leaks whatever is there twice, and exists to show how much that flatters.

    By patient, consecutive seeds rotate through the folds. Seeds 0 … k - 1 are one round: they share a shuffle and test
    on its k folds in turn, in the order of the names of their largest groups, so that each image is tested once (if
    `images` are the same: with a `count`, `load` draws others for each seed). The next k seeds are a round with another
    shuffle, which deals out anew what is alike in size. Where each fold has one of k outstanding groups, such as the
    three healthy subjects with nearly all healthy cells in part of C-NMC, seed n tests on the same of them in every
    round. By image, each seed is a shuffle of its own.

    Folds with less than half of a class's share are left out: k is what the first shuffle leaves of round(1 / test).

    Raises ValueError for another `by`, a `test` outside (0, 0.5], and when no fold has every class on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    if by not in ("patient", "image", "random"):
        raise ValueError(f"Unknown split by {by!r}: choose patient, image or random.")
    if not 0 < test <= 0.5:
        raise ValueError(f"test is {test}, expected a share in (0, 0.5].")
    labels, groups, folds = images.labels, images.groups, round(1 / test)
    if by == "image":
        pixels = (images.pixels(n) for n in range(len(images)))  # one by one: together they may not fit into memory
        groups = np.array([hashlib.blake2b(image.tobytes()).hexdigest() for image in pixels])
    counts = np.bincount(labels, minlength=len(images.classes))

    def smallest(side: np.ndarray) -> float:  # over the classes: how much of the class is on this side
        return (np.bincount(labels[side], minlength=len(counts)) / counts).min()

    def largest(side: tuple[np.ndarray, np.ndarray]) -> str:
        names, sizes = np.unique(groups[side[1]], return_counts=True)
        return names[sizes.argmax()]

    def usable(sides: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(left, right) for left, right in sides if smallest(left) > 0 and smallest(right) > 0]

    def shuffled(shuffle: int) -> list[tuple[np.ndarray, np.ndarray]]:
        kfold = StratifiedGroupKFold(folds, shuffle=True, random_state=shuffle)
        found = usable(list(kfold.split(groups, labels, groups)))
        fair = [(left, right) for left, right in found if smallest(right) >= 0.5 / folds]
        return fair or found

    sides, turn = [], 0
    if by == "random":
        if len(labels) > 1 and counts.all():
            sides = usable([train_test_split(np.arange(len(labels)), test_size=test, random_state=seed)])
    elif min(counts.min(), len(set(groups))) >= folds:
        if by == "image":
            sides, turn = shuffled(seed), seed
        else:
            first = shuffled(0)
            shuffle, turn = divmod(seed, len(first) or folds)
            sides = sorted(shuffled(shuffle) if shuffle else first, key=largest)
    if not sides:
        named = enumerate(zip(counts, images.classes, strict=True))
        found = (f"{n} {name} in {len(set(groups[labels == i]))} groups" for i, (n, name) in named)
        tried = "the random split does not leave" if by == "random" else f"none of {folds} folds by {by} leaves"
        raise ValueError(
            f"{images.name} has {' and '.join(found)}: {tried} every class on both sides. "
            "Use more images or a larger test share."
        )
    left, right = sides[turn % len(sides)]
    return images.subset(left), images.subset(right)


def fetch(key: str, root: Path | str) -> Path:
    """Download the data set from Kaggle to `<root>/<key>`, a link to kagglehub's copy where links exist.

    A data set that is one file elsewhere (MedMNIST's, or an archive) goes to its folder as that file, or unpacked.
    Returns that folder; one that is there already is left as it is, unless its one file cannot be read. Raises
    RuntimeError when kagglehub is missing or the download fails, StorageError when it cannot be stored, and ValueError
    for sets that have no files, or no address to fetch them from.
    """
    source = _source(key)
    target = Path(root).expanduser() / (source.folder or source.key)
    if source.url:
        return _fetch_file(source, target)
    _has_parts(source)
    if not source.kaggle:
        raise ValueError(f"{key} has no address to fetch it from: put its files into {target}, as its module says.")
    by_hand = f"or unpack https://www.kaggle.com/datasets/{source.kaggle} into {target}"
    if target.is_dir() and any(target.iterdir()):
        return target
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, expected a folder or nothing: move it away.")
    try:
        import kagglehub
    except ImportError as error:
        raise RuntimeError(f"Fetching {source.kaggle} needs kagglehub: pip install kagglehub, {by_hand}.") from error
    try:
        downloaded = Path(kagglehub.dataset_download(source.kaggle)).resolve()
    except Exception as error:  # kagglehub passes on whatever its HTTP client raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise RuntimeError(f"Fetching {source.kaggle} failed ({reason}): try again online, {by_hand}.") from error
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():  # to a copy that is gone
            target.unlink()
        elif target.is_dir():
            target.rmdir()
        try:
            target.symlink_to(downloaded, target_is_directory=True)
        except OSError:
            beside = target.with_name(f"{key}.tmp")
            shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
            shutil.copytree(downloaded, beside)
            beside.rename(target)
    return target


def _fetch_file(source: Source, folder: Path) -> Path:
    """The one file that a data set is; one that cannot be read is fetched again."""
    with suppress(ValueError):
        if any(find(folder) for find in source.parts.values()):
            return folder
    file = folder / source.url.rsplit("/", 1)[1]
    if source.arrange is None:
        download(source.url, file, checksum=source.checksum)
        return folder
    archive = download(source.url, file.with_suffix(".zip"), checksum=source.checksum)
    with storing(folder):
        unpacked = folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        source.arrange(unpack(archive, unpacked), folder)
        shutil.rmtree(unpacked)
        archive.unlink()
    return folder


def status(root: Path | str | None = None) -> list[dict]:
    """One row for each part of each data set: key, part, images (count), classes (count of each), folder and note.

    The note is empty when all is well, otherwise it says how to get the images or what is wrong with the files.
    """
    rows = []
    for key, source in SOURCES.items():
        folder = _folder(source, root)
        for part, find in source.parts.items():
            try:
                items = find(folder) if folder and folder.is_dir() else []
                note = "" if items else _how(source)
            except (ValueError, OSError) as error:
                items, note = [], str(error)
            classes = {name: sum(item.label == n for item in items) for n, name in enumerate(source.classes)}
            row = {"key": key, "part": part, "images": len(items), "classes": classes, "folder": folder, "note": note}
            rows.append(row)
    return rows


def _source(key: str) -> Source:
    if key not in SOURCES:
        raise ValueError(f"Unknown data set {key!r}: choose one of {', '.join(SOURCES)}.")
    return SOURCES[key]


def _folder(source: Source, root: Path | str | None) -> Path | None:
    root = root or os.environ.get("HPAT_DATA")
    return Path(root).expanduser() / (source.folder or source.key) if root else None


def _found(source: Source, part: str, root: Path | str | None) -> tuple[Path, list[Item]]:
    """The folder of a data set and the files of this part in it; FileNotFoundError when there are none."""
    folder = _folder(source, root)
    try:
        items = source.parts[part](folder) if folder and folder.is_dir() else []
    except OSError as error:  # a closed folder somewhere in between
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}): allow it.") from error
    if not folder or not items:
        looked = f"no files of part {part!r} in {folder}" if folder else "HPAT_DATA is not set"
        raise FileNotFoundError(f"Real {source.title} images are missing: {looked}. {_how(source)}")
    return folder, items


def _has_parts(source: Source) -> None:
    if not source.parts:
        raise ValueError(f"{source.key} has no files: it comes with the library (in Python: real=False).")


def _how(source: Source) -> str:
    fetch = f", or that shall, and run `hpat data fetch {source.key}`" if source.kaggle or source.url else ""
    return f"Set HPAT_DATA to the folder that holds {source.folder or source.key}/{fetch}."


def _phantom(source: Source, count: int, size: int, seed: int) -> ImageSet:
    if source.phantom is None:
        raise ValueError(f"{source.key} has no phantom: use its real images, or another data set.")
    images, labels, groups = (told.copy() for told in _drawn(source.phantom, count, size, seed))
    return ImageSet(
        name=f"phantom-{source.phantom.__name__}" if source.parts else source.key,  # else it stands in for nothing
        store=images,
        labels=labels,
        groups=groups,
        classes=source.classes,
        real=False,
        fingerprint=fingerprint(images, labels, groups),
    )


@lru_cache(maxsize=8)  # a chapter's trainings ask for the same ones again and again, and drawing 512 takes seconds
def _drawn(draw: Callable[..., Arrays], count: int, size: int, seed: int) -> Arrays:
    return draw(count, size=size, seed=seed)


def _balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` images, as many of each class as there are: the classes take turns until one has no more."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # of each image within its class, in that random order
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        rank[mine] = np.arange(len(mine))
    return np.sort(np.lexsort((labels, rank))[:count])
