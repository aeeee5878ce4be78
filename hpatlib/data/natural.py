"""ImageNet sample images: one photograph of each of the 1,000 classes of ILSVRC-2012, an animal or a thing.

Expected under `<root>/natural/`: `imagenet-sample-images/n<wnid>_<name>.JPEG`, and `classes.csv` with a row for each
file: `file`, `wnid`, `index` (0…999) and `animal` ("yes" or "no"). "Thing" is whatever the class is not an animal of:
people, food and places too.

They are read in grey and stretched to a square, so that they can be compared with medical images. Networks trained on
ImageNet have most likely seen them: ask such a network how it looks at them, never how well it recognises them.
"""

from pathlib import Path

from hpatlib._files import write
from hpatlib.data.images import Item, Source, entries, is_image, listing, table

CLASSES = ("thing", "animal")
FOLDER, TABLE = "imagenet-sample-images", "classes.csv"
COLUMNS = {"file", "wnid", "index", "animal"}
COMMIT = "bc69043e2862758a1906c6a24a792bb28c6bb2ff"
NO_ANIMAL = "n02666196"  # the abacus: in the order of their names, animals come first, and it is the next


def photographs(folder: Path) -> list[Item]:
    """The photographs under `folder`, by name, none when it has none; rows of the table may lack their file.

    Raises ValueError when the table is missing or lacks a column, and one that names every file without a row, every
    row that says neither yes nor no or comes twice, and the classes without an image.
    """
    paths = list(filter(is_image, entries(folder / FOLDER)))
    if not paths:
        return []
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{folder / FOLDER} holds an image under two suffixes: keep one of them.")
    if not (folder / TABLE).is_file():
        raise ValueError(f"{folder / FOLDER} has images but no classes: put {TABLE} beside that folder.")
    rows = table(folder / TABLE, COLUMNS)
    animal: dict[str, str] = {}
    faults = []
    for row in rows:
        if row["animal"] not in ("yes", "no"):
            faults.append(f"{row['file']}: animal is {row['animal']!r} in {TABLE}, expected yes or no")
        elif row["file"] in animal:
            faults.append(f"{row['file']}: more than one row in {TABLE}")
        animal[row["file"]] = row["animal"]
    faults += [f"{path}: no row in {TABLE}" for path in paths if path.name not in animal]
    if faults:
        raise ValueError(listing(f"{len(faults)} faults in the ImageNet sample images", faults))
    items = [Item(path, int(animal[path.name] == "yes"), path.stem) for path in paths]
    for label, name in enumerate(CLASSES):
        if all(item.label != label for item in items):
            raise ValueError(f"ImageNet sample images under {folder} have no {name}: unpack all of them.")
    return items


def arrange(unpacked: Path, folder: Path) -> None:
    """Make `folder` of the unpacked repository: its photographs, and the table of their classes.

    A photograph's `index` is the place of its class among the names of all 1,000. Raises ValueError for other files.
    """
    found = sorted(unpacked.glob("*/n*_*.JPEG"))
    wnids = [path.name.split("_")[0] for path in found]
    if not len(set(wnids)) == len(found) == 1000:
        raise ValueError(
            f"{unpacked} has {len(found)} photographs of {len(set(wnids))} classes, expected 1000 of each."
        )
    rows = [
        f"{path.name},{wnid},{index},{'yes' if wnid < NO_ANIMAL else 'no'}"
        for index, (path, wnid) in enumerate(zip(found, wnids, strict=True))
    ]
    write(folder / TABLE, "\n".join(["file,wnid,index,animal", *rows, ""]).encode())
    found[0].parent.rename(folder / FOLDER)  # last and at once: a set that is there is whole


SOURCE = Source(
    key="natural",
    title="ImageNet sample",
    classes=CLASSES,
    parts={"all": photographs},
    label="natural images",
    colour="#009E73",
    url=f"https://codeload.github.com/EliSchwartz/imagenet-sample-images/zip/{COMMIT}",
    arrange=arrange,
    citation="O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, International Journal of "
    "Computer Vision 115, 2015, 211, doi:10.1007/s11263-015-0816-y",
    licence="none published: ImageNet allows research and education; compute with them, and show none",
    each=398,
)
