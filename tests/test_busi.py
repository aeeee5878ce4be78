"""BUSI and its relatives: files, masks, near-duplicates on one side of every split, BreastMNIST, the phantom."""

import functools
import hashlib
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from hpatlib import data, models
from hpatlib.data import busi, duplicates, images, medmnist
from hpatlib.data.ultrasound_phantom import ultrasound

REAL = Path(os.environ.get("HPAT_DATA") or "no data").expanduser()  # a whole or partial copy of real images
CLASSES = ("normal", "benign", "malignant")
TOP, BREAST = "Dataset_BUSI_with_GT", "breastmnist.npz"
drawn_once = functools.cache(ultrasound)  # its arrays are shared between tests: copy before writing


def draw(path, seed, *, mode="L", side=(90, 70)):
    """A smooth picture of its own for each seed: as photographs are, and unlike noise, the same at every size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def tree(root, *, top=TOP, each=2):
    for label, name in enumerate(CLASSES):
        for n in range(1, each + 1):
            draw(root / "busi" / top / name / f"{name} ({n}).png", 100 * label + n, mode=("L", "RGB")[n % 2])
    return root


def load(root, **options):
    return data.load("busi", real=True, root=root, **{"size": 16, **options})


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))


# Files


@pytest.mark.parametrize("top", ["", TOP])
def test_both_layouts_give_the_same_images(tmp_path, top):
    scans = load(tree(tmp_path, top=top))
    assert (scans.name, scans.real, scans.classes) == ("busi", True, CLASSES)
    assert scans.images.shape == (6, 1, 16, 16) and scans.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert scans.groups.tolist() == [f"{name} ({n})" for name in CLASSES for n in (1, 2)]
    assert scans.fingerprint == load(tree(tmp_path / "other")).fingerprint


def test_images_come_by_number(tmp_path):
    tree(tmp_path, each=11)
    assert [Path(name).stem for name in load(tmp_path).ids[:11]] == [f"normal ({n})" for n in range(1, 12)]


def test_masks_are_never_images(tmp_path):
    top = tree(tmp_path) / "busi" / TOP
    image = top / "benign/benign (1).png"
    one = draw(image.with_name("benign (1)_mask.png"), 0, mode="1")
    two = draw(image.with_name("benign (1)_mask_1.png"), 1, mode="RGB")
    assert len(load(tmp_path)) == 6
    found = busi.masks(tmp_path / "busi")
    assert len(found) == 6 and found[image] == [one, two]
    assert found[top / "normal/normal (2).png"] == []
    drawn = [np.asarray(Image.open(path).convert("L")) > 127 for path in (one, two)]
    assert (busi.lesion([one, two]) == (drawn[0] | drawn[1])).all() and busi.lesion([one]).shape == (70, 90)


def test_masks_that_fit_nothing_are_refused(tmp_path):
    top = tree(tmp_path) / "busi" / TOP
    orphan = draw(top / "benign/benign (9)_mask.png", 0)
    with pytest.raises(ValueError, match=r"1 BUSI masks have no image(.|\n)*benign \(9\)_mask.png"):
        busi.masks(tmp_path / "busi")
    with pytest.raises(ValueError, match=r"masks of one size, found benign \(9\)_mask.png \(70, 90\), small"):
        busi.lesion([orphan, draw(tmp_path / "small.png", 0, side=(9, 9))])
    with pytest.raises(ValueError, match="found none"):
        busi.lesion([])


def test_bad_names_are_reported_together(tmp_path):
    top = tree(tmp_path) / "busi" / TOP
    draw(top / "benign/benign 12.png", 0)
    draw(top / "benign/malignant (3).png", 0)
    draw(top / "normal/normal (5).jpg", 0)
    (top / "normal/Thumbs.db").write_text("x")
    with pytest.raises(ValueError, match="3 BUSI files") as error:
        load(tmp_path)
    for text in (
        "benign 12.png: expected a name like benign (12).png",
        "malignant (3).png: expected a name like benign (12).png",
        "normal (5).jpg: expected",
    ):
        assert text in str(error.value)


def test_unreadable_images_are_reported_together(tmp_path):
    top = tree(tmp_path) / "busi" / TOP
    (top / "benign/benign (1).png").write_bytes(b"")
    whole = (top / "normal/normal (1).png").read_bytes()
    (top / "normal/normal (1).png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="2 of 6 images cannot be used") as error:
        load(tmp_path)
    assert "benign (1).png: unreadable" in str(error.value) and "normal (1).png: unreadable" in str(error.value)


def test_incomplete_double_and_missing_sets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Real BUSI images are missing: .*`hpat data fetch busi`"):
        load(tmp_path)
    draw(tmp_path / "busi/benign/benign (1).png", 0)
    with pytest.raises(ValueError, match=r"no images in .*normal and .*malignant"):
        load(tmp_path)
    tree(tmp_path)
    with pytest.raises(ValueError, match="more than once"):
        load(tmp_path)


def test_a_picture_under_two_diagnoses_is_left_out(tmp_path):
    top = tree(tmp_path) / "busi" / TOP
    draw(top / "benign/benign (433).png", 9)
    assert len(load(tmp_path)) == 6  # in a partial copy, too: what it shows is not known
    draw(top / "malignant/malignant (145).png", 9)
    draw(top / "malignant/malignant (433).png", 10)
    for key, count in (("busi", 7), ("busi2", 7)):
        scans = data.load(key, real=True, root=tmp_path, size=16)
        assert len(scans) == count and not [name for name in scans.ids if Path(name).stem in busi.CONTRADICTED]
    assert len(busi.masks(tmp_path / "busi")) == 9


# Near-duplicates


def hashed(pictures):
    small = [
        np.asarray(picture.resize((duplicates.SIDE, duplicates.SIDE), Image.Resampling.BICUBIC)) for picture in pictures
    ]
    return duplicates.perceptual_hash(np.stack(small))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 29), side=st.integers(96, 300), brightness=st.floats(0.8, 1.1), contrast=st.floats(0.8, 1.1))
def test_the_hash_hardly_feels_size_and_brightness(n, side, brightness, contrast):
    picture = Image.fromarray(drawn_once(30, size=128)[0][n, 0])
    altered = picture.resize((side, side + 40), Image.Resampling.BICUBIC)
    altered = ImageEnhance.Contrast(ImageEnhance.Brightness(altered).enhance(brightness)).enhance(contrast)
    one, other = hashed([picture, altered])
    assert one.shape == (255,) and (one != other).sum() <= busi.NEAR / 2


def test_exact_bits_do_not_depend_on_affine_brightness():
    small = np.random.default_rng(0).random((5, 32, 32))
    assert (duplicates.perceptual_hash(small) == duplicates.perceptual_hash(3 * small + 7)).all()
    with pytest.raises(ValueError, match=r"images are \[5, 16, 32\], expected \[N, 32, 32\]"):
        duplicates.perceptual_hash(small[:, ::2])


@given(st.integers(0, 30), st.integers(0, 12), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_pairs_equal_the_plain_definition(count, within, block, seed, otherwise):
    hashes, seen = np.random.default_rng(seed).random((2, count, 15)) < 0.5
    others = seen if otherwise else hashes
    expected = [
        [i, j, bits]
        for i in range(count)
        for j in range(i + 1, count)
        if (bits := int((hashes[i] != others[j]).sum())) <= within
    ]
    found = duplicates.near_pairs(hashes, within, seen if otherwise else None, block=block)
    assert sorted(found.tolist()) == expected


@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 5))
def test_same_pairs_equal_the_plain_definition(count, width, seed):
    pictures = np.random.default_rng(seed).integers(0, 2, (count, 1, 1, width), np.uint8)
    expected = [[next(j for j in range(count) if (pictures[j] == pictures[i]).all()), i, 0] for i in range(count)]
    assert duplicates.same_pairs(pictures).tolist() == expected


def test_groups_are_merged_in_chains():
    pairs = np.array([[4, 1, 0], [2, 3, 0]])
    assert duplicates.merge(list("abcade"), pairs) == list("abaabe")  # 2-3 joins c to a, 4-1 joins d to b
    assert duplicates.merge(["b", "a", "b"], np.empty((0, 3), np.int64)) == ["b", "a", "b"]


def test_duplicates_share_a_group_at_every_size(tmp_path):
    top = tree(tmp_path, each=3) / "busi" / TOP
    twin = Image.open(top / "benign/benign (2).png")
    twin.resize((64, 64), Image.Resampling.BICUBIC).save(top / "malignant/malignant (7).png")
    small, large = load(tmp_path, size=8), load(tmp_path, size=50)
    assert (small.groups == large.groups).all() and small.groups[-1] == "benign (2)" and len(set(small.groups)) == 9


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_duplicates_never_land_on_both_sides(seed):
    """Phantoms with injected copies, shifted in brightness and labelled at random, from pixels alone."""
    rng = np.random.default_rng(seed)
    pixels, labels, _ = drawn_once(45, size=32, seed=3)
    chosen = rng.choice(45, 12, replace=False)
    copies = np.clip(pixels[chosen] * rng.uniform(0.85, 1.1) + rng.normal(0, 2, (12, 1, 32, 32)), 0, 255)
    pixels = np.concatenate([pixels, copies.astype(np.uint8)])
    labels = np.concatenate([labels, rng.integers(0, 3, 12)])
    pairs = duplicates.near_pairs(duplicates.perceptual_hash(pixels[:, 0]), busi.NEAR)
    groups = np.array(duplicates.merge([str(n) for n in range(57)], pairs))
    assert (groups[45:] == groups[chosen]).all()
    pixels[:, 0, 0, 0] = np.arange(57)  # the first pixel remembers the row
    scans = images.ImageSet("made", pixels, labels, groups, CLASSES, False, "0")
    train, test = data.split(scans, by="patient", test=1 / 5, seed=seed)
    left, right = (set(side.images[:, 0, 0, 0].tolist()) for side in (train, test))
    assert not left & right and len(left | right) == 57 and set(train.labels) == set(test.labels) == {0, 1, 2}
    for copy, original in zip(range(45, 57), chosen, strict=True):
        assert (copy in left) == (original in left)


# The report's own split


def test_the_random_split_is_scikit_learns():
    from sklearn.model_selection import train_test_split

    scans = data.load("busi", real=False, size=16, count=60)
    train, test = data.split(scans, by="random", test=1 / 5, seed=4)
    left, right = train_test_split(np.arange(60), test_size=1 / 5, random_state=4)
    assert (train.images == scans.images[left]).all() and (test.labels == scans.labels[right]).all()
    leaks = [set(a.groups) & set(b.groups) for a, b in (data.split(scans, by="random", seed=seed) for seed in range(5))]
    assert all(leaks)
    with pytest.raises(ValueError, match="the random split does not leave every class on both sides"):
        data.split(scans.subset([0, 1, 3, 4, 6]), by="random", test=0.2)
    with pytest.raises(ValueError, match="every class on both sides"):
        data.split(scans.subset([0]), by="random", test=0.2)


# BreastMNIST


def breast_file(root, *, side=28, top=1):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in zip(medmnist.PARTS, (8, 3, 4), strict=True):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, side, side), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n)[:, None] % 2 * top).astype(np.uint8)
    (root / "medmnist").mkdir(parents=True)
    np.savez(root / "medmnist" / BREAST, **arrays)
    return arrays


def test_breastmnist(tmp_path):
    arrays = breast_file(tmp_path)
    scans = data.load("breastmnist", real=True, size=28, root=tmp_path)
    assert (scans.name, scans.real, scans.classes) == ("breastmnist", True, ("not malignant", "malignant"))
    assert (scans.images[:8, 0] == arrays["train_images"]).all() and scans.images.shape == (15, 1, 28, 28)
    assert scans.labels[:4].tolist() == [1, 0, 1, 0]  # MedMNIST's 0 is malignant
    assert scans.ids.tolist() == [f"{BREAST}/{n}" for n in range(15)]
    assert data.load("breastmnist", real=True, size=32, root=tmp_path).images.shape == (15, 1, 32, 32)
    with pytest.raises(FileNotFoundError, match="Real BUSI images are missing"):  # it never takes BUSI's place
        load(tmp_path)
    with pytest.raises(ValueError, match="breastmnist has no phantom"):
        data.load("breastmnist", real=False, size=28)


def test_a_wrong_breastmnist_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Set HPAT_DATA to the folder that holds medmnist/, or that shall, and run"
    ):
        data.load("breastmnist", real=True, size=28, root=tmp_path)
    for name, options in (("big", {"side": 64}), ("many", {"top": 2})):
        breast_file(tmp_path / name, **options)
        with pytest.raises(ValueError, match=r"expected uint8 \[N, 28, 28\] with labels \[N, 1\] of 0 and 1"):
            data.load("breastmnist", real=True, size=28, root=tmp_path / name)
    (tmp_path / "big/medmnist" / BREAST).write_bytes(b"PK")
    with pytest.raises(ValueError, match="unreadable"):
        data.load("breastmnist", real=True, size=28, root=tmp_path / "big")


def test_fetching_breastmnist(tmp_path, monkeypatch):
    breast_file(tmp_path / "there")
    whole = (tmp_path / "there/medmnist" / BREAST).read_bytes()

    def offline(url, part, **_):
        part.write_bytes(whole[:100])
        raise URLError("no route")

    def served(url, part, **_):
        part.write_bytes(whole)

    web = sys.modules["hpatlib.data.download"]
    monkeypatch.setattr(web, "_check", lambda part, checksum: None)  # of the published file, which is not here
    monkeypatch.setattr(web, "_receive", offline)
    with pytest.raises(RuntimeError, match=r"zenodo.*breastmnist.npz failed \(no route\): .* or put it at"):
        data.fetch("breastmnist", tmp_path)
    assert not (tmp_path / "medmnist" / BREAST).exists()
    monkeypatch.setattr(web, "_receive", served)
    assert data.fetch("breastmnist", tmp_path) == tmp_path / "medmnist"
    monkeypatch.setattr(web, "_receive", lambda *_, **__: pytest.fail("fetched again"))
    data.fetch("breastmnist", tmp_path)
    rows = {row["key"]: row for row in data.status(tmp_path)}
    assert rows["breastmnist"]["images"] == 15 and rows["busi"]["images"] == 0


# The phantom


def test_phantoms_are_found_by_the_key():
    scans = data.load("busi", real=False, size=32, count=30, seed=2)
    assert (scans.name, scans.real, scans.classes) == ("phantom-ultrasound", False, CLASSES)
    assert scans.images.shape == (30, 1, 32, 32) and np.bincount(scans.labels).tolist() == [10, 10, 10]
    assert scans.labels.dtype == np.int64 and scans.groups.dtype.kind == "U"
    assert Counter(Counter(scans.groups).values()) == {1: 18, 2: 6}


def test_phantoms_are_the_same_again_whatever_the_count():
    many, labels, patients = ultrasound(17, size=32, seed=5)
    few = ultrasound(4, size=32, seed=5)
    assert (few[0] == many[:4]).all() and (few[1] == labels[:4]).all() and (few[2] == patients[:4]).all()
    assert (ultrasound(17, size=32, seed=5)[0] == many).all() and (ultrasound(17, size=32, seed=6)[0] != many).any()
    assert len({hashlib.sha256(image).digest() for image in map(bytes, many)}) == 17
    large = ultrasound(17, size=64, seed=5)[0].reshape(17, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(large - many[:, 0]).max() <= 1  # the same picture, finer
    assert all(array.shape[0] == 0 for array in ultrasound(0, size=32))


def test_second_looks_are_near_duplicates_and_strangers_are_not():
    pixels, _, patients = drawn_once(210, size=32, seed=1)
    pairs = duplicates.near_pairs(duplicates.perceptual_hash(pixels[:, 0]), busi.NEAR)
    assert (patients[pairs[:, 0]] == patients[pairs[:, 1]]).all()
    assert len(pairs) >= 0.9 * (210 - len(set(patients)))  # the hash misses a few large shifts


def test_mean_intensity_does_not_give_the_class_away():
    pixels, labels, _ = drawn_once(210, size=32, seed=1)
    means = pixels.mean((1, 2, 3))
    right = [
        sum(np.bincount(labels[side], minlength=3).max() for side in (means <= level, means > level))
        for level in np.sort(means)[:-1]
    ]
    assert max(right) / 210 <= 1 / 3 + 0.08


def test_the_small_network_learns_phantoms_in_seconds():
    size, epochs = 32, 10
    train, fresh = (data.load("busi", real=False, size=size, count=n, seed=seed) for n, seed in ((420, 0), (90, 1)))
    torch.manual_seed(0)
    model = models.build("simple_cnn", 3, in_channels=1, size=size, weights="scratch")
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs=epochs, steps_per_epoch=14)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for pixels, labels in train.batches(32, generator=generator):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels), labels).backward()
            optimiser.step()
            schedule.step()
    pixels, labels = fresh.tensors()
    with torch.no_grad():
        assert (model(pixels).argmax(1) == labels).float().mean() >= 0.85


# The real things; what holds for all sets is in test_data.py


@pytest.mark.skipif(not (REAL / "busi").is_dir(), reason="no real BUSI images: set HPAT_DATA")
def test_real_busi():
    """What SOURCES and the data card say of whole and partial copies: pictures under two diagnoses, and a leak."""
    scans = load(REAL)
    names = np.array([item.path.stem for item in busi.scans(REAL / "busi")])
    same = dict(zip(names, scans.groups, strict=True))
    assert not busi.CONTRADICTED & same.keys()
    for malignant, benign in ((51, 42), (51, 131), (93, 399)):  # nearly the same picture under two diagnoses
        both = {f"malignant ({malignant})", f"benign ({benign})"} & same.keys()
        assert len({same[name] for name in both}) <= 1
    walk = {same[name] for n in range(3, 10) if (name := f"malignant ({n})") in same}  # scans of one lesion
    assert len(walk) <= 1 or not {f"malignant ({n})" for n in range(3, 10)} <= same.keys()
    folder = REAL / "busi" / TOP if (REAL / "busi" / TOP).is_dir() else REAL / "busi"
    pair = [folder / name.split()[0] / f"{name}.png" for name in busi.CONTRADICTED]
    if all(path.is_file() for path in pair):  # which is why they are left out
        one, other = (np.asarray(Image.open(path).convert("L")) for path in pair)
        assert one.shape == other.shape and (one == other).all()
    unrelated = replace(scans, groups=names)
    related = sum(size for size in Counter(scans.groups).values() if size > 1)
    train, test = data.split(unrelated, by="random", test=1 / 5)  # as the report did
    left, right = ({same[name] for name in side.groups} for side in (train, test))
    assert left & right or related < 20


@pytest.mark.skipif(not (REAL / "medmnist" / BREAST).is_file(), reason="no BreastMNIST: set HPAT_DATA")
def test_real_breastmnist():
    scans = data.load("breastmnist", real=True, size=28, root=REAL)
    assert np.bincount(scans.labels).tolist() == [570, 210]  # one file, so whole or not there
    assert np.isin(scans.groups[-156:], scans.groups[:546]).sum() == 60  # MedMNIST's own split leaks
