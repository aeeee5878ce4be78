"""Published values, records of what was measured, and verdicts on claims.

A record is one JSON file of tidy rows and their provenance. Records of runs on real data are committed under
``evidence/``; phantom records never count as evidence about patients.
"""

import os
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from hpatlib import runs
from hpatlib._files import write
from hpatlib.data.images import ImageSet, home
from hpatlib.settings import Settings

PACKAGE = Path(__file__).parent
DOCUMENTS = ("hpat", "ultrasound", "assimilation")  # in the order of the book
VERDICTS = ("supported", "contradicted", "inconclusive", "not yet tested")


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A falsifiable sentence about a published result; it holds when its effect, in ``unit``, is above zero."""

    id: str
    chapter: str
    where: str
    statement: str
    unit: str


class Effect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim's measured effect with its 95 % interval over ``n`` images (of each seed, where there are several)."""

    claim: str
    effect: float
    low: float
    high: float
    n: int


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run of one chapter measured. ``rows``: tidy metrics; ``provenance``: plain JSON data."""

    chapter: str
    profile: str
    data: str
    seed: int
    rows: list[dict[str, str | float | int]]
    effects: list[Effect]
    provenance: dict
    schema: int = 1

    @property
    def real(self) -> bool:
        """Whether real images were measured: phantoms are no evidence about patients."""
        return self.data == "real"

    @property
    def label(self) -> str:
        """Profile, data, n and seed in a few words, for captions and legends."""
        return self.about(f"{self.provenance['data']['shown']} images")

    def about(self, n: str) -> str:
        """``label`` with another ``n``, such as "532 to 585 clean and 64 hybrid images"."""
        kind = "real" if self.real else "phantom"
        count = f"n = {n} a seed" if len(self.seeds) > 1 else f"n = {n}"
        return f"{self.profile} profile, {kind} data ({self.provenance['data']['name']}), {count}, {self.seeds_label}"

    @property
    def weights(self) -> str:
        """What the models started from: "from ImageNet", "from scratch", or both; empty where no model is asked."""
        models = self.provenance.get("models") or [self.provenance[k] for k in ("model",) if k in self.provenance]
        found = dict.fromkeys("ImageNet" if m["weights"] == "imagenet" else m["weights"] for m in models)
        return f"from {' and '.join(found)}" if found else ""

    @property
    def seeds(self) -> list[int]:
        """The seeds of the models that were measured."""
        return self.provenance.get("seeds", [self.seed])

    @property
    def seeds_label(self) -> str:
        """Such as "seed 0" or "seeds 0, 1, 2"."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"


def claims() -> list[Claim]:
    """All claims of the three documents, from ``published/*.toml``."""
    return [msgspec.convert(claim, Claim) for document in _published().values() for claim in document.get("claims", [])]


def published(document: str) -> dict[str, dict]:
    """The numbers printed in ``document`` (``"hpat"``): name → value, unit and where it stands."""
    documents = _published()
    if document not in documents:
        raise ValueError(f"unknown document {document!r}: choose one of {', '.join(documents)}")
    return documents[document]["values"]


def published_table(document: str, name: str) -> pd.DataFrame:
    """A table as ``document`` prints it, ``published_table("hpat", "table1")``: rows by our names, columns its metrics.

    In [0, 1], where the document has percent. Raises ``ValueError`` for a table that is not there.
    """
    tables = _published().get(document, {}).get("tables", {})
    if name not in tables:
        raise ValueError(f"no table {name!r} of {document!r}: choose one of {', '.join(tables) or 'none'}")
    return pd.DataFrame.from_dict(tables[name]["rows"], orient="index", columns=tables[name]["metrics"]) / 100


def _published() -> dict[str, dict]:
    return {name: tomllib.loads((PACKAGE / "published" / f"{name}.toml").read_text("utf-8")) for name in DOCUMENTS}


def effect(claim: str, values, statistic: Callable[[np.ndarray], np.ndarray] | None = None, groups=None) -> Effect:
    """The effect of ``claim`` from its value on each image ``[N]``, with a bootstrap interval.

    With a ``statistic``: from ``[N_s, K]`` values for each of several seeds, as ``evaluation.bootstrap_seeds`` takes
    them; its interval is over seeds and images, or whole ``groups`` of images.
    """
    from hpatlib.evaluation import bootstrap, bootstrap_seeds

    if claim not in {known.id for known in claims()}:
        raise ValueError(f"unknown claim {claim!r}: the ones there are stand in hpatlib/published/")
    if statistic is not None:
        return Effect(claim, *bootstrap_seeds(values, statistic, groups), min(map(len, values)))
    mean, low, high = map(float, bootstrap(values, groups))
    return Effect(claim, mean, low, high, len(values))


def record(
    chapter: str,
    settings: Settings,
    trained: runs.Trained | Sequence[runs.Trained] | Sequence[ImageSet],
    rows: pd.DataFrame,
    effects: list[Effect],
    *,
    shown: int,
) -> Record:
    """Put together what a chapter measured, and write it to ``$HPAT_RECORDS`` (home()/records).

    ``shown``: how many images of each set were measured at most, fewer where a set has fewer to test on.

    ``trained``: the model, or all models of a chapter that compares several; the first stands for them in the stamp.
    A missing value (NaN) of ``rows`` is left out of its row: tables of several kinds can share a record.
    A chapter that asks no model passes its sets of images.
    """
    several = [] if isinstance(trained, runs.Trained) else list(trained)
    if several and isinstance(several[0], ImageSet):
        sets = [{"name": s.name, "fingerprint": s.fingerprint, "images": len(s)} for s in several]
        about, side, device = {"data": _joined(sets)}, {"size": several[0].images.shape[-1]}, "cpu"
        shown, several = _at_most(shown, [one["images"] for one in sets]), []
    else:
        trained = several[0] if several else trained
        decided, about = trained.provenance["run"], {"data": _data(several or [trained])}
        shown = _at_most(shown, [t.provenance["data"]["test"] for t in several or [trained]])
        about["model"] = {
            "key": trained.provenance["key"],
            "name": decided["model"],
            "weights": decided["weights"],
            "seconds": trained.provenance["seconds"],
            "device": trained.provenance["device"],
        }
        side = {"size": settings.size, "split_by": decided["split_by"]}
        device = str(next(trained.model.parameters()).device)
    made = Record(
        chapter=chapter,
        profile=settings.profile,
        data=settings.data,
        seed=settings.seed,
        rows=[{k: v for k, v in row.items() if not pd.isna(v)} for row in rows.to_dict("records")],
        effects=effects,
        provenance={
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "seconds": round(time.perf_counter() - settings.started, 1),
            **about,
            "data": {**about["data"], **side, "shown": shown},
            **({"models": [_model(t) for t in several], "seeds": _seeds(several)} if several else {}),
            **runs.environment(device),
        },
    )
    folder = Path(os.environ.get("HPAT_RECORDS") or home() / "records")
    name = f"{settings.profile}-{settings.data}-seed{settings.seed}.json"
    write(folder / chapter / name, msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    return made


def _data(several: list[runs.Trained]) -> dict:
    """What the first model learned from; of a chapter on several data sets, theirs in turn, separated by commas."""
    first = {t.provenance["data"]["name"]: t.provenance["data"] for t in reversed(several)}
    return _joined([first[name] for name in dict.fromkeys(t.provenance["data"]["name"] for t in several)])


def _joined(found: list[dict]) -> dict:
    return found[0] if len(found) == 1 else {k: ", ".join(str(one[k]) for one in found) for k in found[0]}


def _at_most(shown: int, at_hand: list[int]) -> int | str:
    """``shown``, or what there is: a number, or "84 to 96" where sets differ."""
    counts = sorted({min(shown, count) for count in at_hand})
    return counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _model(trained: runs.Trained) -> dict:
    """What tells a model from the others of its chapter."""
    told = ("dataset", "model", "weights", "seed", "repeat", "split_by", "static_eps", "adversary", "mixbn", "front")
    run = {name: trained.provenance["run"].get(name) for name in told}
    return {"key": trained.provenance["key"], **run, "seconds": trained.provenance["seconds"]}


def _seeds(several: list[runs.Trained]) -> list[int]:
    return sorted({t.provenance["run"]["seed"] for t in several})


def folder() -> Path:
    """Where committed records are: ``evidence/`` of the checkout, or the copy inside an installed package."""
    checkout = PACKAGE.parent / "evidence"
    return checkout if checkout.is_dir() else PACKAGE / "_evidence"


def records(chapter: str) -> list[Record]:
    """The committed records of ``chapter``, ordered by file name. Raises ``ValueError`` that names a broken file."""
    return [read(path) for path in sorted((folder() / chapter).glob("*.json"))]


def read(path: Path) -> Record:
    """One record. Raises ``ValueError`` that names the file when it is not a whole, valid record."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a record: {error}. Write it anew with hpat run … --record") from error


TOLERANCE = 0.05


def agreement(made: Record, committed: Record) -> str:
    """One line: does ``made`` reproduce ``committed``, effect by effect?

    The same code on the same kind of processor gives the same digits; elsewhere, trainings drift apart. An effect
    agrees when it is off by at most ``TOLERANCE``, or by half the width of its interval where that is more. Runs on
    other images are not compared. Raises ``ValueError`` for records of different runs.
    """
    asked = [(r.chapter, r.profile, r.data, r.seed) for r in (made, committed)]
    if asked[0] != asked[1]:
        raise ValueError(f"these are records of different runs: {asked[0]} and {asked[1]}")
    here, there = (f"{r.provenance['data']['name']} {r.provenance['data']['fingerprint']}" for r in (made, committed))
    if here != there:
        return f"not compared with the committed record, which is about other images: {here} here, {there} there"
    if not committed.effects:
        return "nothing to compare: the committed record tests no claim"
    known = {effect.claim: effect for effect in made.effects}
    if missing := [effect.claim for effect in committed.effects if effect.claim not in known]:
        return f"differs from the committed record: nothing measured for {', '.join(missing)}"
    off = {e.claim: abs(known[e.claim].effect - e.effect) for e in committed.effects}
    far = [e.claim for e in committed.effects if off[e.claim] > max(TOLERANCE, (e.high - e.low) / 2)]
    largest = f"largest difference of {len(off)} effects {max(off.values(), default=0.0):.3g}"
    if far:
        return f"differs from the committed record: {largest}, beyond tolerance in {', '.join(far)}"
    return f"agrees with the committed record: {largest}, tolerance {TOLERANCE} or half an interval"


def verdict(effects: list[Effect]) -> str:
    """The verdict on a claim from its effects in all real records (one a seed).

    ``supported`` when every interval lies above zero, ``contradicted`` when every one lies below it, ``inconclusive``
    otherwise, a tie to the last image included, and ``not yet tested`` without any.
    """
    if not effects:
        return "not yet tested"
    if all(e.low > 0 for e in effects):
        return "supported"
    if all(e.high < 0 for e in effects):
        return "contradicted"
    return "inconclusive"


def verdicts(chapter: str | None = None) -> pd.DataFrame:
    """A row a claim (of one chapter, or of all): sentence, verdict, effect with interval, and what it was measured on.

    Only committed records of real data count.
    """
    rows = []
    for claim in [claim for claim in claims() if chapter in (None, claim.chapter)]:
        found = [(r, e) for r in records(claim.chapter) if r.real for e in r.effects if e.claim == claim.id]
        effects = [e for _, e in found]
        size, measured = "–", "–"
        if effects:
            mean = sum(e.effect for e in effects) / len(effects)
            low, high = min(e.low for e in effects), max(e.high for e in effects)
            size = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {claim.unit}"
            measured = "; ".join(
                ", ".join(
                    filter(None, (r.provenance["data"]["name"], r.profile, r.weights, f"n = {e.n}", r.seeds_label))
                )
                for r, e in found
            )
        rows.append(
            {
                "claim": f"{claim.statement} ({claim.where})",
                "verdict": verdict(effects),
                "effect [95 % interval]": size,
                "measured on": measured,
            }
        )
    return pd.DataFrame(rows)


def ledger() -> str:
    """The page that lists every claim of the documents with its verdict, as MyST text."""
    parts = [
        "# The claims, and what became of them",
        "Each line is a sentence of ours about a published result, with a threshold that it can fail.\n"
        "The verdict follows from the committed records of runs on real images alone: *supported* or *contradicted* "
        "when the 95 % interval of the effect lies on one side of zero, *inconclusive* when it does not, *not yet "
        "tested* without a record.\n"
        "What the effect is, and how it was measured, stands in the chapter.",
    ]
    for document in _published().values():
        found = [msgspec.convert(claim, Claim) for claim in document.get("claims", [])]
        chapters = list(dict.fromkeys(claim.chapter for claim in found))
        rows = [(chapter, row) for chapter in chapters for row in verdicts(chapter).to_dict("records")]
        counts = ", ".join(f"{n} {v}" for v in VERDICTS if (n := sum(row["verdict"] == v for _, row in rows)))
        parts += [f"## {document['document']['title']}", f"{{cite:p}}`{document['document']['cite']}`: {counts}."]
        lines = ["| verdict | claim | effect [95 % interval] | measured on | chapter |", "|---|---|---|---|---|"]
        for chapter, row in rows:
            cells = [f"**{row['verdict']}**", row["claim"], row["effect [95 % interval]"], row["measured on"]]
            cells.append(f"[](../notebooks/{chapter}.ipynb)")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def stamp(made: Record) -> pd.DataFrame:
    """Where a record's numbers came from: what and its value, a row each."""
    p = made.provenance
    data = p["data"]
    kind = "real" if made.real else "phantom (no evidence about patients)"
    more = p.get("models", [{}])[1:]
    if "model" in p:
        sides = f"{data['train']} for training, {data['test']} for testing (split by {data['split_by']})"
        model = f"{p['model']['name']} from {p['model']['weights']}, {p['model']['key']}, "
        model += f"trained in {p['model']['seconds']} s on {p['model']['device']}"
        model += f"; and {len(more)} more, trained in {sum(m['seconds'] for m in more):.0f} s" if more else ""
    else:
        sides, model = f"{data['images']} at hand", "none is asked"
    rows = {
        "chapter": made.chapter,
        "profile, data, seed": f"{made.profile}, {kind}, {', '.join(map(str, made.seeds))}",
        "images": f"{data['name']} {data['fingerprint']}, {data['size']} px, {sides}, {data['shown']} of them measured",
        "model": model,
        "device, wall time": f"{p['device']}, {p['seconds']} s",
        "versions": ", ".join(f"{name} {number}" for name, number in p["versions"].items()) + f", Python {p['python']}",
        "library source": p["source"],
        "date": p["date"],
    }
    return pd.DataFrame({"what": rows.keys(), "value": rows.values()})
