"""The assimilation slides' experiment: what is compared, what is measured, and how claims are weighed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hpatlib import attacks, checks, evidence, plots, runs, settings, transfer
from hpatlib.data import ImageSet
from hpatlib.evaluation import logits, sample
from hpatlib.training import Recipe

LADDER = (2 / 255, 8 / 255)
EFFORT = transfer.Effort(iterations=2, restarts=2, queries=4)
SHOWN = 12
NETWORK = ("simple_cnn", "scratch")


@pytest.fixture(scope="module")
def networks(home) -> list[list[runs.Run]]:
    recipe = Recipe(epochs=2, batch_size=32, patience=1)
    run = runs.Run("chest_ct", False, 32, 64, "patient", 1 / 5, *NETWORK, recipe, 0, front="replicated")
    return [[replace(run, seed=seed) for seed in (0, 1)]]


@pytest.fixture(scope="module")
def swept(networks) -> transfer.Study:
    return transfer.study(networks, LADDER, shown=SHOWN, effort=EFFORT)


@pytest.fixture(scope="module")
def survived(networks) -> transfer.Study:
    return transfer.survival(networks, eps=LADDER[0], shown=SHOWN, effort=EFFORT)


@pytest.fixture(scope="module")
def painted(networks) -> transfer.Study:
    return transfer.textures(networks, shown=SHOWN)


def chosen(networks) -> settings.Settings:
    own = settings.assimilation("smoke", None, 0)
    return replace(own, run=networks[0][0], chosen=replace(own.chosen, ladder=LADDER))


def test_trainings_differ_in_nothing_but_what_they_compare(networks):
    run = networks[0][0]
    vanilla, assimilated, without = (transfer.trained_as(run, name) for name in transfer.TRAININGS)
    assert vanilla == run and vanilla.objective is None
    assert replace(assimilated, front="replicated", objective=None) == vanilla
    assert replace(without, objective=assimilated.objective) == assimilated
    assert assimilated.objective.alpha == settings.ALPHA and without.objective.alpha == 1
    with pytest.raises(ValueError, match="choose one of vanilla, assimilated, without GLCM loss"):
        transfer.trained_as(run, "solid")


@pytest.mark.parametrize(("size", "window"), [(32, 16), (39, 19), (40, 20), (64, 20), (224, 20)])
def test_at_least_two_by_two_windows(size, window):
    loss = transfer.texture_loss(size)
    assert loss.window == window and loss.distance == 3 and loss.angles == 8
    assert loss.textures(torch.rand(1, 1, size, size)).shape[1] == (size // window) ** 2 >= 4


def test_a_window_must_hold_pairs():
    with pytest.raises(ValueError, match="at least 8 px"):
        transfer.texture_loss(7)


def test_small_images_leave_out_the_costly_feature(networks):
    run = networks[0][0]
    used = {size: transfer.trained_as(replace(run, size=size), "assimilated").objective.texture for size in (32, 64)}
    assert "asm" not in used[32].features and len(used[32].features) == 4
    assert used[64] == transfer.texture_loss(64)


def test_vanilla_and_assimilated_start_identical(networks):
    models = []
    for name in transfer.TRAININGS:
        run = transfer.trained_as(networks[0][0], name)
        images = runs.data.load(run.dataset, real=False, size=run.size, count=4, seed=run.seed)
        torch.manual_seed(run.seed)
        models.append(runs._build(run, images, run.weights))
    x = images.tensors()[0][:4]
    for model in models[1:]:
        torch.testing.assert_close(logits(model, x), logits(models[0], x))
        for a, b in zip(model.network.parameters(), models[0].network.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_study_has_every_row_once(swept, networks):
    rows = swept.rows[swept.rows["accuracy"].notna()].dropna(axis=1)
    columns = ["dataset", "model", "weights", "training", "attack", "eps", "seed", "iterations", "accuracy", "n"]
    assert list(rows) == columns and (rows["iterations"] == EFFORT.iterations).all()
    assert not rows.duplicated(["training", "attack", "eps", "seed"]).any() and not rows.isna().any().any()
    assert len(rows) == 2 * len(transfer.TRAININGS) * (1 + len(transfer.ATTACKS) * len(LADDER))
    assert rows["eps"].between(0, 1).all() and rows["accuracy"].between(0, 1).all() and (rows["n"] == SHOWN).all()
    for row in rows.itertuples():
        hits = swept.hits["chest_ct", NETWORK, row.training, row.attack, row.eps][int(row.seed)]
        assert row.accuracy == hits.mean()


def test_all_trainings_of_a_seed_see_the_same_test_images(swept):
    for seed in (0, 1):
        mine = [t for t in swept.trained if t.provenance["run"]["seed"] == seed]
        assert len(mine) == len(transfer.TRAININGS) and len({t.test.fingerprint for t in mine}) == 1


def test_hits_equal_a_direct_computation(swept):
    model = next(t for t in swept.trained if t.provenance["run"]["front"] == "assimilated")
    x, y = sample(model.test, SHOWN).tensors()
    eps = LADDER[1]
    whole = {"eps": eps, "step": eps / 4, "iterations": EFFORT.iterations}
    draws = torch.Generator().manual_seed(0)  # anew for each ε: it must not hang on which others are asked for
    expected = {
        "FGSM": attacks.fgsm(model.model, x, y, eps=eps),
        "BIM": attacks.bim(model.model, x, y, **whole),
        "MI-FGSM": attacks.mifgsm(model.model, x, y, **whole),
        "PGD": attacks.pgd(model.model, x, y, **whole, generator=draws),
    }
    for attack, pictures in expected.items():
        right = (model.model(pictures).argmax(dim=1) == y).double().numpy()
        assert np.array_equal(swept.hits["chest_ct", NETWORK, "assimilated", attack, eps][0], right), attack
        assert (pictures - x).abs().max() <= eps + 1e-6 and pictures.shape[1] == 1


def test_the_attack_goes_through_both_modules(swept):
    model = next(t for t in swept.trained if t.provenance["run"]["front"] == "assimilated").model
    x, y = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    whole = attacks.gradient(model, x, y)
    behind = attacks.gradient(model.network, model.colour_image(x).detach(), y).sum(dim=1, keepdim=True)
    assert not torch.allclose(whole, behind)


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return nn.Sequential(nn.Flatten(), layer)


def test_a_linear_model_falls_exactly_where_its_distance_is_below_eps():
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0])
    grey = np.full((4, 1, 2, 2), 128, np.uint8)
    grey[:, 0, 0, 0] += np.array([1, 4, 9, 16], np.uint8)  # logit s / 255, and ‖w‖₁ = 4: falls from ε = s / 1020
    labels = np.ones(4, int)
    images = ImageSet("toy", grey, labels, labels.astype(str), ("a", "b"), False, "f")
    found = transfer.attacked_hits(linear(weight), images, (2 / 255, 3 / 255), iterations=4)
    assert found["none", 0.0].tolist() == [1, 1, 1, 1]
    for attack in ("FGSM", "BIM", "MI-FGSM"):
        assert found[attack, 2 / 255].tolist() == [0, 0, 1, 1] and found[attack, 3 / 255].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("ladder", [(), (0.0,), (8,)])
def test_a_ladder_without_meaning_is_refused(ladder, swept):
    with pytest.raises(ValueError, match=r"ladder must hold ε in \(0, 1\]"):
        transfer.attacked_hits(swept.trained[0].model, swept.trained[0].test, ladder)


def test_survival_has_its_rows_and_checks(survived):
    rows = survived.rows
    accuracy, found = rows[rows["accuracy"].notna()], rows[rows["check"].notna()]
    assert len(accuracy) == 2 * 2 * len(transfer.WORST) and set(accuracy["training"]) == set(transfer.PAIR)
    assert list(found["check"]) == [check.name for check in checks.CHECKS] * 2
    assert set(found["training"]) == set(transfer.PAIR) and set(found["seed"]) == {0} and (found["n"] == SHOWN).all()
    assert (accuracy["queries"] == EFFORT.queries).all() and (accuracy["restarts"] == EFFORT.restarts).all()
    assert set(found["verdict"]) <= {"raised", "unclear", "not raised"}
    for (_, _, training, attack, eps), hits in survived.hits.items():
        worst = survived.hits["chest_ct", NETWORK, training, "worst of all", eps]
        assert attack in transfer.WORST and all((w <= h).all() for w, h in zip(worst, hits, strict=True))


def test_the_worst_case_counts_every_attack_inside_the_budget_and_none_outside():
    eps = 2 / 255
    n = np.ones(6)
    miss = [np.where(np.arange(6) == k, 0.0, 1.0) for k in range(6)]
    found = checks.Evidence(
        labels=np.zeros(6, int),
        zero_gradient=n,
        fgsm=miss[0],
        pgd=miss[1],
        transfer=miss[2],
        square=miss[3],
        budgets=(eps / 2, eps, 2 * eps, 0.5),
        by_budget=np.stack([miss[4], miss[1], miss[5], 0 * n], axis=1),
    )
    worst = transfer.worst_cases(found, eps)
    assert worst["worst of all", eps].tolist() == [0, 0, 0, 0, 0, 1]
    assert np.array_equal(worst["transferred PGD", eps], miss[2]) and np.array_equal(worst["Square", eps], miss[3])


def test_textures_are_those_of_the_loss_itself(painted):
    model = next(t for t in painted.trained if t.provenance["run"]["objective"]["alpha"] < 1)
    x, _ = sample(model.test, SHOWN).tensors()
    with torch.no_grad():
        expected = transfer.texture_loss(32)(model.model.colour_image(x), x)
    assert painted.distances["chest_ct", "assimilated"][0].mean() == pytest.approx(float(expected), rel=1e-5)
    rows = painted.rows.query("training == 'assimilated' and seed == 0 and metric == 'texture'")
    assert rows["value"].item() == pytest.approx(float(expected), rel=1e-5)
    assert len(painted.rows) == 2 * 2 * 8 and not painted.rows.isna().any().any()


def test_models_train_with_gradients_whichever_chapter_comes_first(networks, monkeypatch):
    load, seen = transfer.train_or_load, []
    monkeypatch.setattr(transfer, "train_or_load", lambda run: (seen.append(torch.is_grad_enabled()), load(run))[1])
    transfer.textures([networks[0][:1]], shown=2)
    transfer.pictures(networks[0][0])
    assert seen == [True] * 4


def constructed(shares: dict[tuple[str, str, float], list[float]], n: int = 200, **more) -> transfer.Study:
    """A study whose accuracies are given: (training, attack, ε) → one share a seed."""
    hits = {
        ("chest_ct", NETWORK, *cell): [(np.arange(n) < share * n).astype(float) for share in given]
        for cell, given in shares.items()
    }
    seeds = max([len(given) for given in shares.values()], default=2)
    groups = {"chest_ct": {seed: np.array(more.get("groups", np.arange(n))) for seed in range(seeds)}}
    return transfer.Study(pd.DataFrame(), hits, [], more.get("distances", {}), groups)


def margins(assimilated: float, vanilla: float, groups=None, **other: tuple[float, float]) -> transfer.Study:
    shares = {}
    for attack in transfer.ATTACKS:
        for eps in LADDER:
            a, v = other.get(f"{attack}{round(255 * eps)}", (assimilated, vanilla))
            shares["assimilated", attack, eps], shares["vanilla", attack, eps] = [a, a], [v, v]
    return constructed(shares, **({} if groups is None else {"groups": groups}))


def test_effects_have_the_signs_of_the_margins():
    found = {e.claim: e for e in transfer.margin_effects(margins(0.8, 0.5), "chest_ct", LADDER)}
    assert set(found) == {f"assimilation-chest-ct-{name}" for name in ("bim", "mifgsm", "pgd", "everywhere")}
    assert [e.effect for e in found.values()] == pytest.approx([0.3] * 4)
    assert all(evidence.verdict([e]) == "supported" for e in found.values())
    found = transfer.margin_effects(margins(0.5, 0.8), "chest_ct", LADDER)
    assert [e.effect for e in found] == pytest.approx([-0.3] * 4)
    assert all(evidence.verdict([e]) == "contradicted" for e in found)


def test_one_epsilon_without_a_margin_denies_it_everywhere():
    measured = margins(0.8, 0.5, BIM8=(0.3, 0.5))
    found = {e.claim.rsplit("-", 1)[1]: e.effect for e in transfer.margin_effects(measured, "chest_ct", LADDER)}
    assert found == pytest.approx({"bim": 0.05, "mifgsm": 0.3, "pgd": 0.3, "everywhere": -0.2})


def test_a_floor_decides_nothing():
    floored = margins(0.8, 0.5, BIM8=(0.0, 0.0))
    found = {e.claim.rsplit("-", 1)[1]: e for e in transfer.margin_effects(floored, "chest_ct", LADDER)}
    assert evidence.verdict([found["bim"]]) == "supported" and found["everywhere"].effect == 0
    assert evidence.verdict([found["everywhere"]]) == "inconclusive"


def test_a_margin_in_every_cell_is_not_denied_by_noise():
    random, verdicts = np.random.default_rng(0), []
    for _ in range(10):  # the least of many noisy margins lies below the true one, 0.04 in every cell
        cells = [(attack, eps) for attack in transfer.ITERATED for eps in np.arange(1, 9) / 255]
        hits = {
            ("chest_ct", NETWORK, t, *cell): [(random.random(96) < p).astype(float) for _ in range(3)]
            for cell in cells
            for t, p in (("assimilated", 0.54), ("vanilla", 0.50))
        }
        groups = {"chest_ct": {seed: np.arange(96) for seed in range(3)}}
        measured = transfer.Study(pd.DataFrame(), hits, [], {}, groups)
        effect = transfer.margin_effects(measured, "chest_ct", np.arange(1, 9) / 255)[-1]
        assert effect.low <= effect.effect <= effect.high
        verdicts.append(evidence.verdict([effect]))
    assert "contradicted" not in verdicts


def test_intervals_draw_whole_patients():
    loose, patients = margins(0.8, 0.5), margins(0.8, 0.5, groups=np.arange(200) // 20)
    widths = [e.high - e.low for m in (loose, patients) for e in transfer.margin_effects(m, "chest_ct", LADDER)[:1]]
    assert widths[1] > 2 * widths[0]


def test_signs_on_the_ladder():
    steady = transfer.ladder_signs(margins(0.4, 0.2, FGSM2=(0.5, 0.5), FGSM8=(0.5, 0.1)), LADDER)
    found = steady.set_index(["training", "check"])["value"]
    assert found["assimilated", "FGSM beats PGD"] == pytest.approx(-0.1)
    assert found["vanilla", "FGSM beats PGD"] == pytest.approx(0.1) and found["vanilla", "PGD rises along ε"] == 0
    rising = transfer.ladder_signs(margins(0.8, 0.5, PGD2=(0.2, 0.5)), LADDER).set_index(["training", "check"])
    assert rising.loc[("assimilated", "PGD rises along ε"), "value"] == pytest.approx(0.6)
    assert rising.loc[("assimilated", "PGD rises along ε"), "verdict"] == "raised"
    assert rising.loc[("vanilla", "PGD rises along ε"), "verdict"] == "not raised"


def test_networks_are_averaged_before_the_smallest_margin():
    measured = margins(0.8, 0.5, BIM8=(0.3, 0.5))
    other = {(d, ("resnet18", "scratch"), *rest): [1 - h for h in hit] for (d, _, *rest), hit in measured.hits.items()}
    both = replace(measured, hits=measured.hits | other)
    assert [e.effect for e in transfer.margin_effects(both, "chest_ct", LADDER)] == pytest.approx([0.0] * 4)


def test_fgsm_is_an_outlier_where_it_stays_up():
    up = margins(0.8, 0.1, FGSM2=(0.8, 0.5), FGSM8=(0.8, 0.52))
    flat, above = (e.effect for e in transfer.outlier_effects(up, "chest_ct", LADDER))
    assert flat == pytest.approx(0.05 + 0.02) and above == pytest.approx(0.42)
    down = margins(0.8, 0.1, FGSM2=(0.8, 0.5), FGSM8=(0.8, 0.05))
    flat, above = (e.effect for e in transfer.outlier_effects(down, "chest_ct", LADDER))
    assert flat == pytest.approx(0.05 - 0.45) and above == pytest.approx(-0.05)


def test_effects_of_survival_and_texture():
    worst = constructed(
        {("assimilated", "worst of all", 0.1): [0.2, 0.2], ("vanilla", "worst of all", 0.1): [0.3, 0.3]}
    )
    assert transfer.survival_effect(worst, "chest_ct", 0.1).effect == pytest.approx(-0.1)
    sides = {"assimilated": 0.2, "without GLCM loss": 1.5}
    distances = {("chest_ct", name): [np.full(9, value)] * 2 for name, value in sides.items()}
    effect = transfer.texture_effect(constructed({}, n=9, distances=distances), "chest_ct")
    assert effect.effect == pytest.approx(1.3) and effect.claim == "assimilation-chest-ct-texture"


def test_what_was_not_measured_is_refused(swept):
    with pytest.raises(ValueError, match="nothing was measured on 'brain_mri'"):
        swept.values("brain_mri", transfer.PAIR, [("PGD", LADDER[0])])


def test_studies_combine_without_repeating_models(swept, survived):
    both = transfer.combine(swept, survived)
    assert len(both.trained) == 6 and len(both.rows) == len(swept.rows) + len(survived.rows)
    assert set(both.hits) == set(swept.hits) | set(survived.hits)


def test_every_claim_has_a_chapter_and_every_effect_a_claim():
    mine = [claim for claim in evidence.claims() if claim.id.startswith("assimilation-")]
    assert len(mine) == 4 * 5 + 2 + 2 and len({claim.id for claim in mine}) == len(mine)


def test_the_slides_settings_are_the_paper_profiles():
    printed, paper = evidence.published("assimilation"), settings.assimilation("paper", "phantom", 0)
    recipe, loss = paper.run.recipe, transfer.texture_loss(paper.size)
    here = [recipe.lr, recipe.batch_size, recipe.epochs, recipe.patience, paper.size, len(paper.large)]
    names = ("learning_rate", "batch_size", "epochs", "patience", "input_size", "models")
    assert here == [printed[name]["value"] for name in names]
    window, distance, angles = (printed[f"glcm_{name}"]["value"] for name in ("window", "distance", "orientations"))
    assert (loss.window, loss.distance, loss.angles) == (window, distance, angles)
    assert max(paper.chosen.ladder) == printed["strengths"]["value"] / 255


def test_records_and_pictures(swept, survived, painted, networks):
    both, own = transfer.combine(swept, survived), chosen(networks)
    record = evidence.record("assimilation/test", own, both.trained, both.rows, [], shown=SHOWN)
    assert not any(value != value for row in record.rows for value in row.values())
    path = next(evidence.Path(evidence.os.environ["HPAT_RECORDS"]).glob("assimilation/test/*.json"))
    assert evidence.read(path) == record
    for figure in (plots.transfer.strengths(record), plots.transfer.survival(record)):
        assert "seeds 0, 1" in figure.caption and "chest CT, SimpleCNN (scratch)" in figure.alt
    mean = swept.rows.query("training == 'vanilla' and attack == 'BIM' and eps > 0.02")["accuracy"].mean()
    assert f"{mean:.2f} at 8" in plots.transfer.strengths(record).alt
    assert len(plots.transfer.masking([record]).frame) == 2 * len(checks.CHECKS) + 2 * len(transfer.TRAININGS)
    assert "2 × 2 steps; Square: 4 queries" in plots.transfer.survival(record).caption
    assert len(plots.transfer.accuracies([record]).frame) == len(transfer.TRAININGS)
    record = evidence.record("assimilation/textures", own, painted.trained, painted.rows, [], shown=SHOWN)
    assert "all five" in plots.transfer.textures(record).alt
    shown = transfer.pictures(networks[0][0])
    assert {name: p.shape for name, p in shown.items()} == {
        "original": (2, 1, 32, 32),
        "without GLCM loss": (2, 3, 32, 32),
        "with GLCM loss": (2, 3, 32, 32),
    }
    assert "without GLCM loss by" in plots.transfer.repainted({"chest_ct": shown}, record).alt


def test_the_tables_of_the_slides(swept, monkeypatch):
    smoke = replace(settings.ASSIMILATION["smoke"], count=8)
    monkeypatch.setitem(settings.ASSIMILATION, "smoke", smoke)
    own = settings.assimilation("smoke", None, 0)
    rows = pd.concat([transfer.size_rows(own), transfer.settings_rows(own, swept.trained)], ignore_index=True)
    record = evidence.record("assimilation/tables", own, swept.trained, rows, [], shown=SHOWN)
    sizes = plots.transfer.sizes(record).frame
    assert sizes["published"].tolist() == [536, 536, 1595, 1595, 1583, 1583, 210, 210]
    assert sizes["phantoms used"].tolist() == [4] * 8
    training = plots.transfer.training(record).frame
    assert training["on the slides"].tolist()[-1] == "not said"
    assert training["smoke profile"].tolist()[-1] == "T 2625, C 2915"


def test_a_record_of_several_data_sets_names_them_all(swept, networks):
    run = replace(networks[0][0], dataset="brain_mri", recipe=replace(networks[0][0].recipe, epochs=1))
    other = runs.train_or_load(run)
    record = evidence.record("assimilation/two", chosen(networks), [swept.trained[0], other], swept.rows, [], shown=9)
    assert record.provenance["data"]["name"] == "phantom-lung, phantom-head" and "phantom-head" in record.label
