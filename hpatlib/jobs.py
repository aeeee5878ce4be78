"""What building the book would train and measure: a job a training and a job a chapter, and what each may cost.

The jobs are found by a dry walk: a chapter's statements run, and nothing trains (``planning``). What a training costs
follows from how many images pass through its network and from how fast such trainings were on such a device.
"""

import ast
import json
import math
import statistics
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpatlib import data, evidence, models, planning, records, runs
from hpatlib._files import write
from hpatlib.runs import Run

Cells = Sequence[tuple[list[str], str]]  # of a chapter: tags and code
BACKWARD = 2  # a backward pass costs as much as two forward passes
ON_GPU = ("study", "paper")  # profiles
# Operations a second on a GPU, until one has trained here: half of what timm's own table has for training
# EfficientNet-B3 at 288 px on an RTX 3090 with mixed precision (572 images a second), as we train in single precision.
ASSUMED = 2.8e12
STARTING = 60.0  # seconds of a training that are no passes: to import, to decode, to write
MEMORY = 4000  # MB of a job, images apart


@dataclass(frozen=True)
class Speed:
    """Operations a second of a training: of ``networks`` that were trained before, else ``usual``; and ``source``."""

    usual: float
    networks: Mapping[str, float]
    source: str

    def seconds(self, run: Run, images: int) -> float:
        """What a training takes."""
        return STARTING + work(run, images) / self.networks.get(run.model, self.usual)


@dataclass(frozen=True)
class Training:
    """A run to be trained: by which chapters, in how many seconds, with how much memory of the host in MB.

    ``done``: a model of it is there; ``waits``: it is a stand-in, decided by other trainings' results.
    """

    run: Run
    chapters: tuple[str, ...]
    seconds: float
    memory: int
    done: bool
    waits: bool = False

    @property
    def name(self) -> str:
        """The recipe: what names the job, as there is no key before there are images."""
        return runs.recipe(self.run)


@dataclass(frozen=True)
class Chapter:
    """A chapter to be measured, apart from its trainings. ``timed``: somebody has seen how long that takes."""

    name: str
    seconds: float
    memory: int
    timed: bool


Job = Training | Chapter


@dataclass(frozen=True)
class Plan:
    """All jobs of a profile. ``assumed``: data sets that are not at hand, and how many images they are taken to have;
    ``weights``: networks that start from ImageNet weights; ``speed``: how fast trainings are taken to be."""

    profile: str
    gpu: bool
    trainings: tuple[Training, ...]
    chapters: tuple[Chapter, ...]
    assumed: dict[str, int]
    weights: tuple[str, ...]
    speed: Speed


def walk(cells: Cells, parameters: Mapping[str, Any], there: Container[str] = ()) -> planning.Noted:
    """What a chapter asks to be trained, after running its statements up to the first training and, behind that, those
    that need its ``chosen`` parameters alone. ``there``: recipes that are trained. Raises what a statement before the
    first training raises."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    unwound = False
    with planning.dry_walk(lambda run: runs.recipe(run) in there) as noted:
        for tags, code in cells:
            if "nbval-skip" in tags:
                continue
            for statement in ast.parse(code).body:
                if unwound and not any(isinstance(n, ast.Name) and n.id == "chosen" for n in ast.walk(statement)):
                    continue
                try:
                    exec(compile(ast.Module([statement], []), "a chapter, walked", "exec"), scope)
                except planning.Planned:
                    unwound = True
                except NameError:
                    if not unwound:
                        raise
            if "parameters" in tags:
                scope |= parameters
    return noted


def plan(
    chapters: Mapping[str, Path], cells: Callable[[Path], Cells], profile: str, kind: str | None, *, gpu: bool
) -> Plan:
    """The jobs of ``chapters`` (name → source, for ``cells`` to read); ``kind``: "real", "phantom" or the profile's."""
    there, wanted = runs.trained(), dict[str, tuple[Run, list[str], bool]]()
    assumed: dict[str, int] = {}
    for name, source in chapters.items():
        noted = walk(cells(source), {"profile": profile, "data": kind}, there)
        assumed |= noted.assumed
        for run, waits in [*((r, False) for r in noted.runs), *((r, True) for r in noted.later)]:
            for each in (run.clean, run) if run.static_eps is not None else (run,):
                wanted.setdefault(runs.recipe(each), (each, [], waits))[1].append(name)
    counts = {run: _images(run, assumed) for run, _, _ in wanted.values()}
    speed = _speed(gpu)
    trainings = [
        Training(
            run=run,
            chapters=tuple(dict.fromkeys(names)),
            seconds=speed.seconds(run, counts[run]),
            memory=_memory(run, counts[run]),
            done=recipe in there,
            waits=waits,
        )
        for recipe, (run, names, waits) in wanted.items()
    ]
    largest = {name: max((t.memory for t in trainings if name in t.chapters), default=MEMORY) for name in chapters}
    known = {
        name: _measuring(name, source, profile, gpu, spent(t for t in trainings if name in t.chapters))
        for name, source in chapters.items()
    }
    measured = [Chapter(n, s or evidence.UNKNOWN, largest[n], s is not None) for n, s in known.items()]
    weights = {run.model for run, _, _ in wanted.values() if run.weights == "imagenet"}
    return Plan(profile, gpu, tuple(trainings), tuple(measured), assumed, tuple(sorted(weights)), speed)


def _images(run: Run, assumed: dict[str, int]) -> int:
    """How many images a run has, for training and testing."""
    if not run.real:
        return run.count or 512
    if run.count is not None:
        return run.count
    try:
        return data.count(run.dataset)
    except FileNotFoundError:
        source = data.SOURCES[run.dataset]
        count = source.published or len(source.classes) * (source.each or 0)
        if not count:
            raise
        return assumed.setdefault(run.dataset, count)


def work(run: Run, images: int) -> float:
    """Floating-point operations of a training on its share of ``images``, if no patience ends it early."""
    recipe, adversary = run.recipe, run.adversary
    both, train = 1 + BACKWARD, images * (1 - run.test)
    # Of an image, counted in forward passes.
    passes: float = both * (2 if adversary is not None or run.static == "mixed" else 1)
    if adversary is not None:
        iterations = sum(adversary.at(epoch).iterations for epoch in range(recipe.epochs)) / recipe.epochs
        passes += both * iterations * (adversary.eps > 0)
        passes += adversary.evaluations * (iterations if adversary.literal else 1)
    epochs = recipe.epochs * (1 if recipe.patience is None else 7 / 8)
    made_once = both if run.static_eps is not None else 0
    channels = 3 if run.front is not None else len(data.SOURCES[run.dataset].mode)
    return train * (epochs * passes + made_once) * operations(run.model, run.size, channels)


@lru_cache(maxsize=64)
def operations(model: str, size: int, channels: int) -> float:
    """Floating-point operations of one image's forward pass, counted without computing them."""
    with torch.device("meta"):
        network = models.build(model, 2, in_channels=channels, size=size, weights="scratch").eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, channels, size, size))
    return float(counter.get_total_flops())


def _speed(gpu: bool) -> Speed:
    """The medians of what was trained here, else of the records, on such a device."""
    here = [
        (about["run"], about["data"]["train"], about["seconds"], about["device"]) for about in runs.trained().values()
    ]
    kept = [
        ({"count": None, "real": False} | model.run, model.train, model.seconds, model.device)
        for record in map(records.read, records.everything())
        for model in record.header.models
        if model.seed is not None
    ]
    for found, where in ((here, "trainings here"), (kept, "trainings of the records")):
        rates: dict[str, list[float]] = {}
        for about, train, seconds, device in found:
            if device.startswith("CPU") != gpu and seconds > STARTING / 4:
                run = runs.from_dict(about)
                if run.dataset not in data.SOURCES:  # somebody's own images
                    continue
                rates.setdefault(run.model, []).append(work(run, round(train / (1 - run.test))) / seconds)
        if rates:
            every = [rate for several in rates.values() for rate in several]
            networks = {name: statistics.median(several) for name, several in rates.items()}
            return Speed(statistics.median(every), networks, f"median of {len(every)} {where}")
    if gpu:
        return Speed(ASSUMED, {}, "assumed: no training on a GPU was recorded yet")
    return Speed(ASSUMED / 100, {}, "assumed: no training on a processor was recorded yet")


def _memory(run: Run, images: int) -> int:
    """MB of the host: the images as bytes, and as floats where a static set is made of them."""
    channels = len(data.SOURCES[run.dataset].mode)
    floats = 0 if run.static_eps is None else 4 * (3 if run.static == "mixed" else 2)
    return MEMORY + math.ceil(images * channels * run.size**2 * (1 + floats) / 1e6)


def _measuring(chapter: str, source: Path, profile: str, gpu: bool, training: float) -> float | None:
    """Seconds of a record of this profile on such a device, less its trainings', or what the chapter's table of costs
    says, less ``training``, all that its trainings take; None where neither is known. Too few where the record's run
    had found some of its models trained already, for nothing says which."""
    for record in records.of(chapter):
        header = record.header
        if header.profile == profile and header.environment["device"].startswith("CPU") != gpu:
            return max(STARTING, header.seconds - sum(model.seconds for model in header.models))
    told = evidence.estimate(source, profile, None)
    return None if gpu or told == evidence.UNKNOWN else max(STARTING, told - training)


def hours(seconds: float) -> str:
    """For readers: "12 min", "3.4 h", "5 days"."""
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def spent(jobs: Iterable[Job]) -> int:
    """Seconds of all jobs together."""
    return round(sum(job.seconds for job in jobs))


def longest(jobs: Iterable[Job]) -> int:
    """Seconds of the longest job."""
    return round(max((job.seconds for job in jobs), default=0))


def wall(found: Plan, devices: int) -> int:
    """Seconds until the book is there, on so many devices: trainings, then those that wait for them, then chapters."""
    todo = [training for training in found.trainings if not training.done]
    stages: list[Sequence[Job]] = [[t for t in todo if not t.waits], [t for t in todo if t.waits], found.chapters]
    longest_first = [sorted((job.seconds for job in stage), reverse=True) for stage in stages]
    return round(sum(evidence.left_over(seconds, devices) for seconds in longest_first))


def summary(found: Plan, devices: Sequence[int]) -> dict[str, Any]:
    """The plan in numbers, plain JSON data: a row a chapter, and totals; times in seconds."""
    todo = [training for training in found.trainings if not training.done]
    rows, seen = [], set()
    for chapter in found.chapters:
        own = [training for training in todo if chapter.name in training.chapters]
        new = [training for training in own if training.name not in seen]
        seen |= {training.name for training in own}
        about = {"trainings": len(own), "new": len(new), "training": spent(new), "longest": longest(own)}
        rows.append({"chapter": chapter.name} | about | {"measuring": round(chapter.seconds), "timed": chapter.timed})
    return {
        "profile": found.profile,
        "unit": "GPU" if found.gpu else "core",
        "chapters": rows,
        "trainings": len(todo),
        "waiting": sum(training.waits for training in todo),
        "done": len(found.trainings) - len(todo),
        "training": spent(todo),
        "measuring": spent(found.chapters),
        "longest": longest(todo),
        "speed": found.speed.usual,
        "speed from": found.speed.source,
        "wall": {str(count): wall(found, count) for count in devices},
        "assumed": found.assumed,
        "weights": list(found.weights),
    }


def report(told: Mapping[str, Any]) -> str:
    """A `summary` for readers: a line a chapter, and the totals."""
    unit, width = told["unit"], max(len(row["chapter"]) for row in told["chapters"])
    lines = []
    for row in told["chapters"]:
        shared = f", {row['trainings'] - row['new']} of them above" if row["trainings"] > row["new"] else ""
        cost = f"{hours(row['training'])} to train" if row["new"] else "nothing more to train"
        measuring = f"{hours(row['measuring'])}{'' if row['timed'] else ' set aside'} to measure"
        lines.append(f"{row['chapter']:{width}}  {row['trainings']:3} trainings{shared}: {cost}, {measuring}")
    waiting = f", {told['waiting']} of them decided by others' results" if told["waiting"] else ""
    training, measuring = told["training"] / 3600, told["measuring"] / 3600
    times = ", ".join(f"{count} {unit}{'' if count == '1' else 's'}: {hours(s)}" for count, s in told["wall"].items())
    lines += [
        f"{told['trainings']} trainings to do{waiting}, {told['done']} are there; {len(told['chapters'])} chapters",
        f"about {training + measuring:,.1f} {unit}-hours, {training:,.1f} to train and {measuring:,.1f} to measure; "
        f"the longest training {hours(told['longest'])}",
        f"at {told['speed']:.2g} operations a second ({told['speed from']})",
        times,
    ]
    lines += [f"not at hand: {name}, taken to have {n:,} images" for name, n in sorted(told["assumed"].items())]
    if told["weights"]:
        lines.append(f"ImageNet weights, from HPAT_WEIGHTS or the hub: {', '.join(told['weights'])}")
    return "\n".join(lines)


def costs(found: Plan) -> dict[str, float]:
    """Seconds of each chapter by itself: to train what is not there, shared with others or not, and to measure."""
    todo = [training for training in found.trainings if not training.done]
    return {c.name: c.seconds + spent(t for t in todo if c.name in t.chapters) for c in found.chapters}


def prepare(found: Plan, folder: Path) -> list[str]:
    """Write what the workflow reads below ``folder``: a recipe a file, and what each job needs; return the recipes that
    can be trained now.

    A job gets twice its time and ten minutes: one that is stopped at its limit goes on when it is submitted again.
    """
    todo = {training.name: training for training in found.trainings if not training.done and not training.waits}
    every: list[Job] = [*todo.values(), *found.chapters]
    needs: dict[str, dict[str, Any]] = {
        job.name: {"mem_mb": job.memory, "runtime": math.ceil(10 + job.seconds / 30), "gpu": int(found.gpu)}
        for job in every
    }
    for name, training in todo.items():
        parent = runs.recipe(training.run.clean)
        after = [parent] if parent != name and parent in todo and training.run.static_eps is not None else []
        write(folder / f"{name}.json", json.dumps({"run": runs.to_dict(training.run)}, indent=1).encode())
        needs[name]["after"] = after
    write(folder / "needs.json", json.dumps(needs, indent=1).encode())
    return list(todo)
