"""What the claims about the ultrasound report are computed with: named cells of outcomes.

A network's cells are named ε, training, test. ε is that of training and test alike; "0" where neither has one, which
is the clean-trained model on clean images, and the largest class, the training "none".
"""

from dataclasses import replace

from hpatlib.outcomes import Cells, Outcomes, Unmeasured
from hpatlib.statistics import Estimate, Greatest, greatest, spread

SIMPLE = "simple_cnn (scratch)"


def of_network(o: Outcomes, network: str) -> Outcomes:
    """Outcomes of the one network whose name ends in ``network``, such as "(imagenet)", near-duplicates on one side.

    Raises ``Unmeasured`` where there is none, or more than one.
    """
    names = [name for name in o.values("network") if name.endswith(network)]
    if len(names) != 1:
        raise Unmeasured(f"{len(names)} networks end in {network!r}: measured were {', '.join(o.values('network'))}")
    return o.where(split="patient", network=names[0])


def at(cells: Cells, eps: float, training: str, test: str) -> Estimate:
    """A cell of one network; the clean-trained model's answers to clean images belong to every ε."""
    return cells["0" if training == test == "clean" else str(eps), training, test]


def mean_change(o: Outcomes, *, formula: str, eps: float) -> Estimate:
    """C1: the mean change of a pixel by a formula, in grey levels of 255."""
    return o.mean("mean change")[str(eps), formula]


def formula_cost(o: Outcomes, *, formula: str, eps: float) -> Estimate:
    """C1: the accuracy that a formula costs the clean-trained network."""
    return o.accuracy["0", "none"] - o.accuracy[str(eps), formula]


def change(o: Outcomes, *, network: str, test: str, eps: float) -> Estimate:
    """Accuracy on a test set after attack training at ``eps``, less that of the clean-trained network."""
    accuracy = of_network(o, network).accuracy
    return at(accuracy, eps, "static", test) - at(accuracy, eps, "clean", test)


def above_grey(o: Outcomes, *, network: str) -> Estimate:
    """Accuracy on the perturbed set at ε = 0.5 after attack training, less the share of the largest class."""
    accuracy = of_network(o, network).accuracy
    return accuracy["0.5", "static", "perturbed"] - accuracy["0", "none", "clean"]


def tolerance_gain(
    o: Outcomes, *, network: str, training: str, over: str, eps: float, most: float | None = None
) -> Estimate:
    """Mean smallest ε that changes an answer, in grey levels, of one training less that of another.

    ``most``: what larger ones count as. Of a network that answers most images alike the mean is theirs alone otherwise.
    """
    there = of_network(o, network)
    if most is not None and "smallest" in there.rows:
        capped = there.rows["smallest"].astype(float).clip(upper=255 * most)
        there = replace(there, rows=there.rows.assign(smallest=capped))
    smallest = there.mean("smallest")
    one, other = (smallest["0" if name == "clean" else str(eps), name, "smallest ε"] for name in (training, over))
    return one - other


def wider(o: Outcomes, *, network: str, eps: float, test: str = "clean") -> Estimate:
    """Figures 3 and 4: growth of the standard deviation over trainings of accuracy on a test set."""
    accuracy = of_network(o, network).accuracy
    before, after = (at(accuracy, eps, training, test) for training in ("clean", "static"))
    if len(before.values) < 3:
        raise Unmeasured(f"a spread needs at least 3 trainings, measured were {len(before.values)}")
    return spread(after) - spread(before)


def loss_left(o: Outcomes, *, network: str, eps: float) -> Greatest:
    """The last epoch's training loss over the first's, the greater of clean and attack training."""
    ratio = of_network(o, network).mean("ratio")
    return greatest(ratio["0", "clean", "training loss"], at(ratio, eps, "static", "training loss"))


def lead_over_simple(o: Outcomes, *, network: str) -> Estimate:
    """Clean accuracy of a clean-trained network less that of the simple CNN."""
    large, simple = (of_network(o, name).accuracy for name in (network, SIMPLE))
    return at(large, 0, "clean", "clean") - at(simple, 0, "clean", "clean")


def against_larger_eps(o: Outcomes, *, test: str, eps: float, larger: float) -> Estimate:
    """Figures 7 to 10: accuracy of the simple CNN attack-trained at ``eps`` less that at ``larger``, each at its ε."""
    accuracy = of_network(o, SIMPLE).accuracy
    return at(accuracy, eps, "static", test) - at(accuracy, larger, "static", test)


def reliance(o: Outcomes, *, eps: float) -> Estimate:
    """The suspected over-fitting: accuracy of the attack-trained simple CNN on perturbed less that on clean images."""
    accuracy = of_network(o, SIMPLE).accuracy
    return at(accuracy, eps, "static", "perturbed") - at(accuracy, eps, "static", "clean")


def reliance_against_larger_eps(o: Outcomes, *, eps: float, larger: float) -> Estimate:
    """The suspected over-fitting at ``eps`` less that at ``larger``."""
    return reliance(o, eps=eps) - reliance(o, eps=larger)


def robust_gain(o: Outcomes, *, network: str, training: str, over: str, eps: float) -> Estimate:
    """Accuracy under the worst case of one training less that of another."""
    accuracy, test = of_network(o, network).accuracy, "worst case"
    return at(accuracy, eps, training, test) - at(accuracy, eps, over, test)


def catastrophic(o: Outcomes, *, network: str, eps: float) -> Estimate:
    """Accuracy under white-box FGSM less that under white-box PGD, trained online against FGSM less trained on clean
    images: of those, too, one long step may overshoot what ten short ones find."""
    accuracy = of_network(o, network).accuracy

    def gap(training: str) -> Estimate:
        return at(accuracy, eps, training, "white-box FGSM") - at(accuracy, eps, training, "white-box PGD")

    return gap("online") - gap("clean")


def noise_alone(o: Outcomes, *, network: str, eps: float) -> Estimate:
    """Label leaking: accuracy on noise without an image after attack training, less the share of the largest class."""
    accuracy = of_network(o, network).accuracy
    return at(accuracy, eps, "static", "noise alone") - accuracy["0", "none", "clean"]


def follows_noise(o: Outcomes, *, network: str, eps: float) -> Estimate:
    """Label leaking: how much more often noise made from a wrong label is answered by that label than by the truth."""
    asked = of_network(o, network)
    return at(asked.mean("misled"), eps, "static", "wrong label") - at(asked.accuracy, eps, "static", "wrong label")
