"""The slides' experiment: transfer learning with and without domain assimilation, under four attacks.

Every attack is white-box and goes through the whole chain F ∘ B ∘ norm ∘ C ∘ T to the grey image in [0, 1] (D7). The
slides print neither steps nor iterations (D8): BIM, MI-FGSM and PGD take the profile's ``iterations`` of ε / 4, PGD
from a uniform start, FGSM one step of ε. An adaptive attacker then asks what the slides leave open: does a margin
outlive attacks that need no gradient of the assimilated model?
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import attacks, checks, data, documents
from hpatlib._model import device_of
from hpatlib.assimilation import Assimilated, GLCMLoss, Objective, Repaint, grayscale
from hpatlib.data import ImageSet
from hpatlib.documents import profiles
from hpatlib.documents.assimilation.quantities import (
    MEDICAL,
    PAIR,
    SMALLEST,
    TRAININGS,
    WINDOW,
    WORST,
    levels,
    strength,
)
from hpatlib.documents.profiles import Chosen
from hpatlib.glcm import FEATURES
from hpatlib.measure import Attack, Study, attacked, logits, named, rows, sample
from hpatlib.records import Record
from hpatlib.runs import Run, Trained, train_or_load

ALPHA = 0.5  # equation 18 weighs cross-entropy by α; the slides give no value (D1)
MODULES = (("T", 1), ("C", 3))  # and their output channels
COMPLETE = {"chest_xray": "pneumoniamnist"}  # the same radiographs, none missing, at a lower resolution


class Profile(profiles.Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``backbones``: the networks under attack, with their weights; ``model`` is that of the "why" chapters.

    ``ladder``, ``short_ladder``: ε in grey levels of 255, for chest CT and for the other three data sets;
    ``iterations``: of iterated attacks; ``restarts``: of the adaptive attacker's PGD; ``queries``: of the Square
    attack, an image; ``textures``: images of each set whose textures are measured; ``natural``: the natural images that
    real medical ones are compared with, a key of ``data.SOURCES`` (phantoms are compared with photographs).
    """

    backbones: tuple[tuple[str, str], ...]
    ladder: tuple[float, ...]
    short_ladder: tuple[float, ...]
    iterations: int
    restarts: int
    queries: int
    textures: int
    natural: str


def choose(profile: str, data: str | None, seed: int) -> Chosen[Profile]:
    """A chapter's parameters, checked; the run is vanilla transfer learning on chest CT."""
    chosen = profiles.choose("assimilation", Profile, profile, data, seed, dataset="chest_ct", test=1 / 5)
    return replace(chosen, run=replace(chosen.run, front="replicated", count=count(chosen, "chest_ct")))


def count(chosen: Chosen[Profile], dataset: str) -> int | None:
    """How many images of a data set are used: of real ones, as many of each class as the slides have (D9)."""
    whole = chosen.run.real and chosen.settings.count is None
    return data.even_count(dataset) if whole else chosen.run.count


def runs(chosen: Chosen[Profile], dataset: str, model: str, weights: str) -> list[Run]:
    """Vanilla transfer learning on one of the four data sets, a run a training."""
    images = count(chosen, dataset)
    return [replace(run, count=images) for run in chosen.runs(dataset=dataset, model=model, weights=weights)]


def trained_as(run: Run, training: str) -> Run:
    """The run of one of ``TRAININGS`` from the vanilla one: same split, same first weights, same order of batches.

    Below 64 px the loss leaves out ASM, nine tenths of its cost. Raises ``ValueError`` for another name.
    """
    if training not in TRAININGS:
        raise ValueError(f"unknown training {training!r}: choose one of {', '.join(TRAININGS)}")
    if training == "vanilla":
        return replace(run, front="replicated", objective=None)
    features = FEATURES if run.size >= 64 else tuple(name for name in FEATURES if name != "asm")
    alpha = ALPHA if training == "assimilated" else 1.0
    # Without the loss its settings decide nothing, so they must not make a key of their own.
    texture = texture_loss(run.size, features=features) if alpha < 1 else GLCMLoss()
    return replace(run, front="assimilated", objective=Objective(alpha=alpha, texture=texture))


def texture_loss(size: int, *, features: tuple[str, ...] = FEATURES) -> GLCMLoss:
    """The GLCM loss for images of ``size`` px: windows of 20 px, or of half an image where 2 × 2 of 20 px do not fit.

    Raises ``ValueError`` where a window would not hold the slides' distance of 3 px, below 8 px.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 px, so that windows hold pairs 3 px apart, found {size!r}")
    return GLCMLoss(window=min(WINDOW, size // 2), features=features)


def with_dose(run: Run, training: str, shown: int) -> tuple[Trained, ImageSet, dict[str, np.ndarray]]:
    """A model trained or loaded, ``shown`` of its test images, and what T and C do to them (empty for vanilla).

    Its dose: ``channel_spread``, the largest less the smallest channel, and ``texture``, the GLCM loss; means.
    """
    trained = train_or_load(trained_as(run, training))
    images = sample(trained.test, shown)
    if training == "vanilla":
        return trained, images, {}
    assert isinstance(trained.model, Assimilated)  # the front of every other training
    adapted = adaptation(trained.model, images)
    dose = {"channel_spread": float(adapted["colour"].mean()), "texture": float(adapted["texture"].mean())}
    return replace(trained, provenance=trained.provenance | {"dose": dose}), images, adapted


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
        values["colour"] = (picture.amax(dim=1) - picture.amin(dim=1)).mean(dim=(1, 2))
        for name, each in values.items():
            parts.setdefault(name, []).append(each.double().cpu())
    return {name: torch.cat(each).numpy() for name, each in parts.items()}


def accuracy_vs_attack_strength(chosen: Chosen[Profile]) -> Record:
    """The results figure: all three trainings on chest CT under every attack."""
    return _under_attack("accuracy_vs_attack_strength", chosen, MEDICAL[:1], TRAININGS, chosen.settings.ladder)


def all_datasets(chosen: Chosen[Profile]) -> Record:
    """The same for the other three data sets, vanilla and assimilated."""
    return _under_attack("all_datasets", chosen, MEDICAL[1:], PAIR, chosen.settings.short_ladder)


def _under_attack(
    chapter: str, chosen: Chosen[Profile], datasets: Sequence[str], trainings: Sequence[str], ladder: Sequence[float]
) -> Record:
    study = Study(f"assimilation/{chapter}", chosen, ("dataset", "network", "training", "attack", "eps"))
    settings, masking = chosen.settings, []
    for dataset in datasets:
        for model, weights in settings.backbones:
            for run in runs(chosen, dataset, model, weights):
                asked = {training: with_dose(run, training, settings.shown) for training in trainings}
                for training, (mine, images, _) in asked.items():
                    about = {"dataset": dataset, "network": f"{model} ({weights})", "training": training}
                    for attack, eps, answers in climbed(
                        mine.model, images, ladder, iterations=settings.iterations, seed=run.seed
                    ):
                        study.add(mine, rows(images, answers), **about, attack=attack, eps=eps)
                    if training not in PAIR:
                        continue
                    other = asked[PAIR[1 - PAIR.index(training)]][0]
                    gathered = _gathered(chosen, mine.model, other.model, images, run.seed)
                    for attack, right in worst_cases(gathered).items():
                        study.add(mine, _judged(images, right), **about, attack=attack, eps=SMALLEST)
                    if run.seed == chosen.seed:
                        table = checks.verdicts(gathered, images.groups)
                        table = table.drop(columns=["raised_if", "explanation", "advice"])
                        masking.append(table.assign(**about, eps=SMALLEST, seed=run.seed))
    study.table("masking", pd.concat(masking, ignore_index=True))
    return study.record()


def climbed(
    model: nn.Module, images: ImageSet, ladder: Sequence[float], *, iterations: int, seed: int
) -> Iterator[tuple[str, str, Tensor]]:
    """(attack, ε, answers ``[N, classes]``): clean images, then the four attacks at each ε of ``ladder``, grey levels.

    ``seed`` draws PGD's starts, the same for every model and whatever else is on the ladder.
    """
    if not ladder or not all(0 < level <= 255 for level in ladder):
        raise ValueError(f"ladder must hold ε in (0, 255], grey levels of 255, found {list(ladder)}")
    for attack, answers in attacked(model, images, {"none": None}):
        yield attack, strength(0), answers
    for level in ladder:
        eps = level / 255
        starts = torch.Generator().manual_seed(seed)
        made: dict[str, Attack | None] = {
            "FGSM": partial(attacks.fgsm, eps=eps),
            "BIM": partial(attacks.bim, eps=eps, step=eps / 4, iterations=iterations),
            "MI-FGSM": partial(attacks.mifgsm, eps=eps, step=eps / 4, iterations=iterations),
            "PGD": partial(attacks.pgd, eps=eps, step=eps / 4, iterations=iterations, generator=starts),
        }
        for attack, answers in attacked(model, images, made):
            yield attack, strength(level), answers


def _gathered(
    chosen: Chosen[Profile], model: nn.Module, surrogate: nn.Module, images: ImageSet, seed: int
) -> checks.Evidence:
    """What the adaptive attacker finds at the smallest ε: where most accuracy is left to lose."""
    s = chosen.settings
    x, labels = images.tensors(device_of(model))
    tries = {"iterations": s.iterations, "restarts": s.restarts, "queries": s.queries, "seed": seed}
    return checks.gather(model, surrogate, x, labels, eps=levels(SMALLEST) / 255, **tries)


def worst_cases(gathered: checks.Evidence, eps: float = 1 / 255) -> dict[str, np.ndarray]:
    """By each of ``WORST`` where a model is right ``[N]``, from what its checks gathered at ``eps``.

    The transferred PGD is made on the other training's model of the same network and seed. A model is right under
    ``"worst of all"`` where it is right under these three, FGSM, and PGD at smaller ε.
    """
    inside = [gathered.by_budget[:, i] for i, budget in enumerate(gathered.budgets) if budget <= eps]
    worst = np.min([gathered.fgsm, gathered.pgd, gathered.transfer, gathered.square, *inside], axis=0)
    return dict(zip(WORST, (gathered.pgd, gathered.transfer, gathered.square, worst), strict=True))


def _judged(images: ImageSet, right: np.ndarray) -> pd.DataFrame:
    """Rows of outcomes of which only right or wrong is known: of two classes that decides the prediction."""
    answers = {"label": images.labels, "prediction": np.where(right > 0, images.labels, 1 - images.labels)}
    return pd.DataFrame(named(images) | answers)


def texture_colour_adaptation(chosen: Chosen[Profile]) -> Record:
    """Texture and colour of the adapted pictures of chest CT and brain MRI, with and without the GLCM loss."""
    study = Study("assimilation/texture_colour_adaptation", chosen, ("dataset", "network", "training"))
    for dataset in MEDICAL[:2]:
        for model, weights in chosen.settings.backbones:
            for run in runs(chosen, dataset, model, weights):
                for training in TRAININGS[1:]:
                    trained, images, adapted = with_dose(run, training, chosen.settings.shown)
                    answers = logits(trained.model, images.tensors(device_of(trained.model))[0])
                    about = {"dataset": dataset, "network": f"{model} ({weights})", "training": training}
                    study.add(trained, rows(images, answers, **adapted), **about)
    return study.record()


def pictures(chosen: Chosen[Profile], *, label: int = 1, count: int = 2) -> dict[str, dict[str, np.ndarray]]:
    """What the backbone sees of ``count`` phantoms of one class: data set → name → ``[count, C, S, S]`` in [0, 1].

    ``"original"``, ``"without GLCM loss"``, ``"with GLCM loss"``, from models trained on phantoms: pages show no
    patient's image.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    model, weights = chosen.settings.backbones[0]
    for dataset in MEDICAL[:2]:
        run = replace(chosen.run, dataset=dataset, model=model, weights=weights, real=False)
        run = replace(run, count=None if chosen.run.real else chosen.run.count)
        shown = found.setdefault(dataset, {})
        for training in TRAININGS[:0:-1]:
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
    """Tables ``sizes`` and ``settings``: the slides' beside what is at hand and what this profile does."""
    study = Study("assimilation/datasets_and_training", chosen, ("dataset", "class"))
    model, weights = chosen.settings.backbones[0]
    run = runs(chosen, MEDICAL[0], model, weights)[0]
    trained = [with_dose(run, training, chosen.settings.shown)[0] for training in PAIR]
    for each in trained:
        study.model(each)
    classes = sizes(chosen)
    study.table("sizes", classes)
    study.table("settings", settings_table(chosen, trained))
    for row in classes.to_dict("records") if chosen.run.real else ():
        lacking = {"image": ["all"], "group": ["all"], "missing": [max(0, row["published"] - row["public"])]}
        study.add(None, pd.DataFrame(lacking), **{"dataset": row["dataset"], "class": row["class"]})
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


def settings_table(chosen: Chosen[Profile], trained: Sequence[Trained]) -> pd.DataFrame:
    """The slides' training settings beside this profile's: ``setting``, ``published``, ``here``, ``where``."""
    printed, s = documents.published("assimilation"), chosen.settings
    recipe, loss = chosen.run.recipe, texture_loss(chosen.size)
    objective = trained_as(chosen.run, "assimilated").objective
    assert objective is not None  # trained_as gives one
    here = {
        "models": ", ".join(f"{model} ({weights})" for model, weights in s.backbones),
        "learning_rate": f"{recipe.lr:g}",
        "batch_size": str(recipe.batch_size),
        "epochs": f"{recipe.epochs} at most; {', '.join(str(len(t.provenance['epochs'])) for t in trained)} run here",
        "patience": str(recipe.patience),
        "input_size": f"{chosen.size} px, 1 channel",
        "glcm_distance": f"{loss.distance} px",
        "glcm_orientations": str(loss.angles),
        "glcm_window": f"{loss.window} px",
        "strengths": ", ".join(f"{level:g}" for level in s.ladder),
        "glcm_features": ", ".join(objective.texture.features),
        "alpha": f"{ALPHA:g}",
        "modules": ", ".join(f"{name} {sum(p.numel() for p in Repaint(n).parameters())}" for name, n in MODULES),
    }
    unsaid = {"glcm_features": "features in the GLCM loss", "alpha": "α of equation 18", "modules": "parameters"}
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
