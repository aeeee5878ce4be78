"""Co-occurrence matrices and texture features: scikit-image and explicit loops as oracles."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.feature import graycomatrix, graycoprops

from hpatlib import glcm as module
from hpatlib.glcm import FEATURES, glcm, texture_features

EIGHT = [2 * math.pi * n / 8 for n in range(8)]
PROPERTIES = dict(zip(FEATURES, ("ASM", "contrast", "homogeneity", "correlation", "dissimilarity"), strict=True))
exact = {"atol": 1e-6, "rtol": 1e-9}


def picture(kind: str, height: int = 24, width: int = 26) -> np.ndarray:
    """Grey levels 0…255, one image."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    made = {
        "random": random.integers(0, 256, (height, width)),
        "few levels": random.integers(0, 3, (height, width)) * 100,
        "flat": np.full((height, width), 93),
        "black": np.zeros((height, width)),
        "ramp": 3 * columns + 5 * rows,
        "half flat": np.where(columns < width // 2, 0, random.integers(0, 256, (height, width))),
        "one pixel": (rows == 9) * (columns == 8) * 1,
        "bright and even": 250 + random.integers(0, 2, (height, width)),
    }
    return made[kind].astype(np.uint8)


KINDS = ("random", "few levels", "flat", "black", "ramp", "half flat", "one pixel", "bright and even")


def floats(grey: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(grey).to(dtype)[None, None] / 255


def by_skimage(
    grey: np.ndarray, distance: float, angles: list[float], window: int, stride: int
) -> dict[str, np.ndarray]:
    """``{feature: [angles, rows, columns]}``, homogeneity with the square, one crop after the other."""
    rows, columns = ((side - window) // stride + 1 for side in grey.shape)
    found = {name: np.empty((len(angles), rows, columns)) for name in FEATURES}
    for r in range(rows):
        for c in range(columns):
            crop = grey[r * stride : r * stride + window, c * stride : c * stride + window]
            matrix = graycomatrix(crop, [distance], angles, 256)
            for name, other in PROPERTIES.items():
                found[name][:, r, c] = graycoprops(matrix, other)[0]
    return found


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_scikit_image(kind):
    grey = picture(kind)
    distances, angles = [3, 4.5, 30], [*EIGHT, -0.3]
    found = glcm(floats(grey), distances, angles, 256)
    np.testing.assert_array_equal(found[0].numpy(), graycomatrix(grey, distances, angles, 256))
    torch.testing.assert_close(glcm(floats(grey), distances, angles, 256, soft=True), found, atol=1e-9, rtol=0)


def test_counts_of_a_batch_at_few_levels():
    """The worked example of scikit-image's own documentation, and its transpose beside it."""
    grey = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]], dtype=np.uint8)
    images = torch.from_numpy(np.stack([grey, grey.T])).float()[:, None] / 3
    angles = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
    found = glcm(images, [1], angles, 4)
    assert found.shape == (2, 4, 4, 1, 4) and found.dtype == torch.float32
    assert found[0, :, :, 0, 0].tolist() == [[2, 2, 1, 0], [0, 2, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1]]
    for b, levels in enumerate((grey, grey.T)):
        np.testing.assert_array_equal(found[b].numpy(), graycomatrix(levels, [1], angles, 4))


def test_offsets_at_distance_three():
    expected = [(0, 3), (2, 2), (3, 0), (2, -2), (0, -3), (-2, -2), (-3, 0), (-2, 2)]
    assert [module._offset(3, angle) for angle in EIGHT] == expected


def test_soft_counts_equal_a_loop_and_have_a_gradient():
    images = random_images(2, 1, 5, 6)
    found = glcm(images, [1], [0.0], 8, soft=True)
    for b in range(2):
        expected = np.zeros((8, 8))
        grey = 7 * images[b, 0].numpy()
        for row in grey:
            for first, second in pairwise(row):
                near = [np.maximum(0, 1 - np.abs(value - np.arange(8))) for value in (first, second)]
                expected += np.outer(*near)
        np.testing.assert_allclose(found[b, :, :, 0, 0].numpy(), expected, atol=1e-12)
    weights = random_images(2, 8, 8, 1, 1, seed=3)
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (glcm(x, [1], [0.7], 8, soft=True) * weights).sum(), images)
    assert not glcm(images, [1], [0.0], 8).requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("distance", "window", "stride"), [(3, 20, 20), (1, 12, 5)])
def test_features_equal_scikit_image(kind, distance, window, stride):
    grey = picture(kind)
    expected = by_skimage(grey, distance, EIGHT, window, stride)
    found = texture_features(floats(grey), distance=distance, window=window, stride=stride, homogeneity="squared")
    assert list(found) == list(FEATURES)
    for name in FEATURES:
        torch.testing.assert_close(found[name][0], torch.from_numpy(expected[name]), **exact)


@pytest.mark.parametrize("distance", [2, 4.5])
def test_features_at_other_angles_equal_scikit_image(distance):
    grey, angles = picture("random"), [0.3, 2.0, -1.2]
    expected = by_skimage(grey, distance, angles, 11, 7)
    found = texture_features(floats(grey), distance=distance, angles=angles, window=11, stride=7, homogeneity="squared")
    for name in FEATURES:
        torch.testing.assert_close(found[name][0], torch.from_numpy(expected[name]), **exact)


@pytest.mark.parametrize("kind", ["random", "flat", "bright and even", "ramp"])
def test_single_precision_is_close(kind):
    double = texture_features(floats(picture(kind)))
    single = texture_features(floats(picture(kind), torch.float32))
    for name in FEATURES:
        assert single[name].dtype == torch.float32
        torch.testing.assert_close(single[name].double(), double[name], rtol=1e-5, atol=2e-5)
    half = texture_features(torch.full((1, 1, 20, 20), 0.5, dtype=torch.bfloat16))
    assert all(values.dtype == torch.float32 for values in half.values())


def test_slides_homogeneity_is_the_inverse_difference():
    grey = picture("random", 20, 20)
    matrix = graycomatrix(grey, [3], EIGHT, 256, normed=True)[:, :, 0]
    weights = 1 / (1 + np.abs(np.subtract.outer(np.arange(256), np.arange(256))))
    expected = (matrix * weights[:, :, None]).sum(axis=(0, 1))
    found = texture_features(floats(grey), features=["homogeneity"])["homogeneity"].flatten()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def asm_by_loop(grey: np.ndarray, offset: tuple[int, int]) -> float:
    """Σ P² over N² of one window, its table filled cell by cell."""
    first, second = (part.numpy() for part in module._pairs(torch.from_numpy(grey), offset))
    table = np.zeros((300, 300))
    for x, y in zip(first.flatten(), second.flatten(), strict=True):
        i, u, j, v = int(x), x % 1 * np.pi / 2, int(y), y % 1 * np.pi / 2
        table[i : i + 2, j : j + 2] += np.outer([np.cos(u), np.sin(u)], [np.cos(v), np.sin(v)])
    return (table**2).sum() / first.size**2


@pytest.mark.parametrize("spread", [0.5, 6, 255])
def test_asm_between_levels_equals_a_loop(spread):
    images = random_images(40, 1, 6, 7) * spread / 255  # more windows than tables at once
    for angle, offset in ((0.0, (0, 2)), (math.pi / 4, (1, 1)), (3 * math.pi / 4, (1, -1))):
        found = texture_features(images, distance=2, angles=[angle], window=6, features=["asm"])["asm"]
        expected = [asm_by_loop(255 * image[0, :6, :6].numpy(), offset) for image in images]
        np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-9)


def test_asm_of_an_even_window_is_one_at_any_brightness():
    even = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 8, 8)
    images = even.clone().requires_grad_()
    asm = texture_features(images, window=8, features=["asm"])["asm"]
    torch.testing.assert_close(asm, torch.ones_like(asm))
    (gradient,) = torch.autograd.grad(asm.sum(), images)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_asm_of_two_flat_halves_follows_the_cosine():
    """Between the same two levels pixels are alike by cos(π/2 · difference); two levels apart they are not."""
    for gap, alike in ((0.3, math.cos(0.15 * math.pi)), (2.0, 0.0), (100.4, 0.0)):
        image = torch.full((1, 1, 4, 8), 5.6 / 255, dtype=torch.float64)
        image[:, :, 2:] += gap / 255  # rows, so that pairs along them are alike: two halves of equal pairs
        found = texture_features(image, angles=[0.0], window=4, stride=4, features=["asm"])["asm"]
        torch.testing.assert_close(found, torch.full_like(found, (1 + alike**2) / 2))


def test_whole_levels_have_no_slope_in_asm_and_their_neighbours_have_one():
    images = floats(picture("random", 8, 8) // 32)
    images[0, 0, 2, 3] += 0.4 / 255
    images.requires_grad_()
    (slope,) = torch.autograd.grad(texture_features(images, window=8, features=["asm"])["asm"].sum(), images)
    assert slope[0, 0, 2, 3] != 0 and slope.count_nonzero() == 1


@pytest.mark.parametrize("name", FEATURES)
def test_gradients_equal_finite_differences(name):
    images = (random_images(2, 1, 8, 8, seed=4) / 50).requires_grad_()

    def run(x):
        return texture_features(x, distance=2, angles=4, window=5, stride=3, features=[name])[name]

    assert torch.autograd.gradcheck(run, images, eps=1e-7)


def test_gradients_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    images = (random_images(2, 1, 14, 14) / 30).requires_grad_()

    def run():
        found = texture_features(images, distance=2, window=6, stride=4)
        weights = torch.linspace(-1, 1, found["asm"].numel()).view_as(found["asm"])
        return found, torch.autograd.grad(sum((values * weights).sum() for values in found.values()), images)[0]

    whole, expected = run()
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", 7)
    monkeypatch.setitem(module.TABLES_AT_ONCE, "cpu", 7)
    cut, found = run()
    torch.testing.assert_close(found, expected)
    for name in FEATURES:
        torch.testing.assert_close(cut[name], whole[name])


def test_opposite_angles_transpose_the_matrix_and_leave_the_features():
    images = floats(picture("random"))
    matrices = glcm(images, [3], EIGHT, 256)
    for n in range(4):
        torch.testing.assert_close(matrices[..., n + 4], matrices[..., n].transpose(1, 2))
    alone = {n: texture_features(images, angles=[EIGHT[n]]) for n in range(8)}
    together = texture_features(images)
    for name in FEATURES:
        assert torch.equal(together[name][:, :4], together[name][:, 4:])
        for n in range(8):
            torch.testing.assert_close(together[name][:, n], alone[n][name][:, 0])


def test_windows_are_images_of_their_own():
    images = random_images(2, 1, 47, 33)
    found = texture_features(images, window=20, stride=13, features=["correlation", "asm"])
    assert list(found) == ["correlation", "asm"] and found["asm"].shape == (2, 8, 3, 2)
    crop = texture_features(images[1:, :, 26:46, 13:33], features=["asm", "correlation"])
    for name, values in found.items():
        torch.testing.assert_close(values[1, :, 2, 1], crop[name].flatten())
    assert texture_features(random_images(1, 1, 224, 224), features=["contrast"])["contrast"].shape == (1, 8, 11, 11)


def test_pixels_a_rounding_error_outside_count_as_the_ends_of_the_range():
    images = torch.from_numpy(picture("few levels", 8, 8) // 100).double()[None, None].clamp(max=1)
    beyond = (images + 1e-6 * (2 * images - 1)).requires_grad_()
    found, expected = (texture_features(x, window=8) for x in (beyond, images))
    for name in FEATURES:
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)
    (gradient,) = torch.autograd.grad(found["asm"].sum(), beyond)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_everywhere(kind, dtype):
    images = floats(picture(kind), dtype).requires_grad_()
    found = texture_features(images, window=8, stride=4)
    assert all(values.isfinite().all() for values in found.values())
    (gradient,) = torch.autograd.grad(sum(values.sum() for values in found.values()), images)
    assert gradient.isfinite().all()
    if kind in ("flat", "black"):
        assert [found[name].unique().tolist() for name in FEATURES] == [[1], [0], [1], [1], [0]]
        assert (gradient == 0).all()


whole_levels = arrays(np.uint8, (2, 9, 9), elements=st.integers(0, 255)).map(np.float64)
grey_values = arrays(np.float64, (2, 9, 9), elements=st.floats(0, 255))
few_values = arrays(np.float64, (2, 9, 9), elements=st.sampled_from([0, 0.25, 7.5, 8, 8.9, 255]))


@settings(max_examples=40, deadline=None)
@given(whole_levels | grey_values | few_values, st.integers(0, 255))
def test_ranges_and_what_changes_nothing(grey, shift):
    images = torch.from_numpy(grey)[:, None] / 255
    found = texture_features(images, distance=2, window=9)
    pairs = torch.tensor([module._count(9, module._offset(2, angle)) for angle in EIGHT])[:, None, None]
    for name, low, high in (("asm", 1 / pairs, 1), ("homogeneity", 1 / 256, 1), ("correlation", -1, 1)):
        assert (found[name] >= low - 1e-9).all() and found[name].max() <= high + 1e-9
    assert (found["dissimilarity"] ** 2 <= found["contrast"] + 1e-6).all()  # Jensen
    assert (found["contrast"] <= 255 * found["dissimilarity"] + 1e-6).all()
    negative = texture_features(1 - images, distance=2, window=9)
    by = min(shift, math.floor(255 - grey.max()))  # whole levels
    shifted = texture_features((images + by / 255).clamp(max=1), distance=2, window=9)
    turned = texture_features(images.rot90(1, (2, 3)), distance=2, window=9)  # counter-clockwise: 90° becomes 0°
    for name, values in found.items():
        torch.testing.assert_close(negative[name], values, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(shifted[name], values, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(turned[name].roll(2, dims=1), values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(1, 3, 24, 24)}, r"grey images.*found \[1, 3, 24, 24\]"),
        ({"images": torch.rand(1, 1, 24, 24) * 255}, "found values from"),
        ({"images": torch.zeros(1, 1, 24, 24, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.full((1, 1, 24, 24), math.nan)}, "found values from nan"),
        ({"window": 25}, "24 × 24 images, found 25"),
        ({"window": 20.0}, r"found 20\.0"),
        ({"stride": 0}, "stride .* found 0"),
        ({"distance": 20}, r"found \(0, 20\)"),
        ({"distance": 0.4}, r"found 0\.4"),
        ({"angles": 0}, "found 0"),
        ({"angles": []}, "found none"),
        ({"angles": [math.inf]}, "inf"),
        ({"features": ["energy"]}, "energy"),
        ({"features": []}, r"found \[\]"),
        ({"homogeneity": "cubed"}, "cubed"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        texture_features(**{"images": torch.rand(1, 1, 24, 24)} | change)


@pytest.mark.parametrize("levels", [1, 2.5])
def test_bad_levels_are_named(levels):
    with pytest.raises(ValueError, match=f"levels .* found {levels}"):
        glcm(torch.rand(1, 1, 8, 8), [1], [0], levels)


def test_no_offset_is_named():
    with pytest.raises(ValueError, match=r"found \[1\] and \[\]"):
        glcm(torch.rand(1, 1, 8, 8), [1], [], 8)
