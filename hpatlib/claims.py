"""Claims and what became of them: a rule written down before the run, judged from outcomes whenever it is read.

A claim names a quantity, a threshold and a direction, the smallest difference that would matter (δ), and gates that
must be passed before anything is concluded. Verdicts, in this order:

- *not yet tested*: no record of real images has what it needs;
- *cannot tell*: a gate was not passed, and it is named;
- *supported*, *contradicted*: the interval lies beyond the threshold after Holm's correction within the document;
- *near its threshold*: the 90 % interval lies within δ of the threshold (two one-sided tests, Holm's correction again);
- *inconclusive*: the rest, with what would decide it.

A claim that was written down after what judges it had been measured is late: it is marked, corrected among its like,
and counted nowhere. The same models measured once more do not change that; other trainings do.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import msgspec
import pandas as pd

from hpatlib import documents, records
from hpatlib._files import write
from hpatlib.outcomes import Outcomes, Unmeasured
from hpatlib.records import Model, Record
from hpatlib.statistics import Estimate, Quantity

VERDICTS = ("supported", "contradicted", "near its threshold", "cannot tell", "inconclusive", "not yet tested")
LEVEL = 0.05
TOLERANCE = 0.05  # of an effect, between a rerun and the committed record


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A falsifiable sentence about a document, as ``claims.toml`` has it.

    It holds when the quantity lies above (``">"``) or below (``"<"``) ``threshold``, or within ``margin`` of it
    (``"="``). ``measure`` names the effect for readers; ``unit``: "points" or "% of …", for which
    the effect is a share of 1, or a word; ``margin``: δ.
    ``chapter`` is empty for claims about printed numbers alone, which need no run. ``published``: the document's own
    numbers for it, by their names in ``published.toml``; ``note``: a sentence that readers of its effect should know;
    ``ours``: the document does not state it, we ask. They decide nothing and are not part of its hash.
    """

    id: str
    place: str
    sentence: str
    quantity: str
    measure: str
    threshold: float
    direction: Literal[">", "<", "="]
    chapter: str = ""
    arguments: dict[str, Any] = {}
    unit: str = "points"
    margin: float | None = None
    gates: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    note: str = ""
    ours: bool = False

    @property
    def needs(self) -> str:
        """What the effect has to be, such as "< 5 points"."""
        near = f" ± {self.show(self.margin or 0)}" if self.direction == "=" else ""
        return f"{self.direction} {self.show(self.threshold)}{near} {self.unit}".strip()

    def show(self, value: float, *, sign: bool = False) -> str:
        """A value of the effect as the reader sees it, without its unit."""
        share = self.unit == "points" or self.unit.startswith("%")
        number = 100 * value if share else value
        digits = max(0, 2 - math.floor(math.log10(abs(number)))) if 0 < abs(number) < 100 else 1
        return f"{number:{'+' if sign else ''}.{min(digits, 1 if share else 3)}f}".replace("-", "−")


@dataclass(frozen=True, eq=False)
class Judgement:
    """A claim, what was measured, the verdict after and before correction, and ``why``: the gate, or what lacks.

    ``late``: whether it was written down after the models that judge it had been measured.
    """

    document: str
    claim: Claim
    verdict: str
    uncorrected: str
    quantity: Quantity | None
    record: Record | None
    why: str
    late: bool = False

    @property
    def number(self) -> str:
        """The effect with its 95 % interval and its unit; an en dash where none was measured."""
        if self.quantity is None:
            return "–"
        low, high = self.quantity.interval()
        c, value = self.claim, self.claim.show(self.quantity.value, sign=True)
        around = f" [{c.show(low, sign=True)}, {c.show(high, sign=True)}]" if low != high else ""
        return f"{value}{around} {c.unit}".strip()

    @property
    def effect(self) -> str:
        """What was measured with its number, and what the claim needs."""
        if self.quantity is None:
            return "–"
        return f"{self.claim.measure} {self.number}; the claim needs {self.claim.needs}"

    @property
    def trainings(self) -> int:
        return len(self.quantity.trainings or ()) if self.quantity is not None else 0

    @property
    def measured_on(self) -> str:
        """Data, profile, networks, images and trainings, in a few words."""
        if self.quantity is None:
            return "–"
        if self.record is None:
            return "printed numbers"
        asked = used(self.quantity, self.record) if self.quantity.n else []  # counts of files ask no model
        nets = dict.fromkeys(self.record.header.models[m].network for m in asked)
        sets = dict.fromkeys(images.name for images in self.record.header.images)
        parts = [", ".join(sets), self.record.header.profile, ", ".join(nets)]
        parts += [f"n = {self.quantity.n}"] if self.quantity.n > 1 else []
        parts += [f"{self.trainings} trainings" if self.trainings else "no network"]
        return ", ".join(filter(None, parts))

    def plain(self) -> dict[str, Any]:
        """Everything as plain data, for ``hpat claims --json``."""
        number: dict[str, Any] = dict.fromkeys(("effect", "low", "high", "n"))
        if self.quantity is not None:
            low, high = self.quantity.interval()
            number = {"effect": self.quantity.value, "low": low, "high": high, "n": self.quantity.n}
            number = {k: round(v, 9) if isinstance(v, float) else v for k, v in number.items()}
            number = {k: v if math.isfinite(v) else None for k, v in number.items()}  # JSON has no infinity
        c = self.claim
        about: dict[str, Any] = {"id": c.id, "document": self.document, "chapter": c.chapter}
        about |= {"place": c.place, "sentence": c.sentence, "ours": c.ours, "note": c.note}
        rule = {"measure": c.measure, "direction": c.direction, "threshold": c.threshold, "unit": c.unit}
        verdict = {"verdict": self.verdict, "uncorrected": self.uncorrected, "why": self.why, "late": self.late}
        return about | verdict | rule | {"margin": c.margin} | number | {"trainings": self.trainings}


@functools.cache
def of(document: str) -> tuple[Claim, ...]:
    """The claims of a document. Raises ``ValueError`` that names one that cannot be judged."""
    found = tuple(msgspec.convert(claim, Claim) for claim in documents.toml(document, "claims").get("claims", []))
    twice = {c.id for c in found if sum(c.id == other.id for other in found) > 1}
    if twice:
        raise ValueError(f"{document}/claims.toml lists {', '.join(sorted(twice))} more than once")
    for claim in found:
        module = documents.quantities(document)
        if not callable(function := getattr(module, claim.quantity, None)):
            raise ValueError(
                f"claim {claim.id!r} needs the quantity {claim.quantity!r}: {document}/quantities.py has none"
            )
        try:
            inspect.signature(function).bind(*([None] if claim.chapter else []), **claim.arguments)
        except TypeError as error:
            raise ValueError(f"claim {claim.id!r} and its quantity {claim.quantity!r} do not fit: {error}") from error
        if unknown := {gate for gate in claim.gates if kind(gate) not in GATES}:
            raise ValueError(
                f"claim {claim.id!r} has unknown gates {', '.join(sorted(unknown))}: choose of {', '.join(GATES)}"
            )
        if missing := [gate for gate in claim.gates if gate not in documents.toml(document, "claims").get("gates", {})]:
            raise ValueError(f"{document}/claims.toml gives no number for the gates {', '.join(missing)}")
        if claim.direction == "=" and not claim.margin:
            raise ValueError(f"claim {claim.id!r} asks for equality: it needs a margin")
    return found


def all_claims() -> list[tuple[str, Claim]]:
    """Each document's claims, with its name. Raises ``ValueError`` for an id that two documents have."""
    found = [(document, claim) for document in documents.names() for claim in of(document)]
    if twice := sorted(name for name, count in Counter(claim.id for _, claim in found).items() if count > 1):
        raise ValueError(f"more than one document has a claim {', '.join(map(repr, twice))}: give it another id in one")
    return found


def check(chapter: str) -> dict[str, str]:
    """The hash of each claim of a chapter by its id, after checking them all: call it before anything trains."""
    return {claim.id: hashed(document, claim) for document, claim in all_claims() if claim.chapter == chapter}


def hashed(document: str, claim: Claim) -> str:
    """Sixteen hexadecimal digits that follow from everything that decides a claim: sentence, quantity, threshold,
    direction, δ and gates with their numbers."""
    numbers = documents.toml(document, "claims").get("gates", {})
    rule = [claim.sentence, claim.quantity, claim.arguments, float(claim.threshold), claim.direction, claim.margin]
    rule.append({gate: numbers[gate] for gate in claim.gates})
    return hashlib.blake2b(json.dumps(rule, sort_keys=True, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def quantity(document: str, claim: Claim, outcomes: Outcomes | None) -> Quantity:
    """The claim's quantity, from outcomes (or from printed numbers, where it has no chapter)."""
    function = getattr(documents.quantities(document), claim.quantity)
    return function(*([outcomes] if claim.chapter else []), **claim.arguments)


def used(measured: Quantity, record: Record) -> list[int]:
    """The numbers of the models that a quantity was measured on; all of the record's where it does not say."""
    known = range(len(record.header.models))  # none where no model is asked, as for textures
    return sorted({m for leaf in measured.leaves for m in leaf.models if m in known} or set(known))


def _trainings(measured: Quantity, record: Record | None, least: int) -> str:
    count = len(measured.trainings or ())
    if measured.trainings is not None and count < least:
        return f"{count} training{'s' if count > 1 else ''}, and {least} are needed"
    return ""


def _competent(measured: Quantity, record: Record | None, margin: float) -> str:
    if record is None:
        return ""
    models = record.header.models
    known = [model for model in models if model.baseline and model.accuracy is not None]
    asked_of = [models[m] for m in used(measured, record)]
    # A claim about adversarial trainings alone is gated by the clean trainings of the same network on the same split.
    kin = {_kin(model) for model in asked_of}
    asked = [model for model in asked_of if model in known] or [model for model in known if _kin(model) in kin]
    if asked_of and not asked:
        return "no network that learned from clean images alone was measured beside it"
    by_network: dict[str, list[float]] = {}
    for m in asked:
        by_network.setdefault(f"{m.network}, {m.run.get('dataset', '')}", []).append(
            (m.accuracy or 0) - (m.trivial or 0)
        )
    for name, gains in by_network.items():
        if (gain := sum(gains) / len(gains)) < margin:
            return (
                f"{name}, trained on clean images, beats answering the largest class by {100 * gain:.1f} points on "
                f"average, and {100 * margin:g} are needed"
            )
    return ""


def _arms(models: Iterable[Model]) -> Iterator[list[Model]]:
    """Models by how they were trained: the same but for the seed, and for a spread that follows from it."""
    arms: dict[str, list[Model]] = {}
    for model in models:
        rest = {name: value for name, value in model.run.items() if name not in ("seed", "spread")}
        arms.setdefault(json.dumps(rest, sort_keys=True), []).append(model)
    yield from arms.values()


def _able(measured: Quantity, record: Record | None, margin: float) -> str:
    """Of every way of training that is compared: one answer for all images withstands any attack."""
    if record is None:
        return ""
    for arm in _arms(record.header.models[m] for m in used(measured, record)):
        gains = [model.accuracy - (model.trivial or 0) for model in arm if model.accuracy is not None]
        if gains and (gain := sum(gains) / len(gains)) < margin:
            return (
                f"a {arm[0].network} that is compared beats answering the largest class of clean images by "
                f"{100 * gain:.1f} points on average, and {100 * margin:g} are needed: {_treatment(arm[0])}"
            )
    return ""


def _treatment(model: Model) -> str:
    """How a model was trained, in words."""
    run = model.run
    names = {
        "spread": "behind a random repaint",
        "objective": "behind T and C",
        "adversary": "against an adversary",
        "static_eps": "on a perturbed set",
        "mixbn": "with MixBN",
    }
    return ", ".join(words for name, words in names.items() if run.get(name)) or "trained on clean images"


def _kin(model: Model) -> tuple[str, ...]:
    """What two models share that differ in nothing but how they were trained."""
    return (model.network, *(str(model.run.get(name)) for name in ("dataset", "split_by", "repeat")))


def _floor(measured: Quantity, record: Record | None, edge: float) -> str:
    """Of comparisons: one share beside a threshold may well be 0 or 1. Of several arms most of each must be there."""
    for part in (measured,) if isinstance(measured, Estimate) else measured.parts:
        for name, shares, there in (
            ("floor", ("accuracy", "ROI", "flips"), lambda value: value <= edge),
            ("ceiling", ("accuracy", "AUC", "ROI", "flips"), lambda value: value >= 1 - edge),
        ):
            leaves = [leaf for leaf in part.leaves if leaf.measure in shares]
            at = [leaf for leaf in leaves if there(leaf.value)]
            arms, few = (Counter(leaf.models for leaf in several) for several in (leaves, at))
            most = all(2 * few[arm] > n for arm, n in arms.items()) if len(arms) > 1 else len(at) == len(leaves)
            if len(leaves) > 1 and most:
                return f"{len(at)} of {len(leaves)} values of {leaves[0].measure} compared are at the {name}"
    return ""


def _dose(measured: Quantity, record: Record | None, least: dict[str, float]) -> str:
    if record is None:
        return ""
    treated = [record.header.models[m] for m in used(measured, record) if record.header.models[m].dose]
    for name, minimum in least.items():
        # By arm: one treatment must not stand in for another.
        arms = [[m.dose[name] for m in arm] for arm in _arms(m for m in treated if name in m.dose)]
        if not arms:
            return f"no dose {name!r} was recorded"
        if (mean := min(sum(doses) / len(doses) for doses in arms)) < minimum:
            called = name.replace("_", " ")
            return f"a treatment did too little: its {called} is {mean:.4f} on average, and {minimum:g} is needed"
    return ""


def _alike(measured: Quantity, threshold: float) -> str:
    """Always asked: n outcomes that are all alike have no variance, and may still hide a share of 3 / n."""
    low, high = measured.interval()
    parts = (measured,) if isinstance(measured, Estimate) else measured.parts
    n = min(min(part.n, len(part.clusters) or part.n) for part in parts)
    if low == high and n and abs(measured.value - threshold) <= 3 / n:
        return f"all outcomes are alike, and {n} images, patients or groups are too few to tell from the threshold"
    return ""


Gate = Callable[[Quantity, Record | None, Any], str]
# Each: (quantity, record, the number in claims.toml) -> why nothing may be concluded, or "".
# A name may carry a suffix, "trainings-spread", to have a number of its own.
GATES: dict[str, Gate] = {
    "trainings": _trainings,
    "competent": _competent,
    "able": _able,
    "floor": _floor,
    "dose": _dose,
}


def kind(gate: str) -> str:
    """The gate of ``GATES`` that a name with a suffix means."""
    return gate.partition("-")[0]


def judge(document: str, chapters: Sequence[str] | None = None) -> list[Judgement]:
    """Every claim of a document (of some chapters, after the correction over all) with its verdict."""
    judged = [_measured(document, claim) for claim in of(document)]
    for late in (False, True):  # whoever has seen an effect may add its claim, and must not change another's verdict
        # Holm's family: what was measured and may be concluded from.
        free = [
            (k, j.claim, j.quantity)
            for k, j in enumerate(judged)
            if j.quantity is not None and not j.why and j.late == late
        ]
        away = _holm([_away(claim, found) for _, claim, found in free])
        asked = [n for n, (_, claim, _) in enumerate(free) if claim.margin is not None]  # the others have no such test
        tested = dict(zip(asked, _holm([_near(*free[n][1:]) for n in asked]), strict=True))
        near = [tested.get(n, 1.0) for n in range(len(free))]
        for (k, claim, found), far, close in zip(free, away, near, strict=True):
            verdict = _verdict(claim, found, far, close)
            uncorrected = _verdict(claim, found, _away(claim, found), _near(claim, found))
            why = _undecided(claim, found, len(free)) if verdict == "inconclusive" else ""
            judged[k] = replace(judged[k], verdict=verdict, uncorrected=uncorrected, why=why)
    return [j for j in judged if chapters is None or j.claim.chapter in chapters]


def _measured(document: str, claim: Claim) -> Judgement:
    """The claim's quantity and the first gate that it does not pass, before any correction."""
    untested = partial(Judgement, document, claim, "not yet tested", "not yet tested", None)
    record = records.best(claim.chapter) if claim.chapter else None
    if claim.chapter and record is None:
        return untested(None, "no record of real images")
    try:
        found = quantity(document, claim, record.outcomes if record else None)
    except Unmeasured as missing:
        return untested(record, str(missing))
    numbers = documents.toml(document, "claims").get("gates", {})
    reasons = [GATES[kind(gate)](found, record, numbers[gate]) for gate in claim.gates]
    if record is not None:
        reasons.append(_alike(found, _edge(claim, found)))
    why, late = next(filter(None, reasons), ""), False
    if record is not None:
        seen = locked(document).get(claim.id, {}).get("seen")
        late = claim.id not in record.header.claims or seen == _measured_from(record)
    return Judgement(document, claim, "cannot tell", "cannot tell", found, record, why, late)


def _measured_from(record: Record) -> str:
    """Sixteen hexadecimal digits that follow from the models and the images of a record, whenever it was made."""
    told = sorted([m.key for m in record.header.models] + [i.fingerprint for i in record.header.images])
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


def _edge(claim: Claim, found: Quantity) -> float:
    """The number that decides: the threshold; for equality, the nearer end of its margin."""
    margin = claim.margin or 0.0 if claim.direction == "=" else 0.0
    return min((claim.threshold - margin, claim.threshold + margin), key=lambda end: abs(found.value - end))


def _away(claim: Claim, found: Quantity) -> float:
    """Two-sided p-value of an effect at the threshold; for equality, at the nearer end of its margin."""
    if claim.direction == "=":
        margin = claim.margin or 0.0
        return min(1.0, 2 * min(found.above(claim.threshold + margin), found.below(claim.threshold - margin)))
    return min(1.0, 2 * min(found.above(claim.threshold), found.below(claim.threshold)))


def _near(claim: Claim, found: Quantity) -> float:
    """p-value of two one-sided tests for an effect within δ of the threshold; 1 without a δ."""
    if claim.margin is None:
        return 1.0
    return max(found.above(claim.threshold - claim.margin), found.below(claim.threshold + claim.margin))


def _verdict(claim: Claim, found: Quantity, away: float, near: float) -> str:
    if claim.direction == "=":
        return "supported" if near < LEVEL else "contradicted" if away < LEVEL else "inconclusive"
    if away < LEVEL:
        holds = found.above(claim.threshold) < found.below(claim.threshold)
        return "supported" if holds == (claim.direction == ">") else "contradicted"
    return "near its threshold" if near < LEVEL else "inconclusive"


def _undecided(claim: Claim, found: Quantity, family: int) -> str:
    """What would carry the interval of a claim among ``family`` others off the number that decides it."""
    more = found.would_decide(_edge(claim, found), LEVEL / 2 / family)
    return more if more.startswith("the effect") else f"{more} would decide it"


def _holm(p: list[float]) -> list[float]:
    """Holm's adjusted p-values."""
    if not p:
        return []
    from statsmodels.stats.multitest import multipletests

    return list(map(float, multipletests(p, LEVEL, "holm")[1]))


def ledger(chapter: str | None = None) -> list[Judgement]:
    """Every claim of every document with its verdict, or those of one chapter."""
    wanted = None if chapter is None else [chapter]
    found = [name for name in documents.names() if chapter is None or any(c.chapter == chapter for c in of(name))]
    return [judgement for name in found for judgement in judge(name, wanted)]


def counted(judged: Iterable[Judgement]) -> dict[str, int]:
    """How many claims have each verdict, in the order of ``VERDICTS``; of those written down before their records."""
    given = [j.verdict for j in judged if not j.late]
    return {verdict: given.count(verdict) for verdict in VERDICTS}


def table(judged: Iterable[Judgement]) -> pd.DataFrame:
    """A row a claim: sentence, verdict, effect with interval, and what it was measured on."""
    rows = []
    for j in judged:
        verdict = j.verdict if j.verdict == j.uncorrected else f"{j.verdict} ({j.uncorrected} before correction)"
        verdict += ", written after the record and not counted" if j.late else ""
        rows.append(
            {
                "claim": f"{j.claim.sentence} ({'asked by us; ' if j.claim.ours else ''}{j.claim.place})",
                "verdict": verdict + (f": {j.why}" if j.why else ""),
                "effect [95 % interval]": j.effect,
                "measured on": j.measured_on,
            }
        )
    return pd.DataFrame(rows, columns=["claim", "verdict", "effect [95 % interval]", "measured on"])


def locked(document: str) -> dict[str, dict[str, str]]:
    """The lock of a document: claim id → its hash, the day it was written down, and what could have been ``seen`` then:
    the models and images of a record that had what it needs, as sixteen digits."""
    path = documents.FOLDER / document / "claims.lock"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def lock() -> list[str]:
    """Write down every claim as it stands now; returns the ids that are new or changed, each with today's date."""
    changed = []
    for document in documents.names():
        before, today = locked(document), time.strftime("%Y-%m-%d", time.gmtime())
        after = {}
        for claim in of(document):
            now = hashed(document, claim)
            if before.get(claim.id, {}).get("hash") != now:
                changed.append(claim.id)
            same = before.get(claim.id, {}).get("hash") == now
            after[claim.id] = before[claim.id] if same else {"hash": now, "written": today} | _seen(document, claim)
        content = json.dumps(after, indent=1, ensure_ascii=False) + "\n"
        write(documents.FOLDER / document / "claims.lock", content.encode())
    return changed


def _seen(document: str, claim: Claim) -> dict[str, str]:
    record = records.best(claim.chapter) if claim.chapter else None
    try:
        if record is not None and quantity(document, claim, record.outcomes) is not None:
            return {"seen": _measured_from(record)}
    except Unmeasured:
        pass
    return {}


def tampered() -> list[str]:
    """Everything that does not fit together: claims, their lock and their records, and records in themselves."""
    found, hashes = [], {claim.id: hashed(document, claim) for document, claim in all_claims()}
    for document in documents.names():
        written = locked(document)
        for claim in of(document):
            if claim.id not in written:
                found.append(f"{claim.id}: not written down in {document}/claims.lock: run hpat claims --lock")
            elif written[claim.id]["hash"] != hashes[claim.id]:
                found.append(
                    f"{claim.id}: changed after it was written down on {written[claim.id]['written']}: "
                    "put it back, or run hpat claims --lock and measure it again"
                )
        found += [
            f"{name}: in {document}/claims.lock, and no claim" for name in written.keys() - {c.id for c in of(document)}
        ]
    for path in records.everything():
        try:
            record = records.read(path)
        except ValueError as error:
            found.append(str(error))
            continue
        for name, then in record.header.claims.items():
            if name not in hashes:
                found.append(f"{record.file}: measured the claim {name!r}, which is no longer there")
            elif hashes[name] != then:
                found.append(f"{record.file}: measured another version of {name} than stands in claims.toml")
    return found


def agreement(made: Record, committed: Record) -> str:
    """One line: does ``made`` reproduce ``committed``, effect by effect?

    The same code on the same kind of processor gives the same digits; elsewhere, trainings drift apart. An effect
    agrees when it is off by at most ``TOLERANCE``, or by half the width of its interval where that is more. Runs on
    other images are not compared. Raises ``ValueError`` for records of different runs.
    """
    if made.file != committed.file:
        raise ValueError(f"these are records of different runs: {made.file} and {committed.file}")
    here, there = ([f"{i.name} {i.fingerprint}" for i in r.header.images] for r in (made, committed))
    if here != there:
        sides = f"{', '.join(here)} here, {', '.join(there)} there"
        return f"not compared with the committed record, which is about other images: {sides}"
    off, far = {}, []
    for document, claim in all_claims():
        if claim.chapter != made.header.chapter:
            continue
        try:
            old = quantity(document, claim, committed.outcomes)
        except Unmeasured:
            continue
        try:
            off[claim.id] = abs(quantity(document, claim, made.outcomes).value - old.value)
        except Unmeasured as missing:
            return f"differs from the committed record: nothing measured for {claim.id} ({missing})"
        low, high = old.interval()
        if off[claim.id] > max(TOLERANCE, (high - low) / 2):
            far.append(claim.id)
    if not off:
        return "nothing to compare: the committed record tests no claim"
    largest = f"largest difference of {len(off)} effects {max(off.values()):.3g}"
    if far:
        return f"differs from the committed record: {largest}, beyond tolerance in {', '.join(far)}"
    return f"agrees with the committed record: {largest}, tolerance {TOLERANCE} or half an interval"
