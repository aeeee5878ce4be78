"""How cost grows: each method at a few sizes against what its steps predict, up to the `paper` profile.

STBO: B·t² of its Gaussian processes after t queries of B images (a model that costs nothing); texture features: pixel
pairs; an attack sweep: images; trainings of a chapter: trainings. Processor time of one thread. The prediction agrees
the largest size that is measured; a last row, where `paper` is larger still, is predicted alone.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from _timing import arguments, compare, save
from torch import nn

from hpatlib import models
from hpatlib.attacks import pgd
from hpatlib.glcm import texture_features
from hpatlib.spatial import Box
from hpatlib.stbo import stbo
from hpatlib.training import Examples, Recipe, fit


class Free(nn.Module):
    """A model that costs next to nothing, so that only the search's own work is left."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2].mean(dim=(2, 3))


def search(queries: int, batch: int = 32) -> None:
    images = torch.rand(batch, 3, 8, 8)
    stbo(Free(), images, torch.arange(batch) % 2, Box(2, 180), evaluations=queries)


def texture(side: int, batch: int = 16) -> None:
    images = torch.rand(batch, 1, side, side).requires_grad_()
    sum(values.sum() for values in texture_features(images, features=["contrast"]).values()).backward()


def sweep(count: int) -> None:
    network = models.build("simple_cnn_bn", 2, weights="scratch").eval()
    for images in torch.rand(count, 3, 32, 32).split(64):
        pgd(network, images, torch.zeros(len(images)).long(), eps=0.03, step=0.01, iterations=10)


def trainings(count: int) -> None:
    data = Examples(torch.rand(128, 3, 32, 32), torch.arange(128) % 2)
    for _ in range(count):
        network = models.build("simple_cnn_bn", 2, weights="scratch")
        fit(network, data, Recipe(epochs=1, batch_size=32), device="cpu")


# What grows, how, the sizes that are measured, how many steps each takes, and the size at `paper`.
GROWTH: list[tuple[str, str, Callable[[int], None], list[int], Callable[[int], float], int]] = [
    ("STBO beside its queries", "queries t of 32 images", search, [25, 50, 100], lambda t: t**2, 100),
    ("texture features, contrast", "side of 16 images, pixels", texture, [64, 128, 224], lambda side: side**2, 224),
    ("PGD of a sweep", "images", sweep, [64, 128, 256], float, 3_554),
    ("trainings of a chapter", "trainings", trainings, [1, 2, 4], float, 36),
]


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found = []
    for what, unit, run, sizes, steps, paper in GROWTH:
        seconds = compare(
            {str(size): lambda size=size, run=run: run(size) for size in sizes}, options.repeats, time.process_time
        )
        medians = {int(size): sorted(several)[len(several) // 2] for size, several in seconds.items()}
        scale = medians[sizes[-1]] / steps(sizes[-1])
        for size in sorted({*sizes, paper}):
            row = {"what": what, "unit": unit, "size": size, "predicted": scale * steps(size)}
            found.append(row | {"measured": medians.get(size)})
            print(json.dumps(found[-1], ensure_ascii=False))
    save("growth", [], options, growth=found)


if __name__ == "__main__":
    main(arguments(__doc__, repeats=3))
