"""The attempts at one question, and the guard's run over them."""

from __future__ import annotations

import pytest

from semgrad_guard.adapter_kit import Attempts, Candidate, run_guard
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import Exchange, FallbackModel, Passage
from semgrad_guard.routing import Resources
from tests.fakes import LadderDecider, guard_of

LOST = PromptNotFoundError("anywhere", "look again")


class Fallback:
    """Answers by the word `better`."""

    def __init__(self, attempts: Attempts[str]) -> None:
        self._attempts = attempts

    def answer(self, exchange: Exchange, _: object) -> Exchange:
        """Return the new attempt."""
        return self._attempts.following(exchange, Candidate(Exchange(answer="better")), "value of the second")


def test_each_attempt_keeps_the_value_that_the_framework_gave() -> None:
    """The caller gets the value of the attempt that was chosen, not that of the first."""
    attempts = Attempts[str]()
    first = attempts.first(Candidate(Exchange(answer="bad", question="Who?")), "value of the first")
    guard = guard_of(scores={"bad": 0.9, "better": 0.1}, decider=LadderDecider([FallbackModel(name="big")]))
    outcome = run_guard(guard, first, Resources(fallbacks={"big": Fallback(attempts)}))
    assert (outcome.text, outcome.exchange.question) == ("better", "Who?")
    assert attempts.values[outcome.exchange.id] == "value of the second"
    assert attempts.values[first.exchange.id] == "value of the first"


def test_a_new_attempt_says_itself_where_its_passages_come_from() -> None:
    """Other passages than before need not come from a retriever."""
    new = Candidate(Exchange(answer="better", passages=(Passage("new"),), passages_from="prompt"))
    assert Attempts[str]().following(Exchange(answer="bad"), new, "a value").passages_from == "prompt"


def test_an_answer_that_cannot_be_judged_takes_on_error() -> None:
    """It must not be scored, and a new attempt that cannot be judged is a failed step."""
    guard = guard_of(default=0.0)
    outcome = run_guard(guard, Candidate(Exchange(answer="bad"), LOST))
    assert (outcome.text, outcome.record.failures[0].type) == ("I do not know.", "PromptNotFoundError")
    assert guard.parts.scorer.seen == []
    attempts = Attempts[str]()
    with pytest.raises(PromptNotFoundError):
        attempts.following(Exchange(answer="bad"), Candidate(Exchange(), LOST), "a value")
    assert attempts.values == {}
