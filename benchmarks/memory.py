"""How much memory the paper profile's table 2 takes: 36 trainings, their data, and the record of what they answered.

Made-up images of the size and number of C-NMC's training set (10,661 of 3 × 300 × 300 bytes, 2.9 GB in one sparse
file), a tiny network, and a part of the batches. Resident memory counts the mapped pages of files too, which the system
may take back at any time; anonymous memory is what the process cannot do without. Exits with 1 above the limit. For
Linux and macOS.
"""

import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _timing import arguments as common
from _timing import row, save
from torch import nn

from hpatlib import data, measure
from hpatlib.data import ImageSet
from hpatlib.documents import hpat
from hpatlib.documents.hpat.quantities import ABLATED
from hpatlib.records import Model

HEALTHY, ILL, SIZE = 3389, 7272, 300  # C-NMC 2019, as the leukemia paper crops it
NAMES = [name + norm for name in ABLATED for norm in ("", "+MixBN")]
SPLITS, SEEDS, SHOWN = ("patient", "image"), 3, 1024
LIMIT = 4e9


def fake(folder: Path, count: int) -> Path:
    """A sparse file of `count` images that differ in their first pixels and are black elsewhere."""
    path = folder / "images.npy"
    store = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, SIZE, SIZE))
    store[:, :, 0, :8] = np.random.default_rng(0).integers(0, 256, (count, 3, 8), np.uint8)
    store.flush()
    return path


def cells(path: Path) -> ImageSet:
    """The images of `path` as `data.load` gives them: 26 healthy subjects and 47 patients."""
    store = np.load(path, mmap_mode="r")
    labels = (np.arange(len(store)) >= len(store) * HEALTHY // (HEALTHY + ILL)).astype(np.int64)
    groups = np.where(labels == 1, np.arange(len(store)) % 47, 100 + np.arange(len(store)) % 26).astype(str)
    ids = np.array([f"fold_{n % 3}/{('hem', 'all')[label]}/UID_{n}.bmp" for n, label in enumerate(labels)])
    return ImageSet("cnmc", store, labels, groups, ("hem", "all"), True, "fake", ids=ids)


def run(study: measure.Study, path: Path, name: str, split_by: str, seed: int, batches: int) -> None:
    """One training and its outcomes in every cell of table 2: what the study keeps of it is provenance and rows."""
    train, test = data.split(cells(path), by=split_by, seed=seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    optimiser = torch.optim.Adam(model.parameters())
    for images, labels in itertools.islice(train.batches(16, generator=torch.Generator().manual_seed(seed)), batches):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    few = measure.sample(test, SHOWN)
    answers = measure.rows(few, measure.logits_of(model, few))
    asked = Model(f"{name}-{split_by}-{seed}", {"model": "tiny", "weights": "scratch", "seed": seed}, seed=seed)
    for place, reading in (("H0", "clean"), ("H6", "searched")):
        cell = {"split": split_by, "training": name, "branch": "shared", "environment": place, "reading": reading}
        study.add(asked, answers, **cell)


def resident() -> float:
    """Peak bytes of this process, mapped pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def anonymous() -> float:
    """Bytes of this process now, less mapped pages; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=HEALTHY + ILL, help="images")
    parser.add_argument("--batches", type=int, default=10, help="batches of 16 that each run trains on")
    arguments = common(__doc__, parser=parser)
    torch.set_num_threads(1)
    started, most = time.perf_counter(), anonymous()
    conditions = ("split", "training", "branch", "environment", "reading")
    study = measure.Study("hpat/table2_mixbn", hpat.choose("paper", "phantom", 0), conditions)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPAT_RECORDS"] = folder
        path = fake(Path(folder), arguments.count)
        for name, split_by, seed in itertools.product(NAMES, SPLITS, range(SEEDS)):
            run(study, path, name, split_by, seed, arguments.batches)
            most = max(most, anonymous())
        record, seconds = study.record(), time.perf_counter() - started
    made = f"{len(record.header.models)} runs, {len(record.outcomes.rows)} outcomes"
    print(f"{made}, on {arguments.count} images of {SIZE} px in {seconds:.0f} s")
    print(f"peak resident memory  {resident() / 1e9:5.2f} GB, limit {LIMIT / 1e9:.0f} GB")
    print(f"anonymous memory      {most / 1e9:5.2f} GB at most between runs" if most else "anonymous memory: not known")
    peaks = {"resident": [resident() / 1e9], "limit": [LIMIT / 1e9]}
    save("memory", [row(f"peak memory, {made}", peaks, "resident", "limit", target=1, unit="GB")], arguments)
    return int(resident() > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
