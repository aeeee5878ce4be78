"""The workflow behind `make book`: what a change reruns, what is built again, kernels that start at once."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hpatlib import claims, cli

ROOT = Path(__file__).parents[1]
FIGURES = "hpatlib/documents/hpat/figures.py"


@pytest.fixture(scope="module")
def workflow():
    """The scripts beside the Snakefile, which are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "workflow"))
        yield {name: importlib.import_module(name) for name in ("depends", "stage", "measured", "pages", "trim")}


@pytest.fixture(scope="module")
def depends(workflow):
    return workflow["depends"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the library's and the chapters' sources, to be changed and put back."""
    root = tmp_path_factory.mktemp("checkout")
    wanted = shutil.ignore_patterns("__pycache__", "*.ipynb", "*.parquet")
    for folder in ("hpatlib", "notebooks", "evidence"):
        shutil.copytree(ROOT / folder, root / folder, ignore=wanted)
    return root


@pytest.fixture(scope="module")
def changed(depends, checkout):
    """The chapters whose dependencies some changes (file, old, new) change; the files are put back."""

    def lines() -> dict[str, list[str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(depends, "judged", lambda root, library, chapters: dict.fromkeys(chapters, "as they were"))
            return depends.lines(checkout, "smoke")

    before = lines()

    def change(*changes: tuple[str, str, str]) -> set[str]:
        texts = {checkout / name: (checkout / name).read_text("utf-8") for name, _, _ in changes}
        for name, old, new in changes:
            text = (checkout / name).read_text("utf-8")
            assert text.count(old) == 1, f"{name} has no single {old!r}"
            (checkout / name).write_text(text.replace(old, new), "utf-8")
        after = lines()
        for path, text in texts.items():
            path.write_text(text, "utf-8")
        return {chapter for chapter in before if before[chapter] != after[chapter]}

    return change


def naming(*names: str) -> set[str]:
    """The chapters whose text names one of ``names``."""
    texts = {path: path.read_text("utf-8") for path in (ROOT / "notebooks").glob("*/*.md")}
    found = [path for path, text in texts.items() if any(name in text for name in names)]
    return {path.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for path in found}


def first_line(name: str, function: str) -> str:
    """The line that a function starts with."""
    return re.search(rf"^def {function}\(.*$", (ROOT / name).read_text("utf-8"), re.M)[0]


def test_a_figure_reruns_the_chapters_that_draw_it_and_no_other(changed):
    functions = re.findall(r"^def ([a-z]\w*)\(", (ROOT / FIGURES).read_text("utf-8"), re.M)
    name = next(name for name in functions if len(naming(f"figures.{name}(")) == 1)
    line = first_line(FIGURES, name)
    assert changed((FIGURES, f"{line}\n", f"{line}\n    changed = 1\n")) == naming(f"figures.{name}(")


def test_the_search_reruns_figure_6_and_what_trains_or_measures_with_it(changed):
    line = first_line("hpatlib/stbo.py", "features")
    found = changed(("hpatlib/stbo.py", f"{line}\n", f"{line}\n    changed = 1\n"))
    assert {"hpat/fig6_stbo_vs_grid_search", "hpat/fig4_training_strategies", "hpat/fig2_framework"} <= found
    assert "assimilation/glcm_texture" not in found and "ultrasound/fig1_2_image_and_noise" not in found


def test_the_loop_of_training_reruns_all_that_trains(changed):
    found = changed(("hpatlib/training.py", "stepper.step()", "stepper.step(None)"))
    assert naming("trainings |", "trainings,") <= found and "assimilation/glcm_texture" not in found


def test_words_about_code_and_what_no_chapter_uses_rerun_nothing(changed):
    features, fit = first_line("hpatlib/stbo.py", "features"), first_line("hpatlib/training.py", "fit")
    assert not changed(
        ("hpatlib/stbo.py", f"{features}\n", f"{features}  # a comment\n"),
        ("hpatlib/runs.py", "What decides a trained model", "What makes a trained model"),
        ("hpatlib/runs.py", "The same run, trained on clean images alone.", "The run on clean images."),
        ("hpatlib/training.py", fit, f"UNUSED = 1\n\n\n{fit}"),
        ("hpatlib/cli.py", '"list"', '"show"'),
        ("hpatlib/documents/ultrasound/profiles.toml", "\n[laptop]\n", "\n[laptop]\nmade_up = 1\n"),
    )


@pytest.mark.parametrize("said", [{"note": "made up"}, {"measure": "made up"}, {"published": ("made up",)}])
def test_words_about_a_claim_rerun_its_chapter_and_no_other(depends, monkeypatch, tmp_path, said):
    ledger, library = claims.ledger(), depends.Library(ROOT / "hpatlib")
    chapters = sorted({j.claim.chapter for j in ledger if j.claim.chapter})
    before = depends.judged(tmp_path / "before", library, chapters)
    number = next(number for number, j in enumerate(ledger) if j.claim.chapter)
    ledger[number] = replace(ledger[number], claim=msgspec.structs.replace(ledger[number].claim, **said))
    monkeypatch.setattr(claims, "ledger", lambda: ledger)
    after = depends.judged(tmp_path / "after", library, chapters)
    assert [name for name in chapters if before[name] != after[name]] == [ledger[number].claim.chapter]


def test_settings_rerun_the_chapters_of_their_document(changed):
    found = changed(("hpatlib/documents/ultrasound/profiles.toml", "\n[smoke]\n", "\n[smoke]\nmade_up = 1\n"))
    assert found == naming("hpatlib.documents import ultrasound", "hpatlib.documents.ultrasound")


def test_a_record_reruns_its_chapter(changed):
    record = min((ROOT / "evidence").rglob("*.json")).relative_to(ROOT)
    assert changed((str(record), '"chapter"', '"CHAPTER"')) == {record.parent.relative_to("evidence").as_posix()}


SOURCE = """
import other
from hpatlib import b
from hpatlib.b import leaf as renamed

CONSTANT = renamed

def direct():
    return b.leaf()

def through(): return CONSTANT

def module(): return vars(b)

def dynamic(name):
    return __import__(name)

def late():
    from hpatlib.b import second
    return second.attribute

def annotated(x: b.leaf) -> renamed:
    b = 1
    return x.leaf

def stranger(): return other.leaf
"""


@pytest.fixture
def library(depends, tmp_path):
    folder = tmp_path / "hpatlib"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text(SOURCE)
    (folder / "b.py").write_text("def leaf(): ...\ndef second(): ...\n")
    return depends.Library(folder)


@pytest.mark.parametrize(
    ("name", "of_b"),
    [
        ("direct", {"leaf"}),
        ("through", {"leaf"}),
        ("module", {"*", "leaf", "second"}),
        ("dynamic", {"*", "leaf", "second"}),
        ("late", {"second"}),
        ("annotated", set()),
        ("stranger", set()),
    ],
)
def test_what_cannot_be_followed_counts_as_a_whole(library, name, of_b):
    reached = library.reach([("hpatlib.a", name)])
    assert {inner for module, inner in reached if module == "hpatlib.b"} - {""} == of_b


def test_a_file_of_dependencies_is_touched_only_when_it_changes(depends, monkeypatch, tmp_path):
    said = {"made/fig1": ["a 1"]}
    monkeypatch.setattr(depends, "lines", lambda root, profile: said)
    depends.write(ROOT, "smoke", tmp_path)
    path = tmp_path / "made/fig1.txt"
    os.utime(path, (0, 0))
    depends.write(ROOT, "smoke", tmp_path)
    assert path.stat().st_mtime == 0
    said["made/fig1"].append("b 2")
    depends.write(ROOT, "smoke", tmp_path)
    assert path.stat().st_mtime > 0 and path.read_text() == "a 1\nb 2\n"


# Staging ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def book(workflow, tmp_path, monkeypatch):
    """A book of two pages and a chapter, and a function that stages it and says what was written and what was kept."""
    stage = workflow["stage"]
    monkeypatch.setattr(stage.pages, "made", lambda notebooks: {"book/claims.md": b"# Claims\n"})
    monkeypatch.setattr(stage.measured, "made", lambda folder: {})
    monkeypatch.chdir(tmp_path)
    cell = {"cell_type": "markdown", "source": ["# Figure 1\n", "Words."]}
    files = {
        "book/one.md": "# One\n\nText.\n",
        "book/two.md": "# Two\n",
        "book/_toc.yml": "root: one\nparts: []",
        "_config.yml": "",
        "workflow/mathml.py": "",
    }
    files |= {"notebooks/made/fig1.md": "", "run/made/fig1.ipynb": json.dumps({"cells": [cell]})}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    def staged(finished: bool = True) -> tuple[set[str], bool]:
        for path in Path("_build/source").rglob("*"):
            os.utime(path, (0, 0))
        Path("_build/html").mkdir(parents=True, exist_ok=True)
        stage.main(Path("run"))
        if finished:
            os.replace("_build/frame.built.json", "_build/frame.json")
        written = [path for path in Path("_build/source").rglob("*") if path.is_file() and path.stat().st_mtime]
        return {path.relative_to("_build/source").as_posix() for path in written}, Path("_build/html").is_dir()

    staged()
    return staged


def test_only_what_changed_is_staged_again(book):
    assert book() == (set(), True)
    Path("book/one.md").write_text("# One\n\nOther text.\n")
    assert book() == ({"book/one.md"}, True)
    Path("run/made/fig1.ipynb").write_text(Path("run/made/fig1.ipynb").read_text().replace("Words", "Numbers"))
    assert book() == ({"notebooks/made/fig1.ipynb"}, True)


def test_what_other_pages_show_starts_the_book_anew(book):
    for name, text in (
        ("book/one.md", "# First\n\nText.\n"),
        ("book/_toc.yml", "root: two\nparts: []"),
        ("book/two.md", "(label)=\n# Two\n"),
        ("run/made/fig1.ipynb", json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Figure 2"]}]})),
    ):
        Path(name).write_text(text)
        written, kept = book()
        assert len(written) == 1 and not kept, name
        assert book() == (set(), True)


def test_what_a_build_that_was_killed_has_left_is_not_built_upon(book):
    assert book(finished=False) == (set(), True)
    assert book() == (set(), False)
    assert book() == (set(), True)


def test_a_page_that_is_gone_does_not_survive(book):
    Path("book/two.md").unlink()
    assert book() == (set(), False)
    assert not Path("_build/source/book/two.md").exists() and Path("_build/source/book/claims.md").exists()


def test_the_page_on_benchmarks_shows_ratios_targets_and_what_was_not_measured(workflow, tmp_path):
    row = {
        "what": "PGD",
        "peer_name": "bare passes",
        "ratio": 1.5,
        "low": 1.2,
        "high": 1.6,
        "target": 1.02,
        "met": False,
    }
    fast = row | {"what": "GLCM", "ratio": 1 / 800, "low": 1 / 900, "high": 1 / 700, "target": 1 / 500, "met": True}
    none = row | {"what": "share", "ratio": 0.0, "low": 0.0, "high": 0.0, "met": True}
    about = {"device": "CPU, 1 threads", "date": "2024-05-17", "commit": "abc", "versions": {"torch": "2.0"}}
    about |= {"kind": "cpu", "machine": {"processor": "a processor"}}
    size = {"what": "STBO", "unit": "queries", "size": 10, "predicted": 1.0, "measured": 2.0}
    grown = {"growth": [size, size | {"size": 100, "measured": None}]}
    lives = {"alive": [{"what": "hybrid", "seeds": 100, "live": 99, "least": -0.01, "median": 0.2}]}
    (tmp_path / "results").mkdir()
    for name in ("alive", "attacks", "growth", "memory", "_timing"):
        (tmp_path / f"{name}.py").touch()
    assert made(workflow, tmp_path)["alive.txt"] == b"*Not measured.*\n"
    assert b"| `benchmarks/attacks.py` | \xe2\x80\x93 | processor and GPU |" in made(workflow, tmp_path)["ratios.txt"]
    same = {"attack": "Square", "peer": "torchattacks", "where": "a CNN", "eps": 2 / 255, "images": 50}
    same = row | {"what": "verdicts", "ours": 0.06, "agreement": same | {"stand": [9, 8, 2, 1]}}
    for name, rows, more in (
        ("agreement", [same], {}),
        ("attacks", [row, fast, none], {}),
        ("growth", [], grown),
        ("alive", [], lives),
    ):
        result = {"name": name, "rows": rows, "about": more, **about}
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))
    files = made(workflow, tmp_path)
    text = files["ratios.txt"].decode()
    assert "| PGD | bare passes | CPU, 1 threads | 1.50 (1.20 to 1.60) | at most 1.02 | **missed** |" in text
    assert "| 1/800 (1/900 to 1/700) | at most 1/500 | met |" in text and "_timing" not in text
    assert "| 0 (0 to 0) | at most 1.02 | met |" in text and "alive.py" not in text
    assert (
        "| `benchmarks/attacks.py` | – | GPU | *not measured* |" in text
        and "2 ratios from 1/800 to 1.50; 1 above" in text
    )
    text = files["growth.txt"].decode()
    assert "| STBO | 10 queries | 2 | 1 |" in text and "| STBO | 100 queries | *not measured* | 1 |" in text
    assert "2.0 times off" in text and "Measured: growth (cpu)" in text
    assert "Measured: alive (cpu)" in files["alive.txt"].decode()
    assert set(files) == {f"{name}.txt" for name in ("agreement", "ratios", "alive", "growth", "plan")}
    told = "| a CNN | 2.00/255 | Square | torchattacks | 9 and 8 of 50 | 2 and 1 | 6.0 | **missed** |"
    assert told in files["agreement.txt"].decode() and "verdicts" not in files["ratios.txt"].decode()
    assert "| hybrid | 99 of 100 | -1.0 | +20.0 |" in files["alive.txt"].decode()
    assert all(f'id="fig-{name}"' in files[f"{name}.txt"].decode() for name in ("ratios", "growth"))


def test_a_plan_is_shown_with_its_totals(workflow, tmp_path):
    assert b"Not counted" in workflow["measured"].made(tmp_path)["book/made/plan.txt"]
    row = {"chapter": "made/fig1", "trainings": 9, "new": 5, "training": 7200, "measuring": 3600, "timed": False}
    told = {"unit": "GPU", "chapters": [row], "trainings": 5, "waiting": 2, "training": 7200, "measuring": 3600}
    told |= {"longest": 3600, "speed": 2e12, "speed from": "assumed", "wall": {"1": 864_000, "8": 9000}}
    (tmp_path / "plan.json").write_text(json.dumps(told | {"assumed": {"cnmc": 1234}}))
    text = made(workflow, tmp_path)["plan.txt"].decode()
    assert "| {doc}`../notebooks/made/fig1` | 9 | 5 | 2.0 | 1.0 set aside |" in text and "2 of the trainings" in text
    assert (
        "10.0 days on 1 GPU, 2.5 hours on 8 GPUs. The longest" in text and "(assumed); images: 1,234 of cnmc." in text
    )


def made(workflow, folder: Path) -> dict[str, bytes]:
    return {name.removeprefix("book/made/"): text for name, text in workflow["measured"].made(folder).items()}


# Kernels ---------------------------------------------------------------------------------------------------------

CHAPTER = """---
kernelspec: {name: python3, display_name: Python 3}
---

```{code-cell} ipython3
:tags: [parameters]
profile = "smoke"
```

```{code-cell} ipython3
import os, subprocess, sys
print("colorsys" in sys.modules, os.getcwd(), os.environ.get("MADE_UP"), "workflow" in sys.path[0])
print(subprocess.run(["true"]).returncode)
```
"""


def test_kernels_are_forks_that_know_their_asker_and_do_without_a_server(tmp_path, monkeypatch):
    source, target = tmp_path / "chapter.md", tmp_path / "out" / "chapter.ipynb"
    served = tmp_path / "served"
    served.mkdir()
    source.write_text(CHAPTER)
    monkeypatch.setenv("JUPYTER_PATH", str(served))
    monkeypatch.setenv("MADE_UP", "mine")
    command = [sys.executable, str(ROOT / "workflow/kernels.py"), "serve", str(served), "colorsys"]
    without = {name: value for name, value in os.environ.items() if name != "MADE_UP"}

    def printed() -> str:
        assert cli.execute(source, target, {}) is None
        return "".join(json.loads(target.read_text())["cells"][-1]["outputs"][0]["text"])

    with subprocess.Popen(command, stdin=subprocess.PIPE, env=without) as server:
        while not (served / "kernels/python3/kernel.json").is_file():
            assert server.poll() is None
            time.sleep(0.05)
        assert printed() == f"True {tmp_path} mine False\n0\n"
        server.stdin.close()
        assert server.wait(60) == 0
    assert not served.exists()
    assert printed() == f"False {tmp_path} mine False\n0\n"


# Figures and tables get numbers ------------------------------------------------------------------------------------


def test_figures_and_tables_are_numbered_by_chapter_and_links_say_the_number(workflow):
    stage = workflow["stage"]

    def shown(kind: str, name: str) -> dict:
        page = (
            f'<{kind} class="hpat" id="{name}"><caption><span class="hpat-number"></span>What it is.</caption></{kind}>'
        )
        return {"cell_type": "code", "source": [], "outputs": [{"data": {"text/html": [page]}}]}

    text = "See [figure](#fig-second), [table](#tab-only) and [figure](#fig-none)."
    cells = [shown("figure", "fig-first"), shown("table", "tab-only"), shown("figure", "fig-second")]
    cells += [
        shown("figure", "fig-first"),
        {"cell_type": "markdown", "source": [text]},
    ]  # of the run, below the record's
    made = json.loads(stage.numbered(json.dumps({"cells": cells}).encode(), 7))["cells"]
    said = [re.search(r'hpat-number">(.*?)</span>', c["outputs"][0]["data"]["text/html"])[1] for c in made[:4]]
    assert said == ["Figure 7.1. ", "Table 7.1. ", "Figure 7.2. ", "Figure 7.3. "]
    ids = [re.search(r' id="(.*?)"', c["outputs"][0]["data"]["text/html"])[1] for c in made[:4]]
    assert ids == ["fig-first", "tab-only", "fig-second", "fig-first-run"]
    assert '<a href="#fig-second">Figure 7.2</a>' in made[4]["source"]
    assert '<a href="#tab-only">Table 7.1</a>' in made[4]["source"]


def test_pages_are_numbered_as_in_the_table_of_contents(workflow, monkeypatch):
    monkeypatch.chdir(ROOT)
    places = workflow["stage"].numbers(ROOT / "book")
    assert list(places.values()) == list(range(1, len(places) + 1))
    chapters = {path.with_suffix(".ipynb").relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*/*.md")}
    assert chapters <= places.keys()


def test_only_icons_that_pages_use_stay_in_the_themes_script(workflow, tmp_path):
    trim = workflow["trim"]
    names = [f"icon-{k}" for k in range(600)]
    body = ",".join(f'"{name}":[512,512,[],"f{k:03x}","M0 0h{k}"]' for k, name in enumerate(names))
    script = "var a={" + body + "},b=1;"
    assert trim.trimmed(script, {"icon-3", "icon-599"}).count("512,512") == 2
    kept = trim.trimmed(script, {"icon-3"})
    assert kept.startswith('var a={"icon-3"') and kept.endswith("},b=1;") and ",}" not in kept
    assert trim.trimmed(kept, {"icon-3"}) == kept  # trimmed before
    with pytest.raises(ValueError, match="no icon that the book uses"):
        trim.trimmed(script, {"another"})


def test_lists_of_a_signature_and_of_citations_are_none(workflow):
    page = (
        '<dl><dt class="sig x">f(<dl>\n<dd>a</dd>\n</dl>)</dt><dd>does</dd></dl><div role="list" class="citation-list">'
    )
    mended = workflow["trim"].mended(page)
    assert mended == (
        '<dl><dt class="sig x">f(<div class="sig-lines">\n<div>a</div>\n</div>)</dt><dd>does</dd></dl>'
        '<div class="citation-list">'
    )
    assert workflow["trim"].mended(mended) == mended
