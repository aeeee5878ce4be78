"""The leukemia paper's experiments: what its chapters train and measure.

The document prints one number a cell. Here each cell is measured over trainings, on held-out patients, through each
branch of MixBN, in both readings of an environment (L25), and where a claim hangs on it, in the worst case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn import metrics
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hpatlib import attacks, checks, documents, measure
from hpatlib._model import device_of, held_still
from hpatlib.data import ImageSet
from hpatlib.documents import profiles
from hpatlib.documents.hpat.quantities import ABLATED, DRAWN, LEAST, LONGER, PIXEL, SPATIAL, STBO, WRONG
from hpatlib.documents.profiles import Chosen
from hpatlib.frozen import frozen
from hpatlib.hybrid import (
    REFERENCE_SIZE,
    Adversary,
    Environment,
    environment,
    masked,
    pixel_and_rotation,
    random_noise,
    showcase,
)
from hpatlib.measure import Attack, Study
from hpatlib.mixbn import Branch, MixBatchNorm2d, branch
from hpatlib.planning import announce
from hpatlib.records import Record
from hpatlib.runs import Run, Trained, train_or_load
from hpatlib.spatial import Box, SearchResult, direct_search, gradient_ascent, grid_search, local_search, random_search
from hpatlib.stbo import stbo
from hpatlib.training import Recipe, cuda
from hpatlib.worst_case import smallest_eps

BUDGETS = (1, 3, 9, 18, 27, 45, 63, 81, 99, 100)  # of the searches whose history is kept; a gradient counts three
GRIDS = ((1, 1, 9), (3, 3, 3), (3, 3, 11), (5, 5, 31))  # 9, 27, 99 and Engstrom's 775 points
DENSE = (7, 7, 61)  # points of the grid that says what a search with 100 queries has missed
EDGE = (2**-10 / 255, 8 / 255)  # of the least noise that is looked for

Name = TypeVar("Name")


class Profile(profiles.Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``networks``: table 1's, (name, weights), each trained ``network_trainings`` times; ``train_searches``,
    ``searches``, ``network_searches``: STBO's queries an image when training, when measuring, and when measuring
    ``networks`` or figure 4's H1 to H5; ``queries``: the Square attack's in the worst case; ``strategy``: the recipe of
    all trainings that are compared with adversarial ones (None: ``recipe``), whose adversaries grow over ``warmup``
    epochs (L36); ``grid_step``: of figure 5's grid; ``hardest``, ``dense``: how many test images searches of H6 and
    figure 6's dense grid are measured on, and the first, how many training images a dose. Fixed H6, figure 1 and clean
    images: all test images.
    """

    networks: tuple[tuple[str, str], ...]
    network_trainings: int
    train_searches: int
    searches: int
    network_searches: int
    grid_step: int
    hardest: int
    dense: int
    queries: int = 5000  # AutoAttack's
    strategy: Recipe | None = None
    warmup: int = 0


def adversaries(chosen: Chosen[Profile]) -> dict[str, Adversary | None]:
    """The five training strategies by name: who makes the second half of a batch.

    ε = 6/255, PGD with six steps of 1/255 from 0.001 · N(0, 1); STBO in ±180° and ±12 px of 300, with the profile's
    number of queries (the document's: 100); all growing for as many epochs as the profile says (L36).
    """
    worst = environment(6, size=chosen.size)
    pixel = Adversary(eps=worst.eps, step=worst.step, iterations=worst.iterations, start="gaussian")
    search = chosen.settings.train_searches
    spatial = Adversary(translation=worst.box.translation, rotation=worst.box.rotation, evaluations=search)
    both = replace(pixel, translation=spatial.translation, rotation=spatial.rotation, evaluations=search)
    fgsm = Adversary(eps=worst.eps, step=worst.eps)
    adversarial = {"Adv_FGSM": fgsm, "Adv_PGD": pixel, "Adv_RT": spatial, "Adv_h": both}
    grown = {name: replace(adversary, warmup=chosen.settings.warmup) for name, adversary in adversarial.items()}
    return {"Standard": None} | grown


def strategies(chosen: Chosen[Profile], names: Sequence[str], split_by: str = "patient") -> dict[str, list[Run]]:
    """Runs of the main network by strategy, one a training; "…+MixBN" with a batch norm of their own.

    All take as many steps of the optimiser. `LONGER` is standard training with twice the epochs: it is shown as many
    images as adversarial training, which learns from each image and from its perturbed twin.
    """
    adversary, recipe = adversaries(chosen), chosen.settings.strategy or chosen.settings.recipe
    longer = replace(recipe, epochs=2 * recipe.epochs, decay_every=2 * recipe.decay_every)
    return {
        name: chosen.runs(
            adversary=adversary[name.removesuffix("+MixBN").removesuffix(LONGER.removeprefix("Standard"))],
            split_by=split_by,
            mixbn="+" in name,
            recipe=longer if name == LONGER else recipe,
        )
        for name in names
    }


def split_strategies(chosen: Chosen[Profile], names: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], list[Run]]:
    """Runs of `strategies` by the split and the strategy, which ``names`` lists for each split."""
    return {(split, name): runs for split in names for name, runs in strategies(chosen, names[split], split).items()}


def networks(chosen: Chosen[Profile]) -> dict[str, list[Run]]:
    """Runs of the networks of table 1 by name, trained on clean images."""
    count = chosen.settings.network_trainings
    return {f"{m} ({w})": chosen.runs(count, model=m, weights=w) for m, w in chosen.settings.networks}


def trained(study: Study, named: Mapping[Name, Sequence[Run]]) -> Iterator[tuple[Name, Run, Trained]]:
    """Every run by its name, trained or loaded, a step of ``study`` each; one at a time, so that no two models are in
    memory. The dose of those with an adversary: `gain_over_guessing`."""
    runs = [(name, run) for name, several in named.items() for run in several]
    announce(run for _, run in runs)
    models = ((name, run, train_or_load(run)) for name, run in tqdm(runs, "models", unit="model", leave=False))
    for name, run, found in study.steps(models, lambda each: each[2].provenance["key"]):
        if run.adversary is not None:
            dose = {"gain_over_guessing": gain_over_guessing(found, run, study.chosen.settings.hardest)}
            found = replace(found, provenance=found.provenance | {"dose": dose})
        yield name, run, found


def gain_over_guessing(found: Trained, run: Run, count: int) -> float:
    """How much more often than by answering the largest class a trained model is right on what its own adversary makes
    of ``count`` of its training images: 0 or less where it has learned nothing from the perturbed half of its batches.

    With MixBN: through the adversarial branch. Raises ``ValueError`` for a run without an adversary.
    """
    if run.adversary is None:
        raise ValueError("what was learned from an adversary is asked of a run without one")
    few = measure.sample(found.train, count)
    with torch.random.fork_rng(devices=cuda(device_of(found.model))):  # adversaries draw as they do in training
        torch.manual_seed(run.seed)
        with branch(found.model, "adv") if run.mixbn else nullcontext():
            ((_, answers),) = measure.attacked(found.model, few, {"its own": run.adversary})
    right = answers.argmax(dim=1).numpy() == few.labels
    return float(right.mean() - np.bincount(few.labels).max() / len(few))


def places(chosen: Chosen[Profile]) -> list[Environment]:
    """H0 … H6 at this image size."""
    return [environment(k, size=chosen.size) for k in range(7)]


def grid(chosen: Chosen[Profile]) -> list[Environment]:
    """Figure 5's cells, ε by ε: every step of 1/255 from 0 to 6 and of 30° from 0 to 180; smoke takes every third."""
    levels = range(0, 7, chosen.settings.grid_step)
    return [pixel_and_rotation(k, 30.0 * turn) for k in levels for turn in levels]


def robustness(chosen: Chosen[Profile]) -> Record:
    """Figure 1: one network's answers to random and to searched perturbations of one size, 6/255, ±30° and ±3 px.

    Of a sample, also the least noise that changes a correct answer, everywhere and in the cell alone: ``doublings`` is
    log₂ of it in 1/255, between the ends of `EDGE`.
    """
    study = Study("hpat/fig1_robustness_issue", chosen, ["perturbation"])
    for _, run, found in trained(study, {"Standard": chosen.runs()}):
        quick, kinds = frozen(found.model), showcase(6 / 255, Box(3, 30), seed=run.seed)
        for name, answers in measure.attacked(found.model, found.test, kinds, asked=quick):
            study.add(found, measure.rows(found.test, answers), perturbation=name)
        few = measure.sample(found.test, chosen.settings.shown)
        for name, limits in _least_noise(quick, few, run.seed).items():
            rows = pd.DataFrame(measure.named(few)).assign(doublings=limits)
            study.add(found, rows, perturbation=name)
    return study.record()


def _least_noise(model: nn.Module, few: ImageSet, seed: int, *, batch: int = 64) -> dict[str, np.ndarray]:
    """log₂ of the least ε, in 1/255, that changes each correct answer ``[N]``; missing where it is wrong already."""
    found: dict[str, list[Tensor]] = {LEAST: [], f"{LEAST}, in the cell": []}
    draws = torch.Generator().manual_seed(seed)
    for images, labels in few.batches(batch, device=device_of(model)):
        asked = {LEAST: (model, images), f"{LEAST}, in the cell": masked(model, images)}
        for name, (network, x) in asked.items():
            least = smallest_eps(network, x, labels, most=EDGE[1], generator=draws)
            found[name].append(least.cpu().double())
    eps = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    known = {name: np.where(each > 0, each.clip(*EDGE), np.nan) for name, each in eps.items()}
    return {name: np.log2(255 * each) for name, each in known.items()}


@dataclass(frozen=True)
class Pictures:
    """One phantom of each class under each perturbation: ``images[name] [K, C, H, W]``, predicted classes and
    confidences ``[K]`` by name, the true ``labels [K]`` and the names of the classes."""

    images: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    confidences: dict[str, np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]


def examples(chosen: Chosen[Profile]) -> Pictures:
    """Figure 1's pictures, of phantoms whatever the numbers are of: for each class the first image that is right from
    the start and that the most perturbations flip."""
    found = train_or_load(replace(chosen.run, real=False))
    few = measure.sample(found.test, 32)
    images, labels = few.tensors(device_of(found.model))
    shown = {n: p(found.model, images, labels) for n, p in showcase(6 / 255, Box(3, 30), seed=chosen.seed).items()}
    answers = {name: measure.logits(found.model, x).softmax(dim=1) for name, x in shown.items()}
    guess = {name: answer.argmax(dim=1) for name, answer in answers.items()}
    wrong = torch.stack([g != labels for g in guess.values()])
    fragile = (wrong.sum(dim=0) * ~wrong[0] + 1) * (labels == torch.arange(2, device=labels.device)[:, None])
    at = fragile.argmax(dim=1)
    return Pictures(
        {name: x[at].cpu().numpy() for name, x in shown.items()},
        {name: g[at].cpu().numpy() for name, g in guess.items()},
        {name: answer.amax(dim=1)[at].cpu().numpy() for name, answer in answers.items()},
        labels[at].cpu().numpy(),
        few.classes,
    )


def benchmarks(chosen: Chosen[Profile]) -> Record:
    """Table 1: the networks' answers to all clean test images."""
    study = Study("hpat/table1_benchmarks", chosen, ["network", "environment"])
    for name, _, found in trained(study, networks(chosen)):
        answers = measure.logits_of(found.model, found.test)
        study.add(found, measure.rows(found.test, answers), network=name, environment="H0")
    return study.record()


def vulnerability(chosen: Chosen[Profile]) -> Record:
    """Figure 3: the networks of table 1 in H0…H6, in both readings; searches ask a sample."""
    study = Study("hpat/fig3_vulnerability", chosen, ["network", "environment", "reading"])
    for name, run, found in trained(study, networks(chosen)):
        ask = _Asked(study, found, run, chosen.settings.network_searches, {"network": name})
        ask.clean(found.test)
        ask.places(found.test, places(chosen)[1:], "fixed")
        ask.places(measure.sample(found.test, chosen.settings.shown), places(chosen)[1:], "searched")
    return study.record()


def training_strategies(chosen: Chosen[Profile]) -> Record:
    """Figure 4: five ways of training in H0…H6, in both readings, and H6 in the worst case; searches ask a sample.

    Beside them standard training with a split by image in H0 and H6, for whoever asks which reading the document's
    numbers come from. The table "thresholds" holds each model's margin that tells the classes of training images apart
    best, clean and in the fixed H6.
    """
    study = Study("hpat/fig4_training_strategies", chosen, ["split", "training", "environment", "reading"])
    settings = chosen.settings
    names = {"patient": list(adversaries(chosen)), "image": ["Standard"]}
    for (split, name), run, found in trained(study, split_strategies(chosen, names)):
        given = {"split": split, "training": name}
        ask = _Asked(study, found, run, settings.searches, given)
        few, h1_to_h5, h6 = measure.sample(found.test, settings.hardest), places(chosen)[1:6], places(chosen)[6:]
        ask.clean(found.test)
        ask.places(found.test, h6, "fixed")
        ask.places(few, h6, *(("searched", "worst") if split == "patient" else ("searched",)))
        if split == "patient":
            ask.places(found.test, h1_to_h5, "fixed")
            quickly = replace(ask, searches=settings.network_searches)
            quickly.places(measure.sample(found.test, settings.shown), h1_to_h5, "searched")
            study.table("thresholds", _thresholds(found, run, chosen, name))
    return study.record()


def _thresholds(found: Trained, run: Run, chosen: Chosen[Profile], name: str) -> pd.DataFrame:
    """The margin at which sensitivity and specificity add up to most, on training images: clean, and in fixed H6."""
    few = measure.sample(found.train, 2 * chosen.settings.hardest)
    answers = {("H0", "clean"): measure.logits_of(found.model, few)}
    answers |= measure.environments(found.model, few, places(chosen)[6:], readings=["fixed"], seed=run.seed)
    rows = []
    for (place, reading), each in answers.items():
        margin = (each[:, 1] - each[:, 0]).double().numpy()
        false, true, cuts = metrics.roc_curve(few.labels, margin)
        cut = cuts[1:][(true - false)[1:].argmax()]
        # Half way to the next margin below: of all thresholds that do as well, none at the edge.
        cut = (cut + margin[margin < cut].max()) / 2 if cut > margin.min() else cut
        about = {"training": name, "seed": run.seed, "environment": place, "reading": reading}
        rows.append(about | {"threshold": round(float(cut), 4)})
    return pd.DataFrame(rows)


def hybrid_grid(chosen: Chosen[Profile]) -> Record:
    """Figure 5: standard and hybrid training over ε × rotation, in both readings; one angle needs few queries.

    Fixed turns are asked of all test images, searches of as many as the profile affords. Beside the grid, noise without
    a turn: what standard attacks leave right on its first step and at 6/255, which of them felled what, and how noise
    of 6/255 is answered that is not made to mislead. Table "masking": the checks for masked gradients, for the first
    training of each kind.
    """
    study = Study("hpat/fig5_hybrid_grid", chosen, ["training", "environment", "reading"])
    runs = strategies(chosen, ["Standard", "Adv_h"])
    for name, run, found in trained(study, runs):
        ask = _Asked(study, found, run, 25, {"training": name})
        ask.places(found.test, grid(chosen), "fixed")
        ask.places(measure.sample(found.test, chosen.settings.shown), grid(chosen), "searched")
        few = measure.sample(found.test, chosen.settings.hardest)
        for k in (chosen.settings.grid_step, 6):  # the noise of the first step and of the last
            ask.worst(few, pixel_and_rotation(k, 0))
        ask.controls(found.test, pixel_and_rotation(6, 0))
        if run.seed == chosen.seed:
            (other,) = (train_or_load(several[0]) for kind, several in runs.items() if kind != name)
            networks = (frozen(found.model), frozen(other.model))
            seen = checks.gather(
                *networks,
                *few.tensors(device_of(found.model)),
                eps=6 / 255,
                queries=chosen.settings.queries,
                seed=run.seed,
            )
            study.table("masking", checks.verdicts(seen).assign(training=name, seed=run.seed))
    return study.record()


def mixbn(chosen: Chosen[Profile]) -> Record:
    """Table 2: clean and perturbed images through each branch of MixBN; attacks go through the branch that is measured.

    All test images are asked clean, a sample under attack: in H6, in both readings, and under a search in the half of
    it that a training has seen.
    Standard training, standard training of twice the length and a split by image stand beside the document's six.
    """
    study = Study("hpat/table2_mixbn", chosen, ["split", "training", "branch", "environment", "reading"])
    halves, settings = _halves(chosen), chosen.settings
    pairs = [name + suffix for name in ABLATED for suffix in ("", "+MixBN")]
    names = {"patient": ["Standard", LONGER, *pairs], "image": ["Standard"]}
    for (split, name), run, found in trained(study, split_strategies(chosen, names)):
        # Through which branch a record says how good a model is: the one that attacks go through, which may be worse.
        sides: tuple[Branch | None, ...] = ("adv", "clean") if run.mixbn else (None,)
        for side in sides:
            given = {"split": split, "training": name, "branch": side or "shared"}
            with branch(found.model, side) if side else nullcontext():
                ask = _Asked(study, found, run, settings.searches, given)
                ask.clean(found.test)
                if split == "patient" and name != LONGER:
                    few, own = measure.sample(found.test, settings.hardest), OWN[name.removesuffix("+MixBN")]
                    ask.places(few, [halves[each] for each in own], "searched")
                    ask.places(few, [halves["H6"]], "fixed")
    return study.record()


# Table 2's environments of each training: half of H6, or all of it.
OWN = {
    "Standard": (PIXEL, SPATIAL, "H6"),
    "Adv_PGD": (PIXEL, "H6"),
    "Adv_RT": (SPATIAL, "H6"),
    "Adv_h": ("H6",),
}


def _halves(chosen: Chosen[Profile]) -> dict[str, Environment]:
    """H6, its noise alone, and its rotation and shift alone, by name."""
    whole = places(chosen)[6]
    pixel = replace(whole, name=PIXEL, s=(0.0, 0.0, 0.0), box=Box(0, 0))
    spatial = replace(whole, name=SPATIAL, eps=0.0)
    return {place.name: place for place in (pixel, spatial, whole)}


@dataclass(frozen=True)
class _Asked:
    """Adds a model's answers to a study: ``given`` are the conditions that stay."""

    study: Study
    found: Trained
    run: Run
    searches: int
    given: dict[str, str]

    def clean(self, images: ImageSet) -> None:
        """Its answers to the images as they are, as H0."""
        rows = measure.rows(images, measure.logits_of(self.found.model, images))
        self.study.add(self.found, rows, environment="H0", reading="clean", **self.given)

    def places(self, images: ImageSet, several: Sequence[Environment], *readings: str) -> None:
        """Its answers in several environments, read in these ways."""
        budget = {"searches": self.searches, "queries": self.study.chosen.settings.queries}
        answers = measure.environments(
            self.found.model, images, several, readings=readings, seed=self.run.seed, **budget
        )
        for (place, reading), each in answers.items():
            rows = measure.rows(images, each)
            self.study.add(self.found, rows, environment=place, reading=reading, **self.given)

    def worst(self, images: ImageSet, place: Environment) -> None:
        """Its answers to the worst that the suite of pixel attacks makes at a place's ε, whatever turns there; table
        "felled": how many images each attack was the first to fell."""
        felled: list[str] = []
        draws = torch.Generator().manual_seed(self.run.seed)

        def suite(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            queries = self.study.chosen.settings.queries
            found = measure.SUITE(model, x, y, eps=place.eps, queries=queries, generator=draws)
            felled.extend(name or "stands" for name in found.felled_by)
            return found.images

        ((_, answers),) = measure.attacked(self.found.model, images, {"worst": suite}, asked=frozen(self.found.model))
        rows = measure.rows(images, answers)
        self.study.add(self.found, rows, environment=place.name, reading="worst", **self.given)
        counts = pd.Series(felled, name="attack").value_counts().rename("images").reset_index()
        self.study.table("felled", counts.assign(environment=place.name, seed=self.run.seed, **self.given))

    def controls(self, images: ImageSet, place: Environment) -> None:
        """Its answers to noise of a place's ε that is drawn at random, and to PGD's for the other of two labels: who
        reads the label off the noise believes that one."""
        assert place.pixel is not None  # of an ε above 0
        draws = torch.Generator().manual_seed(self.run.seed)
        pgd = partial(place.pixel, generator=draws)
        noises: dict[str, Attack | None] = {
            DRAWN: partial(random_noise, eps=place.eps, generator=draws),
            WRONG: lambda model, x, y: pgd(model, x, 1 - y),
        }
        model = self.found.model
        for name, answers in measure.attacked(model, images, noises, asked=frozen(model)):
            rows = measure.rows(images, answers)
            self.study.add(self.found, rows, environment=name, reading="control", **self.given)


def boxes(chosen: Chosen[Profile]) -> dict[str, Box]:
    """Figure 6's two search ranges at this image size, by their rotation: ±30° and ±3 px, ±180° and ±12 px of 300."""
    return {"30": Box(3.0, 30.0), "180": environment(6, size=chosen.size).box}


def searches(chosen: Chosen[Profile]) -> Record:
    """Figure 6: the worst loss that STBO, STM and others find of the same images, after each budget of queries.

    A grid's whole budget is one point: it has no best so far. ``loss`` is the highest cross-entropy found, and the
    prediction is that of the transform it belongs to: right exactly where the loss is below ln 2, for two classes.
    Of some images a dense grid is asked too. The method "any" is the worst of everything, and ``missed`` says whether
    the first search of STBO calls an image robust that something else found an answer against.
    """
    study = Study("hpat/fig6_stbo_vs_grid_search", chosen, ["box", "method", "queries"])
    for _, run, found in trained(study, {"Standard": chosen.runs()}):
        images = measure.sample(found.test, chosen.settings.shown)
        quick, told = frozen(found.model), pd.DataFrame(measure.named(images))
        x, labels = images.tensors(device_of(found.model))
        loss = F.cross_entropy(measure.logits(found.model, x), labels, reduction="none")
        told["label"] = images.labels
        study.add(found, _judged(told, loss.double().cpu().numpy()), box="none", method="clean", queries="0")
        for name, box in boxes(chosen).items():
            worst = {(m, q): loss for m, q, loss in _searched(quick, images, box, run.seed, f"±{name}°")}
            for (method, queries), each in worst.items():
                study.add(found, _judged(told, each), box=name, method=method, queries=str(queries))
            at = measure.spaced(len(images), chosen.settings.dense)
            dense = np.maximum(_dense(quick, images.subset(at), box), np.maximum.reduce(list(worst.values()))[at])
            missed = (worst["STBO", 100][at] < np.log(2)) & (dense >= np.log(2))
            rows = _judged(told.iloc[at], dense).assign(missed=missed.astype(float))
            study.add(found, rows, box=name, method="any", queries="all")
    return study.record()


def _judged(told: pd.DataFrame, worst: np.ndarray) -> pd.DataFrame:
    """Rows of the highest loss found ``[N]``, with the prediction that belongs to it."""
    return told.assign(prediction=np.where(worst < np.log(2), told["label"], 1 - told["label"]), loss=worst)


def _searched(
    model: nn.Module, images: ImageSet, box: Box, seed: int, title: str, *, batch: int = 64
) -> Iterator[tuple[str, int, np.ndarray]]:
    """(method, units, highest loss ``[N]``) of each search of a box; a query is a unit, a gradient three."""
    draws, most = torch.Generator().manual_seed(seed), max(BUDGETS)
    methods: dict[str, Callable[..., SearchResult]] = {
        **{name: partial(stbo, evaluations=most, generator=draws) for name in STBO},
        "DIRECT": partial(direct_search, evaluations=most),
        "local": partial(local_search, evaluations=most, generator=draws),
        "gradient": partial(gradient_ascent, evaluations=most, generator=draws),
        "Sobol": partial(random_search, evaluations=most, sobol=True, generator=draws),
        "random": partial(random_search, evaluations=most, generator=draws),
    }
    histories: dict[str, list[Tensor]] = {name: [] for name in methods}
    grids: dict[int, list[Tensor]] = {int(np.prod(counts)): [] for counts in GRIDS}
    total = (len(methods) * most + sum(grids)) * len(images)
    with tqdm(total=total, desc=title, unit="query", unit_scale=True, leave=False) as bar:
        for x, labels in images.batches(batch, device=device_of(model)):
            for name, search in methods.items():
                histories[name].append(search(model, x, labels, box).history.cpu())
                bar.update(most * len(x))
            for counts in GRIDS:
                size = int(np.prod(counts))
                grids[size].append(grid_search(model, x, labels, box, counts=counts).loss.cpu())
                bar.update(size * len(x))
    for name, parts in histories.items():
        history = torch.cat(parts).double().numpy()
        yield from ((name, units, history[:, units - 1]) for units in BUDGETS)
    for size, losses in grids.items():
        yield "STM", size, torch.cat(losses).double().numpy()


def _dense(model: nn.Module, images: ImageSet, box: Box) -> np.ndarray:
    """The highest loss ``[N]`` on a grid of `DENSE` points."""
    x, labels = images.tensors(device_of(model))
    return grid_search(model, x, labels, box, counts=DENSE).loss.double().cpu().numpy()


@dataclass(frozen=True)
class Walk:
    """Pictures of one batch of phantoms on its way through Algorithm 1, by stage ``[B, C, H, W]``, and what both halves
    go through: (name, shape) each."""

    pictures: dict[str, np.ndarray]
    network: list[tuple[str, str]]


def algorithm(chosen: Chosen[Profile], *, batch: int = 16, batches: int = 4) -> Record:
    """Algorithm 1 line by line on batches of test images of each training of Adv_h with MixBN.

    STBO asks as often as when measuring (the document's 100), however often the model was trained with. Rows: the loss
    after line 8 as read and as printed (L15), and whether a clean prediction changes when the adversarial images change
    places (L23). The steps of the first training's first batch are kept as a table.
    """
    study = Study("hpat/fig2_framework", chosen, ["stage"])
    for name, run, found in trained(study, strategies(chosen, ["Standard", "Adv_h+MixBN"])):
        if name == "Standard":
            study.model(found)  # asked nothing here: whether the network is competent hangs on it
            continue
        # Dealt out, so that each batch has images of all patients.
        at = measure.spaced(len(found.test), batch * batches)
        for number in range(batches):
            few = found.test.subset(at[number::batches])
            steps = _Steps(found, replace(run, seed=run.seed + 1000 * number), few, chosen.settings.searches)
            named = pd.DataFrame(measure.named(few))
            lines = {"line 3, clean": steps.before, "line 8 as read": steps.read, "line 8 as printed": steps.printed}
            for stage, loss in lines.items():
                study.add(found, named.assign(loss=loss.cpu().numpy()), stage=stage)
            variants: tuple[Branch, ...] = ("mix", "sum")
            for each in variants:
                changed, moved = _tied(steps.model, steps.images, steps.turned, each)
                about = {"changed": changed.double().cpu().numpy(), "moved": moved.double().cpu().numpy()}
                study.add(found, named.assign(**about), stage=f"partners exchanged, {each}")
            if "steps" not in study.tables:
                study.table("steps", steps.table())
    return study.record()


def walk(chosen: Chosen[Profile], *, batch: int = 3, queries: int = 100) -> Walk:
    """The pictures of figure 2, of phantoms whatever the numbers are of; with few ``queries``, STBO turns little."""
    (run, *_) = strategies(chosen, ["Adv_h+MixBN"])["Adv_h+MixBN"]
    run = replace(run, real=False)
    found = train_or_load(run)
    steps = _Steps(found, run, measure.sample(found.test, batch), queries)
    enlarged = 0.5 + (steps.pixel - steps.images) / (2 * run.adversary.eps) if run.adversary else steps.pixel
    pictures = {"X": steps.images, "noise δ, enlarged": enlarged, "A_ε(X)": steps.pixel, "T_s(A_ε(X))": steps.turned}
    return Walk({name: x.cpu().numpy() for name, x in pictures.items()}, steps.network())


class _Steps:
    """Algorithm 1 on one batch: what each line makes of it."""

    def __init__(self, found: Trained, run: Run, few: ImageSet, queries: int) -> None:
        if run.adversary is None:
            raise ValueError("Algorithm 1 needs a run with an adversary")
        self.model, self.classes = copy.deepcopy(found.model), len(few.classes)
        self.adversary = replace(run.adversary, evaluations=queries)
        self.images, self.labels = few.tensors(device_of(self.model))
        self.box = Box(self.adversary.translation, self.adversary.rotation)
        generator = torch.Generator().manual_seed(run.seed)
        # Started by hand from line 5's images, so that its noise can be shown.
        noise = torch.randn(self.images.shape, generator=generator).to(self.images)
        self.noisy = self.images + attacks.GAUSSIAN_START * noise
        generator.manual_seed(run.seed)
        with branch(self.model, "adv"), _Counter(self.model) as counter:
            a = self.adversary
            pgd = partial(attacks.pgd, eps=a.eps, step=a.step, iterations=a.iterations, start=a.start)
            self.pixel = pgd(self.model, self.images, self.labels, generator=generator)
            search = stbo(self.model, self.pixel, self.labels, self.box, evaluations=queries, generator=generator)
            self.turned, self.s = search.images, search.s
            self.passes_read = counter.count / len(self.images)
            with torch.random.fork_rng():  # the adversary draws from the global generator, as in training
                torch.manual_seed(run.seed)
                as_printed = replace(a, literal=True)(self.model, self.images, self.labels)
            self.passes_printed = counter.count / len(self.images) - self.passes_read
            stages = (self.images, self.pixel, self.turned, as_printed)
            self.before, self.after_pixel, self.read, self.printed = (
                _cross_entropy(self.model, x, self.labels) for x in stages
            )
        self.shapes, self.distance = _inside(self.model, self.images, self.turned)
        self.losses = self._trained_step()

    def _trained_step(self, lr: float = 1e-3) -> tuple[list[float], list[float]]:
        """Line 12: the losses of both halves, before and after one step of Adam on their sum."""
        model = copy.deepcopy(self.model).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        both = torch.cat([self.images, self.turned])
        with branch(model, "mix"):
            first = [F.cross_entropy(half, self.labels) for half in model(both).chunk(2)]
            torch.stack(first).sum().backward()
            optimizer.step()
            second = [F.cross_entropy(half, self.labels) for half in model(both).chunk(2)]
        return [float(x.detach()) for x in first], [float(x.detach()) for x in second]

    def table(self) -> pd.DataFrame:
        """A row a step: the line, what it makes, its shape, and the numbers that came out."""
        a, shape = self.adversary, list(self.images.shape)
        noise, moved = (255 * (x - self.images).abs().max() for x in (self.noisy, self.pixel))
        turn, first, second = self.s[:, 2].abs().mean(), sum(self.losses[0]), sum(self.losses[1])
        search = f"STBO, {a.evaluations} queries in ±{self.box.rotation:g}°, ±{self.box.translation:.3g} px"
        found = f"cross-entropy {self.read.mean():.3f}; mean turn {turn:.0f}°"
        pixel = f"cross-entropy {self.after_pixel.mean():.3f}; largest change {moved:.2f}/255"
        halves = f"means of the branches differ by {self.distance:.2f} σ"
        told = [
            ("3", "a batch (X, y)", shape, f"cross-entropy {self.before.mean():.3f} through the adversarial branch"),
            ("5", "X + 0.001 · N(0, 1)", shape, f"largest change {noise:.2f}/255"),
            ("6–7", f"PGD, {a.iterations} steps of {255 * a.step:g}/255", shape, pixel),
            ("8", search, list(self.s.shape), found),
            ("8 as printed", "STBO after each step of PGD", shape, f"cross-entropy {self.printed.mean():.3f}"),
            ("8 as we read it", "forward passes an image", [], f"{self.passes_read:.1f}"),
            ("8 as printed", "forward passes an image", [], f"{self.passes_printed:.1f}"),
            ("11", "first MixBN, each half its own branch", self.shapes[1], halves),
            ("12", "ℓ(f(X), y) + ℓ(f(X′), y)", [], f"{first:.3f}; after one step of Adam {second:.3f}"),
        ]
        return pd.DataFrame([{"line": a, "what": b, "shape": str(c) if c else "–", "result": d} for a, b, c, d in told])

    def network(self) -> list[tuple[str, str]]:
        """What both halves of the batch go through, with shapes."""
        count, *shape = self.images.shape
        return [
            ("X and X′,\none batch", str([2 * count, *shape])),
            ("convolution,\nshared", str(self.shapes[0])),
            ("MixBN:\nclean | adversarial", f"{self.shapes[1]} each"),
            ("… logits,\nshared", str([2 * count, self.classes])),
            ("loss, eq. 14:\nclean + adversarial", " + ".join(f"{half:.2f}" for half in self.losses[0])),
        ]


class _Counter:
    """Counts the images that go forward through a model inside a ``with`` block."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> _Counter:
        self.handle = self.model.register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.count += len(output)


@torch.no_grad()
def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with held_still(model):
        return F.cross_entropy(model(images), labels, reduction="none")


@torch.no_grad()
def _inside(model: nn.Module, clean: Tensor, adversarial: Tensor) -> tuple[list[list[int]], float]:
    """Shapes into the first MixBN: both halves, and one; how far apart the branches' means are, in deviations."""
    first = next(module for module in model.modules() if isinstance(module, MixBatchNorm2d))
    seen: list[list[int]] = []
    handle = first.register_forward_hook(lambda module, inputs, output: seen.append(list(inputs[0].shape)))
    with handle, held_still(model), branch(model, "mix"):
        model(torch.cat([clean, adversarial]))
    mean, other, variance = first.clean.running_mean, first.adv.running_mean, first.clean.running_var
    assert mean is not None and other is not None and variance is not None  # they are kept wherever MixBN is
    distance = ((mean - other).abs() / variance.clamp_min(1e-12).sqrt()).mean()
    return [seen[0], [len(clean), *seen[0][1:]]], float(distance)


@torch.no_grad()
def _tied(model: nn.Module, clean: Tensor, adversarial: Tensor, name: Branch) -> tuple[Tensor, Tensor]:
    """What happens to each clean answer when the other half is put in another order (L23): whether it changes ``[B]``,
    and how far its margin moves, in standard deviations of the margins ``[B]``."""
    # Half the batch further: images come in the order of their files, and the next may well be the same patient's.
    exchanged = adversarial.roll(len(adversarial) // 2, 0)
    with held_still(model), branch(model, name):
        one, other = (model(torch.cat([clean, partners]))[: len(clean)] for partners in (adversarial, exchanged))
    margins, moved = one[:, 1] - one[:, 0], other[:, 1] - other[:, 0]
    return one.argmax(dim=1) != other.argmax(dim=1), (moved - margins).abs() / margins.std().clamp_min(1e-12)


def settings_table(chosen: Chosen[Profile]) -> pd.DataFrame:
    """The document's settings beside this profile's: a row each."""
    recipe, (*_, worst), levels = chosen.settings.recipe, places(chosen), places(chosen)[1:]
    compared = chosen.settings.strategy or recipe
    here: dict[str, float | list[float]] = {
        "epochs": list(dict.fromkeys((recipe.epochs, compared.epochs))),
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.lr,
        "crop": chosen.size,
        "eps": 255 * worst.eps,
        "pgd_iterations": worst.iterations,
        "pgd_step": 255 * worst.step,
        "rotation": worst.box.rotation,
        "translation": worst.box.translation * REFERENCE_SIZE / chosen.size,
        "stbo_queries": chosen.settings.searches,
        "environments_eps": [255 * place.eps for place in levels],
        "environments_rotation": [place.box.rotation for place in levels],
        "environments_translation": [place.box.translation * REFERENCE_SIZE / chosen.size for place in levels],
    }
    printed = documents.published("hpat")
    rows = [
        {"setting": name.replace("_", " "), "published": _listed(printed[name]["value"]), "here": _listed(value)}
        | {"unit": printed[name]["unit"], "where": printed[name]["where"]}
        for name, value in here.items()
    ]
    return pd.DataFrame(rows)


def _listed(value: float | Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in (value if isinstance(value, Sequence) else [value]))
