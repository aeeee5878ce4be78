"""Whatever is broken on purpose in `faults.py` ends in a clear sentence, or goes on by itself; kills are left to
`make test-faults`."""

import faults
import pytest

from hpatlib import documents
from hpatlib.documents import hpat

CASES = {f"{section}: {name}": case for section, cases in faults.QUICK.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_silent_and_nothing_raw(name, tmp_path):
    assert CASES[name](tmp_path.resolve()) == "clear"


@pytest.mark.parametrize(("injected", "named"), [({"profil": "laptop"}, "profil"), ({"Seed": 7, "seed": 0}, "Seed")])
def test_a_misspelt_parameter_is_refused(injected, named):
    there = {"__name__": "__main__", "In": [], "Out": {}, "pytest": pytest, "profile": "smoke", "data": None}
    documents.check_parameters(there)
    with pytest.raises(ValueError, match=f"unknown parameter {named}: a chapter has profile, data, seed"):
        documents.check_parameters(there | injected)


WRONG = [("nonsense", None, 0), (["smoke"], None, 0), ("smoke", True, 0), ("smoke", None, True), ("smoke", None, -1)]


@pytest.mark.parametrize("given", WRONG)
def test_a_parameter_of_another_kind_is_refused(given):
    with pytest.raises(ValueError, match=r"unknown profile|unknown data|seed must be a whole number"):
        hpat.choose(*given)
