"""How good and how steady a classifier is: scores, the rate of invariance of equation 15, and search comparisons."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib._model import held_still
from hpatlib.data import ImageSet
from hpatlib.spatial import Box, SearchResult, grid_search, random_search
from hpatlib.stbo import stbo

Search = Callable[[nn.Module, Tensor, Tensor, Box, torch.Generator], SearchResult]


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """The model's answers ``[N, classes]`` to ``images [N, C, H, W]``, in eval mode and in batches."""
    with held_still(model):
        return torch.cat([model(batch) for batch in images.split(batch_size)])


def scores(answers: Tensor, labels: Tensor, *, average: str = "macro") -> dict[str, float]:
    """ACC, PRE, REC, F1 and AUC of logits ``[N, classes]`` against ``labels [N]``, each in [0, 1].

    ``average``: ``"binary"`` counts the positive class, number 1, alone (the leukemia paper's table 2);
    ``"macro"`` is the plain mean over classes (its table 1; H4). AUC ranks by the softmax score: for two classes the
    averages agree, for more it is the mean of one class against the rest. Raises ``ValueError`` for another average.
    """
    from sklearn import metrics  # a second to import

    if average not in ("binary", "macro"):
        raise ValueError(f'average must be "binary" or "macro", found {average!r}')
    truth, guess = labels.cpu().numpy(), answers.argmax(dim=1).cpu().numpy()
    share = answers.softmax(dim=1).double().cpu().numpy()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess, average=average, zero_division=0)
    if answers.shape[1] == 2:
        area = metrics.roc_auc_score(truth, share[:, 1])
    else:
        area = metrics.roc_auc_score(truth, share, multi_class="ovr", labels=range(answers.shape[1]))
    return {
        "ACC": float((truth == guess).mean()),
        "PRE": float(precision),
        "REC": float(recall),
        "F1": float(f1),
        "AUC": float(area),
    }


def roi(before: Tensor, after: Tensor) -> Tensor:
    """Equation 15 image by image: 1.0 where the prediction is the same before and after; its mean is the ROI.

    ``before``, ``after``: predicted classes of the same shape ``[N, …]``. A classifier that always answers the same
    has a ROI of 1: print the accuracy beside it.
    """
    if before.shape != after.shape:
        raise ValueError(f"both must have one shape, found {list(before.shape)} and {list(after.shape)}")
    return (before == after).double()


def bootstrap(values: Tensor | np.ndarray, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> tuple:
    """Mean of ``values [N]`` with its percentile bootstrap interval: ``(mean, low, high)``.

    The interval is about the images that might have been drawn, not about other trainings.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be [N] with N ≥ 1, found {list(values.shape)}")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


def searches(budget: int) -> dict[str, Search]:
    """The spatial searches of the leukemia paper's figure 6 at ``budget`` queries, and the two it leaves out."""
    return {
        "STBO": lambda model, images, labels, box, generator: stbo(
            model, images, labels, box, evaluations=budget, initial=min(10, budget), generator=generator
        ),
        "random": lambda model, images, labels, box, generator: random_search(
            model, images, labels, box, evaluations=budget, generator=generator
        ),
        "Sobol": lambda model, images, labels, box, generator: random_search(
            model, images, labels, box, evaluations=budget, sobol=True, generator=generator
        ),
    }
