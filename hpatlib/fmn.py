"""The fast minimum-norm attack, FMN (Pintor et al. 2021): the nearest misclassified image, in L∞ or in L2.

It has no budget: each image's ball shrinks while the image in it misleads, and grows while it does not, around
normalised steps up the margin. Multiplying the logits by a number changes nothing, so that saturated losses do not
mislead it. FAB (Croce & Hein 2020b) is its peer; it costs a gradient a class, and finds nothing where the model is far
from linear. Images ``[B, C, H, W]`` in ``[0, 1]``, labels ``[B]``; checks and the promise to leave the model as found
are those of ``hpatlib.attacks``.
"""

import math

import torch
from torch import Tensor, nn

from hpatlib._model import check_images, check_whole, held_still, objective, ordinary_tensors
from hpatlib.apgd import Norm, ball, check_eps, distance, look
from hpatlib.attacks import check_total, summed

STEP = (1.0, 0.01)  # α: the first and the last step, lengths in L2
PACE = (0.05, 0.001)  # γ: the share by which a ball grows and shrinks, first and last


@ordinary_tensors()
def fmn(model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm = "linf", iterations: int = 50) -> Tensor:
    """The nearest misclassified image that is found, or the image as it is where none is: ``[B, C, H, W]``.

    An image that is misclassified already is its own nearest. Until one is found, the ball reaches as far as the
    boundary would lie if the margin were linear. Costs ``iterations`` − 1 gradients and a look.
    """
    check_images(images, labels)
    check_eps(0, norm)
    iterations, ascended = check_whole("iterations", iterations), objective("margin")
    tiny = max(1e-12, torch.finfo(images.dtype).tiny)
    dual: Norm | float = 1 if norm == "linf" else 2  # what a change measured in L∞ does is measured in L1
    with held_still(model):
        images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
        x = nearest = images
        smallest = images.new_full((len(images),), math.inf)  # [B]
        eps, total = smallest, images.new_zeros(())
        for iteration in range(iterations):
            share = (1 + math.cos(math.pi * iteration / iterations)) / 2
            step, pace = (last + share * (first - last) for first, last in (STEP, PACE))
            lead, wrong, gradient = look(
                model, x, labels, ascended, first=iteration == 0, last=iteration == iterations - 1
            )
            total = total + summed(lead, gradient)
            length = distance(x - images, norm)
            closer = wrong & (length < smallest)
            nearest = torch.where(closer.view(-1, 1, 1, 1), x, nearest)
            smallest = torch.where(closer, length, smallest)
            away = length + lead.abs() / torch.linalg.vector_norm(gradient.flatten(1), dual, dim=1).clamp_min(tiny)
            # Beyond the boundary, for on it two logits tie.
            reach = (1 + pace) * torch.where(smallest.isfinite(), eps, away)
            eps = torch.where(wrong, torch.minimum((1 - pace) * eps, smallest), reach)
            ahead = x + step * gradient / distance(gradient, "l2").clamp_min(tiny).view(-1, 1, 1, 1)
            x = ball(images, eps.view(-1, 1, 1, 1), norm)(ahead)
        check_total(total)
    return nearest
