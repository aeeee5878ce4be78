"""The ultrasound report's experiment: what its sets are made from, what is measured, and how claims are weighed."""

import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import check_held_out
from torch import nn

from hpatlib import attacks, claims, documents, records, runs, training
from hpatlib.data import ImageSet
from hpatlib.documents import ultrasound
from hpatlib.documents.ultrasound import figures, quantities, study
from hpatlib.outcomes import Outcomes, Unmeasured, tidy
from hpatlib.plots import base
from hpatlib.training import Examples, perturbed

EPS = 0.25
SIMPLE, LARGE = "simple_cnn (scratch)", "simple_cnn_bn (scratch)"


@pytest.fixture(scope="module")
def chosen(home):
    """The smoke profile with fewer images and epochs: enough for every cell, and no more."""
    small = ultrasound.choose("smoke", None, 0)
    recipe = replace(small.settings.recipe, epochs=2)
    return replace(
        small,
        settings=msgspec.structs.replace(small.settings, count=90, recipe=recipe),
        run=replace(small.run, count=90, recipe=recipe),
    )


@pytest.fixture(scope="module")
def measured(chosen) -> dict[str, records.Record]:
    """A record of each of the report's chapters, by chapter."""
    made = [study.formula(chosen), study.resnet50(chosen), study.simple_cnn(chosen), study.sweep(chosen)]
    made += [study.smaller_eps(chosen, eps) for eps in study.SMALLER]
    return {record.header.chapter: record for record in made}


@pytest.fixture(scope="module")
def seeds(chosen) -> list[runs.Run]:
    return chosen.runs()


def linear(weight: torch.Tensor) -> nn.Module:
    """Logits (0, w · x) of grey images: a model whose gradients are known."""
    layer = nn.Linear(weight.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return nn.Sequential(nn.Flatten(), layer)


def grey(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet("toy", images.astype(np.uint8), labels, np.arange(len(labels)).astype(str), ("a", "b"), False, "f")


# What the sets are made from.


def test_the_printed_formula_in_closed_form():
    weight = torch.tensor([1.0, -2.0, 0.0, 0.5])
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    # The gradient of the cross-entropy is (p − 1[y = 1]) · w, with p the probability of class 1.
    p = torch.sigmoid(0.5 * weight.sum())
    expected = torch.stack([p * weight, (p - 1) * weight]).view(2, 1, 2, 2)
    formulas = study.formulas(0.3)
    found = formulas["printed"](linear(weight), images, labels)
    torch.testing.assert_close(found, 0.5 + 0.3 * expected)
    signed = formulas["sign"](linear(weight), images, labels)
    torch.testing.assert_close(signed, 0.5 + 0.3 * expected.sign())


def test_the_printed_formula_neither_clips_nor_knows_its_batch():
    weight = torch.full((4,), 4.0)
    images, labels = torch.ones(3, 1, 2, 2), torch.tensor([0, 0, 0])
    found = attacks.gradient_step(linear(weight), images, labels, eps=1.0)
    assert found.max() > 1
    alone = attacks.gradient_step(linear(weight), images[:1], labels[:1], eps=1.0)
    torch.testing.assert_close(found[:1], alone)


def test_the_static_set_comes_from_the_clean_model_and_stays_inside_eps(seeds, monkeypatch):
    run = study.against(seeds[0], "static", 0.125)
    clean = runs.train_or_load(run.clean, device="cpu")
    seen, fit = [], training.fit
    monkeypatch.setattr(training, "fit", lambda model, data, *a, **k: (seen.append(data), fit(model, data, *a, **k))[1])
    child = runs.train_or_load(run, device="cpu")
    (examples,) = seen  # one training: the parent was loaded
    images, labels = clean.train.tensors()
    assert isinstance(examples, Examples) and torch.equal(examples.labels, labels)
    assert (examples.images - images).abs().max() <= 0.125 + 1e-6
    assert torch.equal(examples.images, attacks.fgsm(clean.model, images, labels, eps=0.125))
    assert child.provenance["parent"] == clean.provenance["key"] and clean.provenance["parent"] is None
    assert child.provenance["key"] != clean.provenance["key"]
    runs.train_or_load(run, device="cpu")
    runs.train_or_load(replace(run, static_eps=0.0625), device="cpu")
    assert len(seen) == 2  # the second ε: once, and still no new parent


def test_transfer_attacks_come_from_a_simple_cnn_of_the_same_split(seeds):
    run = replace(seeds[0], model="simple_cnn_bn", static_eps=0.5)
    first, source = (runs.train_or_load(each, device="cpu") for each in (seeds[0], study.other(run)))
    assert study.network(source) == SIMPLE and source.provenance["run"]["static_eps"] is None
    assert first.test.fingerprint == source.test.fingerprint
    pairs = zip(first.model.parameters(), source.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_examples_are_shuffled_whole_and_keep_their_labels():
    data = Examples(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    parts = list(data.batches(4, generator=torch.Generator().manual_seed(0)))
    images, labels = (torch.cat(side) for side in zip(*parts, strict=True))
    assert [len(part[1]) for part in parts] == [4, 4, 2] and len(data) == 10
    assert sorted(labels.tolist()) == list(range(10)) != labels.tolist()
    assert torch.equal(images.flatten().long(), labels)


def test_perturbed_keeps_the_order_of_the_images():
    data = grey(np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4)), np.arange(9) % 2)
    made = perturbed(linear(torch.ones(16)), data, lambda model, images, labels: 1 - images, batch_size=4)
    torch.testing.assert_close(made.images, 1 - data.tensors()[0])
    assert made.labels.tolist() == data.labels.tolist()


# What is measured.


def test_each_chapter_has_its_cells(measured, chosen):
    tests = ("perturbed", "white-box FGSM", "white-box PGD", "transfer FGSM", "worst case")
    o = measured[study.SIMPLE_CNN].outcomes
    assert o.values("split") == ["patient", "random"] and o.values("eps") == ["0", "0.5"]
    before = [("0", "none", "clean"), ("0", "clean", "clean"), *(("0.5", "clean", test) for test in tests)]
    after = [("0.5", reading, test) for reading in study.READINGS for test in ("clean", *tests)]
    assert set(quantities.of_network(o, SIMPLE).accuracy) == {*before, *after}
    searched = {key[:2] for key in quantities.of_network(o, SIMPLE).mean("smallest")}
    assert searched == {("0", "clean"), *(("0.5", reading) for reading in study.READINGS)}
    swept = quantities.of_network(measured[study.SWEEP].outcomes, LARGE)
    assert {key[:2] for key in swept.mean("smallest")} == {("0", "clean"), ("0.05", "static"), ("0.05", "online")}
    assert "smallest" not in measured[study.RESNET50].outcomes.rows
    leaks = ("noise alone", "predicted label", "wrong label")
    for eps in map(str, chosen.settings.ladder):
        assert {test for e, t, test in swept.accuracy if (e, t) == (eps, "clean")} == {*tests, *leaks}
        for kind in ("static", "online"):
            assert {test for e, t, test in swept.accuracy if (e, t) == (eps, kind)} == {"clean", *tests, *leaks}
    large = measured[study.RESNET50]
    assert large.networks == [LARGE, SIMPLE]
    # The yardstick is trained twice on each split, and every split counts once.
    simple = [model for model in large.header.models if model.network == SIMPLE]
    assert sorted((m.seed, m.run.get("repeat", 0)) for m in simple) == [(s, r) for s in large.seeds for r in (0, 1)]
    assert len(quantities.of_network(large.outcomes, SIMPLE).accuracy["0", "clean", "clean"].values) == len(large.seeds)


def test_the_perturbed_set_is_torchattacks_fgsm_on_the_clean_model(measured, seeds):
    torchattacks = pytest.importorskip("torchattacks")
    clean, static = (runs.train_or_load(each) for each in (seeds[1], study.against(seeds[1], "static", 0.5)))
    images, labels = clean.test.tensors()
    perturbed = torchattacks.FGSM(clean.model, eps=0.5)(images, labels)
    rows = measured[study.SIMPLE_CNN].outcomes.where(split="patient", training="static", test="perturbed").rows
    model = [m.key for m in measured[study.SIMPLE_CNN].header.models].index(static.provenance["key"])
    rows = rows[rows["model"] == model]
    assert rows["image"].tolist() == clean.test.ids.tolist() and rows["label"].tolist() == labels.tolist()
    with torch.no_grad():
        answers = static.model(perturbed)
    assert rows["prediction"].tolist() == answers.argmax(dim=1).tolist()
    own = answers[torch.arange(len(labels)), labels]
    best = answers.scatter(1, labels[:, None], -np.inf).amax(dim=1)
    assert rows["margin"].to_numpy(float) == pytest.approx((own - best).numpy(), rel=2e-3, abs=2e-3)


def test_before_attack_training_the_perturbed_set_is_the_white_box_one(measured):
    o = measured[study.SIMPLE_CNN].outcomes.where(eps=0.5, training="clean")
    perturbed, whitebox = (o.where(test=test).rows["prediction"] for test in ("perturbed", "white-box FGSM"))
    assert len(perturbed) and perturbed.tolist() == whitebox.tolist()


def test_each_attack_asks_the_network_that_its_name_says():
    """Of linear networks, where ten steps of PGD end in the corner that FGSM jumps to."""
    signs = ([1.0, -1, 1, -1], [1.0, 1, -1, -1], [-1.0, 1, 1, -1])
    mine, source, third = (linear(torch.tensor(weight)) for weight in signs)
    x, y = (0.5 + 0.05 * torch.tensor(signs[0])).view(1, 1, 2, 2), torch.tensor([1])
    named = study.tests(source, third, ultrasound.choose("smoke", None, 0).settings, eps=EPS, seed=0)
    made = {name: attack(mine, x, y) for name, attack in named.items()}
    asked = {"perturbed": source, "white-box FGSM": mine, "white-box PGD": mine, "transfer FGSM": third}
    for name, network in asked.items():
        torch.testing.assert_close(made[name], attacks.fgsm(network, x, y, eps=EPS))
    assert mine(x).argmax() == 1 and mine(made["worst case"]).argmax() == 0 and len(made) == len(asked) + 1


def test_a_rerun_measures_the_same(measured, chosen):
    again = study.simple_cnn(chosen)
    assert again.header.sha256 == measured[study.SIMPLE_CNN].header.sha256


def test_the_largest_class_is_the_share_that_the_header_calls_trivial(measured):
    record = measured[study.SIMPLE_CNN]
    share = record.outcomes.where(split="patient").accuracy[SIMPLE, "0", "none", "clean"]
    trivial = {m.seed: m.trivial for m in record.header.models if m.run["split_by"] == "patient"}
    assert share.values == pytest.approx([trivial[seed] for seed in share.trainings], abs=1e-4)


def test_the_loss_left_is_that_of_the_header(measured):
    record = measured[study.RESNET50]
    left = quantities.loss_left(record.outcomes, network=LARGE, eps=0.5)
    by_training = [
        [
            m.losses[-1] / m.losses[0]
            for m in record.header.models
            if m.network == LARGE and ("static_eps" in m.run) == static
        ]
        for static in (False, True)
    ]
    assert left.value == pytest.approx(max(map(np.mean, by_training)), rel=1e-3)
    assert left.interval()[1] < np.inf


def test_noise_of_a_linear_model_tells_its_label():
    random = np.random.default_rng(1)
    data = grey(random.integers(100, 156, (40, 1, 4, 4)), np.arange(40) % 2)
    weight = torch.tensor(random.standard_normal(16), dtype=torch.float32)
    weight -= weight.mean()  # plain grey says nothing
    source = linear(weight)
    # The noise climbs the loss, so a model that reads it answers the opposite of its source.
    found = study.leaking(runs.Trained(linear(-weight), data, data, {}), source, eps=0.5, seed=0)
    assert (found["noise alone"]["prediction"] == found["noise alone"]["label"]).all()
    assert found["wrong label"]["misled"].all()
    assert (found["wrong label"]["prediction"] == 1 - found["wrong label"]["label"]).all()
    guess = source(data.tensors()[0]).argmax(dim=1)
    assert found["predicted label"]["prediction"].tolist() == guess.tolist() != data.labels.tolist()
    own = study.leaking(runs.Trained(source, data, data, {}), source, eps=0.5, seed=0)
    assert (own["noise alone"]["prediction"] != own["noise alone"]["label"]).all()


def test_sizes_of_both_formulas(measured):
    rows = measured[study.FORMULA].outcomes.rows
    signed, printed = (rows[rows["formula"] == name].astype({"eps": float}) for name in ("sign", "printed"))
    assert (signed["largest change"] <= signed["eps"] * 255 * (1 + 2**-10)).all() and len(signed) == len(printed)
    assert (signed["mean change"] <= signed["largest change"]).all() and (signed["mean change"] > 0).all()
    # Without sign or clipping the change is proportional to ε, up to half precision.
    small, large = (printed[printed["eps"] == eps]["mean change"].to_numpy(float) for eps in (0.05, 0.5))
    assert large == pytest.approx(10 * small, rel=5e-3, abs=1e-5)


def test_pictures_are_of_phantoms_and_legal(chosen):
    real = replace(chosen, run=replace(chosen.run, real=True))
    drawn = study.pictures(real)
    assert {row.shape for row in drawn.values()} == {(4, 1, 32, 32)}
    assert all(row.min() >= 0 and row.max() <= 1 for row in drawn.values())
    assert np.abs(drawn["with sign"][3] - drawn["with sign"][0]).max() <= 0.5 + 1e-6


def test_smaller_eps_is_one_of_the_reports(chosen):
    with pytest.raises(ValueError, match=r"no figures at ε = 0.3: choose one of 0.2, 0.05"):
        study.smaller_eps(chosen, 0.3)


# How claims are weighed.


@pytest.mark.parametrize("claim", claims.of("ultrasound"), ids=lambda claim: claim.id)
def test_every_claim_is_measured_in_its_chapter(claim, measured):
    o = measured[claim.chapter].outcomes
    asked = claim.arguments.get("network", SIMPLE)
    if asked != SIMPLE:
        with pytest.raises(Unmeasured, match="0 networks end in"):  # smoke has no ResNet50 and no ImageNet weights
            claims.quantity("ultrasound", claim, o)
        renamed = "tf_efficientnet_lite0 (imagenet)" if asked == "(imagenet)" else asked
        o = replace(o, rows=o.rows.assign(network=o.rows["network"].cat.rename_categories({LARGE: renamed})))
    if claim.quantity == "wider":
        with pytest.raises(Unmeasured, match="at least 3 trainings, measured were 2"):
            claims.quantity("ultrasound", claim, o)
        return
    found = claims.quantity("ultrasound", claim, o)
    assert np.isfinite(found.interval()).all() and len(found.trainings) == 2


def test_claims_about_a_spread_need_ten_trainings():
    gates = documents.toml("ultrasound", "claims")["gates"]
    for claim in claims.of("ultrasound"):
        assert ("trainings-spread" in claim.gates) == (claim.quantity == "wider")
        assert "trainings" in claim.gates or "trainings-spread" in claim.gates
    assert gates["trainings-spread"] == 10 > gates["trainings"]


def constructed(cells: dict[tuple[str, str, str], list[float]], n: int = 200) -> Outcomes:
    """Outcomes of a simple CNN whose accuracies are given: (eps, training, test) → one share a training."""
    parts = []
    for (eps, kind, test), shares in cells.items():
        for seed, share in enumerate(shares):
            right = np.arange(n) < round(share * n)
            about = {"network": SIMPLE, "split": "patient", "eps": eps, "training": kind, "test": test}
            images = {"image": np.arange(n).astype(str), "group": np.arange(n).astype(str)}
            answers = {"label": 1, "prediction": right.astype(int), "misled": ~right}
            parts.append(pd.DataFrame({"model": seed, **about, **images, **answers}))
    return Outcomes(pd.concat(parts, ignore_index=True), study.CONDITIONS, tuple(range(len(parts))))


def test_what_a_formula_costs_and_what_a_larger_network_gains():
    formulas = {"eps": ["0"] * 4 + ["0.5"] * 4, "formula": ["none"] * 4 + ["printed"] * 4, "label": 1}
    answers = {"prediction": [1, 1, 1, 0, 1, 0, 0, 0], "mean change": [np.nan] * 4 + [1.0, 2, 3, 4]}
    answers |= {"largest change": 9.0}
    rows = pd.DataFrame({"model": 0, "image": [*"abcd"] * 2, "group": [*"abcd"] * 2} | formulas | answers)
    o = Outcomes(tidy(rows, ("eps", "formula")), ("eps", "formula"), (0,))
    assert quantities.formula_cost(o, formula="printed", eps=0.5).value == pytest.approx(0.5)
    assert quantities.mean_change(o, formula="printed", eps=0.5).value == 2.5
    small = constructed({("0", "clean", "clean"): [0.6, 0.6]})
    large = small.rows.assign(network="large (imagenet)", prediction=1, model=small.rows["model"] + 2)
    both = replace(small, rows=pd.concat([small.rows, large], ignore_index=True), seeds=(0, 1, 0, 1))
    assert quantities.lead_over_simple(both, network="(imagenet)").value == pytest.approx(0.4)


def test_changes_and_their_spread():
    before, after, lifted = [0.7, 0.7, 0.7], [0.4, 0.6, 0.8], [0.9, 0.9, 0.9]
    o = constructed(
        {
            ("0", "clean", "clean"): before,
            ("0.5", "static", "clean"): after,
            ("0.5", "clean", "perturbed"): [0.2, 0.2, 0.2],
            ("0.5", "static", "perturbed"): lifted,
        }
    )
    on = {"network": SIMPLE, "eps": 0.5}
    clean = quantities.change(o, test="clean", **on)
    assert clean.value == pytest.approx(-0.1) and clean.values == pytest.approx(np.subtract(after, before))
    assert quantities.change(o, test="perturbed", **on).value == pytest.approx(0.7)
    assert quantities.reliance(o, eps=0.5).value == pytest.approx(0.3)
    # Jackknife pseudo-values of the standard deviation: before, nothing varies.
    spread = np.std(after, ddof=1)
    pseudo = [3 * spread - 2 * np.std(np.delete(after, k), ddof=1) for k in range(3)]
    assert quantities.wider(o, **on).values == pytest.approx(np.array(pseudo))
    assert quantities.wider(o, test="perturbed", **on).value == pytest.approx(0)


def test_smaller_eps_against_the_larger_one():
    o = constructed(
        {
            ("0.2", "static", "clean"): [0.4, 0.42],
            ("0.5", "static", "clean"): [0.4, 0.40],
            ("0.2", "static", "perturbed"): [0.6, 0.6],
            ("0.5", "static", "perturbed"): [0.9, 0.9],
        }
    )
    asked = {"eps": 0.2, "larger": 0.5}
    assert quantities.against_larger_eps(o, test="perturbed", **asked).value == pytest.approx(-0.3)
    assert quantities.against_larger_eps(o, test="clean", **asked).value == pytest.approx(0.01)
    assert quantities.reliance_against_larger_eps(o, **asked).value == pytest.approx((0.19 + 0.0) - 0.5, abs=1e-9)


def test_what_the_noise_gives_away_and_catastrophic_over_fitting():
    o = constructed(
        {
            ("0", "none", "clean"): [0.5, 0.5],
            ("0.5", "static", "noise alone"): [0.9, 0.8],
            ("0.5", "static", "wrong label"): [0.1, 0.2],  # right; what is not is misled
            ("0.5", "online", "white-box FGSM"): [0.9, 0.9],
            ("0.5", "online", "white-box PGD"): [0.0, 0.1],
            ("0.5", "clean", "white-box FGSM"): [0.3, 0.3],
            ("0.5", "clean", "white-box PGD"): [0.1, 0.1],
            ("0.05", "online", "worst case"): [0.5, 0.6],
            ("0.05", "static", "worst case"): [0.2, 0.3],
            ("0.5", "static", "perturbed"): [0.9, 0.9],
        }
    )
    on = {"network": SIMPLE, "eps": 0.5}
    assert quantities.noise_alone(o, **on).value == pytest.approx(0.35)
    assert quantities.follows_noise(o, **on).value == pytest.approx(0.7)
    assert quantities.catastrophic(o, **on).value == pytest.approx(0.65)
    gain = quantities.robust_gain(o, network=SIMPLE, training="online", over="static", eps=0.05)
    assert gain.value == pytest.approx(0.3)
    assert quantities.above_grey(o, network=SIMPLE).value == pytest.approx(0.4)


def test_the_mean_smallest_eps_is_the_area_under_accuracy(measured, seeds):
    o = measured[study.SIMPLE_CNN].outcomes
    gain = quantities.tolerance_gain(o, network=SIMPLE, training="static", over="clean", eps=0.5)
    rows = o.where(split="patient", test="smallest ε").rows
    by_training = rows.assign(smallest=rows["smallest"].astype(float)).groupby("training", observed=True)["smallest"]
    assert gain.value == pytest.approx(by_training.mean()["static"] - by_training.mean()["clean"], rel=1e-6)
    capped = quantities.tolerance_gain(o, network=SIMPLE, training="static", over="clean", eps=0.5, most=0.002)
    limited = rows.assign(smallest=rows["smallest"].astype(float).clip(upper=0.51))
    means = limited.groupby("training", observed=True)["smallest"].mean()
    assert capped.value == pytest.approx(means["static"] - means["clean"], rel=1e-6) and capped.value != gain.value
    # Zero exactly where the clean answer is wrong, and PGD at more than that changes every other answer.
    clean = runs.train_or_load(seeds[0])
    images, labels = clean.test.tensors()
    mine = rows[(rows["training"] == "clean") & (rows["model"] == rows["model"].min())]["smallest"].to_numpy(float)
    right = clean.model(images).argmax(dim=1) == labels
    assert ((mine > 0) == right.numpy()).all() and mine.max() <= 255 * study.MOST


def test_the_readings_differ_where_they_should(seeds):
    run = study.against(seeds[0], "static", 0.375)  # of no chapter: nothing real is trained here
    clean = runs.train_or_load(run.clean)
    seen = []

    def untrained(model, data, *rest, checkpoint, **settings):
        seen.append((model.state_dict(), data))
        checkpoint.touch()
        return [{"loss": 1.0, "seconds": 0.0}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", untrained)
        for reading in ("continued", "mixed"):
            runs.train_or_load(replace(run, static=reading))
    (continued, alone), (_, both) = seen
    assert all(torch.equal(continued[name], value) for name, value in clean.model.state_dict().items())
    assert len(both) == 2 * len(alone) and torch.equal(both.images[len(alone) :], alone.images)
    with pytest.raises(ValueError, match="static must be"):
        replace(run, static_eps=None, static="mixed")


@pytest.mark.parametrize("profile", documents.toml("ultrasound", "profiles"))
def test_settings_are_the_reports(profile):
    chosen, printed = ultrasound.choose(profile, None, 3), documents.published("ultrasound")
    # The smallest profile, which no evidence comes from, has few images, so small batches and more epochs.
    small, reported = (14, 16), (printed["epochs"]["value"], printed["batch_size"]["value"])
    recipe = chosen.run.recipe
    assert (recipe.epochs, recipe.batch_size) == (small if profile == "smoke" else reported)
    assert chosen.run.test == printed["test_share"]["value"]
    assert chosen.run.recipe.decay == 1 and chosen.run.dataset == "busi"
    assert [run.seed for run in chosen.runs()] == list(range(3, 3 + chosen.settings.trainings))
    assert all(run.model == "simple_cnn" and run.split_by == "patient" for run in chosen.runs())
    reported = {printed[f"eps_{name}"]["value"] for name in ("small", "middle", "large")}
    assert set(study.REPORTED) == reported <= set(chosen.settings.ladder)
    needed = documents.toml("ultrasound", "claims")["gates"]["trainings"]
    assert profile == "smoke" or min(chosen.settings.trainings, chosen.settings.network_trainings) >= needed
    with pytest.raises(ValueError, match="choose one of smoke, laptop, study, paper"):
        ultrasound.choose("huge", None, 0)


# What is shown.


def test_figures_tell_what_their_records_hold(measured):
    record = measured[study.SIMPLE_CNN]
    accuracy = quantities.of_network(record.outcomes, SIMPLE).accuracy
    figure = figures.attack_training(record, eps=0.5)
    rows = figure.data.set_index(["test", "training"])
    for at, cell in (
        (("perturbed set", "trained on the perturbed set"), accuracy["0.5", "static", "perturbed"]),
        (("clean", "trained on clean images"), accuracy["0", "clean", "clean"]),
    ):
        found = rows.loc[at, ["value", "low", "high"]].astype(float)
        np.testing.assert_allclose(found, [cell.value, *cell.interval()])
    chance = figure.draw(False).axes[0].lines[0].get_xdata()
    assert chance[0] == accuracy["0", "none", "clean"].value
    assert not figures.attack_training(record, eps=0.5, split="random").data.equals(figure.data)
    models = [m for m in record.header.models if "static_eps" in m.run and "static" not in m.run]
    ends = [m.losses[-1] for m in models if m.run["split_by"] == "patient"]
    means = figures.losses(record, eps=0.5).data.query("line == 'trained on the perturbed set'")
    assert means["value"].iloc[-1] == pytest.approx(np.mean(ends))
    for drawn in (figure, figures.losses(record, eps=0.5)):
        assert "seeds 0, 1" in drawn.caption and "SimpleCNN (from scratch)" in drawn.alt
        assert drawn.name.endswith("phantom")


def test_figures_of_the_ladder_show_the_clean_model_at_every_eps(measured):
    record = measured[study.SWEEP]
    swept = quantities.of_network(record.outcomes, LARGE)
    ladder, leaks = figures.ladder(record), figures.leaks(record)
    clean = swept.accuracy["0", "clean", "clean"].value
    rows = ladder.data.query("panel.str.startswith('clean') and training == 'trained on clean images'")
    rows = rows[rows["panel"].str.contains(base.network(LARGE), regex=False)]
    assert rows["value"].tolist() == [clean] * 3 and sorted(rows["eps"]) == [0.05, 0.2, 0.5]
    misled = swept.mean("misled")["0.5", "static", "wrong label"].value
    rows = leaks.data.query("panel.str.contains('by that label') and eps == 0.5")
    assert misled in rows[rows["training"] == "trained on the perturbed set"]["value"].tolist()
    accuracy = quantities.of_network(record.outcomes, LARGE).accuracy
    gap = accuracy["0.5", "online", "white-box FGSM"] - accuracy["0.5", "online", "white-box PGD"]
    table = figures.over_fitting([record]).frame
    assert table.shape == (2 * 2 * 3, 7) and table.iloc[-1]["FGSM less PGD"].startswith(
        f"{100 * gap.value:.1f}".replace("-", "−")
    )


def test_figures_of_formulas(measured):
    record = measured[study.FORMULA]
    changed = record.outcomes.mean("mean change")["0.5", "printed"].value
    figure = figures.formulas(record)
    rows = figure.data.query("formula == 'as printed, no sign' and eps == 0.5")
    assert rows["value"].tolist()[0] == changed and f"by {changed:.3g} as printed" in figure.alt


def test_the_table_has_a_row_a_training_and_a_column_a_test(measured):
    record = measured[study.RESNET50]
    frame = figures.accuracies([record, record]).frame
    assert len(frame) == 2 * 3 and not frame.isna().any().any() and set(frame["trainings"]) == {2}
    names = ["SimpleCNN with batch norm (from scratch)"] * 2 + ["SimpleCNN (from scratch)"]
    assert frame["network"].tolist() == 2 * names and frame["perturbed"].iloc[2] == "–"
    static = quantities.of_network(record.outcomes, LARGE).accuracy["0.5", "static", "perturbed"]
    assert frame["perturbed"].iloc[1].startswith(f"{100 * static.value:.1f} [")
    assert len(figures.accuracies([measured[study.SMALLER[0.2]]], eps=0.2).frame) == 2


def test_reading_needs_no_torch():
    code = "import sys, hpatlib.documents.ultrasound.figures, hpatlib.documents.ultrasound.quantities; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def test_which_reading_of_figures_3_and_4_gains_nothing_is_what_the_outcomes_say(measured):
    record = measured[study.RESNET50]
    table, names = figures.without_gain(record).frame, record.outcomes.values("network")
    trained = [name for name in names if "static" in record.outcomes.where(network=name).values("training")]
    assert len(table) == 3 * len(trained) and set(table.iloc[:, -1]) <= {"yes", "no", "open"}
    for name, (_, three) in zip(trained, table.groupby("network", sort=False), strict=True):
        for test, (_, row) in zip(("clean", "perturbed", "white-box FGSM"), three.iterrows(), strict=True):
            gain = quantities.change(record.outcomes, network=name, test=test, eps=0.5)
            assert row["gain, points"] == base.percent(gain.value, *gain.interval(), sign="+")
            assert (row.iloc[-1] == "yes") == (gain.interval()[1] < 0.05)
            assert (row.iloc[-1] == "no") == (gain.interval()[0] > 0.05)
    (kept, *_) = records.of(study.RESNET50)  # of real images, where all three answers are given
    assert set(figures.without_gain(kept).frame.iloc[:, -1]) == {"yes", "no", "open"}


def test_every_measured_image_was_held_out(measured):
    for record in measured.values():
        check_held_out(record)


def test_curves_and_readings_are_what_the_outcomes_say(measured):
    record = measured[study.SIMPLE_CNN]
    o = record.outcomes.where(network=SIMPLE, split="patient")
    drawn = figures.smallest(record, eps=0.5).data
    rows = o.where(test="smallest ε").rows
    for kind, eps in (("clean", "0"), ("static", "0.5")):
        mine = rows[(rows["training"] == kind) & (rows["eps"].astype(str) == eps)]
        for level in figures.LADDER:
            shares = (mine["smallest"].astype(float) > level).groupby(mine["model"]).mean()
            shown = drawn[(drawn["training"] == figures.TRAININGS[kind].label) & (drawn["level"] == level)]["value"]
            assert shown.item() == pytest.approx(shares.mean())
    table = figures.readings(record).frame
    up = quantities.change(record.outcomes, network=SIMPLE, test="perturbed", eps=0.5)
    assert len(table) == len(figures.READINGS)
    assert any(f": {base.percent(up.value, *up.interval(), sign='+')}" in told for told in table.iloc[:, 1])
