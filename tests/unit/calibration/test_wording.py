"""What calibration knows of each signal agrees with what scoring says of it."""

from __future__ import annotations

import pytest

from semgrad_guard.calibration.wording import direction_of, explain, is_known
from semgrad_guard.scoring.signals import SIGNALS, Signal

DIRECTION = {"less sure": -1, "more sure": 1, "either": 0}


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=lambda s: s.name)
def test_every_signal_has_the_direction_that_scoring_gives_it(signal: Signal) -> None:
    """The stages cannot import each other, so the two tables are held together here."""
    assert is_known(signal.name)
    assert direction_of(signal.name) == DIRECTION[signal.higher]


def test_a_variant_has_its_base_signals_direction() -> None:
    """SemGrad at any position is an uncertainty."""
    assert direction_of("semgrad@-17") == -1


def test_the_callers_table_comes_first() -> None:
    """By full name or by base name."""
    assert direction_of("semgrad@-1", {"semgrad": 1}) == 1
    assert direction_of("own", {"own": -1}) == -1
    assert direction_of("own") == 0


def test_words_say_which_way() -> None:
    """Known signals have words for both sides; others tell their value."""
    assert explain("grounding", -1, 0.1, 0.5) == "answer words are not in the passages"
    assert explain("grounding", 1, 0.9, 0.5) == "answer words are in the passages"
    assert explain("n_answer_tokens", -1, 90, 12.5) == "n answer tokens is high (90, on average 12.5)"
