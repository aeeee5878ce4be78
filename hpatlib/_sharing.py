"""One training on several devices: what a process has of each batch, and what all of them know together.

Each process computes with its share of a batch as if the others' were there: batch norm takes the statistics of all
images, and random numbers are drawn for all images and cut to the share. So the weights are those of one process, up to
the order in which sums are added. Processes, devices and precision are Lightning Fabric's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
_share: ContextVar[tuple[slice, int] | None] = ContextVar("_share", default=None)  # of how many images


def drawn(draw: Callable[..., Tensor], shape: tuple[int, ...], dim: int = 0, **how: Any) -> Tensor:
    """``draw(shape, **how)``, random numbers of ``shape`` with an image each along ``dim``, whoever else has images.

    A process that has a share of a batch gets that share of what one process with the whole batch would draw.
    """
    if (share := _share.get()) is None:
        return draw(shape, **how)
    mine, whole = share
    return draw((*shape[:dim], whole, *shape[dim + 1 :]), **how).narrow(dim, mine.start, mine.stop - mine.start)


class Team:
    """The processes of one training: those of ``fabric``, which has been launched, or this one alone (None)."""

    def __init__(self, fabric: "Fabric | None") -> None:
        self.fabric = fabric
        self.size, self.rank = (1, 0) if fabric is None else (fabric.world_size, fabric.global_rank)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """What the first process has as its ``value``: nothing that they decide by may differ between them."""
        return value if self.fabric is None or self.size == 1 else self.fabric.broadcast(value)

    def total(self, values: Tensor) -> Tensor:
        """The sum of every process's ``values``."""
        if self.fabric is None or self.size == 1:
            return values
        return cast(Tensor, self.fabric.all_reduce(values, reduce_op="sum"))

    def prepared(self, step: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any, Callable]:
        """``step`` and ``optimizer`` as Fabric wraps them, and what to call for the backward pass of a loss."""
        if self.fabric is None:
            return step, optimizer, Tensor.backward
        return *self.fabric.setup(step, optimizer), self.fabric.backward

    @contextmanager
    def share(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """This process's part of a batch, and the weight of its sums in those of all; inside, ``drawn`` knows of it.

        Where there are fewer images than processes, each takes all of them, and its weight is that much smaller.
        """
        if len(labels) < self.size or self.size == 1:
            yield images, labels, 1 / self.size
            return
        ends = [len(labels) * rank // self.size for rank in range(self.size + 1)]
        mine = slice(ends[self.rank], ends[self.rank + 1])
        token = _share.set((mine, len(labels)))
        try:
            with _WholeBatch():
                yield images[mine], labels[mine], 1.0
        finally:
            _share.reset(token)


class _WholeBatch(TorchFunctionMode):
    """Inside, every batch norm that is training, whatever module calls it, has the statistics of all shares.

    ``nn.SyncBatchNorm`` does so for GPUs alone, and for its own kind of norm: timm's and MixBN's are others.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of ``x [B, C, …]``, of which each process has some images."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    around = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    wide = x if x.dtype == torch.float64 else x.float()
    count = _Sum.apply(wide.new_tensor(x.numel() / x.shape[1]))
    mean = _Sum.apply(wide.sum(around)) / count
    centred = wide - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(around)) / count
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean), momentum)
        running_var.lerp_((variance.detach() * count / (count - 1)).to(running_var), momentum)
    normal = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        normal = normal * weight.view(shape)
    return (normal if bias is None else normal + bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; each one's losses depend on every summand, so gradients are summed too.

    ``torch.distributed`` has two of these: one is deprecated, the other not in every version that we support.
    """

    @staticmethod
    def forward(context: Any, summand: Tensor) -> Tensor:
        total = summand.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient.contiguous())
