"""The profiles: what each chapter runs at which size, as plain data.

A chapter has three parameters, ``profile``, ``data`` and ``seed``; everything else follows from them here.
"""

import time
from dataclasses import dataclass, field, replace

from hpatlib.runs import Run
from hpatlib.training import Recipe

TRANSLATION_AT_300 = 12.0  # the leukemia paper's largest shift, in pixels of its 300 px images


@dataclass(frozen=True)
class Profile:
    """One size of running the book. ``size``: image side in pixels; ``count``: at most so many images (None: all real
    ones, or 512 phantoms); ``shown``: how many test images a search or an attack is measured on.

    The ultrasound report's: ``seeds``: how many trainings of the simple CNN; ``large``: its other networks with their
    weights, ``large_seeds`` trainings of each; ``ladder``: the ε of the sweep."""

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


PROFILES = {
    "smoke": Profile("phantom", 32, 512, "simple_cnn", "scratch", Recipe(epochs=12, batch_size=32, decay_every=9), 48),
    "laptop": Profile("phantom", 64, None, "tf_efficientnet_lite0", "imagenet", Recipe(6, 32, decay_every=4), 96),
    "study": Profile("real", 128, None, "efficientnet_b3", "imagenet", Recipe(epochs=20, batch_size=32), 256),
    "paper": Profile("real", 300, None, "efficientnet_b3", "imagenet", Recipe(), 1024),
}

# Epochs and batch size are the ultrasound report's; it states no learning rate, no image size and no weights (C5).
REPORT = Recipe(epochs=10, batch_size=32, lr=1e-3, decay=1.0)
SCRATCH, PRETRAINED = ("resnet50", "scratch"), ("resnet50", "imagenet")
LITE = ("tf_efficientnet_lite0", "imagenet")  # the pretrained reading where no hub answers
REPORTED = (0.05, 0.2, 0.5)  # the report's ε
LADDER = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SIMPLE = ("simple_cnn", "scratch")
ULTRASOUND = {
    "smoke": Profile(
        "phantom",
        32,
        160,
        *SIMPLE,
        REPORT,
        512,
        seeds=2,
        large=(("resnet18", "scratch"),),
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
        """The ultrasound report's simple CNN: a run a seed, from ``seed`` on."""
        return [replace(self.run, seed=self.seed + k) for k in range(self.chosen.seeds)]

    @property
    def large(self) -> list[list[Run]]:
        """Its other networks: for each, a run a seed."""
        seeds = range(self.seed, self.seed + self.chosen.large_seeds)
        return [[replace(self.run, model=m, weights=w, seed=seed) for seed in seeds] for m, w in self.chosen.large]

    @property
    def boxes(self) -> dict[str, tuple[float, float]]:
        """Figure 6's two search ranges: (translation px, rotation°) at this image size, by claim suffix."""
        return {"30": (3.0, 30.0), "180": (TRANSLATION_AT_300 * self.size / 300, 180.0)}


def ultrasound(profile: str, data: str | None, seed: int) -> Settings:
    """The settings of the ultrasound report's chapters: breast ultrasound, a fifth of it for testing.

    Near-duplicates stay on one side of the split; the report's own split lets them leak (C4).
    """
    return choose(profile, data, seed, dataset="busi", profiles=ULTRASOUND, test=1 / 5)


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
