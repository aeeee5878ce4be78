"""Models: pixels in, logits out, and weights from where they should come or a clear refusal."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hpatlib import models
from hpatlib.models import Normalized, SimpleCNN, build

SHARED = Path(__file__).parents[2] / "shared/data/weights/tf_efficientnet_lite0.safetensors"


@pytest.fixture(autouse=True)
def no_weights_folder(monkeypatch):
    monkeypatch.delenv("HPAT_WEIGHTS", raising=False)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_turns_pixels_into_logits(name, channels):
    model = build(name, 2, in_channels=channels, weights="scratch").eval()
    with torch.no_grad():
        assert model(torch.rand(2, channels, 32, 32)).shape == (2, 2)


def test_normalisation_is_inside_the_model():
    model = Normalized(nn.Identity(), (0.5, 0.2, 0.1), (0.5, 0.1, 0.2))
    pixel = torch.tensor([1.0, 0.4, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(pixel).flatten(), torch.tensor([1.0, 2.0, 0.0]))


def test_the_simple_cnn_may_have_batch_norm():
    plain, normed = (build(name, 2, weights="scratch") for name in ("simple_cnn", "simple_cnn_bn"))
    layers = [[type(m).__name__ for m in model.backbone] for model in (plain, normed)]
    assert [name for name in layers[1] if name != "BatchNorm2d"] == layers[0]
    assert layers[1].count("BatchNorm2d") == layers[1].count("Conv2d") == 3


def test_the_simple_cnn_is_the_reports():
    kinds = [type(layer).__name__ for layer in SimpleCNN(3)]
    assert kinds[:9] == ["Conv2d", "ReLU", "MaxPool2d"] * 3 and kinds[-1] == "Linear"
    model = build("simple_cnn", 3, in_channels=1, weights="scratch")
    for size in (32, 64, 100):
        assert model(torch.rand(2, 1, size, size)).shape == (2, 3)


@pytest.fixture(scope="module")
def embedded() -> nn.Module:
    return build("tf_efficientnet_lite0", 1000).eval()


def test_the_embedded_weights_are_the_published_ones(embedded, monkeypatch):
    if not SHARED.is_file():
        pytest.skip(f"no reference weights at {SHARED}")
    monkeypatch.setenv("HPAT_WEIGHTS", str(SHARED.parent))
    reference = build("tf_efficientnet_lite0", 1000).eval()
    for name, tensor in embedded.state_dict().items():
        other = reference.state_dict()[name]
        torch.testing.assert_close(tensor.float(), other.float(), rtol=1e-3, atol=1e-4, msg=name)  # stored as float16


def test_the_embedded_model_knows_a_cat(embedded):
    from skimage.data import chelsea

    cat = torch.from_numpy(chelsea()).permute(2, 0, 1)[None].float() / 255
    cat = nn.functional.interpolate(cat, size=(224, 224), mode="bilinear", antialias=True)
    assert embedded(cat).argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_grey_images_start_from_the_colour_filters():
    """A grey image replicated over three channels and the one-channel model see nearly the same features."""
    torch.manual_seed(0)
    colour, grey = build("tf_efficientnet_lite0", 2).eval(), build("tf_efficientnet_lite0", 2, in_channels=1).eval()
    images = torch.rand(2, 1, 64, 64)
    one = grey.backbone.conv_stem((images - grey.mean) / grey.std)
    three = colour.backbone.conv_stem((images.expand(-1, 3, -1, -1) - colour.mean) / colour.std)
    torch.testing.assert_close(one, three, atol=1e-4, rtol=1e-4)


def test_the_weights_folder_is_looked_in_first(tmp_path, monkeypatch):
    state = build("resnet18", 1000, weights="scratch").backbone.state_dict()
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 0.25)
    save_file(state, tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("HPAT_WEIGHTS", str(tmp_path))
    model = build("resnet18", 2)  # another number of classes: the last layer alone is new
    assert (model.backbone.conv1.weight == 0.25).all() and model.backbone.fc.out_features == 2
    named = build("resnet18", 2, weights=tmp_path / "resnet18.safetensors")
    assert (named.backbone.conv1.weight == 0.25).all()


def test_without_any_source_imagenet_is_refused_in_one_sentence(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"no ImageNet weights for resnet18.*hub did not answer.*scratch"):
        build("resnet18", 2)


def test_a_file_that_does_not_fit_is_not_called_missing(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        build("resnet18", 2, weights=tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ("resnet19", 2),
            {},
            ValueError,
            "unknown model 'resnet19': choose one of simple_cnn, simple_cnn_bn,",
        ),
        (("resnet18", 1), {}, ValueError, "found 1 and 3"),
        (("resnet18", 2), {"in_channels": 0}, ValueError, "found 2 and 0"),
        (("simple_cnn", 2), {}, ValueError, "no pretrained weights"),
        (("resnet18", 2), {"weights": "nowhere.safetensors"}, FileNotFoundError, "nowhere.safetensors"),
    ],
)
def test_bad_requests_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        build(*arguments, **options)


def test_fine_tuning_updates_the_statistics_fast_enough():
    model = build("tf_efficientnet_lite0", 2, weights="scratch")
    momenta = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.1}
