"""Figures and tables of the ultrasound report's chapters, drawn from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hpatlib.documents.ultrasound.quantities import SIMPLE, at, of_network
from hpatlib.outcomes import Cells
from hpatlib.plots import base, charts
from hpatlib.plots.base import Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record

TRAININGS = {
    "clean": Style("trained on clean images", charts.PAINT[0]),
    "static": Style("trained on the perturbed set", charts.PAINT[1], "s", charts.DASHES[1]),
    "online": Style("trained online against FGSM", charts.PAINT[2], "D", charts.DASHES[2]),
}
FORMULAS = {
    "sign": Style("with the sign, clipped (FGSM)", charts.PAINT[1], "s", charts.DASHES[1]),
    "printed": Style("as printed, no sign", charts.PAINT[0]),
}
# Test sets as rows name them. The first two are the report's, the others it does not show.
TESTS = {
    "clean": "clean",
    "perturbed": "perturbed set",
    "white-box FGSM": "FGSM, white box",
    "white-box PGD": "PGD, white box",
    "transfer FGSM": "FGSM, transfer",
    "worst case": "worst case",
}
READINGS = {
    ("static", "perturbed"): "anew, on the perturbed set alone",
    ("static", "white-box FGSM"): "the same, and the test set made anew on it",
    ("continued", "perturbed"): "going on from the clean-trained network",
    ("mixed", "perturbed"): "anew, on clean and perturbed images",
}  # (training, test that is then called perturbed)
LEAKS = {
    "noise alone": "noise alone, answered right",
    "predicted label": "noise of the predicted label, answered right",
    "wrong label": "noise of a wrong label, answered by the truth",
    "misled": "noise of a wrong label, answered by that label",
}
GAIN = 0.05  # what counts as one, here as in the claims
INTERVALS = "95 % intervals over trainings and images"
CHANCE = "dashed: the share of the largest class"
UP: dict[str, Any] = {"percent": "y", "axes": {"ylim": (-0.03, 1.03)}}
ACROSS: dict[str, Any] = {"percent": "x", "axes": {"xlim": (-0.03, 1.03)}}
LADDER = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 127)  # grey levels of 255


def formulas(record: Record) -> Figure:
    """Mean change of a pixel and accuracy against ε, for the report's formula as printed and with its sign (C1)."""
    o = record.outcomes
    accuracy = o.accuracy.table()
    before = accuracy[accuracy["formula"] == "none"]
    accuracy = pd.concat([*(before.assign(formula=name) for name in FORMULAS), accuracy]).astype({"eps": float})
    change = o.mean("mean change").table().astype({"eps": float})
    words: dict[str, Any] = {"xlabel": "ε, of the pixel range", "height": (2.6, 2.5)}
    last = {name: change[change["formula"] == name]["value"].iloc[-1] for name in FORMULAS}
    return charts.figure(
        [
            charts.curves(
                change, "eps", "formula", FORMULAS, ylabel="mean change, grey levels", axes={"yscale": "log"}, **words
            ),
            charts.curves(accuracy, "eps", "formula", FORMULAS, ylabel="accuracy on test images, %", **words, **UP),
        ],
        name="formulas",
        record=record,
        caption="The report's formula with and without its sign: how much it changes a pixel, of 255 grey levels, and "
        f"what is left of the accuracy. Points: mean over trainings; bands: {INTERVALS}.",
        alt="Line charts of a pixel's mean change and of accuracy against ε, with and without the sign. At the largest "
        f"ε a pixel changes by {last['sign']:.3g} grey levels with the sign, by {last['printed']:.3g} as printed.",
    )


def attack_training(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Accuracy of each network before and after attack training at ``eps``, a panel a network, a row a test set.

    The dashed line is what answering the largest class would give; tests on grey the report does not show.
    """
    table, each = (_accuracies(record, kind, split=split, eps=eps) for kind in ("table", "each"))
    shown = []
    for network in (networks := _attack_trained(table)):
        rows, single = (_by_test(frame[frame["network"] == network]) for frame in (table, each))
        looks = {name: TRAININGS[name] for name in ("clean", "static")}
        words = ACROSS | {"xlabel": "accuracy on test images, %", "title": base.network(network)}
        line = _largest(table[table["network"] == network])
        shown.append(charts.dots(rows, "test", looks, "training", each=single, names=TESTS, line=line, **words))
    first = table[(table["network"] == networks[0]) & (table["test"] == "perturbed")].set_index("training")["value"]
    return charts.figure(
        shown,
        name="attack-training",
        record=record,
        share="xy",
        caption=f"Accuracy before and after attack training at ε = {eps:g}. Dots: mean over trainings; bars: "
        f"{INTERVALS}; small dots: each training; {CHANCE}. The first two rows are the report's test sets.",
        alt=f"Dot chart of accuracy before and after attack training at ε = {eps:g}, a row a test set. On the "
        f"perturbed set, {base.network(networks[0])} goes from {100 * first['clean']:.1f} to "
        f"{100 * first['static']:.1f} %.",
    )


def smallest(record: Record, *, eps: float) -> Figure:
    """Accuracy against ε, of networks trained on clean images and against ``eps``; a panel a network.

    Each image is right up to the smallest ε that was found to change its answer, so a curve never rises.
    """
    o = record.outcomes.where(split="patient", test="smallest ε")
    networks = [n for n in o.values("network") if len(o.where(network=n).values("training")) > 1]
    shown, middles = [], []
    for network in networks:
        there = o.where(network=network)
        rows = there.rows[there.rows["eps"].astype(str).isin(["0", f"{eps:g}"])]
        parts = []
        for level in LADDER:
            right = rows.assign(right=(rows["smallest"].astype(float) > level).astype(float))
            cells = replace(there, rows=right, conditions=("eps", "training")).mean("right")
            parts.append(cells.table().assign(level=float(level)))
        words: dict[str, Any] = {
            "axes": {"xscale": "log", "ylim": (-0.03, 1.03)},
            "percent": "y",
            "title": base.network(network),
        }
        words |= {"xlabel": "ε, grey levels of 255", "ylabel": "images still right, %", "ticks": [0, 1, 4, 16, 64]}
        shown.append(charts.curves(pd.concat(parts), "level", "training", TRAININGS, **words))
        middles += [rows[rows["training"] == name]["smallest"].astype(float).median() for name in ("clean", "static")]
    return charts.figure(
        shown,
        name="smallest",
        record=record,
        share="xy",
        caption=f"What it takes to change an answer, before and after training against ε = {eps:g}. Lines: mean over "
        f"trainings; bands: {INTERVALS}.",
        alt="Falling curves of accuracy against ε, before and after attack training. Median of the smallest ε of "
        f"{base.network(networks[0])}: {middles[0]:.3g} grey levels before, {middles[1]:.3g} after.",
    )


def readings(record: Record) -> Table:
    """The readings of C3 against the report's two sentences on the simple CNN at ε = 0.5."""
    accuracy = of_network(record.outcomes, SIMPLE).accuracy
    rows = []
    for (training, test), told in READINGS.items():
        up = at(accuracy, 0.5, training, test) - at(accuracy, 0.5, "clean", test)
        down = at(accuracy, 0.5, training, "clean") - at(accuracy, 0, "clean", "clean")
        fits = [_says(up.interval(), 1), _says(down.interval(), -1)]
        row = {
            "trained": told,
            "perturbed set: rises, says the report": f"{fits[0]}: {base.percent(up.value, *up.interval(), sign='+')}",
        }
        rows.append(
            row
            | {
                "clean set: falls, says the report": f"{fits[1]}: "
                f"{base.percent(down.value, *down.interval(), sign='+')}"
            }
        )
    return base.table(
        rows,
        f"Change of accuracy by attack training at ε = 0.5, simple CNN, in points, with {INTERVALS}.",
        "readings",
        record,
    )


def without_gain(record: Record) -> Table:
    """Figures 3 and 4: what training on the perturbed set gains on clean images and on the perturbed set, which is read
    in two ways; a row each."""
    sets = {"clean": "clean", "perturbed": "perturbed once", "white-box FGSM": "perturbed anew for each network"}
    rows = []
    for name in _attack_trained(record.outcomes.where(split="patient").rows):
        accuracy = record.outcomes.where(split="patient", network=name).accuracy
        for test, told in sets.items():
            before, after = (at(accuracy, 0.5, training, test) for training in ("clean", "static"))
            low, high = (after - before).interval()
            fits = "yes" if high < GAIN else "no" if low > GAIN else "open"
            row = {"network": base.network(name), "test set": told}
            row |= {"before, %": f"{100 * before.value:.1f}", "after, %": f"{100 * after.value:.1f}"}
            change = base.percent((after - before).value, low, high, sign="+")
            rows.append(row | {"gain, points": change, "no gain, says the report": fits})
    return base.table(
        rows,
        f"Accuracy before and after attack training at ε = 0.5, with {INTERVALS}. No gain: less than "
        f"{100 * GAIN:.0f} points, losses included. Perturbed once: from the network that was trained on clean images.",
        "without-gain",
        record,
    )


def _says(interval: tuple[float, float], sign: int) -> str:
    """Whether an effect has the sign that the report gives it."""
    low, high = sorted(sign * end for end in interval)
    return "yes" if low > 0 else "no" if high < 0 else "open"


def losses(record: Record, *, eps: float, split: str = "patient") -> Figure:
    """Training loss by epoch before and after attack training at ``eps``, a panel a network, a thin line a training."""
    frame = _losses(record)
    frame = frame[(frame["split"] == split) & frame["eps"].isin(["0", f"{eps:g}"])]
    frame = frame[frame["training"].isin(["clean", "static"])]
    networks = _attack_trained(frame)
    mean = frame.groupby(["network", "training", "epoch"], sort=False, as_index=False)["value"].mean()
    mean = mean.assign(line=mean["training"])
    table = pd.concat([mean, frame.assign(line=frame["training"] + " " + frame["seed"].astype(str))])
    table = table.assign(low=np.nan, high=np.nan)
    thin = {line: TRAININGS[line.split()[0]]._replace(label="", width=0.6) for line in table["line"] if " " in line}
    words: dict[str, Any] = {"xlabel": "epoch", "ylabel": "training loss", "axes": {"yscale": "log"}}
    ends = mean[(mean["network"] == networks[0]) & (mean["training"] == "static")]["value"]
    return charts.figure(
        [
            charts.curves(
                table[table["network"] == network],
                "epoch",
                "line",
                thin | TRAININGS,
                title=base.network(network),
                **words,
            )
            for network in networks
        ],
        name="losses",
        record=record,
        share="xy",
        caption=f"Training loss (cross-entropy) before and after attack training at ε = {eps:g}: thick the mean over "
        f"{frame['seed'].nunique()} trainings, thin each.",
        alt=f"Line chart of training loss over {frame['epoch'].max()} epochs, on clean images and on the perturbed "
        f"set. On the perturbed set it goes from {ends.iloc[0]:.2f} to {ends.iloc[-1]:.3g} with "
        f"{base.network(networks[0])}.",
    )


def ladder(record: Record, tests: Sequence[str] = ("clean", "perturbed", "white-box FGSM", "worst case")) -> Figure:
    """Accuracy against ε, a panel a network and a test set, a line a training."""
    table = _accuracies(record, "table", split="patient")
    about = {test: TESTS[test] for test in tests}
    return _grid(record, table, about, "accuracy, %", "Accuracy against ε by training.", "ladder")


def leaks(record: Record) -> Figure:
    """What noise gives away, against ε: noise alone, of the model's own answer, and of a wrong label (C3)."""
    answered = _accuracies(record, "table", split="patient")
    misled = _numbered(record.outcomes.where(split="patient").mean("misled"), "table").assign(test="misled")
    table = pd.concat([answered, misled])
    return _grid(record, table, LEAKS, "images, %", "What a network reads off the noise, against ε.", "leaks")


def accuracies(records: Sequence[Record], tests: Sequence[str] = tuple(TESTS), **only: object) -> Table:
    """Accuracies with their intervals, a row a training and a column a test set, of several records.

    ``only``: conditions that rows must have, such as ``eps=0.5``.
    """
    parts = []
    for record in records:
        table = _accuracies(record, "table", **only)
        table = table[(table["training"] != "none") & table["test"].isin(tests)]
        shown = [base.percent(*row) for row in zip(table["value"], table["low"], table["high"], strict=True)]
        table = table.assign(shown=shown)
        keys = ["network", "split", "eps", "training", "trainings", "n"]
        for key in ("network", "split", "training"):  # rows in the order in which things were measured
            table[key] = pd.Categorical(table[key], list(dict.fromkeys(table[key])))
        wide = table.pivot(index=keys, columns="test", values="shown").reindex(columns=list(tests))
        wide = wide.reset_index().fillna(dict.fromkeys(tests, "–")).astype({key: str for key in keys[:2]})
        wide["network"] = wide["network"].map(base.network)
        wide.insert(0, "data", f"{'real' if record.real else 'phantom'}, {record.header.profile}")
        parts.append(wide)
    return base.table(
        pd.concat(parts, ignore_index=True),
        f"Accuracy in per cent, mean over trainings, with {INTERVALS}.",
        "accuracies",
        *records,
    )


ONLINE = {"clean": "on clean images", "online": "online, against FGSM"}


def over_fitting(records: Sequence[Record]) -> Table:
    """Trained online against FGSM, and on clean images: accuracy under that attack and under PGD, a row an ε.

    High under one step and near zero under ten is catastrophic over-fitting: the network has learnt to mislead FGSM.
    """
    rows = []
    for record in records:
        o, data = record.outcomes, f"{'real' if record.real else 'phantom'}, {record.header.profile}"
        for network in o.values("network"):
            accuracy = of_network(o, network).accuracy
            for eps, training in ((k[0], k[1]) for k in accuracy if k[1] in ONLINE and k[2] == "white-box PGD"):
                fgsm, pgd = (at(accuracy, float(eps), training, f"white-box {name}") for name in ("FGSM", "PGD"))
                row = {"data": data, "network": base.network(network), "ε": eps, "trained": ONLINE[training]}
                for name, found in (("FGSM", fgsm), ("PGD", pgd), ("FGSM less PGD", fgsm - pgd)):
                    row[name] = base.percent(found.value, *found.interval())
                rows.append(row)
    caption = f"Accuracy in per cent under white-box attacks, mean over trainings, with {INTERVALS}."
    return base.table(rows, caption, "over-fitting", *records)


def _grid(record: Record, table: pd.DataFrame, tests: dict[str, str], measure: str, about: str, name: str) -> Figure:
    """Lines over ε by training: a panel a network and a test."""
    steps, networks, shown = sorted(set(table["eps"])), _attack_trained(table), []
    for network in networks:
        rows = table[table["network"] == network]
        for test, title in tests.items():
            words: dict[str, Any] = {
                "title": title,
                "xlabel": "ε",
                "ylabel": f"{base.network(network)}, {measure}",
                "height": (2.0, 2.2),
            }
            words |= {"percent": "y", "axes": {"xscale": "log", "ylim": (-0.03, 1.03)}, "line": _largest(rows)}
            part = rows[rows["test"] == test]
            shown.append(charts.curves(part, "eps", "training", TRAININGS, ticks=steps, ends=False, **words))
    last = table[(table["test"] == list(tests)[-1]) & (table["training"] == "static")].iloc[-1]
    return charts.figure(
        shown,
        name=name,
        record=record,
        columns=2,
        share="xy",
        caption=f"{about} Points: mean over trainings; bands: {INTERVALS}; {CHANCE}.",
        alt=f"Line charts, {about[0].lower()}{about[1:-1]}, a panel a network and a test set. Trained on the perturbed "
        f"set at ε = {last['eps']:g}, {tests[last['test']]}: {100 * last['value']:.1f} %.",
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
    """Training losses of the header's models: network, split, eps, training, seed, epoch, value."""
    rows = record.outcomes.where(test="training loss").rows
    named = rows[["model", "network", "split", "eps", "training"]].astype({"eps": str}).to_dict("records")
    found = []
    for about in named:
        model = record.header.models[about["model"]]
        found += [about | {"seed": model.seed, "epoch": n, "value": loss} for n, loss in enumerate(model.losses, 1)]
    return pd.DataFrame(found)


def _attack_trained(table: pd.DataFrame) -> list[str]:
    """The networks that were attack-trained, in the order in which they were measured."""
    return list(dict.fromkeys(table[table["training"] == "static"]["network"]))


def _by_test(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``TESTS`` in that order."""
    return table[table["test"].isin(list(TESTS))].sort_values(
        "test", key=lambda t: t.map(list(TESTS).index), kind="stable"
    )


def _largest(rows: pd.DataFrame) -> float:
    """The share of the largest class, mean over trainings."""
    return float(rows[rows["training"] == "none"]["value"].mean())
