"""What benchmarks/results holds, as the page on benchmarks shows it: tables, two figures, and their words."""

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
WITHOUT = {"agreement", "alive", "growth", "intervals"}  # scripts that compare no costs


def results(folder: Path) -> list[Result]:
    """Every kept result, by name, the processor's before the GPU's."""
    found = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: (one["name"], one["kind"] != "cpu"))


def ratio(value: float | None) -> str:
    """1.02 stays, 0.002 becomes 1/500."""
    if not value:
        return "–" if value is None else "0"
    return f"{value:.2f}" if value >= 0.5 else f"1/{1 / value:.3g}"


def line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ratios(found: Sequence[Result], scripts: Sequence[str]) -> str:
    """A row a ratio; scripts and devices without a result are named as not measured."""
    lines = [line("what", "against", "on", "ratio (lowest to highest)", "target", ""), "|---|---|---|---|---|---|"]
    for one in found:
        for row in one["rows"] if one["name"] not in WITHOUT else ():
            mark = {True: "met", False: "**missed**", None: ""}[row["met"]]
            spread = f"{ratio(row['ratio'])} ({ratio(row['low'])} to {ratio(row['high'])})"
            target = "–" if row["target"] is None else f"at most {ratio(row['target'])}"
            lines.append(line(row["what"], row["peer_name"], one["device"], spread, target, mark))
    kept = {(one["name"], one["kind"]) for one in found}
    for name in scripts:
        missing = [label for kind, label in (("cpu", "processor"), ("cuda", "GPU")) if (name, kind) not in kept]
        if missing:
            lines.append(line(f"`benchmarks/{name}.py`", "–", " and ".join(missing), "*not measured*", "–", ""))
    return "\n".join(lines) + "\n\n" + sources([one for one in found if one["name"] not in WITHOUT])


def sources(found: Sequence[Result]) -> str:
    """When and with what these were measured."""
    told = [f"{one['name']} ({one['kind']}): {one['date']}, commit {one['commit']}, "
            f"{one['machine']['processor']}, torch {one['versions']['torch']}" for one in found]  # fmt: skip
    return f"Measured: {'; '.join(told)}.\n" if told else ""


def agreement(found: Sequence[Result]) -> str:
    """The rows of benchmarks/agreement.py: on which images an attack here and its peer's come to another verdict."""
    head = ["network and data", "ε", "attack", "beside", "stand", "under one alone", "other verdict, %", "at most 1 %"]
    lines = [line(*head), "|---" * len(head) + "|"]
    asked = [one for one in found if one["name"] == "agreement"]
    for row in (row for one in asked for row in one["rows"]):
        about = row["agreement"]
        ours, theirs, *alone = about["stand"]
        mark = {True: "met", False: "**missed**", None: ""}[row["met"]]
        share, eps = f"{100 * row['ours']:.1f}", f"{255 * about['eps']:.2f}/255"
        stand = [f"{ours} and {theirs} of {about['images']}", "{} and {}".format(*alone)]
        lines.append(line(about["where"], eps, about["attack"], about["peer"], *stand, share, mark))
    return "\n".join(lines) + "\n\n" + sources(asked) if asked else "*Not measured.*\n"


def growth(found: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of benchmarks/growth.py, from a processor."""
    return [row for one in found if one["name"] == "growth" and one["kind"] == "cpu" for row in one["about"]["growth"]]


def growths(rows: Sequence[dict[str, Any]]) -> str:
    lines = [line("what", "size", "measured, s", "predicted, s"), "|---|---|---|---|"]
    for row in rows:
        measured = "*not measured*" if row["measured"] is None else f"{row['measured']:.3g}"
        lines.append(line(row["what"], f"{row['size']:,} {row['unit']}", measured, f"{row['predicted']:.3g}"))
    return "\n".join(lines) + "\n"


def lives(found: Sequence[Result]) -> str:
    """The rows of benchmarks/alive.py, from a processor."""
    lines = [line("training", "live", "accuracy above the largest class, least", "median"), "|---|---|---|---|"]
    for one in found:
        for row in one["about"].get("alive", ()) if one["kind"] == "cpu" else ():
            live = f"{row['live']} of {row['seeds']}"
            lines.append(line(row["what"], live, f"{100 * row['least']:+.1f}", f"{100 * row['median']:+.1f}"))
    asked = [one for one in found if one["name"] == "alive" and one["kind"] == "cpu"]
    return "\n".join(lines) + "\n\n" + sources(asked) if asked else "*Not measured.*\n"


def cost(seconds: float) -> str:
    """Hours of a device, with a digit behind the point where there are few."""
    return f"{seconds / 3600:,.1f}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"


def plan(told: dict[str, Any]) -> str:
    """What `hpat book --dry-run --json` tells: a row a chapter, and how long the whole takes on so many devices."""
    unit = told["unit"]
    heads = ("chapter", "trainings", "of them new", f"{unit}-hours to train", f"{unit}-hours to measure")
    lines = [line(*heads), "|---|---|---|---|---|"]
    for row in told["chapters"]:
        measuring = cost(row["measuring"]) + ("" if row["timed"] else " set aside")
        trainings = (f"{row['trainings']}", f"{row['new']}", cost(row["training"]))
        lines.append(line(f"{{doc}}`../notebooks/{row['chapter']}`", *trainings, measuring))
    training, measuring = cost(told["training"]), cost(told["measuring"])
    lines.append(line("**together**", "", f"**{told['trainings']}**", f"**{training}**", f"**{measuring}**"))
    times = {n: f"{s / 86400:.1f} days" if s >= 2 * 86400 else f"{cost(s)} hours" for n, s in told["wall"].items()}
    assumed = [f"{count:,} of {name}" for name, count in sorted(told["assumed"].items())]
    about = "With nothing trained yet, the book takes "
    about += ", ".join(f"{time} on {count} {unit}{'' if count == '1' else 's'}" for count, time in times.items()) + ". "
    about += f"The longest training takes {cost(told['longest'])} hours. "
    if told["waiting"]:
        about += f"{told['waiting']} of the trainings are decided by the results of others, and come after them. "
    about += f"Counted with {told['speed'] / 1e12:.2g} · 10¹² operations a second ({told['speed from']})"
    return "\n".join(lines) + f"\n\n{about}{'; images: ' if assumed else ''}{', '.join(assumed)}.\n"


def ratios_figure(rows: Sequence[dict[str, Any]]) -> plots.Figure:
    """Ratios with their spread on a log axis, which has no place for 0; targets as ticks."""
    table = pd.DataFrame([row for row in rows if row["low"] > 0])
    table = table.rename(columns={"ratio": "value", "target": "threshold"}).astype({"threshold": float})
    verdicts = ["missed" if met is False else "met" if met else "no target" for met in table["met"]]
    table = table.assign(verdict=verdicts, label=table["what"] + ", " + table["peer_name"])
    words: dict[str, Any] = {"xlabel": "ratio, less is better", "axes": {"xscale": "log"}, "line": 1.0}
    missed = verdicts.count("missed")
    return charts.figure(
        [charts.forest(table, VERDICTS, **words)],
        name="ratios",
        caption="The table's ratios above 0: dots with lowest and highest, less is better; upright marks: targets.",
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
    scripts = sorted({path.stem for path in folder.glob("[!_]*.py")} - WITHOUT)
    texts, rows, steps = (
        {"ratios": ratios(found, scripts)},
        [row for one in found for row in one["rows"] if one["name"] not in WITHOUT],
        growth(found),
    )
    if rows:
        texts["ratios"] += f"\n{ratios_figure(rows).html()}\n"
    texts["growth"] = growths(steps) if steps else "*Not measured.*\n"
    if steps:
        asked = [one for one in found if one["name"] == "growth" and one["kind"] == "cpu"]
        texts["growth"] += f"\n{growth_figure(steps).html()}\n\n{sources(asked)}"
    texts["alive"] = lives(found)
    texts["agreement"] = agreement(found)
    counted = folder / "plan.json"
    texts["plan"] = plan(json.loads(counted.read_text("utf-8"))) if counted.is_file() else "*Not counted.*\n"
    return {f"book/made/{name}.txt": text.encode() for name, text in texts.items()}
