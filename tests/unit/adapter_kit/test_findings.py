"""How an outcome is explained to a caller who does not get the answer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semgrad_guard.adapter_kit.findings import (
    LEFT_OUT,
    findings,
    held_back,
    shown_decision,
    shown_error,
    text_for,
    without_answers,
)
from semgrad_guard.flow import (
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Confidence,
    Decision,
    Exchange,
    Failure,
    Outcome,
    Status,
)
from semgrad_guard.telemetry import JsonlSink
from tests.fakes import LadderDecider, guard_of
from tests.records import make_record

if TYPE_CHECKING:
    from pathlib import Path

LONG = 'The safe in "room 7" opens\nwith Müller\'s key, which is hidden below the third step of the cellar stairs.'


def outcome_of(*answers: str, text: str = "I am not sure.", why: str = "0.4 < 0.7", **changes: Any) -> Outcome:
    """Return the outcome of a question with these answers; the last one is held back."""
    attempts = tuple(
        Attempt(exchange, Decision(step=Accept(), rule="r", why=why, exchange_id=exchange.id))
        for exchange in (Exchange(answer=answer) for answer in answers)
    )
    exchange = attempts[-1].exchange
    decision = Decision(step=Abstain(message=text), rule="on_error", why=why, exchange_id=exchange.id)
    record = replace(make_record(), attempts=attempts, failures=())
    kept: dict[str, Any] = {"status": Status.ABSTAINED, "decision": decision, "record": record, **changes}
    return Outcome(text=text, exchange=exchange, attempts=attempts, **kept)


def failed(answer: str, message: str, why: str = "scoring failed (ValueError: {})") -> Outcome:
    """Return the outcome of an answer that was held back because of an error."""
    outcome = outcome_of(answer)
    failure = Failure("scoring", "ValueError", message)
    decision = replace(outcome.decision, why=why.format(message), failure=failure)
    return replace(outcome, decision=decision, record=replace(outcome.record, failures=(failure,)))


def wrapped(text: str) -> str:
    """Return a text in lines of one word each."""
    return "\n".join(text.split())


# --- the scrubber -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        str,
        repr,
        ascii,
        json.dumps,
        str.upper,
        wrapped,
        lambda t: t.replace("'", "''"),
        lambda t: t[:40],
        lambda t: t[-40:],
    ],
    ids=["as it is", "repr", "ascii", "json", "upper", "wrapped", "sql", "its start", "its end"],
)
def test_an_answer_is_found_however_an_error_writes_it(write: Any) -> None:
    """Drivers quote, escape, wrap and cut the values that they print."""
    assert without_answers(f"could not store {write(LONG)}: disk full", outcome_of(LONG)) == ""


@pytest.mark.parametrize("answer", ["Lyon", "no", "7", "東京", "Ja.", "C:\\new", "🤷"])
@pytest.mark.parametrize("write", [str, repr, json.dumps])
def test_a_short_answer_is_found_too(answer: str, write: Any) -> None:
    """Questions that are answered by one word are the commonest."""
    assert without_answers(f"could not store {write(answer)}", outcome_of(answer)) == ""


@pytest.mark.parametrize("answer", ["no", "7", "or"])
def test_a_short_answer_is_no_part_of_other_words(answer: str) -> None:
    """Otherwise hardly an error would be left to read."""
    assert without_answers("cannot store it: error 0x77", outcome_of(answer)) == "cannot store it: error 0x77"


def test_words_in_common_are_no_excerpt() -> None:
    """An error about the same subject may use the same words."""
    text = "the safe could not be reached: it is hidden by a firewall"
    assert without_answers(text, outcome_of(LONG)) == text


def test_an_empty_answer_is_in_no_text() -> None:
    """The empty text is part of every text."""
    assert without_answers("error: disk full", outcome_of("")) == "error: disk full"


def test_every_attempt_counts() -> None:
    """A rejected first answer is as little for the caller as the last."""
    assert without_answers("could not store Lyon", outcome_of("Lyon", "Marseille")) == ""


def test_an_answer_that_is_given_is_not_looked_for() -> None:
    """The caller reads it anyway; the one that was rejected before it is still none of theirs."""
    outcome = outcome_of("Lyon", "Paris", text="Paris", status=Status.ANSWERED)
    assert without_answers("could not store Paris", outcome) == "could not store Paris"
    assert without_answers("could not store Lyon", outcome) == ""


def test_a_refusal_that_holds_the_answer_by_chance_gives_nothing_away() -> None:
    """`no` is part of `I do not know`."""
    assert without_answers("could not store no", outcome_of("no", text="I do not know.")) == ""


@given(answer=st.text(min_size=1, max_size=60), before=st.text(max_size=20), after=st.text(max_size=20))
def test_any_answer_is_found_between_any_texts(answer: str, before: str, after: str) -> None:
    """Whatever the alphabet."""
    said = without_answers(f"{before} {answer} {after}", outcome_of(answer))
    assert not answer.strip() or said == ""


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_type_of_the_error_and_the_stage_stay() -> None:
    """The caller must be able to say what failed."""
    outcome = failed("Lyon", "bad input: Lyon")
    assert shown_error(outcome) == "ValueError"
    decision = shown_decision(outcome)
    assert decision.why == f"scoring failed (ValueError: {LEFT_OUT})"
    assert decision.failure == Failure("scoring", "ValueError", "")
    assert decision.rule == "on_error"


def test_an_error_of_its_own_words_stays_whole() -> None:
    """It says what to do."""
    outcome = failed("Lyon", "CUDA is gone")
    assert shown_error(outcome) == "ValueError: CUDA is gone"
    assert shown_decision(outcome) == outcome.decision


def test_nothing_failed() -> None:
    """Most answers are held back by their confidence alone."""
    outcome = outcome_of("Lyon")
    assert (shown_error(outcome), shown_decision(outcome)) == (None, outcome.decision)


@pytest.mark.parametrize("answer", ["no", "0.4", "7"])
def test_the_policy_may_use_the_words_of_a_short_answer(answer: str) -> None:
    """Its explanation was not made of the answer."""
    outcome = outcome_of(answer, why="0.4 < 7, and no step is left")
    assert shown_decision(outcome).why == "0.4 < 7, and no step is left"


def test_a_decider_that_repeats_the_answer_explains_nothing() -> None:
    """Deciders are plugged in as queues are."""
    assert shown_decision(outcome_of("Lyon", why="'Lyon' is too short")).why == ""


def test_a_step_that_failed_earlier_is_shown_without_the_answer_too() -> None:
    """The last decision may be about something else."""
    outcome = outcome_of("Lyon", why="0.4 < 0.7; human_review failed: could not store Lyon")
    failure = Failure("human_review", "OSError", "could not store Lyon")
    outcome = replace(outcome, record=replace(outcome.record, failures=(failure,)))
    assert shown_error(outcome) == "OSError"
    assert shown_decision(outcome).why == f"0.4 < 0.7; human_review failed: {LEFT_OUT}"


def test_the_exception_does_not_say_the_answer_but_has_it() -> None:
    """Its text is printed and traced; a handler may need the rest."""
    outcome = failed("Lyon", "bad input: Lyon")
    error = held_back(outcome)
    assert "Lyon" not in f"{error} {error.decision}"
    assert error.outcome is outcome


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_text", [False, True])
def test_an_error_is_logged_with_the_answer_or_not_at_all(tmp_path: Path, log_text: bool) -> None:
    """With `log_text` the answer is in the record anyway; without it the error's text is none either."""
    guard = guard_of(scores={"Lyon": RuntimeError("bad input: Lyon")}, decider=LadderDecider())
    outcome = guard.run(Exchange(answer="Lyon"))
    assert outcome.withheld
    JsonlSink(tmp_path / "f", log_text=log_text).emit(outcome.record)
    line = json.loads((tmp_path / "f").read_text())
    assert line["failures"][0]["type"] == "RuntimeError"
    assert ("Lyon" in json.dumps(line)) is log_text


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_a_warning_is_put_where_people_read_and_into_the_findings() -> None:
    """A field of a mapping or an object is read by programs."""
    outcome = guard_of(decider=LadderDecider(otherwise=AnswerWithWarning(warning="Doubtful:"))).run(
        Exchange(answer="Lyon")
    )
    assert (text_for(outcome, is_field=False), text_for(outcome, is_field=True)) == ("Doubtful:\n\nLyon", "Lyon")
    assert (findings(outcome)["warning"], findings(outcome)["status"]) == ("Doubtful:", "warned")


@pytest.mark.parametrize("step", [Accept(), AnswerWithWarning(), Abstain(message="No.")])
def test_without_a_warning_both_places_get_the_same(step: Any) -> None:
    """A refusal takes the answer's place everywhere."""
    outcome = guard_of(decider=LadderDecider(otherwise=step)).run(Exchange(answer="Lyon"))
    assert text_for(outcome, is_field=True) == text_for(outcome, is_field=False) == outcome.text
    assert findings(outcome)["warning"] is None


def test_the_findings_say_where_the_confidence_comes_from_without_the_answer() -> None:
    """A number alone explains nothing."""
    assert findings(guard_of(default=0.1).run(Exchange(answer="Paris")))["confidence_why"] == "one minus score"
    outcome = outcome_of("Lyon in the south")
    leaky = replace(outcome.decision, confidence=Confidence(value=0.1, why="it says Lyon in the south"))
    attempts = (Attempt(outcome.exchange, leaky),)
    outcome = replace(outcome, attempts=attempts, record=replace(outcome.record, attempts=attempts))
    assert findings(outcome)["confidence_why"] == ""
