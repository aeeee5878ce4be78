"""The chart kit: what is drawn is what the frame holds, and what a page gets can be read by everybody. No torch."""

import io
import itertools
import re
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from hpatlib.data import SOURCES
from hpatlib.plots import Figure, Table, base, charts
from hpatlib.plots.base import percent
from hpatlib.plots.charts import Style

PAGES = {"light": "#ffffff", "dark": "#14181e"}  # the theme's backgrounds
PHONE = 350  # px of a column on a phone of 390
LOOKS = charts.styles(["a", "b", "c"], {"a": "first one", "b": "second", "c": "third"})


def series(xs=(1, 2, 4), names="abc") -> pd.DataFrame:
    draws = np.random.default_rng(0)
    rows = [{"x": x, "name": name, "value": draws.uniform(0.2, 0.8)} for name in names for x in xs]
    return pd.DataFrame(rows).assign(low=lambda t: t["value"] - 0.1, high=lambda t: t["value"] + 0.1)


def made(*panels: charts.Panel, **more) -> Figure:
    given = {"name": "made-up", "caption": "A caption.", "alt": "A chart of made-up numbers."} | more
    return charts.figure(panels, **given)


@pytest.fixture
def axes():
    """An empty axes to draw a panel on."""
    canvas, axis = plt.subplots()
    yield axis
    plt.close(canvas)


def drawn(axis) -> list[np.ndarray]:
    """Points of every line on an axes ``[N, 2]``, but those of the axes' own lines to compare with."""
    return [np.column_stack(line.get_data()) for line in axis.lines]


# Charts against their frames.


def test_curves_go_through_their_values_and_end_there(axes):
    table = series()
    ends = charts.curves(table, "x", "name", LOOKS).draw(axes, False)
    for line, name, end in zip(drawn(axes), "abc", ends, strict=True):
        rows = table[table["name"] == name]
        np.testing.assert_array_equal(line, rows[["x", "value"]])
        assert (end.x, end.y) == tuple(line[-1]) and end.style == LOOKS[name]
    bands = [part.get_paths()[0].vertices for part in axes.collections]
    for band, name in zip(bands, "abc", strict=True):
        rows = table[table["name"] == name]
        assert {*rows["low"], *rows["high"]} <= set(band[:, 1])


def test_categories_stand_in_their_order_with_whiskers(axes):
    table = series(xs=("H0", "H3", "H6"))
    charts.curves(table, "x", "name", LOOKS).draw(axes, False)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["H0", "H3", "H6"]
    for line, whiskers, name in zip(drawn(axes), axes.collections, "abc", strict=True):
        rows = table[table["name"] == name]
        np.testing.assert_array_equal(line[:, 1], rows["value"])
        assert np.abs(line[:, 0] - [0, 1, 2]).max() < 0.1
        np.testing.assert_allclose([p.vertices[:, 1] for p in whiskers.get_paths()], rows[["low", "high"]])


def test_zero_stands_left_of_the_smallest_number_on_a_logarithmic_axis():
    panel = charts.curves(series(xs=(0.0, 0.25, 4.0)), "x", "name", LOOKS, ticks=[0, 0.25, 4], axes={"xscale": "log"})
    axis = made(panel).draw(False).axes[0]
    ticks = dict(zip([t.get_text() for t in axis.get_xticklabels()], axis.get_xticks(), strict=True))
    assert list(ticks) == ["0", "1/4", "4"] and 0 < ticks["0"] < ticks["1/4"] and drawn(axis)[0][0, 0] == ticks["0"]
    plt.close("all")


def test_dots_stand_in_the_row_of_their_group(axes):
    table = series(xs=("up", "down"))
    each = pd.concat([table.assign(value=table["value"] + shift) for shift in (-0.02, 0.02)])
    charts.dots(table, "x", LOOKS, "name", each=each, line=0.5).draw(axes, False)
    reference, *lines = drawn(axes)
    assert reference[:, 0].tolist() == [0.5, 0.5]
    for large, small, name in zip(lines[::2], lines[1::2], "abc", strict=True):
        rows = table[table["name"] == name]
        np.testing.assert_array_equal(large[:, 0], rows["value"])
        assert np.round(large[:, 1]).tolist() == [0, 1]
        assert sorted(small[:, 0]) == sorted(each[each["name"] == name]["value"])
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["up", "down"] and axes.yaxis_inverted()


def test_dumbbells_join_published_values_with_ours(axes):
    table = series(xs=("up", "down"), names="ab")
    printed = table[["x", "name"]].assign(value=0.9).iloc[1:]
    panel = charts.dots(table, "x", LOOKS, "name", published=printed)
    panel.draw(axes, False)
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert sorted(x for line in hollow for x in line.get_xdata()) == [0.9] * 3
    joins = [path.vertices for lines in axes.collections if lines.get_linewidth()[0] > 2 for path in lines.get_paths()]
    assert sorted(join[0, 0] for join in joins) == sorted(table["value"].iloc[1:])
    assert panel.data["published"].isna().tolist() == [True, False, False, False] and len(panel.keys) == 3


def test_a_forest_has_a_tick_at_each_threshold(axes):
    looks = {"yes": Style("supported", charts.PAINT[0]), "no": Style("contradicted", charts.PAINT[1], "s")}
    table = pd.DataFrame({"label": ["one", "two"], "value": [0.2, -0.1], "low": [0.1, -0.3], "high": [0.3, 0.1]})
    table = table.assign(threshold=[0.05, 0.0], verdict=["yes", "no"])
    charts.forest(table, looks).draw(axes, False)
    ticks, *dots = axes.lines
    assert ticks.get_xdata().tolist() == [0.05, 0.0] and ticks.get_ydata().tolist() == [0, 1]
    assert [(d.get_xdata()[0], d.get_ydata()[0], d.get_color()) for d in dots] == [
        (0.2, 0, looks["yes"].colour),
        (-0.1, 1, looks["no"].colour),
    ]


def test_a_heat_map_says_its_values_in_per_cent(axes):
    table = pd.DataFrame({"x": [0, 30, 0, 30], "y": [0, 0, 1, 1], "value": [1.0, 0.5, 0.25, 0.0]})
    charts.heat(table, "x", "y").draw(axes, False)
    assert [text.get_text() for text in axes.texts] == ["100", "50", "25", "0"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 0.5], [0.25, 0]])


def test_a_matrix_has_a_dot_a_row_and_column(axes):
    table = pd.DataFrame({"check": list("ppqq"), "model": list("uvuv"), "verdict": ["yes", "no", "no", "yes"]})
    looks = {"yes": Style("raised", "#D55E00"), "no": Style("not raised", "#777777", hollow=True)}
    charts.matrix(table, "check", "model", "verdict", looks).draw(axes, False)
    yes, no = (sorted(map(tuple, points)) for points in drawn(axes))
    assert yes == [(0, 0), (1, 1)] and no == [(0, 1), (1, 0)]


def test_doses_show_trainings_and_their_mean(axes):
    each = pd.DataFrame({"dose": [0.1, 0.3, 0.5], "name": ["a", "a", "b"], "value": [1.0, 2.0, 4.0]})
    charts.doses(each, "dose", "name", LOOKS, line=0.2).draw(axes, False)
    line, small, large, *_ = drawn(axes)
    assert line[0, 0] == 0.2 and small.tolist() == [[0.1, 1], [0.3, 2]] and large.tolist() == [[0.2, 1.5]]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_wide_strip_of_pictures_stands_upright_on_a_phone(axes, narrow):
    images = [[np.full((3, 4, 4), 0.1 * j + 0.5 * i) for j in range(5)] for i in range(2)]
    panel = charts.strip(images, ["p", "q"], list("abcde"), data=pd.DataFrame({"n": [1]}))
    panel.draw(axes, narrow)
    spans = [np.diff(np.reshape(image.get_extent(), (2, 2))).ravel() for image in axes.images]
    assert len(spans) == 10 and np.allclose(np.abs(spans), 1)
    columns = {round(image.get_extent()[0], 3) for image in axes.images}
    assert len(columns) == (2 if narrow else 5) and panel.height[narrow] > (4 if narrow else 1)


# Labels.


def test_labels_are_spread_as_least_squares_would_do_it():
    draws = np.random.default_rng(1)
    for count in (1, 2, 3, 6):
        wanted, sizes = draws.uniform(0, 60, count), draws.uniform(5, 15, count)
        found = np.array(charts.spread(wanted, sizes, -1e6, 1e6))
        order = np.argsort(wanted)
        gaps = (sizes[order][1:] + sizes[order][:-1]) / 2
        assert (np.diff(found[order]) >= gaps - 1e-9).all()
        apart = [{"type": "ineq", "fun": lambda y, k=k, g=g: y[k + 1] - y[k] - g} for k, g in enumerate(gaps)]
        best = optimize.minimize(lambda y: ((y - wanted[order]) ** 2).sum(), wanted[order], constraints=apart)  # noqa: B023
        np.testing.assert_allclose(found[order], best.x, atol=1e-3)


def test_labels_stay_inside_where_they_fit():
    found = charts.spread([0, 1, 99, 100], [10] * 4, 0, 100)
    assert min(found) == 5 and max(found) == 95 and (np.diff(found) >= 10 - 1e-9).all()


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_at_the_ends_of_lines_do_not_overlap(narrow):
    looks = charts.styles(list("abcdef"), {k: f"a line of a longer name {k}" for k in "abcdef"})
    table = series(names="abcdef").assign(value=0.5)
    canvas = made(*(charts.curves(table, "x", "name", looks, title=t) for t in ("left", "right"))).draw(narrow)
    canvas.draw_without_rendering()
    boxes = [t.get_window_extent() for a in canvas.axes for t in a.texts if t.get_text().startswith("a line")]
    plt.close(canvas)
    assert len(boxes) == 12 and all(box.x1 <= canvas.bbox.x1 + 1 for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert (
            min(one.x1, other.x1) - max(one.x0, other.x0) < 0.5 or min(one.y1, other.y1) - max(one.y0, other.y0) < 0.5
        )


@pytest.mark.parametrize("narrow", [False, True])
def test_names_of_rows_do_not_overlap(narrow):
    names = ["a row whose name is much longer than one line of it", "another such row of some words", "short"]
    table = pd.DataFrame({"row": names, "value": [0.1, 0.2, 0.3]}).assign(low=0.0, high=0.5)
    canvas = made(charts.dots(table, "row", charts.styles(names))).draw(narrow)
    canvas.draw_without_rendering()
    boxes = [text.get_window_extent() for text in canvas.axes[0].get_yticklabels()]
    plt.close(canvas)
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes)) and min(b.x0 for b in boxes) >= 0


def test_ticks_are_written_as_people_write_them():
    assert [charts._short(x) for x in (0, 0.03125, 0.25, 0.5, 1, 16, 0.2)] == [
        "0",
        "1/32",
        "1/4",
        "0.5",
        "1",
        "16",
        "0.2",
    ]
    table = series().assign(value=[1.01, 1.04, 1.08] * 3)
    axis = made(charts.curves(table, "x", "name", LOOKS, axes={"yscale": "log"})).draw(False).axes[0]
    axis.figure.canvas.draw()
    shown = [text.get_text() for text in axis.get_yticklabels()]
    plt.close("all")
    assert shown and not any("×" in text or "^" in text for text in shown)
    table = series()
    axis = made(charts.curves(table, "x", "name", LOOKS, percent="y", axes={"ylim": (0, 1)})).draw(False).axes[0]
    assert [axis.yaxis.get_major_formatter()(value, 0) for value in (0, 0.2, -0.05)] == ["0", "20", "−5"]
    plt.close("all")


# What a page gets.


class Ids(HTMLParser):
    """Every id of a page, and what refers to one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.used: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.used += re.findall(r"url\(#([^)]+)\)", value or "")
            self.used += [value[1:]] if name == "href" and value and value.startswith("#") else []


def pair() -> tuple[Figure, Figure]:
    table = series()
    first = made(charts.curves(table, "x", "name", LOOKS, title="curves"), charts.dots(table, "x", LOOKS, "name"))
    return first, made(charts.curves(table.assign(value=0.4), "x", "name", LOOKS), name="another")


def test_drawings_are_well_formed_and_share_no_id():
    page = "".join(figure.html() for figure in pair())
    found = Ids(page)
    assert len(found.ids) == len(set(found.ids)) and set(found.used) <= set(found.ids) and found.used
    for figure in pair():
        for drawing in (figure.wide, figure.narrow):
            root = ElementTree.fromstring(drawing)
            assert root.tag == "svg" and not root.findall(".//style") and "font-family" not in drawing
            assert "font-size: ;" not in drawing and ("font-weight: 700" in drawing) == (figure.name == "made-up")
            assert "clip-path" in drawing and base.INK not in drawing and "currentColor" in drawing
            assert "\n" not in drawing


def test_a_drawing_is_the_same_every_time():
    (one, _), (two, _) = pair(), pair()
    assert one.html() == two.html()


@pytest.mark.parametrize(("drawing", "column"), [("narrow", PHONE), ("wide", 40 * 16)])
def test_text_is_large_enough(drawing, column):
    images = [[np.zeros((8, 8))] * 6] * 2
    notes = [["a note"] * 6] * 2
    strip = charts.strip(images, ["p", "q"], list("abcdef"), notes=notes, data=pd.DataFrame({"n": [1]}))
    table = pd.DataFrame({"x": [0, 30, 0, 30], "y": [0, 0, 1, 1], "value": [1.0, 0.5, 0.25, 0.0]})
    chain = charts.chain(pd.DataFrame({"part": ["one", "two"], "shape": ["[1]", "[2]"]}))
    first, _ = pair()
    for figure in (first, made(strip, chain), made(charts.heat(table, "x", "y"))):
        svg = getattr(figure, drawing)
        width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert len(sizes) == svg.count("<text") > 0 and min(sizes) * column / width >= 9


def test_alt_text_is_short_and_said_once_a_drawing():
    with pytest.raises(ValueError, match="a figure needs a caption and alt text"):
        made(charts.dots(series(), "x", LOOKS, "name"), alt=" ")
    with pytest.raises(ValueError, match="at most 250 characters, found 251"):
        made(charts.dots(series(), "x", LOOKS, "name"), alt="a" * 251)
    with pytest.raises(ValueError, match="found 'Made up'"):
        made(charts.dots(series(), "x", LOOKS, "name"), name="Made up")
    figure = made(charts.dots(series(), "x", LOOKS, "name"), alt='say "x"', caption="a < b")
    bundle, _ = figure._repr_mimebundle_()
    page = bundle["text/html"]
    assert page.count('role="img" aria-label="say &quot;x&quot;"') == 2
    assert (
        '<span class="hpat-number"></span>a &lt; b</figcaption>' in page
        and '<figure class="hpat" id="fig-made-up">' in page
    )
    assert bundle["text/plain"] == 'a < b\n[say "x"]'
    # Without a style sheet one drawing shows.
    assert page.count("display:none") == 1 and page.count("display:block") == 1


def test_the_data_of_a_figure_are_the_rows_it_drew():
    table = series()
    each = pd.concat([table.assign(seed=seed) for seed in (0, 1)])
    words = {"xlabel": "so far"}
    more = pd.concat([table, table.assign(name="not drawn", value=9.0)], ignore_index=True)
    figure = made(
        charts.curves(more, "x", "name", LOOKS, title="curves", ylabel="high"),
        charts.dots(more, "x", LOOKS, "name", each=each, **words),
    )
    assert figure.data["panel"].tolist() == ["curves: high"] * 9 + ["so far"] * 9
    for part in (figure.data[:9], figure.data[9:]):
        np.testing.assert_array_equal(part[["value", "low", "high"]], table[["value", "low", "high"]])
        assert part["name"].tolist() == [LOOKS[name].label for name in table["name"]]
    assert figure.data["each training"][9] == "; ".join([f"{table['value'][0]:.3g}"] * 2)
    csv = unquote(re.search(r'download="made-up.csv" href="data:text/csv;charset=utf-8,([^"]*)"', figure.html())[1])
    back = pd.read_csv(io.StringIO(csv))
    assert back.columns.tolist() == figure.data.columns.tolist()
    np.testing.assert_allclose(back["value"], figure.data["value"], rtol=5e-4)
    assert figure.html().count("<tr>") == len(figure.data) + 1


def test_a_figure_is_saved_as_what_its_suffix_says(tmp_path):
    figure, _ = pair()
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    for suffix, start in starts.items():
        figure.save(tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)


def luminance(colour: str) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines."""
    parts = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", PAGES)
def test_every_colour_is_seen_on_both_pages(page):
    colours = {*charts.PAINT, charts.GREY, *(source.colour for source in SOURCES.values())}
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(PAGES[page])))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_series_are_told_apart_without_colour():
    looks = charts.styles([str(number) for number in range(8)]).values()
    assert len({look.marker for look in looks}) == len({look.line for look in looks}) == 8


# Tables.


def test_tables_leave_out_what_is_empty_and_keep_numbers_whole():
    frame = pd.DataFrame({"on": ["", ""], "value": ["84.5 [80.1, 88.0]", "0.9 ± 0.1"], "none": ["–", "–"]})
    page = Table(frame, "A & B", "both").html()
    assert re.findall(r"<th [^>]*>(.*?)</th>", page) == ["value"]
    assert (
        "84.5\N{NO-BREAK SPACE}[80.1,\N{NO-BREAK SPACE}88.0]" in page
        and "0.9\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1" in page
    )
    assert '<figure class="hpat-table" id="tab-both"><figcaption><span class="hpat-number"></span>A &amp; B' in page
    assert "<details>" not in page and "id=" not in Table(frame, "A").html()
    assert percent(0.845, -0.01, 0.9) == "84.5 [−1.0, 90.0]" and percent(0.1, 0, 0.2, sign="+").startswith(
        "+10.0 [+0.0"
    )


def test_fonts_are_named_by_size_and_weight_alone():
    for style in ("font: 700 9px 'DejaVu Sans', sans-serif; fill: red", "font: 8px 'DejaVu Sans'", "fill: red"):
        found = base.FONT.sub(base._sized, style)
        assert "DejaVu" not in found and ("700" in style) == ("font-weight: 700" in found)
    assert base.FONT.sub(base._sized, "font-size: 8px; font-family: 'A'; fill: red") == "font-size: 8px; fill: red"


def test_a_table_without_rows_keeps_its_head():
    assert "<th" in Table(pd.DataFrame(columns=["a"]), "None").html()


def test_long_tables_are_folded():
    for rows, folded in ((12, False), (13, True)):
        page = Table(pd.DataFrame({"n": range(rows)}), "Numbers").html()
        assert ("<details><summary>All 13 rows</summary>" in page) == folded and page.count("<tr>") == rows + 1
