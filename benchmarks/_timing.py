"""Fair ratios: the commands in turn, round after round, so that a machine that drifts drifts for all of them."""

import time
from collections.abc import Callable

import torch


def rounds(
    commands: dict[str, Callable[[], object]], count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each command in each of ``count`` rounds, after one round that warms up.

    ``clock``: ``time.process_time`` counts this process's own work only, right where all commands use one CPU thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(count + 1):
        for name, command in commands.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = clock()
            command()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def report(seconds: dict[str, list[float]], reference: str) -> dict[str, float]:
    """Print median seconds and the median of the ratios to ``reference`` round by round; return those ratios."""
    ratios = {}
    for name, measured in seconds.items():
        pairs = torch.tensor([a / b for a, b in zip(measured, seconds[reference], strict=True)])
        ratios[name] = pairs.median().item()
        spread = f"{pairs.min().item():.2f}…{pairs.max().item():.2f}"
        print(f"{name:28} {torch.tensor(measured).median().item():9.3f} s   × {ratios[name]:8.3f}  ({spread})")
    return ratios
