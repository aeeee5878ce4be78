"""Is a robustness number to be believed? Signs that a model masks its gradients, so that attacks fail for no merit.

Attacks that follow gradients say little about a model whose gradients are zero, saturated or misleading. Each check
looks for one sign that such a model gives (Athalye et al. 2018, Carlini et al. 2019): an attack that should be weaker
and is stronger. It is a row of ``CHECKS`` that says when it is raised, why that is a sign, and what to do. A check that
is not raised proves nothing; one that is makes the number an upper bound at best.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import attacks, statistics
from hpatlib._model import check_images, check_logits, check_number, check_whole, held_still
from hpatlib.square import square

GREY = 0.5  # the ε that turns any image into plain grey
BUDGETS = (0.25, 0.5, 1.0, 2.0)  # × ε: where PGD is run, and at GREY


@dataclass(frozen=True)
class Evidence:
    """What the checks look at, 1.0 or 0.0 an image. Right means: right on the clean image and under the attack.

    ``labels [N]``; ``zero_gradient [N]``: 1.0 where the loss's gradient is 0 in every pixel; right under FGSM
    ``fgsm [N]``, under PGD with restarts ``pgd [N]``, under the same made on the surrogate ``transfer [N]``,
    under the Square attack ``square [N]``, all at one ε; and under PGD at each of ``budgets`` (rising, [E], the last
    one ``GREY``), ``by_budget [N, E]``.
    """

    labels: np.ndarray
    zero_gradient: np.ndarray
    fgsm: np.ndarray
    pgd: np.ndarray
    transfer: np.ndarray
    square: np.ndarray
    budgets: tuple[float, ...]
    by_budget: np.ndarray


def zero_gradients(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Share of images whose loss does not change with any pixel."""
    return evidence.zero_gradient, 0.95


def rises_with_eps(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Accuracy at a larger budget less accuracy at a smaller one, for the two budgets where that is largest.

    The pair is picked after looking, so its interval is widened: the level 95 % is meant for all pairs together.
    """
    pairs = [(i, j) for j in range(len(evidence.budgets)) for i in range(j)]
    rises = [evidence.by_budget[:, j] - evidence.by_budget[:, i] for i, j in pairs]
    return max(rises, key=np.mean), 1 - 0.05 / len(pairs)


def survives_grey(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Accuracy at ε = 0.5 less the share of the most frequent class.

    At that budget every image can become the same grey, on which no model is right more often than that.
    """
    most = np.unique(evidence.labels, return_counts=True)[1].max() / len(evidence.labels)
    return evidence.by_budget[:, -1] - most, 0.95


def transfer_beats_whitebox(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Accuracy under PGD on the model itself less accuracy under PGD on the surrogate."""
    return evidence.pgd - evidence.transfer, 0.95


def gradient_free_beats_gradient(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Accuracy under PGD less accuracy under the Square attack."""
    return evidence.pgd - evidence.square, 0.95


def one_step_beats_iterated(evidence: Evidence) -> tuple[np.ndarray, float]:
    """Accuracy under PGD less accuracy under FGSM."""
    return evidence.pgd - evidence.fgsm, 0.95


@dataclass(frozen=True)
class Check:
    """One sign of masked gradients: when it is raised, why it is a sign, and what to do about it.

    ``measure`` takes ``Evidence`` to values ``[N]``, one an image, whose mean is above 0 if the sign is there, and the
    level of their interval.
    """

    name: str
    raised_if: str
    explanation: str
    advice: str
    measure: Callable[[Evidence], tuple[np.ndarray, float]]


CHECKS = (
    Check(
        "zero gradients",
        "the gradient of the cross-entropy is zero in every pixel of some images",
        "A gradient attack does not move there: a rounding or thresholding stage cuts the gradient, or the logits are "
        "so large that the cross-entropy is exactly 0 in floating point.",
        "Attack a margin of the logits instead of the cross-entropy or divide the logits by a constant; replace "
        "rounding stages by the identity in the backward pass; add a gradient-free attack.",
        zero_gradients,
    ),
    Check(
        "rises with ε",
        "accuracy under PGD is higher at a larger ε than at a smaller one",
        "What can be done with a small budget can be done with a larger one, so the true accuracy never rises: the "
        "attack fails to find what is there.",
        "Give PGD more iterations, a smaller step and random restarts; report the lowest accuracy of all budgets up "
        "to ε.",
        rises_with_eps,
    ),
    Check(
        "survives grey",
        "accuracy under PGD at ε = 0.5 is higher than the share of the most frequent class",
        "At ε = 0.5 each image can become the same plain grey, where every model is left with guessing.",
        "Find out where the attack gets stuck (loss against iterations), then as for zero gradients.",
        survives_grey,
    ),
    Check(
        "transfer beats white-box",
        "an attack made on another model lowers accuracy more than the same attack made on this one",
        "Who sees the model's own gradients should do better than who does not; if not, they mislead.",
        "Report the transferred attack, start PGD from its images, and repair the white-box attack.",
        transfer_beats_whitebox,
    ),
    Check(
        "gradient-free beats gradient",
        "the Square attack, which sees logits only, lowers accuracy more than PGD",
        "Random search is far less efficient than following a gradient that can be trusted.",
        "Report the Square attack with as many queries as are affordable, and repair the white-box attack.",
        gradient_free_beats_gradient,
    ),
    Check(
        "one step beats iterated",
        "FGSM lowers accuracy more than PGD",
        "One long step passes over a rugged loss around the image in which small steps get caught; typical of models "
        "trained with FGSM alone (catastrophic overfitting, label leaking).",
        "Report the stronger of the two, start PGD far from the image, and train with PGD.",
        one_step_beats_iterated,
    ),
)


def gather(
    model: nn.Module,
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    iterations: int = 20,
    restarts: int = 3,
    queries: int = 500,
    batch_size: int = 64,
    seed: int = 0,
) -> Evidence:
    """Run every attack that the checks need, each once, on ``images [N, C, H, W]`` in [0, 1] with ``labels [N]``.

    ``surrogate``: another model of the same classes, trained apart, to make the transferred attack on. PGD: the worst
    of ``restarts`` runs of ``iterations`` steps of 2.5 · ε / iterations. ``queries``: the Square attack's, an image.
    Deterministic by ``seed``; the models are left as found. A ``model`` whose forward pass detaches its logits has a
    gradient of 0 in every pixel. Raises ``ValueError`` for bad inputs.
    """
    check_images(images, labels)
    expected = f"lie in (0, {GREY}), a fraction of the pixel range such as 6/255"
    eps = check_number("eps", eps, lambda budget: 0 < budget < GREY, expected)
    iterations, restarts = check_whole("iterations", iterations), check_whole("restarts", restarts)
    queries, batch_size = check_whole("queries", queries, least=2), check_whole("batch_size", batch_size)
    seed = check_whole("seed", seed, least=0)
    for network in (model, surrogate):
        with torch.no_grad(), held_still(network):
            check_logits(network(images[:1]), labels)
    model = _Connected(model)
    budgets = (*(factor * eps for factor in BUDGETS if factor * eps < GREY), GREY)
    generator = torch.Generator().manual_seed(seed)

    def pgd(source: nn.Module, x: Tensor, y: Tensor, budget: float) -> Tensor:
        return attacks.random_restarts(
            source, x, y, eps=budget, iterations=iterations, restarts=restarts, generator=generator
        )

    parts: dict[str, list[Tensor]] = {}
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        clean = _predictions(model, x) == y

        def right(attacked: Tensor, clean: Tensor = clean, y: Tensor = y) -> Tensor:
            return clean & (_predictions(model, attacked) == y)

        found = {
            "zero_gradient": (attacks.gradient(model, x, y) == 0).flatten(1).all(dim=1),
            "fgsm": right(attacks.fgsm(model, x, y, eps=eps)),
            "transfer": right(pgd(surrogate, x, y, eps)),
            "square": right(square(model, x, y, eps=eps, queries=queries, generator=generator)),
            "by_budget": torch.stack([right(pgd(model, x, y, budget)) for budget in budgets], dim=1),
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    whole = {name: torch.cat(values).double().cpu().numpy() for name, values in parts.items()}
    pgd_right = whole["by_budget"][:, budgets.index(eps)]
    return Evidence(labels=labels.cpu().numpy(), pgd=pgd_right, budgets=budgets, **whole)


@torch.no_grad()
def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    with held_still(model):
        return model(images).argmax(dim=1)


class _Connected(nn.Module):
    """``model`` with a gradient of 0 where its forward pass cuts it off: a sign to be reported, not an error."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        answer = self.model(images)
        if images.requires_grad and not answer.requires_grad:
            answer = answer + 0 * images.flatten(1).sum(dim=1, keepdim=True)  # images are finite, so this is 0
        return answer


def verdicts(evidence: Evidence, groups: np.ndarray | None = None) -> pd.DataFrame:
    """A row a check: ``check``, ``value``, ``value_low``, ``value_high``, ``n`` and ``verdict``.

    The value is a share of images or a difference of accuracies, with its interval over the images of each class (or
    ``groups [N]`` of them that belong together); above 0 speaks for masking. ``verdict``: ``"raised"`` where the whole
    interval is above 0, ``"unclear"`` where only the value is, ``"not raised"`` otherwise. An interval over a dozen
    images is wide: 50 or more are worth their time. ``CHECKS`` say why each is a sign, and what to do.
    """
    together = np.arange(len(evidence.labels)) if groups is None else groups
    rows = []
    for check in CHECKS:
        values, level = check.measure(evidence)
        estimate = statistics.mean_of(values, None, together, strata=evidence.labels)
        low, high = estimate.interval(level)
        verdict = "raised" if low > 0 else "unclear" if estimate.value > 0 else "not raised"
        numbers = {"value": estimate.value, "value_low": low, "value_high": high, "n": estimate.n}
        rows.append({"check": check.name, **numbers, "verdict": verdict})
    return pd.DataFrame(rows)
