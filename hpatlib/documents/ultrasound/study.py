"""What the ultrasound report's chapters train and measure: train, perturb, train again on what was perturbed, ask both.

The report makes its perturbed sets once, from the model trained on clean images, so that its results after attack
training measure robustness against another model's attack. The tests that it does not show stand beside them (C3).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import attacks, measure
from hpatlib._model import device_of
from hpatlib.documents import profiles
from hpatlib.documents.profiles import Chosen
from hpatlib.frozen import frozen
from hpatlib.hybrid import Adversary
from hpatlib.measure import Attack, Study, rows
from hpatlib.planning import announce
from hpatlib.records import Record
from hpatlib.runs import Run, Trained, train_or_load
from hpatlib.worst_case import smallest_eps, worst_case

FORMULA = "ultrasound/fig1_2_image_and_noise"
RESNET50 = "ultrasound/fig3_4_resnet50_eps050"
SIMPLE_CNN = "ultrasound/fig5_6_simple_cnn_eps050"
SMALLER = {0.2: "ultrasound/fig7_8_simple_cnn_eps020", 0.05: "ultrasound/fig9_10_simple_cnn_eps005"}
SWEEP = "beyond/ultrasound_eps_sweep"

# Of "training with the perturbed training set" (C3), by the name that conditions have: `Run.static`.
READINGS: dict[str, Literal["continued", "mixed"] | None] = {
    "static": None,
    "continued": "continued",
    "mixed": "mixed",
}
REPORTED = (0.05, 0.2, 0.5)  # the report's ε
EPS = 0.5  # its largest, of figures 3 to 6
PGD_STEPS = 10
MOST = 0.5  # where the search for the smallest ε ends: there every image can be grey
CONDITIONS = ("network", "split", "eps", "training", "test")


class Profile(profiles.Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the report's profiles say beside ``profiles.Profile``.

    ``networks``: models and weights of figures 3 and 4, the last of them in the sweep too; ``network_trainings``: how
    often each is trained there; ``sweep_trainings``: how often both networks of the sweep are; ``ladder``: its ε;
    ``iterations``, ``queries``: of the worst case's gradient attacks, and of its Square attack, an image.
    """

    networks: tuple[tuple[str, str], ...]
    network_trainings: int
    sweep_trainings: int
    ladder: tuple[float, ...]
    iterations: int
    queries: int


def formula(chosen: Chosen[Profile]) -> Record:
    """Figures 1 and 2: how far the printed formula and FGSM move a pixel, and what the simple CNN answers then (C1)."""
    study = Study(FORMULA, chosen, ("eps", "formula"))
    announce(chosen.runs())
    for run in measure.each_training(study, chosen.runs(), "simple CNN"):
        clean = train_or_load(run)
        study.add(clean, rows(clean.test, measure.logits_of(clean.model, clean.test)), eps=0, formula="none")
        for eps in REPORTED:
            for name, attack in formulas(eps).items():
                study.add(clean, _moved(clean, attack), eps=eps, formula=name)
    return study.record()


def formulas(eps: float) -> dict[str, Attack]:
    """The report's formula as printed, without sign and clipping, and FGSM as its authors define it."""
    return {"printed": partial(attacks.gradient_step, eps=eps), "sign": partial(attacks.fgsm, eps=eps)}


def pictures(chosen: Chosen[Profile]) -> dict[str, np.ndarray]:
    """Figures 1 and 2: a malignant phantom, and what both formulas and the signed noise alone make of it at each ε.

    By row ``[1 + number of ε, C, H, W]`` in [0, 1], the image itself first.
    """
    clean = train_or_load(replace(chosen.run, real=False))
    device = device_of(clean.model)
    images, labels = clean.test.tensors(device, index=[int(np.flatnonzero(clean.test.labels == 2)[0])])
    drawn: dict[str, list[Tensor]] = {"sign": [images], "printed": [images]}
    for eps in REPORTED:
        for name, attack in formulas(eps).items():
            drawn[name].append(attack(clean.model, images, labels).clamp(0, 1))
    noise = [0.5 + 0.5 * (picture - images) for picture in drawn["sign"]]
    named = {"with sign": drawn["sign"], "as printed": drawn["printed"], "noise (sign)": noise}
    return {name: torch.cat(row).cpu().numpy() for name, row in named.items()}


def resnet50(chosen: Chosen[Profile]) -> Record:
    """Figures 3 and 4: the large networks before and after attack training at ε = 0.5, beside a simple CNN."""
    study, trainings = Study(RESNET50, chosen, CONDITIONS), chosen.settings.network_trainings
    several = [chosen.runs(trainings, model=model, weights=weights) for model, weights in chosen.settings.networks]
    plain = chosen.runs(trainings)
    announce([*plain, *map(other, plain), *asked_of([run for group in several for run in group], [EPS])])
    for (model, weights), runs in zip(chosen.settings.networks, several, strict=True):
        for run in measure.each_training(study, runs, f"{model} ({weights})"):
            attack_training(study, run, [EPS], searched=())
    # What the others are compared with: the report's simple CNN on the same splits, twice, so that less hangs on its
    # first weights. The second is where transfer attacks come from.
    for run in measure.each_training(study, plain, "simple CNN"):
        for simple in map(train_or_load, (run, other(run))):
            about = {"network": network(simple), "split": run.split_by, "eps": 0, "training": "clean"}
            _add_clean(study, simple, chosen.settings, smallest=False, **about)
    return study.record()


def simple_cnn(chosen: Chosen[Profile]) -> Record:
    """Figures 5 and 6: the simple CNN before and after attack training at ε = 0.5.

    Split both ways (C4), and for near-duplicates on one side, trained in each of the readings that C3 leaves open.
    """
    study = Study(SIMPLE_CNN, chosen, CONDITIONS)
    splits = {"patient": list(READINGS), "random": ["static"]}
    announce(run for split, kinds in splits.items() for run in asked_of(chosen.runs(split_by=split), [EPS], kinds))
    for split, trainings in splits.items():
        for run in measure.each_training(study, chosen.runs(split_by=split), f"split by {split}"):
            attack_training(study, run, [EPS], trainings)
    return study.record()


def smaller_eps(chosen: Chosen[Profile], eps: float) -> Record:
    """Figures 7 and 8 (ε = 0.2) or 9 and 10 (ε = 0.05): the simple CNN at a smaller ε, beside ε = 0.5.

    Raises ``ValueError`` for another ``eps``.
    """
    if eps not in SMALLER:
        raise ValueError(f"the report has no figures at ε = {eps}: choose one of {', '.join(map(str, SMALLER))}")
    study = Study(SMALLER[eps], chosen, CONDITIONS)
    announce(asked_of(chosen.runs(), [eps, EPS]))
    for run in measure.each_training(study, chosen.runs(), "simple CNN"):
        attack_training(study, run, [eps, EPS])
    return study.record()


def sweep(chosen: Chosen[Profile]) -> Record:
    """Beyond the figures: two networks over the ladder of ε, trained online too, and whether noise tells its label."""
    study, settings = Study(SWEEP, chosen, CONDITIONS), chosen.settings
    trainings, (model, weights) = ["static", "online"], settings.networks[-1]
    small = chosen.runs(settings.sweep_trainings)
    large = chosen.runs(settings.sweep_trainings, model=model, weights=weights)
    announce(asked_of([*small, *large], settings.ladder, trainings))
    for title, runs in {"simple CNN": small, f"{model} ({weights})": large}.items():
        for run in measure.each_training(study, runs, title):
            attack_training(study, run, settings.ladder, trainings, searched=settings.ladder[:1], leaks=True)
    return study.record()


def asked_of(runs: Sequence[Run], ladder: Sequence[float], trainings: Sequence[str] = ("static",)) -> list[Run]:
    """What `attack_training` trains for each of ``runs``."""
    against_each = [against(run, training, eps) for run in runs for training in trainings for eps in ladder]
    return [*runs, *map(other, runs), *against_each]


def attack_training(
    study: Study,
    run: Run,
    ladder: Sequence[float],
    trainings: Sequence[str] = ("static",),
    *,
    searched: Sequence[float] | None = None,
    leaks: bool = False,
) -> None:
    """Train ``run`` on clean images and against each ε of ``ladder``; take down what each model answers to each test.

    ``trainings``: how it is trained against an ε, see `against`. ``searched``: the ε of which the smallest ε is sought
    too, after training against them and on clean images (None: all). ``leaks``: the tests of `leaking` too.
    """
    searched = ladder if searched is None else searched
    clean, source, settings = train_or_load(run), train_or_load(other(run)), study.chosen.settings
    quick, transfer = frozen(clean.model), frozen(source.model)  # asked for gradients, judged by the models
    about = {"network": network(clean), "split": run.split_by}
    labels = torch.from_numpy(clean.test.labels)
    largest = torch.zeros(len(labels), len(clean.test.classes))
    largest[:, labels.bincount().argmax()] = 1
    study.add(clean, _unmargined(rows(clean.test, largest)), **about, eps=0, training="none", test="clean")
    _add_clean(study, clean, settings, smallest=bool(searched), **about, eps=0, training="clean")
    study.model(source)
    for eps in ladder:
        for training in ("clean", *trainings):
            trained = clean
            if training != "clean":
                trained = train_or_load(against(run, training, eps))
                _add_clean(study, trained, settings, smallest=eps in searched, **about, eps=eps, training=training)
            asked = {**about, "eps": eps, "training": training}
            attacked = tests(quick, transfer, settings, eps=eps, seed=run.seed)
            asking = quick if trained is clean else frozen(trained.model)
            for test, answers in measure.attacked(trained.model, trained.test, attacked, asked=asking):
                study.add(trained, rows(clean.test, answers), **asked, test=test)
            if leaks:
                for test, outcomes in leaking(trained, clean.model, eps=eps, seed=run.seed).items():
                    study.add(trained, outcomes, **asked, test=test)


def against(run: Run, training: str, eps: float) -> Run:
    """``run`` trained against FGSM at ``eps``, in one of the readings of C3.

    "static": anew, on the perturbed set alone, which is made once; "continued": the same, from where clean training
    ended; "mixed": anew, on clean and perturbed images; "online": on clean images and on examples of the model as it
    is in each step, adversarial training in today's sense.
    """
    if training == "online":
        return replace(run, adversary=Adversary(eps=eps, step=eps))
    return replace(run, static_eps=eps, static=READINGS[training])


def other(run: Run) -> Run:
    """Where transfer attacks on ``run`` come from: a simple CNN of the same split with other first weights."""
    return replace(run.clean, model="simple_cnn", weights="scratch", repeat=run.repeat + 1)


def network(trained: Trained) -> str:
    """Name and start of a network, as records have it."""
    run = trained.provenance["run"]
    return f"{run['model']} ({run['weights']})"


def tests(
    source: nn.Module, transfer: nn.Module, settings: Profile, *, eps: float, seed: int
) -> dict[str, Attack | None]:
    """The attacks under which every model is asked, by the name of the test.

    The report's own is "perturbed": FGSM on ``source``, the clean-trained model, whichever model answers. White-box
    attacks are on the model that answers, PGD in 10 steps of 2.5 ε / 10 from a random start, "transfer FGSM" on a
    third model. "worst case" is the whole suite, transfer from both other models included, an image at a time.
    """
    fgsm, generator = partial(attacks.fgsm, eps=eps), torch.Generator().manual_seed(seed)

    def worst(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        others = [each for each in (source, transfer) if each is not model]
        found = worst_case(
            model,
            images,
            labels,
            eps=eps,
            surrogates=others,
            iterations=settings.iterations,
            queries=settings.queries,
            generator=generator,
        )
        return found.images

    return {
        "perturbed": made_on(source, fgsm),
        "white-box FGSM": fgsm,
        "white-box PGD": partial(attacks.pgd, eps=eps, iterations=PGD_STEPS, generator=generator),
        "transfer FGSM": made_on(transfer, fgsm),
        "worst case": worst,
    }


def made_on(source: nn.Module, attack: Attack) -> Attack:
    """``attack`` on ``source``, whichever model answers."""
    return lambda model, images, labels: attack(source, images, labels)


def leaking(trained: Trained, source: nn.Module, *, eps: float, seed: int) -> dict[str, pd.DataFrame]:
    """Does a model read the label off the noise (label leaking, C3)? Outcomes by the name of the test.

    FGSM follows the gradient of the loss at a label, so its noise ε · sign ∇ℓ, of ``source``, knows that label. "noise
    alone": grey 0.5 and noise, without the image; "predicted label": noise made from ``source``'s own answer; "wrong
    label": noise made from another class drawn at random, with a column ``misled``, 1 where that class is answered.
    """
    test, fgsm = trained.test, made_on(source, partial(attacks.fgsm, eps=eps))
    random, classes = torch.Generator().manual_seed(seed), len(test.classes)
    shift = torch.randint(1, classes, (len(test),), generator=random).numpy()
    wrong = replace(test, labels=(test.labels + shift) % classes)
    predicted = replace(test, labels=measure.logits_of(source, test).argmax(dim=1).numpy())

    def alone(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return (0.5 + eps * attacks.gradient(source, images, labels).sign()).clamp(0, 1)

    answers = {
        name: dict(measure.attacked(trained.model, images, {name: attack}))[name]
        for name, images, attack in (
            ("noise alone", test, alone),
            ("predicted label", predicted, fgsm),
            ("wrong label", wrong, fgsm),
        )
    }
    found = {name: _unmargined(rows(test, said)) for name, said in answers.items()}
    said = answers["wrong label"].argmax(dim=1).numpy()
    found["wrong label"]["misled"] = (said == wrong.labels).astype(float)
    return found


def _unmargined(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Without margins, which make up most of a record: these tests ask for answers alone."""
    return outcomes.drop(columns="margin")


def _add_clean(study: Study, trained: Trained, settings: Profile, *, smallest: bool, **about: object) -> None:
    """What hangs on no test's ε: answers to clean images, the smallest ε that changes each if asked for, and a loss.

    ``smallest``, in grey levels: 0 where the answer is wrong already, at most ``MOST``, so that its mean over images is
    the area under accuracy against ε. ``ratio``, a row of no image: the last epoch's loss over the first's.
    """
    test, answers = trained.test, measure.logits_of(trained.model, trained.test)
    study.add(trained, rows(test, answers), **about, test="clean")
    seed = trained.provenance["run"]["seed"]
    if smallest:
        asked, draws = frozen(trained.model), torch.Generator().manual_seed(seed)
        found = [
            smallest_eps(asked, x, y, most=MOST, iterations=settings.iterations, generator=draws).clamp(max=MOST)
            for x, y in test.batches(measure.BATCH, device=device_of(trained.model))
        ]
        spent = pd.DataFrame(measure.named(test)).assign(smallest=255 * torch.cat(found).cpu().numpy())
        study.add(trained, spent, **about, test="smallest ε")
    losses = [epoch["loss"] for epoch in trained.provenance["epochs"]]
    # A cluster of its own in each training, which has no other images to vary over.
    row = {"image": "training", "group": f"training {seed}", "ratio": losses[-1] / losses[0]}
    study.add(trained, pd.DataFrame([row]), **about, test="training loss")


def _moved(trained: Trained, attack: Attack) -> pd.DataFrame:
    """Answers to perturbed images, and how far each image's pixels moved, in grey levels of 255."""
    answers, means, largest = [], [], []
    device = device_of(trained.model)
    for images, labels in trained.test.batches(measure.BATCH, device=device):
        perturbed = attack(trained.model, images, labels)
        moved = 255 * (perturbed - images).abs().flatten(1)
        answers.append(measure.logits(trained.model, perturbed).cpu())
        means.append(moved.mean(dim=1).cpu())
        largest.append(moved.amax(dim=1).cpu())
    change = {"mean change": torch.cat(means).numpy(), "largest change": torch.cat(largest).numpy()}
    return rows(trained.test, torch.cat(answers), **change)
