"""Break things on purpose and count what came of it: a clear sentence, silence, or a raw error.

    python tests/faults.py            everything: kills and races too, some minutes
    python tests/faults.py --quick    what `pytest tests/test_faults.py` runs

A case is a function of an empty folder. It returns "clear" where the library did what it should: it refused in a
sentence that names what is wrong, or went on by itself to the result of an unbroken run. "silent: …" says what was
believed, "raw: …" which error came out as it was.
"""

import argparse
import contextlib
import errno
import hashlib
import http.server
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
import made_up
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hpatlib import cli, data, models, outcomes, records, runs, training
from hpatlib._files import StorageError, write
from hpatlib.data import images as files
from hpatlib.data.download import download, unpack
from hpatlib.data.images import ImageSet, Item
from hpatlib.runs import Run
from hpatlib.training import Recipe

ROOT = Path(__file__).parents[1]
Case = Callable[[Path], str]
REFUSALS = (ValueError, FileNotFoundError, RuntimeError, StorageError)


def refused(call: Callable[[], object], *expected: str) -> str:
    """What became of a call that must refuse in a sentence with these parts."""
    try:
        found = call()
    except REFUSALS as error:
        if type(error) not in REFUSALS and not isinstance(error, files.Unusable):
            return f"raw: {type(error).__name__}: {error}"
        missing = [part for part in expected if part not in str(error)]
        return f"raw: {error} does not say {missing}" if missing else "clear"
    except Exception as error:
        return f"raw: {type(error).__name__}: {error}"
    return f"silent: {str(found)[:80]}"


# Records ---------------------------------------------------------------------------------------------------------

CELLS = {("Standard", "H0"): 0.9, ("Standard", "H6"): 0.4}
CONDITIONS = ("training", "environment")


@cache
def whole_record() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tables = {"steps": [{"line": "3", "loss": 0.5}]}
        made_up.record(Path(folder), made_up.CHAPTER, CONDITIONS, CELLS, trainings=3, tables=tables, claims={"a": "b"})
        path = Path(folder) / made_up.CHAPTER / "laptop-real-seed0.json"
        return path.read_bytes(), path.with_suffix(".parquet").read_bytes()


def put(folder: Path, header: bytes, parquet: bytes, name: str = "laptop-real-seed0") -> Path:
    path = folder / made_up.CHAPTER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header)
    path.with_suffix(".parquet").write_bytes(parquet)
    return path


def told(change: Callable[[dict], object], *expected: str, checksum: bool = False) -> Case:
    """A header that says something else, and whose checksum is of what it says (``checksum``: of what it said)."""

    def case(folder: Path) -> str:
        header, parquet = whole_record()
        plain = json.loads(header)
        if not checksum:
            plain["models"][0]["run"]["seed"] = 0  # as a run of ours has it
        before = json.dumps(plain)
        plain = change(plain) or plain
        assert plain not in (before.encode(), json.loads(before)), "the case changes nothing"
        content = (
            plain if isinstance(plain, bytes) else json.dumps(plain if checksum else made_up.vouched(plain)).encode()
        )
        path = put(folder, content, parquet)
        return refused(lambda: records.read(path), "laptop-real-seed0.json", *expected)

    return case


def shown(change: Callable[[pd.DataFrame], object], *expected: str) -> Case:
    """Other outcomes, with a header that vouches for them."""

    def case(folder: Path) -> str:
        header, parquet = whole_record()
        rows = change(outcomes.decode(parquet))
        content = rows if isinstance(rows, bytes) else outcomes.encode(rows)
        plain = made_up.vouched(json.loads(header) | {"sha256": hashlib.sha256(content).hexdigest()})
        path = put(folder, json.dumps(plain).encode(), content)
        return refused(lambda: records.read(path), "laptop-real-seed0", *expected)

    return case


def model(**changed: object) -> Callable[[dict], object]:
    return lambda h: h["models"][0].update(changed)


def run(**changed: object) -> Callable[[dict], object]:
    return lambda h: h["models"][0]["run"].update(changed)


def images(**changed: object) -> Callable[[dict], object]:
    return lambda h: h["images"][0].update(changed)


def text(change: Callable[[str], str]) -> Callable[[dict], bytes]:
    return lambda h: change(json.dumps(h)).encode()


RECORDS: dict[str, Case] = {
    "another chapter": told(lambda h: h.update(chapter="made/fig2"), "speaks of made/fig2"),
    "no chapter": told(lambda h: h.update(chapter=""), "speaks of"),
    "another profile": told(lambda h: h.update(profile="study"), "should be study-real-seed0"),
    "unknown profile": told(lambda h: h.update(profile="desktop"), "none of smoke"),
    "phantom": told(lambda h: h.update(data="phantom"), "should be laptop-phantom-seed0"),
    "neither real nor phantom": told(lambda h: h.update(data="synthetic"), "neither phantom nor real"),
    "another seed": told(lambda h: h.update(seed=1), "should be laptop-real-seed1"),
    "negative seed": told(lambda h: h.update(seed=-1), "negative seed"),
    "seed in words": told(lambda h: h.update(seed="0"), "not a record"),
    "seed 0.5": told(lambda h: h.update(seed=0.5), "not a record"),
    "seed true": told(lambda h: h.update(seed=True), "not a record"),
    "no day": told(lambda h: h.update(date="yesterday"), "expected a day"),
    "impossible day": told(lambda h: h.update(date="2024-02-31"), "expected a day"),
    "negative seconds": told(lambda h: h.update(seconds=-1.0), "it took -1.0 s"),
    "endless seconds": told(text(lambda t: t.replace('"seconds": 12.5', '"seconds": 1e999')), "laptop-real"),
    "seconds NaN": told(text(lambda t: t.replace('"seconds": 12.5', '"seconds": NaN')), "not a record"),
    "phantoms called real": told(images(name="phantom-cells"), "it calls phantoms real"),
    "trained on phantoms": told(run(real=False), "was trained on phantoms"),
    "no images": told(images(count=0), "expected at least one"),
    "minus five images": told(images(count=-5), "expected at least one"),
    "images of no size": told(images(size=0), "expected at least one"),
    "images twice": told(lambda h: h["images"].append(h["images"][0]), "set of images twice"),
    "a model twice": told(lambda h: h["models"].append(h["models"][0]), "a model twice"),
    "a condition twice": told(lambda h: h.update(conditions=["training", "training"]), "a condition twice"),
    "a condition too many": told(lambda h: h["conditions"].append("reading"), "lack reading"),
    "a condition less": told(lambda h: h["conditions"].pop(), "laptop-real"),
    "a condition called label": told(lambda h: h.update(conditions=["label"]), "names of columns"),
    "a model less": told(lambda h: h["models"].pop() and None, "models beyond its 2"),
    "no models": told(lambda h: h["models"].clear(), "models beyond its 0"),
    "accuracy 9": told(model(accuracy=9.0), "has the accuracy 9.0"),
    "accuracy below 0": told(model(accuracy=-0.1), "has the accuracy -0.1"),
    "trivial 2": told(model(trivial=2.0), "has the trivial 2.0"),
    "negative training": told(model(seed=-3), "negative seed"),
    "another training": told(model(seed=7), "stands for the training 7"),
    "minus test images": told(model(test=-5), "-5 images"),
    "minus training images": told(model(train=-5), "-5 and"),
    "negative training time": told(model(seconds=-2.0), "took -2.0 s"),
    "endless loss": told(text(lambda t: t.replace('"accuracy"', '"losses": [1e999], "accuracy"', 1)), "laptop-real"),
    "endless dose": told(text(lambda t: t.replace('"accuracy"', '"dose": {"c": 1e999}, "accuracy"', 1)), "laptop-real"),
    "a network without a name": told(lambda h: h["models"][0]["run"].pop("model") and None, "which network"),
    "weights without a name": told(lambda h: h["models"][0]["run"].pop("weights") and None, "which network"),
    "a network that is a number": told(run(model=3), "which network"),
    "a model without a key": told(lambda h: h["models"][0].pop("key") and None, "not a record"),
    "another field": told(lambda h: h.update(low=0.2, high=0.1), "not a record"),
    "another field of a model": told(model(effect=3), "not a record"),
    "no models at all": told(lambda h: h.pop("models") and None, "not a record"),
    "no data": told(lambda h: h.pop("data") and None, "not a record"),
    "another version": told(lambda h: h.update(schema=3), "not a record"),
    "null": told(lambda h: b"null", "not a record"),
    "a list": told(lambda h: b"[]", "not a record"),
    "empty": told(lambda h: b" ", "not a record"),
    "no JSON": told(lambda h: b"\xff\xfe", "not a record"),
    "cut": told(text(lambda t: t[: len(t) // 2]), "not a record"),
    "something behind it": told(text(lambda t: t + "{}"), "not a record"),
    "nested without end": told(lambda h: b'{"tables": ' + b'{"a":' * 50_000, "not a record"),
    "a name twice": told(text(lambda t: t.replace('"data": "real"', '"data": "phantom", "data": "real"')), "twice"),
    "a run's name twice": told(text(lambda t: t.replace('"weights"', '"weights": "x", "weights"', 1)), "twice"),
    "a claim twice": told(text(lambda t: t.replace('"a": "b"', '"a": "c", "a": "b"')), "twice"),
    "markup in a set's name": told(images(name="<script>alert(1)</script>"), "markup"),
    "markup in a network": told(run(model="<b>resnet</b>"), "markup"),
    "markup in a table": told(lambda h: h["tables"]["steps"][0].update(line="<img src=x>"), "markup"),
    "markup in a device": told(lambda h: h["environment"].update(device="&lt;b&gt;"), "markup"),
    "markup in a table's name": told(lambda h: h["tables"].update({"<i>": []}), "markup"),
    "a control character": told(images(name="cn\x1bmc"), "markup"),
    "another checksum of outcomes": told(lambda h: h.update(sha256="0" * 64), "sha256"),
    "no checksum of outcomes": told(lambda h: h.update(sha256=""), "sha256"),
    "a number changed": told(model(accuracy=0.91), "does not have the checksum", checksum=True),
    "a claim changed": told(lambda h: h["claims"].update(a="c"), "does not have the checksum", checksum=True),
    "a table changed": told(lambda h: h["tables"].clear(), "does not have the checksum", checksum=True),
    "a checksum changed": told(lambda h: h.update(checksum="0" * 32), "does not have the checksum", checksum=True),
    "an outcome twice": shown(lambda r: pd.concat([r, r[:1]], ignore_index=True), "two outcomes of one model"),
    "label −2": shown(lambda r: r.assign(label=np.int8(-2)), "negative classes"),
    "prediction −2": shown(lambda r: r.assign(prediction=np.int8(-2)), "negative classes"),
    "prediction 0.5": shown(lambda r: r.assign(prediction=0.5), "column prediction holds numbers"),
    "prediction in words": shown(lambda r: r.assign(prediction="yes"), "column prediction holds"),
    "endless margin": shown(lambda r: r.assign(margin=np.float16(np.inf)), "infinite values"),
    "margin in words": shown(lambda r: r.assign(margin="large"), "column margin holds"),
    "no image": shown(lambda r: r.drop(columns="image"), "lack image"),
    "no group": shown(lambda r: r.drop(columns="group"), "lack group"),
    "no model": shown(lambda r: r.drop(columns="model"), "lack model"),
    "model −1": shown(lambda r: r.assign(model=np.int16(-1)), "models beyond"),
    "model 99": shown(lambda r: r.assign(model=np.int16(99)), "models beyond"),
    "model 0.5": shown(lambda r: r.assign(model=0.5), "column model holds numbers"),
    "images are numbers": shown(lambda r: r.assign(image=np.arange(len(r))), "column image holds"),
    "a missing image": shown(lambda r: r.assign(image=r["image"].where(r.index > 0)), "column image holds"),
    "markup in an image": shown(
        lambda r: r.assign(image=r["image"].cat.rename_categories(lambda c: f"<a {c}")), "markup"
    ),
    "markup in a group": shown(
        lambda r: r.assign(group=r["group"].cat.rename_categories(lambda c: f"</p>{c}")), "markup"
    ),
    "no Parquet": shown(lambda r: b"PAR1", "no Parquet file"),
    "empty Parquet": shown(lambda r: b"", "no Parquet file"),
}


def other_name(folder: Path) -> str:
    path = put(folder, *whole_record(), name="laptop-real-seed7")
    return refused(lambda: records.read(path), "it is called laptop-real-seed7")


def a_folder_called_json(folder: Path) -> str:
    (folder / made_up.CHAPTER / "x.json").mkdir(parents=True)
    with mock.patch.object(records, "folder", lambda: folder):
        return refused(lambda: records.of(made_up.CHAPTER), "x.json is not a record")


def no_outcomes(folder: Path) -> str:
    path = put(folder, *whole_record())
    path.with_suffix(".parquet").unlink()
    return refused(lambda: records.read(path), "no outcomes beside it")


def outcomes_are_a_folder(folder: Path) -> str:
    path = put(folder, *whole_record())
    path.with_suffix(".parquet").unlink()
    path.with_suffix(".parquet").mkdir()
    return refused(lambda: records.read(path), "no outcomes beside it")


RECORDS |= {
    f.__name__.replace("_", " "): f for f in (other_name, a_folder_called_json, no_outcomes, outcomes_are_a_folder)
}


def fuzz_records(folder: Path, count: int = 10_000) -> str:
    """Bytes of header or outcomes changed at random: each is refused, or says what it said before."""
    draws, (header, parquet) = random.Random(0), whole_record()
    path = put(folder, header, parquet)
    before = records.read(path)
    for number in range(count):
        content = bytearray(header if number % 4 else parquet)
        for _ in range(draws.choice((1, 1, 1, 2, 8))):
            at = draws.randrange(len(content))
            match draws.randrange(4):
                case 0:
                    content[at] ^= 1 << draws.randrange(8)
                case 1:
                    content[at : at + draws.randrange(1, 30)] = b""
                case 2:
                    content[at:at] = draws.choice((b"0", b'"', b"}", b"-", b"null,", b"1e999", b"\x00", b"<b>"))
                case 3:
                    content[at:at] = content[(k := draws.randrange(len(content))) : k + draws.randrange(40)]
            if not content:
                content = bytearray(b"0")
        target = path if number % 4 else path.with_suffix(".parquet")
        anew(target, content)
        try:
            found = records.read(path)
        except ValueError as error:
            if "laptop-real-seed0" not in str(error):
                return f"raw: case {number}: {error}"
        except Exception as error:
            return f"raw: case {number}: {type(error).__name__}: {error}"
        else:
            if found.header != before.header or not found.outcomes.rows.equals(before.outcomes.rows):
                return f"silent: case {number}"
        anew(target, header if number % 4 else parquet)
    return "clear"


def anew(path: Path, content: bytes) -> None:
    """Write a file that may be there. It is deleted first: a disk is waited for where a file is written over."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


# Models, checkpoints, weights and decoded images -------------------------------------------------------------------

OWN = Run("made", False, 16, None, "image", 1 / 3, "simple_cnn", "scratch", Recipe(epochs=2, batch_size=16), 0)


def blobs(count: int = 48, size: int = 16) -> ImageSet:
    labels = np.arange(count) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (count, 1, size, size)).astype(np.uint8)
    pixels[labels == 1, :, 4:12, 4:12] += 120
    groups = np.arange(count).astype(str)
    return ImageSet("made", pixels, labels, groups, ("a", "b"), False, files.fingerprint(pixels, labels, groups))


def trained(folder: Path) -> Path:
    """A model that was trained there, and its folder."""
    with mock.patch.dict(os.environ, HPAT_HOME=str(folder)):
        return folder / "models" / runs.train_or_load(OWN, images=blobs(), device="cpu").provenance["key"]


def flipped(path: Path, at: float = 0.7) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))  # a disk that forgets tells nobody


def stored(damage: Callable[[Path], object], *expected: str) -> Case:
    """A model that is damaged, and then must be refused, and trained anew to the same weights when asked."""

    def case(folder: Path) -> str:
        where = trained(folder)
        before = {name: tensor.clone() for name, tensor in load_file(where / "model.safetensors").items()}  # unmapped
        damage(where)
        with mock.patch.dict(os.environ, HPAT_HOME=str(folder)):
            found = refused(lambda: runs.train_or_load(OWN, images=blobs(), device="cpu"), str(where), *expected)
            if found != "clear":
                return found
            with mock.patch.dict(os.environ, HPAT_RETRAIN="1"), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                again = runs.train_or_load(OWN, images=blobs(), device="cpu").model.state_dict()
        if not any("trained anew" in str(each.message) for each in said):
            return "silent: trained anew without a word"
        same = all(torch.equal(again[name], tensor) for name, tensor in before.items())
        return "clear" if same else "silent: other weights"

    return case


def with_nan(where: Path) -> None:
    tensors, told_ = training.deserialise(where / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    write(where / "model.safetensors", training.serialise(tensors, told_))


def of_another_run(where: Path) -> None:
    tensors, _ = training.deserialise(where / "model.safetensors")
    write(where / "model.safetensors", training.serialise(tensors, {"key": "another"}))


def without_checksum(where: Path) -> None:
    save_file(load_file(where / "model.safetensors"), where / "model.safetensors")


def changed_run(where: Path) -> None:
    path = where / "run.json"
    path.write_text(
        path.read_text().replace('"accuracy": 0', '"accuracy": 1', 1).replace('"seconds": ', '"seconds": 1', 1)
    )


def damaged_checkpoint(folder: Path) -> str:
    """A training is stopped after its first epoch, its checkpoint is damaged, and it is started again."""
    keep = training._keep

    def stop(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with mock.patch.dict(os.environ, HPAT_HOME=str(folder)):
        try:
            with mock.patch.object(training, "_keep", stop):
                runs.train_or_load(OWN, images=blobs(), device="cpu")
        except KeyboardInterrupt:
            pass
        (checkpoint,) = folder.glob("models/*/checkpoint.safetensors")
        flipped(checkpoint)
        return refused(lambda: runs.train_or_load(OWN, images=blobs(), device="cpu"), str(checkpoint), "HPAT_RETRAIN=1")


def weights(damage: Callable[[Path], object], *expected: str) -> Case:
    def case(folder: Path) -> str:
        path = folder / "tf_efficientnet_lite0.safetensors"
        tensors = {"bn1.bias": torch.zeros(4), "conv_stem.weight": torch.ones(3)}
        save_file(tensors, path)
        (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        damage(path)
        return refused(lambda: models._stored("tf_efficientnet_lite0", path), str(path), *expected)

    return case


def weights_with_nan(path: Path) -> None:
    save_file({"bn1.bias": torch.tensor([float("nan")])}, path)
    (path.parent / "SHA256SUMS").unlink()


def own_folder(folder: Path) -> Path:
    for number in range(6):
        draw(folder / "own" / "ab"[number % 2] / f"{number}.png", number)
    return folder / "own"


def draw(path: Path, seed: int, side: int = 24, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def decoded(damage: Callable[[Path], object]) -> Case:
    """A damaged entry of decoded images, which must be decoded anew, with a word about it, to what it was."""

    def case(folder: Path) -> str:
        where = own_folder(folder)
        load = partial(ImageSet.from_folder, where, size=16, cache=folder / "cache")
        before = load()
        pixels = before.images.copy()
        (entry,) = (path for path in (folder / "cache").iterdir() if path.name != "locks")
        damage(entry)
        files._verified.cache_clear()  # as in another process
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            after = load()
        if not any("decoded anew" in str(each.message) for each in said):
            return "silent: not a word"
        same = (after.images == pixels).all() and (after.labels == before.labels).all()
        return "clear" if same and (after.ids == before.ids).all() else "silent: other images"

    return case


def swapped_labels(entry: Path) -> None:
    path = entry / "about.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": [1, 1, 1, 0, 0, 0]}))


STORED: dict[str, Case] = {
    "a bit of a model": stored(lambda f: flipped(f / "model.safetensors"), "is damaged", "HPAT_RETRAIN=1"),
    "a bit of a model's names": stored(lambda f: flipped(f / "model.safetensors", 0.02), "HPAT_RETRAIN=1"),
    "a model cut short": stored(lambda f: os.truncate(f / "model.safetensors", 900), "damaged"),
    "an empty model": stored(lambda f: os.truncate(f / "model.safetensors", 0), "damaged"),
    "a model that is gone": stored(lambda f: (f / "model.safetensors").unlink(), "missing"),
    "a model with NaN": stored(with_nan, "not finite"),
    "another run's model": stored(of_another_run, "of another run"),
    "a model without a checksum": stored(without_checksum, "no checksum"),
    "a changed provenance": stored(changed_run, "run.json is damaged"),
    "an empty provenance": stored(lambda f: os.truncate(f / "run.json", 0), "run.json is missing, damaged"),
    "a damaged checkpoint": damaged_checkpoint,
    "a bit of weights": weights(flipped, "is damaged"),
    "weights with NaN": weights(weights_with_nan, "not finite"),
    "weights that are none": weights(
        lambda p: (p.write_bytes(b"<html>"), (p.parent / "SHA256SUMS").unlink()), "damaged"
    ),
    "a bit of decoded images": decoded(lambda e: flipped(e / "images.npy")),
    "decoded images cut short": decoded(lambda e: os.truncate(e / "images.npy", 300)),
    "decoded images that are gone": decoded(lambda e: (e / "images.npy").unlink()),
    "swapped labels": decoded(swapped_labels),
    "no about.json": decoded(lambda e: (e / "about.json").unlink()),
    "half an about.json": decoded(lambda e: os.truncate(e / "about.json", 40)),
    "an empty entry": decoded(lambda e: (shutil.rmtree(e), e.mkdir())),
}

# Image files and folders -------------------------------------------------------------------------------------------


def image(make: Callable[[Path], object], *expected: str) -> Case:
    """A hostile file among good ones."""

    def case(folder: Path) -> str:
        where = own_folder(folder)
        make(where / "a" / "odd.png")
        return refused(lambda: ImageSet.from_folder(where, size=16, cache=folder / "cache"), *expected)

    return case


def frames(path: Path) -> None:
    first, *rest = (Image.fromarray(np.full((16, 16), k, np.uint8)) for k in (0, 90, 200))
    first.save(path, save_all=True, append_images=rest)


def saved(side: tuple[int, int], kind: str) -> Callable[[Path], None]:
    return lambda path: Image.new("L", side).save(path, format=kind)


def tiff(path: Path) -> None:
    first, second = (Image.fromarray(np.full((16, 16), k, np.uint8)) for k in (0, 90))
    first.save(path, format="TIFF", save_all=True, append_images=[second])


def eps(path: Path) -> None:
    Image.new("L", (16, 16)).save(path, format="EPS")


def bomb(path: Path) -> None:
    """A few bytes that claim 20,000 × 20,000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


IMAGES: dict[str, Case] = {
    "a pipe": image(os.mkfifo, "odd.png: a pipe"),
    "a socket": image(listens, "odd.png: a pipe"),
    "a device": image(lambda p: p.symlink_to("/dev/zero"), "odd.png: a pipe"),
    "a folder": image(lambda p: p.mkdir(), "odd.png: a pipe"),
    "a link to nothing": image(lambda p: p.symlink_to("nowhere"), "odd.png: unreadable"),
    "a link to itself": image(lambda p: p.symlink_to(p), "odd.png: unreadable"),
    "empty": image(lambda p: p.touch(), "odd.png: unreadable"),
    "text": image(lambda p: p.write_text("hello"), "odd.png: unreadable"),
    "cut short": image(lambda p: (draw(p, 1), os.truncate(p, 200)), "odd.png: unreadable"),
    "1 × 1": image(saved((1, 1), "PNG"), "1×1 pixels"),
    "1 × 5000": image(saved((1, 5000), "PNG"), "1×5000 pixels"),
    "7 × 90": image(saved((7, 90), "PNG"), "7×90 pixels"),
    "400 megapixels": image(bomb, "odd.png", "pixels"),
    "an animation (PNG)": image(frames, "3 frames"),
    "an animation (GIF)": image(lambda p: saved((16, 16), "GIF")(p), "unreadable as BMP"),
    "pages (TIFF)": image(tiff, "2 frames"),
    "an EPS": image(eps, "unreadable as BMP"),
    "a WebP": image(saved((16, 16), "WEBP"), "unreadable as BMP"),
}


def tree(key: str, root: Path) -> None:
    """A small copy of a data set, in its layout."""
    names = {
        "cnmc": [
            f"cnmc/fold_{k}/{c}/UID_{'H' * (c == 'hem')}{10 + k}_1_1_{c}.bmp" for k in (0, 1) for c in ("all", "hem")
        ],
        "busi": [f"busi/D/{c}/{c} ({n}){m}.png" for c in data.busi.CLASSES for n in (1, 2) for m in ("", "_mask")],
        "brain_mri": [
            f"brain_mri/{p}/{k}/{p[:2]}-{k[:2]}_{n:04}.jpg"
            for p in ("Training", "Testing")
            for k in data.brain_mri.KINDS
            for n in (1, 2)
        ],
        "chest_ct": [f"chest_ct/T/{c} cases/{c} case ({n}).jpg" for c in data.chest_ct.CASES for n in (1, 2)],
        "chest_xray": [
            f"chest_xray/x/{p}/{name}.jpeg"
            for p in ("train", "test")
            for name in ("NORMAL/IM-0001-0001", "NORMAL/IM-0002-0001", "PNEUMONIA/person1_virus_1")
        ],
        "natural": [f"natural/imagenet-sample-images/n{n:08}_x.JPEG" for n in (1, 2)],
        "preliminary": [f"cnmc/v/{data.cnmc.PRELIMINARY}/{n}.bmp" for n in (1, 2)],
    }[key]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    if key == "natural":
        rows = ["file,wnid,index,animal", "n00000001_x.JPEG,n00000001,0,yes", "n00000002_x.JPEG,n00000002,1,no"]
        (root / "natural/classes.csv").write_text("\n".join(rows) + "\n")
    if key == "preliminary":
        rows = ["Patient_ID,new_names,labels", "UID_1_1_1_all.bmp,1.bmp,1", "UID_H1_1_1_hem.bmp,2.bmp,0"]
        (root / f"cnmc/v/{data.cnmc.PRELIMINARY}_labels.csv").write_text("\n".join(rows) + "\n")


def listed(key: str, root: Path) -> list[Item]:
    source, part = ("cnmc", "preliminary") if key == "preliminary" else (key, next(iter(data.SOURCES[key].parts)))
    return data.SOURCES[source].parts[part](root / source)


LOADERS = ("cnmc", "busi", "brain_mri", "chest_ct", "chest_xray", "natural", "preliminary")


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_dir())


def layout(key: str, change: Callable[[Path, Path], object], *expected: str) -> Case:
    """A change to a data set: a function of its folder, and of the folder of its first class."""

    def case(folder: Path) -> str:
        tree(key, folder)
        if len(listed(key, folder)) < 2:
            return "raw: the layout is not read"
        inner = min((path for path in folders(folder) if any(p.is_file() for p in path.glob("*[gpG]"))), key=str)
        change(folder / ("cnmc" if key == "preliminary" else key), inner)
        return refused(lambda: listed(key, folder), *expected)

    return case


def closed_case(key: str) -> Case:
    def case(folder: Path) -> str:
        tree(key, folder)
        inner = listed(key, folder)[0].path.parent

        def guarded(look: Callable) -> Callable:
            def at(path: str = ".") -> object:
                if os.fspath(path) == str(inner):  # as `chmod 000` does it, which would not keep root out
                    raise PermissionError(errno.EACCES, "Permission denied", str(inner))
                return look(path)

            return at

        with mock.patch("os.listdir", guarded(os.listdir)), mock.patch("os.scandir", guarded(os.scandir)):
            return refused(lambda: listed(key, folder), str(inner), "cannot be read (Permission denied)")

    return case


def emptied(root: Path, inner: Path) -> None:
    for path in inner.iterdir():
        path.unlink()


def doubled(root: Path, inner: Path) -> None:
    copy = root.parent / "copy"
    shutil.copytree(root, copy)
    tops = [path for path in copy.iterdir() if path.is_dir()]
    source = tops[0] if len(tops) == 1 and not any(p.is_file() for p in tops[0].iterdir()) else copy
    shutil.copytree(source, root / "again")
    shutil.rmtree(copy)


def twin(root: Path, inner: Path) -> None:
    first = min(path for path in inner.iterdir() if "mask" not in path.name)
    shutil.copy(first, first.with_suffix(".png" if first.suffix != ".png" else ".bmp"))


LAYOUTS: dict[str, Case] = {f"{key}: a closed folder": closed_case(key) for key in LOADERS}
for key_ in ("cnmc", "busi", "brain_mri", "chest_ct", "chest_xray"):
    LAYOUTS[f"{key_}: an empty class"] = layout(key_, emptied, "no images")
    LAYOUTS[f"{key_}: a missing class"] = layout(key_, lambda root, inner: shutil.rmtree(inner), "no images")
    LAYOUTS[f"{key_}: the set twice"] = layout(key_, doubled, "more than once")
    LAYOUTS[f"{key_}: an image twice"] = layout(key_, twin)
LAYOUTS["natural: an image twice"] = layout("natural", twin, "under two suffixes")
LAYOUTS["natural: no table"] = layout("natural", lambda root, inner: (root / "classes.csv").unlink(), "no classes")
LAYOUTS["preliminary: an image twice"] = layout("preliminary", twin, "have a twin")
LAYOUTS["preliminary: the set twice"] = layout(
    "preliminary", lambda root, inner: shutil.copytree(root / "v", root / "again"), "more than once"
)


def fuzz_layout(key: str, count: int = 1500) -> Case:
    """Random changes to a data set: it is read to a set with every class, or refused with a path."""

    def case(folder: Path) -> str:
        draws = random.Random(key)
        tree(key, folder)
        whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for number in range(count):
            change(folder, draws)
            try:
                items = listed(key, folder)
            except ValueError as error:
                if str(folder) not in str(error) and "classes.csv" not in str(error):
                    return f"raw: case {number}: {error}"
            except Exception as error:
                return f"raw: case {number}: {type(error).__name__}: {error}"
            else:
                if items and key != "preliminary" and len({item.label for item in items}) < 2:
                    return f"silent: case {number}: a class less"
                if len({item.path for item in items}) < len(items):
                    return f"silent: case {number}: an image twice"
            if draws.random() < 0.4:
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                for name, content in whole.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
        return "clear"

    return case


def change(folder: Path, draws: random.Random) -> None:
    """One random change below ``folder``."""
    there = sorted(path for path in folder.rglob("*") if path.exists() or path.is_symlink())
    if not there:
        return
    path, odd = (
        draws.choice(there),
        draws.choice(("ü (1).png", "x.jpg", "fold_9", "UID_1_1_1_all.bmp", " ", "a\nb.png", "._x.png")),
    )
    beside = path.with_name(odd)
    try:
        match draws.randrange(7):
            case 0:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case 1:
                path.rename(beside)
            case 2:
                shutil.copytree(path, beside) if path.is_dir() else shutil.copy(path, beside)
            case 3:
                os.mkfifo(beside)
            case 4:
                beside.symlink_to(path)
            case 5:
                beside.mkdir()
            case 6:
                if path.is_file():
                    path.write_bytes(draws.randbytes(30))
    except OSError:
        pass


def fuzz_images(folder: Path, count: int = 10_000) -> str:
    """Bytes of image files changed at random: every one is read, or named."""
    draws, seeds = random.Random(0), []
    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(1).integers(0, 256, (12, 12), np.uint8)
        Image.fromarray(pixels).save(buffer, format=kind)
        seeds.append(buffer.getvalue())
    items = []
    for number in range(count):
        content = bytearray(draws.choice(seeds))
        for _ in range(draws.choice((1, 2, 5))):
            content[draws.randrange(len(content))] = draws.randrange(256)
        if draws.random() < 0.2:
            del content[draws.randrange(len(content)) :]
        path = folder / f"{number}.png"
        path.write_bytes(content)
        items.append(Item(path, 0, str(number)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow has much to say about damaged files
        found = refused(lambda: files.decode(items, crop=None, size=8, mode="L", progress=False), "cannot be used")
    return found if found.startswith("raw") else "clear"


FUZZ: dict[str, Case] = {"10,000 records": fuzz_records, "10,000 image files": fuzz_images}
FUZZ |= {f"1,500 layouts of {key}": fuzz_layout(key) for key in LOADERS}

# Disks -------------------------------------------------------------------------------------------------------------

FAULTS = {
    "full": errno.ENOSPC,
    "read-only": errno.EROFS,
    "closed": errno.EACCES,
    "over quota": errno.EDQUOT,
    "broken": errno.EIO,
}


def saves_record(folder: Path) -> None:
    made_up.record(folder / "records", made_up.CHAPTER, CONDITIONS, CELLS, trainings=3)


def trains(folder: Path) -> None:
    runs.train_or_load(OWN, images=blobs(), device="cpu")


def decodes(folder: Path) -> None:
    ImageSet.from_folder(folder / "own", size=16)


WORK = {"a record": saves_record, "a training": trains, "decoded images": decodes}


def disk(work: Callable[[Path], object], call: str, code: int) -> Case:
    """Work on a disk that refuses one system call; afterwards nothing is half there, and the same work succeeds."""

    def case(folder: Path) -> str:
        error = OSError(code, os.strerror(code))
        own_folder(folder)
        with mock.patch.dict(os.environ, HPAT_HOME=str(folder / "home")):
            with mock.patch(f"os.{call}", side_effect=error):
                found = refused(lambda: work(folder), str(folder), os.strerror(code), "make room or allow it")
            if found != "clear":
                return found
            work(folder)
        left = [p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix in (".tmp", ".part")]
        return f"silent: left {left[0].name}" if left else "clear"

    return case


# Every place where a disk may refuse, and every reason it may give; all reasons at one place: test_training.py.
PLACES = [
    (name, work, call)
    for name, work in WORK.items()
    for call in ("fsync", "mkdir", "replace" if work is not decodes else "rename")
]
STORAGE: dict[str, Case] = {
    f"{name}: {fault} at {call}": disk(work, call, FAULTS[fault])
    for (name, work, call), fault in zip(PLACES, itertools.cycle(FAULTS), strict=False)
}


def home_is_a_file(work: Callable[[Path], object]) -> Case:
    def case(folder: Path) -> str:
        own_folder(folder)
        (folder / "home").touch()
        (folder / "records").touch()
        with mock.patch.dict(os.environ, HPAT_HOME=str(folder / "home")):
            return refused(lambda: work(folder), str(folder))

    return case


STORAGE |= {f"{name}: a file where a folder should be": home_is_a_file(work) for name, work in WORK.items()}


def command(*arguments: str, code: int = 1, **environment: str) -> Callable[[Path], str]:
    """A command line that must end in one sentence with a path."""

    def case(folder: Path) -> str:
        (folder / "file").touch()
        os.mkdir(folder / "data")
        where = {name: value.format(folder=folder) for name, value in environment.items()}
        with mock.patch.dict(os.environ, {"HPAT_HOME": str(folder / "home"), **where}):
            found = CliRunner().invoke(cli.app, [part.format(folder=folder) for part in arguments])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            return f"raw: {type(found.exception).__name__}: {found.exception}"
        if found.exit_code != code:
            return f"silent: exit code {found.exit_code}: {found.output[-80:]}"
        return "clear" if str(folder) in found.output else f"raw: {found.output[-200:]}"

    return case


CHAPTER = "ultrasound/fig1_2_image_and_noise"
STORAGE |= {
    "hpat run, HPAT_HOME a file": command("run", CHAPTER, HPAT_HOME="{folder}/file"),
    "hpat run --plain, HPAT_HOME a file": command("run", "--plain", CHAPTER, HPAT_HOME="{folder}/file"),
    "hpat run --output a file": command("run", CHAPTER, "--output", "{folder}/file"),
    "hpat data fetch, HPAT_DATA a file": command("data", "fetch", "breastmnist", HPAT_DATA="{folder}/file"),
}

# Downloads ---------------------------------------------------------------------------------------------------------

BODY = np.random.default_rng(0).bytes(200_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as its path says."""

    def log_message(self, *_: object) -> None:
        """Not a word."""

    def do_GET(self) -> None:
        kind, asked = self.path.strip("/"), self.headers.get("Range")
        if kind in ("403", "404", "500", "503"):
            return self.send_error(int(kind))
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/good")
            return self.end_headers()
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind not in ("all", "elsewhere") else 0
        if begin >= len(BODY):
            return self.send_error(416)
        self.send_response(206 if asked and kind != "all" else 200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "application/octet-stream")
        body = {"other": BODY[::-1], "page": b"<html>log in</html>"}.get(kind, BODY)[begin:]
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        if asked and kind != "all":
            self.send_header("Content-Range", f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        if kind in ("short", "stall", "once") and not (asked and kind == "once"):
            body = body[: len(body) // 2]
        try:
            self.wfile.write(body)
            if kind == "stall":
                self.wfile.flush()
                time.sleep(2)
        except OSError:
            pass


@cache
def server() -> str:
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{listener.server_port}"


def fetched(kind: str, *expected: str, checksum: str = MD5) -> Case:
    def case(folder: Path) -> str:
        path = folder / "sets" / "one.npz"
        found = refused(
            lambda: download(f"{server()}/{kind}", path, checksum=checksum, timeout=0.5), str(path), *expected
        )
        return "silent: a file is there" if path.exists() else found

    return case


def resumed(kind: str) -> Case:
    """After half of it, the rest alone is asked for; a server that sends all of it again is as good."""

    def case(folder: Path) -> str:
        path = folder / "one.npz"
        broken = refused(lambda: download(f"{server()}/once", path, checksum=MD5), "ended after 100000 of 200000 bytes")
        if broken != "clear" or path.with_name("one.npz.part").stat().st_size != 100_000:
            return f"raw: {broken}"
        download(f"{server()}/{kind}", path, checksum=MD5)
        return "clear" if path.read_bytes() == BODY and len(list(folder.iterdir())) == 1 else "silent: other bytes"

    return case


def no_such_host(folder: Path) -> str:
    """As a resolver answers that knows no such name; this machine's own may be slow, or know every name."""
    with mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known")):
        return refused(lambda: download("http://nowhere.invalid/x", folder / "x"), "Fetching http", "not known")


def put_in_place(folder: Path) -> str:
    """A process died when all had been received, before the file had its name: there is nothing more to ask for."""
    path = folder / "one.npz"
    path.with_name("one.npz.part").write_bytes(BODY)
    download(f"{server()}/good", path, checksum=MD5)
    return "clear" if path.read_bytes() == BODY and len(list(folder.iterdir())) == 1 else "silent: other bytes"


def archive(fill: Callable[[zipfile.ZipFile], object], *expected: str) -> Case:
    def case(folder: Path) -> str:
        path = folder / "set.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("set/one.txt", "one")
            fill(packed)
        found = refused(lambda: unpack(path, folder / "deep" / "set"), str(path), *expected)
        left = [each for each in folder.rglob("*") if each != path and each.is_file()]
        return f"silent: wrote {left[0]}" if left else found

    return case


def link(packed: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("set/link")
    entry.external_attr = 0o120777 << 16
    packed.writestr(entry, "/etc/passwd")


def huge(packed: zipfile.ZipFile) -> None:
    with packed.open("set/zeros", "w") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))


def bombed(folder: Path) -> str:
    with mock.patch("hpatlib.data.download.MOST", 10 << 20):
        return archive(huge, "expected at most")(folder)


def cut_archive(folder: Path) -> str:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("one.txt", "one" * 1000)
    os.truncate(path, path.stat().st_size // 2)
    return refused(lambda: unpack(path, folder / "set"), "no whole zip archive")


DOWNLOADS: dict[str, Case] = {
    "403": fetched("403", "403"),
    "404": fetched("404", "404"),
    "503": fetched("503", "503"),
    "a page": fetched("page", "answers with a page"),
    "another file": fetched("other", "sends another file"),
    "too short": fetched("short", "Fetching http", "ended after 100000 of 200000 bytes"),
    "too short, without a checksum": fetched("short", "ended after", checksum=""),
    "it stalls": fetched("stall", "Fetching http", "timed out"),
    "to another host": fetched("redirect", "redirects to http://localhost"),
    "nobody there": lambda folder: refused(lambda: download("http://127.0.0.1:9/x", folder / "x"), "Fetching http"),
    "no such host": no_such_host,
    "goes on": resumed("good"),
    "starts again": resumed("all"),
    "was all there": put_in_place,
    "an archive that climbs": archive(lambda z: z.writestr("../../out.txt", "x"), "outside its folder"),
    "an archive of absolute paths": archive(lambda z: z.writestr("/tmp/out.txt", "x"), "outside its folder"),
    "an archive for Windows": archive(lambda z: z.writestr("C:\\out.txt", "x"), "outside its folder"),
    "an archive with a link": archive(link, "holds a link"),
    "an archive that explodes": bombed,
    "half an archive": cut_archive,
}

QUICK: dict[str, dict[str, Case]] = {
    "records": RECORDS,
    "models, weights, caches": STORED,
    "image files": IMAGES,
    "layouts": LAYOUTS,
    "storage": STORAGE,
    "downloads": DOWNLOADS,
    "fuzz": FUZZ,
}

# Kills and races ---------------------------------------------------------------------------------------------------

TINY = """---
kernelspec: {name: python3, display_name: Python 3}
---

# A chapter that trains

```{code-cell} ipython3
:tags: [parameters]

profile = "smoke"
data = None
seed = 0
```

```{code-cell} ipython3
import hashlib
from hpatlib.runs import Run, train_or_load
from hpatlib.training import Recipe, serialise

recipe, said = Recipe(epochs=2, batch_size=16), hashlib.sha256()
for number in (seed, OWN):
    run = Run("cnmc", False, 32, 96, "patient", 1 / 3, "simple_cnn_bn", "scratch", recipe, number)
    said.update(serialise(train_or_load(run, device="cpu").model.state_dict()))
print("weights", said.hexdigest())
```
"""
# All of the book's engine but Sphinx, which takes minutes: what comes before it and behind it finds what it needs.
SPHINX = re.compile(r'"\(cd _build/source && \{BOOK:q\} build .*\) && "')
STAND_IN = (
    '"mkdir -p _build/html/_static/scripts && sleep 1 && '
    'touch _build/html/index.html _build/html/_static/scripts/fontawesome.js && "'
)


def tiny_checkout(folder: Path, chapters: int = 2) -> Path:
    """A checkout under a path with spaces and other letters, whose library has no documents; each of its chapters
    trains a model that all share, and one of its own."""
    root = folder / "a b" / "ünï"
    names = [f"notebooks/made/fig{number}" for number in range(1, chapters + 1)]
    for number, name in enumerate(names, 1):
        write(root / f"{name}.md", TINY.replace("OWN", str(number)).encode())
    listed = {"root": "book/index", "parts": [{"chapters": [{"file": f"{name}.ipynb"} for name in names]}]}
    write(root / "book/_toc.yml", json.dumps(listed).encode())
    for name in ("_config.yml", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "workflow", root / "workflow")
    shutil.copytree(ROOT / "hpatlib", root / "hpatlib", ignore=shutil.ignore_patterns("published.toml"))
    engine = root / "workflow/Snakefile"
    text, found = SPHINX.subn(STAND_IN, engine.read_text("utf-8"))
    assert found == 1
    engine.write_text(text, "utf-8")
    return root


def hpat(root: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command of ours in a session of its own, as a terminal would have it."""
    environment = {**os.environ, "HPAT_HOME": str(home), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a start compiles 3,000 modules where none has kept them
    return subprocess.Popen(
        [sys.executable, "-m", "hpatlib", *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def digest(notebook: Path) -> str:
    """What an executed chapter says about its weights, wherever a progress bar stood then; empty where it does not."""
    found = re.search(r"weights ([0-9a-f]{64})", notebook.read_text("utf-8"))
    return found[1] if found else ""


def leftovers(*folders: Path) -> list[Path]:
    """What an unbroken run does not leave."""
    odd = (".failed.ipynb", ".input.ipynb", ".tmp", ".part", "checkpoint.safetensors")
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    hidden = (path for path in found if path.name.startswith(".") or str(path).endswith(odd))
    return [path for path in hidden if ".snakemake" not in path.parts]


def result(process: subprocess.Popen[str], notebooks: list[Path], weights: list[str], *folders: Path) -> str:
    """Whether the last run of all went on by itself, to what an unbroken run gives."""
    said, _ = process.communicate(timeout=900)
    if process.returncode:
        return f"raw: exit code {process.returncode}: {said[-400:]}"
    if [digest(path) for path in notebooks] != weights or "" in weights:
        return "silent: other weights"
    left = leftovers(*folders)
    return f"silent: left {left[0]}" if left else "clear"


def at_work(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether a process has not ended by itself after so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


# Of the time that an unbroken run takes: what goes on has less before it, and one that ends first was not killed.
MOMENTS = (0.1, 0.75)


def kill_chapters(folder: Path, kills: int) -> Iterator[tuple[str, str]]:
    """A chapter is killed at random moments, each time from where the last one came to, and then ends by itself; again
    from nothing, until it was killed ``kills`` times, every other time without Jupyter."""
    root, home, draws = tiny_checkout(folder, 1), folder / "home", random.Random(0)
    started = time.monotonic()
    whole = result(hpat(root, folder / "whole", "run", "made/fig1"), [], [], folder / "whole")
    took = time.monotonic() - started
    notebook = "chapters/smoke-default-seed0/made/fig1.ipynb"
    yield "a run that is not killed", whole
    if whole != "clear":
        return
    weights = [digest(folder / "whole" / notebook)]
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    killed = 0
    while killed < kills:
        shutil.rmtree(home, ignore_errors=True)
        for _ in range(min(5, kills - killed)):
            process = hpat(root, home, "run", "made/fig1", *(["--plain"] if killed % 2 else []))
            if not at_work(process, draws.uniform(*MOMENTS) * took):
                break
            process.send_signal(signals[killed % 5])
            process.wait(60)
            killed += 1
            yield f"kill {killed} of a chapter", "clear"
        yield f"after kill {killed}", result(hpat(root, home, "run", "made/fig1"), [home / notebook], weights, home)


def race_chapters(folder: Path, several: int = 3) -> Iterator[tuple[str, str]]:
    """One chapter several times at once: all end well, and who waits says for whom."""
    root = tiny_checkout(folder, 1)
    racing = [hpat(root, folder / "home", "run", "made/fig1") for _ in range(several)]
    said = [process.communicate(timeout=900)[0] for process in racing]
    for number, process in enumerate(racing, 1):
        yield f"run {number} of {several} at once", f"raw: {said[number - 1][-300:]}" if process.returncode else "clear"
    named = sum("is being run by process" in each for each in said)
    left = leftovers(folder / "home")
    yield "they wait and name each other", "clear" if named == several - 1 and not left else f"silent: {named}, {left}"


def kill_books(folder: Path, kills: int) -> Iterator[tuple[str, str]]:
    """A book of two chapters is stopped at random moments, each time from where the last one came to; then one more
    `hpat book` builds it by itself. Again from nothing, until it was stopped ``kills`` times."""
    root, home, draws = tiny_checkout(folder), folder / "home", random.Random(0)
    started = time.monotonic()
    whole = result(hpat(root, folder / "whole", "book"), [], [], folder / "whole")
    took = time.monotonic() - started
    yield "a book that is not stopped", whole
    if whole != "clear":
        return
    notebooks = [root / f"_build/run/smoke-default/made/fig{n}.ipynb" for n in (1, 2)]
    weights = [digest(path) for path in notebooks]
    kinds, killed = ("SIGKILL", "all at once", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"), 0
    while killed < kills:
        shutil.rmtree(root / "_build", ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
        for _ in range(min(6, kills - killed)):
            process, kind = hpat(root, home, "book"), kinds[killed % 6]
            if not at_work(process, draws.uniform(*MOMENTS) * took):
                break
            started = [process.pid, *below(process.pid)]
            if kind == "all at once":  # as where the power fails
                for each in started:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
            else:
                process.send_signal(getattr(signal, kind))
            process.wait(300)
            killed += 1
            alive = [] if kind == "SIGKILL" else outliving(started, 10)
            yield f"{kind} to a book", f"silent: left {len(alive)} processes running" if alive else "clear"
        again = hpat(root, home, "book")
        yield f"the book after kill {killed}", result(again, notebooks, weights, root / "_build/run", home / "models")
    yield "the book once more", result(hpat(root, home, "book"), notebooks, weights, root / "_build/run")


def below(pid: int) -> list[int]:
    """The processes that a process has started, and they."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True).stdout.split()
    parents = list(zip(map(int, found[::2]), map(int, found[1::2]), strict=True))
    children = [child for child, parent in parents if parent == pid]
    return [*children, *(each for child in children for each in below(child))]


def outliving(pids: list[int], seconds: float) -> list[int]:
    """Which of the processes are there after so many seconds; none as soon as all have ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        there = subprocess.run(["ps", "-e", "-o", "pid=,stat="], capture_output=True, text=True).stdout.splitlines()
        running = {int(pid) for pid, state in map(str.split, there) if not state.startswith("Z")}
        if running.isdisjoint(pids):
            return []
        time.sleep(0.1)
    return sorted(running.intersection(pids))


def race_books(folder: Path) -> Iterator[tuple[str, str]]:
    """Two books at once: the second waits for the first, and says how to stop it."""
    root = tiny_checkout(folder)
    racing = [hpat(root, folder / "home", "book") for _ in range(2)]
    said = [process.communicate(timeout=900)[0] for process in racing]
    fine = all(process.returncode == 0 for process in racing)
    yield "two books end well", "clear" if fine else f"raw: {said}"
    named = sum("another hpat book is at work here" in each and "stops it" in each for each in said)
    yield "the second waits, and says for whom", "clear" if named == 1 else f"silent: {said}"
    chapter = root / "notebooks/made/fig1.md"
    chapter.write_text(chapter.read_text("utf-8").replace("import hashlib", "1 / 0"), "utf-8")
    book = hpat(root, folder / "home", "book")
    while book.stdout.readline()[:7] not in ("Execute", ""):
        """Until the chapter runs."""
    book.stdout.close()
    ended = not at_work(book, 300) and book.returncode
    book.kill()
    yield "a chapter fails where nobody reads any more", "clear" if ended else "silent: the book waits for ever"


SLOW: dict[str, Callable[[Path, int], Iterator[tuple[str, str]]]] = {
    "kills of the book": kill_books,
    "kills of a chapter": kill_chapters,
    "races of the book": lambda folder, kills: race_books(folder),
    "races of a chapter": lambda folder, kills: race_chapters(folder),
}


def tried(section: str, kills: int) -> tuple[list[tuple[str, str]], float]:
    """What became of each case of a section, and the seconds that they took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what a case looks at it records itself
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands start as in a terminal, whatever started us
    started, found = time.monotonic(), []
    if section in SLOW:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found = list(SLOW[section](Path(folder).resolve(), kills))
    for name, case in QUICK.get(section, {}).items():
        with tempfile.TemporaryDirectory() as folder:
            found.append((name, case(Path(folder).resolve())))
    return found, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no kills and no races")
    parser.add_argument("--kills", type=int, default=30, help="of the book, and of a chapter [30]")
    parser.add_argument("--only", default="", help="sections whose name begins so")
    options = parser.parse_args()
    sections = [name for name in (*(() if options.quick else SLOW), *QUICK) if name.startswith(options.only)]
    started, total, problems = time.monotonic(), [0, 0, 0, 0], []

    def row(name: str, *cells: object) -> None:
        print(f"{name:26}" + "".join(f"{each:>9}" for each in cells), flush=True)

    row("", "tried", "clear", "silent", "raw", "seconds")
    with ProcessPoolExecutor(2) as pool:  # a section waits much and computes little
        for section, (found, seconds) in zip(
            sections, pool.map(partial(tried, kills=options.kills), sections), strict=True
        ):
            kinds = [outcome.split(":")[0] for _, outcome in found]
            counts = [len(found), *map(kinds.count, ("clear", "silent", "raw"))]
            total = [a + b for a, b in zip(total, counts, strict=True)]
            row(section, *counts, round(seconds))
            problems += [f"{section}: {name}: {outcome}" for name, outcome in found if outcome != "clear"]
    row("all", *total, round(time.monotonic() - started))
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
