"""The ultrasound phantom: drawn breast scans, speckled and layered, with no lesion, a smooth one or a spiculated one.

Everything is drawn as echogenicity in decibels, as a scanner sees it: tissue scatters, the beam weakens on its way
down, speckle multiplies, and the logarithm of the sum is what the screen shows.
"""

import numpy as np

FINE = 128  # at least this many pixels a side are drawn, then averaged: speckle is finer than a small image's pixels
RANGE = 56  # dB between black and white
SPECKLE = 3  # dB per decade of intensity: 10 for raw speckle, less because every scanner averages some of it away


def ultrasound(
    count: int, *, size: int = 64, seed: int = 0, turns: tuple[int, ...] = (0, 1, 2)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drawn scans: images uint8 [count, 1, size, size], labels int64 [count] and patients str [count].

    Labels 0 normal, 1 benign and 2 malignant take `turns`, so the classes are balanced (those of BUSI are not). Every
    fifth image of a class is a second look at the patient before: the same tissue, shifted and with another gain, like
    the near-duplicates of BUSI. Image n follows from `seed`, `size` and n alone; up to 128 px every size shows the
    same picture, larger ones are drawn anew.
    """
    labels = np.resize(turns, count)
    rank = np.empty(count, int)  # within the class
    for label in set(turns):
        rank[labels == label] = np.arange(np.sum(labels == label))
    scans = rank - (rank % 5 == 4)
    images = np.empty((count, 1, size, size), np.uint8)
    for n, (label, scan) in enumerate(zip(labels, scans, strict=True)):
        tissue, look = np.random.default_rng([seed, 0, label, scan]), np.random.default_rng([seed, 1, n])
        images[n, 0] = _shown(look, _echoes(tissue, max(size, FINE), label), size)
    patients = [f"{'nbm'[label]}{scan + 1:03d}" for label, scan in zip(labels, scans, strict=True)]
    return images, labels, np.array(patients, str)


def ultrasound_two_classes(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scans as from `ultrasound`, labels 0 without and 1 with a malignant lesion in turns: normal, malignant, benign,
    malignant, …"""
    images, labels, patients = ultrasound(count, size=size, seed=seed, turns=(0, 2, 1, 2))
    return images, (labels == 2).astype(np.int64), patients


def _echoes(rng: np.random.Generator, side: int, label: int) -> np.ndarray:
    """Echoes in dB of one scan, float [S, S], a little larger than `side`, so that looks can be shifted."""
    side += side // 32
    y, x = np.mgrid[:side, :side] / side
    line, square = (side,), (side, side)
    wave = 0.02 * noise(rng, line, 0.12) + rng.uniform(-0.15, 0.15) * (x[0] - 0.5)  # no layer is flat
    depth = y + wave
    fat, gland, muscle = np.cumsum([rng.uniform(0.06, 0.08), rng.uniform(0.08, 0.25), rng.uniform(0.35, 0.6)])
    column, fibres = np.arange(side), np.full(square, -9.0)
    for _ in range(2):  # two families of fibres that cross, each more or less along the layers
        lift = side * (wave + 0.02 * noise(rng, line, 0.08) + rng.uniform(-0.2, 0.2) * x[0])
        rows = (column[:, None] + np.rint(lift).astype(int)) % side
        fibres = np.maximum(fibres, noise(rng, square, 0.007, 0.05)[rows, column])
    fibres += np.maximum(fibres - 0.8, 0) ** 2 - 0.5
    lumps = noise(rng, square, 0.025, 0.045)
    below = echoes = np.zeros(square)
    for start, level, fine, coarse in (  # from here on down: dB, and how far fibres and lumps change it
        (-1, 14, 1, 0),
        (fat, -6, 4, 2),
        (gland, 3, 3, 4),
        (muscle, -7, 4, 2),
    ):
        here = level + fine * fibres + coarse * lumps
        echoes = echoes + step(depth - start, 0.008) * (here - below)
        below = here
    echoes += rng.uniform(4, 10) * np.exp(-(((depth - muscle) / 0.012) ** 2))  # the fascia between gland and muscle
    for _ in range(rng.poisson(3)):  # lobules of fat, dark as well: darkness alone is no lesion
        at, half = rng.uniform([0, 0.15], [1, 0.75]), rng.uniform([0.06, 0.03], [0.14, 0.06])
        echoes -= rng.uniform(3, 9) * step(-outside(rng, x, y, at, half, waves=0.1), 0.012)
    if label:
        echoes = _lesion(rng, echoes, x, y, malignant=label == 2)
    # Poor contact of the probe: dark columns, darker with depth, in every class, like a shadow without a lesion.
    echoes -= 4 * np.maximum(noise(rng, line, 0.05), 0) * (0.3 + y) + rng.uniform(12, 36) * y**1.8
    real, imaginary = (noise(rng, square, 0.004, 0.004 + 0.006 * rng.random()) for _ in range(2))
    return echoes + SPECKLE * np.log10(real**2 + imaginary**2 + 0.01)  # the logarithm of a Rayleigh amplitude


def _lesion(
    rng: np.random.Generator, echoes: np.ndarray, x: np.ndarray, y: np.ndarray, *, malignant: bool
) -> np.ndarray:
    """`echoes` with a hypoechoic lesion: smooth, wider than tall and rimmed; or spiculated, taller and shadowing."""
    area, centre = rng.uniform(0.1, 0.18) ** 2, rng.uniform([0.25, 0.28], [0.75, 0.5])
    width = rng.uniform(0.62, 1.05) if malignant else rng.uniform(1.15, 1.9)  # over height
    half = np.sqrt([area * width, area / width])
    if malignant:
        distance = outside(rng, x, y, centre, half, waves=0.16, spicules=int(rng.integers(7, 14)))
        inside, halo, rim = step(-distance, 0.01), 0.05, rng.uniform(0, 5)
        texture, behind = 4.0, rng.uniform(-20, -9)
    else:
        distance = outside(rng, x, y, centre, half, waves=0.04)
        inside, halo, rim = step(-distance, 0.006), 0.012, rng.uniform(3, 7)
        texture, behind = 1.5, rng.uniform(-1, 7)
    level = np.median(echoes) - rng.uniform(9, 20)
    core = level + texture * noise(rng, x.shape, 0.02, 0.03)
    passed = np.maximum.accumulate(inside, 0) - inside  # what the beam reaches through the lesion
    echoes = echoes + rim * np.exp(-((distance / halo) ** 2)) + behind * passed
    return echoes + inside * (core - echoes)


def outside(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    centre: np.ndarray,
    half: np.ndarray,
    *,
    waves: float,
    spicules: int = 0,
) -> np.ndarray:
    """Roughly the distance from a wavy ellipse, in image sides, negative inside; `half` its half axes."""
    tilt = rng.uniform(-0.25, 0.25)
    right, down = x - centre[0], y - centre[1]
    u = (np.cos(tilt) * right + np.sin(tilt) * down) / half[0]
    v = (np.cos(tilt) * down - np.sin(tilt) * right) / half[1]
    angle = np.linspace(-np.pi, np.pi, 257)
    radius = np.ones_like(angle)
    for order in (2, 3, 4, 5):
        radius += waves / order**0.5 * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    for at in np.linspace(-np.pi, np.pi, spicules, endpoint=False) + rng.uniform(-0.3, 0.3, spicules):
        turn = np.angle(np.exp(1j * (angle - at)))
        radius += rng.uniform(0, 0.5) * np.exp(-np.abs(turn) / rng.uniform(0.08, 0.2))
    radius /= np.sqrt(np.mean(radius[1:] ** 2))  # spicules do not make a lesion larger
    return (np.hypot(u, v) - np.interp(np.arctan2(v, u), angle, radius)) * half.min()


def _shown(rng: np.random.Generator, echoes: np.ndarray, size: int) -> np.ndarray:
    """One look: a window of the echoes on the screen, uint8 [size, size], at a brightness that no class decides."""
    from PIL import Image

    side = max(size, FINE)
    top, left = rng.integers(0, len(echoes) - side + 1, 2)
    window = echoes[top : top + side, left : left + side]
    wanted = rng.uniform(0.24, 0.36)
    gain = 0.0
    for _ in range(6):  # clipping moves the mean, so the gain is found in a few steps
        grey = np.clip((window + gain) / RANGE + 0.5, 0, 1)
        gain += RANGE * (wanted - grey.mean())
    pixels = Image.fromarray(grey.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.rint(255 * np.asarray(pixels)).astype(np.uint8)


def step(distance: np.ndarray, width: float) -> np.ndarray:
    """From 0 to 1 over about four `width` around distance 0."""
    return 0.5 * (1 + np.tanh(distance / (2 * width)))


def noise(rng: np.random.Generator, shape: tuple[int, ...], *grain: float) -> np.ndarray:
    """Smooth Gaussian noise of mean 0 and deviation 1; `grain` is its correlation length on each axis, of a side."""
    waves = [np.fft.fftfreq(n, 1 / n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1], 1 / shape[-1])]
    field = np.fft.rfftn(rng.standard_normal(shape))
    for size, wave in zip(grain, np.ix_(*waves), strict=True):
        field *= np.exp(-2 * (np.pi * size * wave) ** 2)
    smooth = np.fft.irfftn(field, shape, range(len(shape)))
    return (smooth - smooth.mean()) / smooth.std()
