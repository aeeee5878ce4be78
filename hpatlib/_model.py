"""What every attack needs of a model and its inputs: checked images, and a model held still."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOLERANCE = 1e-6  # undoing a normalisation is not exact in floats: 1 + 1e-7 is still a legal pixel


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
    """Raise ``ValueError`` unless a model's first answer is ``[…, classes]`` with a class for every label."""
    if logits.ndim != 2:
        raise ValueError(f"the model must return logits [B, classes], found {list(logits.shape)}")
    if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(
            f"labels must lie in 0…{logits.shape[1] - 1} (the model has {logits.shape[1]} classes), "
            f"found {labels.min().item()}…{labels.max().item()}"
        )


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
