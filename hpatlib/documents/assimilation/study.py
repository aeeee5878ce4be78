"""The slides' experiment: transfer learning with and without domain assimilation, and how much ε each withstands.

Every attack goes through the whole chain F ∘ B ∘ norm ∘ C ∘ T to the grey image in [0, 1] (D7). Three questions are
asked of each pair of trainings: the slides' own (four attacks along ε), the smallest ε that changes each image's answer
(never at a floor), and what standard attacks together leave standing, gradient-free and transferred ones among them.
Beside the slides' two trainings stand a random repaint that colours as much as the learned one (is it learning that
helps?) and adversarial training at a small ε (what does a defence give that is known to work?).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import attacks, checks, data, documents
from hpatlib._model import device_of
from hpatlib.apgd import Norm
from hpatlib.assimilation import Assimilated, GLCMLoss, Objective, Repaint, channel_spread, grayscale
from hpatlib.data import ImageSet
from hpatlib.documents import profiles
from hpatlib.documents.assimilation.quantities import (
    ADVERSARIAL,
    ALPHAS,
    BEYOND,
    FEW,
    FREE,
    LONG,
    MEDICAL,
    MOST,
    PAIR,
    RANDOM,
    TRAININGS,
    TRANSFERRED,
    WINDOW,
    WORST,
    WORST_L2,
    strength,
)
from hpatlib.documents.profiles import Chosen
from hpatlib.frozen import frozen
from hpatlib.glcm import FEATURES
from hpatlib.hybrid import Adversary
from hpatlib.measure import BATCH, Study, each_training, logits, logits_of, named, rows, sample
from hpatlib.planning import announce, even_count
from hpatlib.records import Record
from hpatlib.runs import Run, Trained, train_or_load
from hpatlib.worst_case import smallest_eps, worst_case

Made = Callable[[Tensor, Tensor], Tensor]  # what an attack on a model that is chosen makes of images and labels

# The slides have one learning rate, 1e-4. From the identity it moves T and C by a thousandth of the pixel range at
# most: nothing is adapted. With this one they colour pictures as the gate on the dose demands (D13).
FRONT_LR = 3e-3
ADVERSARY = Adversary(eps=1 / 255, step=0.5 / 255, iterations=3, start="uniform")
MODULES = (("T", 1), ("C", 3))  # and their output channels
# The same pictures, none missing or left out, at a lower resolution.
COMPLETE = {"chest_xray": "pneumoniamnist", "busi2": "breastmnist"}
READ = (1, 4, 8)  # the slides' ε, in grey levels, at which other readings of their attacks are measured
LIBRARY_STEP = 2 / 255  # PGD's step where a library's user does not name one


class Profile(profiles.Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``backbones``: the networks under attack, with their weights; ``model`` is that of the "why" chapters.

    ``why_trainings``: how often these train each network, from the chapter's seed plus ``why_seed`` on
    (`hpatlib.evidence` knows both by their prefix).

    ``ladder``, ``short_ladder``: ε in grey levels of 255, for chest CT and for the other three data sets; ``standard``:
    ε in grey levels at which the standard attacks are run together, the slides' smallest and one where about half of
    vanilla's validation images stand; ``iterations``: of iterated attacks; ``suite_iterations``, ``restarts``: of the
    standard attacks; ``auto_iterations``: of their Auto-PGD; ``queries``: of their Square attack, an image; ``most``:
    at most so many images of a data set, where the slides have more; ``textures``: images of each set whose textures
    are measured; ``natural``: the natural images that real medical ones are compared with, a key of ``data.SOURCES``
    (phantoms: photographs).
    """

    backbones: tuple[tuple[str, str], ...]
    ladder: tuple[float, ...]
    short_ladder: tuple[float, ...]
    standard: tuple[float, ...]
    iterations: int
    restarts: int
    queries: int
    suite_iterations: int = 20
    auto_iterations: int = 100
    textures: int
    natural: str
    why_trainings: int
    why_seed: int = 0
    most: int | None = None


def choose(profile: str, data: str | None, seed: int) -> Chosen[Profile]:
    """A chapter's parameters, checked; the run is vanilla transfer learning on chest CT."""
    chosen = profiles.choose("assimilation", Profile, profile, data, seed, dataset="chest_ct", test=1 / 5)
    return replace(chosen, run=replace(chosen.run, front="replicated", count=count(chosen, "chest_ct")))


def count(chosen: Chosen[Profile], dataset: str) -> int | None:
    """How many images of a data set are used: of real ones, as many of each class as the slides have (D9), or less."""
    if not chosen.run.real or chosen.settings.count is not None:
        return chosen.run.count
    even = even_count(dataset)
    return min(even, chosen.settings.most or even)


def runs(chosen: Chosen[Profile], dataset: str, model: str, weights: str) -> list[Run]:
    """Vanilla transfer learning on one of the four data sets, a run a training."""
    images = count(chosen, dataset)
    return [replace(run, count=images) for run in chosen.runs(dataset=dataset, model=model, weights=weights)]


def trained_as(run: Run, training: str, *, spread: float | None = None) -> Run:
    """The run of one of ``TRAININGS`` from the vanilla one: same split, same first weights, same order of batches.

    ``spread``: the mean channel spread that a random repaint is scaled to. Below 64 px the loss leaves out ASM. Raises
    ``ValueError`` for another name, and for a random repaint without a spread.
    """
    if training not in TRAININGS:
        raise ValueError(f"unknown training {training!r}: choose one of {', '.join(TRAININGS)}")
    if training == "vanilla":
        return run
    if training == ADVERSARIAL:
        return replace(run, adversary=ADVERSARY)
    if training == RANDOM:
        if spread is None:
            raise ValueError("a random repaint needs the spread that it is scaled to: pass spread=")
        return replace(run, front="assimilated", spread=spread)
    features = FEATURES if run.size >= 64 else tuple(name for name in FEATURES if name != "asm")
    alpha = ALPHAS[training]
    # Without the loss its settings decide nothing, so they must not make a key of their own.
    texture = texture_loss(run.size, features=features) if alpha < 1 else GLCMLoss()
    recipe = replace(run.recipe, front_lr=FRONT_LR)
    return replace(run, front="assimilated", recipe=recipe, objective=Objective(alpha=alpha, texture=texture))


def texture_loss(size: int, *, features: tuple[str, ...] = FEATURES) -> GLCMLoss:
    """The GLCM loss for images of ``size`` px: windows of 20 px, or of half an image where 2 × 2 of 20 px do not fit.

    Raises ``ValueError`` where a window would not hold the slides' distance of 3 px, below 8 px.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 px, so that windows hold pairs 3 px apart, found {size!r}")
    return GLCMLoss(window=min(WINDOW, size // 2), features=features)


def with_dose(run: Run, shown: int) -> tuple[Trained, ImageSet, dict[str, np.ndarray]]:
    """A model trained or loaded, ``shown`` of its test images, and what T and C do to them (empty without them).

    Its dose: ``channel_spread``, the largest less the smallest channel, and ``texture``, the GLCM loss; means.
    """
    trained = train_or_load(run)
    images = sample(trained.test, shown)
    if not isinstance(trained.model, Assimilated):
        return trained, images, {}
    adapted = adaptation(trained.model, images)
    dose = {"channel_spread": float(adapted["colour"].mean()), "texture": float(adapted["texture"].mean())}
    return replace(trained, provenance=trained.provenance | {"dose": dose}), images, adapted


def spread_of(run: Run, shown: int) -> float:
    """The mean channel spread of domain assimilation on this split, to two digits: what a random repaint is given."""
    dose = with_dose(trained_as(run, "assimilated"), shown)[0].provenance["dose"]
    return float(f"{max(0.001, dose['channel_spread']):.2g}")


@torch.no_grad()
def adaptation(model: Assimilated, images: ImageSet) -> dict[str, np.ndarray]:
    """How far the picture C(T(x)) is from the grey image, a number ``[N]`` each.

    ``"texture"``: the GLCM loss of all five features whatever the training used; each feature's part of it;
    ``"colour"``: the largest less the smallest channel, mean over pixels, in [0, 1].
    """
    parts: dict[str, list[Tensor]] = {}
    loss = texture_loss(images.size)
    for x, _ in images.batches(64, device=device_of(model)):
        picture = model.colour_image(x)
        moved = (loss.textures(grayscale(picture)) - loss.textures(x)).abs()  # [B, windows, 5 · orientations]
        values = {"texture": moved.sum(dim=2).amax(dim=1)}
        for feature, part in zip(FEATURES, moved.chunk(len(FEATURES), dim=2), strict=True):
            values[feature] = part.sum(dim=2).amax(dim=1)
        values["colour"] = channel_spread(picture)
        for name, each in values.items():
            parts.setdefault(name, []).append(each.double().cpu())
    return {name: torch.cat(each).numpy() for name, each in parts.items()}


def accuracy_vs_attack_strength(chosen: Chosen[Profile]) -> Record:
    """The results figure, and all seven trainings on chest CT with their doses and smallest ε."""
    ladder = chosen.settings.ladder
    return _under_attack("accuracy_vs_attack_strength", chosen, MEDICAL[:1], TRAININGS, ladder, readings=True)


def all_datasets(chosen: Chosen[Profile]) -> Record:
    """The same for the other three data sets: vanilla, assimilated, and a random repaint."""
    return _under_attack("all_datasets", chosen, MEDICAL[1:], FEW, chosen.settings.short_ladder, l2=True)


def _under_attack(
    chapter: str,
    chosen: Chosen[Profile],
    datasets: Sequence[str],
    trainings: Sequence[str],
    ladder: Sequence[float],
    *,
    readings: bool = False,
    l2: bool = False,
) -> Record:
    """Every training is asked for its smallest ε; the slides' pair for its accuracy along the ladder too, and under
    other ``readings`` of their attacks. The pair and adversarial training face the standard attacks; in ``l2``, the
    pair does once.

    Table ``felled``: how many images each of the standard attacks was the first to fell, over all trainings of a kind,
    and what they asked of the model, in forward passes an image;
    table ``masking``: the checks for masked gradients, for the pair's first training.
    """
    study = Study(f"assimilation/{chapter}", chosen, ("dataset", "network", "training", "attack", "eps"))
    settings = chosen.settings
    places = [(dataset, *backbone) for dataset in datasets for backbone in settings.backbones]
    groups = [runs(chosen, *place) for place in places]

    def all_as(training: str, spread: Callable[[Run], float]) -> list[Run]:
        return [trained_as(run, training, spread=spread(run)) for group in groups for run in group]

    announce(
        [run for training in trainings if training != RANDOM for run in all_as(training, lambda run: 1.0)],
        later=all_as(RANDOM, lambda run: 1.0),
        settle=lambda: all_as(RANDOM, lambda run: spread_of(run, settings.shown)),
    )
    for (dataset, model, weights), group in zip(places, groups, strict=True):
        for run in each_training(study, group, dataset):
            spread = spread_of(run, settings.shown)
            asked = {t: with_dose(trained_as(run, t, spread=spread), settings.shown)[:2] for t in trainings}
            about = {"dataset": dataset, "network": f"{model} ({weights})"}
            for training, (mine, images) in asked.items():
                where = about | {"training": training}
                study.add(mine, clean_rows(mine.model, images, settings, run.seed), **where, attack="none", eps="0/255")
                others = [other.model for name, (other, _) in asked.items() if name in PAIR and name != training]
                surrogates = others if training in PAIR else others[:1]
                for level in settings.standard if training in (*PAIR, ADVERSARIAL) else ():
                    right, told = stands(mine.model, images, surrogates, level, settings, run.seed)
                    study.add(mine, judged(images, right), **where, attack=WORST, eps=strength(level))
                    study.table("felled", told.assign(**where, eps=strength(level)))
                if training not in PAIR:
                    continue
                if l2:
                    level = settings.standard[0]
                    right, told = stands(mine.model, images, surrogates, level, settings, run.seed, norm="l2")
                    study.add(mine, judged(images, right), **where, attack=WORST_L2, eps=strength(level))
                    study.table("felled", told.assign(**where, eps=f"{strength(level)}, L2"))
                steps = {"iterations": settings.iterations, "seed": run.seed}
                for attack, eps, right in climbed(mine.model, images, ladder, **steps):
                    study.add(mine, judged(images, right), **where, attack=attack, eps=eps)
                if readings:
                    vanilla = asked["vanilla"][0].model
                    for attack, eps, right in read_otherwise(mine.model, vanilla, images, ladder, **steps):
                        study.add(mine, judged(images, right), **where, attack=attack, eps=eps)
                if run.seed == chosen.seed:
                    tries = {"restarts": settings.restarts, "queries": settings.queries, **steps}
                    x, y = images.tensors(device_of(mine.model))
                    # Where PGD leaves something to fell: at the slides' ε it leaves next to nothing.
                    level = settings.standard[0]
                    found = checks.gather(mine.model, others[0], x, y, eps=level / 255, **tries)
                    table = checks.verdicts(found, images.groups)
                    study.table("masking", table.assign(**where, eps=strength(level), seed=run.seed))
    felled = study.taken("felled")
    kinds = felled.groupby(["dataset", "network", "training", "eps", "attack"], sort=False)["queries"]
    study.table("felled", kinds.agg(images="size", queries="mean").reset_index())
    return study.record()


def clean_rows(model: nn.Module, images: ImageSet, settings: Profile, seed: int) -> pd.DataFrame:
    """The answers to clean images, and ``smallest``: the smallest ε in grey levels that changes each.

    0 where the answer is wrong already, ``BEYOND`` where ``MOST`` does not change it.
    """
    x, y = images.tensors(device_of(model))
    draws = torch.Generator().manual_seed(seed)
    least = smallest_eps(frozen(model), x, y, most=MOST / 255, iterations=settings.iterations, generator=draws)
    return rows(images, logits(model, x), smallest=(255 * least.double()).clamp_max(BEYOND).cpu().numpy())


def stands(
    model: nn.Module,
    images: ImageSet,
    surrogates: Sequence[nn.Module],
    level: float,
    settings: Profile,
    seed: int,
    *,
    norm: Norm = "linf",
) -> tuple[np.ndarray, pd.DataFrame]:
    """Which images the standard attacks leave right at ε = ``level`` grey levels ``[N]``; and a row an image: the
    ``attack`` that felled it, or "stands", and its ``queries`` in forward passes.

    In L2, ε is the length of a change by ``level`` in every pixel.
    """
    x, y = images.tensors(device_of(model))
    eps = level / 255 * (1.0 if norm == "linf" else math.sqrt(x[0].numel()))
    tries: dict[str, Any] = {"restarts": settings.restarts, "queries": settings.queries}
    tries |= {"iterations": settings.suite_iterations, "auto_iterations": settings.auto_iterations}
    draws = torch.Generator().manual_seed(seed)
    others = [frozen(surrogate) for surrogate in surrogates]
    found = worst_case(frozen(model), x, y, eps=eps, norm=norm, surrogates=others, generator=draws, **tries)
    right = (logits(model, found.images).argmax(dim=1) == y).cpu().numpy()
    # Where the copy says that an image stands and rounding decides: the last attack made it.
    felled = zip(right, found.felled_by, strict=True)
    names = ["stands" if stood else name or "transfer" for stood, name in felled]
    return right, pd.DataFrame({"attack": names, "queries": found.queries.cpu().numpy()})


def climbed(
    model: nn.Module, images: ImageSet, ladder: Sequence[float], *, iterations: int, seed: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(attack, ε, where the model is right ``[N]``): the slides' four attacks at each ε of ``ladder``, grey levels.

    FGSM is asked at every ε. An iterated attack (ε / 4 a step; PGD from a uniform start that ``seed`` draws) goes on
    with the images that are right when clean and that it did not flip at a smaller ε: that example lies in the larger
    ball too. So its accuracy falls along ε by construction; whether the attack itself gets weaker is asked by
    ``checks``.
    """
    if not ladder or list(ladder) != sorted(ladder) or not all(0 < level <= 255 for level in ladder):
        raise ValueError(f"ladder must hold rising ε in (0, 255], grey levels of 255, found {list(ladder)}")
    x, y = images.tensors(device_of(model))
    standing = dict.fromkeys(("BIM", "MI-FGSM", "PGD"), logits(model, x).argmax(dim=1) == y)
    asked, starts = frozen(model), torch.Generator().manual_seed(seed)
    for level in ladder:
        eps = level / 255
        fgsm = _right(model, x, y, partial(attacks.fgsm, asked, eps=eps))
        yield "FGSM", strength(level), fgsm.cpu().numpy()
        steps: dict[str, Any] = {"eps": eps, "step": eps / 4, "iterations": iterations}
        made: dict[str, Made] = {
            "BIM": partial(attacks.bim, asked, **steps),
            "MI-FGSM": partial(attacks.mifgsm, asked, **steps),
            "PGD": partial(attacks.pgd, asked, **steps, generator=starts),
        }
        for name, attack in made.items():
            standing[name] = _still(model, x, y, attack, standing[name])
            yield name, strength(level), standing[name].cpu().numpy()


def read_otherwise(
    model: nn.Module, vanilla: nn.Module, images: ImageSet, ladder: Sequence[float], *, iterations: int, seed: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """The same triples for readings under which a margin may appear that is no robustness (D8), at ``READ``.

    PGD made on the ``vanilla`` model, the same examples whichever model is shown them; and PGD with steps of
    ``LIBRARY_STEP`` whatever ε is.
    """
    x, y = images.tensors(device_of(model))
    clean = logits(model, x).argmax(dim=1) == y
    asked, starts = frozen(model), torch.Generator().manual_seed(seed)
    source = asked if model is vanilla else frozen(vanilla)
    for level in (level for level in ladder if level in READ):
        steps: dict[str, Any] = {"eps": level / 255, "iterations": iterations}
        long: Made = partial(attacks.pgd, asked, step=LIBRARY_STEP, generator=starts, **steps)
        yield LONG, strength(level), _still(model, x, y, long, clean).cpu().numpy()
        anew = torch.Generator().manual_seed(seed)
        made: Made = partial(attacks.pgd, source, step=level / 255 / 4, generator=anew, **steps)
        yield TRANSFERRED, strength(level), (clean & _right(model, x, y, made)).cpu().numpy()


def _right(model: nn.Module, x: Tensor, y: Tensor, attack: Made) -> Tensor:
    """Where the model is right about what ``attack(images, labels)`` made ``[N]``."""
    pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([logits(model, attack(*pair)).argmax(dim=1) == pair[1] for pair in pairs])


def _still(model: nn.Module, x: Tensor, y: Tensor, attack: Made, standing: Tensor) -> Tensor:
    """Which of the images that stand ``[N]`` do so under an attack too; the others are not asked."""
    after = standing.clone()
    if standing.any():
        after[standing] = _right(model, x[standing], y[standing], attack)
    return after


def judged(images: ImageSet, right: np.ndarray) -> pd.DataFrame:
    """Rows of outcomes of which only right or wrong is known: of two classes that decides the prediction."""
    answers = {"label": images.labels, "prediction": np.where(right, images.labels, 1 - images.labels)}
    return pd.DataFrame(named(images) | answers)


def texture_colour_adaptation(chosen: Chosen[Profile]) -> Record:
    """Texture and colour of the adapted pictures of chest CT and brain MRI, with and without the GLCM loss."""
    study = Study("assimilation/texture_colour_adaptation", chosen, ("dataset", "network", "training"))
    asked = [(dataset, *backbone) for dataset in MEDICAL[:2] for backbone in chosen.settings.backbones]
    announce(trained_as(run, t) for place in asked for run in runs(chosen, *place) for t in ("assimilated", FREE))
    for dataset in MEDICAL[:2]:
        for model, weights in chosen.settings.backbones:
            for run in each_training(study, runs(chosen, dataset, model, weights), dataset):
                for training in ("assimilated", FREE):
                    trained, images, adapted = with_dose(trained_as(run, training), chosen.settings.shown)
                    about = {"dataset": dataset, "network": f"{model} ({weights})", "training": training}
                    study.add(trained, rows(images, logits_of(trained.model, images), **adapted), **about)
    return study.record()


def pictures(chosen: Chosen[Profile], *, label: int = 1, count: int = 2) -> dict[str, dict[str, np.ndarray]]:
    """What the backbone sees of ``count`` phantoms of one class: data set → name → ``[count, C, S, S]`` in [0, 1].

    ``"original"``, ``"without GLCM loss"``, ``"with GLCM loss"``, from models trained on phantoms: pages show no
    patient's image.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    model, weights = chosen.settings.backbones[0]
    drawn = replace(chosen.run, model=model, weights=weights, real=False)
    drawn = replace(drawn, count=None if chosen.run.real else chosen.run.count)
    several = [replace(drawn, dataset=dataset) for dataset in MEDICAL[:2]]
    announce(trained_as(run, training) for run in several for training in (FREE, "assimilated"))
    for dataset, run in zip(MEDICAL[:2], several, strict=True):
        shown = found.setdefault(dataset, {})
        for training in (FREE, "assimilated"):
            trained = train_or_load(trained_as(run, training))
            index = np.flatnonzero(trained.test.labels == label)[:count]
            x, _ = trained.test.tensors(device_of(trained.model), index=index)
            shown.setdefault("original", x.cpu().numpy())
            assert isinstance(trained.model, Assimilated)
            with torch.no_grad():
                picture = trained.model.colour_image(x)
            shown["with GLCM loss" if training == "assimilated" else training] = picture.cpu().numpy()
    return found


def datasets_and_training(chosen: Chosen[Profile]) -> Record:
    """Tables ``sizes`` and ``settings``: the slides' beside what is at hand; and what a split by image flatters.

    Vanilla transfer learning on each of the four sets, split by patient or group and by image.
    """
    study = Study("assimilation/datasets_and_training", chosen, ("dataset", "split", "class"))
    model, weights = chosen.settings.backbones[0]
    epochs, splits = [], ("patient", "image")
    several = [run for dataset in MEDICAL for run in runs(chosen, dataset, model, weights)]
    announce(replace(run, split_by=split) for run in several for split in splits)
    for dataset in MEDICAL:
        for run in runs(chosen, dataset, model, weights):
            for split in splits:
                trained = train_or_load(replace(run, split_by=split))
                study.add(
                    trained,
                    rows(trained.test, logits_of(trained.model, trained.test)),
                    **{"dataset": dataset, "split": split, "class": "both"},
                )
                epochs.append(len(trained.provenance["epochs"]))
    classes = sizes(chosen)
    study.table("sizes", classes)
    study.table("settings", settings_table(chosen, epochs))
    for row in classes.to_dict("records") if chosen.run.real else ():
        lacking = {"image": ["all"], "group": ["all"], "missing": [max(0, row["published"] - row["public"])]}
        about = {"dataset": row["dataset"], "split": "none", "class": row["class"]}
        study.add(None, pd.DataFrame(lacking), **about)
    return study.record()


def sizes(chosen: Chosen[Profile]) -> pd.DataFrame:
    """Class sizes, a row a class: ``dataset``, ``class``, ``published``, ``at_hand``, ``public``, ``used``.

    ``at_hand``: files found; ``public``: those of the most complete copy of the data set that was found; both of real
    images only.
    """
    printed, found = documents.published("assimilation"), []
    files: dict[str, list[int]] = {}
    for part in data.status():
        files.setdefault(part["key"], list(part["classes"].values()))  # the first part is the one that is read
    for dataset in MEDICAL:
        source = data.SOURCES[dataset]
        own = replace(chosen.run, dataset=dataset, count=count(chosen, dataset))
        images = data.load(dataset, real=own.real, size=own.size, count=own.count, seed=own.seed)
        used = np.bincount(images.labels, minlength=len(source.classes))
        complete = files[COMPLETE.get(dataset, dataset)]
        for label, name in enumerate(source.classes):
            row = {"dataset": dataset, "class": name, "published": int(printed[dataset]["value"])}
            if own.real:
                row |= {"at_hand": files[dataset][label], "public": max(files[dataset][label], complete[label])}
            found.append(row | {"used": int(used[label])})
    return pd.DataFrame(found)


def settings_table(chosen: Chosen[Profile], epochs: Sequence[int]) -> pd.DataFrame:
    """The slides' training settings beside this profile's: ``setting``, ``published``, ``here``, ``where``.

    ``epochs``: how many each training of the page took.
    """
    printed, s = documents.published("assimilation"), chosen.settings
    recipe, loss = chosen.run.recipe, texture_loss(chosen.size)
    objective = trained_as(chosen.run, "assimilated").objective
    assert objective is not None  # trained_as gives one
    here = {
        "models": ", ".join(f"{model} ({weights})" for model, weights in s.backbones),
        "learning_rate": f"{recipe.lr:g}",
        "batch_size": str(recipe.batch_size),
        "epochs": f"{recipe.epochs} at most; {min(epochs)} to {max(epochs)} on this page",
        "patience": str(recipe.patience),
        "input_size": f"{chosen.size} px, 1 channel",
        "glcm_distance": f"{loss.distance} px",
        "glcm_orientations": str(loss.angles),
        "glcm_window": f"{loss.window} px",
        "strengths": ", ".join(f"{level:g}" for level in s.ladder),
        "glcm_features": ", ".join(objective.texture.features),
        "alpha": ", ".join(f"{alpha:g}" for alpha in ALPHAS.values()),
        "front": f"{FRONT_LR:g}",
        "modules": ", ".join(f"{name} {sum(p.numel() for p in Repaint(n).parameters())}" for name, n in MODULES),
    }
    unsaid = {"glcm_features": "features in the GLCM loss", "alpha": "α of equation 18", "modules": "parameters"}
    unsaid["front"] = "learning rate of T and C"
    return pd.DataFrame(
        {
            "setting": printed[name]["name"] if name in printed else unsaid[name],
            "published": str(printed[name]["shown"]) if name in printed else "not said",
            "here": value,
            "where": printed[name]["where"] if name in printed else "–",
        }
        for name, value in here.items()
    )


def specimens(size: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A phantom of each class of each data set: ``"negative"`` and ``"positive"`` → ``[4, 1, size, size]``."""
    drawn = [data.load(name, real=False, size=size, count=2, seed=seed) for name in MEDICAL]
    index = {"negative": 0, "positive": 1}
    return {name: np.concatenate([d.tensors(index=[k])[0].numpy() for d in drawn]) for name, k in index.items()}
