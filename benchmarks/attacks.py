"""PGD against its limit, the model's own forward and backward passes, and against the libraries people use.

ResNet18, 64 px, batch 16, 10 steps, one thread; claim: ≤ 1.03 × the bare passes on a CPU, in time of this process.
Peers that are not installed are named and left out.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
import torchattacks
from _timing import Row, arguments, compare, row, save
from torch import nn
from torch.nn import functional as F

from hpatlib.attacks import pgd

EPS, STEP, ITERATIONS, BATCH, SIZE = 8 / 255, 2 / 255, 10, 16, 64

Command = Callable[[], object]


def main() -> None:
    options = arguments(__doc__, repeats=7)
    torch.set_num_threads(1)
    save("attacks", speed(options), options)


def speed(options: argparse.Namespace) -> list[Row]:
    device = options.device
    model = timm.create_model("resnet18", num_classes=2).to(device).eval().requires_grad_(False)
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    labels = torch.arange(BATCH, device=device) % 2

    def bare() -> None:  # what no attack can do without, parameters frozen
        x = images.clone().requires_grad_()
        for _ in range(ITERATIONS):
            torch.autograd.grad(F.cross_entropy(model(x), labels), x)

    commands: dict[str, Command] = {
        "bare passes": bare,
        "hpatlib": lambda: pgd(model, images, labels, eps=EPS, step=STEP, iterations=ITERATIONS),
        "torchattacks": lambda: torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=ITERATIONS)(images, labels),
    }
    for name, peer in {"adv-lib": _adv_lib, "foolbox": _foolbox, "ART": _art, "secml-torch": _secml}.items():
        try:
            commands[name] = peer(model, images, labels)
        except ImportError as missing:
            print(f"{name} is left out: {missing}.")
    seconds = compare(commands, options.repeats, time.process_time if device == "cpu" else time.perf_counter)
    what = f"PGD, ResNet18, {SIZE} px, batch {BATCH}, {ITERATIONS} steps"
    rows = [row(what, seconds, "hpatlib", "bare passes", target=1.03)]
    return rows + [row(what, seconds, "hpatlib", name) for name in seconds if name not in ("hpatlib", "bare passes")]


def _adv_lib(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Command:
    from adv_lib.attacks import pgd_linf

    return lambda: pgd_linf(model, images, labels, EPS, steps=ITERATIONS, absolute_step_size=STEP)


def _foolbox(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Command:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=ITERATIONS)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return lambda: attack(wrapped, images, labels, epsilons=EPS)


def _art(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Command:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    device = "gpu" if images.is_cuda else "cpu"
    shape = tuple(images.shape[1:])
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 2, clip_values=(0, 1), device_type=device)
    attack = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=ITERATIONS, num_random_init=1, batch_size=BATCH, verbose=False
    )
    pixels, truth = images.cpu().numpy(), labels.cpu().numpy()
    return lambda: attack.generate(pixels, truth)


def _secml(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Command:
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    attack = PGD("linf", EPS, ITERATIONS, STEP, random_start=True, backend="native")
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH)
    return lambda: attack(BasePyTorchClassifier(model), loader)


if __name__ == "__main__":
    main()
