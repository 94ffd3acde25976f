"""When what happened, for spans that are made afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from semgrad_guard.flow import RetryRetrieval
from semgrad_guard.routing import Resources
from semgrad_guard.telemetry.otel import nanoseconds, started_at, timeline
from tests.fakes import Answerer, LadderDecider, ListRetriever, MemorySink, guard_of
from tests.records import make_attempt, make_record

END = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)


def test_an_attempt_ends_where_the_judgement_of_the_next_begins() -> None:
    """Between two judgements lies what the first one led to."""
    first, second = make_attempt("a"), make_attempt("b")
    record = make_record(
        replace(first, judged_at=END - timedelta(seconds=2)), replace(second, judged_at=END - timedelta(seconds=1))
    )
    one, two = timeline(record)
    assert one.judging_at == END - timedelta(seconds=2.125)
    assert one.acted_at == two.judging_at == END - timedelta(seconds=1.125)
    assert two.acted_at == END


def test_a_score_taken_earlier_does_not_begin_before_the_question() -> None:
    """In a batch or while generating, scores are taken before the first judgement."""
    record = make_record(replace(make_attempt("a"), judged_at=END), seconds=0.01)
    assert timeline(record)[0].judging_at == started_at(record) == END - timedelta(seconds=0.01)


def test_moments_are_exact() -> None:
    """A float of seconds since 1970 is off by a hundred nanoseconds and more."""
    assert nanoseconds(datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)) == 1767225600000001000


def test_a_guard_says_when_it_judged_and_what_it_gave() -> None:
    """Spans and feedback are made of this."""
    sink = MemorySink()
    guard = guard_of(
        scores={"good": 0.1, "bad": 0.9},
        decider=LadderDecider([RetryRetrieval(top_k=2)]),
        sink=sink,
    )
    resources = Resources(chain=Answerer(lambda _, __: "good"), retriever=ListRetriever(["one", "two"]))
    first = replace(make_attempt("a").exchange, answer="bad")
    outcome = guard.run(first, resources)
    (record,) = sink.records
    assert record.answer_id == outcome.exchange.id != first.id
    moments = [attempt.judged_at for attempt in record.attempts]
    assert None not in moments
    assert started_at(record) <= moments[0] <= moments[1] <= record.at
    assert "run" not in record.attempts[1].exchange.metadata
