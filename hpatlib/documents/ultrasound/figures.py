"""Figures and tables of the ultrasound report's chapters, drawn from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

from hpatlib.documents.ultrasound.quantities import SIMPLE, at, of_network
from hpatlib.outcomes import Cells
from hpatlib.plots import base, charts
from hpatlib.plots.base import STYLE, Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate

TRAININGS = {
    "clean": Style("trained on clean images", "#0072B2"),
    "static": Style("trained on the perturbed set", "#D55E00", "s"),
    "online": Style("trained online against FGSM", "#009E73", "D"),
}
FORMULAS = {
    "sign": Style("with the sign, clipped (FGSM)", "#D55E00", "s"),
    "printed": Style("as printed, no sign", "#0072B2"),
}
# Test sets as an axis names them. The first two are the report's, the others it does not show.
TESTS = {
    "clean": "clean",
    "perturbed": "perturbed\nset",
    "white-box FGSM": "FGSM\nwhite box",
    "white-box PGD": "PGD\nwhite box",
    "transfer FGSM": "FGSM\ntransfer",
    "worst case": "worst\ncase",
}
REPORTED = 2
READINGS = {
    ("static", "perturbed"): "anew, on the perturbed set alone",
    ("static", "white-box FGSM"): "the same, and the test set made anew on it",
    ("continued", "perturbed"): "going on from the clean-trained network",
    ("mixed", "perturbed"): "anew, on clean and perturbed images",
}  # (training, test that is then called perturbed)
LEAKS = {
    "noise alone": "noise alone,\nanswered right",
    "predicted label": "noise of the\npredicted label,\nanswered right",
    "wrong label": "noise of a wrong\nlabel, answered\nby the truth",
    "misled": "noise of a wrong\nlabel, answered\nby that label",
}
INTERVALS = "95 % intervals over trainings and images"


def formulas(record: Record) -> Figure:
    """Mean change of a pixel and accuracy against ε, for the report's formula as printed and with its sign (C1)."""
    o = record.outcomes
    accuracy = o.accuracy.table()
    before = accuracy[accuracy["formula"] == "none"]
    accuracy = pd.concat([*(before.assign(formula=name) for name in FORMULAS), accuracy])
    panels = {"mean change": ("mean change, grey levels of 255", o.mean("mean change").table())}
    panels["accuracy"] = ("accuracy on test images", accuracy)
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6))
        told = []
        for axis, (measure, (title, table)) in zip(axes, panels.items(), strict=True):
            shown = charts.lines(axis, table.astype({"eps": float}), "eps", "formula", FORMULAS)
            told += [f"{measure}, {line}" for line in shown]
            axis.set(xlabel="ε", ylabel=title)
        axes[0].set_yscale("log")
        axes[1].set_ylim(-0.03, 1.03)
        charts.legend(canvas, axes[0])
        return base.finish(
            canvas,
            "The report's formula with and without its sign: how much it changes a pixel, and what is left of the "
            f"accuracy. Points: mean over trainings; whiskers: {INTERVALS}. {base.label(record)}.",
            f"Two line charts against ε. {'; '.join(told)}.",
        )


def attack_training(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Accuracy of each network before and after attack training at ``eps``, a panel a network, a dot a test set.

    The dashed line is what answering the largest class would give; tests on grey the report does not show.
    """
    table, each = (_accuracies(record, kind, split=split, eps=eps) for kind in ("table", "each"))
    networks = _attack_trained(table)
    looks = {name: TRAININGS[name] for name in ("clean", "static")}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(networks), figsize=(7.2, 3), sharey=True, squeeze=False)
        told = []
        for axis, network in zip(axes[0], networks, strict=True):
            rows, single = (frame[frame["network"] == network] for frame in (table, each))
            share = _largest(rows)
            answered, single = (_by_test(f[f["training"] != "none"]) for f in (rows, single))
            shown = charts.points(axis, answered, single, "test", "training", looks, names=TESTS)
            axis.axvspan(REPORTED - 0.5, len(TESTS) - 0.5, color="#f2f2f2", zorder=0)
            axis.axhline(share, color="#555555", lw=1, ls="--")
            axis.set_title(base.network(network))
            axis.tick_params(axis="x", labelsize=8 if len(networks) == 1 else 6)
            told += [f"{base.network(network)}, {line}" for line in shown]
            told.append(f"the largest class has a share of {share:.2f}")
        axes[0][0].set(ylim=(-0.03, 1.05), ylabel="accuracy on test images")
        charts.legend(canvas, axes[0][0])
        return base.finish(
            canvas,
            f"Accuracy before and after attack training at ε = {eps:g}. Dots: mean over trainings; whiskers: "
            f"{INTERVALS}; small dots: each training; dashed: the largest class. Tests on grey are not in the report. "
            f"{base.label(record)}.",
            f"Dot chart of accuracy at ε = {eps:g} with {INTERVALS}. {'; '.join(told)}.",
        )


def smallest(record: Record, *, eps: float) -> Figure:
    """Accuracy against ε, of networks trained on clean images and against ``eps``; a panel a network.

    Each image is right up to the smallest ε that was found to change its answer, so a curve never rises.
    """
    o = record.outcomes.where(split="patient", test="smallest ε")
    looks = {name: style for name, style in TRAININGS.items() if name in o.values("training")}
    networks = [n for n in o.values("network") if len(o.where(network=n).values("training")) > 1]
    ladder = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 127)
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(networks), figsize=(7.2, 2.8), sharey=True, squeeze=False)
        told = []
        for axis, network in zip(axes[0], networks, strict=True):
            there = o.where(network=network)
            rows = there.rows[there.rows["eps"].astype(str).isin(["0", f"{eps:g}"])]
            parts = []
            for level in ladder:
                right = rows.assign(right=(rows["smallest"].astype(float) > level).astype(float))
                cells = replace(there, rows=right, conditions=("eps", "training")).mean("right")
                parts.append(cells.table().assign(level=level))
            table = pd.concat(parts, ignore_index=True)
            shown = charts.lines(axis, table, "level", "training", looks, bars=False)
            told += [f"{base.network(network)}, {line}" for line in shown]
            axis.set(title=base.network(network), xlabel="ε, grey levels of 255", ylim=(-0.03, 1.03))
            axis.set_xscale("symlog", base=2, linthresh=0.5, linscale=0.5)
            axis.set_xticks([0, 1, 4, 16, 64], ["0", "1", "4", "16", "64"])
        axes[0][0].set_ylabel("share of images still right")
        charts.legend(canvas, axes[0][0])
        return base.finish(
            canvas,
            f"What it takes to change an answer, before and after training against ε = {eps:g}. Lines: mean over "
            f"trainings; bands: {INTERVALS}. {base.label(record)}.",
            f"Falling curves of accuracy against ε in grey levels. {'; '.join(told)}.",
        )


def readings(record: Record) -> Table:
    """The readings of C3 against the report's two sentences on the simple CNN at ε = 0.5."""
    accuracy = of_network(record.outcomes, SIMPLE).accuracy
    rows = []
    for (training, test), told in READINGS.items():
        up = at(accuracy, 0.5, training, test) - at(accuracy, 0.5, "clean", test)
        down = at(accuracy, 0.5, training, "clean") - at(accuracy, 0, "clean", "clean")
        fits = [_says(up.interval(), 1), _says(down.interval(), -1)]
        row = {"trained": told, "perturbed set: rises, says the report": f"{fits[0]}: {_signed(up)}"}
        rows.append(row | {"clean set: falls, says the report": f"{fits[1]}: {_signed(down)}"})
    return Table(pd.DataFrame(rows), f"Change of accuracy by attack training at ε = 0.5, simple CNN, with {INTERVALS}.")


def _says(interval: tuple[float, float], sign: int) -> str:
    """Whether an effect has the sign that the report gives it."""
    low, high = sorted(sign * end for end in interval)
    return "yes" if low > 0 else "no" if high < 0 else "open"


def _signed(effect: Estimate) -> str:
    low, high = effect.interval()
    return f"{effect.value:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def losses(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Training loss by epoch before and after attack training at ``eps``, a panel a network, a line a training."""
    frame = _losses(record)
    frame = frame[(frame["split"] == split) & frame["eps"].isin(["0", f"{eps:g}"])]
    networks = _attack_trained(frame)
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(networks), figsize=(7.2, 2.6), sharey=True, squeeze=False)
        told = []
        for axis, network in zip(axes[0], networks, strict=True):
            rows = frame[frame["network"] == network]
            for training in ("clean", "static"):
                look = TRAININGS[training]
                curves = rows[rows["training"] == training].pivot(index="epoch", columns="seed", values="loss")
                axis.plot(curves.index, curves.mean(axis=1), color=look.colour, ls=look.line, label=look.label)
                axis.plot(curves.index, curves, color=look.colour, lw=0.6, alpha=0.5)
                first, last = curves.iloc[0].mean(), curves.iloc[-1].mean()
                told.append(f"{base.network(network)}, {look.label}: from {first:.2f} to {last:.3g}")
            axis.set(title=base.network(network), xlabel="epoch", yscale="log")
        axes[0][0].set_ylabel("training loss")
        axes[0][0].legend(loc="lower left")
        return base.finish(
            canvas,
            f"Training loss (cross-entropy) before and after attack training at ε = {eps:g}: thick the mean over "
            f"{frame['seed'].nunique()} trainings, thin each. {base.label(record)}.",
            f"Line chart of training loss over {frame['epoch'].max()} epochs, mean over trainings. {'; '.join(told)}.",
        )


def ladder(record: Record, tests: Sequence[str] = ("clean", "perturbed", "white-box FGSM", "worst case")) -> Figure:
    """Accuracy against ε, a row a network, a column a test set, a line a training."""
    table = _accuracies(record, "table", split="patient")
    return _grid(record, table, {test: TESTS[test] for test in tests}, "accuracy", "Accuracy against ε by training.")


def leaks(record: Record) -> Figure:
    """What noise gives away, against ε: noise alone, of the model's own answer, and of a wrong label (C3)."""
    answered = _accuracies(record, "table", split="patient")
    misled = _numbered(record.outcomes.where(split="patient").mean("misled"), "table").assign(test="misled")
    table = pd.concat([answered, misled])
    return _grid(record, table, LEAKS, "share of images", "What a network reads off the noise, against ε.")


def accuracies(records: Sequence[Record], tests: Sequence[str] = tuple(TESTS), **only: object) -> Table:
    """Accuracies with their intervals, a row a training and a column a test set, of several records.

    ``only``: conditions that rows must have, such as ``eps=0.5``.
    """
    parts = []
    for record in records:
        table = _accuracies(record, "table", **only)
        table = table[(table["training"] != "none") & table["test"].isin(tests)]
        shown = [_interval(*row) for row in zip(table["value"], table["low"], table["high"], strict=True)]
        table = table.assign(shown=shown)
        keys = ["network", "split", "eps", "training", "trainings", "n"]
        for key in ("network", "split", "training"):  # rows in the order in which things were measured
            table[key] = pd.Categorical(table[key], list(dict.fromkeys(table[key])))
        wide = table.pivot(index=keys, columns="test", values="shown").reindex(columns=list(tests))
        wide = wide.reset_index().fillna(dict.fromkeys(tests, "–")).astype({key: str for key in keys[:2]})
        wide["network"] = wide["network"].map(base.network)
        wide.insert(0, "data", f"{'real' if record.real else 'phantom'}, {record.header.profile}")
        parts.append(wide)
    return Table(pd.concat(parts, ignore_index=True), f"Accuracy, mean over trainings, with {INTERVALS}.")


def over_fitting(records: Sequence[Record]) -> Table:
    """Trained online against FGSM: accuracy under that attack and under PGD, a row a network and an ε.

    High under one step and near zero under ten is catastrophic over-fitting: the network has learnt to mislead FGSM.
    """
    rows = []
    for record in records:
        o, data = record.outcomes, f"{'real' if record.real else 'phantom'}, {record.header.profile}"
        for network in o.values("network"):
            accuracy = of_network(o, network).accuracy
            for eps in (key[0] for key in accuracy if key[1:] == ("online", "white-box PGD")):
                fgsm, pgd = (at(accuracy, float(eps), "online", f"white-box {name}") for name in ("FGSM", "PGD"))
                row = {"data": data, "network": base.network(network), "ε": eps}
                for name, found in (("FGSM", fgsm), ("PGD", pgd), ("FGSM less PGD", fgsm - pgd)):
                    row[name] = _interval(found.value, *found.interval())
                rows.append(row)
    caption = f"Trained online against FGSM: accuracy under white-box attacks, mean over trainings, with {INTERVALS}."
    return Table(pd.DataFrame(rows), caption)


def _grid(record: Record, table: pd.DataFrame, columns: dict[str, str], measure: str, about: str) -> Figure:
    """Lines over ε by training: a row a network, a column a test."""
    networks = _attack_trained(table)
    with plt.style.context(STYLE):
        size = (7.2, 2 * len(networks) + 0.6)
        canvas, axes = plt.subplots(len(networks), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
        told = []
        for number, (row, network) in enumerate(zip(axes, networks, strict=True)):
            rows = table[table["network"] == network]
            for axis, (test, title) in zip(row, columns.items(), strict=True):
                shown = charts.lines(axis, rows[rows["test"] == test], "eps", "training", TRAININGS)
                told += [f"{base.network(network)}, {title.replace(chr(10), ' ')}, {line}" for line in shown]
                axis.axhline(_largest(rows), color="#555555", lw=1, ls="--")
                axis.set_title("" if number else title)
            row[0].set_ylabel(f"{base.network(network).replace(' (', chr(10) + '(')}\n{measure}")
        ticks = sorted(set(table["eps"]))
        for axis in axes[-1]:
            axis.set(xscale="log", xlabel="ε", ylim=(-0.03, 1.03))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
        charts.legend(canvas, axes[0][0])
        return base.finish(
            canvas,
            f"{about} Points: mean over trainings; whiskers: {INTERVALS}; dashed: the largest class. "
            f"{base.label(record)}.",
            f"Line charts of {measure} against ε. {'; '.join(told)}.",
        )


def _accuracies(record: Record, kind: str, **only: object) -> pd.DataFrame:
    """Accuracies of all cells as `Cells.table` or `Cells.each` has them, with ``eps`` a number."""
    eps = only.pop("eps", None)
    outcomes = record.outcomes.where(**only) if only else record.outcomes
    table = _numbered(outcomes.accuracy, kind).assign(**only)
    return table if eps is None else table[table["eps"] == eps]


def _numbered(cells: Cells, kind: str) -> pd.DataFrame:
    """A table of cells where ``eps`` is a number, and answers that hang on no ε stand at each of them."""
    table = getattr(cells, kind)()
    steps = [step for step in dict.fromkeys(cells.outcomes.rows["eps"].astype(str)) if step != "0"]
    everywhere = [table[table["eps"] == "0"].assign(eps=step) for step in steps]
    return pd.concat([*everywhere, table[table["eps"] != "0"]]).astype({"eps": float})


def _losses(record: Record) -> pd.DataFrame:
    """Training losses of the header's models: network, split, eps, training, seed, epoch, loss."""
    rows = record.outcomes.where(test="training loss").rows
    named = rows[["model", "network", "split", "eps", "training"]].astype({"eps": str}).to_dict("records")
    found = []
    for about in named:
        model = record.header.models[about["model"]]
        found += [about | {"seed": model.seed, "epoch": n, "loss": loss} for n, loss in enumerate(model.losses, 1)]
    return pd.DataFrame(found)


def _attack_trained(table: pd.DataFrame) -> list[str]:
    """The networks that were attack-trained, in the order in which they were measured."""
    return list(dict.fromkeys(table[table["training"] == "static"]["network"]))


def _by_test(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``TESTS`` in that order."""
    return table[table["test"].isin(list(TESTS))].sort_values("test", key=lambda t: t.map(list(TESTS).index))


def _largest(rows: pd.DataFrame) -> float:
    """The share of the largest class, mean over trainings."""
    return float(rows[rows["training"] == "none"]["value"].mean())


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
