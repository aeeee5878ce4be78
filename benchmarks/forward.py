"""Forwards of a frozen network against the network's own: how many times as long, batch by batch in turn.

One thread, 64 px, batch 32. Target: ≤ 0.65 × for tf_efficientnet_lite0, with ``--compiled`` if folding alone is not
enough, and ≤ 0.8 × for resnet18. Missed so far: 0.71 to 0.83 and 0.87 to 0.90, compiled or not.
``--device cuda`` measures there; ``--models`` names others. The largest difference of the logits stands beside it.
"""

import argparse
import time

import torch
from _timing import report, rounds

from hpatlib import models, runs
from hpatlib.frozen import frozen


@torch.no_grad()
def measure(name: str, size: int, batch: int, device: str, compiled: bool, count: int) -> None:
    model = models.build(name, 2, weights="scratch").to(device).eval().requires_grad_(False)
    images = torch.rand(batch, 3, size, size, device=device)
    networks = {"eager": model, "frozen": frozen(model)} | (
        {"compiled": frozen(model, compiled=True)} if compiled else {}
    )
    expected = model(images)
    difference = max((network(images) - expected).abs().max().item() for network in networks.values())
    print(
        f"\n{name}, {size} px, batch {batch}, {device}, {torch.get_num_threads()} threads; "
        f"logits within {difference:.1e}"
    )
    # One thread on a busy machine: its own work is what the processor's clock counts.
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    report(
        rounds({key: lambda network=network: network(images) for key, network in networks.items()}, count, clock),
        "eager",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["tf_efficientnet_lite0", "resnet18"], choices=models.MODELS)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default=runs.default_device())
    parser.add_argument("--compiled", action="store_true", help="torch.compile too: a minute for each network")
    asked = parser.parse_args()
    for name in asked.models:
        measure(name, asked.size, asked.batch, asked.device, asked.compiled, asked.rounds)
