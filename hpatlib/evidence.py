"""Which records of real images are missing or stale, in which order they are worth making, and making them.

A record is stale where a claim that it was measured for has another hash today, where it lacks what a claim needs, or
where the profile, a part of training that its models went through, or a search that it holds what was found by has
changed since the commit that made it.
"""

import ast
import math
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpatlib import claims, documents, records
from hpatlib.records import Record

DECIDED = ("supported", "contradicted", "near its threshold")
SECONDS = {"s": 1, "min": 60, "h": 3600}
UNKNOWN = 3 * 3600.0  # seconds of a chapter that nobody has timed

# By what a record is known to rest on a search of hpatlib.worst_case: columns, and names of attacks and readings.
FOUND_BY = {
    "worst_case": {"standard attacks", "worst", "worst case"},
    "smallest_eps": {"smallest", "doublings"},
}

Runner = Callable[["Job", Path], int]  # makes the record, and its log; returns an exit code


@dataclass(frozen=True)
class Job:
    """A record to be made: why, how many claims it may decide, and how many seconds it may take."""

    chapter: str
    profile: str
    why: str
    open_claims: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """A job and what became of it: its exit code and its seconds."""

    job: Job
    code: int
    seconds: float


def plan(chapters: Mapping[str, Path], profile: str, costs: Mapping[str, float] | None = None) -> list[Job]:
    """What there is to do for ``chapters`` (name → source), the most open claims per second first.

    ``costs``: seconds of each, as ``jobs.costs`` counts them (None: what records or tables of costs say).
    """
    verdicts = {j.claim.id: j for j in claims.ledger()}
    jobs = []
    for chapter, source in chapters.items():
        own = [j for j in verdicts.values() if j.claim.chapter == chapter]
        found = next((r for r in records.of(chapter) if r.real and r.header.profile == profile), None)
        why = "missing" if found is None else stale(found, own)
        if why:
            count = sum(j.verdict not in DECIDED and not j.late for j in own)
            seconds = estimate(source, profile, found) if costs is None else costs[chapter]
            jobs.append(Job(chapter, profile, why, count, seconds))
    return sorted(jobs, key=lambda job: (-job.open_claims / max(job.seconds, 1), job.seconds, job.chapter))


def stale(record: Record, judged: Iterable[claims.Judgement]) -> str:
    """Why a record should be measured anew, or ""."""
    header, now = record.header, claims.check(record.header.chapter)
    if changed := [name for name, then in header.claims.items() if now.get(name) != then]:
        return f"stale: claims changed ({', '.join(sorted(changed))})"
    # What it was made for and has not got, as networks that its profile lacks, measuring it again would not give.
    if lacking := [
        j.claim.id for j in judged if j.record is record and j.quantity is None and j.claim.id not in header.claims
    ]:
        return f"stale: it lacks what {', '.join(lacking)} needs"
    commit = (header.environment.get("commit") or "").removesuffix("-dirty")
    for document in documents.names():
        if any(claim.chapter == header.chapter for claim in claims.of(document)):
            path = documents.FOLDER / document / "profiles.toml"
            if then := _at(commit, path):
                before, now = tomllib.loads(then), documents.toml(document, "profiles")
                if not _same(before.get(header.profile, {}), now.get(header.profile, {}), record):
                    return f"stale: the profile has changed since {commit}"
    return _behaves_otherwise(record, commit) or _searched_otherwise(record, commit)


def unplaced(chapters: Iterable[str], profile: str) -> list[str]:
    """Chapters with a record of no commit, or of none that git has here: what has changed since, nobody can tell."""
    found: dict[str, None] = {}
    for chapter in chapters:
        for record in (r for r in records.of(chapter) if r.real and r.header.profile == profile):
            commit = (record.header.environment.get("commit") or "").removesuffix("-dirty")
            known = _git(documents.FOLDER, "cat-file", "-e", f"{commit}^{{commit}}") if commit else None
            if known is None or known.returncode:
                found[chapter] = None
    return list(found)


def _same(then: Mapping[str, Any], now: Any, record: Record) -> bool:
    """Whether two versions of a profile are one for this record: of a list of networks, those that it asked matter, how
    adversarial trainings and their like are trained where it asked one, and ``why_…`` in the chapters that ask why."""
    adversarial = any(model.run.get("adversary") for model in record.header.models)
    why = record.header.chapter.rpartition("/")[2].startswith("why_")
    asked = {(model.run.get("model"), model.run.get("weights")) for model in record.header.models}
    for name in then.keys() | now.keys():
        if (name in ("strategy", "warmup") and not adversarial) or (name.startswith("why_") and not why):
            continue
        before, after = then.get(name), now.get(name)
        pairs = isinstance(before, list) and all(isinstance(each, list) for each in before)
        if pairs and not {tuple(pair) for pair in before or ()} <= asked:
            before, after = ([pair for pair in value or () if tuple(pair) in asked] for value in (before, after))
        if before != after:
            return False
    return True


def _behaves_otherwise(record: Record, commit: str) -> str:
    trained = [model for model in record.header.models if model.seed is not None]
    if not trained:
        return ""
    from hpatlib import runs  # needs torch

    try:
        taken = [runs.from_dict({"count": None} | model.run) for model in trained]  # records leave None out
        parts = {part for run in taken for part in runs.behaviour(run)}
    except ValueError as error:
        return f"stale: its runs are none of this version ({error})"
    text = _at(commit, Path(runs.__file__))
    written = re.search(r"^BEHAVIOUR = (\{.*?\})", text or "", re.M | re.S)
    then = ast.literal_eval(written[1]) if written else {}
    changed = [part for part in sorted(parts) if part in then and then[part] != runs.BEHAVIOUR[part]]
    return f"stale: {', '.join(changed)} has changed since {commit}" if changed else ""


def _searched_otherwise(record: Record, commit: str) -> str:
    from hpatlib import worst_case  # needs torch

    rows, here = record.outcomes.rows, Path(worst_case.__file__).parent
    names = set(rows.columns).union(*(rows[name].unique() for name in record.header.conditions))
    changed = []
    for search, since in worst_case.SINCE.items():
        before = commit and _git(here, "merge-base", "--is-ancestor", since, commit)
        if names & FOUND_BY[search] and before and before.returncode == 1:  # of others, git does not know
            changed.append(search)
    return f"stale: {' and '.join(changed)} found something else at {commit}" if changed else ""


def _at(commit: str, path: Path) -> str | None:
    """A file of the checkout as it was at ``commit``; None where git does not know."""
    done = _git(path.parent, "show", f"{commit}:./{path.name}") if commit else None
    return done.stdout if done and done.returncode == 0 else None


def _git(folder: Path, *command: str) -> "subprocess.CompletedProcess[str] | None":
    """git in ``folder``; None where there is none."""
    try:
        return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True)
    except OSError:
        return None


def estimate(source: Path, profile: str, record: Record | None) -> float:
    """Seconds: of the last record, trainings included; else what the chapter's table of costs says."""
    if record is not None:
        return max(record.header.seconds, sum(model.seconds for model in record.header.models))
    row = re.search(rf"^\| *{profile} *\|.*\|([^|]*)\|\s*$", source.read_text("utf-8"), re.M)
    times = re.findall(r"(\d+)(½?) ?(s|min|h)\b", row[1]) if row else []
    return max(((int(n) + bool(half) / 2) * SECONDS[unit] for n, half, unit in times), default=UNKNOWN)


def work(jobs: Sequence[Job], cores: int, run: Runner, logs: Path, say: Callable[[str], None]) -> list[Done]:
    """Do all jobs, ``cores`` at a time, in order; one that fails stops no other. ``say`` is told how it goes."""
    done: list[Done] = []
    lock = threading.Lock()

    def one(job: Job) -> None:
        log = logs / f"{job.chapter.replace('/', '-')}-{job.profile}.log"
        started = time.monotonic()
        code = run(job, log)
        with lock:
            done.append(Done(job, code, time.monotonic() - started))
            rest = [other.seconds for other in jobs if other not in [d.job for d in done]]
            slower = sum(d.seconds for d in done) / max(1.0, sum(d.job.seconds for d in done))
            left = f"{len(rest)} left, about {duration(left_over(rest, cores) * slower)}" if rest else "all done"
            end = f"failed, see {log}" if code else "made"
            say(f"{job.chapter}: {end} in {duration(done[-1].seconds)}; {left}")

    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(one, jobs))
    return done


def left_over(seconds: Sequence[float], cores: int) -> float:
    """Seconds until all are done, in order, ``cores`` at a time."""
    busy = [0.0] * cores
    for each in seconds:
        busy[busy.index(min(busy))] += each
    return max(busy)


def measure(job: Job, log: Path) -> int:
    """``hpat run`` of a job in a process of its own, at low priority, on one core."""
    command = [sys.executable, "-m", "hpatlib", "run", job.chapter, "--profile", job.profile]
    if os.name == "posix":
        command = ["nice", "-n", "10", *command]
    with log.open("ab") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, "--data", "real", "--record"], stdout=output, stderr=subprocess.STDOUT, env=environment
        ).returncode


def duration(seconds: float) -> str:
    """For readers: "40 s", "12 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
