"""MixBN: the branches are the batch norms they came from, 'mix' is two passes in one, and nothing else changes."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpatlib import attacks, models, training
from hpatlib.data import load
from hpatlib.hybrid import Adversary, environment
from hpatlib.mixbn import MixBatchNorm2d, branch, convert_mixbn, mixed, strip

WITH_NORM = ["resnet50", "densenet121", "densenet201", "seresnext50_32x4d", "efficientnet_b3", "tf_efficientnet_lite0"]


@pytest.fixture
def mixed_model(model) -> nn.Module:
    """The shared small classifier with MixBN whose branches differ, as they do after training."""
    converted = convert_mixbn(model)
    with torch.no_grad():
        for module in converted.modules():
            if isinstance(module, MixBatchNorm2d):
                module.adv.weight.mul_(1.5)
                module.adv.bias.add_(0.3)
                module.adv.running_mean.add_(0.2)
    return converted.eval()


def randomised(name: str) -> nn.Module:
    """A backbone whose batch norms have statistics and affine weights that a mix-up would show."""
    torch.manual_seed(0)
    built = models.build(name, 2, weights="scratch")
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                if module.weight.abs().max() == 0:  # timm starts the last norm of a block at 0
                    module.weight.fill_(0.5)
    return built.eval()


@pytest.mark.parametrize("name", WITH_NORM)
def test_conversion_leaves_the_logits_as_they_were(name):
    built, images = randomised(name), torch.rand(2, 3, 64, 64)
    before = copy.deepcopy(built.state_dict())
    converted = convert_mixbn(built)
    with torch.no_grad():
        expected = built(images)
        for side in ("clean", "adv"):
            with branch(converted, side):
                torch.testing.assert_close(converted(images), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(strip(converted, side)(images), expected, atol=1e-6, rtol=0)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in built.modules())
    assert sum(isinstance(m, MixBatchNorm2d) for m in converted.modules()) == norms > 0
    assert not mixed(built) and all(torch.equal(built.state_dict()[key], before[key]) for key in before)
    shared = {t.data_ptr() for t in built.state_dict().values()} & {
        t.data_ptr() for t in converted.state_dict().values()
    }
    assert not shared  # no tensor, running statistics included, is aliased
    assert strip(converted, "adv").state_dict().keys() == built.state_dict().keys()


@pytest.mark.parametrize("name", ["vgg16", "simple_cnn"])
def test_models_without_batch_norm_are_refused(name):
    with pytest.raises(ValueError, match="no batch norm"):
        convert_mixbn(models.build(name, 2, weights="scratch"))


def test_bad_uses_are_refused(model, mixed_model, images):
    with pytest.raises(ValueError, match="has MixBN already"):
        convert_mixbn(mixed_model)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        convert_mixbn(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match="no MixBN"), branch(model, "adv"):
        pass
    with pytest.raises(ValueError, match="no MixBN"):
        strip(model, "clean")
    with pytest.raises(ValueError, match="only"):
        strip(mixed_model, "mix")
    with pytest.raises(ValueError, match="unknown branch"), branch(mixed_model, "main"):
        pass
    with pytest.raises(ValueError, match="found a batch of 3"), branch(mixed_model, "mix"):
        mixed_model(images[:3])


class Siblings(nn.Module):
    """One norm in two places of a model, and once more inside a block that itself stands in two."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), self.first)] * 2)

    def forward(self, x):
        for part in (self.first, *self.blocks, self.second):
            x = part(x)
        return x


def test_a_norm_in_two_places_is_converted_once_and_stays_one(images):
    model = Siblings().train()
    model(images)
    model.eval()
    converted = convert_mixbn(model)
    assert not any(type(module) is nn.BatchNorm2d for module in (converted.first, converted.second))
    assert converted.first is converted.second is converted.blocks[0][1] is converted.blocks[1][1]
    assert sum(isinstance(module, MixBatchNorm2d) for module in converted.modules()) == 1
    plain = strip(converted, "adv")
    assert plain.first is plain.second is plain.blocks[1][1] and not mixed(plain)
    assert plain.state_dict().keys() == model.state_dict().keys()
    with branch(converted, "adv"), torch.no_grad():
        torch.testing.assert_close(converted(images), model(images))
        torch.testing.assert_close(plain(images), model(images))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(3),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        timm.layers.EvoNorm2dB0(3),
        timm.layers.FrozenBatchNormAct2d(3),
        timm.layers.SplitBatchNorm2d(3, num_splits=2),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_running_statistics_that_both_branches_would_share_are_named(norm):
    with pytest.raises(ValueError, match=f"found {type(norm).__name__}"):
        convert_mixbn(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), norm))


def test_norms_without_running_statistics_may_stay():
    others = nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), timm.layers.LayerNorm2d(3), timm.layers.EvoNorm2dS0(3, groups=1)
    assert mixed(convert_mixbn(nn.Sequential(nn.BatchNorm2d(3), *others)))


def test_a_block_ends_with_each_norm_where_it_was(mixed_model):
    first = next(m for m in mixed_model.modules() if isinstance(m, MixBatchNorm2d))
    first.branch = "adv"
    with pytest.raises(KeyError), branch(mixed_model, "mix"):
        with branch(mixed_model, "clean"):
            assert first.branch == "clean"
        assert first.branch == "mix"
        raise KeyError
    assert [m.branch for m in mixed_model.modules() if isinstance(m, MixBatchNorm2d)] == ["adv", "clean"]


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@settings(max_examples=15, deadline=None)
@given(half=st.integers(2, 5), seed=st.integers(0, 99), training_mode=st.booleans())
def test_mix_is_two_passes_in_outputs_gradients_and_statistics(half, seed, training_mode):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None)]
    together = convert_mixbn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 16, 2))).double()
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    together.train(training_mode)
    apart = copy.deepcopy(together)
    clean, adversarial = torch.rand(2, half, 3, 8, 8, dtype=torch.float64)
    with branch(together, "mix"):
        out = together(torch.cat([clean, adversarial]))
    with branch(apart, "clean"):
        first = apart(clean)
    with branch(apart, "adv"):
        second = apart(adversarial)
    torch.testing.assert_close(out, torch.cat([first, second]))
    out.square().sum().backward()
    (first.square().sum() + second.square().sum()).backward()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for (name, one), other in zip(together.state_dict().items(), apart.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_mix_is_timms_split_batch_norm():
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(5), torch.randn(8, 5, 6, 6)
    ours, theirs = MixBatchNorm2d(norm).train(), timm.layers.SplitBatchNorm2d(5, num_splits=2).train()
    ours.branch = "mix"
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.clean.running_var, theirs.running_var)
    torch.testing.assert_close(ours.adv.running_mean, theirs.aux_bn[0].running_mean)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_the_sum_is_equation_10(act):
    torch.manual_seed(0)
    norm = timm.layers.BatchNormAct2d(3, act_layer=act).eval()
    layer, clean, adversarial = MixBatchNorm2d(norm).eval(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        layer.adv.weight.mul_(2)
    layer.branch = "sum"

    def normalised(x, copy_of):
        return F.batch_norm(x, copy_of.running_mean, copy_of.running_var, copy_of.weight, copy_of.bias, eps=copy_of.eps)

    expected = act()(normalised(clean, layer.clean) + normalised(adversarial, layer.adv))
    found = layer(torch.cat([clean, adversarial]))
    torch.testing.assert_close(found, torch.cat([expected, expected]))


def test_the_sum_ties_an_image_to_its_partner_and_mix_does_not(mixed_model, images):
    other = images.flip(0)
    for name, tied in (("sum", True), ("mix", False)):
        with branch(mixed_model, name), torch.no_grad():
            first, second = (mixed_model(torch.cat([images, partner]))[: len(images)] for partner in (images, other))
        assert (not torch.allclose(first, second)) is tied


def test_stripped_models_answer_as_the_branch_did_and_share_nothing(mixed_model, images):
    for side in ("clean", "adv"):
        plain = strip(mixed_model, side)
        with branch(mixed_model, side), torch.no_grad():
            expected = mixed_model(images)
            assert torch.equal(plain(images), expected)
            plain[0].weight.zero_()
            assert torch.equal(mixed_model(images), expected)
        assert not mixed(plain)


@pytest.mark.parametrize("side", ["clean", "adv"])
def test_attacks_go_through_the_chosen_branch_and_leave_it_chosen(mixed_model, images, labels, side):
    settings_ = {"eps": 0.1, "step": 0.02, "iterations": 5, "start": None}
    before = copy.deepcopy(mixed_model.state_dict())
    with branch(mixed_model, side):
        found = attacks.pgd(mixed_model, images, labels, **settings_)
        assert all(m.branch == side for m in mixed_model.modules() if isinstance(m, MixBatchNorm2d))
    assert torch.equal(found, attacks.pgd(strip(mixed_model, side), images, labels, **settings_))
    assert all(torch.equal(before[key], value) for key, value in mixed_model.state_dict().items())


class Spy:
    """An adversary that notes through which branch, in which mode, it sees the model."""

    def __init__(self):
        self.seen = set()

    def __call__(self, model, images, labels):
        norms = [m for m in model.modules() if isinstance(m, MixBatchNorm2d)]
        self.seen |= {norm.branch for norm in norms}
        return 1 - images


def test_training_attacks_through_adv_and_sends_each_half_through_its_own():
    torch.manual_seed(0)
    model = convert_mixbn(models.build("resnet18", 2, weights="scratch"))
    data, spy = load("cnmc", real=False, size=32, count=16), Spy()
    (row,) = training.fit(model, data, training.Recipe(epochs=1, batch_size=16), attack=spy)
    assert spy.seen == {"adv"} and set(row) == {"loss", "accuracy", "adversarial_accuracy", "seconds"}
    assert all(m.branch == "clean" for m in model.modules() if isinstance(m, MixBatchNorm2d))
    first = next(m for m in model.modules() if isinstance(m, MixBatchNorm2d))
    # Black cells on white have other statistics than white cells on black: each branch has seen one of the two.
    images, _ = data.tensors()
    with torch.no_grad():
        built = strip(model, "clean")
        features = {
            name: built.backbone.conv1((x - model.mean) / model.std)
            for name, x in (("clean", images), ("adv", 1 - images))
        }
    for name, feature in features.items():
        own, other = (getattr(first, n).running_mean for n in (name, {"clean": "adv", "adv": "clean"}[name]))
        expected = 0.1 * feature.mean(dim=(0, 2, 3))
        assert (own - expected).abs().mean() < (other - expected).abs().mean()


def test_an_adversary_is_pgd_then_one_transform(model, images, labels):
    box = {"translation": 2.0, "rotation": 30.0, "evaluations": 4}
    torch.manual_seed(0)
    fgsm = Adversary(eps=0.1, step=0.1)(model, images, labels)
    assert torch.equal(fgsm, attacks.fgsm(model, images, labels, eps=0.1))
    both = Adversary(eps=0.1, step=0.1, **box)(model, images, labels)
    assert both.shape == images.shape and both.min() >= 0 and both.max() <= 1
    turned = Adversary(**box)(model, images, labels)

    def loss(x):
        return F.cross_entropy(model(x), labels)

    assert loss(turned) >= loss(images) and loss(both) >= loss(fgsm)


def test_line_8_as_printed_searches_after_every_step(model, images, labels, monkeypatch):
    from hpatlib import hybrid

    searched = []

    def counted(model, images, labels, **given):
        searched.append(given["evaluations"])
        return images

    monkeypatch.setattr(hybrid, "stbo", counted)
    box = {"translation": 2.0, "rotation": 30.0, "evaluations": 4}
    pixel = {"eps": 6 / 255, "step": 1 / 255, "iterations": 6, "start": "gaussian"}
    Adversary(**pixel, **box)(model, images, labels)
    assert searched == [4]
    Adversary(**pixel, **box, literal=True)(model, images, labels)
    assert searched == [4] * 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "change nothing"),
        ({"eps": 0.1, "step": 0.1, "literal": True}, "needs both"),
        ({"evaluations": 5, "literal": True}, "needs both"),
        ({"eps": 0.1}, "step > 0"),
        ({"eps": 0.1, "step": 0}, "step > 0"),
        ({"evaluations": 5}, "needs room"),
        ({"eps": 0.1, "step": 0.1, "evaluations": 5}, "needs room"),
        ({"eps": -0.1, "step": 0.1}, "eps must .* found -0.1"),
        ({"eps": float("nan"), "step": 0.1}, "eps must .* found nan"),
        ({"eps": 0.1, "step": -0.1}, "step must .* found -0.1"),
        ({"eps": 0.1, "step": float("nan")}, "step must .* found nan"),
        ({"eps": 0.1, "step": 0.1, "iterations": 0}, "iterations must .* found 0"),
        ({"evaluations": -5, "rotation": 30}, "evaluations must .* found -5"),
        ({"evaluations": 5, "rotation": -30}, "rotation must .* found -30"),
        ({"evaluations": 5, "translation": float("nan")}, "translation must .* found nan"),
        ({"eps": 0.1, "step": 0.1, "warmup": -1}, "warmup must .* found -1"),
    ],
)
def test_adversaries_without_meaning_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Adversary(**given)


def test_an_adversary_that_warms_up_goes_through_the_environments():
    whole = environment(6, size=64)
    same = {"start": "gaussian", "evaluations": 12, "translation": whole.box.translation, "rotation": 180.0}
    hybrid = Adversary(eps=whole.eps, step=whole.step, iterations=whole.iterations, **same, warmup=5)
    for epoch in range(5):
        now, place = hybrid.at(epoch), environment(epoch + 1, size=64)
        assert (now.eps, now.step) == (pytest.approx(place.eps), pytest.approx(place.step))
        assert now.iterations == place.iterations and now.warmup == 0
        assert (now.translation, now.rotation) == (pytest.approx(place.box.translation), place.box.rotation)
        assert (now.start, now.evaluations) == ("gaussian", 12)  # what is no range stays
    assert hybrid.at(5) is hybrid.at(99) is hybrid
    slow = Adversary(eps=6 / 255, step=6 / 255, warmup=11)  # FGSM's one step never leaves its ball
    assert [slow.at(k).step for k in range(11)] == [slow.at(k).eps for k in range(11)]
    assert slow.at(0).eps == pytest.approx(0.5 / 255)
    assert replace(hybrid, warmup=0).at(0) == replace(hybrid, warmup=0)
