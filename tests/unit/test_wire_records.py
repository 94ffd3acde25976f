"""The JSON form of a record."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.flow import STEP_TYPES, ExchangeId, ReviewId, Ruling, Verdict
from semgrad_guard.telemetry import RecordFieldsError, record_fields, record_from_fields
from semgrad_guard.wire import MAX_DEPTH, plain, summary_fields
from tests.records import make_attempt, make_record, make_score

if TYPE_CHECKING:
    from semgrad_guard.flow import Attempt, Decision, Step

SECRET = "Xyzzy-\u00fc-secret"  # noqa: S105 - a text to be looked for


def test_without_log_text_no_free_text_is_left() -> None:
    """People log to places where their users' words must not be."""
    assert SECRET in json.dumps(record_fields(make_record(text=SECRET), log_text=True), ensure_ascii=False)
    assert SECRET not in json.dumps(record_fields(make_record(text=SECRET), log_text=False), ensure_ascii=False)


def test_without_log_text_numbers_and_names_stay() -> None:
    """What is left must still say what was decided and why the numbers say so."""
    attempt = record_fields(make_record(), log_text=False)["attempts"][0]
    assert attempt["score"]["signals"] == {"hybridgrad": 0.25, "semgrad": 1.5e-7}
    assert (attempt["metadata"], attempt["tags"], attempt["author"]) == ({}, [], None), "these came with the exchange"
    assert attempt["rule"] == "escalate[0].retry_retrieval"
    assert attempt["step"]["top_k"] == 8
    assert attempt["passage_scores"] == [0.75]


@pytest.mark.parametrize("kind", STEP_TYPES.values(), ids=lambda kind: kind.__name__)
def test_every_step_is_read_back_and_its_texts_stay_out_of_logs_without_texts(kind: type[Step]) -> None:
    """A step that is logged and not read back is lost for simulations; its author's words may be private."""
    values = {field.name: SECRET for field in fields(kind) if field.type == "str"}
    step = kind(**values)
    attempt = make_attempt("first")
    record = replace(make_record(), attempts=(replace(attempt, decision=replace(attempt.decision, step=step)),))
    assert record_from_fields(record_fields(record, log_text=True)).attempts[0].decision.step == step
    assert type(record_from_fields(record_fields(record, log_text=False)).attempts[0].decision.step) is kind
    logged = record_fields(record, log_text=False)["attempts"][0]["step"]
    assert {name for name, value in logged.items() if value == SECRET} <= {"name", "retriever"}  # names, no sentences


def test_token_ids_are_never_logged() -> None:
    """Ids are the text in another alphabet, and long."""
    assert "prompt_ids" not in json.dumps(record_fields(make_record(), log_text=True))


def test_a_logged_record_comes_back_equal() -> None:
    """A policy is simulated on what was logged."""
    record = make_record()
    back = record_from_fields(json.loads(json.dumps(record_fields(record, log_text=True))))
    assert back == replace(record, attempts=tuple(_without_ids(a) for a in record.attempts))


def test_without_texts_a_record_comes_back_with_everything_else() -> None:
    """Replay needs scores and steps, not words."""
    record = make_record()
    back = record_from_fields(record_fields(record, log_text=False))
    assert [a.decision.score for a in back.attempts] == [a.decision.score for a in record.attempts]
    assert [a.decision.action for a in back.attempts] == [a.decision.action for a in record.attempts]
    assert back.attempts[0].exchange.passages[0].score == 0.75
    assert back.attempts[0].exchange.answer == ""


def test_lone_surrogates_survive() -> None:
    """Models do write them, and they are no valid UTF-8."""
    record = make_record(text="broken \ud83d and whole \N{GRINNING FACE}")
    assert record_from_fields(json.loads(json.dumps(record_fields(record, log_text=True)))).text == record.text


def test_numbers_that_json_cannot_hold_become_null() -> None:
    """`NaN` in a line would make it unreadable for most readers."""
    attempt = make_attempt("a1", math.nan)
    attempt = replace(attempt, decision=replace(attempt.decision, score=make_score(math.inf)))
    fields = record_fields(make_record(attempt, seconds=math.nan), log_text=True)
    json.dumps(fields, allow_nan=False)
    assert (fields["confidence"], fields["score"], fields["seconds"]) == (None, None, None)
    assert fields["attempts"][0]["score"]["signals"] == {"semgrad": 1.5e-7}


def test_metadata_of_any_type_is_logged() -> None:
    """A caller's odd value must not cost the record."""
    deep: list[object] = []
    deep.append(deep)
    said = plain({1: datetime(2026, 1, 1, tzinfo=UTC), "deep": deep, "bytes": b"x", "set": {2}})
    assert json.dumps(said).count("[") >= MAX_DEPTH - 1
    assert said["1"] == "2026-01-01 00:00:00+00:00"
    assert (said["bytes"], said["set"]) == ("b'x'", [2])


def test_the_summary_speaks_of_the_answer_that_was_returned() -> None:
    """With several attempts the best one is returned, which need not be the last."""
    record = make_record()
    assert summary_fields(record)["confidence"] == 0.4
    assert summary_fields(replace(record, answer_id=record.attempts[1].exchange.id))["confidence"] == 0.2


def test_the_summary_says_where_the_passages_come_from() -> None:
    """Findings, traces and logs hold it, also without texts."""
    attempt = make_attempt("a1")
    attempt = replace(attempt, exchange=replace(attempt.exchange, passages_from="prompt"))
    assert record_fields(make_record(attempt), log_text=False)["passages_from"] == "prompt"


def test_of_equally_confident_attempts_the_summary_speaks_of_the_last() -> None:
    """The later one is what the policy ended with."""
    attempts = (make_attempt("a1", None), replace(make_attempt("a2", None), decision=_scored("a2", 9.0)))
    assert summary_fields(make_record(*attempts))["score"] == 9.0


def test_a_record_without_attempts_has_fields_too() -> None:
    """A sink must cope with whatever a custom guard hands over."""
    fields = record_fields(replace(make_record(), attempts=()), log_text=True)
    assert (fields["action"], fields["confidence"], fields["attempts"]) == (None, None, [])
    assert record_from_fields(fields).attempts == ()


def test_the_reserved_run_is_no_metadata() -> None:
    """Trace ids are ours, not the caller's."""
    attempt = record_fields(make_record(), log_text=True)["attempts"][0]
    assert "run" not in attempt["metadata"]
    assert attempt["run"]["session_name"] == "p"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 99}, "version"),
        ({"status": "lost"}, "lost"),
        ({"attempts": [{}]}, "judged_at"),
        ({"attempts": None}, "NoneType"),
        ({"at": "yesterday"}, "yesterday"),
    ],
)
def test_fields_of_no_record_are_refused_by_name(change: dict[str, object], named: str) -> None:
    """Whoever replays a foreign file must see what is wrong with it."""
    with pytest.raises(RecordFieldsError) as caught:
        record_from_fields({**record_fields(make_record(), log_text=True), **change})
    assert named in caught.value.why


def test_an_unknown_action_is_refused_with_the_known_ones() -> None:
    """An action of a newer release cannot be replayed."""
    fields = record_fields(make_record(make_attempt("a1")), log_text=True)
    fields["attempts"][0]["action"] = "shout"
    with pytest.raises(RecordFieldsError, match=r"'shout', known are accept"):
        record_from_fields(fields)


def _scored(name: str, value: float) -> Decision:
    return replace(make_attempt(name, None).decision, score=make_score(value))


def _without_ids(attempt: Attempt) -> Attempt:
    bare = replace(attempt.exchange, prompt_ids=None, answer_ids=None)
    return replace(attempt, exchange=bare)


@pytest.mark.parametrize("log_text", [True, False])
def test_a_record_of_a_verdict_comes_back(log_text: bool) -> None:
    """It is the last word on a question: whose, and on which."""
    ruling = Ruling(
        review_id=ReviewId("r1"),
        verdict=Verdict.EDITED,
        text=f"text {SECRET}",
        by=f"Ann {SECRET}",
        at=datetime(2026, 5, 1, tzinfo=UTC),
    )
    record = replace(
        make_record(text="given"), attempts=(), review_id=ReviewId("r1"), follows=ExchangeId("first"), ruling=ruling
    )
    fields = json.loads(json.dumps(record_fields(record, log_text=log_text), ensure_ascii=False))
    assert (fields["verdict"], fields["follows"]) == ("edited", "first")
    assert (SECRET in str(fields)) is log_text
    back = record_from_fields(fields)
    assert back.follows == "first"
    assert back.ruling == (ruling if log_text else replace(ruling, text="", by=""))
