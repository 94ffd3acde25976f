"""The flow from the first attempt to the outcome."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from semgrad_guard.errors import EmptyAnswerError, QueueUnavailableError, UnansweredError, UncalibratedError
from semgrad_guard.flow import (
    Abstain,
    AnswerWithWarning,
    Exchange,
    FallbackModel,
    HumanReview,
    Passage,
    RetryRetrieval,
    ReviewId,
    Ruling,
    Status,
    Verdict,
)
from semgrad_guard.guard import Guard
from semgrad_guard.policy import PolicyDecider, load_policy
from semgrad_guard.routing import Resources
from tests.fakes import Answerer, LadderDecider, ListRetriever, MemoryQueue, MemorySink, guard_of

BAD = Exchange(prompt="p", answer="bad", question="q?", passages=(Passage("one"),))
RETRY = RetryRetrieval(top_k=2)
BIG = FallbackModel(name="big")


def good_resources(**more: object) -> Resources:
    return Resources(
        chain=Answerer(lambda _, __: "good"),
        retriever=ListRetriever(["one", "two"]),
        fallbacks={"big": Answerer(lambda _, __: "good")},
        **more,  # type: ignore[arg-type]
    )


def test_a_confident_answer_comes_out_as_it_went_in() -> None:
    """Nothing may be changed where nothing is doubted."""
    outcome = guard_of(scores={"good": 0.1}).run(Exchange(prompt="p", answer="good"))
    assert (outcome.text, outcome.status, outcome.decision.rule) == ("good", Status.ANSWERED, "accept")
    assert outcome.confidence == pytest.approx(0.9)


def test_a_doubtful_answer_is_held_back() -> None:
    """The policy's message takes its place."""
    outcome = guard_of(scores={"bad": 0.9}).run(BAD)
    assert (outcome.text, outcome.status, outcome.withheld) == ("I do not know.", Status.ABSTAINED, True)


def test_a_fallback_model_answers_where_the_model_gave_no_answer() -> None:
    """Its answer is judged; the empty one is in the record, with what went wrong."""
    policy = {"accept": 0.7, "escalate": [{"retry_retrieval": {}}, {"fallback_model": "big"}]}
    parts = replace(guard_of(scores={"good": 0.1}).parts, decider=PolicyDecider(load_policy(policy)))
    empty = Exchange(prompt="p", answer="")
    outcome = Guard(parts).run_unanswered(empty, OSError("down"), good_resources())
    assert (outcome.text, outcome.decision.rule) == ("good", "accept")
    assert [attempt.decision.rule for attempt in outcome.attempts] == ["escalate[1].fallback_model", "accept"]
    assert [failure.type for failure in outcome.record.failures] == ["OSError"]
    with pytest.raises(UnansweredError, match=r"down.*fallback model 'big'") as raised:
        Guard(parts).run_unanswered(empty, OSError("down"))
    assert isinstance(raised.value.__cause__, OSError)


def test_a_decider_without_rules_for_it_leaves_a_question_unanswered() -> None:
    """There is nothing to hold back, and nobody said whom to ask."""
    with pytest.raises(UnansweredError, match="names no fallback"):
        guard_of().run_unanswered(Exchange(prompt="p", answer=""), OSError("down"), good_resources())


@pytest.mark.parametrize("step", [RETRY, BIG])
def test_a_step_gives_a_new_attempt_that_is_judged(step: RetryRetrieval | FallbackModel) -> None:
    """A retry or fallback is a new attempt from the left, scored like the first."""
    guard = guard_of(scores={"bad": 0.9, "good": 0.1}, decider=LadderDecider([step]))
    outcome = guard.run(BAD, good_resources())
    assert (outcome.text, outcome.status, len(outcome.attempts)) == ("good", Status.ANSWERED, 2)
    assert outcome.exchange.attempt == 2


def test_a_failed_step_gives_way_to_the_next() -> None:
    """A retriever that raises must not end the ladder."""
    guard = guard_of(scores={"bad": 0.9, "good": 0.1}, decider=LadderDecider([RETRY, BIG]))
    resources = Resources(
        chain=Answerer(lambda _, __: "never"),
        retriever=ListRetriever([], fault=RuntimeError("index is gone")),
        fallbacks={"big": Answerer(lambda _, __: "good")},
    )
    outcome = guard.run(BAD, resources)
    assert outcome.text == "good"
    assert [f.stage for f in outcome.record.failures] == ["retry_retrieval"]
    assert "index is gone" in outcome.record.failures[0].message


def test_a_step_without_its_resource_is_skipped_and_recorded() -> None:
    """A guard in the middle of a chain can't retrieve; it says so instead of failing."""
    guard = guard_of(scores={"bad": 0.9}, decider=LadderDecider([RETRY, BIG]))
    outcome = guard.run(BAD)
    assert outcome.status is Status.ABSTAINED
    assert [f.type for f in outcome.record.failures] == ["StepUnavailableError", "StepUnavailableError"]


def test_the_best_attempt_is_the_one_returned() -> None:
    """A retry that made things worse must not replace the better first answer."""
    decider = LadderDecider([RETRY], otherwise=AnswerWithWarning(warning="Careful:"))
    guard = guard_of(scores={"bad": 0.5, "worse": 0.9}, decider=decider)
    outcome = guard.run(BAD, Resources(chain=Answerer(lambda _, __: "worse"), retriever=ListRetriever(["one", "two"])))
    assert (outcome.text, outcome.status) == ("Careful:\n\nbad", Status.WARNED)
    assert outcome.confidence == pytest.approx(0.5)


def test_a_scoring_error_takes_on_error() -> None:
    """An answer that was not judged is never passed in silence."""
    outcome = guard_of(scores={"bad": EmptyAnswerError()}).run(BAD)
    assert (outcome.status, outcome.decision.rule) == (Status.ABSTAINED, "on_error")
    assert outcome.record.failures[0].type == "EmptyAnswerError"


def test_a_score_that_is_not_a_number_takes_on_error() -> None:
    """NaN compares false with every threshold, so it must not reach the policy."""
    outcome = guard_of(scores={"bad": float("nan")}).run(BAD)
    assert (outcome.decision.rule, outcome.record.failures[0].type) == ("on_error", "NonFiniteScoreError")


def test_human_review_stores_the_best_answer_and_answers_pending() -> None:
    """The caller gets the pending message and the id to ask for."""
    queue = MemoryQueue()
    guard = guard_of(scores={"bad": 0.9}, decider=LadderDecider([HumanReview(message="wait")]), queue=queue)
    outcome = guard.run(BAD)
    assert (outcome.text, outcome.status, outcome.review_id) == ("wait", Status.PENDING, "item-1")
    assert [item.id for item in queue.items] == [BAD.id]


def test_a_person_reads_the_best_attempt_with_its_own_confidence() -> None:
    """The queue ranks by confidence; that of a worse later attempt would mislead."""
    queue = MemoryQueue()
    decider = LadderDecider([RETRY, HumanReview(message="wait")])
    guard = guard_of(scores={"bad": 0.5, "worse": 0.9}, decider=decider, queue=queue)
    guard.run(BAD, Resources(chain=Answerer(lambda _, __: "worse"), retriever=ListRetriever(["one", "two"])))
    assert [item.id for item in queue.items] == [BAD.id]
    assert queue.decisions[0].confidence.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("verdict", "text", "status"),
    [
        (Verdict.APPROVED, "bad", Status.REVIEWED),
        (Verdict.EDITED, "bad", Status.REVIEWED),
        (Verdict.REJECTED, "I do not know.", Status.ABSTAINED),
        (Verdict.EXPIRED, "I do not know.", Status.ABSTAINED),
    ],
)
def test_a_verdict_in_time_is_what_the_caller_gets(verdict: Verdict, text: str, status: Status) -> None:
    """Approved and edited answers go out; rejected ones do not."""
    ruling = Ruling(review_id=ReviewId("item-1"), verdict=verdict, text="bad", by="ann", at=datetime.now(UTC))
    decider = LadderDecider([HumanReview(message="wait", wait_s=1)])
    guard = guard_of(scores={"bad": 0.9}, decider=decider, queue=MemoryQueue(ruling=ruling))
    outcome = guard.run(BAD)
    assert (outcome.text, outcome.status) == (text, status)


@pytest.mark.parametrize("fault", [QueueUnavailableError("database is locked"), OSError("no space left on device")])
def test_a_queue_that_takes_nothing_takes_on_error(fault: Exception) -> None:
    """A full disk or locked database holds the answer back and is recorded."""
    decider = LadderDecider([HumanReview(message="wait")])
    outcome = guard_of(scores={"bad": 0.9}, decider=decider, queue=MemoryQueue(fault=fault)).run(BAD)
    assert (outcome.status, outcome.decision.rule) == (Status.ABSTAINED, "on_error")
    assert outcome.record.failures[0].type == "QueueUnavailableError"
    assert outcome.decision.score is not None


def test_review_on_error_with_a_broken_queue_fails_closed() -> None:
    """When the way out of an error fails too, the answer is held back."""
    review = HumanReview(message="wait")
    decider = LadderDecider([review], on_error=review)
    queue = MemoryQueue(fault=QueueUnavailableError("locked"))
    outcome = guard_of(scores={"bad": 0.9}, decider=decider, queue=queue).run(BAD)
    assert (outcome.text, outcome.status) == ("I do not know.", Status.ABSTAINED)


def test_a_policy_without_an_end_is_cut_off() -> None:
    """A custom decider that always retries must not hang the caller."""

    class Endless(LadderDecider):
        def _choose(self, confidence: object, progress: object) -> tuple[RetryRetrieval, str]:
            return RETRY, "again"

    answers = iter(range(10_000))
    resources = Resources(
        chain=Answerer(lambda _, __: str(next(answers))), retriever=ListRetriever(["one", "two", "three"])
    )
    guard = guard_of(decider=Endless())
    outcome = guard.run(Exchange(prompt="p", answer="bad", question="q?", passages=(Passage("x"),)), resources)
    assert outcome.status is Status.ABSTAINED
    assert outcome.decision.rule == "on_error"


def test_a_policy_that_breaks_while_deciding_fails_closed() -> None:
    """Even a decider that raises everywhere must not let an answer through."""

    class Broken(LadderDecider):
        def decide(self, *args: object) -> object:
            raise RuntimeError("broken")

        def decide_failure(self, *args: object) -> object:
            raise RuntimeError("broken too")

    outcome = guard_of(scores={"bad": 0.0}, decider=Broken()).run(BAD)  # type: ignore[arg-type]
    assert outcome.status is Status.ABSTAINED


def test_uncalibrated_as_an_error_reaches_the_caller() -> None:
    """The user asked to be told by an exception."""

    class Strict(LadderDecider):
        def decide(self, *args: object) -> object:
            raise UncalibratedError("no profile")

    with pytest.raises(UncalibratedError):
        guard_of(decider=Strict()).judge(BAD)  # type: ignore[arg-type]


def test_a_fallback_may_pass_unscored() -> None:
    """The policy can trust a model; the record says that nothing judged it."""
    guard = guard_of(scores={"bad": 0.9}, decider=LadderDecider([FallbackModel(name="big", unscored=True)]))
    outcome = guard.run(BAD, good_resources())
    assert (outcome.text, outcome.status, outcome.confidence) == ("good", Status.ANSWERED, None)


def test_one_record_a_question_reaches_the_sink() -> None:
    """Every attempt and what the caller got are in one record."""
    sink = MemorySink()
    guard = guard_of(scores={"bad": 0.9, "good": 0.1}, decider=LadderDecider([RETRY]), sink=sink)
    outcome = guard.run(BAD, good_resources())
    assert sink.records == [outcome.record]
    assert [a.exchange.answer for a in outcome.record.attempts] == ["bad", "good"]


def test_a_sink_that_raises_does_not_cost_the_answer() -> None:
    """Telemetry is never in the way."""

    class Broken(MemorySink):
        def emit(self, record: object) -> None:
            raise RuntimeError("collector is down")

    assert guard_of(scores={"good": 0.1}, sink=Broken()).run(Exchange(prompt="p", answer="good")).text == "good"


def test_a_batch_keeps_order_and_isolates_errors() -> None:
    """One answer that cannot be scored does not spoil the others."""
    guard = guard_of(scores={"good": 0.1, "bad": EmptyAnswerError(), "fair": 0.2})
    outcomes = guard.run_batch([Exchange(prompt="p", answer=a) for a in ("good", "bad", "fair")])
    assert [o.text for o in outcomes] == ["good", "I do not know.", "fair"]


async def test_async_callers_do_not_block_the_loop() -> None:
    """Twenty answers at once, each with its own outcome."""
    guard = guard_of(scores={str(i): i / 20 for i in range(20)})
    outcomes = await asyncio.gather(*(guard.arun(Exchange(prompt="p", answer=str(i))) for i in range(20)))
    assert [o.text == str(i) for i, o in enumerate(outcomes)] == [1 - i / 20 >= 0.7 for i in range(20)]


def test_abstain_is_the_step_of_last_resort() -> None:
    """The step's own message is what the caller reads."""
    guard = guard_of(scores={"bad": 0.9}, decider=LadderDecider(otherwise=Abstain(message="Ask the desk.")))
    assert guard.run(BAD).text == "Ask the desk."
