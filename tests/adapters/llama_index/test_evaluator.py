"""The guard in LlamaIndex' own evaluation tools."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from llama_index.core import Settings
from llama_index.core.evaluation import BatchEvalRunner
from llama_index.core.query_engine import RetryQueryEngine, RetrySourceQueryEngine

from llama_index_semgrad import SemGradEvaluator
from semgrad_guard.errors import NonFiniteScoreError, UncalibratedError
from semgrad_guard.flow import Abstain, Accept, AnswerWithWarning, Confidence, FallbackModel, HumanReview
from semgrad_guard.guard import Guard
from tests.adapters.llama_index.index_and_llm import PASSAGES, QUESTION, WordEmbedding, index, llm
from tests.fakes import LadderDecider, MemoryQueue, ProfileScorer, guard_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.flow import Decision, Exchange, Progress, Score, Step

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
SCORES = {GOOD: 0.1, BAD: 0.9}


@pytest.fixture(name="settings")
def _settings() -> Iterator[None]:
    """LlamaIndex' retry engines take their models from its global settings."""
    before = Settings._llm, Settings._embed_model
    Settings.llm, Settings.embed_model = llm(GOOD), WordEmbedding()
    yield
    Settings._llm, Settings._embed_model = before


def test_a_result_says_how_likely_and_whether_it_passes() -> None:
    """Other evaluators' tools read exactly these fields."""
    evaluator = SemGradEvaluator(guard=guard_of(scores=SCORES))
    good = evaluator.evaluate(QUESTION, GOOD, [PASSAGES[0]])
    bad = evaluator.evaluate(QUESTION, BAD, [PASSAGES[0]])
    assert (good.score, good.passing, good.invalid_result) == (pytest.approx(0.9), True, False)
    assert (bad.score, bad.passing) == (pytest.approx(0.1), False)
    assert (bad.query, bad.response, bad.contexts) == (QUESTION, BAD, [PASSAGES[0]])
    assert bad.feedback
    assert bad.feedback not in {"YES", "NO"}


def test_a_prompt_nobody_saw_is_rebuilt_and_said_to_be() -> None:
    """An answer from a file has no model call behind it."""
    guard = guard_of(scores=SCORES)
    SemGradEvaluator(guard=guard).evaluate(QUESTION, GOOD, ["a passage of a file"])
    (exchange,) = guard.parts.scorer.seen
    assert "a passage of a file" in exchange.prompt
    assert QUESTION in exchange.prompt
    assert exchange.metadata["prompt"] == "rebuilt"


def test_the_exact_prompt_is_found_when_this_process_made_it() -> None:
    """The contexts alone do not tell the template."""
    guard = guard_of(scores=SCORES)
    evaluator = SemGradEvaluator(guard=guard)
    model = llm(GOOD)
    response = index().as_query_engine(llm=model, similarity_top_k=2).query(QUESTION)
    evaluator.evaluate_response(QUESTION, response)
    (exchange,) = guard.parts.scorer.seen
    assert exchange.prompt == model.prompts[0]
    assert exchange.metadata["prompt"] == "captured"


def test_an_equal_answer_to_another_question_is_not_mistaken_for_it() -> None:
    """`Yes.` answers many questions."""
    guard = guard_of(scores=SCORES)
    evaluator = SemGradEvaluator(guard=guard)
    index().as_query_engine(llm=llm(GOOD), similarity_top_k=2).query(QUESTION)
    evaluator.evaluate("Who found polonium?", GOOD, [PASSAGES[0]])
    (exchange,) = guard.parts.scorer.seen
    assert exchange.metadata["prompt"] == "rebuilt"


def test_what_cannot_be_judged_is_an_invalid_result() -> None:
    """A batch of evaluations goes on, and does not wait and try again as the runner does on exceptions."""
    broken = SemGradEvaluator(guard=guard_of(scores={GOOD: NonFiniteScoreError("logits")})).evaluate(QUESTION, GOOD)
    assert (broken.invalid_result, broken.passing, broken.score) == (True, None, None)
    assert broken.invalid_reason.startswith("NonFiniteScoreError")

    class Strict(LadderDecider):
        def decide(self, *_: object) -> None:
            raise UncalibratedError("no profile")

    strict = SemGradEvaluator(guard=guard_of(scores=SCORES, decider=Strict())).evaluate(QUESTION, GOOD)
    assert (strict.invalid_result, strict.passing) == (True, None)


@pytest.mark.parametrize("step", [Accept(), Abstain(message="I do not know."), AnswerWithWarning(warning="careful")])
def test_an_answer_without_confidence_neither_passes_nor_fails(step: Step) -> None:
    """Whatever the policy does with such answers: nothing was found out about this one."""

    class Uncalibrated(LadderDecider):
        def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
            return replace(
                super().decide(exchange, score, confidence, progress),
                step=step,
                confidence=Confidence(value=None, why="profile p was fitted for another score"),
            )

    found = SemGradEvaluator(guard=guard_of(scores=SCORES, decider=Uncalibrated())).evaluate(QUESTION, GOOD)
    assert (found.invalid_result, found.passing, found.score) == (True, None, None)
    assert found.invalid_reason == "profile p was fitted for another score"


def test_without_a_threshold_nothing_passes_or_fails() -> None:
    """A guard that only measures accepts any confidence, which is no verdict."""
    guard = Guard.from_yaml(scorer=ProfileScorer())
    result = SemGradEvaluator(guard=guard).evaluate(QUESTION, GOOD, [PASSAGES[0]])
    assert result.score is not None
    assert (result.passing, result.invalid_result) == (None, False)


def test_evaluating_carries_nothing_out() -> None:
    """An evaluation run must not fill the review queue."""
    queue = MemoryQueue()
    decider = LadderDecider([FallbackModel(name="big"), HumanReview(message="wait")])
    SemGradEvaluator(guard=guard_of(scores=SCORES, decider=decider, queue=queue)).evaluate(QUESTION, BAD)
    assert queue.items == []


async def test_the_sync_method_works_inside_a_running_loop() -> None:
    """The host's own default starts a new loop, or fails."""
    result = SemGradEvaluator(guard=guard_of(scores=SCORES)).evaluate(QUESTION, GOOD)
    assert result.passing
    assert asyncio.get_running_loop()


@pytest.mark.filterwarnings("ignore:asyncio_module:DeprecationWarning")  # the runner's own
async def test_the_batch_runner_takes_it() -> None:
    """It asks the engine and evaluates, many at once."""
    evaluator = SemGradEvaluator(guard=guard_of(scores=SCORES))
    runner = BatchEvalRunner({"semgrad": evaluator}, workers=4)
    engine = index().as_query_engine(llm=llm(lambda p: GOOD if "radium" in p.rpartition("Query")[2] else BAD))
    results = await runner.aevaluate_queries(engine, queries=[QUESTION, "What is gallium?"])
    assert [r.passing for r in results["semgrad"]] == [True, False]


@pytest.mark.usefixtures("settings")
def test_the_retry_engine_takes_it() -> None:
    """It asks again with the feedback until the evaluator passes."""
    replies = iter([BAD, GOOD])
    model = llm(lambda _: next(replies))
    engine = RetryQueryEngine(
        index().as_query_engine(llm=model), SemGradEvaluator(guard=guard_of(scores=SCORES)), max_retries=2
    )
    assert engine.query(QUESTION).response == GOOD
    assert "feedback" in model.prompts[1]


@pytest.mark.usefixtures("settings")
def test_the_source_retry_engine_takes_it() -> None:
    """It evaluates source by source."""
    engine = RetrySourceQueryEngine(
        index().as_query_engine(llm=llm(BAD), similarity_top_k=2),
        SemGradEvaluator(guard=guard_of(scores=SCORES)),
        llm=llm(GOOD),
        max_retries=1,
    )
    assert engine.query(QUESTION).response == GOOD
