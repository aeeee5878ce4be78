"""Measuring: attacks are what their names say, rows are what models answered, and a study keeps no more than that."""

import gc
import shutil
import time
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import World, forget
from torch import nn

from hpatlib import attacks, claims, measure, records, runs
from hpatlib.data import ImageSet
from hpatlib.documents import hpat
from hpatlib.hybrid import Adversary, environment, fixed, pixel_and_rotation
from hpatlib.measure import Study
from hpatlib.records import Images, Model
from hpatlib.runs import train_or_load
from hpatlib.training import Recipe
from hpatlib.worst_case import worst_case


class Left(nn.Module):
    """Class 1 where the left half is brighter: a turn by 180° flips it, noise hardly does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        left, right = images.mean(1).chunk(2, dim=2)
        margin = self.scale * (left.mean((1, 2)) - right.mean((1, 2)))
        return torch.stack([-margin, margin], dim=1)


def image_set(labels: np.ndarray, classes: tuple[str, ...] = ("right", "left")) -> ImageSet:
    """Images whose brighter half is their label's."""
    images = np.full((len(labels), 3, 16, 16), 90, np.uint8)
    for n, label in enumerate(labels):
        images[n, :, :, slice(0, 8) if label else slice(8, 16)] += 40 + 5 * n
    return ImageSet("halves", images, labels, np.arange(len(labels)) // 3, classes, False, "f00d")


@pytest.fixture
def halves() -> ImageSet:
    return image_set(np.arange(12) % 2)


# Rows.


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_rows_hold_what_was_answered_and_by_how_much(classes):
    generator = torch.Generator().manual_seed(classes)
    labels = np.arange(30) % classes
    images = image_set(labels, tuple("abcde"[:classes]))
    answers = torch.randn(30, classes, generator=generator)
    rows = measure.rows(images, answers, attack="PGD", loss=np.arange(30.0))
    assert rows["prediction"].tolist() == answers.argmax(dim=1).tolist() and rows["label"].tolist() == labels.tolist()
    assert rows["image"].tolist() == [str(n) for n in range(30)]
    assert rows["group"].tolist() == [f"halves/{n // 3}" for n in range(30)]  # sets of one record stay apart
    assert set(rows["attack"]) == {"PGD"} and rows["loss"].tolist() == list(range(30))
    for row, answer in zip(rows.to_dict("records"), answers.double().tolist(), strict=True):
        if classes == 2:
            margin = answer[1] - answer[0]
            assert (margin > 0) == (row["prediction"] == 1)
        else:
            margin = answer[row["label"]] - max(a for k, a in enumerate(answer) if k != row["label"])
            assert (margin > 0) == (row["prediction"] == row["label"])
        assert row["margin"] == pytest.approx(margin)


def test_margins_are_taken_in_double_precision_and_fit_into_half():
    images = image_set(np.array([0, 1, 1]))
    answers = torch.tensor([[1e6, -1e6], [-1e6, 1e6], [16777216.0, 16777217.0]], dtype=torch.float64)
    assert measure.rows(images, answers)["margin"].tolist() == [-65504, 65504, 1]
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="answers must be finite, found 1 that are not"):
            measure.rows(images, torch.tensor([[0.0, 1], [broken, 0], [0, 0]]))


# Answers.


def test_answers_do_not_depend_on_batches_and_leave_the_model_as_it_was(model, images):
    model.train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    whole, parts = measure.logits(model, images), measure.logits(model, images, batch_size=4)
    torch.testing.assert_close(whole, parts)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(whole, model.eval()(images))


def test_answers_to_a_set_are_those_to_its_tensors(halves):
    expected = Left()(halves.tensors()[0]).detach()
    assert torch.equal(measure.logits_of(Left(), halves, batch_size=5), expected)


def test_each_attack_sees_every_image_once_and_none_is_the_clean_one(halves):
    seen = []

    def turned(model, images, labels):
        seen.append((len(images), labels.tolist()))
        return images.flip(-1)

    answers = dict(measure.attacked(Left(), halves, {"clean": None, "turned": turned}, batch_size=5))
    assert list(answers) == ["clean", "turned"]
    assert [count for count, _ in seen] == [5, 5, 2] and [k for _, labels in seen for k in labels] == [0, 1] * 6
    assert torch.equal(answers["clean"], measure.logits_of(Left(), halves))
    assert torch.equal(answers["turned"], Left()(halves.tensors()[0].flip(-1)).detach())
    assert (answers["clean"].argmax(1) != answers["turned"].argmax(1)).all()


def test_attacks_may_ask_another_network_and_the_model_itself_answers(halves):
    asked = []

    class Other(Left):
        def forward(self, images):
            return -super().forward(images)

    def towards(model, images, labels):
        asked.append(type(model).__name__)
        return attacks.fgsm(model, images, labels, eps=0.5)

    here = dict(measure.attacked(Left(), halves, {"fgsm": towards, "clean": None}))
    there = dict(measure.attacked(Left(), halves, {"fgsm": towards, "clean": None}, asked=Other()))
    assert asked == ["Left", "Other"] and torch.equal(here["clean"], there["clean"])
    assert (here["fgsm"].argmax(1).numpy() != halves.labels).all()  # an attack on the opposite network helps this one
    assert (there["fgsm"].argmax(1).numpy() == halves.labels).all()


class Held:
    """Six images as a data set."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def batches(self, batch_size, device="cpu"):
        yield self.images, self.labels


def test_environments_are_pgd_then_one_transform_or_the_worst(model, images, labels):
    held = Held(images, labels)
    places = [environment(0, size=16), environment(2, size=16), pixel_and_rotation(2, 0), pixel_and_rotation(0, 60)]
    found = measure.environments(model, held, places, searches=6, seed=3)
    clean = measure.logits(model, images)
    assert torch.equal(found["H0", "fixed"], clean) and torch.equal(found["H0", "searched"], clean)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    pixel = attacks.pgd(
        model, images, labels, eps=2 / 255, step=1 / 255, iterations=2, start="gaussian", generator=generator
    )
    assert torch.equal(found["2/255, 0°", "searched"], measure.logits(model, pixel))
    shift = 4 * 16 / 300
    turned = fixed(model, pixel, labels, s=(shift, shift, 60.0))
    torch.testing.assert_close(found["H2", "fixed"], measure.logits(model, turned))
    still = fixed(model, images, labels, s=(0.0, 0.0, 60.0))
    torch.testing.assert_close(found["0/255, 60°", "fixed"], measure.logits(model, still))
    loss = {key: torch.nn.functional.cross_entropy(answer, labels) for key, answer in found.items()}
    # The search starts from the untouched picture, so it is never milder than PGD alone.
    assert loss["H2", "searched"] >= loss["2/255, 0°", "fixed"] - 1e-6
    alone = measure.environments(model, held, places[1:2], searches=6, seed=3)
    assert all(torch.equal(alone[key], found[key]) for key in alone)  # whatever else was asked for
    other = measure.environments(model, held, places[1:2], readings=["fixed"], seed=4)
    assert list(other) == [("H2", "fixed")] and not torch.equal(other["H2", "fixed"], found["H2", "fixed"])
    with pytest.raises(ValueError, match="unknown reading 'hardest': choose fixed, searched or worst"):
        measure.environments(model, held, places, readings=("hardest",))


def test_the_worst_case_is_no_milder_than_any_of_its_parts(model, images, labels, monkeypatch):
    """For each image: the search, the suite of pixel attacks, another search, the ascent; of those still right."""
    labels = measure.logits(model, images).argmax(dim=1)
    held, parts = Held(images, labels), []
    place = environment(2, size=16)

    def suite(model, images, labels, *, queries, **given):
        assert queries == 44
        found = worst_case(model, images, labels, iterations=3, restarts=1, queries=4, **given)
        parts.append((images, labels, found.images))
        return found

    monkeypatch.setattr(measure, "SUITE", suite)
    found = measure.environments(model, held, [place], readings=["searched", "worst"], searches=8, queries=44, seed=3)

    def margin(answers, labels):
        own = answers.gather(1, labels[:, None]).squeeze(1)
        return own - answers.scatter(1, labels[:, None], -torch.inf).amax(dim=1)

    worst, searched = found["H2", "worst"], found["H2", "searched"]
    assert (margin(worst, labels) <= margin(searched, labels)).all()
    ((asked, told, made),) = parts
    left = searched.argmax(dim=1) == labels
    assert torch.equal(asked, images[left]) and torch.equal(worst[~left], searched[~left])
    assert (margin(worst[left], told) <= margin(measure.logits(model, made), told) + 1e-6).all()
    assert (made - asked).abs().max() <= 2 / 255 + 1e-6
    # Without a pixel part the suite is not asked, and without a transform nothing is searched.
    still = measure.environments(model, held, [pixel_and_rotation(0, 60)], readings=["worst"], searches=8)
    assert len(parts) == 1 and list(still) == [("0/255, 60°", "worst")]
    monkeypatch.setattr(measure, "stbo", None)
    measure.environments(model, held, [pixel_and_rotation(2, 0)], readings=["worst"], searches=8, queries=44)
    assert len(parts) == 2


@pytest.mark.parametrize("finder", ["stbo", "gradient_ascent"])
def test_the_worst_case_asks_another_search_and_the_gradients_about_noisy_images(finder, halves, monkeypatch):
    clean, seen = halves.tensors()[0], {"stbo": [], "gradient_ascent": []}

    def search(name):
        def ask(model, images, labels, box, **_):
            seen[name].append(images)
            finds = name == finder and len(seen[name]) == (2 if name == "stbo" else 1)  # the first STBO is "searched"
            return SimpleNamespace(images=images.flip(-1) if finds else images)

        return ask

    for name in seen:
        monkeypatch.setattr(measure, name, search(name))
    monkeypatch.setattr(measure, "SUITE", lambda model, images, labels, **_: SimpleNamespace(images=images))
    found = measure.environments(Left(), halves, [pixel_and_rotation(2, 180)], readings=["worst"])
    assert (found["2/255, 180°", "worst"].argmax(dim=1).numpy() != halves.labels).all()
    assert all(0 < (each - clean).abs().max() <= 2 / 255 + 1e-6 for several in seen.values() for each in several)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_hardest_answer_is_the_one_with_the_least_margin(classes):
    answers = [torch.randn(40, classes, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    labels = torch.arange(40) % classes
    found = measure.hardest(answers, labels)
    for n, label in enumerate(labels.tolist()):
        margins = [float(a[n, label] - max(v for k, v in enumerate(a[n]) if k != label)) for a in answers]
        assert torch.equal(found[n], answers[int(np.argmin(margins))][n])
    assert torch.equal(measure.hardest(answers[:1], labels), answers[0])


def test_the_worst_of_many_turns_is_found_and_one_fixed_turn_may_do_no_harm(halves):
    place = pixel_and_rotation(0, 180)
    found = measure.environments(Left(), halves, [place], searches=30, batch_size=5)
    labels = torch.from_numpy(halves.labels)
    assert (found[place.name, "searched"].argmax(1) != labels).all()
    assert (found[place.name, "fixed"].argmax(1) != labels).all()
    still = measure.environments(Left(), halves, [pixel_and_rotation(0, 30)], searches=30)
    assert (still["0/255, 30°", "fixed"].argmax(1) == labels).all()


def test_a_sample_is_evenly_spaced(halves):
    assert measure.sample(halves, 4).ids.tolist() == halves.ids[[0, 4, 7, 11]].tolist()
    assert len(measure.sample(halves, 99)) == 12
    assert measure.spaced(12, 4).tolist() == [0, 4, 7, 11] and measure.spaced(3, 9).tolist() == [0, 1, 2]


# A study.


@pytest.fixture(scope="module")
def chosen(home):
    """The smoke profile of the leukemia paper, smaller still."""
    smoke = hpat.choose("smoke", None, 4)
    run = replace(smoke.run, model="simple_cnn", count=90, recipe=Recipe(epochs=1, batch_size=32))
    return replace(smoke, run=run, settings=smoke.settings)


@pytest.fixture(scope="module")
def trained(chosen):
    return train_or_load(chosen.run)


CHAPTER = "hpat/table1_benchmarks"


def answers_of(trained) -> pd.DataFrame:
    return measure.rows(trained.test, measure.logits_of(trained.model, trained.test))


def test_outcomes_need_the_studys_conditions(chosen, trained):
    study, rows = Study(CHAPTER, chosen, ["network", "environment"]), answers_of(trained)
    wrong = [
        {},
        {"network": "a"},
        {"network": "a", "environment": "H0", "reading": "clean"},
        {"network": "a", "eps": 1},
    ]
    for given in wrong:
        with pytest.raises(ValueError, match=r"need the conditions \('network', 'environment'\), found "):
            study.add(trained, rows, **given)
    study.add(trained, rows.assign(environment="H0"), network="a")  # a condition may be a column
    study.add(trained, rows, network="a", environment=1)
    assert study.record().outcomes.values("environment") == ["H0", "1"]


def test_a_record_has_what_was_measured_and_where_it_came_from(chosen, trained):
    attacked = train_or_load(
        replace(chosen.run, adversary=Adversary(eps=2 / 255, step=2 / 255), seed=5), device=runs.default_device()
    )
    study = Study(CHAPTER, chosen, ["network", "environment"])
    for each, name in ((trained, "clean"), (attacked, "attacked"), (trained, "again")):
        study.add(each, answers_of(each), network=name, environment="H0")
    table = pd.DataFrame({"line": ["3", "4"], "loss": [0.5, np.nan], "count": [np.int64(2), np.int64(3)]})
    study.table("steps", table)
    record = study.record()
    assert record.header == records.read(records.scratch() / CHAPTER / "smoke-phantom-seed4.json").header
    head = record.header
    assert (head.chapter, head.profile, head.data, head.seed) == (CHAPTER, "smoke", "phantom", 4)
    assert head.conditions == ("network", "environment") and head.claims == claims.check(CHAPTER) != {}
    days = [time.strftime("%Y-%m-%d", time.gmtime(time.time() - ago)) for ago in (0, 60)]  # over midnight too
    assert head.date in days and 0 < head.seconds < 600
    assert head.tables == {"steps": [{"line": "3", "loss": 0.5, "count": 2}, {"line": "4", "count": 3}]}
    assert head.environment == runs.environment(runs.default_device())
    first, second = head.models
    assert [m.key for m in head.models] == [trained.provenance["key"], attacked.provenance["key"]]
    assert [m.start for m in head.models] == ["scratch", "scratch"]
    assert (first.seed, second.seed) == (4, 5) and record.seeds == [4, 5]
    assert first.baseline and not second.baseline
    guess = trained.model(trained.test.tensors()[0]).argmax(dim=1).numpy()
    assert first.accuracy == pytest.approx((guess == trained.test.labels).mean(), abs=1e-5)
    assert first.trivial == pytest.approx(np.bincount(trained.test.labels).max() / len(trained.test), abs=1e-5)
    assert (first.train, first.test) == (len(trained.train), len(trained.test))
    assert first.losses == [round(epoch["loss"], 5) for epoch in trained.provenance["epochs"]]
    assert first.network == "simple_cnn (scratch)" and first.run["split_by"] == "patient"
    assert "adversary" not in first.run and second.run["adversary"]["eps"] == 2 / 255
    # Each phantom set follows from its seed.
    assert [i.fingerprint for i in head.images] == [t.provenance["data"]["fingerprint"] for t in (trained, attacked)]
    assert head.images[0] == Images("phantom-cells", head.images[0].fingerprint, 90, 32)
    o = record.outcomes
    assert o.accuracy["clean", "H0"].value == pytest.approx(first.accuracy, abs=1e-5)
    assert o.accuracy["clean", "H0"].trainings == (4,) and o.accuracy["attacked", "H0"].trainings == (5,)
    assert o.accuracy["again", "H0"].leaves[0].models == {0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"front": "replicated"}, True),
        ({"front": "assimilated"}, False),
        ({"static_eps": 0.1}, False),
        ({"mixbn": True}, False),
        ({"objective": {"alpha": 0.5}}, False),
    ],
)
def test_a_baseline_is_trained_on_clean_images_without_any_treatment(chosen, trained, changed, expected):
    about = trained.provenance | {"run": trained.provenance["run"] | changed}
    study = Study(CHAPTER, chosen, ["network"])
    study.model(replace(trained, provenance=about))
    (model,) = study.models.values()
    assert model.baseline is expected


def test_a_dose_is_taken_down_and_models_from_elsewhere_are_kept_as_they_are(chosen, trained):
    study = Study(CHAPTER, chosen, ["network"])
    dosed = replace(trained, provenance=trained.provenance | {"dose": {"spread": 0.02}, "key": "another"})
    elsewhere = Model("elsewhere", {"model": "resnet50", "weights": "imagenet"})
    assert [study.model(each) for each in (elsewhere, dosed, trained, elsewhere, dosed)] == [0, 1, 2, 0, 1]
    made = study.record().header.models
    assert made[0] == elsewhere and made[1].dose == {"spread": 0.02} and made[2].dose == {}


def test_a_study_without_a_model_has_images_and_no_trainings(chosen, halves):
    study = Study(CHAPTER, chosen, ["network"])
    study.saw(halves)
    study.saw(halves)
    study.add(None, pd.DataFrame(measure.named(halves)).assign(texture=np.arange(12.0)), network="none")
    record = study.record()
    assert record.header.images == [Images("halves", "f00d", 12, 16)] and record.header.models == []
    texture = record.outcomes.mean("texture")["none"]
    assert texture.value == 5.5 and texture.trainings is None and len(texture.clusters) == 4


def test_a_study_that_measured_nothing_can_still_be_recorded(chosen):
    record = Study(CHAPTER, chosen, ["network"]).record()
    assert len(record.outcomes.rows) == 0 and record.seeds == [4]


def step_by_step(chosen, trained, *, stop: int | None = None, done: list[int] | None = None) -> records.Record | None:
    """A study of four steps with outcomes, columns and tables of their own; stopped in the middle of one of them."""
    study = Study(CHAPTER, chosen, ["network", "environment"])
    for number in study.steps(range(4), lambda number: f"{trained.provenance['key']} {number // 2}"):
        if done is not None:
            done.append(number)
        other = Model(f"other {number}", {"model": "m", "weights": "w"}) if number else trained
        rows = answers_of(trained).assign(**{f"value {number % 2}": np.linspace(number, number + 1, len(trained.test))})
        study.add(other, rows, network=f"n{number}", environment=number)
        if number == stop:
            raise KeyboardInterrupt
        study.add(trained, answers_of(trained), network=f"n{number}", environment="again")
        study.table("notes", pd.DataFrame({"number": [number], "share": [number / 3]}))
    study.table("sum", study.taken("notes").agg({"share": ["sum"]}))
    return study.record()


def test_a_study_that_was_stopped_goes_on_at_the_step_it_was_in(chosen, trained):
    whole = step_by_step(chosen, trained)
    for stop in range(4):
        done: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            step_by_step(chosen, trained, stop=stop, done=done)
        again = step_by_step(chosen, trained, done=done)
        assert done == [*range(stop + 1), *range(stop, 4)]  # the step in which it was stopped was begun anew
        assert again.header.sha256 == whole.header.sha256 and again.header.tables == whole.header.tables
        assert again.header.models == whole.header.models and again.header.images == whole.header.images
        assert not list((runs.home() / "measured").rglob("*.*"))  # nothing is kept once there is a record


@pytest.mark.parametrize("damaged", [".json", ".parquet"])
def test_a_damaged_step_is_measured_anew_and_says_so(chosen, trained, damaged):
    whole, done = step_by_step(chosen, trained), []
    with pytest.raises(KeyboardInterrupt):
        step_by_step(chosen, trained, stop=1)
    (kept,) = (runs.home() / "measured").rglob(f"*{damaged}")
    kept.write_bytes(kept.read_bytes().replace(b"e", b"a"))
    with pytest.warns(UserWarning, match="damaged.*: its step is measured anew"):
        again = step_by_step(chosen, trained, done=done)
    assert done == [0, 1, 2, 3] and again.header.sha256 == whole.header.sha256


@pytest.mark.parametrize("other", ["profile", "seed", "settings", "source", "model"])
def test_what_decides_a_step_is_part_of_its_name(chosen, trained, other, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        step_by_step(chosen, trained, stop=3)
    asked, model, done = chosen, trained, []
    if other == "source":
        monkeypatch.setattr(measure, "SOURCE", "another library")
    elif other == "model":
        model = replace(trained, provenance=trained.provenance | {"key": "another"})
    elif other == "settings":
        asked = replace(chosen, settings=msgspec.structs.replace(chosen.settings, shown=3))
    else:
        asked = replace(chosen, **{other: {"profile": "laptop", "seed": 5}[other]})
    step_by_step(asked, model, done=done)
    assert done == [0, 1, 2, 3]
    shutil.rmtree(runs.home() / "measured", ignore_errors=True)


def reachable(start: object) -> list[object]:
    """Everything that ``start`` holds, through containers and objects, but not through classes and modules."""
    found, todo = {}, [start]
    while todo:
        one = todo.pop()
        if id(one) in found or isinstance(one, type) or type(one).__name__ in ("module", "function"):
            continue
        found[id(one)] = one
        todo += gc.get_referents(one)
    return list(found.values())


def test_a_study_keeps_neither_models_nor_pixels(chosen):
    trained = train_or_load(chosen.run)
    study = Study(CHAPTER, chosen, ["network", "environment"])
    for name, answers in measure.attacked(trained.model, trained.test, {"H0": None}):
        study.add(trained, measure.rows(trained.test, answers), network="a", environment=name)
    held = reachable(study)
    assert not any(isinstance(one, nn.Module | torch.Tensor | ImageSet) for one in held)
    assert not any(isinstance(one, np.ndarray) and one.nbytes > 100_000 for one in held)
    assert any(isinstance(one, pd.DataFrame) for one in held)  # the walk went deep enough
    model = weakref.ref(trained.model)
    del trained, answers, held
    gc.collect()
    assert model() is None and len(study.record().outcomes.rows) == study.parts[0].shape[0]


def test_claims_are_checked_before_anything_is_measured(chosen, tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, {"gain": lambda o: o.accuracy["a"]})
    world.rule({"id": "good"})
    assert Study("made/fig1", chosen, ["network"]).claims.keys() == {"good"}
    world.rule({"id": "bad", "quantity": "lift"})
    with pytest.raises(ValueError, match="claim 'bad' needs the quantity 'lift'"):
        Study("made/fig1", chosen, ["network"])
    monkeypatch.undo()
    forget()


def test_hybrid_training_makes_phantom_cells_robust_to_hybrid_perturbations(home):
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
    for run in hpat.choose("smoke", None, 0).runs(2):
        run, robust = replace(run, count=384), []
        for attack in (None, adversary):
            found = train_or_load(replace(run, adversary=attack))
            few = measure.sample(found.test, 96)
            answers = measure.environments(found.model, few, [place], searches=20, seed=run.seed)
            robust.append((answers["H3", "searched"].argmax(dim=1).numpy() == few.labels).mean())
        gains.append(robust[1] - robust[0])
    assert np.mean(gains) > 0.05, gains


def test_the_seed_of_a_search_is_the_one_asked_for(halves):
    place = environment(2, size=16)
    ask = partial(measure.environments, Left(), halves, [place], searches=4, readings=["searched"])
    assert torch.equal(ask(seed=1)["H2", "searched"], ask(seed=1)["H2", "searched"])
