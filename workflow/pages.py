"""The pages that verdicts make: counts, cards, forest plot and chapters of the landing page, the claims, the summaries.

All of it is plain HTML and inline SVG from ``hpatlib.claims``, so that it works without a server and without scripts.
"""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from hpatlib import claims, documents, records
from hpatlib.claims import Judgement
from hpatlib.plots import answers, base
from hpatlib.records import Model, Record

ROOT = ".."  # from a page in book/ to the top of the built book
REPOSITORY = yaml.safe_load(Path("_config.yml").read_text("utf-8"))["repository"]["url"]


def title(source: Path) -> str:
    """The title of a chapter, as its source has it."""
    return next(line[2:] for line in source.read_text("utf-8").splitlines() if line.startswith("# "))


def short(document: str) -> str:
    """What readers call a document; its title, where it has no shorter name."""
    about = documents.about(document)
    return about.get("short", about["title"])


def listed(toc: Path) -> list[str]:
    """The pages of the table of contents, in its order."""
    parts = yaml.safe_load(toc.read_text("utf-8"))["parts"]
    found = []
    for entry in (entry for part in parts for entry in part["chapters"]):
        found += [entry["file"]] if "file" in entry else sorted(map(str, Path().glob(f"{entry['glob']}.md")))
    return found


def titles(toc: Path, notebooks: Path) -> dict[str, str]:
    """Chapter → title, in the order of the table of contents."""
    files = listed(toc)
    names = [file.removeprefix("notebooks/").removesuffix(".ipynb") for file in files if file.startswith("notebooks/")]
    return {name: title(notebooks / f"{name}.md") for name in names}


def counts(judged: Sequence[Judgement]) -> str:
    """A line of badges with their numbers."""
    shown = "".join(
        f'<li class="{answers.BADGES[v][2]}"><b>{n}</b> <span aria-hidden="true">{answers.BADGES[v][0]}</span> {v}</li>'
        for v, n in claims.counted(judged).items()
    )
    number = sum(not j.late for j in judged)
    return f'<ul class="hpat-counts" aria-label="{number} claims by verdict">{shown}</ul>'


def sentence(judged: Sequence[Judgement]) -> str:
    """What became of a document's claims, in one sentence."""
    judged = [j for j in judged if not j.late]
    n = claims.counted(judged)
    tested = len(judged) - n["not yet tested"]
    if not tested:
        return f"None of {len(judged)} claims has been tested on real images yet."
    parts = []
    for verdict, verb in (("supported", "is " if n["supported"] < 2 else "are "), ("contradicted", "")):
        given = [j for j in judged if j.verdict == verdict]
        kinds = {"by printed numbers alone": sum(j.record is None for j in given)}
        kinds["asked by us"] = sum(j.claim.ours and j.record is not None for j in given)
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        parts.append(f"{n[verdict] or 'none'} {verb}{verdict}" + (f" ({told})" if told else ""))
    parts += [f"{n['near its threshold']} near the threshold"] if n["near its threshold"] else []
    undecided = n["cannot tell"] + n["inconclusive"]
    parts += [f"{undecided} undecided"] if undecided else []
    waiting = f"; {n['not yet tested']} more wait for a run on real images" if n["not yet tested"] else ""
    return f"Of {tested} claim{'s' * (tested != 1)} tested, {', '.join(parts[:-1])} and {parts[-1]}{waiting}."


def bar(judged: Sequence[Judgement]) -> str:
    """Shares of verdicts as a bar; the words stand beside it."""
    parts = "".join(
        f'<span class="{answers.BADGES[v][2]}" style="flex:{n}"></span>' for v, n in claims.counted(judged).items() if n
    )
    return f'<div class="hpat-bar" aria-hidden="true">{parts}</div>'


def cards(ledger: Mapping[str, Sequence[Judgement]]) -> str:
    made = []
    for document, judged in ledger.items():
        about = html.escape(documents.about(document)["title"])
        made.append(
            f'<a class="hpat-card" href="summary_{document}.html"><strong>{short(document)}</strong>'
            f"<em>{about}</em><span>{sentence(judged)}</span>{bar(judged)}</a>"
        )
    return f'<div class="hpat-cards">{"".join(made)}</div>'


def beyond(j: Judgement) -> tuple[float, float, float]:
    """How far the effect and the ends of its interval lie on the claim's side of its threshold, in half-widths of the
    interval: from 1 on, all of it does. Without an interval, as printed numbers are, ±6."""
    assert j.quantity is not None
    (low, high), value, c = j.quantity.interval(), j.quantity.value, j.claim
    half = (high - low) / 2
    if c.direction == "=":
        inside = (c.margin or 0) - abs(value - c.threshold)
        return (inside / half, inside / half - 1, inside / half + 1) if half else (math.copysign(6, inside),) * 3
    side = 1 if c.direction == ">" else -1
    if not half or not math.isfinite(half):
        return (math.copysign(6, side * (value - c.threshold)),) * 3 if not half else (0.0, -6.0, 6.0)
    ends = sorted(side * (end - c.threshold) / half for end in (low, high))
    return side * (value - c.threshold) / half, ends[0], ends[1]


def forest(ledger: Mapping[str, Sequence[Judgement]], names: Mapping[str, str]) -> str:
    """One row a tested claim, by chapter: where its effect and its interval lie from its threshold, right of which it
    holds. Drawn twice, for a page and for a phone."""
    rows = [(d, j) for d, judged in ledger.items() for j in judged if j.quantity is not None and not j.late]
    return (
        '<div class="hpat-figure"><figure class="hpat hpat-forest" id="fig-forest">'
        f"{_forest(rows, names, 720, 300, 42, 'wide')}{_forest(rows, names, 360, 206, 27, 'narrow')}"
        f"<figcaption>All {len(rows)} tested claims but those written after their records: "
        "how far the effect (dot) and its 95 % interval (line) lie from "
        "the claim’s threshold, the vertical line, in half-widths of the interval, at most six. "
        "Where the whole line is on one side, the interval decides, unless a gate or the correction for many claims "
        "forbids it: the sign beside the name is the verdict. "
        "Follow a row for its sentence and numbers.</figcaption></figure></div>"
    )


def _forest(
    rows: Sequence[tuple[str, Judgement]], names: Mapping[str, str], wide: int, left: int, letters: int, kind: str
) -> str:
    """The plot, ``wide`` px, its names of at most so many letters in the ``left`` px."""
    high, limit = 17, 6.0

    def x(z: float) -> float:
        return left + (wide - left - 14) * (max(-limit, min(limit, z)) + limit) / (2 * limit)

    parts, y, before, chapter = [], 30, "", None
    for document, j in rows:
        if document != before:
            parts.append(f'<text x="0" y="{y + 12}" class="head">{short(document)}</text>')
            y, before, chapter = y + 22, document, None
        if j.claim.chapter != chapter:
            chapter = j.claim.chapter
            told = names[chapter] if chapter else "Printed numbers alone"
            if sum(name.startswith(f"{told.partition(':')[0]}:") for name in names.values()) == 1:
                told = told.partition(":")[0]
            parts.append(f'<text x="0" y="{y + 10}" class="chapter">{html.escape(told)}</text>')
            y += high
        value, low, top = beyond(j)
        sign, _, verdict = answers.BADGES[j.verdict]
        told = html.escape(f"{j.verdict}: {j.claim.sentence} {answers.said(j)}")
        name = ": ".join(filter(None, (answers.reading(j.claim), j.claim.measure)))
        name = html.escape(_short(name, letters))
        parts.append(
            f'<a href="claims.html#{j.claim.id}"><title>{told}</title>'
            f'<rect x="0" y="{y - 3}" width="{wide}" height="{high}" class="row"/>'
            f'<text x="{left - 24}" y="{y + 10}" text-anchor="end">{name}</text>'
            f'<text x="{left - 16}" y="{y + 10}" class="{verdict}">{sign}</text>'
            f'<line x1="{x(low):.1f}" x2="{x(top):.1f}" y1="{y + 6}" y2="{y + 6}" class="{verdict}"/>'
            f'<circle cx="{x(value):.1f}" cy="{y + 6}" r="3.5" class="{verdict}"/></a>'
        )
        y += high
    axis = f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="22" y2="{y}" class="zero"/>'
    axis += f'<text x="{x(0) - 8:.1f}" y="14" text-anchor="end">does not hold ←</text>'
    axis += f'<text x="{x(0) + 8:.1f}" y="14">→ holds</text>'
    alt = f"Forest plot of {len(rows)} tested claims; the table of claims has the numbers."
    hidden = ' style="display:none"' if kind == "narrow" else ""
    return (
        f'<svg class="hpat-{kind}"{hidden} viewBox="0 0 {wide} {y + 8}" role="group" aria-label="{alt}">'
        f"{axis}{''.join(parts)}</svg>"
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def interval(j: Judgement) -> str:
    """The effect and its interval against the threshold, in the claim's own unit, as a small picture."""
    if j.quantity is None:
        return ""
    low, high = j.quantity.interval()
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    ends = [low, high, j.claim.threshold, j.quantity.value]
    start, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> str:
        return f"{6 + 88 * (value - start) / span:.1f}"

    kind = answers.BADGES[j.verdict][2]
    return (
        f'<svg class="hpat-interval" viewBox="0 0 100 14" aria-hidden="true"><line x1="{x(j.claim.threshold)}" '
        f'x2="{x(j.claim.threshold)}" y1="0" y2="14" class="zero"/><line x1="{x(low)}" x2="{x(high)}" y1="7" y2="7" '
        f'class="{kind}"/><circle cx="{x(j.quantity.value)}" cy="7" r="3" class="{kind}"/></svg>'
    )


def chapters(ledger: Mapping[str, Sequence[Judgement]], names: Mapping[str, str]) -> str:
    """The chapters with their verdicts, a table a document."""
    by_chapter = {name: [j for judged in ledger.values() for j in judged if j.claim.chapter == name] for name in names}
    rows = []
    for name, called in names.items():
        own = by_chapter[name]
        marks = " ".join(
            f'<span class="{answers.BADGES[v][2]}" title="{v}">{answers.BADGES[v][0]}&nbsp;{n}</span>'
            for v, n in claims.counted(own).items()
            if n
        )
        said = answers.tally(own) if own else "no claim"
        rows.append(
            f'<tr><td><a href="{ROOT}/notebooks/{name}.html">{html.escape(called)}</a></td>'
            f'<td class="hpat-marks" aria-label="{said}">{marks or "–"}</td></tr>'
        )
    return (
        '<table class="hpat-chapters"><thead><tr><th scope="col">Chapter</th>'
        f'<th scope="col">Claims by verdict</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _told(j: Judgement) -> str:
    """A claim's sentence where several claims share it: with its reading, and whether it came late."""
    told = ": ".join(filter(None, (answers.reading(j.claim).capitalize(), j.claim.sentence)))
    return told + (" (Written down after its record.)" if j.late else "")


def claim(j: Judgement, lock: Mapping[str, Mapping[str, str]]) -> str:
    """A row of the claims page: verdict, sentence, effect; folded below it what it rests on (``lock``: all lines)."""
    written = lock.get(j.claim.id, {})
    more = [f"<p>{html.escape(answers.said(j))}</p>"]
    if based := answers.basis(j):
        more.append(f"<p>Measured on {html.escape(based)}.</p>")
    links = []
    if j.claim.chapter:
        links.append(f'<a href="{ROOT}/notebooks/{j.claim.chapter}.html#claim-{j.claim.id}">chapter</a>')
    if j.record is not None:
        links.append(f'<a href="{REPOSITORY}/blob/main/evidence/{j.record.file}.json">record</a>')
    links.append(
        f'<a href="{REPOSITORY}/blob/main/hpatlib/documents/{j.document}/claims.lock">'
        f"lock: {written.get('hash', '–')}</a>, "
        f"written down on {written.get('written', '–')}"
    )
    more.append(f"<p>{html.escape(answers.place(j))}. {' · '.join(links)}</p>")
    kind = answers.BADGES[j.verdict][2]
    return (
        f'<details class="hpat-row {kind}" id="{j.claim.id}" data-verdict="{LATE if j.late else j.verdict}"><summary>'
        f"{answers.badge(j.verdict)}<span>{html.escape(_told(j))}</span>{interval(j)}"
        f'<span class="hpat-effect">{html.escape(j.number)}</span></summary>{"".join(more)}</details>'
    )


LATE = "written after the record"  # in no count of verdicts
# Shows the rows that are asked for; without scripts, all are shown.
FILTER = """<script>
(() => {
  const boxes = [...document.querySelectorAll(".hpat-filter input")], all = [...document.querySelectorAll(".hpat-row")];
  const sift = () => {
    const on = new Set(boxes.filter(b => b.checked).map(b => b.value));
    for (const row of all)
      row.hidden = !(on.has(row.dataset.verdict) && on.has(row.closest("[data-document]").dataset.document));
    for (const group of document.querySelectorAll(".hpat-group"))
      group.hidden = !group.querySelector(".hpat-row:not([hidden])");
    const shown = all.filter(row => !row.hidden).length;
    document.querySelector(".hpat-filter output").textContent = `${shown} of ${all.length} claims`;
  };
  const follow = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row?.matches(".hpat-row")) return;
    row.hidden = row.closest(".hpat-group").hidden = false;
    row.open = true;
    row.scrollIntoView();
  };
  document.querySelector(".hpat-filter").hidden = false;
  boxes.forEach(box => box.addEventListener("change", sift));
  addEventListener("hashchange", follow);
  sift();
  follow();
})();
</script>"""


def page(ledger: Mapping[str, Sequence[Judgement]], names: Mapping[str, str]) -> str:
    """The page of all claims, by question, as MyST text."""
    everything = [j for judged in ledger.values() for j in judged]
    given = claims.counted(everything)
    decided = {v for v in ("supported", "contradicted", "near its threshold") if given[v]}  # the others: one click away
    boxes = ""
    for v, number in given.items():
        (sign, _, kind), on = answers.BADGES[v], " checked" if v in decided or not decided else ""
        boxes += f'<label class="{kind}"><input type="checkbox" value="{v}"{on}> <b>{number}</b> {sign} {v}</label>'

    if late := sum(j.late for j in everything):
        boxes += f'<label><input type="checkbox" value="{LATE}"> <b>{late}</b> {LATE}</label>'
    boxes += "".join(
        f'<label><input type="checkbox" value="{d}" checked> {short(d).partition(":")[0]}</label>' for d in ledger
    )
    parts = [
        "# The claims, and what became of them",
        "Each line is a sentence of ours about a published result, with a threshold that it can fail, written down "
        "before the run that judges it; where it was not, the line says so, and no count has it.\n"
        "Verdicts are computed from the committed records of runs on real images "
        "whenever this page is built ({ref}`how <verdicts>`).",
        _raw(
            f"<noscript>{counts(everything)}</noscript>"
            f'<form class="hpat-filter" aria-label="Which claims to show" hidden>{boxes}<output></output></form>'
        ),
    ]
    for document, judged in ledger.items():
        about = documents.about(document)
        parts += [f"## {short(document)}", f"*{about['title']}* {{cite:p}}`{about['cite']}`. {sentence(judged)}"]
        groups, lock = [], claims.locked(document)
        for name in dict.fromkeys(j.claim.chapter for j in judged):
            own = [j for j in judged if j.claim.chapter == name]
            head = (
                f'<a href="{ROOT}/notebooks/{name}.html">{html.escape(names[name])}</a>'
                if name
                else "Printed numbers alone"
            )
            groups.append(
                f'<section class="hpat-group"><h3>{head}</h3>{"".join(claim(j, lock) for j in own)}</section>'
            )
        parts.append(_raw(f'<div data-document="{document}">{"".join(groups)}</div>'))
    return "\n\n".join([*parts, _raw(FILTER)]) + "\n"


def _raw(content: str) -> str:
    return f"```{{raw}} html\n{content}\n```"


def summary(judged: Sequence[Judgement]) -> dict[str, str]:
    """What holds, what does not, what lies near its threshold, what could not be told, and what was not tested."""
    kinds = {
        "holds": ("supported",),
        "fails": ("contradicted",),
        "near": ("near its threshold",),
        "undecided": ("cannot tell", "inconclusive"),
        "untested": ("not yet tested",),
    }
    return {kind: _raw(_listed([j for j in judged if j.verdict in verdicts])) for kind, verdicts in kinds.items()}


def _listed(judged: Iterable[Judgement]) -> str:
    items = [
        f"<li>{answers.badge(j.verdict)} {html.escape(_told(j))} "
        + f'<span class="hpat-place">{html.escape(answers.place(j))}.</span> '
        + (f"{html.escape(answers.said(j))} " if j.quantity is not None else "")
        + f'<a href="claims.html#{j.claim.id}">Details</a></li>'
        for j in sorted(judged, key=lambda j: j.late)
    ]
    return f'<ul class="hpat-findings">{"".join(items)}</ul>' if items else "<p>None so far.</p>"


def scope(judged: Sequence[Judgement]) -> str:
    """What the real runs behind a document's verdicts are, in one sentence."""
    found = list(dict.fromkeys(j.record for j in judged if j.record is not None))
    if not found:
        return "No run on real images is on record yet."
    profiles = ", ".join(sorted({r.header.profile for r in found}))
    networks = ", ".join(dict.fromkeys(m.network for r in found for m in r.header.models)) or "no network"
    sizes = sorted({images.size for r in found for images in r.header.images})
    dates = sorted(r.header.date[:10] for r in found)
    ran = documents.about(judged[0].document).get("ran", "")
    when = f"on {dates[0]}" if dates[0] == dates[-1] else f"from {dates[0]} to {dates[-1]}"
    return (
        f"Records: {len(found)}, profile {profiles}, {networks}, at {', '.join(map(str, sizes))} pixels, measured "
        f"{when}. The document ran {ran}."
    )


def limits(judged: Sequence[Judgement]) -> str:
    """What the real runs behind all verdicts are, and how they differ from the documents' own, in one sentence."""
    found = list(dict.fromkeys(j.record for j in judged if j.record is not None))
    theirs = "; ".join(f"{documents.about(d)['ran']} ({short(d).partition(':')[0]})" for d in documents.names())
    if not found:
        return f"No run on real images is on record yet; the documents ran {theirs}."
    profiles = ", ".join(sorted({r.header.profile for r in found}))
    sizes = sorted({model.run["size"] for r in found for model in r.header.models})
    most = max(len(r.seeds) for r in found)
    return (
        f"Behind the verdicts stand {len(found)} runs on real images, of profile {profiles}, with networks at "
        f"{' to '.join(map(str, sizes[:1] + sizes[1:][-1:]))} pixels and up to {most} trainings of a network; "
        f"the documents ran {theirs}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], none: str) -> str:
    """A table in MyST; ``none`` where it has no row."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]) if lines else f"*{none}*"


def baselines(found: Sequence[Record]) -> str:
    """How good the networks that were trained on clean images alone are, by data set, network and split."""
    from hpatlib.training import Recipe  # needs torch

    models = {m.key: (m, r) for r in found for m in r.header.models if m.baseline and m.accuracy is not None}
    grouped: dict[tuple[str, ...], list[Model]] = {}
    for m, _ in models.values():
        by = (str(m.run.get("dataset", "–")), m.network, f"{m.run.get('size', '–')} px", m.run.get("split_by", "–"))
        by += (str(Recipe(**m.run["recipe"]).epochs), str(m.run.get("count") or "all"))
        grouped.setdefault(by, []).append(m)
    rows = []
    for by, several in sorted(grouped.items()):
        right = [100 * (m.accuracy or 0) for m in several]
        trivial = [100 * (m.trivial or 0) for m in several]
        spread = f"{mean(right):.1f} ({min(right):.1f} to {max(right):.1f})"
        sides = f"{mean(m.train for m in several):.0f}, {mean(m.test for m in several):.0f}"
        data, network, size, split, epochs, count = by
        reached = [spread, f"{mean(trivial):.1f}", len(several)]
        rows.append([data, base.network(network), split, *reached, count, sides, epochs, size])
    head = ["data", "network", "split by", "accuracy, %", "largest class, %", "trainings", "images"]
    head.append("training, test images")
    return table([*head, "epochs", "size"], rows, "No network was measured yet.")


def recipe(taken: Mapping[str, Any]) -> str:
    """What a run says of its ``training.Recipe``, in words."""
    from hpatlib.training import Recipe  # needs torch

    r = Recipe(**taken)
    told = [f"{r.epochs} epochs of batches of {r.batch_size}", f"{r.lr:g}"]
    if r.decay != 1 and r.decay_every < r.epochs:
        told.append(f"× {r.decay:g} every {r.decay_every}")
    if r.augment:
        told.append(r.augment)
    if r.patience:
        told.append(f"patience {r.patience}")
    return ", ".join(told)


def recipes(found: Sequence[Record]) -> str:
    """How the networks of `baselines` were trained: the data sets and networks that each recipe had."""
    used: dict[tuple[str, str], set[str]] = {}
    for m in (m for r in found for m in r.header.models if m.baseline and m.accuracy is not None):
        used.setdefault((base.network(m.network), recipe(m.run["recipe"])), set()).add(str(m.run.get("dataset", "–")))
    rows = [[", ".join(sorted(data)), *by] for by, data in used.items()]
    return table(["data", "network", "Adam"], sorted(rows), "No network was measured yet.")


def spark(curves: Iterable[Sequence[float]]) -> str:
    """Losses of trainings, epoch by epoch, as lines in a cell of a table: from 0 to the highest of all."""
    curves = [curve for curve in curves if len(curve) > 1]
    if not curves:
        return ""
    top, last = max(map(max, curves)), max(map(len, curves)) - 1
    lines = "".join(
        "<polyline points='"
        + " ".join(f"{2 + 96 * n / last:.1f},{22 - 20 * loss / top:.1f}" for n, loss in enumerate(curve))
        + "'/>"
        for curve in curves
    )
    first, end = mean(curve[0] for curve in curves), mean(curve[-1] for curve in curves)
    told = f"mean training loss from {first:.2f} to {end:.2f} over up to {last + 1} epochs"
    look = "width='100' height='24' viewBox='0 0 100 24' fill='none' stroke='currentColor' stroke-opacity='0.6'"
    return f"<svg {look} role='img' aria-label='{told}'>{lines}</svg> {first:.2f} → {end:.2f}"


def flattery(found: Sequence[Record], dataset: str) -> str:
    """How much a split that leaks flatters networks on a data set: both accuracies, where a record has both."""
    told: dict[str, None] = {}  # each sentence once, in order
    for r in found:
        sides: dict[tuple[str, str, str], dict[str, list[Model]]] = {}
        for m in (m for m in r.header.models if m.baseline and m.accuracy is not None):
            if m.run.get("dataset") == dataset:
                alike = m.network, str(m.run.get("count")), str(m.run.get("recipe"))
                sides.setdefault(alike, {}).setdefault(m.run["split_by"], []).append(m)
        for by in (by for by in sides.values() if "patient" in by):
            told |= {_flattered(by["patient"], by[split]): None for split in sorted(by.keys() - {"patient"})}
    return " ".join(told) or "How much, no record says yet."


def _flattered(apart: Sequence[Model], mixed: Sequence[Model]) -> str:
    one, split = mixed[0], mixed[0].run["split_by"]
    right = [mean(100 * (m.accuracy or 0) for m in several) for several in (apart, mixed)]
    few = f"{len(apart)}" if len(apart) == len(mixed) else f"{len(apart)} and {len(mixed)}"
    return (
        f"Trained on real images at {one.run['size']} px, {base.network(one.network)} answers {right[0]:.1f} % of its "
        f'test images right with `by="patient"` and {right[1]:.1f} % with `by="{split}"` ({few} trainings, with other '
        "test images each)."
    )


CANDIDATES = Path("workflow/baselines.json")


def candidates() -> str:
    """What was tried on validation images (``workflow/baselines.py``): mean and range over its trainings."""
    rows = []
    for dataset, sides in json.loads(CANDIDATES.read_text("utf-8")).items():
        tried: dict[str, list[dict[str, Any]]] = {}
        for name, entry in sides.get("validation", {}).items():
            tried.setdefault(name.rpartition(", seed ")[0], []).append(entry)
        for name, entries in tried.items():
            scores = [
                [entry[score] for entry in entries if entry.get(score) is not None] for score in ("auc", "accuracy")
            ]
            told = [f"{mean(s):.3f} ({min(s):.3f} to {max(s):.3f})" if len(s) == len(entries) else "–" for s in scores]
            curves = spark([entry["training"]["loss"] for entry in entries])
            rows.append([dataset, name, recipe(entries[0]["recipe"]), len(entries), *told, curves])
    head = ["data", "candidate", "Adam", "trainings", "AUC", "accuracy", "training loss"]
    return table(head, rows, "No candidate was tried yet.")


# What clean training was to reach, set before these records: data, network, measure and aim.
AIMS = (
    ("chest_ct", "tf_efficientnet_lite0 (imagenet)", "accuracy", 0.92),
    ("brain_mri", "tf_efficientnet_lite0 (imagenet)", "accuracy", 0.95),
    ("chest_xray", "tf_efficientnet_lite0 (imagenet)", "accuracy", 0.94),
    ("busi2", "tf_efficientnet_lite0 (imagenet)", "accuracy", 0.80),
    ("busi", "simple_cnn (scratch)", "accuracy", 0.75),
    ("busi", "tf_efficientnet_lite0 (imagenet)", "accuracy", 0.75),
    ("cnmc", "tf_efficientnet_lite0 (imagenet)", "AUC", 0.88),
)


def aims(found: Sequence[Record]) -> str:
    """What clean training reached, split by patient or group, beside what it was to reach; mean and range over every
    training on as many images as any record has. AUC: of the one chapter that asks for clean images alone."""
    rows = []
    for dataset, network, measure, aim in AIMS:
        asked = [r for r in found if measure != "AUC" or r.header.chapter == "hpat/table1_benchmarks"]
        kept = {m.key: m for r in asked for m in r.header.models if m.baseline and m.network == network}
        own = [m for m in kept.values() if m.run["dataset"] == dataset and m.run["split_by"] == "patient"]
        most = max((m.train + m.test for m in own), default=0)
        own = [m for m in own if m.train + m.test == most and m.accuracy is not None]
        values = [m.accuracy or 0 for m in own]
        if measure == "AUC":
            each = [r.outcomes.where(network=network, environment="H0").auc.each()["value"] for r in asked]
            values = [value for several in each for value in several]
        if values:
            reached = f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            met = "reached" if mean(values) >= aim else "**missed**"
            curves = spark([m.losses for m in own])
            rows.append([dataset, base.network(network), measure, len(values), f"{aim:.2f}", reached, met, curves])
    head = ["data", "network", "measure", "trainings", "aim", "mean (range)", "", "training loss"]
    return table(head, rows, "No network was measured yet.")


DOSES = {
    "channel_spread": "channel spread, of 1",
    "texture": "texture distance, of 40",
    "gain_over_guessing": "gain over guessing, points",
}


def arm(run: Mapping[str, Any]) -> str:
    """How the model of a ``runs.Run`` was trained, in words: what its seed decides left out."""
    from hpatlib.runs import from_dict  # needs torch

    r, told = from_dict({"count": None, **run}), []  # records leave None out
    if r.spread is not None:  # as strong as the domain assimilation of its seed
        told.append("random repaint")
    elif r.objective:
        told.append(f"domain assimilation, α = {r.objective.alpha:g}")
    if (a := r.adversary) and a.eps:
        told.append(f"{'FGSM' if a.iterations == 1 else f'PGD, {a.iterations} steps,'} at {255 * a.eps:g}/255")
    if a and a.evaluations:
        told.append(f"transforms up to {a.rotation:g}° and {a.translation:g} px")
    if r.mixbn:
        told.append("MixBN")
    return " + ".join(told)


def doses(found: Sequence[Record]) -> str:
    """How strong each treatment was, over its trainings."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    # One run trained by two versions of the library, whose sums round otherwise, is two trainings.
    for m in {(m.key, *m.dose.values()): m for r in found for m in r.header.models}.values():
        for name, value in m.dose.items():
            by = (str(m.run.get("dataset", "–")), arm(m.run), DOSES[name])
            grouped.setdefault(by, []).append(100 * value if name == "gain_over_guessing" else value)
    rows = [[*by, len(d), f"{mean(d):.3g} ({min(d):.3g} to {max(d):.3g})"] for by, d in sorted(grouped.items())]
    return table(["data", "training", "dose", "trainings", "mean (range)"], rows, "No treatment was measured yet.")


def spent(found: Sequence[Record]) -> str:
    """The hours of one core that the run of each record took and that its models' trainings took, and their sums:
    a training that several records share counts once. What all took together lies between those where each run did all
    of its own trainings that no record before it has, and those where it did none."""
    rows: list[list[str]] = []
    least = most = 0.0
    every: dict[str, float] = {}
    for r in sorted(found, key=lambda r: r.file):
        link = f"[{r.file}]({REPOSITORY}/blob/main/evidence/{r.file}.json)"
        commit, device = r.header.environment.get("commit", "–"), r.device
        trained = {model.key: model.seconds for model in r.header.models}
        new = sum(seconds for key, seconds in trained.items() if key not in every)
        least, most = least + max(r.header.seconds, new), most + r.header.seconds + new
        every |= trained
        hours = [f"{seconds / 3600:.2f}" for seconds in (r.header.seconds, sum(trained.values()))]
        rows.append([link, r.header.date[:10], commit, device, *hours])
    if rows:
        run = sum(r.header.seconds for r in found)
        rows.append(["all", "", "", "", f"{run / 3600:.2f}", f"{sum(every.values()) / 3600:.2f}"])
        rows.append([f"together {least / 3600:.0f} to {most / 3600:.0f} hours", "", "", "", "", ""])
    titles = ["record", "date", "commit", "device", "hours of the run", "hours of its trainings"]
    return table(titles, rows, "No run on real images is on record yet.")


def undecided(judged: Sequence[Judgement]) -> str:
    """Each claim that was measured and not decided, with its reason."""
    rows = [
        [f"<a href='claims.html#{j.claim.id}'>{html.escape(_told(j))}</a>", j.verdict, html.escape(j.why)]
        for j in judged
        if j.verdict in ("cannot tell", "inconclusive") and not j.late
    ]
    return table(["claim", "verdict", "why"], rows, "None so far.")


def llms(ledger: Mapping[str, Sequence[Judgement]], names: Mapping[str, str]) -> str:
    """The book for readers that are programs: what it answers, and where, as ``llms.txt`` has it."""
    lines = [
        "# The HPAT companion",
        "",
        "> Three documents on adversarial robustness in medical imaging: does it hold?",
    ]
    for document, judged in ledger.items():
        lines += ["", f"## {short(document)}", "", f"{documents.about(document)['title']}. {sentence(judged)}", ""]
        lines.append(f"- [Summary](book/summary_{document}.html)")
        for name in dict.fromkeys(j.claim.chapter for j in judged if j.claim.chapter):
            told = answers.tally([j for j in judged if j.claim.chapter == name])
            lines.append(f"- [{names[name]}](notebooks/{name}.html): {told}")
    lines += [
        "",
        "## Reference",
        "",
        "- [All claims](book/claims.html)",
        "- [What the evidence is](book/evidence.html)",
    ]
    return "\n".join([*lines, "- [How to reproduce](book/reproduce.html)", "- [Library](book/api.html)", ""])


def made(notebooks: Path) -> dict[str, bytes]:
    """Path below the book's source → content, of all that verdicts decide."""
    ledger = {document: claims.judge(document) for document in documents.names()}
    everything, names = [j for judged in ledger.values() for j in judged], titles(Path("book/_toc.yml"), notebooks)
    found = [record for name in names for record in records.of(name) if record.real]
    texts = {
        "counts": _raw(counts(everything)),
        "cards": _raw(cards(ledger)),
        "forest": _raw(forest(ledger, names)),
        "chapters": _raw(chapters(ledger, names)),
        "limits": limits(everything),
        "baselines": baselines(found),
        "recipes": recipes(found),
        "aims": aims(found),
        "candidates": candidates(),
        "doses": doses(found),
        "spent": spent(found),
        "undecided": undecided(everything),
    }
    texts |= {
        f"flattery_{name}": flattery(found, name)
        for name in ("brain_mri", "busi", "busi2", "chest_ct", "chest_xray", "cnmc")
    }
    for document, judged in ledger.items():
        texts[f"{document}_answer"] = f"{sentence(judged)}\n{scope(judged)}"
        texts |= {f"{document}_{kind}": text for kind, text in summary(judged).items()}
    texts["llms"] = llms(ledger, names)
    files = {f"book/made/{name}.txt": text.encode() for name, text in texts.items()}
    return files | {"book/claims.md": page(ledger, names).encode()}
