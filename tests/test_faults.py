"""Whatever is broken on purpose in `faults.py` ends in a clear sentence, or goes on by itself; kills are left to
`make test-faults`, and so are nine tenths of the fuzz."""

from functools import partial

import faults
import pytest

from hpatlib import documents
from hpatlib.documents import hpat

CASES = {f"{section}: {name}": case for section, cases in faults.QUICK.items() for name, case in cases.items()}
CASES = {name: case for name, case in CASES.items() if case not in faults.FUZZ.values()}
CASES |= {f"{fuzz.__name__}, a tenth": partial(fuzz, count=1000) for fuzz in (faults.fuzz_records, faults.fuzz_images)}
CASES |= {f"fuzz_layout of {key}, a tenth": faults.fuzz_layout(key, 150) for key in faults.LOADERS}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_silent_and_nothing_raw(name, tmp_path):
    assert CASES[name](tmp_path.resolve()) == "clear"


@pytest.mark.parametrize("before", [[], ["eps = 3", "# Parameters\nepohcs = 3\n"]])  # of a reader; corrected since
@pytest.mark.parametrize(
    ("injected", "named"), [('profil = "laptop"', "profil"), ("Seed = 7\nseed = 0\neps = float('nan')", "Seed, eps")]
)
def test_what_papermill_injects_besides_the_parameters_is_refused(before, injected, named):
    right = '# Parameters\nprofile = "laptop"\nseed = 2\n'
    documents.check_parameters({"In": [*before, right, "eps = 4"], "eps": 4})
    with pytest.raises(ValueError, match=f"unknown parameter {named}: a chapter has profile, data, seed"):
        documents.check_parameters({"In": [*before, f"# Parameters\n{injected}\n", "documents.check_parameters …"]})


def test_a_plain_run_has_nothing_injected():
    documents.check_parameters({"eps": 3})


WRONG = [("nonsense", None, 0), (["smoke"], None, 0), ("smoke", True, 0), ("smoke", None, True), ("smoke", None, -1)]


@pytest.mark.parametrize("given", WRONG)
def test_a_parameter_of_another_kind_is_refused(given):
    with pytest.raises(ValueError, match=r"unknown profile|unknown data|seed must be a whole number"):
        hpat.choose(*given)
