"""STBO: what its search costs beyond the queries it makes, and what it finds against other searches of equal budget.

Time: Lite0 and ResNet18, frozen, 64 px, batch 32, 100 evaluations, against 100 bare forwards and warps of the same
batch (claim: ≤ 1.15), and the Gaussian processes alone against BoTorch fitting and searching one image at a time
(claim: ≥ 500 × less).
Loss: a Lite0 (the first of ``--models``) trained for minutes on phantoms (or on real C-NMC cells where HPAT_DATA is
set), 32 test images, three seeds, at ±30°, ±3 px and ±180°, ±12 of 300 px: mean worst loss as a share of the best that
any of them found, after 100 units, a gradient counting as three (claims: ≥ 99.5 % at ±30° and ≥ 98 % at ±180°; at least
the 775-point grid in both).
With ``cma`` and ``optuna`` installed, they search the first four images too.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable

import torch
from _timing import Row, arguments, compare, row, save
from torch import Tensor, nn

from hpatlib import measure, models, runs
from hpatlib.frozen import frozen
from hpatlib.spatial import (
    Box,
    Search,
    direct_search,
    gradient_ascent,
    grid_search,
    local_search,
    random_search,
    transform,
)
from hpatlib.stbo import features, stbo
from hpatlib.training import Recipe

EVALUATIONS, BATCH, SIZE, SEEDS = 100, 32, 64, 3


def queries_and_overhead(name: str, options: argparse.Namespace) -> list[Row]:
    device = options.device
    model = frozen(models.build(name, 2, weights="scratch").to(device))
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    labels, box = torch.arange(BATCH, device=device) % 2, Box(12, 180)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(EVALUATIONS):
            model(transform(images, box.place(torch.rand(BATCH, 3, device=device))))

    def search() -> None:
        stbo(model, images, labels, box, evaluations=EVALUATIONS)

    # One thread on a busy machine: its own work is what the processor's clock counts.
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = compare({"bare forwards and warps": bare, "STBO": search}, options.repeats, clock)
    what = f"STBO's time, {name}, {EVALUATIONS} queries"
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


def evolution(model: nn.Module, images: Tensor, labels: Tensor, box: Box, *, seed: int) -> Tensor:
    """CMA-ES of the package ``cma``, image by image: losses ``[B]``."""
    import cma

    found = []
    for n in range(len(images)):
        search = Search(model, images[n : n + 1], labels[n : n + 1], box, "cross-entropy")
        options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9, "maxfevals": EVALUATIONS}
        strategy = cma.CMAEvolutionStrategy([0.5] * 3, 0.3, options)
        while len(search.history) < EVALUATIONS:
            points = strategy.ask()
            scores = search.ask(torch.tensor(points[: EVALUATIONS - len(search.history)]).unsqueeze(1))
            if len(scores) == len(points):
                strategy.tell(points, (-scores[:, 0]).tolist())
        found.append(search.loss)
    return torch.cat(found)


def trees(model: nn.Module, images: Tensor, labels: Tensor, box: Box, *, seed: int) -> Tensor:
    """Optuna's tree-structured Parzen estimator, image by image: losses ``[B]``."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    for n in range(len(images)):
        search = Search(model, images[n : n + 1], labels[n : n + 1], box, "cross-entropy")
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

        def asked(trial: "optuna.Trial", search: Search = search) -> float:
            point = torch.tensor([trial.suggest_float(axis, 0, 1) for axis in "xyz"])
            return search.ask(point.view(1, 1, 3)).item()

        study.optimize(asked, n_trials=EVALUATIONS)
        found.append(search.loss)
    return torch.cat(found)


def losses_at_equal_budgets(name: str, options: argparse.Namespace) -> list[Row]:
    device, count, rows = options.device, options.count, []
    real = bool(os.environ.get("HPAT_DATA"))
    weights = "imagenet" if name == "tf_efficientnet_lite0" else "scratch"
    recipe = Recipe(epochs=4 if weights == "imagenet" else 6, batch_size=32)
    run = runs.Run("cnmc", real, SIZE, None, "patient", 1 / 3, name, weights, recipe, 0)
    trained = runs.train_or_load(run, device=device)
    shown = measure.sample(trained.test, count)
    images, labels = shown.tensors(device)
    model = frozen(trained.model)
    right = (measure.logits(model, images).argmax(dim=1) == labels).float().mean()
    print(f"\n{name}, {len(images)} images of {trained.test.name}, {right:.0%} of them right")

    def at(method: Callable, **options: object) -> Callable:
        def run(box: Box, seed: int) -> Tensor:
            drawn = {} if method in (grid_search, direct_search) else {"generator": torch.Generator().manual_seed(seed)}
            return method(model, images, labels, box, **options, **drawn).loss

        return run

    methods: dict[str, Callable[[Box, int], Tensor]] = {
        "STBO": at(stbo),
        "STBO, length-scale held": at(stbo, refit_every=None),
        "DIRECT": at(direct_search),
        "Sobol and local": at(local_search),
        "Sobol and 4 × 5 of Adam": at(gradient_ascent),
        "Sobol": at(random_search, evaluations=EVALUATIONS, sobol=True),
        "random": at(random_search, evaluations=EVALUATIONS),
        "grid, 775 points": at(grid_search),
        "800 units, 10 × 20 of Adam": at(gradient_ascent, evaluations=800, starts=10, steps=20),
        "STBO, 400 units": at(stbo, evaluations=400),
    }
    once = ("DIRECT", "grid, 775 points", "800 units, 10 × 20 of Adam", "STBO, 400 units")  # or slow
    for box in (Box(3, 30), Box(12 * SIZE / 300, 180)):
        found = {
            key: torch.stack([method(box, seed) for seed in range(1 if key in once else SEEDS)])
            for key, method in methods.items()
        }
        equal = [
            key for key in found if key not in ("grid, 775 points", "800 units, 10 × 20 of Adam", "STBO, 400 units")
        ]
        best = torch.cat(list(found.values())).amax(dim=0)
        few = min(4, len(images))
        told = f"{name}, ±{box.rotation:g}°, ±{box.translation:g} px"
        print(f"{told}: the best that any of them found has a mean loss of {best.mean():.3f}")
        for key, losses in found.items():
            shares = (losses.mean(dim=1) / best.mean()).tolist()
            print(f"  {key:28} {losses.mean() / best.mean():6.1%}  ({', '.join(f'{each:.1%}' for each in shares)})")
        for package, peer in (("cma", evolution), ("optuna", trees)):
            try:
                with torch.no_grad():
                    loss = peer(model, images[:few], labels[:few], box, seed=0).mean()
                own = found["STBO"][:, :few].mean()
                print(f"  {package:28} {loss / own:.1%} of STBO's loss on the first {few}")
            except ImportError:
                print(f"  {package} is not installed: left out")
        ours = found["STBO"].mean(dim=1).tolist()
        strongest = max((key for key in equal if not key.startswith("STBO")), key=lambda key: float(found[key].mean()))
        for key, losses, target in (
            ("best of any", best.mean().expand(SEEDS), 1 / 0.995 if box.rotation < 180 else 1 / 0.98),
            (strongest, found[strongest].mean(dim=1).expand(SEEDS), 1.0),
            ("grid, 775 points", found["grid, 775 points"].mean().expand(SEEDS), 1.0),
        ):
            measured = {"peer": losses.tolist(), "STBO": ours}
            made = row(f"loss found by {key} over STBO's, {told}", measured, "peer", "STBO", target=target, unit="nats")
            rows.append(made)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["tf_efficientnet_lite0", "resnet18"], choices=models.MODELS)
    parser.add_argument("--count", type=int, default=32, help="images to search")
    parser.add_argument("--only", choices=["time", "loss"])
    asked = arguments(__doc__, repeats=3, parser=parser)
    torch.set_num_threads(1)
    found = []
    if asked.only != "loss":
        found += [each for name in asked.models for each in queries_and_overhead(name, asked)]
        found += processes_against_botorch()
    if asked.only != "time":
        found += losses_at_equal_budgets(asked.models[0], asked)
    data = "C-NMC" if os.environ.get("HPAT_DATA") else "phantoms"
    save("stbo", found, asked, images=asked.count, data=data)
