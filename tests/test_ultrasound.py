"""The ultrasound report's experiment: what its sets are made from, what is measured, and how claims are weighed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hpatlib import attacks, evaluation, evidence, plots, runs, settings, training, ultrasound
from hpatlib.data import ImageSet
from hpatlib.hybrid import Adversary
from hpatlib.training import Examples, Recipe, attacked

EPS = 0.25


@pytest.fixture(scope="module")
def seeds(home) -> list[runs.Run]:
    recipe = Recipe(epochs=2, batch_size=32)
    return [runs.Run("cnmc", False, 32, 160, "patient", 1 / 3, "simple_cnn", "scratch", recipe, n) for n in (0, 1)]


@pytest.fixture(scope="module")
def measured(seeds) -> ultrasound.Study:
    return ultrasound.study(seeds, (EPS,), trainings=tuple(ultrasound.TRAININGS), leaks=True)


def linear(weight: torch.Tensor) -> nn.Module:
    """Logits (0, w · x) of grey images: a model whose gradients are known."""
    layer = nn.Linear(weight.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return nn.Sequential(nn.Flatten(), layer)


def test_the_printed_formula_in_closed_form():
    weight = torch.tensor([1.0, -2.0, 0.0, 0.5])
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    # The gradient of the cross-entropy is (p − 1[y = 1]) · w, with p the probability of class 1.
    p = torch.sigmoid(0.5 * weight.sum())
    expected = torch.stack([p * weight, (p - 1) * weight]).view(2, 1, 2, 2)
    found = attacks.gradient_step(linear(weight), images, labels, eps=0.3)
    torch.testing.assert_close(found, 0.5 + 0.3 * expected)
    signed = attacks.fgsm(linear(weight), images, labels, eps=0.3)
    torch.testing.assert_close(signed, 0.5 + 0.3 * expected.sign())


def test_the_printed_formula_neither_clips_nor_knows_its_batch():
    weight = torch.full((4,), 4.0)
    images, labels = torch.ones(3, 1, 2, 2), torch.tensor([0, 0, 0])
    found = attacks.gradient_step(linear(weight), images, labels, eps=1.0)
    assert found.max() > 1
    alone = attacks.gradient_step(linear(weight), images[:1], labels[:1], eps=1.0)
    torch.testing.assert_close(found[:1], alone)


def test_the_static_set_comes_from_the_clean_model_and_stays_inside_eps(seeds, monkeypatch):
    run = replace(seeds[0], static_eps=0.125)
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


def test_a_run_has_one_kind_of_attack_training_at_most(seeds):
    fgsm = Adversary(eps=0.1, step=0.1)
    for fields, message in (
        ({"static_eps": 0.1, "adversary": fgsm}, "not both"),
        ({"static_eps": 0.0}, "static_eps must lie"),
        ({"mixbn": True}, "mixbn needs an adversary"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(seeds[0], **fields)
    assert replace(seeds[0], adversary=fgsm, mixbn=True).clean == seeds[0]


def test_repeats_share_a_split_and_nothing_else(seeds):
    first, other = (runs.train_or_load(replace(seeds[0], repeat=n), device="cpu") for n in (0, 1))
    assert first.test.fingerprint == other.test.fingerprint
    pairs = zip(first.model.parameters(), other.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_examples_are_shuffled_whole_and_keep_their_labels():
    data = Examples(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    parts = list(data.batches(4, generator=torch.Generator().manual_seed(0)))
    images, labels = (torch.cat(side) for side in zip(*parts, strict=True))
    assert [len(part[1]) for part in parts] == [4, 4, 2] and len(data) == 10
    assert sorted(labels.tolist()) == list(range(10)) != labels.tolist()
    assert torch.equal(images.flatten().long(), labels)


def test_attacked_keeps_the_order_of_the_images():
    random = np.random.default_rng(0)
    labels = np.arange(9) % 2
    images = random.integers(0, 256, (9, 1, 4, 4)).astype(np.uint8)
    data = ImageSet("toy", images, labels, labels.astype(str), ("a", "b"), False, "f")
    made = attacked(linear(torch.ones(16)), data, lambda model, images, labels: 1 - images, batch_size=4)
    torch.testing.assert_close(made.images, 1 - data.tensors()[0])
    assert made.labels.tolist() == labels.tolist()


def test_a_study_has_every_row_once(measured, seeds):
    rows = measured.rows
    keys = ["seed", "eps", "training", "metric", "on", "epoch"]
    assert not rows.duplicated(keys).any() and not rows.isna().any().any()
    accuracy = rows.query("metric == 'accuracy' and training != 'none'")
    tests = {*evaluation.TESTS, *evaluation.LEAKS}
    assert len(accuracy) == len(seeds) * len(ultrasound.TRAININGS) * len(tests) and set(accuracy["on"]) == tests
    assert rows["value"].ge(0).all() and accuracy["value"].le(1).all()
    losses = rows.query("metric == 'loss'")
    assert len(losses) == len(seeds) * len(ultrasound.TRAININGS) * seeds[0].recipe.epochs
    for (eps, training_, test), hits in measured.hits.items():
        chosen = accuracy[(accuracy["eps"] == eps) & (accuracy["training"] == training_) & (accuracy["on"] == test)]
        assert chosen["value"].tolist() == pytest.approx([h.mean() for h in hits])


def test_no_model_is_measured_twice_under_one_key(measured):
    keys = [model.provenance["key"] for model in measured.trained]
    assert len(keys) == len(set(keys)) and measured.trained[0].provenance["run"]["static_eps"] is None


def test_before_attack_training_the_perturbed_set_is_the_white_box_one(measured):
    for perturbed, whitebox in zip(
        measured.hits[EPS, "clean", "perturbed"], measured.hits[EPS, "clean", "white-box FGSM"], strict=True
    ):
        assert np.array_equal(perturbed, whitebox)


def test_noise_of_a_linear_model_tells_its_label():
    random = np.random.default_rng(1)
    labels = np.arange(40) % 2
    images = random.integers(100, 156, (40, 1, 4, 4)).astype(np.uint8)
    data = ImageSet("toy", images, labels, labels.astype(str), ("a", "b"), False, "f")
    weight = torch.tensor(random.standard_normal(16), dtype=torch.float32)
    weight -= weight.mean()  # plain grey says nothing
    source = linear(weight)
    # The noise climbs the loss, so a model that reads it answers the opposite of its source.
    found = evaluation.leak_hits(linear(-weight), source, data, eps=0.5)
    assert found["δ alone"].all()
    assert found["wrong labels: the wrong label"].all() and not found["wrong labels: the truth"].any()
    assert not evaluation.leak_hits(source, source, data, eps=0.5)["δ alone"].any()


def test_sizes_of_both_formulas(measured):
    trained = measured.trained[0]
    sizes = evaluation.formula_sizes(trained.model, trained.test, eps=0.2)
    assert sizes["sign", "largest change"].max() <= 0.2 * 255 + 1e-3
    assert (sizes["sign", "mean change"] <= sizes["sign", "largest change"]).all()
    nothing = evaluation.formula_sizes(trained.model, trained.test, eps=0.0)
    assert not nothing["sign", "largest change"].any() and not nothing["printed", "largest change"].any()


def test_intervals_over_seeds_and_images():
    mean = lambda means: means[..., 0].mean(axis=-1)  # noqa: E731
    certain = [np.ones((20, 1)), np.ones((30, 1))]
    assert evaluation.bootstrap_seeds(certain, mean) == (1.0, 1.0, 1.0)
    apart = [np.zeros((50, 1)), np.ones((50, 1))]
    value, low, high = evaluation.bootstrap_seeds(apart, mean)
    assert value == 0.5 and (low, high) == (0.0, 1.0)  # trainings differ, whatever the images say
    random = np.random.default_rng(0)
    many = [random.integers(0, 2, (400, 1)).astype(float) for _ in range(8)]
    value, low, high = evaluation.bootstrap_seeds(many, mean)
    assert low < value < high and 0.02 < high - low < 0.1  # 4 · 0.5 / √3200 = 0.035, and the seeds' own spread
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        evaluation.bootstrap_seeds([np.ones(3)], mean)


def test_the_least_of_several_comparisons():
    random = np.random.default_rng(2)
    values = [random.normal(loc=(1.0, 2.0, 3.0), size=(300, 3)) for _ in range(3)]
    each = lambda means: means.mean(axis=-2)  # noqa: E731
    ones = [evaluation.bootstrap_seeds(values, lambda means, k=k: means[..., k].mean(axis=-1)) for k in range(3)]
    least, low, high = evaluation.bootstrap_seeds(values, each)
    assert (least, low) == ones[0][:2] and ones[0][2] <= high < ones[1][0]  # upper ends allow for three comparisons
    alone = [v[:, :1] for v in values]
    assert evaluation.bootstrap_seeds(alone, each) == evaluation.bootstrap_seeds(alone, lambda m: m[..., 0].mean(-1))


def test_intervals_draw_whole_groups():
    random = np.random.default_rng(1)
    patients = random.normal(size=(20, 1))
    values, groups = patients.repeat(10, axis=0), np.arange(20).repeat(10).astype(str)
    loose, whole = evaluation.bootstrap(values), evaluation.bootstrap(values, groups)
    once = evaluation.bootstrap(patients)
    assert whole[0] == pytest.approx(once[0]) and (whole[2] - whole[1]) == pytest.approx(once[2] - once[1], rel=0.1)
    assert (loose[2] - loose[1]) < 0.5 * (whole[2] - whole[1])
    alone = np.array([f"{n:03d}" for n in range(200)])
    assert np.allclose(evaluation.bootstrap(values, alone), loose)  # a group an image: nothing changes
    seeds = [values, values]
    mean = lambda means: means[..., 0].mean(axis=-1)  # noqa: E731
    narrow, wide = evaluation.bootstrap_seeds(seeds, mean), evaluation.bootstrap_seeds(seeds, mean, [groups] * 2)
    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])
    with pytest.raises(ValueError, match="groups must name one of each image, found 3 for 200 images"):
        evaluation.bootstrap(values, groups[:3])


def constructed(cells: dict[tuple[str, str], list[float]], eps: float = 0.5, n: int = 200) -> ultrasound.Study:
    """A study whose accuracies are given: (training, test) → one share a seed."""
    hits = {(eps, *cell): [(np.arange(n) < share * n).astype(float) for share in s] for cell, s in cells.items()}
    return ultrasound.Study(pd.DataFrame(), hits, {}, [])


def test_effects_of_a_large_network():
    measured = constructed(
        {
            ("clean", "clean"): [0.7, 0.7, 0.7],
            ("static", "clean"): [0.4, 0.6, 0.8],
            ("clean", "perturbed"): [0.2, 0.2, 0.2],
            ("static", "perturbed"): [0.9, 0.9, 0.9],
        }
    )
    measured = replace(measured, ratios={0.5: np.array([[0.1, 0.2]] * 3)}, trained=[fake(600)])
    found = {e.claim: e for e in ultrasound.no_gain_effects(measured, "fig4-scratch", eps=0.5)}
    assert found["fig4-scratch-clean"].effect == pytest.approx(0.05 + 0.1)
    assert found["fig4-scratch-perturbed"].effect == pytest.approx(0.05 - 0.7)
    assert evidence.verdict([found["fig4-scratch-perturbed"]]) == "contradicted"
    assert found["fig4-scratch-spread"].effect == pytest.approx(0.1)  # 0.2 and 0, halved
    assert found["fig4-scratch-loss"].effect == pytest.approx(0.3) and found["fig4-scratch-loss"].n == 600


def fake(images: int) -> runs.Trained:
    return runs.Trained(nn.Identity(), None, None, {"data": {"train": images}})


def test_effects_of_the_simple_cnn():
    measured = constructed(
        {
            ("clean", "clean"): [0.7, 0.72],
            ("static", "clean"): [0.4, 0.42],
            ("clean", "perturbed"): [0.1, 0.1],
            ("static", "perturbed"): [0.9, 0.9],
            ("clean", "white-box FGSM"): [0.1, 0.1],
            ("static", "white-box FGSM"): [0.1, 0.1],
        }
    )
    measured = replace(measured, ratios={0.5: np.array([[0.9, 0.2]] * 2)}, trained=[fake(600)])
    found = {e.claim: e for e in ultrasound.lift_effects(measured, eps=0.5)}
    assert [found[f"fig6-{name}"].effect for name in ("lift", "drop", "loss", "whitebox")] == pytest.approx(
        [0.8, 0.3, -0.4, 0.05]
    )
    small = constructed({("static", "perturbed"): [0.6, 0.6], ("static", "clean"): [0.4, 0.42]}, eps=0.2)
    small.hits[0.2, "clean", "clean"] = measured.hits[0.5, "clean", "clean"]
    both = replace(measured, hits=measured.hits | small.hits)
    found = [e.effect for e in ultrasound.smaller_effects(both, "fig8", small=0.2, large=0.5)]
    assert found == pytest.approx([0.3, 0.05, 0.3])


def test_effects_of_the_ladder(measured):
    found = {e.claim: e for e in ultrasound.ladder_effects(measured, "sweep-small", (EPS,))}
    assert set(found) == {f"sweep-small-{name}" for name in ("static", "online", "alone", "wrong")}
    pgd = {t: np.mean([h.mean() for h in measured.hits[EPS, t, "white-box PGD"]]) for t in ultrasound.TRAININGS}
    assert found["sweep-small-static"].effect == pytest.approx(pgd["static"] - pgd["clean"])
    assert found["sweep-small-online"].effect == pytest.approx(pgd["online"] - pgd["static"])


def test_a_record_of_several_seeds_names_every_model_and_is_drawn(measured, seeds):
    chosen = replace(settings.choose("smoke", None, 0), run=seeds[0])
    record = evidence.record("ultrasound/test", chosen, measured.trained, measured.rows, [], shown=40)
    assert record.seeds == [0, 1] and "seeds 0, 1" in record.label and "a seed" in record.label
    assert len(record.provenance["models"]) == len(measured.trained)
    assert "and 7 more" in evidence.stamp(record).to_string(max_colwidth=None)
    for figure in (
        plots.ultrasound.attack_training(record, eps=EPS),
        plots.ultrasound.losses(record, eps=EPS),
        plots.ultrasound.ladder(record),
    ):
        assert "seeds 0, 1" in figure.caption and "SimpleCNN (scratch)" in figure.alt
    accuracy = measured.rows.query("metric == 'accuracy' and training == 'static' and on == 'perturbed'")["value"]
    assert (
        f"perturbed {accuracy.mean():.2f} ± {accuracy.std():.2f}"
        in plots.ultrasound.attack_training(record, eps=EPS).alt
    )
    table = plots.ultrasound.accuracies([record], eps=EPS).frame
    assert table["seeds"].tolist() == [2, 2, 2]


def test_the_literal_chapters_rows_and_picture(seeds):
    measured, effects = ultrasound.literal(seeds, (0.1, 0.5))
    assert [e.claim for e in effects] == ["fig2-invisible", "fig2-harmless"]
    assert len(measured.rows) == len(seeds) * 3 * 2 * 3
    chosen = replace(settings.choose("smoke", None, 0), run=seeds[0])
    record = evidence.record("ultrasound/test", chosen, measured.trained, measured.rows, effects, shown=40)
    assert "at ε = 0.5" in plots.ultrasound.formulas(record).alt
    picture = np.full((2, 1, 4, 4), 0.5)
    picture[1] += 0.1
    assert "noisy 25.5" in plots.panels({"row": picture}, ["image", "noisy"], record).alt


@pytest.mark.parametrize("profile", settings.ULTRASOUND)
def test_settings_are_the_reports(profile):
    chosen, printed = settings.ultrasound(profile, None, 3), evidence.published("ultrasound")
    assert (chosen.run.recipe.batch_size, chosen.run.test) == (
        printed["batch_size"]["value"],
        printed["test_share"]["value"],
    )
    # The smallest profile, which no evidence comes from, stops sooner.
    assert chosen.run.recipe.epochs == (6 if profile == "smoke" else printed["epochs"]["value"])
    assert chosen.run.recipe.decay == 1 and chosen.run.dataset == "busi"
    assert [run.seed for run in chosen.small] == list(range(3, 3 + chosen.chosen.seeds))
    assert all(run.model == "simple_cnn" for run in chosen.small) and len(chosen.large) == len(chosen.chosen.large)
    reported = {printed[f"eps_{name}"]["value"] for name in ("small", "middle", "large")}
    assert set(chosen.chosen.ladder) >= (reported if profile != "smoke" else {0.05, 0.5})
    with pytest.raises(ValueError, match="choose one of smoke, laptop, study, paper"):
        settings.ultrasound("huge", None, 0)
