"""Claims: every gate and verdict from records whose truth is known; what was changed afterwards is found."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_up import CHAPTER, World, forget, header, model, record
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW
from typer.testing import CliRunner

from hpatlib import claims, cli, documents, records
from hpatlib.claims import Claim
from hpatlib.documents.hpat import quantities as hpat_quantities
from hpatlib.records import Images
from hpatlib.statistics import average, exact, greatest, least, over_trainings

PLACES = ("place",)
EVEN = {("before",): 0.6, ("after",): 0.9}


def several(values):
    return [over_trainings(part, range(len(part))) for part in values]


QUANTITIES = {
    "gain": lambda o: o.accuracy["after"] - o.accuracy["before"],
    "share": lambda o, *, place: o.accuracy[place],
    "smallest": lambda o: least(*(o.accuracy[name] - o.accuracy["before"] for name in ("after", "later"))),
    "given": lambda o, *, values: over_trainings(values, range(len(values))),
    "lowest": lambda o, *, values: least(*several(values)),
    "highest": lambda o, *, values: greatest(*several(values)),
    "printed": lambda *, value: exact(value),
}


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    yield World(tmp_path, monkeypatch, QUANTITIES)
    monkeypatch.undo()
    forget()


def verdict(world: World) -> str:
    (judged,) = world.judge()
    assert judged.verdict == judged.uncorrected
    return judged.verdict


# The claims that there are.


def test_every_documents_claims_load_with_ids_of_their_own_and_fitting_quantities():
    every = claims.all_claims()
    ids = [claim.id for _, claim in every]
    assert len(ids) == len(set(ids)) > 100
    assert {document for document, _ in every} == set(documents.names())
    chapters = {path.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for path in NOTEBOOKS}
    for document, claim in every:
        assert claim.chapter in {"", *chapters}, claim.id
        assert callable(getattr(documents.quantities(document), claim.quantity))
        assert claim.sentence.endswith(".") and claim.place and claim.measure
        assert claim.margin is None or claim.margin > 0
        assert len(claims.hashed(document, claim)) == 16
    assert len({claims.hashed(document, claim) for document, claim in every}) > 0.9 * len(every)


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.md"))


def test_what_is_committed_fits_together():
    assert claims.tampered() == []


PUBLISHED = Path(__file__).parent / "published.json"


def answered() -> dict[str, list]:
    """Every claim that is measured or printed: its verdict, and its effect and interval in four digits."""
    found = {j.claim.id: (j.verdict, j.quantity) for j in claims.ledger() if j.quantity is not None}
    return {name: [v, *(float(f"{x:.4g}") for x in (q.value, *q.interval()))] for name, (v, q) in found.items()}


def test_published_answers_change_only_where_somebody_says_so():
    """No change of the code moves an answer in silence; a new record does, aloud."""
    now, then = answered(), json.loads(PUBLISHED.read_text("utf-8"))
    assert now.keys() == then.keys(), f"renew {PUBLISHED.name}: python tests/test_claims.py"
    for name, (verdict, *numbers) in now.items():
        renew = f"{name}: if it should, renew {PUBLISHED.name} (python tests/test_claims.py) and say why"
        assert verdict == then[name][0] and numbers == pytest.approx(then[name][1:], rel=2e-3, abs=1e-6), renew


def test_a_chapters_check_is_the_hash_of_its_claims():
    found = claims.check("hpat/fig6_stbo_vs_grid_search")
    asked = ("curve", "efficiency", "efficiency-roi", "peers", "missed")
    assert sorted(found) == sorted(f"fig6-{what}-{box}" for box in (30, 180) for what in asked)
    assert found.items() <= {name: lock["hash"] for name, lock in claims.locked("hpat").items()}.items()
    assert claims.check("hpat/nowhere") == {}


# Claims that cannot be judged.


@pytest.mark.parametrize(
    ("claim", "gates", "message"),
    [
        ({"quantity": "lift"}, {}, "claim 'claim-0' needs the quantity 'lift': made/quantities.py has none"),
        ({"arguments": {"place": "after"}}, {}, "claim 'claim-0' and its quantity 'gain' do not fit: .*place"),
        ({"quantity": "share"}, {}, "'share' do not fit: missing a required .*argument: 'place'"),
        ({"gates": ["luck"]}, {"luck": 3}, "claim 'claim-0' has unknown gates luck: choose of trainings, competent"),
        ({"gates": ["floor", "dose"]}, {"floor": 0.1}, "made/claims.toml gives no number for the gates dose"),
        ({"direction": "="}, {}, "claim 'claim-0' asks for equality: it needs a margin"),
        ({"direction": ">="}, {}, "Invalid enum value '>='"),
        ({"treshold": 1}, {}, "unknown field `treshold`"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_before_anything_is_measured(world, claim, gates, message):
    world.rule(claim, gates=gates)
    for ask in (world.judge, claims.all_claims, lambda: claims.check(CHAPTER), claims.tampered):
        with pytest.raises(ValueError, match=message):
            ask()


def test_ids_occur_once_in_a_document_and_gates_need_a_table(world):
    world.rule({"id": "a"}, {"id": "a"})
    with pytest.raises(ValueError, match=r"made/claims\.toml lists a more than once"):
        world.judge()
    world.write("claims", {"claims": [{"id": "a", **_filled({"gates": ["trainings"]})}]})
    with pytest.raises(ValueError, match="gives no number for the gates trainings"):
        world.judge()
    with pytest.raises(ValueError, match="unknown document 'hapt': choose one of made"):
        claims.of("hapt")


def test_an_id_of_two_documents_is_refused(world):
    world.rule({"id": "same"})
    shutil.copytree(world.documents / "made", world.documents / "other")
    forget()
    with pytest.raises(ValueError, match="more than one document has a claim 'same': give it another id in one"):
        claims.all_claims()


def _filled(claim: dict) -> dict:
    from made_up import CLAIM

    return CLAIM | claim


# Verdicts.


def test_supported_and_contradicted_are_intervals_beyond_the_threshold(world):
    rng = np.random.default_rng(0)
    right = {("before",): rng.random((6, 40)) < 0.5, ("after",): rng.random((6, 40)) < 0.8}
    record(world.evidence, CHAPTER, PLACES, right)
    gain = right["after",].mean() - right["before",].mean()
    for threshold, direction, expected in [
        (0.0, ">", "supported"),
        (0.0, "<", "contradicted"),
        (0.6, ">", "contradicted"),
        (0.6, "<", "supported"),
        (gain + 0.01, ">", "inconclusive"),
        (gain - 0.01, "<", "inconclusive"),
    ]:
        world.rule({"threshold": threshold, "direction": direction})
        (judged,) = world.judge()
        assert judged.verdict == expected and judged.quantity.value == pytest.approx(gain)
        low, high = judged.quantity.interval()
        assert (low > threshold or high < threshold) == (expected != "inconclusive")


def test_an_effect_within_the_margin_is_no_difference(world):
    rng = np.random.default_rng(1)
    before = rng.random((6, 600)) < 0.8
    after = np.where(rng.random((6, 600)) < 0.05, rng.random((6, 600)) < 0.8, before)
    record(world.evidence, CHAPTER, PLACES, {("before",): before, ("after",): after}, images=600)
    expected = {None: "inconclusive", 0.1: "near its threshold", 0.001: "inconclusive"}
    for margin, verdict_ in expected.items():
        world.rule({"margin": margin} if margin else {})
        (judged,) = world.judge()
        assert judged.verdict == verdict_
        low, high = judged.quantity.interval(0.9)
        if margin:
            assert (-margin < low and high < margin) == (verdict_ == "near its threshold")
        assert bool(judged.why) == (verdict_ == "inconclusive") and judged.why.endswith(
            ("would decide it", "threshold", "")
        )


def test_inconclusive_says_what_would_decide_it(world):
    rng = np.random.default_rng(2)
    right = {(name,): rng.random((6, 30)) < share for name, share in (("before", 0.6), ("after", 0.61))}
    record(world.evidence, CHAPTER, PLACES, right, images=30)
    world.rule({})
    (judged,) = world.judge()
    assert judged.verdict == "inconclusive" and judged.why == f"{judged.quantity.would_decide(0.0)} would decide it"


def test_nothing_counts_without_a_record_of_real_images_that_has_the_cells(world):
    world.rule({}, {"quantity": "share", "arguments": {"place": "later"}}, {"quantity": "smallest"})
    assert {(j.verdict, j.why) for j in world.judge()} == {("not yet tested", "no record of real images")}
    drawn = {"data": "phantom", "images": [Images("phantom-cells", "f00d", 120, 64)]}
    record(world.evidence, CHAPTER, PLACES, EVEN, profile="paper", **drawn)
    assert {j.why for j in world.judge()} == {"no record of real images"}
    record(world.evidence, CHAPTER, PLACES, EVEN, profile="smoke")
    gain, later, smallest = world.judge()
    assert gain.verdict == "supported" and gain.record.header.profile == "smoke"
    assert later.verdict == smallest.verdict == "not yet tested" and later.record is gain.record
    assert later.why == "no accuracy at place='later': measured were before; after"
    assert later.effect == later.measured_on == "–" and later.trainings == 0


def test_printed_numbers_need_no_record(world):
    about = {"chapter": "", "quantity": "printed", "measure": "sum", "unit": "images"}
    world.rule(
        {**about, "arguments": {"value": 2.0}},
        {**about, "arguments": {"value": -2.0}},
        {**about, "arguments": {"value": 0.0}},
        {**about, "arguments": {"value": 0.2}, "direction": "=", "margin": 0.5},
        {**about, "arguments": {"value": 0.7}, "direction": "=", "margin": 0.5},
    )
    judged = world.judge()
    assert [j.verdict for j in judged] == ["supported", "contradicted", "inconclusive", "supported", "contradicted"]
    assert judged[2].why == "the effect lies at the threshold"
    assert judged[0].measured_on == "printed numbers"
    assert judged[0].effect == "sum +2.00 images; the claim needs > 0.0 images"
    assert judged[3].effect.endswith("the claim needs = 0.0 ± 0.500 images")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.1234, "points", "12.3"),
        (-0.1234, "points", "−12.3"),
        (0.1234, "% of right answers", "12.3"),
        (0.0004, "points", "0.0"),
        (0.1234, "nats", "0.123"),
        (12.34, "nats", "12.3"),
        (1234.5, "images", "1234.5"),
        (0.0, "nats", "0.0"),
        (math.inf, "nats", "inf"),
    ],
)
def test_effects_are_shown_in_their_unit(value, unit, expected):
    about = {name: "" for name in ("id", "place", "sentence", "quantity", "measure")}
    assert Claim(**about, threshold=0, direction=">", unit=unit).show(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(0.85, "supported"), (0.7, "contradicted"), (0.9, "inconclusive"), (0.8, "inconclusive")]
)
def test_equality_holds_within_its_margin(world, share, expected):
    """The share 0.85 ± 0.05 with 600 images: an end of the margin is met at 0.9 and 0.8."""
    right = np.random.default_rng(3).random((6, 600)) < share
    record(world.evidence, CHAPTER, PLACES, {("after",): right}, images=600)
    rule = {"quantity": "share", "arguments": {"place": "after"}, "direction": "=", "threshold": 0.85, "margin": 0.05}
    world.rule(rule)
    (judged,) = world.judge()
    assert judged.verdict == expected
    low, high = judged.quantity.interval(0.9)
    assert (low > 0.8 and high < 0.9) == (expected == "supported")


def test_equality_asks_for_what_would_carry_the_interval_off_its_margin(world):
    """Right at the printed value, many images would decide: not the distance from that value, which is nothing."""
    rng = np.random.default_rng(0)
    record(world.evidence, CHAPTER, PLACES, {("after",): rng.random((6, 40)) < 0.84}, images=40)
    rule = {"quantity": "share", "arguments": {"place": "after"}, "direction": "=", "threshold": 0.845, "margin": 0.05}
    world.rule(rule)
    (judged,) = world.judge()
    nearer = min((0.795, 0.895), key=lambda end: abs(judged.quantity.value - end))
    assert judged.verdict == "inconclusive" and judged.why == f"{judged.quantity.would_decide(nearer)} would decide it"


# Verdicts over trainings against scipy and statsmodels, with Holm's correction within the document.


def family(seed: int) -> list[dict]:
    """Claims about given numbers: some far from their threshold, some near it, some neither."""
    rng, made = np.random.default_rng(seed), []
    for number in range(7):
        values = rng.normal(rng.choice([0, 0.002, 0.03, 0.2]), 0.02, 6).tolist()
        rule = {"quantity": "given", "arguments": {"values": values}, "direction": "><"[number % 2]}
        if number % 3 == 0:
            rule["margin"] = 0.05
        if number == 5:
            rule |= {"direction": "=", "margin": 0.05}
        made.append(rule)
    return made


def expected_verdict(rule: dict, away: float, near: float) -> str:
    values = np.array(rule["arguments"]["values"])
    if rule["direction"] == "=":
        return "supported" if near < 0.05 else "contradicted" if away < 0.05 else "inconclusive"
    if away < 0.05:
        return "supported" if (values.mean() > 0) == (rule["direction"] == ">") else "contradicted"
    return "near its threshold" if near < 0.05 else "inconclusive"


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_are_t_tests_with_holms_correction(world, seed):
    record(world.evidence, CHAPTER, PLACES, EVEN)
    rules = family(seed)
    world.rule(*rules)
    away, near = [], []
    for rule in rules:
        values, margin = np.array(rule["arguments"]["values"]), rule.get("margin")
        if rule["direction"] == "=":
            beyond = stats.ttest_1samp(values, margin, alternative="greater").pvalue
            below = stats.ttest_1samp(values, -margin, alternative="less").pvalue
            away.append(min(1, 2 * min(beyond, below)))
        else:
            away.append(stats.ttest_1samp(values, 0).pvalue)
        near.append(DescrStatsW(values).ttost_mean(-margin, margin)[0] if margin else 1.0)
    corrected = zip(multipletests(away, method="holm")[1], multipletests(near, method="holm")[1], strict=True)
    judged = world.judge()
    assert [j.verdict for j in judged] == [expected_verdict(r, *p) for r, p in zip(rules, corrected, strict=True)]
    alone = zip(away, near, strict=True)
    assert [j.uncorrected for j in judged] == [expected_verdict(r, *p) for r, p in zip(rules, alone, strict=True)]


def test_what_is_decided_alone_and_not_among_many_says_so(world):
    """One effect with p = 0.02 beside four with p = 0.5: 0.02 alone, 0.1 after Holm's correction."""
    record(world.evidence, CHAPTER, PLACES, EVEN)

    def at(p: float) -> dict:
        shape = np.array([-1.0, 1, -1, 1, -1, 1])
        t = stats.t.isf(p / 2, 5)
        return {"quantity": "given", "arguments": {"values": (shape + t * shape.std(ddof=1) / math.sqrt(6)).tolist()}}

    world.rule(at(0.02), *[at(0.5)] * 4)
    first, *others = world.judge()
    assert (first.verdict, first.uncorrected) == ("inconclusive", "supported")
    assert {j.uncorrected for j in others} == {"inconclusive"}
    assert claims.table([first])["verdict"][0].startswith("inconclusive (supported before correction), ")
    world.rule(at(0.02), *[{**at(0.5), "gates": ["trainings"]}] * 4, gates={"trainings": 9})
    assert world.judge()[0].verdict == "supported"  # what a gate holds back is no part of the family
    (alone,) = claims.judge("made", [CHAPTER])[:1]
    assert alone.verdict == "supported"


def test_the_correction_is_over_the_document_even_where_one_chapter_is_asked_for(world):
    for chapter in (CHAPTER, "made/fig2"):
        record(world.evidence, chapter, PLACES, EVEN)
    shape = np.array([-1.0, 1, -1, 1, -1, 1])
    value = (shape + stats.t.isf(0.015, 5) * shape.std(ddof=1) / math.sqrt(6)).tolist()  # p = 0.03
    rule = {"quantity": "given", "arguments": {"values": value}}
    world.rule(rule, {**rule, "chapter": "made/fig2"})
    (one,) = claims.ledger("made/fig2")
    assert one.claim.chapter == "made/fig2" and (one.verdict, one.uncorrected) == ("inconclusive", "supported")
    assert len(claims.ledger()) == 2


@pytest.mark.parametrize(
    ("kind", "parts", "expected"),
    [
        ("lowest", [0.3, 0.4, 0.5], "supported"),
        ("lowest", [0.3, 0.4, 0.0], "inconclusive"),
        ("lowest", [0.3, 0.4, -0.2], "contradicted"),
        ("highest", [-0.3, -0.4, -0.5], "supported"),
        ("highest", [-0.3, -0.4, 0.0], "inconclusive"),
        ("highest", [-0.3, -0.4, 0.2], "contradicted"),
    ],
)
def test_a_claim_about_several_holds_where_each_part_does(world, kind, parts, expected):
    record(world.evidence, CHAPTER, PLACES, EVEN)
    noise = np.array([-0.01, 0.02, -0.02, 0.01, 0.03, -0.03])
    values = [(part + noise).tolist() for part in parts]
    world.rule({"quantity": kind, "arguments": {"values": values}, "direction": ">" if kind == "lowest" else "<"})
    (judged,) = world.judge()
    assert judged.verdict == expected
    assert judged.quantity.value == pytest.approx((min if kind == "lowest" else max)(parts))


def test_finding_the_least_below_allows_for_having_looked_at_all(world):
    """A part with p = 0.03 contradicts on its own, and not as the least of three."""
    record(world.evidence, CHAPTER, PLACES, EVEN)
    shape = np.array([-1.0, 1, -1, 1, -1, 1])
    low = (shape - stats.t.isf(0.015, 5) * shape.std(ddof=1) / math.sqrt(6)).tolist()
    high = (shape + 20).tolist()
    rule = {"quantity": "lowest"}
    world.rule({**rule, "arguments": {"values": [low]}})
    assert verdict(world) == "contradicted"
    world.rule({**rule, "arguments": {"values": [low, high, high]}})
    assert verdict(world) == "inconclusive"


# Gates.


def gated(world: World, gate: str, number: object, **claim) -> tuple[str, str]:
    world.rule({"gates": [gate], **claim}, gates={gate: number})
    (judged,) = world.judge()
    assert judged.quantity is not None
    return judged.verdict, judged.why


def test_the_gate_of_trainings(world):
    for count, told in ((1, "1 training, and 6 are needed"), (5, "5 trainings, and 6 are needed")):
        record(world.evidence, CHAPTER, PLACES, EVEN, trainings=count)
        time.sleep(0.01)
        assert gated(world, "trainings", 6) == ("cannot tell", told)
        assert gated(world, "trainings", count)[0] != "cannot tell"
        assert gated(world, "trainings-spread", 6) == ("cannot tell", told)  # a number of its own
    untrained = [model(None, key=f"m{k}") for k in range(6)]
    record(world.evidence, CHAPTER, PLACES, EVEN, trainings=1, models=untrained, profile="study")
    assert gated(world, "trainings", 6)[0] != "cannot tell"  # none is drawn


def test_the_gate_of_competence(world):
    weak = [model(k, key=f"m{k}", baseline=True, accuracy=0.5 + 0.04 * k, trivial=0.55) for k in range(6)]
    record(world.evidence, CHAPTER, PLACES, EVEN, models=weak)
    told = (
        "resnet50 (imagenet), cnmc, trained on clean images, beats answering the largest class by 5.0 points on "
        "average, and 10 are needed"
    )
    assert gated(world, "competent", 0.1) == ("cannot tell", told)
    assert gated(world, "competent", 0.049)[0] == "supported"


def test_adversarial_trainings_are_as_competent_as_their_networks_clean_training(world):
    right = {("Standard", "after"): 0.9, ("Adv_h", "after"): 0.9, ("Adv_h", "before"): 0.5}

    def models(network: str, clean: float, split: str) -> list:
        run = {"model": network, "weights": "imagenet", "dataset": "cnmc", "real": True, "split_by": split}
        made = [model(k, key=f"s{k}", baseline=True, accuracy=clean) for k in range(6)]
        return made + [model(k, key=f"h{k}", accuracy=0.1, run=run) for k in range(6)]

    quantities = documents.quantities("made")
    quantities.gain = lambda o: o.accuracy["Adv_h", "after"] - o.accuracy["Adv_h", "before"]
    documents.quantities = lambda document: quantities
    for profile, network, clean, split, expected in (
        ("smoke", "resnet50", 0.9, "patient", "supported"),  # its own weakness is no matter
        ("laptop", "resnet50", 0.52, "patient", "cannot tell"),
        ("study", "vgg16", 0.9, "patient", "cannot tell"),  # another network's clean training says nothing
        ("paper", "resnet50", 0.9, "image", "cannot tell"),  # nor does one that was tested on its own patients
    ):
        given = {"profile": profile, "by": "training", "models": models(network, clean, split)}
        record(world.evidence, CHAPTER, ("training", "place"), right, **given)
        assert gated(world, "competent", 0.1)[0] == expected, profile


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (0.0, 0.02, "2 of 2 values of accuracy compared are at the floor"),
        (1.0, 0.98, "2 of 2 values of accuracy compared are at the ceiling"),
        (0.0, 0.04, ""),
        (1.0, 0.96, ""),
        (0.0, 1.0, ""),
    ],
)
def test_the_gate_of_floor_and_ceiling(world, before, after, told):
    record(world.evidence, CHAPTER, PLACES, {("before",): before, ("after",): after}, images=100)
    found, why = gated(world, "floor", 0.02)
    assert (found == "cannot tell") == bool(told) and (not told or why == told)


def test_a_smallest_difference_at_the_floor_is_none(world):
    """One part compares 0.5 with 0.0, the other 0.0 with 0.0, which says nothing about the least of the two."""
    record(world.evidence, CHAPTER, PLACES, {("before",): 0.0, ("after",): 0.5, ("later",): 0.0}, images=100)
    assert gated(world, "floor", 0.02, quantity="smallest")[0] == "cannot tell"
    assert gated(world, "floor", 0.02)[0] == "supported"


def test_most_of_a_mean_at_the_floor_is_none(world):
    """Differences of many cells, of which most say nothing: cells that are named alike after a choice count apart."""
    cells = {("before", f"{k}/255"): 0.0 for k in range(5)} | {("after", f"{k}/255"): 0.0 for k in range(1, 5)}
    quantities = documents.quantities("made")
    count = 1

    def gain(o):
        several = [o.where(eps=f"{k}/255").accuracy for k in range(count)]
        return average(*(accuracy["after"] - accuracy["before"] for accuracy in several))

    quantities.gain = gain
    documents.quantities = lambda document: quantities
    record(world.evidence, CHAPTER, ("place", "eps"), cells | {("after", "0/255"): 0.5}, images=100, by="place")
    # Of two cells in an arm one is off the floor, which is enough.
    for count, expected in ((1, "supported"), (2, "supported"), (3, "cannot tell"), (5, "cannot tell")):
        found, why = gated(world, "floor", 0.02)
        assert found == expected, count
    assert why == "9 of 10 values of accuracy compared are at the floor"


def test_one_share_beside_a_threshold_may_be_at_the_floor(world):
    record(world.evidence, CHAPTER, PLACES, {("before",): 0.0, ("after",): 1.0}, images=100)
    assert gated(world, "floor", 0.02, quantity="share", arguments={"place": "after"}, threshold=0.9)[0] == "supported"


def test_the_gate_of_what_is_compared(world):
    """A treatment that leaves one answer for all images is no robustness, whatever its network does without it."""

    def models(treated: float) -> list:
        run = {"model": "resnet50", "weights": "imagenet", "dataset": "cnmc", "real": True}
        made = [model(k, key=f"s{k}", baseline=True, accuracy=0.9, trivial=0.5) for k in range(6)]
        hard = run | {"adversary": {"eps": 0.1}}
        arms = [
            model(k, key=f"h{k}", accuracy=treated + 0.02 * k, trivial=0.5, run=hard | {"spread": k}) for k in range(6)
        ]
        return made + arms

    quantities = documents.quantities("made")
    quantities.gain = lambda o: o.accuracy["Adv_h", "after"] - o.accuracy["Standard", "after"]
    documents.quantities = lambda document: quantities
    right = {("Standard", "after"): 0.0, ("Adv_h", "after"): 0.5}
    for profile, treated, expected in (("smoke", 0.6, "supported"), ("laptop", 0.54, "cannot tell")):
        given = {"profile": profile, "by": "training", "models": models(treated)}
        record(world.evidence, CHAPTER, ("training", "place"), right, **given)
        found, why = gated(world, "able", 0.1)
        assert found == expected and gated(world, "competent", 0.1)[0] == "supported"
    assert "beats answering the largest class of clean images by 9.0 points" in why and "against an adversary" in why


def test_the_gate_of_a_dose(world):
    models = [model(k, key=f"m{k}", dose={"mean_spread": 0.001 * k} if k else {}) for k in range(6)]
    record(world.evidence, CHAPTER, PLACES, EVEN, models=models)
    told = "a treatment did too little: its mean spread is 0.0030 on average, and 0.01 is needed"
    assert gated(world, "dose", {"mean_spread": 0.01}) == ("cannot tell", told)
    assert gated(world, "dose", {"mean_spread": 0.003})[0] == "supported"
    assert gated(world, "dose", {"texture": 0.003}) == ("cannot tell", "no dose 'texture' was recorded")


def alike(world: World, count: int, **claim) -> tuple[str, str]:
    """The verdict where every image is right after, and half of them before, in every training."""
    half = np.tile(np.arange(count) % 4 < 2, (6, 1))
    right = {("before",): half, ("after",): np.ones((6, count), bool)}
    record(world.evidence, CHAPTER, PLACES, right, images=count)
    time.sleep(0.01)  # a file is known by its age
    world.rule({"quantity": "share", "arguments": {"place": "after"}, **claim})
    (judged,) = world.judge()
    low, high = judged.quantity.interval()
    assert low == high == 1
    return judged.verdict, judged.why


def test_outcomes_that_are_all_alike_may_still_hide_a_few_in_n(world):
    """A hundred right of a hundred, in groups of two that may go together: of 50, a share of 0.95 would give that now
    and then, 0.9 hardly ever."""
    told = "all outcomes are alike, and 50 images, patients or groups are too few to tell from the threshold"
    assert alike(world, 100, threshold=0.95) == ("cannot tell", told)
    assert alike(world, 100, threshold=0.9) == ("supported", "")
    assert alike(world, 200, threshold=0.95) == ("supported", "")
    equal = {"direction": "=", "threshold": 1.0}
    assert alike(world, 100, margin=0.1, **equal) == ("supported", "")  # far from either end of the margin
    assert alike(world, 100, margin=0.05, **equal) == ("cannot tell", told)
    assert alike(world, 100, direction="=", threshold=0.8, margin=0.05) == ("contradicted", "")
    printed = {"chapter": "", "quantity": "printed", "arguments": {"value": 1e-6}}
    world.rule(printed)
    assert verdict(world) == "supported"  # a printed number hides nothing


def test_the_first_gate_that_is_not_passed_is_named(world):
    record(world.evidence, CHAPTER, PLACES, {("before",): 0.0, ("after",): 0.0}, trainings=2)
    world.rule({"gates": ["trainings", "floor"]}, {"gates": ["floor", "trainings"]}, gates={"trainings": 6, "floor": 0})
    assert [j.why.split()[1] for j in world.judge()] == ["trainings,", "of"]


# Claims that came after their records.


def test_a_claim_stays_late_for_the_same_models_and_not_for_others(world):
    world.rule({})
    record(world.evidence, CHAPTER, PLACES, EVEN)
    assert claims.lock() == ["claim-0"] and world.judge()[0].late
    seen = world.lock()["claim-0"]["seen"]
    # Measured once more, from the same models: the record knows the claim now, and so did who wrote it the effect.
    record(world.evidence, CHAPTER, PLACES, EVEN, claims=claims.check(CHAPTER))
    assert world.judge()[0].late and claims.counted(world.judge())["supported"] == 0
    record(world.evidence, CHAPTER, PLACES, EVEN, trainings=7, claims=claims.check(CHAPTER))
    assert not world.judge()[0].late and claims.counted(world.judge())["supported"] == 1
    assert claims.lock() == [] and world.lock()["claim-0"]["seen"] == seen


def test_a_claim_that_no_record_could_judge_has_seen_nothing(world):
    printed = {"chapter": "", "quantity": "printed", "arguments": {"value": 1.0}}
    world.rule({}, {"quantity": "share", "arguments": {"place": "later"}}, printed)
    record(world.evidence, CHAPTER, PLACES, EVEN)
    claims.lock()
    assert ["seen" in world.lock()[f"claim-{number}"] for number in range(3)] == [True, False, False]


def test_late_claims_change_no_verdict_of_the_others(world):
    """Holm's correction is among those on time, whatever is added afterwards."""
    world.rule({})
    record(world.evidence, CHAPTER, PLACES, EVEN)
    edge = world.judge()[0].quantity.interval(0.99)[0] - 1e-6  # p = 0.01
    world.rule({"threshold": edge}, *({"threshold": 0.29} for _ in range(40)))
    for on_time, expected in ((41, "inconclusive"), (1, "supported")):
        record(world.evidence, CHAPTER, PLACES, EVEN, claims={f"claim-{number}": "" for number in range(on_time)})
        judged = world.judge()
        assert sum(j.late for j in judged) == 41 - on_time and judged[0].verdict == expected


# What readers get.


def test_table_and_plain_data_tell_the_same(world):
    record(world.evidence, CHAPTER, PLACES, EVEN)
    world.rule({}, {"quantity": "share", "arguments": {"place": "later"}}, {"threshold": 0.9, "sentence": "a | b."})
    judged = world.judge()
    table = claims.table(judged)
    assert table["verdict"].tolist() == [
        "supported, written after the record and not counted",  # these made-up records know no claim
        "not yet tested: no accuracy at place='later': measured were before; after",
        "contradicted, written after the record and not counted",
    ]
    low, high = judged[0].quantity.interval()
    assert (
        table["effect [95 % interval]"][0]
        == f"gain +30.0 [{100 * low:+.1f}, {100 * high:+.1f}] points; the claim needs > 0.0 points"
    )
    assert table["measured on"][0] == "cnmc, laptop, resnet50 (imagenet), n = 40, 6 trainings"
    plain = judged[0].plain()
    assert {k: plain[k] for k in ("id", "document", "chapter", "verdict", "uncorrected", "n", "trainings", "why")} == {
        "id": "claim-0",
        "document": "made",
        "chapter": CHAPTER,
        "verdict": "supported",
        "uncorrected": "supported",
        "n": 40,
        "trainings": 6,
        "why": "",
    }
    assert plain["effect"] == pytest.approx(0.3) and (plain["low"], plain["high"]) == pytest.approx((low, high))
    assert judged[1].plain()["effect"] is None


def test_plain_data_are_json_even_where_an_interval_has_no_end(world):
    rows = record(world.evidence, CHAPTER, PLACES, EVEN, trainings=1).outcomes.rows
    rows = rows.assign(group="one patient")
    records.save(header(CHAPTER, PLACES, [model(0)], profile="study"), rows, world.evidence)
    world.rule({})
    (judged,) = world.judge()
    assert math.isinf(judged.quantity.interval()[1])
    plain = json.loads(json.dumps(judged.plain(), allow_nan=False))
    assert plain["low"] is plain["high"] is None and plain["effect"] == pytest.approx(0.3)


# The lock, and what was changed afterwards.

DECIDES = {
    "sentence": "It falls.",
    "quantity": "given",
    "threshold": 0.01,
    "direction": "<",
    "margin": 0.02,
    "gates": [],
    "arguments": {"values": [1.0]},
}


def test_the_hash_follows_from_what_decides_a_claim_and_from_nothing_else(world):
    base = {"gates": ["trainings"]}

    def hash_of(claim: dict, trainings: float = 6) -> str:
        world.rule(base | claim, gates={"trainings": trainings, "floor": 0.1})
        (document, claim), *_ = [("made", c) for c in map(_converted, _read(world))]
        return claims.hashed(document, claim)

    first = hash_of({})
    changes = [hash_of({name: value}) for name, value in DECIDES.items()]
    assert len({first, *changes, hash_of({}, trainings=7)}) == len(DECIDES) + 2
    for name, value in {"place": "Figure 2", "measure": "rise", "unit": "nats", "id": "b", "chapter": ""}.items():
        assert hash_of({name: value}) == first, name
    assert hash_of({"threshold": 0}) == first  # 0 is 0.0


def _read(world: World) -> list[dict]:
    return documents.toml("made", "claims")["claims"]


def _converted(plain: dict) -> Claim:
    return msgspec.convert(plain, Claim)


def test_locking_writes_down_what_is_new_or_changed_and_keeps_other_dates(world, monkeypatch):
    today = "2024-05-17"
    world.rule({"id": "a"}, {"id": "b"}, {"id": "c"})
    assert claims.tampered() == [
        f"{name}: not written down in made/claims.lock: run hpat claims --lock" for name in "abc"
    ]
    monkeypatch.setattr(claims.time, "strftime", lambda *_: today)
    assert claims.lock() == ["a", "b", "c"] and claims.tampered() == []
    path = world.documents / "made" / "claims.lock"
    assert {each["written"] for each in world.lock().values()} == {today}
    path.write_text(path.read_text().replace(today, "2020-02-02"))
    before = world.lock()
    assert claims.lock() == [] and world.lock() == before
    world.rule({"id": "a"}, {"id": "b", "threshold": 0.1}, {"id": "d"})
    assert claims.tampered() == [
        "b: changed after it was written down on 2020-02-02: put it back, or run hpat claims --lock and measure it "
        "again",
        "d: not written down in made/claims.lock: run hpat claims --lock",
        "c: in made/claims.lock, and no claim",
    ]
    assert claims.lock() == ["b", "d"] and list(world.lock()) == ["a", "b", "d"]
    assert world.lock()["a"] == before["a"] and world.lock()["b"]["written"] == today
    assert world.lock()["b"]["hash"] != before["b"]["hash"]


def test_records_of_other_claims_and_broken_records_are_found(world):
    world.rule({"id": "a"}, {"id": "b"})
    claims.lock()
    then = claims.check(CHAPTER)
    record(world.evidence, CHAPTER, PLACES, EVEN, claims=then)
    assert claims.tampered() == []
    world.rule({"id": "a"}, {"id": "b", "margin": 0.05})
    claims.lock()
    where = "made/fig1/laptop-real-seed0"
    assert claims.tampered() == [f"{where}: measured another version of b than stands in claims.toml"]
    world.rule({"id": "a"})
    claims.lock()
    assert claims.tampered() == [f"{where}: measured the claim 'b', which is no longer there"]
    parquet = world.evidence / f"{where}.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-1])
    (found,) = claims.tampered()
    assert f"{where}.parquet is not what laptop-real-seed0.json was written with" in found


# A rerun beside the committed record.


def test_a_rerun_agrees_within_half_an_interval_or_says_where_not(world, tmp_path):
    world.rule({}, {"quantity": "smallest"}, {"chapter": "made/fig2"})
    rng = np.random.default_rng(0)
    before, after = (rng.random((6, 40)) < share for share in (0.5, 0.8))
    committed = record(tmp_path / "a", CHAPTER, PLACES, {("before",): before, ("after",): after})
    gain = committed.outcomes.accuracy["after"] - committed.outcomes.accuracy["before"]
    low, high = gain.interval()
    half = (high - low) / 2
    assert half > claims.TOLERANCE  # this interval decides, not the tolerance

    def rerun(others: int, **given):
        """Another answer to so many of the 240 images."""
        moved = after.copy()
        moved.flat[np.flatnonzero(after)[:others]] = False
        return record(tmp_path / "b", CHAPTER, PLACES, {("before",): before, ("after",): moved}, **given)

    assert claims.agreement(committed, committed) == (
        "agrees with the committed record: largest difference of 1 effects 0, tolerance 0.05 or half an interval"
    )
    inside, outside = math.floor(240 * half), math.floor(240 * half) + 1
    assert claims.agreement(rerun(inside), committed).startswith(
        f"agrees with the committed record: largest difference of 1 effects {inside / 240:.3g}"
    )
    assert claims.agreement(rerun(outside), committed) == (
        f"differs from the committed record: largest difference of 1 effects {outside / 240:.3g}, beyond tolerance in "
        "claim-0"
    )
    other = rerun(0, images=[Images("cnmc", "beef", 120, 64)])
    assert claims.agreement(other, committed) == (
        "not compared with the committed record, which is about other images: cnmc beef here, cnmc f00d there"
    )
    with pytest.raises(ValueError, match="different runs: made/fig1/laptop-real-seed4 and made/fig1/laptop-real-seed0"):
        claims.agreement(rerun(0, seed=4), committed)
    less = record(tmp_path / "c", CHAPTER, PLACES, {("before",): before})
    assert claims.agreement(less, committed).startswith(
        "differs from the committed record: nothing measured for claim-0 (no accuracy at place='after'"
    )
    assert claims.agreement(committed, less) == "nothing to compare: the committed record tests no claim"


def test_narrow_effects_agree_within_the_tolerance(world, tmp_path):
    world.rule({"quantity": "share", "arguments": {"place": "after"}})
    committed = record(tmp_path / "a", CHAPTER, PLACES, {("after",): 0.5}, images=2000)
    for share, agrees in ((0.54, True), (0.56, False)):
        made = record(tmp_path / "b", CHAPTER, PLACES, {("after",): share}, images=2000)
        assert claims.agreement(made, committed).startswith("agrees") == agrees


# The leukemia paper's own claims, on a made-up record of figure 4, from a process without torch.

FIG4 = "hpat/fig4_training_strategies"


@pytest.fixture
def figure_4(tmp_path, monkeypatch) -> Iterator[Path]:
    """The document's own files in another folder, and a record of figure 4 in which standard training loses 0.3."""
    folder = tmp_path / "documents"
    (folder / "hpat").mkdir(parents=True)
    for file in (documents.FOLDER / "hpat").glob("*"):
        if file.suffix in (".toml", ".lock"):
            shutil.copy(file, folder / "hpat")
    right = {}
    for name in ("Adv_h", *hpat_quantities.STRATEGIES):
        right["patient", name, "H0", "clean"] = 0.9
        for reading in ("fixed", "searched"):
            right["patient", name, "H6", reading] = 0.6 if name == "Standard" else 0.85 if name == "Adv_h" else 0.7
    conditions = ("split", "training", "environment", "reading")
    given = {"by": "training", "images": 100, "claims": claims.check(FIG4)}
    record(tmp_path / "evidence", FIG4, conditions, right, **given)
    monkeypatch.setattr(documents, "FOLDER", folder)
    monkeypatch.setattr(records, "folder", lambda: tmp_path / "evidence")
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def hpat(*arguments: str) -> tuple[int, str]:
    """Run ``hpat`` as if it had just been started."""
    forget()
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_claims_are_judged_and_verified_without_torch(figure_4):
    code = """
import pathlib, sys
from hpatlib import documents, records
root = pathlib.Path(sys.argv[1])
documents.FOLDER, records.folder = root / "documents", lambda: root / "evidence"
from hpatlib.cli import app
for command in ("claims", "verify"):
    try:
        app([command])
    except SystemExit as ended:
        print(command, "ended with", ended.code)
print({"torch", "matplotlib", "sklearn"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, str(figure_4)], capture_output=True, text=True, check=True)
    assert "claims ended with 0" in done.stdout and "verify ended with 10" in done.stdout
    assert done.stdout.endswith("set()\n") and not done.stderr


def test_moving_a_threshold_flips_the_verdict_and_is_found_out(figure_4):
    claim = "fig4-standard-fixed"

    def verdict_now() -> tuple[str, float]:
        code, output = hpat("claims", "--json")
        assert code == 0
        (found,) = [each for each in json.loads(output) if each["id"] == claim]
        return found["verdict"], found["effect"]

    # Printed numbers contradict some claims whatever is measured, so that 10 means: all is as it was written down.
    assert verdict_now() == ("supported", pytest.approx(0.3 / 0.9))
    code, output = hpat("verify")
    assert code == 10 and "contradicted: h1-counts: " in output
    path = figure_4 / "documents" / "hpat" / "claims.toml"
    was = path.read_text()
    before, after = was.split(f'id = "{claim}"')
    path.write_text(f'{before}id = "{claim}"' + after.replace("threshold = 0.2", "threshold = 0.4", 1))
    assert verdict_now() == ("contradicted", pytest.approx(0.3 / 0.9))
    code, output = hpat("verify")
    assert code == 3 and f"{claim}: changed after it was written down" in output
    assert f"{FIG4}/laptop-real-seed0: measured another version of {claim}" in output
    path.write_text(was)
    assert verdict_now() == ("supported", pytest.approx(0.3 / 0.9)) and hpat("verify")[0] == 10


def test_a_record_changed_by_one_byte_is_found_out(figure_4):
    parquet = figure_4 / "evidence" / FIG4 / "laptop-real-seed0.parquet"
    content = bytearray(parquet.read_bytes())
    content[100] ^= 1
    parquet.write_bytes(content)
    for arguments in (["verify"], ["claims"]):
        code, output = hpat(*arguments)
        assert code == 3 and "laptop-real-seed0.parquet is not what" in output


if __name__ == "__main__":
    rows = (f"{json.dumps(name)}: {json.dumps(told)}" for name, told in answered().items())
    PUBLISHED.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
