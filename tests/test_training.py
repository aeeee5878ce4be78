"""The training loop and what keeps its results: resume, locks, keys."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from torch import nn

from hpatlib import runs, training
from hpatlib._files import write
from hpatlib.data import ImageSet
from hpatlib.training import Recipe, fit


def tiny(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(392, 2)
    )


def bright_or_dark(count: int = 96, seed: int = 0) -> ImageSet:
    """Bright images are class 1: learnable in a few steps."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = (random.integers(0, 120, (count, 3, 16, 16)) + 90 * labels[:, None, None, None]).astype(np.uint8)
    return ImageSet("toy", images, labels, labels.astype(str), ("dark", "bright"), False, "f00d")


def test_fit_learns_and_reports_an_epoch_a_row():
    model, data = tiny(), bright_or_dark()
    rows = fit(model, data, Recipe(epochs=3, batch_size=16))
    images, labels = data.tensors()
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.95
    assert [set(row) for row in rows] == [{"loss", "accuracy", "seconds"}] * 3
    assert rows[-1]["loss"] < rows[0]["loss"] and not model.training


def test_a_stopped_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    recipe, data = Recipe(epochs=4, batch_size=32, decay_every=2), bright_or_dark()
    whole = tiny(dropout=0.3)
    fit(whole, data, recipe, seed=5)

    class Stopped(Exception):
        pass

    calls = iter(range(100))

    def stopping(model, images, labels):  # stops in the middle of the third epoch
        if next(calls) == 7:
            raise Stopped
        return images

    def harmless(model, images, labels):
        return images

    whole_twice = tiny(dropout=0.3)
    fit(whole_twice, data, recipe, seed=5, attack=harmless)
    resumed, checkpoint = tiny(dropout=0.3), tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stopped):
        fit(resumed, data, recipe, seed=5, attack=stopping, checkpoint=checkpoint)
    other = tiny(dropout=0.3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()  # what it starts from must not matter
    rows = fit(other, data, recipe, seed=5, attack=harmless, checkpoint=checkpoint)
    assert len(rows) == 4
    for name, tensor in whole_twice.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_the_learning_rate_decays_in_steps(monkeypatch):
    seen = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    fit(tiny(), bright_or_dark(32), Recipe(epochs=4, batch_size=32, lr=1e-2, decay=0.1, decay_every=2))
    assert seen == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])


def test_training_leaves_the_callers_random_numbers_alone():
    model = tiny(dropout=0.5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit(model, bright_or_dark(32), Recipe(epochs=1))
    assert torch.equal(torch.rand(1), expected)


def test_adversarial_training_adds_the_loss_on_attacked_images():
    data, recipe = bright_or_dark(64), Recipe(epochs=1, batch_size=64)
    clean = fit(tiny(), data, recipe)[0]["loss"]
    both = fit(tiny(), data, recipe, attack=lambda model, images, labels: images)[0]["loss"]
    assert both == pytest.approx(2 * clean, rel=1e-5)  # the mixture of a batch with itself has its statistics


def test_bad_recipes_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="positive"):
        Recipe(epochs=0)
    with pytest.raises(ValueError, match="empty"):
        fit(tiny(), bright_or_dark(4).subset([]), Recipe(epochs=1))
    with pytest.raises(ValueError, match="loss of epoch 1"):
        model = tiny()
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        fit(model, bright_or_dark(8), Recipe(epochs=1))


@pytest.fixture
def run(monkeypatch, tmp_path) -> runs.Run:
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    recipe = Recipe(epochs=1, batch_size=32)
    return runs.Run("cnmc", False, 32, 160, "patient", 1 / 3, "simple_cnn", "scratch", recipe, 0)


def test_a_run_is_trained_once_and_loaded_ever_after(run, monkeypatch):
    first = runs.train_or_load(run, device="cpu")
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    second = runs.train_or_load(run, device="cpu")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
    assert first.provenance == second.provenance and first.provenance["data"]["test"] == len(first.test)
    assert not second.model.training


def test_a_half_written_model_is_trained_again(run, tmp_path):
    key = runs.train_or_load(run, device="cpu").provenance["key"]
    (tmp_path / "models" / key / "run.json").unlink()
    assert runs.train_or_load(run, device="cpu").provenance["key"] == key
    assert not (tmp_path / "models" / key / "checkpoint.safetensors").exists()


def _train(home: str, run: runs.Run, queue) -> None:
    os.environ["HPAT_HOME"] = home
    torch.set_num_threads(1)
    calls, fit_ = [], training.fit
    training.fit = lambda *args, **kwargs: (calls.append(1), fit_(*args, **kwargs))[1]
    runs.train_or_load(run, device="cpu")
    queue.put(len(calls))


def test_of_two_processes_one_trains_and_the_other_waits(run, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_train, args=(str(tmp_path), run, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    trained = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(trained) == [0, 1]


def test_the_key_follows_from_what_decides_a_run_and_from_nothing_else(run, tmp_path):
    from dataclasses import replace

    key = runs.key(run, "f00d")
    assert key == runs.key(replace(run), "f00d")
    changed = [replace(run, seed=1), replace(run, size=64), replace(run, recipe=Recipe(epochs=2))]
    assert len({key, runs.key(run, "beef"), *(runs.key(other, "f00d") for other in changed)}) == 5


def test_comments_and_docstrings_are_not_part_of_the_source_hash():
    bare = "def f(x):\n    return x + 1\n"
    told = '"""Module."""\n\n\ndef f(x):\n    """Adds one."""\n    # why\n    return x + 1\n'
    assert runs._meaning(bare) == runs._meaning(told) != runs._meaning(bare.replace("1", "2"))


def test_the_source_hash_covers_packages_and_tells_modules_apart():
    assert len({runs.source(), runs.source("data"), runs.source("attacks"), runs.source("stbo")}) == 4


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "a" / "file"
    write(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(target, b"new")
    assert target.read_bytes() == b"old" and [path.name for path in target.parent.iterdir()] == ["file"]
