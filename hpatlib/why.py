"""Why medical models give way, after the slides: do they look at more of the image, and is their loss steeper?

Both need natural images to compare with, and two stand-ins make do with the six photographs of ``data.photographs``.
``"photographs"``: the same network, trained in the same way as many grey crops of them as a medical set has images:
only the pictures differ. ``"imagenet"``: an ImageNet network as it is, with its own head, on colour crops: a natural
task in earnest, but another head, other colours and nothing fine-tuned. Intervals resample trainings and, in each,
whole patients or whole photographs (quarters of them), because crops of one photograph are no independent images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import assimilation, evidence, explain, glcm, models, settings
from hpatlib.data import ImageSet, load, photographs
from hpatlib.data.images import fingerprint
from hpatlib.evaluation import logits, sample, seeds_drawn
from hpatlib.runs import Run, Trained, default_device, train_or_load
from hpatlib.settings import Settings

MEDICAL = ("chest_ct", "brain_mri", "chest_xray", "busi2")
NATURAL, HEAD = photographs.KEY, "imagenet"
SHARES = (*(k / 10 for k in range(1, 10)), 0.95, 0.99)  # of a map's mass; the claims are about one half
HALF = 0.5
PLACES = 16  # positions of the feature map behind Grad-CAM: 4 × 4 at least, for every network and size
EPS = 4 / 255  # the middle of the slides' range
POINTS = 9  # a side of a loss slice: a point every grey level
SLICES = 16  # images a slice is averaged over, in each training
ITERATIONS = 10  # of PGD and of the power iteration
STRAIGHT = 0.01  # nats a squared pixel range: within EPS this bends the loss by 0.005 nats at 64 px


@dataclass(frozen=True)
class Asked:
    """One network and the test images it is asked about: ``groups[N]`` says what belongs together."""

    task: str
    seed: int
    model: nn.Module
    images: Tensor
    labels: Tensor
    groups: np.ndarray
    run: Run | None  # None: the ImageNet network, which nobody trained here
    trained: Trained | None


@dataclass(frozen=True)
class Study:
    """What was measured: ``values[task, metric]`` holds for each seed the values ``[N_s]`` and their groups ``[N_s]``.

    ``rows``: all of it, tidy; ``trained``: every model trained here, the first medical one first.
    """

    rows: pd.DataFrame
    values: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]]
    trained: list[Trained]


def tasks(chosen: Settings) -> dict[str, list[Run]]:
    """Vanilla transfer learning on the four medical sets and on photographs, by name: a run a seed."""
    named = {key: settings.assimilation(chosen.profile, chosen.data, chosen.seed, dataset=key).small for key in MEDICAL}
    # As many crops as the first medical set has images: the sizes of the other real sets differ among themselves.
    return named | {NATURAL: [replace(run, dataset=NATURAL, real=False) for run in named[MEDICAL[0]]]}


def asked(named: dict[str, Sequence[Run]], *, shown: int, crops: int) -> Iterator[Asked]:
    """Every network of ``named``, trained or loaded, with ``shown`` of its test images; then the ImageNet network.

    That one is the backbone of ``named`` where it has ImageNet weights and EfficientNet-Lite0 otherwise, on ``crops``
    colour crops of at least 128 px; its labels are its own answers.
    """
    for task, runs in named.items():
        for run in runs:
            trained = train_or_load(run)
            test = sample(trained.test, shown)
            images, labels = test.tensors(next(trained.model.parameters()).device)
            yield Asked(task, run.seed, trained.model, images, labels, test.groups, run, trained)
    first = next(iter(named.values()))[0]
    name = first.model if first.weights == "imagenet" else settings.LITE[0]
    device = default_device()
    model = models.build(name, 1000, weights="imagenet").to(device).eval()
    pixels, groups = photographs.crops(crops, size=max(128, first.size), seed=first.seed)
    images = torch.from_numpy(pixels).to(device).float() / 255
    labels = logits(model, images).argmax(dim=1)
    yield Asked(HEAD, first.seed, model, images, labels, groups, None, None)


def attention(chosen: Settings) -> Study:
    """Where the networks look: the smallest share of pixels that holds a share of the Grad-CAM mass.

    The class asked about is the predicted one. Metrics: ``"area"``, with the share of the mass as ``x``; ``"empty"``,
    the share of maps in which nothing speaks for the class, which have no area; ``"accuracy"`` of the trained ones.
    """

    def measure(one: Asked) -> dict[tuple[str, float], np.ndarray]:
        layer = explain.last_feature_map(one.model, one.images[:1], places=PLACES)
        maps = torch.cat([explain.attention(one.model, batch, layer=layer) for batch in one.images.split(64)])
        found = {("area", share): explain.attention_area(maps, share=share).cpu().numpy() for share in SHARES}
        return found | {("empty", 0.0): np.isnan(found["area", HALF]).astype(float)}

    return _study(chosen, measure, crops=chosen.shown)


def landscape(chosen: Settings) -> Study:
    """How steep the loss is around test images: ``"sharpness"`` at ``EPS`` and ``"curvature"``, image by image.

    ``"curvature"`` is the decimal logarithm of its size, ``STRAIGHT`` at least: one image near the decision boundary
    can have more of it than all others together, and would decide a plain mean alone.
    Also ``"landscape"``: how far the mean loss of ``SLICES`` images rises above its middle on slices of ``POINTS`` ×
    ``POINTS``, at ``x`` along the gradient's sign and ``y`` along a random direction, in grey levels of 255.
    """

    def measure(one: Asked) -> dict[tuple[str, float], np.ndarray]:
        draws = torch.Generator().manual_seed(one.seed)
        parts: dict[tuple[str, float], list[Tensor]] = {("sharpness", 0.0): [], ("curvature", 0.0): []}
        for images, labels in zip(one.images.split(64), one.labels.split(64), strict=True):
            rise = explain.sharpness(one.model, images, labels, eps=EPS, iterations=ITERATIONS)
            bend = explain.curvature(one.model, images, labels, iterations=ITERATIONS, generator=draws)
            parts["sharpness", 0.0].append(rise)
            parts["curvature", 0.0].append(bend.abs().clamp_min(STRAIGHT).log10())
        return {key: torch.cat(values).double().cpu().numpy() for key, values in parts.items()}

    def surface(one: Asked) -> np.ndarray:
        few = np.linspace(0, len(one.images) - 1, min(SLICES, len(one.images))).round().astype(int)
        draws = torch.Generator().manual_seed(one.seed)
        found = explain.landscape(
            one.model, one.images[few], one.labels[few], eps=EPS, points=POINTS, generator=draws
        ).cpu()
        return (found - found[:, POINTS // 2, POINTS // 2].view(-1, 1, 1)).double().mean(dim=0).numpy()

    return _study(chosen, measure, crops=max(6, chosen.shown // 8), surface=surface)


def _study(
    chosen: Settings,
    measure: Callable[[Asked], dict[tuple[str, float], np.ndarray]],
    *,
    crops: int,
    surface: Callable[[Asked], np.ndarray] | None = None,
) -> Study:
    rows, trained = [], []
    found: dict[tuple[str, str, float], list[tuple[np.ndarray, np.ndarray]]] = {}
    surfaces: dict[str, list[np.ndarray]] = {}
    about: dict[str, dict] = {}
    for one in asked(tasks(chosen), shown=chosen.shown, crops=crops):
        about[one.task] = {"task": one.task, "model": one.run.model if one.run else _name(one.model)}
        about[one.task]["weights"] = one.run.weights if one.run else "imagenet"
        measured = measure(one)
        if one.trained:
            trained.append(one.trained)
            right = logits(one.model, one.images).argmax(dim=1) == one.labels
            measured["accuracy", 0.0] = right.double().cpu().numpy()
        for (metric, x), values in measured.items():
            found.setdefault((one.task, metric, x), []).append((values, one.groups))
            rows.append(about[one.task] | _row(str(one.seed), metric, x, 0.0, [(values, one.groups)]))
        if surface:
            surfaces.setdefault(one.task, []).append(surface(one))
    rows += [about[task] | _row("all", metric, x, 0.0, seeds) for (task, metric, x), seeds in found.items()]
    levels = np.linspace(-255 * EPS, 255 * EPS, POINTS).round(6)
    for task, slices in surfaces.items():
        for (i, j), value in np.ndenumerate(np.mean(slices, axis=0)):
            row = {"seed": "all", "metric": "landscape", "x": float(levels[i]), "y": float(levels[j])}
            number = float(round(value, 6))
            rows.append(about[task] | row | {"value": number, "low": number, "high": number, "n": len(slices)})
    wanted = {(task, metric): seeds for (task, metric, x), seeds in found.items() if x in (0.0, HALF)}
    return Study(pd.DataFrame(rows), wanted, trained)


def _name(model: nn.Module) -> str:
    return model.backbone.pretrained_cfg["architecture"]


def _row(seed: str, metric: str, x: float, y: float, seeds: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    value, draws = resample(seeds)
    low, high = np.quantile(draws, (0.025, 0.975))
    n = sum(int(np.isfinite(values).sum()) for values, _ in seeds)
    number = {"value": value, "low": float(low), "high": float(high)}
    return {"seed": seed, "metric": metric, "x": x, "y": y} | {k: round(v, 9) for k, v in number.items()} | {"n": n}


def resample(
    seeds: Sequence[tuple[np.ndarray, np.ndarray]], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, np.ndarray]:
    """The mean over trainings of means over images, and ``[resamples]`` values that it might have had.

    ``seeds``: for each training its values ``[N]``, NaN where there is none, and the group of each, ``[N]``. A resample
    draws trainings, and for each of them groups, whole. A training without any value is left out. Raises
    ``ValueError`` where none has one.
    """
    there = [(values[finite], groups[finite]) for values, groups in seeds if (finite := np.isfinite(values)).any()]
    if not there:
        raise ValueError(f"no finite value in any of {len(seeds)} trainings")
    own, drawn = seeds_drawn([v[:, None] for v, _ in there], [g for _, g in there], resamples=resamples, seed=seed)
    return float(own.mean()), drawn.mean(axis=(1, 2))


def _effect(
    claim: str,
    measured: Study,
    metric: str,
    against: str,
    statistic: Callable[[np.ndarray], np.ndarray],
) -> evidence.Effect:
    """How far the medical tasks lie above ``against``: their ``statistic`` over tasks ``[T, …]``, less its value."""
    if claim not in {known.id for known in evidence.claims()}:
        raise ValueError(f"unknown claim {claim!r}: the ones there are stand in hpatlib/published/")
    names = [*MEDICAL, against]
    # Tasks were trained apart and have other images: their resamples are drawn apart, too.
    found = [resample(measured.values[name, metric], seed=number) for number, name in enumerate(names)]
    values, draws = np.array([value for value, _ in found]), np.stack([drawn for _, drawn in found])
    effect = statistic(values[:-1]) - values[-1]
    low, high = np.quantile(statistic(draws[:-1]) - draws[-1], (0.025, 0.975))
    n = min(min(len(v) for v, _ in measured.values[name, metric]) for name in names)
    return evidence.Effect(claim, float(effect), float(low), float(high), n)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0)


def _least(values: np.ndarray) -> np.ndarray:
    return values.min(axis=0)


def attention_effects(measured: Study) -> list[evidence.Effect]:
    """How much larger the attended area is than on photographs: on average, on the least, and against ImageNet's."""
    return [
        _effect("why-attention", measured, "area", NATURAL, _mean),
        _effect("why-attention-each", measured, "area", NATURAL, _least),
        _effect("why-attention-imagenet", measured, "area", HEAD, _mean),
    ]


def landscape_effects(measured: Study) -> list[evidence.Effect]:
    """How much steeper the loss is than on photographs: sharpness on average and at the least, and curvature."""
    return [
        _effect("why-sharpness", measured, "sharpness", NATURAL, _mean),
        _effect("why-sharpness-each", measured, "sharpness", NATURAL, _least),
        _effect("why-curvature", measured, "curvature", NATURAL, _mean),
    ]


TEXTURES = ("brick", "grass", "gravel")  # scikit-image's, 512 × 512 grey pixels, CC0
SIDE = 224  # the slides' image size, in every profile: the features of a window do not depend on a network
WINDOW = 20
FLAT = 8  # grey levels: a window that spans less has noise and background in it, and no texture


def textures(seed: int = 0) -> dict[str, Tensor]:
    """Middles of scikit-image's three textures and two phantoms, each ``[1, 1, 224, 224]`` in double precision."""
    found = {}
    for name in TEXTURES:
        whole = photographs.picture(name)[..., 0]
        top, left = ((side - SIDE) // 2 for side in whole.shape)
        found[name] = whole[top : top + SIDE, left : left + SIDE]
    for key, name in (("chest_ct", "lung phantom"), ("busi2", "ultrasound phantom")):
        found[name] = load(key, real=False, size=SIDE, count=2, seed=seed).images[1, 0]
    return {name: torch.from_numpy(grey.copy()).double()[None, None] / 255 for name, grey in found.items()}


def against_skimage(images: dict[str, Tensor], *, windows: int = 4) -> pd.DataFrame:
    """Our features beside those of scikit-image's ``graycomatrix`` and ``graycoprops``: a row an image and feature.

    ``windows``: how many of each image's 121, spread evenly; the slides' distance 3 and eight orientations at 256
    levels. ``homogeneity`` is the slides'; scikit-image has the one with the squared difference, so the slides' is
    taken from its matrix. Columns: ``image``, ``feature``, ``ours`` and ``scikit-image`` (means), ``difference`` (the
    largest over windows and orientations), ``opposite`` (the largest between two opposite orientations of ours).
    """
    from skimage.feature import graycomatrix, graycoprops

    angles = [2 * np.pi * k / 8 for k in range(8)]
    distance = np.abs(np.subtract.outer(np.arange(256), np.arange(256)))[..., None, None]
    squared = "homogeneity, squared"
    rows = []
    for name, image in images.items():
        ours = {**glcm.texture_features(image)}
        ours[squared] = glcm.texture_features(image, features=("homogeneity",), homogeneity="squared")["homogeneity"]
        across = ours["asm"].shape[-1]
        found: dict[str, list[np.ndarray]] = {feature: [] for feature in ours}
        picks = np.linspace(0, across**2 - 1, windows).round().astype(int)
        grey = (255 * image[0, 0]).round().to(torch.uint8).numpy()
        for row, column in zip(*np.divmod(picks, across), strict=True):
            area = grey[row * WINDOW : (row + 1) * WINDOW, column * WINDOW : (column + 1) * WINDOW]
            matrix = graycomatrix(area, [3], angles, 256, normed=True)  # [256, 256, 1, 8]
            for feature, values in found.items():
                prop = {"asm": "ASM", squared: "homogeneity"}.get(feature, feature)
                if feature == "homogeneity":
                    values.append((matrix / (1 + distance)).sum(axis=(0, 1))[0])
                else:
                    values.append(graycoprops(matrix, prop)[0])
        for feature, values in found.items():
            theirs = np.stack(values, axis=1)  # [8, windows]
            mine = ours[feature][0].flatten(1).numpy()
            numbers = {"ours": mine[:, picks].mean(), "scikit-image": theirs.mean()}
            gaps = {"difference": abs(mine[:, picks] - theirs).max(), "opposite": abs(mine[:4] - mine[4:]).max()}
            rows.append({"image": name, "feature": feature} | {k: float(v) for k, v in (numbers | gaps).items()})
    return pd.DataFrame(rows)


def texture_sets(chosen: Settings, *, count: int) -> dict[str, ImageSet]:
    """The four medical sets and crops of whole photographs in grey, ``count`` images of 224 px each, by name."""
    real = chosen.data == "real"
    found = {key: load(key, real=real, size=SIDE, count=count, seed=chosen.seed) for key in MEDICAL}
    colour, names = photographs.crops(count, size=SIDE, seed=chosen.seed)
    grey = assimilation.grayscale(torch.from_numpy(colour).float()).round().to(torch.uint8).numpy()
    labels = np.zeros(count, np.int64)
    hashed = fingerprint(grey, labels, names)
    return found | {NATURAL: ImageSet(NATURAL, grey, labels, names, ("photograph",), False, hashed)}


def monotony(sets: dict[str, ImageSet]) -> tuple[Study, list[evidence.Effect]]:
    """The five features of each set, means over windows with texture, and the claim that medical ones are monotonic.

    A value an image: the mean over its windows that span at least ``FLAT`` grey levels and over orientations (NaN
    without such a window); ``"flat"``: the share of its windows that do not. Rows as in ``attention``, without models.
    """
    rows, found = [], {}
    for task, images in sets.items():
        parts: dict[str, list[np.ndarray]] = {}
        for batch, _ in images.batches(16):
            cut = batch.unfold(2, WINDOW, WINDOW).unfold(3, WINDOW, WINDOW)[:, 0]  # [B, 11, 11, 20, 20]
            flat = (cut.amax(dim=(3, 4)) - cut.amin(dim=(3, 4))) * 255 < FLAT - 0.5
            for feature, values in glcm.texture_features(batch, window=WINDOW).items():
                kept = values.mean(dim=1).masked_fill(flat, torch.nan)  # [B, 11, 11]
                parts.setdefault(feature, []).append(kept.flatten(1).nanmean(dim=1).double().numpy())
            parts.setdefault("flat", []).append(flat.double().flatten(1).mean(dim=1).numpy())
        for metric, values in parts.items():
            found[task, metric] = [(np.concatenate(values), images.groups)]
            rows.append({"task": task} | _row("all", metric, 0.0, 0.0, found[task, metric]))
    measured = Study(pd.DataFrame(rows), found, [])
    return measured, [_effect("glcm-monotonic", measured, "homogeneity", NATURAL, _mean)]
