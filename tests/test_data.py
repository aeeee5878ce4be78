"""Data sets: layouts, faulty files, cache, splits, fetching; on tiny made-up trees and, where it is, real C-NMC."""

import os
import re
import subprocess
import sys
import types
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from hpatlib import _files, data
from hpatlib.data import busi, cnmc, images, photographs
from hpatlib.data.images import ImageSet, Item, Source

REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("HPAT_DATA") or "no data").expanduser()  # a whole or partial copy of real images
PRELIMINARY = "C-NMC_test_prelim_phase_data"
TREE = {
    "fold_0/all/UID_1_1_1_all": 1,
    "fold_0/hem/UID_H1_1_1_hem": 2,
    "fold_1/all/UID_1_2_10_all": 3,
    "fold_1/all/UID_12_1_1_all": 4,
    "fold_1/hem/UID_h3_1_1_hem": 5,
    "fold_1/hem/UID_h4_9_2_hem": 6,
}


def draw(path, seed, *, side=450, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).convert(mode).save(path)
    return path


def tree(root, *, top="", suffix=".bmp"):
    for name, seed in TREE.items():
        draw(root / "cnmc" / top / f"{name}{suffix}", seed)
    return root


def preliminary(root, *, top="C-NMC_Leukemia/validation_data", inside=False, suffix=".bmp", rows=None):
    folder = root / "cnmc" / top / PRELIMINARY
    for n in (1, 2, 10):
        draw(folder / f"{n}{suffix}", n)
    rows = rows or ["UID_57_29_1_all.bmp,1.bmp,1", "UID_H30_1_2_hem.bmp,2.bmp,0", "UID_57_1_1_all.bmp,10.bmp,1"]
    table = (folder if inside else folder.parent) / f"{PRELIMINARY}_labels.csv"
    table.write_text("\n".join(["Patient_ID,new_names,labels", *rows]) + "\n")
    return root


def made(labels, groups, *, seed=0, pixels=None):
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 1, 4, 4), np.uint8)
    labels, groups = np.asarray(labels, np.int64), np.array(list(groups), str)
    return ImageSet("made", pixels, labels, groups, ("no", "yes"), False, images.fingerprint(pixels, labels, groups))


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))


def load(root, **options):
    return data.load("cnmc", real=True, root=root, **{"size": 8, **options})


# The files of C-NMC


@pytest.mark.parametrize("suffix", [".bmp", ".png"])
@pytest.mark.parametrize(
    "top", ["", "C-NMC_training_data", "C-NMC_Leukemia/training_data", "C-NMC_Leukemia/C-NMC_training_data"]
)
def test_every_layout_gives_the_same_images(tmp_path, top, suffix):
    cells = load(tree(tmp_path, top=top, suffix=suffix))
    assert (cells.name, cells.real, cells.classes) == ("cnmc", True, ("hem", "all"))
    assert cells.images.shape == (6, 3, 8, 8) and cells.images.dtype == np.uint8 and cells.labels.dtype == np.int64
    assert cells.labels.tolist() == [1, 0, 1, 1, 0, 0]
    assert cells.groups.tolist() == ["1", "H1", "12", "1", "H10", "H2"]  # h3 is H10, h4 is H2
    assert cells.fingerprint == "1839aab925e340aa"  # the same in every layout and on every machine


def test_a_linked_folder_is_followed(tmp_path):
    tree(tmp_path / "elsewhere")
    (tmp_path / "cnmc").mkdir()
    (tmp_path / "cnmc" / "C-NMC_training_data").symlink_to(tmp_path / "elsewhere" / "cnmc")
    assert len(load(tmp_path)) == 6


def test_files_that_are_no_cells_are_passed_over(tmp_path):
    fold = tree(tmp_path) / "cnmc/fold_0/all"
    for name in ("Thumbs.db", "._UID_1_1_1_all.bmp", "notes.txt"):
        (fold / name).write_text("x")
    assert len(load(tmp_path)) == 6


def test_names_that_contradict_are_reported_together(tmp_path):
    folder = tree(tmp_path) / "cnmc"
    draw(folder / "fold_0/all/UID_H7_1_1_hem.bmp", 0)
    draw(folder / "fold_0/hem/cell 12.png", 0)
    draw(folder / "fold_0/hem/UID_H9_1_1_hem.jpg", 0)
    draw(folder / "fold_1/all/UID_1_1_1_all.png", 0)
    with pytest.raises(ValueError, match="4 C-NMC files") as error:
        load(tmp_path)
    for text in (
        "UID_H7_1_1_hem.bmp: its name says hem, its folder all",
        "cell 12.png: expected a name like",
        "UID_H9_1_1_hem.jpg: expected",
        "UID_1_1_1_all.png: the same cell as",
    ):
        assert text in str(error.value)


def test_two_copies_are_refused(tmp_path):
    tree(tree(tmp_path), top="C-NMC_training_data")
    with pytest.raises(ValueError, match=r"more than once .* keep one copy"):
        load(tmp_path)


def test_unusable_images_are_reported_together(tmp_path):
    folder = tree(tmp_path) / "cnmc"
    whole = (folder / "fold_0/all/UID_1_1_1_all.bmp").read_bytes()
    (folder / "fold_0/all/UID_1_1_1_all.bmp").write_bytes(whole[: len(whole) // 2])
    (folder / "fold_0/hem/UID_H1_1_1_hem.bmp").write_bytes(b"")
    draw(folder / "fold_1/all/UID_1_2_10_all.bmp", 3, mode="L")
    draw(folder / "fold_1/all/UID_12_1_1_all.bmp", 4, side=299)
    (folder / "fold_1/hem/UID_h5_1_1_hem.bmp").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="5 of 7 images cannot be used") as error:
        load(tmp_path)
    for text in (
        "UID_1_1_1_all.bmp: unreadable (image file is truncated",
        "UID_H1_1_1_hem.bmp: unreadable as BMP, PNG, JPEG, TIFF",
        "UID_1_2_10_all.bmp: mode L, expected RGB",
        "UID_12_1_1_all.bmp: 299×299 pixels, expected at least 300×300",
        "UID_h5_1_1_hem.bmp: unreadable",
        "Replace these files",
    ):
        assert text in str(error.value)
    assert not [path for path in (tmp_path / "home/data").iterdir() if path.name != "locks"]


def test_a_long_list_of_faults_is_cut(tmp_path):
    items = [Item(tmp_path / f"{n}.png", 0, "a") for n in range(25)]
    with pytest.raises(ValueError, match="25 of 25 images") as error:
        images.decode(items, crop=None, size=4, mode="RGB", progress=False)
    assert "19.png" in str(error.value) and "20.png" not in str(error.value) and "… and 5 more" in str(error.value)


def test_decode_crops_the_centre_and_averages(tmp_path):
    pixels = np.zeros((450, 450, 3), np.uint8)
    pixels[75:375, 75:375] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "cell.png")
    items = [Item(tmp_path / "cell.png", 0, "a")]
    cropped = images.decode(items, crop=300, size=10, mode="RGB")
    assert (cropped == np.array([200, 100, 50])[:, None, None]).all()
    whole = images.decode(items, crop=None, size=9, mode="RGB")
    assert whole[0, :, 0, 0].tolist() == [0, 0, 0] and whole[0, :, 4, 4].tolist() == [200, 100, 50]
    grey = images.decode(items, crop=300, size=10, mode="L")
    assert grey.shape == (1, 1, 10, 10)


def test_names_of_one_subject_are_one_group(tmp_path):
    names = {
        "all": ["20", "21", "51", "75", "78", "5"],
        "hem": ["H2", "h4", "H5", "H6", "H10", "h3", "H3", "H14", "h1"],
    }
    for label, subjects in names.items():
        for n, name in enumerate(subjects):
            draw(
                tmp_path / f"cnmc/fold_{n % 3}/{label}/UID_{name}_{n}_1_{label}.png",
                100 * len(label) + n + (label == "hem") * 50,
            )
    cells = load(tmp_path)
    found = {path.split("_")[2]: group for path, group in zip(cells.ids, cells.groups, strict=True)}
    assert found == {
        **{"20": "20", "21": "20", "51": "51", "75": "51", "78": "51", "5": "5"},
        **{"H2": "H2", "h4": "H2", "H5": "H2", "H6": "H2", "H10": "H10", "h3": "H10", "H3": "H10", "H14": "H14"},
        "h1": "H1",
    }


def test_one_picture_is_one_group_in_every_set(tmp_path):
    """Also where no near-duplicates are asked for, under two names, in two formats and with two labels."""
    folder = tree(tmp_path) / "cnmc"
    draw(folder / "fold_1/all/UID_40_1_1_all.png", TREE["fold_0/all/UID_1_1_1_all"])
    cells = load(tmp_path)
    assert cells.groups.tolist() == ["1", "H1", "12", "1", "1", "H10", "H2"]
    mine = own(tmp_path / "mine")
    draw(mine / "c/again.bmp", 0, side=40, mode="L")  # as b/scan 0.png
    draw(mine / "b/zero.png", 0, side=40)  # in colour, which a grey set does not see
    for size in (1, 8):
        whose = dict(zip((same := ImageSet.from_folder(mine, size=size)).ids, same.groups, strict=True))
        assert whose["b/scan 0.png"] == whose["c/again.bmp"] == whose["b/zero.png"]
        assert len(whose) == 9 and len(set(whose.values())) == 7
    train, test = data.split(same, by="patient", test=1 / 2)
    assert not set(train.groups) & set(test.groups)


# The preliminary test set


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("top", "suffix"), [("", ".bmp"), ("C-NMC_Leukemia/validation_data", ".png"), ("C-NMC_training_data", ".bmp")]
)
def test_preliminary_set(tmp_path, top, suffix, inside):
    cells = load(preliminary(tmp_path, top=top, suffix=suffix, inside=inside), part="preliminary")
    assert cells.name == "cnmc-preliminary"
    assert cells.groups.tolist() == ["57", "57", "H30"] and cells.labels.tolist() == [1, 1, 0]  # 1, 10, 2


def test_preliminary_faults_are_reported_together(tmp_path):
    rows = [
        "UID_57_29_1_all.bmp,1.bmp,0",
        "UID_H30_1_2_hem.bmp,3.bmp,0",
        "nonsense,2.bmp,1",
        "UID_1_1_1_all.bmp,2.bmp,1",
    ]
    with pytest.raises(ValueError, match="5 faults") as error:
        load(preliminary(tmp_path, rows=rows), part="preliminary")
    for text in (
        "1.bmp: label '0' for 'UID_57_29_1_all.bmp'",
        "3.bmp: in the table, but not in the folder",
        "2.bmp: label '1' for 'nonsense'",
        "2.bmp: more than one row",
        "10.bmp: no row in",
    ):
        assert text in str(error.value)


def test_preliminary_table_missing_or_of_another_shape(tmp_path):
    table = preliminary(tmp_path, top="") / "cnmc" / f"{PRELIMINARY}_labels.csv"
    table.write_text("name,label\n1.bmp,1\n")
    with pytest.raises(ValueError, match=r"lacks \['Patient_ID', 'labels', 'new_names'\]: found the columns \['name'"):
        load(tmp_path, part="preliminary")
    table.unlink()
    with pytest.raises(ValueError, match="has images but no labels: put"):
        load(tmp_path, part="preliminary")


# Arguments, and images that are not there


def test_missing_data_is_refused_with_the_way_to_get_it(tmp_path, monkeypatch):
    both = r"Set HPAT_DATA to the folder that holds cnmc/, or that shall, and run `hpat data fetch cnmc`\.$"
    with pytest.raises(FileNotFoundError, match=rf"^Real C-NMC 2019 images are missing: HPAT_DATA is not set\. {both}"):
        load(None)
    monkeypatch.setenv("HPAT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"no files of part 'train' in {tmp_path / 'cnmc'}\. {both}"):
        load(None)
    tree(tmp_path)
    assert len(load(None)) == 6
    with pytest.raises(FileNotFoundError, match="no files of part 'preliminary'"):
        load(None, part="preliminary")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": "cat"}, "Unknown data set 'cat': choose one of cnmc"),
        ({"part": "final"}, "Unknown part 'final' of cnmc: choose one of train, preliminary"),
        ({"part": "train", "real": False}, "phantoms have none"),
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"count": 0}, "count is 0, expected at least 1"),
    ],
)
def test_meaningless_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        data.load(**{"key": "cnmc", "real": True, "size": 8, **options})


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 45), st.integers(0, 5))
def test_a_count_takes_evenly_from_the_classes(labels, count, seed):
    labels = np.array(labels)
    rows = data._balanced(labels, count, seed)
    assert len(rows) == len(set(rows)) == min(count, len(labels)) and (np.diff(rows) > 0).all()
    have, taken = np.bincount(labels, minlength=3), np.bincount(labels[rows], minlength=3)
    assert all(taken[c] == have[c] or taken[c] >= taken.max() - 1 for c in range(3))


def test_count_and_seed(tmp_path):
    tree(tmp_path)
    drawn = [load(tmp_path, count=4, seed=seed) for seed in range(4)]
    assert all(np.bincount(cells.labels).tolist() == [2, 2] for cells in drawn)
    assert drawn[0].fingerprint == load(tmp_path, count=4).fingerprint
    assert len({cells.fingerprint for cells in drawn}) > 1
    assert len(load(tmp_path, count=100)) == 6


def test_phantoms_never_touch_files(monkeypatch):
    def cells(count, *, size=64, seed=0):
        labels = np.arange(count) % 2
        return np.full((count, 3, size, size), seed, np.uint8), labels, np.array([f"p{n // 4}" for n in range(count)])

    monkeypatch.setitem(data.SOURCES, "cnmc", replace(cnmc.SOURCE, phantom=cells))
    drawn = data.load("cnmc", real=False, size=8, count=10, seed=3)
    assert (drawn.name, drawn.real, drawn.classes, len(drawn)) == ("phantom-cells", False, ("hem", "all"), 10)
    assert drawn.images.shape == (10, 3, 8, 8) and drawn.images.max() == 3
    assert len(data.load("cnmc", real=False, size=8)) == 512


def test_the_cell_phantom():
    first, again, other = (data.load("cnmc", real=False, size=16, count=40, seed=seed) for seed in (0, 0, 1))
    assert np.bincount(first.labels).tolist() == [20, 20] and first.labels.dtype == np.int64
    assert first.fingerprint == again.fingerprint != other.fingerprint


GOLDEN = {  # of 6 images of 16 px with seed 0, and of 5 images of 32 px with seed 3: keys of trained models follow
    "cnmc": ("4d945f32868b61fe", "9cc4917eaed5a28c"),
    "busi": ("74ba3e04626957ea", "383493b706904810"),
    "busi2": ("bb4807e597cdbdfb", "fdec3971e9a94b64"),
    "brain_mri": ("eda475f7ad20b2c2", "852a25424d349788"),
    "chest_xray": ("c4453ce05065445e", "679a531cc83aba9b"),
    "chest_ct": ("f8a3a875165789ba", "07d30f974406c6c7"),
    "photographs": ("f100ed12ff22daac", "0dba7595bcd59333"),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_drawn_images_stay_what_they_are(key):
    sets = [data.load(key, real=False, size=s, count=n, seed=seed) for s, n, seed in ((16, 6, 0), (32, 5, 3))]
    assert tuple(drawn.fingerprint for drawn in sets) == GOLDEN[key]
    assert sets[0].ids.tolist() == list("012345") and not sets[0].real


def test_every_phantom_is_pinned():
    assert {key for key, source in data.SOURCES.items() if source.phantom} == set(GOLDEN) and images.DECODER == 3


# The cache


def test_a_cached_set_is_not_decoded_again(tmp_path, monkeypatch):
    tree(tmp_path)
    before = load(tmp_path)
    monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded again"))
    after = load(tmp_path)
    assert isinstance(after.images, np.memmap) and after.fingerprint == before.fingerprint
    assert (after.images == before.images).all() and (after.groups == before.groups).all()


def test_what_decides_the_pixels_decides_the_entry(tmp_path):
    folder = tree(tmp_path) / "cnmc"
    seen = {load(tmp_path).fingerprint}

    def news():
        cells = load(tmp_path)
        new = cells.fingerprint not in seen
        seen.add(cells.fingerprint)
        return new

    assert not news()
    edited = folder / "fold_0/all/UID_1_1_1_all.bmp"
    stamp = edited.stat().st_mtime_ns
    draw(edited, 99)
    os.utime(edited, ns=(stamp, stamp + 1))
    assert news()
    added = draw(folder / "fold_1/all/UID_12_9_9_all.bmp", 7)
    assert news()
    added.rename(added.with_name("UID_13_9_9_all.bmp"))
    assert news()
    (folder / "fold_1/hem/UID_h4_9_2_hem.bmp").unlink()
    assert news()
    assert load(tmp_path, size=9).images.shape == (6, 3, 9, 9)


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    here, there = (load(tree(tmp_path / name), cache=tmp_path / name / "cache") for name in ("here", "there"))
    assert here.fingerprint == there.fingerprint and not (tmp_path / "home").exists()


def test_leftovers_of_a_killed_process_are_ignored(tmp_path, monkeypatch):
    tree(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        load(tmp_path)
    cache = tmp_path / "home/data"
    (leftover,) = [path for path in cache.iterdir() if path.name != "locks"]
    assert leftover.name.endswith(".tmp")
    (leftover / "images.npy").write_bytes(b"half")
    assert len(load(tmp_path)) == 6
    assert {path.suffix for path in cache.iterdir()} == {""} and not leftover.exists()


def test_two_processes_at_once_decode_once(tmp_path):
    tree(tmp_path)
    script = (
        "import sys; from pathlib import Path; from hpatlib import data; from hpatlib.data import images\n"
        "decode = images.decode\n"
        "images.decode = lambda *a, **k: (print('decoded'), __import__('time').sleep(1), decode(*a, **k))[-1]\n"
        "print(data.load('cnmc', real=True, size=8, root=Path(sys.argv[1])).fingerprint)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sorted(words.count("decoded") for words in said) == [0, 2]  # at the size that was asked for, and small
    assert {words[-1] for words in said} == {load(tmp_path).fingerprint}


def test_home(tmp_path, monkeypatch):
    assert _files.home() == tmp_path / "home"
    monkeypatch.delenv("HPAT_HOME")
    assert _files.home() == REPOSITORY / "runs"
    monkeypatch.setattr(_files, "__file__", str(tmp_path / "site-packages/hpatlib/_files.py"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _files.home() == tmp_path / ".cache" / "hpatlib"


def test_importing_is_light():
    heavy = "{'torch', 'torchvision', 'pandas', 'sklearn', 'kagglehub', 'PIL'}"
    script = f"import sys, hpatlib.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, cwd=REPOSITORY).strip() == "[]"


# ImageSet


def test_tensors_and_batches():
    cells = made([0, 1] * 5, range(10))
    pixels, labels = cells.tensors()
    assert pixels.dtype == torch.float32 and labels.dtype == torch.long and 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(cells.images))
    some, _ = cells.tensors(index=[3, 1])
    assert torch.equal(some, pixels[[3, 1]])
    batches = list(cells.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), pixels)
    one, two = (list(cells.batches(4, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    assert all(torch.equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair, strict=False))
    shuffled = torch.cat([images for images, _ in one])
    assert not torch.equal(shuffled, pixels) and torch.equal(shuffled.sum(0).round(), pixels.sum(0).round())
    for images_, labels_ in one:
        for image, label in zip(images_, labels_, strict=True):
            assert (labels[(pixels == image).flatten(1).all(1)] == label).all()


def test_batches_of_a_map_can_be_written_to(tmp_path):
    cells = load(tree(tmp_path))
    batch, _ = next(cells.batches(2))
    batch.zero_()
    assert cells.images[:2].any()


def test_subset():
    cells = made([0, 1, 1, 0], "abcd")
    part = cells.subset([2, 0])
    assert part.groups.tolist() == ["c", "a"] and part.labels.tolist() == [1, 0] and len(part) == 2
    assert (part.images == cells.images[[2, 0]]).all() and part.name == cells.name
    mask = np.array([True, False, True, False])
    same = {cells.subset(index).fingerprint for index in (mask, [0, 2], [0, -2], slice(0, 4, 2))}
    assert len(same) == 1 and not same & {cells.fingerprint, part.fingerprint}


class Watched(np.ndarray):
    """An array that remembers how many images were read from it at most at once."""

    def __getitem__(self, index):
        read = super().__getitem__(index)
        if isinstance(read, np.ndarray) and self.ndim == 4:
            Watched.most = max(Watched.most, len(read) if read.ndim == 4 else 1)
        return np.asarray(read)


def test_only_the_rows_asked_for_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)
    cells, Watched.most = made(np.arange(60) % 2, range(60), pixels=pixels.view(Watched)), 0
    train, test = data.split(cells, by="patient")
    half = train.subset(slice(0, None, 2)).subset(np.arange(20) % 2 == 1)
    assert half.store is test.store is cells.store and (half.size, half.channels, len(half)) == (4, 1, 10)
    assert Watched.most == 0
    data.split(cells, by="image")
    assert Watched.most == 1  # one image at a time
    batches = torch.cat([images_ for images_, _ in half.batches(3)])
    assert Watched.most == 3
    assert torch.equal((255 * batches).round().byte(), torch.from_numpy(half.images)) and Watched.most == 10
    assert (half.images == pixels[half.ids.astype(int)]).all()


def test_reading_leaves_no_pages_mapped(tmp_path):
    """A new map for each read, and never of other rows: views of a map do not know where in the file they begin."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 4), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    whole = np.load(tmp_path / "images.npy", mmap_mode="r")
    for part in (slice(None), slice(3, None), slice(None, None, -1), slice(2)):
        store, expected = whole[part], pixels[part]
        cells = made([0] * len(store), range(len(store)), pixels=store)
        assert (cells.images == expected).all() and (cells.pixels([1, 0]) == expected[[1, 0]]).all()
    cells = made([0] * 8, range(8), pixels=whole)
    assert not np.shares_memory(cells.images, whole) and not np.shares_memory(cells.pixels(2), whole)


def test_ids(tmp_path):
    cells = load(tree(tmp_path / "a", top="C-NMC_training_data"))
    assert cells.ids.tolist() == [f"C-NMC_training_data/{name}.bmp" for name in sorted(TREE)]
    assert cells.subset([4, 1]).subset([1]).ids.tolist() == [cells.ids[1]]
    train, test = data.split(data.load("cnmc", real=False, size=16, count=60), by="image")
    assert sorted([*train.ids, *test.ids], key=int) == [str(n) for n in range(60)]
    plain = made([0, 1, 1], "abc")
    named = replace(plain, ids=np.array(["x", "y", "z"]))
    assert plain.ids.tolist() == ["0", "1", "2"] and named.fingerprint == plain.fingerprint
    assert named.subset([2, 0]).fingerprint == plain.subset([2, 0]).fingerprint
    assert named.subset(np.array([False, True, True])).ids.tolist() == ["y", "z"]
    with pytest.raises(ValueError, match="made: 2 images have the id 'x', expected another for each"):
        replace(plain, ids=np.array(["x", "y", "x"]))
    with pytest.raises(ValueError, match="2 images have the id '1'"):
        plain.subset([1, 1])
    with pytest.raises(ValueError, match="3 images, 3 labels, 3 groups and 2 ids"):
        replace(plain, ids=np.array(["x", "y"]))


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="made: 3 images, 3 labels and 2 groups"):
        made([0, 1, 1], "ab")
    with pytest.raises(ValueError, match=r"images are float64 \[2, 4, 4\], expected uint8"):
        made([0, 1], "ab", pixels=np.zeros((2, 4, 4)))


# Splits


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=6, max_size=14),
    test=st.sampled_from([1 / 2, 1 / 3]),
    seed=st.integers(0, 20),
)
def test_a_split_by_patient_never_leaks(sizes, test, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    cells = made(groups % 2, groups, seed=seed)
    train, held_out = data.split(cells, by="patient", test=test, seed=seed)
    assert not set(train.groups) & set(held_out.groups)
    assert set(train.labels) == set(held_out.labels) == {0, 1}
    together = np.concatenate([train.images, held_out.images]).reshape(len(cells), -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, cells.images.reshape(len(cells), -1)))


@pytest.mark.parametrize("seed", range(5))
def test_a_split_by_image_keeps_duplicates_together(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 1, 4, 4), np.uint8)
    pixels[40:50] = pixels[:10]
    cells = made(np.arange(60) // 5 % 2, ["one"] * 60, pixels=pixels)
    train, held_out = data.split(cells, by="image", seed=seed)
    assert not set(map(bytes, train.images)) & set(map(bytes, held_out.images))
    assert len(train) + len(held_out) == 60 and np.bincount(held_out.labels).tolist() == pytest.approx([10, 10], abs=2)


def test_seeds_give_other_splits_again_and_again():
    groups = np.repeat(np.arange(12), 5)
    cells = made(groups % 2, groups)
    prints = [data.split(cells, by="patient", seed=seed)[1].fingerprint for seed in (0, 1, 2, 0)]
    assert prints[0] == prints[3] and len(set(prints)) == 3


def fair_folds(cells, folds, shuffle):
    """The folds of this shuffle with at least half of each class's share, as sets of positions; all, if none has."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=shuffle)
    tested = {frozenset(test) for _, test in splitter.split(cells.labels, cells.labels, cells.groups)}
    shares = {fold: np.bincount(cells.labels[list(fold)], minlength=2) / np.bincount(cells.labels) for fold in tested}
    usable = {fold for fold in tested if shares[fold].min() > 0 and shares[fold].max() < 1}
    return {fold for fold in usable if shares[fold].min() >= 0.5 / folds} or usable


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=10, max_size=24), st.sampled_from([2, 3, 5]))
def test_a_round_of_seeds_tests_on_each_fold_once(sizes, folds):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    cells = made(groups % 2, groups)
    assume(np.bincount(cells.labels).min() >= folds)
    assume(turns := len(fair_folds(cells, folds, 0)))
    for shuffle in (0, 1, 3):
        expected = fair_folds(cells, folds, shuffle)
        assume(expected)
        tests = [data.split(cells, by="patient", test=1 / folds, seed=turns * shuffle + n)[1] for n in range(turns)]
        found = {frozenset(test.ids.astype(int)) for test in tests}
        assert found <= expected and len(found) == min(turns, len(expected))
        if len(expected) == turns == folds:
            assert sorted(np.concatenate([test.ids for test in tests]), key=int) == cells.ids.tolist()


def test_the_first_shuffles_of_an_even_set_are_whole_rounds():
    groups = np.repeat(np.arange(30), 4)
    cells, rounds = made(groups % 2, [f"{n:02}" for n in groups]), []
    for shuffle in range(3):
        tests = [data.split(cells, by="patient", test=1 / 5, seed=5 * shuffle + turn)[1] for turn in range(5)]
        assert sorted(np.concatenate([test.ids for test in tests]), key=int) == cells.ids.tolist()
        assert [min(test.groups) for test in tests] == sorted(min(test.groups) for test in tests)  # all are as large
        rounds.append({frozenset(test.groups) for test in tests})
    assert not rounds[0] & rounds[1] and not rounds[1] & rounds[2]  # other folds, not the same in another order


@pytest.mark.parametrize("test", [1 / 3, 1 / 5])
def test_folds_short_of_a_class_are_avoided_and_large_groups_take_turns(test):
    sizes = [60, 60, 60] + [2] * 5 + [36] * 5  # three large healthy subjects, as in C-NMC
    names = ["H22", "H10", "H14", *(f"H{n}" for n in range(1, 6)), *map(str, range(1, 6))]
    groups = np.repeat(names, sizes)
    cells = made([name[0] != "H" for name in groups], groups)
    tested = []
    for seed in range(12):
        train, held_out = data.split(cells, by="patient", test=test, seed=seed)
        assert np.bincount(held_out.labels)[0] >= 19 and set(train.labels) == {0, 1}
        assert {"H10", "H14", "H22"} & set(held_out.groups) == {("H10", "H14", "H22")[seed % 3]}
        tested.append(frozenset(held_out.groups))
    assert len(set(tested[::3])) > 1  # with other patients in other rounds


@pytest.mark.parametrize("by", ["patient", "image"])
def test_a_part_split_again_keeps_its_groups_apart(by):
    """As training does for its validation images."""
    groups = np.repeat(np.arange(40), 5)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 1, 4, 4), np.uint8)
    pixels[100:150] = pixels[:50]
    cells = made(groups % 2, groups if by == "patient" else np.arange(200), pixels=pixels)
    for seed in range(4):
        train, test = data.split(cells, by=by, seed=seed)
        sides = [*data.split(train, by=by, test=1 / 8, seed=seed), test]
        whose = [set(side.groups) if by == "patient" else set(map(bytes, side.images)) for side in sides]
        assert not (whose[0] & whose[1] or whose[1] & whose[2] or whose[0] & whose[2])
        assert len(sides[1]) == pytest.approx(len(train) / 8, abs=6) and sum(map(len, sides)) == 200


@pytest.mark.parametrize(
    ("labels", "groups", "options", "text"),
    [
        ([0, 1] * 6, "aabbccddeeff", {"by": "subject"}, "Unknown split by 'subject': choose patient, image or random"),
        ([0, 1] * 6, "aabbccddeeff", {"by": "image", "test": 0.7}, "test is 0.7"),
        ([1] * 12, "aabbccddeeff", {"by": "patient"}, "0 no in 0 groups and 12 yes in 6 groups: none of 3 folds"),
        ([0] * 6 + [1] * 6, "aaaaaabbccdd", {"by": "patient"}, "made has 6 no in 1 groups.* Use more images"),
        ([0] * 6 + [1] * 6, "aaaaaabbbbbb", {"by": "patient"}, "6 no in 1 groups and 6 yes in 1 groups"),
    ],
)
def test_impossible_splits_are_explained(labels, groups, options, text):
    with pytest.raises(ValueError, match=text):
        data.split(made(labels, list(groups)), **options)


# Sets of one's own


def own(root, *, each=(3, 2, 2)):
    for label, (name, count) in enumerate(zip(("b", "a", "c"), each, strict=True)):
        for n in range(count):
            draw(root / name / f"scan {n}.png", 10 * label + n, side=40 + n, mode=("L", "RGB")[n % 2])
    return root


def test_own_folders(tmp_path, monkeypatch):
    folder = own(tmp_path / "mine")
    (folder / ".hidden").mkdir()
    (folder / "a/notes.txt").write_text("x")
    mine = ImageSet.from_folder(folder, size=8)
    assert (mine.name, mine.real, mine.classes, mine.channels, mine.size) == ("mine", True, ("a", "b", "c"), 1, 8)
    assert mine.labels.tolist() == [0, 0, 1, 1, 1, 2, 2] and len(set(mine.groups)) == 7
    assert mine.ids.tolist() == [
        f"{name}/scan {n}.png" for name, count in (("a", 2), ("b", 3), ("c", 2)) for n in range(count)
    ]
    swapped = ImageSet.from_folder(str(folder), size=8, classes=("c", "a"), crop=20, pad=True)
    assert swapped.classes == ("c", "a") and swapped.ids.tolist()[0] == "c/scan 0.png" and len(swapped) == 4
    elsewhere = ImageSet.from_folder(own(tmp_path / "copy/mine"), size=8, cache=tmp_path / "cache")
    assert elsewhere.fingerprint == mine.fingerprint and (tmp_path / "cache").is_dir()
    train, test = data.split(mine, by="patient", test=1 / 2)
    assert len(train) + len(test) == 7
    monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert ImageSet.from_folder(folder, size=8).fingerprint == mine.fingerprint


def test_own_folders_that_cannot_be_used(tmp_path):
    folder = own(tmp_path / "mine", each=(3, 0, 2))
    (folder / "a").mkdir()
    with pytest.raises(ValueError, match=r"2 faults in the class folders of mine:") as error:
        ImageSet.from_folder(folder, size=8, classes=("a", "b", "d"))
    assert f"{folder / 'a'}: no .bmp, .jpeg" in str(error.value) and f"{folder / 'd'}: no such" in str(error.value)
    with pytest.raises(ValueError, match=r"expected at least two classes, found b"):
        ImageSet.from_folder(folder, size=8, classes=("b",))
    with pytest.raises(ValueError, match=r"expected at least two classes, found none"):
        ImageSet.from_folder(folder / "a", size=8)
    with pytest.raises(ValueError, match=r"b: named more than once"):
        ImageSet.from_folder(folder, size=8, classes=("b", "b", "c"))
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere: expected one that holds a folder for"):
        ImageSet.from_folder(tmp_path / "nowhere", size=8)
    for options, text in (
        ({"size": 0}, "size is 0"),
        ({"size": 8, "crop": 0}, "crop is 0"),
        ({"size": 8, "mode": "grey"}, "Unknown mode 'grey': choose one of RGB, L"),
    ):
        with pytest.raises(ValueError, match=text):
            ImageSet.from_folder(folder, **options)
    (folder / "b/scan 0.png").write_bytes(b"")
    (folder / "c/scan 1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="2 of 5 images cannot be used") as error:
        ImageSet.from_folder(folder, size=8, classes=("b", "c"))
    assert "b/scan 0.png: unreadable" in str(error.value) and "c/scan 1.png: unreadable" in str(error.value)


def test_a_tilde_is_the_home_folder_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "images")
    monkeypatch.setenv("HPAT_HOME", "~/kept")
    assert len(load("~/images")) == 6 and (tmp_path / "kept/data").is_dir()
    load("~/images", cache="~/cache")
    assert (tmp_path / "cache").is_dir() and data.status("~/images")[0]["images"] == 6
    monkeypatch.setenv("HPAT_DATA", "~/images")
    assert len(load(None)) == 6 and data.even_count("cnmc") == 6
    kagglehub(monkeypatch, lambda handle: pytest.fail("fetched, though it is there"))
    assert data.fetch("cnmc", "~/images") == tmp_path / "images/cnmc"
    assert len(ImageSet.from_folder(own(tmp_path / "mine") and "~/mine", size=8)) == 7
    assert not Path("~").exists()


# Photographs and natural images


def test_photographs_are_a_data_set_without_leaks():
    def load(count, seed=3):
        return data.load("photographs", real=False, size=16, count=count, seed=seed)

    crops = load(60)
    assert (crops.name, crops.real, crops.classes) == ("photographs", False, ("living", "thing"))
    assert crops.images.shape == (60, 1, 16, 16) and crops.labels.sum() == 30
    for label, of_class in enumerate(photographs.CLASSES.values()):
        assert {group.split(",")[0] for group in crops.groups[crops.labels == label]} == set(of_class)
    train, test = data.split(crops, by="patient", test=1 / 5, seed=0)
    assert not set(train.groups) & set(test.groups) and set(test.labels) == {0, 1}
    assert np.array_equal(load(20).images, crops.images[:20])
    with pytest.raises(ValueError, match="count is 0"):
        load(0)


def test_what_is_drawn_has_no_files(tmp_path):
    for ask in (
        lambda: data.load("photographs", real=True, size=16),
        lambda: data.load("photographs", real=True, size=16, part="all"),
        lambda: data.even_count("photographs"),
        lambda: data.fetch("photographs", tmp_path),
    ):
        with pytest.raises(ValueError, match="photographs has no files: it comes with the library"):
            ask()
    assert "photographs" not in {row["key"] for row in data.status()}


NATURAL = {"n01_tench.JPEG": "yes", "n02_ox.JPEG": "yes", "n03_cup.JPEG": "no", "n04_bus.JPEG": "no"}


def sample(root, rows=()):
    for n, name in enumerate(NATURAL):
        draw(root / "natural/imagenet-sample-images" / name, n, side=40 + n)
    lines = [f"{name},{name[:3]},{n},{animal}" for n, (name, animal) in enumerate(rows or NATURAL.items())]
    (root / "natural/classes.csv").write_text("\n".join(["file,wnid,index,animal", *lines]) + "\n")
    return root


def natural(root, **options):
    return data.load("natural", real=True, root=root, **{"size": 16, **options})


def test_natural_images(tmp_path):
    pictures = natural(sample(tmp_path))
    assert (pictures.name, pictures.real, pictures.classes) == ("natural", True, ("thing", "animal"))
    assert pictures.labels.tolist() == [1, 1, 0, 0] and pictures.images.shape == (4, 1, 16, 16)
    assert pictures.ids[0] == "imagenet-sample-images/n01_tench.JPEG" and len(set(pictures.groups)) == 4
    (tmp_path / "natural/imagenet-sample-images/n02_ox.JPEG").unlink()  # a partial copy
    assert natural(tmp_path).labels.tolist() == [1, 0, 0] and data.even_count("natural", root=tmp_path) == 2
    with pytest.raises(ValueError, match="natural has no phantom"):
        data.load("natural", real=False, size=16)


def test_natural_images_that_cannot_be_used(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"^Real ImageNet sample images are missing: .*\. Set HPAT_DATA to the folder that holds natural/, or",
    ):
        natural(tmp_path)
    wrong = {**NATURAL, "n01_tench.JPEG": "perhaps"}
    del wrong["n04_bus.JPEG"]
    with pytest.raises(ValueError, match="3 faults in the ImageNet sample") as error:
        natural(sample(tmp_path, [*wrong.items(), ("n02_ox.JPEG", "no")]))
    for text in ("n01_tench.JPEG: animal is 'perhaps'", "n02_ox.JPEG: more than one row", "n04_bus.JPEG: no row in"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match=r"under .*natural have no thing"):
        natural(sample(tmp_path, [(name, "yes") for name in NATURAL]))
    (tmp_path / "natural/classes.csv").write_text("file,animal\n")
    with pytest.raises(ValueError, match=r"classes.csv lacks \['index', 'wnid'\]: found the columns \['file', 'an"):
        natural(tmp_path)
    (tmp_path / "natural/classes.csv").unlink()
    with pytest.raises(ValueError, match=r"imagenet-sample-images has images but no classes: put classes.csv beside"):
        natural(tmp_path)


# Fetching and listing


def kagglehub(monkeypatch, download):
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=download))


@pytest.mark.parametrize("links", [True, False])
def test_fetch(tmp_path, monkeypatch, links):
    def download(handle):
        assert handle == "andrewmvd/leukemia-classification"
        return str(tree(tmp_path / "hub", top="C-NMC_Leukemia/training_data") / "cnmc")

    def refuse(*_, **__):
        raise OSError("no links here")

    kagglehub(monkeypatch, download)
    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    target = data.fetch("cnmc", tmp_path / "data")
    assert target == tmp_path / "data" / "cnmc" and target.is_symlink() == links
    assert len(load(tmp_path / "data")) == 6
    kagglehub(monkeypatch, lambda handle: pytest.fail("fetched again"))
    assert data.fetch("cnmc", tmp_path / "data") == target


def test_fetch_makes_the_photographs_of_an_archive(tmp_path, monkeypatch):
    wnids = [f"n{1_400_000 + 1_700 * n:08}" for n in range(1000)]  # as many before the abacus as there are animals

    def archive(url, path, *, checksum):
        assert url.startswith("https://codeload.github.com/") and not checksum
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as packed:
            for wnid in wnids:
                packed.writestr(f"imagenet-sample-images-x/{wnid}_it's.JPEG", b"x")
            packed.writestr("imagenet-sample-images-x/README.md", b"x")
        return path

    monkeypatch.setattr(data, "download", archive)
    items = data.SOURCES["natural"].parts["all"](data.fetch("natural", tmp_path))
    assert [item.label for item in items] == [int(wnid < "n02666196") for wnid in wnids]
    assert {path.name for path in (tmp_path / "natural").iterdir()} == {"classes.csv", "imagenet-sample-images"}
    monkeypatch.setattr(data, "download", lambda *_, **__: pytest.fail("fetched again"))
    data.fetch("natural", tmp_path)


def test_fetch_replaces_a_link_to_nothing(tmp_path, monkeypatch):
    (tmp_path / "cnmc").symlink_to(tmp_path / "gone")
    kagglehub(monkeypatch, lambda handle: str(tree(tmp_path / "hub") / "cnmc"))
    assert len(cnmc.training(data.fetch("cnmc", tmp_path))) == 6


def test_fetch_explains_failures(tmp_path, monkeypatch):
    def offline(handle):
        raise ConnectionError("no route to host.\nlong story")

    by_hand = f"or unpack https://www.kaggle.com/datasets/andrewmvd/leukemia-classification into {tmp_path / 'cnmc'}."
    kagglehub(monkeypatch, offline)
    with pytest.raises(RuntimeError) as error:
        data.fetch("cnmc", tmp_path)
    reason = "(ConnectionError: no route to host): try again online"
    assert str(error.value) == f"Fetching andrewmvd/leukemia-classification failed {reason}, {by_hand}"
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(RuntimeError, match="needs kagglehub: pip install kagglehub, or unpack https"):
        data.fetch("cnmc", tmp_path)
    assert not (tmp_path / "cnmc").exists()


def test_status(tmp_path):
    assert {row["images"] for row in data.status()} == {0} and "HPAT_DATA" in data.status()[0]["note"]
    train, part = data.status(preliminary(tree(tmp_path)))[:2]
    classes = {"hem": 3, "all": 3}
    folder = tmp_path / "cnmc"
    assert train == {"key": "cnmc", "part": "train", "images": 6, "classes": classes, "folder": folder, "note": ""}
    assert (part["part"], part["images"], part["classes"]) == ("preliminary", 3, {"hem": 1, "all": 2})
    draw(tmp_path / "cnmc/fold_0/all/odd.bmp", 0)
    assert data.status(tmp_path)[0]["images"] == 0 and "odd.bmp" in data.status(tmp_path)[0]["note"]


def test_sources_are_complete():
    for key, source in data.SOURCES.items():
        assert isinstance(source, Source) and source.key == key and source.mode in images.READABLE
        assert (source.phantom is None or callable(source.phantom)) and source.citation and source.licence
        assert source.parts or source.phantom
        assert source.label and len(source.label) <= 20 and re.fullmatch("#[0-9A-F]{6}", source.colour)
    together = (
        "brain_mri",
        "chest_ct",
        "chest_xray",
        "busi2",
        "natural",
        "photographs",
    )  # in the figures of the slides
    assert len({data.SOURCES[key].colour for key in together}) == len(together)


# The real things: any copy of them, whole or partial, so counts come from its folders and never from here

PUBLISHED = {  # images of each class when complete
    "cnmc": (3389, 7272),
    "busi": (133, 437, 210),
    "busi2": (570, 210),
    "brain_mri": (2000, 5023),
    "chest_xray": (1583, 4273),
    "chest_ct": (536, 561),
    "natural": (602, 398),
    "breastmnist": (570, 210),
    "pneumoniamnist": (1583, 4273),
}
ALIKE = {"cnmc": 0.9995, "busi": 0.95, "busi2": 0.95, "brain_mri": 0.99, "chest_ct": 0.95}  # no strangers above
FOLDERS = {  # the class of what stands in a folder of this name
    "cnmc": {"hem": 0, "all": 1},
    "busi": {"normal": 0, "benign": 1, "malignant": 2},
    "busi2": {"normal": 0, "benign": 0, "malignant": 1},
    "brain_mri": {"notumor": 0, "glioma": 1, "meningioma": 1, "pituitary": 1},
    "chest_xray": {"NORMAL": 0, "PNEUMONIA": 1},
    "chest_ct": {"Normal cases": 0, "Bengin cases": 0, "Malignant cases": 1},
}


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """Real images by key at 32 px, from one cache for all tests here."""
    return lambda key, **more: data.load(
        key, real=True, size=32, root=REAL, cache=tmp_path_factory.getbasetemp() / "real", **more
    )


@pytest.fixture
def real_key(key):
    """This key, where its real images are."""
    folder = REAL / (data.SOURCES[key].folder or key)
    if not (folder / f"{key}.npz" if data.SOURCES[key].url else folder).exists():
        pytest.skip(f"no real images in {folder}: set HPAT_DATA")
    return key


@pytest.mark.parametrize("key", FOLDERS)
def test_every_real_file_is_listed_once(real_key, decoded):
    """A plain walk through the folders finds the same files with the same classes."""
    walked = {}
    for top, _, names in os.walk(REAL / (data.SOURCES[real_key].folder or real_key), followlinks=True):
        for name in names:
            path = Path(top, name)
            if path.parent.name in FOLDERS[real_key] and images.is_image(path) and "_mask" not in name:
                if "busi" in real_key and path.stem in busi.CONTRADICTED:
                    continue
                walked[path.parts[-3:]] = FOLDERS[real_key][path.parent.name]  # archives can hold a second copy inside
    source = data.SOURCES[real_key]
    items = next(iter(source.parts.values()))(REAL / (source.folder or real_key))
    assert {item.path.parts[-3:]: item.label for item in items} == walked and len(items) == len(walked)
    assert np.array_equal(decoded(real_key).labels, [item.label for item in items])


@pytest.mark.parametrize("key", PUBLISHED)
def test_real_counts_never_exceed_the_published_ones(real_key, decoded):
    scans, source = decoded(real_key), data.SOURCES[real_key]
    counts = np.bincount(scans.labels, minlength=len(source.classes))
    assert (counts > 0).all() and (counts <= PUBLISHED[real_key]).all()
    count = data.even_count(real_key, root=REAL)
    each = min(counts.min(), source.each or counts.min())
    assert count == each * len(source.classes)
    assert np.bincount(decoded(real_key, count=count).labels).tolist() == [each] * len(source.classes)


@pytest.mark.parametrize("key", PUBLISHED)
def test_real_near_duplicates_are_joined(real_key, decoded):
    """By another measure than names, or the hash that joined them: the correlation of pixels at 32 × 32."""
    scans = decoded(real_key)
    pixels = scans.images.reshape(len(scans), -1).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True) + 1e-9
    one, other = np.nonzero(np.triu(pixels @ pixels.T > ALIKE.get(real_key, 0.998), 1))
    assert (scans.groups[one] == scans.groups[other]).all()
    square = pixels.reshape(-1, 32, 32) if scans.channels == 1 else pixels.reshape(-1, 3, 32, 32)
    for axes in ((-1,), (-2,), (-1, -2)):  # mirrored, upside down, both
        one, other = np.nonzero(np.triu(pixels @ np.flip(square, axes).reshape(pixels.shape).T > 0.995, 1))
        assert (scans.groups[one] == scans.groups[other]).all()
    for label in range(len(scans.classes)):  # strangers are not
        assert len(set(scans.groups[scans.labels == label])) > 0.1 * (scans.labels == label).sum() or real_key == "cnmc"


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_real_split_has_no_group_on_both_sides(real_key, decoded):
    scans, folds = decoded(real_key), 3 if real_key == "cnmc" else 5  # few healthy subjects
    slack = max(Counter(scans.groups).values())
    for seed in range(3):
        train, test = data.split(scans, by="patient", test=1 / folds, seed=seed)
        assert not set(train.groups) & set(test.groups) and len(train) + len(test) == len(scans)
        share = np.bincount(test.labels, minlength=len(scans.classes)) - np.bincount(scans.labels) / folds
        assert (np.abs(share) <= slack).all()
        assert not set(map(bytes, train.images)) & set(map(bytes, test.images))
        learnt, watched = data.split(train, by="patient", test=1 / 8, seed=seed)  # as training does
        assert not set(learnt.groups) & set(watched.groups) and len(learnt) + len(watched) == len(train)


@pytest.mark.parametrize("key", ["cnmc"])
def test_real_cells_by_subject_and_by_image(real_key, decoded):
    cells = decoded(real_key)
    healthy, ill = (set(cells.groups[cells.labels == label]) for label in (0, 1))
    assert all(name[0] == "H" for name in healthy) and all(name.isdecimal() for name in ill)
    train, test = data.split(cells, by="image")
    assert np.bincount(test.labels) == pytest.approx(np.bincount(cells.labels) / 3, abs=3)
    assert not set(map(bytes, train.images)) & set(map(bytes, test.images))


@pytest.mark.parametrize("key", ["cnmc"])
def test_three_seeds_test_each_real_cell_once(real_key, decoded):
    cells, rounds = decoded(real_key), []
    for shuffle in range(3):
        tests = [data.split(cells, by="patient", seed=3 * shuffle + turn)[1] for turn in range(3)]
        assert sorted(np.concatenate([test.ids for test in tests])) == sorted(cells.ids)
        most = [Counter(test.groups).most_common(1)[0][0] for test in tests]
        assert most == sorted(most)
        rounds.append(most)
    large = ("H10", "H14", "H22")  # nearly all healthy cells of this book's subset, not of a whole copy
    if np.isin(cells.groups[cells.labels == 0], large).mean() > 0.9:
        assert all(most == list(large) for most in rounds)
        again = data.split(cells, by="patient", seed=0)[1], data.split(cells, by="patient", seed=3)[1]
        assert set(again[0].groups) != set(again[1].groups)


CHECKSUMS = REAL / "cnmc/original_sha256.txt"


@pytest.mark.skipif(not CHECKSUMS.is_file(), reason=f"no {CHECKSUMS}")
def test_no_file_of_the_original_cells_stands_under_two_subjects():
    subjects, names, files = {}, {}, 0
    for line in CHECKSUMS.read_text().splitlines():
        digest, path = line.split(maxsplit=1)
        if match := re.search(r"fold_\d/(?:all|hem)/UID_([Hh]?\d+)_", path):
            files += 1
            names.setdefault(digest, []).append(match[1])
            subjects.setdefault(digest, set()).add(cnmc.subject(match[1]))
    assert files == 10_661 and all(len(found) == 1 for found in subjects.values())
    twice = [found for found in names.values() if len(found) > 1]
    assert len(twice) == 104 and sum(len(set(found)) > 1 for found in twice) == 99
    joined = {frozenset(found) for found in twice if len(set(found)) > 1}  # each name of a subject is in such a pair
    assert {name.upper() for pair in joined for name in pair} == {name for one in cnmc.ONE_SUBJECT for name in one}
