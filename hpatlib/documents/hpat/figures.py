"""Figures and tables of the leukemia paper's chapters, drawn from records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hpatlib import documents
from hpatlib.documents.hpat import quantities
from hpatlib.documents.hpat.quantities import CLEAN, LEAST, PEERS, PIXEL, SPATIAL, STBO
from hpatlib.outcomes import Cells, Outcomes
from hpatlib.plots import base, charts
from hpatlib.plots.base import STYLE, Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record

if TYPE_CHECKING:
    from hpatlib.documents.hpat.study import Pictures, Walk

# Colours that colour-blind readers can tell apart (Okabe and Ito), one a method in every chapter.
METHODS = {
    "STBO": Style("STBO", "#0072B2"),
    STBO[1]: Style(STBO[1], "#0072B2", "o", "--"),
    STBO[2]: Style(STBO[2], "#0072B2", "o", ":"),
    "STM": Style("STM (grids)", "#D55E00", "s"),
    "DIRECT": Style("DIRECT", "#E69F00"),
    "local": Style("Sobol, then local", "#882255"),
    "gradient": Style("gradients", "#56B4E9"),
    "Sobol": Style("Sobol", "#009E73"),
    "random": Style("random", "#CC79A7"),
}
BOXES = {"30": "±30°, ±3 px", "180": "±180°, ±12 px of 300"}
READINGS = {"fixed": "one fixed transform", "searched": "the worst that STBO finds"}
BRANCHES = {
    "shared": Style("without MixBN", "#0072B2"),
    "clean": Style("MixBN, clean branch", "#D55E00", "s"),
    "adv": Style("MixBN, adversarial branch", "#009E73", "D"),
}
PLACES = {"H0": "clean", "H6": "hybrid (H6)"}
PREVALENCE = (
    "The document's numbers fit about two malignant cells to one healthy, on which binary precision and F1 depend; the "
    "subset of C-NMC and the phantoms have one to one."
)
INTERVALS = "whiskers: 95 % intervals over trainings and images"
BOX = {"boxstyle": "round,pad=0.4", "facecolor": "#EAF2F8", "edgecolor": "#0072B2"}


def flips(shown: Pictures, record: Record) -> Figure:
    """A phantom of each class (a row) under each perturbation (a column), the model's answer and confidence above.

    Wrong answers are red, with a cross.
    """
    names, turned = list(shown.images), set()
    with plt.style.context(STYLE):
        size = (1.25 * len(names), 1.6 * len(shown.labels))
        canvas, axes = plt.subplots(len(shown.labels), len(names), figsize=size, squeeze=False)
        for row, label in enumerate(shown.labels):
            for axis, name in zip(axes[row], names, strict=True):
                guess = int(shown.predictions[name][row])
                base.picture(axis, shown.images[name][row])
                turned |= {name} if guess != label else set()
                mark, colour = ("✓", "#222222") if guess == label else ("✗", "#B00020")
                percent = 100 * float(shown.confidences[name][row])
                axis.set_title(f"{mark} {shown.classes[guess]} {percent:.0f} %", color=colour)
                axis.set_xlabel(name if row == len(shown.labels) - 1 else "")
            axes[row][0].set_ylabel(f"truth: {shown.classes[int(label)]}")
        return base.finish(
            canvas,
            f"One phantom of each class under each perturbation, with the model's answer. {base.phantoms(record)}.",
            f"Two phantom cells, one of class {' and one of class '.join(shown.classes)}, clean and under "
            f"{len(names) - 1} perturbations. The answer turns wrong for at least one under: "
            f"{', '.join(name for name in names if name in turned) or 'none'}.",
        )


def flip_rates(record: Record) -> Figure:
    """Accuracy, ROI and share of flipped correct predictions under each perturbation."""
    o, clean = record.outcomes, {"perturbation": "clean"}
    cells = {
        "accuracy": o.accuracy,
        "ROI (eq. 15)": o.invariance(**clean),
        "correct predictions flipped": o.flipped(**clean),
    }
    looks = charts.styles(list(cells))
    table, each = (_stacked(cells, kind) for kind in ("table", "each"))
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(7.2, 2.8))
        names = {name: name.replace(" ", "\n") for name in o.values("perturbation")}
        told = charts.points(axis, table, each, "perturbation", "measure", looks, names=names)
        axis.set(ylim=(-0.03, 1.05), ylabel="share of images")
        charts.legend(canvas, axis)
        return base.finish(
            canvas,
            f"What each perturbation does to predictions. Dots: mean over trainings; {INTERVALS}; small dots: each "
            f"training. {base.label(record)}.",
            f"Dot chart of accuracy, ROI and share of flipped correct predictions. {'; '.join(told)}.",
        )


def least_noise(record: Record) -> Table:
    """The least noise that changes a correct answer, everywhere and in the cell alone, and their ratio."""
    doublings = record.outcomes.mean("doublings")
    inside, outside = doublings[f"{LEAST}, in the cell"], doublings[LEAST]
    named = {"on the whole picture": outside, "in the cell alone": inside, "ratio": inside - outside}
    rows = []
    for name, estimate in named.items():
        value, low, high = (2**each for each in (estimate.value, *estimate.interval()))
        rows.append({"noise": name, "geometric mean, in 1/255": f"{value:.3g} [{low:.3g}, {high:.3g}]"})
    return Table(
        pd.DataFrame(rows),
        "The least noise that PGD needs to change a correct answer, image by image, with 95 % intervals; the ratio has "
        f"no unit. {base.label(record)}.",
    )


def _stacked(cells: dict[str, Cells], kind: str) -> pd.DataFrame:
    """The tables of several measures in one, told apart by ``measure``."""
    frames = [getattr(each, kind)().assign(measure=name) for name, each in cells.items()]
    return pd.concat(frames, ignore_index=True)


def classification(records: list[Record]) -> Table:
    """Table 1: its numbers beside ours, in percent, precision, recall and F1 in both averages (H4)."""
    printed = documents.published_table("hpat", "table1")
    heads = {"ACC": "ACC", "PRE": "PRE (macro)", "F1": "F1 (macro)", "AUC": "AUC"}
    rows = [
        {"network": base.network(str(name)), "source": "the document"}
        | {heads[metric]: f"{100 * value:.1f}" for metric, value in row.items()}
        for name, row in printed.iterrows()
    ]
    for record in records:
        o = record.outcomes.where(environment="H0")
        scores = {"ACC": o.accuracy, "AUC": o.auc}
        for average in ("macro", "binary"):
            scores |= {f"PRE ({average})": o.precision(average), f"REC ({average})": o.recall(average)}
            scores |= {f"F1 ({average})": o.f1(average)}
        for name in o.values("network"):
            row = {"network": base.network(name), "source": _source(record)}
            rows.append(row | {head: _percent(cells, name) for head, cells in scores.items()})
    order = ["ACC", *(f"{m} ({a})" for a in ("macro", "binary") for m in ("PRE", "REC", "F1")), "AUC"]
    frame = pd.DataFrame(rows).fillna("–")
    frame["sort"] = frame["network"].str.partition(" (")[0].map({n: k for k, n in enumerate(base.NETWORKS.values())})
    frame = frame.sort_values("sort", kind="stable")
    columns = ["network", "source", *(c for c in order if c in frame)]
    return Table(
        frame[columns],
        "Classification of clean images, in percent. The document prints one value and no average; ours have 95 % "
        f"intervals over trainings and images. {PREVALENCE} {_labels(records)}.",
    )


def subjects(record: Record) -> Table:
    """Clean accuracy by the healthy subject that is held out, who is nearly the whole negative class of a test."""
    o = record.outcomes.where(environment="H0")
    o = o.where(split="patient") if "split" in o.conditions else o
    o = o.where(branch="shared") if "branch" in o.conditions else o
    o = o.where(reading="clean") if "reading" in o.conditions else o
    by = o.conditions[0]
    held = held_out(o)
    told = replace(o, rows=o.rows.assign(subject=o.rows["model"].map(held)), conditions=("subject", by))
    rows = []
    for subject in sorted(set(held.values())):
        for name in told.values(by):
            one = told.where(**{"subject": subject, by: name})
            malignant = one.rows["label"] == 1
            seeds = sorted({int(one.seeds[m] or 0) for m in one.rows["model"].unique()})
            row = {"healthy test subject": subject, by: base.network(name), "seeds": ", ".join(map(str, seeds))}
            row |= {"malignant, healthy cells": f"{_cells(one, malignant)}, {_cells(one, ~malignant)}"}
            row |= {"accuracy, %": f"{100 * one.accuracy[()].value:.1f}", "AUC": f"{one.auc[()].value:.3f}"}
            row |= {
                "of malignant": f"{100 * one.recall()[()].value:.1f}",
                "of healthy": f"{100 * _of_healthy(one):.1f}",
            }
            rows.append(row)
    return Table(
        pd.DataFrame(rows),
        "Who decides: clean test images by the healthy subject that is held out, and the share of each class that is "
        f"answered right, mean over the seeds. {base.label(record)}.",
    )


def held_out(o: Outcomes) -> dict[int, str]:
    """The healthy subject with the most test images of each model, by the model's number."""
    rows = o.rows[o.rows["label"] == 0]
    counted = rows.groupby(["model", "group"], observed=True).size().reset_index(name="cells")
    most = counted.sort_values(["model", "cells"], ascending=[True, False]).drop_duplicates("model")
    return {int(m): str(group).rpartition("/")[2] for m, group in zip(most["model"], most["group"], strict=True)}


def _of_healthy(o: Outcomes) -> float:
    rows = o.rows[o.rows["label"] == 0]
    return float((rows["prediction"] == 0).groupby(rows["model"]).mean().mean())


def _cells(o: Outcomes, which: pd.Series) -> int:
    return int(o.rows[which].groupby("model").size().mean().round())


def _percent(cells: Cells, *key: str) -> str:
    """A cell as the tables show it, in percent with its interval."""
    estimate = cells[key]
    low, high = estimate.interval()
    return f"{100 * estimate.value:.1f} [{100 * max(0, low):.0f}, {100 * min(1, high):.0f}]"


def _source(record: Record) -> str:
    return f"{'real' if record.real else 'phantom'}, {record.header.profile}"


def _labels(records: list[Record]) -> str:
    return "; ".join(map(base.label, records))


def robustness(record: Record, *, split: str | None = None) -> Figure:
    """Accuracy and ROI over H0…H6, a column a reading of the environments, a line a network or a training."""
    o = record.outcomes if split is None else record.outcomes.where(split=split)
    by = o.conditions[0]  # "network" or "training"
    looks = charts.styles(o.values(by), {name: base.network(name) for name in o.values(by)})
    measures = {"accuracy": o.accuracy, "ROI (eq. 15)": o.invariance(**CLEAN)}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 2, figsize=(7.2, 4.8), sharex=True, sharey=True)
        told = []
        for row, (measure, cells) in enumerate(measures.items()):
            table = cells.table()
            for column, (reading, title) in enumerate(READINGS.items()):
                axis = axes[row][column]
                shown = table[table["reading"].isin(("clean", reading))].sort_values("environment", kind="stable")
                lines = charts.lines(axis, shown, "environment", by, looks)
                told += [f"{title}, {measure}, {line}" for line in lines]
                axis.set_ylim(-0.03, 1.03)
                axis.set_title(f"environment read as {title}" if row == 0 else "")
                axis.set_xlabel("environment" if row == 1 else "")
            axes[row][0].set_ylabel(measure)
        charts.legend(canvas, axes[0][0])
        held = "" if split is None else f", split by {split}"
        return base.finish(
            canvas,
            f"Accuracy and ROI over the environments{held}. Points: mean over trainings; {INTERVALS}. "
            f"{base.label(record)}.",
            f"Line charts of accuracy and ROI over H0 to H6 in two readings{held}. {'; '.join(told)}.",
        )


def h6(record: Record) -> Table:
    """Figure 4's trainings in H0 and H6 in every reading, the fixed one also with thresholds set on training images."""
    o = record.outcomes.where(split="patient")
    fair = recalibrated(record).accuracy
    rows = []
    for name in o.values("training"):
        row = {"training": name, "H0": _percent(o.accuracy, name, "H0")}
        row |= {"H0, own threshold": _percent(fair, name, "H0")}
        row |= {"H6, fixed": _percent(o.accuracy, name, "H6", "fixed")}
        row |= {"H6, fixed, own threshold": _percent(fair, name, "H6")}
        row |= {f"H6, {reading}": _percent(o.accuracy, name, "H6", reading) for reading in ("searched", "worst")}
        rows.append(row)
    return Table(
        pd.DataFrame(rows),
        "Accuracy in percent. Own threshold: the margin that tells the classes of training images apart best, set in "
        "the same environment. Worst: the hardest of two searches, a search by gradients and a suite of pixel attacks, "
        f"for a sample. {base.label(record)}.",
    )


def recalibrated(record: Record) -> Outcomes:
    """Figure 4's outcomes in H0 and fixed H6, answered with each model's own threshold."""
    o, cuts = record.outcomes.where(split="patient"), record.table("thresholds")
    rows = o.rows[o.rows["reading"].isin(("clean", "fixed")) & o.rows["environment"].isin(("H0", "H6"))]
    seeds = rows["model"].map(dict(enumerate(o.seeds)))
    key = pd.MultiIndex.from_arrays([rows["training"].astype(str), seeds, rows["environment"].astype(str)])
    cut = cuts.set_index(["training", "seed", "environment"])["threshold"].reindex(key).to_numpy(float)
    answered = (rows["margin"].to_numpy(float) >= cut).astype("int8")
    return replace(o, rows=rows.assign(prediction=answered))


def nearest_to_figure_4(record: Record) -> Table:
    """The printed 84.5 → 48.3 beside each reading: how far off both numbers are, on average."""
    accuracy, printed = record.outcomes.accuracy, documents.published("hpat")
    wanted = [float(printed[name]["value"]) for name in ("accuracy_h0", "accuracy_h6")]
    rows = []
    for split in record.outcomes.values("split"):
        for reading, title in READINGS.items():
            found = [accuracy[split, "Standard", "H0"].value, accuracy[split, "Standard", "H6", reading].value]
            off = float(np.abs(np.subtract(found, wanted)).mean())
            row = {"split by": split, "H6 read as": title, "H0": f"{100 * found[0]:.1f}", "H6": f"{100 * found[1]:.1f}"}
            rows.append(row | {"mean distance, points": f"{100 * off:.1f}"})
    rows.append({"split by": "the document", "H6 read as": "not said", "H0": "84.5", "H6": "48.3"})
    return Table(
        pd.DataFrame(rows).fillna("–"),
        "Which reading comes nearest to the numbers in the text: accuracy of standard training, in percent. "
        f"{base.label(record)}.",
    )


def heat(record: Record) -> Figure:
    """Figure 5: ROI over ε × rotation, a column a training, a row a reading."""
    table = record.outcomes.invariance(environment=quantities.STILL).table()
    cells = table["environment"].str.extract(r"(?P<eps>\d+)/255, (?P<rotation>\d+)°").astype(float)
    table = table.assign(eps=cells["eps"], rotation=cells["rotation"])
    names = list(dict.fromkeys(table["training"]))
    with plt.style.context(STYLE):
        size = (3.2 * len(names) + 0.8, 2.6 * len(READINGS))
        canvas, axes = plt.subplots(len(READINGS), len(names), figsize=size, squeeze=False, sharex=True, sharey=True)
        told = []
        for row, (reading, title) in enumerate(READINGS.items()):
            for axis, name in zip(axes[row], names, strict=True):
                shown = table[(table["training"] == name) & (table["reading"] == reading)]
                picture = charts.heat(axis, shown, "rotation", "eps")
                axis.set_title(f"{name}, {title}")
                corner = shown.sort_values(["eps", "rotation"])["value"].iloc[-1]
                told.append(f"{name}, {reading}: mean {shown['value'].mean():.2f}, worst corner {corner:.2f}")
            axes[row][0].set_ylabel("ε, in 1/255")
        for axis in axes[-1]:
            axis.set_xlabel("rotation, degrees")
        canvas.colorbar(picture, ax=axes, label="ROI (eq. 15)", shrink=0.8)
        return base.finish(
            canvas,
            f"ROI under PGD at ε and a rotation, mean over {len(record.seeds)} trainings, split by patient. "
            f"{base.label(record)}.",
            f"Heat maps of the ROI over ε and rotation. {'; '.join(told)}.",
        )


def searches(record: Record) -> Figure:
    """Figure 6: worst loss (above) and ROI (below) against queries, a column a box.

    STM's grids are points, for a grid has no best so far: each is its own search.
    """
    o = record.outcomes
    measures = {"mean worst loss, nats": o.mean("loss"), "ROI (eq. 15)": _steadiness(record)}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, len(BOXES), figsize=(7.2, 5.2), sharex=True, squeeze=False)
        told = []
        for row, (measure, cells) in enumerate(measures.items()):
            table = cells.table()
            table = table[table["method"] != "any"].astype({"queries": int})
            for column, (box, title) in enumerate(BOXES.items()):
                axis, shown = axes[row][column], table[table["box"] == box]
                curves = {name: look for name, look in METHODS.items() if name != "STM"}
                told += [
                    f"{title}, {measure}, {line}"
                    for line in charts.lines(axis, shown, "queries", "method", curves, bars=False)
                ]
                grids = {"STM": METHODS["STM"]._replace(line="none")}
                told += [
                    f"{title}, {measure}, {line}" for line in charts.lines(axis, shown, "queries", "method", grids)
                ]
                axis.set_xscale("log")
                axis.set_xticks([1, 10, 100, 775], ["1", "10", "100", "775"])
                axis.minorticks_off()
                axis.set_title(title if row == 0 else "")
                axis.set_xlabel("queries an image" if row == 1 else "")
            axes[row][0].set_ylabel(measure)
        axes[1][0].set_ylim(-0.03, 1.03)
        axes[1][1].set_ylim(-0.03, 1.03)
        charts.legend(canvas, axes[0][0], 4)
        return base.finish(
            canvas,
            "Mean worst loss and ROI against queries, a gradient counted as three; bands and bars are 95 % intervals "
            "over trainings and images. "
            f"{base.label(record)}.",
            f"Line charts of worst loss and ROI against queries. {'; '.join(told)}.",
        )


def paired_searches(record: Record) -> Figure:
    """Figure 6 as a paired difference: ROI under STM less ROI under STBO at as many queries, by box."""
    roi = _steadiness(record)
    rows = []
    for box in BOXES:
        for budget in ("9", "27", "99"):
            estimate = roi[box, "STM", budget] - quantities.stbo_mean(roi, box, budget)
            low, high = estimate.interval()
            rows.append({"box": box, "queries": budget, "value": estimate.value, "low": low, "high": high})
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(5.2, 2.4))
        looks = charts.styles(list(BOXES), BOXES)
        told = charts.points(axis, pd.DataFrame(rows), None, "queries", "box", looks)
        axis.axhline(0, color="#555555", lw=0.8)
        axis.set(ylabel="ROI of STM less\nROI of STBO", xlabel="queries an image")
        charts.legend(canvas, axis)
        return base.finish(
            canvas,
            "How much lower STBO, mean over three search seeds, leaves the ROI than a grid of as many points, image by "
            f"image: above zero speaks for STBO; {INTERVALS}. {base.label(record)}.",
            f"Dot chart of paired differences in ROI at 9, 27 and 99 queries. {'; '.join(told)}.",
        )


def _steadiness(record: Record) -> Cells:
    return record.outcomes.invariance(box="none", method="clean", queries="0")


def search_table(records: list[Record]) -> Table:
    """Each record's worst loss and ROI at about 100 units, at STM's 775, and of everything together."""
    rows = []
    for record in records:
        loss, roi = record.outcomes.mean("loss"), _steadiness(record)
        ends = [*((name, "100") for name in (*STBO, *PEERS)), ("STM", "99"), ("STM", "775"), ("any", "all")]
        for box, title in BOXES.items():
            for method, queries in ends:
                low, high = loss[box, method, queries].interval()
                row = {"run": _source(record), "range": title, "method": method, "units": queries}
                row |= {"images a training": str(loss[box, method, queries].n)}
                row |= {"worst loss": f"{loss[box, method, queries].value:.2f} [{low:.2f}, {high:.2f}]"}
                rows.append(row | {"ROI, %": _percent(roi, box, method, queries)})
    return Table(
        pd.DataFrame(rows),
        "Mean worst loss (nats) and ROI with 95 % intervals; a query is a unit, a gradient three. Any: the worst of "
        f"everything, a grid of 2,989 points among it, on fewer images. {_labels(records)}.",
    )


def framework(walk: Walk, record: Record) -> Figure:
    """Figure 2 from the real objects: phantoms of one batch on their way, then the network with its shapes.

    Rows: images of the batch; columns: X, the noise of A_ε (enlarged), A_ε(X), T_s(A_ε(X)).
    """
    pictures = list(walk.pictures.items())
    count = len(pictures[0][1])
    with plt.style.context(STYLE):
        canvas = plt.figure(figsize=(7.2, 1.55 * count + 1.2))
        upper, lower = canvas.subfigures(2, 1, squeeze=False, height_ratios=(1.55 * count + 0.3, 0.9)).flat
        axes = upper.subplots(count, len(pictures), squeeze=False)
        for column, (name, images) in enumerate(pictures):
            axes[0][column].set_title(name)
            for axis, image in zip(axes[:, column], images, strict=True):
                base.picture(axis, image)
        axis = lower.subplots()
        axis.axis("off")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        for number, (title, shape) in enumerate(walk.network):
            axis.text(
                (number + 0.5) / len(walk.network),
                0.5,
                f"{title}\n{shape}",
                ha="center",
                va="center",
                fontsize=7,
                bbox=BOX,
            )
            if number:
                middle = number / len(walk.network)
                axis.annotate("", (middle + 0.016, 0.5), (middle - 0.016, 0.5), arrowprops={"arrowstyle": "->"})
        told = "; ".join(f"{title} {shape}".replace("\n", " ") for title, shape in walk.network)
        return base.finish(
            canvas,
            f"One batch on its way through HPAT: pictures, then tensors. {base.phantoms(record)}.",
            f"Pictures of {count} phantom cells: {', '.join(name for name, _ in pictures)}. Below, a chain of boxes: "
            f"{told}.",
        )


def steps(record: Record) -> Table:
    """Algorithm 1 on one batch of the first training, line by line."""
    return Table(record.table("steps"), f"Algorithm 1 on one batch, line by line. {base.label(record)}.")


def tied(record: Record) -> Table:
    """How many clean answers change with the adversarial partner, for MixBN and for equation 10 as printed."""
    names = {"mix": "MixBN: each half through its own branch", "sum": "equation 10 as printed: the branches added up"}
    cells = record.outcomes.mean("changed")
    rows = [
        {"variant": name, "clean answers that change, %": _percent(cells, f"partners exchanged, {key}")}
        for key, name in names.items()
    ]
    return Table(pd.DataFrame(rows), f"What an image's answer owes to its partner. {base.label(record)}.")


def mixbn(record: Record) -> Figure:
    """Accuracy of each strategy without MixBN and with it through each branch, on clean and on perturbed images."""
    o = record.outcomes.where(split="patient")
    panels = {"H0": "clean images", "own": "the half of H6 that it trains against", "H6": "hybrid images (H6)"}
    table, each = (f[~f["training"].str.startswith("Standard")] for f in (o.accuracy.table(), o.accuracy.each()))
    table, each = (f.assign(training=f["training"].str.removesuffix("+MixBN")) for f in (table, each))
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
        told = []
        for axis, (place, title) in zip(axes, panels.items(), strict=True):
            wanted = (PIXEL, SPATIAL) if place == "own" else (place,)
            shown, small = (f[f["environment"].isin(wanted)] for f in (table, each))
            lines = charts.points(axis, shown, small, "training", "branch", BRANCHES)
            told += [f"{title}, {line}" for line in lines]
            axis.set_title(title)
            axis.set_ylim(-0.03, 1.03)
        axes[0].set_ylabel("accuracy")
        charts.legend(canvas, axes[0])
        return base.finish(
            canvas,
            "Accuracy without MixBN and through each of its branches; attacks go through the branch that is measured. "
            f"Dots: mean over trainings; {INTERVALS}; small dots: each. {base.label(record)}.",
            f"Dot charts of accuracy. {'; '.join(told)}.",
        )


def nearest_to_table_2(record: Record) -> Table:
    """Table 2's 24 numbers beside each reading of what they are of: how far off ours are, on average."""
    o = record.outcomes.where(split="patient")
    scores = _scores(o)
    printed = documents.published_table("hpat", "table2")
    own = {"Adv_PGD": PIXEL, "Adv_RT": SPATIAL, "Adv_h": "H6"}
    readings = {
        ("clean images", "clean"): dict.fromkeys(own, "H0"),
        ("clean images", "adv"): dict.fromkeys(own, "H0"),
        ("each training's own perturbation", "adv"): own,
        ("each training's own perturbation", "clean"): own,
        ("hybrid images (H6)", "adv"): dict.fromkeys(own, "H6"),
        ("hybrid images (H6)", "clean"): dict.fromkeys(own, "H6"),
    }
    rows = []
    for (images, side), places in readings.items():
        off = {
            metric: [
                abs(score[name, side if "+" in name else "shared", places[name.removesuffix("+MixBN")]].value - value)
                for name, value in printed[metric].items()
            ]
            for metric, score in scores.items()
        }
        row = {"images": images, "branch of MixBN": BRANCHES[side].label.removeprefix("MixBN, ")}
        row |= {metric: f"{100 * np.mean(each):.1f}" for metric, each in off.items()}
        rows.append(row | {"all": f"{100 * np.mean(list(off.values())):.1f}"})
    return Table(
        pd.DataFrame(rows).sort_values("all", key=lambda each: each.astype(float)),
        "Which reading comes nearest to table 2: mean distance of ours from its six rows, in points, nearest first. "
        f"{PREVALENCE} {base.label(record)}.",
    )


def _scores(o: Outcomes) -> dict[str, Cells]:
    return {"ACC": o.accuracy, "PRE": o.precision(), "F1": o.f1(), "AUC": o.auc}


def ablation(records: list[Record]) -> Table:
    """Table 2: its numbers, and ours on clean and hybrid images through each branch; precision, F1 are binary (H4)."""
    printed = documents.published_table("hpat", "table2")
    rows = []
    for name, row in printed.iterrows():
        about = {"training": str(name), "source": "the document", "images": "not said", "branch": "not said"}
        rows.append(about | {"split": "not said"} | {metric: f"{100 * value:.1f}" for metric, value in row.items()})
    for record in records:
        o = record.outcomes
        scores = _scores(o)
        for key in o.accuracy:
            split, name, side, place, _ = key
            about = {"training": name, "source": _source(record), "images": PLACES.get(place, place)}
            about |= {"branch": "–" if side == "shared" else side, "split": split}
            rows.append(about | {head: _percent(cells, *key) for head, cells in scores.items()})
    order = {name: number for number, name in enumerate(["Standard", quantities.LONGER, *map(str, printed.index)])}
    frame = pd.DataFrame(rows).sort_values("training", key=lambda names: names.map(order), kind="stable")
    return Table(
        frame,
        "MixBN, in percent; precision and F1 of the malignant class. The document says neither on which images nor "
        f"through which branch; ours have 95 % intervals. {PREVALENCE} {_labels(records)}.",
    )


def settings(table: pd.DataFrame) -> Table:
    """The document's settings beside this profile's."""
    return Table(table, "What the document prints, and what this profile uses.")
