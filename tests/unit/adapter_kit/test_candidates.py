"""Which model call wrote an answer, and the exchange made of both."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from semgrad_guard.adapter_kit import Answer, Candidate, ModelCall, candidate_of, match_call, next_exchange, with_call
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import Exchange, Fingerprint, Passage, Score

FINGERPRINT = Fingerprint(model="", dtype="", template="", settings="")
SCORE = Score(method="m", value=1.0, signals={}, fingerprint=FINGERPRINT, model="m")
IDS = {"prompt_ids": (1,), "answer_ids": (2,)}


@dataclass(frozen=True)
class Call:
    """A call of a framework's own type."""

    text: str | None
    asked_for_tools: bool = False
    id: int = 0


def test_a_call_that_the_answer_names_is_the_one() -> None:
    """A message that knows its run is surer than any likeness of texts."""
    named, same = Call("Lyon", id=7), Call("Paris")
    assert match_call([[named, same]], "Paris", named=lambda call: call.id == 7) is named


def test_the_very_text_counts_before_an_overlap_and_an_overlap_before_the_latest() -> None:
    """A chain may cut or wrap the answer; a later call of another model must not be taken for it."""
    exact, part, last = Call(" Paris "), Call("Paris is the capital."), Call("yes")
    assert match_call([[exact, part, last]], "Paris") is exact
    assert match_call([[part, last]], "Paris") is part
    assert match_call([[part, last]], "Rome") is last


def test_the_latest_of_two_equal_calls_is_taken() -> None:
    """A retry that wrote the same words is what the caller got."""
    first, second = Call("Paris", id=1), Call("Paris", id=2)
    assert match_call([[first, second]], "Paris") is second


def test_the_nearest_group_counts_first_for_each_sign() -> None:
    """A sure sign far away is better than a weak one nearby."""
    near, far = Call("Paris, France"), Call("Paris")
    assert match_call([[near], [far]], "Paris") is far
    assert match_call([[near], [Call("Paris, Texas")]], "Paris") is near


def test_requests_for_tools_are_taken_last_and_unfinished_calls_never() -> None:
    """They are no answers."""
    tools, answer = Call("", asked_for_tools=True), Call("Paris")
    assert match_call([[answer, tools]], None) is answer
    assert match_call([[tools]], None) is tools
    assert match_call([[Call(None)]], "Paris") is None


def test_exact_takes_the_very_text_only() -> None:
    """A parser that is fed by hand must not be given the prompt of another answer."""
    assert match_call([[Call("Paris is the capital.")]], "Paris", exact=True) is None
    assert match_call([[Call("Paris\n")]], "Paris", exact=True) is not None


def test_a_candidate_has_the_prompt_of_the_call_that_wrote_it() -> None:
    """The score depends on what the model really read."""
    call = ModelCall(
        prompt="read", text="Paris", author="m", on_policy=True, prompt_ids=(1,), answer_ids=(2,), score=SCORE
    )
    found = candidate_of(Answer(text="Paris", tags=frozenset({"a"})), [call], question="Capital?").exchange
    assert (found.prompt, found.author, found.on_policy, found.prompt_ids, found.answer_ids, found.score) == (
        "read", "m", True, (1,), (2,), SCORE
    )  # fmt: skip
    assert (found.question, found.tags, found.metadata["prompt"]) == ("Capital?", frozenset({"a"}), "captured")


def test_ids_and_score_of_a_call_are_left_out_where_the_answer_is_another_text() -> None:
    """They belong to the words that the model wrote, not to what was made of them."""
    call = ModelCall(prompt="read", text="Paris is it", on_policy=True, score=SCORE, **IDS)
    found = with_call(Exchange(answer="Paris"), call)
    assert (found.on_policy, found.prompt_ids, found.answer_ids, found.score) == (False, None, None, None)


def test_without_a_call_the_prompt_is_rebuilt_or_the_reason_given() -> None:
    """An answer that no model wrote cannot be judged, if the caller knows that."""
    answer = Answer(text="Paris", passages=(Passage("France."),))
    rebuilt = candidate_of(answer, [], question="Capital?")
    assert (rebuilt.exchange.prompt, rebuilt.exchange.metadata, rebuilt.error) == (
        "France.\n\nCapital?", {"prompt": "rebuilt"}, None
    )  # fmt: skip
    why = PromptNotFoundError("here", "ask")
    assert candidate_of(answer, [], question="Capital?", missing=why).error is why


def test_the_next_exchange_counts_on_and_carries_nothing_over() -> None:
    """A new attempt begins from the question, not from the answer that was not good enough."""
    earlier = Exchange(answer="Lyon", question="Capital?", tags=frozenset({"a"}), prompt_ids=(9,))
    new = next_exchange(earlier, Candidate(Exchange(prompt="p", answer="Paris", author="big", metadata={"k": 1})))
    assert (new.attempt, new.answer, new.author, new.tags, new.prompt_ids) == (
        2,
        "Paris",
        "big",
        frozenset({"a"}),
        None,
    )
    assert new.id != earlier.id
    assert new.metadata == {"k": 1}


def test_an_attempt_that_cannot_be_judged_is_no_attempt() -> None:
    """The step failed, and the policy goes on with the next."""
    why = PromptNotFoundError("here", "ask")
    with pytest.raises(PromptNotFoundError):
        next_exchange(Exchange(), Candidate(Exchange(), why))
