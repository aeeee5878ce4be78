"""The profiles: what each chapter runs at which size, as plain data.

A chapter has three parameters, ``profile``, ``data`` and ``seed``; everything else follows from them here.
"""

import time
from dataclasses import dataclass, field

from hpatlib.runs import Run
from hpatlib.training import Recipe

TRANSLATION_AT_300 = 12.0  # the leukemia paper's largest shift, in pixels of its 300 px images


@dataclass(frozen=True)
class Profile:
    """One size of running the book. ``size``: image side in pixels; ``count``: at most so many images (None: all real
    ones, or 512 phantoms); ``shown``: how many test images a search or an attack is measured on."""

    data: str  # "phantom" or "real" where a chapter is not told otherwise
    size: int
    count: int | None
    model: str
    weights: str
    recipe: Recipe
    shown: int


PROFILES = {
    "smoke": Profile("phantom", 32, 512, "simple_cnn", "scratch", Recipe(epochs=12, batch_size=32, decay_every=9), 48),
    "laptop": Profile("phantom", 64, None, "tf_efficientnet_lite0", "imagenet", Recipe(6, 32, decay_every=4), 96),
    "study": Profile("real", 128, None, "efficientnet_b3", "imagenet", Recipe(epochs=20, batch_size=32), 256),
    "paper": Profile("real", 300, None, "efficientnet_b3", "imagenet", Recipe(), 1024),
}


@dataclass(frozen=True)
class Settings:
    """A chapter's parameters after checking, and what follows from them."""

    profile: str
    data: str
    seed: int
    run: Run
    shown: int
    started: float = field(default_factory=time.perf_counter, repr=False)  # the clock of the chapter's wall time

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.run.size

    @property
    def boxes(self) -> dict[str, tuple[float, float]]:
        """Figure 6's two search ranges: (translation px, rotation°) at this image size, by claim suffix."""
        return {"30": (3.0, 30.0), "180": (TRANSLATION_AT_300 * self.size / 300, 180.0)}


def choose(profile: str, data: str | None, seed: int, *, dataset: str = "cnmc", split_by: str = "patient") -> Settings:
    """Check a chapter's parameters and look up what they mean.

    ``data`` None means the profile's own. Raises ``ValueError`` that lists what is valid.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    if data not in (None, "phantom", "real"):
        raise ValueError(f"unknown data {data!r}: choose phantom or real, or None for the profile's own")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, found {seed!r}")
    chosen = PROFILES[profile]
    data = data or chosen.data
    run = Run(
        dataset=dataset,
        real=data == "real",
        size=chosen.size,
        count=chosen.count,
        split_by=split_by,
        test=1 / 3,
        model=chosen.model,
        weights=chosen.weights,
        recipe=chosen.recipe,
        seed=seed,
    )
    return Settings(profile, data, seed, run, chosen.shown)
