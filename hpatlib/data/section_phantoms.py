"""Phantoms of a head, a chest and a lung: drawn MRI slices, radiographs and CT slices, with or without a lesion.

`head` stands in for the brain MRI, `chest` for the chest X-rays and `lung` for the chest CT. A lesion is brighter than
what it lies in and has a place, a shape and a texture; brightness and the size of everything else are drawn for both
classes alike, so that neither the mean intensity nor the share of bright pixels tells the label.
"""

from collections.abc import Callable

import numpy as np

from hpatlib.data.ultrasound_phantom import FINE, noise, outside, step


def head(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axial slices of a head: images uint8 [count, 1, size, size], labels int64 [count] and patients str [count].

    Labels 0 without and 1 with a tumour take turns. Every fifth image of a class is a second look at the patient
    before: the same slice, shifted and with another gain. Image n follows from `seed`, `size` and n alone; up to
    128 px every size shows the same picture, larger ones are drawn anew.
    """
    return _looks(_head, (0.14, 0.26), count, size, [seed, 10])


def chest(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radiographs of a chest, as from `head`: labels 0 with clear lungs and 1 with an opacity."""
    return _looks(_chest, (0.38, 0.52), count, size, [seed, 11])


def lung(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CT slices through the lungs, as from `head`: labels 0 without and 1 with a nodule."""
    return _looks(_lung, (0.14, 0.22), count, size, [seed, 12])


def _looks(
    draw: Callable[..., np.ndarray], means: tuple[float, float], count: int, size: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` windows of the scenes that `draw` makes, each at a mean intensity from the range `means`."""
    from PIL import Image

    labels, rank = np.arange(count) % 2, np.arange(count) // 2
    scans = rank - (rank % 5 == 4)  # within the class
    images, side = np.empty((count, 1, size, size), np.uint8), max(size, FINE)
    for n, (label, scan) in enumerate(zip(labels, scans, strict=True)):
        tissue, look = np.random.default_rng([*seed, 0, label, scan]), np.random.default_rng([*seed, 1, n])
        scene = draw(tissue, side + side // 32, label == 1)
        top, left = look.integers(0, side // 32 + 1, 2)
        scene = np.clip(scene[top : top + side, left : left + side], 0, None)
        wanted, gain = look.uniform(*means), 1.0
        for _ in range(8):  # clipping moves the mean, so the gain is found in a few steps
            gain *= wanted / np.clip(gain * scene, 0, 1).mean()
        grey = np.clip(gain * scene, 0, 1).astype(np.float32)
        pixels = Image.fromarray(grey).resize((size, size), Image.Resampling.BOX)
        images[n, 0] = np.rint(255 * np.asarray(pixels))
    patients = [f"{'nl'[label]}{scan + 1:03d}" for label, scan in zip(labels, scans, strict=True)]
    return images, labels, np.array(patients, str)


def _head(rng: np.random.Generator, side: int, tumour: bool) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    centre, half = 0.5 + rng.uniform(-0.03, 0.03, 2), rng.uniform([0.31, 0.38], [0.39, 0.46])
    depth = -outside(rng, x, y, centre, half, waves=0.015)  # under the skin, in image sides
    scalp, bone = rng.uniform(0.012, 0.042), rng.uniform(0.012, 0.026)
    brain = depth - scalp - bone
    folds = noise(rng, x.shape, 0.013, 0.013)
    white = step(brain - 0.045 - 0.025 * folds, 0.006)
    image = 0.37 + 0.13 * white + 0.02 * noise(rng, x.shape, 0.02, 0.02)
    image -= 0.25 * np.exp(-((folds / 0.3) ** 2)) * step(0.07 - brain, 0.01) * (1 - 0.7 * white)  # sulci between folds
    u, v = x - centre[0], y - centre[1]
    push, mass, oedema = 0.0, np.zeros_like(x), np.zeros_like(x)
    if tumour:
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.62)
        at = centre + far * half * [np.cos(turn), np.sin(turn)]
        radius = rng.uniform(0.075, 0.12)
        distance = outside(rng, x, y, at, radius * rng.uniform(0.85, 1.15, 2), waves=0.12)
        mass, oedema = step(-distance, 0.006), np.exp(-np.clip(distance, 0, None) / 0.04)
        push = -0.03 * np.sign(np.cos(turn)) * rng.random()
        rim = np.exp(-(((distance + 0.016) / 0.011) ** 2)) * (1 + 0.2 * noise(rng, x.shape, 0.03, 0.03))
        core = rng.choice([0.8, 0.74, 0.45]) + 0.08 * noise(rng, x.shape, 0.015, 0.015)
        mass_grey = np.maximum(core, rng.uniform(0.7, 0.95) * rim)
    width, height = rng.uniform(0.014, 0.034), rng.uniform(0.07, 0.11)
    for mirror in (-1, 1):  # the ventricles and the nuclei beside them
        bend = u - push - mirror * (0.022 + width + 0.35 * np.abs(v + 0.01))
        image -= 0.32 * step(1 - np.hypot(bend / width, (v + 0.01) / height), 0.12)
        nucleus = np.hypot((u - push - mirror * 0.11) / 0.045, (v - 0.01) / 0.075)
        image -= 0.07 * step(1 - nucleus, 0.12)
    image -= 0.2 * np.exp(-(((u - push * np.exp(-((v / 0.12) ** 2))) / 0.005) ** 2)) * step(np.abs(v) - 0.12, 0.01)
    image -= 0.11 * oedema * (1 - mass)
    if tumour:
        image += mass * (mass_grey - image)
    for _ in range(rng.poisson(4)):  # vessels in the cortex: small bright spots in every head
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.75)
        spot = np.hypot(u - far * half[0] * np.cos(turn), v - far * half[1] * np.sin(turn))
        image += rng.uniform(0.2, 0.5) * np.exp(-((spot / 0.009) ** 2))
    image *= step(brain - 0.006, 0.004)
    image += rng.uniform(0.42, 1.0) * step(depth - 0.003, 0.003) * step(scalp - depth, 0.003)
    image *= 1 + 0.1 * noise(rng, x.shape, 0.3, 0.3)  # coils see some places better than others
    return image + 0.012 * rng.standard_normal(x.shape) * step(image - 0.05, 0.02)


def _chest(rng: np.random.Generator, side: int, opacity: bool) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    middle, top = 0.5 + rng.uniform(-0.03, 0.03), rng.uniform(0.1, 0.18)
    u = (x - middle) + rng.uniform(-0.04, 0.04) * (y - 0.5)
    aside = np.abs(u)
    waist = rng.uniform(0.38, 0.46)
    body = step(waist + 0.14 * np.exp(-(((y - 0.2) / 0.12) ** 2)) - aside, 0.012)
    body *= step(y - top + 0.06 - 0.25 * np.clip(0.3 - aside, 0, None) - 0.1 * step(0.09 - aside, 0.012), 0.012)
    image = 0.66 + 0.12 * (y - 0.5) + 0.03 * noise(rng, x.shape, 0.06, 0.06) - 0.5 * np.clip(aside - 0.3, 0, None)
    width, height = rng.uniform(0.125, 0.155), rng.uniform(0.27, 0.34)
    apart, air = rng.uniform(0.175, 0.205), rng.uniform(0.3, 0.46)
    lungs = np.zeros_like(x)
    floor = top + 0.07 + 1.75 * height
    for mirror in (-1, 1):
        at, half = np.array([middle + mirror * apart, top + 0.07 + height]), np.array([width, 1.05 * height])
        shape = step(-outside(rng, x, y, at, half, waves=0.03), 0.012)
        dome = floor + 0.02 * mirror + 3 * (u - mirror * (apart - 0.03)) ** 2
        lungs = np.maximum(lungs, shape * step(dome - y, 0.01))
    heart = outside(
        rng, x, y, np.array([middle + 0.05, floor - 0.13]), rng.uniform([0.1, 0.11], [0.15, 0.15]), waves=0.04
    )
    lungs *= step(heart, 0.012)
    image -= air * lungs
    hilum = np.hypot((aside - 0.08) / 0.12, (y - top - 0.07 - 0.9 * height) / 0.2)
    vessels = np.maximum(noise(rng, x.shape, 0.012, 0.008), noise(rng, x.shape, 0.008, 0.016))
    image += lungs * (0.09 * np.maximum(vessels, 0) * np.exp(-(hilum**2)) + 0.012 * vessels)
    if opacity:
        side_of = rng.choice([-1, 1])
        at = np.array(
            [middle + side_of * (apart + rng.uniform(-0.03, 0.04)), top + 0.07 + height * rng.uniform(0.45, 1.4)]
        )
        distance = outside(rng, x, y, at, rng.uniform([0.075, 0.08], [0.12, 0.14]), waves=0.18)
        cloud = step(-distance, 0.022) * np.clip(0.85 + 0.22 * noise(rng, x.shape, 0.02, 0.02), 0, 1)
        image += rng.uniform(0.7, 0.95) * air * cloud * lungs
    gap, slope = rng.uniform(0.062, 0.078), rng.uniform(0.25, 0.5)
    ribs, behind, before = 0.0, y - slope * aside**1.4 + 0.08 * np.exp(-aside / 0.06), y + 0.55 * slope * aside
    for rib in np.arange(9) * gap + top:
        ribs += 0.075 * np.exp(-(((behind - rib - 0.02) / 0.013) ** 2))
        ribs += 0.035 * np.exp(-(((before - rib - 0.2) / 0.015) ** 2))
    image += ribs * step(0.34 - aside, 0.02) * step(floor + 0.08 - y, 0.02)
    image += 0.14 * step(0.032 - aside, 0.008) * (1 + 0.25 * np.sin(2 * np.pi * y / 0.055))  # the spine
    clavicle = y - top - 0.05 + 0.22 * (aside - 0.1)
    image += 0.12 * np.exp(-((clavicle / 0.016) ** 2)) * step(aside - 0.05, 0.01) * step(0.33 - aside, 0.015)
    image *= body
    at = rng.uniform([0.04, 0.05], [0.12, 0.5])  # the letter that says which side is which
    image = np.maximum(image, 0.9 * (np.hypot(x - at[0], y - at[1]) < 0.014))
    image += 0.06 * (1 - body) * rng.random()
    return image + 0.008 * rng.standard_normal(x.shape)


def _lung(rng: np.random.Generator, side: int, nodule: bool) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:side, :side] / side
    centre, half = np.array([0.5, 0.47]) + rng.uniform(-0.03, 0.03, 2), rng.uniform([0.4, 0.27], [0.46, 0.34])
    depth = -outside(rng, x, y, centre, half, waves=0.02)
    fat, wall = rng.uniform(0.012, 0.04), rng.uniform(0.025, 0.045)
    soft = 0.5 + 0.035 * noise(rng, x.shape, 0.008, 0.008)
    image = step(depth, 0.003) * (0.2 + step(depth - fat, 0.005) * (soft - 0.2))
    lungs = np.zeros_like(x)
    fields = []
    for mirror in (-1, 1):
        at = centre + half * [mirror * rng.uniform(0.42, 0.48), rng.uniform(-0.08, 0.04)]
        extent = half * rng.uniform([0.32, 0.62], [0.38, 0.72])
        fields.append((at, extent))
        lungs = np.maximum(lungs, step(-outside(rng, x, y, at, extent, waves=0.05), 0.005))
    heart = outside(rng, x, y, centre + half * [0.1, -0.1], half * rng.uniform([0.22, 0.3], [0.34, 0.48]), waves=0.06)
    lungs *= step(heart, 0.005) * step(depth - fat - wall, 0.005)
    image += lungs * (0.05 - image)
    vessels = np.zeros_like(x)
    for at, extent in fields:  # bent branches that thin out, from the root of the lung, and cross-sections of others
        root = np.array([at[0] + np.sign(centre[0] - at[0]) * 0.7 * extent[0], at[1]])
        turn, far, bend = rng.uniform([[0.0], [0.3], [-0.25]], [[2 * np.pi], [0.9], [0.25]], (3, 24))
        ends = at + extent * (far * [np.cos(turn), np.sin(turn)]).T
        way = ends - root
        along = np.linspace(0, 1, side // 2)[:, None, None]
        points = root + along * way + bend[:, None] * np.sin(np.pi * along) * way[:, ::-1] * [-1, 1]
        bright = 0.9 - 0.7 * along[..., 0] + np.zeros(24)
        bright[:, 7:] = rng.uniform(0.4, 0.9, 17) * (along[..., 0] == 1)  # only the end is seen
        column, row = np.clip(np.rint(points * side).astype(int), 0, side - 1).reshape(-1, 2).T
        np.maximum.at(vessels, (row, column), bright.ravel())
    vessels = 1.3 * gaussian_filter(vessels, 0.005 * side)
    image += lungs * vessels
    if nodule:
        at, extent = fields[rng.integers(2)]
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
        at = at + far * extent * [np.cos(turn), np.sin(turn)]
        radius = rng.uniform(0.045, 0.072)
        distance = outside(
            rng, x, y, at, radius * rng.uniform(0.85, 1.15, 2), waves=0.1, spicules=int(rng.integers(5, 10))
        )
        inside = step(-distance, 0.005)
        image += inside * (rng.uniform(0.5, 0.75) + 0.05 * noise(rng, x.shape, 0.01, 0.01) - image)
    turns = np.linspace(0, 2 * np.pi, rng.integers(11, 16), endpoint=False)
    turns = turns + rng.uniform(-0.15, 0.15, turns.shape)
    angles = np.linspace(-np.pi, np.pi, 513)
    nearest = np.abs(np.angle(np.exp(1j * (angles[:, None] - turns)))).min(1)  # of the ribs, at each angle
    u, v = (x - centre[0]) / half[0], (y - centre[1]) / half[1]
    along = 0.35 * np.interp(np.arctan2(v, u), angles, nearest)
    across = (1 - np.hypot(u, v)) * half.min() - fat - 0.4 * wall
    image += 0.5 * step(1 - np.hypot(along / 0.035, across / 0.011), 0.15)
    spine = outside(rng, x, y, centre + half * [0, 0.62], half * [0.12, 0.2], waves=0.06)
    image += 0.42 * step(-spine, 0.006) + 0.12 * np.exp(-((spine / 0.008) ** 2))
    canal = np.hypot((x - centre[0]) / 0.02, (y - centre[1] - 0.78 * half[1]) / 0.018)
    image -= 0.4 * step(1 - canal, 0.1)
    table = y - centre[1] - 1.06 * half[1] - 0.25 * (0.25 - (x - 0.5) ** 2) + 0.06
    image += rng.uniform(0.15, 0.5) * np.exp(-((table / 0.005) ** 2)) * step(-depth, 0.004)
    return image + 0.012 * rng.standard_normal(x.shape) * step(depth, 0.003)
