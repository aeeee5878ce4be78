"""How much a model stands: the worst of a suite of attacks at one ε, and the smallest ε that changes each answer.

The robustness that an attack measures is an upper bound, and the lowest of several different ones is the nearest to the
truth. The suite is AutoAttack's idea (Croce & Hein 2020) for two classes and more, whose own suite takes four: PGD with
restarts and at smaller ε, Auto-PGD on two losses, a minimal-distance attack (FMN), the Square attack, and images made
on other models.
Images ``[B, C, H, W]`` in ``[0, 1]``, labels ``[B]``, any number of them: they are worked through ``batch_size`` at a
time. Checks and the promise to leave the model as found are those of ``hpatlib.attacks``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hpatlib import attacks
from hpatlib._model import (
    TOLERANCE,
    check_images,
    check_logits,
    check_number,
    check_whole,
    held_still,
    margin_loss,
    objective,
    ordinary_tensors,
)
from hpatlib.apgd import Norm, apgd, check_eps, distance
from hpatlib.fmn import fmn
from hpatlib.square import search

# The commits since which these find what they find today: an older record that rests on one is stale. To be renewed
# where one finds something else, by another budget of its own or another way, and not for anything else.
SINCE = {"worst_case": "aa6df2e", "smallest_eps": "a5d7ad9"}

Ascended = Callable[[Tensor, Tensor], Tensor]  # logits, labels → what is made large, of each image
Attack = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | int]]  # images, labels → attacked images, forward units


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What a suite of attacks left of each image.

    ``images [B, C, H, W]``: the first that was misclassified, or else the one with the highest margin of all that were
    tried, the clean one included. ``right [B]``: whether every answer was right. ``felled_by [B]``: the attack that
    changed the answer, ``"clean"`` where it was wrong without any, ``""`` where the image stands. ``queries [B]``: what
    was asked of the model, in forward passes; a gradient counts 3.
    """

    images: Tensor
    right: Tensor
    felled_by: tuple[str, ...]
    queries: Tensor


@ordinary_tensors()
def worst_case(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    surrogates: Sequence[nn.Module] = (),
    iterations: int = 20,
    auto_iterations: int | None = None,
    restarts: int = 3,
    queries: int = 500,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> WorstCase:
    """Every attack of the suite in turn, each on the images that are still right; all within ``eps`` of the images.

    ``"PGD"``: from the image itself and ``restarts`` − 1 points of the ball, ``iterations`` steps of 2.5 · ε /
    iterations; ``"PGD, smaller ε"``: from the image itself at ε/2, ε/4, ε/8 and ε/16, for what was trained against
    changes of one size may still fall to a smaller one; ``"APGD-CE"`` and ``"APGD-margin"``, each with
    ``auto_iterations`` steps (None: as many); ``"FMN"`` with the same, where its nearest image lies within ε;
    ``"Square"`` with so many ``queries``; ``"transfer"``: Auto-PGD with the same, made on each of ``surrogates``, whose
    own passes are not counted. In L2 there is no PGD and no Square attack. The budgets are what a CPU affords, about
    1,100 forward passes for an image that stands, a tenth of what AutoAttack spends: give 100 steps of Auto-PGD and
    5000 queries, as it does, where a number is all that matters. ``generator`` draws all starts.
    """
    check_images(images, labels)
    eps, restarts = check_eps(eps, norm), check_whole("restarts", restarts)
    iterations = check_whole("iterations", iterations)
    steps = iterations if auto_iterations is None else check_whole("auto_iterations", auto_iterations)
    queries, batch_size = check_whole("queries", queries, least=2), check_whole("batch_size", batch_size)
    # An attack that goes to the edge of the ball must not fail by the rounding of pixels; in L2, of all of them.
    slack = max(TOLERANCE, torch.finfo(images.dtype).eps / 2) * (1 if norm == "linf" else math.sqrt(images[0].numel()))

    def pgd(eps: float, start: attacks.Start = None) -> Attack:
        tried = partial(attacks.pgd, model, eps=eps, iterations=iterations, start=start, generator=generator)
        return lambda x, y: (tried(x, y), 3 * iterations)

    def auto(network: nn.Module, loss: attacks.Loss) -> Attack:
        tried = partial(apgd, network, eps=eps, iterations=steps, norm=norm, loss=loss, generator=generator)
        return lambda x, y: (tried(x, y), 3 * steps + 1 if network is model else 0)

    def suite() -> Iterator[tuple[str, Attack]]:
        if norm == "linf":
            yield "PGD", pgd(eps)
            yield from (("PGD", pgd(eps, "uniform")) for _ in range(restarts - 1))
            yield from (("PGD, smaller ε", pgd(eps / 2**halvings)) for halvings in range(1, 5))
        yield "APGD-CE", auto(model, "cross-entropy")
        yield "APGD-margin", auto(model, "margin")
        yield "FMN", lambda x, y: (fmn(model, x, y, norm=norm, iterations=steps), 3 * steps - 2)
        if norm == "linf":
            yield "Square", lambda x, y: search(model, x, y, eps=eps, queries=queries, generator=generator)
        for surrogate in surrogates:
            yield "transfer", auto(surrogate, "cross-entropy")

    images, labels, names = images.detach().clone(), labels.clone(), ["", "clean"]  # copies are no inference tensors
    with torch.no_grad(), held_still(model):
        logits = torch.cat([model(x) for x in images.split(batch_size)])
        check_logits(logits, labels)
        worst, highest, wrong = images.clone(), margin_loss(logits, labels), logits.argmax(dim=1) != labels
        felled, spent = wrong.long(), torch.ones_like(labels)  # felled [B]: which of the names
        for name, attack in suite():
            names.append(name)
            left = (~wrong).nonzero().squeeze(1)
            for index in left.split(batch_size) if len(left) else ():
                x, y = images[index], labels[index]
                tried, units = attack(x, y)
                logits = model(tried)
                value, within = margin_loss(logits, y), distance(tried - x, norm) <= eps + slack
                misled = within & (logits.argmax(dim=1) != y)
                higher = within & attacks.worse(misled, value, wrong[index], highest[index])
                worst[index] = torch.where(higher.view(-1, 1, 1, 1), tried, worst[index])
                highest[index], wrong[index] = torch.where(higher, value, highest[index]), misled
                felled[index] = torch.where(misled, len(names) - 1, 0)
                spent[index] += units + 1
    return WorstCase(worst, ~wrong, tuple(names[number] for number in felled.tolist()), spent)


@ordinary_tensors()
def smallest_eps(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    most: float = 8 / 255,
    steps: int = 4,
    iterations: int = 20,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The smallest ε, in L∞, at which an attack changes the answer to each image: ``[N]``, 0 where it is wrong already
    and ``inf`` where none does within ``most``.

    Each image on its own keeps the nearest of all that misleads. First it is looked for at several scales, for a large
    ball may lead past what misleads nearby: PGD on the margin in the ball of ``most``, from noise; on cross-entropy
    from the image itself, in that ball and four more, each a quarter of the one before. Then by bisection in log ε:
    ``steps`` times PGD on the margin at the geometric mean of what is found and what stood, at first a quarter of it,
    from the nearest image scaled down; its direction is a running sum of gradients as in MI-FGSM. Then by FMN, which
    has no ball to choose, in 10 · ``iterations`` steps; and by bisection once more, from half of what is found by then:
    a start nearer by misleads where one from farther away did not.

    What misleads at one ε misleads at any larger, so each value is the size of a change that does it, an upper bound.
    Costs (6 + 2 · ``steps``) · (3 · ``iterations`` + 1) forward passes of PGD, a gradient counting three, and 30 ·
    ``iterations`` of FMN. ``generator`` draws the noise.
    """
    check_images(images, labels)
    most = check_number("most", most, lambda eps: 0 < eps <= 1, "lie in (0, 1], a fraction of the pixel range")
    steps, iterations = check_whole("steps", steps, least=0), check_whole("iterations", iterations)
    batch_size = check_whole("batch_size", batch_size)

    def pgd(x: Tensor, y: Tensor, start: Tensor, eps: Tensor, ascended: Ascended) -> Tensor:
        """Its end within ``eps [B]`` of ``x``."""
        eps = eps.view(-1, 1, 1, 1)
        low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
        step, start = 2.5 / iterations * eps, start.clamp(low, high)
        return attacks.climb(model, start, y, low, high, step=step, iterations=iterations, ascended=ascended, decay=1.0)

    def look(x: Tensor, y: Tensor) -> Tensor:
        """The same of images that are answered right: ``[B]``."""
        nearest, found = x.clone(), x.new_full((len(x),), math.inf)  # what misleads, and how far away it is

        def keep(tried: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
            """Which of ``tried`` mislead and lie nearer than what is known of ``index``; these are known from now."""
            size = distance(tried - x[index], "linf")
            nearer = (model(tried).argmax(dim=1) != y[index]) & (size < found[index])
            nearest[index] = torch.where(nearer.view(-1, 1, 1, 1), tried, nearest[index])
            found[index] = torch.where(nearer, size, found[index])
            return nearer

        def bisect(share: float) -> None:
            """Between what is found and, at first, ``share`` of it; it goes on below while nothing stood."""
            index = found.isfinite().nonzero().squeeze(1)
            low, stood = share * found[index], torch.zeros_like(index, dtype=torch.bool)
            for _ in range(steps if len(index) else 0):
                high = found[index]
                low = torch.where(stood, low, share * high)
                eps = (low * high).sqrt()
                start = x[index] + (eps / high).view(-1, 1, 1, 1) * (nearest[index] - x[index])
                stands = ~keep(pgd(x[index], y[index], start, eps, margin_loss), index)
                low, stood = torch.where(stands, eps, low), stood | stands

        balls = [torch.full_like(found, most / 4**quarters) for quarters in range(5)]
        keep(pgd(x, y, attacks.noisy(x, most, generator), balls[0], margin_loss))
        for eps in balls:
            keep(pgd(x, y, x, eps, objective("cross-entropy")))
        bisect(1 / 4)
        keep(fmn(model, x, y, iterations=10 * iterations))
        bisect(1 / 2)
        return found

    images, labels = images.detach().clone(), labels.clone()  # copies are no inference tensors
    with torch.no_grad(), held_still(model):
        logits = torch.cat([model(x) for x in images.split(batch_size)])
        check_logits(logits, labels)
        smallest = images.new_zeros(len(images))
        right = (logits.argmax(dim=1) == labels).nonzero().squeeze(1)
        for index in right.split(batch_size) if len(right) else ():
            smallest[index] = look(images[index], labels[index])
    return torch.where(smallest <= most + TOLERANCE, smallest, math.inf)
