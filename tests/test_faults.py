"""Whatever is broken on purpose in `faults.py` ends in a clear sentence, or goes on by itself; kills are left to
`make test-faults`."""

import faults
import pytest

CASES = {f"{section}: {name}": case for section, cases in faults.QUICK.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_silent_and_nothing_raw(name, tmp_path):
    assert CASES[name](tmp_path.resolve()) == "clear"
