"""Answers: what a chapter's first screen and the pages of verdicts say, from records whose truth is known."""

import html.parser
import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from made_up import CHAPTER, World, forget, model, record
from typer.testing import CliRunner

from hpatlib import claims, cli, documents
from hpatlib.documents import hpat
from hpatlib.documents.hpat import study
from hpatlib.plots import answers
from hpatlib.runs import to_dict
from hpatlib.statistics import exact

ROOT = Path(__file__).parents[1]
EVEN = {("before",): 0.6, ("after",): 0.9}
QUANTITIES = {
    "gain": lambda o: o.accuracy["after"] - o.accuracy["before"],
    "share": lambda o, *, place: o.accuracy[place],
    "read": lambda o, *, reading: o.accuracy[reading],
    "printed": lambda: exact(1.0),
}


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    yield World(tmp_path, monkeypatch, QUANTITIES)
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "workflow"))
        patch.chdir(ROOT)
        yield importlib.import_module("pages")


class _Tags(html.parser.HTMLParser):
    """Fails where tags do not close in the order in which they opened."""

    VOID: ClassVar = frozenset({"input", "br", "img", "meta", "link", "rect", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_box_says_verdict_published_ours_basis_and_caveat(world):
    known = {"claim-0": "", "claim-1": ""}  # written down before it
    record(world.evidence, CHAPTER, ("place",), EVEN, claims=known)
    numbers = {"start": {"value": 0.5, "unit": "accuracy"}, "end": {"value": 0.8, "unit": "accuracy"}}
    about = {"title": "A document", "cite": "made2024", "order": 1, "ran": "a larger network"}
    world.write("published", {"document": about, "values": numbers})
    world.rule({"published": ["start", "end"]}, {"threshold": 0.5, "sentence": "It <b>soars</b>."})
    box = answers.answer(CHAPTER)
    _Tags(box.page)
    (judged, _) = world.judge()
    low, high = judged.quantity.interval()
    assert "Published: 50.0 % → 80.0 % (Figure 1)" in box.text
    assert f"Ours: gain +30.0 [{100 * low:+.1f}, {100 * high:+.1f}] points; the claim needs > 0.0 points" in box.text
    assert "C-NMC cells, 40 images a training" in box.text and "6 trainings" in box.text
    assert "clean accuracy 90.0 % (largest class 50.0 %)" in box.text
    assert "resnet50 (imagenet) at 64 px, laptop profile; the document ran a larger network." in box.text
    assert "1 supported, 1 contradicted of 2 claims" in box.page
    found = answers.findings(CHAPTER)
    _Tags(found.page)
    assert "<b>soars" not in found.page and "&lt;b&gt;soars" in found.page  # a claim is text, not markup
    assert 'id="claim-claim-0"' in found.page


def test_what_was_written_after_its_record_is_marked_and_in_no_count(world, pages):
    record(world.evidence, CHAPTER, ("place",), EVEN, claims={"claim-0": ""})
    world.rule({}, {"threshold": 0.5}, {"threshold": 0.5, "ours": True})
    judged = world.judge()
    assert [j.late for j in judged] == [False, True, True]
    assert "1 supported of 1 claim; 2 written down after the record, and not counted" in answers.answer(CHAPTER).page
    assert answers.said(judged[1]).endswith("This claim was written down after its record.")
    assert answers.place(judged[2]) == "Asked by us; Figure 1"
    assert pages.sentence(judged) == "Of 1 claim tested, 1 is supported and none contradicted."
    assert pages.forest({"made": judged}, {CHAPTER: "Figure 1"}).count("<circle") == 2
    assert "2 written after their records" in CliRunner().invoke(cli.app, ["claims"]).output


def test_counts_say_what_was_asked_by_us(world, pages):
    record(world.evidence, CHAPTER, ("place",), EVEN, claims={f"claim-{number}": "" for number in range(3)})
    world.rule({}, {"ours": True}, {"threshold": 0.5, "ours": True})
    told = "Of 3 claims tested, 2 are supported (1 asked by us) and 1 contradicted (1 asked by us)."
    assert pages.sentence(world.judge()) == told
    world.rule({"chapter": "", "quantity": "printed", "direction": "<", "ours": True})
    told = "Of 1 claim tested, none is supported and 1 contradicted (1 by printed numbers alone)."
    assert pages.sentence(world.judge()) == told  # once, whatever else it is


def test_readings_tell_claims_with_one_sentence_apart(world, pages):
    record(
        world.evidence,
        CHAPTER,
        ("reading",),
        {("searched",): 0.6, ("worst",): 0.9},
        claims={"claim-0": "", "claim-1": ""},
    )
    world.rule(*({"quantity": "read", "arguments": {"reading": reading}} for reading in ("searched", "worst")))
    rows = [pages.claim(j, {}) for j in world.judge()]
    assert "Searched: It rises." in rows[0] and "Worst case: It rises." in rows[1]


def test_what_one_search_leaves_is_called_an_upper_bound(world):
    record(world.evidence, CHAPTER, ("reading",), {("searched",): 0.6, ("worst",): 0.9})
    about = {"quantity": "read", "arguments": {"reading": "searched"}, "note": "What it leaves is an upper bound."}
    world.rule(about, {"quantity": "read", "arguments": {"reading": "worst"}})
    searched, worst = map(answers.said, world.judge())
    assert "an upper bound" in searched and "an upper bound" not in worst


def test_the_caveat_is_the_gate_that_forbids_an_answer(world):
    record(world.evidence, CHAPTER, ("place",), EVEN, trainings=2)
    world.rule({"gates": ["trainings"]}, gates={"trainings": 6})
    assert "Caveat: 2 trainings, and 6 are needed." in answers.answer(CHAPTER).text


def test_without_a_record_the_box_says_so_and_nothing_is_drawn(world):
    world.rule({})
    text = answers.answer(CHAPTER).text
    assert (
        "no run on real images is on record yet: HPAT_DATA=… hpat run made/fig1" in text
        and "in words, without a number" in text
    )
    assert answers.real(CHAPTER, lambda record: pytest.fail("nothing to draw")) is None
    assert answers.origin(CHAPTER) is None


def test_a_phantom_record_draws_nothing(world):
    from hpatlib.records import Images

    record(world.evidence, CHAPTER, ("place",), EVEN, data="phantom", images=[Images("phantom", "f00d", 120, 64)])
    world.rule({})
    assert answers.real(CHAPTER, lambda record: pytest.fail("phantoms are no evidence")) is None
    assert world.judge()[0].verdict == "not yet tested"


def test_real_draws_the_record_behind_the_verdict(world):
    record(world.evidence, CHAPTER, ("place",), EVEN)
    record(world.evidence, CHAPTER, ("place",), EVEN, profile="study", models=[model(s) for s in range(6)])
    world.rule({})
    assert answers.real(CHAPTER, lambda record: record.header.profile) == "study"
    assert "study-real" in str(answers.origin(CHAPTER).frame["value"].tolist())


@pytest.mark.parametrize("verdict", claims.VERDICTS)
def test_every_verdict_has_a_sign_and_a_class_with_a_colour(verdict):
    sign, words, kind = answers.BADGES[verdict]
    css = (ROOT / "book/_static/answers.css").read_text("utf-8")
    assert words == verdict and len(sign) == 1 and f".{kind} {{ --verdict: var(--{kind}); }}" in css
    assert len({b[0] for b in answers.BADGES.values()}) == len(answers.BADGES)  # readable without colour


def test_the_forest_puts_what_holds_right_of_the_line(world, pages):
    record(world.evidence, CHAPTER, ("place",), EVEN, claims={f"claim-{number}": "" for number in range(5)})
    world.rule(
        {},
        {"direction": "<"},
        {"threshold": 0.3},
        {"direction": "=", "threshold": 0.3, "margin": 0.5},
        {"direction": "=", "threshold": 0.9, "margin": 0.1},
    )
    judged = world.judge()
    places = [pages.beyond(j) for j in judged]
    low, high = judged[0].quantity.interval()
    assert places[0] == pytest.approx((0.3 / ((high - low) / 2), low / ((high - low) / 2), high / ((high - low) / 2)))
    assert places[1][0] == pytest.approx(-places[0][0]) and places[2][0] == pytest.approx(0, abs=1e-9)
    assert places[3][1] > 0 > places[4][2]
    for j, (_, least, most) in zip(judged, places, strict=True):
        if j.uncorrected == "supported":
            assert least > 0
        if j.uncorrected == "contradicted":
            assert most < 0
    plot = pages.forest({"made": judged}, {CHAPTER: "Figure 1: does it rise?"})
    _Tags(plot)
    assert (
        plot.count("<circle") == 2 * 5
        and plot.count('class="chapter">Figure 1<') == 2
        and 'href="claims.html#claim-0"' in plot
    )


def test_pages_name_every_claim_once_and_close_their_tags(pages):
    made = {name: content.decode() for name, content in pages.made(ROOT / "notebooks").items()}
    page = made["book/claims.md"]
    blocks = [block for text in made.values() for block in text.split("```{raw} html\n")[1:]]
    for block in blocks:
        _Tags(block.split("\n```")[0])
    every = [claim.id for _, claim in claims.all_claims()]
    for name in every:
        assert page.count(f'id="{name}"') == 1
    for document in documents.names():
        lists = "".join(
            made[f"book/made/{document}_{kind}.txt"] for kind in ("holds", "fails", "near", "undecided", "untested")
        )
        for claim in claims.of(document):
            assert lists.count(f'href="claims.html#{claim.id}"') == 1
    counts = made["book/made/counts.txt"]
    on_time = sum(not judged.late for judged in claims.ledger())
    assert f'aria-label="{on_time} claims by verdict"' in counts
    numbers = [int(number) for number in re.findall(r"<b>(\d+)</b>", counts)]
    assert sum(numbers) == on_time


def test_tables_say_how_networks_were_trained_and_treated(pages):
    assert pages.recipe({}) == "20 epochs of batches of 16, 0.001, × 0.1 every 10"  # the defaults
    flips = {"epochs": 15, "batch_size": 32, "lr": 3e-4, "decay": 1, "patience": 5, "augment": "flips"}
    assert pages.recipe(flips) == "15 epochs of batches of 32, 0.0003, flips, patience 5"
    strategies = study.adversaries(hpat.choose("paper", "real", 0))
    plain = hpat.choose("paper", "real", 0).run
    runs = {name: to_dict(replace(plain, adversary=adversary)) for name, adversary in strategies.items()}
    assert pages.arm(runs["Adv_h"]) == "PGD, 6 steps, at 6/255 + transforms up to 180° and 12 px"
    assert pages.arm(runs["Adv_FGSM"]) == "FGSM at 6/255" and pages.arm(runs["Standard"]) == ""
    assert pages.arm(to_dict(replace(plain, adversary=strategies["Adv_RT"], mixbn=True))).endswith("px + MixBN")


def test_a_spark_shows_each_training_from_a_loss_of_zero(pages):
    drawn = pages.spark([[0.8, 0.4, 0.0], [0.4, 0.2]])
    _Tags(drawn.split("</svg>")[0] + "</svg>")
    lines = re.findall(r"points='([^']*)'", drawn)
    assert lines == ["2.0,2.0 50.0,12.0 98.0,22.0", "2.0,12.0 50.0,17.0"] and drawn.endswith("0.60 → 0.10")
    assert pages.spark([[0.5]]) == ""  # one epoch is no curve


def test_hours_count_a_training_once_and_say_between_what_they_lie(pages, world):
    shared, own = model(0, seconds=3600.0), model(1, seconds=7200.0)
    made = record(world.evidence, CHAPTER, ("place",), EVEN)
    first, later = (
        replace(made, header=msgspec.structs.replace(made.header, models=models, seconds=seconds))
        for models, seconds in (([shared], 1800.0), ([shared, own], 10800.0))
    )
    table = pages.spent([first, later])
    assert "| all |  |  |  | 3.50 | 3.00 |" in table
    # 1 hour of trainings, then 3 of a run that did its own two hours of them, or none.
    assert "together 4 to 6 hours" in table


def test_a_card_says_how_much_a_leak_flatters(pages, world):
    made = record(world.evidence, CHAPTER, ("place",), EVEN)

    def right(split: str, *several: float):
        run = {"model": "resnet50", "weights": "imagenet", "dataset": "busi", "size": 64, "split_by": split}
        about = {"run": run | {"recipe": {}}, "baseline": True}
        return [model(n, key=f"{split}-{n}", accuracy=value, **about) for n, value in enumerate(several)]

    def told(*models) -> str:
        return pages.flattery([replace(made, header=msgspec.structs.replace(made.header, models=list(models)))], "busi")

    patient, image = right("patient", 0.6, 0.8), right("image", 0.7, 0.9)
    assert '70.0 % of its test images right with `by="patient"` and 80.0 %' in told(*patient, *image)
    assert "(2 trainings" in told(*patient, *image) and "(2 and 1 trainings" in told(*patient, *image[:1])
    assert told(*patient) == told(*image) == "How much, no record says yet."


def test_an_aim_stands_beside_every_training_on_the_most_images_once(pages, world):
    made, losses = record(world.evidence, CHAPTER, ("place",), EVEN), (1.0, 0.5)

    def kept(*accuracies: float, first: int = 0, split: str = "patient", train: int = 100):
        run = {"dataset": "chest_ct", "model": "tf_efficientnet_lite0", "weights": "imagenet", "split_by": split}
        about = {"run": run | {"real": True}, "baseline": True, "train": train, "test": 20, "losses": losses}
        models = [model(first + n, key=f"{split}-{first + n}", accuracy=a, **about) for n, a in enumerate(accuracies)]
        return replace(made, header=msgspec.structs.replace(made.header, models=models))

    shared, more = kept(0.9, 0.94), kept(0.94, 0.98, first=1)
    table = pages.aims([shared, more, kept(0.1, first=5, train=50), kept(0.2, first=6, split="image")])
    assert "| chest_ct | EfficientNet-Lite0 (ImageNet) | accuracy | 3 | 0.92 | 0.940 (0.900 to 0.980) |" in table
    assert "| reached |" in table and "missed" not in table
    assert "**missed**" in pages.aims([kept(0.9)]) and "No network was measured yet." in pages.aims([])
