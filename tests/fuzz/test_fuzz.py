"""Inputs that nobody meant end well, whatever the verb. `python tests/fuzz/run.py` repeats one, and runs more."""

import collections

import pytest
import run

SHORT, LONG = range(5000, 5080), range(0, 2000)  # seeds; a failure names its own


def test_inputs_that_nobody_meant_end_in_one_line():
    said: list[str] = []
    failed, tally = run.fuzz(SHORT.start, len(SHORT), in_a_process=0, say=said.append)
    assert not failed, "\n".join(said)
    codes = collections.Counter(code for (_, code), n in tally.items() for _ in range(n))
    assert codes[2] > 20 and codes[0] > 5  # of both kinds, those that are refused and those that aren't


@pytest.mark.slow
@pytest.mark.parametrize("first", range(LONG.start, LONG.stop, 250))
def test_two_thousand_inputs(first):
    said: list[str] = []
    failed, _ = run.fuzz(first, 250, say=said.append)
    assert not failed, "\n".join(said)
