"""The slides' "why": photographs without leaks, intervals over groups, known answers, pictures, textures."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hpatlib import data, evidence, explain, plots, runs, settings, why
from hpatlib.data import photographs
from hpatlib.training import Recipe


@pytest.fixture(scope="module")
def chosen(home) -> settings.Settings:
    made = settings.assimilation("smoke", None, 0)
    return replace(made, shown=10, run=replace(made.run, count=80, recipe=Recipe(epochs=1)))


class Two(nn.Module):
    """Two classes from brightness, with a feature map of 8 × 8 places: stands in for every network."""

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


@pytest.fixture
def networks(monkeypatch, chosen):
    """Every task answered by ``Two`` at once, two seeds each: what is tested is the measuring, not the training."""
    torch.manual_seed(0)
    model = Two().eval()

    def asked(named, *, shown, crops):
        for task, task_runs in [*named.items(), (why.HEAD, [None])]:
            for seed, run in enumerate(task_runs):
                images = torch.rand(shown, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
                groups = np.array([f"g{n // 2}" for n in range(shown)])
                trained = run and runs.Trained(model, None, None, provenance(run))
                yield why.Asked(task, seed, model, images, torch.ones(shown).long(), groups, run, trained)

    monkeypatch.setattr(why, "asked", asked)
    monkeypatch.setattr(why, "_name", lambda model: "tf_efficientnet_lite0")
    return model


def provenance(run: runs.Run) -> dict:
    about = {"name": "phantom-lung", "fingerprint": "f", "train": 60, "test": 20}
    decided = {"dataset": run.dataset, "model": run.model, "weights": run.weights, "seed": run.seed}
    decided |= {"repeat": 0, "split_by": "patient", "static_eps": None, "adversary": None, "mixbn": False}
    return {"key": f"{run.dataset}{run.seed}", "run": decided, "data": about, "seconds": 1.0, "device": "CPU"}


def test_photographs_are_a_data_set_without_leaks():
    images = photographs.load(60, size=16, seed=3)
    assert images.images.shape == (60, 1, 16, 16) and images.labels.sum() == 30 and not images.real
    names = {group.split(",")[0] for group in images.groups}
    assert names == {name for names in photographs.CLASSES.values() for name in names}
    for label, of_class in enumerate(photographs.CLASSES.values()):
        assert {g.split(",")[0] for g in images.groups[images.labels == label]} == set(of_class)
    train, test = data.split(images, by="patient", test=1 / 5, seed=0)
    assert not set(train.groups) & set(test.groups) and set(test.labels) == {0, 1}
    again, other = (photographs.load(60, size=16, seed=seed) for seed in (3, 4))
    assert again.fingerprint == images.fingerprint != other.fingerprint
    assert np.array_equal(photographs.load(20, size=16, seed=3).images, images.images[:20])
    with pytest.raises(ValueError, match="count is 0"):
        photographs.load(0, size=16)


def test_crops_are_in_colour_and_name_their_photograph():
    images, names = photographs.crops(12, size=24, seed=1)
    assert images.shape == (12, 3, 24, 24) and len(set(names[:6])) == 6 and (names[:6] == names[6:]).all()
    coffee = images[names == "coffee"][0].astype(int)
    assert abs(coffee[0] - coffee[2]).max() > 30  # colours
    assert (images[names == "coins"][0] == images[names == "coins"][0][:1]).all()


def test_a_run_on_photographs_trains_and_is_loaded(chosen):
    run = why.tasks(chosen)[why.NATURAL][0]
    run = replace(run, count=48, recipe=Recipe(epochs=1))
    first = runs.train_or_load(run, device="cpu")
    again = runs.train_or_load(run, device="cpu")
    assert first.provenance == again.provenance and first.provenance["data"]["name"] == "photographs"
    with pytest.raises(ValueError, match="photographs are nobody's patients"):
        replace(run, real=True)


def test_tasks_differ_in_their_pictures_alone(chosen):
    tasks = why.tasks(chosen)
    assert list(tasks) == [*why.MEDICAL, why.NATURAL]
    for name, task in tasks.items():
        assert [replace(run, dataset="x") for run in task] == [replace(run, dataset="x") for run in tasks["chest_ct"]]
        assert {run.dataset for run in task} == {name} and all(run.front == "replicated" for run in task)


def test_the_feature_map_has_the_places_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1), nn.Flatten())
    images = torch.rand(1, 1, 16, 16)
    for places, number in ((2, 2), (4, 2), (5, 1), (16, 1), (17, 0), (64, 0)):
        assert explain.last_feature_map(model, images, places=places) is model[number]
    with pytest.raises(ValueError, match="65 places or more"):
        explain.last_feature_map(model, images, places=65)


def test_intervals_resample_groups_whole():
    random = np.random.default_rng(0)
    level = random.normal(size=20)
    values, groups = np.repeat(level, 50), np.repeat(np.arange(20).astype(str), 50)
    mean, draws = why.resample([(values, groups)])
    assert mean == pytest.approx(level.mean())
    # 1000 images of 20 groups that do not vary inside: the standard error is that of 20 values.
    assert draws.std() == pytest.approx(level.std() / np.sqrt(20), rel=0.1)
    alone = why.resample([(values, np.arange(1000).astype(str))])[1]
    assert alone.std() < draws.std() / 5
    _, between = why.resample([(values, groups), (values + 10, groups)])
    assert between.std() == pytest.approx(5 / np.sqrt(2), rel=0.1)


def test_values_that_are_not_there_do_not_count():
    values, groups = np.array([1.0, np.nan, 3.0, np.nan]), np.array(["a", "a", "b", "c"])
    mean, draws = why.resample([(values, groups)])
    assert mean == 2 and np.isfinite(draws).all() and set(draws.round(6)) <= {1.0, 2.0, 3.0}
    empty = (np.full(2, np.nan), groups[:2])
    assert why.resample([(values, groups), empty])[0] == 2  # a training whose maps are all empty has no say
    with pytest.raises(ValueError, match="no finite value in any of 1 trainings"):
        why.resample([empty])


def study(levels: dict[str, float], metric: str) -> why.Study:
    random, groups = np.random.default_rng(1), np.arange(200).astype(str)
    values = {
        (t, metric): [(level + 0.01 * random.normal(size=200), groups) for _ in range(2)] for t, level in levels.items()
    }
    return why.Study(pd.DataFrame(), values, [])


def test_effects_with_known_answers():
    levels = {"chest_ct": 0.4, "brain_mri": 0.5, "chest_xray": 0.4, "busi2": 0.3, "photographs": 0.35, "imagenet": 0.6}
    found = {e.claim: e for e in why.attention_effects(study(levels, "area"))}
    assert found["why-attention"].effect == pytest.approx(0.05, abs=0.005)
    assert found["why-attention-each"].effect == pytest.approx(-0.05, abs=0.005)
    assert found["why-attention-imagenet"].effect == pytest.approx(-0.2, abs=0.005)
    assert all(e.low < e.effect < e.high and e.n == 200 for e in found.values())
    verdicts = [evidence.verdict([e]) for e in found.values()]
    assert verdicts == ["supported", "contradicted", "contradicted"]
    both = study(levels, "sharpness").values | study(levels, "curvature").values
    claims = [e.claim for e in why.landscape_effects(why.Study(pd.DataFrame(), both, []))]
    assert claims == ["why-sharpness", "why-sharpness-each", "why-curvature"]


def test_attention_is_measured_recorded_and_drawn(networks, chosen):
    measured = why.attention(chosen)
    rows = measured.rows
    assert not rows.isna().any(axis=None)
    assert not rows.duplicated(["task", "seed", "metric", "x", "y"]).any()
    area = rows[(rows["metric"] == "area") & (rows["seed"] == "all")]
    assert set(area["task"]) == {*why.MEDICAL, why.NATURAL, why.HEAD} and set(area["x"]) == set(why.SHARES)
    one = next(why.asked({"chest_ct": [None]}, shown=10, crops=1))
    maps = explain.attention(networks, one.images, layer=networks.features)
    assert measured.values["chest_ct", "area"][0][0] == pytest.approx(explain.attention_area(maps).numpy())
    assert (rows[rows["metric"] == "accuracy"]["value"] == 1).all()
    effects = why.attention_effects(measured)
    assert [e.effect for e in effects] == pytest.approx([0] * 3, abs=0.02)  # one network everywhere
    record = evidence.record("assimilation/test", chosen, measured.trained, rows, effects, shown=10)
    assert "chest CT" in plots.why.attention(record).alt
    table = plots.why.scores(record).frame
    assert len(table) == 6 and table["accuracy"].iloc[-1] == "–" and "attended area" in table
    assert {model["dataset"] for model in record.provenance["models"]} == {*why.MEDICAL, why.NATURAL}


def test_the_landscape_is_measured_recorded_and_drawn(networks, chosen, monkeypatch):
    monkeypatch.setattr(why, "POINTS", 5)
    monkeypatch.setattr(why, "STRAIGHT", 9.63e-5)  # among the curvatures of this model
    measured = why.landscape(chosen)
    rows = measured.rows
    assert not rows.isna().any(axis=None)
    grid = rows[(rows["metric"] == "landscape") & (rows["task"] == "busi2")]
    assert len(grid) == 25 and grid["x"].max() == pytest.approx(4)
    line = grid[grid["y"] == 0].sort_values("x")["value"]
    assert line.is_monotonic_increasing and line.iloc[2] == 0  # along its gradient the loss of this model rises
    assert (rows[rows["metric"] == "sharpness"]["value"] >= 0).all()
    one = next(why.asked({"chest_ct": [None]}, shown=10, crops=1))
    draws = torch.Generator().manual_seed(one.seed)
    bend = explain.curvature(networks, one.images, one.labels, iterations=why.ITERATIONS, generator=draws)
    assert bend.min() < why.STRAIGHT < bend.max()
    found = measured.values["chest_ct", "curvature"][0][0]
    assert 10.0**found == pytest.approx(bend.double().clamp_min(why.STRAIGHT).numpy(), rel=1e-5)
    record = evidence.record("assimilation/test", chosen, measured.trained, rows, [], shown=10)
    for figure in (plots.why.landscapes(record), plots.why.slices(record), plots.why.sharpness(record)):
        assert "breast ultrasound" in figure.alt and "Smoke profile, phantom data" in figure.caption


def test_maps_outline_half_of_the_mass(networks, chosen):
    trained = [runs.Trained(networks, None, None, provenance(chosen.run))]
    rows = pd.DataFrame([{"task": "chest_ct", "value": 0.0}])
    record = evidence.record("assimilation/test", chosen, trained, rows, [], shown=10)
    shown = list(why.asked({"chest_ct": [chosen.run]}, shown=4, crops=1))
    assert "chest CT" in plots.why.maps(shown, record).alt


def test_textures_equal_scikit_images():
    images = {name: image for name, image in why.textures().items() if name in ("brick", "lung phantom")}
    assert all(image.shape == (1, 1, 224, 224) and image.dtype == torch.double for image in images.values())
    found = why.against_skimage(images, windows=2)
    assert len(found) == 2 * 6 and (found["opposite"] == 0).all()
    assert (found["difference"] / found["scikit-image"].abs().clip(lower=1)).max() < 1e-9
    kinds = found.set_index(["image", "feature"])["ours"]
    assert kinds["brick", "homogeneity, squared"] < kinds["brick", "homogeneity"]
    assert len(plots.why.oracle(found).frame) == 12


def test_monotony_leaves_flat_windows_out_and_asks_no_model(chosen):
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (3, 1, 40, 40)).astype(np.uint8)
    smooth = np.full((3, 1, 40, 40), 100, np.uint8)
    smooth[:, :, ::2, :20] += 10  # the left windows have stripes, the right ones nothing
    labels, groups = np.zeros(3, np.int64), np.array(["a", "b", "c"])
    made = {
        name: data.ImageSet(name, pixels, labels, groups, ("x",), False, "f")
        for name, pixels in [(key, smooth) for key in why.MEDICAL] + [(why.NATURAL, rough)]
    }
    measured, (effect,) = why.monotony(made)
    flat = measured.rows[measured.rows["metric"] == "flat"].set_index("task")["value"]
    assert flat["chest_ct"] == 0.5 and flat[why.NATURAL] == 0
    assert effect.claim == "glcm-monotonic" and effect.low > 0
    record = evidence.record("assimilation/test", chosen, list(made.values()), measured.rows, [effect], shown=9)
    assert record.provenance["data"]["shown"] == 3 and "busi2" in record.label
    assert "none is asked" in evidence.stamp(record).to_string(max_colwidth=None) and record.seeds == [0]
    assert "flat windows" in plots.why.profiles(record).alt


def test_texture_sets_have_the_slides_size(chosen):
    sets = why.texture_sets(chosen, count=2)
    assert list(sets) == [*why.MEDICAL, why.NATURAL]
    assert all(images.images.shape == (2, 1, 224, 224) for images in sets.values())
