"""Phantoms: procedurally drawn, seeded, licence-free stand-ins for each imaging modality."""

import numpy as np

NUCLEUS, CYTOPLASM, PINK, COLOUR = np.array([[66, 30, 78], [96, 64, 108], [1.0, 0.8, 0.65], [74, 35, 86]])[..., None, None]


def cells(count, *, size=64, seed=0):
    labels = np.arange(count) % 2
    images = np.empty((count, 3, size, size), np.uint8)
    patients = _patients(labels, seed)
    for i, (label, patient) in enumerate(zip(labels, patients)):
        r = np.random.default_rng([seed, 1, label, patient]); stain = (1 + P['hue'] * r.standard_normal((3, 1, 1)))*(1+P['tone']*r.standard_normal())
        images[i] = _cell(np.random.default_rng([seed, 0, i]), size, label, stain)
    return images, labels, np.array([f"{'' if l else 'H'}{p + 1:02d}" for l, p in zip(labels, patients)])


def _patients(labels, seed):
    out = np.empty(len(labels), int)
    for label in (0, 1):
        n = np.count_nonzero(labels == label)
        sizes = np.random.default_rng([seed, 2, label]).integers(12, 25, n // 12 + 1)
        out[labels == label] = np.repeat(np.arange(len(sizes)), sizes)[:n]
    return out


P = dict(nc=(1.4, .035), rough=1.3, tex=1.7, amp=.13, hue=.035, tone=.09)


def _cell(rng, size, label, stain):
    side = 2 * label - 1
    nc, rough, fine = side * np.array([P['nc'][0], P['rough'], P['tex']]) + rng.standard_normal(3)
    radius = size * rng.uniform(0.27, 0.36)
    centre = size / 2 + size * rng.uniform(-0.02, 0.02, 2)
    rough = 0.03 * np.exp(0.4 * rough)
    cell = blob(rng, size, centre, radius, 0.7 * rough)
    ratio = np.clip(0.86 + P['nc'][1] * nc, 0.6, 0.97)
    drift = (1 - ratio) * radius * rng.uniform(-0.6, 0.6, 2)
    nucleus = np.minimum(blob(rng, size, centre + drift, ratio * radius, rough, clefts=rng.binomial(2, min(1, 5 * rough))), cell)
    share = 1 / (1 + np.exp(-1.0 * fine))
    chromatin = np.sqrt(share) * smooth_noise(rng, size, max(.6, size / 110)) + np.sqrt(1 - share) * smooth_noise(rng, size, max(1.5, size / 32))
    grid = np.arange(size) + 0.5
    for _ in range(rng.poisson(0.5 + 2 * share)):
        at = centre + drift + 0.6 * ratio * radius * rng.uniform(-1, 1, 2)
        chromatin += rng.uniform(1, 3) * np.exp(-((grid - at[0]) ** 2 + (grid[:, None] - at[1]) ** 2) / (2 * (size * rng.uniform(.015, .03)) ** 2))
    mask = np.clip(cell + 0.5, 0, 1)
    soft = np.clip(nucleus / (size / 32) + .5, 0, 1)
    tone = P['amp'] * rng.uniform(.75, 1.25) * soft * chromatin + 0.05 * smooth_noise(rng, size, size / 8)
    image = mask * (CYTOPLASM - soft * (CYTOPLASM - NUCLEUS)) * (1 + PINK * tone)
    image *= COLOUR * stain * (1 + P['tone'] * rng.standard_normal()) * mask.sum() / image.sum((1, 2), keepdims=True)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def blob(rng, size, centre, radius, roughness, clefts=0):
    angles = np.linspace(0, 2 * np.pi, 129)
    orders = np.arange(2, 10)
    waves = rng.standard_normal((2, len(orders))) / orders**0.7
    profile = 1 + roughness * (waves[0] @ np.cos(orders[:, None] * angles) + waves[1] @ np.sin(orders[:, None] * angles))
    for at in rng.uniform(0, 2 * np.pi, clefts):
        profile -= rng.uniform(.12, .3) * np.exp(-((np.angle(np.exp(1j * (angles - at))) / 0.2) ** 2))
    profile *= radius / np.sqrt(np.mean(profile[:-1] ** 2))
    x = np.arange(size) + .5 - centre[0]
    y = (np.arange(size) + .5 - centre[1])[:, None]
    return np.interp(np.arctan2(y, x) % (2 * np.pi), angles, profile) - np.hypot(x, y)


def smooth_noise(rng, size, grain):
    f = np.fft.fftfreq(size)
    gain = np.exp(-2 * (np.pi * grain) ** 2 * (f[:, None] ** 2 + np.fft.rfftfreq(size) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * gain, (size, size))
    return (field - field.mean()) / field.std()
