"""C-NMC 2019: single cells, normal (hem) or leukaemic (all), 450 × 450 pixels, each on black.

Expected under `<root>/cnmc/`, at the top or a few folders down, such as in `C-NMC_training_data/` or
`C-NMC_Leukemia/training_data/`:

- training: `fold_K/{all,hem}/UID_<patient>_<image>_<cell>_<all|hem>.bmp`
- preliminary test set: `C-NMC_test_prelim_phase_data/<n>.bmp`, and `C-NMC_test_prelim_phase_data_labels.csv` in or
  beside that folder

`.png` is as good as `.bmp`. Healthy subjects are called H1, H2, … (and one h3), patients 1, 2, …: 1 is not H1. Some
subjects have two or more names: they share cells, see `ONE_SUBJECT`.
"""

import re
from pathlib import Path

from hpatlib.data.images import Item, Source, entries, is_image, listing, table
from hpatlib.data.phantoms import cells

CLASSES = ("hem", "all")
NAME = re.compile(r"UID_(?P<patient>[Hh]?\d+)_\d+_\d+_(?P<label>all|hem)\.(bmp|png)", re.IGNORECASE)
PRELIMINARY = "C-NMC_test_prelim_phase_data"
COLUMNS = ("Patient_ID", "new_names", "labels")
# Names under which the published training set holds the same files: 104 pairs of the 10,661 are equal byte for byte,
# and 99 of these stand under two names, such as 71 of the 76 cells of 20 under 21.
ONE_SUBJECT = (("20", "21"), ("51", "75", "78"), ("H2", "H4", "H5", "H6"), ("H10", "H3"))
_FIRST = {name: names[0] for names in ONE_SUBJECT for name in names}


def subject(name: str) -> str:
    """Who a name in the files stands for, whatever its case: the first name of those in `ONE_SUBJECT`, or itself."""
    return _FIRST.get(name.upper(), name.upper())


def training(folder: Path) -> list[Item]:
    """The files of the training folds under `folder`, none when there are no folds.

    Raises ValueError that names the files whose name does not parse, contradicts its folder or occurs twice, the
    classes without an image in a fold, and when there is more than one copy of the data set.
    """
    tops = sorted({fold.parent for fold in _find(folder, "fold_*", deep=2)})
    if len(tops) > 1:
        found = ", ".join(map(str, tops))
        raise ValueError(f"C-NMC stands more than once under {folder} ({found}): keep one copy, or cells count twice.")
    items, faults = [], []
    seen: dict[str, Path] = {}
    folders = [fold / label for top in tops for fold in sorted(top.glob("fold_*")) for label in sorted(CLASSES)]
    for path in [path for folder in folders for path in entries(folder) if is_image(path)]:
        label = path.parent.name
        match = NAME.fullmatch(path.name)
        if not match:
            faults.append(f"{path}: expected a name like UID_H10_1_2_hem.bmp")
        elif match["label"].lower() != label:
            faults.append(f"{path}: its name says {match['label']}, its folder {label}")
        elif (twin := seen.setdefault(path.stem, path)) != path:
            faults.append(f"{path}: the same cell as {twin}")
        else:
            items.append(Item(path, CLASSES.index(label), subject(match["patient"])))
    if faults:
        raise ValueError(listing(f"{len(faults)} C-NMC files contradict their names", faults))
    have = {item.path.parent for item in items}
    if missing := [str(folder) for folder in folders if folder not in have]:
        raise ValueError(f"C-NMC has no images in {' and '.join(missing)}: unpack all of it.")
    return items


def preliminary_test(folder: Path) -> list[Item]:
    """The files of the preliminary test set under `folder` (1,867 when complete), none when it is absent.

    Raises ValueError that names every image without a label, label without an image and row that contradicts itself.
    """
    folders = [path for path in _find(folder, PRELIMINARY, deep=3) if any(map(is_image, entries(path)))]
    if not folders:
        return []
    if len(folders) > 1:
        found = ", ".join(map(str, folders))
        raise ValueError(f"C-NMC's preliminary test set stands more than once ({found}): keep one copy.")
    top, name = folders[0], f"{PRELIMINARY}_labels.csv"
    tables = [path for path in (top / name, top.parent / name) if path.is_file()]
    if not tables:
        raise ValueError(f"{top} has images but no labels: put {name} into it or beside it.")
    rows = table(tables[0], COLUMNS)
    # By stem: a copy that was converted to .png keeps the table that says .bmp.
    images = list(filter(is_image, entries(top)))
    paths = {path.stem: path for path in images}
    if twice := [str(path) for path in images if paths[path.stem] != path]:
        raise ValueError(listing(f"{len(twice)} images of C-NMC's preliminary test set have a twin", twice))
    items, faults, labelled = [], [], set()
    for row in rows:
        cell, name, label = (row[column] for column in COLUMNS)
        match, path = NAME.fullmatch(cell or ""), paths.get(Path(name or "").stem)
        if path is None:
            faults.append(f"{top / (name or '?')}: in the table, but not in the folder")
        elif path in labelled:
            faults.append(f"{path}: more than one row in the table")
        elif label not in ("0", "1") or not match or match["label"].lower() != CLASSES[int(label)]:
            faults.append(f"{path}: label {label!r} for {cell!r}, expected 0 for …_hem.bmp and 1 for …_all.bmp")
        else:
            items.append(Item(path, int(label), subject(match["patient"])))
        labelled.add(path)
    faults += [f"{path}: no row in {tables[0].name}" for path in paths.values() if path not in labelled]
    if faults:
        raise ValueError(listing(f"{len(faults)} faults in the preliminary test set of C-NMC", faults))
    return sorted(items, key=lambda item: item.path)


def _find(folder: Path, name: str, *, deep: int) -> list[Path]:
    """Folders of that name under at most `deep` others; unlike `rglob`, this follows links."""
    return sorted(path for depth in range(deep + 1) for path in folder.glob("*/" * depth + name) if path.is_dir())


SOURCE = Source(
    key="cnmc",
    title="C-NMC 2019",
    classes=CLASSES,
    parts={"train": training, "preliminary": preliminary_test},
    crop=300,
    mode="RGB",
    label="C-NMC cells",
    colour="#A0428C",
    kaggle="andrewmvd/leukemia-classification",
    citation="A. Gupta, R. Gupta: ALL Challenge dataset of ISBI 2019 (C-NMC 2019), The Cancer Imaging Archive, 2019, "
    "doi:10.7937/tcia.2019.dc64i46r",
    licence="CC BY 3.0",
    phantom=cells,
    published=10_661,
)
