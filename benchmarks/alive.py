"""Nothing trains dead: the trainings of the smoke profiles, the hardest of each document, over many seeds.

``python benchmarks/alive.py`` (claim: all live). A network is alive whose answers to test images differ between
images and are right more often than the largest class is; ``training.fit`` itself stops a training that learns nothing.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from _timing import arguments, save
from tqdm import tqdm

from hpatlib import data, measure, runs, training
from hpatlib.documents import assimilation, hpat, ultrasound
from hpatlib.documents.assimilation.study import trained_as
from hpatlib.documents.hpat.study import adversaries
from hpatlib.documents.ultrasound.study import against
from hpatlib.runs import Run


def trainings(seed: int) -> Iterator[tuple[str, Run]]:
    cells, slides, scans = (document.choose("smoke", "phantom", seed) for document in (hpat, assimilation, ultrasound))
    yield "hpat: standard", cells.run
    yield "hpat: Adv_h with MixBN", replace(cells.run, adversary=adversaries(cells)["Adv_h"], mixbn=True)
    yield "slides: vanilla", slides.run
    yield "slides: domain assimilation", trained_as(slides.run, "assimilated")
    yield "ultrasound: clean", scans.run
    yield "ultrasound: online, largest ε", against(scans.run, "online", max(scans.settings.ladder))
    model, weights = scans.settings.networks[0]
    large = replace(scans.run, model=model, weights=weights)
    yield f"ultrasound: {model}, online, largest ε", against(large, "online", max(scans.settings.ladder))


def alive(run: Run) -> tuple[float, float]:
    """Accuracy on test images over that of the largest class, and the spread of the answers between images."""
    images = data.load(run.dataset, real=False, size=run.size, count=run.count, seed=run.seed)
    train, test = data.split(images, by=run.split_by, test=run.test, seed=run.seed)
    torch.manual_seed(run.seed)
    model = runs._build(run, train, run.weights)
    recipe = replace(run.recipe, patience=None)
    training.fit(model, train, recipe, attack=run.adversary, objective=run.objective, seed=run.seed)
    answers = measure.logits_of(model, test)
    right = (answers.argmax(dim=1).numpy() == test.labels).mean()
    return right - np.bincount(test.labels).max() / len(test), answers.std(dim=0).mean().item()


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in tqdm(range(options.seeds), "seeds", unit="seed"):
        for name, run in trainings(seed):
            try:
                found.setdefault(name, []).append(alive(run))
            except ValueError as error:
                print(f"seed {seed}, {name}: {error}")
                found[name].append((0.0, 0.0))
    told = []
    for name, values in found.items():
        gain, spread = zip(*values, strict=True)
        lives = sum(g > 0 and s > 0 for g, s in values)
        told.append({"what": name, "seeds": len(values), "live": lives, "least": min(gain), "median": np.median(gain)})
        above = f"least {min(gain):+.2f}, median {np.median(gain):+.2f}"
        print(f"{name:45} {lives} of {len(values)} live; accuracy above the largest class: {above}")
        print(f"{'':45} least spread of the answers {min(spread):.2g}")
    save("alive", [], options, alive=told)


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--seeds", type=int, default=100, help="so many trainings of each kind [%(default)s]")
    main(arguments(__doc__, parser=given))
