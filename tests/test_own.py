"""The code on the book's pages runs as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from hpatlib import data
from hpatlib.data import ImageSet

BOOK = Path(__file__).parents[1] / "book"


def test_your_own_model_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))
    # What the page itself sets goes away with the test.
    monkeypatch.setitem(data.SOURCES, "scans", None)
    for name in ("HPAT_DATA", "HPAT_RECORDS"):
        monkeypatch.setenv(name, str(tmp_path))
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", (BOOK / "own.md").read_text("utf-8"), re.M | re.S)
    names: dict = {}
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 13, "about ten lines each"
        exec(compile(block, "own.md", "exec"), names)
    accuracy = {
        name: (names["model"](names[name]).argmax(dim=1) == names["labels"]).float().mean().item()
        for name in ("images", "noisy", "turned")
    }
    assert accuracy["images"] > 0.7 and max(accuracy["noisy"], accuracy["turned"]) < accuracy["images"] / 2
    scans, trained = names["scans"], names["trained"]
    assert (
        len(scans) == 90
        and trained.train.real
        and scans.fingerprint != ImageSet.from_folder("scans", size=64).fingerprint
    )
    record = names["record"]
    assert record.real and [images.name for images in record.header.images] == ["scans"] and len(record.outcomes.rows)
    assert not any(tmp_path.glob("home/records/*")) and any(tmp_path.glob("records/hpat/*"))
    assert not set(trained.train.ids) & set(trained.test.ids)
    clean = trained.model(names["pixels"]).argmax(dim=1) == names["truth"]
    worst, eps = names["worst"], names["eps"]
    assert not (worst.right & ~clean).any() and torch.equal(eps == 0, ~clean)


def test_add_a_document(tmp_path):
    """The files of the page, written into a copy of the library, are a document that is listed, locked and run."""
    page = (BOOK / "add_document.md").read_text("utf-8")
    files = re.findall(r"^(`{3,})\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)^\1$", page, re.M | re.S)
    shutil.copytree(BOOK.parent / "hpatlib", tmp_path / "hpatlib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "_config.yml").touch()
    for _, name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    around = os.environ | {"PYTHONPATH": str(tmp_path), "HPAT_HOME": str(tmp_path / "home")}

    def hpat(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "hpatlib", *words]
        return subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True)

    assert hpat("verify").returncode == 3  # not written down yet
    assert hpat("claims", "--lock").stdout == "written down anew: turns-cost\n"
    assert "turns-cost  not yet tested" in hpat("claims", "--document", "turns").stdout
    assert "turns/fig1_turns  Figure 1: what does a turn cost?" in hpat("list").stdout
    ran = hpat("run", "turns/fig1_turns", "--plain", "--profile", "smoke")
    assert ran.returncode == 0, ran.stderr
    assert "networks beat the largest class: True" in ran.stdout
    assert hpat("verify").returncode in (0, 10)
