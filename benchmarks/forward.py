"""Forwards of a frozen network against the network's own: how many times as long, batch by batch in turn.

One thread, 64 px, batch 32; with ``torch.compile`` too, a minute for each network, where a compiler is at hand.
"""

import argparse
import time

import torch
from _timing import Row, arguments, compare, row, save

from hpatlib import models
from hpatlib.frozen import frozen

TARGETS = {"tf_efficientnet_lite0": 0.65, "resnet18": 0.8}


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> list[Row]:
    model = models.build(name, 2, weights="scratch").to(options.device).eval().requires_grad_(False)
    images = torch.rand(options.batch, 3, options.size, options.size, device=options.device)
    networks = {"eager": model, "frozen": frozen(model)}
    if options.compiled:
        networks["compiled"] = frozen(model, compiled=True)
        try:
            networks["compiled"](images)
        except RuntimeError as error:
            print(f"torch.compile does not take part: {error.__cause__}")
            del networks["compiled"]
    expected = model(images)
    difference = max((network(images) - expected).abs().max().item() for network in networks.values())
    if difference > 1e-4:
        raise SystemExit(f"{name}: logits differ by {difference:.1e}, expected at most 1e-4")
    # One thread on a busy machine: its own work is what the processor's clock counts.
    clock = time.process_time if options.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    commands = {key: lambda network=network: network(images) for key, network in networks.items()}
    seconds = compare(commands, options.repeats, clock)
    return [
        row(f"{key} forward, {name}, {options.size} px", seconds, key, "eager", target=TARGETS.get(name))
        for key in networks
        if key != "eager"
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(TARGETS), choices=models.MODELS)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    asked = arguments(__doc__, repeats=15, parser=parser)
    torch.set_num_threads(1)
    save("forward", [found for name in asked.models for found in measure(name, asked)], asked, batch=asked.batch)
