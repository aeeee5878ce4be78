"""Figures and tables of the ultrasound report's chapters."""

import matplotlib.pyplot as plt
import pandas as pd

from hpatlib.evidence import Record
from hpatlib.plots import base
from hpatlib.plots.base import STYLE, Figure, Table

TRAININGS = {
    "clean": ("trained on clean images", "#0072B2"),
    "static": ("trained on the perturbed set", "#D55E00"),
    "online": ("trained online against FGSM", "#009E73"),
}
# Test sets as an axis names them, in the order of the bars.
SETS = {
    "clean": "clean",
    "perturbed": "perturbed\nset",
    "white-box FGSM": "FGSM\nwhite box",
    "white-box PGD": "PGD\nwhite box",
    "transfer FGSM": "FGSM\ntransfer",
}


def formulas(record: Record) -> Figure:
    """Mean change of a pixel and accuracy against ε, for the report's formula as printed and with its sign (C1)."""
    frame = base.rows(record, training="clean")
    measures = {"mean change": "mean change, grey levels of 255", "accuracy": "accuracy on test images"}
    names = {"sign": ("with the sign, clipped (FGSM)", "#D55E00"), "printed": ("as printed, no sign", "#0072B2")}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6))
        told = []
        for axis, (metric, title) in zip(axes, measures.items(), strict=True):
            for formula, (name, colour) in names.items():
                rows = frame[(frame["metric"] == metric) & (frame["on"] == formula)]
                rows = rows[rows["eps"] > 0] if metric == "mean change" else rows
                mean, spread = rows.groupby("eps")["value"].mean(), rows.groupby("eps")["value"].std().fillna(0)
                axis.errorbar(mean.index, mean, spread, fmt="o-", capsize=2, color=colour, label=name)
                told.append(f"{metric}, {name}: " + ", ".join(f"{v:.3g} at ε = {e:g}" for e, v in mean.items()))
            axis.set(xlabel="ε", ylabel=title)
        axes[0].set_yscale("log")
        axes[1].set_ylim(-0.03, 1.03)
        canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return base.finish(
            canvas,
            "The report's formula with and without its sign: how much it changes a pixel, and what is left of the "
            f"accuracy. Points: mean over seeds; bars: their standard deviation. {base.label(record)}.",
            f"Two line charts against ε. {'; '.join(told)}.",
        )


def attack_training(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Accuracy of each network before and after attack training at ``eps``, a panel a network, a bar a test set.

    Bars are means over seeds, whiskers their standard deviation, points the seeds; the dashed line is what answering
    the largest class would give. The first two pairs of bars are the report's, the others it does not show.
    """
    frame = base.rows(record, metric="accuracy", split=split)
    majority = frame[frame["training"] == "none"]
    frame = frame[(frame["eps"] == eps) & frame["training"].isin(("clean", "static"))]
    networks = list(frame.groupby(["model", "weights"], sort=False))
    sets = [name for name in SETS if name in set(frame["on"])]
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(networks), figsize=(7.2, 3), sharey=True, squeeze=False)
        told = []
        for axis, ((model, weights), rows) in zip(axes[0], networks, strict=True):
            title = base.network(model, weights)
            for offset, (training, (name, colour)) in enumerate(list(TRAININGS.items())[:2]):
                mine = rows[rows["training"] == training]
                values = [mine[mine["on"] == test]["value"] for test in sets]
                drawn = base.bars(axis, values, 0.4 * (offset - 0.5), 0.37, colour, name)
                for bar in list(drawn)[2:]:  # what the report does not show
                    bar.set_alpha(0.5)
                spread = [v.std() if len(v) > 1 else 0 for v in values]
                pairs = zip(sets, values, spread, strict=True)
                told.append(f"{title}, {name}: " + ", ".join(f"{t} {v.mean():.2f} ± {s:.2f}" for t, v, s in pairs))
            own = majority[(majority["model"] == model) & (majority["weights"] == weights)]["value"].mean()
            axis.axhline(own, color="#555555", lw=1, ls="--")
            axis.set_title(title)
            axis.set_xticks(range(len(sets)), [SETS[name] for name in sets], fontsize=8 if len(networks) == 1 else 6.5)
            axis.grid(axis="x", visible=False)
        axes[0][0].set(ylim=(0, 1.05), ylabel="accuracy on test images")
        canvas.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        count = frame["seed"].nunique()
        return base.finish(
            canvas,
            f"Accuracy before and after attack training at ε = {eps:g}. Bars: mean of {count} trainings; whiskers: "
            "their standard deviation; points: each; dashed: the largest class. Pale bars are not in the report. "
            f"{base.label(record)}.",
            f"Bar chart of accuracy at ε = {eps:g}, mean ± standard deviation of {count} trainings. {'; '.join(told)}. "
            f"The largest class has a share of {majority['value'].mean():.2f}.",
        )


def losses(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Training loss against epochs, before and after attack training at ``eps``, a panel a network, a line a seed."""
    frame = base.rows(record, metric="loss", split=split, eps=eps)
    networks = list(frame.groupby(["model", "weights"], sort=False))
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(networks), figsize=(7.2, 2.6), sharey=True, squeeze=False)
        told = []
        for axis, ((model, weights), rows) in zip(axes[0], networks, strict=True):
            title = base.network(model, weights)
            for training, (name, colour) in list(TRAININGS.items())[:2]:
                curves = rows[rows["training"] == training].pivot(index="epoch", columns="seed", values="value")
                axis.plot(curves.index, curves.mean(axis=1), color=colour, label=name)
                axis.plot(curves.index, curves, color=colour, lw=0.6, alpha=0.5)
                first, last = curves.iloc[0].mean(), curves.iloc[-1].mean()
                told.append(f"{title}, {name}: from {first:.2f} to {last:.3f}")
            axis.set(title=title, xlabel="epoch", yscale="log")
        axes[0][0].set_ylabel("training loss")
        axes[0][0].legend(loc="lower left")
        return base.finish(
            canvas,
            f"Training loss (cross-entropy) before and after attack training at ε = {eps:g}: thick the mean of "
            f"{frame['seed'].nunique()} trainings, thin each. {base.label(record)}.",
            f"Line chart of training loss over {frame['epoch'].max()} epochs, mean over seeds. {'; '.join(told)}.",
        )


def ladder(
    record: Record, tests: tuple[str, ...] = ("clean", "perturbed", "white-box FGSM", "white-box PGD")
) -> Figure:
    """Accuracy against ε, a row a network, a column a test set, a line a training; bars are deviations over seeds."""
    frame = base.rows(record, metric="accuracy")
    networks = list(frame.groupby(["model", "weights"], sort=False))
    with plt.style.context(STYLE):
        size = (7.2, 2 * len(networks) + 0.4)
        canvas, axes = plt.subplots(len(networks), len(tests), figsize=size, sharex=True, sharey=True, squeeze=False)
        told = []
        for row, ((model, weights), rows) in enumerate(networks):
            share = rows[rows["training"] == "none"]["value"].mean()
            for axis, test in zip(axes[row], tests, strict=True):
                for training, (name, colour) in TRAININGS.items():
                    found = rows[(rows["training"] == training) & (rows["on"] == test)].groupby("eps")["value"]
                    if len(found) == 0:
                        continue
                    mean, spread = found.mean(), found.std().fillna(0)
                    axis.errorbar(mean.index, mean, spread, fmt="o-", ms=3, capsize=2, color=colour, label=name)
                    points = ", ".join(f"{value:.2f} at {eps:g}" for eps, value in mean.items())
                    told.append(f"{base.network(model, weights)}, {name}, {test}: {points}")
                axis.axhline(share, color="#555555", lw=1, ls="--")
                if row == 0:
                    axis.set_title(test.replace(": ", ":\n"))
            axes[row][0].set_ylabel(f"{base.network(model, weights).replace(' (', chr(10) + '(')}\naccuracy")
        ticks = sorted(set(frame["eps"]) - {0})
        for axis in axes[-1]:
            axis.set(xscale="log", xlabel="ε", ylim=(-0.03, 1.03))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
        canvas.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return base.finish(
            canvas,
            "Accuracy against ε by training. Points: mean over seeds; bars: their standard deviation; dashed: the "
            f"largest class. {base.label(record)}.",
            f"Line charts of accuracy against ε. {'; '.join(told)}.",
        )


def accuracies(records: list[Record], on: list[str] | None = None, **only: object) -> Table:
    """Accuracies over seeds, mean ± standard deviation, a row a model and a column a test set, of several records.

    ``on``: which test sets; ``only``: what rows must have, such as ``eps=0.5``.
    """
    parts = []
    for record in records:
        frame = base.rows(record, metric="accuracy", **only)
        frame = frame[frame["training"] != "none"]
        frame = frame[frame["on"].isin(on)] if on else frame
        keys = ["model", "weights", "split", "eps", "training", "on"]
        cells = frame.groupby(keys, sort=False)["value"].agg(
            lambda v: f"{v.mean():.3f} ± {v.std():.3f}" if len(v) > 1 else f"{v.mean():.3f}"
        )
        wide = cells.unstack("on").reset_index()
        wide.insert(0, "data", f"{'real' if record.real else 'phantom'}, {record.profile}")
        wide["seeds"] = frame.groupby(keys[:-1], sort=False)["seed"].nunique().to_numpy()
        parts.append(wide)
    return Table(pd.concat(parts, ignore_index=True), "Accuracy, mean ± standard deviation over seeds.")
