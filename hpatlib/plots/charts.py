"""Kinds of charts, each drawn from the tidy table of some cells (``Cells.table()``: conditions, value, low, high).

Every function draws on an axis it is given and returns what it shows in words, for the alt text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd


class Style(NamedTuple):
    """How a series looks: its name in the legend, colour (readable by the colour-blind), marker and line style."""

    label: str
    colour: str
    marker: str = "o"
    line: str | tuple = "-"


PAINT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#882255")
MARKERS = "osD^vXP*"


def styles(names: Sequence[str], labels: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style each, in the order of the palette."""
    labels = labels or {}
    return {name: Style(labels.get(name, name), PAINT[k % 8], MARKERS[k % 8]) for k, name in enumerate(names)}


def lines(
    axis: plt.Axes, table: pd.DataFrame, x: str, by: str, looks: Mapping[str, Style], *, bars: bool = True
) -> list[str]:
    """A line a value of ``by`` over the column ``x`` (numbers, or categories in their order), with its intervals.

    ``bars``: intervals as whiskers set side by side; otherwise as bands.
    """
    told = []
    numeric = pd.api.types.is_numeric_dtype(table[x])
    ticks = list(dict.fromkeys(table[x]))
    present = [name for name in looks if name in set(table[by])]
    for number, name in enumerate(present):
        rows, look = table[table[by] == name], looks[name]
        place = rows[x].to_numpy(float) if numeric else np.array([ticks.index(value) for value in rows[x]], float)
        if bars and not numeric:
            place = place + 0.07 * (number - (len(present) - 1) / 2)  # whiskers side by side, not on top of each other
        value, low, high = (rows[c].to_numpy(float) for c in ("value", "low", "high"))
        line: dict[str, Any] = {"color": look.colour, "ls": look.line, "label": look.label}
        if bars:
            spread = np.nan_to_num(np.maximum(0, [value - low, high - value]), posinf=0)  # no bar where none is known
            axis.errorbar(place, value, spread, marker=look.marker, ms=3.5, lw=1.3, elinewidth=0.8, capsize=1.5, **line)
        else:
            axis.plot(place, value, lw=1.6, **line)
            axis.fill_between(place, low, high, alpha=0.15, lw=0, color=look.colour)
        told.append(f"{look.label}: " + ", ".join(f"{v:.3g} at {k}" for k, v in zip(rows[x], value, strict=True)))
    if not numeric:
        axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    return told


def points(
    axis: plt.Axes,
    table: pd.DataFrame,
    each: pd.DataFrame | None,
    across: str,
    by: str,
    looks: Mapping[str, Style],
    *,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Dots with intervals: a group a value of ``across``, side by side a dot a value of ``by``; small dots: trainings.

    ``each``: ``Cells.each()`` of the same cells (None: no small dots); ``names``: how the groups are called.
    """
    groups = list(dict.fromkeys(table[across]))
    present = [name for name in looks if name in set(table[by])]
    told = []
    for number, name in enumerate(present):
        rows, look = table[table[by] == name], looks[name]
        shift = 0.7 / len(present) * (number - (len(present) - 1) / 2)
        place = np.array([groups.index(value) for value in rows[across]], float) + shift
        value, low, high = (rows[c].to_numpy(float) for c in ("value", "low", "high"))
        spread = np.nan_to_num(np.maximum(0, [value - low, high - value]), posinf=0)
        style: dict[str, Any] = {
            "fmt": look.marker,
            "color": look.colour,
            "capsize": 2,
            "ms": 5,
            "lw": 1.2,
            "label": look.label,
        }
        axis.errorbar(place, value, spread, zorder=3, **style)
        if each is not None:
            small = each[each[by] == name]
            at = np.array([groups.index(v) for v in small[across]], float) + shift + 0.22 / len(present)
            axis.plot(at, small["value"], ".", color=look.colour, ms=3, alpha=0.6, zorder=2)
        shown = zip(rows[across], value, low, high, strict=True)
        told.append(f"{look.label}: " + ", ".join(f"{k} {v:.2f} [{a:.2f}, {b:.2f}]" for k, v, a, b in shown))
    axis.set_xticks(range(len(groups)), [(names or {}).get(group, str(group)) for group in groups])
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.grid(axis="x", visible=False)
    return told


def ranking(
    axis: plt.Axes, table: pd.DataFrame, each: pd.DataFrame | None, of: str, looks: Mapping[str, Style]
) -> list[str]:
    """A row a value of ``of``: its value with its interval, and each training as a small dot above it."""
    names, told = [name for name in looks if name in set(table[of])], []
    for place, name in enumerate(names):
        look, one = looks[name], table[table[of] == name].iloc[0]
        ends = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
        spread = np.nan_to_num(np.maximum(0, ends), posinf=0)
        axis.errorbar(one["value"], place, xerr=spread, fmt=look.marker, color=look.colour, capsize=2, zorder=3)
        if each is not None:
            small = each[each[of] == name]["value"]
            axis.plot(small, [place - 0.22] * len(small), ".", color=look.colour, ms=3.5, alpha=0.7)
        told.append(f"{look.label} {one['value']:.3g} [{one['low']:.3g}, {one['high']:.3g}]".replace("\n", " "))
    axis.set_yticks(range(len(names)), [looks[name].label for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    return told


def heat(axis: plt.Axes, table: pd.DataFrame, x: str, y: str) -> plt.cm.ScalarMappable:
    """Values in [0, 1] over two numeric columns as coloured, numbered squares; returns what a colour bar needs."""
    grid = table.pivot(index=y, columns=x, values="value")
    picture = axis.imshow(grid, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(grid.to_numpy()):
        axis.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color="white" if value < 0.6 else "black"
        )
    axis.set_xticks(range(grid.shape[1]), [f"{value:g}" for value in grid.columns])
    axis.set_yticks(range(grid.shape[0]), [f"{value:g}" for value in grid.index])
    axis.grid(False)
    return picture


def legend(canvas: plt.Figure, axis: plt.Axes, columns: int = 3) -> None:
    """One legend above all panels, of what ``axis`` shows."""
    handles, labels = axis.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)))
