"""The leukemia paper's experiment: environments are what their names say, cells add up, claims point the right way."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from hpatlib import attacks, data, evaluation, evidence, leukemia, plots, runs, settings, training
from hpatlib.hybrid import Adversary, environment, fixed, pixel_and_rotation
from hpatlib.mixbn import strip
from hpatlib.models import build
from hpatlib.training import Recipe


@pytest.fixture(scope="module")
def chosen(home) -> settings.Settings:
    """The smoke settings, smaller still."""
    smoke = settings.choose("smoke", None, 0)
    run = replace(smoke.run, count=96, recipe=Recipe(epochs=2, batch_size=32))
    profile = replace(smoke.chosen, train_searches=3, searches=4, splits=("patient", "image"))
    return replace(smoke, run=run, chosen=profile, shown=12)


@pytest.fixture(scope="module")
def measured(chosen) -> leukemia.Study:
    ends = leukemia.places(chosen)[::6]
    given = {"shown": chosen.shown, "searches": chosen.chosen.searches, "readings": ["searched"], "all_clean": True}
    return leukemia.study(leukemia.ablation(chosen), ends, **given)


def test_environments_are_pgd_then_one_transform_or_the_worst(model, images, labels):
    class Held:
        """Six images as a data set."""

        def __len__(self):
            return len(images)

        def batches(self, batch_size, device="cpu"):
            yield images, labels

    places = [environment(0, size=16), environment(2, size=16), pixel_and_rotation(2, 0), pixel_and_rotation(0, 60)]
    found = evaluation.environments(model, Held(), places, searches=6, seed=3)
    clean = evaluation.logits(model, images)
    assert torch.equal(found["H0", "fixed"], clean) and torch.equal(found["H0", "searched"], clean)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    pixel = attacks.pgd(
        model, images, labels, eps=2 / 255, step=1 / 255, iterations=2, start="gaussian", generator=generator
    )
    assert torch.equal(found["2/255, 0°", "searched"], evaluation.logits(model, pixel))
    shift = 4 * 16 / 300
    turned = fixed(model, pixel, labels, s=(shift, shift, 60.0))
    torch.testing.assert_close(found["H2", "fixed"], evaluation.logits(model, turned))
    still = fixed(model, images, labels, s=(0.0, 0.0, 60.0))
    torch.testing.assert_close(found["0/255, 60°", "fixed"], evaluation.logits(model, still))
    loss = {key: torch.nn.functional.cross_entropy(answer, labels) for key, answer in found.items()}
    # The search starts from the untouched picture, so it is never milder than PGD alone.
    assert loss["H2", "searched"] >= loss["2/255, 0°", "fixed"] - 1e-6
    alone = evaluation.environments(model, Held(), places[1:2], searches=6, seed=3)
    assert all(torch.equal(alone[key], found[key]) for key in alone)  # whatever else was asked for
    with pytest.raises(ValueError, match="unknown reading"):
        evaluation.environments(model, Held(), places, readings=("worst",))


def test_the_grid_covers_figure_5(chosen):
    full = replace(chosen, chosen=replace(chosen.chosen, grid_step=1))
    cells = leukemia.grid(full)
    assert len(cells) == 49 and len({cell.name for cell in cells}) == 49
    assert {round(255 * cell.eps) for cell in cells} == set(range(7))
    assert {cell.box.rotation for cell in cells} == {0, 30, 60, 90, 120, 150, 180}
    assert all(cell.box.translation == 0 and cell.s[:2] == (0, 0) for cell in cells)


def test_strategies_are_the_documents(chosen):
    full = settings.choose("paper", "real", 0)
    adversaries = full.adversaries
    assert (
        list(adversaries) == ["Standard", "Adv_FGSM", "Adv_PGD", "Adv_RT", "Adv_h"] and adversaries["Standard"] is None
    )
    hybrid_ = adversaries["Adv_h"]
    assert (hybrid_.eps, hybrid_.step, hybrid_.iterations, hybrid_.start) == (6 / 255, 1 / 255, 6, "gaussian")
    assert (hybrid_.rotation, hybrid_.translation, hybrid_.evaluations) == (180, 12, 100)
    assert adversaries["Adv_RT"] == replace(hybrid_, eps=0, step=0, iterations=1, start=None)
    assert full.run.recipe == Recipe(epochs=20, batch_size=16, lr=1e-3, decay=0.1)
    names = leukemia.ablation(chosen)
    assert [name.removesuffix("+MixBN") for name in names][::2] == list(leukemia.ABLATED)
    assert all(run.mixbn == ("+" in name) for name, runs_ in names.items() for run in runs_)
    assert {run.split_by for runs_ in names.values() for run in runs_} == {"patient", "image"}
    shared = [run for runs_ in leukemia.strategies(chosen).values() for run in runs_]
    assert all(run in shared for name, runs_ in names.items() if "+" not in name for run in runs_)


def test_each_cell_is_measured_through_its_branch(chosen, measured):
    assert len(measured.rows) == 2 * 2 * 9 * 2  # splits, seeds, branches, inputs
    run = leukemia.ablation(chosen)["Adv_PGD+MixBN"][0]
    trained = runs.train_or_load(run)
    places = leukemia.places(chosen)[6:]
    few = evaluation.sample(trained.test, chosen.shown)
    for side in ("clean", "adv"):
        plain = strip(trained.model, side)
        answer = evaluation.environments(plain, few, places, searches=4, readings=["searched"])["H6", "searched"]
        right = (answer.argmax(dim=1).numpy() == few.labels).mean()
        rows = measured.rows.query("name == 'Adv_PGD+MixBN' and branch == @side and seed == 0 and split == 'patient'")
        assert rows.query("reading == 'searched'")["ACC"].item() == pytest.approx(right)
        cell = ("patient", f"Adv_PGD+MixBN, {side} branch", "H6", "searched")
        assert measured.outcomes[cell][0][:, 0].mean() == pytest.approx(right)


def test_metrics_from_means_are_scikit_learns(measured, chosen):
    cells = [("patient", "Adv_RT", place, reading) for place, reading in (("H0", "clean"), ("H6", "searched"))]
    for cell in cells:
        values = measured.values(cell)
        means = np.stack([v.mean(axis=0) for v in values])  # [S, 6]
        found = leukemia._metrics(means)
        rows = measured.rows.query("name == 'Adv_RT' and split == 'patient' and environment == @cell[2]")
        for ours, column in (
            ("ACC", "ACC"),
            ("PRE", "binary PRE"),
            ("F1", "binary F1"),
            ("AUC", "AUC"),
            ("ROI", "ROI"),
        ):
            np.testing.assert_allclose(found[ours][:, 0], rows[column], err_msg=ours)
    generator = torch.Generator().manual_seed(0)
    labels, after = torch.arange(20) % 2, torch.randn(20, 2, generator=generator)
    row, guess = leukemia._scores(labels, after, after), after.argmax(dim=1)
    assert row["binary F1"] == pytest.approx(metrics.f1_score(labels, guess)) and row["ROI"] == 1
    assert row["macro PRE"] == pytest.approx(metrics.precision_score(labels, guess, average="macro"))


def made_up(cells: dict[tuple[str, str, str, str], float], n: int = 40, seeds: int = 3) -> leukemia.Study:
    """A study whose cells have a given share of right, and of unchanged, answers; half of the images are malignant."""
    outcomes, areas = {}, {}
    for cell, share in cells.items():
        truth = np.arange(n) % 2
        right = (np.arange(n) // 2 < share * n / 2).astype(float)
        columns = [right, right * truth, (1 - right) * (1 - truth), (1 - right) * truth, right]
        outcomes[cell] = [np.stack(columns, axis=1)] * seeds
        areas[cell] = [share] * seeds
    return leukemia.Study(pd.DataFrame(), outcomes, areas, [])


def by_claim(effects: list[evidence.Effect]) -> dict[str, float]:
    known = {claim.id for claim in evidence.claims()}
    assert all(effect.claim in known and effect.low <= effect.effect <= effect.high for effect in effects)
    return {effect.claim: effect.effect for effect in effects}


def test_effects_point_the_way_the_claims_say(chosen):
    names = list(chosen.adversaries)
    cells = {("patient", name, "H0", "clean"): 0.9 for name in names}
    for reading in leukemia.READINGS:
        ends = {"Standard": 0.2, "Adv_FGSM": 0.4, "Adv_PGD": 0.5, "Adv_RT": 0.5, "Adv_h": 0.85}
        cells |= {("patient", name, "H6", reading): share for name, share in ends.items()}
    effects = by_claim(leukemia.strategy_effects(made_up(cells), chosen))
    for reading in leukemia.READINGS:
        assert effects[f"fig4-standard-{reading}"] == pytest.approx(0.5)
        assert effects[f"fig4-flat-{reading}"] == pytest.approx(0.05)
        assert effects[f"fig4-acc-{reading}"] == effects[f"fig4-roi-{reading}"] == pytest.approx(0.35)

    networks = list(leukemia.networks(chosen))
    cells = {("patient", name, "H0", "clean"): 0.9 for name in networks}
    cells |= {("patient", name, "H6", reading): 0.3 for name in networks for reading in leukemia.READINGS}
    effects = by_claim(leukemia.vulnerability_effects(made_up(cells), chosen))
    assert effects["fig3-accuracy-fixed"] == pytest.approx(0.4) and effects["fig3-roi-searched"] == pytest.approx(0.5)

    cells = {("patient", name, "H0", "clean"): share for name, share in zip(networks, (0.6, 0.8), strict=True)}
    assert leukemia.table1_effects(made_up(cells), chosen) == []  # from scratch, they are not the document's networks
    pretrained = replace(
        chosen, chosen=replace(chosen.chosen, large=(("resnet50", "imagenet"), ("efficientnet_b3", "imagenet")))
    )
    cells = {("patient", n, "H0", "clean"): s for n, s in zip(leukemia.networks(pretrained), (0.6, 0.8), strict=True)}
    effects = by_claim(leukemia.table1_effects(made_up(cells), pretrained))
    assert effects == pytest.approx({"table1-best-acc": 0.2, "table1-best-auc": 0.2})

    places = leukemia.grid(chosen)
    ends = {
        ("Adv_h", "fixed"): 0.9,
        ("Standard", "fixed"): 0.5,
        ("Adv_h", "searched"): 0.6,
        ("Standard", "searched"): 0.5,
    }
    cells = {("patient", name, p.name, reading): share for (name, reading), share in ends.items() for p in places}
    effects = by_claim(leukemia.grid_effects(made_up(cells), chosen, places))
    assert effects == pytest.approx({"fig5-roi-fixed": 0.4, "fig5-roi-searched": 0.1})


def test_effects_of_mixbn_take_the_smallest_gain_and_the_splits_differ(chosen):
    cells = {}
    for name in leukemia.ABLATED:
        for split, share in (("patient", 0.6), ("image", 0.8)):
            cells[split, name, "H0", "clean"] = share
        cells["patient", name, "H6", "searched"] = 0.4
        cells["patient", f"{name}+MixBN, clean branch", "H0", "clean"] = 0.7
        cells["patient", f"{name}+MixBN, adv branch", "H6", "searched"] = 0.3
    effects = by_claim(leukemia.mixbn_effects(made_up(cells), chosen))
    assert effects["table2-adv_h-clean"] == pytest.approx(0.1)
    assert effects["table2-adv_pgd-adv"] == pytest.approx(-0.1)
    assert effects["table2-split"] == pytest.approx(0.2)


def test_seeds_are_averaged_before_the_smallest_gain(chosen):
    """Metrics that gain on average have gained, however they take turns in falling behind."""
    cells = {}
    for name in leukemia.ABLATED:
        cells |= {(split, name, "H0", "clean"): 0.6 for split in ("patient", "image")}
        cells["patient", name, "H6", "searched"] = cells["patient", f"{name}+MixBN, adv branch", "H6", "searched"] = 0.4
        cells["patient", f"{name}+MixBN, clean branch", "H0", "clean"] = 0.7
    study = made_up(cells, seeds=2)
    up = ("patient", "Adv_h+MixBN, clean branch", "H0", "clean")
    study.areas[up] = [0.5, 0.9]  # the AUC: below 0.6 in one seed, above it on average
    study.outcomes[up] = [made_up({up: share}).outcomes[up][0] for share in (0.85, 0.55)]  # the others: the other way
    effects = by_claim(leukemia.mixbn_effects(study, chosen))
    assert effects["table2-adv_h-clean"] == pytest.approx(0.1)


def test_records_and_figures_of_table_2(chosen, measured):
    effects = leukemia.mixbn_effects(measured, chosen)
    record = evidence.record("hpat/table2_mixbn", chosen, measured.trained, measured.rows, effects, shown=chosen.shown)
    assert {effect.claim for effect in record.effects} <= {
        c.id for c in evidence.claims() if c.chapter == record.chapter
    }
    figure, table = plots.leukemia.mixbn(record), plots.leukemia.ablation([record])
    assert "split by image" in figure.alt and "Adv_h" in figure.alt
    frame = table.frame
    assert (frame["source"] == "the document").sum() == 6 and len(frame) == 6 + 2 * 9 * 2
    assert frame[frame["source"] == "the document"]["ACC"].tolist()[:2] == ["68.4", "70.2"]


def test_published_tables_are_the_documents_and_unknown_ones_are_refused():
    table = evidence.published_table("hpat", "table1")
    assert table.loc["efficientnet_b3"].tolist() == pytest.approx([0.84524, 0.83989, 0.82373, 0.91681])
    assert table["ACC"].idxmax() == "efficientnet_b3" and table["ACC"].idxmin() == "seresnext50_32x4d"
    with pytest.raises(ValueError, match="no table 'table3' of 'hpat': choose one of table1, table2"):
        evidence.published_table("hpat", "table3")


def test_algorithm_1_step_by_step_adds_up(chosen):
    walk = leukemia.walk(leukemia.ablation(chosen)["Adv_h+MixBN"][0], batch=6, searches=8)
    images = walk.images
    assert (images["A_ε(X)"] - images["X"]).abs().max() <= 6 / 255 + 1e-6
    assert walk.tied["mix"] == 0 and 0 <= walk.tied["sum"] <= 1
    lines = walk.rows.set_index("what")["result"]
    passes = walk.rows.query("what == 'forward passes an image'")["result"].astype(float).tolist()
    # 6 of PGD and 8 of STBO, whose first answer is checked on one image; as printed, after each of the 6 steps.
    assert passes == pytest.approx([6 + 8 + 1 / 6, 6 * (1 + 8 + 1 / 6)], abs=0.06)
    assert "6.00/255" in lines["PGD, 6 steps of 1/255"]
    assert len(walk.louder) == 6 and plots.leukemia.framework(walk, _record(chosen, walk)).alt


def _record(chosen, walk):
    effects = leukemia.walk_effects(walk)
    return evidence.record("hpat/fig2_framework", chosen, walk.trained, walk.rows, effects, shown=6)


def test_hybrid_training_makes_phantom_cells_robust_to_hybrid_perturbations():
    """With the same steps of the same network, from the same start, over several seeds."""
    place, gains = environment(3, size=32), []
    adversary = Adversary(
        eps=place.eps,
        step=place.step,
        iterations=place.iterations,
        start="gaussian",
        translation=place.box.translation,
        rotation=place.box.rotation,
        evaluations=4,
    )
    for seed in range(3):
        train, test = data.split(data.load("cnmc", real=False, size=32, count=384, seed=seed), by="patient", seed=seed)
        robust = {}
        for name, attack in (("standard", None), ("hybrid", adversary)):
            torch.manual_seed(seed)
            model = build("simple_cnn_bn", 2, weights="scratch")
            training.fit(model, train, Recipe(epochs=6, batch_size=32, decay_every=5), attack=attack, seed=seed)
            answers = evaluation.environments(model, evaluation.sample(test, 96), [place], searches=20, seed=seed)
            labels = evaluation.sample(test, 96).labels
            robust[name] = (answers["H3", "searched"].argmax(dim=1).numpy() == labels).mean()
        gains.append(robust["hybrid"] - robust["standard"])
    assert min(gains) > 0 and np.mean(gains) > 0.15, gains
