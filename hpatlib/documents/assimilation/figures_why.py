"""Figures and tables of the chapters on why medical images are attacked easily."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from hpatlib.data import SOURCES
from hpatlib.documents.assimilation.figures import frames
from hpatlib.documents.assimilation.quantities import (
    FLAT,
    HALF,
    LEAST,
    MOST,
    SHARES,
    STRAIGHT,
    WINDOW,
    octaves,
)
from hpatlib.outcomes import Cells, Outcomes
from hpatlib.plots import base, charts
from hpatlib.plots.base import STYLE, Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate

if TYPE_CHECKING:
    from hpatlib.documents.assimilation.why import Map

CREDIT = "Photographs: scikit-image's, CC0 or without known copyright restrictions"


def look(domain: str, dataset: str) -> Style:
    """How a task looks: a data set's own label and colour."""
    source = SOURCES[dataset]
    return Style(source.label, source.colour, "o" if domain == "medical" else "D")


def attention(record: Record) -> Figure:
    """How much of the Grad-CAM mass the brightest pixels hold (left), and the area that holds half of it (right)."""
    o = record.outcomes
    looks, area = _looks(o), {share: o.mean(f"area {share:g}") for share in SHARES}
    with plt.style.context(STYLE):
        canvas, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), width_ratios=(1, 1.15))
        for task, style in looks.items():
            x = [0, *(area[share][task.split("/")[0], task.split("/")[1]].value for share in SHARES), 1]
            wide = 2 if task.startswith("natural") else 1.4
            left.plot(x, [0, *SHARES, 1], ls=style.line, color=style.colour, lw=wide)
        left.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=":")
        left.axhline(HALF, color="#999999", lw=0.8)
        left.set(xlabel="share of the pixels, brightest first", ylabel="share of the Grad-CAM mass", xlim=(0, 1))
        left.set_ylim(0, 1)
        told = _ranking(right, area[HALF], looks)
        right.set(xlabel="share of the pixels with half of the mass", xlim=(0, 0.55))
        right.axvline(HALF, color="#999999", lw=0.8, ls=":")
        return base.finish(
            canvas,
            "Left: share of the Grad-CAM mass that the brightest pixels hold, mean over images, in the colours of the "
            "right; a map that looks everywhere alike follows the dotted diagonal. Right: the attended area, the "
            "smallest share of pixels with half of the mass; means with 95 % intervals over trainings and images, "
            f"small points: each training. {base.label(record)}.",
            f"Curves of Grad-CAM mass against share of pixels, and a dot chart of the attended area: {told}.",
        )


def sharpness(record: Record) -> Figure:
    """Sharpness within ε (left) and largest curvature (right), in spreads of the logits, a row a task."""
    o = record.outcomes
    named = {
        "relative": "rise of the loss within 4/255, spreads of the logits",
        "curvature": "largest curvature, log₁₀ of squared spreads / (pixel range)²",
    }
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
        told = []
        for axis, (column, title) in zip(axes, named.items(), strict=True):
            told.append(f"{title}: {_ranking(axis, o.mean(column), _looks(o))}")
            axis.set_xlabel(title, fontsize=7.5)
        return base.finish(
            canvas,
            "How steep the loss is around test images, in units of how far apart each network's own logits are. Left: "
            "how far PGD raises it within 4/255; right: the eigenvalue of the Hessian that is largest in size, "
            f"{STRAIGHT:g} at least. Means with 95 % intervals over trainings and images; small points: each training. "
            f"{base.label(record)}.",
            f"Two dot charts. {'; '.join(told)}.",
        )


def vulnerability(record: Record) -> Figure:
    """Accuracy on clean images, and the octaves of ε that the answers withstand, a row a task."""
    o = octaves(record.outcomes)
    named = {"accuracy on clean images": o.accuracy, "octaves of ε withstood above 1/32 of 255": o.mean("octaves")}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.4), sharey=True)
        told = []
        for axis, (name, cells) in zip(axes, named.items(), strict=True):
            told.append(f"{name}: {_ranking(axis, cells, _looks(o))}")
            axis.set_xlabel(name)
        axes[0].set_xlim(-0.02, 1.02)
        return base.finish(
            canvas,
            "Accuracy, and how large an ε the answers withstand: an octave is a perturbation twice as large; 0 is an "
            "image that is wrong already or falls below 1/32 of 255. Means with 95 % intervals over trainings and "
            f"images; small points: each training. {base.label(record)}.",
            f"Two dot charts. {'; '.join(told)}.",
        )


def smallest(record: Record) -> Figure:
    """The smallest ε of each image as a curve: what share of a task's images stands at each ε."""
    o = record.outcomes
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(5.2, 3))
        told = []
        for domain, dataset in _tasks(o):
            style, least = look(domain, dataset), o.where(domain=domain, dataset=dataset).rows["smallest"].astype(float)
            eps = np.geomspace(LEAST, MOST, 65)
            stands = [(least > level).mean() for level in eps]
            wide = 2.2 if domain == "natural" else 1.4
            axis.plot(eps, stands, color=style.colour, lw=wide, label=style.label.replace("\n", " "))
            told.append(f"{style.label}: median {least.median():.3g}")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="ε, in 1/255", ylabel="share that stands", ylim=(-0.03, 1.03))
        charts.legend(canvas, axis)
        return base.finish(
            canvas,
            "The share of test images that are right and that PGD does not change at each ε, all trainings together; "
            f"thick: natural images. {base.label(record)}.",
            f"Line chart. Median of the smallest ε, in 1/255: {'; '.join(told)}.",
        )


def landscape(record: Record) -> pd.DataFrame:
    """The slices as a tidy table: ``domain``, ``dataset``, ``x`` and ``y`` in grey levels, ``value`` in nats."""
    tidy = record.table("landscape").melt(["domain", "dataset", "y"], var_name="x", value_name="value")
    return tidy.assign(x=tidy["x"].astype(float), y=tidy["y"].astype(float))


def landscapes(record: Record) -> Figure:
    """Mean rise of the loss on slices of input space, a panel a task, all in one scale."""
    frame = landscape(record)
    tasks = list(frame.groupby(["domain", "dataset"], sort=False))
    # Tasks differ by powers of ten: levels go up in threes, and the scale is a straight line only near zero.
    top = next(k for k in range(-1, 9) if abs(frame["value"]).max() <= 10.0**k)
    rise = [m * 10.0**k for k in range(-2, top) for m in (1, 3)] + [10.0**top]
    steps = [-level for level in reversed(rise)] + rise
    scale = SymLogNorm(linthresh=0.01, vmin=steps[0], vmax=steps[-1])
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 3, figsize=(7.2, 4.7), sharex=True, sharey=True)
        told = []
        for axis, (task, shown) in zip(axes.flat, tasks, strict=False):
            name = look(*task).label.replace("\n", " ")
            grid = shown.pivot(index="y", columns="x", values="value")
            filled = axis.contourf(grid.columns, grid.index, grid, levels=steps, cmap="PuOr_r", norm=scale)
            axis.contour(grid.columns, grid.index, grid, levels=steps, colors="#222222", linewidths=0.5)
            axis.plot(0, 0, "+", color="#222222", ms=7)
            axis.set_title(name)
            axis.set_aspect("equal")
            axis.grid(False)
            told.append(f"{name} {grid.loc[0].iloc[-1]:.2f}")
        for axis in list(axes.flat)[len(tasks) :]:
            axis.axis("off")
        for axis in axes[-1]:
            axis.set_xlabel("along the gradient's sign")
        for axis in axes[:, 0]:
            axis.set_ylabel("along random signs")
        bar = canvas.colorbar(filled, ax=axes, label="mean rise of the cross-entropy, nats", shrink=0.8)
        bar.set_ticks(steps, labels=[f"{level:g}".replace("-", "−") for level in steps])
        return base.finish(
            canvas,
            "Loss slices: how far the mean cross-entropy rises above that of the clean images (+), along the sign of "
            "its gradient and along random signs at right angles to it; both axes in grey levels of 255, "
            f"colours in steps of about three. {base.label(record)}.",
            f"Contour maps of the mean loss in one colour scale. Rise at the right edge, 4/255 along the gradient: "
            f"{', '.join(told)}.",
        )


def slices(record: Record) -> Figure:
    """The slices' middle rows and columns: mean rise of the loss along the gradient (left) and across it (right)."""
    frame = landscape(record)
    named = {"x": ("y", "along the gradient's sign, grey levels"), "y": ("x", "along random signs, grey levels")}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
        told = []
        for axis, (along, (across, title)) in zip(axes, named.items(), strict=True):
            for task, shown in frame[frame[across] == 0].groupby(["domain", "dataset"], sort=False):
                style = look(*task)
                name = style.label.replace("\n", " ")
                axis.plot(shown[along], shown["value"], ls=style.line, color=style.colour, label=name)
                told.append(f"{title}, {name}: {shown['value'].iloc[-1]:.2f}")
            axis.set(xlabel=title)
            axis.set_yscale("symlog", linthresh=0.1)
            axis.axhline(0, color="#999999", lw=0.8)
        axes[0].set_ylabel("mean rise of the loss, nats")
        charts.legend(canvas, axes[0])
        return base.finish(
            canvas,
            "The middle lines of the slices above, in a scale that is straight within ±0.1 and logarithmic outside. "
            f"{base.label(record)}.",
            f"Two line charts of the mean rise of the loss; at the right end: {'; '.join(told)}.",
        )


def scores(record: Record) -> Table:
    """Every number behind the figures: a row a task, its accuracy and measures with 95 % intervals."""
    columns = {
        f"area {HALF:g}": "attended area",
        "empty": "maps without mass",
        "sharpness": "rise within 4/255, nats",
        "relative": "the same, spreads of the logits",
        "curvature": "largest curvature, log₁₀",
    }
    found = []
    for domain, dataset in _tasks(record.outcomes):
        o = record.outcomes.where(domain=domain, dataset=dataset)
        networks = {record.header.models[m].network for m in o.rows["model"]}
        row = {"task": look(domain, dataset).label.replace("\n", " ")}
        row |= {"network": ", ".join(map(base.network, networks)), "accuracy": _number(o.accuracy[()])}
        if "smallest" in o.rows:
            row |= {"octaves withstood": _number(octaves(o).mean("octaves")[()])}
            row |= {"median smallest ε, of 255": f"{o.rows['smallest'].astype(float).median():.3g}"}
        row |= {title: _number(o.mean(column)[()]) for column, title in columns.items() if column in o.rows}
        found.append(row | {"images a training": o.rows.groupby("model", observed=True)["image"].nunique().max()})
    return Table(
        pd.DataFrame(found), f"Means with 95 % intervals over trainings and groups of images. {base.label(record)}."
    )


def maps(shown: Sequence["Map"], record: Record) -> Figure:
    """An image of each task with its Grad-CAM map: the outlined pixels hold half of the map's mass."""
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, len(shown), figsize=(7.2, 2.9), squeeze=False)
        told = []
        for column, one in zip(axes.T, shown, strict=True):
            name, values = look(one.domain, one.dataset).label, np.sort(one.heat, axis=None)[::-1]
            level = float(values[max(0, round(one.area * len(values)) - 1)])
            base.picture(column[0], one.picture)
            base.picture(column[1], one.heat, cmap="cividis")
            for axis, colour in zip(column, ("#FFB000", "white"), strict=True):
                axis.contour(one.heat, levels=[min(level, 0.999)], colors=colour, linewidths=1.2)
            column[0].set_title(name, fontsize=7.5)
            column[1].set_xlabel(f"{100 * one.area:.0f} % of pixels", fontsize=7.5)
            told.append(f"{name} {100 * one.area:.0f} %".replace("\n", " "))
        axes[0][0].set_ylabel("image")
        axes[1][0].set_ylabel("Grad-CAM")
        return base.finish(
            canvas,
            "One test image of each task (medical ones are phantoms) and its Grad-CAM map for the predicted class; the "
            f"outlined pixels hold half of the map's mass. {CREDIT}. {base.phantoms(record)}.",
            f"Phantom pictures and crops of photographs with an outlined region, which covers: {', '.join(told)}.",
        )


def oracle(frame: pd.DataFrame) -> Table:
    """Our texture features beside scikit-image's, a row a feature and image."""
    shown = frame[["image", "feature", "ours", "scikit-image", "difference"]].copy()
    for column in ("ours", "scikit-image"):
        shown[column] = shown[column].map("{:.6g}".format)
    shown["difference"] = shown["difference"].map("{:.0e}".format)
    return Table(
        shown,
        "Mean over windows and orientations by both, and the largest difference in any of them. Homogeneity, squared "
        "is scikit-image's own; the slides' is computed from scikit-image's matrix.",
    )


def textures(images: Mapping[str, ArrayLike], features: pd.DataFrame, record: Record) -> Figure:
    """Textures ``[H, W]`` by name with one window drawn in, and ``why.orientations`` of them."""
    looks = charts.styles(list(images))
    with plt.style.context(STYLE):
        canvas = plt.figure(figsize=(7.2, 3.9))
        halves: Any = canvas.subfigures(2, 1, height_ratios=(1, 1.15))
        upper, lower = halves
        for axis, (name, image) in zip(upper.subplots(1, len(images)), images.items(), strict=True):
            base.picture(axis, image)
            middle = 5 * WINDOW
            axis.add_patch(plt.Rectangle((middle, middle), WINDOW, WINDOW, fill=False, ec="#FFB000", lw=1.4))
            axis.set_title(name, color=looks[name].colour)
            axis.spines[:].set_color(looks[name].colour)
            axis.spines[:].set_visible(True)
        told = []
        panels = lower.subplots(1, len(base.FEATURES))
        for axis, (feature, title) in zip(panels, base.FEATURES.items(), strict=True):
            for name, shown in features[features["feature"] == feature].groupby("texture", sort=False):
                style, value = looks[str(name)], shown["value"]
                axis.plot(shown["degrees"], value, style.marker + "-", ms=2.5, lw=1, color=style.colour)
                told.append(f"{title}, {name}: {value.min():.3g} to {value.max():.3g}")
            axis.axvspan(157.5, 337.5, color="#eeeeee", zorder=0, lw=0)
            axis.set_title(title)
            axis.set_xticks([0, 90, 180, 270], ["0°", "90°", "180°", "270°"], fontsize=6.5)
            axis.tick_params(axis="y", labelsize=6.5)
            if feature in ("asm", "contrast"):
                axis.set_yscale("log")
                axis.yaxis.set_minor_formatter(NullFormatter())
        panels[1].set_yticks([200, 500, 1000, 2000], ["200", "500", "1000", "2000"])
        panels[2].set_xlabel("orientation, distance 3; grey: the first four over again")
        drawn = " and ".join(name for name in images if name.endswith("phantom"))
        given = ", ".join(name for name in images if not name.endswith("phantom"))
        return base.finish(
            canvas,
            f"Textures of 224 × 224 pixels with one window of 20 × 20, and their features by orientation, means over "
            f"121 windows. {given}: scikit-image's, CC0; {drawn}: drawn, seed {record.header.seed}.",
            f"Pictures of {', '.join(images)}; below, five line charts over eight orientations, where each value of "
            f"the second half repeats one of the first. Ranges: {'; '.join(told)}.",
        )


def monotony(record: Record) -> Figure:
    """Each feature's mean over windows with texture, and the share of flat windows, a row a set."""
    o, names = record.outcomes, {"flat": "flat windows, share", **base.FEATURES}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 3, figsize=(7.2, 3.9), sharey=True)
        told = []
        for axis, (column, title) in zip(axes.flat, names.items(), strict=True):
            told.append(f"{title}: {_ranking(axis, o.mean(column), _looks(o))}")
            axis.set_title(title)
        return base.finish(
            canvas,
            f"Texture of medical and natural images at 224 pixels. Flat windows span less than {FLAT} grey levels; "
            "the features are means over the others. Points: mean over images; bars: 95 % intervals over groups of "
            f"images that belong together. {base.label(record)}.",
            f"Six dot charts. {'; '.join(told)}.",
        )


def _tasks(o: Outcomes) -> list[tuple[str, str]]:
    pairs = o.rows[["domain", "dataset"]].astype(str).drop_duplicates()
    return [(row.domain, row.dataset) for row in pairs.itertuples()]


def _looks(o: Outcomes) -> dict[str, Style]:
    return {f"{domain}/{dataset}": look(domain, dataset) for domain, dataset in _tasks(o)}


def _ranking(axis: plt.Axes, cells: Cells, looks: Mapping[str, Style]) -> str:
    """A row a task; returns what it shows."""
    table, each = frames({("/".join(key),): estimate for key, estimate in cells.items()}, "task")
    return ", ".join(charts.ranking(axis, table, each if len(each) else None, "task", looks))


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.3g} [{low:.3g}, {high:.3g}]"
