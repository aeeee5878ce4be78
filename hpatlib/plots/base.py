"""What all figures and tables share: how they become HTML, SVG and files, and what things are called in them."""

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure as Canvas
from PIL import Image

from hpatlib.records import Record

STYLE = Path(__file__).with_name("hpat.mplstyle")
INK = "#222222"  # text, axes and grid are drawn in it; on a page it becomes the colour of the page's own text
LONG = 12  # rows: a longer table is folded
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
# What hpatlib.worst_case says of an image, in the order of its suite.
FELLED_BY = ("clean", "PGD", "PGD, smaller ε", "APGD-CE", "APGD-margin", "FMN", "Square", "transfer", "stands")
PNG = "data:image/png;base64,"
FONT = re.compile(r"font: (?:(\w+) )?([\d.]+px) [^;]*(?:; |$)|font-family: [^;]*(?:; |$)")
UPRIGHT = re.compile(r"rotate\(-?0 [^)]*\)")
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
# The end of a number and what belongs to it: "0.9 [0.8, 1.0]", "0.9 ± 0.1" and "84.5 %" stay on one line.
TOGETHER = re.compile(r"(?<=\d) (?=[\[±%])|(?<=\d,) (?=[−+\-\d.]+\])|(?<=±) (?=\d)")


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure in two drawings, one for a wide and one for a narrow column, with its words and its numbers.

    ``draw(narrow)`` gives a canvas, which is closed here; ``data`` is the frame that was drawn; ``caption`` stands
    below; ``alt`` says in at most 250 characters what kind of chart it is, what it compares and what it shows; ``name``
    is what links and the downloaded table are called by, once on a page.

    Raises ``ValueError`` without a caption or an alt text, for a long alt text, and for a name that no link can have.
    """

    draw: Callable[[bool], Canvas] = field(repr=False)
    data: pd.DataFrame = field(repr=False)
    caption: str
    alt: str
    name: str
    wide: str = field(init=False, repr=False)
    narrow: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.caption.strip() or not self.alt.strip():
            raise ValueError("a figure needs a caption and alt text")
        if len(self.alt) > 250:
            raise ValueError(f"alt text has at most 250 characters, found {len(self.alt)}: the numbers are in the data")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"a figure's name has small letters, digits and hyphens, found {self.name!r}")
        # Drawn now, for an error while a notebook shows an object would be swallowed.
        for width, narrow in (("wide", False), ("narrow", True)):
            object.__setattr__(self, width, _svg(self.draw(narrow)))

    def save(self, path: str | Path, *, narrow: bool = False) -> None:
        """Write one of the two drawings as SVG, PDF or PNG, by the suffix of ``path``; ink is black there."""
        with plt.style.context(STYLE):
            canvas = self.draw(narrow)
            canvas.savefig(path, facecolor="white", transparent=False)
            plt.close(canvas)

    def html(self) -> str:
        """Both drawings, of which a page without a style sheet shows the wide one; the caption; the data, folded."""
        label, rounded = html.escape(self.alt), self.data.map(_rounded)
        show = {"wide": "display:block;max-width:52rem", "narrow": "display:none;max-width:28rem"}
        drawings = "".join(
            getattr(self, width).replace(
                "<svg",
                f'<svg class="hpat-{width}" role="img" aria-label="{label}" '
                f'style="{style};width:100%;height:auto;margin:auto"',
                1,
            )
            for width, style in show.items()
        )
        table = rounded.to_csv(index=False, lineterminator="\n")
        return (
            f'<div class="hpat-figure"><figure class="hpat" id="fig-{self.name}">{drawings}'
            f'<figcaption><span class="hpat-number"></span>{html.escape(self.caption)}</figcaption></figure>'
            f'<details class="hpat-data"><summary>The figure as a table</summary>{_scrolled(_rows(rounded))}'
            f'<a download="{self.name}.csv" href="data:text/csv;charset=utf-8,{quote(table)}">Download as CSV</a>'
            "</details></div>"
        )

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/html": self.html(), "text/plain": f"{self.caption}\n[{self.alt}]"}, {}


@dataclass(frozen=True, eq=False)
class Table:
    """A data frame with a caption above it, folded where it is long; ``name``: what links call it (none: no link)."""

    frame: pd.DataFrame
    caption: str
    name: str = ""

    def html(self) -> str:
        """The table without columns that say nothing; numbers and their intervals stay on one line."""
        said = ~self.frame.astype(str).isin(["", "–"]).all() | self.frame.empty
        rows = _scrolled(_rows(self.frame.loc[:, said]))
        if len(self.frame) > LONG:
            rows = f"<details><summary>All {len(self.frame)} rows</summary>{rows}</details>"
        link = f' id="tab-{self.name}"' if self.name else ""
        caption = f'<figcaption><span class="hpat-number"></span>{html.escape(self.caption)}</figcaption>'
        return f'<figure class="hpat-table"{link}>{caption}{rows}</figure>'

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/html": self.html(), "text/plain": f"{self.caption}\n{self.frame}"}, {}


def _rows(frame: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in frame)
    rows = ("".join(f"<td>{_cell(value)}</td>" for value in row) for row in frame.itertuples(index=False))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="dataframe hpat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(value: object) -> str:
    return html.escape(TOGETHER.sub("\N{NO-BREAK SPACE}", "" if pd.isna(value) else str(value)))


def _scrolled(table: str) -> str:
    """A wide or long table in a box of its own, which the keyboard reaches."""
    return f'<div class="hpat-scroll" tabindex="0" style="overflow:auto;max-height:32rem">{table}</div>'


def _rounded(value: object) -> object:
    """A number to four digits that count, text as it is."""
    return float(f"{value:.4g}") + 0.0 if isinstance(value, float) and not pd.isna(value) else value


def _svg(canvas: Canvas) -> str:
    """The drawing as an SVG element for a page: the same for the same drawing, whatever the day, and closes it.

    Text is text, in the page's own font: it is laid out in DejaVu Sans, which is wider than what pages are set in.
    """
    buffer = io.BytesIO()
    with plt.style.context(STYLE):
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(canvas)
    root = ElementTree.fromstring(buffer.getvalue())
    box = root.attrib["viewBox"]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', buffer.getvalue().decode()))
    mark = hashlib.blake2b(buffer.getvalue(), digest_size=4).hexdigest()  # two figures of a page share no id
    _slim(root, used, mark)
    root.attrib.clear()
    root.attrib |= {"viewBox": box, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    return ElementTree.tostring(root, encoding="unicode")


def _slim(node: ElementTree.Element, used: set[str], mark: str) -> None:
    """Take off what a page has no use for, and what would hold for all of it: fonts, ids, groups, style sheets."""
    kept: list[ElementTree.Element] = []
    for child in node:
        child.tag, child.tail = child.tag.rpartition("}")[2], None
        _slim(child, used, mark)
        if child.tag == "g" and not child.attrib:
            kept += child
        elif child.tag not in ("metadata", "style") and (child.tag != "defs" or len(child)):
            kept.append(child)
    node[:] = kept
    node.tag = node.tag.rpartition("}")[2]
    node.text = node.text if node.tag == "text" else None
    given = {name.rpartition("}")[2]: " ".join(value.split()) for name, value in node.attrib.items()}
    node.attrib.clear()
    for name, value in given.items():
        if name == "id":
            value = f"{mark}-{value}" if value in used else ""
        elif name == "style":
            value = FONT.sub(_sized, value).replace(INK, "currentColor")
        elif name == "transform":
            value = UPRIGHT.sub("", value)
        elif name == "href" and value.startswith(PNG):
            value = _smaller(value)
        elif name != "href":
            value = LONG_NUMBER.sub(lambda m: f"{float(m[0]):.2f}", value)
        value = re.sub(r"(url\(#|^#)(?=[a-z0-9]+)", rf"\g<1>{mark}-", value)
        if value:
            node.attrib[name] = value


def _sized(font: re.Match[str]) -> str:
    """Size and weight of a font without its family, whichever way Matplotlib writes it."""
    weight, size = font.groups()
    return (f"font-size: {size}; " if size else "") + (f"font-weight: {weight}; " if weight else "")


def _smaller(picture: str) -> str:
    """A PNG in a data address without its transparency, and without colours where it has none."""
    shown = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix(PNG)))).convert("RGB")
    red, green, blue = shown.split()
    buffer = io.BytesIO()
    (red if red.tobytes() == green.tobytes() == blue.tobytes() else shown).save(buffer, format="PNG", optimize=True)
    return PNG + base64.b64encode(buffer.getvalue()).decode()


def named(name: str, *records: Record) -> str:
    """A name for links: a page that shows phantoms beside real images has each once."""
    return name if not records or any(record.real for record in records) else f"{name}-phantom"


def label(record: Record) -> str:
    """Profile, data, n, trainings and device, as every caption ends."""
    return f"{record.label}, {record.device}"


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


def percent(value: float, low: float, high: float, *, sign: str = "") -> str:
    """A share or a difference with its interval, in per cent or points: "84.5 [80.1, 88.0]"; ``sign`` "+": always."""
    number, start, end = (f"{100 * each:{sign}.1f}".replace("-", "−") for each in (value, low, high))
    return f"{number} [{start}, {end}]"


def table(rows: Any, caption: str, name: str, *records: Record) -> Table:
    """A table of ``rows``, a frame or a list of dictionaries, whose caption ends with what it was measured on."""
    return Table(pd.DataFrame(rows), f"{caption} {'; '.join(map(label, records))}.", named(name, *records))


def stamp(record: Record) -> Table:
    """Where the numbers of the run on this page came from."""
    return Table(record.stamp(), "Provenance of the run on this page.", named("provenance", record))
