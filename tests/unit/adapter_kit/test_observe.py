"""Judging answers that their readers already have."""

from __future__ import annotations

import threading

import pytest

from semgrad_guard.adapter_kit import BackgroundJudge, Candidate, observe, recording_faults
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import Exchange, Status
from tests.fakes import MemorySink, guard_of


def test_an_observed_answer_is_recorded_as_given_whatever_the_policy_says() -> None:
    """An observer changes nothing; a doubtful answer is marked in the record only."""
    sink = MemorySink()
    guard = guard_of(scores={"sure": 0.1, "unsure": 0.9}, sink=sink)
    sure = observe(guard, Candidate(Exchange(answer="sure")))
    unsure = observe(guard, Candidate(Exchange(answer="unsure")))
    assert (sure.text, sure.status, unsure.text, unsure.status) == ("sure", Status.ANSWERED, "unsure", Status.WARNED)
    assert [record.text for record in sink.records] == ["sure", "unsure"]


def test_an_answer_that_cannot_be_judged_is_recorded_with_its_reason() -> None:
    """An observer raises nothing, and what failed is a finding."""
    sink = MemorySink()
    outcome = observe(guard_of(sink=sink), Candidate(Exchange(answer="a"), PromptNotFoundError("here", "ask")))
    assert (outcome.text, outcome.status, outcome.decision.rule) == ("a", Status.WARNED, "on_error")
    assert [record.failures[0].type for record in sink.records] == ["PromptNotFoundError"]


def test_a_pipeline_that_raises_is_recorded_and_raises_on() -> None:
    """Its caller must see the error as it is, and the log must know of the question."""
    sink = MemorySink()
    with pytest.raises(ZeroDivisionError), recording_faults(guard_of(sink=sink), "how?"):
        _ = 1 / 0
    (record,) = sink.records
    assert (record.status, record.failures[0].type, record.attempts[0].exchange.question) == (
        Status.ABSTAINED, "ZeroDivisionError", "how?"
    )  # fmt: skip


def test_the_background_judge_works_in_order_and_ends_when_idle() -> None:
    """No thread is left once everything is judged."""
    judged: list[int] = []
    judge = BackgroundJudge(name="test judge")
    assert all(judge.put(lambda i=i: judged.append(i)) for i in range(50))
    assert judge.flush(10)
    assert judged == list(range(50))
    for thread in threading.enumerate():
        if thread.name == "test judge":
            thread.join(10)
    assert not any(thread.name == "test judge" for thread in threading.enumerate())


def test_the_background_judge_drops_what_finds_no_place_and_goes_on_after_a_failure() -> None:
    """A slow scorer must not fill the memory, and one bad answer must not end the judging."""
    started, gate, judged = threading.Event(), threading.Event(), []
    judge = BackgroundJudge(1)

    def wait_then_fail() -> None:
        started.set()
        gate.wait(10)
        raise RuntimeError

    assert judge.put(wait_then_fail)
    assert started.wait(10)
    assert judge.put(lambda: judged.append(1))
    assert not judge.put(lambda: judged.append(2))
    gate.set()
    assert judge.flush(10)
    assert (judged, judge.dropped) == ([1], 1)
