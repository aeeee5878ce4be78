"""Brain tumour MRI (Nickparvar): slices of the head without a tumour, or with a glioma, meningioma or pituitary one.

Expected under `<root>/brain_mri/`, at the top or one folder down: `Training/<kind>/Tr-<ki>_<n>.jpg` and
`Testing/<kind>/Te-<ki>_<n>.jpg`, with kind glioma, meningioma, notumor or pituitary and ki its first two letters. Three
collections are merged in it, so the numbers of some files have `Tr` before them. The three tumours are one class.

No name says who is who, and the published test set holds copies of training images: both parts are one set here, and
its near-duplicates, mirrored ones included, stay together in a split. The published parts have names of their own.
"""

from functools import partial
from pathlib import Path

from hpatlib.data.images import Item, Source, find
from hpatlib.data.section_phantoms import head

KINDS = ("notumor", "glioma", "meningioma", "pituitary")
# Of 255 bits. Up to 40 nearly all pairs show one head, three join different kinds; up to 54 it is 38, and chains form.
NEAR = 40
# Tumours are numbered patient by patient, in part: in training 7 to 21 % of neighbours differ in at most 70 bits, of
# pairs further apart 0.3 %.
FOLLOW = 60
# Many pictures come mirrored, upside down or both, too. With a tumour, such a pair differs in at most 6 bits, and other
# slices begin at 16; without one, any threshold from 20 to 40 makes the same groups.
MIRROR = 20


def slices(folder: Path, parts: tuple[str, ...] = ("Training", "Testing")) -> list[Item]:
    """The slices of these parts under `folder`, by part, kind and number, none when it has no such folders.

    Raises ValueError that names the files whose name contradicts its folder and the kinds without an image, and when
    there is more than one copy of the data set.
    """
    wanted = {
        f"{part}/{kind}": (rf"{part[:2]}-{kind[:2]}(Tr)?_\d+", f"{part[:2]}-{kind[:2]}_0012.jpg")
        for part in parts
        for kind in KINDS
    }
    files = find(folder, wanted, title="brain MRI", suffixes=(".jpg", ".jpeg", ".png"))
    return [Item(path, int(path.parent.name != "notumor"), path.stem) for path, _ in files]


SOURCE = Source(
    key="brain_mri",
    title="Brain Tumor MRI",
    classes=("no-tumor", "tumor"),
    parts={
        "all": slices,
        "training": partial(slices, parts=("Training",)),
        "testing": partial(slices, parts=("Testing",)),
    },
    crop=None,
    mode="L",
    label="brain MRI",
    colour="#3D9BD9",
    kaggle="masoudnickparvar/brain-tumor-mri-dataset",
    citation="M. Nickparvar: Brain Tumor MRI Dataset, Kaggle, 2021, doi:10.34740/kaggle/dsv/2645886",
    licence="CC0 on Kaggle; merged from the figshare set of J. Cheng, SARTAJ and Br35H, with terms of their own",
    phantom=head,
    near=NEAR,
    follow=FOLLOW,
    mirror=MIRROR,
    each=1595,
)
