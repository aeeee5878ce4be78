"""Figures and tables of the slides' results."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from hpatlib import documents
from hpatlib.data import SOURCES
from hpatlib.documents.assimilation.quantities import (
    ADVERSARIAL,
    FREE,
    LEAST,
    LONG,
    MEDICAL,
    MOST,
    NORMALISED,
    PAIR,
    RANDOM,
    TRANSFERRED,
    WORST,
    WORST_L2,
    apparent_margin,
    levels,
    octaves,
    printed,
    rescaled_margin,
    signs,
    standing,
    strength,
)
from hpatlib.outcomes import Unmeasured
from hpatlib.plots import base, charts
from hpatlib.plots.base import Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate, average

THIN = 1.1  # of the trainings that the slides do not have
TRAININGS = {
    "assimilated": Style("domain assimilation", charts.PAINT[0], "s"),
    "vanilla": Style("vanilla transfer learning", charts.PAINT[6], "o", charts.DASHES[1]),
    FREE: Style("without GLCM loss", charts.PAINT[1], "D", charts.DASHES[2], THIN),
    "α = 0.9": Style("α = 0.9", charts.PAINT[5], "v", charts.DASHES[3], THIN),
    "α = 0.5": Style("α = 0.5", charts.PAINT[3], "^", charts.DASHES[4], THIN),
    RANDOM: Style("random repaint", charts.PAINT[4], "X", charts.DASHES[5], THIN),
    ADVERSARIAL: Style("adversarial training at 1/255", charts.PAINT[2], "P", charts.DASHES[6], THIN),
}
UP: dict[str, Any] = {"percent": "y", "axes": {"xscale": "log", "ylim": (-0.03, 1.03)}, "xlabel": "ε, in 1/255"}
ACROSS: dict[str, Any] = {"percent": "x", "axes": {"xlim": (-0.03, 1.03)}}
SIGNS = {
    "raised": Style("raised", charts.PAINT[1], "s"),
    "unclear": Style("unclear", charts.PAINT[1], "s", hollow=True),
    "not raised": Style("not raised", charts.PAINT[6], ".", hollow=True),
}
OTHER = ("none", WORST, WORST_L2, TRANSFERRED, LONG)  # none of the slides' attacks
READINGS = {
    "PGD": "each attacked through its own gradients",
    LONG: "the same with steps of 2/255 at every ε",
    TRANSFERRED: "made on the vanilla model, shown to both",
}
SCALES = {
    NORMALISED: "ε added behind ImageNet's normalisation, 4.4 times as small in pixels",
    1 / 255: "ε added to images from 0 to 255",
}


def names() -> list[str]:
    """The four data sets, as figures call them."""
    return [SOURCES[key].label for key in MEDICAL]


def strengths(record: Record) -> Figure:
    """Accuracy against ε, a panel a data set, a network and an attack, a line a training; ε = 0 is the clean image."""
    o = record.outcomes
    attacks = [name for name in o.values("attack") if name not in OTHER]
    table = o.where(training=list(PAIR), attack=["none", *attacks]).accuracy.table()
    table = table.assign(level=table["eps"].map(levels)).sort_values("level", kind="stable")
    shown = []
    for (dataset, network), rows in table.groupby(["dataset", "network"], sort=False):
        for attack in attacks:
            part = rows[rows["attack"].isin(["none", attack])]
            title = f"{attack}: {SOURCES[dataset].label}" if len(o.values("dataset")) > 1 else attack
            title += f", {base.network(network)}" if len(o.values("network")) > 1 else ""
            words = UP | {"ticks": [0, *_ticks(part)], "line": 0.5, "height": (1.9, 1.9), "title": title}
            shown.append(charts.curves(part, "level", "training", TRAININGS, ends=False, ylabel="accuracy, %", **words))
    first = table[table["attack"] == attacks[-1]]
    ends = first[first["level"] == first["level"].min()].set_index("training")["value"].groupby(level=0).mean()
    return charts.figure(
        shown,
        name="strengths",
        record=record,
        columns=4 if len(attacks) == 4 else 3,
        share="xy",
        caption=f"Accuracy against attack strength on {_where(record)}; ε = 0 is the clean image. Iterated attacks "
        f"take {_settings(record)['iterations']} steps. Bands: 95 % intervals over trainings and images; dashed: "
        "guessing between classes of equal size.",
        alt="Line charts of accuracy against ε for two trainings, a panel an attack. Under "
        f"{attacks[-1]} at {first['level'].min():g}/255, mean over panels: domain assimilation "
        f"{100 * ends['assimilated']:.1f} %, vanilla {100 * ends['vanilla']:.1f} %.",
    )


def curves(record: Record) -> Figure:
    """The share of images that stand at each ε, from the smallest ε of each image; a panel a data set and a network."""
    o = record.outcomes.where(attack="none", eps=strength(0))
    steps = np.geomspace(LEAST, MOST, 33)
    table = pd.concat([standing(o, level).table().assign(level=level) for level in steps])
    ticks = [LEAST * 2**k for k in range(0, round(np.log2(MOST / LEAST)) + 1, 2)]
    panels = list(table.groupby(["dataset", "network"], sort=False))
    words: dict[str, Any] = UP | {"ylabel": "images that stand, %", "ticks": ticks, "ends": False}
    medians = o.rows.groupby("training", observed=True)["smallest"].median()
    return charts.figure(
        [charts.curves(rows, "level", "training", TRAININGS, title=_panel(*key), **words) for key, rows in panels],
        name="curves",
        record=record,
        columns=1 if len(panels) == 1 else 3,
        share="xy",
        caption="How many images stand at each ε: right when clean, and not changed by what a search finds from "
        "there down. The area below a curve is what claims compare, in octaves (doublings of ε). Bands: 95 % "
        "intervals over trainings and images.",
        alt="Falling curves of the share of images that stand against ε, a line a training. Median of the smallest ε: "
        + ", ".join(f"{TRAININGS[name].label} {medians[name]:.2g}/255" for name in PAIR[::-1])
        + ".",
    )


def dose(record: Record) -> Figure:
    """What each training withstands against how much it colours pictures: a small point a training, a large one a kind.

    Left: octaves of ε; right: the share of images that stand at ε = 0.25/255. The line: the dose that claims need.
    """
    o = octaves(record.outcomes)
    seen = {(m.run["dataset"], m.network, m.seed, _kind(record, n)): m.dose for n, m in enumerate(record.header.models)}
    sides = {
        "octaves of ε withstood": (o.mean("octaves").each(), ""),
        "images that stand at 0.25/255, %": (standing(o, 0.25).each(), "y"),
    }
    needed = documents.toml("assimilation", "claims")["gates"]["dose"]["channel_spread"]
    shown = []
    for label, (each, percent) in sides.items():
        where = zip(each["dataset"], each["network"], each["seed"], each["training"], strict=True)
        each = each.assign(dose=[seen[key].get("channel_spread", 0.0) for key in where])
        words = {"xlabel": "dose: channel spread, of 1", "ylabel": label, "percent": percent, "line": needed}
        shown.append(charts.doses(each, "dose", "training", TRAININGS, **words))
    withstood = o.mean("octaves").each().groupby("training")["value"].mean()
    return charts.figure(
        shown,
        name="dose",
        record=record,
        caption="What models withstand against their dose, how far apart the channels of the pictures are that the "
        "backbone sees; octaves are counted above 1/32 of 255. Small points: trainings; large ones: their means. "
        "Dashed: the dose that claims about domain assimilation need.",
        alt="Dose–response charts: what trainings withstand against the channel spread they give. Octaves withstood: "
        + ", ".join(f"{TRAININGS[name].label} {withstood[name]:.2f}" for name in PAIR[::-1])
        + ".",
    )


def _kind(record: Record, model: int) -> str:
    """The training that a model of the record stands for."""
    rows = record.outcomes.rows
    return str(rows.loc[rows["model"] == model, "training"].iloc[0])


def survival(record: Record) -> Figure:
    """Accuracy under the standard attacks together, a panel a data set and a network, a row an ε."""
    worst = record.outcomes.where(attack=[WORST, WORST_L2]).accuracy
    table, each, s = _by_norm(worst.table()), _by_norm(worst.each()), _settings(record)
    l2 = WORST_L2 in worst.table()["attack"].to_numpy()
    shown = []
    for key, rows in table.groupby(["dataset", "network"], sort=False):
        mine = each[(each["dataset"] == key[0]) & (each["network"] == key[1])]
        words = ACROSS | {"title": _panel(*key), "xlabel": "accuracy, %", "ylabel": "ε"}
        shown.append(charts.dots(rows, "eps", TRAININGS, "training", each=mine, **words))
    best = table.loc[table["value"].idxmax()]
    return charts.figure(
        shown,
        name="survival",
        record=record,
        columns=3,
        share="y",
        caption="Accuracy under the worst of the standard attacks: PGD with restarts, PGD at smaller ε, Auto-PGD on "
        "two losses, FMN, the Square attack, and Auto-PGD made on another training's model. Bars: 95 % intervals over "
        f"trainings and images; small points: each training. PGD: {s['restarts']} starts; Square: {s['queries']} "
        "queries." + l2 * " L2: within the length of a change by ε in every pixel, without PGD and Square.",
        alt="Dot charts of accuracy under the standard attacks together, a row an ε, a dot a training. Most is left to "
        f"{TRAININGS[best['training']].label} at {best['eps']}: {100 * best['value']:.1f} %.",
    )


def _by_norm(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(eps=table["eps"].where(table["attack"] == WORST, table["eps"] + ", L2"))


def felled(record: Record) -> Table:
    """Which of the standard attacks was the first to fell how many images, and what they asked of the model."""
    found = record.table("felled")
    keys = ["dataset", "training", "eps"]
    wide = found.groupby([*keys, "attack"], sort=False)["images"].sum().unstack("attack", fill_value=0).reset_index()
    named = wide[[*keys, *sorted(wide.columns.difference(keys), key=base.FELLED_BY.index)]]
    if counted := "queries" in found:
        stood = found[found["attack"] == "stands"].groupby(keys)["queries"].mean()
        passes = stood.reindex(pd.MultiIndex.from_frame(named[keys]))
        named = named.assign(queries=[f"{mean:.0f}" if mean > 0 else "–" for mean in passes])
    named = named.assign(dataset=[SOURCES[name].label for name in named["dataset"]])
    return base.table(
        named.rename(
            columns={"dataset": "data", "eps": "ε", "clean": "wrong already", "queries": "passes, where it stands"}
        ),
        "Images by the first of the standard attacks that felled them, over all trainings; they are run in this order, "
        "each on what still stands."
        + counted
        * " Passes: forward passes asked of the model for an image that stands, mean; a gradient counts three.",
        "felled",
        record,
    )


def readings(record: Record) -> Table:
    """What a reader of the results figure would see under other readings of its attacks, beside the white-box one."""
    found: list[dict[str, str]] = []
    best: dict[str, dict[str, float]] = {}
    for dataset in record.outcomes.values("dataset"):
        shown = ", ".join(printed(record.outcomes.where(dataset=dataset, attack=TRANSFERRED)))
        read = {told: partial(apparent_margin, attack=attack) for attack, told in READINGS.items()}
        read |= {told: partial(rescaled_margin, scale=scale) for scale, told in SCALES.items()}
        for told, quantity in read.items():
            try:
                margin = quantity(record.outcomes, dataset=dataset)
            except Unmeasured:
                continue
            best.setdefault(dataset, {})[told] = margin.value
            row = {"data": _data(record, dataset), "attack": told, "ε": shown}
            found.append(row | {"margin, points": base.percent(margin.value, *margin.interval(), sign="+")})
    nearest = "; ".join(f"{SOURCES[d].label}: {max(m, key=m.__getitem__)}" for d, m in best.items())
    return base.table(
        found,
        "The margin that the results figure would show, domain assimilation less vanilla, mean over ε; where ε is on "
        "another scale, from the smallest ε of each image. The slides speak of a clear one; the largest here is under "
        f"this reading: {nearest}.",
        "readings",
        record,
    )


def masking(records: Sequence[Record]) -> Figure:
    """Signs of masked gradients: a row a check, a column a training, a panel a data set and a network."""
    found = []
    for record in records:
        several = f"{len(record.seeds)} trainings"
        strongest = max(printed(record.outcomes), key=levels)
        for row in record.table("masking").itertuples():
            where = (row.dataset, row.network, row.training, row.check)
            found.append(_sign(record, where, (row.value, row.value_low, row.value_high), row.eps, f"seed {row.seed}"))
        for key, sign in signs(record.outcomes).items():
            found.append(_sign(record, key, (sign.value, *sign.interval()), f"to {strongest}", several))
    table = pd.DataFrame(found)
    groups = table.groupby(["data", "network"], sort=False)
    raised = int((table["verdict"] == "raised").sum())
    return charts.figure(
        [
            charts.matrix(rows, "check", "training", "verdict", SIGNS, title=f"{data}, {network}")
            for (data, network), rows in groups
        ],
        name=base.named("masking", *records),
        columns=2,
        caption="Signs that models mask their gradients, in shares of images; above zero speaks for masking. Raised: "
        "the whole interval is; unclear: only the value is. A check that is not raised proves nothing. "
        f"{'; '.join(map(base.label, records))}.",
        alt=f"Dot matrix of checks for masked gradients against trainings: {raised} of {len(table)} are raised.",
    )


def _sign(
    record: Record, where: tuple[str, ...], numbers: tuple[float, float, float], eps: str, models: str
) -> dict[str, Any]:
    (dataset, network, training, check), (value, low, high) = where, (number + 0.0 for number in numbers)  # no −0.00
    verdict = "raised" if low > 0 else "unclear" if value > 0 else "not raised"
    about = {"data": _data(record, dataset), "network": base.network(network), "training": training, "check": check}
    return about | {"value": value, "low": low, "high": high, "verdict": verdict, "ε": eps, "models": models}


def trainings(records: Sequence[Record]) -> Table:
    """Each kind of training in numbers: clean accuracy, what it withstands, and its dose."""
    found = []
    for record in records:
        o = octaves(record.outcomes)
        for (dataset, network, training), withstood in o.mean("octaves").items():
            there = o.where(dataset=dataset, network=network, training=training)
            middle = float(there.rows["smallest"].astype(float).median())
            models = [record.header.models[m] for m in there.rows["model"].unique()]
            row = {"data": _data(record, dataset), "network": base.network(network)}
            row |= {"training": TRAININGS[training].label, "accuracy, %": _percent(there.accuracy[()])}
            row |= {"octaves withstood": _number(withstood), "median smallest ε, of 255": f"{middle:.3g}"}
            for name, title in (("channel_spread", "channel spread"), ("texture", "texture distance, of 40")):
                doses = [m.dose[name] for m in models if name in m.dose]
                row[title] = f"{np.mean(doses):.3f}" if doses else "–"
            found.append(row)
    return base.table(
        found,
        "Accuracy on clean images; octaves of ε that the answers withstand above 1/32 of 255 (0: wrong already, 8: "
        "more than 8/255); and the dose, what T and C do to the test images. Means with 95 % intervals.",
        "trainings",
        *records,
    )


def repainted(shown: Mapping[str, Mapping[str, np.ndarray]], record: Record) -> Figure:
    """What the backbone sees: by data set ``study.pictures``, a row a phantom, a column a training."""
    rows = [(SOURCES[d].label, n, found) for d, found in shown.items() for n in range(len(found["original"]))]
    columns, away = list(rows[0][2]), []
    for name in columns:
        distance = np.mean([255 * abs(found[name] - found["original"]).mean() for found in shown.values()])
        away.append({"picture": name, "mean distance from the original, grey levels": float(distance)})
    images = [[found[name][number] for name in columns] for _, number, found in rows]
    moved = ", ".join(f"{row['picture']} by {list(row.values())[1]:.1f}" for row in away[1:])
    return charts.figure(
        [charts.strip(images, [name for name, _, _ in rows], columns, data=pd.DataFrame(away))],
        name=base.named("repainted", record),
        caption="Phantoms with a lesion, and the pictures C(T(x)) that the backbone sees of them. "
        f"{base.phantoms(record)}, first network.",
        alt=f"Grid of phantom pictures, a row a phantom; columns: {', '.join(columns)}. Mean distance of a pixel from "
        f"the original, in grey levels of 255: {moved}.",
    )


def textures(record: Record) -> Figure:
    """Texture distance from the original (all features, then each) and colour, with and without the GLCM loss."""
    o = record.outcomes
    sides = {
        "texture distance": {"texture": "all five"} | base.FEATURES,
        "channel spread, of 1": {"colour": "colour"},
    }
    looks = {FREE: TRAININGS[FREE], "assimilated": TRAININGS["assimilated"]._replace(label="with GLCM loss")}
    shown: list[charts.Panel] = []
    apart: dict[str, float] = {}
    for dataset in o.values("dataset"):
        there = o.where(dataset=dataset)
        for label, columns in sides.items():
            cells = {
                (column, training): average(*(there.mean(column)[n, training] for n in there.values("network")))
                for column in columns
                for training in looks
            }
            table, each = charts.frames(cells, "column", "training")
            words: dict[str, Any] = {"names": columns, "title": SOURCES[dataset].label, "xlabel": label}
            shown.append(charts.dots(table, "column", looks, "training", each=each, line=0.0, **words))
            apart |= {name: cell.value for (column, name), cell in cells.items() if column == "texture"}
    return charts.figure(
        shown,
        name="textures",
        record=record,
        caption="How far the adapted picture is from the original: the GLCM loss itself and the part of each feature "
        "(in the worst window, summed over orientations, so that parts need not add up), and how coloured it is. "
        "Means over networks with 95 % intervals over trainings and images; small points: each training.",
        alt="Dot charts of texture distance and colour with and without the GLCM loss, a panel a data set. All five "
        f"features, {SOURCES[dataset].label}: {apart[FREE]:.3g} without the loss, {apart['assimilated']:.3g} with it.",
    )


def doses(record: Record) -> Table:
    """How strongly each treatment was given: what T and C do to the test images, mean over trainings."""
    models = [m for m in record.header.models if m.dose]
    found = pd.DataFrame(
        {
            "data": _data(record, m.run["dataset"]),
            "network": base.network(m.network),
            "training": TRAININGS["assimilated" if m.run["objective"]["alpha"] < 1 else FREE].label,
            "channel spread, of 1": m.dose["channel_spread"],
            "texture distance, of 40": m.dose["texture"],
        }
        for m in models
    )
    table = found.groupby(["data", "network", "training"], sort=False, as_index=False).mean().round(4)
    needed = documents.toml("assimilation", "claims")["gates"]["dose"]["channel_spread"]
    return base.table(
        table,
        "What T and C do to the test images. Claims about domain assimilation are judged only where the channel spread "
        f"is {needed:g} or more, on average over trainings.",
        "doses",
        record,
    )


def sizes(record: Record) -> Table:
    """The slides' class sizes beside what was found and used."""
    frame = record.table("sizes")
    frame = frame.assign(dataset=[SOURCES[name].label for name in frame["dataset"]])
    used = "used" if record.real else "phantoms used"
    named = {"published": "on the slides", "at_hand": "files at hand", "public": "most complete copy", "used": used}
    return base.table(
        frame.rename(columns=named),
        "Images of each class: on the slides, among the files found and in the most complete copy of the set among "
        "them (real data only), and in this profile.",
        "sizes",
        record,
    )


def splits(record: Record) -> Figure:
    """Clean accuracy by data set, split by patient or group and by image."""
    accuracy = record.outcomes.where(**{"split": ["patient", "image"], "class": "both"}).accuracy
    looks = charts.styles(["patient", "image"], {"patient": "split by patient or group", "image": "split by image"})
    names = {key: SOURCES[key].label for key in MEDICAL}
    table = accuracy.table()
    gap = table.set_index(["dataset", "split"])["value"].unstack("split")
    words = ACROSS | {"xlabel": "accuracy on clean images, %", "names": names, "line": 0.5}
    return charts.figure(
        [charts.dots(table, "dataset", looks, "split", each=accuracy.each(), **words)],
        name="splits",
        record=record,
        caption="What a split by image adds to accuracy. Bars: 95 % intervals over trainings and images; small points: "
        "each training; dashed: guessing.",
        alt="Dot chart of clean accuracy by data set and split. A split by image adds "
        + ", ".join(f"{100 * (row['image'] - row['patient']):+.1f} ({names[name]})" for name, row in gap.iterrows())
        + " points.",
    )


def settings(record: Record) -> Table:
    """The slides' settings beside this profile's."""
    named = {"published": "on the slides", "here": f"{record.header.profile} profile"}
    return base.table(record.table("settings").rename(columns=named), "Training and GLCM settings.", "settings", record)


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def _percent(estimate: Estimate) -> str:
    return base.percent(estimate.value, *estimate.interval())


def _settings(record: Record) -> dict:
    return documents.toml("assimilation", "profiles")[record.header.profile]


def _data(record: Record, dataset: str) -> str:
    return f"{SOURCES[dataset].label}, {record.header.data}, {record.header.profile}"


def _panel(dataset: str, network: str) -> str:
    return f"{SOURCES[dataset].label}, {base.network(network)}"


def _where(record: Record) -> str:
    """The data sets and networks of a record in words."""
    sets = ", ".join(SOURCES[name].label for name in record.outcomes.values("dataset"))
    return f"{sets}, {', '.join(map(base.network, record.outcomes.values('network')))}"


def _ticks(table: pd.DataFrame) -> list[float]:
    """The largest strength, and every one that is at most a quarter of the next tick: nearer ones would touch."""
    ticks: list[float] = []
    for level in sorted(set(table["level"][table["level"] > 0]), reverse=True):
        if not ticks or level <= ticks[-1] / 4:
            ticks.append(level)
    return ticks[::-1]
