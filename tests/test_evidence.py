"""Records, claims and verdicts: what is written can be read, what is broken is named, phantoms never count."""

from dataclasses import asdict

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch

from hpatlib import evidence, plots, runs, settings
from hpatlib.cli import Data as DataChoice
from hpatlib.cli import Profile as ProfileChoice
from hpatlib.data import load, split
from hpatlib.models import build

CHAPTER = "hpat/fig6_stbo_vs_grid_search"
CLAIM = "fig6-efficiency-30"


@pytest.fixture
def made(tmp_path, monkeypatch) -> evidence.Record:
    monkeypatch.setenv("HPAT_RECORDS", str(tmp_path))
    chosen = settings.choose("smoke", None, 3)
    train, test = split(load("cnmc", real=False, size=32, count=160), by="patient")
    about = {"name": "phantom-cells", "fingerprint": "f00d", "train": len(train), "test": len(test)}
    provenance = {"key": "abc", "run": asdict(chosen.run), "data": about, "seconds": 1.0, "device": "CPU"}
    trained = runs.Trained(build("simple_cnn", 2, weights="scratch"), train, test, provenance)
    rows = pd.DataFrame([{"method": "STBO", "queries": 100, "loss": np.float64(1.5), "n": np.int64(8)}])
    effect = evidence.effect(CLAIM, torch.linspace(1, 2, 8))
    return evidence.record(CHAPTER, chosen, trained, rows, [effect], shown=8)


def test_a_record_survives_writing_and_reading(made, tmp_path):
    path = tmp_path / CHAPTER / "smoke-phantom-seed3.json"
    assert evidence.read(path) == made
    assert made.provenance["data"]["shown"] == 8 and made.provenance["versions"]["torch"] in torch.__version__
    assert "phantom data (phantom-cells), n = 8 images, seed 3" in made.label


@pytest.mark.parametrize("content", ["", "{}", '{"chapter": 3}', "\xff"])
def test_a_broken_record_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"broken\.json is not a record"):
        evidence.read(path)


def test_a_rerun_agrees_within_the_tolerance_or_says_where_not(made):
    def moved(by: float, **changed) -> evidence.Record:
        (first,) = made.effects
        return msgspec.structs.replace(
            made, effects=[msgspec.structs.replace(first, effect=first.effect + by)], **changed
        )

    (committed,) = made.effects
    half = (committed.high - committed.low) / 2
    assert half > evidence.TOLERANCE
    assert evidence.agreement(made, made).startswith(
        "agrees with the committed record: largest difference of 1 effects 0"
    )
    assert evidence.agreement(moved(0.9 * half), made).startswith("agrees")
    assert f"beyond tolerance in {CLAIM}" in evidence.agreement(moved(1.1 * half), made)
    assert f"nothing measured for {CLAIM}" in evidence.agreement(msgspec.structs.replace(made, effects=[]), made)
    other = made.provenance | {"data": made.provenance["data"] | {"fingerprint": "another"}}
    assert "other images" in evidence.agreement(moved(0, provenance=other), made)
    assert "tests no claim" in evidence.agreement(made, msgspec.structs.replace(made, effects=[]))
    with pytest.raises(ValueError, match="different runs"):
        evidence.agreement(moved(0, seed=4), made)


def test_the_ledger_lists_every_claim_once_with_its_verdict():
    page = evidence.ledger()
    assert page.count("../notebooks/") == len(evidence.claims())
    assert all(claim.statement in page for claim in evidence.claims())
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| **")]
    assert {row[0].strip("|* ") for row in rows} <= set(evidence.VERDICTS) and all(len(row) == 5 for row in rows)


def test_every_committed_record_is_whole_real_and_speaks_of_known_claims():
    files = sorted(evidence.folder().rglob("*.json"))
    known = {claim.id: claim.chapter for claim in evidence.claims()}
    for path in files:
        record = evidence.read(path)
        assert path.parent == evidence.folder() / record.chapter
        assert record.real and record.rows and record.provenance["data"]["fingerprint"]
        assert all(known[effect.claim] == record.chapter for effect in record.effects)
        assert all(effect.low <= effect.effect <= effect.high for effect in record.effects)


def effect(low: float, high: float) -> evidence.Effect:
    return evidence.Effect(CLAIM, (low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], "not yet tested"),
        ([(0.1, 0.2)], "supported"),
        ([(-0.2, -0.1)], "contradicted"),
        ([(-0.1, 0.1)], "inconclusive"),
        ([(0.0, 0.1)], "inconclusive"),
        ([(0.0, 0.0)], "inconclusive"),  # a tie to the last image, as where both models are always wrong
        ([(0.1, 0.2), (0.2, 0.3)], "supported"),
        ([(0.1, 0.2), (-0.1, 0.1)], "inconclusive"),
        ([(0.1, 0.2), (-0.2, -0.1)], "inconclusive"),
    ],
)
def test_verdicts(intervals, expected):
    assert evidence.verdict([effect(*interval) for interval in intervals]) == expected


def test_phantom_records_never_count(made, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    assert set(evidence.verdicts(CHAPTER)["verdict"]) == {"not yet tested"}
    about = made.provenance | {"data": made.provenance["data"] | {"name": "cnmc"}}
    real = msgspec.structs.replace(made, data="real", provenance=about)
    (tmp_path / CHAPTER / "laptop-real-seed3.json").write_bytes(msgspec.json.encode(real))
    table = evidence.verdicts(CHAPTER)
    counted = table[table["verdict"] != "not yet tested"]
    assert counted["verdict"].tolist() == ["supported"] and counted["measured on"].tolist() == [
        "cnmc, smoke, from scratch, n = 8, seed 3"
    ]


def test_claims_have_unique_ids_and_effects_refuse_unknown_ones():
    ids = [claim.id for claim in evidence.claims()]
    assert len(ids) == len(set(ids)) and CLAIM in ids
    with pytest.raises(ValueError, match="unknown claim 'fig7'"):
        evidence.effect("fig7", [1.0])


def test_published_values_have_a_place_in_the_document():
    assert evidence.published("hpat")["stbo_queries"]["value"] == 100
    assert all({"value", "unit", "where"} <= set(value) for value in evidence.published("hpat").values())
    with pytest.raises(ValueError, match=r"choose one of .*hpat"):
        evidence.published("hapt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", None, 0), "choose one of smoke, laptop, study, paper"),
        (("smoke", "cells", 0), "choose phantom or real"),
        (("smoke", None, -1), "seed must be"),
        (("smoke", None, "0"), "seed must be"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_valid(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings.choose(*arguments)


def test_profiles_and_the_command_line_agree():
    assert [choice.value for choice in ProfileChoice] == list(settings.PROFILES)
    assert {profile.data for profile in settings.PROFILES.values()} <= {choice.value for choice in DataChoice}


def test_a_figure_needs_alt_text_and_shows_it():
    with pytest.raises(ValueError, match="alt text"):
        plots.Figure(b"", "caption", " ")
    bundle, _ = plots.Figure(b"png", "a < b", 'say "x"')._repr_mimebundle_()
    assert 'alt="say &quot;x&quot;"' in bundle["text/html"] and "<figcaption>a &lt; b" in bundle["text/html"]


def test_the_stamp_says_where_numbers_came_from(made):
    text = evidence.stamp(made).to_string(max_colwidth=None)
    for part in ("no evidence about patients", "f00d", "split by patient", "8 of them measured", "torch", "abc"):
        assert part in text
