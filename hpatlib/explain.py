"""Why a model gives way: where it looks (Grad-CAM) and how steep its loss is around an image.

The assimilation slides give two reasons for the vulnerability of medical models (after Ma et al. 2021): a large
attention region and a sharp loss landscape. Both become numbers here, an image each, to be compared between models.
Images are ``[B, C, H, W]`` floats in ``[0, 1]``, labels ``[B]`` longs, ``eps`` a fraction of the full pixel range. The
model is left as found, gradients of its parameters included; bad inputs raise ``ValueError``.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpatlib import attacks
from hpatlib._model import (
    check_fraction,
    check_images,
    check_logits,
    check_losses,
    check_number,
    check_whole,
    derivative,
    held_still,
    objective,
)

cross_entropy = objective("cross-entropy")  # [B], an image each

Directions = Literal["gradient", "random"]


def attention(
    model: nn.Module, images: Tensor, labels: Tensor | None = None, *, layer: nn.Module | None = None
) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): how much each pixel speaks for a class, ``[B, H, W]`` in [0, 1].

    ReLU(Σ_k α_k A_k) with A the feature maps of ``layer`` and α_k the mean over positions of the gradient of the
    class's logit, scaled bilinearly to the image and divided by its maximum. A map with nothing in favour of the class
    is 0 everywhere. ``labels``: the classes asked about (default: the predicted ones). ``layer``: a module of
    ``model`` with an output ``[B, K, h, w]`` (default: ``last_feature_map``). The minimum is not subtracted, as
    display code does: a model that looks everywhere alike keeps a uniform map.
    """
    check_images(images, labels)
    with torch.inference_mode(False), torch.enable_grad(), held_still(model):
        images = images.detach().clone()  # a copy is no inference tensor
        if layer is None:
            layer = last_feature_map(model, images[:1])
        elif not any(module is layer for module in model.modules()):
            raise ValueError(f"layer must be a module of the model, found a {type(layer).__name__} that is not in it")
        features: list[Tensor] = []

        def cut(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim != 4:
                found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer must give feature maps [B, K, h, w], found {found} from {type(module)}")
            # The graph starts here: nothing below the layer is differentiated. What follows gets a copy, for it may
            # work in place (timm's activations do).
            features.append(output.detach().requires_grad_())
            return features[-1].clone()

        handle = layer.register_forward_hook(cut)
        try:
            logits = model(images)
        finally:
            handle.remove()
        if len(features) != 1:
            raise ValueError(f"layer must run once in a forward pass, found {len(features)} times: choose another")
        check_logits(logits, torch.zeros(1, dtype=torch.long) if labels is None else labels)
        classes = logits.argmax(dim=1) if labels is None else labels.clone()
        score = logits.gather(1, classes.unsqueeze(1)).sum()  # images are independent: the sum parts by image
        gradient = derivative(score, features[0])
        with torch.no_grad():
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # α: [B, K, 1, 1]
            coarse = (weights * features[0]).sum(dim=1, keepdim=True).relu()  # [B, 1, h, w]
            maps = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
            check_losses(maps)
            top = maps.amax(dim=(1, 2), keepdim=True)
            return torch.where(top > 0, maps / top, torch.zeros_like(maps))


@torch.no_grad()
def last_feature_map(model: nn.Module, images: Tensor, *, places: int = 2) -> nn.Module:
    """The module that ends last among those with an output ``[B, K, h, w]`` larger than 1×1: Grad-CAM's usual layer.

    ``places``: how many positions h · w it must have at least, to compare models at one resolution.

    It depends on the size of ``images [B, C, H, W]``: the last stage of a ResNet is 1×1 at 32 px and tells no places
    apart, so the stage before answers. Poolings to a fixed size, and the inside of blocks that end smaller, are passed
    over.
    """
    ended: list[nn.Module] = []
    single: set[nn.Module] = set()

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        if output.shape[2] * output.shape[3] < places:
            single.add(module)
        elif not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            ended.append(module)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with held_still(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    # A plain Sequential is a list of stages or layers; any other module that ends too small is one block of arithmetic.
    blocks = [module for module in single if type(module) is not nn.Sequential]
    inside = {part for block in blocks for part in block.modules()}
    found = [module for module in ended if module not in inside]
    if not found:
        raise ValueError(
            f"the model has no feature map [B, K, h, w] with {places} places or more: pass layer=, or larger images"
        )
    return found[-1]


def attention_area(maps: Tensor, *, share: float = 0.5) -> Tensor:
    """How large the attended region is: the smallest share of pixels that holds ``share`` of the map's sum, ``[B]``.

    ``maps [B, H, W]``, not negative, in any unit. k / (H·W) with k the fewest pixels whose values sum to at least
    ``share`` of all: no threshold to choose, and no change when a map is scaled. A uniform map gives
    ⌈share · H·W⌉ / (H·W), a single lit pixel 1 / (H·W). A map without mass has no attended region: NaN.
    """
    _check_maps(maps)
    share = check_number("share", share, lambda part: 0 < part <= 1, "lie in (0, 1]")
    values = maps.flatten(1).double().sort(dim=1, descending=True).values  # [B, HW]
    held = values.cumsum(dim=1)
    enough = share * held[:, -1:] * (1 - 1e-12)  # a sum's last bits must not cost a pixel
    pixels = (held < enough).sum(dim=1) + 1
    area = pixels.double() / values.shape[1]
    return torch.where(held[:, -1] > 0, area, area.new_full((), torch.nan))


def area_above(maps: Tensor, *, level: float = 0.5) -> Tensor:
    """The thresholded area: share of pixels of ``maps [B, H, W]`` at or above ``level`` · the map's maximum, ``[B]``.

    NaN for a map without mass. It depends on one pixel, the brightest: ``attention_area`` does not.
    """
    _check_maps(maps)
    level = check_number("level", level, lambda part: 0 < part <= 1, "lie in (0, 1]")
    values = maps.flatten(1).double()
    top = values.amax(dim=1, keepdim=True)
    area = (values >= level * top).double().mean(dim=1)
    return torch.where(top[:, 0] > 0, area, area.new_full((), torch.nan))


def landscape(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    points: int = 21,
    directions: Directions = "gradient",
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Cross-entropy on a square slice of input space around each image: ``[B, points, points]``.

    Entry (b, i, j) is ℓ(clip(x_b + u_i d₁ + u_j d₂)) with u = ``torch.linspace(-eps, eps, points)``; an odd number of
    points has the image itself in the middle. ``directions="gradient"``: d₁ = sign ∇ℓ, so that (last, middle) is FGSM
    with ``eps``; ``"random"``: d₁ is a random sign per pixel. d₂ is a random sign per pixel orthogonal to d₁. Both have
    size 1 in L∞ (the corners are up to 2 ``eps`` away); pixels are clipped to [0, 1]. Where the gradient is exactly 0
    so is d₁: an image without any gradient has a slice that is flat along it (``checks.zero_gradients``).
    """
    check_images(images, labels)
    eps, points = check_fraction("eps", eps), check_whole("points", points, least=2)
    batch_size = check_whole("batch_size", batch_size)
    if directions not in ("gradient", "random"):
        raise ValueError(f'directions must be "gradient" or "random", found {directions!r}')
    with held_still(model), torch.no_grad():
        check_logits(model(images[:1]), labels)
    if directions == "gradient":
        first = torch.cat(
            [
                attacks.gradient(model, x, y).sign()
                for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
            ]
        )
    else:
        first = _sign(attacks.drawn(torch.rand, images, generator))
    second = _orthogonal(first, generator)
    u = torch.linspace(-eps, eps, points, device=images.device, dtype=images.dtype)
    losses = []
    with held_still(model), torch.no_grad():
        # One flat list of (image, i, j), cut into batches: neither a loop over images nor P² copies of them at once.
        for index in torch.arange(len(images) * points**2, device=images.device).split(batch_size):
            b, i, j = index // points**2, index // points % points, index % points
            along, across = u[i].view(-1, 1, 1, 1), u[j].view(-1, 1, 1, 1)
            x = (images[b] + along * first[b] + across * second[b]).clamp_(0, 1)
            losses.append(cross_entropy(model(x), labels[b]))
    loss = torch.cat(losses)
    check_losses(loss)
    return loss.view(len(images), points, points)


def sharpness(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, iterations: int = 20) -> Tensor:
    """How much the loss can rise within reach: max ℓ(x + δ) − ℓ(x) over ‖δ‖∞ ≤ ``eps``, pixels in [0, 1]; ``[B]``.

    The maximum is the one that PGD finds from the image itself in ``iterations`` steps of 2.5 · eps / iterations, so
    it is a lower bound and never below 0; a model that masks its gradients looks flat (see ``checks``). To second
    order and for a convex loss, the true maximum lies between eps · ‖∇ℓ‖₁ and that plus ½ eps² n λ, with n pixel values
    and the top eigenvalue λ of the Hessian (``curvature``), as long as no pixel reaches 0 or 1.
    """
    eps, iterations = check_fraction("eps", eps), check_whole("iterations", iterations)
    worst = attacks.pgd(model, images, labels, eps=eps, iterations=iterations, start=None)
    with held_still(model), torch.no_grad():
        clean, attacked = model(images), model(worst)
    check_logits(clean, labels)
    before, after = (cross_entropy(logits, labels) for logits in (clean, attacked))
    check_losses(after)
    return (after - before).clamp_(min=0)


def curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    iterations: int = 30,
    generator: torch.Generator | None = None,
) -> Tensor:
    """λ, the eigenvalue largest in size (with its sign) of each image's Hessian ∂²ℓ/∂x², ``[B]``, by power iteration.

    ``iterations`` Hessian-vector products (backward through backward, one forward pass for all of them) from a random
    direction drawn by ``generator``; the value is the last Rayleigh quotient vᵀHv, its size never above the true one.
    For a network of ReLUs the loss is convex between the kinks, and λ is the top eigenvalue.
    """
    check_images(images, labels)
    iterations = check_whole("iterations", iterations)
    with torch.inference_mode(False), torch.enable_grad(), held_still(model):
        x, labels = images.detach().clone().requires_grad_(), labels.clone()
        logits = model(x)
        check_logits(logits, labels)
        loss = cross_entropy(logits, labels).sum()
        check_losses(loss.detach())
        gradient = derivative(loss, x, create_graph=True)
        value = x.new_zeros(len(x))
        if not gradient.requires_grad:  # no second derivative anywhere
            return value
        v = _unit(attacks.drawn(torch.rand, x.detach(), generator) - 0.5)
        for _ in range(iterations):
            (product,) = torch.autograd.grad(gradient, x, v, retain_graph=True, materialize_grads=True)
            value = (v * product).flatten(1).sum(dim=1)
            v = _unit(product)
    check_losses(value)
    return value


def _unit(v: Tensor) -> Tensor:
    """Each of ``v [B, C, H, W]`` at length 1; a zero vector stays zero."""
    size = v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny)
    return v / size.view(-1, 1, 1, 1)


def _sign(uniform: Tensor) -> Tensor:
    """−1 or 1, never 0, from numbers in [0, 1)."""
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform)


def _orthogonal(first: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random signs orthogonal to the signs ``first [B, C, H, W]`` in {−1, 0, 1}: they agree with exactly half of them.

    Where an odd number of signs cannot be halved, one pixel stays 0.
    """
    signs = first.flatten(1)
    chance = attacks.drawn(torch.rand, signs, generator)
    given = signs != 0
    # Signed pixels come first and in random order: the first half agrees, the second half does not.
    order = torch.where(given, chance, chance + 1).argsort(dim=1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    half = given.sum(dim=1, keepdim=True) // 2
    balance = (rank < half).to(signs) - ((rank >= half) & (rank < 2 * half)).to(signs)
    free = _sign(chance)  # where the first direction is 0, any sign is orthogonal to it
    return torch.where(given, balance * signs, free).view_as(first)


def _check_maps(maps: Tensor) -> None:
    if not isinstance(maps, Tensor) or maps.ndim != 3 or maps.numel() == 0:
        found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"maps must be a tensor [B, H, W] of at least one pixel, found {found}")
    if not (maps.min() >= 0 and maps.max() < torch.inf):  # written so that NaN fails too
        raise ValueError(f"maps must be finite and not negative, found {maps.min():g} to {maps.max():g}")
