"""Every figure type once, in one style. A figure carries its caption and its alt text wherever it is shown."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Canvas

from hpatlib.evaluation import Flips
from hpatlib.evidence import Record

STYLE = Path(__file__).with_name("hpat.mplstyle")
# Colours that colour-blind readers can tell apart (Okabe and Ito), one a method in every chapter.
COLOURS = {"STBO": "#0072B2", "STM": "#D55E00", "Sobol": "#009E73", "random": "#CC79A7"}


@dataclass(frozen=True)
class Figure:
    """A picture with a caption below it and alt text for those who cannot see it; notebooks and the book show all."""

    png: bytes
    caption: str
    alt: str

    def __post_init__(self) -> None:
        if not self.caption.strip() or not self.alt.strip():
            raise ValueError("a figure needs a caption and alt text")

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        picture = base64.b64encode(self.png).decode()
        page = (
            f'<figure class="hpat"><img alt="{html.escape(self.alt)}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )
        return {"text/html": page, "text/plain": f"{self.caption}\n[{self.alt}]"}, {}


@dataclass(frozen=True)
class Table:
    """A data frame with a caption above it."""

    frame: pd.DataFrame
    caption: str

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        head = f"<caption>{html.escape(self.caption)}</caption>"
        with pd.option_context("display.max_colwidth", None):
            page = self.frame.to_html(index=False, border=0, justify="left", classes="dataframe hpat")
        page = page.replace("<thead>", f"{head}\n<thead>", 1)
        return {
            "text/html": f'<div class="hpat-scroll">{page}</div>',
            "text/plain": f"{self.caption}\n{self.frame}",
        }, {}


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
        return _figure(
            canvas,
            f"Mean worst loss and ROI against queries; bands and bars are 95 % bootstrap intervals. {_label(record)}.",
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
    return Table(pd.DataFrame(rows), f"Mean worst loss and ROI with 95 % intervals over {_counts(records)} images.")


def _counts(records: list[Record]) -> str:
    return " or ".join(sorted({str(r.provenance["data"]["shown"]) for r in records}, key=int))


def _with_interval(row: dict, metric: str) -> str:
    return f"{row[metric]:.2f} [{row[f'{metric}_low']:.2f}, {row[f'{metric}_high']:.2f}]"


def _label(record: Record) -> str:
    device = record.provenance["device"]
    return f"{record.label[0].upper()}{record.label[1:]}, {device}"


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
                picture = result.images[name][pick].permute(1, 2, 0).cpu().numpy().clip(0, 1)
                axis.imshow(picture, interpolation="nearest")
                answer = f"{'✓' if right else '✗'} {classes[guess]} {100 * float(result.confidences[name][pick]):.0f} %"
                axis.set_title(answer, color="#222222" if right else "#B00020")
                axis.set(xticks=[], yticks=[], xlabel=name if row == len(picks) - 1 else "")
                axis.grid(False)
                axis.spines[:].set_visible(False)
            axes[row][0].set_ylabel(f"truth: {classes[int(result.labels[pick])]}")
        turned = [name for name in names if wrong[names.index(name), picks].any()]
        return _figure(
            canvas,
            f"One image of each class under each perturbation, with the model's answer. {_label(record)}.",
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
        return _figure(
            canvas,
            f"What each perturbation does to predictions; whiskers are 95 % bootstrap intervals. {_label(record)}.",
            f"Bar chart of accuracy, ROI and share of flipped correct predictions. Shares flipped: {told}.",
        )


def _figure(canvas: Canvas, caption: str, alt: str) -> Figure:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    plt.close(canvas)
    return Figure(buffer.getvalue(), caption, alt)
