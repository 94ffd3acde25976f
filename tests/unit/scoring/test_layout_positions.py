"""Known positions of t*, and the table of signals."""

from __future__ import annotations

import pytest

from semgrad_guard.scoring.layout import default_position
from semgrad_guard.signals import FREE, METHODS, POSITIONS, SIGNALS, semgrad_at
from tests.models_for_tests import CHATML, byte_tokenizer

LLAMA_3 = "<|start_header_id|>{{ m }}<|end_header_id|>{{ c }}<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "position"),
    [(CHATML, -3), (LLAMA_3, -4), ("[INST] {{ m }} [/INST]", -2), ("<start_of_turn>user", -1), (None, -1)],
)
def test_published_positions_go_by_template_and_others_take_the_last_token(template, position):
    """Seven models have a published position; for the rest the last prompt token is the only safe start."""
    assert default_position(byte_tokenizer(template)) == position


def test_every_signal_says_what_it_is():
    """People read these names in logs and profiles."""
    for name, signal in SIGNALS.items():
        assert signal.name == name
        assert signal.meaning
        assert signal.unit
        assert signal.source
    assert set(METHODS) <= set(FREE) <= set(SIGNALS)
    assert {semgrad_at(position) for position in POSITIONS} <= set(METHODS)
