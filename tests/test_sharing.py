"""Several processes train one model: with two of them, on gloo, the weights are those of one."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from hpatlib import _sharing, runs
from hpatlib.data import ImageSet
from hpatlib.hybrid import Adversary
from hpatlib.mixbn import convert_mixbn
from hpatlib.spatial import Box, local_search, random_search
from hpatlib.training import Recipe, fit

fabric = pytest.importorskip("lightning_fabric")

RECIPE = Recipe(epochs=2, batch_size=9, patience=5, augment="turns")
ADVERSARY = Adversary(
    eps=8 / 255, step=4 / 255, iterations=2, start="gaussian", translation=3, rotation=180, evaluations=14, warmup=1
)


@pytest.fixture(autouse=True)
def a_thread_each(monkeypatch):
    """More threads than cores wait for each other, for minutes in a test of seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Exact(nn.Module):
    """In double precision, where another order of sums moves nothing that an attack decides by."""

    def __init__(self, mixbn: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 2))
        self.body = (convert_mixbn(body) if mixbn else body).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.double())


def toy(count: int, seed: int) -> ImageSet:
    random, labels = np.random.default_rng(seed), np.arange(count) % 2
    images = (random.integers(0, 120, (count, 3, 16, 16)) + 90 * labels[:, None, None, None]).astype(np.uint8)
    return ImageSet("toy", images, labels, labels.astype(str), ("dark", "bright"), False, "f00d")


def trained(mixbn: bool, together: "fabric.Fabric | None" = None) -> tuple[list[dict[str, float]], dict]:
    """Batches of 9 images, which two cannot halve, and a last one of a single image, which two cannot share."""
    model = Exact(mixbn)
    rows = fit(model, toy(28, 0), RECIPE, attack=ADVERSARY, validation=toy(70, 1), seed=4, fabric=together)
    return [{name: row[name] for name in row if name != "seconds"} for row in rows], {
        name: tensor.numpy()
        for name, tensor in model.state_dict().items()  # which travels between processes whole
    }


def both(together: "fabric.Fabric") -> list:
    return [trained(mixbn, together) for mixbn in (False, True)]


@pytest.mark.parametrize("search", [random_search, partial(random_search, sobol=True), local_search])
def test_searches_draw_for_a_share_what_one_process_draws_for_all(search):
    data = toy(9, 0)
    images, labels = data.tensors()
    model, box = Exact(mixbn=False).eval(), Box(2.0, 90.0)

    def asked(share: slice) -> torch.Tensor:
        draws = torch.Generator().manual_seed(5)
        return search(model, images[share], labels[share], box, evaluations=6, generator=draws).s

    whole = asked(slice(0, 9))
    token = _sharing._share.set((slice(4, 9), 9))
    try:
        assert torch.equal(asked(slice(4, 9)), whole[4:])
    finally:
        _sharing._share.reset(token)


def run_by_two(function):
    """What ``function(fabric)`` returns in the first of two processes."""
    return fabric.Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(function)


def test_two_processes_make_the_weights_of_one_with_and_without_mixbn():
    for mixbn, (rows, weights) in zip((False, True), run_by_two(both), strict=True):
        alone_rows, alone = trained(mixbn)
        assert [row.keys() for row in rows] == [row.keys() for row in alone_rows]
        assert [[*row.values()] for row in rows] == [pytest.approx([*row.values()], abs=1e-6) for row in alone_rows]
        for name, array in alone.items():
            np.testing.assert_allclose(weights[name], array, rtol=1e-6, atol=1e-7, err_msg=name)


def kept(together, run: runs.Run) -> tuple[dict, dict]:
    """What is said of a run when two processes train it, and when they find it trained."""
    return tuple(runs.train_or_load(run, fabric=together).provenance for _ in range(2))


def test_two_processes_keep_one_model_where_one_process_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    recipe = Recipe(epochs=1, batch_size=32)
    run = runs.Run(
        "cnmc", False, 32, 96, "patient", 1 / 3, "simple_cnn_bn", "scratch", recipe, 0, static="mixed", static_eps=0.05
    )
    made, found = run_by_two(partial(kept, run=run))
    assert made == found == runs.train_or_load(run).provenance
    assert made["device"].endswith(", 2 processes") and made["parent"]
    assert sorted(path.name for path in (tmp_path / "models" / made["key"]).iterdir()) == [
        "model.safetensors",
        "run.json",
    ]


def test_another_precision_than_the_key_stands_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    run = runs.Run("cnmc", False, 32, 96, "patient", 1 / 3, "simple_cnn", "scratch", Recipe(), 0)
    half = fabric.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    with pytest.raises(ValueError, match=r"single precision makes them, found bf16-mixed: pass Fabric"):
        runs.train_or_load(run, fabric=half)
