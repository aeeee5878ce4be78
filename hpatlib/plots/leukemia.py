"""Figures and tables of the leukemia paper's chapters."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from hpatlib.evaluation import Flips
from hpatlib.evidence import Record, published_table
from hpatlib.leukemia import Walk
from hpatlib.plots import base
from hpatlib.plots.base import STYLE, Figure, Table

# Colours that colour-blind readers can tell apart (Okabe and Ito), one a method in every chapter.
COLOURS = {"STBO": "#0072B2", "STM": "#D55E00", "Sobol": "#009E73", "random": "#CC79A7"}
WEIGHTS = {"imagenet": "ImageNet", "scratch": "from scratch"}
# Our columns by the header of a table. Table 1 of the leukemia paper looks macro-averaged, table 2 is binary (H4).
AVERAGED = {
    "ACC": "ACC",
    "macro PRE": "PRE (macro)",
    "macro REC": "REC (macro)",
    "macro F1": "F1 (macro)",
    "binary PRE": "PRE (binary)",
    "binary REC": "REC (binary)",
    "binary F1": "F1 (binary)",
    "AUC": "AUC",
}
READINGS = {"fixed": "one fixed transform", "searched": "the worst that STBO finds"}
MARKERS = "osD^vXP*"
PREVALENCE = (
    "The document's numbers fit about two malignant cells to one healthy, on which binary precision and F1 depend; the "
    "subset of C-NMC and the phantoms have one to one."
)
BOX = {"boxstyle": "round,pad=0.4", "facecolor": "#EAF2F8", "edgecolor": "#0072B2"}


def searches(record: Record) -> Figure:
    """Worst loss (above) and ROI (below) against queries, a column a box (figure 6 of the leukemia paper).

    Bands and bars are 95 % intervals; STM's grids are points, for a grid has no best-so-far: each is its own search.
    """
    frame = pd.DataFrame(record.rows)
    boxes = list(frame.groupby(["rotation", "translation"]))
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, len(boxes), figsize=(7.2, 4.8), sharex=True, squeeze=False)
        told = []
        for column, ((rotation, translation), rows) in enumerate(boxes):
            title = f"±{rotation:g}°, ±{translation:.3g} px"
            for row, metric in enumerate(("loss", "roi")):
                _curves(axes[row][column], rows, metric)
            axes[0][column].set_title(title)
            axes[1][column].set(xlabel="queries an image", ylim=(-0.03, 1.03))
            last = rows[rows["queries"].isin((99, 100, 775))]
            reached = [f"{r.method} {r.loss:.2f} after {r.queries}" for r in last.itertuples()]
            told.append(f"{title}: {', '.join(reached)}")
        axes[0][0].set_ylabel("mean worst loss (cross-entropy)")
        axes[1][0].set_ylabel("ROI (eq. 15)")
        axes[0][0].legend(loc="upper left")
        return base.finish(
            canvas,
            "Mean worst loss and ROI against queries; bands and bars are 95 % bootstrap intervals. "
            f"{base.label(record)}.",
            f"Line charts of worst loss and ROI against queries. Mean worst loss within {'; '.join(told)}.",
        )


def search_table(records: list[Record]) -> Table:
    """Each record's worst loss and ROI at about 100 queries, and at STM's 775."""
    rows = [
        {
            "run": f"{r.provenance['data']['name']}, {r.profile}, seed {r.seed}",
            "range": f"±{row['rotation']:g}°, ±{row['translation']:.3g} px",
            "method": row["method"],
            "queries": row["queries"],
            "worst loss": _with_interval(row, "loss"),
            "ROI": _with_interval(row, "roi"),
        }
        for r in records
        for row in r.rows
        if row["queries"] in (99, 100, 775)
    ]
    about = "; ".join(map(base.label, records))
    return Table(pd.DataFrame(rows), f"Mean worst loss and ROI with 95 % intervals over images. {about}.")


def _with_interval(row: dict, metric: str) -> str:
    return f"{row[metric]:.2f} [{row[f'{metric}_low']:.2f}, {row[f'{metric}_high']:.2f}]"


def _curves(axis: plt.Axes, frame: pd.DataFrame, metric: str) -> None:
    for method, rows in frame.groupby("method", sort=False):
        queries, mean, low, high = (rows[key] for key in ("queries", metric, f"{metric}_low", f"{metric}_high"))
        style = {"color": COLOURS[method]}
        if method == "STM":
            axis.errorbar(
                queries, mean, [mean - low, high - mean], fmt="s", capsize=2, lw=1, label="STM (grids)", **style
            )
        else:
            axis.plot(queries, mean, label=method, **style)
            axis.fill_between(queries, low, high, alpha=0.15, lw=0, **style)
    axis.set_xscale("log")
    ticks = [1, 10, 100, 775]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def flips(result: Flips, classes: tuple[str, ...], record: Record) -> Figure:
    """An image of each class (a row) under each perturbation (a column), the model's answer and confidence above.

    Shown are the first correctly classified images that the most perturbations flip. Wrong answers are red, with a
    cross.
    """
    wrong = torch.stack([guess != result.labels for guess in result.predictions.values()])  # [P, N]
    fragile = wrong.sum(dim=0) * (~wrong[0])  # an image that is wrong from the start shows nothing
    picks = [int((fragile + 1).mul(result.labels == label).argmax()) for label in range(len(classes))]
    names = list(result.images)
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(
            len(picks), len(names), figsize=(1.25 * len(names), 1.6 * len(picks)), squeeze=False
        )
        for row, pick in enumerate(picks):
            for axis, name in zip(axes[row], names, strict=True):
                guess, right = int(result.predictions[name][pick]), not wrong[names.index(name), pick]
                base.picture(axis, result.images[name][pick].cpu())
                answer = f"{'✓' if right else '✗'} {classes[guess]} {100 * float(result.confidences[name][pick]):.0f} %"
                axis.set_title(answer, color="#222222" if right else "#B00020")
                axis.set_xlabel(name if row == len(picks) - 1 else "")
            axes[row][0].set_ylabel(f"truth: {classes[int(result.labels[pick])]}")
        turned = [name for name in names if wrong[names.index(name), picks].any()]
        return base.finish(
            canvas,
            f"One image of each class under each perturbation, with the model's answer. {base.label(record)}.",
            f"Two cell images, one of class {' and one of class '.join(classes)}, clean and under "
            f"{len(names) - 1} perturbations. The answer turns wrong for at least one under: {', '.join(turned)}.",
        )


def flip_rates(record: Record) -> Figure:
    """Accuracy, ROI and share of flipped correct predictions under each perturbation, with 95 % intervals."""
    frame = pd.DataFrame(record.rows)
    metrics = {"accuracy": "accuracy", "roi": "ROI (eq. 15)", "flipped": "correct predictions flipped"}
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(7.2, 2.8))
        places, width = np.arange(len(frame)), 0.8 / len(metrics)
        for offset, (metric, name) in enumerate(metrics.items()):
            spread = [frame[metric] - frame[f"{metric}_low"], frame[f"{metric}_high"] - frame[metric]]
            x = places + (offset - (len(metrics) - 1) / 2) * width
            axis.bar(x, frame[metric], 0.92 * width, yerr=spread, label=name, error_kw={"lw": 1, "capsize": 2})
        axis.set(ylim=(0, 1.05), ylabel="share of images")
        axis.set_xticks(places, frame["perturbation"].str.replace(" ", "\n"))
        axis.grid(axis="x", visible=False)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(metrics))
        told = ", ".join(f"{row.perturbation} {row.flipped:.2f}" for row in frame.itertuples())
        return base.finish(
            canvas,
            f"What each perturbation does to predictions; whiskers are 95 % bootstrap intervals. {base.label(record)}.",
            f"Bar chart of accuracy, ROI and share of flipped correct predictions. Shares flipped: {told}.",
        )


def classification(records: list[Record]) -> Table:
    """Table 1 of the leukemia paper: its numbers beside ours, precision, recall and F1 in both averages (H4).

    Ours: mean ± standard deviation over seeds, in percent, on all test images.
    """
    printed = published_table("hpat", "table1")
    rows = [
        {"network": network, "source": "the document"} | {_header(m): f"{100 * v:.1f}" for m, v in row.items()}
        for network, row in printed.iterrows()
    ]
    for record in records:
        for (model, weights), found in pd.DataFrame(record.rows).groupby(["model", "weights"], sort=False):
            row = {"network": model, "source": f"{_source(record)}, {WEIGHTS.get(weights, weights)}"}
            rows.append(row | {name: _spread(found[column]) for column, name in AVERAGED.items()})
    order = {name: number for number, name in enumerate([*printed.index, *base.NETWORKS])}
    frame = pd.DataFrame(rows).fillna("–")
    frame = frame.sort_values("network", key=lambda names: names.map(order), kind="stable")
    frame["network"] = frame["network"].map(lambda name: base.NETWORKS.get(name, name))
    return Table(
        frame[["network", "source", *AVERAGED.values()]],
        "Classification of clean images, in percent. The document prints one value and no average; ours are means ± "
        f"standard deviations over seeds. {PREVALENCE} {_about(records)}.",
    )


def _about(records: list[Record]) -> str:
    """The labels of records, with the numbers of images that their rows have."""
    told = []
    for record in records:
        frame = pd.DataFrame(record.rows)
        hybrid = frame[frame["reading"] != "clean"]["n"]
        n = f"{base.span(frame[frame['reading'] == 'clean']['n'])} clean"
        told.append(base.label(record, f"{n} and {base.span(hybrid)} hybrid images" if len(hybrid) else f"{n} images"))
    return "; ".join(told)


def _header(metric: str) -> str:
    return AVERAGED.get(metric, AVERAGED.get(f"macro {metric}"))


def _source(record: Record) -> str:
    return f"{'real' if record.real else 'phantom'}, {record.profile}"


def _spread(values: pd.Series) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    return f"{100 * values.mean():.1f}" + (f" ± {100 * values.std():.1f}" if len(values) > 1 else "")


def robustness(record: Record, *, split: str = "patient") -> Figure:
    """Accuracy and ROI over H0…H6, a column a reading of the environments, a line a network or a training."""
    frame = base.rows(record, split=split)
    named = "name" if frame["name"].nunique() > 1 else "branch"
    names = list(frame[named].unique())
    metrics = {"ACC": "accuracy", "ROI": "ROI (eq. 15)"}
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(2, 2, figsize=(7.2, 4.8), sharex=True, sharey=True)
        told = []
        for column, (reading, title) in enumerate(READINGS.items()):
            rows = frame[frame["reading"].isin(("clean", reading))]
            for number, name in enumerate(names):
                found = rows[rows[named] == name].groupby("environment", sort=False)
                for axis, metric in zip(axes[:, column], metrics, strict=True):
                    mean, spread = found[metric].mean(), found[metric].std().fillna(0)
                    shift = 0.06 * (number - (len(names) - 1) / 2)  # whiskers side by side, not on top of each other
                    x = np.arange(len(mean)) + shift
                    label = _training(name)
                    axis.errorbar(x, mean, spread, fmt=MARKERS[number] + "-", ms=3.5, lw=1.3, capsize=1.5, label=label)
                accuracy = found["ACC"].mean()
                told.append(f"{title}, {_training(name)}: accuracy {accuracy.iloc[0]:.2f} to {accuracy.iloc[-1]:.2f}")
            axes[0][column].set_title(f"environment read as {title}")
            axes[1][column].set(xlabel="environment", ylim=(-0.03, 1.03))
            axes[1][column].set_xticks(range(len(mean)), mean.index)
        for axis, metric in zip(axes[:, 0], metrics.values(), strict=True):
            axis.set_ylabel(metric)
        canvas.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(names), 3))
        return base.finish(
            canvas,
            f"Accuracy and ROI over the environments, split by {split}. Points: mean over seeds; bars: their standard "
            f"deviation. {base.label(record)}.",
            f"Line charts of accuracy and ROI over H0 to H6 in two readings, split by {split}. {'; '.join(told)}.",
        )


def _training(name: str) -> str:
    """The name of a network or a training as a legend shows it."""
    for network, shown in base.NETWORKS.items():
        if name.startswith(f"{network} ("):
            return f"{shown} ({WEIGHTS[name[len(network) + 2 : -1]]})"
    return name


def heat(record: Record, *, split: str = "patient") -> Figure:
    """ROI over ε × rotation, a column a training, a row a reading (figure 5 of the leukemia paper)."""
    frame = base.rows(record, split=split)
    cells = frame["environment"].str.extract(r"(?P<eps>\d+)/255, (?P<rotation>\d+)°").astype(float)
    frame = frame.assign(eps=cells["eps"], rotation=cells["rotation"])
    names, readings = list(frame["name"].unique()), [r for r in READINGS if r in set(frame["reading"])]
    with plt.style.context(STYLE):
        size = (3.2 * len(names) + 0.8, 2.6 * len(readings))
        canvas, axes = plt.subplots(len(readings), len(names), figsize=size, squeeze=False, sharex=True, sharey=True)
        told = []
        for row, reading in enumerate(readings):
            for axis, name in zip(axes[row], names, strict=True):
                found = frame[(frame["name"] == name) & (frame["reading"] == reading)]
                map_ = found.pivot_table(index="eps", columns="rotation", values="ROI")
                picture = axis.imshow(map_, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
                for (i, j), value in np.ndenumerate(map_.to_numpy()):
                    colour = "white" if value < 0.6 else "black"
                    axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
                axis.set_xticks(range(map_.shape[1]), [f"{turn:g}" for turn in map_.columns])
                axis.set_yticks(range(map_.shape[0]), [f"{level:g}" for level in map_.index])
                axis.set_title(f"{_training(name)}, {READINGS[reading]}")
                axis.grid(False)
                told.append(f"{name}, {reading}: mean {np.nanmean(map_):.2f}, worst corner {map_.iloc[-1, -1]:.2f}")
            axes[row][0].set_ylabel("ε, in 1/255")
        for axis in axes[-1]:
            axis.set_xlabel("rotation, degrees")
        canvas.colorbar(picture, ax=axes, label="ROI (eq. 15)", shrink=0.8)
        return base.finish(
            canvas,
            f"ROI under PGD at ε and a rotation, mean over {frame['seed'].nunique()} trainings, split by {split}. "
            f"{base.label(record)}.",
            f"Heat maps of the ROI over ε and rotation. {'; '.join(told)}.",
        )


def framework(walk: Walk, record: Record) -> Figure:
    """Figure 2 of the leukemia paper from the real objects: pictures of one batch on their way, then the network.

    Rows: images of the batch; columns: X, the noise of A_ε (enlarged), A_ε(X), T_s(A_ε(X)). Below, what happens to both
    halves of the batch, with shapes.
    """
    pictures = [(name, images[: min(3, len(images))]) for name, images in walk.images.items()]
    count = len(pictures[0][1])
    with plt.style.context(STYLE):
        canvas = plt.figure(figsize=(7.2, 1.55 * count + 1.2))
        upper, lower = canvas.subfigures(2, 1, height_ratios=(1.55 * count + 0.3, 0.9))
        axes = upper.subplots(count, len(pictures), squeeze=False)
        for column, (name, images) in enumerate(pictures):
            axes[0][column].set_title(name)
            for axis, image in zip(axes[:, column], images, strict=True):
                base.picture(axis, image)
        axis = lower.subplots()
        axis.axis("off")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        boxes = walk.network
        for number, (title, shape) in enumerate(boxes):
            x = (number + 0.5) / len(boxes)
            axis.text(x, 0.5, f"{title}\n{shape}", ha="center", va="center", fontsize=7, bbox=BOX)
            if number:
                middle = number / len(boxes)
                axis.annotate("", (middle + 0.016, 0.5), (middle - 0.016, 0.5), arrowprops={"arrowstyle": "->"})
        told = "; ".join(f"{title} {shape}".replace("\n", " ") for title, shape in boxes)
        return base.finish(
            canvas,
            f"One batch on its way through HPAT: pictures, then tensors. {base.label(record)}.",
            f"Pictures of {count} {'real' if record.real else 'phantom'} cells: "
            f"{', '.join(name for name, _ in pictures)}. Below, a chain of boxes: "
            f"{told}.",
        )


def steps(record: Record) -> Table:
    """Algorithm 1 on one batch, from a record."""
    return Table(pd.DataFrame(record.rows), f"Algorithm 1 on one batch, line by line. {base.label(record)}.")


def tied(walk: Walk, record: Record) -> Table:
    """How many clean answers change with the adversarial partner, for MixBN and for equation 10 as printed."""
    names = {"mix": "MixBN: each half through its own branch", "sum": "equation 10 as printed: the branches added up"}
    rows = [{"variant": names[name], "clean answers that change": f"{share:.0%}"} for name, share in walk.tied.items()]
    return Table(pd.DataFrame(rows), f"What an image's answer owes to its partner. {base.label(record)}.")


def mixbn(record: Record) -> Figure:
    """Accuracy of each strategy without MixBN and with it through each branch, on clean and on hybrid images."""
    frame = pd.DataFrame(record.rows)
    splits, inputs = list(frame["split"].unique()), {"clean": "clean images", "searched": "hybrid images (H6)"}
    styles = {
        "shared": ("without MixBN", "o"),
        "clean": ("MixBN, clean branch", "s"),
        "adv": ("MixBN, adversarial", "D"),
    }
    names = [name for name in frame["name"].unique() if "+" not in name]
    with plt.style.context(STYLE):
        size = (7.2, 2.4 * len(splits) + 0.4)
        canvas, axes = plt.subplots(len(splits), 2, figsize=size, sharex=True, sharey=True, squeeze=False)
        told = []
        for row, split in enumerate(splits):
            for axis, (reading, title) in zip(axes[row], inputs.items(), strict=True):
                for offset, (side, (label, marker)) in enumerate(styles.items()):
                    found = frame[(frame["split"] == split) & (frame["reading"] == reading) & (frame["branch"] == side)]
                    values = [found[found["name"].str.removesuffix("+MixBN") == name]["ACC"] for name in names]
                    mean, spread = [v.mean() for v in values], [v.std() if len(v) > 1 else 0 for v in values]
                    x = np.arange(len(names)) + 0.2 * (offset - 1)
                    axis.errorbar(x, mean, spread, fmt=marker, capsize=2, label=label)
                    points = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, mean, strict=True))
                    told.append(f"split by {split}, {title}, {label}: {points}")
                axis.set_title(f"{title}, split by {split}")
                axis.set_xticks(range(len(names)), names)
                axis.set(ylim=(-0.03, 1.03), xlim=(-0.5, len(names) - 0.5))
                axis.grid(axis="x", visible=False)
            axes[row][0].set_ylabel("accuracy")
        canvas.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return base.finish(
            canvas,
            "Accuracy without MixBN and through each of its branches; attacks go through the branch that is measured. "
            f"Points: mean over seeds; bars: their standard deviation. {_about([record])}.",
            f"Dot charts of accuracy. {'; '.join(told)}.",
        )


def ablation(records: list[Record]) -> Table:
    """Table 2 of the leukemia paper: its numbers, and ours on clean and hybrid images through each branch.

    Precision and F1 are binary, malignant positive, as the document's are (H4).
    """
    columns = {"ACC": "ACC", "binary PRE": "PRE", "binary F1": "F1", "AUC": "AUC"}
    rows = []
    for name, row in published_table("hpat", "table2").iterrows():
        about = {
            "training": name,
            "source": "the document",
            "images": "not said",
            "branch": "not said",
            "split": "not said",
        }
        rows.append(about | {metric: f"{100 * value:.1f}" for metric, value in row.items()})
    order = {row["training"]: number for number, row in enumerate(rows)}
    for record in records:
        keys = ["split", "name", "reading", "branch"]
        for (split, name, reading, branch), found in pd.DataFrame(record.rows).groupby(keys, sort=False):
            about = {"training": name, "source": _source(record), "images": "clean" if reading == "clean" else "hybrid"}
            about |= {"branch": "–" if branch == "shared" else branch, "split": split}
            rows.append(about | {header: _spread(found[column]) for column, header in columns.items()})
    frame = pd.DataFrame(rows).sort_values("training", key=lambda names: names.map(order), kind="stable")
    return Table(
        frame,
        "MixBN, in percent; precision and F1 of the malignant class. The document says neither on which images nor "
        f"through which branch; ours are means ± standard deviations over seeds. {PREVALENCE} {_about(records)}.",
    )
