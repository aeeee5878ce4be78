"""How the baselines were chosen: candidates on validation images of the first split, then what the chosen one reaches.

``HPAT_DATA=… python workflow/baselines.py [DATA SET …]`` measures what ``baselines.json`` beside this file does not
hold yet, one training after the other, and writes it after each. A candidate learns from the training side of the split
of seed 0 less a group-aware eighth, on which it is judged; no test image is looked at. ``CHOSEN`` names the candidate
that stands in the document's ``profiles.toml``; its test numbers are those of the profile's own runs, trained or loaded
from ``$HPAT_HOME``, on the test side of each split.
"""

from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
LITE, SIMPLE = ("tf_efficientnet_lite0", "imagenet"), ("simple_cnn", "scratch")
