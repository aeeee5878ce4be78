"""The code on the book's pages runs as it stands there."""

import re
from pathlib import Path

import torch

BOOK = Path(__file__).parents[1] / "book"


def test_your_own_model_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))
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
    assert len(scans) == 90 and len(list((tmp_path / "home" / "models").iterdir())) == 1
    assert not set(trained.train.ids) & set(trained.test.ids)
    clean = trained.model(names["pixels"]).argmax(dim=1) == names["truth"]
    worst, eps = names["worst"], names["eps"]
    assert not (worst.right & ~clean).any() and torch.equal(eps == 0, ~clean)
