"""Chapters as users run them: the pairs agree, parameters are checked, the command line says what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from made_up import World, forget, record
from typer.testing import CliRunner

import hpatlib
from hpatlib import claims, cli, jobs
from hpatlib._files import home

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*/*.md"))
invoke = CliRunner().invoke


def contents(notebook) -> list[tuple]:
    return [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in notebook.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_and_text_are_one_chapter(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert contents(jupytext.read(source)) == contents(notebook), "run make sync"
    nbformat.validate(notebook)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_stored_outputs_are_a_clean_smoke_run(source):
    code = [c for c in nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code if c.outputs)
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    text = str([c.outputs for c in code])
    assert "Smoke profile, phantom data" in text and str(ROOT) not in text and str(Path.home()) not in text


# What a chapter checks of its phantoms: that its networks beat answering the largest class, and that attacks attack.
UNTRAINED = {"glcm_texture"}
UNATTACKED = {
    "datasets_and_training",
    "table1_benchmarks",
    "texture_colour_adaptation",
    "why_attention_region",
} | UNTRAINED
ATTACKS = "raises? the loss|costs? accuracy|lowers accuracy|falls under PGD"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_chapter_checks_that_its_networks_learned_and_that_its_attacks_attack(source):
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    checks = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    said = "".join(printed(cell)["stdout"] for cell in checks)
    assert "False" not in said
    assert source.stem in UNTRAINED or re.search(r"beats? (answering )?the largest class: True", said)
    assert source.stem in UNATTACKED or re.search(rf"({ATTACKS}).*: True", said)


RUN = ROOT / "_build/run/smoke-default"


def printed(cell) -> dict[str, str]:
    """What a code cell says, by kind: what it printed, joined, and the text of its results; no progress bars."""
    said: dict[str, str] = {}
    for output in cell.outputs:
        kind = output.get("name", output.output_type)
        said[kind] = said.get(kind, "") + output.get("text", output.get("data", {}).get("text/plain", ""))
    said.pop("stderr", None)
    return said


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_new_run_says_what_the_stored_one_says(source):
    """As ``pytest --nbval-lax notebooks`` does, with the run that ``make book`` has just made in place of another."""
    run = RUN / source.relative_to(ROOT / "notebooks").with_suffix(".ipynb")
    if not run.is_file():
        pytest.skip("chapters were not run as smoke here: make book, or pytest --nbval-lax notebooks, which runs them")
    stored, new = (
        [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for path in (source.with_suffix(".ipynb"), run)
    )
    assert [cell.source for cell in new] == [cell.source for cell in stored], "run make book, make sync"
    assert all(cell.execution_count for cell in new)
    pairs = [
        (printed(old), printed(now))
        for old, now in zip(stored, new, strict=True)
        if "nbval-check-output" in old.metadata.get("tags", [])
    ]
    assert pairs and [now for _, now in pairs] == [old for old, _ in pairs]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_is_thin_and_has_three_parameters(source):
    cells = jupytext.read(source).cells
    (parameters,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert [line.split(" = ")[0] for line in parameters.splitlines()] == ["profile", "data", "seed"]
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    assert "def " not in code and "class " not in code and len(code.splitlines()) <= 60


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_checks_its_parameters_before_all_else(source):
    cells = cli.cells(source)
    (parameters,) = [number for number, (tags, _) in enumerate(cells) if "parameters" in tags]
    assert cells[parameters + 1][1].startswith("documents.check_parameters(locals())\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("profil", "laptop"), "unknown parameter profil: a chapter has profile, data, seed"),  # misspelt
        (("epochs", "3"), "unknown parameter epochs: a chapter has profile, data, seed"),  # unknown
        (("seed", "1.5"), "seed must be a whole number from 0 to 2³² − 1, found 1.5"),  # of another type
        (("profile", "nonsense"), "unknown profile 'nonsense': choose one of smoke, laptop, study, paper"),
    ],
)
def test_papermill_alone_is_told_which_parameter_is_wrong_before_anything_trains(given, message, tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/hpat/fig6_stbo_vs_grid_search.ipynb"]
    done = subprocess.run(
        [*command, str(tmp_path / "out.ipynb"), "-p", *given],
        cwd=ROOT,
        env=os.environ | {"HPAT_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and done.stderr.rstrip().endswith(f"ValueError: {message}")
    assert not (tmp_path / "home").exists()


def test_the_command_line_lists_chapters_by_title():
    done = invoke(cli.app, ["list"])
    assert done.exit_code == 0
    assert re.search(r"^hpat/fig6_stbo_vs_grid_search +Figure 6", done.output, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "hpat/fig7"], "unknown chapter hpat/fig7: choose from "),
        (["run", "hpat/fig1_robustness_issue", "--profile", "huge"], "smoke"),
        (["run", "hpat/fig1_robustness_issue", "--seed", "-1"], "seed"),
        (["run", "hpat/fig1_robustness_issue", "--plain", "--output", "here"], "leave one of them out"),
        (["sync", "hpat/fig7"], "unknown chapter hpat/fig7: choose from "),
        (["claims", "--document", "hapt"], "unknown document 'hapt': choose one of hpat"),
        (["data", "fetch", "cnmc"], "set HPAT_DATA"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, monkeypatch):
    monkeypatch.delenv("HPAT_DATA", raising=False)
    done = invoke(cli.app, arguments)
    assert done.exit_code == 2 and message in done.output


def test_data_says_what_is_there_and_how_to_get_the_rest(monkeypatch, tmp_path):
    monkeypatch.setenv("HPAT_DATA", str(tmp_path))
    done = invoke(cli.app, ["data"])
    assert done.exit_code == 0 and "hpat data fetch cnmc" in done.output


CHAPTER = """---
kernelspec: {name: python3, display_name: Python 3}
---

# A chapter

```{code-cell} ipython3
:tags: [parameters]
profile = "smoke"
data = None
seed = 0
```

```{code-cell} ipython3
print(profile, data, seed)
assert seed < 5, "no such seed"
```
"""


def test_execute_injects_what_differs_and_keeps_a_failed_run_apart(tmp_path):
    source, target = tmp_path / "chapter.md", tmp_path / "out" / "chapter.ipynb"
    source.write_text(CHAPTER)
    assert cli.execute(source, target, {"profile": "smoke", "data": None, "seed": 0}) is None
    cells = nbformat.read(target, as_version=4).cells
    assert not any("injected-parameters" in c.metadata.get("tags", []) for c in cells)
    assert cells[-1].outputs[0].text == "smoke None 0\n"
    message = cli.execute(source, target, {"profile": "laptop", "data": "real", "seed": 7})
    assert "no such seed" in message
    assert nbformat.read(target, as_version=4).cells[-1].outputs[0].text == "smoke None 0\n"
    failed = nbformat.read(target.with_suffix(".failed.ipynb"), as_version=4)
    assert "laptop real 7" in str(failed)
    assert sorted(path.name for path in target.parent.iterdir()) == ["chapter.failed.ipynb", "chapter.ipynb"]


SKIPPED = """```{code-cell} ipython3
:tags: [nbval-skip, remove-cell]

%pip install nothing
```

"""


def test_a_plain_run_executes_the_cells_of_the_text_without_jupyter(tmp_path, capsys, monkeypatch):
    source = tmp_path / "chapter.md"
    source.write_text(CHAPTER.replace("```{code-cell}", SKIPPED + "```{code-cell}", 1))
    for module in ("papermill", "jupytext", "nbformat", "IPython"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    parameters = {"profile": "laptop", "data": "real", "seed": 3}
    assert cli.execute_plainly(source, parameters) is None
    assert capsys.readouterr().out == "laptop real 3\n"
    message = cli.execute_plainly(source, parameters | {"seed": 7})
    assert message == "chapter failed in code cell 3: AssertionError: no such seed"
    assert 'File "chapter, code cell 3", line 2' in capsys.readouterr().err


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cells_are_those_that_jupytext_reads(source):
    cells = [c for c in jupytext.read(source).cells if c.cell_type == "code"]
    assert cli.cells(source) == [(c.metadata.get("tags", []), c.source) for c in cells]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with one chapter, and folders of its own for models and records."""
    (tmp_path / "_config.yml").touch()
    source = tmp_path / "notebooks" / "made" / "fig1.md"
    source.parent.mkdir(parents=True)
    source.write_text(CHAPTER)
    jupytext.write(jupytext.read(source), source.with_suffix(".ipynb"))
    monkeypatch.chdir(source.parent)  # found from below, too
    for name in cli.FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HPAT_HOME", str(tmp_path / "home"))
    return tmp_path


def test_run_plain_runs_the_text_and_says_where_its_notebook_has_drifted(checkout):
    done = invoke(cli.app, ["run", "made/fig1", "--plain", "--profile", "study", "--data", "real", "--seed", "2"])
    assert done.exit_code == 0 and done.output == "made/fig1\nstudy real 2\n"
    source = checkout / "notebooks" / "made" / "fig1.md"
    source.write_text(CHAPTER.replace("seed < 5", "seed < 2"))
    done = invoke(cli.app, ["run", "made/fig1", "--plain", "--seed", "2"])
    assert done.exit_code == 1 and "made/fig1.md is not what its notebook was written from" in done.output
    assert "fig1 failed in code cell 2: AssertionError: no such seed" in done.output
    source.with_suffix(".ipynb").unlink()
    assert cli.drifted(source)
    assert not list(checkout.rglob("*.ipynb")) and not list((checkout / "home").rglob("*.json"))


def test_a_run_is_compared_with_the_committed_record_of_the_same_run(checkout):
    right = {("before",): 0.5}
    record(checkout / "home" / "records", "made/fig1", ("place",), right, profile="smoke", seed=1)
    assert "committed" not in invoke(cli.app, ["run", "made/fig1", "--plain", "--seed", "1"]).output
    record(checkout / "evidence", "made/fig1", ("place",), right, profile="smoke", seed=1)
    done = invoke(cli.app, ["run", "made/fig1", "--plain", "--seed", "1"])
    assert "nothing to compare: the committed record tests no claim" in done.output
    record(checkout / "evidence", "made/fig1", ("place",), right, profile="smoke", seed=1, images=[])
    done = invoke(cli.app, ["run", "made/fig1", "--plain", "--seed", "1"])
    assert "committed record, which is about other images" in done.output
    assert "committed" not in invoke(cli.app, ["run", "made/fig1", "--plain", "--seed", "1", "--record"]).output


# Claims on the command line: a made-up document whose claims and records are known.


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path, monkeypatch, {"gain": lambda o: o.accuracy["after"] - o.accuracy["before"]})
    made.rule({"id": "rises"}, {"id": "elsewhere", "chapter": "made/fig2"})
    yield made
    monkeypatch.undo()
    forget()


def measured(world, **changed):
    record(world.evidence, "made/fig1", ("place",), {("before",): 0.5, ("after",): 0.8}, **changed)


def test_claims_are_listed_with_their_verdicts(world):
    done = invoke(cli.app, ["claims"])
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "# made: A document",
        "rises      not yet tested: no record of real images",
        "           It rises. (Figure 1)",
        "elsewhere  not yet tested: no record of real images",
        "           It rises. (Figure 1)",
        "2 claims: 2 not yet tested",
    ]
    measured(world, claims={"rises": ""})
    lines = invoke(cli.app, ["claims", "--document", "made"]).output.splitlines()
    assert lines[1] == "rises      supported" and lines[-1] == "2 claims: 1 supported, 1 not yet tested"
    assert re.fullmatch(
        r" {11}gain \+30\.0( \[.*\])? points; the claim needs > 0\.0 points; cnmc, laptop, .*6 trainings", lines[3]
    )
    measured(world)
    lines = invoke(cli.app, ["claims"]).output.splitlines()
    assert lines[1] == "rises      supported, written after the record and not counted"
    assert lines[-1] == "1 claim: 1 not yet tested; 1 written after their records"


def test_claims_as_json_hold_everything(world):
    measured(world)
    first, second = json.loads(invoke(cli.app, ["claims", "--json"]).output)
    expected = {"id": "rises", "document": "made", "verdict": "supported", "uncorrected": "supported", "why": ""}
    assert expected.items() <= first.items() and first["trainings"] == 6 and first["n"] == 40
    assert first["low"] <= first["effect"] <= first["high"] and first["effect"] == pytest.approx(0.3)
    assert second["verdict"] == "not yet tested" and second["why"] == "no record of real images"
    assert [second[name] for name in ("effect", "low", "high", "n", "trainings")] == [None, None, None, None, 0]
    assert first.keys() == second.keys()


def test_verify_ends_with_0_10_or_3(world):
    done = invoke(cli.app, ["verify"])
    assert done.exit_code == 3 and "rises: not written down in made/claims.lock: run hpat claims --lock" in done.output
    done = invoke(cli.app, ["claims", "--lock"])
    assert done.exit_code == 0 and done.output == "written down anew: rises, elsewhere\n"
    assert invoke(cli.app, ["claims", "--lock"]).output == "every claim stands as it was written\n"
    done = invoke(cli.app, ["verify"])
    assert (done.exit_code, done.output) == (0, "2 claims fit their lock and their records; 0 are contradicted\n")
    measured(world)
    assert invoke(cli.app, ["verify"]).exit_code == 0
    world.rule({"id": "rises", "direction": "<"}, {"id": "elsewhere", "chapter": "made/fig2"})
    done = invoke(cli.app, ["verify"])
    assert done.exit_code == 3 and "rises: changed after it was written down on " in done.output
    invoke(cli.app, ["claims", "--lock"])
    assert invoke(cli.app, ["verify"]).exit_code == 0  # written down after its record
    measured(world, trainings=7, claims=claims.check("made/fig1"))  # other trainings
    done = invoke(cli.app, ["verify"])
    assert done.exit_code == 10 and "contradicted: rises: It rises. (gain +30.0" in done.output
    (world.evidence / "made" / "fig1" / "laptop-real-seed0.parquet").unlink()
    for command in ("verify", "claims"):
        done = invoke(cli.app, [command])
        assert done.exit_code == 3 and "laptop-real-seed0.parquet is missing" in done.output
    world.rule({"id": "rises", "quantity": "lift"})
    for command in ("verify", "claims"):
        done = invoke(cli.app, [command])
        assert done.exit_code == 3 and "needs the quantity 'lift'" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["run", "-h"], ["claims", "-h"], ["data", "fetch", "-h"]])
def test_help_is_a_letter_away(arguments):
    done = invoke(cli.app, arguments)
    assert done.exit_code == 0 and "Usage:" in done.output


def test_the_version_is_the_packages():
    done = invoke(cli.app, ["--version"])
    assert done.exit_code == 0 and done.output.strip() == hpatlib.__version__


def test_profiles_and_the_command_line_agree():
    from hpatlib import documents, records

    assert tuple(choice.value for choice in cli.Profile) == records.PROFILES
    for document in documents.names():
        profiles = documents.toml(document, "profiles")
        assert tuple(profiles) == records.PROFILES
        assert {profile["data"] for profile in profiles.values()} <= {choice.value for choice in cli.Data}


def test_a_relative_data_folder_means_the_same_inside_the_chapter(checkout, monkeypatch):
    source = checkout / "notebooks" / "made" / "fig1.md"
    source.write_text(CHAPTER.replace("print(profile", "import os; print(os.listdir(os.environ['HPAT_DATA']), profile"))
    (checkout / "data" / "inside").mkdir(parents=True)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("HPAT_DATA", "data")
    assert invoke(cli.app, ["run", "made/fig1"]).exit_code == 0
    (target,) = (checkout / "home" / "chapters").rglob("fig1.ipynb")
    assert nbformat.read(target, as_version=4).cells[-1].outputs[0].text == "['inside'] smoke None 0\n"


def test_relative_folders_are_those_of_whoever_calls_in_the_plan_and_in_its_jobs(checkout, monkeypatch):
    """The plan is made where the command is given, jobs run in the checkout."""
    monkeypatch.setattr(cli, "checkout", lambda: checkout)
    (outside := checkout.parent / f"{checkout.name}-outside").mkdir()
    monkeypatch.chdir(outside)
    monkeypatch.setenv("HPAT_HOME", "models")
    seen = []

    def planned(*_):
        seen.append(home())
        return None

    def job(command, root, environment, lock):
        seen.append(root / environment["HPAT_HOME"])
        return 1

    monkeypatch.setattr(cli, "_plan", planned)
    monkeypatch.setattr(cli, "_attended", job)
    monkeypatch.setattr(jobs, "prepare", lambda *_: ["a training"])
    assert invoke(cli.app, ["book", "--fan-out", "--chapter", "made/fig1"]).exit_code == 1
    assert seen == [outside / "models"] * 2


def test_a_book_that_a_script_started_behind_itself_hears_what_stops_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as & does it
    try:
        with open(tmp_path / "lock", "w") as lock:
            ignores = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
            assert cli._attended([sys.executable, "-c", ignores], tmp_path, dict(os.environ), lock.fileno()) == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_importing_the_library_needs_neither_jupyter_nor_torchvision():
    modules = "attacks, spatial, stbo, hybrid, models, data, training, measure, runs, claims, records, plots, cli"
    heavy = {"papermill", "jupyter_core", "IPython", "torchvision", "timm", "sklearn", "snakemake", "kagglehub"}
    assert imported(modules, heavy) == "[]"


def test_judging_and_listing_need_no_torch():
    modules = "statistics, outcomes, records, claims, documents, cli"
    quantities = "from hpatlib import documents; [documents.quantities(name) for name in documents.names()]"
    assert imported(modules, {"torch", "matplotlib", "statsmodels", "sklearn"}, quantities) == "[]"


def imported(modules: str, heavy: set[str], then: str = "") -> str:
    """Which of ``heavy`` were imported with ``modules`` of the library."""
    code = f"import sys; from hpatlib import {modules}; {then}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_jobs_elsewhere_need_a_path_without_spaces(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/a place/.venv/bin/python")
    done = invoke(cli.app, ["book", "--executor", "slurm"])
    assert done.exit_code == 2
    assert "/a place/.venv/bin/python has a space in its path" in " ".join(done.output.split())
