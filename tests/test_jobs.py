"""Jobs: what a dry walk finds is what is trained, and a training costs what passes through its network."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpatlib import cli, data, documents, jobs, models, planning, records, runs, training
from hpatlib.documents import ultrasound
from hpatlib.documents.ultrasound import study
from hpatlib.hybrid import Adversary
from hpatlib.runs import Run
from hpatlib.training import Recipe

ROOT = Path(__file__).parents[1]
CHAPTERS = cli.chapters(ROOT)
RUN = Run("busi", False, 16, 48, "image", 1 / 3, "simple_cnn_bn", "scratch", Recipe(epochs=2, batch_size=16), seed=0)
SPEED = jobs.Speed(1e9, {}, "made up")


def walked(name: str, **parameters) -> planning.Noted:
    return jobs.walk(cli.cells(CHAPTERS[name]), {"profile": "smoke", "data": None, "seed": 0} | parameters)


def names(several) -> set[str]:
    return {runs.recipe(run) for run in several}


@pytest.mark.usefixtures("home")
def test_what_is_announced_is_what_is_trained_and_nothing_trains_before(monkeypatch):
    smoke = documents.toml("ultrasound", "profiles")["smoke"]  # which the walk and the study read alike
    monkeypatch.setitem(smoke, "count", 60)
    monkeypatch.setitem(smoke["recipe"], "epochs", 1)
    noted = walked("ultrasound/fig9_10_simple_cnn_eps005")
    assert noted.runs and not noted.later and not runs.trained()
    record = study.smaller_eps(ultrasound.choose("smoke", None, 0), 0.05)
    assert names(noted.runs) == runs.trained().keys()
    assert {about["key"] for about in runs.trained().values()} == {model.key for model in record.header.models}
    # A training that was announced is not loaded either.
    with pytest.raises(planning.Planned), planning.dry_walk(lambda run: True):
        runs.train_or_load(noted.runs[0])


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_model_of_a_record_was_announced(name):
    own = [record for record in records.of(name) if record.header.profile == "laptop" and record.real]
    noted = walked(name, profile="laptop", data="real")
    spreads = {runs.recipe(replace(run, spread=1.0)) for run in noted.later}
    for record in own:
        for model in record.header.models:
            run = runs.from_dict({"count": None} | model.run)
            kept = [each for each in noted.runs if each.seed == run.seed and each.model == run.model]
            alike = {runs.recipe(replace(each, count=run.count)) for each in kept}  # however many images were at hand
            assert runs.recipe(run) in alike or runs.recipe(replace(run, spread=1.0)) in spreads
    assert bool(noted.runs) == (name != "assimilation/glcm_texture")


def test_a_chapter_is_walked_up_to_its_first_training_and_then_where_its_parameters_suffice():
    made = [
        (["parameters"], "profile = 'smoke'"),
        ([], "from hpatlib import runs\nchosen = RUN\nrecord = runs.train_or_load(chosen)"),
        ([], "seen = chosen.seed\nprint(runs.train_or_load(other(chosen)), record)\nraise RuntimeError('not walked')"),
    ]
    noted = jobs.walk(made, {"RUN": RUN, "other": lambda run: replace(run, seed=run.seed + 1)})
    assert noted.runs == [RUN, replace(RUN, seed=1)]
    with pytest.raises(NameError):  # before the first training it is a fault of the chapter
        jobs.walk([([], "missing")], {})


def test_what_hangs_on_other_trainings_waits_for_them():
    later = [replace(RUN, seed=7)]

    def noted(*there: Run) -> planning.Noted:
        with pytest.raises(planning.Planned), planning.dry_walk(there.__contains__) as found:
            planning.announce([RUN], later=[replace(RUN, seed=99)], settle=lambda: later)
        return found

    assert (found := noted()).runs == [RUN] and found.later == [replace(RUN, seed=99)]
    assert (found := noted(RUN)).runs == [RUN, *later] and not found.later
    planning.announce([RUN], settle=lambda: pytest.fail("nothing is planned"))


@pytest.mark.usefixtures("home")
def test_planning_trains_nothing_where_a_stored_model_turns_out_to_be_another():
    before = set((runs.home() / "models").glob("*"))
    with pytest.raises(planning.Planned), planning.dry_walk(lambda run: True) as found:
        planning.announce([RUN], later=[replace(RUN, seed=99)], settle=lambda: [runs.train_or_load(RUN)])
    assert found.runs == [RUN] and found.later == [replace(RUN, seed=99)]
    assert set((runs.home() / "models").glob("*")) == before and runs.recipe(RUN) not in runs.trained()


def test_planning_counts_the_documents_images_where_none_are_at_hand(monkeypatch):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    noted = walked("assimilation/why_attention_region", profile="paper", data="real")
    assert noted.assumed and all(each in data.SOURCES for each in noted.assumed)
    with pytest.raises(FileNotFoundError):
        planning.even_count("chest_ct")


# As their authors print them, in 10⁹ multiplications with their additions, an image.
@pytest.mark.parametrize(
    ("model", "size", "printed"), [("resnet50", 224, 4.09), ("vgg16", 224, 15.5), ("resnet18", 224, 1.82)]
)
def test_operations_are_those_that_are_printed(model, size, printed):
    assert jobs.operations(model, size, 3) / 2e9 == pytest.approx(printed, rel=0.02)


@pytest.mark.parametrize(
    "adversary",
    [
        None,
        Adversary(eps=0.1, step=0.05, iterations=3),
        Adversary(rotation=30.0, evaluations=5),
        Adversary(eps=0.1, step=0.05, iterations=2, rotation=30.0, translation=1.0, evaluations=4),
        Adversary(eps=0.1, step=0.05, iterations=2, rotation=30.0, evaluations=4, literal=True),
        Adversary(eps=0.1, step=0.02, iterations=8, warmup=1),
    ],
)
def test_work_is_what_passes_through_the_network(adversary):
    run = replace(RUN, adversary=adversary)
    images = data.load("busi", real=False, size=run.size, count=run.count)
    train, _ = data.split(images, by=run.split_by, test=run.test)
    model = models.build(run.model, 3, in_channels=1, size=run.size, weights="scratch")
    forward, backward = [], []
    model.register_forward_hook(lambda module, inputs, output: forward.append(len(output)))
    model.backbone[-1].register_full_backward_hook(lambda module, inputs, outputs: backward.append(len(outputs[0])))
    training.fit(model, train, run.recipe, attack=adversary)
    counted = (sum(forward) + jobs.BACKWARD * sum(backward)) * jobs.operations(run.model, run.size, 1)
    assert jobs.work(run, len(images)) == pytest.approx(counted, rel=0.1)


def test_a_plan_on_one_device_takes_the_sum_and_on_many_the_longest_of_each_stage():
    own = [jobs.Training(replace(RUN, seed=k), ("a",), 100.0 * (k + 1), 1, done=k == 3, waits=k == 2) for k in range(4)]
    chapters = (jobs.Chapter("a", 50.0, 1, True), jobs.Chapter("b", 70.0, 1, False))
    plan = jobs.Plan("smoke", False, tuple(own), chapters, {"cnmc": 5}, ("vgg16",), SPEED)
    assert jobs.wall(plan, 1) == 100 + 200 + 300 + 120 and jobs.wall(plan, 9) == 200 + 300 + 70
    told = jobs.summary(plan, (1, 9))
    assert (told["trainings"], told["waiting"], told["done"]) == (3, 1, 1) and told["wall"] == {"1": 720, "9": 570}
    text = jobs.report(json.loads(json.dumps(told)))
    assert "3 trainings to do, 1 of them decided by others' results, 1 are there; 2 chapters" in text
    assert "cnmc, taken to have 5 images" in text and "vgg16" in text
    assert jobs.wall(plan, 2) >= (jobs.wall(plan, 1)) / 2
    assert jobs.costs(plan) == {"a": 50 + 100 + 200 + 300, "b": 70}  # what is trained already costs nothing


def test_each_network_has_the_speed_that_its_own_trainings_had(monkeypatch):
    other = replace(RUN, model="other")
    kinds = ((RUN, 100.0), (RUN, 300.0), (RUN, 200.0), (other, 50.0), (other, 1.0))  # the last is too short to tell
    kinds += ((replace(RUN, dataset="scans"), 900.0),)  # somebody's own images
    data, device = {"train": 100, "test": 50}, "CPU, 1 thread"
    there = [{"run": runs.to_dict(r), "data": data, "seconds": s, "device": device} for r, s in kinds]
    monkeypatch.setattr(runs, "trained", lambda: dict(enumerate(there)))
    monkeypatch.setattr(jobs, "operations", lambda *_: 1e6)
    speed, images = jobs._speed(False), round(100 / (1 - RUN.test))
    assert speed.seconds(RUN, images) == pytest.approx(jobs.STARTING + 200, rel=1e-3)
    assert speed.seconds(other, images) == pytest.approx(jobs.STARTING + 50, rel=1e-3)
    assert speed.seconds(replace(RUN, model="third"), images) == pytest.approx(jobs.STARTING + 400 / 3, rel=1e-3)
    assert speed.source == "median of 4 trainings here"
    assert jobs._speed(True).networks == {}  # they ran on a processor


def test_jobs_of_a_cluster_know_their_needs_and_their_parents(tmp_path):
    static = replace(RUN, static_eps=0.1)
    own = tuple(jobs.Training(run, ("a",), 90.0, 5000, done=False) for run in (RUN, static))
    plan = jobs.Plan("paper", True, own, (jobs.Chapter("a", 60.0, 4000, True),), {}, (), SPEED)
    todo = jobs.prepare(plan, tmp_path)
    needs = json.loads((tmp_path / "needs.json").read_text())
    assert todo == [runs.recipe(RUN), runs.recipe(static)] and needs[todo[1]]["after"] == [todo[0]]
    assert needs[todo[0]] == {"mem_mb": 5000, "runtime": 13, "gpu": 1, "after": []} and "after" not in needs["a"]
    assert runs.from_dict(json.loads((tmp_path / f"{todo[1]}.json").read_text())["run"]) == static


@pytest.mark.usefixtures("home")
def test_a_recipe_is_trained_once_and_another_file_is_refused(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"run": runs.to_dict(RUN)}))
    first, again = (CliRunner().invoke(cli.app, ["train", str(recipe)]) for _ in range(2))
    assert first.exit_code == 0 and first.stdout == again.stdout
    assert runs.trained()[runs.recipe(RUN)]["key"] == first.stdout.strip()
    recipe.write_text('{"run": {"dataset": "busi"}}')
    refused = CliRunner().invoke(cli.app, ["train", str(recipe)])
    assert refused.exit_code == 2 and "is no recipe" in refused.stderr


def test_an_unknown_chapter_is_refused_before_anything_is_planned():
    refused = CliRunner().invoke(cli.app, ["book", "--chapter", "hpat/fig9", "--dry-run"])
    assert refused.exit_code == 2 and "unknown chapter hpat/fig9" in refused.stderr


def test_the_kept_plan_is_what_a_dry_run_says_today(monkeypatch, tmp_path):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path))
    told = jobs.summary(jobs.plan(CHAPTERS, cli.cells, "paper", "real", gpu=True), (1, 8, 64))
    kept = json.loads((ROOT / "benchmarks/plan.json").read_text("utf-8"))
    found = [{row["chapter"]: (row["trainings"], row["new"]) for row in each["chapters"]} for each in (told, kept)]
    assert found[0] == found[1], "make plan counts anew"
    assert kept["training"] == pytest.approx(told["training"], rel=0.05), "make plan counts anew"
