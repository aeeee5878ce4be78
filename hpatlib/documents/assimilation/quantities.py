"""What the claims about the slides are computed with: named cells of outcomes."""

from hpatlib.outcomes import Outcomes, Unmeasured
from hpatlib.statistics import Estimate, Least, Quantity, average, exact, greatest, least

MEDICAL = ("chest_ct", "brain_mri", "chest_xray", "busi2")
TRAININGS = ("vanilla", "assimilated", "without GLCM loss")
PAIR = ("vanilla", "assimilated")  # a margin is the second less the first
ATTACKS = ("FGSM", "BIM", "MI-FGSM", "PGD")
ITERATED = ATTACKS[1:]
WORST = ("PGD, restarts", "transferred PGD", "Square", "worst of all")
SHARES = (*(k / 10 for k in range(1, 10)), 0.95, 0.99)  # of a Grad-CAM map's mass; the claims are about one half
HALF = 0.5
STRAIGHT = 0.01  # nats a squared pixel range: within 4/255 this bends the loss by 0.005 nats at 64 px
WINDOW = 20  # px: the slides compute texture features on areas of 20 × 20
FLAT = 8  # grey levels: a window that spans less has noise and background in it, and no texture


def strength(levels: float) -> str:
    """ε as conditions have it, from grey levels: "0.5/255"."""
    return f"{levels:g}/255"


def levels(eps: str) -> float:
    """ε in grey levels, from "0.5/255"."""
    return float(eps.removesuffix("/255"))


SMALLEST = strength(1)  # of the slides' ε


def strengths(o: Outcomes) -> list[str]:
    """The ε at which attacks were measured, the smallest first."""
    return sorted(set(o.values("eps")) - {strength(0)}, key=levels)


def printed(o: Outcomes) -> list[str]:
    """Those of the slides, 1/255 to 8/255, that were measured. Raises ``Unmeasured`` for none."""
    if not (there := [eps for eps in strengths(o) if levels(eps) >= 1]):
        raise Unmeasured("no ε of 1/255 or more was measured")
    return there


def margin_at(o: Outcomes, *, dataset: str, attack: str, eps: str, over: str = "vanilla") -> Estimate:
    """The accuracy of domain assimilation less that of another training in one cell, mean over networks."""
    there = o.where(dataset=dataset)
    accuracy = there.accuracy
    networks = there.values("network")
    return average(*(accuracy[n, "assimilated", attack, eps] - accuracy[n, over, attack, eps] for n in networks))


def margin(o: Outcomes, *, dataset: str, attack: str) -> Estimate:
    """The margin of domain assimilation over vanilla transfer learning, mean over the slides' ε."""
    return average(*(margin_at(o, dataset=dataset, attack=attack, eps=eps) for eps in printed(o)))


def weaker_margin(o: Outcomes, *, dataset: str, attack: str) -> Estimate:
    """The same, mean over ε below the slides'."""
    if not (below := [eps for eps in strengths(o) if levels(eps) < 1]):
        raise Unmeasured("no ε below 1/255 was measured")
    return average(*(margin_at(o, dataset=dataset, attack=attack, eps=eps) for eps in below))


def margin_everywhere(o: Outcomes, *, dataset: str) -> Least:
    """The least margin over iterated attacks and the slides' ε."""
    return least(*(margin_at(o, dataset=dataset, attack=a, eps=eps) for a in ITERATED for eps in printed(o)))


def clean_gain(o: Outcomes, *, dataset: str) -> Estimate:
    """The accuracy on clean images that the GLCM loss adds to domain assimilation."""
    return margin_at(o, dataset=dataset, attack="none", eps=strength(0), over="without GLCM loss")


def fall(o: Outcomes, *, dataset: str, attack: str) -> Estimate:
    """The accuracy that vanilla transfer learning loses between the smallest and the largest of the slides' ε (D8)."""
    there, eps = o.where(dataset=dataset, training="vanilla"), printed(o)
    accuracy = there.accuracy
    return average(*(accuracy[n, attack, eps[0]] - accuracy[n, attack, eps[-1]] for n in there.values("network")))


def lead_of_fgsm(o: Outcomes, *, dataset: str) -> Estimate:
    """The accuracy of vanilla transfer learning under FGSM less the mean under iterated attacks, at the largest ε."""
    there, eps = o.where(dataset=dataset, training="vanilla"), printed(o)[-1]
    accuracy = there.accuracy
    return average(
        *(
            accuracy[n, "FGSM", eps] - average(*(accuracy[n, attack, eps] for attack in ITERATED))
            for n in there.values("network")
        )
    )


def signs(o: Outcomes) -> dict[tuple[str, ...], Quantity]:
    """Signs of masked gradients that accuracies themselves may show (D8), by data set, network, training and sign.

    "PGD rises along ε": the accuracy under PGD at an ε less that at a smaller one, the greatest over all pairs;
    "FGSM beats PGD": the accuracy under PGD less that under FGSM at the largest ε. Above zero speaks for masking.
    """
    accuracy, eps = o.accuracy, strengths(o)
    pairs = [(eps[i], eps[j]) for j in range(len(eps)) for i in range(j)]
    found: dict[tuple[str, ...], Quantity] = {}
    for where in dict.fromkeys(key[:3] for key in accuracy if key[3] in ATTACKS):
        pgd = {e: accuracy[(*where, "PGD", e)] for e in eps}
        if pairs:
            found[(*where, "PGD rises along ε")] = greatest(*(pgd[large] - pgd[small] for small, large in pairs))
        found[(*where, "FGSM beats PGD")] = pgd[eps[-1]] - accuracy[(*where, "FGSM", eps[-1])]
    return found


def texture_held(o: Outcomes, *, dataset: str) -> Estimate:
    """How much farther from the original's texture pictures are without the GLCM loss than with it, over networks."""
    there = o.where(dataset=dataset)
    texture = there.mean("texture")
    return average(*(texture[n, "without GLCM loss"] - texture[n, "assimilated"] for n in there.values("network")))


def above(o: Outcomes, *, column: str, than: str) -> Estimate:
    """Mean of a column over the four medical data sets less that of the domain ``than`` ("natural", "imagenet")."""
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


def lost_above(o: Outcomes, *, than: str) -> Estimate:
    """The accuracy lost under PGD at 1/255: mean over the medical data sets less that of the domain ``than``."""

    def lost(domain: str) -> Estimate:
        there = o.where(domain=domain)
        accuracy = there.accuracy
        names = there.values("dataset")
        return average(*(accuracy[n, "none", strength(0)] - accuracy[n, "PGD", SMALLEST] for n in names))

    return lost("medical") - lost(than)


def missing(o: Outcomes, *, dataset: str) -> Estimate:
    """Images of the printed class size that the public data set does not hold, in the class that lacks most (D9)."""
    there = o.where(dataset=dataset)
    if "missing" not in there.rows:
        raise Unmeasured("no files were counted")
    return exact(float(there.rows["missing"].max()))
