"""What every method needs of its inputs and of a model: checked numbers, images and answers, and a model held still."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Literal["cross-entropy", "margin"] | Callable[[Tensor, Tensor], Tensor]

TOLERANCE = 1e-6  # undoing a normalisation is not exact in floats: 1 + 1e-7 is still a legal pixel


def is_whole(value: object, least: int = 1) -> bool:
    """Whether ``value`` is a whole number of at least ``least``, of Python or NumPy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int; ``ValueError`` unless it is a whole number of at least ``least``."""
    if not is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, found {value!r}")
    return int(value)


def check_wholes(name: str, values: Any, meanings: tuple[str, ...], least: int = 1) -> tuple[int, ...]:
    """``values`` as a tuple of ints; ``ValueError`` unless there is a whole number for each of ``meanings``."""
    try:
        numbers = tuple(values)
    except TypeError:
        numbers = ()
    if len(numbers) != len(meanings) or not all(is_whole(number, least) for number in numbers):
        raise ValueError(
            f"{name} must be {len(meanings)} whole numbers of at least {least} ({', '.join(meanings)}), "
            f"found {values!r}"
        )
    return tuple(map(int, numbers))


def check_number(name: str, value: Any, holds: Callable[[float], bool], expected: str) -> float:
    """``value`` as a number of Python's; ``ValueError`` "name must …" unless it is a real number that ``holds``."""
    # Python's own numbers stay as they are: a run's key tells 12 from 12.0.
    number: Any = value.item() if isinstance(value, np.number) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not holds(number):
        raise ValueError(f"{name} must {expected}, found {value!r}")
    return number


def check_fraction(name: str, value: Any, example: str = "6/255") -> float:
    """``value``, a fraction of the full pixel range such as ``eps``; ``ValueError`` unless it lies in [0, 1]."""
    expected = f"lie in [0, 1], a fraction of the pixel range such as {example}"
    return check_number(name, value, lambda fraction: 0 <= fraction <= 1, expected)


def check_images(images: Tensor, labels: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless ``images`` are ``[B, C, H, W]`` floats in ``[0, 1]`` and ``labels`` ``[B]`` longs."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor [B, C, H, W], found {found}")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"labels must be a long tensor [{len(images)}], one class an image, found {found}")
        if labels.device != images.device:
            raise ValueError(f"images are on {images.device} but labels on {labels.device}: move one to the other")
    if images.numel() == 0:
        raise ValueError(f"images must hold at least one pixel, found {list(images.shape)}")
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails too
        raise ValueError(
            f"images must lie in [0, 1], found values from {low:g} to {high:g}: "
            "pass raw pixels divided by 255 and leave normalisation to the model (hpatlib.models.Normalized)"
        )


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise ``ValueError`` unless a model's first answer is finite ``[…, classes]`` with a class for every label."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model must return a tensor of logits [B, classes], found a {type(logits).__name__}: "
            "wrap it in a module that picks them out"
        )
    if logits.ndim != 2:
        raise ValueError(f"the model must return logits [B, classes], found {list(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"the model must return logits, found {logits.dtype}: do not round or take the argmax")
    if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(
            f"labels must lie in 0…{logits.shape[1] - 1} (the model has {logits.shape[1]} classes), "
            f"found {labels.min().item()}…{labels.max().item()}"
        )
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: check its weights and its forward pass for NaN")


def check_losses(loss: Tensor) -> None:
    """Raise ``ValueError`` unless every loss of a method is finite."""
    if not loss.isfinite().all():
        raise ValueError("the model's loss is not finite: check its weights and its forward pass for NaN")


def objective(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """What an attack makes large, as a function of logits ``[B, K]`` and labels ``[B]``, one value an image ``[B]``.

    ``"cross-entropy"``; ``"margin"``, see ``margin_loss``; or a function of one's own. Raises ``ValueError`` for
    anything else, and for shapes that do not fit as soon as it is called.
    """
    if loss not in ("cross-entropy", "margin") and not callable(loss):
        raise ValueError(f'loss must be "cross-entropy", "margin" or a function of logits and labels, found {loss!r}')

    def ascended(logits: Tensor, labels: Tensor) -> Tensor:
        if len(logits) != len(labels):
            raise ValueError(f"the model must answer each of {len(labels)} images, found logits {list(logits.shape)}")
        if loss == "cross-entropy":
            return F.cross_entropy(logits, labels, reduction="none")
        values = margin_loss(logits, labels) if loss == "margin" else loss(logits, labels)
        if not isinstance(values, Tensor) or values.shape != labels.shape:
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f'loss must return a value an image, [{len(labels)}], found {found}: reduction="none"?')
        return values

    return ascended


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k ≠ y} z_k − z_y ``[B]``, above 0 where misclassified: tells images apart where cross-entropy saturates."""
    if logits.shape[1] < 2:
        raise ValueError(f"a margin is between two classes or more, found logits {list(logits.shape)}")
    own = labels.unsqueeze(1)
    return logits.scatter(1, own, -math.inf).amax(dim=1) - logits.gather(1, own).squeeze(1)


def derivative(value: Tensor, x: Tensor, *, create_graph: bool = False) -> Tensor:
    """∂value/∂x for a scalar ``value``; ``ValueError`` where no path with a gradient leads from ``x`` to it."""
    # Also None, not an error, where other tensors of the model have a gradient and x has none.
    found = (
        torch.autograd.grad(value, x, create_graph=create_graph, allow_unused=True) if value.requires_grad else [None]
    )
    if found[0] is None:
        raise ValueError(
            "the loss has no gradient: the model's forward pass detaches its logits or runs under no_grad; "
            "repair it, or use an attack that needs no gradient (hpatlib.square)"
        )
    return found[0]


def device_of(model: nn.Module) -> torch.device:
    """Where ``model`` computes: the device of its first parameter or buffer, the CPU for a model without any."""
    tensors = (tensor for source in (model.parameters(), model.buffers()) for tensor in source)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Step out of a caller's ``inference_mode``, whose tensors can never be trained on; gradients stay off."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode with frozen parameters, and restore both for each submodule and parameter.

    Eval mode keeps batch-norm statistics untouched and images independent of their batch mates; frozen parameters
    spare the backward pass their gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        # Not model.train(): that would wake up layers which the caller had frozen in eval mode.
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
