"""What benchmarks/results holds, as the page on benchmarks shows it: two tables, two figures, and their words."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from hpatlib.plots.base import STYLE

Result = dict[str, Any]


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


def png(canvas: Figure) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(canvas)
    return buffer.getvalue()


def ratios_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Ratios with their spread on a log axis, targets as ticks."""
    with plt.style.context(STYLE):
        canvas, axis = plt.subplots(figsize=(7, 0.6 + 0.32 * len(rows)), layout="constrained")
        for place, row in enumerate(rows):
            colour = "C1" if row["met"] is False else "C0"
            axis.plot([row["low"], row["high"]], [place, place], color=colour)
            axis.plot(row["ratio"], place, "o", color=colour)
            if row["target"] is not None:
                axis.plot(row["target"], place, "|", color="black", markersize=12)
        axis.axvline(1, color="grey", linewidth=0.8)
        axis.set(
            xscale="log", xlabel="ours over the peer's (less is better); bar: target", ylim=(len(rows) - 0.5, -0.5)
        )
        axis.set_yticks(range(len(rows)), [f"{row['what']}, {row['peer_name']}"[:70] for row in rows], fontsize=7)
        return png(canvas)


def growth_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Measured seconds as points on the predicted line, a panel each."""
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    with plt.style.context(STYLE):
        canvas, axes = plt.subplots(1, len(kinds), figsize=(2.3 * len(kinds), 2.4), layout="constrained", squeeze=False)
        for axis, kind in zip(axes[0], kinds, strict=True):
            own = [row for row in rows if row["what"] == kind]
            axis.plot([row["size"] for row in own], [row["predicted"] for row in own], color="grey")
            done = [row for row in own if row["measured"] is not None]
            axis.plot([row["size"] for row in done], [row["measured"] for row in done], "o", color="C0")
            axis.set(xscale="log", yscale="log", xlabel=own[0]["unit"], title=kind)
            axis.title.set_fontsize(8)
            axis.set_xticks([row["size"] for row in own], [f"{row['size']:,}" for row in own], fontsize=7, rotation=45)
            axis.minorticks_off()
        axes[0][0].set_ylabel("seconds")
        return png(canvas)


def figure(name: str, alt: str, caption: str) -> str:
    return f"```{{figure}} made/{name}.png\n:alt: {alt}\n\n{caption}\n```\n"


def made(folder: Path) -> dict[str, bytes]:
    """Path below the book's source → content, of all that book/benchmarks.md includes."""
    found = results(folder / "results")
    scripts = sorted(
        path.stem for path in folder.glob("*.py") if not path.stem.startswith("_") and path.stem != "growth"
    )
    texts = {"ratios": ratios(found, scripts)}
    files: dict[str, bytes] = {}
    if rows := [row for one in found for row in one["rows"]]:
        files["ratios.png"] = ratios_figure(rows)
        missed = sum(row["met"] is False for row in rows)
        alt = (
            f"{len(rows)} ratios from {ratio(min(r['ratio'] for r in rows))} to {ratio(max(r['ratio'] for r in rows))}"
        )
        texts["ratios"] += "\n" + figure("ratios", f"{alt}; {missed} above their target.", "The ratios of the table.")
    steps = growth(found)
    texts["growth"] = growths(steps) if steps else "*Not measured.*\n"
    if steps:
        files["growth.png"] = growth_figure(steps)
        off = max(max(s["measured"] / s["predicted"], s["predicted"] / s["measured"]) for s in steps if s["measured"])
        alt = f"Measured seconds beside the predicted lines, at most {off:.1f} times off."
        texts["growth"] += "\n" + figure("growth", alt, "Measured (points) and predicted (lines).")
    counted = folder / "plan.json"
    texts["plan"] = plan(json.loads(counted.read_text("utf-8"))) if counted.is_file() else "*Not counted.*\n"
    files |= {f"{name}.txt": text.encode() for name, text in texts.items()}
    return {f"book/made/{name}": content for name, content in files.items()}
