"""Never run, only checked: the types that users of the LlamaIndex adapter rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from llama_index.core.evaluation import EvaluationResult

from llama_index_semgrad import (
    GuardedChatEngine,
    GuardedQueryEngine,
    GuardedStreamingChatResponse,
    SemGradEvaluator,
    SemGradGuard,
)
from semgrad_guard import Guard

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.chat_engine.types import BaseChatEngine
    from llama_index.core.llms import LLM
    from llama_index.core.response_synthesizers import BaseSynthesizer


def wrapping(guard: SemGradGuard, engine: BaseQueryEngine, chat: BaseChatEngine, llm: LLM) -> None:
    """What is wrapped keeps its kind."""
    assert_type(guard.wrap(engine, fallbacks={"big": llm}), GuardedQueryEngine)
    assert_type(guard.wrap(chat, tags=["medical"]), GuardedChatEngine)
    assert_type(guard.wrap(chat).stream_chat("Hello"), GuardedStreamingChatResponse)
    assert_type(guard.guard, Guard)


def assembling(guard: SemGradGuard, retriever: BaseRetriever, synthesizer: BaseSynthesizer) -> None:
    """A retriever and a synthesizer make an engine."""
    assert_type(guard.wrap(retriever=retriever, synthesizer=synthesizer), GuardedQueryEngine)


async def evaluating(evaluator: SemGradEvaluator, more: dict[str, Any]) -> None:
    """The evaluator gives the host's own results."""
    assert_type(evaluator.evaluate("question", "answer", ["passage"]), EvaluationResult)
    assert_type(await evaluator.aevaluate("question", "answer", **more), EvaluationResult)
