"""The leukemia paper: hybrid perturbations, STBO and MixBN on C-NMC cells (tables 1–2, figures 1–6)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpatlib.documents.profiles import Chosen


def choose(profile: str, data: str | None, seed: int) -> "Chosen[Any]":
    """The chapter's parameters, checked, and what follows from them: C-NMC split by patient, a third for testing."""
    from hpatlib.documents.hpat.study import Profile
    from hpatlib.documents.profiles import choose

    return choose("hpat", Profile, profile, data, seed, dataset="cnmc")
