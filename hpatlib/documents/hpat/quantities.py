"""What the claims about the leukemia paper are computed with: named cells of outcomes, or its printed numbers."""

import functools
from dataclasses import replace

import numpy as np

from hpatlib import documents
from hpatlib.outcomes import Cells, Outcomes, Unmeasured
from hpatlib.statistics import Estimate, Least, average, exact, least

CLEAN = {"environment": "H0", "reading": "clean"}
STRATEGIES = ("Standard", "Adv_FGSM", "Adv_PGD", "Adv_RT")  # figure 4's, beside Adv_h
LONGER = "Standard, twice as long"
ABLATED = ("Adv_PGD", "Adv_RT", "Adv_h")  # table 2's trainings
SCORES = ("ACC", "PRE", "F1", "AUC")  # the columns of tables 1 and 2
PIXEL, SPATIAL = "noise of H6", "rotation and shift of H6"  # the halves of H6 in table 2
MET = {"Adv_PGD": PIXEL, "Adv_RT": SPATIAL, "Adv_h": "H6"}  # the part that a training of table 2 has met
LOUD, DRAWN, WRONG = "6/255, 0°", "random noise", "PGD from the wrong label"  # figure 5's noise without a turn
LEAST = "least noise"  # in figure 1
STBO = ("STBO", "STBO, second seed", "STBO, third seed")  # figure 6's searches that differ in their draws alone
PEERS = ("DIRECT", "local", "gradient", "Sobol", "random")  # the other searches whose budget can be chosen freely


def _printed(name: str) -> float:
    return float(documents.published("hpat")[name]["value"])


def losses(o: Outcomes) -> Cells:
    """The mean cross-entropy of two classes, from the margins: what an attack raises."""
    rows = o.rows[o.rows["margin"].notna()]
    toward = rows["margin"].astype(float) * (2 * rows["label"].astype(float) - 1)
    return replace(o, rows=rows.assign(cross_entropy=np.logaddexp(0, -toward))).mean("cross_entropy")


def counts() -> Estimate:
    """L1: the printed sizes of training, validation and test set, less the printed total."""
    return exact(
        _printed("training_images") + _printed("validation_images") + _printed("test_images") - _printed("images")
    )


@functools.cache
def nearest_counts() -> dict[str, float]:
    """L5: for each row of table 2, by how much the nearest confusion matrix misses accuracy, precision or F1.

    Of all pairs (true positives, false positives) on the printed test set, the one whose worst miss is least.
    """
    positive, total = int(_printed("malignant_test_images")), int(_printed("test_images"))
    hit, false = np.arange(positive + 1)[:, None], np.arange(total - positive + 1)[None]
    accuracy = (hit + total - positive - false) / total
    precision, f1 = hit / np.maximum(1, hit + false), 2 * hit / (hit + false + positive)
    table = documents.published_table("hpat", "table2")
    misses = {}
    for name, row in table.iterrows():
        parts = [abs(accuracy - row["ACC"]), abs(precision - row["PRE"]), abs(f1 - row["F1"])]
        misses[str(name)] = float(np.maximum.reduce(parts).min())
    return misses


def impossible_rows() -> Estimate:
    """L5: rows of table 2 that no confusion matrix gives, to a last printed digit rounded or cut off."""
    return exact(sum(miss > 1e-5 for miss in nearest_counts().values()))


def printed_mixbn_gain() -> Least:
    """L6: the least of the twelve differences that table 2 prints between a row with MixBN and the one without."""
    table = documents.published_table("hpat", "table2")
    gains = [table.loc[f"{name}+MixBN", score] - table.loc[name, score] for name in ABLATED for score in SCORES]
    return least(*map(exact, gains))


def printed_lead() -> Estimate:
    """L7: the printed accuracy of the proposed method less that of training with rotations and translations alone."""
    accuracy = documents.published_table("hpat", "table2")["ACC"]
    return exact(accuracy["Adv_h+MixBN"] - accuracy["Adv_RT"])


def printed_lead_over_networks() -> Least:
    """L7: the printed accuracy of the proposed method less that of each network of table 1, the least of the five."""
    proposed = documents.published_table("hpat", "table2")["ACC"]["Adv_h+MixBN"]
    return least(*(exact(proposed - printed) for printed in documents.published_table("hpat", "table1")["ACC"]))


def flipped(o: Outcomes, *, perturbation: str) -> Estimate:
    """Figure 1: the share of correct predictions that a perturbation turns wrong."""
    return o.flipped(perturbation="clean")[perturbation]


def flipped_more(o: Outcomes, *, perturbation: str, than: str) -> Estimate:
    """Figure 1: how many more correct predictions one perturbation flips than another."""
    return flipped(o, perturbation=perturbation) - flipped(o, perturbation=than)


def held_back(o: Outcomes) -> Estimate:
    """Figure 1: how often the least noise that changes a correct answer is doubled when it is kept to the cell."""
    doublings = o.mean("doublings")
    return doublings[f"{LEAST}, in the cell"] - doublings[LEAST]


def louder(o: Outcomes) -> Estimate:
    """Algorithm 1: the loss after line 8 as printed less that after line 8 as the text has it (L15)."""
    loss = o.mean("loss")
    return loss["line 8 as printed"] - loss["line 8 as read"]


def tied(o: Outcomes, *, variant: str) -> Estimate:
    """Equation 10: how far the margins of clean images move when the adversarial images change places, in spreads of
    these margins (L23)."""
    return o.mean("moved")[f"partners exchanged, {variant}"]


def best(o: Outcomes, *, measure: str) -> Least:
    """Table 1: by how much EfficientNet-B3 leads the other four pretrained networks, the least of the four."""
    score = o.where(environment="H0").accuracy if measure == "accuracy" else o.where(environment="H0").auc
    names = documents.published_table("hpat", "table1").index
    return least(
        *(score["efficientnet_b3 (imagenet)"] - score[f"{n} (imagenet)"] for n in names if n != "efficientnet_b3")
    )


def competent(o: Outcomes) -> list[str]:
    """Figure 3: the networks that have something to lose, by the number of the gate: on average over trainings, they
    beat answering the largest class of their clean test images by so much. The others decide nothing.

    Raises ``Unmeasured`` where there is none.
    """
    needed, clean = documents.toml("hpat", "claims")["gates"]["competent"], o.where(**CLEAN)
    found = []
    for name in clean.values("network"):
        rows = clean.rows[clean.rows["network"] == name]
        ones = rows.groupby("model", observed=True)["label"].mean()
        trivial = float(np.maximum(ones, 1 - ones).mean())
        found += [name] if clean.accuracy[name].value - trivial >= needed else []
    if not found:
        raise Unmeasured(f"no network beats answering the largest class by {100 * needed:g} points")
    return found


def networks_lost(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 3: the share of answers right in H0 that are wrong in H6, mean over competent networks."""
    lost = o.flipped(**CLEAN)
    return average(*(lost[name, "H6", reading] for name in competent(o)))


def networks_roi(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 3: the ROI in H6, mean over competent networks."""
    roi = o.invariance(**CLEAN)
    return average(*(roi[name, "H6", reading] for name in competent(o)))


@functools.lru_cache(maxsize=1)  # the claims of a figure ask the same record, one after the other
def _claimed(o: Outcomes) -> Outcomes:
    """Claims are about held-out patients; the split by image stands beside them (L3)."""
    return o.where(split="patient")


@functools.lru_cache(maxsize=1)
def _roi(o: Outcomes) -> Cells:
    """The share of answers that are those in H0."""
    return _claimed(o).invariance(**CLEAN)


def roi_at(o: Outcomes, *, training: str, reading: str) -> Estimate:
    """Figure 4: the ROI of a training in H6."""
    return _roi(o)[training, "H6", reading]


@functools.lru_cache(maxsize=1)
def _flipped(o: Outcomes) -> Cells:
    """The share of answers right in H0 that are wrong: of the same images, so that subjects do not differ."""
    return _claimed(o).flipped(**CLEAN)


def lost(o: Outcomes, *, training: str, reading: str) -> Estimate:
    """Figure 4: the share of its right answers in H0 that a training loses in H6."""
    return _flipped(o)[training, "H6", reading]


def slower(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 4: the share that standard training loses from H0 to H6, less what hybrid training loses."""
    return lost(o, training="Standard", reading=reading) - lost(o, training="Adv_h", reading=reading)


def slower_each(o: Outcomes, *, reading: str) -> Least:
    """Figure 4: the share that standard training loses from H0 to H6, less what each training against one kind of
    perturbation loses, the least of the three."""
    standard = lost(o, training="Standard", reading=reading)
    return least(*(standard - lost(o, training=name, reading=reading) for name in STRATEGIES[1:]))


def fallen(o: Outcomes, *, training: str, reading: str) -> Estimate:
    """Figure 4: by how much of its accuracy in H0 the accuracy of a training falls in H6; what turns right counts."""
    accuracy = _claimed(o).accuracy
    return 1 - accuracy[training, "H6", reading] / accuracy[training, *CLEAN.values()]


def lead(o: Outcomes, *, reading: str, measure: str) -> Least:
    """Figure 4: by how much hybrid training leads the other strategies in H6, the least of the four."""
    score = _claimed(o).accuracy if measure == "accuracy" else _roi(o)
    return least(*(score["Adv_h", "H6", reading] - score[name, "H6", reading] for name in STRATEGIES))


def above_guess(o: Outcomes, *, training: str, reading: str) -> Estimate:
    """Figure 4: the accuracy of a training in H6 less that of answering the largest class of the same images."""
    claimed = _claimed(o)
    rows = claimed.rows
    right, ones = rows["prediction"] == rows["label"], rows["label"] == 1
    cells = [*claimed.conditions, "model"]
    most = ones.groupby([rows[name] for name in cells], observed=True).transform("mean") > 0.5
    return replace(claimed, rows=rows.assign(above=right.astype(float) - (ones == most))).mean("above")[
        training, "H6", reading
    ]


def gain_over(o: Outcomes, *, training: str, over: str, reading: str) -> Estimate:
    """Figure 4: the accuracy of one training in H6 less that of another."""
    accuracy = _claimed(o).accuracy
    return accuracy[training, "H6", reading] - accuracy[over, "H6", reading]


STILL = "0/255, 0°"  # the cell of figure 5 where nothing is perturbed


def gridded(o: Outcomes) -> Outcomes:
    """Figure 5's own cells, without what is asked beside them."""
    return o.where(reading=["fixed", "searched"])


def _on_grid(o: Outcomes, reading: str) -> Cells:
    """Figure 5: ROI where the transform is fixed, accuracy where it is searched. With two classes, ROI under a search
    is accuracy and clean error together: an error is kept, however wrong (L27)."""
    there = o.where(reading=reading)
    return there.invariance(environment=STILL) if reading == "fixed" else there.accuracy


def grid_gain(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 5: the mean over the grid of ε and rotation of hybrid training less that of standard training."""
    cells = _on_grid(o, reading)
    return average(*(cells["Adv_h", cell] - cells["Standard", cell] for cell in gridded(o).values("environment")))


def decline(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 5: what standard training loses on the first step along the diagonal, to ε = 1/255 and 30°, less what
    hybrid training loses. Later steps say little: a network that has lost every answer declines no more.
    """
    cells = _on_grid(o, reading)
    start = 0 if reading == "fixed" else cells["Standard", STILL] - cells["Adv_h", STILL]  # ROI starts at 1
    step = _diagonal(cells)[0]
    return cells["Adv_h", step] - cells["Standard", step] + start


def falling(o: Outcomes) -> Estimate:
    """Figure 5: the ROI of standard training on the first step along the diagonal, 1/255 and one fixed rotation by 30°,
    less that on the last, 6/255 and 180°."""
    roi = _on_grid(o, "fixed")
    if len(steps := _diagonal(roi)) < 2:
        raise Unmeasured(f"one step alone was measured where noise and rotation rise together: {steps[0]}")
    return roi["Standard", steps[0]] - roi["Standard", steps[-1]]


def _diagonal(cells: Cells) -> list[str]:
    """The cells of figure 5's grid whose noise and rotation rise together, of those that were measured.

    Raises ``Unmeasured`` where there is none.
    """
    found = [c for c in (f"{k}/255, {30 * k}°" for k in range(1, 7)) if ("Standard", c) in cells]
    if not found:
        raise Unmeasured(
            "noise and rotation rise together in no cell that was measured, from 1/255, 30° to 6/255, 180°"
        )
    return found


def turned(o: Outcomes, *, eps: int, rotation: int) -> Estimate:
    """Figure 5: the ROI of standard training under noise alone less that under noise and one fixed rotation."""
    roi = _on_grid(o, "fixed")
    return roi["Standard", f"{eps}/255, 0°"] - roi["Standard", f"{eps}/255, {rotation}°"]


def stbo_mean(cells: Cells, box: str, budget: str) -> Estimate:
    """The mean over STBO's search seeds, so that no claim hangs on the luck of one."""
    return average(*(cells[box, name, budget] for name in STBO))


def stm_less_stbo(o: Outcomes, *, box: str, budgets: list[int]) -> Least:
    """Figure 6: ROI under STM less ROI under STBO at as many queries, the least over ``budgets``."""
    roi = o.where(box=[box, "none"]).invariance(box="none", method="clean", queries="0")
    return least(*(roi[box, "STM", budget] - stbo_mean(roi, box, budget) for budget in map(str, budgets)))


def louder_than_grid(o: Outcomes, *, box: str) -> Least:
    """Figure 6: mean worst loss after 100 queries of STBO less that after STM's 775, the least over search seeds."""
    loss = o.mean("loss")
    return least(*(loss[box, name, "100"] - loss[box, "STM", "775"] for name in STBO))


def kept_less_than_grid(o: Outcomes, *, box: str) -> Least:
    """Figure 6: ROI under 775 queries of STM less that under 100 of STBO, the least over search seeds."""
    roi = o.where(box=[box, "none"]).invariance(box="none", method="clean", queries="0")
    return least(*(roi[box, "STM", "775"] - roi[box, name, "100"] for name in STBO))


def louder_than_peers(o: Outcomes, *, box: str) -> Least:
    """Figure 6: mean worst loss after 100 units of STBO less that of each other search, the least of them."""
    loss = o.mean("loss")
    return least(*(stbo_mean(loss, box, "100") - loss[box, name, "100"] for name in PEERS))


def missed(o: Outcomes, *, box: str) -> Estimate:
    """Figure 6: the share of images that one search of 100 queries calls robust, and that the worst of everything,
    a dense grid among it, does not leave so."""
    return o.mean("missed")[box, "any", "all"]


def mixbn_gain(o: Outcomes, *, side: str, measure: str) -> Least:
    """Table 2: by how much MixBN raises accuracy or AUC, the least of the three trainings.

    ``side`` "clean": clean images through the clean branch; "adv": through the adversarial branch, images that are
    perturbed as those it was trained on. All of H6 would be at the floor for who has met one half of it.
    """
    claimed = _claimed(o)
    score = claimed.accuracy if measure == "accuracy" else claimed.auc
    cells = {name: ("H0", "clean") if side == "clean" else (MET[name], "searched") for name in ABLATED}
    return least(*(score[f"{name}+MixBN", side, *c] - score[name, "shared", *c] for name, c in cells.items()))


def mixbn_lost(o: Outcomes, *, reading: str) -> Estimate:
    """Figure 4 read as trained with MixBN (L37): the share of its right answers in H0 that hybrid training loses in H6,
    all of them through the adversarial branch."""
    return _hybrid_mixbn(o).flipped(**CLEAN)["H6", reading]


def mixbn_roi(o: Outcomes) -> Estimate:
    """The same, the ROI in the fixed H6."""
    return _hybrid_mixbn(o).invariance(**CLEAN)["H6", "fixed"]


def _hybrid_mixbn(o: Outcomes) -> Outcomes:
    return _claimed(o).where(training="Adv_h+MixBN", branch="adv")


def degradation(o: Outcomes, *, beside: str) -> Estimate:
    """MixBN's premise: clean accuracy of a standard training less that of adversarial training, mean over table 2's."""
    accuracy = _claimed(o).accuracy
    return average(*(accuracy[beside, "shared", "H0"] - accuracy[name, "shared", "H0"] for name in ABLATED))


def useful(o: Outcomes) -> Estimate:
    """Table 2: the accuracy under the worst rotation and shift of training on STBO's samples less that of standard
    training."""
    accuracy = _claimed(o).accuracy
    return accuracy["Adv_RT", "shared", SPATIAL] - accuracy["Standard", "shared", SPATIAL]


def flattery(o: Outcomes) -> Estimate:
    """L3: clean accuracy of standard training with a split by image less that with a split by patient."""
    accuracy = o.where(environment="H0", training="Standard", branch="shared").accuracy
    return accuracy["image"] - accuracy["patient"]
