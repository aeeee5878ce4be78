"""Pixel attacks in the L∞ ball: FGSM, BIM, MI-FGSM and PGD, equations 2–3 of the leukemia paper.

One gradient loop; each attack is a choice of start, step and direction. Images are ``[B, C, H, W]`` floats in
``[0, 1]``, labels ``[B]`` longs, ``eps`` and ``step`` fractions of the full pixel range (``6 / 255``). Every attack
ascends the cross-entropy, returns images in ``[0, 1]`` within ``eps`` of the input, and leaves the model as found.
All raise ``ValueError`` for images outside ``[0, 1]``, NaN, wrong dtypes or shapes, labels the model has no class for,
and budgets that make no sense.
"""

import math
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib._model import check_images, check_logits, held_still

Start = Literal["uniform", "gaussian"] | None

GAUSSIAN_START = 0.001  # line 5 of Algorithm 1: X' = X + 0.001 · N(0, 1)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size ``eps`` along the gradient's sign.

    Returns images ``[B, C, H, W]`` = clip(x + eps · sign ∇ℓ).
    """
    return _ascend(model, images, labels, eps=eps, step=eps, iterations=1)


def gradient_step(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """The ultrasound report's formula as it is printed, x + eps · ∇ℓ: no sign, no clipping (C1).

    Returns ``[B, C, H, W]``, which may leave ``[0, 1]``. ℓ is each image's own cross-entropy, not the batch's mean.
    """
    return images + eps * gradient(model, images, labels)


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """∇ℓ, how the cross-entropy of each image changes with its pixels: ``[B, C, H, W]``."""
    check_images(images, labels)
    with torch.inference_mode(False), torch.enable_grad(), held_still(model):
        x = images.detach().clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(x), labels.clone(), reduction="sum"), x)[0]


def bim(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, iterations: int) -> Tensor:
    """Basic iterative method (Kurakin et al. 2016): ``iterations`` steps of size ``step`` inside the ball.

    Returns images ``[B, C, H, W]``.
    """
    return _ascend(model, images, labels, eps=eps, step=step, iterations=iterations)


def mifgsm(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, iterations: int, decay: float = 1.0
) -> Tensor:
    """Momentum iterative FGSM (Dong et al. 2018): the direction is a running sum of L1-normalised gradients.

    ``decay`` is the weight of the past (0: BIM). Returns images ``[B, C, H, W]``.
    """
    return _ascend(model, images, labels, eps=eps, step=step, iterations=iterations, decay=decay)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    start: Start = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018; equations 2–3 with the step ``Δ_I`` and the projection).

    ``start`` is ``"uniform"`` in the ball (Madry), ``"gaussian"`` 0.001 · N(0, 1) (line 5 of Algorithm 1, kept inside
    the ball) or ``None`` (BIM); ``generator`` draws it. The printed equation 2 steps by ε and does not project: see
    the interpretations page, H12. Returns the last iterate ``[B, C, H, W]``.
    """
    return _ascend(model, images, labels, eps=eps, step=step, iterations=iterations, start=start, generator=generator)


def random_restarts(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    restarts: int = 5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD from ``restarts`` starts, the worst end of each image on its own: ``[B, C, H, W]``.

    The first start is the image itself (BIM), the others are uniform in the ball. Worst is misclassified before
    correctly classified, then the higher cross-entropy: with three classes or more a higher loss can still be right.
    Each image keeps its own worst end, not the batch its worst run, which would look more robust than it is.
    """
    if not isinstance(restarts, Integral) or restarts < 1:
        raise ValueError(f"restarts must be a whole number of at least 1, found {restarts!r}")
    whole = {"eps": eps, "step": step, "iterations": iterations}
    worst, worst_loss, worst_wrong = None, None, None
    for restart in range(restarts):
        x = pgd(model, images, labels, **whole, start="uniform" if restart else None, generator=generator)
        with torch.no_grad(), held_still(model):
            logits = model(x)
            loss, wrong = F.cross_entropy(logits, labels, reduction="none"), logits.argmax(dim=1) != labels  # [B]
        if worst is None:
            worst, worst_loss, worst_wrong = x, loss, wrong
            continue
        worse = (wrong & ~worst_wrong) | ((wrong == worst_wrong) & (loss > worst_loss))
        worst = torch.where(worse.view(-1, 1, 1, 1), x, worst)
        worst_loss, worst_wrong = torch.where(worse, loss, worst_loss), worst_wrong | wrong
    return worst


def _ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    start: Start = None,
    decay: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The one loop: x ← clip(x + step · sign(direction)) to the ε-ball and to [0, 1]."""
    check_images(images, labels)
    _check_budget(eps, step, iterations)
    if decay is not None and not 0 <= decay < math.inf:
        raise ValueError(f"decay must be finite and at least 0, found {decay!r}")
    if start not in ("uniform", "gaussian", None):
        raise ValueError(f'start must be "uniform", "gaussian" or None, found {start!r}')
    if eps == 0:
        return images.detach().clone()

    # A caller's no_grad or inference_mode must not starve the gradients.
    with torch.inference_mode(False), torch.enable_grad(), held_still(model):
        images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
        low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
        x = _start(images, start, eps, generator).clamp_(low, high)
        momentum = torch.zeros_like(x) if decay is not None else None
        finite = torch.ones((), dtype=torch.bool, device=x.device)
        for iteration in range(iterations):
            x.requires_grad_()
            logits = model(x)
            if iteration == 0:
                check_logits(logits, labels)
            # The sum, not the mean: an image's gradient must not shrink with the size of its batch.
            loss = F.cross_entropy(logits, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            # sign() would turn NaN into a silent 0, and NaN logits can have finite gradients; asked for after the loop
            finite &= loss.detach().isfinite() & gradient.isfinite().all()
            if momentum is None:
                direction = gradient
            else:
                size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
                # A zero gradient stays zero instead of becoming 0/0.
                direction = momentum = decay * momentum + gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
            x = x.detach().add_(direction.sign(), alpha=step).clamp_(low, high)
        if not finite:
            raise ValueError(
                "the model's loss or gradient is not finite: check its weights and its forward pass for NaN"
            )
    return x


def _start(images: Tensor, start: Start, eps: float, generator: torch.Generator | None) -> Tensor:
    if start is None:
        return images.clone()
    # Drawn where the generator lives, so that one seed gives one start on every device.
    device = generator.device if generator is not None else images.device
    draw = {"uniform": torch.rand, "gaussian": torch.randn}[start]
    noise = draw(images.shape, generator=generator, device=device, dtype=images.dtype).to(images.device)
    return images + (GAUSSIAN_START * noise if start == "gaussian" else eps * (2 * noise - 1))


def _check_budget(eps: float, step: float, iterations: int) -> None:
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], a fraction of the pixel range such as 6/255, found {eps!r}")
    if not 0 <= step <= 1:
        raise ValueError(f"step must lie in [0, 1], a fraction of the pixel range such as 1/255, found {step!r}")
    if not isinstance(iterations, Integral) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1, found {iterations!r}")
