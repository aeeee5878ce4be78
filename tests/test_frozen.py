"""A frozen copy answers as the model does, whatever the model; and does not where that cannot be."""

import copy

import pytest
import timm
import torch
from torch import nn

from hpatlib import attacks, models
from hpatlib.assimilation import Assimilated, Replicated
from hpatlib.frozen import ROUNDING, TOLERANCE, frozen
from hpatlib.mixbn import MixBatchNorm2d, branch, convert_mixbn

close = {"atol": 1e-4, "rtol": 0}


@torch.no_grad()
def lived(model: nn.Module) -> nn.Module:
    """``model`` with batch norms as training leaves them: a fold that drops a part of one would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.weight.uniform_(0.5, 1.0, generator=generator)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def build(name: str, size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return lived(models.build(name, 2, size=size, weights="scratch"))


LEFT = {"densenet121": 62, "densenet201": 102}  # norms before a ReLU and a convolution stand where they were


@pytest.mark.parametrize("name", models.MODELS)
def test_answers_as_the_model_does_and_folds_every_norm(name):
    model, images = build(name, 64), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, training = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    copied = frozen(model)
    found = copied(images)
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(found, model.eval()(images).detach(), **close)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert norms(copied) == LEFT.get(name, 0)


def test_gradients_of_the_input_are_the_models():
    model, images = build("tf_efficientnet_lite0").eval(), torch.rand(2, 3, 32, 32)
    labels = torch.tensor([0, 1])
    grads = []
    for network in (model, frozen(model)):
        x = images.clone().requires_grad_()
        grads.append(torch.autograd.grad(network(x)[:, 0].sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3 * grads[0].abs().max().item())
    both = [attacks.fgsm(network, images, labels, eps=0.01) for network in (model, frozen(model))]
    assert (both[0] - both[1]).abs().gt(1e-6).float().mean() < 0.01


@pytest.mark.parametrize("side", ["clean", "adv"])
def test_mixbn_becomes_its_active_branch(side, images):
    model = convert_mixbn(build("simple_cnn_bn")).eval()
    model = lived(model)
    images = torch.rand(4, 3, 32, 32)
    with branch(model, side):
        copied, expected = frozen(model), model(images).detach()
    torch.testing.assert_close(copied(images), expected, **close)
    assert norms(copied) == 0 and model.backbone[1].branch == "clean"
    with branch(model, "mix"), pytest.raises(ValueError, match="found mix"):
        frozen(model)
    next(m for m in model.modules() if isinstance(m, MixBatchNorm2d)).branch = "adv"
    with pytest.raises(ValueError, match="found adv, clean"):
        frozen(model)


@pytest.mark.parametrize("front", [Assimilated, Replicated])
def test_fronts_stay(front):
    model = front(build("simple_cnn_bn")).eval()
    if front is Assimilated:
        nn.init.normal_(model.colour.propose[-1].weight, std=0.1)
    images = torch.rand(4, 1, 32, 32)
    copied = frozen(model)
    torch.testing.assert_close(copied(images), model(images).detach(), **close)
    assert norms(copied) == 0
    with pytest.raises(ValueError, match="grey images"):
        copied(images.expand(-1, 3, -1, -1))


class Odd(nn.Module):
    """What a fold must keep away from: a convolution with two readers, with two callers, or with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.scaled = timm.layers.ScaledStdConv2d(3, 3, 3, padding=1)
        self.hooked = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.own = nn.BatchNorm2d(3, track_running_stats=False)
        self.folds = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False))
        self.head = nn.Linear(3 * 64, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if x.mean() < -1e6:  # a way that depends on what it sees
            x = -x
        return self.head(self.features(x).view(len(x), -1))

    def features(self, x):
        x = self.norms[0](self.twice(x)) + self.twice(x)
        inner = self.read(x)
        x = self.norms[1](inner) + inner
        x = self.norms[2](self.scaled(x))
        x = self.norms[3](self.hooked(x))
        return self.folds(self.own(x))


class Straight(Odd):
    """The same without the question, so that it can be traced."""

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1))


@pytest.mark.parametrize("kind", [Odd, Straight])
def test_a_module_never_seen_works(kind):
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for module in model.norms:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    seen = []
    model.hooked.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.rand(5, 3, 8, 8)
    copied, expected = frozen(model), model(images).detach()
    calls = model.calls
    torch.testing.assert_close(copied(images), expected, **close)
    assert norms(copied) == 5 and len(seen) >= 2 and model.calls == calls  # of six, only the last one is folded
    assert copied.plain is None


def test_later_training_of_the_model_changes_nothing(model, images):
    copied, expected = frozen(model), model(images).detach()
    with torch.no_grad():
        model[0].weight.add_(1)
    torch.testing.assert_close(copied(images), expected, **close)
    assert not copied.train().training and not any(module.training for module in copied.modules())
    torch.testing.assert_close(copied(images), expected, **close)
    torch.testing.assert_close(frozen(copied)(images), expected, **close)


def test_works_in_inference_mode_and_can_be_attacked_after_it(model, images, labels):
    with torch.inference_mode():
        copied = frozen(model)
        copied(images)
    assert attacks.fgsm(copied, images, labels, eps=0.1).shape == images.shape


def test_other_answers_are_named(model, images):
    copied = frozen(model)
    with torch.no_grad():
        copied.network[0].weight.mul_(1.1)  # as a fold that went wrong would leave it
    with pytest.raises(RuntimeError, match="answers otherwise than Sequential"):
        copied(images)


def test_what_rounding_does_to_the_network_too_is_no_other_answer(images):
    """Features that are all but constant, of which what follows enlarges the last digits."""
    torch.manual_seed(0)
    shape = (8, 14, 14)
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(shape, 1e-12))
    network = nn.Sequential(features, nn.Flatten(), nn.Linear(8 * 14 * 14, 2)).eval()
    with torch.no_grad():
        features[0].weight.mul_(1e-5)
        features[0].bias.fill_(1)
        features[1].running_mean.fill_(0.3)
        features[1].running_var.fill_(0.7)
        expected, answers = network(images), frozen(network)(images)
        exact = copy.deepcopy(network).double()(images.double())
        least = TOLERANCE * (1 + expected.abs().max())
        assert (answers - expected).abs().max() > least  # else this tests nothing
        own, copied = ((said - exact).abs().amax(dim=1) for said in (expected, answers))
        assert (copied <= (ROUNDING * own).clamp(min=least)).all()
        wrong = frozen(network)
        wrong.network[2].bias.add_(20 * own.max())
    with pytest.raises(RuntimeError, match="answers otherwise"):
        wrong(images)


def test_compiling_answers_the_same_or_says_why_it_cannot(model, images, monkeypatch):
    copied = frozen(model, compiled=True)
    monkeypatch.setattr(copied.network, "_compiled_call_impl", torch.compile(copied.network.forward, backend="eager"))
    torch.testing.assert_close(copied(images), model(images).detach(), **close)
    torch.testing.assert_close(copied(images[:1]), model(images[:1]).detach(), **close)

    def broken(*_):
        raise OSError("no compiler")

    copied = frozen(model, compiled=True)
    monkeypatch.setattr(copied.network, "_compiled_call_impl", broken)
    with pytest.raises(RuntimeError, match="leave out compiled=True"):
        copied(images)
