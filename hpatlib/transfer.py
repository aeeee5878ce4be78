"""The assimilation slides' experiment: transfer learning with and without domain assimilation, under four attacks.

Every attack is white-box and goes through the whole chain F ∘ B ∘ norm ∘ C ∘ T to the grey image in [0, 1] (D7). The
slides print neither steps nor iterations (D8): BIM, MI-FGSM and PGD take ``Effort.iterations`` steps of ε / 4, PGD from
a uniform start, FGSM one step of ε. ``survival`` asks what the slides leave open: does a margin outlive attacks that
need no gradient of the assimilated model?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from hpatlib import attacks, checks, data, evidence, settings
from hpatlib.assimilation import GLCMLoss, Objective, Repaint, grayscale
from hpatlib.data import ImageSet
from hpatlib.evaluation import logits, sample, seeds_drawn
from hpatlib.glcm import FEATURES
from hpatlib.runs import Run, Trained, train_or_load

DATASETS = ("chest_ct", "brain_mri", "chest_xray", "busi2")
TRAININGS = ("vanilla", "assimilated", "without GLCM loss")
PAIR = ("assimilated", "vanilla")  # a margin is the first less the second
ATTACKS = ("FGSM", "BIM", "MI-FGSM", "PGD")
ITERATED = ATTACKS[1:]
WORST = ("PGD, restarts", "transferred PGD", "Square", "worst of all")
MODULES = (("T", 1), ("C", 3))  # and their output channels
WINDOW = 20  # px: the slides compute texture features on areas of 20 × 20
MARGIN = 0.05  # "does not fall" of an accuracy means: by less than this


@dataclass(frozen=True)
class Effort:
    """How hard attacks try: ``iterations`` of iterated ones; PGD's ``restarts`` and the Square attack's ``queries``."""

    iterations: int = 10
    restarts: int = 5
    queries: int = 1000


# By profile. The slides give none; the smallest profile only shows that everything runs.
EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {"smoke": Effort(4, 2, 20), "laptop": Effort(10, 3, 300), "study": Effort(), "paper": Effort()}
)


def texture_loss(size: int, *, features: tuple[str, ...] = FEATURES) -> GLCMLoss:
    """The GLCM loss for images of ``size`` px: windows of 20 px, or of half an image where 2 × 2 of 20 px do not fit.

    Raises ``ValueError`` where a window would not hold the slides' distance of 3 px, below 8 px.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 px, so that windows hold pairs 3 px apart, found {size!r}")
    return GLCMLoss(window=min(WINDOW, size // 2), features=features)


def trained_as(run: Run, training: str) -> Run:
    """The run of one of ``TRAININGS`` from the vanilla one: same split, same first weights, same order of batches.

    Below 64 px the loss leaves out ASM, nine tenths of its cost. Raises ``ValueError`` for another name.
    """
    if training not in TRAININGS:
        raise ValueError(f"unknown training {training!r}: choose one of {', '.join(TRAININGS)}")
    if training == "vanilla":
        return replace(run, front="replicated", objective=None)
    features = FEATURES if run.size >= 64 else tuple(name for name in FEATURES if name != "asm")
    alpha = settings.ALPHA if training == "assimilated" else 1.0
    # Without the loss its settings decide nothing, so they must not make a key of their own.
    texture = texture_loss(run.size, features=features) if alpha < 1 else GLCMLoss()
    return replace(run, front="assimilated", objective=Objective(alpha=alpha, texture=texture))


@dataclass(frozen=True)
class Study:
    """What was measured: ``hits[dataset, network, training, attack, eps]``, an array ``[N_s]`` a seed, 1.0 where right.

    ``network`` is a pair (model, weights); ``attack`` one of ``ATTACKS``, ``"none"`` at ε = 0, or one of ``WORST``.
    ``distances[dataset, training]``: the texture distance of each image ``[N_s]`` a seed. ``groups[dataset]``: by seed,
    what belongs together among them, ``[N_s]``: slices of one patient are no independent images. ``rows``: all of it,
    tidy; ``trained``: every model, the first seed's vanilla one first.
    """

    rows: pd.DataFrame
    hits: dict[tuple, list[np.ndarray]]
    trained: list[Trained]
    distances: dict[tuple[str, str], list[np.ndarray]]
    groups: dict[str, dict[int, np.ndarray]]

    def effect(self, claim: str, dataset: str, values: list[np.ndarray], statistic: Callable) -> evidence.Effect:
        """``evidence.effect`` of ``values``, whose interval draws whole groups of the data set's images."""
        return evidence.effect(claim, values, statistic, list(self.groups[dataset].values()))

    def values(self, dataset: str, trainings: Sequence[str], cells: Sequence[tuple[str, float]]) -> list[np.ndarray]:
        """Per seed ``[N_s, K]``, K = trainings · networks · cells in this order; a cell is (attack, ε)."""
        networks = list(dict.fromkeys(key[1] for key in self.hits if key[0] == dataset))
        if not networks:
            raise ValueError(f"nothing was measured on {dataset!r}")
        keys = [(dataset, network, t, *cell) for t in trainings for network in networks for cell in cells]
        return [np.stack(columns, axis=1) for columns in zip(*(self.hits[key] for key in keys), strict=True)]


def attacked_hits(
    model: nn.Module, images: ImageSet, ladder: Sequence[float], *, iterations: int = 10, seed: int = 0
) -> dict[tuple[str, float], np.ndarray]:
    """1.0 where ``model`` is right, ``[N]`` by (attack, ε): clean images (``"none"``, 0.0), ``ATTACKS`` × ``ladder``.

    Right means right on the attacked image, whatever the clean answer was. ``seed`` draws PGD's starts, the same for
    every model.
    """
    if not ladder or not all(0 < eps <= 1 for eps in ladder):
        raise ValueError(f"ladder must hold ε in (0, 1], fractions of the pixel range such as 1/255, found {ladder!r}")
    device = next(model.parameters()).device
    right: dict[tuple[str, float], list[np.ndarray]] = {}
    for number, (x, labels) in enumerate(images.batches(64, device=device)):
        shown = {("none", 0.0): x}
        for eps in ladder:
            whole = {"eps": eps, "step": eps / 4, "iterations": iterations}
            draws = torch.Generator().manual_seed(1_000_003 * seed + number)
            made = {
                "FGSM": partial(attacks.fgsm, eps=eps),
                "BIM": partial(attacks.bim, **whole),
                "MI-FGSM": partial(attacks.mifgsm, **whole),
                "PGD": partial(attacks.pgd, **whole, generator=draws),
            }
            shown |= {(name, eps): attack(model, x, labels) for name, attack in made.items()}
        for cell, pictures in shown.items():
            hit = logits(model, pictures).argmax(dim=1) == labels
            right.setdefault(cell, []).append(hit.double().cpu().numpy())
    return {cell: np.concatenate(parts) for cell, parts in right.items()}


def study(
    networks: Sequence[Sequence[Run]],
    ladder: Sequence[float],
    *,
    shown: int,
    trainings: Sequence[str] = TRAININGS,
    effort: Effort | None = None,
) -> Study:
    """Train each of ``networks`` (vanilla runs, one a seed) in each way and attack it on ``shown`` test images.

    A seed's test images are the same for every network, training and attack. Rows: ``dataset``, ``model``,
    ``weights``, ``training``, ``attack``, ``eps`` (in 0…1), ``iterations``, ``seed``, ``accuracy``, ``n``; and those of
    ``ladder_signs``.
    """
    effort = effort or Effort()
    rows, trained = [], []
    hits: dict[tuple, list[np.ndarray]] = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    jobs = [(run, training) for seeds in networks for run in seeds for training in trainings]
    for run, training in tqdm(jobs, "models", unit="model", leave=False):
        model = train_or_load(trained_as(run, training))
        trained.append(model)
        images = sample(model.test, shown)
        groups.setdefault(run.dataset, {})[run.seed] = images.groups
        found = attacked_hits(model.model, images, ladder, iterations=effort.iterations, seed=run.seed)
        _keep(rows, hits, run, training, found, iterations=effort.iterations)
    measured = Study(pd.DataFrame(rows), hits, trained, {}, groups)
    return replace(measured, rows=pd.concat([measured.rows, ladder_signs(measured, ladder)], ignore_index=True))


def ladder_signs(measured: Study, ladder: Sequence[float]) -> pd.DataFrame:
    """Signs of masked gradients that the results figure itself may show (D8), a row a network, training and sign.

    ``"PGD rises along ε"``: the accuracy under PGD at a larger ε of ``ladder`` less that at a smaller one, for the two
    where that is largest, its interval widened for having been picked; ``"FGSM beats PGD"``: the accuracy under PGD
    less that under FGSM at the largest ε. Columns as in ``checks.verdicts``, with ``dataset``, ``model``, ``weights``,
    ``training`` and ``eps``; intervals are over seeds and groups of images.
    """
    small_to_large, rows = sorted(ladder), []
    pairs = [(i, j) for j in range(len(small_to_large)) for i in range(j)]
    kinds = list(dict.fromkeys(key[:3] for key in measured.hits))
    for dataset, (model, weights), training in kinds:
        whole = (dataset, (model, weights), training)
        cells = [(*whole, "PGD", eps) for eps in small_to_large] + [(*whole, "FGSM", small_to_large[-1])]
        values = [np.stack(columns, axis=1) for columns in zip(*(measured.hits[cell] for cell in cells), strict=True)]
        own, drawn = seeds_drawn(values, list(measured.groups[dataset].values()))  # [S, K], [resamples, S, K]
        own, drawn = own.mean(axis=0), drawn.mean(axis=1)
        signs = {"FGSM beats PGD": (-1, -2, 0.95)}
        if pairs:
            i, j = max(pairs, key=lambda pair: own[pair[1]] - own[pair[0]])
            signs = {"PGD rises along ε": (i, j, 1 - 0.05 / len(pairs))} | signs
        about = {"dataset": dataset, "model": model, "weights": weights, "training": training}
        for name, (less, more, level) in signs.items():
            low, high = np.quantile(drawn[:, more] - drawn[:, less], [(1 - level) / 2, (1 + level) / 2])
            n = min(map(len, values))
            found = checks.sign(name, float(own[more] - own[less]), float(low), float(high), n)
            rows.append(about | found | {"eps": small_to_large[-1]})
    return pd.DataFrame(rows)


def survival(
    networks: Sequence[Sequence[Run]],
    *,
    eps: float,
    shown: int,
    effort: Effort | None = None,
) -> Study:
    """Does the margin outlive an adaptive attacker? Each training's worst over PGD with restarts, transfer and Square.

    The transferred PGD is made on the other training's model of the same network and seed. A model is right under
    ``"worst of all"`` where it is right under these three, FGSM, and PGD at smaller ε. Rows: as in ``study``, with
    ``attack`` one of ``WORST``, ``restarts`` and ``queries``; and those of ``checks.verdicts`` of the first seed's
    models, with ``dataset``, ``model``, ``weights``, ``training``, ``eps`` and ``seed``.
    """
    tries = asdict(effort or Effort())
    rows, trained = [], []
    hits: dict[tuple, list[np.ndarray]] = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    jobs = [(run, run is seeds[0]) for seeds in networks for run in seeds]
    for run, first in tqdm(jobs, "attacked pairs", unit="pair", leave=False):
        models = {t: train_or_load(trained_as(run, t)) for t in PAIR[::-1]}
        trained += models.values()
        for (training, mine), other in zip(models.items(), reversed(models.values()), strict=True):
            test = sample(mine.test, shown)
            groups.setdefault(run.dataset, {})[run.seed] = test.groups
            images, labels = test.tensors(next(mine.model.parameters()).device)
            found = checks.gather(mine.model, other.model, images, labels, eps=eps, **tries, seed=run.seed)
            _keep(rows, hits, run, training, worst_cases(found, eps), **tries)
            if first:
                about = {**_about(run, training), "eps": eps, "seed": run.seed}
                table = checks.verdicts(found, test.groups).drop(columns=["raised_if", "explanation", "advice"])
                rows += [about | row for row in table.to_dict("records")]
    return Study(pd.DataFrame(rows), hits, trained, {}, groups)


def worst_cases(found: checks.Evidence, eps: float) -> dict[tuple[str, float], np.ndarray]:
    """1.0 where a model is right, ``[N]`` by (one of ``WORST``, ``eps``), from what its checks gathered."""
    inside = [found.by_budget[:, i] for i, budget in enumerate(found.budgets) if budget <= eps]
    worst = np.min([found.fgsm, found.pgd, found.transfer, found.square, *inside], axis=0)
    return {(name, eps): v for name, v in zip(WORST, (found.pgd, found.transfer, found.square, worst), strict=True)}


def textures(networks: Sequence[Sequence[Run]], *, shown: int) -> Study:
    """How far the assimilated picture's texture and colour are from the grey image, with and without the GLCM loss.

    Rows: ``dataset``, ``model``, ``weights``, ``training``, ``metric``, ``seed``, ``value``, ``n``. Metrics:
    ``"texture"``, the GLCM loss of all five features whatever the training used; each feature alone; ``"colour"``, the
    largest less the smallest channel, mean over pixels; ``"accuracy"`` on the same clean images. ``distances`` holds
    ``"texture"`` image by image, mean over networks.
    """
    rows, trained = [], []
    distances: dict[tuple[str, str], list[np.ndarray]] = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for training in TRAININGS[1:]:
        per_seed: dict[tuple[str, int], list[np.ndarray]] = {}
        for run in (run for seeds in networks for run in seeds):
            model = train_or_load(trained_as(run, training))
            trained.append(model)
            test = sample(model.test, shown)
            groups.setdefault(run.dataset, {})[run.seed] = test.groups
            found = _texture(model.model, test, run.size)
            per_seed.setdefault((run.dataset, run.seed), []).append(found["texture"])
            about = _about(run, training) | {"seed": run.seed}
            rows += [about | {"metric": m, "value": float(v.mean()), "n": len(v)} for m, v in found.items()]
        for (dataset, _), values in per_seed.items():
            distances.setdefault((dataset, training), []).append(np.mean(values, axis=0))
    return Study(pd.DataFrame(rows), {}, trained, distances, groups)


@torch.no_grad()
def _texture(model: nn.Module, measured: ImageSet, size: int) -> dict[str, np.ndarray]:
    """Metric → ``[N]``."""
    found: dict[str, list[np.ndarray]] = {}
    device, loss = next(model.parameters()).device, texture_loss(size)
    for images, labels in measured.batches(64, device=device):
        picture = model.colour_image(images)
        moved = (loss.textures(grayscale(picture)) - loss.textures(images)).abs()  # [B, windows, 5 · orientations]
        parts = dict(zip(FEATURES, moved.chunk(len(FEATURES), dim=2), strict=True))
        values = {"texture": moved.sum(dim=2).amax(dim=1)}
        values |= {name: part.sum(dim=2).amax(dim=1) for name, part in parts.items()}
        values["colour"] = (picture.amax(dim=1) - picture.amin(dim=1)).mean(dim=(1, 2))
        values["accuracy"] = model.network(picture).argmax(dim=1) == labels
        for name, each in values.items():
            found.setdefault(name, []).append(each.double().cpu().numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def pictures(run: Run, *, label: int = 1, count: int = 2) -> dict[str, np.ndarray]:
    """What the backbone sees of ``count`` phantoms of one class: name → ``[count, C, S, S]`` in [0, 1].

    ``"original"``, ``"without GLCM loss"``, ``"with GLCM loss"``, from models trained on phantoms: pages show no
    patient's image.
    """
    shown: dict[str, np.ndarray] = {}
    for training in TRAININGS[:0:-1]:
        model = train_or_load(trained_as(replace(run, real=False, count=_phantoms(run)), training))
        index = np.flatnonzero(model.test.labels == label)[:count]
        images = model.test.tensors(index=list(index))[0].to(next(model.model.parameters()).device)
        shown.setdefault("original", images.cpu().numpy())
        name = "with GLCM loss" if training == "assimilated" else training
        with torch.no_grad():  # not around the training above
            shown[name] = model.model.colour_image(images).cpu().numpy()
    return shown


def specimens(size: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A phantom of each class of each data set: ``"negative"`` and ``"positive"`` → ``[4, 1, size, size]``."""
    drawn = [data.load(name, real=False, size=size, count=2, seed=seed) for name in DATASETS]
    index = {"negative": 0, "positive": 1}
    return {name: np.concatenate([d.tensors(index=[k])[0].numpy() for d in drawn]) for name, k in index.items()}


def _phantoms(run: Run) -> int | None:
    return None if run.real else run.count


def combine(*studies: Study) -> Study:
    """Several studies as one, of other data sets or other attacks; a model of two of them is kept once."""
    rows = pd.concat([measured.rows for measured in studies], ignore_index=True)
    hits = {key: hit for measured in studies for key, hit in measured.hits.items()}
    distances = {key: value for measured in studies for key, value in measured.distances.items()}
    trained = {t.provenance["key"]: t for measured in studies for t in measured.trained}
    groups = {key: value for measured in studies for key, value in measured.groups.items()}
    return Study(rows, hits, list(trained.values()), distances, groups)


def _about(run: Run, training: str) -> dict:
    return {"dataset": run.dataset, "model": run.model, "weights": run.weights, "training": training}


def _keep(
    rows: list[dict], hits: dict, run: Run, training: str, found: dict[tuple[str, float], np.ndarray], **tries: int
) -> None:
    for (attack, eps), hit in found.items():
        hits.setdefault((run.dataset, (run.model, run.weights), training, attack, eps), []).append(hit)
        row = _about(run, training) | {"attack": attack, "eps": eps, "seed": run.seed} | tries
        rows.append(row | {"accuracy": float(hit.mean()), "n": len(hit)})


def _margin(means: np.ndarray) -> np.ndarray:
    """Mean of the first half of the measures less that of the second half, over seeds."""
    return _margins(means, 1).mean(axis=-1)


def _margins(means: np.ndarray, cells: int) -> np.ndarray:
    """``[…, S, 2 · networks · cells]`` → the margin in each cell ``[…, cells]``, mean over seeds and networks."""
    parts = means.reshape(*means.shape[:-1], 2, -1, cells).mean(axis=(-4, -2))  # […, 2, cells]
    return parts[..., 0, :] - parts[..., 1, :]


def margin_effects(measured: Study, dataset: str, ladder: Sequence[float]) -> list[evidence.Effect]:
    """Does assimilation beat vanilla transfer learning? Averaged over ``ladder`` an attack, and everywhere at once.

    ``everywhere`` is the smallest margin over iterated attacks and ε, networks and seeds averaged; where both models
    are always wrong it is 0, which speaks neither for the claim nor against it.
    """
    effects = []
    for attack in ITERATED:
        values = measured.values(dataset, PAIR, [(attack, eps) for eps in ladder])
        name = f"{_claim(dataset)}-{attack.lower().replace('-', '')}"
        effects.append(measured.effect(name, dataset, values, _margin))
    cells = [(attack, eps) for attack in ITERATED for eps in ladder]
    values, margins = measured.values(dataset, PAIR, cells), partial(_margins, cells=len(cells))
    return [*effects, measured.effect(f"{_claim(dataset)}-everywhere", dataset, values, margins)]


def _claim(dataset: str) -> str:
    return f"assimilation-{dataset.replace('_', '-')}"


def outlier_effects(measured: Study, dataset: str, ladder: Sequence[float]) -> list[evidence.Effect]:
    """The slides' note on vanilla transfer learning under FGSM: it does not fall with ε, and lies above the others."""
    small, large = min(ladder), max(ladder)
    falls = measured.values(dataset, ("vanilla",), [("FGSM", large), ("FGSM", small)])
    above = measured.values(dataset, ("vanilla",), [("FGSM", large), *[(name, large) for name in ITERATED]])

    def rise(means: np.ndarray) -> np.ndarray:
        cells = means.reshape(*means.shape[:-1], -1, 2).mean(axis=(-3, -2))
        return MARGIN + cells[..., 0] - cells[..., 1]

    def lead(means: np.ndarray) -> np.ndarray:
        cells = means.reshape(*means.shape[:-1], -1, len(ATTACKS)).mean(axis=(-3, -2))
        return cells[..., 0] - cells[..., 1:].mean(axis=-1)

    return [
        measured.effect(f"{_claim(dataset)}-fgsm-flat", dataset, falls, rise),
        measured.effect(f"{_claim(dataset)}-fgsm-above", dataset, above, lead),
    ]


def survival_effect(measured: Study, dataset: str, eps: float) -> evidence.Effect:
    """The margin of assimilation where each model meets the worst that the adaptive attacker finds for it."""
    values = measured.values(dataset, PAIR, [("worst of all", eps)])
    return measured.effect(f"{_claim(dataset)}-adaptive", dataset, values, _margin)


def texture_effect(measured: Study, dataset: str) -> evidence.Effect:
    """How much farther from the original's texture pictures are without the GLCM loss than with it."""
    sides = (measured.distances[dataset, training] for training in ("without GLCM loss", "assimilated"))
    pairs = [np.stack(pair, axis=1) for pair in zip(*sides, strict=True)]
    return measured.effect(f"{_claim(dataset)}-texture", dataset, pairs, _margin)


def settings_rows(chosen: settings.Settings, trained: Sequence[Trained]) -> pd.DataFrame:
    """The slides' training settings beside this profile's: ``setting``, ``published``, ``here``, a row each."""
    printed = evidence.published("assimilation")
    recipe, loss = chosen.run.recipe, texture_loss(chosen.size)
    epochs = ", ".join(str(len(t.provenance["epochs"])) for t in trained)
    here = {
        "models": ", ".join(f"{model} ({weights})" for model, weights in chosen.chosen.large),
        "learning_rate": f"{recipe.lr:g}",
        "batch_size": str(recipe.batch_size),
        "epochs": f"{recipe.epochs} at most; {epochs} run here",
        "patience": str(recipe.patience),
        "input_size": f"{chosen.size} px, 1 channel",
        "glcm_distance": f"{loss.distance} px",
        "glcm_orientations": str(loss.angles),
        "glcm_window": f"{loss.window} px",
        "strengths": ", ".join(f"{255 * eps:g}" for eps in chosen.chosen.ladder),
        "glcm_features": ", ".join(trained_as(chosen.run, "assimilated").objective.texture.features),
        "alpha": f"{settings.ALPHA:g}",
        "modules": ", ".join(f"{name} {sum(p.numel() for p in Repaint(n).parameters())}" for name, n in MODULES),
    }
    unsaid = {"glcm_features": "features in the GLCM loss", "alpha": "α of equation 18", "modules": "parameters"}
    rows = [
        {
            "setting": printed[name]["name"] if name in printed else unsaid[name],
            "published": str(printed[name]["shown"]) if name in printed else "not said",
            "here": value,
            "where": printed[name]["where"] if name in printed else "–",
        }
        for name, value in here.items()
    ]
    return pd.DataFrame(rows)


def size_rows(chosen: settings.Settings) -> pd.DataFrame:
    """Class sizes: ``dataset``, ``class``, ``published``, ``at hand`` (files found, real data only), ``used``."""
    printed, rows = evidence.published("assimilation"), []
    for dataset in DATASETS:
        source = data.SOURCES[dataset]
        own = settings.assimilation(chosen.profile, chosen.data, chosen.seed, dataset=dataset).run
        used = np.bincount(
            data.load(dataset, real=own.real, size=own.size, count=own.count, seed=own.seed).labels,
            minlength=len(source.classes),
        )
        found = next(row for row in data.status() if row["key"] == dataset)["classes"] if own.real else {}
        for name, count in zip(source.classes, used, strict=True):
            row = {"dataset": dataset, "class": name, "published": int(printed[dataset]["value"])}
            rows.append(row | {"at hand": str(found.get(name, "–")), "used": int(count)})
    return pd.DataFrame(rows)
