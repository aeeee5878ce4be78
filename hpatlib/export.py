"""What the attack explorer computes with: two small networks and two dozen phantoms, as a script that a page loads.

The page runs in a browser without a server or a network. So its networks have no layers but convolution, ReLU, pooling
and linear: batch norms are folded into the convolutions before them, a convolution over all of a map is a linear layer.
Weights are rounded to float16, and every answer that is told here is one of the rounded network, in float64.
"""

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpatlib import attacks, measure
from hpatlib._files import write
from hpatlib.data import ImageSet
from hpatlib.frozen import frozen
from hpatlib.hybrid import Adversary, environment
from hpatlib.models import Normalized
from hpatlib.runs import Run, train_or_load
from hpatlib.training import Recipe

NAME = "data.js"
EACH = 12  # phantoms of each class
COMPETENT = 0.9  # least clean accuracy on the test side: attacks on a network that knows nothing show nothing
SIZE = 32
CONSTANT = (-3.0, 3.0)  # logits of the network that calls everything malignant, with a probability of 99.8 %

RECIPE = Recipe(epochs=8, batch_size=32, decay_every=6)
STANDARD = Run("cnmc", False, SIZE, 768, "patient", 1 / 3, "simple_cnn_bn", "scratch", RECIPE, seed=0)


def hybrid_run() -> Run:
    """Algorithm 1 as the chapter on figure 4 has it: PGD at 6/255, then STBO within ±180° and ±12 px of 300."""
    worst = environment(6, size=SIZE)
    adversary = Adversary(
        eps=worst.eps,
        step=worst.step,
        iterations=worst.iterations,
        start="gaussian",
        translation=worst.box.translation,
        rotation=worst.box.rotation,
        evaluations=4,
    )
    return replace(STANDARD, adversary=adversary)


def explorer(folder: Path) -> Path:
    """Write ``folder``/``NAME`` and return its path; networks are trained, or taken from the run store.

    The script defines ``EXPLORER``: ``size``, ``classes``; ``networks`` by name, each with its ``layers`` (see
    ``layers``), ``key`` and clean ``accuracy`` on ``tested`` phantoms; ``phantoms``: the first ``EACH`` of each class on
    the test side, uint8 [24, 3, S, S], with ``labels``; ``check``: what PyTorch answers, ``logits`` [24, 2] by network
    and the ``gradient`` of the first phantom's cross-entropy, float32 [3, S, S]; ``sobol``: the first points of the
    sequence that STBO starts with. Numbers in bulk are base64, least byte first.

    Raises ``ValueError`` for a network whose clean accuracy is below ``COMPETENT``.
    """
    networks: dict[str, Any] = {}
    check: dict[str, Any] = {"logits": {}, "gradient": {}}
    for name, run in (("standard", STANDARD), ("hybrid", hybrid_run())):
        trained = train_or_load(run, device="cpu")
        shown = first_of_each(trained.test)
        network = rounded(trained.model, trained.test)
        accuracy = _accuracy(network, trained.test)
        if accuracy < COMPETENT:
            raise ValueError(
                f"the {name} network is right on {accuracy:.1%} of clean phantoms, and {COMPETENT:.0%} are the least: "
                "train it for longer"
            )
        images, labels = shown.tensors()
        images = images.double()
        answers, slope = measure.logits(network, images), attacks.gradient(network, images[:1], labels[:1])
        networks[name] = {
            "key": trained.provenance["key"],
            "accuracy": accuracy,
            "tested": len(trained.test),
            "layers": list(layers(network)),
        }
        check["logits"][name] = answers.tolist()
        check["gradient"][name] = _packed(slope[0], "<f4")
    networks["constant"] = {"layers": [{"kind": "constant", "logits": CONSTANT}]}
    data = {
        "size": SIZE,
        "classes": shown.classes,
        "networks": networks,
        "phantoms": {"pixels": _packed(shown.images, "u1"), "labels": shown.labels.tolist()},
        "check": check,
        "sobol": torch.quasirandom.SobolEngine(3).draw(11)[1:].tolist(),
    }
    return write(folder / NAME, f"const EXPLORER = {json.dumps(data)};\n".encode())


def first_of_each(images: ImageSet) -> ImageSet:
    """The first ``EACH`` images of each class, in the order of the set: chosen before any network has seen them."""
    index = np.concatenate([np.flatnonzero(images.labels == label)[:EACH] for label in range(len(images.classes))])
    return images.subset(np.sort(index))


def rounded(model: nn.Module, images: ImageSet) -> nn.Module:
    """A copy of ``model`` in float64 without batch norms, its weights rounded to float16.

    ``images``: some that it has to answer as ``model`` does, before rounding (``RuntimeError``, see ``frozen``).
    """
    folded = frozen(model)
    folded(images.tensors(index=np.arange(min(8, len(images))))[0])
    network = copy.deepcopy(folded.network).to(memory_format=torch.contiguous_format).half().double()
    return network.eval().requires_grad_(False)


def layers(network: nn.Module) -> Iterator[dict[str, Any]]:
    """The layers of ``network``, a ``Normalized`` sequence, in order.

    ``kind`` is ``"scale"`` (pixels become (x - ``mean``) / ``std``, one value for all channels), ``"conv"`` (3 × 3,
    padded by one; ``weight`` [O, I, 3, 3] and ``bias`` [O] as float16), ``"relu"``, ``"pool"`` (largest of 2 × 2) or
    ``"linear"`` (``weight`` [O, I]). Raises ``ValueError`` for anything else.
    """
    if not isinstance(network, Normalized) or len(set(network.mean.flatten().tolist())) > 1:
        raise ValueError(f"expected a Normalized network with one mean for all channels, found {type(network).__name__}")
    yield {"kind": "scale", "mean": network.mean.flatten()[0].item(), "std": network.std.flatten()[0].item()}
    for layer in network.backbone.modules():
        if isinstance(layer, nn.Sequential | nn.Flatten | nn.Identity):  # neither computes anything
            continue
        if isinstance(layer, nn.ReLU):
            yield {"kind": "relu"}
        elif isinstance(layer, nn.MaxPool2d) and layer.kernel_size == layer.stride == 2:
            yield {"kind": "pool"}
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.padding == (1, 1):
            yield _weights("conv", layer.weight, layer.bias)
        elif isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding == (0, 0)):
            yield _weights("linear", layer.weight.flatten(1), layer.bias)
        else:
            raise ValueError(f"the explorer knows convolution, ReLU, pooling and linear layers, found {layer}")


def _weights(kind: str, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    if bias is None:
        raise ValueError(f"a {kind} layer of the explorer needs a bias, found none")
    return {"kind": kind, "shape": list(weight.shape), "weight": _packed(weight, "<f2"), "bias": _packed(bias, "<f2")}


def _packed(numbers: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers, dtype).tobytes()).decode()


def _accuracy(network: nn.Module, images: ImageSet) -> float:
    pixels, labels = images.tensors()
    return (measure.logits(network, pixels.double()).argmax(dim=1) == labels).double().mean().item()
