"""Outcomes: scores are scikit-learn's, invariance is what counting gives, and what is stored comes back as it was."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import measured
from sklearn import metrics

from hpatlib import outcomes
from hpatlib.outcomes import NONE, Outcomes, Unmeasured, decode, encode, tidy

CONDITIONS = ("training", "environment")
SEEDS = (5, 3, 9)


def answered(classes: int, *, trainings: int = 3, images: int = 70, seed: int = 0) -> Outcomes:
    """Random answers of two networks in two environments: a model a network and training, a few images a group."""
    draws, parts = np.random.default_rng(seed), []
    for (k, name), place in itertools.product(enumerate(("Standard", "Adv_h")), ("H0", "H6")):
        for number in range(trainings):
            labels = draws.integers(0, classes, images)
            logits = draws.normal(size=(images, classes)) + 1.5 * (np.arange(classes) == labels[:, None])
            said = logits.argmax(axis=1)
            about = {"model": k * trainings + number, "training": name, "environment": place}
            about |= {"image": [f"{n}.bmp" for n in range(images)], "group": [f"cnmc/{n // 3}" for n in range(images)]}
            about |= {"label": labels, "prediction": said}
            if classes == 2:
                about["margin"] = (logits[:, 1] - logits[:, 0]).astype(np.float16)
            parts.append(pd.DataFrame(about))
    rows = tidy(pd.concat(parts).sample(frac=1, random_state=seed), CONDITIONS)
    return Outcomes(rows, CONDITIONS, SEEDS[:trainings] * 2)


def by_training(o: Outcomes, key: tuple[str, str]) -> list[pd.DataFrame]:
    """The rows of a cell, training by training in the order of their seeds."""
    rows = o.rows[(o.rows["training"] == key[0]) & (o.rows["environment"] == key[1])]
    seeds = rows["model"].map(dict(enumerate(o.seeds)))
    return [rows[seeds == seed] for seed in sorted(set(o.seeds))]


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_scikit_learns_in_each_training_and_averaged(classes):
    o = answered(classes, seed=classes)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": (o.accuracy, metrics.accuracy_score),
        "precision": (o.precision("macro"), lambda *a: metrics.precision_score(*a, **macro)),
        "recall": (o.recall("macro"), lambda *a: metrics.recall_score(*a, **macro)),
        "F1": (o.f1("macro"), lambda *a: metrics.f1_score(*a, **macro)),
    }
    if classes == 2:
        expected |= {
            "binary precision": (o.precision(), metrics.precision_score),
            "binary recall": (o.recall(), metrics.recall_score),
            "binary F1": (o.f1(), metrics.f1_score),
        }
    for key in itertools.product(("Standard", "Adv_h"), ("H0", "H6")):
        parts = by_training(o, key)
        for name, (cells, score) in expected.items():
            truth = [score(rows["label"], rows["prediction"]) for rows in parts]
            np.testing.assert_allclose(cells[key].values, truth, err_msg=f"{name} {key}")
            assert cells[key].value == pytest.approx(np.mean(truth)) and cells[key].trainings == (3, 5, 9)
            (leaf,) = cells[key].leaves
            assert leaf.key == key and leaf.value == pytest.approx(np.mean(truth))
            assert leaf.models == set(parts[0]["model"]) | set(parts[1]["model"]) | set(parts[2]["model"])
        if classes == 2:
            areas = [metrics.roc_auc_score(rows["label"], rows["margin"]) for rows in parts]
            np.testing.assert_allclose(o.auc[key].values, areas)


def test_a_class_that_is_never_answered_scores_0_as_scikit_learn_has_it():
    o = measured(["environment"], {("H0",): np.array([[True, False] * 20])})  # always class 0
    assert o.precision()["H0"].value == o.f1()["H0"].value == 0
    assert o.precision("macro")["H0"].value == pytest.approx(0.25)


def test_binary_scores_count_the_malignant_class_and_reproduce_a_printed_row():
    """1088 of 1219 malignant and 189 of 648 healthy cells right is Adv_p of table 2 (printed truncated; L4)."""
    labels = np.repeat([1, 0], [1219, 648])
    said = np.repeat([1, 0, 1, 0], [1088, 131, 459, 189])
    rows = pd.DataFrame({"model": 0, "c": "x", "label": labels, "prediction": said})
    rows = rows.assign(image=np.arange(1867), group=np.arange(1867))
    o = Outcomes(tidy(rows, ("c",)), ("c",), (0,))
    found = [o.accuracy["x"], o.precision()["x"], o.f1()["x"]]
    assert [np.floor(1e5 * each.value) / 1e3 for each in found] == [68.398, 70.329, 78.669]


def test_the_margin_ranks_answers_whose_probabilities_are_both_1():
    """Logits 30 and 40 ahead both make softmax 1 in single precision; their order still tells the classes apart."""
    margin = np.array([30.0, 31, 32, 40, 41, 42], np.float32)
    probabilities = 1 / (1 + np.exp(-margin))
    assert len(set(probabilities)) == 1
    rows = pd.DataFrame({"model": 0, "c": "x", "image": range(6), "group": range(6)})
    rows = rows.assign(label=[0, 0, 0, 1, 1, 1], prediction=1, margin=margin)
    assert Outcomes(tidy(rows, ("c",)), ("c",), (0,)).auc["x"].value == 1.0


def test_unknown_averages_are_refused():
    with pytest.raises(ValueError, match='"binary" or "macro", found \'weighted\''):
        answered(2).f1("weighted")


FIVE = ("split", "training", "branch", "environment", "reading")


def five(seed: int) -> Outcomes:
    """Answers under five conditions: all images in H0, some of them elsewhere, and a few that nobody answered."""
    draws, parts, models = np.random.default_rng(seed), [], {}
    labels = {split: draws.integers(0, 3, 30) for split in ("patient", "image")}
    for split, training, branch, (place, reading) in itertools.product(
        ("patient", "image"),
        ("Adv_PGD", "Adv_h"),
        ("clean", "adv"),
        (("H0", "clean"), ("H3", "fixed"), ("H3", "searched")),
    ):
        for training_seed in range(2):
            there = np.arange(30) if place == "H0" else draws.choice(30, 12, replace=False)
            number = models.setdefault((split, training, training_seed), len(models))
            said = np.where(draws.random(len(there)) < 0.6, labels[split][there], draws.integers(0, 3, len(there)))
            said[draws.random(len(there)) < 0.1] = NONE
            about = {"model": number, "split": split, "training": training, "branch": branch, "environment": place}
            about |= {"reading": reading, "image": there, "group": there, "label": labels[split][there]}
            parts.append(pd.DataFrame(about | {"prediction": said}))
    return Outcomes(tidy(pd.concat(parts), FIVE), FIVE, tuple(seed for *_, seed in models))


@pytest.mark.parametrize("seed", range(3))
def test_invariance_and_flips_are_what_counting_gives(seed):
    o = five(seed)
    table = {
        (*(row[c] for c in FIVE), row["model"], str(row["image"])): (row["label"], row["prediction"])
        for row in o.rows.astype({c: str for c in (*FIVE, "image")}).to_dict("records")
    }
    roi = o.invariance(environment="H0", reading="clean")
    flipped = o.flipped(environment="H0", reading="clean")
    assert list(roi) == list(flipped) == list(o.accuracy)
    for key in roi:
        same, lost = {}, {}
        for (*where, number, image), (label, said) in table.items():
            _, before = table.get((*key[:3], "H0", "clean", number, image), (0, NONE))
            if tuple(where) != key or NONE in (said, before):
                continue
            same.setdefault(o.seeds[number], []).append(said == before)
            if before == label:
                lost.setdefault(o.seeds[number], []).append(said != label)
        np.testing.assert_allclose(roi[key].values, [np.mean(same[s]) for s in (0, 1)], err_msg=str(key))
        np.testing.assert_allclose(flipped[key].values, [np.mean(lost[s]) for s in (0, 1)], err_msg=str(key))
        assert roi[key].n == min(map(len, same.values()))


def test_the_reference_must_be_one_row_a_model_and_image():
    o = five(0)
    lost = tuple(name for name in FIVE if name != "branch")
    rows = o.rows.drop(columns="branch")
    with pytest.raises(ValueError, match="more than one row a model and image"):
        Outcomes(tidy(rows, lost), lost, o.seeds).invariance(environment="H0")


def test_rows_without_an_answer_are_left_out_of_scores_alone():
    o = five(1)
    rows = o.rows.assign(loss=np.where(o.rows["prediction"] == NONE, 7.0, 1.0))
    o = Outcomes(tidy(rows, FIVE), FIVE, o.seeds).where(split="patient", training="Adv_h", branch="adv")
    there = o.rows[o.rows["environment"] == "H0"]
    answered = there[there["prediction"] != NONE]
    assert len(answered) < len(there)
    shares = [(part["prediction"] == part["label"]).mean() for _, part in answered.groupby("model")]
    assert o.accuracy["H0"].value == pytest.approx(np.mean(shares))
    assert o.mean("loss")["H0"].value == pytest.approx(there.groupby("model")["loss"].mean().mean())


def test_missing_numbers_are_left_out_of_their_mean_and_texts_have_none():
    rows = pd.DataFrame({"model": 0, "c": ["x", "x", "y"], "image": range(3), "group": 0, "loss": [1.0, np.nan, 3.0]})
    o = Outcomes(tidy(rows, ("c",)), ("c",), (0,))
    assert o.mean("loss")["x"].value == 1 and o.mean("loss")["x"].n == 1 and o.measured == ["loss"]
    with pytest.raises(Unmeasured, match="no column 'texture' was measured: there are loss"):
        o.mean("texture")
    with pytest.raises(Unmeasured, match="no predictions were measured: there are loss"):
        _ = o.accuracy["x"]


def test_outcomes_of_no_model_have_images_and_no_trainings():
    rows = pd.DataFrame({"model": 0, "c": "x", "image": range(4), "group": range(4), "loss": [1.0, 2, 3, 4]})
    found = Outcomes(tidy(rows, ("c",)), ("c",), ()).mean("loss")["x"]
    assert found.value == 2.5 and found.trainings is None and found.n == 4


def test_a_cell_compares_images_with_their_own_class_and_counts_groups():
    """Classes are strata; an image that is there twice, in its own group, tells nothing more."""
    label, right = np.repeat([0, 1], [30, 70]), np.r_[np.arange(30) < 6, np.arange(70) < 63]
    rows = pd.DataFrame({"model": 0, "c": "x", "image": range(100), "group": range(100), "label": label})
    margin = np.random.default_rng(0).normal(size=100) + label
    rows = rows.assign(prediction=np.where(right, label, 1 - label), margin=margin)
    twice = pd.concat([rows, rows.assign(image=rows["image"] + 100)])
    one, two = (Outcomes(tidy(each, ("c",)), ("c",), (None,)) for each in (rows, twice))
    within = sum((len(v) / 100) ** 2 * v.var(ddof=1) / len(v) for v in np.split(right.astype(float), [30]))
    assert one.accuracy["x"].error == pytest.approx(np.sqrt(within))
    assert two.auc["x"].error == pytest.approx(one.auc["x"].error)


def test_cells_are_named_by_conditions_in_their_order():
    o = five(2)
    accuracy = o.where(split="patient").accuracy
    assert accuracy["Adv_h", "adv", "H0"] is accuracy["Adv_h", "adv", "H0", "clean"]  # one reading alone is there
    assert ("Adv_h", "adv", "H0", "clean") in accuracy and ("Adv_h", "adv", "H0") not in accuracy
    several = o.where(split="patient", training=["Adv_h"], branch="adv", environment=["H0", "H3"])
    assert several.conditions == ("training", "environment", "reading") and several.values("environment") == [
        "H0",
        "H3",
    ]
    assert several.accuracy["Adv_h", "H3", "fixed"].value == accuracy["Adv_h", "adv", "H3", "fixed"].value
    alone = o.where(split="patient", training="Adv_h", branch="adv", environment="H3", reading="fixed")
    assert list(alone.accuracy) == [()] and alone.accuracy[()].value == several.accuracy["Adv_h", "H3", "fixed"].value


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda o: o.where(colour="red"), "no condition 'colour': choose one of training, environment"),
        (
            lambda o: o.where(environment="H9"),
            "nothing measured with environment='H9': the values of 'environment' are H",
        ),
        (lambda o: o.accuracy["Adv_p"], "no accuracy at training='Adv_p': measured were .*Standard"),
        (lambda o: o.accuracy["Standard"], "training='Standard' is 2 cells: name .*environment"),
        (lambda o: o.accuracy["Standard", "H0", "fixed"], "names more than the conditions"),
        (lambda o: o.accuracy["Standard", "H9"], "environment='H9': measured were .*Standard, H6"),
        (lambda o: o.invariance(environment="H7"), "nothing measured with environment='H7'"),
        (lambda o: answered(3).auc["Standard", "H0"], "of two classes, and a label here is 2"),
        (lambda o: replace(answered(2), seeds=(5, None) * 3).accuracy["Standard", "H0"], "trained and untrained"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(ask, message):
    with pytest.raises(Unmeasured, match=message):
        ask(answered(2))


def test_tables_hold_every_cell_with_its_interval_and_every_training():
    o = answered(2)
    table, each = o.accuracy.table(0.9), o.accuracy.each()
    assert list(table) == ["training", "environment", "value", "low", "high", "trainings", "n"]
    assert len(table) == 4 and set(table["trainings"]) == {3} and set(table["n"]) == {70}
    assert list(each) == ["training", "environment", "seed", "value"] and len(each) == 12
    for row in table.to_dict("records"):
        estimate = o.accuracy[row["training"], row["environment"]]
        assert (row["low"], row["high"]) == estimate.interval(0.9) and row["low"] < row["value"] < row["high"]
        mine = each[(each["training"] == row["training"]) & (each["environment"] == row["environment"])]
        assert dict(zip(mine["seed"], mine["value"], strict=True)) == dict(
            zip(estimate.trainings, estimate.values, strict=True)
        )


def full(seed: int) -> pd.DataFrame:
    """Rows of every kind of column, as `tidy` leaves them."""
    rows = answered(2, seed=seed).rows
    draws = np.random.default_rng(seed)
    loss = draws.lognormal(size=len(rows))
    loss[draws.random(len(rows)) < 0.2] = np.nan
    said = rows["prediction"].astype(float).mask(draws.random(len(rows)) < 0.1)
    return tidy(rows.assign(loss=loss, prediction=said, environment=rows["environment"].astype(str)), CONDITIONS)


@pytest.mark.parametrize("seed", range(3))
def test_rows_come_back_from_parquet_bit_for_bit(seed):
    rows = full(seed)
    content = encode(rows)
    back = decode(content)
    assert encode(back) == content == encode(full(seed))
    assert list(back) == list(rows) and back["loss"].dtype == back["margin"].dtype == np.float16
    assert back["label"].dtype == back["prediction"].dtype == np.int8 and back["model"].dtype == np.int16
    assert (back["prediction"] == NONE).any()
    for name in rows:
        kept, was = back[name], rows[name]
        if isinstance(was.dtype, pd.CategoricalDtype):
            assert kept.astype(str).tolist() == was.astype(str).tolist()
        else:
            np.testing.assert_array_equal(kept.to_numpy(), was.to_numpy())


def test_half_precision_is_the_nearest_half():
    values = np.array([0.1, 1 / 3, 1000.3, -7e-8, 65504.0])
    rows = pd.DataFrame({"model": 0, "c": "x", "image": range(5), "group": "a", "loss": values})
    stored = decode(encode(tidy(rows, ("c",))))["loss"].to_numpy()
    assert stored.tobytes() == values.astype(np.float16).tobytes()
    np.testing.assert_allclose(stored.astype(float)[[0, 1, 2, 4]], values[[0, 1, 2, 4]], rtol=2**-11)


def test_a_class_that_would_wrap_around_is_refused():
    rows = pd.DataFrame({"model": 0, "c": "x", "image": range(2), "group": "a", "label": [0, 255], "prediction": 0})
    with pytest.raises(ValueError, match="label is up to 255: a record holds 128 classes"):
        tidy(rows, ("c",))


def test_a_record_without_outcomes_can_be_stored():
    empty = tidy(pd.DataFrame(columns=["model", "c", "image", "group"]), ("c",))
    assert len(decode(encode(empty))) == 0 and list(decode(encode(empty))) == ["model", "c", "image", "group"]
    with pytest.raises(Unmeasured):
        Outcomes(empty, ("c",), ()).where(c="x")
    assert outcomes.KEYS.keys() <= set(empty)
