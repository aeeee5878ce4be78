"""Auto-PGD (Croce & Hein 2020): PGD with momentum that finds its own step, in the L∞ or the L2 ball.

What it needs is a budget and a number of iterations: an image's step starts at 2ε and is halved where the loss has
stopped rising, and its search then goes on from its best point. Published with the cross-entropy and a ratio of logits
that takes three classes; the margin does the same for two. Images ``[B, C, H, W]`` in ``[0, 1]``, labels ``[B]``;
outputs, checks and the promise to leave the model as found are those of ``hpatlib.attacks``.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hpatlib._model import (
    Loss,
    check_fraction,
    check_images,
    check_logits,
    check_number,
    check_whole,
    derivative,
    held_still,
    objective,
    ordinary_tensors,
)
from hpatlib.attacks import check_total, drawn, noisy, summed, worse

Norm = Literal["linf", "l2"]

MOMENTUM = 0.75  # α: the share of the new step; the rest repeats the last one
RISING = 0.75  # ρ: the share of steps that must raise the loss for the step to keep its size


@ordinary_tensors()
def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    iterations: int = 100,
    norm: Norm = "linf",
    loss: Loss = "cross-entropy",
    start: Literal["uniform"] | None = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD, algorithm 1 of its paper: the worst of all points passed, of each image on its own.

    ``eps``: in L∞ a fraction of the pixel range, in ``norm="l2"`` the length of the change, a finite number. ``start``:
    drawn by ``generator`` in the ball (L2: on its sphere), or ``None``, the image itself. Worst is as ``attacks.worse``
    has it. Costs ``iterations`` gradients and one forward pass. Returns ``[B, C, H, W]``.
    """
    check_images(images, labels)
    eps, ascended, iterations = check_eps(eps, norm), objective(loss), check_whole("iterations", iterations)
    if start not in ("uniform", None):
        raise ValueError(f'start must be "uniform" or None, found {start!r}')
    if eps == 0:
        return images.detach().clone()

    with held_still(model):
        images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
        into = ball(images, eps, norm)
        x = images if start is None else into(_noisy(images, eps, norm, generator))
        value, wrong, gradient = look(model, x, labels, ascended, first=True)
        total = summed(value, gradient)
        worst, worst_value, worst_wrong = x, value, wrong
        best, best_value, best_gradient = x, value, gradient  # by loss alone: where a halved step goes on from
        step = images.new_full((len(images), 1, 1, 1), 2 * eps)
        halved, best_before = torch.zeros_like(wrong), value
        rises, since, checkpoints, before = torch.zeros_like(labels), 0, _checkpoints(iterations), x
        for iteration in range(1, iterations + 1):
            ahead = into(x + step * _steepest(gradient, norm))
            if iteration > 1:
                ahead = into(x + MOMENTUM * (ahead - x) + (1 - MOMENTUM) * (x - before))
            before, x, last = x, ahead, value
            value, wrong, gradient = look(model, x, labels, ascended, last=iteration == iterations)
            total = total + summed(value, gradient)
            rises += value > last
            worsened, better = worse(wrong, value, worst_wrong, worst_value), value > best_value
            worst, worst_value = _where(worsened, x, worst), torch.where(worsened, value, worst_value)
            worst_wrong = worst_wrong | wrong
            best, best_gradient = _where(better, x, best), _where(better, gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            if iteration in checkpoints:
                # Condition 1: it rose too seldom. Condition 2: no better point, although the step was kept.
                halved = (rises < RISING * (iteration - since)) | (~halved & (best_value == best_before))
                step = _where(halved, step / 2, step)
                x, gradient = _where(halved, best, x), _where(halved, best_gradient, gradient)
                value = torch.where(halved, best_value, value)
                rises, since, best_before = torch.zeros_like(rises), iteration, best_value
        check_total(total)
    return worst


def check_eps(eps: float, norm: Norm) -> float:
    """``eps`` as a number; ``ValueError`` unless it is a budget of ``norm``, and for an unknown norm."""
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2", found {norm!r}')
    if norm == "linf":
        return check_fraction("eps", eps)
    return check_number("eps", eps, lambda length: 0 <= length < math.inf, "be finite and at least 0, a length in L2")


def distance(change: Tensor, norm: Norm) -> Tensor:
    """How long each image's ``change [B, C, H, W]`` is: ``[B]``."""
    return torch.linalg.vector_norm(change.flatten(1), math.inf if norm == "linf" else 2, dim=1)


def look(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    ascended: Callable[[Tensor, Tensor], Tensor],
    *,
    first: bool = False,
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss ``[B]``, whether the answer is wrong ``[B]``, and the loss's gradient, at the ``last`` look left at 0.

    The ``first`` look checks what the model answers. The model must be held still.
    """
    with torch.set_grad_enabled(not last):
        x = x.detach().requires_grad_(not last)
        logits = model(x)
        if first:
            check_logits(logits, labels)
        value = ascended(logits, labels)
        gradient = torch.zeros_like(x) if last else derivative(value.sum(), x)
    return value.detach(), logits.detach().argmax(dim=1) != labels, gradient


def _checkpoints(iterations: int) -> set[int]:
    """The iterations ⌈p · iterations⌉ at which steps are looked at; p in whole per cent, for ⌈0.41 · 100⌉ is not 42."""
    before, p, found = 0, 22, set()
    while p <= 100:
        found.add(-(-p * iterations // 100))
        before, p = p, p + max(p - before - 3, 6)
    return found


def _steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of length 1 along which the loss rises most; where there is none, 0."""
    if norm == "linf":
        return gradient.sign()
    length = distance(gradient, norm).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / length.view(-1, 1, 1, 1)


def ball(images: Tensor, eps: float | Tensor, norm: Norm) -> Callable[[Tensor], Tensor]:
    """What brings ``x [B, C, H, W]`` within ``eps`` (one, or ``[B, 1, 1, 1]``) of ``images`` and into [0, 1]."""
    if norm == "linf":
        low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
        return lambda x: x.clamp(low, high)

    def nearer(x: Tensor) -> Tensor:
        change = x - images
        length = distance(change, norm).clamp_min(torch.finfo(x.dtype).tiny).view(-1, 1, 1, 1)
        return (images + change * (eps / length).clamp(max=1)).clamp_(0, 1)  # which brings it nearer still

    return nearer


def _noisy(images: Tensor, eps: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    if norm == "linf":
        return noisy(images, eps, generator)
    return images + eps * _steepest(drawn(torch.randn, images, generator), norm)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` for the images ``chosen [B]``, ``no`` for the others, ``[B, …]`` each."""
    return torch.where(chosen.view(-1, 1, 1, 1), yes, no)
