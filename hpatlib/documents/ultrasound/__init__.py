"""The ultrasound report: FGSM training of ResNet50 and a simple CNN on breast ultrasound (figures 1–10)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpatlib.documents.profiles import Chosen


def choose(profile: str, data: str | None, seed: int) -> "Chosen[Any]":
    """The chapter's parameters, checked, and what follows from them: BUSI, a fifth for testing.

    Near-duplicates stay on one side of the split; the report's own split lets them leak (C4).
    """
    from hpatlib.documents.profiles import choose
    from hpatlib.documents.ultrasound.study import Profile

    return choose("ultrasound", Profile, profile, data, seed, dataset="busi", test=1 / 5)
