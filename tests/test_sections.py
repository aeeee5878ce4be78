"""The sets of the domain-assimilation slides: brain MRI, chest X-ray, chest CT, two-class BUSI, and their phantoms."""

import functools
import hashlib
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hpatlib import data, models
from hpatlib.data import brain_mri, chest_ct, chest_xray, duplicates, images
from hpatlib.data.section_phantoms import chest, head, lung
from hpatlib.data.ultrasound_phantom import ultrasound, ultrasound_two_classes

REAL = Path(os.environ.get("HPAT_DATA") or "no data").expanduser()  # a whole or partial copy of real images
FILES = {
    "brain_mri": {
        **{
            f"Training/{kind}/Tr-{kind[:2]}_{n:04d}.jpg": kind != "notumor" for kind in brain_mri.KINDS for n in (9, 11)
        },
        **{f"Testing/{kind}/Te-{kind[:2]}Tr_{n:04d}.jpg": kind != "notumor" for kind in brain_mri.KINDS for n in (0,)},
    },
    "chest_xray": {
        "train/NORMAL/IM-0115-0001.jpeg": 0,
        "train/NORMAL/IM-0115-0001-0002.jpeg": 0,
        "train/NORMAL/NORMAL2-IM-0115-0001.jpeg": 0,
        "train/PNEUMONIA/person1_bacteria_2.jpeg": 1,
        "train/PNEUMONIA/person1_bacteria_10.jpeg": 1,
        "train/PNEUMONIA/person1_virus_6.jpeg": 1,
        "test/NORMAL/IM-0001-0001.jpeg": 0,
        "test/PNEUMONIA/person1_virus_7.jpeg": 1,
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": 0,
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg": 1,
    },
    "chest_ct": {f"{case} cases/{case} case ({n}).jpg": c for case, c in chest_ct.CASES.items() for n in (2, 10, 1)},
}
TOPS = {"brain_mri": "archive", "chest_xray": "chest_xray", "chest_ct": "The IQ-OTHNCCD lung cancer dataset"}
PHANTOMS = {"brain_mri": head, "chest_xray": chest, "chest_ct": lung, "busi2": ultrasound_two_classes}
drawn = functools.cache(lambda key, count, size, seed: PHANTOMS[key](count, size=size, seed=seed))  # read only


def draw(path, seed, *, side=(90, 90), mode="L", quality=95):
    """A smooth picture of its own for each seed: as photographs are, and unlike noise, the same at every size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC).convert(mode).save(path, quality=quality)
    return path


def tree(root, key, *, top="", suffix=None):
    """Made-up files of this set below `root`, all of them different, grey and colour in turns."""
    for seed, name in enumerate(FILES[key]):
        path = root / key / top / name
        draw(path.with_suffix(suffix or path.suffix), seed, mode=("L", "RGB")[seed % 2])
    return root / key / top


def load(root, key, **options):
    return data.load(key, real=True, root=root, **{"size": 16, **options})


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))


# Files


@pytest.mark.parametrize("key", FILES)
def test_every_layout_gives_the_same_images(tmp_path, key):
    tree(tmp_path / "flat", key)
    tree(tmp_path / "deep", key, top=TOPS[key])
    tree(tmp_path / "png", key, suffix=".png")
    flat, deep, png = (load(tmp_path / name, key) for name in ("flat", "deep", "png"))
    assert flat.fingerprint == deep.fingerprint and (flat.groups == png.groups).all()
    assert flat.images.shape == (len(FILES[key]), 1, 16, 16) and flat.real and flat.name == key
    assert np.bincount(flat.labels).tolist() == np.bincount(list(FILES[key].values())).tolist()


@pytest.mark.parametrize("key", FILES)
def test_images_come_by_folder_and_number(tmp_path, key):
    folder = tree(tmp_path, key)
    names = [item.path.relative_to(folder).as_posix() for item in data.SOURCES[key].parts["all"](tmp_path / key)]
    assert sorted(names) == sorted(FILES[key])
    if key == "chest_ct":
        assert names[:3] == [f"Normal cases/Normal case ({n}).jpg" for n in (1, 2, 10)]


def test_persons_and_studies_are_groups(tmp_path):
    tree(tmp_path, "chest_xray")
    rays = load(tmp_path, "chest_xray")
    assert rays.classes == ("normal", "pneumonia")
    assert Counter(rays.groups) == {
        "train IM-0115": 2,
        "train NORMAL2-IM-0115": 1,
        "train person1": 3,
        "test IM-0001": 1,
        "test person1": 1,  # another child than train's person1
        "train NORMAL2-IM-1427": 1,
        "train person1946": 1,
    }
    assert len(load(tmp_path, "chest_xray", part="train")) == 8
    assert set(load(tmp_path, "chest_xray", part="test").groups) == {"test IM-0001", "test person1"}


def test_the_second_copy_in_the_archive_of_the_chest_xrays_is_passed_over(tmp_path):
    tree(tmp_path, "chest_xray", top="chest_xray")
    tree(tmp_path, "chest_xray", top="chest_xray/chest_xray")
    tree(tmp_path, "chest_xray", top="chest_xray/__MACOSX/chest_xray")
    assert len(load(tmp_path, "chest_xray")) == len(FILES["chest_xray"])


def test_published_parts_of_the_brain_mri(tmp_path):
    tree(tmp_path, "brain_mri")
    counts = {part: len(load(tmp_path, "brain_mri", part=part)) for part in brain_mri.SOURCE.parts}
    assert counts == {"all": 12, "training": 8, "testing": 4}
    shutil.rmtree(tmp_path / "brain_mri/Testing")
    assert len(load(tmp_path, "brain_mri")) == 8
    with pytest.raises(FileNotFoundError, match="no files of part 'testing'"):
        load(tmp_path, "brain_mri", part="testing")


def test_whether_a_file_has_colours_is_not_seen(tmp_path):
    """Most brain MRI files without a tumour are stored as colour and most others as grey: all are read as grey."""
    picture = Image.open(draw(tmp_path / "drawn.png", 0))
    for key in ("brain_mri", "chest_xray", "chest_ct", "busi", "busi2", "natural"):
        assert data.SOURCES[key].mode == "L"
    for suffix, modes in ((".jpg", ("L", "RGB")), (".png", ("L", "RGB", "P", "RGBA"))):
        items = []
        for mode in modes:
            picture.convert(mode).save(path := tmp_path / f"{mode}{suffix}", quality=95)
            assert Image.open(path).mode == mode
            items.append(images.Item(path, 0, mode))
        same = images.decode(items, crop=None, size=40, mode="L")
        assert same.shape == (len(modes), 1, 40, 40) and (same == same[0]).all()


def test_two_class_busi(tmp_path):
    for label, name in enumerate(("normal", "benign", "malignant")):
        draw(tmp_path / f"busi/Dataset_BUSI_with_GT/{name}/{name} (1).png", label)
    scans = load(tmp_path, "busi2")
    assert (scans.name, scans.classes) == ("busi2", ("no-cancer", "cancer")) and scans.labels.tolist() == [0, 0, 1]
    three = load(tmp_path, "busi")
    assert (scans.images == three.images).all() and (scans.groups == three.groups).all()


@pytest.mark.parametrize(
    ("key", "wrong", "expected"),
    [
        ("brain_mri", "Training/glioma/Tr-me_0001.jpg", "expected a name like Tr-gl_0012.jpg"),
        ("brain_mri", "Training/glioma/Te-gl_0001.jpg", "expected a name like Tr-gl_0012.jpg"),
        ("brain_mri", "Testing/notumor/Te-no_0001.bmp", "expected a name like Te-no_0012.jpg"),
        ("chest_xray", "val/NORMAL/person1_virus_2.jpeg", "expected a name like IM-0115-0001.jpeg or NORMAL2-IM-"),
        ("chest_xray", "test/PNEUMONIA/person_virus_2.jpeg", "expected a name like person12_bacteria_46.jpeg"),
        ("chest_ct", "Bengin cases/Benign case (1).jpg", r"expected a name like Bengin case \(12\).jpg"),
        ("chest_ct", "Normal cases/Normal case (1) copy.jpg", r"expected a name like Normal case \(12\).jpg"),
        ("chest_ct", "Normal cases/Normal case (2).png", r"the same image as .*Normal case \(2\).jpg"),
    ],
)
def test_wrong_names_are_reported(tmp_path, key, wrong, expected):
    folder = tree(tmp_path, key)
    (folder / wrong).with_name("Thumbs.db").write_text("x")
    (folder / wrong).with_name("._hidden.jpg").write_text("x")
    load(tmp_path, key)
    draw(folder / wrong, 0)
    draw(folder / "Bengin cases/odd.jpg" if key == "chest_ct" else (folder / wrong).with_name("odd.png"), 0)
    with pytest.raises(ValueError, match=rf"^2 .* files contradict(.|\n)*: {expected}") as error:
        load(tmp_path, key)
    assert "odd." in str(error.value)
    assert "odd." in next(row["note"] for row in data.status(tmp_path) if row["key"] == key)


@pytest.mark.parametrize(
    ("key", "missing", "text"),
    [
        ("brain_mri", "*/meningioma", r"no images in .*meningioma"),
        ("chest_xray", "*/PNEUMONIA", r"no images in .*PNEUMONIA"),
        ("chest_ct", "Normal cases", r"no images in .*Normal cases"),
    ],
)
def test_incomplete_double_and_missing_sets_are_refused(tmp_path, key, missing, text):
    with pytest.raises(FileNotFoundError, match=rf"^Real .* images are missing: .*`hpat data fetch {key}`"):
        load(tmp_path, key)
    for folder in tree(tmp_path, key).glob(missing):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=text):
        load(tmp_path, key)
    tree(tmp_path, key)
    tree(tmp_path, key, top=TOPS[key])
    with pytest.raises(ValueError, match="stands more than once"):
        load(tmp_path, key)


def test_unreadable_slices_are_reported_together(tmp_path):
    folder = tree(tmp_path, "chest_ct")
    (folder / "Normal cases/Normal case (1).jpg").write_bytes(b"")
    (folder / "Bengin cases/Bengin case (2).jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="2 of 9 images cannot be used") as error:
        load(tmp_path, "chest_ct")
    assert "Normal case (1).jpg: unreadable" in str(error.value) and "Bengin case (2).jpg" in str(error.value)


# What stays together


def test_copies_between_training_and_testing_stay_together(tmp_path):
    folder = tree(tmp_path, "brain_mri")
    for n in range(12, 40):
        draw(folder / f"Training/glioma/Tr-gl_{n:04d}.jpg", 100 + n)
        draw(folder / f"Training/notumor/Tr-no_{n:04d}.jpg", 200 + n)
    for n in range(20, 30):
        shutil.copy(folder / f"Training/notumor/Tr-no_{n:04d}.jpg", folder / f"Testing/notumor/Te-no_{n:04d}.jpg")
    again = Image.open(folder / "Training/glioma/Tr-gl_0012.jpg").resize((224, 224), Image.Resampling.BICUBIC)
    again.save(folder / "Testing/glioma/Te-gl_0012.jpg", quality=75)
    slices = load(tmp_path, "brain_mri")
    sizes = Counter(slices.groups)
    assert sorted(sizes.values()) == [1] * 57 + [2] * 11 and sizes["Tr-gl_0012"] == 2
    for seed in range(5):
        train, test = data.split(slices, by="patient", test=1 / 5, seed=seed)
        assert not set(train.groups) & set(test.groups)
        assert not set(map(bytes, train.images)) & set(map(bytes, test.images))


def test_neighbours_in_number_that_are_alike_stay_together(tmp_path):
    """A walk through a body: each slice is a little different from the one before, and the fifth from the first."""
    rng = np.random.default_rng(0)
    first, last = rng.integers(0, 256, (2, 12, 12))
    folder = tree(tmp_path, "chest_ct")
    for case, start in (("Malignant", 40), ("Normal", 60)):
        for n in range(9):
            mixed = (first + (last - first) * n / 8).astype(np.uint8)
            Image.fromarray(mixed).resize((90, 90), Image.Resampling.BICUBIC).save(
                folder / f"{case} cases/{case} case ({start + n}).jpg", quality=95
            )
    source = chest_ct.SOURCE
    items = source.parts["all"](folder)
    small = images.decode(items, crop=None, size=duplicates.SIDE, mode="L")
    bits = duplicates.perceptual_hash(small[:, 0])
    walk = [n for n, item in enumerate(items) if "Malignant" in item.group and item.path.stem[-3:-1] > "39"]
    assert len(walk) == 9 and (bits[walk[0]] != bits[walk[-1]]).sum() > chest_ct.FOLLOW
    strict = images._grouped(replace(source, near=0, follow=None), items)
    assert len(set(strict)) == 9 + 9  # the two walks are the same pictures, across the folders
    follow = images._grouped(replace(source, near=0), items)
    assert len({follow[n] for n in walk}) == 1 and len(set(follow)) == 9 + 1
    apart = [item for item in items if "Malignant" not in item.group or items.index(item) == walk[0]]
    apart = [item for item in apart if "Normal case (6" not in item.group]
    assert len(set(images._grouped(replace(source, near=0), apart))) == len(apart)  # other folders do not follow


@pytest.mark.parametrize(
    ("key", "name"), [("brain_mri", "Training/notumor/Tr-no"), ("chest_ct", "Normal cases/Normal")]
)
def test_brain_mri_slices_stay_with_their_mirrored_copies(tmp_path, key, name):
    folder, numbered = tree(tmp_path, key), " case ({}).jpg" if key == "chest_ct" else "_0{}.jpg"
    first = draw(folder / f"{name}{numbered.format(100)}", 50)
    turned = (ImageOps.mirror, ImageOps.flip, lambda picture: picture.rotate(180))
    for n, turn in enumerate((*turned, lambda picture: picture.rotate(90)), 1):
        turn(Image.open(first)).save(folder / f"{name}{numbered.format(100 + 50 * n)}", quality=90)
    slices = load(tmp_path, key)
    whose = {path.split(name)[-1]: group for path, group in zip(slices.ids, slices.groups, strict=True) if name in path}
    copies = [whose[numbered.format(100 + 50 * n)] for n in range(4)]
    assert len(set(copies)) == (1 if key == "brain_mri" else 4)
    assert whose[numbered.format(300)] not in copies  # nobody turned them by a quarter


@pytest.mark.parametrize("key", PHANTOMS)
def test_the_classes_get_the_sizes_of_the_slides(tmp_path, key, monkeypatch):
    """A seeded draw from the larger class, as many as the document has or as there are of the smaller one."""
    source = data.SOURCES[key]
    published = {"brain_mri": 1595, "chest_xray": 1583, "chest_ct": 536, "busi2": 210}
    assert source.each == published[key]
    have = {"small": (30, 20), "large": (source.each + 300, source.each + 7), "exact": (source.each, source.each + 1)}
    monkeypatch.setattr(images, "decode", lambda items, **_: np.zeros((len(items), 1, 1, 1), np.uint8))
    for name, counts in have.items():
        path = draw(tmp_path / name / "one.png", 0)  # one file stands for all: nothing is decoded here
        items = [images.Item(path, label, str(n)) for label, count in enumerate(counts) for n in range(count)]
        made = replace(source, key=name, parts={"all": lambda _, items=items: items}, near=None, folder="")
        monkeypatch.setitem(data.SOURCES, key, made)
        each = min(source.each, *counts)
        count = data.even_count(key, root=tmp_path)
        assert count == 2 * each
        a, b, again = (load(tmp_path, key, size=1, count=count, seed=seed) for seed in (0, 1, 0))
        assert np.bincount(a.labels).tolist() == [each, each] and a.fingerprint == again.fingerprint
        assert a.fingerprint != b.fingerprint
    with pytest.raises(FileNotFoundError):
        data.even_count("cnmc", root=tmp_path)


# The shape of chest CT


def test_chest_ct_is_padded_and_the_others_are_stretched(tmp_path):
    wide = np.full((40, 80), 200, np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T).save(tmp_path / "tall.png")
    items = [images.Item(tmp_path / name, 0, "a") for name in ("wide.png", "tall.png")]
    padded = images.decode(items, crop=None, size=80, mode="L", pad=True)
    assert (padded[0, 0, 20:60] == 200).all() and not padded[0, 0, :20].any() and not padded[0, 0, 60:].any()
    assert (padded[1, 0] == padded[0, 0].T).all()
    assert (images.decode(items, crop=None, size=80, mode="L") == 200).all()
    assert {key for key, source in data.SOURCES.items() if source.pad} == {"chest_ct"}
    folder = tree(tmp_path, "chest_ct")
    draw(folder / "Malignant cases/Malignant case (3).jpg", 9, side=(90, 45))
    slices = load(tmp_path, "chest_ct", size=20)
    flat = [n for n in range(len(slices)) if slices.images[n, 0, 0].max() <= 2]
    assert len(flat) == 1 and slices.images[flat[0], 0, :4].max() <= 2 < slices.images[flat[0], 0, 6:14].min() + 3


def test_what_is_new_decides_the_cache_entry_and_nothing_else_does(tmp_path):
    tree(tmp_path, "chest_ct")
    folder, cache = tmp_path / "chest_ct", tmp_path / "cache"
    items = chest_ct.slices(folder)
    plain = replace(chest_ct.SOURCE, pad=False, follow=None)
    new = [{"pad": True}, {"follow": 80}, {"mirror": 20}]
    for source in (plain, *(replace(plain, **fields) for fields in new), chest_ct.SOURCE, replace(plain, each=7)):
        images.cached(source, "all", folder, items, size=8, cache=cache)
    assert len([path for path in cache.iterdir() if path.is_dir() and path.name != "locks"]) == 5


# PneumoniaMNIST


def test_pneumoniamnist(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 8), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n)[:, None] % 2).astype(np.uint8)
    (tmp_path / "medmnist").mkdir()
    np.savez(tmp_path / "medmnist/pneumoniamnist.npz", **arrays)
    rays = load(tmp_path, "pneumoniamnist", size=28)
    assert (rays.images[:8, 0] == arrays["train_images"]).all() and rays.classes == ("normal", "pneumonia")
    assert rays.labels[:4].tolist() == [0, 1, 0, 1]  # MedMNIST's 1 is the disease here, unlike in BreastMNIST
    with pytest.raises(FileNotFoundError, match="Real chest X-ray images are missing"):
        load(tmp_path, "chest_xray")  # it never takes their place


# The phantoms


@pytest.mark.parametrize("key", PHANTOMS)
def test_phantoms_are_found_by_the_key(key):
    scans = data.load(key, real=False, size=16, count=20, seed=2)
    assert (scans.name, scans.real) == (f"phantom-{PHANTOMS[key].__name__}", False)
    assert scans.classes == data.SOURCES[key].classes and scans.images.shape == (20, 1, 16, 16)
    assert np.bincount(scans.labels).tolist() == [10, 10] and scans.labels.dtype == np.int64
    assert Counter(Counter(scans.groups).values())[2] >= 3  # second looks
    assert all(len(set(scans.labels[scans.groups == group])) == 1 for group in set(scans.groups))


@pytest.mark.parametrize("draws", [head, chest, lung, ultrasound_two_classes])
def test_phantoms_are_the_same_again_whatever_the_count(draws):
    many, labels, patients = draws(12, size=32, seed=5)
    few = draws(4, size=32, seed=5)
    assert (few[0] == many[:4]).all() and (few[1] == labels[:4]).all() and (few[2] == patients[:4]).all()
    assert (draws(12, size=32, seed=6)[0] != many).any()
    assert len({hashlib.sha256(image).digest() for image in map(bytes, many)}) == 12
    large = draws(12, size=64, seed=5)[0].reshape(12, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(large - many[:, 0]).max() <= 1  # the same picture, finer
    assert draws(2, size=160)[0].shape == (2, 1, 160, 160)
    assert all(len(array) == 0 for array in draws(0, size=32))


def test_the_two_class_scans_are_those_of_the_three_classes():
    two, labels, _ = ultrasound_two_classes(9, size=32, seed=4)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    _, three, _ = ultrasound(9, size=32, seed=4, turns=(0, 2, 1, 2))
    assert three.tolist() == [0, 2, 1, 2, 0, 2, 1, 2, 0]
    assert (two[0] == ultrasound(1, size=32, seed=4)[0]).all()


@pytest.mark.parametrize("key", ["brain_mri", "chest_xray", "chest_ct"])
def test_neither_brightness_nor_area_tells_the_classes_apart(key):
    pixels, labels, _ = drawn(key, 512, 32, 0)
    numbers = {"mean": pixels.mean((1, 2, 3))}
    numbers |= {f"share above {level}": (pixels > level).mean((1, 2, 3)) for level in range(32, 255, 32)}
    for name, values in numbers.items():
        cuts = np.sort(values)[:-1, None]
        right = ((values > cuts) == labels).mean(1)
        assert max(right.max(), 1 - right.min()) <= 0.65, name


@pytest.mark.parametrize("key", ["brain_mri", "chest_xray", "chest_ct"])
def test_the_small_network_learns_phantoms_in_seconds(key):
    pixels, labels, _ = drawn(key, 512, 32, 0)
    fresh, truth, _ = drawn(key, 200, 32, 1)
    pixels, labels, fresh, truth = map(torch.from_numpy, (pixels, labels, fresh, truth))
    torch.manual_seed(0)
    model = models.build("simple_cnn", 2, in_channels=1, weights="scratch")
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs=20, steps_per_epoch=16)
    for _ in range(20):
        for index in torch.randperm(512).split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels[index].float() / 255), labels[index]).backward()
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        assert (model(fresh.float() / 255).argmax(1) == truth).float().mean() >= 0.85


# The real things; what holds for all sets is in test_data.py


def needs(key):
    return pytest.mark.skipif(not (REAL / key).is_dir(), reason=f"no real images of {key}: set HPAT_DATA")


@needs("brain_mri")
def test_the_published_split_of_the_real_brain_mri_leaks():
    slices = load(REAL, "brain_mri")
    parts = np.array([item.path.parts[-3] for item in brain_mri.slices(REAL / "brain_mri")])
    training, testing = (slices.groups[parts == part] for part in ("Training", "Testing"))
    assert np.isin(testing, training).mean() > 0.5 or len(testing) < 100  # 491 of 780, and every one without a tumour


@needs("chest_xray")
def test_real_persons_keep_together():
    rays, items = load(REAL, "chest_xray"), chest_xray.radiographs(REAL / "chest_xray")
    persons = {}
    for item, group in zip(items, rays.groups, strict=True):
        if item.path.stem.startswith("person"):
            persons.setdefault((item.path.parts[-3] == "test", item.path.stem.split("_")[0]), set()).add(group)
    assert all(len(groups) == 1 for groups in persons.values())
    assert len(set().union(*persons.values())) > 0.95 * len(persons)  # hardly any two are taken for one


@needs("chest_ct")
def test_a_random_split_of_the_real_chest_ct_leaks():
    slices = load(REAL, "chest_ct")
    sizes = Counter(slices.groups)
    assert not [group for group in sizes if len(set(slices.labels[slices.groups == group])) > 1]
    alone = replace(slices, groups=np.arange(len(slices)).astype(str))
    for seed in range(3):
        train, test = (side.groups.astype(int) for side in data.split(alone, by="random", test=1 / 5, seed=seed))
        assert np.isin(slices.groups[test], slices.groups[train]).mean() > 0.8 or len(slices) < 500


@pytest.mark.skipif(not (REAL / "medmnist/pneumoniamnist.npz").is_file(), reason="no PneumoniaMNIST: set HPAT_DATA")
def test_real_pneumoniamnist():
    assert np.bincount(load(REAL, "pneumoniamnist", size=28).labels).tolist() == [1583, 4273]  # one file
