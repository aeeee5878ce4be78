"""Phantoms: procedurally drawn, seeded, licence-free stand-ins for the images of each modality.

They let every chapter run without a download, and look, learn and break like their modality: a small network learns
them in seconds, and small perturbations, rotations and shifts undo what it learned. They are no evidence about
patients: nothing here was fitted to one.

`cells` stands in for C-NMC 2019, single white cells on black. A blast differs from a normal lymphocyte as haematology
describes it: the nucleus fills more of the cell, contours are irregular and cleft, chromatin is fine and open with
nucleoli instead of clumped. The classes overlap in each cue. Size, mean colour and brightness carry no label.
"""

import numpy as np

# How far each class's mean lies from the midpoint between both, in standard deviations within a class.
CUES = {"ratio": 1.8, "contour": 1.5, "chromatin": 1.8}
NUCLEUS, CYTOPLASM, MEAN = np.array([[60, 26, 74], [96, 64, 108], [86, 41, 99]], float)[..., None, None]  # RGB
HIGHLIGHT = np.array([1.0, 0.8, 0.65])[:, None, None]  # bright chromatin is pinker than the nucleus
GRAIN = 0.18  # relative contrast of the chromatin


def cells(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw `count` stained white cells of `size` × `size` pixels.

    Returns images uint8 [count, 3, size, size], RGB, background exactly 0; labels int64 [count], 0 = hem (normal) and
    1 = all (blast) in turns; patients str [count], "H01", "H02", … healthy and "01", "02", … ill, 12 to 24 cells each,
    every patient with a stain and brightness of their own. The same arguments give the same bits, and the first n
    of more cells are the n cells of `count=n`. Raises ValueError for `count` < 1 or `size` < 16.
    """
    if count < 1 or size < 16:
        raise ValueError(f"expected count ≥ 1 and size ≥ 16 pixels, found count={count} and size={size}")
    images = np.empty((count, 3, size, size), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    patients = np.empty(count, "U8")
    for label in (0, 1):
        left, number = np.flatnonzero(labels == label), 0
        while left.size:
            number += 1
            rng = np.random.default_rng([seed, label, number])
            stain = MEAN * (1 + 0.06 * rng.standard_normal() + 0.03 * rng.standard_normal((3, 1, 1)))
            mine, left = np.split(left, [rng.integers(12, 25)])
            patients[mine] = f"{'' if label else 'H'}{number:02d}"
            for i, own in zip(mine, rng.spawn(len(mine)), strict=True):
                images[i] = _cell(own, size, label, stain)
    return images, labels, patients


def _cell(rng: np.random.Generator, size: int, label: int, stain: np.ndarray) -> np.ndarray:
    """One cell, uint8 [3, size, size]. What depends on `size` is drawn last: cell i is the same cell at every size."""
    ratio, contour, chromatin = (2 * label - 1) * np.array(list(CUES.values())) + rng.standard_normal(3)
    ratio = np.clip(0.86 + 0.035 * ratio, 0.6, 0.97)
    roughness = 0.035 * np.exp(0.4 * contour)
    fine = 1 / (1 + np.exp(-chromatin))

    radius = size * rng.uniform(0.27, 0.36)
    centre = size * (0.5 + rng.uniform(-0.02, 0.02, 2))
    cell = blob(rng, size, centre, radius, 0.7 * roughness)
    centre = centre + (1 - ratio) * radius * rng.uniform(-0.6, 0.6, 2)
    nucleus = blob(rng, size, centre, ratio * radius, roughness, clefts=rng.binomial(2, min(1, 5 * roughness)))
    nucleoli = np.zeros((size, size))
    for _ in range(rng.poisson(0.5 + 2 * fine)):
        spot = blob(rng, size, centre + 0.55 * ratio * radius * rng.uniform(-1, 1, 2), 0.035 * size, 0.1)
        nucleoli += rng.uniform(1, 2.5) * np.clip(0.5 + spot / (0.05 * size), 0, 1)
    exposure, contrast = 1 + 0.06 * rng.standard_normal(), GRAIN * rng.uniform(0.75, 1.25)

    # The finest grain is one pixel wide at any size: it is what interpolation, blur and small noise take away first.
    clumped, open_ = smooth_noise(rng, size, max(1.5, size / 32)), smooth_noise(rng, size, max(0.6, size / 110))
    texture = np.sqrt(1 - fine) * clumped + np.sqrt(fine) * open_ + nucleoli
    inside = np.clip(cell + 0.5, 0, 1)  # half a pixel either side of the contour: an anti-aliased edge
    nuclear = np.clip(np.minimum(nucleus, cell) / (size / 32) + 0.5, 0, 1)
    light = contrast * nuclear * texture + 0.05 * smooth_noise(rng, size, size / 8)
    image = inside * (CYTOPLASM + nuclear * (NUCLEUS - CYTOPLASM)) * (1 + HIGHLIGHT * light)
    # To the patient's mean colour: a larger nucleus would otherwise tell the label by darkness alone.
    image *= exposure * stain * inside.sum() / image.sum((1, 2), keepdims=True)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def blob(
    rng: np.random.Generator, size: int, centre: np.ndarray, radius: float, roughness: float, clefts: int = 0
) -> np.ndarray:
    """How far inside an irregular closed contour each pixel lies, along its ray from the centre: [size, size], pixels.

    `centre` (x, y) and `radius` in pixels; `roughness`: the contour's waves relative to the radius; `clefts`: notches.
    The area is that of a disc of `radius`, whatever the contour.
    """
    angles = np.linspace(0, 2 * np.pi, 129)
    waves = np.arange(2, 10)
    phases = waves * angles[:, None] + rng.uniform(0, 2 * np.pi, waves.size)
    contour = 1 + roughness * np.cos(phases) @ (1.4 * rng.standard_normal(waves.size) / waves**0.7)
    for at in rng.uniform(0, 2 * np.pi, clefts):
        contour -= rng.uniform(0.12, 0.3) * np.exp(25 * (np.cos(angles - at) - 1))
    contour *= radius / np.sqrt(np.mean(contour[1:] ** 2))
    x, y = np.arange(size) + 0.5 - centre[0], np.arange(size)[:, None] + 0.5 - centre[1]
    return np.interp(np.arctan2(y, x) % (2 * np.pi), angles, contour) - np.hypot(x, y)


def smooth_noise(rng: np.random.Generator, size: int, grain: float) -> np.ndarray:
    """White noise blurred by a Gaussian of `grain` pixels, periodic, mean 0 and standard deviation 1: [size, size]."""
    frequency = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-2 * (np.pi * grain) ** 2 * frequency)
    field = np.fft.irfft2(spectrum, (size, size))
    return (field - field.mean()) / field.std()
