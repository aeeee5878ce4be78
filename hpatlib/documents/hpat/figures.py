"""Figures and tables of the leukemia paper's chapters, drawn from records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hpatlib import documents
from hpatlib.documents.hpat import quantities
from hpatlib.documents.hpat.quantities import CLEAN, LEAST, PEERS, PIXEL, SPATIAL, STBO
from hpatlib.outcomes import Cells, Outcomes, Unmeasured
from hpatlib.plots import base, charts
from hpatlib.plots.base import Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate, average

if TYPE_CHECKING:
    from hpatlib.documents.hpat.study import Pictures, Walk

# A method looks the same in every chapter.
METHODS = {
    "STM": Style("STM (grids)", charts.PAINT[1], "s", "none"),
    "STBO": Style("STBO", charts.PAINT[0], width=2.2),
    "DIRECT": Style("DIRECT", charts.GREY, "D", charts.DASHES[1], 1.1),
    "local": Style("Sobol, then local", charts.GREY, "v", charts.DASHES[2], 1.1),
    "gradient": Style("gradients", charts.GREY, "^", charts.DASHES[3], 1.1),
    "Sobol": Style("Sobol", charts.GREY, "P", charts.DASHES[4], 1.1),
    "random": Style("random", charts.GREY, "X", charts.DASHES[5], 1.1),
}
PAIRS = {
    f"{own}-{grid}": METHODS["STBO"]._replace(label=own if own == grid else f"{own} against {grid}")
    for own, grid in (("9", "9"), ("27", "27"), ("99", "99"), ("100", "775"))
}  # queries of STBO and of STM
BOXES = {"30": "±30°, ±3 px", "180": "±180°, ±12 px of 300"}
READINGS = {"fixed": "one fixed transform", "searched": "the worst that STBO finds"}
BRANCHES = {
    "shared": Style("without MixBN", charts.PAINT[0]),
    "clean": Style("MixBN, clean branch", charts.PAINT[1], "s"),
    "adv": Style("MixBN, adversarial branch", charts.PAINT[2], "D"),
}
PLACES = {"H0": "clean", "H6": "hybrid (H6)"}
PREVALENCE = (
    "The document's numbers fit about two malignant cells to one healthy, on which binary precision and F1 depend; the "
    "subset of C-NMC and the phantoms have one to one."
)
INTERVALS = "bars: 95 % intervals over trainings and images"
SHARE: dict[str, Any] = {"percent": "y", "axes": {"ylim": (-0.03, 1.03)}}
ACROSS: dict[str, Any] = {"percent": "x", "axes": {"xlim": (-0.03, 1.03)}}


def flips(shown: Pictures, record: Record) -> Figure:
    """A phantom of each class under each perturbation, the model's answer and confidence above; a cross: wrong."""
    names, rows = list(shown.images), []
    notes: list[list[str]] = []
    for k, truth in enumerate(shown.labels):
        notes.append([])
        for name in names:
            guess, sure = int(shown.predictions[name][k]), float(shown.confidences[name][k])
            notes[-1].append(f"{'✓' if guess == truth else '✗'} {shown.classes[guess]} {100 * sure:.0f} %")
            about = {"perturbation": name, "truth": shown.classes[int(truth)], "answer": shown.classes[guess]}
            rows.append(about | {"confidence": sure, "right": guess == truth})
    data = pd.DataFrame(rows)
    truths = [f"truth: {shown.classes[int(label)]}" for label in shown.labels]
    images = [[shown.images[name][k] for name in names] for k in range(len(truths))]
    turned = data[~data["right"]]["perturbation"].nunique()
    return charts.figure(
        [charts.strip(images, truths, names, notes=notes, data=data)],
        name=base.named("flips", record),
        caption="One phantom of each class under each perturbation, with the model's answer: ✓ right, ✗ wrong. "
        f"{base.phantoms(record)}.",
        alt=f"Pictures of two phantom cells, clean and under {len(names) - 1} perturbations, with the model's answers: "
        f"{turned} of them turn at least one answer wrong.",
    )


def flip_rates(record: Record) -> Figure:
    """Accuracy, ROI and share of flipped correct predictions under each perturbation."""
    o, clean = record.outcomes, {"perturbation": "clean"}
    cells = {
        "accuracy": o.accuracy,
        "ROI (eq. 15)": o.invariance(**clean),
        "correct predictions flipped": o.flipped(**clean),
    }
    table, each = (_stacked(cells, kind) for kind in ("table", "each"))
    flipped = cells["correct predictions flipped"]
    most = max((key for key in flipped if key[0] != "clean"), key=lambda key: flipped[key].value)
    panel = charts.dots(
        table,
        "perturbation",
        charts.styles(list(cells)),
        "measure",
        each=each,
        xlabel="share of images, %",
        **ACROSS,
    )
    return charts.figure(
        [panel],
        name="flip-rates",
        record=record,
        caption=f"What each perturbation does to predictions. Dots: mean over trainings; {INTERVALS}; small dots: each "
        "training.",
        alt="Dot chart of accuracy, ROI and correct predictions flipped, a row a perturbation. Most are flipped under "
        f"{most[0]}: {_share(flipped[most])}.",
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
    return base.table(
        rows,
        "The least noise that PGD needs to change a correct answer, image by image of a sample, with 95 % intervals; "
        "the ratio has no unit.",
        "least-noise",
        record,
    )


def _stacked(cells: dict[str, Cells], kind: str) -> pd.DataFrame:
    """The tables of several measures in one, told apart by ``measure``."""
    frames = [getattr(each, kind)().assign(measure=name) for name, each in cells.items()]
    return pd.concat(frames, ignore_index=True)


def benchmarks(record: Record) -> Figure:
    """Table 1 as dumbbells: its numbers, and ours on clean images, a panel a metric, a row a network."""
    o, printed = record.outcomes.where(environment="H0"), documents.published_table("hpat", "table1")
    scores = {"ACC": o.accuracy, "PRE": o.precision("macro"), "F1": o.f1("macro"), "AUC": o.auc}
    names = o.values("network")
    looks = {name: Style(base.network(name), charts.PAINT[0]) for name in names}
    told = printed.rename(index={name.partition(" (")[0]: name for name in names}).rename_axis("network").reset_index()
    others = [name for name in told["network"] if name not in names]  # which the document has, and we have not
    looks |= {name: Style(base.network(name), charts.PAINT[0]) for name in others}
    shown = []
    for metric, cells in scores.items():
        words = ACROSS | {"xlabel": f"{metric}, %", "published": told.rename(columns={metric: "value"})}
        table = pd.concat([cells.table(), pd.DataFrame({"network": others})], ignore_index=True)
        shown.append(charts.dots(table, "network", looks, each=cells.each(), **words))
    best = max(names, key=lambda name: o.accuracy[name].value)
    return charts.figure(
        shown,
        name="benchmarks",
        record=record,
        share="y",
        caption="Clean images, beside table 1 (hollow); PRE and F1 are means over the classes. Dots: mean over "
        f"trainings; {INTERVALS}; small dots: each training.",
        alt="Dumbbell charts of accuracy, precision, F1 and AUC on clean images, ours beside table 1, a row a network. "
        f"Most accurate is {base.network(best)}: {_share(o.accuracy[best])}.",
    )


def classification(records: list[Record]) -> Table:
    """Table 1: its numbers beside ours, in per cent, precision, recall and F1 in both averages (L4)."""
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
        for mean in ("macro", "binary"):
            scores |= {f"PRE ({mean})": o.precision(mean), f"REC ({mean})": o.recall(mean)}
            scores |= {f"F1 ({mean})": o.f1(mean)}
        for name in o.values("network"):
            row = {"network": base.network(name), "source": _source(record)}
            rows.append(row | {head: _percent(cells, name) for head, cells in scores.items()})
    order = ["ACC", *(f"{m} ({a})" for a in ("macro", "binary") for m in ("PRE", "REC", "F1")), "AUC"]
    frame = pd.DataFrame(rows).fillna("–")
    frame["sort"] = frame["network"].str.partition(" (")[0].map({n: k for k, n in enumerate(base.NETWORKS.values())})
    frame = frame.sort_values("sort", kind="stable")
    columns = ["network", "source", *(c for c in order if c in frame)]
    return base.table(
        frame[columns],
        "Classification of clean images, in per cent. The document prints one value and no average; ours have 95 % "
        f"intervals over trainings and images. {PREVALENCE}",
        "classification",
        *records,
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
    return base.table(
        rows,
        "Who decides: clean test images by the healthy subject that is held out, and the share of each class that is "
        "answered right, mean over the seeds.",
        "subjects",
        record,
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
    """A cell as the tables show it, in per cent with its interval."""
    low, high = cells[key].interval()
    return base.percent(cells[key].value, max(0, low), min(1, high))


def _share(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} %"


def _source(record: Record) -> str:
    return f"{'real' if record.real else 'phantom'}, {record.header.profile}"


def robustness(record: Record, *, split: str | None = None) -> Figure:
    """Accuracy and ROI over H0…H6, a panel a reading of the environments, a line a network or a training.

    Trainings stand beside the two accuracies that the text prints; networks stand in grey beside their mean, which
    leaves out those that have nothing to lose, and beside their clean accuracies in table 1.
    """
    o = record.outcomes if split is None else record.outcomes.where(split=split)
    by = o.conditions[0]  # "network" or "training"
    if by == "network":
        able = _competent(o)
        looks = _networks(o, able)
    else:
        able, looks = [], charts.styles(o.values(by))
        looks["published"] = charts.published(looks["Standard"])
    shown = []
    for measure, cells in {"accuracy": o.accuracy, "ROI (eq. 15)": o.invariance(**CLEAN)}.items():
        for reading, title in READINGS.items():
            table = cells.table()
            table = table[table["reading"].isin(("clean", reading))]
            if able:
                table = pd.concat([table, _mean(cells, table, able)])
            if measure == "accuracy":
                table = pd.concat([table, _printed(by)])
            table = table.sort_values("environment", kind="stable")
            words = SHARE | {"title": title, "xlabel": "environment", "ylabel": f"{measure}, %"}
            shown.append(charts.curves(table, "environment", by, looks, **words))
    who = "mean" if able else o.values(by)[0]
    fall = shown[0].data[shown[0].data[by] == looks[who].label]["value"]
    held = "" if split is None else f", split by {split}"
    asked = o.rows.groupby(["environment", "reading"], observed=True)["image"].nunique()
    kinds = {"fixed turns of H1 to H5": ("H1", "fixed"), "searches": ("H1", "searched")}
    few = [kind for kind, cell in kinds.items() if asked[cell] < asked["H0", "clean"]]
    sampled = f" Of a sample: {', '.join(few)}." if few else ""
    sampled += " Searches of H6 have more images." if asked["H6", "searched"] > asked["H1", "searched"] else ""
    marked = " Bold: mean over networks that beat answering the largest class; dotted: those that do not."
    return charts.figure(
        shown,
        name="robustness",
        record=record,
        share="xy",
        caption=f"Accuracy and ROI over the environments{held}. Points: mean over trainings; {INTERVALS}; hollow: "
        f"published.{marked if by == 'network' else sampled}",
        alt=f"Line charts of accuracy and ROI from H0 to H6, a panel a reading, a line a {by}. With one fixed "
        f"transform {'the mean' if able else looks[who].label} goes from {100 * fall.iloc[0]:.1f} to "
        f"{100 * fall.iloc[-1]:.1f} % accuracy.",
    )


def _competent(o: Outcomes) -> list[str]:
    """The networks that have something to lose; phantoms of a small run may have taught none of them."""
    try:
        return quantities.competent(o)
    except Unmeasured:
        return []


def _networks(o: Outcomes, able: list[str]) -> dict[str, Style]:
    """Grey lines for networks, dotted for those with nothing to lose, and a bold one for the mean of the others."""
    looks = {}
    for number, name in enumerate(o.values("network")):
        constant = name not in able
        label = base.network(name).partition(" (")[0] + (", guesses" if constant else "")
        line = (0, (1, 1.5)) if constant else "-"
        looks[name] = Style(label, charts.GREY, charts.MARKERS[number % 8], line, 0.9)
    looks["mean"] = Style("mean", charts.PAINT[1], width=2.4)
    return looks | {"published": Style("published (table 1)", charts.PAINT[0], "o", "none", 0.9, hollow=True)}


def _mean(cells: Cells, table: pd.DataFrame, able: list[str]) -> pd.DataFrame:
    """The mean over networks in each environment of ``table``, as rows of it."""
    places = dict.fromkeys(table[["environment", "reading"]].itertuples(index=False, name=None))
    means = {("mean", *place): average(*(cells[name, *place] for name in able)) for place in places}
    return charts.frames(means, "network", "environment", "reading")[0]


def _printed(by: str) -> pd.DataFrame:
    """The document's accuracies in H0 and H6: the text's of standard training, table 1's of networks."""
    if by == "network":
        values = [("H0", float(value)) for value in documents.published_table("hpat", "table1")["ACC"]]
    else:
        values = [(name, documents.published("hpat")[f"accuracy_{name.lower()}"]["value"]) for name in ("H0", "H6")]
    rows = [{by: "published", "environment": place, "value": value} for place, value in values]
    return pd.DataFrame(rows).assign(low=np.nan, high=np.nan)


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
    return base.table(
        rows,
        "Accuracy in per cent. Own threshold: the margin that tells the classes of training images apart best, set in "
        "the same environment. Searched: by STBO, once. Worst: what that, another search by STBO, one by gradients and "
        "a suite of pixel attacks leave right. Both of a sample.",
        "h6",
        record,
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
    rows.append(
        {
            "split by": "the document",
            "H6 read as": "not said",
            "H0": f"{100 * wanted[0]:.1f}",
            "H6": f"{100 * wanted[1]:.1f}",
        }
    )
    return base.table(
        pd.DataFrame(rows).fillna("–"),
        "Which reading comes nearest to the numbers in the text: accuracy of standard training, in per cent.",
        "nearest-to-figure-4",
        record,
    )


def heat(record: Record) -> Figure:
    """Figure 5: ROI over ε × rotation, a column a training, a row a reading; and accuracy where STBO searches (L27)."""
    o = quantities.gridded(record.outcomes)
    roi, accuracy = o.invariance(environment=quantities.STILL), o.accuracy
    kinds = {("fixed", "ROI"): roi, ("searched", "ROI"): roi, ("searched", "Accuracy"): accuracy}
    tables = {kind: cells.table().assign(measure=kind[1]) for kind, cells in kinds.items()}
    table = pd.concat(each[each["reading"] == reading] for (reading, _), each in tables.items())
    cells = table["environment"].str.extract(r"(?P<eps>\d+)/255, (?P<rotation>\d+)°").astype(float)
    table = table.assign(eps=cells["eps"], rotation=cells["rotation"])
    words = {"xlabel": "rotation, degrees", "ylabel": "ε, in 1/255"}
    names = list(dict.fromkeys(table["training"]))
    shown = {
        (kind, name): table[(table["training"] == name) & (table["reading"] == kind[0]) & (table["measure"] == kind[1])]
        for kind in kinds
        for name in names
    }
    last = ("searched", "Accuracy")
    means = ", ".join(f"{name} {100 * shown[last, name]['value'].mean():.0f} %" for name in names)
    return charts.figure(
        [
            charts.heat(part, "rotation", "eps", title=f"{measure} of {name}, {READINGS[reading]}", **words)
            for ((reading, measure), name), part in shown.items()
        ],
        name="grid",
        record=record,
        columns=len(names),
        share="xy",
        caption="ROI (equation 15) and accuracy in per cent under PGD at ε and a rotation, mean over "
        f"{len(record.seeds)} trainings, split by patient.",
        alt="Heat maps over ε and rotation, a column a training, a row a measure and reading. Mean accuracy over the "
        f"cells, where STBO searches: {means}.",
    )


def noises(record: Record) -> Table:
    """Figure 5's trainings on clean images and under noise without a turn, of 6/255 made in four ways."""
    accuracy = record.outcomes.accuracy
    first = next(place for _, place, reading in accuracy if reading == "worst")  # the grid's first step
    eps = first.partition(",")[0]
    made = {
        "none": (quantities.STILL, "fixed"),
        f"PGD, {eps}": (first, "fixed"),
        f"standard attacks, {eps}": (first, "worst"),
        "PGD, 6/255": (quantities.LOUD, "fixed"),
        "standard attacks, 6/255": (quantities.LOUD, "worst"),
        "drawn at random, 6/255": (quantities.DRAWN, "control"),
        "PGD from the wrong label, 6/255": (quantities.WRONG, "control"),
    }
    trainings = record.outcomes.values("training")
    return base.table(
        [
            {"noise": told} | {name: _percent(accuracy, name, *cell) for name in trainings}
            for told, cell in made.items()
        ],
        "Accuracy in per cent, without a turn. PGD: the document's, as many steps as grey levels. Standard attacks: "
        "what a suite of them leaves right, of a sample; an upper bound. From the wrong label: PGD made to lower the "
        "loss of the true one; who reads the label off the noise believes the other one.",
        "noises",
        record,
    )


def felled(record: Record) -> Table:
    """Figure 5's trainings at 6/255 without a turn: which of the standard attacks was the first to fell an image."""
    found = record.table("felled").query("environment == @quantities.LOUD")
    counts = found.groupby(["training", "attack"], sort=False)["images"].sum().unstack("attack", fill_value=0)
    asked = [name for name in base.FELLED_BY if name != "transfer"]
    named = sorted(counts.columns.union(asked), key=base.FELLED_BY.index)
    shares = 100 * counts.reindex(columns=named, fill_value=0).div(counts.sum(axis=1), axis=0)
    each = found.groupby(["training", "seed"])["images"].sum().max()
    return base.table(
        shares.map("{:.1f}".format).rename_axis(columns=None).reset_index().rename(columns={"clean": "wrong already"}),
        f"Per cent of a sample of {each} images a training, by the first of the standard attacks that felled them at "
        "6/255, without a turn, over all trainings; they are run in this order, each on what still stands. PGD: 50 "
        "steps of 0.3/255 from the image itself, where the document has six of 1/255; smaller ε: the same within 3, "
        "1.5, 0.75 and 0.375 of 255.",
        "felled",
        record,
    )


def masking(record: Record) -> Table:
    """Figure 5's two trainings, the first of each: signs that a network masks its gradients."""
    found = record.table("masking")
    (seed,) = set(found["seed"])
    told = [
        f"{row.value + 0.0:.2f} [{row.value_low + 0.0:.2f}, {row.value_high + 0.0:.2f}], {row.verdict}"  # no −0.00
        for row in found.itertuples()
    ]
    wide = found.assign(told=told).pivot(index="check", columns="training", values="told")
    return base.table(
        wide.reindex(found["check"].unique())[list(found["training"].unique())].rename_axis(columns=None).reset_index(),
        f"Signs at 6/255 that a network masks its gradients, of the trainings with seed {seed} alone, on a sample of "
        f"{found['n'].max()} images: shares of images, with 95 % intervals over the images of each class; above zero "
        "speaks for masking. PGD: the worst of three starts, the image itself and two drawn, 20 steps; Square: asked "
        "of all images. Raised: the whole interval is above zero; unclear: only the value is. A check that is not "
        "raised proves nothing.",
        "masking",
        record,
    )


def searches(record: Record) -> Figure:
    """Figure 6: mean worst loss against queries, and STBO's less that of a grid of as many points, image by image.

    STM's grids are points, for a grid has no best so far: each is its own search. STBO is the mean of its three seeds.
    """
    loss = record.outcomes.mean("loss")
    table = loss.table().query("method in @METHODS and method != 'STBO'")
    table = pd.concat([table, _rows(_seeds(loss))]).astype({"queries": int}).sort_values("queries", kind="stable")
    gaps = _rows(_paired(loss))
    shown = []
    for box, title in BOXES.items():
        words: dict[str, Any] = {"title": title, "xlabel": "queries an image", "ylabel": "mean worst loss, nats"}
        words |= {"ticks": [1, 10, 100, 775], "axes": {"xscale": "log"}, "bands": False}
        shown.append(charts.curves(table[table["box"] == box], "queries", "method", METHODS, **words))
    for box, title in BOXES.items():
        words = {"title": f"STBO less STM, {title}", "xlabel": "difference in worst loss, nats", "line": 0}
        words |= {"ylabel": "queries an image"}
        shown.append(charts.dots(gaps[gaps["box"] == box], "method", PAIRS, **words))
    wide = gaps[(gaps["box"] == "180")].iloc[-1]
    return charts.figure(
        shown,
        name="searches",
        record=record,
        caption="Above: mean worst loss against queries, a gradient counted as three. Below: how much louder STBO, "
        "mean over three search seeds, leaves the loss than a grid, image by image: right of zero speaks for STBO; "
        f"{INTERVALS}.",
        alt="Line charts of worst loss against queries for seven searches in two ranges, and dots of STBO less the "
        f"grid. ±180°, 100 queries against the grid's 775: {wide['value']:+.2f} nats.",
    )


def paired_searches(record: Record) -> Figure:
    """Figure 6 as a paired difference: ROI under STM less ROI under STBO, by box."""
    gaps = _rows({key: -1 * gap for key, gap in _paired(_steadiness(record)).items()})
    shown = [
        charts.dots(
            gaps[gaps["box"] == box],
            "method",
            PAIRS,
            line=0,
            title=title,
            xlabel="difference in ROI, points",
            percent="x",
        )
        for box, title in BOXES.items()
    ]
    middle = gaps[gaps["box"] == "180"].iloc[2]
    return charts.figure(
        shown,
        name="paired-searches",
        record=record,
        share="y",
        caption="How much lower STBO, mean over three search seeds, leaves the ROI than a grid, image by image: right "
        f"of zero speaks for STBO; {INTERVALS}.",
        alt="Dot charts of ROI under STM less ROI under STBO, a panel a range, a row a budget. At ±180° and 99 "
        f"queries: {100 * middle['value']:+.1f} points.",
    )


def _seeds(cells: Cells) -> dict[tuple[str, str, str], Estimate]:
    """STBO's mean over its search seeds, by box and budget."""
    keys = [key for key in cells if key[1] == STBO[0] and all((key[0], name, key[2]) in cells for name in STBO)]
    return {(box, name, budget): quantities.stbo_mean(cells, box, budget) for box, name, budget in keys}


def _paired(cells: Cells) -> dict[tuple[str, str, str], Estimate]:
    """STBO less STM at budgets that both have, and with 100 queries against STM's 775, by box."""
    return {
        (box, f"{own}-{grid}", own): quantities.stbo_mean(cells, box, own) - cells[box, "STM", grid]
        for box in BOXES
        for own, grid in (pair.split("-") for pair in PAIRS)
    }


def _rows(found: Mapping[tuple[str, str, str], Estimate]) -> pd.DataFrame:
    """Estimates by box, method and queries, as the rows that charts draw."""
    return charts.frames(found, "box", "method", "queries")[0]


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
    return base.table(
        rows,
        "Mean worst loss (nats) and ROI with 95 % intervals; a query is a unit, a gradient three. Any: the worst of "
        "everything, a grid of 2,989 points among it, on fewer images.",
        "search-table",
        *records,
    )


def framework(walk: Walk, record: Record) -> Figure:
    """Figure 2 from the real objects: phantoms of one batch on their way, then the network with its shapes.

    Rows: images of the batch; columns: X, the noise of A_ε (enlarged), A_ε(X), T_s(A_ε(X)).
    """
    names, count = list(walk.pictures), len(next(iter(walk.pictures.values())))
    boxes = pd.DataFrame([{"part": title.replace("\n", " "), "shape": shape} for title, shape in walk.network])
    # The noise, shown enlarged around grey, is no neighbour of X.
    near = [name for name in names if "enlarged" not in name]
    away = [255 * float(abs(walk.pictures[name] - walk.pictures["X"]).mean()) for name in near]
    data = pd.DataFrame({"picture": near, "mean distance from X, grey levels": away})
    images = [[walk.pictures[name][k] for name in names] for k in range(count)]
    strip = charts.strip(images, [f"image {k}" for k in range(1, count + 1)], names, data=data)
    return charts.figure(
        [strip, charts.chain(boxes)],
        name=base.named("framework", record),
        columns=1,
        caption=f"One batch on its way through HPAT: pictures, then tensors. {base.phantoms(record)}.",
        alt=f"Pictures of {count} phantom cells: {', '.join(names)}. Below, a chain of {len(boxes)} boxes: the parts "
        "of the network with the shapes of their tensors.",
    )


def steps(record: Record) -> Table:
    """Algorithm 1 on one batch of the first training, line by line."""
    return base.table(record.table("steps"), "Algorithm 1 on one batch, line by line.", "steps", record)


def tied(record: Record) -> Table:
    """How many clean answers change with the adversarial partner, for MixBN and for equation 10 as printed."""
    names = {"mix": "MixBN: each half through its own branch", "sum": "equation 10 as printed: the branches added up"}
    changed, moved = (record.outcomes.mean(name) for name in ("changed", "moved"))
    rows = [
        {
            "variant": name,
            "clean answers that change, %": _percent(changed, f"partners exchanged, {key}"),
            "margins move by, spreads": f"{moved[f'partners exchanged, {key}'].value:.3g}",
        }
        for key, name in names.items()
    ]
    return base.table(rows, "What an image's answer owes to its partner.", "tied", record)


def mixbn(record: Record) -> Figure:
    """Accuracy of each strategy without MixBN and with it through each branch, beside table 2, a panel a set of images.

    The document says neither on which images nor through which branch, so that its values stand in every panel.
    """
    o = record.outcomes.where(split="patient", reading=["clean", "searched"])
    panels = {"H0": "clean images", "own": "the half of H6 that it trains against", "H6": "hybrid images (H6)"}
    table, each = (f[~f["training"].str.startswith("Standard")] for f in (o.accuracy.table(), o.accuracy.each()))
    table, each = (f.assign(training=f["training"].str.removesuffix("+MixBN")) for f in (table, each))
    shown = []
    for place, title in panels.items():
        wanted = (PIXEL, SPATIAL) if place == "own" else (place,)
        part, small = (f[f["environment"].isin(wanted)] for f in (table, each))
        words = {"title": title, "xlabel": "accuracy, %", **ACROSS}
        beside = _table_2(part[["training", "branch"]].drop_duplicates())
        shown.append(charts.dots(part, "training", BRANCHES, "branch", each=small, published=beside, **words))
    gain = [quantities.mixbn_gain(record.outcomes, side=side, measure="accuracy").value for side in ("clean", "adv")]
    left = [100 * o.accuracy["Adv_h+MixBN", side, "H6", "searched"].value for side in ("adv", "clean")]
    return charts.figure(
        shown,
        name="mixbn",
        record=record,
        columns=3,
        caption="Accuracy without MixBN and through each of its branches, beside table 2 (hollow); attacks go through "
        f"the branch that is measured. Of hybrid images, Adv_h with MixBN is right on {left[0]:.0f} % through the "
        f"adversarial branch, on {left[1]:.0f} % through the clean one. Dots: mean over trainings; {INTERVALS}; small "
        "dots: each.",
        alt="Dumbbell charts of accuracy without and with MixBN beside table 2, a panel a set of images, a row a "
        f"training. MixBN's least gain: {100 * gain[0]:+.1f} points on clean images, {100 * gain[1]:+.1f} on those of "
        "its own adversary.",
    )


def _table_2(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 2's accuracy for each training and branch in ``rows``."""
    printed = documents.published_table("hpat", "table2")["ACC"]
    keys = rows["training"] + rows["branch"].map(lambda branch: "" if branch == "shared" else "+MixBN")
    return rows.assign(value=printed[keys].to_numpy())


def nearest_to_table_2(record: Record) -> Table:
    """Table 2's 24 numbers beside each reading of what they are of: how far off ours are, on average."""
    o = record.outcomes.where(split="patient")
    scores = _scores(o)
    printed = documents.published_table("hpat", "table2")
    own = {"Adv_PGD": PIXEL, "Adv_RT": SPATIAL, "Adv_h": "H6"}
    asked: dict[str, tuple[dict[str, str], str]] = {
        "clean images": (dict.fromkeys(own, "H0"), "clean"),
        "each training's own perturbation": (own, "searched"),
        "hybrid images (H6)": (dict.fromkeys(own, "H6"), "searched"),
        "hybrid images (H6), one fixed transform": (dict.fromkeys(own, "H6"), "fixed"),
    }
    rows = []
    for (images, (places, reading)), side in product(asked.items(), ("clean", "adv")):
        off = {
            metric: [
                abs(score[name, branch, places[name.removesuffix("+MixBN")], reading].value - value)
                for name, value in printed[metric].items()
                for branch in (side if "+" in name else "shared",)
            ]
            for metric, score in scores.items()
        }
        row = {"images": images, "branch of MixBN": BRANCHES[side].label.removeprefix("MixBN, ")}
        row |= {metric: f"{100 * np.mean(each):.1f}" for metric, each in off.items()}
        rows.append(row | {"all": f"{100 * np.mean(list(off.values())):.1f}"})
    return base.table(
        pd.DataFrame(rows).sort_values("all", key=lambda each: each.astype(float)),
        "Which reading comes nearest to table 2: mean distance of ours from its six rows, in points, nearest first. "
        + PREVALENCE,
        "nearest-to-table-2",
        record,
    )


def _scores(o: Outcomes) -> dict[str, Cells]:
    return {"ACC": o.accuracy, "PRE": o.precision(), "F1": o.f1(), "AUC": o.auc}


def ablation(records: list[Record]) -> Table:
    """Table 2: its numbers, and ours on clean and hybrid images through each branch; precision, F1 are binary (L4)."""
    printed = documents.published_table("hpat", "table2")
    rows = []
    for name, row in printed.iterrows():
        about = {"training": str(name), "source": "the document", "images": "not said", "branch": "not said"}
        rows.append(about | {"split": "not said"} | {metric: f"{100 * value:.1f}" for metric, value in row.items()})
    for record in records:
        o = record.outcomes
        scores = _scores(o)
        for key in o.accuracy:
            split, name, side, place, reading = key
            images = PLACES.get(place, place) + ", one fixed transform" * (reading == "fixed")
            about = {"training": name, "source": _source(record), "images": images}
            about |= {"branch": "–" if side == "shared" else side, "split": split}
            rows.append(about | {head: _percent(cells, *key) for head, cells in scores.items()})
    order = {name: number for number, name in enumerate(["Standard", quantities.LONGER, *map(str, printed.index)])}
    frame = pd.DataFrame(rows).sort_values("training", key=lambda names: names.map(order), kind="stable")
    return base.table(
        frame,
        "MixBN, in per cent; precision and F1 of the malignant class. The document says neither on which images nor "
        f"through which branch; ours have 95 % intervals. {PREVALENCE}",
        "ablation",
        *records,
    )


def settings(table: pd.DataFrame) -> Table:
    """The document's settings beside this profile's."""
    return Table(table, "What the document prints, and what this profile uses.", "settings")
