"""What benchmarks/results holds, as the page on benchmarks shows it: two tables, two figures, and their words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpatlib import plots
from hpatlib.plots import charts
from hpatlib.plots.charts import Style

Result = dict[str, Any]
VERDICTS = {
    "met": Style("target met", charts.PAINT[0]),
    "missed": Style("target missed", charts.PAINT[1], "s"),
    "no target": Style("no target", charts.GREY, "D"),
}
SERIES = {
    "predicted": Style("predicted", charts.GREY, ""),
    "measured": Style("measured", charts.PAINT[0], "o", "none"),
}


def results(folder: Path) -> list[Result]:
    """Every kept result, by name, the processor's before the GPU's."""
    found = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: (one["name"], one["kind"] != "cpu"))


def ratio(value: float | None) -> str:
    """1.02 stays, 0.002 becomes 1/500."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.5 else f"1/{1 / value:.3g}"


def line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ratios(found: Sequence[Result], scripts: Sequence[str]) -> str:
    """A row a ratio; scripts and devices without a result are named as not measured."""
    lines = [line("what", "against", "on", "ratio (lowest to highest)", "target", ""), "|---|---|---|---|---|---|"]
    for one in found:
        for row in one["rows"]:
            mark = {True: "met", False: "**missed**", None: ""}[row["met"]]
            spread = f"{ratio(row['ratio'])} ({ratio(row['low'])} to {ratio(row['high'])})"
            target = "–" if row["target"] is None else f"at most {ratio(row['target'])}"
            lines.append(line(row["what"], row["peer_name"], one["device"], spread, target, mark))
    kept = {(one["name"], one["kind"]) for one in found}
    for name in scripts:
        missing = [label for kind, label in (("cpu", "processor"), ("cuda", "GPU")) if (name, kind) not in kept]
        if missing:
            lines.append(line(f"`benchmarks/{name}.py`", "–", " and ".join(missing), "*not measured*", "–", ""))
    sources = [f"{one['name']} ({one['kind']}): {one['date']}, commit {one['commit']}, "
               f"{one['machine']['processor']}, torch {one['versions']['torch']}" for one in found]  # fmt: skip
    return "\n".join(lines) + "\n\n" + (f"Measured: {'; '.join(sources)}.\n" if sources else "")


def growth(found: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of benchmarks/growth.py, from a processor."""
    return [row for one in found if one["name"] == "growth" and one["kind"] == "cpu" for row in one["about"]["growth"]]


def growths(rows: Sequence[dict[str, Any]]) -> str:
    lines = [line("what", "size", "measured, s", "predicted, s"), "|---|---|---|---|"]
    for row in rows:
        measured = "*not measured*" if row["measured"] is None else f"{row['measured']:.3g}"
        lines.append(line(row["what"], f"{row['size']:,} {row['unit']}", measured, f"{row['predicted']:.3g}"))
    return "\n".join(lines) + "\n"


def ratios_figure(rows: Sequence[dict[str, Any]]) -> plots.Figure:
    """Ratios with their spread on a log axis, targets as ticks."""
    table = pd.DataFrame(rows).rename(columns={"ratio": "value", "target": "threshold"}).astype({"threshold": float})
    verdicts = ["missed" if met is False else "met" if met else "no target" for met in table["met"]]
    table = table.assign(verdict=verdicts, label=table["what"] + ", " + table["peer_name"])
    words: dict[str, Any] = {"xlabel": "ours over the peer's", "axes": {"xscale": "log"}, "line": 1.0}
    missed = verdicts.count("missed")
    return charts.figure(
        [charts.forest(table, VERDICTS, **words)],
        name="ratios",
        caption="The ratios of the table: dots with their lowest and highest, less is better; upright marks: targets.",
        alt=f"Dot chart of {len(table)} ratios from {ratio(table['value'].min())} to {ratio(table['value'].max())}; "
        f"{missed} above their target.",
    )


def growth_figure(rows: Sequence[dict[str, Any]]) -> plots.Figure:
    """Measured seconds as points on the predicted line, a panel each."""
    table, shown = pd.DataFrame(rows), []
    for kind, own in table.groupby("what", sort=False):
        long = own.melt(["what", "unit", "size"], ["predicted", "measured"], "series", "value").dropna()
        long = long.assign(low=long["value"], high=long["value"]).astype({"size": float, "value": float})
        words = {"title": kind, "xlabel": own["unit"].iloc[0], "ylabel": "seconds"}
        words |= {"axes": {"xscale": "log", "yscale": "log"}, "ends": False}
        shown.append(charts.curves(long, "size", "series", SERIES, **words))
    done = table.dropna()
    off = max((done["measured"] / done["predicted"]).max(), (done["predicted"] / done["measured"]).max())
    return charts.figure(
        shown,
        name="growth",
        caption="Measured (points) and predicted (lines).",
        alt=f"Charts of measured seconds beside the predicted lines, at most {off:.1f} times off.",
    )


def made(folder: Path) -> dict[str, bytes]:
    """Path below the book's source → content, of all that book/benchmarks.md includes."""
    found = results(folder / "results")
    scripts = sorted(
        path.stem for path in folder.glob("*.py") if not path.stem.startswith("_") and path.stem != "growth"
    )
    texts, rows, steps = (
        {"ratios": ratios(found, scripts)},
        [row for one in found for row in one["rows"]],
        growth(found),
    )
    if rows:
        texts["ratios"] += f"\n{ratios_figure(rows).html()}\n"
    texts["growth"] = growths(steps) if steps else "*Not measured.*\n"
    if steps:
        texts["growth"] += f"\n{growth_figure(steps).html()}\n"
    return {f"book/made/{name}.txt": text.encode() for name, text in texts.items()}
