"""The slides' experiment: what is compared, what is measured, how claims are computed, and what figures say."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import check_held_out
from torch import nn

from hpatlib import attacks, checks, claims, data, documents, explain, outcomes, plots, runs
from hpatlib.data import ImageSet
from hpatlib.documents import assimilation
from hpatlib.documents.assimilation import figures, figures_why, quantities, study, why
from hpatlib.documents.profiles import Chosen
from hpatlib.glcm import FEATURES
from hpatlib.measure import logits, sample
from hpatlib.outcomes import Outcomes, Unmeasured
from hpatlib.records import Record
from hpatlib.statistics import Estimate

NETWORK = "simple_cnn_bn (scratch)"
SHOWN = 10
CHAPTERS = (
    (study.datasets_and_training, "datasets_and_training"),
    (study.texture_colour_adaptation, "texture_colour_adaptation"),
    (study.accuracy_vs_attack_strength, "accuracy_vs_attack_strength"),
    (study.all_datasets, "all_datasets"),
    (why.why_attention_region, "why_attention_region"),
    (why.why_loss_landscape, "why_loss_landscape"),
    (why.glcm_texture, "glcm_texture"),
)


@pytest.fixture(scope="module")
def chosen(home) -> Chosen[study.Profile]:
    smoke = assimilation.choose("smoke", None, 0)
    recipe = replace(smoke.run.recipe, epochs=4, patience=4)
    tiny = {"shown": SHOWN, "iterations": 2, "queries": 4, "textures": 2, "recipe": recipe}
    settings = msgspec.structs.replace(smoke.settings, **tiny)
    return replace(smoke, settings=settings, run=replace(smoke.run, count=60, recipe=recipe))


@pytest.fixture(scope="module")
def records(chosen) -> dict[str, Record]:
    return {name: chapter(chosen) for chapter, name in CHAPTERS}


# What is compared


def test_trainings_differ_in_nothing_but_what_they_compare(chosen):
    kinds = {name: study.trained_as(chosen.run, name, spread=0.1) for name in quantities.TRAININGS}
    vanilla, assimilated = kinds["vanilla"], kinds["assimilated"]
    assert vanilla == chosen.run and vanilla.objective is None and vanilla.recipe.front_lr is None
    assert replace(assimilated, front="replicated", objective=None, recipe=vanilla.recipe) == vanilla
    assert replace(assimilated.recipe, front_lr=None) == vanilla.recipe
    for name, alpha in quantities.ALPHAS.items():
        assert replace(kinds[name], objective=assimilated.objective) == assimilated
        assert kinds[name].objective.alpha == alpha
    assert replace(kinds[quantities.RANDOM], front="replicated", spread=None) == vanilla
    assert replace(kinds[quantities.ADVERSARIAL], adversary=None) == vanilla
    with pytest.raises(ValueError, match="choose one of vanilla, assimilated, without GLCM loss"):
        study.trained_as(chosen.run, "solid")
    with pytest.raises(ValueError, match="pass spread="):
        study.trained_as(chosen.run, quantities.RANDOM)


@pytest.mark.parametrize(("size", "window"), [(32, 16), (39, 19), (40, 20), (64, 20), (224, 20)])
def test_at_least_two_by_two_windows(size, window):
    loss = study.texture_loss(size)
    assert loss.window == window and loss.distance == 3 and loss.angles == 8
    assert loss.textures(torch.rand(1, 1, size, size)).shape[1] == (size // window) ** 2 >= 4


def test_a_window_must_hold_pairs():
    with pytest.raises(ValueError, match="at least 8 px"):
        study.texture_loss(7)


def test_small_images_leave_out_the_costly_feature(chosen):
    used = {size: study.trained_as(replace(chosen.run, size=size), "assimilated").objective for size in (32, 64)}
    assert "asm" not in used[32].texture.features and len(used[32].texture.features) == 4
    assert used[64].texture == study.texture_loss(64)


def test_vanilla_and_assimilated_start_identical(chosen):
    built = []
    for name in ("vanilla", *quantities.ALPHAS):
        run = study.trained_as(chosen.run, name)
        images = data.load(run.dataset, real=False, size=run.size, count=4, seed=run.seed)
        torch.manual_seed(run.seed)
        built.append(runs._build(run, images, run.weights))
    x = images.tensors()[0]
    for model in built[1:]:
        torch.testing.assert_close(logits(model, x), logits(built[0], x))
        for a, b in zip(model.network.parameters(), built[0].network.parameters(), strict=True):
            assert torch.equal(a, b)


def test_each_data_set_is_trained_as_often_as_the_profile_says(chosen):
    found = study.runs(chosen, "busi2", "simple_cnn_bn", "scratch")
    assert [run.seed for run in found] == [0, 1] and {run.count for run in found} == {60}
    assert {(run.dataset, run.front, run.test) for run in found} == {("busi2", "replicated", 1 / 5)}


def test_tasks_differ_in_their_pictures_alone(chosen):
    tasks = why.tasks(chosen)
    assert list(tasks) == [*(("medical", key) for key in quantities.MEDICAL), ("natural", "photographs")]
    for (_, dataset), trainings in tasks.items():
        assert [replace(run, dataset="x") for run in trainings] == [
            replace(run, dataset="x") for run in tasks["medical", "chest_ct"]
        ]
        assert {run.dataset for run in trainings} == {dataset}


def test_the_natural_images_are_one_key_of_the_profile(chosen):
    settings = msgspec.structs.replace(chosen.settings, natural="natural")
    assert why.natural(replace(chosen, settings=settings)) == ("photographs", False)  # phantoms have no other
    real = replace(chosen, settings=settings, run=replace(chosen.run, real=True))
    assert why.natural(real) == ("natural", True)


def test_the_slides_settings_are_the_paper_profiles():
    printed, paper = documents.published("assimilation"), assimilation.choose("paper", "phantom", 0)
    recipe, loss = paper.run.recipe, study.texture_loss(paper.size)
    here = [recipe.lr, recipe.batch_size, recipe.epochs, recipe.patience, paper.size, len(paper.settings.backbones)]
    names = ("learning_rate", "batch_size", "epochs", "patience", "input_size", "models")
    assert here == [printed[name]["value"] for name in names]
    window, distance, angles = (printed[f"glcm_{name}"]["value"] for name in ("window", "distance", "orientations"))
    assert (loss.window, loss.distance, loss.angles) == (window, distance, angles)
    slides = [level for level in paper.settings.ladder if level >= 1]
    assert slides == list(range(1, printed["strengths"]["value"] + 1))


@pytest.mark.parametrize("profile", ["smoke", "laptop", "study", "paper"])
def test_profiles_measure_every_claimed_strength(profile):
    settings = assimilation.choose(profile, "phantom", 0).settings
    for ladder in (settings.ladder, settings.short_ladder):
        assert {1.0, 8.0} <= set(ladder) and min(ladder) < 1 and sorted(ladder) == list(ladder)
    assert settings.trainings >= (2 if profile == "smoke" else 6)


# What is measured


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return nn.Sequential(nn.Flatten(), layer)


def toy(logit: tuple[int, ...] = (1, 4, 9, 16)) -> tuple[nn.Module, ImageSet]:
    """Four images that fall exactly from ε = s / 1020 on: logit s / 255, and ‖w‖₁ = 4."""
    grey = np.full((4, 1, 2, 2), 128, np.uint8)
    grey[:, 0, 0, 0] = 128 + np.array(logit)
    labels = np.ones(4, int)
    return linear(torch.tensor([1.0, -1.0, 1.0, -1.0])), ImageSet(
        "toy", grey, labels, labels.astype(str), ("a", "b"), False, "f"
    )


def test_a_linear_model_falls_exactly_where_its_distance_is_below_eps():
    model, images = toy()
    right = {
        (attack, eps): right.tolist()
        for attack, eps, right in study.climbed(model, images, (2, 3), iterations=4, seed=0)
    }
    for attack in ("FGSM", "BIM", "MI-FGSM"):
        assert right[attack, "2/255"] == [False, False, True, True]
        assert right[attack, "3/255"] == [False, False, False, True]


def test_smallest_eps_of_a_linear_model_are_its_distances(chosen):
    model, images = toy()
    found = study.clean_rows(model, images, msgspec.structs.replace(chosen.settings, iterations=10), 0)
    assert found["smallest"].to_numpy() == pytest.approx([0.25, 1, 2.25, 4], rel=0.1)
    far = toy((100, 101, 102, 103))[1]  # 8/255 moves the logit by 32/255
    assert (study.clean_rows(model, far, chosen.settings, 0)["smallest"] == quantities.BEYOND).all()
    wrong = toy((-1, -2, -3, -4))[1]
    assert (study.clean_rows(model, wrong, chosen.settings, 0)["smallest"] == 0).all()


def test_iterated_attacks_are_not_asked_about_what_fell(monkeypatch):
    model, images = toy()
    seen: list[int] = []

    def counted(model, x, y, **settings):
        seen.append(len(x))
        return attacks.pgd(model, x, y, start=None, **{k: v for k, v in settings.items() if k != "generator"})

    monkeypatch.setattr(study.attacks, "bim", counted)
    list(study.climbed(model, images, (0.5, 2, 3, 8), iterations=4, seed=0))
    assert seen == [4, 3, 2, 1]  # and none at all of what is left when nothing is


def test_readings_are_measured_against_the_vanilla_model():
    model, images = toy()
    found = list(study.read_otherwise(model, model, images, (0.5, 1, 8), iterations=4, seed=0))
    kinds = (quantities.LONG, quantities.TRANSFERRED)
    assert [(attack, eps) for attack, eps, _ in found] == [(name, eps) for eps in ("1/255", "8/255") for name in kinds]
    assert not found[-1][2].any()  # made on the model itself
    other = linear(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # its attack helps the model
    moved = {a: r for a, e, r in study.read_otherwise(model, other, images, (8,), iterations=4, seed=0)}
    assert moved[quantities.TRANSFERRED].all() and not moved[quantities.LONG].any()


@pytest.mark.parametrize("ladder", [(), (0.0,), (256,), (2, 1)])
def test_a_ladder_without_meaning_is_refused(ladder):
    images = ImageSet("toy", np.zeros((1, 1, 2, 2), np.uint8), np.zeros(1, int), np.array(["a"]), ("a",), False, "f")
    with pytest.raises(ValueError, match=r"ladder must hold rising ε in \(0, 255\]"):
        list(study.climbed(linear(torch.ones(4)), images, ladder, iterations=1, seed=0))


def test_the_results_hold_every_cell_once_and_equal_a_direct_computation(records, chosen):
    o, ladder = records["accuracy_vs_attack_strength"].outcomes, chosen.settings.ladder
    standard, read = len(chosen.settings.standard), len([level for level in ladder if level in study.READ])
    cells = len(quantities.TRAININGS) + 2 * 4 * len(ladder) + 3 * standard + 2 * 2 * read
    assert len(list(o.accuracy)) == cells and (o.accuracy.table()["n"] == SHOWN).all()
    run = study.trained_as(study.runs(chosen, "chest_ct", "simple_cnn_bn", "scratch")[1], "assimilated")
    model = runs.train_or_load(run)
    x, y = sample(model.test, SHOWN).tensors()
    made = attacks.fgsm(model.model, x, y, eps=8 / 255)
    expected = (logits(model.model, made).argmax(dim=1) == y).double().mean()
    cell = o.accuracy["chest_ct", NETWORK, "assimilated", "FGSM", "8/255"]
    assert cell.values[1] == pytest.approx(float(expected)) and cell.trainings == (0, 1)
    assert made.shape[1] == 1  # through both modules, to the grey image


def test_accuracy_falls_along_eps_and_the_standard_attacks_leave_no_more_than_smallest_eps_do(records):
    o = records["accuracy_vs_attack_strength"].outcomes
    for training in quantities.PAIR:
        accuracy = o.where(training=training, network=NETWORK, dataset="chest_ct").accuracy
        path = [accuracy["none", "0/255"].values, *(accuracy["PGD", e].values for e in ("0.5/255", "1/255", "8/255"))]
        assert all((after <= before).all() for before, after in pairwise(path))
        assert (accuracy[quantities.WORST, "1/255"].values <= accuracy["none", "0/255"].values).all()
    felled = records["accuracy_vs_attack_strength"].table("felled")
    assert set(felled.groupby(["training", "eps"])["images"].sum()) == {2 * SHOWN}
    assert set(o.where(attack=quantities.WORST).rows["prediction"]) <= {0, 1}
    assert o.where(attack=quantities.WORST).rows["margin"].isna().all()


def test_the_standard_attacks_fell_what_lies_within_eps_and_nothing_else(chosen):
    model, images = toy()  # they fall from 0.25, 1, 2.25 and 4 grey levels on
    for norm in ("linf", "l2"):  # ‖w‖₁ = 4 and ‖w‖₂ = 2, of four pixels: the same four thresholds in either
        right, told = study.stands(model, images, [model], 2, chosen.settings, 0, norm=norm)
        assert right.tolist() == [False, False, True, True] == [name == "stands" for name in told["attack"]]
        assert told["queries"].iloc[0] < told["queries"].iloc[-1]  # who stands is asked by every attack


def test_the_other_data_sets_face_the_standard_attacks_in_l2_once(records):
    o = records["all_datasets"].outcomes.where(attack=quantities.WORST_L2)
    assert o.values("training") == list(quantities.PAIR) and o.values("eps") == ["0.25/255"]
    felled = records["all_datasets"].table("felled")
    assert (felled["queries"] >= 1).all() and felled["eps"].str.endswith("L2").any()
    passes = figures.felled(records["all_datasets"]).frame["passes, where it stands"]
    assert passes.str.isdigit().any()
    assert figures.survival(records["all_datasets"]).data["eps"].str.endswith("L2").any()


def test_iterated_attacks_have_the_settings_of_their_names(monkeypatch):
    asked = {}

    def spy(name, attack):
        def ask(*given, **told):
            asked[name] = told
            return attack(*given, **told)

        return ask

    for name in ("bim", "mifgsm", "pgd"):
        monkeypatch.setattr(study.attacks, name, spy(name, getattr(attacks, name)))
    list(study.climbed(*toy(), (2,), iterations=4, seed=0))
    assert isinstance(asked["pgd"].pop("generator"), torch.Generator)
    own = {"eps": 2 / 255, "step": 2 / 255 / 4, "iterations": 4}
    assert asked == {"bim": own, "mifgsm": own, "pgd": own}


def test_a_random_repaint_is_as_strong_as_the_learned_one_and_stays_as_drawn(records, chosen):
    by = {name: [] for name in quantities.TRAININGS}
    record = records["accuracy_vs_attack_strength"]
    for number, model in enumerate(record.header.models):
        by[figures._kind(record, number)].append(model.dose.get("channel_spread"))
    assert set(by["vanilla"]) == set(by[quantities.ADVERSARIAL]) == {None}
    targets = [max(0.001, float(f"{spread:.2g}")) for spread in by["assimilated"]]  # of each split its own
    assert by[quantities.RANDOM] == pytest.approx(targets, rel=0.25)  # scaled on training images, here on others
    assert [m.run["spread"] for m in record.header.models if "spread" in m.run] == pytest.approx(targets)


def test_the_masking_table_is_of_the_first_training(records):
    table = records["accuracy_vs_attack_strength"].table("masking")
    assert list(table["check"]) == [check.name for check in checks.CHECKS] * 2
    assert set(table["seed"]) == {0} and set(table["training"]) == set(quantities.PAIR)
    assert set(table["eps"]) == {"0.25/255"}  # at the slides' own, PGD leaves nothing that another attack could fell


def test_textures_and_doses_are_those_of_the_loss_itself(records, chosen):
    record = records["texture_colour_adaptation"]
    run = study.trained_as(study.runs(chosen, "chest_ct", "simple_cnn_bn", "scratch")[0], "assimilated")
    model = runs.train_or_load(run)
    x, _ = sample(model.test, SHOWN).tensors()
    with torch.no_grad():
        picture = model.model.colour_image(x)
        expected = study.texture_loss(chosen.size)(picture, x)
        spread = (picture.amax(dim=1) - picture.amin(dim=1)).mean()
        parts = {n: float(replace(study.texture_loss(chosen.size), features=(n,))(picture, x)) for n in FEATURES}
    for name, part in parts.items():
        values = record.outcomes.mean(name)["chest_ct", NETWORK, "assimilated"].values
        assert values[0] == pytest.approx(part, rel=5e-3, abs=1e-6), name
    cell = record.outcomes.mean("texture")["chest_ct", NETWORK, "assimilated"]
    assert cell.values[0] == pytest.approx(float(expected), rel=2e-3)  # stored in half precision
    (dose,) = (m.dose for m in record.header.models if m.key == model.provenance["key"])
    assert dose["texture"] == pytest.approx(float(expected), rel=1e-5)
    assert dose["channel_spread"] == pytest.approx(float(spread), rel=1e-5)
    results = records["accuracy_vs_attack_strength"].header.models
    assert sum(bool(m.dose) for m in results) == 2 * 5  # vanilla and adversarial have no T and C


class Two(nn.Module):
    """Two classes from brightness, with a feature map of 8 × 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        # Positive weights to class 1, and a bias that decides for it: every map has mass.
        with torch.no_grad():
            self.features[0].weight.abs_().mul_(0.1)
            self.features[0].bias.fill_(0.1)
            self.head.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
            self.head.bias.copy_(torch.tensor([0.0, 0.5]))

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


def brightness() -> why.Asked:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (SHOWN, 3, 32, 32)).astype(np.uint8)
    labels = np.ones(SHOWN, int)
    images = ImageSet("noise", pixels, labels, np.arange(SHOWN).astype(str), ("dark", "bright"), False, "f")
    return why.Asked("medical", "chest_ct", runs.Trained(Two().eval(), images, images, {}), images)


def test_maps_and_steepness_are_those_of_explain():
    one = brightness()
    maps = explain.attention(one.model, one.pixels, layer=one.model.features)
    torch.testing.assert_close(why.heatmaps(one), maps)
    y, draws = torch.ones(SHOWN).long(), torch.Generator().manual_seed(3)
    bend = explain.curvature(one.model, one.pixels, y, iterations=why.ITERATIONS, generator=draws).abs().double()
    answers = logits(one.model, one.pixels).double()
    spread = (answers[:, 1] - answers[:, 0]).std()
    found = why.steepness(one, 3)
    expected = (bend / spread**2).clamp_min(quantities.STRAIGHT)
    assert 10.0 ** found["curvature"] == pytest.approx(expected.numpy(), rel=1e-5)
    assert (found["sharpness"] > 0).all()
    assert found["relative"] == pytest.approx(found["sharpness"] / float(spread))
    rise = why.surface(one, 3)
    assert rise.shape == (9, 9) and rise[4, 4] == 0 and (np.diff(rise[:, 4]) > 0).all()  # x first: along the gradient


def test_half_of_the_mass_lies_in_at_most_half_of_the_pixels(records):
    rows = records["why_attention_region"].outcomes.rows
    areas = rows[[f"area {share:g}" for share in quantities.SHARES]]
    assert areas["area 0.5"].dropna().le(0.5).all() and (areas.dropna().diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (rows["empty"] == rows["area 0.5"].isna()).all()


def test_textures_equal_scikit_images():
    images = {name: image for name, image in why.textures().items() if name in ("brick", "lung phantom")}
    assert all(image.shape == (1, 1, 224, 224) and image.dtype == torch.double for image in images.values())
    found = why.against_skimage(images, windows=2)
    assert len(found) == 2 * 6 and (found["opposite"] == 0).all()
    assert (found["difference"] / found["scikit-image"].abs().clip(lower=1)).max() < 1e-9
    kinds = found.set_index(["image", "feature"])["ours"]
    assert kinds["brick", "homogeneity, squared"] < kinds["brick", "homogeneity"]
    assert len(figures_why.oracle(found).frame) == 12


def test_flat_windows_are_left_out():
    smooth = np.full((3, 1, 40, 40), 100, np.uint8)
    smooth[:, :, ::2, :20] += 10  # the left windows have stripes, the right ones nothing
    labels, groups = np.zeros(3, np.int64), np.array(["a", "b", "c"])
    found = why.texture(ImageSet("stripes", smooth, labels, groups, ("x",), False, "f"))
    # Of eight directions, three pixels away, two see the stripes: at a distance of 10, or 2/11 of homogeneity.
    assert (found["flat"] == 0.5).all() and found["dissimilarity"].tolist() == pytest.approx([2.5] * 3, rel=1e-4)
    assert found["homogeneity"].tolist() == pytest.approx([(6 + 2 / 11) / 8] * 3, rel=1e-4)
    even = why.texture(ImageSet("even", np.full_like(smooth, 7), labels, groups, ("x",), False, "f"))
    assert (even["flat"] == 1).all() and np.isnan(even["homogeneity"]).all()


def test_texture_sets_have_the_slides_size(chosen):
    sets = why.texture_sets(chosen)
    assert [key for _, key in sets] == [*quantities.MEDICAL, "photographs"]
    assert all(images.images.shape == (2, 1, 224, 224) for images in sets.values())
    assert all(images.name.startswith("phantom") for (domain, _), images in sets.items() if domain == "medical")


def test_crops_are_grey_and_name_their_photograph():
    images = why.crops(12, size=24, seed=1)
    assert images.images.shape == (12, 1, 24, 24) and len(set(images.groups)) == 6


def test_sizes_count_the_most_complete_copy(chosen, monkeypatch):
    counts = {"chest_ct": (536, 561), "brain_mri": (1702, 1920), "chest_xray": (1571, 1727), "busi2": (570, 200)}
    counts |= {"pneumoniamnist": (1583, 4273), "breastmnist": (570, 210)}
    rows = [{"key": key, "classes": {"a": a, "b": b}} for key, (a, b) in counts.items()]
    monkeypatch.setattr(data, "status", lambda: rows)
    drawn = data.load
    monkeypatch.setattr(study.data, "load", lambda key, **more: drawn(key, **more | {"real": False, "count": 4}))
    monkeypatch.setattr(study, "count", lambda chosen, dataset: 4)
    found = study.sizes(replace(chosen, run=replace(chosen.run, real=True)))
    assert found["at_hand"].tolist() == [536, 561, 1702, 1920, 1571, 1727, 570, 200]
    assert found["public"].tolist() == [536, 561, 1702, 1920, 1583, 4273, 570, 210]
    assert found["published"].tolist() == [536, 536, 1595, 1595, 1583, 1583, 210, 210]
    assert found["used"].tolist() == [2] * 8


# How claims are computed


def cells(columns: dict[tuple[str, ...], dict[str, list[float]]], conditions: tuple[str, ...], n: int = 40) -> Outcomes:
    """Outcomes whose means are given: key → column → one share (or value) a training; "right" is accuracy."""
    parts = []
    for key, given in columns.items():
        for seed in range(2):
            frame = pd.DataFrame({"image": np.arange(n).astype(str), "group": np.arange(n).astype(str)})
            frame = frame.assign(**dict(zip(conditions, key, strict=True)), model=seed)
            for column, values in given.items():
                if column == "right":
                    frame = frame.assign(label=1, prediction=(np.arange(n) < values[seed] * n).astype(int))
                else:
                    frame[column] = values[seed]
            parts.append(frame)
    rows = outcomes.tidy(pd.concat(parts, ignore_index=True), conditions)
    return Outcomes(rows, conditions, (0, 1))


def results(networks: tuple[str, ...] = ("a",), **accuracy: tuple[float, float]) -> Outcomes:
    """Chest CT: (assimilated, vanilla) by attack and ε, 0.8 and 0.5 where not said."""
    given = {}
    for network in networks:
        for attack, eps in [("none", "0/255")] + [(a, f"{e}/255") for a in quantities.ATTACKS for e in (0.5, 1, 8)]:
            pair = accuracy.get(f"{attack.replace('-', '')}{eps.removesuffix('/255')}", (0.8, 0.5))
            for training, share in zip(("assimilated", "vanilla"), pair, strict=True):
                given["chest_ct", network, training, attack, eps] = {"right": [share, share]}
            given["chest_ct", network, "without GLCM loss", attack, eps] = {"right": [0.7, 0.7]}
    return cells(given, ("dataset", "network", "training", "attack", "eps"))


def test_margins_are_means_over_iterated_attacks_and_the_slides_strengths():
    o = results(BIM8=(0.3, 0.5), **{"PGD0.5": (0.9, 0.5)})  # ε below 1/255 is none of the slides'
    assert quantities.margin(o, dataset="chest_ct").value == pytest.approx((5 * 0.3 - 0.2) / 6)
    assert quantities.clean_gain(o, dataset="chest_ct").value == pytest.approx(0.1)
    assert quantities.margin_at(o, dataset="chest_ct", attack="BIM", eps="8/255").value == pytest.approx(-0.2)


def test_networks_are_averaged():
    o = results(("a", "b"))
    reversed_rows = o.rows.copy()
    reversed_rows.loc[(o.rows["network"] == "b") & (o.rows["training"] == "assimilated"), "prediction"] = 0
    found = quantities.margin(replace(o, rows=reversed_rows), dataset="chest_ct")
    assert found.value == pytest.approx((0.3 - 0.5) / 2)


def withstanding(**smallest: float) -> Outcomes:
    """Chest CT: the smallest ε in grey levels of every image, by training (spaces as underscores)."""
    conditions = ("dataset", "network", "training", "attack", "eps")
    given = {
        ("chest_ct", "a", training.replace("_", " "), "none", "0/255"): {"smallest": [level, level]}
        for training, level in smallest.items()
    }
    return cells(given, conditions)


@pytest.mark.parametrize(
    ("smallest", "octaves"), [(0, 0), (1 / 64, 0), (1 / 32, 0), (1 / 16, 1), (1, 5), (8, 8), (quantities.BEYOND, 8)]
)
def test_octaves_are_doublings_of_the_smallest_eps(smallest, octaves):
    mean = quantities.octaves(withstanding(vanilla=smallest)).mean("octaves")
    assert mean["chest_ct"].value == pytest.approx(octaves)


def test_mean_octaves_are_the_area_below_robust_accuracy():
    levels = np.random.default_rng(0).uniform(0, 10, 40)
    o = withstanding(vanilla=1)
    o = replace(o, rows=o.rows.assign(smallest=np.tile(levels, 2)))
    grid = np.arange(0, 8, 1e-3)  # octaves above LEAST
    accuracy = np.mean(levels[:, None] > quantities.LEAST * 2**grid, axis=0)
    assert quantities.octaves(o).mean("octaves")["chest_ct"].value == pytest.approx(accuracy.mean() * 8, abs=0.01)


def test_what_a_training_withstands_is_compared_in_octaves():
    o = withstanding(vanilla=0.25, assimilated=1, random_repaint=0.5)
    assert quantities.withstood(o, dataset="chest_ct", training="assimilated").value == pytest.approx(2)
    mean = quantities.withstood_mean(o, training="assimilated", over="random repaint")
    assert mean.value == pytest.approx(1)
    with pytest.raises(Unmeasured, match="no smallest ε"):
        quantities.withstood(results(), dataset="chest_ct", training="assimilated")


def test_readings_are_compared_at_the_strengths_that_all_of_them_have():
    o = results(PGD1=(0.2, 0.1), PGD8=(0.0, 0.0), PGD4=(0.5, 0.0))
    moved = {
        ("chest_ct", "a", training, quantities.TRANSFERRED, eps): {"right": [share, share]}
        for eps, shares in (("1/255", (0.6, 0.1)), ("8/255", (0.2, 0.0)))
        for training, share in zip(("assimilated", "vanilla"), shares, strict=True)
    }
    more = cells(moved, o.conditions)
    both = replace(o, rows=outcomes.tidy(pd.concat([o.rows, more.rows], ignore_index=True), o.conditions))
    found = quantities.apparent_margin(both, dataset="chest_ct", attack=quantities.TRANSFERRED)
    assert found.value == pytest.approx((0.5 + 0.2) / 2)
    assert quantities.apparent_margin(both, dataset="chest_ct", attack="PGD").value == pytest.approx(0.05)


def test_another_scale_of_eps_is_read_from_the_smallest_eps():
    o = results(PGD1=(0, 0), PGD8=(0, 0))
    least = {"assimilated": 3.0, "vanilla": 0.5}
    clean = o.rows["attack"] == "none"
    values = o.rows["training"].astype(str).map(least).where(clean)
    moved = o.rows[o.rows["attack"] == "PGD"].assign(attack=quantities.TRANSFERRED)
    rows = pd.concat([o.rows.assign(smallest=values), moved], ignore_index=True)
    o = replace(o, rows=outcomes.tidy(rows, o.conditions))
    margins = {s: quantities.rescaled_margin(o, dataset="chest_ct", scale=s).value for s in (1 / 255, 0.3, 1, 4)}
    # At 1/255 of ε both trainings stand at either ε, at 4 times none does; in between, the margin is one half.
    assert margins == {1 / 255: pytest.approx(0), 0.3: pytest.approx(0.5), 1: pytest.approx(0.5), 4: pytest.approx(0)}


def test_what_right_answers_withstand_leaves_the_wrong_ones_out():
    o = withstanding(vanilla=1)
    half = np.arange(len(o.rows)) % 2
    found = quantities.octaves(replace(o, rows=o.rows.assign(label=1, prediction=half, smallest=2.0 * half)))
    assert found.rows["octaves"].mean() == 3
    assert quantities.right_alone(found).rows["octaves"].mean() == 6


def test_the_worst_of_the_standard_attacks_is_compared_by_name():
    given = {
        (dataset, "a", training, quantities.WORST, "0.25/255"): {"right": [share, share]}
        for dataset, pair in (("chest_ct", (0.5, 0.6)), ("busi2", (0.2, 0.6)))
        for training, share in zip(quantities.PAIR, pair, strict=True)
    }
    o = cells(given, ("dataset", "network", "training", "attack", "eps"))
    assert quantities.worst_at(o, eps="0.25/255", datasets=["chest_ct", "busi2"]).value == pytest.approx(0.25)


def test_a_split_by_image_flatters_by_a_difference():
    given = {("chest_ct", split, "both"): {"right": [share] * 2} for split, share in (("patient", 0.8), ("image", 0.9))}
    o = cells(given, ("dataset", "split", "class"))
    assert quantities.flattered(o).value == pytest.approx(0.1)


def test_fgsm_is_an_outlier_where_it_stays_up():
    o = results(FGSM1=(0.8, 0.5), FGSM8=(0.8, 0.4), BIM8=(0, 0.1), PGD8=(0, 0.1), **{"MIFGSM8": (0, 0.1)})
    assert quantities.fall(o, dataset="chest_ct", attack="FGSM").value == pytest.approx(0.1)
    assert quantities.lead_of_fgsm(o, dataset="chest_ct").value == pytest.approx(0.3)


def test_signs_on_the_ladder():
    found = quantities.signs(results(PGD1=(0.2, 0.5), FGSM8=(0.5, 0.1)))
    assert found["chest_ct", "a", "assimilated", "FGSM beats PGD"].value == pytest.approx(0.3)
    assert found["chest_ct", "a", "vanilla", "FGSM beats PGD"].value == pytest.approx(0.4)
    assert len(found) == 3


def test_a_floor_and_a_missing_dose_decide_nothing(records):
    floored = results(**{f"{a}{e}": (0.0, 0.025) for a in ("BIM", "MIFGSM", "PGD") for e in ("1", "8")})
    found = quantities.margin(floored, dataset="chest_ct")
    assert "floor" in claims.GATES["floor"](found, None, 0.05)
    record = records["accuracy_vs_attack_strength"]
    margin = quantities.margin(record.outcomes, dataset="chest_ct")
    assert "channel spread" in claims.GATES["dose"](margin, record, {"channel_spread": 2.0})
    assert not claims.GATES["dose"](margin, record, {"channel_spread": 0.0})


def test_the_dose_of_one_arm_does_not_stand_in_for_the_others(records):
    record = records["texture_colour_adaptation"]
    held = quantities.texture_held(record.outcomes, dataset="chest_ct")
    doses: dict[str, list[float]] = {}
    for number in claims.used(held, record):
        model = record.header.models[number]
        doses.setdefault(figures._kind(record, number), []).append(model.dose["channel_spread"])
    low, high = sorted(np.mean(each) for each in doses.values())
    assert low < high
    assert "did too little" in claims.GATES["dose"](held, record, {"channel_spread": (low + high) / 2})
    assert not claims.GATES["dose"](held, record, {"channel_spread": low - 1e-9})


def why_outcomes(levels: dict[str, float], column: str) -> Outcomes:
    domains = {"photographs": "natural"}
    given = {(domains.get(key, "medical"), key): {column: [level, level]} for key, level in levels.items()}
    return cells(given, ("domain", "dataset"))


def test_medical_tasks_are_compared_with_natural_ones():
    levels = {"chest_ct": 0.4, "brain_mri": 0.5, "chest_xray": 0.4, "busi2": 0.3, "photographs": 0.35}
    o = why_outcomes(levels, "area 0.5")
    assert quantities.above(o, column="area 0.5", than="natural").value == pytest.approx(0.05, abs=1e-3)
    assert quantities.each_above(o, column="area 0.5", than="natural").value == pytest.approx(-0.05, abs=1e-3)


def test_a_training_without_any_map_has_no_say():
    o = why_outcomes({"chest_ct": 0.4, "photographs": 0.3}, "area 0.5")
    rows = o.rows.copy()
    rows.loc[(rows["dataset"] == "chest_ct") & (rows["model"] == 1), "area 0.5"] = np.nan
    with pytest.raises(Unmeasured, match="in some trainings no image has a value"):
        quantities.above(replace(o, rows=rows), column="area 0.5", than="natural")


def test_medical_images_give_way_sooner_where_they_withstand_fewer_octaves():
    o = why_outcomes({"chest_ct": 0.25, "brain_mri": 1, "chest_xray": 0.5, "busi2": 2, "photographs": 2}, "smallest")
    assert quantities.sooner(o).value == pytest.approx((3 + 1 + 2 + 0) / 4)
    assert quantities.sooner_each(o).value == pytest.approx(0)
    # Of right answers alone, wherever the wrong ones stand.
    rows = o.rows.assign(label=1, prediction=1)
    natural = rows[rows["domain"] == "natural"]
    wrong = natural.assign(image=natural["image"].astype(str) + ", wrong", prediction=0, smallest=1 / 32)
    o = replace(o, rows=pd.concat([rows, wrong], ignore_index=True))
    assert quantities.sooner(o).value < 1.5
    assert quantities.sooner(o, right=True).value == pytest.approx((3 + 1 + 2 + 0) / 4)
    assert quantities.sooner_each(o, right=True).value == pytest.approx(0)


def test_missing_images_of_a_class():
    rows = pd.DataFrame({"model": 0, "dataset": "busi2", "class": ["a", "b"], "image": "all", "group": "all"})
    o = Outcomes(outcomes.tidy(rows.assign(missing=[0, 10]), ("dataset", "class")), ("dataset", "class"), (0,))
    found = quantities.missing(o, dataset="busi2")
    assert found.value == 10 and found.error == 0


@pytest.mark.parametrize("claim", claims.of("assimilation"), ids=lambda claim: claim.id)
def test_every_claim_is_computed_from_the_record_of_its_chapter(claim, records):
    record = records[claim.chapter.removeprefix("assimilation/")]
    assert record.header.claims[claim.id] == claims.hashed("assimilation", claim)
    if claim.quantity == "missing":  # no files are counted where phantoms are drawn
        with pytest.raises(Unmeasured, match="no files were counted"):
            claims.quantity("assimilation", claim, record.outcomes)
        return
    o = record.outcomes
    if claim.chapter == "assimilation/why_attention_region":  # four epochs leave a network that has no map at all
        o = replace(o, rows=o.rows.fillna({"area 0.5": 0.5}))
    found = claims.quantity("assimilation", claim, o)
    assert np.isfinite(found.value) and found.n >= 1
    if isinstance(found, Estimate) and claim.chapter != "assimilation/glcm_texture":
        assert found.trainings == (0, 1)
    for gate in claim.gates:
        assert isinstance(
            claims.GATES[gate](found, record, documents.toml("assimilation", "claims")["gates"][gate]), str
        )


# What figures say


def test_figures_of_the_results(records, chosen):
    record = records["accuracy_vs_attack_strength"]
    strengths = figures.strengths(record)
    for figure in (strengths, figures.curves(record), figures.survival(record)):
        assert "seeds 0, 1" in figure.caption and figure.name.endswith("-phantom")
    accuracy = record.outcomes.accuracy["chest_ct", NETWORK, "vanilla", "BIM", "8/255"].value
    rows = strengths.data.query("panel.str.startswith('BIM') and level == 8").set_index("training")["value"]
    assert rows["vanilla transfer learning"] == accuracy
    clean = record.outcomes.accuracy["chest_ct", NETWORK, "assimilated", "none", "0/255"].value
    rows = strengths.data.query("panel.str.startswith('PGD') and level == 0").set_index("training")["value"]
    assert rows["domain assimilation"] == clean
    signs = 2 * len(checks.CHECKS) + len(quantities.PAIR)
    assert len(figures.masking([record]).data) == signs
    table = figures.trainings([record]).frame
    assert len(table) == len(quantities.TRAININGS) and (table["channel spread"] == "–").sum() == 2
    dose = figures.dose(record).data
    assert dose["training"].nunique() == len(quantities.TRAININGS) and len(dose) == 2 * 2 * len(quantities.TRAININGS)
    assert len(figures.readings(record).frame) == len(figures.READINGS) + len(figures.SCALES)
    felled = figures.felled(record).frame
    counts = felled.drop(columns=["data", "training", "ε", "passes, where it stands"])
    assert (counts.sum(axis=1) == 2 * SHOWN).all() and len(felled) == 6
    assert figures.strengths(records["all_datasets"]).data["panel"].str.contains("brain MRI").any()


def test_figures_of_textures_and_tables(records, chosen):
    record = records["texture_colour_adaptation"]
    assert len(figures.doses(record).frame) == 4
    drawn = figures.textures(record).data
    assert set(drawn["training"]) == {"with GLCM loss", "without GLCM loss"} and "all five" in set(drawn["column"])
    shown = study.pictures(chosen)
    assert {name: p.shape for name, p in shown["brain_mri"].items()} == {
        "original": (2, 1, 24, 24),
        "without GLCM loss": (2, 3, 24, 24),
        "with GLCM loss": (2, 3, 24, 24),
    }
    assert "without GLCM loss by" in figures.repainted(shown, record).alt
    tables = records["datasets_and_training"]
    assert "A split by image adds" in figures.splits(tables).alt and len(figures.splits(tables).data) == 8
    sizes = figures.sizes(tables).frame
    assert sizes["on the slides"].tolist() == [536, 536, 1595, 1595, 1583, 1583, 210, 210]
    assert sizes["phantoms used"].tolist() == [30] * 8
    settings = figures.settings(tables).frame
    assert settings["on the slides"].tolist()[-1] == "not said"
    assert settings["smoke profile"].tolist()[-1] == "T 2625, C 2915"
    assert plots.panels(study.specimens(32), figures.names(), tables).alt


def test_figures_of_the_whys(records, chosen):
    region, landscape = records["why_attention_region"], records["why_loss_landscape"]
    assert "chest CT" in figures_why.attention(region).alt
    names = ("vulnerability", "smallest", "landscapes", "slices", "sharpness")
    for draw in (getattr(figures_why, name) for name in names):
        figure = draw(landscape)
        assert "breast ultrasound" in figure.alt and "Smoke profile, phantom data" in figure.caption
    grid = figures_why.landscape(landscape)
    assert len(grid) == 5 * 81 and (grid.query("x == 0 and y == 0")["value"] == 0).all()
    for record, column in ((region, "attended area"), (landscape, "rise within 4/255, nats")):
        table = figures_why.scores(record).frame
        assert len(table) == 5 and column in table
    assert "photographs" in figures_why.maps(why.maps(chosen), region).alt
    texture = records["glcm_texture"]
    assert "flat windows, share" in figures_why.monotony(texture).data["panel"].unique()[0]
    assert "none is asked" in texture.stamp().to_string()


def test_figures_need_no_torch():
    import subprocess
    import sys

    modules = ", ".join(f"hpatlib.documents.assimilation.{name}" for name in ("quantities", "figures", "figures_why"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_loss_holds_texture_where_pictures_without_it_are_farther_away():
    far = {quantities.FREE: 0.5, "assimilated": 0.25}
    given = {("chest_ct", "a", name): {"texture": [value] * 2} for name, value in far.items()}
    o = cells(given, ("dataset", "network", "training"))
    assert quantities.texture_held(o, dataset="chest_ct").value == 0.25


def test_every_measured_image_was_held_out(records):
    for record in records.values():
        check_held_out(record)
