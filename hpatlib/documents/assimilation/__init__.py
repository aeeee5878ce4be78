"""The slides on domain assimilation: transfer learning on four medical data sets under four attacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpatlib.documents.profiles import Chosen


def choose(profile: str, data: str | None, seed: int) -> "Chosen[Any]":
    """The chapter's parameters, checked, and what follows from them.

    The run is vanilla transfer learning on chest CT: the grey image in all three channels of the backbone, classes of
    equal size, a fifth of the images for testing.
    """
    from hpatlib.documents.assimilation import study

    return study.choose(profile, data, seed)
