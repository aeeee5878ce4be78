"""The chart kit: a function a kind of chart, each of which makes a `Panel`, and `figure`, which arranges panels.

A chart is drawn from a tidy frame, such as `Cells.table()` (conditions, ``value``, ``low``, ``high``), and keeps the
rows it drew: they become the figure's table. Shares are drawn in per cent where ``percent`` names their axis; the rows
stay shares.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike

from hpatlib.plots import base
from hpatlib.plots.base import INK, STYLE, Figure
from hpatlib.records import Record
from hpatlib.statistics import Estimate

WIDE, NARROW = 7.2, 3.6  # inches of the two drawings
LINE = 1.25  # of the text's size, from one line of text to the next
SLIM, BROAD = 16, 26  # characters in a line of a row's name, in a narrow and in a wide drawing
CHARACTER = 0.075  # inches a character takes at most, on average, at 8 points
# After Okabe and Ito; darker or paler than theirs where one of them would be too near to white or to a dark page.
PAINT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A67C00", "#3D9BD9", "#777777", "#A0428C")
MARKERS = "osD^vXP*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2)), (0, (2, 1)), "-.", "--")
GREY = "#777777"
BOLD = 1.6  # the usual width of a line; thinner ones stand in the background
RULE: dict[str, Any] = {
    "color": INK,
    "lw": 0.9,
    "ls": (0, (4, 2)),
    "alpha": 0.7,
    "zorder": 1,
}  # a value to compare with
SHARE = re.compile(r", (%|points)$")  # of a label whose axis shows shares, which rows hold as they are
HEAD = "head of a panel"  # finds its texts again


class Style(NamedTuple):
    """How a series looks: its label, colour, marker, line style and width; ``hollow``: a value from a document."""

    label: str
    colour: str
    marker: str = "o"
    line: str | tuple = "-"
    width: float = BOLD
    hollow: bool = False


class End(NamedTuple):
    """Where a line ends that is labelled there, in the units of its axes."""

    x: float
    y: float
    style: Style


@dataclass(frozen=True)
class Panel:
    """One chart: what draws it (axes, narrow → the line ends to label), the rows drawn, and the words around it.

    ``height``: inches of the whole panel, in a wide and in a narrow drawing; ``keys``: what a legend must explain;
    ``percent``: the axis that shows shares in per cent, "x" or "y"; ``axes``: settings of the axes;
    ``whole``: it has a row of its own.
    """

    draw: Callable[[Axes, bool], Sequence[End]]
    data: pd.DataFrame
    height: tuple[float, float]
    keys: tuple[Style, ...] = ()
    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    percent: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False


def frames(cells: Mapping[Any, Estimate], *columns: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimates by key as charts take them: a row each with its 95 % interval, and a row a training."""
    table, each = [], []
    for key, estimate in cells.items():
        about, (low, high) = dict(zip(columns, key, strict=True)), estimate.interval()
        table.append(about | {"value": estimate.value, "low": low, "high": high})
        each += [about | {"value": value} for value in estimate.values if estimate.trainings]
    return pd.DataFrame(table), pd.DataFrame(each, columns=[*columns, "value"])


def styles(names: Sequence[str], labels: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style each, in the order of the palette: told apart by colour, marker and line style."""
    looks: Any = zip(PAINT * 9, MARKERS * 9, DASHES * 9, strict=True)
    return {name: Style((labels or {}).get(name, name), *look) for name, look in zip(names, looks, strict=False)}


def published(style: Style, label: str = "published") -> Style:
    """The style of a document's own value beside a series of ours: hollow, in the same colour."""
    return style._replace(label=label, hollow=True, line=(0, (1, 1.5)), width=1.0)


def curves(
    table: pd.DataFrame,
    x: str,
    by: str,
    looks: Mapping[str, Style],
    *,
    ticks: Sequence[float] | None = None,
    ends: bool = True,
    bands: bool = True,
    line: float | None = None,
    height: tuple[float, float] = (2.5, 2.5),
    **words: Any,
) -> Panel:
    """A line a value of ``by`` over the column ``x``: numbers with bands, or categories in their order with whiskers.

    ``ticks``: numbers to show below; ``ends``: label lines where they end, instead of a legend; ``bands``: draw the
    intervals of lines of the usual width; ``line``: a value to compare with. On a logarithmic axis a zero stands a bit
    left of the smallest number.
    """
    table = table[table[by].isin(list(looks))]
    numeric = pd.api.types.is_numeric_dtype(table[x])
    order = list(dict.fromkeys(table[x]))
    present = [name for name in looks if name in set(table[by])]
    log = words.get("axes", {}).get("xscale") == "log"
    least, most = table[x][table[x] > 0].min() if log else 1, table[x].max() if log else 1
    zero = least * min(0.5, (least / most) ** 0.15)
    log_y = words.get("axes", {}).get("yscale", "linear") != "linear"

    def place(values: Iterable[Any]) -> np.ndarray:
        if not numeric:
            return np.array([order.index(value) for value in values], float)
        return np.array([zero if log and value == 0 else value for value in values], float)

    def draw(axis: Axes, narrow: bool) -> list[End]:
        found = []
        if line is not None:
            axis.axhline(line, **RULE)
        for number, name in enumerate(present):
            rows, look = table[table[by] == name], looks[name]
            at, value, low, high = place(rows[x]), *(rows[c].to_numpy(float) for c in ("value", "low", "high"))
            drawn: dict[str, Any] = {"color": look.colour, "ls": look.line, "lw": look.width}
            if not numeric:
                at = at + 0.06 * (number - (len(present) - 1) / 2)  # side by side, not on top
            mark, some = look.marker if look.width > 0.8 else "", (number, 7) if len(rows) > 12 else None
            face = "none" if look.hollow else look.colour
            axis.plot(at, value, marker=mark, mfc=face, ms=4, markevery=some, **drawn)
            if not bands or look.width < BOLD:
                pass
            elif not numeric or look.line == "none":
                axis.vlines(at, low, high, color=look.colour, lw=0.8, alpha=0.7)
            else:
                axis.fill_between(at, low, high, alpha=0.13, lw=0, color=look.colour)
            if ends and look.label and look.line != "none":
                known = np.flatnonzero(np.isfinite(value))[-1]
                found.append(End(at[known], value[known], look))
        if not log_y:
            axis.set_ylim(*_view(table if bands else table.assign(low=table["value"], high=table["value"])))
        if not numeric:
            axis.set_xticks(range(len(order)), [str(each) for each in order])
        elif ticks is not None:
            axis.set_xticks(place(ticks), [_short(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", visible=False)
        return found

    keys = tuple(looks[name] for name in present if looks[name].label and (looks[name].line == "none" or not ends))
    return Panel(draw, _drawn(table, [x, by], by, looks), height, keys, **words)


def dots(
    table: pd.DataFrame,
    rows: str,
    looks: Mapping[str, Style],
    by: str | None = None,
    *,
    each: pd.DataFrame | None = None,
    names: Mapping[str, str] | None = None,
    published: pd.DataFrame | None = None,
    line: float | None = None,
    **words: Any,
) -> Panel:
    """Dots with intervals along a row a value of ``rows``, one below the other a dot a value of ``by``.

    ``by`` None: one dot a row, in the row's own style. ``each``: `Cells.each` of the same cells, as small dots;
    ``names``: what the rows are called; ``line``: a value to compare with. ``published``: the document's ``value``,
    hollow and joined to ours as a dumbbell.
    """
    column = by or rows
    table = table[table[column].isin(list(looks))]
    order = list(dict.fromkeys(table[rows]))
    present = [name for name in looks if name in set(table[column])]
    keyed, step = list(dict.fromkeys([rows, column])), 0.74 / len(present) if by else 0.0
    called = [(names or {}).get(row, looks[row].label if by is None else str(row)) for row in order]

    def place(frame: pd.DataFrame, name: str) -> np.ndarray:
        shift = step * (present.index(name) - (len(present) - 1) / 2) if by else 0
        return np.array([order.index(row) for row in frame[rows]], float) + shift

    def draw(axis: Axes, narrow: bool) -> list[End]:
        if line is not None:
            axis.axvline(line, **RULE)
        for name in present:
            shown, look = table[table[column] == name], looks[name]
            at = place(shown, name)
            if published is not None:
                both = shown.merge(published, on=keyed, suffixes=("", " printed"))
                ends, y = (both["value"], both["value printed"]), place(both, name)
                axis.hlines(y, *ends, color=look.colour, lw=2.2, alpha=0.3, zorder=1)
                axis.plot(ends[1], y, look.marker, color=look.colour, mfc="none", ms=5.5, zorder=3)
            axis.hlines(at, shown["low"], shown["high"], color=look.colour, lw=1.2, zorder=2)
            axis.plot(shown["value"], at, look.marker, color=look.colour, ms=5.5, zorder=4)
            if each is not None and len(small := each[each[column] == name]):
                above = place(small, name) - (0.3 * step if by else 0.26)
                axis.plot(small["value"], above, "o", color=look.colour, ms=2.2, mew=0, alpha=0.7, zorder=2)
        wrapped = [_wrap(name, SLIM if narrow else BROAD) for name in called]
        axis.set_yticks(range(len(order)), wrapped)
        axis.set_ylim(len(order) - 0.45, -0.55)
        axis.grid(axis="y", visible=False)
        axis.set_yticks(np.arange(len(order) - 1) + 0.5 if by else [], minor=True)
        axis.grid(axis="y", which="minor")
        return []

    def tall(width: int) -> float:
        deep = max(_wrap(name, width).count("\n") + 1 for name in called)
        return len(order) * max(0.27, 0.15 * deep + 0.05, 0.17 * len(present) + 0.08 if by else 0) + 0.75

    data = _drawn(table, keyed, column if by else None, looks, each)
    data[rows] = [called[order.index(row)].replace("\n", " ") for row in table[rows]]
    keys = tuple(looks[name]._replace(line="none") for name in present) if by else ()
    if published is not None:
        data = data.assign(published=table[keyed].merge(published, "left", keyed)["value"])
        keys += (Style("published", GREY, "o", "none", hollow=True),) * bool(data["published"].notna().any())
    return Panel(draw, data, (tall(BROAD), tall(SLIM)), keys, **words)


def forest(table: pd.DataFrame, looks: Mapping[str, Style], **words: Any) -> Panel:
    """A row an effect: ``label``, ``value``, ``low``, ``high``, ``threshold`` (a tick) and ``verdict`` (its style)."""
    rows = table.assign(row=[str(number) for number in range(len(table))])
    own = {row.row: looks[row.verdict]._replace(label=row.label) for row in rows.itertuples()}
    panel = dots(rows, "row", own, **words)

    def draw(axis: Axes, narrow: bool) -> list[End]:
        axis.plot(table["threshold"], range(len(table)), "|", color=INK, ms=9, mew=1.4, zorder=3)
        return list(panel.draw(axis, narrow))

    keys = tuple(look._replace(line="none") for name, look in looks.items() if name in set(table["verdict"]))
    columns = ["label", "value", "low", "high", "threshold", "verdict"]
    return replace(panel, draw=draw, keys=keys, data=table[columns].reset_index(drop=True))


def heat(table: pd.DataFrame, x: str, y: str, **words: Any) -> Panel:
    """Shares over two numeric columns as coloured squares with their value in per cent."""
    grid = table.pivot(index=y, columns=x, values="value")
    height = 0.3 * len(grid) + 0.85

    def draw(axis: Axes, narrow: bool) -> list[End]:
        axis.imshow(grid, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none")
        for (i, j), value in np.ndenumerate(grid.to_numpy()):
            ink = "#ffffff" if value < 0.44 else "#000000"  # of viridis, where both can be read equally well
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
        axis.set_xticks(range(grid.shape[1]), [f"{value:g}" for value in grid.columns])
        axis.set_yticks(range(grid.shape[0]), [f"{value:g}" for value in grid.index])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        return []

    return Panel(draw, table[[x, y, "value"]].reset_index(drop=True), (height, height), **words)


def matrix(table: pd.DataFrame, rows: str, columns: str, by: str, looks: Mapping[str, Style], **words: Any) -> Panel:
    """A dot for each row and column, in the style of its value of ``by``: which checks find something where."""
    down, across = (list(dict.fromkeys(table[name])) for name in (rows, columns))

    def draw(axis: Axes, narrow: bool) -> list[End]:
        for name, look in looks.items():
            shown = table[table[by] == name]
            at = [across.index(value) for value in shown[columns]], [down.index(value) for value in shown[rows]]
            axis.plot(*at, look.marker, color=look.colour, mfc="none" if look.hollow else look.colour, ms=8)
        axis.set_xticks(range(len(across)), list(map(str, across)))
        axis.set_yticks(range(len(down)), [_wrap(str(name), SLIM if narrow else BROAD) for name in down])
        axis.set(xlim=(-0.5, max(len(across), 2 if narrow else 4) - 0.5), ylim=(len(down) - 0.5, -0.5))
        axis.tick_params(axis="x", size=0)
        axis.spines[:].set_visible(False)
        return []

    height = 0.27 * len(down) + 0.8
    keys = tuple(look._replace(line="none") for name, look in looks.items() if name in set(table[by]))
    return Panel(draw, table.reset_index(drop=True), (height, height), keys, **words)


def doses(
    each: pd.DataFrame, x: str, by: str, looks: Mapping[str, Style], *, line: float | None = None, **words: Any
) -> Panel:
    """Dose and response: a small dot a training, a large one their mean; ``line``: the dose that is needed."""
    present = [name for name in looks if name in set(each[by])]

    def draw(axis: Axes, narrow: bool) -> list[End]:
        if line is not None:
            axis.axvline(line, **RULE)
        for name in present:
            mine, look = each[each[by] == name], looks[name]
            axis.plot(mine[x], mine["value"], look.marker, color=look.colour, ms=3, mew=0, alpha=0.5)
            axis.plot(mine[x].mean(), mine["value"].mean(), look.marker, color=look.colour, ms=7.5, mec=INK, mew=0.7)
        return []

    data = each[[x, by, "value"]].assign(**{by: [looks[name].label for name in each[by]]}).reset_index(drop=True)
    keys = tuple(looks[name]._replace(line="none") for name in present)
    return Panel(draw, data, (2.7, 2.6), keys, **words)


def strip(
    images: Sequence[Sequence[ArrayLike]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    notes: Sequence[Sequence[str]] | None = None,
    marks: Callable[[Axes, int, int, np.ndarray], None] | None = None,
    cmaps: Sequence[str] | None = None,
    data: pd.DataFrame,
    **words: Any,
) -> Panel:
    """Pictures ``[C, H, W]`` or ``[H, W]`` in [0, 1], a list a row; where more than four stand side by side, a narrow
    drawing has rows for columns.

    ``notes``: a line above each picture; ``marks(axes, row, column, extent)``: what is drawn onto one; ``cmaps``: of
    single channels, a row each; ``data``: the numbers that belong to the pictures.
    """
    head = 0.0 if notes is None else 0.2

    def draw(axis: Axes, narrow: bool) -> list[End]:
        turned = narrow and len(columns) > 4
        down, across = (columns, rows) if turned else (rows, columns)
        pitch, high = 1.06, 1.06 + head
        for i, line in enumerate(images):
            for j, image in enumerate(line):
                a, b = (j, i) if turned else (i, j)
                shown = np.asarray(image, float).clip(0, 1)
                shown = np.moveaxis(shown, 0, -1) if shown.ndim == 3 else shown
                extent = np.array([b * pitch, b * pitch + 1, a * high + head + 1, a * high + head])
                cmap = "gray" if cmaps is None else cmaps[i]
                axis.imshow(shown, extent=tuple(extent), cmap=cmap, vmin=0, vmax=1, interpolation="none")
                if marks is not None:
                    marks(axis, i, j, extent)
                if notes is not None and notes[i][j]:
                    _words(axis, extent[0] + 0.5, extent[3], notes[i][j], 1, ha="center", fontsize=7.5)
        width = int(_cell_width(narrow, len(across)) / CHARACTER)
        for b, name in enumerate(across):
            _words(axis, b * pitch + 0.5, 0, _wrap(name, width), 1, ha="center", fontweight="bold")
        for a, name in enumerate(down):
            _words(axis, -0.05, a * high + head + 0.5, _wrap(name, 12), ha="right")
        axis.set(xlim=(0, len(across) * pitch), ylim=(len(down) * high, 0), aspect="equal")
        axis.axis("off")
        return []

    def tall(narrow: bool) -> float:
        down, across = (len(columns), len(rows)) if narrow and len(columns) > 4 else (len(rows), len(columns))
        return down * (1.06 + head) * _cell_width(narrow, across) / 1.06 + 0.45

    return Panel(draw, data, (tall(False), tall(True)), whole=True, **words)


def _cell_width(narrow: bool, count: int) -> float:
    """Inches of one of ``count`` pictures beside each other, with the row's name left of them."""
    return min(1.3, ((NARROW if narrow else WIDE) - 1.0) / count)


def chain(boxes: pd.DataFrame) -> Panel:
    """A row of boxes with arrows between them, each of a line of ``boxes``; one below the other in a narrow drawing."""
    count = len(boxes)

    def draw(axis: Axes, narrow: bool) -> list[End]:
        for number, words in enumerate(boxes.astype(str).itertuples(index=False, name=None)):
            at = (number + 0.5) / count
            width = 40 if narrow else int(WIDE / count / CHARACTER) - 2
            lines, middle = _wrap("\n".join(words), width), (0.5, 1 - at) if narrow else (at, 0.5)
            half = (0.3, 0.36 / count) if narrow else (0.5 / count - 0.014, 0.42)
            corner = (middle[0] - half[0], middle[1] - half[1])
            axis.add_patch(plt.Rectangle(corner, 2 * half[0], 2 * half[1], fill=False, ec=PAINT[0]))
            _words(axis, *middle, lines, ha="center", fontsize=7.5)
            if number:
                edge = number / count
                ends = [(0.5, 1 - edge - d) if narrow else (edge + d, 0.5) for d in (0.014, -0.014)]
                axis.annotate("", ends[0], ends[1], arrowprops={"arrowstyle": "->", "color": INK})
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.axis("off")
        return []

    return Panel(draw, boxes, (0.9, 0.55 * count), whole=True)


def figure(
    shown: Sequence[Panel],
    *,
    name: str,
    caption: str,
    alt: str,
    record: Record | None = None,
    columns: int = 2,
    share: str = "",
) -> Figure:
    """Panels side by side, ``columns`` in a row, in a wide drawing, and one below the other in a narrow one.

    ``share``: the axes that all panels have in common: "x", "y" or "xy". Whatever lines are not labelled at their ends
    has one legend above. ``record``: what the caption says at its end, and the name where it is of phantoms.
    """

    def draw(narrow: bool) -> Canvas:
        with plt.style.context(STYLE):
            return _arranged(shown, 1 if narrow else min(columns, len(shown)), share, narrow)

    data = pd.concat([p.data if len(shown) == 1 else _called(p) for p in shown], ignore_index=True)
    if record is not None:
        name, caption = base.named(name, record), f"{caption} {base.label(record)}."
    return Figure(draw, data, caption, alt, name)


def _called(panel: Panel) -> pd.DataFrame:
    """The rows of a panel, which say of which one they are, and of what: shares, which its axis shows in per cent."""
    data, words = panel.data.copy(), (panel.title, SHARE.sub(", of 1", panel.ylabel or panel.xlabel))
    data.insert(0, "panel", ": ".join(filter(None, words)).replace("\n", " "))
    return data


def panels(images: Mapping[str, np.ndarray], titles: Sequence[str], record: Record) -> Figure:
    """Pictures of phantoms in rows: by the row's name ``[columns, C, H, W]`` in [0, 1]; ``titles``: one a column."""
    away = "mean distance from the row's first, grey levels"
    data = pd.DataFrame(
        [
            {"row": row, "picture": title, away: 255 * float(abs(picture - several[0]).mean())}
            for row, several in images.items()
            for title, picture in zip(titles, several, strict=True)
        ]
    )
    shown = strip([list(row) for row in images.values()], list(images), list(titles), data=data)
    return figure(
        [shown],
        name="pictures",
        caption=f"Phantom images. Rows: {', '.join(images)}; columns: {', '.join(titles)}. {base.phantoms(record)}.",
        alt=textwrap.shorten(f"Grid of grey pictures. Rows: {', '.join(images)}; columns: {', '.join(titles)}.", 250),
    )


def _arranged(shown: Sequence[Panel], columns: int, share: str, narrow: bool) -> Canvas:
    """The canvas of a figure: panels in rows, words and ticks around them, labels at the ends of lines."""
    width, rows = NARROW if narrow else WIDE, _in_rows(shown, columns)
    heights = [max(panel.height[narrow] for panel in row) for row in rows]
    keys = list(dict.fromkeys(key for panel in shown for key in panel.keys))
    room = max((len(key.label) for key in keys), default=1) * CHARACTER + 0.55
    beside = max(1, min(len(keys), int(width / room)))
    heights[0] += 0.18 * -(-len(keys) // beside) + 0.1 if keys else 0.0
    canvas = plt.figure(figsize=(width, sum(heights)))
    parts = canvas.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    drawn: list[tuple[Axes, Sequence[End]]] = []
    spot: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
        count = 1 if row[0].whole else columns
        deep = max(panel.ylabel.count("\n") + 1 if panel.ylabel else 0 for panel in row)
        cells = part.subplots(1, count, squeeze=False)[0]
        for column, (axis, panel) in enumerate(zip(cells, row, strict=False)):
            axis.set(**{key: value for key, value in panel.axes.items() if key.endswith("scale")})
            drawn.append((axis, panel.draw(axis, narrow)))
            axis.set(**{key: value for key, value in panel.axes.items() if not key.endswith("scale")})
            _scales(axis, panel)
            last = "x" not in share or number == len(rows) - 1 or column >= len(rows[number + 1])
            axis.set_xlabel(panel.xlabel if last else "")
            axis.tick_params(labelbottom=last, labelleft="y" not in share or not column)
            title = _wrap(panel.title, int((width / count - 0.3) / CHARACTER / 1.2))
            label, top = "" if "y" in share and column else panel.ylabel, 4 + (8 * LINE * deep + 2 if deep else 0)
            for text, up, weight in ((label, 4, "normal"), (title, top, "bold")):
                axis.annotate(text, (0, 1), (0, up), gid=HEAD, weight=weight, **spot)
        for axis in cells[len(row) :]:
            axis.set_visible(False)
    for name in share:
        _common([axis for (axis, _), panel in zip(drawn, shown, strict=True) if not panel.whole], name)
    if keys:
        parts[0].legend(
            handles=list(map(_handle, keys)), loc="outside upper left", ncols=beside, borderpad=0.1, columnspacing=1.2
        )
    _settled(canvas, drawn)
    return canvas


def _in_rows(shown: Sequence[Panel], columns: int) -> list[list[Panel]]:
    """Panels in rows of at most ``columns``; one that is whole has a row of its own."""
    rows: list[list[Panel]] = []
    for panel in shown:
        if panel.whole or not rows or rows[-1][0].whole or len(rows[-1]) == columns:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _common(axes: Sequence[Axes], name: str) -> None:
    """Give the axis called ``name`` of all of ``axes`` the same limits."""
    limits = np.array([getattr(axis, f"get_{name}lim")() for axis in axes])
    down = limits[0, 0] > limits[0, 1]
    low, high = (limits.max(0)[0], limits.min(0)[1]) if down else (limits.min(0)[0], limits.max(0)[1])
    for axis in axes:
        getattr(axis, f"set_{name}lim")(low, high)


def _handle(key: Style) -> Line2D:
    face = "none" if key.hollow else key.colour
    look: dict[str, Any] = {"color": key.colour, "marker": key.marker, "mfc": face, "ls": key.line, "lw": key.width}
    return Line2D([], [], label=key.label.replace("\n", " "), ms=5, **look)


def _scales(axis: Axes, panel: Panel) -> None:
    """Numbers at the ticks as people write them: per cent for shares, 0.1 and 100 on logarithmic axes."""
    for name, one in (("x", axis.xaxis), ("y", axis.yaxis)):
        if name == panel.percent:
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}".replace("-", "−")))
        elif panel.axes.get(f"{name}scale") in ("log", "symlog") and not isinstance(
            one.get_major_locator(), FixedLocator
        ):
            low, high = sorted(one.get_view_interval())
            if panel.axes[f"{name}scale"] == "log":
                steps = (1,) if high / low > 300 else (1, 3) if high / low > 8 else (1, 1.5, 2, 3, 5, 7)
                one.set_major_locator(LogLocator(subs=steps))
            one.set_minor_locator(NullLocator())
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _settled(canvas: Canvas, ends: Sequence[tuple[Axes, Sequence[End]]]) -> None:
    """Lay the axes out; then words begin at the left of their panel, and the labels of lines are moved apart."""
    spot: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    labelled = {
        axis: [(end, axis.annotate(_wrap(end.style.label, 18), (1, end.y), (20, 0), **spot)) for end in found]
        for axis, found in ends
    }
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    scale = canvas.dpi / 72
    for axis, mine in labelled.items():
        box, names = axis.get_window_extent(), axis.yaxis.get_tightbbox() if axis.axison else None
        left = min(0.0, (names.x0 - box.x0) / scale) if names else 0.0
        for head in (text for text in axis.texts if text.get_gid() == HEAD):
            head.set_position((left, head.get_position()[1]))
        if names and axis.yaxis_inverted():  # rows: their names begin there too
            axis.tick_params(axis="y", pad=-left)
            plt.setp(axis.get_yticklabels(), horizontalalignment="left")
        if not mine:
            continue
        wanted = [axis.transData.transform((end.x, end.y))[1] / scale for end, _ in mine]
        sizes = [8 * LINE * (1 + text.get_text().count("\n")) for _, text in mine]
        places = spread(wanted, sizes, box.y0 / scale, box.y1 / scale)
        for (end, text), want, place in zip(mine, wanted, places, strict=True):
            text.set_position((20, place - want))
            start = (axis.transData.transform((end.x, end.y))[0] - box.x1) / scale + 3
            path = np.array([(start, want), (5, want), (17, place)]) + np.array([box.x1 / scale, 0])
            line = Line2D(*(path * scale / canvas.bbox.size).T, transform=canvas.transFigure, clip_on=False)
            line.set(color=end.style.colour, lw=0.6, alpha=0.8)
            canvas.add_artist(line)


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels of these ``sizes`` that do not overlap, as near to the ``wanted`` ones as can be.

    Least squares under the gaps, by pooling neighbours that would overlap; within [low, high] where they fit.
    """
    order = np.argsort(np.asarray(wanted, float), kind="stable")
    height = np.asarray(sizes, float)[order]
    offset = np.concatenate([[0], np.cumsum((height[1:] + height[:-1]) / 2)])
    blocks: list[list[float]] = []  # [sum, count] of what pooled labels want, their offsets taken off
    for value in np.asarray(wanted, float)[order] - offset:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    flat = np.concatenate([np.full(int(count), total / count) for total, count in blocks])
    top = high - height[-1] / 2 - offset[-1]
    flat = np.maximum(np.minimum(flat, top), min(low + height[0] / 2, top))
    places = np.empty(len(order))
    places[order] = flat + offset
    return places.tolist()


def _view(table: pd.DataFrame) -> tuple[float, float]:
    """Limits that show all values, and intervals up to once the range of values beyond them."""
    low, high = table["value"].min(), table["value"].max()
    span = (high - low) or 1.0
    below, above = max(low - span, table["low"].min()), min(high + span, table["high"].max())
    return float(np.nanmin([low, below]) - 0.05 * span), float(np.nanmax([high, above]) + 0.05 * span)


def _drawn(
    table: pd.DataFrame,
    columns: list[str],
    by: str | None,
    looks: Mapping[str, Style],
    each: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The rows that a chart shows, series by their labels; ``each``: the value of each training, in one column."""
    shown = table[[*columns, *(c for c in ("value", "low", "high") if c in table)]].reset_index(drop=True)
    if each is not None and len(each):
        values = each.assign(**{"each training": each["value"].map("{:.3g}".format)})
        values = values.groupby(columns, sort=False, observed=True)["each training"].agg("; ".join)
        shown = shown.merge(values, "left", left_on=columns, right_index=True)
    if by is not None:
        shown[by] = [looks[name].label.replace("\n", " ") or name for name in shown[by]]
    return shown


def _short(number: float) -> str:
    """A number at a tick: 16, 0.3, 1/32."""
    parts = 1 / number if number else 0
    return f"1/{parts:g}" if parts in (4, 8, 16, 32, 64) else f"{number:g}"


def _words(axis: Axes, x: float, y: float, text: str, up: float = 0.5, **style: Any) -> None:
    """Lines of text around (x, y), each anchored on its own, for a page's font is narrower than the one of the layout.

    ``up``: the share of the lines that stands above ``y``: 1 for a text on it, 0.5 for one in the middle.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        rise = (up * len(lines) - number - 0.5) * 8 * LINE
        axis.annotate(line, (x, y), (0, rise), textcoords="offset points", va="center", annotation_clip=False, **style)


def _wrap(text: str, width: int) -> str:
    """Text in lines of at most ``width`` characters; lines that are given stay."""
    return "\n".join(textwrap.fill(line, max(4, width), break_long_words=False) for line in text.split("\n"))
