"""The list of slow variants names tests that there are, and leaves a quick one of each."""

import pathlib
import re

TESTS = pathlib.Path(__file__).resolve().parents[1]


def test_every_pattern_names_a_test():
    lines = (TESTS / "slow_variants.txt").read_text().splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert len(set(patterns)) == len(patterns) > 0
    for pattern in patterns:
        file, _, name = pattern.partition("::")
        text = (TESTS / file).read_text()
        function = name.partition("[")[0]
        assert function == "*" or re.search(rf"^def {function}\(", text, re.MULTILINE), pattern
