"""The Square attack (Andriushchenko et al. 2020) in the L∞ ball: random search that never asks for a gradient.

It sees logits only, so it finds what a model hides by masking its gradients: where it beats PGD, PGD's numbers are not
to be believed (``hpatlib.checks``). Images ``[B, C, H, W]`` in ``[0, 1]``, labels ``[B]``, ``eps`` a fraction of the
full pixel range; outputs, checks and the promise to leave the model as found are those of ``hpatlib.attacks``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpatlib._model import (
    Loss,
    check_fraction,
    check_images,
    check_logits,
    check_losses,
    check_number,
    check_whole,
    held_still,
    margin_loss,
    objective,
    ordinary_tensors,
)

# The side of the squares shrinks: their share of the image is halved at each of these iterations out of 10 000.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@ordinary_tensors()
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    loss: Loss = "margin",
    p: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set random squares of pixels to x ± ``eps``, one sign a channel, and keep what makes the model worse.

    ``queries``: forward passes an image, the clean image and the first guess (stripes one pixel wide) included.
    ``loss``: what is made large, as in ``hpatlib.attacks``; the margin still tells images apart where the
    cross-entropy is saturated. ``p``: the first squares' share of the image; it shrinks on the
    published schedule, rescaled to ``queries``. An image is left alone once its label no longer wins. ``generator``
    decides all draws, of which each image has its own. Returns ``[B, C, H, W]``: misclassified, or else with a loss no
    lower than the clean image's; what is misclassified already comes back as it is. Raises ``ValueError`` for bad
    inputs.
    """
    return search(model, images, labels, eps=eps, queries=queries, loss=loss, p=p, generator=generator)[0]


def search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int,
    loss: Loss = "margin",
    p: float = 0.8,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``square`` returns, and the queries ``[B]`` that each image took until it was misclassified."""
    check_images(images, labels)
    eps, queries, ascended = check_fraction("eps", eps), check_whole("queries", queries, least=2), objective(loss)
    p = check_number("p", p, lambda share: 0 < share <= 1, "lie in (0, 1], the first squares' share of the image")
    if eps == 0:
        return images.detach().clone(), torch.zeros_like(labels)

    with torch.no_grad(), held_still(model):
        images = images.detach()
        low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
        count, channels, height, width = images.shape
        logits = model(images)
        check_logits(logits, labels)
        clean, wrong = _loss(logits, labels, ascended)
        stripes = 2 * _whole((count, channels, 1, width), 2, images, generator) - 1
        x = torch.where(wrong.view(-1, 1, 1, 1), images, torch.where(stripes > 0, high, low))
        highest, wrong = _loss(model(x), labels, ascended)
        spent = torch.full_like(labels, 2)
        rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
        columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
        for iteration in range(queries - 2):
            side = _side(p, iteration / (queries - 2), height, width)
            # Drawn for all images, so that what one gets does not depend on how long the others last.
            top = _whole((count,), height - side + 1, images, generator)
            left = _whole((count,), width - side + 1, images, generator)
            signs = 2 * _whole((count, channels, 1, 1), 2, images, generator) - 1
            active = (~wrong).nonzero().squeeze(1)  # [A]
            if len(active) == 0:
                break
            down, right = rows - top[active].view(-1, 1, 1, 1), columns - left[active].view(-1, 1, 1, 1)
            inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)  # [A, 1, H, W]
            tried = torch.where(inside, torch.where(signs[active] > 0, high[active], low[active]), x[active])
            value, misled = _loss(model(tried), labels[active], ascended)
            better = (value > highest[active]) | misled
            x[active] = torch.where(better.view(-1, 1, 1, 1), tried, x[active])
            highest[active] = torch.where(better, value, highest[active])
            wrong[active] = misled
            spent[active] += 1
        # The stripes replace the clean image unasked, for squares work best from a corner of the ball.
        return torch.where(((clean >= highest) & ~wrong).view(-1, 1, 1, 1), images, x), spent


def _loss(logits: Tensor, labels: Tensor, ascended: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What is to be made large, and whether the label no longer wins: ``[B]`` each."""
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: check its weights and its forward pass for NaN")
    value = ascended(logits, labels)
    check_losses(value)
    return value, margin_loss(logits, labels) > 0


def _side(p: float, progress: float, height: int, width: int) -> int:
    """The side of the square in pixels after ``progress`` in [0, 1) of all iterations."""
    halvings = sum(progress * 10_000 > start for start in HALVINGS)
    side = round(math.sqrt(p / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _whole(shape: tuple[int, ...], below: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randint(below, shape, generator=generator, device=device).to(like.device)
