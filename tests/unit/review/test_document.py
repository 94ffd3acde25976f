"""The document of an item: complete, storable, and an exchange again afterwards."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from semgrad_guard.flow import (
    Confidence,
    Contribution,
    Decision,
    Exchange,
    Failure,
    Fingerprint,
    HumanReview,
    Message,
    Passage,
    Score,
    SpanScore,
)
from semgrad_guard.review import Document, document_of, exchange_of
from tests.review_queues import doubtful, exchange

SCORE = Score(
    method="semgrad",
    value=0.2,
    signals={"semgrad": 0.2, "max_nll": 3.0},
    fingerprint=Fingerprint(model="m", dtype="float32", template="t", settings="-3", proxy=True),
    model="demo",
    path="reused",
    n_prompt_tokens=9,
    n_answer_tokens=2,
    seconds=0.1,
    spans=(SpanScore(0, 3, {"semgrad": 0.4}, 0.2), SpanScore(3, 5, {"semgrad": 0.1}, None)),
)


def test_an_exchange_comes_back_whole():
    """Calibration learns from reviewed exchanges, so nothing it needs may be lost."""
    given = Exchange(
        prompt=(Message("system", "Be brief."), Message("user", "Why?")),
        answer="So.",
        question="Why?",
        passages=(Passage("Because.", "a.txt", 0.9), Passage("Or not.")),
        tags=frozenset({"x", "y"}),
        metadata={"user": {"id": 3}, "list": [1, None, "z"]},
        attempt=2,
        prompt_ids=(1, 2, 3),
        answer_ids=(4, 5),
        author="big",
        on_policy=True,
        score=SCORE,
    )
    document = Document.model_validate_json(document_of(given, doubtful(given)).model_dump_json())
    assert exchange_of(document) == given


def test_the_reasons_of_the_guard_are_kept():
    """A reviewer sees what lowered the confidence."""
    asked = exchange()
    decision = Decision(
        step=HumanReview(),
        rule="on_error",
        why="scoring failed",
        exchange_id=asked.id,
        score=SCORE,
        confidence=Confidence(
            value=0.25,
            why="fused",
            profile="p.json",
            contributions=(Contribution("max_nll", -1.5, "a rare word"),),
            drifted=True,
        ),
        failure=Failure("scoring", "NonFiniteScoreError", "nan"),
    )
    document = document_of(asked, decision)
    assert (document.confidence, document.confidence_why, document.profile, document.drifted) == (
        0.25,
        "fused",
        "p.json",
        True,
    )
    assert document.contributions[0].text == "a rare word"
    assert document.failure is not None
    assert document.failure.type == "NonFiniteScoreError"
    assert document.score is not None
    assert document.score.spans[0].confidence == 0.2


def test_a_percentile_stays_one():
    """Without labels the confidence is no probability, and calibration must not learn from it as from one."""
    asked = exchange()
    decision = replace(doubtful(asked), confidence=Confidence(value=0.25, label_free=True))
    assert Document.model_validate_json(document_of(asked, decision).model_dump_json()).label_free


def test_what_json_cannot_hold_is_made_to_fit():
    """Metadata comes from callers: whatever it holds, the answer is stored."""
    asked = exchange(
        answer="a\ud800b", metadata={"nan": math.nan, "set": {1}, "object": object, 3: "key", "nul": "\x00"}
    )
    document = document_of(asked, doubtful(asked), {"note": math.inf})
    text = document.model_dump_json()
    assert json.loads(text)["answer"] == "a\ufffdb"
    assert document.metadata["nan"] is None
    assert document.metadata["set"] == [1]
    assert document.metadata["3"] == "key"
    assert document.extra == {"note": None}


def test_a_misspelt_field_is_refused():
    """An import with a wrong name would lose that field in silence."""
    with pytest.raises(ValidationError, match="anwser"):
        Document.model_validate({"exchange_id": "x", "anwser": "y"})
