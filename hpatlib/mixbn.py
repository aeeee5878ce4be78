"""MixBN: one batch norm for clean images and one for adversarial ones in every place, equations 10–13.

Both halves of a training batch share all other weights; each is normalised by statistics and by γ, β of its own (Xie et
al. 2020). Equations 11–13 are batch norm itself. Equation 10 adds the two branches up, which ties each image to its
partner and has no meaning when testing: here a branch is chosen, and the sum is kept as a variant (L23).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Branch = Literal["clean", "adv", "mix", "sum"]
BRANCHES = ("clean", "adv", "mix", "sum")


class MixBatchNorm2d(nn.Module):
    """Two copies of ``norm``, a ``BatchNorm2d`` or one of its kin such as timm's ``BatchNormAct2d``, for [B, C, H, W].

    ``branch`` says which copy normalises: ``"clean"`` or ``"adv"``; with ``"mix"`` the first half of the batch goes
    through the clean one and the second half through the other; with ``"sum"`` both halves become
    act(BN_clean(x₁) + BN_adv(x₂)), equation 10 as printed. The last two raise ``ValueError`` for an odd batch. With the
    first two, the copy that is not chosen gets no gradient.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        # Whole copies: whatever drops or activates inside the norm stays in its place.
        self.clean, self.adv = copy.deepcopy(norm), copy.deepcopy(norm)
        self.branch: Branch = "clean"

    def forward(self, x: Tensor) -> Tensor:
        if self.branch in ("clean", "adv"):
            return getattr(self, self.branch)(x)
        if len(x) % 2:
            raise ValueError(
                f"branch {self.branch!r} takes as many clean as adversarial images, found a batch of {len(x)}"
            )
        first, second = x.chunk(2)
        if self.branch == "mix":
            return torch.cat([self.clean(first), self.adv(second)])
        total = nn.BatchNorm2d.forward(self.clean, first) + nn.BatchNorm2d.forward(self.adv, second)
        for name in ("drop", "act"):  # what timm's norms do after normalising, once, to the sum
            total = getattr(self.clean, name, nn.Identity())(total)
        return torch.cat([total, total])


def convert_mixbn(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with a ``MixBatchNorm2d`` in place of every batch norm; both branches start as it was.

    Through either branch the copy computes what ``model`` does; a norm in two places stays one norm. Raises
    ``ValueError`` for a model without batch norm (vgg16, the simple CNN), with running statistics that the branches
    cannot take over, as both kinds of images would then share them, or that has been converted before.
    """
    if mixed(model):
        raise ValueError("the model has MixBN already: take one branch of it with strip() first")
    norms = [module for module in model.modules() if _keeps_statistics(module)]
    if other := {type(norm).__name__ for norm in norms if not _plain(norm)}:
        raise ValueError(
            f"MixBN replaces BatchNorm2d and its kin, found {', '.join(sorted(other))}: "
            "exchange them for BatchNorm2d first"
        )
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no batch norm for MixBN to replace: choose a backbone with it, "
            "such as resnet50, or train without MixBN"
        )
    return _replaced(model, nn.BatchNorm2d, MixBatchNorm2d)


def strip(model: nn.Module, branch: Literal["clean", "adv"]) -> nn.Module:
    """A copy of ``model`` that has only ``branch`` of each MixBN: a plain network with plain names for its weights."""
    if branch not in ("clean", "adv"):
        raise ValueError(f'only "clean" or "adv" can stand alone, found {branch!r}')
    _check_mixed(model)
    return _replaced(model, MixBatchNorm2d, lambda norm: copy.deepcopy(getattr(norm, branch)))


@contextmanager
def branch(model: nn.Module, name: Branch) -> Iterator[None]:
    """Send everything in the block through branch ``name`` of each MixBN of ``model``; restore each one's own after it.

    Raises ``ValueError`` for another name, and for a model without MixBN: it has no branches to tell apart.
    """
    if name not in BRANCHES:
        raise ValueError(f"unknown branch {name!r}: choose one of {', '.join(BRANCHES)}")
    _check_mixed(model)
    before = [(module, module.branch) for module in model.modules() if isinstance(module, MixBatchNorm2d)]
    try:
        for module, _ in before:
            module.branch = name
        yield
    finally:
        for module, own in before:
            module.branch = own


def mixed(model: nn.Module) -> bool:
    """Whether ``model`` has MixBN."""
    return any(isinstance(module, MixBatchNorm2d) for module in model.modules())


def _check_mixed(model: nn.Module) -> None:
    if not mixed(model):
        raise ValueError(f"{type(model).__name__} has no MixBN and so no branches: convert it with convert_mixbn()")


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether ``module`` itself normalises by statistics of the images it has seen, or could."""
    statistics = any(getattr(module, name, None) is not None for name in ("running_mean", "running_var"))
    return statistics or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _plain(norm: nn.Module) -> bool:
    """Whether ``norm`` is a ``BatchNorm2d`` that holds no further ones, as timm's ``SplitBatchNorm2d`` does."""
    return isinstance(norm, nn.BatchNorm2d) and sum(map(_keeps_statistics, norm.modules())) == 1


def _replaced(model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(model, kind):
        return make(model)
    model = copy.deepcopy(model)
    # Every place of a module that stands in several, for each of which the same replacement must stand.
    places = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, kind)]
    made = {module: make(module) for module in {module for _, module in places}}
    for name, module in places:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made[module])
    return model
