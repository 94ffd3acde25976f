"""Exchange, score and confidence as JSON, and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import Confidence, Contribution, Exchange, SpanScore
from semgrad_guard.wire import (
    VERSION,
    ExchangeForm,
    ScoreForm,
    WireError,
    attempt_fields,
    attempt_from_fields,
    confidence_fields,
    confidence_from_fields,
    exchange_fields,
    exchange_from_fields,
    score_fields,
    score_from_fields,
)
from tests.records import make_attempt, make_score


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields after they were written and read as strict JSON."""
    return json.loads(json.dumps(fields, allow_nan=False))


def scored_exchange() -> Exchange:
    """Return an exchange with every field filled."""
    return replace(make_attempt("a1").exchange, score=make_score(), on_policy=True, attempt=2)


def test_an_exchange_comes_back_whole() -> None:
    """A scorer on another machine reads the very token ids."""
    exchange = scored_exchange()
    assert exchange_from_fields(through_json(exchange_fields(exchange))) == exchange


def test_a_bare_exchange_comes_back() -> None:
    """Most fields may be missing in an exchange."""
    exchange = Exchange(prompt="p", answer="a")
    assert exchange_from_fields(through_json(exchange_fields(exchange))) == exchange


def test_where_the_passages_come_from_comes_back() -> None:
    """Also from a log without texts; older forms do not say it, and nobody may invent a word for it."""
    attempt = make_attempt("a1")
    attempt = replace(attempt, exchange=replace(attempt.exchange, passages_from="prompt"))
    fields = exchange_fields(attempt.exchange)
    assert exchange_from_fields(through_json(fields)).passages_from == "prompt"
    assert attempt_from_fields(attempt_fields(attempt, log_text=False)).exchange.passages_from == "prompt"
    assert exchange_from_fields({k: v for k, v in fields.items() if k != "passages_from"}).passages_from is None
    with pytest.raises(WireError, match="`passages_from` is 'guess', known are stated, retriever"):
        exchange_from_fields({**fields, "passages_from": "guess"})


def test_the_fields_of_an_exchange_are_those_of_its_form() -> None:
    """What a caller over HTTP is checked by must be what is written."""
    fields = through_json(exchange_fields(scored_exchange()))
    del fields["id"]
    assert ExchangeForm.model_validate(fields).model_dump(mode="json") == fields


def test_texts_that_no_encoding_can_hold_survive() -> None:
    """Models do write lone surrogates."""
    exchange = Exchange(prompt="p", answer="broken \ud83d")
    assert exchange_from_fields(through_json(exchange_fields(exchange))) == exchange


def test_a_score_comes_back_equal() -> None:
    """With the confidences of its sentences, or without."""
    score = make_score(spans=(SpanScore(0, 5, {"semgrad": 2e-7}, 0.5), SpanScore(5, 9, {"semgrad": 1e-7})))
    assert score_from_fields(through_json(score_fields(score))) == score


def test_shares_of_passages_come_back_equal() -> None:
    """Also of one that the prompt did not show; what an older version wrote has none."""
    score = replace(
        make_score(), passage_attention=(0.25, None, 0.125), passage_gradients=(0.5, None, 0.25), read_for="1:2"
    )
    fields = through_json(score_fields(score))
    assert score_from_fields(fields) == score
    for name in ("passage_attention", "passage_gradients", "read_for"):
        del fields[name]
        assert not getattr(score_from_fields(fields), name)


def test_a_score_is_one_object_wherever_it_is_written() -> None:
    """One reader, one description, one thing to look for in any file."""
    attempt = make_attempt("a1")
    score = attempt.decision.score
    assert score is not None
    written = score_fields(score)
    assert written["version"] == VERSION
    assert attempt_fields(attempt, log_text=False)["score"] == written
    assert exchange_fields(replace(attempt.exchange, score=score))["score"] == written
    assert ScoreForm.model_validate(written).model_dump(mode="json") == written


def test_numbers_of_a_score_that_json_cannot_hold_are_left_out() -> None:
    """A value becomes null and comes back as NaN; a signal or a sentence's confidence is missing."""
    spans = (SpanScore(0, 5, {"semgrad": math.inf}, math.nan),)
    fields = through_json(score_fields(make_score(math.nan, seconds=math.inf, spans=spans)))
    assert (fields["value"], fields["signals"], fields["seconds"]) == (None, {"semgrad": 1.5e-7}, 0.0)
    back = score_from_fields(fields)
    assert math.isnan(back.value)
    assert back.spans == (SpanScore(0, 5, {}, None),)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": VERSION + 1}, "version"),
        ({"method": None}, "method"),
        ({"fingerprint": {}}, "fingerprint.model"),
        ({"path": "sideways"}, "path"),
        ({"signals": {"semgrad": "high"}}, "signals.semgrad"),
        ({"spans": [{"start": 0}]}, "spans.0.end"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_score_is_refused_by_the_field(change: dict[str, Any], named: str) -> None:
    """Other models put their own things under our key."""
    with pytest.raises(WireError) as caught:
        score_from_fields({**score_fields(make_score()), **change})
    assert f"`{named}`" in caught.value.why


@pytest.mark.parametrize("found", [None, "a text", 0.5, [], {}])
def test_what_is_no_object_is_no_score(found: object) -> None:
    """Whatever it is, one error says so, which is one of ours and a `ValueError`."""
    with pytest.raises(WireError) as caught:
        score_from_fields(found)
    assert isinstance(caught.value, SemGradGuardError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": VERSION + 1}, f"`version` is {VERSION + 1}, this release reads 1 to {VERSION}"),
        ({"prompt": [{"role": "user"}]}, "field 'content' is missing"),
        ({"score": {"method": "semgrad"}}, "`value`"),
        ({"tags": None}, "NoneType"),
    ],
)
def test_what_is_no_exchange_is_refused(change: dict[str, Any], named: str) -> None:
    """With what is wrong."""
    with pytest.raises(WireError) as caught:
        exchange_from_fields({**exchange_fields(scored_exchange()), **change})
    assert named in caught.value.why


def test_a_confidence_comes_back_equal() -> None:
    """Also that it is a percentile and no probability: a policy must not take one for the other."""
    confidence = Confidence(
        value=0.25,
        why="percentile of recent scores",
        profile="p",
        contributions=(Contribution("semgrad", -0.5, "because"),),
        drifted=True,
        label_free=True,
    )
    assert confidence_from_fields(through_json(confidence_fields(confidence))) == confidence


def test_a_contribution_that_is_no_number_does_not_spoil_a_line() -> None:
    """It comes back as NaN."""
    confidence = Confidence(value=0.25, contributions=(Contribution("semgrad", math.nan, ""),))
    (contribution,) = confidence_from_fields(through_json(confidence_fields(confidence))).contributions
    assert math.isnan(contribution.weight)


def test_an_attempt_alone_comes_back() -> None:
    """An agent's state keeps attempts between two questions to its model; they are written without token ids."""
    attempt = make_attempt("a1")
    bare = replace(attempt, exchange=replace(attempt.exchange, prompt_ids=None, answer_ids=None))
    assert attempt_from_fields(through_json(attempt_fields(attempt, log_text=True))) == bare
    with pytest.raises(WireError, match="`version` is 99"):
        attempt_from_fields({**attempt_fields(attempt, log_text=True), "version": 99})
