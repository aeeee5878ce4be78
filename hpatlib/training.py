"""One training loop: standard, or adversarial on clean and perturbed images; resumable, bit for bit on the CPU.

The sum of clean and adversarial loss is line 12 of Algorithm 1 without its impossible last term (L24).
"""

import copy
import hashlib
import json
import math
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hpatlib._files import write
from hpatlib._model import check_number, check_whole, device_of, held_still
from hpatlib._sharing import Team
from hpatlib.data import ImageSet
from hpatlib.mixbn import branch, mixed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
Augment = Literal["flips", "turns"]
MIRRORS: dict[Augment, tuple[Callable[[Tensor], Tensor], ...]] = {
    "flips": (lambda images: images.flip(3),),
    "turns": (lambda images: images.flip(3), lambda images: images.flip(2), lambda images: images.transpose(2, 3)),
}
# A loss that is less than 0.2 % below the one of answering the class shares has learned nothing. A dead network's is
# above it; an adversarial training without batch norm may stay within 1 % of it for half of its epochs, then learn.
AT_A_GUESS = 0.002
SLOW_START = 100  # steps in which nothing need be learned, unless the training is over
Objective = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]  # of some models only, such as Assimilated


@dataclass(frozen=True)
class Recipe:
    """What decides a training besides model and data. The defaults are the leukemia paper's.

    ``augment``: what happens to each training image each time it is seen, before any attack: ``"flips"``, left and
    right change places half of the time; ``"turns"``, for cells, which have no upright: one of the square's eight
    symmetries, all equally likely. No pixel gets another value. Examples that were made before the training, as of a
    static set, are turned as they are. Raises ``ValueError`` for another one, for counts that
    are not whole numbers of at least 1 and for rates that are not positive.
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    decay: float = 0.1  # the learning rate is multiplied by this …
    decay_every: int = 10  # … after this many epochs; the document's "every ℓ2 steps" is garbled (L26)
    patience: int | None = None  # stop after so many epochs without a lower validation loss (None: never)
    front_lr: float | None = None  # the learning rate of a model's ``front()``, modules before a backbone (None: lr)
    augment: Augment | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ["epochs", "batch_size", "decay_every"] + ["patience"] * (self.patience is not None):
            check_whole(name, getattr(self, name))
        for name in ["lr", "decay"] + ["front_lr"] * (self.front_lr is not None):
            check_number(name, getattr(self, name), lambda rate: 0 < rate < math.inf, "be positive and finite")
        if self.augment not in (None, *get_args(Augment)):
            known = ", ".join(get_args(Augment))
            raise ValueError(f"unknown augment {self.augment!r}: choose one of {known}, or None")


def plain_numbers(settings: Any) -> None:
    """Turn the NumPy numbers among the fields of a frozen dataclass, such as those of a sweep, into Python's."""
    for field in fields(settings):
        if isinstance(value := getattr(settings, field.name), np.generic):
            object.__setattr__(settings, field.name, value.item())


@dataclass(frozen=True, eq=False)
class Examples:
    """Images made once, such as a set of adversarial examples, on the CPU: what an ``ImageSet`` is to files.

    ``images``: ``[N, C, H, W]`` floats in [0, 1], not rounded to grey levels; ``labels``: ``[N]`` longs.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in batches on ``device``, shuffled when a generator is given; the last may be smaller."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for index in order.split(batch_size):
            yield self.images[index].to(device), self.labels[index].to(device)


def perturbed(model: nn.Module, data: ImageSet, attack: Attack, *, batch_size: int = 64) -> Examples:
    """``attack(model, images, labels)`` on every image of ``data``, made once and kept, in the order of ``data``."""
    device = device_of(model)
    batches = tqdm(data.batches(batch_size), "attack", -(-len(data) // batch_size), unit="batch", leave=False)
    made = [attack(model, images.to(device), labels.to(device)).cpu() for images, labels in batches]
    return Examples(torch.cat(made), torch.from_numpy(data.labels))


def together(data: ImageSet, examples: Examples) -> Examples:
    """The images of ``data`` and ``examples`` as one set."""
    images, labels = data.tensors()
    return Examples(torch.cat([images, examples.images]), torch.cat([labels, examples.labels]))


def fit(
    model: nn.Module,
    data: ImageSet | Examples,
    recipe: Recipe,
    *,
    attack: Attack | None = None,
    objective: Objective | None = None,
    validation: ImageSet | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    fabric: "Fabric | None" = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place with Adam and cross-entropy, Algorithm 1 where there is an ``attack``; a row an epoch.

    ``attack(model, images, labels)`` makes the second half of each batch: its loss is added to that of the clean half
    (equation 14 without η, L24). It must leave the model as found. One with a method ``at(epoch)``, as `Adversary` has
    it, is asked for the attack of each epoch, counted from 0. A model with MixBN is attacked through its adversarial
    branch, and each half of the batch goes through its own. Rows hold ``loss`` (of both halves together),
    ``accuracy`` and ``adversarial_accuracy`` on the training images as they were seen, and ``seconds``.

    ``objective(model, images, labels)`` returns another loss than cross-entropy, and the logits; it excludes an attack,
    and rows hold ``cross_entropy`` beside it.
    With ``validation``, rows hold ``validation_loss`` (cross-entropy) too, training stops as ``recipe.patience`` says,
    and the model ends with the weights of its best epoch.

    ``checkpoint`` names a file that holds the state after each epoch: a run that was stopped goes on from there to the
    same weights. Each epoch is a function of the weights, the optimiser's state, ``seed`` and the epoch's number
    alone, so nothing else needs keeping.

    ``fabric``: a Lightning ``Fabric``, launched, whose processes train one model together, on its devices (``device``
    is then not used) and with its precision; each of them calls this. ``recipe.batch_size`` is that of all together,
    and so are batch-norm statistics and the draws of this library's attacks: in the same precision, the weights are one
    process's but for rounding. Dropout and the Square attack alone draw for each process's images apart.

    Where a last batch would be one image, of which batch norm has no variance in a map of one pixel, an epoch goes
    without that image, each time another.

    Raises ``ValueError`` for an empty data set, for labels that the model has no class for, for a patience without
    validation images, for an attack together with an objective, for a loss that is not finite, for a checkpoint that is
    damaged or of another recipe, seed or number of images, and for a training in which nothing was learned (see
    ``_check_alive``).
    """
    if len(data) == 0 or (validation is not None and len(validation) == 0):
        raise ValueError("the training set or the validation set is empty")
    if recipe.patience is not None and validation is None:
        raise ValueError("patience needs validation images to watch: pass validation=, or patience=None")
    if attack is not None and objective is not None:
        raise ValueError("an attack adds cross-entropy on attacked images and an objective replaces it: choose one")
    seed = operator.index(seed)
    team, device = Team(fabric), device if fabric is None else fabric.device
    model.to(device)
    for side in (data, validation):
        if side is not None:
            _check_labels(model, side, device)
    optimizer = torch.optim.Adam(_groups(model, recipe))
    best: dict[str, Tensor] = {}
    alone = len(data) % recipe.batch_size == 1 and _refused_alone(model, data, device, attack, objective)
    of = f"{replace(recipe, epochs=1)}, seed {seed}, {len(data)} images"  # more epochs go on from fewer
    rows = _restore(checkpoint, of, model, optimizer, best) if checkpoint is not None else []
    inner = _Step(model, attack, objective)
    step, stepper, backward = team.prepared(inner, optimizer)
    total, initial = recipe.epochs * len(data), len(rows) * len(data)
    bar = tqdm(total=total, initial=initial, desc="train", unit="image", leave=False, disable=not team.first)
    with bar, torch.random.fork_rng(devices=cuda(device)):
        for epoch in range(len(rows), recipe.epochs):
            if recipe.patience is not None and _since_best(rows) >= recipe.patience:
                break
            # Before an epoch, so that one that was stopped for it is not revived by its checkpoint.
            if len(rows) * len(data) >= SLOW_START * recipe.batch_size:
                _check_alive(rows, recipe.epochs, data.labels, recipe, halves=1 if attack is None else 2)
            started = time.perf_counter()
            torch.manual_seed(_epoch_seed(seed, epoch))  # dropout and attacks without a generator of their own
            shuffle = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
            for group in optimizer.param_groups:
                group["lr"] = group["first_lr"] * recipe.decay ** (epoch // recipe.decay_every)
            inner.attack = grown(epoch) if (grown := getattr(attack, "at", None)) else attack
            model.train()
            totals = torch.zeros(4, device=device)  # summed on the device: no wait inside the loop
            for images, labels in data.batches(recipe.batch_size, generator=shuffle, device=device):
                images, count = _augmented(images, recipe.augment), len(labels)
                if count == 1 and alone:
                    bar.update(count)
                    continue
                with team.share(images, labels) as (images, labels, weight):
                    loss, entropy, *hits = step(images, labels)
                    optimizer.zero_grad(set_to_none=True)
                    backward(loss * (team.size * weight * len(labels) / count))  # gradients are averaged over processes
                    stepper.step()
                totals += weight * torch.stack([loss.detach() * len(labels), entropy * len(labels), *hits])
                bar.update(count)
            mean_loss, entropy, accuracy, adversarial = (team.total(totals) / (len(data) - alone)).tolist()
            if not mean_loss < float("inf"):
                raise ValueError(
                    f"the loss of epoch {epoch + 1} is {mean_loss}: lower lr={recipe.lr}, check the images"
                )
            row = {"loss": mean_loss, "accuracy": accuracy}
            if attack is not None:
                row["adversarial_accuracy"] = adversarial
            if objective is not None:
                row["cross_entropy"] = entropy
            if validation is not None:
                row["validation_loss"] = _cross_entropy(model, validation, device, team)
            bar.set_postfix({name.split("_")[0]: f"{value:.3f}" for name, value in row.items()})
            rows.append(row | {"seconds": time.perf_counter() - started})
            if validation is not None and _since_best(rows) == 0:
                best.update({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
            if checkpoint is not None and team.first:
                _keep(checkpoint, of, model, optimizer, rows, best)
    _check_alive(rows, len(rows), data.labels, recipe, halves=1 if attack is None else 2)
    if best:
        model.load_state_dict(best)
    model.eval()
    return rows


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters in groups of one learning rate: ``front()`` and the rest where the recipe tells them apart.

    Raises ``ValueError`` for a recipe with ``front_lr`` and a model without a ``front``.
    """
    if recipe.front_lr is None:
        return [{"params": list(model.parameters()), "first_lr": recipe.lr}]
    if not callable(front := getattr(model, "front", None)):
        raise ValueError(
            f"front_lr={recipe.front_lr} needs a model with a front(), such as Assimilated, found a "
            f"{type(model).__name__}: leave front_lr out"
        )
    modules = list(front())
    apart = {id(parameter) for parameter in modules}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    return [{"params": rest, "first_lr": recipe.lr}, {"params": modules, "first_lr": recipe.front_lr}]


@torch.no_grad()
def _check_labels(model: nn.Module, data: ImageSet | Examples, device: str | torch.device) -> None:
    """Before the first step: a GPU would report a label without a class as an assertion of its own, and stay broken."""
    image, _ = next(data.batches(1, device=device))
    with held_still(model):
        classes = model(image).shape[1]
    labels = torch.as_tensor(data.labels).unique().tolist()
    if unknown := [label for label in labels if not 0 <= label < classes]:
        raise ValueError(
            f"the images have the labels {', '.join(map(str, unknown))}, but the model answers with {classes} classes, "
            f"0…{classes - 1}: build it with as many classes as there are labels"
        )


def _refused_alone(
    model: nn.Module,
    data: ImageSet | Examples,
    device: str | torch.device,
    attack: Attack | None,
    objective: Objective | None,
) -> bool:
    """Whether a step on one image alone is refused by a batch norm."""
    image, label = next(data.batches(1, device=device))
    try:
        with torch.random.fork_rng(devices=cuda(device)):
            _losses(copy.deepcopy(model).train(), image, label, attack, objective)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return True
    return False


def _augmented(images: Tensor, how: Augment | None) -> Tensor:
    """``images [B, C, S, S]``, each with a coin of its own for each of the mirrors that ``how`` names."""
    for mirror in MIRRORS[how] if how else ():
        coins = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(coins, mirror(images), images)
    return images


def _check_alive(rows: list[dict[str, float]], epochs: int, labels: Any, recipe: Recipe, *, halves: int) -> None:
    """Raise ``ValueError`` where nothing was learned for half of ``epochs`` in a row up to now, and for 3 at least.

    That is: the cross-entropy within ``AT_A_GUESS`` of that of answering every image with the class shares, ln K for K
    classes of one size and twice that with an attack, or above; and an accuracy that guessing the largest class has
    too, within two standard errors. An adversary that is too strong leaves the accuracy on clean images above.
    """
    shares = torch.as_tensor(labels).bincount().double() / len(labels)
    guess, largest = halves * torch.special.entr(shares).sum().item(), shares.max().item()
    lucky = largest + 2 * math.sqrt(largest * (1 - largest) / len(labels))
    watched = max(3, math.ceil(epochs / 2))
    losses = [row.get("cross_entropy", row["loss"]) for row in rows]
    last = [
        loss > (1 - AT_A_GUESS) * guess and row["accuracy"] <= lucky
        for loss, row in zip(losses[-watched:], rows[-watched:], strict=True)
    ]
    if len(last) == watched and all(last):
        raise ValueError(
            f"nothing was learned in {watched} epochs: the loss is {losses[-1]:.4g}, of a guess {guess:.4g}; "
            f"lower lr={recipe.lr:g}, weaken the adversary, take a network with batch norm, or look at the labels"
        )


def _since_best(rows: list[dict[str, float]]) -> int:
    """How many epochs ago the validation loss was lowest; 0 before the first."""
    losses = [row["validation_loss"] for row in rows]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


@torch.no_grad()
def _cross_entropy(model: nn.Module, data: ImageSet, device: str | torch.device, team: Team) -> float:
    total = torch.zeros((), device=device)
    with held_still(model):
        for number, (images, labels) in enumerate(data.batches(64, device=device)):
            if number % team.size == team.rank:
                total += F.cross_entropy(model(images), labels, reduction="sum")
    return float(team.total(total)) / len(data)


class _Step(nn.Module):
    """What a batch goes through before the backward pass, as the one module that Fabric wraps."""

    def __init__(self, model: nn.Module, attack: Attack | None, objective: Objective | None) -> None:
        super().__init__()
        self.model, self.attack, self.objective = model, attack, objective

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _losses(self.model, images, labels, self.attack, self.objective)


def _losses(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Attack | None, objective: Objective | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of one batch, ℓ(f(X), y) + ℓ(f(X_h), y) with an attack (equation 14), the cross-entropy by itself, whose
    value at a guess is known, and the hits in each half."""
    if attack is None:
        loss, logits = (objective or _plain)(model, images, labels)
        entropy = loss.detach() if objective is None else F.cross_entropy(logits.detach(), labels)
        hits = (logits.argmax(dim=1) == labels).sum()
        return loss, entropy, hits, torch.zeros_like(hits)
    with branch(model, "adv") if mixed(model) else nullcontext():
        adversarial = attack(model, images, labels)
    # One pass over both halves: a batch norm that they share sees the mixture that it will stand for when evaluating.
    with branch(model, "mix") if mixed(model) else nullcontext():
        logits = model(torch.cat([images, adversarial]))
    loss = 2 * F.cross_entropy(logits, labels.repeat(2))  # both halves are equally large
    hits = (logits.argmax(dim=1) == labels.repeat(2)).view(2, -1).sum(dim=1)
    return loss, loss.detach(), hits[0], hits[1]


def _plain(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


def _epoch_seed(seed: int, epoch: int) -> int:
    return 1_000_003 * seed + epoch


def cuda(device: str | torch.device) -> list[torch.device]:
    """The devices whose random numbers ``torch.random.fork_rng`` keeps beside the CPU's, where ``device`` is used."""
    return [torch.device(device)] if torch.device(device).type == "cuda" else []


def _keep(
    path: Path,
    of: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: list[dict[str, float]],
    best: dict[str, Tensor],
) -> None:
    """One safetensors file: tensors of the model, the optimiser and the best epoch, and the rows in its header."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    write(path, serialise(tensors, {"of": of, "rows": json.dumps(rows)}))


def _restore(
    path: Path, of: str, model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    tensors, told = deserialise(path)
    if (other := told.get("of", of)) != of:  # earlier versions did not say
        raise ValueError(f"{path} belongs to another training ({other}) than this ({of}): name another file")
    rows = json.loads(told["rows"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]  # as numbered
    state: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "optimizer":
            number, key = rest.split(".")
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape:
                # In the parameter's memory format, as Adam made it: a resumed run must add up in the same order.
                tensor = torch.empty_like(parameter).copy_(tensor)
            state.setdefault(int(number), {})[key] = tensor
        else:
            (best if kind == "best" else weights)[rest] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return rows


def serialise(tensors: dict[str, Tensor], told: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file holding ``tensors``, wherever they live, what is ``told`` of them, and a checksum
    of both.
    """
    # Copies: safetensors refuses tensors that share memory, as those of a module in two places do.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    told = told or {}
    return safetensors.torch.save(plain, told | {"checksum": _checksum(plain, told)})


def deserialise(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``serialise`` made a file of. Raises ``ValueError`` where it is missing, or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from error
    if (checksum := told.pop("checksum", None)) is None:
        raise ValueError(f"{path} has no checksum: an earlier version stored it")
    if checksum != _checksum(tensors, told):
        raise ValueError(f"{path} is damaged: its content does not have the checksum that stands in it")
    return tensors, told


def _checksum(tensors: dict[str, Tensor], told: dict[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
