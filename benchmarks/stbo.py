"""STBO: what its search costs beyond the queries it makes, and what it finds against the 775-point grid.

Time: ResNet18, 64 px, batch 32, 100 evaluations, against 100 bare forwards and warps of the same batch (claim: ≤ 1.15),
and the Gaussian processes alone against BoTorch fitting and searching one image at a time (claim: ≥ 500 × less).
Loss: a classifier trained for a minute on phantoms (or on real C-NMC cells where HPAT_DATA is set), 64 test images,
mean worst loss as a share of the grid's at ±30°, ±3 px (claim: ≥ 1) and ±180°, ±12 px (claim: ≥ 0.99).
"""

import argparse
import os
import time
import warnings

import timm
import torch
from _timing import Row, arguments, compare, row, save
from torch import nn

from hpatlib import measure, runs
from hpatlib.spatial import Box, grid_search, losses, random_search
from hpatlib.stbo import features, stbo
from hpatlib.training import Recipe

EVALUATIONS, BATCH, SIZE = 100, 32, 64


def queries_and_overhead(options: argparse.Namespace) -> list[Row]:
    device = options.device
    model = timm.create_model("resnet18", num_classes=2).to(device).eval()
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    labels, box = torch.arange(BATCH, device=device) % 2, Box(12, 180)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(EVALUATIONS):
            losses(model, images, labels, box.place(torch.rand(BATCH, 3, device=device)))

    def search() -> None:
        stbo(model, images, labels, box, evaluations=EVALUATIONS)

    print(f"ResNet18, {SIZE} px, batch {BATCH}, {EVALUATIONS} evaluations, {device}, {torch.get_num_threads()} threads")
    seconds = compare({"bare forwards and warps": bare, "STBO": search}, options.repeats)
    what = f"STBO, ResNet18, {SIZE} px, batch {BATCH}, {EVALUATIONS} queries"
    return [row(what, seconds, "STBO", "bare forwards and warps", target=1.15)]


class Free(nn.Module):
    """A model that costs next to nothing, so that only the search's own work is left."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2].mean(dim=(2, 3))


def processes_against_botorch(steps: int = 6) -> list[Row]:
    from botorch.acquisition import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    box, labels = Box(12, 180), torch.arange(BATCH) % 2
    images = torch.rand(BATCH, 3, 8, 8)
    started = time.perf_counter()
    stbo(Free(), images, labels, box, evaluations=EVALUATIONS)
    ours = (time.perf_counter() - started) / BATCH
    seconds = []
    bounds = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    for t in torch.linspace(10, EVALUATIONS - 1, steps).long().tolist():
        points = torch.rand(t, 3, dtype=torch.float64)
        values = features(points, box)[:, :1].sin()
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process = SingleTaskGP(points, values)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
            acquisition = LogExpectedImprovement(process, values.max())
            optimize_acqf(acquisition, bounds, q=1, num_restarts=5, raw_samples=128)
        seconds.append(time.perf_counter() - started)
    peer = sum(seconds) / steps * (EVALUATIONS - 10)
    return [
        row("Gaussian processes of one image", {"ours": [ours], "BoTorch": [peer]}, "ours", "BoTorch", target=1 / 500)
    ]


def loss_against_the_grid(device: str, count: int = 64) -> list[Row]:
    real = bool(os.environ.get("HPAT_DATA"))
    recipe = Recipe(epochs=6, batch_size=32)
    run = runs.Run("cnmc", real, SIZE, None, "patient", 1 / 3, "resnet18", "scratch", recipe, 0)
    trained = runs.train_or_load(run, device=device)
    shown = measure.sample(trained.test, count)
    images, labels = shown.tensors(next(trained.model.parameters()).device)
    rows = []
    for box, least in ((Box(3, 30), 1.0), (Box(12, 180), 0.99)):
        generator = torch.Generator().manual_seed(0)
        grid = grid_search(trained.model, images, labels, box).loss.mean()
        blind = random_search(trained.model, images, labels, box, evaluations=EVALUATIONS, generator=generator)
        found = stbo(trained.model, images, labels, box, evaluations=EVALUATIONS, generator=generator)
        print(
            f"±{box.rotation:g}°, ±{box.translation:g} px, {len(shown)} images of {trained.test.name}: 775-point grid "
            f"{grid:.3f}, STBO {found.loss.mean() / grid:.3f} of it, random {blind.loss.mean() / grid:.3f} of it"
        )
        losses_found = {"grid of 775": [float(grid)], "STBO": [float(found.loss.mean())]}
        what = f"worst loss of the grid over STBO's, ±{box.rotation:g}°, ±{box.translation:g} px"
        rows.append(row(what, losses_found, "grid of 775", "STBO", target=1 / least, unit="nat"))
    return rows


if __name__ == "__main__":
    options = arguments(__doc__, repeats=5)
    save(
        "stbo",
        [*queries_and_overhead(options), *processes_against_botorch(), *loss_against_the_grid(options.device)],
        options,
        data="real" if os.environ.get("HPAT_DATA") else "phantom",
    )
