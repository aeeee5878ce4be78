"""What decides a trained model, and how no two chapters ever train the same one.

A ``Run`` is plain data. Its key is a hash of the run, of the images it trains on, of the weights it starts from and of
the behaviour of the library's parts that training goes through; the model lives in a folder of that name, trained once
and loaded ever after.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
from torch import nn

from hpatlib import attacks, data, models, planning, training
from hpatlib._files import alone, home, sealed, storing, sweep, unsealed, write
from hpatlib._sharing import Team
from hpatlib.assimilation import Assimilated, Objective, Replicated, repaint_at_random
from hpatlib.data.images import ImageSet
from hpatlib.hybrid import Adversary
from hpatlib.mixbn import convert_mixbn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Part of the key of every run that goes through the part. Raise a number when the part makes another model of the same
# run, which is when its golden test in tests/test_runs.py fails, and not for anything else: a raised number has all
# those models trained again. ("training": the loop and the optimiser; "models": layers and first weights; "attacks":
# gradient attacks; "stbo": the search and the transforms; "assimilation": fronts, GLCM and equation 18.)
BEHAVIOUR = {"training": 1, "models": 2, "attacks": 1, "stbo": 2, "mixbn": 1, "assimilation": 2}

FRONTS: dict[str, Callable[[nn.Module], nn.Module]] = {"replicated": Replicated, "assimilated": Assimilated}
PACKAGES = ("hpatlib", "torch", "timm", "gpytorch", "numpy", "scikit-learn")
RESULTS = ("evidence", "benchmarks/results")  # folders of a checkout that runs write to

Network = Callable[[int, int], nn.Module]  # (classes, channels) -> a module that takes pixels in [0, 1]


@dataclass(frozen=True)
class Run:
    """Everything that decides a trained model.

    ``dataset``: a key of ``data.SOURCES``; ``real``: its images, or phantoms of its modality; ``size``: image side in
    pixels; ``count``: at most so many images; ``split_by``, ``test``: see ``data.split``; ``model``, ``weights``: see
    ``models.build``; ``seed`` decides the phantoms, the split, the first weights and the order of the batches;
    ``repeat`` tells models of the same split apart: other first weights, another order of the batches. With images or
    a network of one's own (``train_or_load``), ``dataset`` or ``model`` and ``weights`` are names of one's own.

    ``static_eps`` in (0, 1]: train on FGSM examples alone, made once at this ε from the model of the same run without
    it (C3); ``static``: from where that model's training ended ("continued"), or on clean images too ("mixed"; None:
    neither). ``adversary``: add the loss on the images that it makes of each batch with the model as it is in that step
    (Algorithm 1); ``mixbn``: with a batch norm of their own.

    For grey images and a backbone that sees colours, ``front`` says how they become coloured: ``"replicated"`` or
    ``"assimilated"`` (None: the backbone's filters are summed over colours); ``objective``: equation 18's loss.
    ``spread``: T and C are random and stay so, with this mean channel spread (``assimilation.repaint_at_random``).

    A recipe with patience keeps an eighth of the training images for validation. Raises ``ValueError`` where these
    contradict each other.
    """

    # Fields that stand at their defaults are not part of the key, so that a new field leaves the old keys as they are.
    # A default, of any settings in here, must therefore never change: give the new meaning a new field.
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
    static: Literal["continued", "mixed"] | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        training.plain_numbers(self)
        if self.static_eps is not None and not 0 < self.static_eps <= 1:
            raise ValueError(f"static_eps must lie in (0, 1], found {self.static_eps}")
        if self.static_eps is not None and self.adversary is not None:
            raise ValueError("a model trains on a static set or against an adversary, not both: leave one out")
        if self.static not in (None, "continued", "mixed") or (self.static and self.static_eps is None):
            raise ValueError(
                f'static must be "continued" or "mixed", with a static_eps, or None, found {self.static!r}'
            )
        if self.mixbn and self.adversary is None:
            raise ValueError("mixbn needs an adversary: without one, its second branch would never be trained")
        if self.front not in (None, *FRONTS):
            raise ValueError(f"unknown front {self.front!r}: choose one of {', '.join(FRONTS)}, or None")
        if self.objective is not None and (self.front != "assimilated" or self.adversary is not None):
            raise ValueError('equation 18 needs front="assimilated" and no adversary')
        if self.spread is not None and (self.front != "assimilated" or self.objective is not None):
            raise ValueError('a random repaint (spread) needs front="assimilated" and no objective: nothing is adapted')

    @property
    def clean(self) -> "Run":
        """The same run, trained on clean images alone."""
        return replace(self, static_eps=None, static=None, adversary=None, mixbn=False)


def to_dict(run: Run) -> dict[str, Any]:
    """The run as plain JSON data, less the fields that stand at their defaults."""
    return _plain(run)


def from_dict(plain: dict[str, Any]) -> Run:
    """The run that ``to_dict``, or the "run" of a provenance, describes. Raises ``ValueError`` for anything else."""
    run = msgspec.convert(plain, Run)
    _check_names(plain, run)
    return run


def _check_names(plain: Mapping[str, Any], made: Any) -> None:
    """msgspec takes what a dataclass has no field for, and a misspelt setting would be another run."""
    known = [field.name for field in fields(made)]
    if unknown := sorted(plain.keys() - set(known)):
        raise ValueError(f"{type(made).__name__} has no {', '.join(unknown)}: choose of {', '.join(known)}")
    for name, value in plain.items():
        if is_dataclass(part := getattr(made, name)) and isinstance(value, Mapping):
            _check_names(value, part)


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, both sides of its data, and how it came about.

    ``provenance``, plain JSON data: ``key``; ``run`` with all its fields; ``parent``, the key of the model that a
    static set was made from; ``data``: name and fingerprint of all images, how many were for training and for testing;
    ``start``: see ``models.weights_identity``; ``behaviour``: see ``BEHAVIOUR``; ``epochs``: the rows of
    ``training.fit``; ``seconds``; ``dose``, empty, for whoever measures how strong a treatment was; and what
    ``environment`` tells.
    """

    model: nn.Module
    train: ImageSet
    test: ImageSet
    provenance: dict[str, Any]


def train_or_load(
    run: Run,
    *,
    images: ImageSet | None = None,
    network: Network | None = None,
    device: str | None = None,
    fabric: "Fabric | None" = None,
) -> Trained:
    """The model of ``run``: loaded from ``home()/models/<key>``, or trained there now.

    Two processes that want the same model: one trains, the other waits and loads. A training that was stopped goes on
    after its last whole epoch. ``device``: where to train and to put the model (default: CUDA where there is one).

    ``images``: a set of one's own, of the size that ``run`` states; ``run.dataset`` is then just what you call it.
    ``network``: one's own, called as ``network(classes, channels)`` for a module that takes pixels ``[B, C, H, W]`` in
    [0, 1] and returns logits ``[B, classes]``; ``run.model`` and ``run.weights`` are then just what you call it. The
    key knows a network by these names alone: give it another when you change it.

    ``fabric``: train on all its devices at once, in single precision (see ``training.fit``), which makes the model that
    one device makes but for rounding, and so has its key; each of its processes calls this.

    Everything stored carries a checksum. What is damaged is refused, or trained anew where the environment variable
    HPAT_RETRAIN is 1.

    Raises ``ValueError`` for images that are not those that ``run`` states, for another precision, and for a stored
    model or checkpoint that is damaged or not finite, ``OSError`` where nothing can be stored, and what ``data.load``,
    ``data.split``, ``models.build`` and ``training.fit`` raise.
    """
    planning.announce([run])
    if fabric is not None and (found := fabric.strategy.precision.precision) != "32-true":
        raise ValueError(
            f"models are kept as single precision makes them, found {found}: pass Fabric(precision='32-true')"
        )
    team = Team(fabric)
    device = device or (default_device() if fabric is None else str(fabric.device))
    if images is None:
        images = _load(run)
    else:
        _check_stated(run, images)
    train, test = data.split(images, by=run.split_by, test=run.test, seed=run.seed)
    folder = home() / "models" / key(run, train.fingerprint, own=network is not None)
    # Without the lock first, as the folder may be one to read from alone; then another may have trained it meanwhile.
    # A caller's draws do not hang on whether a model was stored.
    with torch.random.fork_rng(devices=training.cuda(device)):
        if team.told((stored := _stored(folder, run, train, network)) is None):
            planning.training()
            with alone(folder, partial(_waiting, run)) if team.first else nullcontext():
                if team.told((stored := _stored(folder, run, train, network)) is None):
                    stored = _train(folder, run, images, train, test, network, device, team)
        stored = stored or _stored(folder, run, train, network)  # what the first process was a moment late to find
    assert stored is not None
    model, provenance = stored
    return Trained(model.to(device).eval(), train, test, provenance)


def _waiting(run: Run, who: str) -> None:
    print(f"{who} trains {run.model} with seed {run.seed}: waiting for it", file=sys.stderr)


def _stored(
    folder: Path, run: Run, train: ImageSet, network: Network | None
) -> tuple[nn.Module, dict[str, Any]] | None:
    """The model in ``folder`` and its provenance; None where there is none, or a damaged one that may be replaced."""
    about = folder / "run.json"
    if not about.is_file():  # written last: what it speaks of is there
        return None
    model = _build(run, train, "scratch", network)
    try:
        provenance = unsealed(about)
        tensors, told = training.deserialise(folder / "model.safetensors")
        if not provenance.get("key") == told.get("key") == folder.name:
            raise ValueError(f"{folder} holds the model of another run")
        models.check_finite(folder / "model.safetensors", tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            own = f": if you changed yours, give Run.model another name than {run.model!r}" if network else ""
            raise ValueError(f"the weights in {folder} do not fit the network of this run ({error}){own}") from error
    except ValueError as error:
        _replaced(error)
        return None
    with suppress(OSError):  # left by a process that died in between; of no use to anybody
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return model, provenance


def _replaced(error: ValueError) -> None:
    """Say that what ``error`` speaks of is trained anew, if that was asked for; otherwise raise it with the way to."""
    if os.environ.get("HPAT_RETRAIN") != "1":
        raise ValueError(f"{error}: put it back, or set HPAT_RETRAIN=1 to train what is damaged anew") from error
    warnings.warn(f"{error}: trained anew, as HPAT_RETRAIN=1 says", stacklevel=2)


def _train(
    folder: Path,
    run: Run,
    images: ImageSet,
    train: ImageSet,
    test: ImageSet,
    network: Network | None,
    device: str,
    team: Team,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the model of ``run`` and store it in ``folder``, whose lock the caller, or its first process, holds."""
    weights, checkpoint, about = (folder / name for name in ("model.safetensors", "checkpoint.safetensors", "run.json"))
    if team.first:
        _make_room(folder, weights, checkpoint, about)
    team.told(None)  # the others wait for that
    # Before the clock starts: the model that the static set is made from has its own record.
    parent = None
    if run.static_eps is not None:
        parent = train_or_load(run.clean, images=images, network=network, device=device, fabric=team.fabric)
    first = run.seed + 1_000_000 * run.repeat
    torch.manual_seed(first)
    model = _build(run, train, run.weights, network)
    where, started = environment(device), time.perf_counter()
    if run.spread is not None:
        assert isinstance(model, Assimilated)  # the front that a spread needs
        repaint_at_random(model, (x for x, _ in train.batches(64)), run.spread)
    clean, validation = train, None
    if run.recipe.patience is not None:
        clean, validation = data.split(train, by=run.split_by, test=1 / 8, seed=run.seed)
    examples: ImageSet | training.Examples = clean
    if parent is not None and run.static_eps is not None:
        examples = training.perturbed(parent.model, clean, partial(attacks.fgsm, eps=run.static_eps))
        if run.static == "mixed":
            examples = training.together(clean, examples)
        if run.static == "continued":
            model.load_state_dict(parent.model.state_dict())
    epochs = training.fit(
        model,
        examples,
        run.recipe,
        attack=run.adversary,
        objective=run.objective,
        validation=validation,
        seed=first,
        device=device,
        checkpoint=checkpoint,
        fabric=team.fabric,
    )
    provenance = {
        "key": folder.name,
        "run": asdict(run),
        "parent": parent.provenance["key"] if parent else None,
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            "train": len(train),
            "test": len(test),
        },
        "start": _start(run, network is not None),
        "behaviour": behaviour(run, network is not None),
        "epochs": epochs,
        # With those of epochs before it was stopped.
        "seconds": round(max(time.perf_counter() - started, sum(epoch["seconds"] for epoch in epochs)), 1),
        "dose": {},
        **where,
    }
    if team.size > 1:
        provenance["device"] += f", {team.size} processes"
    provenance = team.told(json.loads(json.dumps(provenance, default=_plain)))
    if team.first:
        write(weights, training.serialise(model.state_dict(), {"key": folder.name}))
        write(about, sealed(provenance))
        checkpoint.unlink(missing_ok=True)
    return model, provenance


def _make_room(folder: Path, weights: Path, checkpoint: Path, about: Path) -> None:
    """Remove from ``folder`` what no training goes on from."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)
    for path in (weights, checkpoint, about):
        sweep(path)
    if checkpoint.is_file():
        try:
            training.deserialise(checkpoint)
        except ValueError as error:
            _replaced(error)
            checkpoint.unlink()


def _load(run: Run) -> ImageSet:
    return data.load(run.dataset, real=run.real, size=run.size, count=run.count, seed=run.seed)


def _check_stated(run: Run, images: ImageSet) -> None:
    """Raise ``ValueError`` unless ``images`` are what ``run``, and so every record of it, says of them."""
    for what, stated, found in (("size", run.size, images.size), ("real", run.real, images.real)):
        if stated != found:
            raise ValueError(
                f"the run states {what}={stated}, but {images.name} has {what}={found}: change one of them"
            )
    if run.count is not None and len(images) > run.count:
        raise ValueError(
            f"the run states count={run.count}, but {images.name} has {len(images)} images: pass a subset or count=None"
        )


def _build(run: Run, train: ImageSet, weights: str, network: Network | None = None) -> nn.Module:
    classes, channels = len(train.classes), train.channels if run.front is None else 3
    if network is None:
        model = models.build(run.model, classes, in_channels=channels, size=run.size, weights=weights)
    else:
        model = network(classes, channels)
    if run.front is not None:
        model = FRONTS[run.front](model)
    return convert_mixbn(model) if run.mixbn else model


def key(run: Run, fingerprint: str, *, own: bool = False) -> str:
    """Sixteen hexadecimal digits, the same on every machine, that follow from what decides the model of ``run``.

    That is: the run, less the fields that stand at their defaults; ``fingerprint`` of the images it trains on, which
    stands for the code that found, read and split them; the weights it starts from, wherever their file lies; and
    ``BEHAVIOUR``. ``own``: the network is the caller's, known by ``run.model`` and ``run.weights`` alone.
    """
    decided = to_dict(run) | {"weights": _start(run, own)}
    content = json.dumps([decided, fingerprint, behaviour(run, own)], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _start(run: Run, own: bool) -> str:
    return run.weights if own else models.weights_identity(run.model, run.weights)


def recipe(run: Run) -> str:
    """Sixteen hexadecimal digits that follow from the run and the behaviour alone: a key before there are images."""
    content = json.dumps([to_dict(run), behaviour(run)], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def trained() -> dict[str, dict[str, Any]]:
    """The provenance of every model in ``home()/models`` that today's code would train, by its ``recipe``.

    Whether the images are still the same is seen when one is loaded.
    """
    found = {}
    for path in sorted((home() / "models").glob("*/run.json")):
        try:
            provenance = unsealed(path)
            run = from_dict(provenance["run"])
        except ValueError:  # damaged, of another version, or a network of somebody's own
            continue
        if provenance["behaviour"] == behaviour(run):
            found[recipe(run)] = provenance
    return found


def behaviour(run: Run, own: bool = False) -> dict[str, int]:
    """The versions of the parts that training goes through (``own``: see ``key``)."""
    adversary = run.adversary
    taken = {
        "training": True,
        "models": not own,
        "attacks": run.static_eps is not None or (adversary is not None and adversary.eps > 0),
        "stbo": adversary is not None and adversary.evaluations > 0,
        "mixbn": run.mixbn,
        "assimilation": run.front is not None,
    }
    return {part: BEHAVIOUR[part] for part, goes_through in taken.items() if goes_through}


def _plain(value: Any) -> Any:
    """Settings as JSON data, less the fields of dataclasses that stand at their defaults; equal settings become equal.

    1.0 and NumPy's 1 become 1, so that it does not matter which of them a caller wrote.
    """
    if is_dataclass(value):
        told = (
            field for field in fields(value) if field.default is MISSING or getattr(value, field.name) != field.default
        )
        return {field.name: _plain(getattr(value, field.name)) for field in told}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def default_device() -> str:
    """``"cuda"`` where there is one, else ``"cpu"``; the stamp of every result says which."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment(device: str) -> dict[str, Any]:
    """Where a result was computed: device, versions, and the git commit of the library as it was imported."""
    threads = torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else on_cpu
    return {
        "device": name,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": COMMIT,
    }


def commit() -> str | None:
    """The commit of the checkout, ``"-dirty"`` behind it where tracked files are not as committed; None outside one.

    Results, those of ``RESULTS``, are no code: one that a run renews does not make the next run's commit dirty.
    """
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "pyproject.toml").is_file():  # site-packages may lie in somebody else's checkout
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{name}" for name in RESULTS))
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = commit()  # of the code that runs: a checkout may move on while it does
