"""One way to time and to keep it: commands in turn, round after round, and a row a ratio in ``benchmarks/results``.

A ratio is what ours costs over what the peer costs, so less is better, and a target is the most that it may be:

    options = arguments(__doc__, repeats=7)
    seconds = compare({"hpatlib": ours, "bare passes": bare}, options.repeats)
    save("attacks", [row("PGD, ResNet18", seconds, "hpatlib", "bare passes", target=1.02)], options)

``python benchmarks/_timing.py`` prints every kept ratio and marks those that miss their target.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpatlib import runs

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def arguments(
    description: str | None,
    *,
    repeats: int | None = None,
    parser: argparse.ArgumentParser | None = None,
    **changed: Any,
):
    """The command line of a benchmark: ``device``, ``results``, its folder, and ``repeats`` where it repeats."""
    parser = parser or argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=runs.default_device(), help="cpu or cuda [%(default)s]")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="rounds after a warm-up [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results [benchmarks/results]")
    return parser.parse_args(**changed)


def compare(
    commands: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each command in each of ``repeats`` rounds, after one round that warms up.

    The commands take turns, so that a machine that drifts drifts for all of them. ``clock``: ``time.process_time``
    counts this process's own work only, right where all commands use one CPU thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, command in commands.items():
            _wait()
            started = clock()
            command()
            _wait()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def row(
    what: str,
    measured: dict[str, list[float]],
    ours: str,
    peer: str,
    *,
    target: float | None = None,
    scale: float = 1.0,
    unit: str = "s",
) -> Row:
    """A ratio as ``save`` keeps it: medians of ``ours`` and of ``peer``, the median of their ratios round by round, and
    the lowest and highest of these.

    ``measured``: what ``compare`` returned, or numbers of another kind in ``unit``. ``scale``: how many times the
    peer's work is what ours did, where it was timed on a part. ``target``: the most that the ratio may be, or None.
    """
    mine, theirs = np.asarray(measured[ours], float), scale * np.asarray(measured[peer], float)
    ratios = mine / theirs
    ratio = float(np.median(ratios))
    return {
        "what": what,
        "peer_name": peer + (f" (on 1/{scale:.3g} of the work)" if scale != 1 else ""),
        "unit": unit,
        "ours": float(np.median(mine)),
        "peer": float(np.median(theirs)),
        "ratio": ratio,
        "low": float(ratios.min()),
        "high": float(ratios.max()),
        "target": target,
        "met": None if target is None else ratio <= target,
    }


def save(name: str, rows: Sequence[Row], options: argparse.Namespace, **about: Any) -> Path:
    """Print ``rows`` and write them to ``<name>.json`` (``<name>-cuda.json`` from a GPU), with where they are from."""
    device = torch.device(options.device).type
    environment = runs.environment(options.device)
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found = {"name": name, "kind": device, "date": date.today().isoformat()}
    if "repeats" in options:
        found["repeats"] = options.repeats
    found |= {"machine": machine, **environment, "about": about, "rows": list(rows)}
    path = options.results / (f"{name}.json" if device == "cpu" else f"{name}-{device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    show([(name, row) for row in rows])
    return path


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(": ")[2] if names else platform.processor() or platform.machine()


def shown(ratio: float | None) -> str:
    """A ratio for readers: 1.02 stays, 0.002 becomes 1/500."""
    if ratio is None:
        return "–"
    return f"{ratio:.2f}" if ratio >= 0.5 or ratio == 0 else f"1/{1 / ratio:.3g}"


def show(rows: Iterable[tuple[str, Row]]) -> int:
    """Print a line a ratio, with ``MISSED`` behind those above their target; return how many those are."""
    missed = 0
    for name, found in rows:
        missed += found["met"] is False
        target = f"at most {shown(found['target'])}" if found["target"] is not None else ""
        cost = f"{found['ours']:.3g} against {found['peer']:.3g} {found['unit']} of {found['peer_name']}"
        ratio = f"× {shown(found['ratio'])} ({shown(found['low'])}…{shown(found['high'])})"
        mark = "MISSED" if found["met"] is False else ""
        print(f"{name:13} {found['what']:58} {cost:58} {ratio:22} {target:16} {mark}".rstrip())
    return missed


def kept(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Everything that ``save`` has written below ``folder``, by name."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    everything = [(f"{one['name']} {one['kind']}", found) for one in kept() for found in one["rows"]]
    print(f"{len(everything)} ratios, {show(everything)} above their target")
