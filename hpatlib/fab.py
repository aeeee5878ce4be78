"""FAB, the fast adaptive boundary attack (Croce & Hein 2020b): the nearest misclassified image, in L∞ or L2.

It has no budget and no step: the model is taken as linear where the search stands, the nearest point of [0, 1]ᴰ on the
boundary of two classes follows in closed form, and the search goes there, pulled back towards the image. Multiplying
the logits by a number changes nothing, so that saturated losses do not mislead it. Images ``[B, C, H, W]`` in
``[0, 1]``, labels ``[B]``; checks and the promise to leave the model as found are those of ``hpatlib.attacks``.
"""

import torch
from torch import Tensor, nn

from hpatlib._model import check_images, check_logits, check_whole, derivative, held_still, margin, ordinary_tensors
from hpatlib.apgd import Norm, check_eps, distance

PULL = 0.1  # α_max: the largest share of the way that starts at the image itself
OVERSHOOT = 1.05  # η: so far beyond the boundary of the linear model
RETREAT = 0.9  # β: what remains of a change that misled, for the next try
PROJECTION = 15  # Newton steps; each is exact up to where the next pixels reach black or white, few of them do


@ordinary_tensors()
def fab(model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm = "linf", iterations: int = 30) -> Tensor:
    """The nearest misclassified image that is found, or the image as it is where none is: ``[B, C, H, W]``.

    An image that is misclassified already is its own nearest. Algorithm 1 of the paper without random restarts; costs
    K − 1 gradients on one forward pass and a second forward pass an iteration, for K classes.
    """
    check_images(images, labels)
    check_eps(0, norm)
    iterations = check_whole("iterations", iterations)
    with torch.enable_grad(), held_still(model):
        images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
        x, nearest, finite = images, images, torch.ones((), dtype=torch.bool, device=images.device)
        for iteration in range(iterations):
            lead, slope, wrong = _boundary(model, x, labels, norm, first=iteration == 0)
            if iteration == 0:
                radius = torch.where(wrong, 0.0, torch.inf).to(images)
            finite &= lead.isfinite().all() & slope.isfinite().all()
            onward = _onto(x, slope, -lead, norm)
            anew = _onto(images, slope, (slope * (x - images)).sum(dim=(1, 2, 3)) - lead, norm)
            near, far = distance(onward, norm), distance(anew, norm)
            share = (near / (near + far).clamp_min(1e-12)).clamp_max(PULL).view(-1, 1, 1, 1)
            x = torch.lerp(x + OVERSHOOT * onward, images + OVERSHOOT * anew, share).clamp_(0, 1)
            with torch.no_grad():
                wrong = model(x).argmax(dim=1) != labels
            length = distance(x - images, norm)
            closer = wrong & (length < radius)
            nearest, radius = torch.where(closer.view(-1, 1, 1, 1), x, nearest), torch.where(closer, length, radius)
            x = torch.where(wrong.view(-1, 1, 1, 1), torch.lerp(images, x, RETREAT), x)
        if not finite:
            raise ValueError(
                "the model's logits or gradient are not finite: check its weights and its forward pass for NaN"
            )
    return nearest


def _boundary(model: nn.Module, x: Tensor, labels: Tensor, norm: Norm, *, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The class whose boundary is nearest if the model were linear: z_k − z_y ``[B]``, its gradient, and who is wrong.

    Where a change is measured in L∞, what it does to a linear function is measured in L1, and in L2 in L2.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    if first:
        check_logits(logits, labels)
        margin(logits[:1], labels[:1])  # says so where there is only one class
    classes, own = logits.shape[1], logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = [(labels + shift).remainder(classes).unsqueeze(1) for shift in range(1, classes)]
    leads = [logits.gather(1, other).squeeze(1) - own for other in others]  # [B] each
    last = len(leads) - 1
    slope = torch.stack([derivative(lead.sum(), x, retain_graph=k < last) for k, lead in enumerate(leads)])
    lead = torch.stack(leads).detach()  # [K − 1, B]
    dual = torch.linalg.vector_norm(slope.flatten(2), 1 if norm == "linf" else 2, dim=2)
    nearest, every = (lead.abs() / dual.clamp_min(1e-12)).argmin(dim=0), torch.arange(len(x), device=x.device)
    return lead[nearest, every], slope[nearest, every], logits.detach().argmax(dim=1) != labels


def _onto(x: Tensor, slope: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The shortest change ``[B, C, H, W]`` with ⟨slope, change⟩ = ``gap [B]`` that keeps ``x`` in [0, 1].

    Every pixel moves at a pace, 1 in L∞ and \\|slope\\| in L2, until it is black or white; the time t at which the sum
    of all gains, Σ \\|slope\\| · min(t · pace, room), is \\|gap\\| is found by Newton's method: the sum is concave and
    made of straight pieces, so that t rises to its value and stays. Where the gap is out of reach, all move as far as
    they can.
    """
    direction = slope.sign() * gap.sign().view(-1, 1, 1, 1)
    room = torch.where(direction > 0, 1 - x, x).clamp_min(0)
    weight = slope.abs()
    pace = torch.ones_like(weight) if norm == "linf" else weight
    gain, t = weight * pace, torch.zeros_like(gap)
    for _ in range(PROJECTION):
        moved = t.view(-1, 1, 1, 1) * pace
        missing = gap.abs() - (weight * torch.minimum(moved, room)).sum(dim=(1, 2, 3))
        speed = torch.where(moved < room, gain, 0.0).sum(dim=(1, 2, 3))
        t = t + torch.where(speed > 0, missing.clamp_min(0) / speed.clamp_min(torch.finfo(t.dtype).tiny), 0.0)
    return direction * torch.minimum(t.view(-1, 1, 1, 1) * pace, room)
