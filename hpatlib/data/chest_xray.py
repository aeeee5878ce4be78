"""Chest X-rays of children (Kermany): normal or with pneumonia, 1000 to 2000 pixels wide, grey.

Expected under `<root>/chest_xray/`, in `chest_xray/` or at the top, in parts `train`, `test` and `val`:
`<part>/NORMAL/IM-<study>-<n>.jpeg` or `NORMAL2-IM-…`, and `<part>/PNEUMONIA/person<p>_{bacteria,virus}_<n>.jpeg`.

Groups are the persons and the studies that the names speak of. Persons of the test part are counted anew, those of the
small `val` go on where train ends. A perceptual hash cannot tell these pictures apart (two children are more alike
than two pictures of one child), so it joins only what is the same picture.
"""

from functools import partial
from pathlib import Path

from hpatlib.data.images import Item, Source, find
from hpatlib.data.section_phantoms import chest

CLASSES = ("NORMAL", "PNEUMONIA")
NAMES = {
    "NORMAL": (r"(?P<who>(NORMAL2-)?IM-\d+)-\d+(-\d+)?", "IM-0115-0001.jpeg or NORMAL2-IM-0383-0001.jpeg"),
    "PNEUMONIA": (r"(?P<who>person\d+)_(bacteria|virus)_\d+", "person12_bacteria_46.jpeg"),
}
NEAR = 20  # of 255 bits: the two most similar of different pictures differ in 42


def radiographs(folder: Path, parts: tuple[str, ...] = ("train", "test", "val")) -> list[Item]:
    """The radiographs of these parts under `folder`, by part, class and name, none when it has no such folders.

    Raises ValueError that names the files whose name contradicts its folder and the classes without an image, and when
    there is more than one copy of the data set (Kaggle's archive has a second one inside the first).
    """
    wanted = {f"{part}/{name}": NAMES[name] for part in parts for name in CLASSES}
    files = find(folder, wanted, title="chest X-ray", suffixes=(".jpg", ".jpeg", ".png"))
    items = []
    for path, match in files:
        counter = "test" if path.parts[-3] == "test" else "train"
        items.append(Item(path, CLASSES.index(path.parent.name), f"{counter} {match['who']}"))
    return items


SOURCE = Source(
    key="chest_xray",
    title="chest X-ray",
    classes=("normal", "pneumonia"),
    parts={
        "all": radiographs,
        "train": partial(radiographs, parts=("train", "val")),
        "test": partial(radiographs, parts=("test",)),
    },
    crop=None,
    mode="L",
    label="chest X-ray",
    colour="#A0428C",
    kaggle="paultimothymooney/chest-xray-pneumonia",
    citation="D. Kermany, K. Zhang, M. Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for "
    "Classification, Mendeley Data, V2, 2018, doi:10.17632/rscbjbr9sj.2",
    licence="CC BY 4.0",
    phantom=chest,
    near=NEAR,
    each=1583,
)
