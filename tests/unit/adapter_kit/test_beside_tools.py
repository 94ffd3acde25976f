"""Text beside a request for tools: judged, left out or passed, and always recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.adapter_kit import Candidate, judge_beside_tools
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import AnswerWithWarning, Exchange, HumanReview, RetryRetrieval
from semgrad_guard.policy import PolicyDecider, policy_from
from semgrad_guard.wire import record_fields, record_from_fields
from tests.fakes import LadderDecider, MemoryQueue, MemorySink, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

TEXT = "I think Lyon"
POLICIES: dict[str, Any] = {
    name: PolicyDecider(policy_from({"accept": 0.7, "beside_tool_calls": name})) for name in ("judge", "blank", "pass")
}


def treated(guard: Guard, error: Any = None) -> Any:
    """How a text beside a request for tools ends."""
    return judge_beside_tools(guard, Candidate(Exchange(answer=TEXT), error))


@pytest.mark.parametrize(
    ("handling", "score", "text", "status"),
    [
        ("judge", 0.1, TEXT, "answered"),
        ("judge", 0.9, "", "abstained"),
        ("blank", 0.1, "", "abstained"),
        ("pass", 0.9, TEXT, "answered"),
    ],
)
def test_the_policy_says_what_happens_and_the_record_what_did(
    handling: str, score: float, text: str, status: str
) -> None:
    """Whoever reads the log finds every such text."""
    sink = MemorySink()
    guard = guard_of(scores={TEXT: score}, decider=POLICIES[handling], sink=sink)
    outcome = treated(guard)
    assert (outcome.text, outcome.status) == (text, status)
    assert [(r.beside_tool_calls, r.status, r.text) for r in sink.records] == [(handling, status, text)]
    assert bool(guard.parts.scorer.seen) is (handling == "judge")
    assert (outcome.decision.rule == "beside_tool_calls") is (handling != "judge")


def test_nothing_is_retrieved_and_nobody_asked_for_it() -> None:
    """It is no answer: the agent goes on."""
    queue = MemoryQueue()
    for step in (RetryRetrieval(), HumanReview()):
        outcome = treated(guard_of(scores={TEXT: 0.9}, decider=LadderDecider([step]), queue=queue))
        assert (outcome.text, len(outcome.attempts)) == ("", 1)
    assert queue.items == []


def test_a_doubtful_text_that_may_be_given_stays_without_a_warning() -> None:
    """A warning before a request for tools would be nobody's answer."""
    outcome = treated(guard_of(scores={TEXT: 0.9}, decider=LadderDecider([AnswerWithWarning(warning="Careful")])))
    assert (outcome.text, outcome.status) == (TEXT, "warned")


def test_a_text_that_cannot_be_judged_takes_on_error() -> None:
    """Fail closed."""
    outcome = treated(guard_of(scores={TEXT: 0.0}), PromptNotFoundError("here", "look there"))
    assert (outcome.text, outcome.decision.rule) == ("", "on_error")


def test_the_record_survives_its_json() -> None:
    """Logs are read again; other records do not have the field."""
    sink = MemorySink()
    treated(guard_of(scores={TEXT: 0.1}, sink=sink))
    guard_of(scores={TEXT: 0.1}, sink=sink).run(Exchange(answer=TEXT))
    beside, answer = (record_fields(record, log_text=False) for record in sink.records)
    assert beside["beside_tool_calls"] == "judge"
    assert record_from_fields(beside).beside_tool_calls == "judge"
    assert "beside_tool_calls" not in answer
    assert record_from_fields(answer).beside_tool_calls is None
