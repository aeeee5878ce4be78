"""IQ-OTH/NCCD: slices of chest CT, normal, benign or malignant, 512 × 512 pixels with 61 exceptions, grey.

Expected under `<root>/chest_ct/`, in `The IQ-OTHNCCD lung cancer dataset/` or at the top: `Bengin cases/Bengin case
(<n>).jpg` (the spelling is the original's), `Malignant cases/…` and `Normal cases/…`. Normal and benign are one class.

No name says who is who, but the numbers run through the cases: slices of one case mostly follow each other. What stays
together in a split are near-duplicates, and neighbours in number that are not quite so alike.

60 of the 61 pictures that are not square are malignant. Stretched to a square they would be recognised by their flat
ribs, cropped by missing ones; black borders above and below leave them with the margins that the others have.
"""

from pathlib import Path

from hpatlib.data.images import Item, Source, find
from hpatlib.data.section_phantoms import lung

CASES = {"Normal": 0, "Bengin": 0, "Malignant": 1}
# Of 255 bits. Up to 50 every pair that crosses the three folders shows one body, at 56 the first strangers do.
NEAR = 50
# Of pairs at least 30 numbers apart 1.0 % are this alike, so of some hundred places where the case changes about one.
FOLLOW = 80


def slices(folder: Path) -> list[Item]:
    """The slices under `folder`, by case and number, none when it has no folders of cases.

    Raises ValueError that names the files whose name contradicts its folder and the kinds of cases without an image,
    and when there is more than one copy of the data set.
    """
    wanted = {f"{case} cases": (rf"{case} case \(\d+\)", f"{case} case (12).jpg") for case in CASES}
    files = find(folder, wanted, title="chest CT", suffixes=(".jpg", ".jpeg", ".png"))
    return [Item(path, CASES[path.stem.split()[0]], path.stem) for path, _ in files]


SOURCE = Source(
    key="chest_ct",
    title="IQ-OTH/NCCD chest CT",
    classes=("no-cancer", "cancer"),
    parts={"all": slices},
    crop=None,
    mode="L",
    label="chest CT",
    colour="#0072B2",
    kaggle="hamdallak/the-iqothnccd-lung-cancer-dataset",
    citation="H. Alyasriy, M. AL-Huseiny: The IQ-OTHNCCD lung cancer dataset, Mendeley Data, 2020, "
    "doi:10.17632/bhmdr45bh2",
    licence="CC BY 4.0",
    phantom=lung,
    near=NEAR,
    follow=FOLLOW,
    pad=True,
    each=536,
)
