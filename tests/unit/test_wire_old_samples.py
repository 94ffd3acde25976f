"""Everything that version 0.1 wrote is read: logs, queue documents, scores in messages, scored rows, profiles.

The samples were written by the code of commit c3e8f45. They are never changed: a form that people have in their files
stays readable, whatever newer versions write.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from semgrad_guard.calibration import load_profile
from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.compare.labelled import Grading
from semgrad_guard.evaluation.grading import GRADERS, shared_words
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.row_files import ScoredFile, Setting
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.evaluation.score_file import write_answers
from semgrad_guard.evaluation.simulate import RecordedRows
from semgrad_guard.flow import (
    Abstain,
    Confidence,
    Contribution,
    Exchange,
    Failure,
    Fingerprint,
    HumanReview,
    Message,
    Passage,
    RetryRetrieval,
    ReviewId,
    Ruling,
    Score,
    SpanScore,
    Status,
    Verdict,
)
from semgrad_guard.review import Document, exchange_of
from semgrad_guard.telemetry import RunRef, read_records, record_from_fields
from semgrad_guard.wire import score_from_fields

SAMPLES = Path(__file__).parents[1] / "samples" / "v0_1"
FINGERPRINT = Fingerprint(model="m1", dtype="float32", template="t1", settings="position=-3")
SCORE = Score(
    method="hybridgrad",
    value=0.25,
    signals={"hybridgrad": 0.25, "semgrad": 1.5e-7},
    fingerprint=FINGERPRINT,
    model="tiny",
    path="reused",
    n_prompt_tokens=12,
    n_answer_tokens=3,
    seconds=0.125,
    spans=(SpanScore(0, 5, {"semgrad": 2e-7}, 0.5),),
)
WITH_A_SIGNAL_THAT_WAS_NO_NUMBER = replace(SCORE, value=0.75, signals={"hybridgrad": 0.75})
RUN = {
    "run_id": "11111111-1111-4111-8111-111111111111",
    "trace_id": "22222222-2222-4222-8222-222222222222",
    "session_name": "p",
}
CONFIDENCE = Confidence(
    value=0.4, why="why Paris", profile="rag", contributions=(Contribution("semgrad", -0.5, "because Paris"),)
)


def exchange(name: str, **changes: object) -> Exchange:
    """Return the exchange that most samples hold."""
    return Exchange(
        id=name,
        question="question Paris",
        prompt=(Message("system", "system Paris"), Message("user", "user Paris")),
        answer="answer Paris",
        passages=(Passage("passage Paris", "source Paris", 0.75),),
        tags=frozenset({"medical", "beta"}),
        metadata={"note": "note Paris", "tenant": 7, "run": RUN},
        author="writer",
        **changes,
    )


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_logged_question_is_read_whole() -> None:
    """Its attempts, decisions, scores, failures and what the caller got."""
    record, _, _ = read_records(SAMPLES / "log.jsonl")
    first, second = record.attempts
    assert (record.id, record.status, record.text) == ("a1", Status.ABSTAINED, "text Paris")
    assert (record.policy, record.seconds, record.scoring_s) == ("policy.yaml sha256:ab", 2.5, 0.25)
    assert (record.review_id, record.answer_id, record.reused, record.follows) == ("r1", "a1", False, None)
    assert record.at == datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert record.failures == (Failure("scoring", "EmptyAnswerError", "failure Paris"),)
    assert first.exchange == exchange("a1")
    assert second.exchange == exchange("a2", attempt=2)
    assert first.judged_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert first.decision.step == RetryRetrieval(top_k=8, configurable={"k": "Paris"})
    assert (first.decision.rule, first.decision.why) == ("escalate[0].retry_retrieval", "0.9 >= 0.7 Paris")
    assert (first.decision.score, first.decision.confidence) == (SCORE, CONFIDENCE)
    assert second.decision.step == Abstain(message="message Paris")
    assert second.decision.score == WITH_A_SIGNAL_THAT_WAS_NO_NUMBER
    assert second.decision.failure == Failure("scoring", "EmptyAnswerError", "failure Paris")
    assert second.failure == Failure("human_review", "QueueUnavailableError", "step Paris")
    run = RunRef.of(first.exchange)
    assert run is not None
    assert run.fields() == RUN


def test_a_logged_attempt_without_a_score_is_read() -> None:
    """The guard could not judge it, and handed it to a person."""
    _, unscored, _ = read_records(SAMPLES / "log.jsonl")
    (attempt,) = unscored.attempts
    assert (attempt.decision.score, attempt.decision.confidence.value) == (None, None)
    assert attempt.decision.step == HumanReview(wait_s=2.0, message="A person looks.")
    assert attempt.decision.failure == Failure("scoring", "EmptyAnswerError", "the answer is empty")


def test_a_logged_verdict_is_read() -> None:
    """It says what a person decided later on the first question."""
    _, _, verdict = read_records(SAMPLES / "log.jsonl")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (verdict.follows, verdict.attempts, verdict.reused) == ("a1", (), True)
    assert verdict.ruling == Ruling(
        review_id=ReviewId("r1"), verdict=Verdict.EDITED, text="a better text", by="Ann", at=at
    )


def test_a_log_without_texts_is_read() -> None:
    """Everything but the words comes back."""
    record, unscored, verdict = read_records(SAMPLES / "log_without_text.jsonl")
    first, second = record.attempts
    assert (record.text, first.exchange.answer, first.exchange.prompt, first.decision.why) == ("", "", "", "")
    assert first.exchange.passages == (Passage("", score=0.75),)
    assert first.exchange.metadata == {"tenant": 7, "run": RUN}
    assert [a.decision.score for a in record.attempts] == [SCORE, WITH_A_SIGNAL_THAT_WAS_NO_NUMBER]
    assert first.decision.confidence.contributions == (Contribution("semgrad", -0.5, ""),)
    assert first.decision.step == RetryRetrieval(top_k=8)
    assert second.decision.step == Abstain(message="")
    assert unscored.attempts[0].decision.step == HumanReview(wait_s=2.0)
    assert verdict.ruling is not None
    assert (verdict.ruling.verdict, verdict.ruling.by, verdict.ruling.text) == (Verdict.EDITED, "", "")


def test_lines_of_a_log_are_read_one_by_one() -> None:
    """`record_from_fields` takes what `json.loads` gives."""
    lines = (SAMPLES / "log.jsonl").read_text(encoding="ascii").splitlines()
    assert [record_from_fields(json.loads(line)).id for line in lines] == ["a1", "b1", "a1"]


# --- queue ------------------------------------------------------------------------------------------------------------


def test_a_stored_document_is_read_whole() -> None:
    """Databases hold it as JSON text; people read it, and calibration learns from it."""
    document = Document.model_validate_json((SAMPLES / "queue_document.json").read_bytes())
    trace = "https://traces.example/1"
    asked = exchange("d2", attempt=2, on_policy=True, prompt_ids=(1, 2), answer_ids=(3,))
    metadata = {**asked.metadata, "trace_url": trace}
    assert exchange_of(document) == replace(asked, metadata=metadata, score=WITH_A_SIGNAL_THAT_WAS_NO_NUMBER)
    assert (document.confidence, document.confidence_why, document.profile) == (0.25, "why Paris", "rag")
    assert (document.drifted, document.rule, document.why) == (True, "escalate[1].human_review", "0.9 >= 0.7 Paris")
    assert (document.trace_url, document.failure, document.extra) == (trace, None, {})
    (contribution,), (earlier,) = document.contributions, document.earlier
    assert (contribution.signal, contribution.weight, contribution.text) == ("semgrad", -0.5, "because Paris")
    assert (earlier.answer, earlier.author, earlier.n_passages) == ("answer Paris", "writer", 1)
    assert (earlier.confidence, earlier.rule, earlier.why) == (0.1, "accept", "0.9 >= 0.7 Paris")
    assert earlier.failure is not None
    assert (earlier.failure.stage, earlier.failure.type, earlier.failure.message) == (
        "retry_retrieval",
        "RetrievalFailedError",
        "down",
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def test_the_score_of_a_message_is_read() -> None:
    """Checkpoints of agents keep messages for long."""
    score = score_from_fields(json.loads((SAMPLES / "message_score.json").read_bytes()))
    numbers = {name: value for name, value in score.signals.items() if math.isfinite(value)}
    assert replace(score, signals=numbers) == SCORE


# --- scored rows ------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_score_file_are_read() -> None:
    """Signals, fingerprint, label and tags; what could not be scored says so."""
    rows = list(read_rows(SAMPLES / "score_file.jsonl"))
    labeller = Labeller(path="score_file.jsonl")
    (label,) = labeller.label(rows)
    assert (label.signals["semgrad"], label.signals["hybridgrad"]) == (1.5e-7, 0.25)
    assert math.isnan(label.signals.get("max_nll", math.nan))
    assert (label.fingerprint, label.correct, label.tags) == (FINGERPRINT, True, {"geo"})
    assert labeller.left_out == {"EmptyAnswerError": 1}


def test_the_rows_of_a_score_file_are_replayed() -> None:
    """`policy simulate` reads scores, sentences, times and confidences."""
    scored, failed = RecordedRows(SAMPLES / "score_file.jsonl")
    score = scored.first.exchange.score
    assert score is not None
    assert (score.method, score.value, score.fingerprint, score.model) == ("hybridgrad", 0.25, FINGERPRINT, "tiny")
    assert (score.signals["semgrad"], score.signals["hybridgrad"]) == (1.5e-7, 0.25)
    assert (score.spans, score.seconds) == ((SpanScore(0, 5, {"semgrad": 2e-7}, 0.5),), 0.125)
    assert (scored.first.scoring_s, scored.first.confidence, scored.first.correct) == (0.125, 0.75, True)
    assert failed.first.exchange.score is None
    assert failed.first.error is not None
    assert failed.first.error.startswith("EmptyAnswerError")


def test_a_score_file_is_gone_on_with(tmp_path: Path) -> None:
    """By the same model and setting only."""
    path = Path(shutil.copy(SAMPLES / "score_file.jsonl", tmp_path))
    setting = Setting(fingerprint=FINGERPRINT, method="hybridgrad")
    file = ScoredFile(path, setting)
    assert (len(file.done), file.n_errors) == (2, 1)
    del file
    with pytest.raises(DataFileError, match="method hybridgrad in the file, semgrad in this run"):
        ScoredFile(path, replace(setting, method="semgrad"))
    with pytest.raises(DataFileError, match="dtype float32 in the file, bfloat16 in this run"):
        ScoredFile(path, replace(setting, fingerprint=replace(FINGERPRINT, dtype="bfloat16")))


def test_a_score_file_is_shown(tmp_path: Path) -> None:
    """The page has the numbers, the marked sentence and the error."""
    source, page = tmp_path / "spans.jsonl", tmp_path / "page.html"
    lines = (
        (SAMPLES / "score_file.jsonl").read_text(encoding="ascii").replace('{"semgrad": 2e-07}', '{"hybridgrad": 0.2}')
    )
    source.write_text(lines, encoding="ascii")
    write_answers(source, page)
    shown = page.read_text(encoding="utf-8")
    assert "confidence 0.75, hybridgrad 0.25, model tiny" in shown
    assert '<mark style="--doubt:0.50" title="confidence 0.50, hybridgrad 0.2">Paris</mark>' in shown
    assert "EmptyAnswerError" in shown


def test_the_lines_of_an_answers_file_are_read(tmp_path: Path) -> None:
    """`evaluate` goes on with them: signals, costs and sampled answers."""
    path = Path(shutil.copy(SAMPLES / "answers_file.jsonl", tmp_path))
    (row,) = read_rows(path)
    assert row.fingerprint is not None
    assert (row.fingerprint.dtype, row.fingerprint.settings) == ("float32", "position -3, blocks 2 to 3, by answer")
    file = ScoredFile(path, Setting(fingerprint=row.fingerprint))
    grading = Grading(
        grader=lambda _, answer, answers: GRADERS["contains"](answer, answers), alike=shared_words, same=0.5
    )
    (label,) = grading.labels(file)
    assert len(file.done) == 1
    assert (label.fingerprint, label.correct) == (row.fingerprint, False)
    assert label.signals["semgrad@-2"] == 0.0018917637080448912
    assert (label.signals["hybridgrad"], label.signals["mean_nll"]) == (0.002239690577052041, 3.0280528413662124)
    assert (label.signals["context_gain"], label.signals["p_true"]) == (0.6057089247155827, 0.026376507966342798)
    assert {"semantic_entropy", "sample_disagreement"} <= label.signals.keys()
    assert {"score", "seconds", "path"}.isdisjoint(label.signals)
    assert grading.mean_seconds() == {
        "answer": 0.013412,
        "score": 0.015807,
        "context_gain": 0.003336,
        "p_true": 0.003266,
        "samples": 0.007929,
    }
    del file
    with pytest.raises(DataFileError, match=r"model .* in the file, .* in this run"):
        ScoredFile(path, Setting(fingerprint=FINGERPRINT))


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_a_profile_is_read() -> None:
    """It gives the confidences that it gave."""
    profile = load_profile(SAMPLES / "profile.json")
    assert (profile.name, profile.method, profile.n_labels, profile.label_free) == ("synthetic", "fused", 60, False)
    assert profile.fingerprint == Fingerprint(
        model="m1", dtype="float32", template="t1", settings="position=-3 band=upper"
    )
    signals = {"semgrad": 0.6, "mean_nll": 1.5, "grounding": 0.5, "length": 12.0}
    assert profile.margin(signals) == pytest.approx(-0.23725432348419362, rel=1e-12)
    assert profile.confidence_of_margin(0.5) == pytest.approx(0.5859371981804528, rel=1e-12)
