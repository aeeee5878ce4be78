"""How the baselines were chosen: candidates on validation images, then what the profiles' recipes reach on test images.

``HPAT_DATA=… python workflow/baselines.py`` measures what ``baselines.json`` beside this file does not hold yet, one
training after the other on one thread, and writes it after each: delete an entry to have it measured again.

A candidate learns from a training side less an eighth whose groups it never sees, and is judged on that eighth.
Of C-NMC, such an eighth has one of the two healthy subjects that are left, so a validation there is as hard as a test,
and three of them name every healthy subject once. A test is of the profile's own run, the one that chapters use.

How hybrid training must meet its adversary is judged on the training side alone: by how often it is right on the
perturbed half of its batches, epoch by epoch, and at the end on what its adversary makes of 128 training images.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from hpatlib import data, measure, runs, training
from hpatlib.data import ImageSet
from hpatlib.documents import assimilation, hpat, ultrasound
from hpatlib.documents.assimilation.study import runs as vanilla
from hpatlib.documents.hpat.study import gain_over_guessing, strategies
from hpatlib.runs import Run
from hpatlib.training import Recipe

RESULTS = Path(__file__).with_suffix(".json")
LITE = {"model": "tf_efficientnet_lite0", "weights": "imagenet"}
SEEDS = 3
LARGE = ("brain_mri", "chest_xray", "natural")  # or without a document's aim: one split is enough to see them learned

# By data set and name: the recipe, and other fields of the run. "document" is what the document says, where that is
# affordable; its 20 epochs, or 300, are not.
CNMC = {
    "document, 6 epochs": (Recipe(epochs=6, decay_every=4), {}),
    "document, 6 epochs, 96 px": (Recipe(epochs=6, decay_every=4), {"size": 96}),
    "document, 8 epochs": (Recipe(epochs=8, decay_every=6), {}),
    "document, turns": (Recipe(epochs=8, decay_every=6, augment="turns"), {}),
    "3e-4, turns": (Recipe(epochs=8, batch_size=32, lr=3e-4, decay_every=6, augment="turns"), {}),
    "3e-4, turns, 16 epochs": (Recipe(epochs=16, batch_size=32, lr=3e-4, decay_every=12, augment="turns"), {}),
}
SLIDES = {
    "document, 15 epochs": (Recipe(15, 32, lr=1e-4, decay=1, patience=4), {}),
    "3e-4, flips": (Recipe(15, 32, lr=3e-4, decay_every=10, patience=5, augment="flips"), {}),
    "3e-4, flips, 96 px": (Recipe(15, 32, lr=3e-4, decay_every=10, patience=5, augment="flips"), {"size": 96}),
    "1e-3, flips": (Recipe(15, 32, lr=1e-3, decay_every=10, patience=5, augment="flips"), {}),
}
# Of the leukemia paper's hybrid training: the recipe, and the epochs over which the adversary grows.
HYBRID = {
    "at once, 6 epochs": (Recipe(epochs=6, decay_every=4), 0),
    "at once, 20 epochs": (Recipe(epochs=20, decay_every=16), 0),
    "growing over 11 of 20 epochs": (Recipe(epochs=20, decay_every=16), 11),
}
BUSI = {
    "document, 1e-3": (Recipe(10, 32, decay=1), {}),
    "document, 3e-4": (Recipe(10, 32, lr=3e-4, decay=1), {}),
    "document, 3e-3": (Recipe(10, 32, lr=3e-3, decay=1), {}),
    "document, flips": (Recipe(10, 32, decay=1, augment="flips"), {}),
    "document, 1e-3, 96 px": (Recipe(10, 32, decay=1), {"size": 96}),
    "Lite0, 3e-4": (Recipe(10, 32, lr=3e-4, decay=1), LITE),
    "Lite0, 3e-4, flips": (Recipe(10, 32, lr=3e-4, decay=1, augment="flips"), LITE),
    "Lite0, 3e-4, flips, 96 px": (Recipe(10, 32, lr=3e-4, decay=1, augment="flips"), LITE | {"size": 96}),
}


def profile(dataset: str) -> dict[str, list[Run]]:
    """The runs of the document's laptop profile on real images, one a seed, by network."""
    if dataset == "cnmc":
        return {"main": hpat.choose("laptop", "real", 0).runs(SEEDS)}
    if dataset == "busi":
        chosen = ultrasound.choose("laptop", "real", 0)
        return {"main": chosen.runs(SEEDS), "Lite0": chosen.runs(SEEDS, **LITE)}
    chosen = assimilation.choose("laptop", "real", 0)
    return {"main": vanilla(chosen, dataset, **LITE)[: 1 if dataset in LARGE else SEEDS]}


def measured(run: Run) -> dict[str, Any]:
    """``run`` as a candidate: learned from part of its training side, judged on the rest."""
    images = data.load(run.dataset, real=True, size=run.size, count=run.count, seed=run.seed)
    train, _ = data.split(images, by=run.split_by, test=run.test, seed=run.seed)
    inner, validation = data.split(train, by=run.split_by, test=1 / 8, seed=run.seed)
    torch.manual_seed(run.seed)
    model = runs._build(run, inner, run.weights)
    started = time.process_time()
    watched = validation if run.recipe.patience else None
    rows = training.fit(model, inner, run.recipe, validation=watched, seed=run.seed)
    curves = {name: [round(row[name], 4) for row in rows] for name in rows[0] if name != "seconds"}
    return judged(model, validation) | {"seconds": round(time.process_time() - started), "training": curves}


def judged(model: torch.nn.Module, images: ImageSet) -> dict[str, Any]:
    answers, labels = measure.logits_of(model, images), images.labels
    shares = answers.softmax(dim=1).double().numpy()
    score = shares[:, 1] if shares.shape[1] == 2 else shares
    groups, sizes = np.unique(images.groups[labels == 0], return_counts=True)
    return {
        "images": len(images),
        "negatives mostly of": str(groups[sizes.argmax()]),
        "largest class": round(float(np.bincount(labels).max() / len(labels)), 4),
        "accuracy": round(float((shares.argmax(axis=1) == labels).mean()), 4),
        "auc": round(float(roc_auc_score(labels, score, multi_class="ovr")), 4),
    }


def hybrid(recipe: Recipe, warmup: int) -> list[Run]:
    """Hybrid trainings of the leukemia paper, one a seed."""
    chosen = hpat.choose("laptop", "real", 0)
    settings = msgspec.structs.replace(chosen.settings, strategy=recipe, warmup=warmup)
    return strategies(replace(chosen, settings=settings), ["Adv_h"])["Adv_h"][:SEEDS]


def learned(run: Run) -> dict[str, Any]:
    """What a training against an adversary learned from it, on its training side."""
    found = runs.train_or_load(run, device="cpu")
    rows = found.provenance["epochs"]
    curves = {name: [round(row[name], 4) for row in rows] for name in ("loss", "accuracy", "adversarial_accuracy")}
    gain = round(gain_over_guessing(found, run, 128), 4)
    return {"gain over guessing": gain, "warmup": run.adversary.warmup, "training": curves}


def plan() -> Iterator[tuple[str, str, str, Run]]:
    """(data set, "validation", "test" or "adversary", name, run), in the order of worth."""
    small = {"cnmc": CNMC, "chest_ct": SLIDES, "busi": BUSI, "busi2": SLIDES}
    large = {key: {"3e-4, flips": SLIDES["3e-4, flips"]} for key in LARGE}
    for dataset, candidates in (small | large).items():
        known = profile(dataset)
        for name, (recipe, fields) in candidates.items():
            few = known["main"] if dataset in ("cnmc", "busi", "busi2") else known["main"][:1]
            for run in few:
                yield dataset, "validation", f"{name}, seed {run.seed}", replace(run, recipe=recipe, **fields)
        for name, several in known.items():
            for run in several:
                yield dataset, "test", f"{name}, seed {run.seed}", run
    for name, (recipe, warmup) in HYBRID.items():
        for run in hybrid(recipe, warmup):
            yield "cnmc", "adversary", f"{name}, seed {run.seed}", run


def main() -> None:
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for dataset, side, name, run in plan():
        here = results.setdefault(dataset, {}).setdefault(side, {})
        if name in here:
            continue
        if side == "validation":
            here[name] = measured(run)
        elif side == "adversary":
            here[name] = learned(run)
        else:
            found = runs.train_or_load(run, device="cpu")
            here[name] = judged(found.model, found.test)
        here[name]["recipe"] = runs.to_dict(run)["recipe"]
        print(dataset, side, name, {k: v for k, v in here[name].items() if not isinstance(v, list | dict)}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
