"""The ultrasound report's experiment: train, perturb, train again on what was perturbed, and ask both models.

The report makes its perturbed sets once, from the model trained on clean images, so that its bars after attack
training measure robustness against another model's attack. ``study`` adds the bars that it does not show (C3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hpatlib import evidence
from hpatlib.evaluation import attack_hits, formula_sizes, leak_hits, test_sets
from hpatlib.hybrid import Adversary
from hpatlib.runs import Run, Trained, train_or_load

TRAININGS = ("clean", "static", "online")
MARGIN = 0.05  # "no improvement" of an accuracy means: less than this


@dataclass(frozen=True)
class Study:
    """What was measured of one network: ``hits[eps, training, test]`` holds an array ``[N_s]`` a seed, 1.0 where right.

    ``training``: one of ``TRAININGS``; ``test``: one of ``evaluation.TESTS`` (or ``LEAKS``); ``ratios[eps]``: last
    over first epoch's loss, ``[S, 2]`` for the clean and the static training; ``rows``: all of it, tidy; ``trained``:
    every model, the clean one of the first seed first.
    """

    rows: pd.DataFrame
    hits: dict[tuple[float, str, str], list[np.ndarray]]
    ratios: dict[float, np.ndarray]
    trained: list[Trained]

    def values(self, *cells: tuple[float, str, str]) -> list[np.ndarray]:
        """For each seed ``[N_s, K]``: the hits of K cells (eps, training, test), side by side."""
        return [np.stack(columns, axis=1) for columns in zip(*(self.hits[cell] for cell in cells), strict=True)]


def study(
    seeds: Sequence[Run],
    ladder: Iterable[float],
    *,
    trainings: Sequence[str] = ("clean", "static"),
    leaks: bool = False,
) -> Study:
    """Train the network of ``seeds`` (a run a seed) on clean images and against each ε of ``ladder``; test them all.

    Each model is asked on the five sets of ``evaluation.TESTS``; the transfer attack comes from a simple CNN of the
    same split with other first weights. ``leaks`` adds ``evaluation.LEAKS``. Rows: ``model``, ``weights``, ``split``,
    ``seed``, ``eps``, ``training``, ``metric`` (``"accuracy"`` or ``"loss"``), ``on`` (the set), ``epoch``, ``value``,
    ``n`` (images). The share of the test set's largest class stands there as the accuracy of training ``"none"``.
    """
    rows, trained, ratios = [], [], {}
    hits: dict[tuple[float, str, str], list[np.ndarray]] = {}
    for run in seeds:
        clean = train_or_load(run)
        other = train_or_load(replace(run, model="simple_cnn", weights="scratch", repeat=run.repeat + 1))
        trained += [clean, other]
        about = {"model": run.model, "weights": run.weights, "split": run.split_by, "seed": run.seed}
        share = np.bincount(clean.test.labels).max() / len(clean.test)
        rows.append(about | _row(0.0, "none", "accuracy", "clean", 0, share, len(clean.test)))
        for eps in ladder:
            sets = test_sets(clean.model, other.model, clean.test, eps=eps)
            for training in trainings:
                model = clean if training == "clean" else train_or_load(_against(run, training, eps))
                trained += [model] if model is not clean else []
                measured = attack_hits(model.model, sets, eps=eps, seed=run.seed)
                if leaks:
                    measured |= leak_hits(model.model, clean.model, clean.test, eps=eps, seed=run.seed)
                epochs = [epoch["loss"] for epoch in model.provenance["epochs"]]
                for test, right in measured.items():
                    hits.setdefault((eps, training, test), []).append(right)
                    row = _row(eps, training, "accuracy", test, len(epochs), right.mean(), len(right))
                    rows.append(about | row)
                for epoch, loss in enumerate(epochs, 1):
                    n = model.provenance["data"]["train"]
                    rows.append(about | _row(eps, training, "loss", "training set", epoch, loss, n))
                if training in ("clean", "static"):
                    ratios.setdefault(eps, []).append(epochs[-1] / epochs[0])
    pairs = {eps: np.array(found).reshape(len(seeds), -1) for eps, found in ratios.items()}
    return Study(pd.DataFrame(rows), hits, pairs, trained)


def _against(run: Run, training: str, eps: float) -> Run:
    """The run trained against FGSM: on a set made once, or online, on examples of the model as it is in each step."""
    if training == "static":
        return replace(run, static_eps=eps)
    return replace(run, adversary=Adversary(eps=eps, step=eps))


def _row(eps: float, training: str, metric: str, on: str, epoch: int, value: float, n: int) -> dict:
    row = {"eps": eps, "training": training, "metric": metric, "on": on, "epoch": epoch}
    return row | {"value": float(value), "n": n}


def literal(seeds: Sequence[Run], ladder: Iterable[float]) -> tuple[Study, list[evidence.Effect]]:
    """The printed formula, without sign, beside FGSM on the clean-trained models: rows as in ``study``, and effects.

    ``on`` says which formula; ``metric`` is ``"accuracy"``, ``"mean change"`` or ``"largest change"`` (grey levels).
    """
    rows, trained, found = [], [], {}
    for run in seeds:
        clean = train_or_load(run)
        trained.append(clean)
        about = {"model": run.model, "weights": run.weights, "split": run.split_by, "seed": run.seed}
        for eps in (0.0, *ladder):
            for (formula, metric), values in formula_sizes(clean.model, clean.test, eps=eps).items():
                found.setdefault((eps, formula, metric), []).append(values)
                rows.append(about | _row(eps, "clean", metric, formula, 0, values.mean(), len(values)))
    eps = max(ladder)
    grey = [1 - v[:, None] for v in found[eps, "printed", "mean change"]]
    drop = zip(found[0.0, "printed", "accuracy"], found[eps, "printed", "accuracy"], strict=True)
    lost = [MARGIN - (before - after)[:, None] for before, after in drop]
    effects = [
        evidence.effect("fig2-invisible", grey, _mean),
        evidence.effect("fig2-harmless", lost, _mean),
    ]
    return Study(pd.DataFrame(rows), {}, {}, trained), effects


def _mean(means: np.ndarray) -> np.ndarray:
    """Of the first measure, over seeds."""
    return means[..., 0].mean(axis=-1)


def _difference(means: np.ndarray) -> np.ndarray:
    """The first measure less the second, over seeds."""
    return (means[..., 0] - means[..., 1]).mean(axis=-1)


def _no_gain(means: np.ndarray) -> np.ndarray:
    """By how much the first measure falls short of the second plus the margin."""
    return MARGIN - _difference(means)


def _wider(means: np.ndarray) -> np.ndarray:
    """Measures are bars after and before, in turn: by how much the standard deviation over seeds grew, over bars."""
    spread = means.std(axis=-2, ddof=1) if means.shape[-2] > 1 else np.zeros_like(means[..., 0, :])
    return (spread[..., 0::2] - spread[..., 1::2]).mean(axis=-1)


def _mean_difference(means: np.ndarray) -> np.ndarray:
    """The mean over the first half of the measures less that over the second half, over seeds."""
    half = means.shape[-1] // 2
    return (means[..., :half].mean(axis=-1) - means[..., half:].mean(axis=-1)).mean(axis=-1)


def no_gain_effects(measured: Study, prefix: str, *, eps: float) -> list[evidence.Effect]:
    """What figures 3 and 4 claim of a large network: no gain on either set, a wider spread, a loss that converges."""
    clean = measured.values((eps, "static", "clean"), (eps, "clean", "clean"))
    perturbed = measured.values((eps, "static", "perturbed"), (eps, "clean", "perturbed"))
    both = [np.concatenate(pair, axis=1) for pair in zip(clean, perturbed, strict=True)]
    return [
        evidence.effect(f"{prefix}-clean", clean, _no_gain),
        evidence.effect(f"{prefix}-perturbed", perturbed, _no_gain),
        evidence.effect(f"{prefix}-spread", both, _wider),
        convergence_effect(measured, f"{prefix}-loss", eps=eps),
    ]


def lift_effects(measured: Study, *, eps: float) -> list[evidence.Effect]:
    """What figures 5 and 6 and the conclusion claim of the simple CNN."""
    whitebox = measured.values((eps, "static", "white-box FGSM"), (eps, "clean", "white-box FGSM"))
    return [
        evidence.effect(
            "fig6-lift", measured.values((eps, "static", "perturbed"), (eps, "clean", "perturbed")), _difference
        ),
        evidence.effect("fig6-drop", measured.values((eps, "clean", "clean"), (eps, "static", "clean")), _difference),
        convergence_effect(measured, "fig6-loss", eps=eps),
        evidence.effect("fig6-whitebox", whitebox, _no_gain),
    ]


def smaller_effects(measured: Study, prefix: str, *, small: float, large: float) -> list[evidence.Effect]:
    """What figures 7 to 10 claim: at a smaller ε less accuracy on the perturbed set, and no more on the clean one."""
    perturbed = measured.values((large, "static", "perturbed"), (small, "static", "perturbed"))
    clean = measured.values((small, "static", "clean"), (large, "static", "clean"))
    below = measured.values((small, "clean", "clean"), (small, "static", "clean"))
    return [
        evidence.effect(f"{prefix}-perturbed", perturbed, _difference),
        evidence.effect(f"{prefix}-clean", clean, _no_gain),
        evidence.effect(f"{prefix}-below", below, _difference),
    ]


def convergence_effect(measured: Study, claim: str, *, eps: float) -> evidence.Effect:
    """Half less the ratio of the last to the first epoch's loss, of the training where it is larger."""
    # One number a training, the same for each of its images: the interval is over trainings alone.
    images = [t.provenance["data"]["train"] for t in measured.trained[:1] for _ in measured.ratios[eps]]
    ratios = [np.tile(pair, (n, 1)) for n, pair in zip(images, measured.ratios[eps], strict=True)]
    return evidence.effect(claim, ratios, lambda means: 0.5 - means.max(axis=-1).mean(axis=-1))


def ladder_effects(measured: Study, prefix: str, ladder: Sequence[float]) -> list[evidence.Effect]:
    """What the report leaves open, averaged over ``ladder``: does training against FGSM help, and which kind?

    And its explanation, over-fitting, against label leaking: does the model read the label off the perturbation?
    """

    def gain(training: str, other: str, test: str) -> list[np.ndarray]:
        return measured.values(*[(e, training, test) for e in ladder], *[(e, other, test) for e in ladder])

    top = max(ladder)
    share = [v[:, :1] for v in measured.values((top, "static", "δ alone"))]
    chance = measured.rows.query("training == 'none'").sort_values("seed")["value"]
    alone = [v - s for v, s in zip(share, chance, strict=True)]
    wrong = measured.values(
        (top, "static", "wrong labels: the wrong label"), (top, "static", "wrong labels: the truth")
    )
    return [
        evidence.effect(f"{prefix}-static", gain("static", "clean", "white-box PGD"), _mean_difference),
        evidence.effect(f"{prefix}-online", gain("online", "static", "white-box PGD"), _mean_difference),
        evidence.effect(f"{prefix}-alone", alone, _mean),
        evidence.effect(f"{prefix}-wrong", wrong, _difference),
    ]


def combine(studies: Sequence[Study]) -> pd.DataFrame:
    """The rows of several studies in one table."""
    return pd.concat([measured.rows for measured in studies], ignore_index=True)
