"""Chapters as users run them: the pairs agree, parameters are checked, the command line says what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from hpatlib import cli

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


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_is_thin_and_has_three_parameters(source):
    cells = jupytext.read(source).cells
    (parameters,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert [line.split(" = ")[0] for line in parameters.splitlines()] == ["profile", "data", "seed"]
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    assert "def " not in code and "class " not in code and len(code.splitlines()) <= 60


def test_papermill_refuses_an_unknown_profile_and_lists_the_valid_ones(tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/hpat/fig6_stbo_vs_grid_search.ipynb"]
    command += [str(tmp_path / "out.ipynb"), "-p", "profile", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unknown profile 'nonsense': choose one of smoke, laptop, study, paper" in done.stderr


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


def test_a_plain_run_executes_the_cells_without_jupyter(tmp_path, capsys, monkeypatch):
    chapter = jupytext.reads(CHAPTER, fmt="md:myst")
    chapter.cells.insert(0, nbformat.v4.new_code_cell("%pip install nothing", metadata={"tags": ["nbval-skip"]}))
    nbformat.write(chapter, tmp_path / "chapter.ipynb")
    for module in ("papermill", "jupytext", "nbformat", "IPython"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    parameters = {"profile": "laptop", "data": "real", "seed": 3}
    assert cli.execute_plainly(tmp_path / "chapter.md", parameters) is None
    assert capsys.readouterr().out == "laptop real 3\n"
    message = cli.execute_plainly(tmp_path / "chapter.md", parameters | {"seed": 7})
    assert message == "chapter failed in cell 3: AssertionError: no such seed"
    assert "Traceback" in capsys.readouterr().err


def test_a_relative_data_folder_means_the_same_inside_the_chapter(tmp_path, monkeypatch):
    source = tmp_path / "chapters" / "chapter.md"
    source.parent.mkdir()
    (tmp_path / "data").mkdir()
    source.write_text(CHAPTER.replace("print(profile", "import os; print(os.listdir(os.environ['HPAT_DATA']), profile"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPAT_DATA", "data")
    assert cli.execute(source, tmp_path / "out.ipynb", {}) is None
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text == "[] smoke None 0\n"


def test_importing_the_library_needs_neither_jupyter_nor_torchvision():
    modules = "attacks, spatial, stbo, hybrid, models, data, training, evaluation, runs, settings, evidence, plots, cli"
    heavy = {"papermill", "jupyter_core", "IPython", "torchvision", "timm", "sklearn", "snakemake", "kagglehub"}
    code = f"import sys; from hpatlib import {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
