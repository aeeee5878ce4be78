"""The profiles: what each chapter runs at which size, as plain data.

A chapter has three parameters, ``profile``, ``data`` and ``seed``; everything else follows from them here.
"""

import time
from dataclasses import dataclass, field, replace

from hpatlib.data import even_count
from hpatlib.hybrid import Adversary, environment
from hpatlib.runs import Run
from hpatlib.training import Recipe


@dataclass(frozen=True)
class Profile:
    """One size of running the book.

    ``size``: image side in pixels; ``count``: at most so many images (None: all real ones, or 512 phantoms);
    ``shown``: how many test images a search or an attack is measured on; ``seeds``: how many trainings of the
    document's main network; ``large``: its other networks with their weights, ``large_seeds`` trainings of each.

    The leukemia paper's: ``splits``; ``train_searches`` and ``searches``: queries an image of STBO when training and
    when measuring, ``large_searches`` of the large networks; ``grid_step``: of figure 5's grid. The ultrasound
    report's: ``ladder``: the ε of the sweep.
    """

    data: str  # "phantom" or "real" where a chapter is not told otherwise
    size: int
    count: int | None
    model: str
    weights: str
    recipe: Recipe
    shown: int
    seeds: int = 1
    large: tuple[tuple[str, str], ...] = ()
    large_seeds: int = 1
    ladder: tuple[float, ...] = ()
    splits: tuple[str, ...] = ("patient",)
    train_searches: int = 0
    searches: int = 0
    large_searches: int = 0
    grid_step: int = 1


# The networks of the leukemia paper's table 1, in its order; its best one is the backbone of everything else.
TABLE1 = ("densenet201", "resnet50", "vgg16", "seresnext50_32x4d", "efficientnet_b3")
SCRATCH, PRETRAINED = ("resnet50", "scratch"), ("resnet50", "imagenet")
LITE = ("tf_efficientnet_lite0", "imagenet")  # the pretrained reading where no hub answers
PROFILES = {
    "smoke": Profile(
        "phantom",
        32,
        512,
        "simple_cnn_bn",
        "scratch",
        Recipe(epochs=6, batch_size=32, decay_every=5),
        32,
        seeds=2,
        large=(("simple_cnn", "scratch"), ("simple_cnn_bn", "scratch")),
        large_seeds=2,
        train_searches=4,
        searches=10,
        large_searches=10,
        grid_step=3,
    ),
    "laptop": Profile(
        "phantom",
        64,
        None,
        *LITE,
        Recipe(epochs=4, batch_size=16, decay_every=3),
        64,
        seeds=3,
        large=(*((name, "scratch") for name in TABLE1), LITE),
        large_seeds=2,
        splits=("patient", "image"),
        train_searches=12,
        searches=100,
        large_searches=25,
    ),
    "study": Profile(
        "real",
        128,
        None,
        "efficientnet_b3",
        "imagenet",
        Recipe(epochs=10, batch_size=32, decay_every=5),
        256,
        seeds=3,
        large=tuple((name, "imagenet") for name in TABLE1),
        large_seeds=3,
        train_searches=20,
        searches=100,
        large_searches=100,
    ),
    "paper": Profile(
        "real",
        300,
        None,
        "efficientnet_b3",
        "imagenet",
        Recipe(),
        1024,
        seeds=3,
        large=tuple((name, "imagenet") for name in TABLE1),
        large_seeds=3,
        splits=("patient", "image"),
        train_searches=100,
        searches=100,
        large_searches=100,
    ),
}
# Epochs and batch size are the ultrasound report's; it states no learning rate, no image size and no weights (C5).
REPORT = Recipe(epochs=10, batch_size=32, lr=1e-3, decay=1.0)
REPORTED = (0.05, 0.2, 0.5)  # the report's ε
LADDER = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SIMPLE = ("simple_cnn", "scratch")
ULTRASOUND = {
    "smoke": Profile(
        "phantom",
        32,
        160,
        *SIMPLE,
        replace(REPORT, epochs=6),
        512,
        seeds=2,
        large=(("simple_cnn_bn", "scratch"),),
        large_seeds=2,
        ladder=(0.05, 0.5),
    ),
    "laptop": Profile(
        "phantom",
        64,
        None,
        *SIMPLE,
        REPORT,
        512,
        seeds=5,
        large=(SCRATCH, LITE),
        large_seeds=3,
        ladder=REPORTED,
    ),
    "study": Profile(
        "real", 128, None, *SIMPLE, REPORT, 512, seeds=10, large=(SCRATCH, PRETRAINED), large_seeds=5, ladder=LADDER
    ),
    "paper": Profile(
        "real", 224, None, *SIMPLE, REPORT, 512, seeds=10, large=(SCRATCH, PRETRAINED), large_seeds=10, ladder=LADDER
    ),
}


# Learning rate, batch, epochs and early stopping are the slides' (in paper); the smaller profiles stop sooner.
SLIDES = Recipe(epochs=300, batch_size=32, lr=1e-4, decay=1.0, patience=30)
STRENGTHS = tuple(k / 255 for k in range(1, 9))
SLIDES_BACKBONES = (("resnet18", "imagenet"), ("resnet50", "imagenet"), ("densenet121", "imagenet"))
ASSIMILATION = {
    "smoke": Profile(
        "phantom",
        32,
        256,
        *SIMPLE,
        replace(SLIDES, epochs=8, lr=1e-3, patience=4),
        32,
        seeds=2,
        large=(SIMPLE,),
        large_seeds=2,
        ladder=STRENGTHS[1::4],
    ),
    "laptop": Profile(
        "phantom",
        64,
        None,
        *LITE,
        replace(SLIDES, epochs=15, patience=4),
        96,
        seeds=3,
        large=(LITE,),
        large_seeds=3,
        ladder=STRENGTHS,
    ),
    "study": Profile(
        "real",
        128,
        None,
        *SLIDES_BACKBONES[0],
        replace(SLIDES, epochs=60, patience=10),
        256,
        seeds=3,
        large=SLIDES_BACKBONES,
        large_seeds=3,
        ladder=STRENGTHS,
    ),
    "paper": Profile(
        "real",
        224,
        None,
        *SLIDES_BACKBONES[0],
        SLIDES,
        1024,
        seeds=3,
        large=SLIDES_BACKBONES,
        large_seeds=3,
        ladder=STRENGTHS,
    ),
}
ALPHA = 0.5  # equation 18 weighs cross-entropy by α; the slides give no value


@dataclass(frozen=True)
class Settings:
    """A chapter's parameters after checking, and what follows from them."""

    profile: str
    data: str
    seed: int
    run: Run
    shown: int
    chosen: Profile
    started: float = field(default_factory=time.perf_counter, repr=False)  # the clock of the chapter's wall time

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.run.size

    @property
    def small(self) -> list[Run]:
        """The document's main network: a run a seed, from ``seed`` on."""
        return [replace(self.run, seed=self.seed + k) for k in range(self.chosen.seeds)]

    @property
    def large(self) -> list[list[Run]]:
        """Its other networks: for each, a run a seed."""
        seeds = range(self.seed, self.seed + self.chosen.large_seeds)
        return [[replace(self.run, model=m, weights=w, seed=seed) for seed in seeds] for m, w in self.chosen.large]

    @property
    def boxes(self) -> dict[str, tuple[float, float]]:
        """Figure 6's two search ranges: (translation px, rotation°) at this image size, by claim suffix."""
        worst = environment(6, size=self.size).box
        return {"30": (3.0, 30.0), "180": (worst.translation, worst.rotation)}

    @property
    def adversaries(self) -> dict[str, Adversary | None]:
        """The leukemia paper's five training strategies by name: who makes the second half of a batch.

        ε = 6/255, PGD with six steps of 1/255 from 0.001 · N(0, 1); STBO in ±180° and ±12 px of 300, with the
        profile's number of queries (the document's: 100).
        """
        worst = environment(6, size=self.size)
        pixel = {"eps": worst.eps, "step": worst.step, "iterations": worst.iterations, "start": "gaussian"}
        box = {"translation": worst.box.translation, "rotation": worst.box.rotation}
        spatial = box | {"evaluations": self.chosen.train_searches}
        return {
            "Standard": None,
            "Adv_FGSM": Adversary(eps=worst.eps, step=worst.eps),
            "Adv_PGD": Adversary(**pixel),
            "Adv_RT": Adversary(**spatial),
            "Adv_h": Adversary(**pixel, **spatial),
        }


def ultrasound(profile: str, data: str | None, seed: int) -> Settings:
    """The settings of the ultrasound report's chapters: breast ultrasound, a fifth of it for testing.

    Near-duplicates stay on one side of the split; the report's own split lets them leak (C4).
    """
    return choose(profile, data, seed, dataset="busi", profiles=ULTRASOUND, test=1 / 5)


def assimilation(profile: str, data: str | None, seed: int, *, dataset: str = "chest_ct") -> Settings:
    """The settings of the slides' chapters: one of their four data sets, classes of equal size, a fifth for testing.

    ``run`` is vanilla transfer learning: the grey image in all three channels of the backbone.
    """
    chosen = choose(profile, data, seed, dataset=dataset, profiles=ASSIMILATION, test=1 / 5)
    count = even_count(dataset) if chosen.run.real and chosen.run.count is None else chosen.run.count
    return replace(chosen, run=replace(chosen.run, count=count, front="replicated"))


def choose(
    profile: str,
    data: str | None,
    seed: int,
    *,
    dataset: str = "cnmc",
    split_by: str = "patient",
    test: float = 1 / 3,
    profiles: dict[str, Profile] = PROFILES,
) -> Settings:
    """Check a chapter's parameters and look up what they mean in ``profiles``, the document's own.

    ``data`` None means the profile's own. Raises ``ValueError`` that lists what is valid.
    """
    if profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(profiles)}")
    if data not in (None, "phantom", "real"):
        raise ValueError(f"unknown data {data!r}: choose phantom or real, or None for the profile's own")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, found {seed!r}")
    chosen = profiles[profile]
    data = data or chosen.data
    run = Run(
        dataset=dataset,
        real=data == "real",
        size=chosen.size,
        count=chosen.count,
        split_by=split_by,
        test=test,
        model=chosen.model,
        weights=chosen.weights,
        recipe=chosen.recipe,
        seed=seed,
    )
    return Settings(profile, data, seed, run, chosen.shown, chosen)
