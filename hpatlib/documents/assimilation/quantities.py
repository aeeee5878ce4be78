"""What the claims about the slides are computed with: named cells of outcomes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hpatlib.outcomes import Cells, Outcomes, Unmeasured
from hpatlib.statistics import Estimate, Least, Quantity, average, exact, least

MEDICAL = ("chest_ct", "brain_mri", "chest_xray", "busi2")
PAIR = ("vanilla", "assimilated")  # the slides' dashed and solid lines; a margin is the second less the first
FREE, RANDOM, ADVERSARIAL = "without GLCM loss", "random repaint", "adversarial"
# The weight α of equation 18 by training. The slides give no value (D1). Domain assimilation has the least of these
# with which it adapts pictures at all (D13): at a half, the GLCM loss holds T and C at the identity.
ALPHAS = {"assimilated": 0.99, "α = 0.9": 0.9, "α = 0.5": 0.5, FREE: 1.0}
TRAININGS = (*PAIR, FREE, "α = 0.9", "α = 0.5", RANDOM, ADVERSARIAL)
FEW = (*PAIR, RANDOM)  # where all of them would cost too much
ATTACKS = ("FGSM", "BIM", "MI-FGSM", "PGD")
ITERATED = ATTACKS[1:]
WORST, TRANSFERRED, LONG = "standard attacks", "transferred PGD", "PGD, steps of 2/255"
WORST_L2 = "standard attacks, L2"  # within the length of a change by ε in every pixel
NORMALISED = (0.229 + 0.224 + 0.225) / 3  # of the pixel range: a unit behind ImageNet's normalisation
LEAST, MOST = 1 / 32, 8.0  # grey levels: where smallest ε are told apart; eight octaves
BEYOND = 2 * MOST  # stands for every smallest ε above ``MOST``
SHARES = (*(k / 10 for k in range(1, 10)), 0.95, 0.99)  # of a Grad-CAM map's mass; the claims are about one half
HALF = 0.5
STRAIGHT = 1e-4  # of the squared spread of the logits, a squared pixel range: smaller curvature counts as this much
WINDOW = 20  # px: the slides compute texture features on areas of 20 × 20
FLAT = 8  # grey levels: a window that spans less has noise and background in it, and no texture


def strength(levels: float) -> str:
    """ε as conditions have it, from grey levels: "0.5/255"."""
    return f"{levels:g}/255"


def levels(eps: str) -> float:
    """ε in grey levels, from "0.5/255"."""
    return float(eps.removesuffix("/255"))


def strengths(o: Outcomes) -> list[str]:
    """The ε at which attacks were measured, the smallest first."""
    return sorted(set(o.values("eps")) - {strength(0)}, key=levels)


def printed(o: Outcomes) -> list[str]:
    """Those of the slides, 1/255 to 8/255, that were measured. Raises ``Unmeasured`` for none."""
    if not (there := [eps for eps in strengths(o) if levels(eps) >= 1]):
        raise Unmeasured("no ε of 1/255 or more was measured")
    return there


def networks(o: Outcomes, quantity: Callable[[Outcomes], Estimate]) -> Estimate:
    """The mean of a quantity over networks, given the outcomes of each."""
    return average(*(quantity(o.where(network=network)) for network in o.values("network")))


def margin_at(o: Outcomes, *, dataset: str, attack: str, eps: str, over: str = "vanilla") -> Estimate:
    """The accuracy of domain assimilation less that of another training in one cell, mean over networks."""

    def margin(there: Outcomes) -> Estimate:
        accuracy = there.where(attack=attack, eps=eps).accuracy
        return accuracy["assimilated"] - accuracy[over]

    return networks(o.where(dataset=dataset), margin)


def margin(o: Outcomes, *, dataset: str) -> Estimate:
    """The margin of domain assimilation over vanilla transfer learning, mean over iterated attacks and slides' ε."""
    cells = [(attack, eps) for attack in ITERATED for eps in printed(o.where(dataset=dataset, attack=ITERATED))]
    return average(*(margin_at(o, dataset=dataset, attack=attack, eps=eps) for attack, eps in cells))


def octaves(o: Outcomes) -> Outcomes:
    """Outcomes of clean images with a column ``octaves``: how far the smallest ε lies above ``LEAST``, log₂, in [0, 8].

    0 for images that are answered wrong already, 8 for those that ``MOST`` does not change. Its mean over images is
    the area below the curve of robust accuracy against log₂ ε: no ε has to be chosen, and neither end is a floor.
    """
    there = o.where(attack="none", eps=strength(0)) if "attack" in o.conditions else o
    if "smallest" not in there.rows:
        raise Unmeasured("no smallest ε was measured")
    least = there.rows["smallest"].astype(float)
    far = np.log2(least.clip(lower=LEAST, upper=MOST) / LEAST)
    return replace(there, rows=there.rows.assign(octaves=far.where(least.notna())))


def withstood(o: Outcomes, *, dataset: str, training: str, over: str = "vanilla") -> Estimate:
    """Octaves of ε that one training withstands beyond another before an answer is wrong, over images and networks."""

    def gain(there: Outcomes) -> Estimate:
        mean = there.mean("octaves")
        return mean[training] - mean[over]

    return networks(octaves(o.where(dataset=dataset)), gain)


def withstood_mean(o: Outcomes, *, training: str, over: str) -> Estimate:
    """The same, mean over the data sets."""
    return average(*(withstood(o, dataset=dataset, training=training, over=over) for dataset in o.values("dataset")))


def worst_at(o: Outcomes, *, eps: str, datasets: Sequence[str]) -> Estimate:
    """The margin of domain assimilation over vanilla under the standard attacks together, mean over data sets."""
    return average(*(margin_at(o, dataset=dataset, attack=WORST, eps=eps) for dataset in datasets))


def apparent_margin(o: Outcomes, *, dataset: str, attack: str) -> Estimate:
    """The margin that a reading of the slides would show, mean over the slides' ε at which all of them were measured.

    ``TRANSFERRED``: domain assimilation under PGD made on the vanilla model, less vanilla under the same examples, for
    which they are white-box. Other attacks: each training under its own.
    """
    there = o.where(dataset=dataset)
    eps = printed(there.where(attack=TRANSFERRED))

    def margin(here: Outcomes) -> Estimate:
        accuracy = here.accuracy
        return average(*(accuracy["assimilated", attack, e] - accuracy["vanilla", attack, e] for e in eps))

    return networks(there, margin)


def standing(o: Outcomes, level: float) -> Cells:
    """The share of images whose smallest ε lies above ``level`` grey levels."""
    return replace(o, rows=o.rows.assign(stands=(o.rows["smallest"].astype(float) > level).astype(float))).mean(
        "stands"
    )


def rescaled_margin(o: Outcomes, *, dataset: str, scale: float) -> Estimate:
    """The margin of domain assimilation over vanilla if the slides' ε were ``scale`` as large, from each image's
    smallest ε; mean over the slides' ε of `apparent_margin`."""
    clean = o.where(dataset=dataset, attack="none", eps=strength(0))
    eps = printed(o.where(dataset=dataset, attack=TRANSFERRED))

    def margin(there: Outcomes) -> Estimate:
        shares = [standing(there, scale * levels(e)) for e in eps]
        return average(*(share["assimilated"] - share["vanilla"] for share in shares))

    return networks(clean, margin)


def clean_gain(o: Outcomes, *, dataset: str) -> Estimate:
    """The accuracy on clean images that the GLCM loss adds to domain assimilation."""
    return margin_at(o, dataset=dataset, attack="none", eps=strength(0), over=FREE)


def fall(o: Outcomes, *, dataset: str, attack: str) -> Estimate:
    """The accuracy that vanilla transfer learning loses between the smallest and the largest of the slides' ε (D8)."""
    there = o.where(dataset=dataset, training="vanilla", attack=[attack])
    eps = printed(there)
    accuracy = there.accuracy
    return average(*(accuracy[n, attack, eps[0]] - accuracy[n, attack, eps[-1]] for n in there.values("network")))


def lead_of_fgsm(o: Outcomes, *, dataset: str) -> Estimate:
    """The accuracy of vanilla transfer learning under FGSM less the mean under iterated attacks, at the largest ε."""
    there = o.where(dataset=dataset, training="vanilla", attack=ATTACKS)
    eps = printed(there)[-1]
    accuracy = there.accuracy
    return average(
        *(
            accuracy[n, "FGSM", eps] - average(*(accuracy[n, attack, eps] for attack in ITERATED))
            for n in there.values("network")
        )
    )


def signs(o: Outcomes) -> dict[tuple[str, ...], Quantity]:
    """A sign of masked gradients that accuracies themselves may show (D8), by data set, network, training and sign.

    "FGSM beats PGD": the accuracy under PGD less that under FGSM at the largest ε; above zero speaks for masking.
    Whether PGD rises along ε is asked by ``checks.gather`` with attacks of its own: along the ladder it cannot, for an
    image that fell at a smaller ε has fallen.
    """
    there = o.where(attack=["FGSM", "PGD"])
    accuracy, eps = there.accuracy, strengths(there)[-1]
    places = dict.fromkeys(key[:3] for key in accuracy)
    return {
        (*where, "FGSM beats PGD"): accuracy[(*where, "PGD", eps)] - accuracy[(*where, "FGSM", eps)] for where in places
    }


def texture_held(o: Outcomes, *, dataset: str) -> Estimate:
    """How much farther from the original's texture pictures are without the GLCM loss than with it, over networks."""
    there = o.where(dataset=dataset)
    texture = there.mean("texture")
    return average(*(texture[n, FREE] - texture[n, "assimilated"] for n in there.values("network")))


def above(o: Outcomes, *, column: str, than: str) -> Estimate:
    """Mean of a column over the four medical data sets less that of the domain ``than`` (such as "natural")."""
    medical, other = _means(o, column, "medical", than)
    return average(*medical) - average(*other)


def each_above(o: Outcomes, *, column: str, than: str) -> Least:
    """The same for each of the four, the least of them."""
    medical, other = _means(o, column, "medical", than)
    return least(*(one - average(*other) for one in medical))


def _means(o: Outcomes, column: str, *domains: str) -> list[list[Estimate]]:
    """The mean of a column on each data set of each domain. Raises ``Unmeasured`` where a training has no value."""
    found = [[cell for _, cell in o.where(domain=domain).mean(column).items()] for domain in domains]
    if len({cell.trainings for cells in found for cell in cells} - {None}) > 1:
        raise Unmeasured(f"in some trainings no image has a value of {column}")
    return found


def right_alone(o: Outcomes) -> Outcomes:
    """Outcomes of the images that are answered right: what a network withstands, apart from what it gets wrong."""
    return replace(o, rows=o.rows[o.rows["prediction"] == o.rows["label"]])


def sooner(o: Outcomes, *, right: bool = False) -> Estimate:
    """Octaves of ε that natural images withstand beyond medical ones, mean over the four medical data sets.

    ``right``: of the images alone that are answered right, instead of all, of which the others withstand nothing.
    """
    return -above(octaves(right_alone(o) if right else o), column="octaves", than="natural")


def sooner_each(o: Outcomes, *, right: bool = False) -> Least:
    """The same for each of the four, the least of them."""
    medical, natural = _means(octaves(right_alone(o) if right else o), "octaves", "medical", "natural")
    return least(*(average(*natural) - one for one in medical))


def flattered(o: Outcomes) -> Estimate:
    """The clean accuracy that a split by image adds to one by patient or group, mean over data sets (D9)."""
    accuracy, sets = o.accuracy, [name for name in MEDICAL if (name, "image", "both") in o.accuracy]
    if not sets:
        raise Unmeasured("no split by image was measured")
    return average(*(accuracy[name, "image", "both"] - accuracy[name, "patient", "both"] for name in sets))


def missing(o: Outcomes, *, dataset: str) -> Estimate:
    """Images of the printed class size that the public data set does not hold, in the class that lacks most (D9)."""
    there = o.where(dataset=dataset)
    if "missing" not in there.rows:
        raise Unmeasured("no files were counted")
    return exact(float(there.rows["missing"].max()))
