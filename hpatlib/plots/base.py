"""What all figures share: style, names, caption and alt text."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike

from hpatlib import claims
from hpatlib.records import Record

STYLE = Path(__file__).with_name("hpat.mplstyle")
NETWORKS = {
    "simple_cnn": "SimpleCNN",
    "simple_cnn_bn": "SimpleCNN with batch norm",
    "resnet18": "ResNet18",
    "densenet121": "DenseNet-121",
    "densenet201": "DenseNet-201",
    "resnet50": "ResNet50",
    "vgg16": "VGG16",
    "seresnext50_32x4d": "SE-ResNeXt50",
    "efficientnet_b3": "EfficientNet-B3",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}
FEATURES = {
    "asm": "ASM",
    "contrast": "contrast",
    "homogeneity": "homogeneity",
    "correlation": "correlation",
    "dissimilarity": "dissimilarity",
}


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


def panels(images: dict[str, np.ndarray], titles: list[str], record: Record) -> Figure:
    """Pictures in rows: by the row's name ``[columns, C, H, W]`` in [0, 1]; ``titles``: one a column."""
    rows = list(images)
    with plt.style.context(STYLE):
        size = (1.5 * len(titles) + 0.5, 1.65 * len(rows))
        canvas, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
        for row, name in enumerate(rows):
            for axis, image in zip(axes[row], images[name], strict=True):
                picture(axis, image)
            axes[row][0].set_ylabel(name)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        shown = f"{', '.join(rows)}; columns: {', '.join(titles)}"
        changes = [
            f"{t} {255 * abs(p - images[rows[0]][0]).mean():.1f}" for t, p in zip(titles, images[rows[0]], strict=True)
        ]
        return finish(
            canvas,
            f"Phantom images. Rows: {shown}. {phantoms(record)}.",
            f"Grid of grey pictures. Rows: {shown}. Mean distance of the first row's pictures from its first one, in "
            f"grey levels of 255: {', '.join(changes)}.",
        )


def picture(axis: plt.Axes, image: ArrayLike, *, cmap: str = "gray") -> None:
    """Draw ``[C, H, W]`` or ``[H, W]`` in [0, 1], without ticks, grid and frame; ``cmap`` colours a single channel."""
    image = np.asarray(image).clip(0, 1)
    image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    axis.imshow(image, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def label(record: Record) -> str:
    """Profile, data, n, trainings and device, as every caption ends."""
    return f"{record.label}, {record.header.environment['device']}"


def phantoms(record: Record) -> str:
    """As the caption of pictures ends: they are of phantoms, whatever the record's numbers are of."""
    return (
        f"{record.header.profile.capitalize()} profile, phantoms and models trained on them, seed {record.header.seed}"
    )


def network(name: str) -> str:
    """A network's name, "resnet50 (imagenet)", as legends show it."""
    model, _, weights = name.partition(" (")
    start = {"imagenet)": "ImageNet", "scratch)": "from scratch"}.get(weights, weights.rstrip(")"))
    return f"{NETWORKS.get(model, model)} ({start})" if start else NETWORKS.get(model, model)


def verdicts(chapter: str) -> Table:
    """The chapter's claims with their verdicts, effects and what they were measured on, from the committed records."""
    return Table(claims.table(claims.ledger(chapter)), "Claims of this page, and what the records say.")


def stamp(record: Record) -> Table:
    """Where the numbers of the run on this page came from."""
    return Table(record.stamp(), "Provenance of the run on this page.")


def finish(canvas: Canvas, caption: str, alt: str) -> Figure:
    """Render and close ``canvas``."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    plt.close(canvas)
    return Figure(buffer.getvalue(), caption, alt)
