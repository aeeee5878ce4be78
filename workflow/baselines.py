"""How the baselines were chosen: candidates on validation images of the first split, then what the chosen one reaches.

``HPAT_DATA=… python workflow/baselines.py [DATA SET …]`` measures what ``baselines.json`` beside this file does not
hold yet, one training after the other, and writes it after each. A candidate learns from the training side of the split
of seed 0 less a group-aware eighth, on which it is judged; no test image is looked at. ``CHOSEN`` names the candidate
that stands in the document's ``profiles.toml``; its test numbers are those of the profile's own runs, trained or loaded
from ``$HPAT_HOME``, on the test side of each split.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from hpatlib import data, measure, runs, training
from hpatlib.data import ImageSet
from hpatlib.documents import assimilation, hpat, ultrasound
from hpatlib.documents.assimilation.study import runs as vanilla
from hpatlib.runs import Run
from hpatlib.training import Recipe

RESULTS = Path(__file__).with_suffix(".json")
LITE, SIMPLE = ("tf_efficientnet_lite0", "imagenet"), ("simple_cnn", "scratch")
