"""Models: pixels in, logits out, and weights from where they should come or a clear refusal."""

import math
import shutil
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


@pytest.mark.parametrize("name", models.MODELS)
def test_new_heads_start_small_whatever_the_backbone(name):
    """The first loss is that of a guess, ln K. With timm's own heads, EfficientNets start at four times that."""
    torch.manual_seed(1)
    images, three = torch.rand(16, 3, 64, 64), build(name, 3, size=64, weights="scratch")
    for training in (False, True):
        with torch.no_grad():
            answers = three.train(training)(images)
        for logits in (answers[:, :2], answers):  # a head's rows are independent: two of three are a head of two
            classes = logits.shape[1]
            loss = nn.functional.cross_entropy(logits, torch.arange(16) % classes)
            assert loss.item() == pytest.approx(math.log(classes), rel=0.1)
            assert (logits[:, 0] - logits[:, 1]).std() < 0.5 and logits.abs().mean() < 0.5


def head(model: nn.Module) -> nn.Linear:
    backbone = model.backbone
    return backbone[-1] if isinstance(backbone, SimpleCNN) else backbone.get_classifier()


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18", "tf_efficientnet_lite0", "densenet121"])
def test_the_head_is_drawn_from_one_distribution(name):
    layer = head(build(name, 10, weights="scratch"))
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15) and not layer.bias.any()


def test_a_head_that_fits_is_kept_and_another_starts_small(tmp_path, embedded):
    assert head(embedded).weight.std() > 0.03 and head(embedded).bias.any()  # ImageNet's own
    assert head(build("tf_efficientnet_lite0", 2)).weight.std() < 0.02
    model = build("resnet18", 3, weights="scratch")
    nn.init.constant_(head(model).weight, 0.25)
    save_file(model.state_dict(), tmp_path / "three.safetensors")
    assert (head(build("resnet18", 3, weights=tmp_path / "three.safetensors")).weight == 0.25).all()
    assert head(build("resnet18", 4, weights=tmp_path / "three.safetensors")).weight.abs().max() < 0.1


def test_weights_are_known_by_their_bytes_or_by_the_hubs_name(tmp_path, monkeypatch):
    assert models.weights_identity("vgg16", "scratch") == models.weights_identity("simple_cnn", "scratch") == "scratch"
    assert models.weights_identity("resnet18", "imagenet") == "timm/resnet18.a1_in1k"
    assert models.weights_identity("tf_efficientnet_lite0", "imagenet") == "blake2b:c28fcf2579daa481"  # embedded
    file, elsewhere = tmp_path / "resnet18.safetensors", tmp_path / "copies" / "mine.safetensors"
    file.write_bytes(b"weights")
    elsewhere.parent.mkdir()
    shutil.copy(file, elsewhere)
    monkeypatch.setenv("HPAT_WEIGHTS", str(tmp_path))
    first = models.weights_identity("resnet18", "imagenet")
    assert first == models.weights_identity("resnet18", str(elsewhere)) and first.startswith("blake2b:")
    file.write_bytes(b"other weights")
    assert models.weights_identity("resnet18", "imagenet") != first
    with pytest.raises(FileNotFoundError, match="nowhere"):
        models.weights_identity("resnet18", "nowhere.safetensors")
    with pytest.raises(ValueError, match="unknown model 'resnet19'"):
        models.weights_identity("resnet19", "scratch")
    with pytest.raises(ValueError, match="no pretrained weights"):
        models.weights_identity("simple_cnn", "imagenet")


def test_normalisation_is_inside_the_model():
    model = Normalized(nn.Identity(), (0.5, 0.2, 0.1), (0.5, 0.1, 0.2))
    pixel = torch.tensor([1.0, 0.4, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(pixel).flatten(), torch.tensor([1.0, 2.0, 0.0]))


def kinds(name: str, size: int) -> list[str]:
    return [type(layer).__name__ for layer in build(name, 3, size=size, weights="scratch").backbone]


def test_the_simple_cnn_is_the_reports():
    """Three convolutions with ReLU and max-pooling, flattened feature maps, and connected layers at the end."""
    assert kinds("simple_cnn", 64) == ["Conv2d", "ReLU", "MaxPool2d"] * 3 + ["Flatten", "Linear", "ReLU", "Linear"]
    for size, flattened in ((32, 1024), (64, 4096), (100, 9216), (224, 50176)):  # 64 · (size / 8)²
        model = build("simple_cnn", 3, in_channels=1, size=size, weights="scratch")
        connected = [layer.in_features for layer in model.backbone if isinstance(layer, nn.Linear)]
        assert connected == [flattened, 64] and model(torch.rand(2, 1, size, size)).shape == (2, 3)


def test_the_simple_cnn_passes_on_what_it_sees():
    """He and others' start: through ReLU, the mean square stays what it is from layer to layer."""
    torch.manual_seed(0)
    x, squares = torch.randn(64, 3, 64, 64), []
    for layer in list(build("simple_cnn", 3, size=64, weights="scratch").backbone)[:-1]:
        # Maxima are larger than what they are of, so here a pool takes the first of its four instead.
        x = x[:, :, ::2, ::2] if isinstance(layer, nn.MaxPool2d) else layer(x)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            squares.append(x.square().mean().item())
    assert squares == pytest.approx([2] * 4, rel=0.5)


@pytest.mark.parametrize("size", [32, 64, 100])
def test_with_batch_norm_every_relu_of_the_simple_cnn_has_one_before_it(size):
    layers = kinds("simple_cnn_bn", size)
    assert [layers[at - 1] for at, name in enumerate(layers) if name == "ReLU"] == ["BatchNorm2d"] * 4
    assert build("simple_cnn_bn", 3, size=size, weights="scratch")(torch.rand(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", ["simple_cnn", "simple_cnn_bn"])
def test_a_simple_cnn_takes_images_of_its_size_alone(name):
    model = build(name, 2, size=40, weights="scratch")
    with pytest.raises(ValueError, match="takes 40×40 px, found 64×40: build it with that size"):
        model(torch.rand(2, 3, 64, 40))
    with pytest.raises(ValueError, match="size must be a whole number of at least 8, found 7"):
        build(name, 2, size=7, weights="scratch")


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
