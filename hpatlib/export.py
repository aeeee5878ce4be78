"""What the attack explorer computes with: two small networks and two dozen phantoms, as a script that a page loads.

The page runs in a browser without a server or a network. So its networks have no layers but convolution, ReLU, pooling
and linear: batch norms are folded into the convolutions before them, a convolution over all of a map is a linear layer.
Weights are rounded to float16, and every answer that is told here is one of the rounded network, in float64.
"""

import base64
import copy
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from hpatlib import attacks, measure
from hpatlib._files import write
from hpatlib.data import ImageSet
from hpatlib.frozen import frozen
from hpatlib.hybrid import Adversary, environment, fixed, perturb, random_noise
from hpatlib.models import Normalized
from hpatlib.plots.base import STYLE
from hpatlib.runs import Run, train_or_load
from hpatlib.spatial import Box, grid_search, log_odds, random_search, transform
from hpatlib.stbo import stbo
from hpatlib.training import Recipe

NAME, ANSWERS, SEARCHES = "data.js", "answers.svg", "searches.svg"
SIZES = {"font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 12}  # legible on a phone
SHOWN = 4  # the phantom that the page opens with and the pictures show: all five questions have an answer on it
EACH = 12  # phantoms of each class
COMPETENT = 0.9  # least clean accuracy on the test side: attacks on a network that knows nothing show nothing
SIZE = 32
CONSTANT = (-3.0, 3.0)  # logits of the network that calls everything malignant, with a probability of 99.8 %

RECIPE = Recipe(epochs=8, batch_size=32, decay_every=6)
STANDARD = Run("cnmc", False, SIZE, 768, "patient", 1 / 3, "simple_cnn_bn", "scratch", RECIPE, seed=0)


def hybrid_run() -> Run:
    """Algorithm 1 as figure 4's chapter has it at smoke: PGD at 6/255, then 4 queries within ±180°, ±12 px of 300."""
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


def explorer(folder: Path) -> list[Path]:
    """Write what the page needs into ``folder`` and return the files: the script ``NAME``, and two pictures for readers
    without JavaScript. Networks are trained, or taken from the run store.

    The script defines ``EXPLORER``: ``size``, ``classes``; ``networks`` by name, each with its ``layers`` (see
    ``layers``), ``key`` and clean ``accuracy`` on ``tested`` phantoms; ``phantoms``: the first ``EACH`` of each class
    on the test side, uint8 [24, 3, S, S], with ``labels``; ``check``: what PyTorch answers, ``logits`` [24, 2] by
    network and the ``gradient`` of the first phantom's cross-entropy, float32 [3, S, S]; ``sobol``: the first points of
    the sequence that STBO starts with. Numbers in bulk are base64, least byte first.

    Raises ``ValueError`` for a network whose clean accuracy is below ``COMPETENT``.
    """
    networks: dict[str, Any] = {}
    exported: dict[str, nn.Module] = {}
    check: dict[str, Any] = {"logits": {}, "gradient": {}}
    for name, run in (("standard", STANDARD), ("hybrid", hybrid_run())):
        trained = train_or_load(run, device="cpu")
        shown = first_of_each(trained.test)
        network = exported[name] = rounded(trained.model, trained.test)
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
    image, label = images[SHOWN : SHOWN + 1], labels[SHOWN : SHOWN + 1]
    return [
        write(folder / NAME, f"const EXPLORER = {json.dumps(data)};\n".encode()),
        write(folder / ANSWERS, answers_picture(exported, image, label)),
        write(folder / SEARCHES, searches_picture(exported["standard"], image, label)),
    ]


def answers_picture(networks: Mapping[str, nn.Module], image: Tensor, label: Tensor) -> bytes:
    """An SVG of ``image [1, 3, S, S]`` under five perturbations made for the standard network, and of what each of
    ``networks`` answers to them: the probability of ``label [1]``."""
    noise, generator = 4 / 255, torch.Generator().manual_seed(0)
    pgd = partial(attacks.pgd, eps=noise, step=1 / 255, iterations=6, start=None)
    turn = partial(fixed, s=(0.0, 0.0, 30.0))
    ask = partial(perturb, networks["standard"], image, label)
    turned = ask(spatial=turn)
    shown = {
        "as drawn": image,
        "random, 4/255": ask(pixel=partial(random_noise, eps=noise, generator=generator)),
        "PGD, 4/255": ask(pixel=pgd),
        "PGD, then 30°": ask(pixel=pgd, spatial=turn),
        "30°, then PGD": pgd(networks["standard"], turned, label),
    }
    with plt.style.context([STYLE, SIZES]):
        canvas, axes = plt.subplots(4, 3, figsize=(6, 6.4), height_ratios=(3, 1, 3, 1), sharex="row", sharey="row")
        places = [(axes[row][column], axes[row + 1][column]) for row in (0, 2) for column in range(3)]
        for axis in places[-1]:
            axis.set_axis_off()
        for (title, x), (above, below) in zip(shown.items(), places[:-1], strict=True):
            above.imshow((1.6 * x[0]).clamp(0, 1).movedim(0, -1).numpy(), interpolation="nearest")
            above.set(title=title, xticks=[], yticks=[])
            above.grid(False)
            above.spines[:].set_visible(False)
            right = [100 * torch.softmax(network(x)[0], dim=0)[label].item() for network in networks.values()]
            below.barh(list(networks), right, color=["C0", "C1"])
            below.axvline(50, color="0.3", linewidth=1)
            below.set(xlim=(0, 100), xticks=(0, 50, 100), ylim=(1.5, -0.5))
        axes[3][0].set_xlabel("true class, %")
        return _svg(canvas)


def searches_picture(network: nn.Module, image: Tensor, label: Tensor) -> bytes:
    """An SVG of three searches for the worst turn and shift of ``image [1, 3, S, S]`` within ±30° and ±3 px: where
    each ended on the map of turn and shift to the right, and the worst loss after each query."""
    box, draws = Box(3, 30), partial(torch.Generator().manual_seed, 0)
    found = {
        "grid": grid_search(network, image, label, box, counts=(3, 3, 11)),
        "random": random_search(network, image, label, box, evaluations=100, generator=draws()),
        "STBO": stbo(network, image, label, box, generator=draws()),
    }
    right, angle = torch.meshgrid(torch.linspace(-3, 3, 25), torch.linspace(-30, 30, 61), indexing="ij")
    s = torch.stack([right, torch.zeros_like(right), angle], dim=-1).view(-1, 3)
    odds = log_odds(measure.logits(network, transform(image.expand(len(s), -1, -1, -1), s)), label.expand(len(s)))
    with plt.style.context([STYLE, SIZES]):
        canvas, (above, below) = plt.subplots(2, 1, figsize=(6, 6.4))
        values = torch.tanh(odds / 4).view(right.shape).numpy()
        above.pcolormesh(angle, right, values, cmap="RdBu_r", vmin=-1, vmax=1, rasterized=True)
        above.set(xlabel="turn, degrees", ylabel="shift to the right, px", title="blue: right, red: wrong")
        for (name, result), marker in zip(found.items(), "sDo", strict=True):
            at, worst = result.s[0].tolist(), result.history[0].numpy()
            above.plot(at[2], at[0], marker, markersize=10, markeredgecolor="white", clip_on=False)
            below.plot(np.arange(1, len(worst) + 1), worst, marker=marker, markevery=[-1], label=name, clip_on=False)
        below.legend(loc="lower right")
        below.set(xlabel="queries", ylabel="worst loss, nats", xlim=(0, 100), ylim=(0, None))
        return _svg(canvas)


def _svg(canvas: plt.Figure) -> bytes:
    """``canvas``, closed, as an SVG that is the same each time."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "hpat"}):
        # On white, for the pages show them on a dark ground too.
        canvas.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white", transparent=False)
    plt.close(canvas)
    return buffer.getvalue()


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
    network = copy.deepcopy(folded.get_submodule("network")).to(memory_format=torch.contiguous_format).half().double()
    return network.eval().requires_grad_(False)


def layers(network: nn.Module, size: int = SIZE) -> Iterator[dict[str, Any]]:
    """The layers of ``network``, a ``Normalized`` sequence for images of side ``size``, in order.

    ``kind`` is ``"scale"`` (pixels become (x - ``mean``) / ``std``, one value for all channels), ``"conv"`` (3 × 3,
    padded by one; ``weight`` [O, I, 3, 3] and ``bias`` [O] as float16), ``"relu"``, ``"pool"`` (largest of 2 × 2) or
    ``"linear"`` (``weight`` [O, I]). Raises ``ValueError`` for anything else.
    """
    if not isinstance(network, Normalized) or any(len(v.unique()) > 1 for v in (network.mean, network.std)):
        raise ValueError(
            f"expected a Normalized network with one mean and std for all channels, found {type(network).__name__}"
        )
    yield {"kind": "scale", "mean": network.mean.flatten()[0].item(), "std": network.std.flatten()[0].item()}
    for layer in network.backbone.modules():
        if isinstance(layer, nn.Sequential | nn.Flatten | nn.Identity):  # none computes anything
            continue
        plain = isinstance(layer, nn.Conv2d) and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
        if isinstance(layer, nn.ReLU):
            yield {"kind": "relu"}
        elif isinstance(layer, nn.MaxPool2d) and layer.kernel_size == layer.stride == 2:
            size //= 2
            yield {"kind": "pool"}
        elif isinstance(layer, nn.Conv2d) and plain and layer.kernel_size == (3, 3) and layer.padding == (1, 1):
            yield _weights("conv", layer.weight, layer.bias)
        elif isinstance(layer, nn.Conv2d) and plain and layer.kernel_size == (size, size) and layer.padding == (0, 0):
            size = 1
            yield _weights("linear", layer.weight.flatten(1), layer.bias)
        elif isinstance(layer, nn.Linear):
            yield _weights("linear", layer.weight, layer.bias)
        else:
            raise ValueError(
                "the explorer knows ReLU, pooling of 2 × 2, linear layers and convolutions, 3 × 3 padded by one or "
                f"over all of a map, found {layer}"
            )


def _weights(kind: str, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    if bias is None:
        raise ValueError(f"a {kind} layer of the explorer needs a bias, found none")
    return {"kind": kind, "shape": list(weight.shape), "weight": _packed(weight, "<f2"), "bias": _packed(bias, "<f2")}


def _packed(numbers: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers, dtype).tobytes()).decode()


def _accuracy(network: nn.Module, images: ImageSet) -> float:
    pixels, labels = images.tensors()
    return (measure.logits(network, pixels.double()).argmax(dim=1) == labels).double().mean().item()
