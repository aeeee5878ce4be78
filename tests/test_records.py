"""Records: what is written can be read, what is broken is named, and both are small and quick."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time

import msgspec
import numpy as np
import pandas as pd
import pytest
from made_up import CHAPTER, cells, header, model, record, vouched

from hpatlib import outcomes, records
from hpatlib.records import Images

CONDITIONS = ("training", "environment")
RIGHT = {("Standard", "H0"): 0.9, ("Standard", "H6"): 0.4, ("Adv_h", "H0"): 0.8, ("Adv_h", "H6"): 0.7}


@pytest.fixture
def made(tmp_path) -> records.Record:
    tables = {"steps": [{"line": "3", "loss": 0.5, "count": 2}, {"line": "4"}]}
    return record(tmp_path, CHAPTER, CONDITIONS, RIGHT, by="training", trainings=3, tables=tables, claims={"a": "b"})


@pytest.fixture
def path(made, tmp_path):
    return tmp_path / CHAPTER / "laptop-real-seed0.json"


def test_a_record_survives_writing_and_reading(made, path):
    back = records.read(path)
    assert back.header == made.header and back.header.models == made.header.models
    pd.testing.assert_frame_equal(back.outcomes.rows, made.outcomes.rows)
    assert back.outcomes.conditions == CONDITIONS and back.outcomes.seeds == (0, 1, 2, 0, 1, 2)
    for key, share in RIGHT.items():
        assert back.outcomes.accuracy[key].value == pytest.approx(share)
    assert back.file == "made/fig1/laptop-real-seed0" and back.real and back.seeds == [0, 1, 2]
    assert back.networks == ["resnet50 (imagenet)"]
    table = back.table("steps")
    assert table["line"].tolist() == ["3", "4"] and table["count"].isna().tolist() == [False, True]
    with pytest.raises(outcomes.Unmeasured, match="no table 'sizes': there are steps"):
        back.table("sizes")


def test_writing_the_same_again_gives_the_same_bytes(made, path):
    before = [file.read_bytes() for file in (path, path.with_suffix(".parquet"))]
    records.save(made.header, made.outcomes.rows, path.parents[2])
    assert [file.read_bytes() for file in (path, path.with_suffix(".parquet"))] == before


def test_label_and_stamp_say_where_numbers_came_from(made, tmp_path):
    assert made.label == "Laptop profile, real data (cnmc), n = 40 images a training, seeds 0, 1, 2"
    text = made.stamp().to_string(max_colwidth=None)
    parts = ["laptop, real, 0, 1, 2", "cnmc f00d, 120 images, 64 px", "split by patient", "torch 2.0", "abc"]
    parts += ["12.5 s", "2024-05-17", "made/fig1/laptop-real-seed0.json", made.header.sha256[:16], "CPU, 1 thread"]
    for part in parts:
        assert part in text
    drawn = {"data": "phantom", "images": [Images("phantom-cells", "f00d", 120, 64)]}
    one = record(tmp_path, CHAPTER, CONDITIONS, RIGHT, trainings=1, seed=7, models=[model(7)], **drawn)
    assert one.label == "Laptop profile, phantom data (phantom-cells), n = 40 images, seed 7"
    assert "no evidence about patients" in one.stamp().to_string(max_colwidth=None) and not one.real
    rows, models = cells(CONDITIONS, RIGHT, trainings=3)
    some = (rows["environment"] == "H0") | (rows["image"].astype(int) < 8)
    asked = records.save(header("made/fig3", CONDITIONS, models), rows[some], tmp_path)
    assert "n = 40 images a training, 8 where a sample was asked, seeds 0, 1, 2" in asked.label
    none = records.save(
        header("made/fig2", ("c",), []), pd.DataFrame(columns=["model", "c", "image", "group"]), tmp_path
    )
    assert none.seeds == [0] and "none is asked" in none.stamp().to_string(max_colwidth=None)
    assert none.label == "Laptop profile, real data (cnmc), seed 0"


def changed(path, **fields) -> None:
    """Write other fields into a record's header, and the checksum that fits them where they are not about it."""
    plain = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(plain if "checksum" in fields else vouched(plain)))


def damage(path, content: pd.DataFrame) -> None:
    """Give a record other outcomes, and a header that vouches for them."""
    parquet = outcomes.encode(content)
    path.with_suffix(".parquet").write_bytes(parquet)
    changed(path, sha256=hashlib.sha256(parquet).hexdigest())


BROKEN_HEADERS = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "not text": lambda text: b"\xff\xfe",
    "another field": lambda text: text.replace('"chapter"', '"kapitel": 3, "chapter"', 1),
    "no field": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}),
    "another type": lambda text: text.replace('"seed": 0', '"seed": "0"', 1),
    "another version": lambda text: text.replace('"schema": 2', '"schema": 3'),
    "a name twice": lambda text: text.replace('"data": "real"', '"data": "phantom", "data": "real"', 1),
    "a model's name twice": lambda text: text.replace('"accuracy"', '"accuracy": 0.1, "accuracy"', 1),
}


@pytest.mark.parametrize("breaks", BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_a_broken_header_is_named(path, breaks):
    was = path.read_text()
    now = breaks(was)
    path.write_bytes(now if isinstance(now, bytes) else now.encode())
    assert path.read_bytes() != was.encode()
    with pytest.raises(ValueError, match=r"laptop-real-seed0\.json is not a record of this version .*measure it anew"):
        records.read(path)


def test_outcomes_that_are_not_the_headers_are_named(path):
    parquet = path.with_suffix(".parquet")
    content = bytearray(parquet.read_bytes())
    content[len(content) // 2] ^= 1
    parquet.write_bytes(content)
    with pytest.raises(ValueError, match=r"laptop-real-seed0\.parquet is not what .*written with: its sha256"):
        records.read(path)
    parquet.unlink()
    with pytest.raises(ValueError, match=r"no outcomes beside it: laptop-real-seed0\.parquet is missing"):
        records.read(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "it is called laptop-real-seed0, and should be laptop-real-seed1"),
        ({"profile": "study"}, "it is called laptop-real-seed0, and should be study-real-seed0"),
        ({"profile": "desktop"}, "it is called laptop-real-seed0, and should be desktop-real-seed0"),
        ({"chapter": "made/fig2"}, "it stands in fig1, and speaks of made/fig2"),
        ({"images": [{"name": "phantom-cells", "fingerprint": "1", "count": 2, "size": 32}]}, "it calls phantoms real"),
        ({"models": [{"key": "k", "run": {"model": "m", "weights": "w"}}]}, "its outcomes name models beyond its 1"),
        ({"conditions": ["training", "environment", "reading"]}, "its outcomes lack reading"),
    ],
)
def test_a_header_that_contradicts_its_outcomes_or_its_place_is_named(path, fields, message):
    changed(path, **fields)
    with pytest.raises(ValueError, match=rf"laptop-real-seed0\.json contradicts itself: {message}"):
        records.read(path)


def negative(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return rows.assign(**{column: rows[column].where(rows.index > 0, -2).astype("int8")})


BROKEN_ROWS = {
    "two outcomes of one model, condition and image": lambda rows: pd.concat([rows, rows[:1]], ignore_index=True),
    "its column label has negative classes": lambda rows: negative(rows, "label"),
    "its column prediction has negative classes": lambda rows: negative(rows, "prediction"),
    "its column margin has infinite values": lambda rows: rows.assign(margin=np.full(len(rows), np.inf, np.float16)),
    "its outcomes lack group": lambda rows: rows.drop(columns="group"),
    "its outcomes name models beyond its 6": lambda rows: rows.assign(model=rows["model"] - 1),
}


@pytest.mark.parametrize("message", BROKEN_ROWS)
def test_outcomes_that_cannot_be_are_named(made, path, message):
    damage(path, BROKEN_ROWS[message](made.outcomes.rows))
    with pytest.raises(ValueError, match=rf"laptop-real-seed0\.json contradicts itself: .*{message}"):
        records.read(path)


def test_what_contradicts_itself_is_never_written(made, tmp_path):
    rows, models = cells(CONDITIONS, RIGHT, by="training")
    with pytest.raises(ValueError, match="it calls phantoms real"):
        records.save(
            header("made/fig9", CONDITIONS, models, images=[Images("phantom-cells", "1", 2, 3)]), rows, tmp_path
        )
    with pytest.raises(ValueError, match="two outcomes of one model"):
        records.save(header("made/fig9", CONDITIONS, models), pd.concat([rows, rows]), tmp_path)
    with pytest.raises(ValueError, match=r"Expected .* got `bool`"):
        records.save(header("made/fig9", CONDITIONS, models, tables={"told": [{"yes": True}]}), rows, tmp_path)
    assert not (tmp_path / "made/fig9").exists()
    saved = records.save(header("made/fig9", CONDITIONS, models, tables={"told": [{"end": math.inf}]}), rows, tmp_path)
    again = records.read(tmp_path / f"{saved.file}.json")
    assert again.header.tables == saved.header.tables == {"told": [{"end": None}]}  # JSON has no infinity


def test_the_best_record_is_real_and_of_the_largest_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "folder", lambda: tmp_path)
    assert records.best(CHAPTER) is None and records.of(CHAPTER) == []
    drawn = {"data": "phantom", "images": [Images("phantom-cells", "f00d", 120, 64)]}
    record(tmp_path, CHAPTER, CONDITIONS, RIGHT, profile="paper", **drawn)
    assert records.best(CHAPTER) is None and len(records.of(CHAPTER)) == 1
    for profile in ("laptop", "study", "smoke"):
        record(tmp_path, CHAPTER, CONDITIONS, RIGHT, profile=profile)
        record(tmp_path, CHAPTER, CONDITIONS, RIGHT, profile=profile, seed=3)
    assert [r.file.removeprefix("made/fig1/") for r in records.of(CHAPTER)] == [
        "study-real-seed0",
        "study-real-seed3",
        "laptop-real-seed0",
        "laptop-real-seed3",
        "smoke-real-seed0",
        "smoke-real-seed3",
        "paper-phantom-seed0",
    ]
    best = records.best(CHAPTER)
    assert best is not None and best.file == "made/fig1/study-real-seed0"
    assert len(records.everything()) == 7


def test_a_record_is_read_again_when_its_file_has_changed(path, made, monkeypatch):
    monkeypatch.setattr(records, "folder", lambda: path.parents[2])
    assert records.best(CHAPTER) is records.best(CHAPTER)  # read once
    time.sleep(0.01)
    records.save(msgspec.structs.replace(made.header, date="2025-01-01"), made.outcomes.rows, path.parents[2])
    best = records.best(CHAPTER)
    assert best is not None and best.header.date == "2025-01-01"
    path.write_text("")
    with pytest.raises(ValueError, match="laptop-real-seed0"):
        records.of(CHAPTER)


def test_scratch_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HPAT_RECORDS", str(tmp_path / "here"))
    assert records.scratch() == tmp_path / "here"
    monkeypatch.delenv("HPAT_RECORDS")
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    assert records.scratch() == tmp_path / "records"


def figure_4(folder, chapter: str, seed: int = 0) -> records.Record:
    """A record as large as figure 4's at laptop: 5 trainings, 6 seeds, 14 cells of 64 images, all of it random."""
    draws, parts, models = np.random.default_rng(seed), [], []
    conditions = ("split", "training", "environment", "reading")
    places = [("H0", "clean"), *((f"H{k}", reading) for k in range(1, 7) for reading in ("fixed", "searched"))]
    places += [("H6", "worst")]
    names = np.array([f"fold_{n % 3}/all/UID_{n // 9}_{n % 9}_1_all.bmp" for n in range(120)])
    for training in ("Standard", "Adv_FGSM", "Adv_PGD", "Adv_RT", "Adv_h"):
        for trained in range(6):
            models.append(model(trained, key=f"{training}-{trained}", losses=[0.7, 0.6, 0.51234, 0.41234]))
            shown = np.sort(draws.choice(120, 64, replace=False))
            labels = draws.integers(0, 2, 64)
            for place, reading in places:
                margin = draws.normal(0, 3, 64)
                about = {"model": len(models) - 1, "split": "patient", "training": training, "environment": place}
                about |= {"reading": reading, "image": names[shown], "label": labels, "margin": margin}
                about |= {"group": [f"cnmc/UID_{n // 9}" for n in shown], "prediction": (margin > 0).astype(int)}
                parts.append(pd.DataFrame(about))
    return records.save(header(chapter, conditions, models), pd.concat(parts, ignore_index=True), folder)


def test_a_record_like_figure_4s_is_small(tmp_path):
    made = figure_4(tmp_path, "hpat/fig4_training_strategies")
    assert len(made.outcomes.rows) == 5 * 6 * 14 * 64
    sizes = [file.stat().st_size for file in tmp_path.rglob("laptop-real-seed0.*")]
    assert len(sizes) == 2 and sum(sizes) <= 250_000, sizes


def test_twenty_one_such_records_are_read_and_judged_in_seconds_without_torch(tmp_path):
    """As many as there are chapters; each is judged as figure 4, by ten and more of its claims."""
    figure_4(tmp_path / "0", "hpat/fig4_training_strategies")
    for number in range(1, 21):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
    code = """
import pathlib, sys, time
from hpatlib import claims, records
for number in range(21):
    records.folder = lambda: pathlib.Path(sys.argv[1]) / str(number)
    judged = claims.judge("hpat", ["hpat/fig4_training_strategies"])
    assert len(judged) >= 10 and all(j.quantity is not None and j.record is not None for j in judged)
print(time.process_time(), "torch" in sys.modules)
"""
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=threads
    )
    seconds, torch = done.stdout.split()
    assert torch == "False" and float(seconds) <= 10


def test_every_committed_record_is_whole_real_and_speaks_of_images():
    for path in records.everything():
        found = records.read(path)
        assert found.real and path.parent == records.folder() / found.header.chapter
        assert all(images.fingerprint and images.count for images in found.header.images)
        assert json.dumps(found.header.environment).count(str(records.PACKAGE.parent)) == 0
