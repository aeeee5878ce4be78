"""What decides a trained model, and how no two chapters ever train the same one.

A ``Run`` is plain data. Its key is a hash of the run, of the images it trains on and of the library code that training
goes through; the model lives in a folder of that name, trained once and loaded ever after.
"""

import ast
import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from filelock import FileLock
from torch import nn

from hpatlib import attacks, data, models, training
from hpatlib._files import write
from hpatlib.assimilation import Assimilated, Objective, Replicated
from hpatlib.data import photographs
from hpatlib.data.images import ImageSet, home
from hpatlib.hybrid import Adversary
from hpatlib.mixbn import convert_mixbn

FRONTS = {"replicated": Replicated, "assimilated": Assimilated}
PACKAGES = ("hpatlib", "torch", "timm", "gpytorch", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """Everything that decides a trained model.

    ``dataset``: a key of ``data.SOURCES``, or ``data.photographs.KEY``; ``real``: its images, or phantoms of its
    modality; ``size``: image side in pixels; ``count``: at most so many images; ``split_by``, ``test``: see
    ``data.split``; ``model``, ``weights``: see ``models.build``; ``seed`` decides the phantoms, the split, the first
    weights and the order of the batches; ``repeat`` tells models of the same split apart: other first weights, another
    order of the batches.

    ``static_eps`` in (0, 1]: train on FGSM examples alone, made once at this ε from the model of the same run without
    it (C3). ``adversary``: add the loss on the images that it makes of each batch with the model as it is in that step
    (Algorithm 1); ``mixbn``: with a batch norm of their own.

    For grey images and a backbone that sees colours, ``front`` says how they become coloured: ``"replicated"`` or
    ``"assimilated"`` (None: the backbone's filters are summed over colours); ``objective``: equation 18's loss.

    A recipe with patience keeps an eighth of the training images for validation. Raises ``ValueError`` where these
    contradict each other.
    """

    dataset: str
    real: bool
    size: int
    count: int | None
    split_by: str
    test: float
    model: str
    weights: str
    recipe: training.Recipe
    seed: int
    repeat: int = 0
    static_eps: float | None = None
    adversary: Adversary | None = None
    mixbn: bool = False
    front: Literal["replicated", "assimilated"] | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.static_eps is not None and not 0 < self.static_eps <= 1:
            raise ValueError(f"static_eps must lie in (0, 1], found {self.static_eps}")
        if self.static_eps is not None and self.adversary is not None:
            raise ValueError("a model trains on a static set or against an adversary, not both: leave one out")
        if self.dataset == photographs.KEY and self.real:
            raise ValueError("photographs are nobody's patients: leave real=False")
        if self.mixbn and self.adversary is None:
            raise ValueError("mixbn needs an adversary: without one, its second branch would never be trained")
        if self.front not in (None, *FRONTS):
            raise ValueError(f"unknown front {self.front!r}: choose one of {', '.join(FRONTS)}, or None")
        if self.objective is not None and (self.front != "assimilated" or self.adversary is not None):
            raise ValueError('equation 18 needs front="assimilated" and no adversary')

    @property
    def clean(self) -> "Run":
        """The same run, trained on clean images alone."""
        return replace(self, static_eps=None, adversary=None, mixbn=False)


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, both sides of its data, and how it came about (plain JSON data)."""

    model: nn.Module
    train: data.ImageSet
    test: data.ImageSet
    provenance: dict


def train_or_load(run: Run, *, device: str | None = None) -> Trained:
    """The model of ``run``: loaded from ``home()/models/<key>``, or trained there now.

    Two processes that want the same model: one trains, the other waits and loads. A training that was stopped goes on
    after its last whole epoch. ``device``: where to train and to put the model (default: CUDA where there is one).
    """
    device = device or default_device()
    images = _images(run)
    train, test = data.split(images, by=run.split_by, test=run.test, seed=run.seed)
    folder = home() / "models" / key(run, images.fingerprint)
    weights, about = folder / "model.safetensors", folder / "run.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if about.is_file():  # written last: what it speaks of is whole
            model = _build(run, train, "scratch")
            model.load_state_dict(safetensors.torch.load_file(weights))
        else:
            # Before the clock starts: the model that the static set is made from has its own record.
            parent = train_or_load(run.clean, device=device) if run.static_eps is not None else None
            first = run.seed + 1_000_000 * run.repeat
            torch.manual_seed(first)
            model = _build(run, train, run.weights)
            started = time.perf_counter()
            examples, validation = train, None
            if run.recipe.patience is not None:
                examples, validation = data.split(train, by=run.split_by, test=1 / 8, seed=run.seed)
            if parent is not None:
                examples = training.attacked(parent.model, examples, partial(attacks.fgsm, eps=run.static_eps))
            epochs = training.fit(
                model,
                examples,
                run.recipe,
                attack=run.adversary,
                objective=run.objective,
                validation=validation,
                seed=first,
                device=device,
                checkpoint=folder / "checkpoint.safetensors",
            )
            write(weights, training.serialise(model.state_dict()))
            record = {
                "key": folder.name,
                "run": asdict(run),
                "parent": parent.provenance["key"] if parent else None,
                "data": {
                    "name": images.name,
                    "fingerprint": images.fingerprint,
                    "train": len(train),
                    "test": len(test),
                },
                "epochs": epochs,
                "seconds": round(time.perf_counter() - started, 1),
                **environment(device),
            }
            write(about, json.dumps(record, indent=1).encode())
            (folder / "checkpoint.safetensors").unlink()
    return Trained(model.to(device).eval(), train, test, json.loads(about.read_text()))


# Phantoms follow from these alone, and drawing them takes longer than training a small model on them for an epoch.
_drawn = lru_cache(maxsize=8)(data.load)


def _images(run: Run) -> ImageSet:
    if run.dataset == photographs.KEY:
        return photographs.load(run.count, size=run.size, seed=run.seed)
    load = data.load if run.real else _drawn
    return load(run.dataset, real=run.real, size=run.size, count=run.count, seed=run.seed)


def _build(run: Run, train: data.ImageSet, weights: str) -> nn.Module:
    channels = train.images.shape[1] if run.front is None else 3
    model = models.build(run.model, len(train.classes), in_channels=channels, weights=weights)
    if run.front is not None:
        model = FRONTS[run.front](model)
    return convert_mixbn(model) if run.mixbn else model


def key(run: Run, fingerprint: str) -> str:
    """Sixteen hexadecimal digits that follow from the run, its images' fingerprint and the code behind training."""
    # The images' fingerprint stands for the code that found and read them.
    modules = ["_model", "attacks", "models", "training", "data/__init__", "data/images"]
    if run.adversary is not None:
        modules += ["hybrid", "mixbn", "spatial", "stbo"]
    if run.front is not None:
        modules += ["assimilation", "glcm"]
    decided_by = [asdict(run), fingerprint, source(*modules)]
    return hashlib.blake2b(json.dumps(decided_by, sort_keys=True).encode(), digest_size=8).hexdigest()


def source(*modules: str) -> str:
    """A hash of what library modules (or sub-packages) do: comments, docstrings and layout do not count.

    Without arguments: of the whole library.
    """
    package = Path(__file__).parent
    files = [path for module in modules for path in (package / f"{module}.py", *(package / module).glob("*.py"))]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(files or package.rglob("*.py")):
        if path.is_file():
            digest.update(path.relative_to(package).as_posix().encode() + _meaning(path.read_text("utf-8")))
    return digest.hexdigest()


def _meaning(text: str) -> bytes:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]
    return ast.dump(tree).encode()


def default_device() -> str:
    """``"cuda"`` where there is one, else ``"cpu"``; the stamp of every result says which."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment(device: str) -> dict:
    """Where a result was computed: device, versions, and a hash of the library's code."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "source": source(),
    }
