"""Algorithm 1: what a step of hybrid adversarial training costs beyond the passes that it cannot do without.

The bare step does the same passes and nothing else: six forwards and backwards to the images, as many forward passes
and warps as STBO has queries, one forward and backward over both halves of the batch, one step of Adam (claim: ≤ 1.15).
"""

import argparse

import torch
from _timing import Row, arguments, compare, row, save
from torch.nn import functional as F

from hpatlib import models
from hpatlib.documents import hpat
from hpatlib.documents.hpat import study
from hpatlib.hybrid import Adversary
from hpatlib.mixbn import branch, convert_mixbn
from hpatlib.spatial import transform
from hpatlib.training import Examples, Recipe, fit

BATCH, STEPS = 16, 4


def step_and_passes(name: str, size: int, options: argparse.Namespace) -> Row:
    device = options.device
    adversary = study.adversaries(hpat.choose("laptop", "phantom", 0))["Adv_h"]
    assert isinstance(adversary, Adversary)
    images = torch.rand(BATCH * STEPS, 3, size, size)
    data = Examples(images, torch.arange(len(images)) % 2)
    torch.manual_seed(0)
    model = convert_mixbn(models.build(name, 2, weights="scratch")).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    box = torch.tensor([2.0, 2.0, 90.0], device=device)

    def bare() -> None:
        for x, y in data.batches(BATCH, device=device):
            model.eval().requires_grad_(False)
            with branch(model, "adv"):
                for _ in range(adversary.iterations):
                    x.requires_grad_()
                    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
                    x = (x.detach() + adversary.step * gradient.sign()).clamp(0, 1)
                with torch.no_grad():
                    for _ in range(adversary.evaluations):
                        model(transform(x, (2 * torch.rand(len(x), 3, device=device) - 1) * box))
            model.train().requires_grad_(True)
            with branch(model, "mix"):
                loss = F.cross_entropy(model(torch.cat([x, x])), y.repeat(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def trained() -> None:
        fit(model, data, Recipe(epochs=1, batch_size=BATCH), attack=adversary, device=device)

    threads = torch.get_num_threads()
    print(f"\n{name}, {size} px, batch {BATCH}, {adversary.evaluations} queries of STBO, {device}, {threads} threads")
    seconds = compare({"bare passes": bare, "training": trained}, options.repeats)
    return row(f"Algorithm 1, {name}, {size} px, batch {BATCH}", seconds, "training", "bare passes", target=1.15)


if __name__ == "__main__":
    options = arguments(__doc__, repeats=5)
    save("training", [step_and_passes(name, 64, options) for name in ("tf_efficientnet_lite0", "resnet18")], options)
