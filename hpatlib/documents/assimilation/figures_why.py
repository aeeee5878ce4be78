"""Figures and tables of the chapters on why medical images are attacked easily."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from hpatlib.data import SOURCES
from hpatlib.documents.assimilation.figures import _percent
from hpatlib.documents.assimilation.quantities import (
    FLAT,
    HALF,
    LEAST,
    MOST,
    SHARES,
    STRAIGHT,
    WINDOW,
    octaves,
    right_alone,
    sooner,
)
from hpatlib.outcomes import Cells, Outcomes
from hpatlib.plots import base, charts
from hpatlib.plots.base import Figure, Table
from hpatlib.plots.charts import Style
from hpatlib.records import Record
from hpatlib.statistics import Estimate

if TYPE_CHECKING:
    from hpatlib.documents.assimilation.why import Map

CREDIT = "Photographs: scikit-image's, CC0 or without known copyright restrictions"


SIDES = {"along the gradient's sign": "x", "along random signs": "y"}
DIRECTIONS = {
    "along random signs": Style("along random signs", charts.PAINT[6]),
    "along the gradient's sign": Style("along the gradient's sign", charts.PAINT[1], "D"),
}
SAID = "Means with 95 % intervals over trainings and images; small points: each training."


def look(domain: str, dataset: str) -> Style:
    """How a task looks: a data set's own label and colour; natural images are diamonds, and their lines are whole."""
    source, medical = SOURCES[dataset], domain == "medical"
    label = source.label.replace("\n", " ")
    return Style(label, source.colour, "o" if medical else "D", charts.DASHES[1] if medical else "-")


def attention(record: Record) -> Figure:
    """How much of the Grad-CAM mass the brightest pixels hold (left), and the area that holds half of it (right)."""
    o, rows = record.outcomes, []
    area = {share: o.mean(f"area {share:g}") for share in SHARES}
    for domain, dataset in _tasks(o):
        held = [(0.0, 0.0), *((area[share][domain, dataset].value, share) for share in SHARES), (1.0, 1.0)]
        rows += [{"task": f"{domain}/{dataset}", "area": x, "value": y} for x, y in held]
    table = pd.DataFrame(rows).assign(low=np.nan, high=np.nan)
    words: dict[str, Any] = {"xlabel": "pixels, brightest first, share", "ylabel": "Grad-CAM mass, %", "line": HALF}
    words |= {"percent": "y", "axes": {"ylim": (0, 1), "xlim": (0, 1)}, "bands": False, "ends": False}
    right = {"xlabel": "pixels with half of the mass, %", "line": HALF, "percent": "x", "axes": {"xlim": (0, 0.55)}}
    return charts.figure(
        [
            charts.curves(table, "area", "task", _looks(o), **words),
            _ranking(area[HALF], o, **right),
        ],
        name="attention",
        record=record,
        caption="Left: share of the Grad-CAM mass that the brightest pixels hold, mean over images. Right: the "
        f"attended area, the smallest share of pixels with half of the mass; a map that is uniform has 50 %. {SAID}",
        alt=f"Curves of Grad-CAM mass against share of pixels, and dots of the attended area: {_told(area[HALF], o)}.",
    )


def sharpness(record: Record) -> Figure:
    """Sharpness within ε (left) and largest curvature (right), in spreads of the logits, a row a task."""
    o = record.outcomes
    named = {
        "relative": ("rise of the loss within 4/255", "spreads of the logits"),
        "curvature": ("largest curvature", "log₁₀ of squared spreads a squared pixel range"),
    }
    return charts.figure(
        [_ranking(o.mean(column), o, title=title, xlabel=unit) for column, (title, unit) in named.items()],
        name="sharpness",
        record=record,
        share="y",
        caption="How steep the loss is around test images, in units of how far apart each network's own logits are. "
        "Left: how far PGD raises it within 4/255, in spreads; right: the eigenvalue of the Hessian that is largest "
        f"in size, {STRAIGHT:g} at least, in squared spreads over a squared pixel range. {SAID}",
        alt="Dot charts of sharpness and curvature, a row a task. Rise of the loss within 4/255, in spreads of the "
        f"logits: {_told(o.mean('relative'), o)}.",
    )


def vulnerability(record: Record) -> Figure:
    """Accuracy on clean images, and the octaves of ε that all answers and the right ones withstand, a row a task."""
    o = octaves(record.outcomes)
    right = right_alone(o).mean("octaves")
    lead, alone = _number(sooner(record.outcomes)), _number(sooner(record.outcomes, right=True))
    clean = {"xlabel": "accuracy on clean images, %", "percent": "x", "axes": {"xlim": (-0.03, 1.03)}}
    return charts.figure(
        [
            _ranking(o.accuracy, o, **clean),
            _ranking(o.mean("octaves"), o, xlabel="octaves of ε, all images"),
            _ranking(right, o, xlabel="octaves of ε, images answered right"),
        ],
        name="vulnerability",
        record=record,
        share="y",
        caption="Accuracy, and how large an ε the answers withstand: an octave is a perturbation twice as large; 0 "
        "is an image that is wrong already or falls below 1/32 of 255. Of all images, in which accuracy counts too, "
        f"natural ones withstand {lead} octaves more than medical ones on average; of those that are answered right, "
        f"{alone} more, about which no claim was written before it was seen. {SAID}",
        alt="Dot charts of accuracy, and of octaves of ε withstood by all images and by those answered right, a row a "
        f"task. All: {_told(o.mean('octaves'), o)}.",
    )


def smallest(record: Record) -> Figure:
    """The smallest ε of each image as a curve: what share of a task's images stands at each ε."""
    o, rows, middles = record.outcomes, [], []
    for domain, dataset in _tasks(o):
        least = o.where(domain=domain, dataset=dataset).rows["smallest"].astype(float)
        about, eps = {"task": f"{domain}/{dataset}"}, np.geomspace(LEAST, MOST, 33)
        rows += [about | {"eps": float(level), "value": float((least > level).mean())} for level in eps]
        middles.append(f"{look(domain, dataset).label} {least.median():.2g}")
    table = pd.DataFrame(rows).assign(low=np.nan, high=np.nan)
    words: dict[str, Any] = {"xlabel": "ε, in 1/255", "ylabel": "images that stand, %", "bands": False, "percent": "y"}
    words |= {
        "axes": {"xscale": "log", "ylim": (-0.03, 1.03)},
        "ticks": [LEAST * 4**k for k in range(5)],
        "ends": False,
    }
    return charts.figure(
        [charts.curves(table, "eps", "task", _looks(o), **words)],
        name="smallest",
        record=record,
        caption="The share of test images that are right and whose smallest ε, as far as it was found, is larger than "
        "each ε, all trainings together; whole line: natural images.",
        alt=f"Falling curves of the share of images that stand against ε, a line a task. Median: {', '.join(middles)}.",
    )


def landscape(record: Record) -> pd.DataFrame:
    """The slices as a tidy table: ``domain``, ``dataset``, ``x`` and ``y`` in grey levels, ``value`` in nats."""
    tidy = record.table("landscape").melt(["domain", "dataset", "y"], var_name="x", value_name="value")
    return tidy.assign(x=tidy["x"].astype(float), y=tidy["y"].astype(float))


def landscapes(record: Record) -> Figure:
    """How far the mean loss rises at the edge of a slice, 4/255 from the images: along the gradient and across it."""
    frame, rows = landscape(record), []
    edge = frame["x"].max()
    for name, at in SIDES.items():
        there = frame[(frame[at] == edge) & (frame["y" if at == "x" else "x"] == 0)]
        rows.append(there.assign(direction=name, task=there["domain"] + "/" + there["dataset"]))
    table = pd.concat(rows).assign(low=lambda t: t["value"], high=lambda t: t["value"])
    names = {task: style.label for task, style in _looks(record.outcomes).items()}
    steep = table[table["direction"] == "along the gradient's sign"].set_index("task")["value"]
    words: dict[str, Any] = {"names": names, "line": 0.0, "axes": {"xscale": "symlog"}}
    return charts.figure(
        [charts.dots(table, "task", DIRECTIONS, "direction", xlabel="mean rise of the loss, nats", **words)],
        name="landscapes",
        record=record,
        caption=f"How far the mean cross-entropy rises above that of the clean images, {edge:g}/255 away from them: "
        "along the sign of its gradient, and along random signs at right angles to it. The scale is straight within "
        "±2 and logarithmic outside.",
        alt=f"Dot chart of the mean rise of the loss {edge:g}/255 away, a row a task, along the gradient and across. "
        f"Along it: {', '.join(f'{names[task]} {value:.2g}' for task, value in steep.items())}.",
    )


def slices(record: Record) -> Figure:
    """Slices of input space: mean rise of the loss along the gradient (left) and across it (right), a line a task."""
    frame = landscape(record)
    frame = frame.assign(task=frame["domain"] + "/" + frame["dataset"], low=np.nan, high=np.nan)
    words: dict[str, Any] = {"ylabel": "mean rise of the loss, nats", "axes": {"yscale": "symlog"}, "bands": False}
    shown, ends = [], ""
    for title, along in SIDES.items():
        rows = frame[frame["y" if along == "x" else "x"] == 0]
        words |= {"title": title, "xlabel": "grey levels of 255", "line": 0.0}
        shown.append(charts.curves(rows, along, "task", _looks(record.outcomes), **words))
        last = rows[rows[along] == rows[along].max()].set_index("dataset")["value"]
        ends = ends or ", ".join(f"{SOURCES[name].label} {value:.2g}" for name, value in last.items())
    return charts.figure(
        shown,
        name="slices",
        record=record,
        share="y",
        caption="Slices of the loss: how far the mean cross-entropy rises above that of the clean images (0), in a "
        "scale that is straight within ±2 and logarithmic outside.",
        alt=f"Line charts of the mean rise of the loss, a line a task. At the right end, along the gradient: {ends}.",
    )


def scores(record: Record) -> Table:
    """Every number behind the figures: a row a task, its accuracy and measures with 95 % intervals."""
    columns = {
        f"area {HALF:g}": "attended area",
        "empty": "maps without mass",
        "sharpness": "rise within 4/255, nats",
        "relative": "the same, spreads of the logits",
        "curvature": "largest curvature, log₁₀",
    }
    found = []
    for domain, dataset in _tasks(record.outcomes):
        o = record.outcomes.where(domain=domain, dataset=dataset)
        networks = {record.header.models[m].network for m in o.rows["model"]}
        row = {"task": look(domain, dataset).label.replace("\n", " ")}
        row |= {"network": ", ".join(map(base.network, networks)), "accuracy, %": _percent(o.accuracy[()])}
        if "smallest" in o.rows:
            row |= {"octaves withstood": _number(octaves(o).mean("octaves")[()])}
            row |= {"of those answered right": _number(right_alone(octaves(o)).mean("octaves")[()])}
            row |= {"median smallest ε, of 255": f"{o.rows['smallest'].astype(float).median():.3g}"}
        row |= {title: _number(o.mean(column)[()]) for column, title in columns.items() if column in o.rows}
        found.append(row | {"images a training": o.rows.groupby("model", observed=True)["image"].nunique().max()})
    return base.table(found, "Means with 95 % intervals over trainings and groups of images.", "scores", record)


def maps(shown: Sequence["Map"], record: Record) -> Figure:
    """An image of each task with its Grad-CAM map: the outlined pixels hold half of the map's mass."""
    names = [look(one.domain, one.dataset).label for one in shown]

    def outline(axis: Axes, row: int, column: int, extent: np.ndarray) -> None:
        one = shown[column]
        values, (left, right, bottom, top) = np.sort(one.heat, axis=None)[::-1], extent
        level = min(0.999, float(values[max(0, round(one.area * len(values)) - 1)]))
        down, across = one.heat.shape
        x = left + (np.arange(across) + 0.5) / across * (right - left)
        y = top + (np.arange(down) + 0.5) / down * (bottom - top)
        axis.contour(x, y, one.heat, levels=[level], colors=("#FFB000", "white")[row], linewidths=1.2)

    areas = [100 * one.area for one in shown]
    notes = [[""] * len(shown), [f"{area:.0f} % of pixels" for area in areas]]
    return charts.figure(
        [
            charts.strip(
                [[one.picture for one in shown], [one.heat for one in shown]],
                ["image", "Grad-CAM"],
                names,
                notes=notes,
                marks=outline,
                cmaps=["gray", "cividis"],
                data=pd.DataFrame({"task": names, "pixels with half of the mass, %": areas}),
            )
        ],
        name=base.named("maps", record),
        caption="One test image of each task (medical ones are phantoms) and its Grad-CAM map for the predicted "
        f"class; the outlined pixels hold half of the map's mass. {CREDIT}. {base.phantoms(record)}.",
        alt="Phantom pictures and crops of photographs, each with a Grad-CAM map and an outlined region, which covers: "
        f"{', '.join(f'{name} {area:.0f} %' for name, area in zip(names, areas, strict=True))}.",
    )


def oracle(frame: pd.DataFrame) -> Table:
    """Our texture features beside scikit-image's, a row a feature and image."""
    shown = frame[["image", "feature", "ours", "scikit-image", "difference"]].copy()
    for column in ("ours", "scikit-image"):
        shown[column] = shown[column].map("{:.6g}".format)
    shown["difference"] = shown["difference"].map("{:.0e}".format)
    return Table(
        shown,
        "Mean over windows and orientations by both, and the largest difference in any of them. Homogeneity, squared "
        "is scikit-image's own; the slides' is computed from scikit-image's matrix.",
        "oracle",
    )


def textures(images: Mapping[str, ArrayLike], features: pd.DataFrame, record: Record) -> Figure:
    """Textures ``[H, W]`` by name with one window drawn in, and ``why.orientations`` of them."""
    looks, size = charts.styles(list(images)), len(np.asarray(next(iter(images.values()))))

    def window(axis: Axes, row: int, column: int, extent: np.ndarray) -> None:
        corner = (extent[0] + 5 * WINDOW / size, extent[3] + 5 * WINDOW / size)
        axis.add_patch(Rectangle(corner, WINDOW / size, WINDOW / size, fill=False, ec="#FFB000", lw=1.4))

    spread = features.groupby("texture", sort=False)["value"].agg(["min", "max"]).reset_index()
    strip = charts.strip([list(images.values())], [""], list(images), marks=window, data=spread)
    table, shown = features.assign(low=np.nan, high=np.nan), []
    for feature, title in base.FEATURES.items():
        rows = table[table["feature"] == feature]
        scale = {"yscale": "log"} if feature in ("asm", "contrast") else {}
        words: dict[str, Any] = {"title": title, "xlabel": "orientation, degrees", "ticks": [0, 90, 180, 270]}
        words |= {"bands": False, "ends": False, "height": (1.8, 1.8), "axes": scale}
        shown.append(charts.curves(rows, "degrees", "texture", looks, **words))
    drawn = " and ".join(name for name in images if name.endswith("phantom"))
    given = ", ".join(name for name in images if not name.endswith("phantom"))
    return charts.figure(
        [strip, *shown],
        name=base.named("glcm", record),
        columns=3,
        share="x",
        caption=f"Textures of {size} × {size} pixels with one window of {WINDOW} × {WINDOW}, and their features by "
        "orientation at distance 3, means over 121 windows; the second half of the orientations repeats the first. "
        f"{given}: scikit-image's, CC0; {drawn}: drawn, seed {record.header.seed}.",
        alt=f"Pictures of {', '.join(images)}; below, line charts of five features over eight orientations: each value "
        "of the second half repeats one of the first.",
    )


def monotony(record: Record) -> Figure:
    """Each feature's mean over windows with texture, and the share of flat windows, a row a set."""
    o, names = record.outcomes, {"flat": "flat windows, share", **base.FEATURES}
    return charts.figure(
        [_ranking(o.mean(column), o, title=title) for column, title in names.items()],
        name="monotony",
        record=record,
        columns=3,
        share="y",
        caption=f"Texture of medical and natural images at 224 pixels. Flat windows span less than {FLAT} grey levels; "
        "the features are means over the others. Points: mean over images; bars: 95 % intervals over groups of "
        "images that belong together.",
        alt="Six dot charts of texture features, a row a set of images. Homogeneity: "
        f"{_told(o.mean('homogeneity'), o)}.",
    )


def _tasks(o: Outcomes) -> list[tuple[str, str]]:
    pairs = o.rows[["domain", "dataset"]].astype(str).drop_duplicates()
    return [(row.domain, row.dataset) for row in pairs.itertuples()]


def _looks(o: Outcomes) -> dict[str, Style]:
    return {f"{domain}/{dataset}": look(domain, dataset) for domain, dataset in _tasks(o)}


def _ranking(cells: Cells, o: Outcomes, **words: Any) -> charts.Panel:
    """A row a task."""
    table, each = charts.frames({("/".join(key),): estimate for key, estimate in cells.items()}, "task")
    return charts.dots(table, "task", _looks(o), each=each if len(each) else None, **words)


def _told(cells: Cells, o: Outcomes) -> str:
    """Values by task, for an alt text."""
    return ", ".join(f"{look(*task).label} {cells[task].value:.2g}" for task in _tasks(o))


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.3g} [{low:.3g}, {high:.3g}]"
