"""Figures and tables of the slides' results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from hpatlib import documents
from hpatlib.data import SOURCES
from hpatlib.documents.assimilation.quantities import (
    ADVERSARIAL,
    FREE,
    LEAST,
    LONG,
    MEDICAL,
    MOST,
    PAIR,
    RANDOM,
    TRANSFERRED,
    WORST,
    apparent_margin,
    levels,
    octaves,
    printed,
    signs,
    strength,
)
from hpatlib.outcomes import Cells, Outcomes, Unmeasured
from hpatlib.plots import base, charts
from hpatlib.plots.base import STYLE, Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate, average

PAINT = {
    "FGSM": ("#777777", "o"),  # grey on the slides too
    "BIM": ("#0072B2", "s"),
    "MI-FGSM": ("#D55E00", "D"),
    "PGD": ("#009E73", "^"),
}
TRAININGS = {
    "assimilated": Style("domain assimilation", "#0072B2", "s", "-"),
    "vanilla": Style("vanilla transfer learning", "#777777", "o", (0, (4, 2))),
    FREE: Style("assimilation without GLCM loss", "#D55E00", "D", (0, (1, 1.2))),
    "α = 0.9": Style("assimilation, α = 0.9", "#56B4E9", "v", (0, (3, 1, 1, 1))),
    "α = 0.5": Style("assimilation, α = 0.5", "#CC79A7", "^", (0, (3, 1, 1, 1))),
    RANDOM: Style("random repaint", "#E69F00", "X", (0, (5, 1))),
    ADVERSARIAL: Style("adversarial training at 1/255", "#009E73", "P", "-."),
}
READINGS = {
    "PGD": "each attacked through its own gradients",
    LONG: "the same with steps of 2/255 at every ε",
    TRANSFERRED: "made on the vanilla model, shown to both",
}


def painted(record: Record) -> dict[str, tuple[str, str]]:
    """Colour and marker of every attack that a record holds along ε, those the slides do not have included."""
    there = [name for name in record.outcomes.values("attack") if name not in ("none", WORST, TRANSFERRED, LONG)]
    spare = zip(charts.PAINT[3:], charts.MARKERS[4:], strict=False)
    return {name: PAINT.get(name) or next(spare) for name in there}


def names() -> list[str]:
    """The four data sets, as figures call them."""
    return [SOURCES[key].label for key in MEDICAL]


def frames(cells: Mapping[tuple[str, ...], Estimate], *columns: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimates by key as the two tables of `charts`: with 95 % intervals, and a row a training."""
    table, each = [], []
    for key, estimate in cells.items():
        about, (low, high) = dict(zip(columns, key, strict=True)), estimate.interval()
        table.append(about | {"value": estimate.value, "low": low, "high": high})
        each += [about | {"value": value} for value in estimate.values if estimate.trainings]
    return pd.DataFrame(table), pd.DataFrame(each, columns=[*columns, "value"])


def strengths(record: Record) -> Figure:
    """Accuracy against ε, a panel a data set and a network; a colour an attack, a line style a training.

    Solid: domain assimilation, dashed: vanilla, as on the slides. Lines start at the accuracy on clean images.
    """
    paint, trainings = painted(record), PAIR[::-1]
    attacked = record.outcomes.where(training=list(trainings), attack=["none", *paint])
    table = attacked.accuracy.table()
    looks = {
        f"{training}, {attack}": Style(f"{TRAININGS[training].label}, {attack}", colour, marker, TRAININGS[training][3])
        for training in trainings
        for attack, (colour, marker) in paint.items()
    }
    clean = table[table["attack"] == "none"]
    table = pd.concat([*(clean.assign(attack=attack) for attack in paint), table[table["attack"] != "none"]])
    table = table.assign(line=table["training"] + ", " + table["attack"], level=table["eps"].map(levels))
    table = table.sort_values("level", kind="stable")
    table["eps"] = table["level"].map("{:g}".format)
    panels = list(table.groupby(["dataset", "network"], sort=False))
    with plt.style.context(STYLE):
        canvas, grid = _grid([key for key, _ in panels])
        told = []
        for axis, (panel, shown) in zip(grid.flat, panels, strict=False):
            lines = charts.lines(axis, shown, "eps", "line", looks)
            told.append(f"{_panel(*panel)}: {'; '.join(lines)}")
            axis.axhline(0.5, color="#555555", lw=0.8, ls=":")
            axis.set_ylim(-0.03, 1.03)
            axis.tick_params(axis="x", labelsize=6, labelrotation=45)
        for axis in grid[-1]:
            axis.set_xlabel("ε, in 1/255")
        for axis in grid[:, 0]:
            axis.set_ylabel("accuracy")
        attacks = [Line2D([], [], color=c, marker=m, ms=4, ls="none", label=n) for n, (c, m) in paint.items()]
        styles = [Line2D([], [], color="#222222", ls=TRAININGS[t].line, label=TRAININGS[t].label) for t in trainings]
        canvas.legend(handles=attacks, loc="outside upper center", ncols=len(attacks))
        canvas.legend(handles=styles, loc="outside lower center", ncols=len(styles))
        return base.finish(
            canvas,
            "Accuracy against attack strength; ε = 0 is the clean image; steps of ε differ below 1/255. Iterated "
            f"attacks take {_settings(record)['iterations']} steps. Bars: 95 % intervals over trainings and images; "
            f"thin dotted: guessing between classes of equal size. {base.label(record)}.",
            f"Line charts of accuracy against ε in 1/255. {'. '.join(told)}.",
        )


def curves(record: Record) -> Figure:
    """The share of images that stand at each ε, from the smallest ε of each image; a panel a data set and a network."""
    o = record.outcomes.where(attack="none", eps=strength(0))
    ticks = [LEAST * 2**k for k in range(round(np.log2(MOST / LEAST)) + 1)]
    table = pd.concat([_standing(o, level).table().assign(eps=f"{level:g}") for level in ticks])
    panels = list(table.groupby(["dataset", "network"], sort=False))
    medians = o.rows.groupby(["dataset", "network", "training"], observed=True, sort=False)["smallest"].median()
    with plt.style.context(STYLE):
        canvas, grid = _grid([key for key, _ in panels])
        told = []
        for axis, (panel, shown) in zip(grid.flat, panels, strict=False):
            lines = charts.lines(axis, shown, "eps", "training", TRAININGS)
            middle = ", ".join(f"{training} {medians[(*panel, training)]:.3g}" for training in o.values("training"))
            told.append(f"{_panel(*panel)}: {'; '.join(lines)}; median of the smallest ε: {middle}")
            axis.set_ylim(-0.03, 1.03)
            axis.tick_params(axis="x", labelsize=6, labelrotation=45)
        for axis in grid[-1]:
            axis.set_xlabel("ε, in 1/255")
        for axis in grid[:, 0]:
            axis.set_ylabel("share that stands")
        charts.legend(canvas, grid[0][0], 2)
        return base.finish(
            canvas,
            "How many images stand at each ε: right when clean, and not changed by what PGD finds from there down by "
            "bisection. The area below a curve is what claims compare, in octaves (doublings of ε). Bars: 95 % "
            f"intervals over trainings and images. {base.label(record)}.",
            f"Line charts of the share of images that stand against ε in 1/255. {'. '.join(told)}.",
        )


def _standing(o: Outcomes, level: float) -> Cells:
    """The share of images whose smallest ε lies above ``level`` grey levels."""
    return replace(o, rows=o.rows.assign(stands=(o.rows["smallest"] > level).astype(float))).mean("stands")


def dose(record: Record) -> Figure:
    """What each training withstands against how much it colours pictures: a small point a training, a large one a kind.

    Left: octaves of ε; right: the share of images that stand at ε = 0.25/255. The line: the dose that claims need.
    """
    o = octaves(record.outcomes)
    seen = {(m.run["dataset"], m.network, m.seed, _kind(record, n)): m.dose for n, m in enumerate(record.header.models)}
    sides = {
        "octaves of ε above 1/32 of 255": o.mean("octaves").each(),
        "share that stands at 0.25/255": _standing(o, 0.25).each(),
    }
    needed = documents.toml("assimilation", "claims")["gates"]["dose"]["channel_spread"]
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.9))
        told = []
        for axis, (title, each) in zip(axes, sides.items(), strict=True):
            where = zip(each["dataset"], each["network"], each["seed"], each["training"], strict=True)
            each = each.assign(dose=[seen[key].get("channel_spread", 0.0) for key in where])
            for training, look in TRAININGS.items():
                mine = each[each["training"] == training]
                if mine.empty:
                    continue
                axis.plot(mine["dose"], mine["value"], look.marker, color=look.colour, ms=3, alpha=0.5)
                middle = mine[["dose", "value"]].mean()
                axis.plot(*middle, look.marker, color=look.colour, ms=7, mec="#222222", mew=0.6, label=look.label)
                told.append(f"{look.label}: spread {middle['dose']:.3f}, {title} {middle['value']:.2f}")
            axis.axvline(needed, color="#555555", lw=0.8, ls=":")
            axis.set(xlabel="dose: channel spread, of 1", ylabel=title)
        charts.legend(canvas, axes[0], 2)
        return base.finish(
            canvas,
            "What models withstand against their dose, how far apart the channels of the pictures are that the "
            "backbone sees. Small points: trainings; large ones: their means. Dotted: the dose that claims about "
            f"domain assimilation need. {base.label(record)}.",
            f"Two scatter charts. {'; '.join(told)}.",
        )


def _kind(record: Record, model: int) -> str:
    """The training that a model of the record stands for."""
    rows = record.outcomes.rows
    return str(rows.loc[rows["model"] == model, "training"].iloc[0])


def survival(record: Record) -> Figure:
    """Accuracy under the standard attacks together, a panel a data set and a network, side by side the trainings."""
    worst = record.outcomes.where(attack=WORST).accuracy
    table, each, s = worst.table(), worst.each(), _settings(record)
    panels = list(table.groupby(["dataset", "network"], sort=False))
    with plt.style.context(STYLE):
        canvas, grid = _grid([key for key, _ in panels])
        told = []
        for axis, (panel, shown) in zip(grid.flat, panels, strict=False):
            mine = each[(each["dataset"] == panel[0]) & (each["network"] == panel[1])]
            points = charts.points(axis, shown, mine, "eps", "training", TRAININGS)
            told.append(f"{_panel(*panel)}: {'; '.join(points)}")
            axis.set_ylim(-0.03, 1.03)
        for axis in grid[:, 0]:
            axis.set_ylabel("accuracy")
        charts.legend(canvas, grid[0][0], 2)
        return base.finish(
            canvas,
            "Accuracy under the worst of the standard attacks: PGD with restarts, Auto-PGD on two losses, FMN, the "
            "Square attack, and Auto-PGD made on another training's model. Bars: 95 % intervals over trainings and "
            f"images; small points: each training. PGD: {s['restarts']} starts; Square: {s['queries']} queries. "
            f"{base.label(record)}.",
            f"Dot charts of accuracy. {'. '.join(told)}.",
        )


def felled(record: Record) -> Table:
    """Which of the standard attacks was the first to fell how many images."""
    found = record.table("felled")
    keys = ["dataset", "training", "eps"]
    wide = found.groupby([*keys, "attack"], sort=False)["images"].sum().unstack("attack", fill_value=0).reset_index()
    order = ["clean", "PGD", "APGD-CE", "APGD-margin", "FMN", "Square", "transfer", "stands"]
    named = wide[[*keys, *sorted(wide.columns.difference(keys), key=order.index)]]
    named = named.assign(dataset=[SOURCES[name].label for name in named["dataset"]])
    return Table(
        named.rename(columns={"dataset": "data", "eps": "ε", "clean": "wrong already"}),
        "Images by the first of the standard attacks that felled them, over all trainings; they are run in this order, "
        f"each on what still stands. {base.label(record)}.",
    )


def readings(record: Record) -> Table:
    """What a reader of the results figure would see under other readings of its attacks, beside the white-box one."""
    found: list[dict[str, str]] = []
    best: dict[str, dict[str, float]] = {}
    for dataset in record.outcomes.values("dataset"):
        for attack, told in READINGS.items():
            try:
                margin = apparent_margin(record.outcomes, dataset=dataset, attack=attack)
            except Unmeasured:
                continue
            shown = ", ".join(printed(record.outcomes.where(dataset=dataset, attack=attack)))
            best.setdefault(dataset, {})[attack] = margin.value
            row = {"data": _data(record, dataset), "attack": told, "ε": shown}
            found.append(row | {"margin [95 % interval]": _number(margin, 3)})
    nearest = "; ".join(f"{SOURCES[d].label}: {READINGS[max(m, key=m.__getitem__)]}" for d, m in best.items())
    return Table(
        pd.DataFrame(found),
        "The margin that the results figure would show, domain assimilation less vanilla, mean over ε. The slides "
        f"speak of a clear one; the largest here is under this reading: {nearest}.",
    )


def masking(records: Sequence[Record]) -> Table:
    """Signs of masked gradients, a row a check, data set, network and training."""
    found = []
    for record in records:
        several = f"{len(record.seeds)} trainings"
        strongest = max(printed(record.outcomes), key=levels)
        for row in record.table("masking").itertuples():
            where = (row.dataset, row.network, row.training, row.check)
            found.append(_sign(record, where, (row.value, row.value_low, row.value_high), row.eps, f"seed {row.seed}"))
        for key, sign in signs(record.outcomes).items():
            found.append(_sign(record, key, (sign.value, *sign.interval()), f"to {strongest}", several))
    return Table(
        pd.DataFrame(found),
        "Signs that models mask their gradients, in shares of images; above zero speaks for masking. Raised: the whole "
        "interval is; unclear: only the value is. A check that is not raised proves nothing.",
    )


def _sign(
    record: Record, where: tuple[str, ...], numbers: tuple[float, float, float], eps: str, trainings: str
) -> dict[str, str]:
    (dataset, network, training, check), (value, low, high) = where, (number + 0.0 for number in numbers)  # no −0.00
    return {
        "data": _data(record, dataset),
        "network": base.network(network),
        "training": training,
        "check": check,
        "value [95 % interval]": f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
        "verdict": "raised" if low > 0 else "unclear" if value > 0 else "not raised",
        "ε": eps,
        "models": trainings,
    }


def trainings(records: Sequence[Record]) -> Table:
    """Each kind of training in numbers: clean accuracy, what it withstands, and its dose."""
    found = []
    for record in records:
        o = octaves(record.outcomes)
        for (dataset, network, training), withstood in o.mean("octaves").items():
            there = o.where(dataset=dataset, network=network, training=training)
            middle = float(there.rows["smallest"].astype(float).median())
            models = [record.header.models[m] for m in there.rows["model"].unique()]
            row = {"data": _data(record, dataset), "network": base.network(network)}
            row |= {"training": TRAININGS[training].label, "accuracy": _number(there.accuracy[()], 2)}
            row |= {"octaves withstood": _number(withstood, 2), "median smallest ε, of 255": f"{middle:.3g}"}
            for name, title in (("channel_spread", "channel spread"), ("texture", "texture distance, of 40")):
                doses = [m.dose[name] for m in models if name in m.dose]
                row[title] = f"{np.mean(doses):.3f}" if doses else "–"
            found.append(row)
    return Table(
        pd.DataFrame(found),
        "Accuracy on clean images; octaves of ε that the answers withstand above 1/32 of 255 (0: wrong already, 8: "
        "more than 8/255); and the dose, what T and C do to the test images. Means with 95 % intervals.",
    )


def repainted(shown: Mapping[str, Mapping[str, np.ndarray]], record: Record) -> Figure:
    """What the backbone sees: by data set ``study.pictures``, a row a phantom, a column a training."""
    rows = [(SOURCES[d].label, n, found) for d, found in shown.items() for n in range(len(found["original"]))]
    columns = list(rows[0][2])
    with plt.style.context(STYLE):
        size = (1.6 * len(columns) + 0.3, 1.55 * len(rows) + 0.3)
        canvas, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
        moved = []
        for line, (dataset, number, found) in zip(axes, rows, strict=True):
            for axis, name in zip(line, columns, strict=True):
                base.picture(axis, found[name][number])
            line[0].set_ylabel(dataset)
        for axis, name in zip(axes[0], columns, strict=True):
            axis.set_title(name)
        for name in columns[1:]:
            away = np.mean([255 * abs(found[name] - found["original"]).mean() for found in shown.values()])
            moved.append(f"{name} by {away:.1f}")
        return base.finish(
            canvas,
            "Phantoms with a lesion, and the pictures C(T(x)) that the backbone sees of them. "
            f"{base.phantoms(record)}, first network.",
            f"Grid of pictures, rows: {', '.join(d for d, _, _ in rows)}; columns: {', '.join(columns)}. Mean distance "
            f"of a pixel from the original, in grey levels of 255: {', '.join(moved)}.",
        )


def textures(record: Record) -> Figure:
    """Texture distance from the original (all features, then each) and colour, with and without the GLCM loss."""
    o = record.outcomes
    sides = ({"texture": "all five"} | base.FEATURES, {"colour": "colour"})
    looks = {
        FREE: Style(FREE, *TRAININGS[FREE][1:3]),
        "assimilated": Style("with GLCM loss", *TRAININGS["assimilated"][1:3]),
    }
    datasets = o.values("dataset")
    with plt.style.context(STYLE):
        size, widths = (7.2, 2.1 * len(datasets) + 0.4), {"width_ratios": (2.6, 1)}
        canvas, axes = plt.subplots(
            len(datasets), 2, figsize=size, squeeze=False, gridspec_kw=widths, sharex="col", sharey="col"
        )
        told = []
        for line, dataset in zip(axes, datasets, strict=True):
            there = o.where(dataset=dataset)
            for axis, columns in zip(line, sides, strict=True):
                cells: dict[tuple[str, ...], Estimate] = {
                    (column, training): average(*(there.mean(column)[n, training] for n in there.values("network")))
                    for column in columns
                    for training in looks
                }
                table, each = frames(cells, "column", "training")
                points = charts.points(axis, table, each, "column", "training", looks, names=columns)
                told.append(f"{SOURCES[dataset].label}: {'; '.join(points)}")
                axis.set_ylim(bottom=0)
                axis.tick_params(axis="x", labelsize=7.5)
            line[0].set_title(SOURCES[dataset].label)
            line[0].set_ylabel("texture distance")
            line[1].set_ylabel("channel spread, of 1")
        charts.legend(canvas, axes[0][0], 2)
        return base.finish(
            canvas,
            "How far the adapted picture is from the original: the GLCM loss itself and the part of each feature (in "
            "the worst window, summed over orientations, so that parts need not add up), and how coloured it is. "
            "Means over networks with 95 % intervals over trainings and images; small points: each training. "
            f"{base.label(record)}.",
            f"Dot charts of texture distance and colour. {'. '.join(told)}.",
        )


def doses(record: Record) -> Table:
    """How strongly each treatment was given: what T and C do to the test images, mean over trainings."""
    models = [m for m in record.header.models if m.dose]
    found = pd.DataFrame(
        {
            "data": _data(record, m.run["dataset"]),
            "network": base.network(m.network),
            "training": TRAININGS["assimilated" if m.run["objective"]["alpha"] < 1 else FREE].label,
            "channel spread, of 1": m.dose["channel_spread"],
            "texture distance, of 40": m.dose["texture"],
        }
        for m in models
    )
    table = found.groupby(["data", "network", "training"], sort=False, as_index=False).mean().round(4)
    needed = documents.toml("assimilation", "claims")["gates"]["dose"]["channel_spread"]
    return Table(
        table,
        "What T and C do to the test images. Claims about domain assimilation are judged only where the channel spread "
        f"is {needed:g} or more. {base.label(record)}.",
    )


def sizes(record: Record) -> Table:
    """The slides' class sizes beside what was found and used."""
    frame = record.table("sizes")
    frame = frame.assign(dataset=[SOURCES[name].label for name in frame["dataset"]])
    used = "used" if record.real else "phantoms used"
    named = {"published": "on the slides", "at_hand": "files at hand", "public": "most complete copy", "used": used}
    return Table(
        frame.rename(columns=named),
        "Images of each class: on the slides, among the files found and in the most complete copy of the set among "
        f"them (real data only), and in this profile. {record.header.profile.capitalize()} profile, "
        f"{record.header.data} data.",
    )


def splits(record: Record) -> Figure:
    """Clean accuracy by data set, split by patient or group and by image."""
    accuracy = record.outcomes.where(**{"split": ["patient", "image"], "class": "both"}).accuracy
    looks = charts.styles(["patient", "image"], {"patient": "split by patient or group", "image": "split by image"})
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(5.2, 2.6))
        names = {key: SOURCES[key].label for key in MEDICAL}
        told = charts.points(axis, accuracy.table(), accuracy.each(), "dataset", "split", looks, names=names)
        axis.set_ylabel("accuracy on clean images")
        axis.axhline(0.5, color="#555555", lw=0.8, ls=":")
        charts.legend(canvas, axis, 2)
        return base.finish(
            canvas,
            "What a split by image adds to accuracy. Bars: 95 % intervals over trainings and images; small points: "
            f"each training; thin dotted: guessing. {base.label(record)}.",
            f"Dot chart of accuracy by data set. {'; '.join(told)}.",
        )


def settings(record: Record) -> Table:
    """The slides' settings beside this profile's."""
    named = {"published": "on the slides", "here": f"{record.header.profile} profile"}
    return Table(record.table("settings").rename(columns=named), "Training and GLCM settings.")


def _number(estimate: Estimate, digits: int) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _settings(record: Record) -> dict:
    return documents.toml("assimilation", "profiles")[record.header.profile]


def _data(record: Record, dataset: str) -> str:
    return f"{SOURCES[dataset].label}, {record.header.data}, {record.header.profile}"


def _panel(dataset: str, network: str) -> str:
    return f"{SOURCES[dataset].label}, {base.network(network)}"


def _grid(panels: list[tuple[str, str]]) -> tuple[plt.Figure, np.ndarray]:
    """A canvas with a titled panel for each (data set, network), at most three in a row."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (max(5.2, 2.4 * columns), (3.0 if len(panels) == 1 else 2.3) * lines + 0.6)
    canvas, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(grid.flat, panels, strict=False):
        axis.set_title(_panel(*panel).replace(", ", "\n", 1))
    for axis in grid.flat[len(panels) :]:
        axis.axis("off")
    return canvas, grid
