"""Figures and tables of the assimilation slides' results."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from hpatlib import transfer
from hpatlib.evidence import Record
from hpatlib.plots import base
from hpatlib.plots.base import STYLE, Figure, Table

ATTACKS = {
    "FGSM": ("#777777", "o"),  # grey on the slides too
    "BIM": ("#0072B2", "s"),
    "MI-FGSM": ("#D55E00", "D"),
    "PGD": ("#009E73", "^"),
}
TRAININGS = {
    "assimilated": ("domain assimilation", "-"),
    "vanilla": ("vanilla transfer learning", (0, (4, 2))),
    "without GLCM loss": ("assimilation without GLCM loss", (0, (1, 1.2))),
}
COLOURS = {"vanilla": "#999999", "assimilated": "#0072B2", "without GLCM loss": "#D55E00"}
DATASETS = {
    "chest_ct": "chest CT",
    "brain_mri": "brain MRI",
    "chest_xray": "chest X-ray",
    "busi2": "breast ultrasound",
}


def strengths(record: Record, trainings: tuple[str, ...] = ("assimilated", "vanilla")) -> Figure:
    """Accuracy against ε, a panel a data set and a network; a colour an attack, a line style one of ``trainings``.

    Solid: domain assimilation, dashed: vanilla, as on the slides; dotted: without the GLCM loss. Lines start at the
    accuracy on clean images.
    """
    frame = _accuracies(record)
    frame = frame[frame["training"].isin(trainings) & frame["attack"].isin(("none", *ATTACKS))]
    panels = list(frame.groupby(["dataset", "model", "weights"], sort=False))
    levels = 255 * np.unique(frame["eps"])
    gap = np.diff(levels).min() if len(levels) > 1 else 1.0
    with plt.style.context(STYLE):
        canvas, grid = _grid([key for key, _ in panels])
        told = []
        for axis, ((dataset, model, weights), rows) in zip(grid.flat, panels, strict=False):
            for training in trainings:
                mine = rows[rows["training"] == training]
                for number, (attack, (colour, marker)) in enumerate(ATTACKS.items()):
                    found = mine[mine["attack"].isin(("none", attack))].groupby("eps")["accuracy"]
                    mean, spread = found.mean(), found.std().fillna(0)
                    # Side by side, not on top of each other: iterated attacks often agree to the last image.
                    x = 255 * mean.index + 0.09 * gap * (number - 1.5) * (mean.index > 0)
                    solid = training == "assimilated"
                    style = {"color": colour, "ls": TRAININGS[training][1], "mfc": colour if solid else "white"}
                    axis.errorbar(x, mean, spread, marker=marker, ms=3.5, lw=1.2, elinewidth=0.6, **style)
                    points = ", ".join(f"{value:.2f} at {255 * eps:g}" for eps, value in mean.items())
                    title = f"{_panel(dataset, model, weights)}, {TRAININGS[training][0]}, {attack}"
                    told.append(f"{title}: {points}")
            axis.axhline(0.5, color="#555555", lw=0.8, ls=":")
            axis.set_ylim(-0.03, 1.03)
        for axis in grid[-1]:
            axis.set_xlabel("ε, in 1/255")
        ticks = sorted({0, *(round(255 * eps, 6) for eps in frame["eps"])})
        grid[0][0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        for axis in grid[:, 0]:
            axis.set_ylabel("accuracy")
        attacks = [Line2D([], [], color=c, marker=m, ms=4, ls="none", label=n) for n, (c, m) in ATTACKS.items()]
        styles = [Line2D([], [], color="#222222", ls=TRAININGS[t][1], label=TRAININGS[t][0]) for t in trainings]
        canvas.legend(handles=attacks, loc="outside upper center", ncols=len(attacks))
        canvas.legend(handles=styles, loc="outside lower center", ncols=len(styles))
        return base.finish(
            canvas,
            "Accuracy against attack strength; ε = 0 is the clean image. Iterated attacks take "
            f"{frame['iterations'].max():g} steps. Points: mean over seeds; bars: their standard deviation; thin "
            f"dotted: guessing between classes of equal size. {base.label(record)}.",
            f"Line charts of accuracy against ε in 1/255. {'; '.join(told)}.",
        )


def survival(record: Record) -> Figure:
    """Accuracy under the attacks of ``transfer.survival``, a panel a data set and a network, bars by training."""
    frame = _accuracies(record)
    eps = frame[frame["attack"].isin(transfer.WORST)]["eps"].max()
    frame = frame[(frame["eps"] == eps) & frame["attack"].isin(transfer.WORST)]
    one = frame.iloc[0]
    tries = f"PGD: {one['restarts']:g} × {one['iterations']:g} steps; Square: {one['queries']:g} queries"
    names = {"PGD, restarts": "PGD,\nrestarts", "transferred PGD": "PGD,\ntransferred", "Square": "Square"}
    names |= {"worst of all": "worst\nof all"}
    panels = list(frame.groupby(["dataset", "model", "weights"], sort=False))
    with plt.style.context(STYLE):
        canvas, grid = _grid([key for key, _ in panels])
        told = []
        for axis, ((dataset, model, weights), rows) in zip(grid.flat, panels, strict=False):
            for offset, training in enumerate(transfer.PAIR[::-1]):
                values = [rows[(rows["training"] == training) & (rows["attack"] == a)]["accuracy"] for a in names]
                base.bars(axis, values, 0.4 * (offset - 0.5), 0.37, COLOURS[training], TRAININGS[training][0])
                points = ", ".join(f"{a} {v.mean():.2f}" for a, v in zip(names, values, strict=True))
                told.append(f"{_panel(dataset, model, weights)}, {TRAININGS[training][0]}: {points}")
            axis.set_xticks(range(len(names)), names.values(), fontsize=6.5)
            axis.grid(axis="x", visible=False)
            axis.set_ylim(0, 1.03)
        for axis in grid[:, 0]:
            axis.set_ylabel(f"accuracy at ε = {255 * eps:g}/255")
        canvas.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return base.finish(
            canvas,
            f"Accuracy at ε = {255 * eps:g}/255 under an adaptive attacker. Transferred: made on the other training's "
            "model. Worst of all: right under every one of these, FGSM, and PGD at smaller ε. Bars: mean over seeds; "
            f"whiskers: their standard deviation; points: each. {tries}. {base.label(record)}.",
            f"Bar chart of accuracy at ε = {255 * eps:g}/255. {'; '.join(told)}.",
        )


def masking(records: list[Record]) -> Table:
    """Signs of masked gradients, a row a check and training; those without a seed are about all seeds."""
    parts = []
    for record in records:
        frame = pd.DataFrame(record.rows)
        for row in frame[frame["check"].notna()].itertuples():
            parts.append(
                {
                    "data": f"{DATASETS[row.dataset]}, {'real' if record.real else 'phantom'}, {record.profile}",
                    "network": base.network(row.model, row.weights),
                    "training": row.training,
                    "check": row.check,
                    "value [95 % interval]": f"{row.value:+.2f} [{row.value_low:+.2f}, {row.value_high:+.2f}]",
                    "verdict": row.verdict,
                    "ε": f"{255 * row.eps:g}/255",
                    "seeds": "all" if pd.isna(row.seed) else int(row.seed),
                    "n": int(row.n),
                }
            )
    return Table(
        pd.DataFrame(parts),
        "Signs that models mask their gradients, in shares of images; above zero speaks for masking. Raised: the whole "
        "interval is; unclear: only the value is. A check that is not raised proves nothing. n: images a seed.",
    )


def accuracies(records: list[Record]) -> Table:
    """Accuracy by network and training: clean, and mean over ε under each attack; mean ± standard deviation."""
    parts = []
    for record in records:
        frame = _accuracies(record)
        frame = frame[frame["attack"].isin(("none", *ATTACKS))]
        frame = frame.assign(attack=frame["attack"].replace("none", "clean"))
        keys = ["dataset", "model", "weights", "training"]
        # First over ε, so that the deviation is one of trainings.
        cells = frame.groupby([*keys, "attack", "seed"], sort=False)["accuracy"].mean()
        shown = cells.groupby([*keys, "attack"], sort=False).agg(
            lambda v: f"{v.mean():.2f} ± {v.std():.2f}" if len(v) > 1 else f"{v.mean():.2f}"
        )
        for (dataset, model, weights, training), values in shown.groupby(keys, sort=False):
            about = {"data": f"{DATASETS[dataset]}, {'real' if record.real else 'phantom'}, {record.profile}"}
            about |= {"network": base.network(model, weights), "training": training}
            parts.append(
                about | {name: values[(dataset, model, weights, training, name)] for name in ("clean", *ATTACKS)}
            )
    return Table(pd.DataFrame(parts), "Accuracy on clean images, and averaged over ε under each attack; ± over seeds.")


def repainted(shown: dict[str, dict[str, np.ndarray]], record: Record) -> Figure:
    """What the backbone sees: by data set ``transfer.pictures``, a row a phantom, a column a training."""
    rows = [(DATASETS[d], n, found) for d, found in shown.items() for n in range(len(found["original"]))]
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
    frame = pd.DataFrame(record.rows)
    datasets = list(frame["dataset"].unique())
    with plt.style.context(STYLE):
        widths = {"width_ratios": (2.6, 1)}
        canvas, axes = plt.subplots(
            len(datasets), 2, figsize=(7.2, 2.1 * len(datasets) + 0.4), squeeze=False, gridspec_kw=widths, sharex="col"
        )
        told, sides = [], ({"texture": "all five"} | base.FEATURES, {"colour": "colour"})
        for line, dataset in zip(axes, datasets, strict=True):
            for axis, metrics in zip(line, sides, strict=True):
                for offset, training in enumerate(("without GLCM loss", "assimilated")):
                    found = frame[(frame["dataset"] == dataset) & (frame["training"] == training)]
                    values = [found[found["metric"] == metric]["value"] for metric in metrics]
                    label = "without GLCM loss" if training != "assimilated" else "with GLCM loss"
                    base.bars(axis, values, 0.4 * (offset - 0.5), 0.37, COLOURS[training], label)
                    for place, each in enumerate(values):  # the loss can make a bar too low to be seen
                        top = each.mean() + (each.std() if len(each) > 1 else 0)
                        at = (place + 0.4 * (offset - 0.5), top)
                        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 6}
                        axis.annotate("<0.01" if each.mean() < 0.01 else f"{each.mean():.2f}", at, **above)
                    points = ", ".join(f"{n} {v.mean():.3f}" for n, v in zip(metrics.values(), values, strict=True))
                    told.append(f"{DATASETS[dataset]}, {label}: {points}")
                axis.set_xticks(range(len(metrics)), metrics.values(), fontsize=7.5)
                axis.grid(axis="x", visible=False)
                axis.set_ylim(bottom=0)
            line[0].set_title(DATASETS[dataset])
            line[0].set_ylabel("texture distance")
            line[1].set_ylabel("channel spread, of 1")
        canvas.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return base.finish(
            canvas,
            "How far the adapted picture is from the original: the GLCM loss itself and the part of each feature (in "
            "the worst window, summed over orientations, so that parts need not add up), and how coloured it is. Bars: "
            f"mean over seeds and networks; whiskers: standard deviation; points: each. {base.label(record)}.",
            f"Bar charts of texture distance and colour. {'; '.join(told)}.",
        )


def sizes(record: Record) -> Table:
    """The slides' class sizes beside what was found and used."""
    frame = pd.DataFrame(record.rows)
    frame = frame[frame["class"].notna()][["dataset", "class", "published", "at hand", "used"]]
    frame = frame.assign(dataset=frame["dataset"].map(DATASETS), published=frame["published"].astype(int))
    frame = frame.assign(used=frame["used"].astype(int))
    used = "used" if record.real else "phantoms used"
    return Table(
        frame.rename(columns={"used": used}),
        "Images of each class: on the slides, among the files found (real data only), and in this profile. "
        f"{record.profile[0].upper()}{record.profile[1:]} profile, {record.data} data.",
    )


def training(record: Record) -> Table:
    """The slides' settings beside this profile's."""
    frame = pd.DataFrame(record.rows)
    frame = frame[frame["setting"].notna()][["setting", "published", "here", "where"]]
    return Table(
        frame.rename(columns={"published": "on the slides", "here": f"{record.profile} profile"}),
        f"Training and GLCM settings. {base.label(record)}.",
    )


def _accuracies(record: Record) -> pd.DataFrame:
    frame = base.rows(record)
    return frame[frame["accuracy"].notna()]


def _grid(panels: list[tuple[str, str, str]]) -> tuple[plt.Figure, np.ndarray]:
    """A canvas with a titled panel for each (data set, model, weights), at most three in a row."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (max(5.2, 2.4 * columns), (3.0 if len(panels) == 1 else 2.3) * lines + 0.6)
    canvas, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(grid.flat, panels, strict=False):
        axis.set_title(_panel(*panel).replace(", ", "\n", 1))
    for axis in grid.flat[len(panels) :]:
        axis.axis("off")
    return canvas, grid


def _panel(dataset: str, model: str, weights: str) -> str:
    return f"{DATASETS[dataset]}, {base.network(model, weights)}"
