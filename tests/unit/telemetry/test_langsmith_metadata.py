"""What a guard's run in LangSmith says: a few keys that one reads, or everything on request."""

from __future__ import annotations

from dataclasses import replace

from semgrad_guard.flow import Failure, Status
from semgrad_guard.telemetry.langsmith import METADATA, run_metadata
from semgrad_guard.wire import SUMMARY, deciding_error, summary_fields
from tests.records import make_attempt, make_record


def test_a_run_has_at_most_eight_keys():
    """Forty keys hide the one that is looked for."""
    said = run_metadata(make_record(), log_text=True)
    assert len(said) <= 8
    assert {key.removeprefix("semgrad_") for key in said} <= METADATA.keys()
    assert said["semgrad_why"].startswith("0.9 >= 0.7")


def test_all_signals_are_there_on_request():
    """For those who compare signals in LangSmith."""
    said = run_metadata(make_record(), log_text=False, all_signals=True)
    assert (said["semgrad_signal_semgrad"], said["semgrad_method"]) == (1.5e-7, "hybridgrad")
    assert "semgrad_why" not in said


def test_a_run_that_worked_has_no_error_type():
    """A retry that failed on the way did not fail the run."""
    failed_on_the_way = (Failure("retry_retrieval", "RetrievalFailedError", ""),)
    answered = make_record(make_attempt("a1"), status=Status.ANSWERED, failures=failed_on_the_way)
    assert "semgrad_error_type" not in run_metadata(answered, log_text=False)
    held_back = replace(answered, status=Status.ABSTAINED)
    assert run_metadata(held_back, log_text=False)["semgrad_error_type"] == "RetrievalFailedError"


def test_an_answer_that_passed_unjudged_has_the_error_that_let_it_pass():
    """Measuring gives it as it is, but that is no success of the guard."""
    attempt = make_attempt("a1", None)
    failed = replace(attempt, decision=replace(attempt.decision, failure=Failure("scoring", "EmptyAnswerError", "")))
    assert deciding_error(make_record(failed, status=Status.ANSWERED)) == "EmptyAnswerError"


def test_each_field_of_the_summary_is_explained():
    """The documentation prints these words."""
    assert {*summary_fields(make_record())} <= SUMMARY.keys()
