"""``hpat``: list and run chapters, look after data, print and verify the claims, build the book."""

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpatlib._files import alone, home, storing, write

if TYPE_CHECKING:
    from hpatlib import jobs

HELP = {"help_option_names": ["-h", "--help"]}


class Commands(typer.core.TyperGroup):
    """Commands that say in one sentence what the disk or the file system refused, and exit 1."""

    def invoke(self, ctx: Any) -> Any:
        """As click has it."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read our output has gone: click knows what to do
                raise
            where = f"{error.filename} cannot be used ({error.strerror}): make room or allow it, or name another folder"
            raise _stop(str(error) if error.filename is None else where, 1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings=HELP,
)
data_app = typer.Typer(help="Which real data sets are here, and how to get the others.")
app.add_typer(data_app, name="data")


FOLDERS = ("HPAT_DATA", "HPAT_WEIGHTS", "HPAT_HOME", "HPAT_RECORDS")


class Profile(StrEnum):
    smoke = "smoke"
    laptop = "laptop"
    study = "study"
    paper = "paper"


class Data(StrEnum):
    phantom = "phantom"
    real = "real"


def _version(asked: bool) -> None:
    if asked:
        from hpatlib import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """List and run chapters, look after data, print and verify the claims, build the book."""
    for stream in (sys.stdout, sys.stderr):  # an old console may have no arrow: that must not end hours of work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for folder in FOLDERS:
        if os.environ.get(folder):  # chapters and jobs run in other folders, where a relative path leads elsewhere
            os.environ[folder] = str(Path(os.environ[folder]).expanduser().resolve())


def checkout() -> Path:
    """The folder that holds notebooks/: the current one, one above it, or the one the library is installed from."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks").is_dir() and (folder / "_config.yml").is_file():
            return folder
    raise _stop("no checkout of the book here: clone the repository and run hpat inside it")


def chapters(root: Path) -> dict[str, Path]:
    """Name (``hpat/fig6_stbo_vs_grid_search``) → the chapter's text source, in order."""
    return {
        path.relative_to(root / "notebooks").with_suffix("").as_posix(): path
        for path in sorted((root / "notebooks").glob("*/*.md"))
    }


@app.command("list")
def list_() -> None:
    """Name and title of every chapter."""
    known = chapters(checkout())
    width = max(map(len, known), default=0)
    for name, path in known.items():
        title = next((line[2:] for line in path.read_text("utf-8").splitlines() if line.startswith("# ")), "")
        typer.echo(f"{name:{width}}  {title}")


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(metavar="CHAPTER…", help="As hpat list names them.")],
    profile: Annotated[Profile, typer.Option(help="How large: see the page on reproducing.")] = Profile.smoke,
    data: Annotated[Data | None, typer.Option(help="Default: the profile's own.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    record: Annotated[bool, typer.Option("--record", help="Write the record to evidence/, to be committed.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for executed notebooks; default: runs/chapters.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without Jupyter: the record, and no notebook.")] = False,
) -> None:
    """Execute chapters with papermill; the executed notebooks and their records land under runs/."""
    if plain and output:
        raise _stop("--plain writes no notebook for --output to hold: leave one of them out")
    root = checkout()
    known = chapters(root)
    if unknown := [name for name in names if name not in known]:
        raise _stop(f"unknown chapter {', '.join(unknown)}: choose from {', '.join(known)}")
    if record:
        os.environ["HPAT_RECORDS"] = str(root / "evidence")
    given = {"profile": profile.value, "data": data.value if data else None, "seed": seed}
    label = "-".join([profile.value, data.value if data else "default", f"seed{seed}"])
    failed = []
    for name in names:
        target = (output.expanduser() if output else home() / "chapters" / label) / f"{name}.ipynb"
        typer.echo(name if plain else f"{name} → {_short(target)}")
        if drifted(known[name]):
            typer.echo(f"{name}.md is not what its notebook was written from: hpat sync {name} renews it", err=True)
        # The notebook, and what the chapter's steps keep while it measures.
        measured, waiting = _measured(name, profile.value, seed), partial(_waiting, name)
        with alone(measured, waiting), alone(target, waiting):
            message = execute_plainly(known[name], given) if plain else execute(known[name], target, given)
        if message is not None:
            failed.append(name)
            typer.echo(message, err=True)
        elif not record:
            _compare(name, profile.value, data.value if data else "*", seed)
    if failed:
        raise typer.Exit(1)


def _measured(name: str, profile: str, seed: int) -> Path:
    """What two runs of a chapter must not share. ``data`` has no say: left out it is one of the two kinds, and the
    folder in which steps are kept is named by which."""
    return home() / "measured" / name / f"{profile}-seed{seed}"


def _waiting(name: str, who: str) -> None:
    typer.echo(f"{name} is being run by {who}: waiting for it", err=True)


def _compare(name: str, profile: str, data: str, seed: int) -> None:
    """Say whether what was just measured agrees with the committed record of the same run, where there is one."""
    from hpatlib import claims, records

    pattern = f"{profile}-{data}-seed{seed}.json"
    newest = max((records.scratch() / name).glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None or not (committed := checkout() / "evidence" / name / newest.name).is_file():
        return
    typer.echo(claims.agreement(records.read(newest), records.read(committed)))


def execute(source: Path, target: Path, parameters: dict) -> str | None:
    """Run the chapter ``source`` (MyST text) into the notebook ``target``; return None, or why it failed.

    Parameters that equal the chapter's defaults are not injected. ``target`` is whole or absent; a failed run is
    kept beside it as ``<name>.failed.ipynb``, until the next. Call it ``alone``. Raises ``StorageError``.
    """
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    fresh = target.with_suffix(".input.ipynb")
    partial = target.with_suffix(".failed.ipynb")
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write(fresh, jupytext.writes(notebook, "ipynb").encode())
    try:
        known = papermill.inspect_notebook(str(fresh))
        given = {k: v for k, v in parameters.items() if k not in known or ast.literal_eval(known[k]["default"]) != v}
        papermill.execute_notebook(
            str(fresh),
            str(partial),
            given,
            kernel_name="python3",
            start_timeout=600,  # of seconds: a busy machine imports for long
            cwd=source.parent,
            progress_bar=False,
            stderr_file=sys.stderr,  # the library's own bars, with their estimates, as they move
        )
    except PapermillExecutionError as error:
        return (
            f"{target.stem} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n(see {_short(partial)})"
        )
    except DeadKernelError as error:
        return f"{target.stem} failed: its kernel died ({error}). Was there enough memory?"
    except OSError as error:
        partial.unlink(missing_ok=True)  # half of it at best
        with storing(target):
            raise error
    finally:
        fresh.unlink(missing_ok=True)
    with storing(target):
        os.replace(partial, target)
    return None


def cells(source: Path) -> list[tuple[list[str], str]]:
    """The code cells of a chapter's text: (tags, code) each. It needs neither Jupyter nor jupytext."""
    found = []
    for block in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```\s*$", source.read_text("utf-8"), re.M | re.S):
        options, code = re.fullmatch(r"((?:^:[^\n]*\n)*)\n*(.*)", block, re.M | re.S).groups()  # type: ignore[union-attr]
        tags = re.findall(r"^:tags: *\[(.*)\]", options, re.M)
        found.append(([tag.strip() for tag in tags[0].split(",")] if tags else [], code.rstrip("\n")))
    return found


def drifted(source: Path) -> bool:
    """Whether a chapter's text has other code than the notebook beside it."""
    notebook = source.with_suffix(".ipynb")
    if not notebook.is_file():
        return True
    code = ["".join(c["source"]) for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    return code != [code for _, code in cells(source)]


def execute_plainly(source: Path, parameters: dict) -> str | None:
    """Run the code cells of the text ``source`` in this process; return None, or why they failed.

    It needs the library alone, neither papermill nor Jupyter: for a GPU or cluster node that has no more than that.
    """
    scope: dict[str, object] = {"__name__": "__main__"}
    for number, (tags, code) in enumerate(cells(source), 1):
        if "nbval-skip" in tags:  # what is skipped there installs things on Colab
            continue
        try:
            exec(compile(code, f"{source.stem}, code cell {number}", "exec"), scope)
        except Exception as error:
            traceback.print_exc()
            return f"{source.stem} failed in code cell {number}: {type(error).__name__}: {error}"
        if "parameters" in tags:
            scope |= parameters
    return None


@app.command()
def evidence(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CHAPTER…]")] = None,
    profile: Annotated[Profile, typer.Option()] = Profile.laptop,
    cores: Annotated[int, typer.Option(min=1, help="Chapters at a time.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
) -> None:
    """Make the records of real images that are missing or stale, those that may decide most claims a second first.

    It runs behind other work, for hours: stop it and start it again at any time, and commit what it makes.
    """
    from hpatlib import evidence as work
    from hpatlib import jobs as planning

    root = checkout()
    known = chapters(root)
    if unknown := set(names or ()) - known.keys():
        raise _stop(f"unknown chapter {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    asked = {name: path for name, path in known.items() if not names or name in names}
    costs = planning.costs(_plan(root, list(asked), profile, Data.real, False))
    jobs = work.plan(asked, profile.value, costs)
    width = max((len(job.chapter) for job in jobs), default=0)
    for job in jobs:
        cost = f"{job.open_claims} open claims, about {work.duration(job.seconds)}"
        typer.echo(f"{job.chapter:{width}}  {cost}; {job.why}")
    total = work.duration(work.left_over([job.seconds for job in jobs], cores))
    typer.echo(f"{len(jobs)} records to make, about {total} on {cores} cores" if jobs else "every record stands")
    if unplaced := work.unplaced(asked, profile.value):
        typer.echo(
            f"{', '.join(unplaced)}: records of no commit, or of none in this clone; whether they are stale cannot be "
            "told in full (git fetch --unshallow may bring a commit)"
        )
    if dry_run or not jobs:
        return
    if not os.environ.get("HPAT_DATA"):
        raise _stop("set HPAT_DATA to the folder that holds the real images")
    done = work.work(jobs, cores, work.measure, home() / "evidence", typer.echo)
    failed = [each.job.chapter for each in done if each.code]
    for each in done:
        typer.echo(f"{each.job.chapter:{width}}  {'failed' if each.code else 'made'}  {work.duration(each.seconds)}")
    if failed:
        raise typer.Exit(1)


@app.command()
def sync(names: Annotated[list[str] | None, typer.Argument(metavar="[CHAPTER…]")] = None) -> None:
    """Run chapters (default: all) as smoke and renew the committed .ipynb beside each .md."""
    import nbformat

    root = checkout()
    known = chapters(root)
    if unknown := set(names or ()) - known.keys():
        raise _stop(f"unknown chapter {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    for name, source in known.items():
        if names and name not in names:
            continue
        typer.echo(name)
        target = source.with_suffix(".ipynb")
        done = root / "runs" / "sync" / f"{name}.ipynb"
        with alone(_measured(name, "smoke", 0)), alone(done):
            message = execute(source, done, {})
        if message is not None:
            raise _stop(message)
        notebook = nbformat.read(done, as_version=4)
        notebook.metadata.pop("papermill", None)
        for number, cell in enumerate(notebook.cells):
            if "outputs" in cell:  # progress bars and warnings of one machine
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.id = f"cell-{number}"  # stable, so that a new run changes only what it shows
            cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags" and value}
        write(target, nbformat.writes(notebook).encode() + b"\n")


@app.command()
def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE…", help="Files that hpat book --fan-out writes.")],
) -> None:
    """Train the model of each recipe, or go on with it, or find it trained; print its key."""
    from hpatlib import runs

    for path in recipes:
        try:
            run = runs.from_dict(json.loads(path.read_text("utf-8"))["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _stop(f"{path} is no recipe ({error}): hpat book --fan-out writes them to _build/jobs") from error
        try:
            typer.echo(runs.train_or_load(run).provenance["key"])
        except (ValueError, RuntimeError) as error:  # damaged, nothing learned, no weights
            raise _stop(f"{path}: {error}", 1) from error


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def book(
    context: typer.Context,
    profile: Annotated[Profile, typer.Option()] = Profile.smoke,
    data: Annotated[Data | None, typer.Option(show_default=False)] = None,
    cores: Annotated[int, typer.Option(min=1, help="Chapters at a time.")] = 2,
    chapter: Annotated[list[str] | None, typer.Option(help="Only this one, and no pages; may be repeated.")] = None,
    fan_out: Annotated[bool, typer.Option("--fan-out", help="A job a training first, then a job a chapter.")] = False,
    executor: Annotated[str | None, typer.Option(help="Where: slurm, kubernetes …; implies --fan-out.")] = None,
    gpu: Annotated[bool | None, typer.Option(help="A GPU a job.", show_default="study and paper")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do, and its cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Build the book: run the chapters that are out of date, then the pages. Snakemake gets all other options."""
    root = checkout()
    if unknown := set(chapter or ()) - chapters(root).keys():
        raise _stop(f"unknown chapter {', '.join(sorted(unknown))}: choose from {', '.join(chapters(root))}")
    names = chapter or list(chapters(root))
    if dry_run:
        from hpatlib import jobs

        told = jobs.summary(_plan(root, names, profile, data, gpu), (1, 8, 64))
        typer.echo(json.dumps(told, indent=1) if as_json else jobs.report(told))
        return
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--cores", str(cores)]
    # Snakemake otherwise overlooks touched files whose content is the same. Its own lock outlives it; ours does not.
    command += ["--max-checksum-file-size", "0", "--quiet", "rules", "--rerun-incomplete", "--nolock"]
    command += ["--config", f"profile={profile.value}", f"data={data.value if data else ''}"]
    command += [*_elsewhere(root, executor), *context.args]
    with _one_book(root) as lock, tempfile.TemporaryDirectory() as folder:
        if fan_out or executor:
            _fan_out(root, names, profile, data, gpu, [*command, "--", "trainings"], lock)
        if chapter:
            command += ["--", *(f"_build/run/{_kind(profile, data)}/{name}.ipynb" for name in chapter)]
        served = None if executor else folder  # kernels wait on this machine
        jupyter = os.pathsep.join(filter(None, (served, os.environ.get("JUPYTER_PATH"))))
        serve = [sys.executable, "-W", "ignore", str(root / "workflow/kernels.py"), "serve", folder]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the workflow runs chapters
        with subprocess.Popen(serve, cwd=root, stdin=subprocess.PIPE, env=one_thread):  # ends when its input closes
            code = _attended(command, root, {**os.environ, "JUPYTER_PATH": jupyter}, lock)
    raise typer.Exit(code)


@contextmanager
def _one_book(root: Path) -> Iterator[int]:
    """The lock of the book in ``root``, as an open file that holds it as long as any process has it open.

    It is handed on to Snakemake, so that it holds while either lives, whatever ended the other, and no longer. The file
    says how to stop them.
    """
    try:
        import fcntl
    except ImportError:  # there are no forked kernels either
        raise _stop("hpat book needs Linux or macOS: on Windows use WSL, or hpat run for a chapter") from None
    path = root / ".snakemake" / "book.lock"
    with storing(path):
        path.parent.mkdir(exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            typer.echo(f"another hpat book is at work here ({file.read().strip()}): waiting for it", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        _stopped_by(file.fileno(), str(os.getpid()))
        yield file.fileno()


def _stopped_by(lock: int, pid: str) -> None:
    """Write into the lock of the book what ends its work: an interrupt to a process, or to the group ``-- -pid``."""
    os.ftruncate(lock, 0)
    os.write(lock, f"kill -INT {pid} stops it".encode())


def _attended(command: list[str], root: Path, environment: dict[str, str], lock: int) -> int:
    """Run Snakemake in a process group of its own and return its exit code; what stops us stops all of the group.

    Each of its processes is interrupted once, as by Ctrl-C in a terminal, and ends in its own way while we wait.
    """
    asked: list[int] = []
    group: list[int] = []

    def stop(signal_number: int, _: object) -> None:
        asked.append(signal_number)
        for leader in group:
            os.killpg(leader, signal.SIGINT)

    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in every}
    for each in every:
        if before[each] != signal.SIG_IGN:  # as nohup wants it
            signal.signal(each, stop)
        elif each == signal.SIGINT:  # as & in a script wants it; Snakemake, which would inherit that, must hear it
            signal.signal(each, lambda *_: None)
    try:
        with subprocess.Popen(command, cwd=root, env=environment, pass_fds=[lock], process_group=0) as workflow:
            group.append(workflow.pid)
            _stopped_by(lock, f"-- -{workflow.pid}")
            if asked:  # before it had a group
                stop(asked[0], None)
            code = workflow.wait()
            group.clear()
            with suppress(ProcessLookupError):  # chapters that a killed Snakemake has left running
                os.killpg(workflow.pid, signal.SIGTERM)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return code if code >= 0 else 128 - code


@app.command()
def export(
    output: Annotated[Path | None, typer.Option(help="Folder; default: book/_static/explorer.")] = None,
) -> None:
    """Write what the attack explorer computes with: two networks trained on phantoms, and 24 phantoms."""
    from hpatlib import export as page

    for path in page.explorer(output or checkout() / "book" / "_static" / "explorer"):
        typer.echo(f"{_short(path)}: {path.stat().st_size / 1000:.0f} kB")


def _kind(profile: Profile, data: Data | None) -> str:
    """The folder of a build's results."""
    return f"{profile.value}-{data.value if data else 'default'}"


def _elsewhere(root: Path, executor: str | None) -> list[str]:
    """What Snakemake is told about where jobs run: the executor, and our settings for it where there are some.

    Ends the command where no job would start: Snakemake does not quote the path of its Python on other machines.
    """
    if executor and any(map(str.isspace, sys.executable)):
        raise _stop(
            f"{sys.executable} has a space in its path, and jobs elsewhere would not find it: use a checkout whose "
            "path has none, or leave out --executor"
        )
    settings = root / "workflow/profiles" / (executor or "")
    known = ["--workflow-profile", f"workflow/profiles/{executor}"] if executor and settings.is_dir() else []
    return ["--executor", executor, *known] if executor else []


def _plan(root: Path, names: list[str], profile: Profile, data: Data | None, gpu: bool | None) -> "jobs.Plan":
    from hpatlib import jobs

    sources = {name: path for name, path in chapters(root).items() if name in names}
    on_gpu = profile.value in jobs.ON_GPU if gpu is None else gpu
    try:
        return jobs.plan(sources, cells, profile.value, data.value if data else None, gpu=on_gpu)
    except (FileNotFoundError, ValueError) as error:
        raise _stop(str(error)) from error


def _fan_out(
    root: Path, names: list[str], profile: Profile, data: Data | None, gpu: bool | None, command: list[str], lock: int
) -> None:
    """Train what the chapters need, a job each; again for what only these trainings decide."""
    from hpatlib import jobs

    folder, before = root / "_build/jobs" / _kind(profile, data), None
    while todo := jobs.prepare(_plan(root, names, profile, data, gpu), folder):
        if todo == before:
            raise _stop(
                f"{len(todo)} models, the first of recipe {todo[0]}, are not in {home() / 'models'} after their "
                "trainings: set HPAT_HOME to a folder that all jobs share"
            )
        for name in todo:  # a model that is gone must be trained again
            (folder / f"{name}.key").unlink(missing_ok=True)
        if code := _attended(command, root, dict(os.environ), lock):
            raise typer.Exit(code)
        before = todo


@app.command("claims")
def claims_(
    document: Annotated[str | None, typer.Option(help="Of one document alone.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with everything that is known.")] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Write each claim down as it stands now.")] = False,
) -> None:
    """Every claim with its verdict, computed now from the committed records."""
    from hpatlib import claims, documents

    if document is not None and document not in documents.names():
        raise _stop(f"unknown document {document!r}: choose one of {', '.join(documents.names())}")
    if lock:
        if document is not None:
            raise _stop("--lock writes down the claims of all documents: leave --document out")
        changed = claims.lock()
        typer.echo(f"written down anew: {', '.join(changed)}" if changed else "every claim stands as it was written")
        return
    try:
        judged = [j for name in documents.names() if document in (None, name) for j in claims.judge(name)]
    except ValueError as error:
        raise _stop(str(error), 3) from error
    if as_json:
        typer.echo(json.dumps([j.plain() for j in judged], indent=1, ensure_ascii=False))
        return
    width = max((len(j.claim.id) for j in judged), default=0)
    told = None
    for j in judged:
        if j.document != told:
            told = j.document
            typer.echo(f"# {told}: {documents.about(told)['title']}")
        verdict = j.verdict + (f" ({j.uncorrected} before correction)" if j.uncorrected != j.verdict else "")
        verdict += ", written after the record and not counted" if j.late else ""
        typer.echo(f"{j.claim.id:{width}}  {verdict}{': ' + j.why if j.why else ''}")
        typer.echo(f"{'':{width}}  {j.claim.sentence} ({'asked by us; ' if j.claim.ours else ''}{j.claim.place})")
        if j.quantity is not None:
            typer.echo(f"{'':{width}}  {j.effect}; {j.measured_on}")
    counts = [f"{n} {verdict}" for verdict, n in claims.counted(judged).items() if n]
    late = sum(j.late for j in judged)
    apart = f"; {late} written after their records" if late else ""
    number = len(judged) - late
    typer.echo(f"{number} claim{'s' * (number != 1)}: {', '.join(counts) or 'none'}{apart}")


@app.command()
def verify() -> None:
    """Compute everything anew from the records. Exits 0: all holds; 10: a claim is contradicted; 3: tampered with.

    3 means that a claim was changed after it was measured or written down, or that a record is not whole.
    """
    from hpatlib import claims, documents

    try:
        faults = claims.tampered()
        judged = [] if faults else [j for name in documents.names() for j in claims.judge(name)]
    except ValueError as error:
        faults = [str(error)]
    if faults:
        raise _stop("\n".join(faults), 3)
    contradicted = [j for j in judged if j.verdict == "contradicted" and not j.late]
    for j in contradicted:
        typer.echo(f"contradicted: {j.claim.id}: {j.claim.sentence} ({j.effect})")
    late = sum(j.late for j in judged)
    apart = f" ({late} were written after their records, and are not counted)" if late else ""
    typer.echo(f"{len(judged)} claims fit their lock and their records{apart}; {len(contradicted)} are contradicted")
    raise typer.Exit(10 if contradicted else 0)


@data_app.callback(invoke_without_command=True)
def data_status(context: typer.Context) -> None:
    """What is under HPAT_DATA."""
    if context.invoked_subcommand:
        return
    from hpatlib import data

    typer.echo(f"HPAT_DATA = {os.environ.get('HPAT_DATA', '(not set)')}")
    for row in data.status():
        counts = ", ".join(f"{count} {name}" for name, count in row["classes"].items())
        typer.echo(f"{row['key']} ({row['part']}): {row['images']} images ({counts})")
        if row["note"]:
            typer.echo(f"    {row['note']}")


@data_app.command()
def fetch(name: Annotated[str, typer.Argument(help="Key of the data set, such as cnmc.")]) -> None:
    """Download a data set into HPAT_DATA, from Kaggle or where else it is, after saying what its licence is."""
    from hpatlib import data

    root = os.environ.get("HPAT_DATA")
    if not root:
        raise _stop("set HPAT_DATA to the folder that data sets shall go to")
    if name in data.SOURCES:
        source = data.SOURCES[name]
        typer.echo(f"{source.title}: {source.citation}\nlicence: {source.licence}")
    try:
        typer.echo(str(data.fetch(name, root)))
    except (ValueError, RuntimeError) as error:
        raise _stop(str(error)) from error


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _stop(message: str, code: int = 2) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)
