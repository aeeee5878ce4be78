"""PGD against its limit, the model's own forward and backward passes, and against the libraries people use.

ResNet18, 64 px, batch 32, 10 steps; claim: ≤ 1.02 × the bare passes on a CPU. Peers run where they are installed.
"""

import timm
import torch
import torchattacks
from _timing import arguments, compare, row, save
from torch import nn
from torch.nn import functional as F

from hpatlib.attacks import pgd

EPS, STEP, ITERATIONS, BATCH, SIZE = 8 / 255, 2 / 255, 10, 32, 64
PLAIN = ("hpatlib", "bare passes")


def main() -> None:
    options = arguments(__doc__, repeats=7)
    device = options.device
    model = timm.create_model("resnet18", num_classes=2).to(device).eval()
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    labels = torch.arange(BATCH, device=device) % 2

    def bare() -> None:  # what no attack can do without, parameters frozen
        x = images.clone().requires_grad_()
        for _ in range(ITERATIONS):
            torch.autograd.grad(F.cross_entropy(model(x), labels), x)

    def ours() -> None:
        pgd(model, images, labels, eps=EPS, step=STEP, iterations=ITERATIONS)

    peers = {"torchattacks": torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=ITERATIONS)}
    commands = {"bare passes": bare, "hpatlib": ours} | {
        name: lambda attack=attack: attack(images, labels) for name, attack in peers.items()
    }
    if (foolbox_attack := _foolbox(model, images, labels)) is not None:
        commands["foolbox"] = foolbox_attack
    if (art_attack := _art(model, images, labels)) is not None:
        commands["ART"] = art_attack
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    print(f"PGD, ResNet18, {SIZE} px, batch {BATCH}, {ITERATIONS} steps, {device}, {torch.get_num_threads()} threads")
    seconds = compare(commands, options.repeats)
    what = f"PGD, ResNet18, {SIZE} px, batch {BATCH}"
    rows = [row(what, seconds, "hpatlib", "bare passes", target=1.02)]
    save("attacks", rows + [row(what, seconds, "hpatlib", name) for name in seconds if name not in PLAIN], options)


def _foolbox(model: nn.Module, images: torch.Tensor, labels: torch.Tensor):
    try:
        import foolbox
    except ImportError:
        return None
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=ITERATIONS)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return lambda: attack(wrapped, images, labels, epsilons=EPS)


def _art(model: nn.Module, images: torch.Tensor, labels: torch.Tensor):
    try:
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier
    except ImportError:
        return None
    device = "gpu" if images.is_cuda else "cpu"
    shape = tuple(images.shape[1:])
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 2, clip_values=(0, 1), device_type=device)
    attack = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=ITERATIONS, num_random_init=1, batch_size=BATCH, verbose=False
    )
    pixels, truth = images.cpu().numpy(), labels.cpu().numpy()
    return lambda: attack.generate(pixels, truth)


if __name__ == "__main__":
    main()
