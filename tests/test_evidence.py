"""Which records of real images are missing or stale, their order, and making them: with made-up records and runs."""

import subprocess
from pathlib import Path

import msgspec
import pytest
from made_up import World, forget, model, record
from typer.testing import CliRunner

from hpatlib import claims, cli, evidence, runs, worst_case
from hpatlib.evidence import Job

invoke = CliRunner().invoke
HEAD = "# A chapter\n\n| profile | images | time |\n|---|---|---|\n"
RIGHT = {("before",): 0.5, ("after",): 0.8}
CONDITIONS = ("place",)
RUN = {"dataset": "cnmc", "real": True, "size": 64, "split_by": "patient", "test": 0.5, "model": "resnet50"}
RUN |= {"weights": "scratch", "recipe": {"epochs": 1, "batch_size": 8}, "seed": 0}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three chapters: fig1 is quick with one claim, fig2 is slow with two, fig3 has none and no table of costs."""
    quantities = {"gain": lambda o: o.accuracy["after"] - o.accuracy["before"], "other": lambda o: o.accuracy["absent"]}
    (tmp_path / "hpatlib").mkdir()
    made = World(tmp_path / "hpatlib", monkeypatch, quantities)
    made.rule({"id": "rises"}, {"id": "again", "chapter": "made/fig2"}, {"id": "more", "chapter": "made/fig2"})
    made.write("profiles", {"laptop": {"size": 64}})
    (tmp_path / "_config.yml").touch()
    (tmp_path / "notebooks/made").mkdir(parents=True)
    costs = {"fig1": "| laptop | 8 | 10 min |\n", "fig2": "| laptop | 8 | 1½ h after figure 1 |\n", "fig3": ""}
    for name, rows in costs.items():
        (tmp_path / f"notebooks/made/{name}.md").write_text(HEAD + rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HPAT_DATA", str(tmp_path))
    yield made
    monkeypatch.undo()
    forget()


def plan(world) -> list[Job]:
    forget()
    return evidence.plan(cli.chapters(cli.checkout()), "laptop")


def measured(world, chapter="made/fig1", **changed):
    models = [model(seed, key=f"network-{seed}", run=RUN | {"seed": seed}) for seed in range(6)]
    given = {"claims": claims.check(chapter), "models": models} | changed
    return record(world.evidence, chapter, CONDITIONS, RIGHT, **given)


def test_what_is_missing_comes_by_open_claims_a_second(world):
    assert plan(world) == [
        Job("made/fig1", "laptop", "missing", 1, 600),
        Job("made/fig2", "laptop", "missing", 2, 5400),
        Job("made/fig3", "laptop", "missing", 0, evidence.UNKNOWN),
    ]


def test_what_chapters_are_told_to_cost_decides_their_order(world):
    costs = {"made/fig1": 9000.0, "made/fig2": 60.0, "made/fig3": 1.0}
    found = evidence.plan(cli.chapters(cli.checkout()), "laptop", costs)
    assert [(job.chapter, job.seconds) for job in found] == [("made/fig2", 60), ("made/fig1", 9000), ("made/fig3", 1)]


def test_a_record_that_stands_is_left_alone_and_another_profile_or_phantoms_are_none(world):
    measured(world)
    measured(world, "made/fig2", profile="study")
    measured(world, "made/fig3", data="phantom")
    assert [job.chapter for job in plan(world)] == ["made/fig2", "made/fig3"]


def test_a_changed_claim_and_one_that_needs_more_make_a_record_stale(world):
    measured(world, seconds=30.0)
    world.rule({"id": "rises", "threshold": 0.1})
    (first, *_) = plan(world)
    assert first.why == "stale: claims changed (rises)" and first.seconds == 30
    world.rule({"id": "rises"}, {"id": "new", "quantity": "other"})
    (first, *_) = plan(world)
    assert first.why == "stale: it lacks what new needs" and first.open_claims >= 1
    # Measured for that claim and without what it needs, as where a profile has not the networks: again is no better.
    measured(world)
    assert "made/fig1" not in [job.chapter for job in plan(world)]


def test_what_a_larger_record_lacks_is_not_laid_to_the_smaller(world):
    world.rule({"id": "rises"})
    measured(world)
    stands = [job.chapter for job in plan(world)]
    world.rule({"id": "rises", "quantity": "other"})
    measured(world, profile="study")  # the one that is judged, and it has not what the claim needs
    measured(world)
    assert "made/fig1" not in stands and "made/fig1" not in [job.chapter for job in plan(world)]


def test_what_a_record_took_counts_its_trainings(world):
    made = measured(world, seconds=30.0)
    models = [msgspec.structs.replace(each, seconds=20.0) for each in made.header.models]
    measured(world, seconds=30.0, models=models, claims={"gone": "0"})
    assert next(job for job in plan(world) if job.chapter == "made/fig1").seconds == 20 * len(models)


@pytest.fixture
def commit(world, tmp_path, monkeypatch):
    """The made-up document under version control, and the library's own behaviour versions beside it."""
    path = tmp_path / "hpatlib" / "runs.py"
    path.write_text(f"BEHAVIOUR = {runs.BEHAVIOUR}\n")
    monkeypatch.setattr(runs, "__file__", str(path))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_list_of_networks_matters_to_records_that_asked_all_of_them(world):
    made, others = measured(world), [["resnet50", "scratch"], ["vgg16", "imagenet"]]  # its models: the first
    then, now = {"size": 64, "networks": others}, {"size": 64, "networks": others[:1]}
    assert evidence._same(then, now, made) and not evidence._same(now, then, made)
    assert not evidence._same(then, now | {"size": 32}, made)
    assert not evidence._same({}, now, made)
    assert not evidence._same(then, then | {"networks": others[1:]}, made)  # one that was asked is gone


def test_how_adversarial_trainings_are_trained_matters_to_records_that_asked_one(world):
    now = {"size": 64, "warmup": 5, "strategy": {"epochs": 10}}
    assert evidence._same({"size": 64}, now, measured(world))
    runs_ = [RUN | {"seed": seed} | ({"adversary": {"eps": 0.1}} if seed == 5 else {}) for seed in range(6)]
    against = measured(world, models=[model(seed, key=f"m{seed}", run=run) for seed, run in enumerate(runs_)])
    assert not evidence._same({"size": 64}, now, against) and not evidence._same(now | {"warmup": 4}, now, against)


def test_what_asks_why_has_trainings_of_its_own(world):
    then, now = {"size": 64, "why_trainings": 6}, {"size": 64, "why_trainings": 12}
    assert evidence._same(then, now, measured(world))
    assert not evidence._same(then, now, measured(world, "made/why_fig1", claims={}))


def test_a_changed_profile_and_changed_behaviour_make_a_record_stale(world, commit, monkeypatch):
    measured(world, environment={"commit": f"{commit}-dirty", "device": "CPU", "versions": {}})
    stands = ["made/fig2", "made/fig3"]
    assert [job.chapter for job in plan(world)] == stands
    monkeypatch.setitem(runs.BEHAVIOUR, "stbo", 99)  # its models did not go through it
    assert [job.chapter for job in plan(world)] == stands
    today = runs.BEHAVIOUR["models"]
    monkeypatch.setitem(runs.BEHAVIOUR, "models", 99)
    assert (
        next(job.why for job in plan(world) if job.chapter == "made/fig1")
        == f"stale: models has changed since {commit}"
    )
    monkeypatch.setitem(runs.BEHAVIOUR, "models", today)
    world.write("profiles", {"laptop": {"size": 128}})
    assert (
        next(job.why for job in plan(world) if job.chapter == "made/fig1")
        == f"stale: the profile has changed since {commit}"
    )
    world.write("profiles", {"laptop": {"size": 64}, "study": {"size": 128}})
    assert [job.chapter for job in plan(world)] == stands
    measured(world, models=[model(0, run={"model": "resnet50", "weights": "scratch", "real": True})], trainings=1)
    assert "its runs are none of this version" in next(job.why for job in plan(world) if job.chapter == "made/fig1")


def test_records_of_commits_that_are_not_here_are_named_once(world, commit):
    for chapter, told, seed in (
        ("made/fig1", commit, 0),
        ("made/fig1", commit[:7] + "-dirty", 1),
        ("made/fig2", None, 0),
    ):
        measured(world, chapter, environment={"device": "CPU", "versions": {}, "commit": told}, seed=seed)
    for seed in (0, 1):
        measured(world, "made/fig3", environment={"device": "CPU", "versions": {}, "commit": "abc"}, seed=seed)
    assert evidence.unplaced(["made/fig1", "made/fig2", "made/fig3"], "laptop") == ["made/fig2", "made/fig3"]


def test_a_search_that_finds_something_else_makes_older_records_stale_that_rest_on_it(world, commit, monkeypatch):
    path = Path(runs.__file__).with_name("worst_case.py")
    monkeypatch.setattr(worst_case, "__file__", str(path))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(path.parent)]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "finds more"], check=True)
    later = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    about = {"device": "CPU, 1 threads", "versions": {}}
    monkeypatch.setattr(worst_case, "SINCE", {"worst_case": later, "smallest_eps": later})

    def why(place: str, made_at: str) -> str:
        right = {(place,): 0.8}
        models = [model(0, run=RUN)]
        given = {"environment": about | {"commit": made_at}, "models": models, "trainings": 1}
        made = record(world.evidence, "made/fig1", CONDITIONS, right, **given)
        return evidence.stale(made, [])

    assert why("worst case", commit) == f"stale: worst_case found something else at {commit}"
    assert not why("PGD", commit) and not why("worst case", later) and not why("worst case", "0" * 40)
    monkeypatch.setattr(worst_case, "SINCE", {"worst_case": commit, "smallest_eps": later})
    assert not why("worst case", commit)


def test_every_search_is_known_by_something_in_a_record_and_names_a_commit_of_its_own_history():
    assert evidence.FOUND_BY.keys() == worst_case.SINCE.keys()
    root = Path(__file__).parents[1]
    shallow = evidence._git(root, "rev-parse", "--is-shallow-repository")
    if shallow is None or shallow.stdout.strip() != "false":
        pytest.skip("no git, or not the whole history")
    for commit in worst_case.SINCE.values():
        assert evidence._git(root, "merge-base", "--is-ancestor", commit, "HEAD").returncode == 0


JOBS = [Job(f"made/fig{n}", "laptop", "missing", 1, seconds) for n, seconds in ((1, 60.0), (2, 120.0), (3, 60.0))]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_job_that_fails_stops_no_other_and_what_is_left_is_told(tmp_path, cores):
    said = []
    done = evidence.work(JOBS, cores, lambda job, log: int(job.chapter == "made/fig1"), tmp_path / "logs", said.append)
    assert {each.job.chapter: each.code for each in done} == {"made/fig1": 1, "made/fig2": 0, "made/fig3": 0}
    assert len(said) == 3 and said[-1].endswith("all done") and any("failed, see" in line for line in said)


def test_what_is_left_runs_side_by_side():
    assert evidence.left_over([60, 120, 60], 1) == 240
    assert evidence.left_over([60, 120, 60], 2) == 120
    assert evidence.left_over([], 2) == 0
    assert [evidence.duration(s) for s in (40, 720, 7800)] == ["40 s", "12 min", "2 h 10 min"]


def test_the_command_makes_what_is_missing_and_ends_with_1_where_one_failed(world, monkeypatch):
    asked = []

    def fake(job, log):
        asked.append(job.chapter)
        if job.chapter == "made/fig3":
            return 1
        measured(world, job.chapter)
        return 0

    monkeypatch.setattr(evidence, "measure", fake)
    done = invoke(cli.app, ["evidence", "--dry-run"])
    assert done.exit_code == 0 and "3 records to make, about 3 h 10 min on 2 cores" in done.output and not asked
    done = invoke(cli.app, ["evidence", "--cores", "1"])
    assert done.exit_code == 1 and asked == ["made/fig1", "made/fig2", "made/fig3"]
    assert [line.split()[:2] for line in done.output.splitlines()[-3:]] == [
        ["made/fig1", "made"],
        ["made/fig2", "made"],
        ["made/fig3", "failed"],
    ]
    forget()
    done = invoke(cli.app, ["evidence", "made/fig1", "made/fig2"])
    first, second = done.output.splitlines()
    assert done.exit_code == 0 and first == "every record stands"
    assert second.startswith("made/fig1, made/fig2: records of no commit, or of none in this clone")
    assert invoke(cli.app, ["evidence", "made/fig9"]).exit_code == 2
    monkeypatch.delenv("HPAT_DATA")
    assert "set HPAT_DATA" in invoke(cli.app, ["evidence"]).output


def test_a_job_runs_hpat_at_low_priority_with_its_log(tmp_path, monkeypatch):
    commands = []
    answer = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command, options)) or answer)
    assert evidence.measure(JOBS[0], tmp_path / "log") == 3
    ((command, options),) = commands
    assert command[-7:] == ["run", "made/fig1", "--profile", "laptop", "--data", "real", "--record"]
    assert command[:3] == ["nice", "-n", "10"] and options["env"]["OMP_NUM_THREADS"] == "1"
    assert (tmp_path / "log").is_file()
