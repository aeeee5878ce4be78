"""Pixel attacks in the L∞ ball: FGSM, BIM, MI-FGSM and PGD, equations 2–3 of the leukemia paper.

One gradient loop; each attack is a choice of start, step and direction. Images are ``[B, C, H, W]`` floats in
``[0, 1]``, labels ``[B]`` longs, ``eps`` and ``step`` fractions of the full pixel range (``6 / 255``). Every attack
returns images in ``[0, 1]`` within ``eps`` of the input, but for the rounding of their dtype (of half precision a
tenth of a grey level, of bfloat16 half of one), and leaves the model as found.

Each ascends a ``loss``: ``"cross-entropy"``; ``"margin"``, the best other logit less the label's own, which has slopes
where the cross-entropy is saturated; or a function of logits ``[B, K]`` and labels ``[B]`` that returns ``[B]``.

All raise ``ValueError`` for images outside ``[0, 1]``, NaN, wrong dtypes or shapes, labels the model has no class for,
models without finite logits or without a gradient, and budgets that make no sense.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from hpatlib import _sharing
from hpatlib._model import (
    Loss,
    check_fraction,
    check_images,
    check_logits,
    check_losses,
    check_number,
    check_whole,
    derivative,
    held_still,
    objective,
    ordinary_tensors,
)

Start = Literal["uniform", "gaussian"] | None

GAUSSIAN_START = 0.001  # line 5 of Algorithm 1: X' = X + 0.001 · N(0, 1)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, loss: Loss = "cross-entropy") -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size ``eps`` along the gradient's sign.

    Returns images ``[B, C, H, W]`` = clip(x + eps · sign ∇ℓ).
    """
    return _ascend(model, images, labels, eps=eps, step=eps, iterations=1, loss=loss)


@ordinary_tensors()
def gradient_step(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """The ultrasound report's formula as it is printed, x + eps · ∇ℓ: no sign, no clipping (C1).

    Returns ``[B, C, H, W]``, which may leave ``[0, 1]``. ℓ is each image's own cross-entropy, not the batch's mean.
    """
    eps = check_number("eps", eps, math.isfinite, "be a finite number")
    return images + eps * gradient(model, images, labels)


@ordinary_tensors()
def gradient(model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = "cross-entropy") -> Tensor:
    """∇ℓ, how the loss of each image changes with its pixels: ``[B, C, H, W]``."""
    check_images(images, labels)
    ascended = objective(loss)
    with torch.enable_grad(), held_still(model):
        x, labels = images.detach().clone().requires_grad_(), labels.clone()
        logits = model(x)
        check_logits(logits, labels)
        return derivative(ascended(logits, labels).sum(), x)


def bim(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    loss: Loss = "cross-entropy",
) -> Tensor:
    """Basic iterative method (Kurakin et al. 2016): ``iterations`` steps of size ``step`` inside the ball.

    Returns images ``[B, C, H, W]``.
    """
    return _ascend(model, images, labels, eps=eps, step=step, iterations=iterations, loss=loss)


def mifgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    decay: float = 1.0,
    loss: Loss = "cross-entropy",
) -> Tensor:
    """Momentum iterative FGSM (Dong et al. 2018): the direction is a running sum of L1-normalised gradients.

    ``decay`` is the weight of the past (0: BIM). Returns images ``[B, C, H, W]``.
    """
    return _ascend(model, images, labels, eps=eps, step=step, iterations=iterations, decay=decay, loss=loss)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float | None = None,
    iterations: int,
    start: Start = "uniform",
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018; equations 2–3 with the step ``Δ_I`` and the projection).

    ``start`` is ``"uniform"`` in the ball (Madry), ``"gaussian"`` 0.001 · N(0, 1) (line 5 of Algorithm 1, kept inside
    the ball) or ``None`` (BIM); ``generator`` draws it. ``step``: None is 2.5 · eps / iterations, so that any point of
    the ball can be reached. The printed equation 2 steps by ε and does not project: see the interpretations page, L12.
    Returns the last iterate ``[B, C, H, W]``.
    """
    return _ascend(
        model, images, labels, eps=eps, step=step, iterations=iterations, start=start, loss=loss, generator=generator
    )


@ordinary_tensors()
def random_restarts(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float | None = None,
    iterations: int,
    restarts: int = 5,
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD from ``restarts`` starts, the worst end of each image on its own: ``[B, C, H, W]``.

    The first start is the image itself (BIM), the others are uniform in the ball; worst is as in ``worse``; ``step`` as
    in ``pgd``.
    Each image keeps its own worst end, not the batch its worst run, which would look more robust than it is.
    """
    restarts, ascended = check_whole("restarts", restarts), objective(loss)
    attack = partial(pgd, eps=eps, step=step, iterations=iterations, loss=loss, generator=generator)

    def end(start: Start) -> tuple[Tensor, Tensor, Tensor]:
        x = attack(model, images, labels, start=start)
        with torch.no_grad(), held_still(model):
            logits = model(x)
            check_logits(logits, labels)
            value, wrong = ascended(logits, labels), logits.argmax(dim=1) != labels  # [B] each
        check_losses(value)
        return x, value, wrong

    worst, worst_value, worst_wrong = end(None)
    for _ in range(restarts - 1):
        x, value, wrong = end("uniform")
        worsened = worse(wrong, value, worst_wrong, worst_value)
        worst = torch.where(worsened.view(-1, 1, 1, 1), x, worst)
        worst_value, worst_wrong = torch.where(worsened, value, worst_value), worst_wrong | wrong
    return worst


def worse(wrong: Tensor, value: Tensor, than_wrong: Tensor, than_value: Tensor) -> Tensor:
    """Which images ``[B]`` are worse for the model than others: misclassified before right, then the higher loss.

    With three classes or more a higher loss can still be right.
    """
    return (wrong & ~than_wrong) | ((wrong == than_wrong) & (value > than_value))


@ordinary_tensors()
def _ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float | None,
    iterations: int,
    start: Start = None,
    decay: float | None = None,
    loss: Loss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Check what was asked for, and climb from a start in the ball."""
    check_images(images, labels)
    eps, iterations, ascended = check_fraction("eps", eps), check_whole("iterations", iterations), objective(loss)
    if step is None:
        step = 2.5 * eps / iterations
    elif check_fraction("step", step, "1/255") == 0 < eps:
        raise ValueError(
            f"step is 0, which leaves every image as it is although eps is {eps:g}: take a step such as 1/255"
        )
    if decay is not None:
        decay = check_number("decay", decay, lambda weight: 0 <= weight < math.inf, "be finite and at least 0")
    if start not in ("uniform", "gaussian", None):
        raise ValueError(f'start must be "uniform", "gaussian" or None, found {start!r}')
    if eps == 0:
        return images.detach().clone()

    with held_still(model):
        images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
        low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
        if start == "gaussian":
            x = images + GAUSSIAN_START * drawn(torch.randn, images, generator)
        else:
            x = images.clone() if start is None else noisy(images, eps, generator)
        x.clamp_(low, high)
        return climb(model, x, labels, low, high, step=step, iterations=iterations, ascended=ascended, decay=decay)


def climb(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    step: float | Tensor,
    iterations: int,
    ascended: Callable[[Tensor, Tensor], Tensor],
    decay: float | None = None,
) -> Tensor:
    """The one loop, x ← clip(x + step · sign(direction)) to what lies between ``low`` and ``high``, unchecked.

    ``x``, ``low``, ``high [B, C, H, W]``: x is written over. ``step``: one for all, or ``[B, 1, 1, 1]``. ``ascended``:
    what is made large, as of ``_model.objective``. The model must be held still.
    """
    momentum = torch.zeros_like(x) if decay is not None else None
    total = x.new_zeros(())
    with torch.enable_grad():  # a caller's no_grad must not starve the gradients
        for iteration in range(iterations):
            x.requires_grad_()
            logits = model(x)
            if iteration == 0:
                check_logits(logits, labels)
            # The sum, not the mean: an image's gradient must not shrink with the size of its batch.
            values = ascended(logits, labels)  # [B]
            gradient = derivative(values.sum(), x)
            # sign() would turn NaN into a silent 0, and NaN logits can have finite gradients. A sum keeps what is not
            # finite until after the loop, and costs a fifth of asking every pixel.
            total = total + summed(values, gradient)
            if momentum is None or decay is None:
                direction = gradient
            else:
                size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
                # A zero gradient stays zero instead of becoming 0/0.
                momentum = decay * momentum + gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
                direction = momentum
            x = x.detach().add_(direction.sign().mul_(step)).clamp_(low, high)
    check_total(total)
    return x


def summed(values: Tensor, gradient: Tensor) -> Tensor:
    """Of all of them, for ``check_total``: in single precision at least, for half precision ends at 65,504."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return values.detach().sum(dtype=wide) + gradient.sum(dtype=wide)


def check_total(total: Tensor) -> None:
    """Raise ``ValueError`` where the sum of all losses and gradients that an attack saw is not finite."""
    if not total.isfinite():
        raise ValueError("the model's loss or gradient is not finite: check its weights and its forward pass for NaN")


def noisy(images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
    """A point of the ball around each image, uniform: ``[B, C, H, W]``, not clipped to [0, 1]."""
    return images + eps * (2 * drawn(torch.rand, images, generator) - 1)


def drawn(draw: Callable[..., Tensor], images: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn where the generator lives, so that one seed gives one start on every device.
    device = generator.device if generator is not None else images.device
    return _sharing.drawn(draw, images.shape, generator=generator, device=device, dtype=images.dtype).to(images.device)
