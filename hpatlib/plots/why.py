"""Figures and tables of the assimilation slides' chapters on why medical images are attacked easily."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import SymLogNorm
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from hpatlib import explain, glcm
from hpatlib.evidence import Record
from hpatlib.plots import base
from hpatlib.plots.base import STYLE, Figure, Table
from hpatlib.why import FLAT, HALF, HEAD, NATURAL, PLACES, STRAIGHT, TEXTURES, WINDOW, Asked

# Tasks as figures name them; blue shades are medical, the others natural.
TASKS = {
    "chest_ct": ("chest CT", "#0072B2"),
    "brain_mri": ("brain MRI", "#56B4E9"),
    "chest_xray": ("chest X-ray", "#1B3A5C"),
    "busi2": ("breast ultrasound", "#7F8FD0"),
    NATURAL: ("photographs", "#D55E00"),
    HEAD: ("photographs,\nImageNet network", "#E69F00"),
}
CREDIT = "Photographs: scikit-image's, CC0 or without known copyright restrictions"
PAINT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555")


def attention(record: Record) -> Figure:
    """How much of the Grad-CAM mass the brightest pixels hold (left), and the area that holds half of it (right)."""
    frame = pd.DataFrame(record.rows)
    area = frame[frame["metric"] == "area"]
    with plt.style.context(STYLE):
        canvas, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), width_ratios=(1, 1.15))
        for task, rows in area[area["seed"] == "all"].groupby("task", sort=False):
            name, colour = TASKS[task]
            style = "--" if task == HEAD else "-"
            x, y = [0, *rows["value"], 1], [0, *rows["x"], 1]
            left.plot(x, y, style, color=colour, label=name.replace("\n", " "), lw=2 if task == NATURAL else 1.4)
        left.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=":")
        left.axhline(HALF, color="#999999", lw=0.8)
        left.set(xlabel="share of the pixels, brightest first", ylabel="share of the Grad-CAM mass", xlim=(0, 1))
        left.set_ylim(0, 1)
        told = _dots(right, area[area["x"] == HALF])
        right.set(xlabel="share of the pixels with half of the mass", xlim=(0, 0.55))
        right.axvline(HALF, color="#999999", lw=0.8, ls=":")
        return base.finish(
            canvas,
            "Left: share of the Grad-CAM mass that the brightest pixels hold, mean over images, in the colours of the "
            "right; a map that looks everywhere alike follows the dotted diagonal. Right: the attended area, the "
            "smallest share of pixels with half of the mass; points: mean over trainings, small ones: each, bars: 95 % "
            "bootstrap intervals. "
            f"{_others(record)}",
            f"Curves of Grad-CAM mass against share of pixels, and a dot chart of the attended area: {told}.",
        )


def sharpness(record: Record) -> Figure:
    """Sharpness within ε (left) and largest curvature (right), a row a task."""
    frame = pd.DataFrame(record.rows)
    named = {
        "sharpness": "rise of the loss within 4/255, nats",
        "curvature": "largest curvature, log₁₀ nats / (pixel range)²",
    }
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
        told = []
        for axis, (metric, title) in zip(axes, named.items(), strict=True):
            told.append(f"{title}: {_dots(axis, frame[frame['metric'] == metric])}")
            axis.set(xlabel=title)
        rises = frame[frame["metric"] == "sharpness"]
        if (least := rises["low"].min()) > 0:
            axes[0].set_xscale("log")
            axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if rises["high"].max() < 30 * least else (1,)))
            axes[0].xaxis.set_major_formatter("{x:g}")
            axes[0].xaxis.set_minor_formatter(NullFormatter())
        return base.finish(
            canvas,
            "How steep the loss is around test images. Left: how far PGD raises it within 4/255; right: the eigenvalue "
            f"of the Hessian that is largest in size, {STRAIGHT} at least. Points: mean over trainings, small "
            f"ones: each; bars: 95 % bootstrap intervals. {_others(record)}",
            f"Two dot charts. {'; '.join(told)}.",
        )


def landscapes(record: Record) -> Figure:
    """Mean rise of the loss on slices of input space, a panel a task, all in one scale."""
    frame = pd.DataFrame(record.rows)
    frame = frame[frame["metric"] == "landscape"]
    tasks = list(frame["task"].unique())
    # Tasks differ by powers of ten: levels go up in threes, and the scale is a straight line only near zero.
    top = next(k for k in range(-1, 9) if abs(frame["value"]).max() <= 10.0**k)
    rise = [m * 10.0**k for k in range(-2, top) for m in (1, 3)] + [10.0**top]
    levels = [-level for level in reversed(rise)] + rise
    scale = SymLogNorm(linthresh=0.01, vmin=levels[0], vmax=levels[-1])
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 3, figsize=(7.2, 4.7), sharex=True, sharey=True)
        told = []
        for axis, task in zip(axes.flat, tasks, strict=False):
            grid = frame[frame["task"] == task].pivot(index="y", columns="x", values="value")
            filled = axis.contourf(grid.columns, grid.index, grid, levels=levels, cmap="PuOr_r", norm=scale)
            axis.contour(grid.columns, grid.index, grid, levels=levels, colors="#222222", linewidths=0.5)
            axis.plot(0, 0, "+", color="#222222", ms=7)
            axis.set_title(TASKS[task][0].replace("\n", " "))
            axis.set_aspect("equal")
            axis.grid(False)
            told.append(f"{TASKS[task][0]} {grid.loc[0].iloc[-1]:.2f}".replace("\n", " "))
        for axis in list(axes.flat)[len(tasks) :]:
            axis.axis("off")
        for axis in axes[-1]:
            axis.set_xlabel("along the gradient's sign")
        for axis in axes[:, 0]:
            axis.set_ylabel("along random signs")
        bar = canvas.colorbar(filled, ax=axes, label="mean rise of the cross-entropy, nats", shrink=0.8)
        bar.set_ticks(levels, labels=[f"{level:g}".replace("-", "−") for level in levels])
        return base.finish(
            canvas,
            "Loss slices: how far the mean cross-entropy rises above that of the clean images (+), along the sign of "
            "its gradient and along random signs at right angles to it; both axes in grey levels of 255, "
            "colours in steps of about three. "
            f"{_others(record)}",
            f"Contour maps of the mean loss in one colour scale. Rise at the right edge, 4/255 along the gradient: "
            f"{', '.join(told)}.",
        )


def slices(record: Record) -> Figure:
    """The slices' middle rows and columns: mean rise of the loss along the gradient (left) and across it (right)."""
    frame = pd.DataFrame(record.rows)
    frame = frame[frame["metric"] == "landscape"]
    named = {"x": ("y", "along the gradient's sign, grey levels"), "y": ("x", "along random signs, grey levels")}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
        told = []
        for axis, (along, (across, title)) in zip(axes, named.items(), strict=True):
            for task, rows in frame[frame[across] == 0].groupby("task", sort=False):
                name, colour = TASKS[task]
                style = "--" if task == HEAD else "-"
                axis.plot(rows[along], rows["value"], style, color=colour, label=name.replace("\n", " "))
                told.append(f"{title}, {name}: {rows['value'].iloc[-1]:.2f}".replace("\n", " "))
            axis.set(xlabel=title)
            axis.set_yscale("symlog", linthresh=0.1)
            axis.axhline(0, color="#999999", lw=0.8)
        axes[0].set_ylabel("mean rise of the loss, nats")
        canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return base.finish(
            canvas,
            "The middle lines of the slices above, in a scale that is straight within ±0.1 and logarithmic outside. "
            f"{_others(record)}",
            f"Two line charts of the mean rise of the loss; at the right end: {'; '.join(told)}.",
        )


def scores(record: Record) -> Table:
    """Every number behind the figures: a row a task, its accuracy and measures with 95 % intervals."""
    frame = pd.DataFrame(record.rows)
    frame = frame[(frame["seed"] == "all") & frame["x"].isin((0.0, HALF)) & (frame["metric"] != "landscape")]
    names = {
        "accuracy": "accuracy",
        "area": "attended area",
        "empty": "maps without mass",
        "sharpness": "rise within 4/255, nats",
        "curvature": "largest curvature, log₁₀",
    }
    rows = []
    for task, found in frame.groupby("task", sort=False):
        row = {"task": TASKS[task][0].replace("\n", " "), "network": base.NETWORKS.get(*[found["model"].iloc[0]] * 2)}
        for metric, name in names.items():
            mine = found[found["metric"] == metric]
            if metric not in set(frame["metric"]):
                continue
            one = mine.iloc[0] if len(mine) else None
            row[name] = "–" if one is None else f"{one['value']:.3g} [{one['low']:.3g}, {one['high']:.3g}]"
        rows.append(row | {"n": found["n"].max()})
    return Table(
        pd.DataFrame(rows),
        "Means over trainings with 95 % bootstrap intervals over trainings and patients or photographs; n: images, all "
        f"trainings together. {base.label(record)}.",
    )


def maps(shown: list[Asked], record: Record) -> Figure:
    """An image of each task with its Grad-CAM map: the outlined pixels hold half of the map's mass.

    Phantoms and photographs only: the first image of each that has a map, one answered correctly if there is one.
    Raises ``ValueError`` for a task none of whose images has a map.
    """
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, len(shown), figsize=(7.2, 2.9), squeeze=False)
        told = []
        for column, one in enumerate(shown):
            layer = explain.last_feature_map(one.model, one.images[:1], places=PLACES)
            heat = explain.attention(one.model, one.images, layer=layer).cpu()
            area = explain.attention_area(heat)
            if not area.isfinite().any():
                raise ValueError(f"no image of {one.task} has a Grad-CAM map: nothing speaks for the predicted class")
            with torch.no_grad():
                right = (one.model(one.images).argmax(dim=1) == one.labels).cpu()
            pick = int((area.isfinite() * (1 + right.int())).argmax())
            values = heat[pick].flatten().sort(descending=True).values
            level = float(values[max(0, round(float(area[pick]) * len(values)) - 1)])
            base.picture(axes[0][column], one.images[pick].cpu())
            base.picture(axes[1][column], heat[pick], cmap="cividis")
            for axis, colour in zip(axes[:, column], ("#FFB000", "white"), strict=True):
                axis.contour(heat[pick].numpy(), levels=[min(level, 0.999)], colors=colour, linewidths=1.2)
            axes[0][column].set_title(TASKS[one.task][0], fontsize=7.5)
            axes[1][column].set_xlabel(f"{100 * float(area[pick]):.0f} % of pixels", fontsize=7.5)
            told.append(f"{TASKS[one.task][0]} {100 * float(area[pick]):.0f} %".replace("\n", " "))
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


def textures(images: dict[str, Tensor], record: Record) -> Figure:
    """Textures with one window drawn in, and their five features over the eight orientations.

    ``images``: by name ``[1, 1, H, W]``, scikit-image's textures and phantoms. Lines are means over all windows.
    """
    found = {name: glcm.texture_features(image, window=WINDOW) for name, image in images.items()}
    degrees = np.arange(8) * 45
    with plt.style.context(STYLE):
        canvas = plt.figure(figsize=(7.2, 3.9))
        upper, lower = canvas.subfigures(2, 1, height_ratios=(1, 1.15))
        for axis, (name, image), colour in zip(upper.subplots(1, len(images)), images.items(), PAINT, strict=False):
            base.picture(axis, image[0])
            middle = 5 * WINDOW
            axis.add_patch(plt.Rectangle((middle, middle), WINDOW, WINDOW, fill=False, ec="#FFB000", lw=1.4))
            axis.set_title(name, color=colour)
            axis.spines[:].set_color(colour)
            axis.spines[:].set_visible(True)
        told = []
        panels = lower.subplots(1, len(base.FEATURES))
        for axis, (feature, title) in zip(panels, base.FEATURES.items(), strict=True):
            for (name, features), colour, marker in zip(found.items(), PAINT, "osD^v", strict=False):
                values = features[feature][0].mean(dim=(1, 2))
                axis.plot(degrees, values, marker + "-", ms=2.5, lw=1, color=colour, label=name)
                told.append(f"{title}, {name}: {float(values.min()):.3g} to {float(values.max()):.3g}")
            axis.axvspan(157.5, 337.5, color="#eeeeee", zorder=0, lw=0)
            axis.set_title(title)
            axis.set_xticks([0, 90, 180, 270], ["0°", "90°", "180°", "270°"], fontsize=6.5)
            axis.tick_params(axis="y", labelsize=6.5)
            if feature in ("asm", "contrast"):
                axis.set_yscale("log")
                axis.yaxis.set_minor_formatter(NullFormatter())
        panels[1].set_yticks([200, 500, 1000, 2000], ["200", "500", "1000", "2000"])
        panels[2].set_xlabel("orientation, distance 3; grey: the first four over again")
        named = " and ".join(name for name in images if name not in TEXTURES)
        return base.finish(
            canvas,
            f"Textures of 224 × 224 pixels with one window of 20 × 20, and their features by orientation, means over "
            f"121 windows. {', '.join(TEXTURES)}: scikit-image's, CC0; {named}: drawn. {base.label(record)}.",
            f"Pictures of {', '.join(images)}; below, five line charts over eight orientations, where each value of "
            f"the second half repeats one of the first. Ranges: {'; '.join(told)}.",
        )


def profiles(record: Record) -> Figure:
    """Each feature's mean over windows with texture, and the share of flat windows, a row a set."""
    frame = pd.DataFrame(record.rows)
    names = {"flat": "flat windows, share", **base.FEATURES}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 3, figsize=(7.2, 3.9), sharey=True)
        told = []
        for axis, (metric, title) in zip(axes.flat, names.items(), strict=True):
            told.append(f"{title}: {_dots(axis, frame[frame['metric'] == metric])}")
            axis.set_title(title)
        return base.finish(
            canvas,
            f"Texture of medical images and photographs at 224 pixels. Flat windows span less than {FLAT} grey levels; "
            "the features are means over the others. Points: mean over images; bars: 95 % bootstrap intervals over "
            f"patients or photographs. {_others(record)}",
            f"Six dot charts. {'; '.join(told)}.",
        )


def _dots(axis: plt.Axes, frame: pd.DataFrame) -> str:
    """A row a task: its mean with its interval, and each training as a small point; returns what it shows."""
    tasks, told = list(frame["task"].unique()), []
    for place, task in enumerate(tasks):
        name, colour = TASKS[task]
        rows = frame[frame["task"] == task]
        one = rows[rows["seed"] == "all"].iloc[0]
        each = rows[rows["seed"] != "all"]["value"]
        spread = [[max(0, one["value"] - one["low"])], [max(0, one["high"] - one["value"])]]
        marker = "D" if task in (NATURAL, HEAD) else "o"
        axis.errorbar(one["value"], place, xerr=spread, fmt=marker, color=colour, capsize=2, zorder=3)
        if len(each) > 1:
            axis.plot(each, [place + 0.22] * len(each), ".", color=colour, ms=3.5, alpha=0.7)
        numbers = f"{one['value']:.3g} [{one['low']:.3g}, {one['high']:.3g}]"
        told.append(f"{name} {numbers}".replace("\n", " "))
    axis.set_yticks(range(len(tasks)), [TASKS[task][0] for task in tasks])
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    return ", ".join(told)


def _others(record: Record) -> str:
    return f"{base.label(record)}. {CREDIT}."
