"""The training loop: what it learns, resumes and refuses; files that are whole or absent."""

import errno
import math
import os
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib import training
from hpatlib._files import StorageError, write
from hpatlib.data import ImageSet
from hpatlib.models import build
from hpatlib.training import Recipe, _check_alive, fit


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


def test_a_last_batch_of_one_is_left_out_only_where_batch_norm_refuses_it():
    data, recipe = bright_or_dark(33), Recipe(epochs=2, batch_size=16)
    for attack, steps in ((None, 2), (lambda model, images, labels: images, 3)):  # an attack makes two of one
        torch.manual_seed(0)
        model = build("simple_cnn_bn", 2, size=16, weights="scratch")
        before = torch.get_rng_state()
        rows = fit(model, data, recipe, attack=attack)
        assert torch.equal(torch.get_rng_state(), before)
        counts = {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
        assert counts == {2 * steps} and all(0 <= row["accuracy"] <= 1 for row in rows)
    model = tiny()
    fit(model, data, recipe)
    assert model[1].num_batches_tracked == 2 * 3


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


def test_an_attack_of_each_epoch_is_asked_for_by_its_number_also_where_a_training_goes_on(tmp_path):
    class Growing:
        """Darkens by a tenth more an epoch, and dies in epoch ``dies``."""

        def __init__(self, dies: int | None = None) -> None:
            self.dies, self.asked = dies, []

        def at(self, epoch):
            self.asked.append(epoch)

            def darker(model, images, labels):
                if epoch == self.dies:
                    raise KeyboardInterrupt
                return images * (1 - epoch / 10)

            return darker

        def __call__(self, model, images, labels):
            return images

    data, recipe, checkpoint = bright_or_dark(), Recipe(epochs=3, batch_size=32), tmp_path / "checkpoint.safetensors"
    whole, resumed, constant = tiny(), tiny(), tiny()
    growing = Growing()
    fit(whole, data, recipe, attack=growing)
    assert growing.asked == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, data, recipe, attack=Growing(dies=1), checkpoint=checkpoint)
    later = Growing()
    fit(resumed, data, recipe, attack=later, checkpoint=checkpoint)
    assert later.asked == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    fit(constant, data, recipe, attack=lambda model, images, labels: images)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), constant.parameters(), strict=True))


def seen(augment: str | None, *, epochs: int = 1, count: int = 64) -> list[torch.Tensor]:
    """Every image that a training showed to its model: one picture without any symmetry, ``count`` times an epoch."""
    shown = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                shown.extend(images.clone())
            return self.head(images.flatten(1))

    images = np.tile(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), np.uint8), (count, 1, 1, 1))
    labels = np.arange(count) % 2
    data = ImageSet("one", images, labels, labels.astype(str), ("a", "b"), False, "f00d")
    fit(Watched(), data, Recipe(epochs=epochs, batch_size=16, augment=augment))
    return shown


@pytest.mark.parametrize(("augment", "symmetries"), [(None, 1), ("flips", 2), ("turns", 8)])
def test_augmentation_shows_the_symmetries_it_names_equally_often(augment, symmetries):
    """The oracle is NumPy's: quarter turns of the picture and of its mirror image."""
    shown = np.stack([image.numpy() for image in seen(augment, count=256)])
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), np.uint8)[0].astype(np.float32) / 255
    group = [np.rot90(side, turn, (1, 2)) for turn in range(4) for side in (picture, picture[:, :, ::-1])]
    expected = {None: group[:1], "flips": group[:2], "turns": group}[augment]
    counts = [int((np.abs(shown - one).max(axis=(1, 2, 3)) < 1e-6).sum()) for one in expected]
    assert sum(counts) == 256 and len(counts) == symmetries and min(counts) > 256 / symmetries / 2


def test_augmentation_differs_from_epoch_to_epoch_and_not_from_run_to_run():
    first, again = torch.stack(seen("turns", epochs=2)), torch.stack(seen("turns", epochs=2))
    assert torch.equal(first, again) and not torch.equal(first[:64], first[64:])


class Dead(nn.Module):
    """Answers every image alike, whatever it learns: what is left of a network none of whose units fires."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(images), 2)


def unequal(data: ImageSet) -> ImageSet:
    """Two of three images are class 0."""
    return data.subset(np.flatnonzero(np.arange(len(data)) % 4 != 1))


def unchanged(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return images


@pytest.mark.parametrize("attack", [None, unchanged])
@pytest.mark.parametrize("data", [bright_or_dark(), unequal(bright_or_dark())], ids=["balanced", "unequal"])
@pytest.mark.parametrize(("epochs", "stops"), [(2, None), (3, 3), (60, 60), (120, 100), (240, 120)])
def test_a_dead_training_stops_after_half_of_its_epochs_once_a_slow_start_would_be_over(data, attack, epochs, stops):
    steps, model = [], Dead()
    model.register_forward_pre_hook(lambda module, _: steps.append(1) if module.training else None)
    recipe = Recipe(epochs=epochs, batch_size=len(data))
    if stops is None:
        fit(model, data, recipe, attack=attack)
        return
    with pytest.raises(ValueError, match=r"nothing was learned in \d+ epochs: .* of a guess .*; lower lr=0\.001"):
        fit(model, data, recipe, attack=attack)
    assert len(steps) == stops


def beside_a_constant(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(images)
    return 0.1 * F.cross_entropy(logits, labels) + 7, logits


def test_a_dead_training_stops_whatever_its_loss_is_made_of_and_a_live_one_does_not():
    data = bright_or_dark()
    recipe = Recipe(epochs=60, batch_size=len(data), lr=0.01)
    with pytest.raises(ValueError, match=r"nothing was learned in 30 epochs: the loss is 0\.6931, of a guess 0\.6931"):
        fit(Dead(), data, recipe, objective=beside_a_constant)
    rows = fit(tiny(), data, recipe, objective=beside_a_constant)
    assert rows[-1]["accuracy"] > 0.9
    for row in rows:
        assert row["loss"] == pytest.approx(0.1 * row["cross_entropy"] + 7)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    data, checkpoint = bright_or_dark(), tmp_path / "checkpoint.safetensors"
    fit(tiny(), data, Recipe(epochs=1, batch_size=32), seed=3, checkpoint=checkpoint)
    kept = checkpoint.read_bytes()
    for changed in ({"seed": 4}, {"recipe": Recipe(epochs=1, batch_size=32, lr=0.1)}, {"data": data.subset(range(40))}):
        asked = {"data": data, "recipe": Recipe(epochs=1, batch_size=32), "seed": 3} | changed
        with pytest.raises(ValueError, match=r"belongs to another training \(.*seed 3, .*name another file"):
            fit(tiny(), **asked, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == kept


def test_a_checkpoint_does_not_revive_a_dead_training(tmp_path):
    data, steps, model = bright_or_dark(), [], Dead()
    model.register_forward_pre_hook(lambda module, _: steps.append(1) if module.training else None)
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing was learned"):
            fit(model, data, Recipe(epochs=240, batch_size=len(data)), checkpoint=tmp_path / "checkpoint")
    assert len(steps) == 120


@pytest.mark.parametrize(
    ("losses", "accuracies", "dead"),
    [
        ([0.6931] * 4, [0.5, 0.52, 0.48, 0.5], True),
        ([0.6931] * 3, [0.5] * 3, False),  # half of eight epochs are four
        ([0.6931, 0.6931, 0.6931, 0.69], [0.5] * 4, False),  # a slow start
        ([0.71, 0.70, 0.695, 0.69], [0.5, 0.5, 0.5, 0.6], False),  # a late one: more are right than by guessing
        ([1.4] * 4, [0.9] * 4, False),  # an adversary too strong: clean images are still told apart
        ([0.2, 0.7, 0.6931, 0.6931, 0.6931], [0.9, 0.5, 0.5, 0.5, 0.5], True),  # fell dead later
        ([0.2, 0.4, 0.6931, 0.6931, 0.6931], [0.9, 0.8, 0.5, 0.5, 0.5], False),
    ],
)
def test_signs_of_life(losses, accuracies, dead):
    rows = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in zip(losses, accuracies, strict=True)]
    with pytest.raises(ValueError, match="nothing was learned") if dead else nullcontext():
        _check_alive(rows, 8, np.arange(400) % 2, Recipe(), halves=1)


def test_a_training_without_gain_stops_and_ends_with_its_best_epoch(monkeypatch):
    losses, data, model, best = iter([0.5, 0.3, 0.4, 0.35]), bright_or_dark(), tiny(), tiny()
    monkeypatch.setattr(training, "_cross_entropy", lambda *_: next(losses))
    rows = fit(model, data, Recipe(epochs=9, batch_size=16, patience=2), validation=data)
    assert [row["validation_loss"] for row in rows] == [0.5, 0.3, 0.4, 0.35]
    fit(best, data, Recipe(epochs=2, batch_size=16))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), best.state_dict().values(), strict=True))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_every_refusal_of_a_disk_is_one_sentence(code, tmp_path):
    refused = mock.patch("os.fsync", side_effect=OSError(code, os.strerror(code)))
    with refused, pytest.raises(StorageError, match=rf"{os.strerror(code)}.*make room or allow it"):
        write(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_bad_recipes_and_empty_sets_are_refused():
    whole = "must be a whole number of at least 1, found"
    for name, wrong in (("epochs", 0), ("epochs", True), ("patience", 0), ("batch_size", 2.5), ("decay_every", "1")):
        with pytest.raises(ValueError, match=f"{name} {whole} {wrong!r}"):
            Recipe(**{name: wrong})
    for name, wrong in (("lr", math.nan), ("lr", math.inf), ("lr", "0.1"), ("decay", 0), ("front_lr", -1e-3)):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, found {wrong!r}"):
            Recipe(**{name: wrong})
    with pytest.raises(ValueError, match="unknown augment 'zoom': choose one of flips, turns, or None"):
        Recipe(augment="zoom")
    with pytest.raises(ValueError, match="empty"):
        fit(tiny(), bright_or_dark(4).subset([]), Recipe(epochs=1))
    with pytest.raises(ValueError, match="loss of epoch 1"):
        model = tiny()
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        fit(model, bright_or_dark(8), Recipe(epochs=1))


@pytest.mark.parametrize("side", ["training", "validation"])
def test_labels_without_a_class_are_named_before_the_first_step(side):
    """On a GPU they would be an assertion of the device, after which nothing works."""
    good = bright_or_dark(8)
    wrong = ImageSet("toy", good.images, good.labels + 2, good.groups, ("a", "b", "c", "d"), False, "f00d")
    model = tiny()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"labels 2, 3, but the model answers with 2 classes, 0…1"):
        if side == "training":
            fit(model, wrong, Recipe(epochs=1))
        else:
            fit(model, good, Recipe(epochs=1, patience=1), validation=wrong)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_numpy_numbers_are_numbers():
    recipe = Recipe(np.int64(2), np.int32(8), np.float64(1e-3), patience=np.int8(1))
    assert recipe == Recipe(2, 8, 1e-3, patience=1) and type(recipe.batch_size) is int
    data = bright_or_dark(16)
    rows = [
        fit(tiny(), data, Recipe(*counts), seed=seed) for counts, seed in (((1, 8), 3), ((1, np.int64(8)), np.int64(3)))
    ]
    assert rows[0][0]["loss"] == rows[1][0]["loss"]


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "a" / "file"
    write(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(target, b"new")
    assert target.read_bytes() == b"old" and [path.name for path in target.parent.iterdir()] == ["file"]
