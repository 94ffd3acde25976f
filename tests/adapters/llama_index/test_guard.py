"""The options of `SemGradGuard`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from llama_index_semgrad import SemGradGuard
from semgrad_guard.adapter_kit import options
from tests.adapters.llama_index.index_and_llm import llm
from tests.fakes import guard_of

if TYPE_CHECKING:
    import pytest


def test_a_guard_without_any_choice_warns_once_that_the_demo_model_scores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A remote LLM chooses nothing: its answers are scored from outside too."""
    monkeypatch.setattr(options, "_default_noted", threading.Event())
    monkeypatch.setattr(options.Guard, "from_yaml", lambda *_, **__: guard_of())
    chosen: list[dict[str, Any]] = [
        {"policy": {"accept": 0.7}},
        {"model": "smollm2-135m"},
        {"llm": llm("Marie Curie.")},
        {},
    ]
    warnings = []
    for choice in chosen:
        assert SemGradGuard(**choice).guard
        warnings.append(len(caplog.records))
    assert warnings == [0, 0, 1, 1]
    assert "its demo model scores the answers" in caplog.text
