"""Grad-CAM, attended area, loss slices and sharpness: equal to closed forms, and without a trace in the model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpatlib.attacks import fgsm, gradient
from hpatlib.explain import (
    area_above,
    attention,
    attention_area,
    curvature,
    landscape,
    last_feature_map,
    sharpness,
)
from hpatlib.models import Normalized, build

EPS = 0.05


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Attention


class Pooled(nn.Module):
    """Convolution, ReLU, mean over positions, linear: where Grad-CAM is the class activation map, weight · features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


@pytest.mark.parametrize("chosen", [True, False])
def test_grad_cam_of_a_pooled_model_is_its_class_activation_map(chosen, images, labels):
    model = Pooled()
    found = attention(model, images, labels, layer=model.features if chosen else None)
    with torch.no_grad():
        maps = torch.einsum("bk,bkhw->bhw", model.head.weight[labels], model.features(images)).relu()
        maps = F.interpolate(maps[:, None], size=(16, 16), mode="bilinear")[:, 0]
    expected = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.shape == (6, 16, 16) and found.min() >= 0 and found.max() == 1 and not found.requires_grad


def library(model, layer, images, labels):
    from pytorch_grad_cam import GradCAM  # slow to import
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model=model, target_layers=[layer]) as cam:
        return torch.from_numpy(cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in labels]))


@pytest.mark.parametrize("name", ["resnet18", "simple_cnn", "tf_efficientnet_lite0"])
def test_equal_to_pytorch_grad_cam(name):
    torch.manual_seed(0)
    model = build(name, 2, size=64, weights="scratch").eval()
    images, labels = torch.rand(4, 3, 64, 64, generator=generator()), torch.tensor([0, 1, 0, 1])
    found = attention(model, images, labels)
    expected = library(model, last_feature_map(model, images[:1]), images, labels)
    # The library stretches each map to [0, 1] from both ends, ours keeps 0 where it is.
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close((found - low) / (high - low).clamp_min(1e-7), expected, atol=1e-5, rtol=0)
    assert (found.amax(dim=(1, 2)) == 1).any()


def test_without_labels_the_predicted_class_is_asked_about(model, images):
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    assert torch.equal(attention(model, images), attention(model, images, predicted))


def test_each_image_has_its_own_map(model, images, labels):
    together = attention(model, images, labels)
    torch.testing.assert_close(attention(model, images[2:3], labels[2:3]), together[2:3], atol=1e-6, rtol=0)


def test_nothing_in_favour_of_the_class_is_zero_everywhere(images):
    model = Pooled()
    nn.init.constant_(model.head.weight, -1.0)
    maps = attention(model, images)
    assert (maps == 0).all() and attention_area(maps).isnan().all() and area_above(maps).isnan().all()


def test_a_uniform_map_stays_uniform():
    model = Pooled()
    nn.init.constant_(model.features[0].weight, 0.0)
    nn.init.constant_(model.features[0].bias, 1.0)
    nn.init.constant_(model.head.weight, 1.0)
    maps = attention(model, torch.rand(2, 3, 16, 16))
    assert (maps == 1).all() and (attention_area(maps) == 0.5).all() and (area_above(maps) == 1).all()


class InPlace(Pooled):
    def forward(self, images):
        return self.head(F.relu_(self.features[0](images)).mean(dim=(2, 3)))


def test_a_layer_whose_output_is_overwritten_is_read_before_that(images, labels):
    model = InPlace()
    found = attention(model, images, labels, layer=model.features[0])
    before = model.features[0](images).detach()
    slope = (before > 0).double().mean(dim=(2, 3)) * model.head.weight[labels].detach()  # α up to a factor
    maps = torch.einsum("bk,bkhw->bhw", slope.float(), before).relu()
    maps = F.interpolate(maps[:, None], size=(16, 16), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12), atol=1e-5, rtol=0)


def test_the_layer_is_the_last_that_tells_places_apart():
    model = build("resnet18", 2, weights="scratch")
    assert last_feature_map(model, torch.rand(1, 3, 64, 64)) is model.backbone.layer4
    assert last_feature_map(model, torch.rand(1, 3, 32, 32)) is model.backbone.layer3
    deep = build("tf_efficientnet_lite0", 2, weights="scratch").backbone
    assert last_feature_map(deep, torch.rand(1, 3, 64, 64)) is deep.bn2
    assert last_feature_map(deep, torch.rand(1, 3, 32, 32)) is deep.blocks[4]  # not a layer inside blocks[5]
    small = build("simple_cnn", 2, size=64, weights="scratch")
    assert last_feature_map(small, torch.rand(1, 3, 64, 64)) is small.backbone[8]


def test_attention_names_bad_input(model, images, labels):
    with pytest.raises(ValueError, match=r"layer must be a module of the model, found a Conv2d"):
        attention(model, images, layer=nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match=r"\[B, K, h, w\], found \[6, 3\]"):
        attention(model, images, layer=model[-1])
    with pytest.raises(ValueError, match=r"pass layer="):
        attention(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), images)
    with pytest.raises(ValueError, match="found 1…3"):
        attention(model, images, labels + 1)
    with pytest.raises(ValueError, match=r"\[0, 1\], found values from"):
        attention(model, images * 255)
    twice = nn.Conv2d(3, 3, 3)
    with pytest.raises(ValueError, match=r"once in a forward pass, found 2 times"):
        attention(nn.Sequential(twice, twice, nn.Flatten(), nn.Linear(432, 3)), images, layer=twice)


# Areas


def test_areas_in_closed_form():
    uniform, single = torch.full((1, 4, 8), 0.3), torch.zeros(1, 4, 8)
    single[0, 1, 2] = 0.1
    maps = torch.cat([uniform, single])
    assert attention_area(maps).tolist() == [0.5, 1 / 32]
    assert attention_area(maps, share=0.25).tolist() == [0.25, 1 / 32]
    assert attention_area(maps, share=0.3).tolist() == [10 / 32, 1 / 32]  # ⌈9.6⌉ pixels
    assert attention_area(maps, share=1.0).tolist() == [1, 1 / 32]
    assert area_above(maps).tolist() == [1, 1 / 32]
    steps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    assert [attention_area(steps, share=s).item() for s in (0.4, 0.41, 0.7, 0.9, 0.91)] == [0.25, 0.5, 0.5, 0.75, 1]
    assert [area_above(steps, level=v).item() for v in (0.2, 0.5, 0.51, 1)] == [1, 0.75, 0.5, 0.25]


def test_the_area_of_a_triangle_of_values():
    # Values n … 1: the largest k hold k (2n + 1 − k) / 2 of n (n + 1) / 2; half of it at k ≈ n (1 − 1/√2).
    n = 10_000
    area = attention_area(torch.arange(1.0, n + 1).view(1, 100, 100)).item()
    assert area == pytest.approx(1 - 1 / math.sqrt(2), abs=2 / n)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 1), scale=st.floats(1e-3, 1e3))
def test_areas_are_shares_and_ignore_scale_and_place(seed, share, scale):
    maps = torch.rand(3, 5, 7, generator=generator(seed), dtype=torch.double).round(decimals=2)
    area = attention_area(maps, share=share)
    assert (area >= 1 / 35).all() and (area <= math.ceil(share * 35) / 35 + 1e-12).all()  # a uniform map is the largest
    shuffled = maps.flatten(1)[:, torch.randperm(35, generator=generator(seed))].view_as(maps)
    assert torch.equal(attention_area(shuffled * scale, share=share), area)
    assert (attention_area(maps, share=share / 2) <= area).all()
    held = maps.flatten(1).sort(dim=1, descending=True).values
    for row, k in zip(held, (area * 35).round().int().tolist(), strict=True):
        total = row.sum().item()
        assert row[:k].sum() >= share * total * (1 - 1e-9) and row[: k - 1].sum() < share * total * (1 + 1e-9)


def test_areas_name_bad_input():
    maps = torch.rand(2, 4, 4)
    for area in (attention_area, area_above):
        with pytest.raises(ValueError, match=r"\[B, H, W\].*found \[4, 4\]"):
            area(maps[0])
        with pytest.raises(ValueError, match="not negative, found -1"):
            area(maps - 1 - maps.amin())
        with pytest.raises(ValueError, match="found nan"):
            area(maps * math.nan)
    with pytest.raises(ValueError, match=r"share must .*found 0"):
        attention_area(maps, share=0)
    with pytest.raises(ValueError, match=r"level must .*found 1.5"):
        area_above(maps, level=1.5)


# The loss around an image


class Quadratic(nn.Module):
    """Two logits whose cross-entropy for label 0 is 60 + b·x + ½ Σ a x²: softplus is the identity there.

    ``curve`` a and ``slope`` b: one value a pixel, [C·H·W].
    """

    def __init__(self, curve, slope):
        super().__init__()
        self.curve, self.slope = nn.Parameter(curve), nn.Parameter(slope)

    def forward(self, images):
        x = images.flatten(1)
        height = 60 + x @ self.slope + 0.5 * x.square() @ self.curve
        return torch.stack([torch.zeros_like(height), height], dim=1)


@pytest.fixture
def quadratic():
    curve = torch.linspace(-1, 3, 27, dtype=torch.double)
    slope = torch.linspace(3, -2, 27, dtype=torch.double)[torch.randperm(27, generator=generator(5))]
    images = 0.2 + 0.6 * torch.rand(4, 3, 3, 3, generator=generator(1), dtype=torch.double)
    return Quadratic(curve, slope), images, torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("directions", ["gradient", "random"])
def test_a_slice_of_a_quadratic_is_a_quadratic(directions, quadratic):
    model, images, labels = quadratic
    found = landscape(model, images, labels, eps=EPS, points=5, directions=directions, generator=generator())
    assert found.shape == (4, 5, 5) and found.dtype == torch.double
    for axis in (1, 2):  # third differences vanish, second ones are constant
        second = found.diff(n=2, dim=axis)
        torch.testing.assert_close(second, second[:, :1, :1].expand_as(second), atol=1e-9, rtol=0)
    slope = model.slope + model.curve * images.flatten(1)
    rise = (found[:, -1, 2] - found[:, 0, 2]) / (2 * EPS)  # d₁ · ∇ℓ
    if directions == "gradient":
        torch.testing.assert_close(rise, slope.abs().sum(dim=1).detach(), atol=1e-9, rtol=0)
    else:
        assert (rise.abs() < slope.abs().sum(dim=1)).all()


def test_the_middle_is_the_image_and_the_edge_is_fgsm(model, images, labels):
    loss = nn.CrossEntropyLoss(reduction="none")
    found = landscape(model, images, labels, eps=EPS, points=7, generator=generator(), batch_size=32)
    with torch.no_grad():
        torch.testing.assert_close(found[:, 3, 3], loss(model(images), labels))
        torch.testing.assert_close(found[:, -1, 3], loss(model(fgsm(model, images, labels, eps=EPS)), labels))
    assert torch.equal(found, landscape(model, images, labels, eps=EPS, points=7, generator=generator(), batch_size=32))
    other = landscape(model, images, labels, eps=EPS, points=7, generator=generator(9))
    torch.testing.assert_close(other[:, :, 3], found[:, :, 3])  # the gradient's axis is not drawn
    assert (other[:, :, 0] - found[:, :, 0]).abs().max() > 1e-3
    small = landscape(model, images, labels, eps=EPS, points=7, generator=generator(), batch_size=5)
    torch.testing.assert_close(small, found, atol=1e-5, rtol=0)


class Seen(nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(images.detach())
        return images.flatten(1)[:, :2] * torch.tensor([1.0, 0.0]) + images.flatten(1)[:, 2:4] * torch.tensor([0.0, 1])


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 3, 5)])  # an even and an odd number of pixels
def test_the_directions_are_orthogonal_signs(size):
    model, images, labels = Seen(), torch.full((3, *size), 0.5), torch.tensor([0, 1, 0])
    landscape(model, images, labels, eps=0.25, points=3, directions="random", generator=generator(), batch_size=27)
    grid = model.shown[-1].view(3, 3, 3, -1)
    first, second = (grid[:, 2, 1] - 0.5) / 0.25, (grid[:, 1, 2] - 0.5) / 0.25
    odd = math.prod(size) % 2
    assert (first.abs() == 1).all() and ((second == 0).sum(dim=1) == odd).all() and (second.abs() <= 1).all()
    assert ((first * second).sum(dim=1) == 0).all()
    assert 0 < first.mean(dim=1).abs().max() < 0.7
    model.shown.clear()
    landscape(model, images, labels, eps=0.25, points=3, generator=generator(), batch_size=27)
    grid = model.shown[-1].view(3, 3, 3, -1)
    first, second = (grid[:, 2, 1] - 0.5) / 0.25, (grid[:, 1, 2] - 0.5) / 0.25
    torch.testing.assert_close(first, gradient(model, images, labels).flatten(1).sign())
    assert ((first != 0).sum(dim=1) == 2).all() and ((first * second).sum(dim=1) == 0).all()


def test_slices_stay_in_the_pixel_range(images, labels):
    model = Seen()
    landscape(model, images, labels % 2, eps=0.9, points=4, directions="random", generator=generator())
    shown = torch.cat(model.shown)
    assert shown.min() == 0 and shown.max() == 1


def test_sharpness_of_a_separable_quadratic(quadratic):
    model, images, labels = quadratic
    slope = (model.slope + model.curve * images.flatten(1)).detach()  # [B, n]
    curve = model.curve.detach()
    # Each pixel on its own: the better end of ±eps, or the top of its parabola where that lies between.
    top = torch.where(curve < 0, -slope / curve, torch.zeros_like(slope)).clamp(-EPS, EPS)
    rises = [slope * d + 0.5 * curve * d**2 for d in (torch.full_like(slope, EPS), torch.full_like(slope, -EPS), top)]
    expected = torch.stack(rises).amax(dim=0).sum(dim=1)
    found = sharpness(model, images, labels, eps=EPS, iterations=40)
    assert (found <= expected + 1e-9).all()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_sharpness_lies_between_its_second_order_bounds(quadratic):
    model, images, labels = quadratic
    model.curve.data.abs_()
    linear = EPS * gradient(model, images, labels).flatten(1).abs().sum(dim=1)
    found, top = sharpness(model, images, labels, eps=EPS), curvature(model, images, labels, generator=generator())
    assert (linear <= found + 1e-9).all() and (found <= linear + 0.5 * EPS**2 * 27 * top + 1e-9).all()


def test_a_linear_model_is_as_sharp_as_its_weights_are_large(images, labels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    images, labels = 0.1 + 0.8 * images, labels % 2
    with torch.no_grad():
        gap = model(images)[range(6), 1 - labels] - model(images)[range(6), labels]
        weight = model[1].weight[1] - model[1].weight[0]
        expected = F.softplus(gap + EPS * weight.abs().sum()) - F.softplus(gap)
        p = gap.sigmoid()
    torch.testing.assert_close(sharpness(model, images, labels, eps=EPS), expected, atol=1e-5, rtol=1e-4)
    assert (sharpness(model, images, labels, eps=0) == 0).all()
    doubled = sharpness(model, images, labels, eps=2 * EPS)
    assert (doubled > expected).all()
    # Its Hessian is p (1 − p) w wᵀ.
    found = curvature(model, images, labels, generator=generator())
    torch.testing.assert_close(found, (p * (1 - p) * weight.square().sum()).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_curvature_of_a_quadratic_is_its_largest_coefficient(sign, quadratic):
    model, images, labels = quadratic
    model.curve.data.mul_(sign)
    found = curvature(model, images, labels, iterations=100, generator=generator())
    torch.testing.assert_close(found, torch.full((4,), 3.0 * sign, dtype=torch.double), rtol=1e-4, atol=0)
    few = curvature(model, images, labels, iterations=2, generator=generator())
    assert (few.abs() <= 3 + 1e-9).all()


def test_curvature_equals_the_eigenvalues_of_the_whole_hessian():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()
    images, labels = torch.rand(3, 1, 6, 6, generator=generator(2), dtype=torch.double), torch.tensor([0, 1, 2])
    found = curvature(model, images, labels, iterations=300, generator=generator())
    for image, label, value in zip(images, labels, found, strict=True):
        hessian = torch.autograd.functional.hessian(
            lambda x, label=label: F.cross_entropy(model(x[None]), label[None]), image
        )
        eigenvalues = torch.linalg.eigvalsh(hessian.view(36, 36))
        assert value.item() == pytest.approx(eigenvalues[eigenvalues.abs().argmax()].item(), rel=1e-3)


def test_flat_losses_are_flat(images, labels):
    class Flat(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :3] * 0

    assert (sharpness(Flat(), images, labels, eps=EPS) == 0).all()
    assert (curvature(Flat(), images, labels) == 0).all()
    assert landscape(Flat(), images, labels, eps=EPS, points=3).sub(math.log(3)).abs().max() < 1e-6


# Manners

MEASURES = {
    "attention": lambda m, x, y: attention(m, x, y),
    "attention of the prediction": lambda m, x, y: attention(m, x),
    "landscape": lambda m, x, y: landscape(m, x, y, eps=EPS, points=3, generator=generator()),
    "sharpness": lambda m, x, y: sharpness(m, x, y, eps=EPS, iterations=2),
    "curvature": lambda m, x, y: curvature(m, x, y, iterations=2, generator=generator()),
}
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


def state(model: nn.Module) -> list:
    return [
        [(module.training, len(module._forward_hooks)) for module in model.modules()],
        [(parameter.requires_grad, parameter.grad is not None) for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()]
        + [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
    ]


@every
def test_the_model_is_left_as_found(measure, model, images, labels):
    model.train()
    model[1].eval()
    model[4].requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = state(model)
    measure(model, images, labels)
    with pytest.raises((ValueError, RuntimeError)):
        measure(model, images[:, :2], labels)
    after = state(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every
def test_works_where_gradients_are_off(measure, mode, model, images, labels):
    expected = measure(model, images, labels)
    with mode():
        found = measure(model, images.clone(), labels.clone())
    assert torch.equal(found, expected) and not found.requires_grad


@every
def test_works_on_a_normalised_backbone_and_grey_images(measure):
    torch.manual_seed(0)
    model = Normalized(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 2)), (0.5,), (0.2,)
    )
    found = measure(model, torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 0]))
    assert len(found) == 3 and found.isfinite().all()


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3)

    def forward(self, images):
        return self.layer(images).mean(dim=(2, 3)) * math.nan


@every
def test_models_that_answer_nan_are_refused(measure, images, labels):
    with pytest.raises(ValueError, match="not finite"):
        measure(Broken(), images, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: landscape(m, x, y, eps=8), "such as 6/255, found 8"),
        (lambda m, x, y: landscape(m, x, y, eps=EPS, points=1), "points must .*found 1"),
        (lambda m, x, y: landscape(m, x, y, eps=EPS, batch_size=0), "batch_size must .*found 0"),
        (lambda m, x, y: landscape(m, x, y, eps=EPS, directions="pca"), "found 'pca'"),
        (lambda m, x, y: landscape(m, x, y + 1, eps=EPS), "found 1…3"),
        (lambda m, x, y: sharpness(m, x, y, eps=-1), "found -1"),
        (lambda m, x, y: sharpness(m, x, y, eps=EPS, iterations=0), "found 0"),
        (lambda m, x, y: curvature(m, x, y, iterations=1.5), "found 1.5"),
        (lambda m, x, y: curvature(m, x * 255, y), r"\[0, 1\], found values from"),
    ],
)
def test_bad_inputs_are_named(call, message, model, images, labels):
    with pytest.raises(ValueError, match=message):
        call(model, images, labels)
