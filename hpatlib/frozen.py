"""Forwards that do nothing twice: a copy of a trained network for whoever asks it thousands of times.

A batch norm in eval mode is one scale and one shift a channel: folded into the weights of the convolution before it, it
costs nothing. Searches, grids and sweeps may ask such a copy. What they find is judged by the network itself, since
rounding differs: that is the caller's business, who asks it about the ``images`` that a search returns.
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hpatlib._model import device_of, ordinary_tensors
from hpatlib.mixbn import MixBatchNorm2d, strip

TOLERANCE = 1e-4  # of logits: times one, and times the largest, for rounding grows with what is added up
ROUNDING = 10  # times how far the network is from itself in double precision: near-constant images can enlarge it


@ordinary_tensors()
def frozen(model: nn.Module, *, compiled: bool = False) -> nn.Module:
    """A copy of ``model`` that answers the same, faster: eval mode, no trainable parameter, batch norms folded.

    Each batch norm goes into the convolution whose only reader it is (timm's keep their activation); a MixBN becomes
    the branch that is active now; on a CPU, feature maps lie channels last. Everything else stays as it is, so that any
    module works. The copy is differentiable in its input and knows nothing of what becomes of ``model`` later.

    The first images that it sees go through an untouched copy too: ``RuntimeError`` where the logits differ by more
    than ``TOLERANCE`` and, of any image, lie more than ``ROUNDING`` times as far from the answer in double precision as
    the network's own. ``compiled``: let ``torch.compile`` fuse what is left. That takes a compiler and a minute for
    each shape of a batch, so it is for thousands of batches of one shape; single images and gradients, for which it
    does not pay, go the plain way. ``RuntimeError`` where it fails. ``ValueError`` for a MixBN whose active branch
    takes clean and adversarial images together.
    """
    branches = {module.branch for module in model.modules() if isinstance(module, MixBatchNorm2d)}
    if len(branches) > 1 or not branches <= {"clean", "adv"}:
        raise ValueError(
            f'one branch of MixBN can be frozen, "clean" or "adv", found {", ".join(sorted(branches))}: '
            "choose with hpatlib.mixbn.branch()"
        )
    plain = strip(model, "adv" if "adv" in branches else "clean") if branches else copy.deepcopy(model)
    return Frozen(plain.eval().requires_grad_(False), compiled)


class Frozen(nn.Module):
    """What ``frozen`` returns: pixels ``[B, C, H, W]`` → logits ``[B, classes]``, always in eval mode."""

    def __init__(self, plain: nn.Module, compiled: bool) -> None:
        super().__init__()
        self.network = _folded(plain)
        self.plain: nn.Module | None = plain  # until the first images have gone through both
        self.compiled = compiled
        if compiled:
            self.network.compile(dynamic=False)
        self.eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Nothing: a frozen network stays in eval mode. Returns itself."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.plain is not None:
            self._compare(self.plain, images.detach())
            self.plain = None
        if not self.compiled or len(images) == 1 or (torch.is_grad_enabled() and images.requires_grad):
            return self.network.forward(images)
        return self.network(images)

    @ordinary_tensors()
    @torch.no_grad()
    def _compare(self, plain: nn.Module, images: Tensor) -> None:
        expected = plain(images)
        if device_of(plain).type == "cpu":
            # On GPUs, single precision gains nothing from it.
            self.network.to(memory_format=torch.channels_last)
            try:
                self.network.forward(images)
            except RuntimeError:  # .view() of feature maps, for one, needs channels first
                self.network.to(memory_format=torch.contiguous_format)
        found = [self.network.forward(images)]
        if self.compiled and len(images) > 1:
            try:
                found.append(self.network(images))
            except Exception as error:
                raise RuntimeError(
                    "torch.compile could not make this network faster: see the cause above, or leave out compiled=True"
                ) from error
        near = TOLERANCE * (1 + float(expected.abs().nan_to_num(0, 0, 0).max()))
        for answers in found:
            try:
                torch.testing.assert_close(answers, expected, atol=near, rtol=0, equal_nan=True)
            except AssertionError as error:
                if _rounded(plain, images, expected, answers, near):
                    continue
                raise RuntimeError(
                    f"the frozen network answers otherwise than {type(plain).__name__}: ask that one itself. {error}"
                ) from error


def _rounded(plain: nn.Module, images: Tensor, expected: Tensor, answers: Tensor, near: float) -> bool:
    """Whether ``answers`` are as near to the network's in double precision as its own, but for a factor of ROUNDING,
    image by image, or at least ``near``."""
    try:
        exact = copy.deepcopy(plain).double()(images.double())
    except (RuntimeError, TypeError):  # a forward that names its precision, or a device without doubles
        return False
    off = ROUNDING * (expected - exact).abs().flatten(1).amax(dim=1)
    return bool(((answers - exact).abs().flatten(1).amax(dim=1) <= off.clamp(min=near)).all())


def _folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with each batch norm that can go into a convolution in there."""
    model = copy.deepcopy(model)
    for conv_name, norm_name in list(_pairs(model)):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
        # What timm's norms do after normalising.
        rest = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name))).eval()
        if _equal(nn.Sequential(conv, norm), nn.Sequential(fused, rest), conv):
            for name, module in ((conv_name, fused), (norm_name, rest)):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module)
    return model


def _pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of each convolution and batch norm between which nothing else happens, and which stand nowhere else.

    Every module's own forward is traced with its children as single steps. Where that fails, because its way depends on
    what it sees, its children may still be folded.
    """
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found, calls = [], Counter[int]()
    for name, parent in model.named_modules():
        if not any(parent.children()):
            continue
        try:
            # A shallow copy: forwards that take notes must not take them of a trace.
            graph = _Steps().trace(copy.copy(parent))
        except Exception:
            continue
        steps = {node: parent.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
        calls.update(map(id, steps.values()))
        for node, norm in steps.items():
            before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            if not isinstance(before, fx.Node) or before not in steps or list(before.users) != [node]:
                continue
            if isinstance(steps[before], nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                prefix = f"{name}." if name else ""
                found.append((steps[before], norm, (f"{prefix}{before.target}", f"{prefix}{node.target}")))
    for conv, norm, names in found:
        alone = all(places[id(module)] == calls[id(module)] == 1 for module in (conv, norm))
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (conv, norm))
        if alone and not hooked and norm.running_mean is not None and conv.weight.dtype in (torch.float, torch.double):
            yield names


class _Steps(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


@torch.no_grad()
def _equal(before: nn.Module, after: nn.Module, conv: nn.Conv2d) -> bool:
    """Whether both answer a probe alike: not where a kin of the convolution does more with its weights."""
    height, width = ((size - 1) * step + 4 for size, step in zip(conv.kernel_size, conv.dilation, strict=True))
    shape = (2, conv.in_channels, height, width)
    probe = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(conv.weight) - 0.5
    expected = before(probe)
    return torch.allclose(after(probe), expected, rtol=1e-4, atol=1e-4 * (1 + float(expected.abs().max())))
