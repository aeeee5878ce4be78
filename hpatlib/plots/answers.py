"""The answer of a chapter, as its first screen shows it: verdicts in a box, the figure of real images, what it shows.

Everything is computed from the committed records when a chapter runs; one without a record says so in the same place.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from hpatlib import claims, documents, records
from hpatlib.claims import Claim, Judgement
from hpatlib.plots.base import Figure, Table
from hpatlib.records import Record

# Of each verdict: a sign that needs no colour, the words on the badge, and the class that colours it.
BADGES = {
    "supported": ("✓", "supported", "holds"),
    "contradicted": ("✗", "contradicted", "fails"),
    "near its threshold": ("=", "near its threshold", "equal"),
    "cannot tell": ("⊘", "cannot tell", "open"),
    "inconclusive": ("?", "inconclusive", "open"),
    "not yet tested": ("○", "not yet tested", "untested"),
}
READINGS = {"fixed": "fixed", "searched": "searched", "worst": "worst case"}
Shown = TypeVar("Shown", Figure, Table)
RUN = "HPAT_DATA=… hpat run {chapter} --profile laptop --data real --record"


@dataclass(frozen=True)
class Answer:
    """A piece of a page: HTML for the book and notebooks, plain text for terminals."""

    page: str
    text: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/html": self.page, "text/plain": self.text}, {}


def badge(verdict: str) -> str:
    """A verdict with its sign, as HTML."""
    sign, words, kind = BADGES[verdict]
    return f'<span class="hpat-badge {kind}"><span aria-hidden="true">{sign}</span> {words}</span>'


def answer(chapter: str) -> Answer:
    """The box under a chapter's title: its first claim, published beside ours, what it rests on, and one caveat."""
    judged = claims.ledger(chapter)
    if not judged:
        what = "This page tests no claim: it shows how the method works."
        return Answer(f'<div class="hpat-answer equal"><p>{what}</p></div>', what)
    first = judged[0]
    facts = [("Published", published(first)), ("Ours", _ours(first)), ("Measured on", basis(first))]
    facts += [("Caveat", caveat(first))]
    rows = "".join(f"<div><dt>{name}</dt><dd>{html.escape(said)}</dd></div>" for name, said in facts if said)
    below = "below" if records.best(chapter) is None else "below the figure"
    others = f"<p>On this page{'' if len(judged) == 1 else f', one by one {below}'}: {tally(judged)}.</p>"
    page = (
        f'<div class="hpat-answer {BADGES[first.verdict][2]}" role="group" aria-label="Does it hold?">'
        f"<p>{badge(first.verdict)} {html.escape(first.claim.sentence)}</p><dl>{rows}</dl>{others}</div>"
    )
    text = [f"{BADGES[first.verdict][0]} {first.verdict}: {first.claim.sentence}"]
    return Answer(page, "\n".join(text + [f"{name}: {said}" for name, said in facts if said]))


def real(chapter: str, draw: Callable[[Record], Shown]) -> Shown | None:
    """What ``draw`` makes of the record behind the verdicts; nothing without one, as ``answer`` says above it."""
    record = records.best(chapter)
    return None if record is None else draw(record)


def findings(chapter: str) -> Answer:
    """Every claim of a chapter with its verdict and its effect in a sentence."""
    judged = claims.ledger(chapter)
    items = "".join(
        f'<li id="claim-{j.claim.id}">{badge(j.verdict)} {html.escape(j.claim.sentence)} '
        f'<span class="hpat-place">{html.escape(place(j))}.</span> {html.escape(said(j))}</li>'
        for j in judged
    )
    text = "\n".join(f"{BADGES[j.verdict][0]} {j.verdict}: {j.claim.sentence} {place(j)}. {said(j)}" for j in judged)
    return Answer(f'<ul class="hpat-findings">{items}</ul>', text)


def origin(chapter: str) -> Table | None:
    """Where the numbers behind the verdicts come from: the stamp of the record of real images; nothing without one."""
    return real(chapter, lambda record: Table(record.stamp(), "The record behind the verdicts."))


def place(j: Judgement) -> str:
    """Where the document says it; of what it does not say, that we ask."""
    return f"Asked by us; {j.claim.place}" if j.claim.ours else j.claim.place


def reading(claim: Claim) -> str:
    """Which of a document's readings a claim is about, as several may share a sentence; "" where none is named."""
    return READINGS.get(claim.arguments.get("reading", ""), "")


def said(j: Judgement) -> str:
    """What was found, against what the claim needs, and why it does not decide where it does not."""
    if j.quantity is None:
        return "" if j.record is None else f"{j.why[:1].upper()}{j.why[1:]}."
    found = f"{j.claim.measure[:1].upper()}{j.claim.measure[1:]}: {j.number}; the claim needs {j.claim.needs}."
    if j.verdict == "near its threshold":
        near = f"{j.claim.show(j.claim.margin or 0)} {j.claim.unit}".strip()
        found += f" That is within {near} of the threshold"
        found += "." if j.claim.threshold == 0 else ", which does not say that there is no effect."
    if j.claim.note:
        found += f" {j.claim.note}"
    if j.why:
        found += f" {'Gate: ' if j.verdict == 'cannot tell' else ''}{j.why[:1].upper()}{j.why[1:]}."
    if j.verdict != j.uncorrected:
        found += f" Before the correction for many claims: {j.uncorrected}."
    return found + (" This claim was written down after its record." if j.late else "")


def tally(judged: Iterable[Judgement]) -> str:
    """How many claims have each verdict, in words: "2 supported, 1 inconclusive of 3 claims"."""
    judged = list(judged)
    late = sum(j.late for j in judged)
    number = len(judged) - late
    shown = ", ".join(f"{n} {verdict}" for verdict, n in claims.counted(judged).items() if n) or "none"
    apart = f"; {late} written down after the record, and not counted" if late else ""
    return f"{shown} of {number} claim{'s' * (number != 1)}{apart}"


def published(j: Judgement) -> str:
    """The document's own numbers for a claim; else whether it has a table or words for it, or does not state it."""
    values = [documents.published(j.document)[key] for key in j.claim.published]
    numbers = [f"{v['value']:g}" if v["value"] > 1 else f"{100 * v['value']:.1f} %" for v in values]
    if numbers:
        said = " → ".join(numbers)
    elif j.claim.ours:
        said = "not stated"
    else:
        said = "a table of numbers" if j.claim.place.startswith("Table") else "in words, without a number"
    return f"{said} ({j.claim.place})"


def _ours(j: Judgement) -> str:
    if j.quantity is None:
        if j.record is None:
            return f"no run on real images is on record yet: {RUN.format(chapter=j.claim.chapter)} makes one"
        return f"not measured: {j.why}"
    return j.effect


def basis(j: Judgement) -> str:
    """Data, images, groups of images, trainings and clean accuracy behind a verdict."""
    if j.quantity is None or j.record is None:
        return "" if j.quantity is None else "the printed numbers alone"
    from hpatlib.data import SOURCES  # which needs torch, as a verdict alone does not

    header, asked = j.record.header, claims.used(j.quantity, j.record) if j.quantity.n else []
    parts = [", ".join(dict.fromkeys(SOURCES[i.name].label if i.name in SOURCES else i.name for i in header.images))]
    rows = j.record.outcomes.rows
    if "group" in rows and j.quantity.n > 1:
        groups = rows[rows["model"].isin(asked)] if asked else rows
        count = groups["group"].nunique()
        each = "images a training" if j.trainings else "images of each set" if asked == [] else "images"
        parts.append(f"{j.quantity.n} {each}, {count} patients or groups of near-duplicates in all")
    parts.append(f"{j.trainings} trainings" if j.trainings else "no network")
    clean = [header.models[m] for m in asked if header.models[m].accuracy is not None and header.models[m].baseline]
    if clean:
        ours, trivial = (sum(getattr(m, k) or 0 for m in clean) / len(clean) for k in ("accuracy", "trivial"))
        parts.append(f"clean accuracy {100 * ours:.1f} % (largest class {100 * trivial:.1f} %)")
    return ", ".join(parts)


def caveat(j: Judgement) -> str:
    """The one thing to know before the verdict is quoted: the gate or what would decide, else the size of the run."""
    if j.verdict in ("cannot tell", "inconclusive"):
        return f"{j.why[:1].upper()}{j.why[1:]}."
    if j.record is None or (j.quantity is not None and not j.quantity.n):  # printed numbers, and counts of files
        return ""
    header, theirs = j.record.header, documents.about(j.document).get("ran", "")
    asked = range(len(header.models)) if j.quantity is None else claims.used(j.quantity, j.record)
    nets = ", ".join(dict.fromkeys(header.models[m].network for m in asked))
    sizes = ", ".join(dict.fromkeys(f"{images.size} px" for images in header.images))
    own = f"{nets} at {sizes}" if nets else f"images of {sizes}"
    return f"{own}, {header.profile} profile" + (f"; the document ran {theirs}." if theirs else ".")
