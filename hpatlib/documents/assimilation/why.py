"""Why medical models give way, after the slides: do they look at more of the image, and is their loss steeper?

Both need natural images to compare with: the same network, trained in the same way on as many grey natural images in
two classes as each medical set has here, so that only the pictures differ. Real medical images are compared with a
sample of ImageNet (animal or not), phantoms with six photographs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hpatlib import assimilation, data, explain, glcm
from hpatlib._model import device_of
from hpatlib.data import ImageSet, photographs
from hpatlib.data.images import fingerprint
from hpatlib.documents.assimilation.quantities import FLAT, HALF, MEDICAL, SHARES, STRAIGHT, WINDOW
from hpatlib.documents.assimilation.study import Profile, clean_rows, count
from hpatlib.documents.profiles import Chosen
from hpatlib.measure import Study, logits, named, rows, sample
from hpatlib.planning import announce, even_count
from hpatlib.records import Record
from hpatlib.runs import Run, Trained, train_or_load

PLACES = 16  # positions of the feature map behind Grad-CAM: 4 × 4 at least, for every network and size
EPS = 4 / 255  # the middle of the slides' range
POINTS = 9  # a side of a loss slice: a point every grey level
SLICES = 16  # images a slice is averaged over, in each training
ITERATIONS = 10  # of PGD and of the power iteration
TEXTURES = ("brick", "grass", "gravel")  # scikit-image's, 512 × 512 grey pixels, CC0
SIDE = 224  # the slides' image size, in every profile: the features of a window do not depend on a network


@dataclass(frozen=True)
class Asked:
    """One network and the test images it is asked about."""

    domain: str
    dataset: str
    trained: Trained
    images: ImageSet

    @property
    def model(self) -> nn.Module:
        return self.trained.model

    @cached_property
    def pixels(self) -> Tensor:
        """All its images ``[N, C, H, W]``, where the model is."""
        return self.images.tensors(device_of(self.model))[0]

    @property
    def seed(self) -> int:
        """The training's."""
        return int(self.trained.provenance["run"]["seed"])

    def rows(self, **values: Any) -> pd.DataFrame:
        """A row an image: its answer, and values."""
        return rows(self.images, logits(self.model, self.pixels), **values)


def tasks(chosen: Chosen[Profile]) -> dict[tuple[str, str], list[Run]]:
    """Vanilla transfer learning on the four medical sets and on natural images: (domain, data set) → its trainings.

    All have as many images of each of two classes: those of the smallest set, or what one learns from more would be
    taken for what its pictures are like.
    """
    model, weights = chosen.settings.model, chosen.settings.weights
    key, real = natural(chosen)
    counts = [count(chosen, dataset) for dataset in MEDICAL]
    if real and chosen.settings.count is None:
        counts.append(even_count(key))
    even = min((each for each in counts if each is not None), default=None)
    shifted = replace(chosen, seed=chosen.seed + chosen.settings.why_seed)
    several = partial(shifted.runs, chosen.settings.why_trainings, model=model, weights=weights)
    made = {("medical", dataset): several(dataset=dataset) for dataset in MEDICAL}
    made["natural", key] = several(dataset=key, real=real)
    return {task: [replace(run, count=even) for run in trainings] for task, trainings in made.items()}


def natural(chosen: Chosen[Profile]) -> tuple[str, bool]:
    """The natural images to compare with, and whether they are files: phantoms are compared with photographs."""
    key = chosen.settings.natural if chosen.run.real else photographs.KEY
    return key, bool(data.SOURCES[key].parts)


def asked(chosen: Chosen[Profile]) -> Iterator[Asked]:
    """Every network of `tasks`, trained or loaded, one after the other."""
    several = tasks(chosen)
    announce(run for trainings in several.values() for run in trainings)
    for (domain, dataset), trainings in several.items():
        for run in trainings:
            trained = train_or_load(run)
            yield Asked(domain, dataset, trained, sample(trained.test, chosen.settings.shown))


def crops(number: int, *, size: int, seed: int) -> ImageSet:
    """Grey crops of whole photographs; what belongs together is a photograph."""
    pixels, names = photographs.crops(number, size=size, seed=seed)
    pixels = assimilation.grayscale(torch.from_numpy(pixels).float()).round().to(torch.uint8).numpy()
    labels = np.zeros(number, np.int64)
    told = f"{photographs.KEY} (grey crops)"
    return ImageSet(told, pixels, labels, names, ("photograph",), False, fingerprint(pixels, labels, names))


def why_attention_region(chosen: Chosen[Profile]) -> Record:
    """Where the networks look: the smallest share of pixels that holds a share of the Grad-CAM mass.

    The class asked about is the predicted one. Columns: ``"area 0.5"`` and so on for ``SHARES`` of the mass; ``empty``,
    1 for a map in which nothing speaks for the class, which has no area.
    """
    study = Study("assimilation/why_attention_region", chosen, ("domain", "dataset"))
    for one in study.steps(asked(chosen), lambda one: one.trained.provenance["key"]):
        heat = heatmaps(one)
        areas = {f"area {share:g}": explain.attention_area(heat, share=share).cpu().numpy() for share in SHARES}
        empty = np.isnan(areas[f"area {HALF:g}"]).astype(float)
        study.add(one.trained, one.rows(**areas, empty=empty), domain=one.domain, dataset=one.dataset)
    return study.record()


def heatmaps(one: Asked) -> Tensor:
    """Grad-CAM maps ``[N, H, W]`` of all images, from the last layer with at least ``PLACES`` places."""
    layer = explain.last_feature_map(one.model, one.pixels[:1], places=PLACES)
    return torch.cat([explain.attention(one.model, batch, layer=layer) for batch in one.pixels.split(64)])


class Map(NamedTuple):
    """A picture ``[C, H, W]``, its Grad-CAM map ``[H, W]`` and the share of the pixels that holds half of its mass."""

    domain: str
    dataset: str
    picture: np.ndarray
    heat: np.ndarray
    area: float


def maps(chosen: Chosen[Profile]) -> list[Map]:
    """An image of each task with its map: the first one that has one, answered correctly if there is such.

    Phantoms and photographs only, whatever ``chosen`` says. A task none of whose images has a map (nothing speaks for
    the predicted class) is left out. Raises ``ValueError`` where that is so of all of them.
    """
    run = replace(chosen.run, real=False, count=None if chosen.run.real else chosen.run.count)
    drawn = replace(chosen, run=run, settings=_few(chosen.settings))
    found = []
    for one in asked(drawn):
        heat = heatmaps(one).cpu()
        area = explain.attention_area(heat)
        if not area.isfinite().any():
            continue
        right = logits(one.model, one.pixels).argmax(dim=1).cpu().numpy() == one.images.labels
        pick = int((area.isfinite().numpy() * (1 + right.astype(int))).argmax())
        pixels = one.pixels[pick].cpu().numpy()
        found.append(Map(one.domain, one.dataset, pixels, heat[pick].numpy(), float(area[pick])))
    if not found:
        raise ValueError("no image of any task has a Grad-CAM map: nothing speaks for the predicted classes")
    return found


def _few(settings: Profile) -> Profile:
    """One training and two dozen images: enough to show one."""
    import msgspec

    return msgspec.structs.replace(settings, why_trainings=1, shown=24)


def why_loss_landscape(chosen: Chosen[Profile]) -> Record:
    """How small a change flips each answer, and how steep the loss is around test images.

    Columns: those of `steepness`, and ``smallest``, the smallest ε in grey levels that changes the answer. Table
    ``landscape``: how far the mean loss of ``SLICES`` images rises above its middle on slices of ``POINTS`` ×
    ``POINTS``; a row a step ``y`` along random signs, a column a step along the gradient's sign, in grey levels.
    """
    study = Study("assimilation/why_loss_landscape", chosen, ("domain", "dataset"))
    for one in study.steps(asked(chosen), lambda one: one.trained.provenance["key"]):
        study.table("surfaces", _wide(one.domain, one.dataset, surface(one, one.seed)))
        answers = clean_rows(one.model, one.images, chosen.settings, one.seed)
        measured = answers.assign(**steepness(one, one.seed))
        study.add(one.trained, measured, domain=one.domain, dataset=one.dataset)
    several = study.taken("surfaces").groupby(["domain", "dataset", "y"], sort=False)
    study.table("landscape", several.mean().round(6).reset_index())
    return study.record()


def steepness(one: Asked, seed: int) -> dict[str, np.ndarray]:
    """How steep the loss is around each image, a number ``[N]`` each; ``seed`` draws where the power iteration starts.

    ``sharpness``: how far it rises within ``EPS``, in nats. ``relative``: the same divided by the spread of the logits,
    the standard deviation over test images of z₁ − z₀: a network that answers the same with logits twice as large has
    twice the rise, and is no easier to fool. ``curvature``: log₁₀ of the size of the largest eigenvalue of the Hessian
    divided by the square of that spread (it goes with the square where logits are linear), ``STRAIGHT`` at least: one
    image near the decision boundary can have more of it than all others together, and would decide a plain mean.
    """
    draws = torch.Generator().manual_seed(seed)
    answers = logits(one.model, one.pixels)
    spread = (answers[:, 1] - answers[:, 0]).double().std().clamp_min(1e-6).cpu()
    parts: dict[str, list[Tensor]] = {"sharpness": [], "curvature": []}
    for x, y in one.images.batches(64, device=device_of(one.model)):
        parts["sharpness"].append(explain.sharpness(one.model, x, y, eps=EPS, iterations=ITERATIONS).double().cpu())
        bend = explain.curvature(one.model, x, y, iterations=ITERATIONS, generator=draws)
        parts["curvature"].append(bend.abs().double().cpu())
    rise, bend = (torch.cat(values) for values in parts.values())
    curvature = (bend / spread**2).clamp_min(STRAIGHT).log10()
    return {"sharpness": rise.numpy(), "relative": (rise / spread).numpy(), "curvature": curvature.numpy()}


def surface(one: Asked, seed: int) -> np.ndarray:
    """Mean rise of the loss above its middle, ``[POINTS, POINTS]``, first along the gradient's sign, then across."""
    few = sample(one.images, SLICES)
    draws = torch.Generator().manual_seed(seed)
    x, y = few.tensors(device_of(one.model))
    loss = explain.landscape(one.model, x, y, eps=EPS, points=POINTS, generator=draws).cpu()
    return (loss - loss[:, POINTS // 2, POINTS // 2].view(-1, 1, 1)).double().mean(dim=0).numpy()


def _wide(domain: str, dataset: str, found: np.ndarray) -> pd.DataFrame:
    steps = np.linspace(-255 * EPS, 255 * EPS, POINTS).round(6)
    grid = pd.DataFrame(found.T, columns=[f"{step:g}" for step in steps])
    return grid.assign(domain=domain, dataset=dataset, y=steps)


def glcm_texture(chosen: Chosen[Profile]) -> Record:
    """The five features of medical and natural images at the slides' 224 px; no network is asked.

    A number an image and feature: the mean over its windows that span at least ``FLAT`` grey levels and over
    orientations (missing without such a window); ``flat``: the share of its windows that do not.
    """
    study = Study("assimilation/glcm_texture", chosen, ("domain", "dataset"))
    announce([])
    for (domain, dataset), images in texture_sets(chosen).items():
        study.saw(images)
        study.add(None, pd.DataFrame(named(images) | texture(images)), domain=domain, dataset=dataset)
    return study.record()


def texture_sets(chosen: Chosen[Profile]) -> dict[tuple[str, str], ImageSet]:
    """The four medical sets and natural images in grey, of 224 px each: photographs whole, not in quarters."""
    number, seed, medical = chosen.settings.textures, chosen.seed, chosen.run.real
    found = {("medical", key): data.load(key, real=medical, size=SIDE, count=number, seed=seed) for key in MEDICAL}
    key, real = natural(chosen)
    if real:
        found["natural", key] = data.load(key, real=True, size=SIDE, count=number, seed=seed)
    else:
        found["natural", key] = crops(number, size=SIDE, seed=seed)
    return found


def texture(images: ImageSet) -> dict[str, np.ndarray]:
    """Each feature of each image ``[N]``, mean over windows with texture and orientations; and ``flat``."""
    parts: dict[str, list[Tensor]] = {}
    for batch, _ in images.batches(16):
        cut = batch.unfold(2, WINDOW, WINDOW).unfold(3, WINDOW, WINDOW)[:, 0]  # [B, 11, 11, 20, 20]
        flat = (cut.amax(dim=(3, 4)) - cut.amin(dim=(3, 4))) * 255 < FLAT - 0.5
        for feature, values in glcm.texture_features(batch, window=WINDOW).items():
            kept = values.mean(dim=1).masked_fill(flat, torch.nan)  # [B, 11, 11]
            parts.setdefault(feature, []).append(kept.flatten(1).nanmean(dim=1).double())
        parts.setdefault("flat", []).append(flat.double().flatten(1).mean(dim=1))
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def textures(seed: int = 0) -> dict[str, Tensor]:
    """Middles of scikit-image's three textures and two phantoms, each ``[1, 1, 224, 224]`` in double precision."""
    found = {}
    for name in TEXTURES:
        whole = photographs.picture(name)[..., 0]
        top, left = ((side - SIDE) // 2 for side in whole.shape)
        found[name] = whole[top : top + SIDE, left : left + SIDE]
    for key, name in (("chest_ct", "lung phantom"), ("busi2", "ultrasound phantom")):
        found[name] = data.load(key, real=False, size=SIDE, count=2, seed=seed).images[1, 0]
    return {name: torch.from_numpy(grey.copy()).double()[None, None] / 255 for name, grey in found.items()}


def orientations(images: dict[str, Tensor]) -> pd.DataFrame:
    """Features by orientation, means over all windows: ``texture``, ``feature``, ``degrees``, ``value``."""
    found = []
    for name, image in images.items():
        for feature, values in glcm.texture_features(image, window=WINDOW).items():
            means = values[0].mean(dim=(1, 2)).tolist()  # of [8, 11, 11]
            degrees = [45 * k for k in range(len(means))]
            found.append(pd.DataFrame({"texture": name, "feature": feature, "degrees": degrees, "value": means}))
    return pd.concat(found, ignore_index=True)


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
    table = []
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
            table.append({"image": name, "feature": feature} | {k: float(v) for k, v in (numbers | gaps).items()})
    return pd.DataFrame(table)
