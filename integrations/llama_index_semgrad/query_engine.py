"""A query engine whose answers are guarded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from typing_extensions import override

from llama_index_semgrad.rerun import EngineRun, RerunTools
from llama_index_semgrad.responses import Reply, aread, guarded, is_guarded, read
from llama_index_semgrad.streams import aannotated, annotated, passes
from llama_index_semgrad.watcher import capturing
from semgrad_guard.adapter_kit import recording_faults
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable, Sequence

    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.prompts import BasePromptTemplate
    from llama_index.core.prompts.mixin import PromptMixinType
    from llama_index.core.schema import NodeWithScore, QueryBundle

    from llama_index_semgrad.convert import LlmCall
    from llama_index_semgrad.streams import StreamMode
    from semgrad_guard.guard import Guard


@dataclass(frozen=True, slots=True)
class QueryAsker:
    """Asks a query engine one question."""

    bundle: QueryBundle

    @property
    def question(self) -> str:
        """The user's question."""
        return self.bundle.query_str

    def ask(self, engine: Any) -> Reply:
        """Return the engine's answer, read to the end."""
        return read(engine.query(self.bundle))


class GuardedQueryEngine(BaseQueryEngine):
    """Asks the wrapped engine and returns what the policy allows; `SemGradGuard.wrap` makes it.

    The response keeps its type, and `response.metadata["semgrad"]` holds the confidence and the decision.
    """

    def __init__(
        self, engine: BaseQueryEngine, guard: Guard, tools: RerunTools, stream: StreamMode | None = None
    ) -> None:
        """Wrap an engine."""
        super().__init__(callback_manager=engine.callback_manager)
        self._engine, self._tools = engine, tools
        self._stream: StreamMode | None = stream
        self.guard = guard

    def with_guard(self, guard: Guard) -> GuardedQueryEngine:
        """Return the same engine under another guard."""
        return GuardedQueryEngine(self._engine, guard, self._tools, self._stream)

    @override
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return self._guarded(query_bundle, lambda: self._engine.query(query_bundle))

    @override
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return await self._aguarded(query_bundle, lambda: self._engine.aquery(query_bundle))

    @override
    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the wrapped engine's nodes."""
        return self._engine.retrieve(query_bundle)

    @override
    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from given nodes; this answer is guarded too."""
        return self._guarded(
            query_bundle, lambda: self._engine.synthesize(query_bundle, nodes, additional_source_nodes)
        )

    @override
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Same as `synthesize`."""
        return await self._aguarded(
            query_bundle, lambda: self._engine.asynthesize(query_bundle, nodes, additional_source_nodes)
        )

    @override
    def get_prompts(self) -> dict[str, BasePromptTemplate]:
        """Return the wrapped engine's prompts, under its own names."""
        return self._engine.get_prompts()

    @override
    def update_prompts(self, prompts_dict: dict[str, BasePromptTemplate]) -> None:
        """Change the wrapped engine's prompts."""
        self._engine.update_prompts(prompts_dict)

    @override
    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _guarded(self, bundle: QueryBundle, answer: Callable[[], RESPONSE_TYPE]) -> RESPONSE_TYPE:
        run = EngineRun(self._tools, QueryAsker(bundle))
        with recording_faults(self.guard, bundle.query_str), capturing() as calls:
            first = answer()
            if is_guarded(first):
                return first
            if passes(self._stream, self.guard) and isinstance(first, StreamingResponse):
                return annotated(first, calls, run, self.guard)
            reply = read(first)
        return self._given(run, first, reply, calls)

    async def _aguarded(self, bundle: QueryBundle, answer: Callable[[], Awaitable[RESPONSE_TYPE]]) -> RESPONSE_TYPE:
        run = EngineRun(self._tools, QueryAsker(bundle))
        with recording_faults(self.guard, bundle.query_str), capturing() as calls:
            first = await answer()
            if is_guarded(first):
                return first
            if passes(self._stream, self.guard) and isinstance(first, StreamingResponse):
                return annotated(first, calls, run, self.guard)
            if passes(self._stream, self.guard) and isinstance(first, AsyncStreamingResponse):
                return aannotated(first, calls, run, self.guard)
            reply = await aread(first)
        return await in_thread(self._given, run, first, reply, calls)

    def _given(
        self,
        run: EngineRun,
        first: RESPONSE_TYPE,
        reply: Reply,
        calls: Sequence[LlmCall],
        cancel: threading.Event | None = None,
    ) -> RESPONSE_TYPE:
        """Return what the caller gets for the engine's first response."""
        outcome, chosen = run.outcome(self.guard, reply, calls, cancel)
        return guarded(first, chosen, outcome)
