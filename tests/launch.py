"""`make test-launch`: what a stranger's machine does with the project, as far as that can be seen on this one.

The wheel, in an environment that holds nothing else, attacks a torch module; Colab's first cell installs from the
commit that is checked out, and the chapter behind it runs; repo2docker finds environment.yml and renders it, what its
pip part asks for can be solved, and a chapter stays within what Binder gives. It needs git, a network and some minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
UV = str(Path(sys.executable).with_name("uv"))
MINUTES = 20  # for a single command
CHAPTER = "ultrasound/fig9_10_simple_cnn_eps005"
SECONDS, MEMORY = 120, 2 * 2**30  # a chapter's share of what Binder gives
ATTACK = """
import torch
from hpatlib import attacks

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10)).eval()
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
moved = attacks.pgd(model, images, labels, eps=8 / 255, step=2 / 255, iterations=10)
loss = torch.nn.functional.cross_entropy
assert (moved - images).abs().max() <= 8 / 255 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
assert loss(model(moved), labels) > loss(model(images), labels)
"""
# Seconds of a processor and bytes of the largest process that a command took.
TAKEN = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss]))
"""
# IPython runs the cells, and Colab is pretended: the first cell asks for its module and nothing else.
COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for number, cell in enumerate(sys.argv[1:]):
    result = shell.run_cell(cell)
    result.raise_error()
import hpatlib
print(hpatlib.__file__)
"""


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """The output of a command, which must succeed; nothing of this environment's library or settings leaks into it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("HPAT_")}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired as error:
        raise SystemExit(
            f"{' '.join(command)[:200]} did not end in {MINUTES} minutes: if it was downloading, PyTorch and what it "
            "needs of CUDA are several GB, which uv keeps for the next time"
        ) from error
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def clean(folder: Path, *packages: str) -> str:
    """The Python of a new environment with these packages."""
    run(UV, "venv", "--quiet", "--seed", "--python", sys.executable, str(folder))
    python = str(folder / "bin/python")
    run(UV, "pip", "install", "--quiet", "--python", python, *packages)
    return python


def wheel(folder: Path) -> str:
    """Build both archives from the commit, the wheel from the source archive, and use it where there is no checkout."""
    source = folder / "source"
    run("git", "clone", "--quiet", "--local", str(ROOT), str(source))
    run(UV, "build", "--quiet", "--out-dir", str(folder / "dist"), str(source))
    (built,) = (folder / "dist").glob("*.whl")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    python = clean(folder / "wheel", str(built))
    run(python, "-W", "ignore", "-c", ATTACK, cwd=folder)
    said = run(str(Path(python).with_name("hpat")), "claims", cwd=folder).splitlines()[-1]
    return f"{built.name} and {archive.name}: attacks a torch module; {said}"


def colab(folder: Path) -> str:
    """The first cell as it stands, but for where it installs from; then the rest of the chapter."""
    notebook = json.loads((ROOT / f"notebooks/{CHAPTER}.ipynb").read_text("utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    first = next(cell for cell in code if "google.colab" in cell)
    address = repository()
    assert f'"git+{address}"' in first, f"the first cell installs from elsewhere than {address}"
    code[code.index(first)] = first.replace(f"git+{address}", f"git+file://{ROOT}")
    # What Colab's own image has of what we need, so that pip has little to do.
    python = clean(folder / "colab", "ipython", "pip", "torch", "torchvision", "pandas", "matplotlib", "scikit-learn",
                   "scikit-image", "statsmodels", "pyarrow", "tqdm", "typer", "ipykernel")  # fmt: skip
    started = time.monotonic()
    said = run(python, "-W", "ignore", "-c", COLAB, *code, cwd=folder, HPAT_HOME=str(folder / "home"), MPLBACKEND="agg")
    assert str(folder / "colab") in said.splitlines()[-1]
    return f"Colab: {len(code)} cells of {CHAPTER} in {time.monotonic() - started:.0f} s, installation included"


def binder(folder: Path) -> str:
    """What repo2docker makes of the checkout, what pip has to install there, and what a chapter takes."""
    python = clean(folder / "repo2docker", "jupyter-repo2docker")
    tool = [str(Path(python).with_name("jupyter-repo2docker")), "--no-build", "--debug"]
    done = subprocess.run([*tool, "--user-id=1000", "--user-name=jovyan", str(ROOT)], capture_output=True, text=True)
    rendered, install = done.stdout + done.stderr, '--file "environment.yml"'
    version = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"][0].removeprefix("python=")
    assert done.returncode == 0 and f"Building conda environment for python={version}" in rendered, rendered[-2000:]
    # `-e .` can only be installed where the repository has been copied before.
    assert 0 < rendered.index("COPY --chown=1000:1000 src/ ${REPO_DIR}/") < rendered.index(install)
    solved = run(
        UV, "pip", "compile", "--quiet", "--extra", "book", "--python-version", version, "pyproject.toml", cwd=ROOT
    )
    packages = sum("==" in line for line in solved.splitlines())
    place = {"HPAT_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    chapter, started = [sys.executable, "-W", "ignore", "-m", "hpatlib", "run", CHAPTER], time.monotonic()
    seconds, memory = json.loads(run(sys.executable, "-c", TAKEN, *chapter, cwd=ROOT, **place))
    wall = time.monotonic() - started
    assert seconds <= SECONDS, f"{CHAPTER} took {seconds:.0f} s of a processor, Binder's reader waits {SECONDS}"
    assert memory <= MEMORY, f"{CHAPTER} took {memory / 2**30:.2f} GiB, Binder has {MEMORY / 2**30:.0f}"
    return (
        f"Binder: conda with Python {version}, {packages} packages by pip; {CHAPTER}: {seconds:.0f} s of a processor "
        f"({wall:.0f} s on this machine), at most {memory / 2**30:.2f} GiB in a process"
    )


def repository() -> str:
    """The address of the repository: it stands in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def main() -> None:
    for check in (wheel, colab, binder):
        print(f"{check.__name__} …", flush=True)
        with tempfile.TemporaryDirectory() as name:
            print(check(Path(name)), flush=True)


if __name__ == "__main__":
    main()
