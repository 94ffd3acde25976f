"""`SemGradGuard` at the end of a chain, and `GuardedChain` around one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import coerce_to_runnable
from typing_extensions import override

from langchain_semgrad.convert import question_in
from langchain_semgrad.exchanges import CallContext, OwnModel, candidates_in
from langchain_semgrad.invoke import AsReceived, ChunkSum, call_here, on_this_loop
from langchain_semgrad.judging import ChainValue, Output, ReturnOptions, StreamMode, annotation, judge_all, one_or_raise
from langchain_semgrad.rerun import ChainAttempts, FallbackModels, RerunTools
from langchain_semgrad.retrievers import (
    ChainEmbedder,
    GuardedRetriever,
    RetrieverLike,
    WithTopK,
    refuse_memory,
    with_guarded_retriever,
)
from langchain_semgrad.values import waits_for_tools
from semgrad_guard.adapter_kit import GuardOptions, Means, OnWithheld, check_means
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from langchain_semgrad.invoke import Caller
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer


def build_guard(options: GuardOptions) -> tuple[Guard, OwnModel | None]:
    """Return the guard that the options describe and, for a chain's own local model, what recognises its answers.

    Raises:
        NotGuardableError: `llm` holds no local model.
        PolicyFileError: the policy has a mistake.
    """
    if options.llm is None:
        return options.build(), None
    own_model = OwnModel(options.llm)
    return options.build(own_model.load() if options.guard is None else None), own_model


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a guard: what came in, what the guarded chain gave for it, and the guard's own run."""

    input: Any
    value: Any
    manager: BaseRunManager
    config: RunnableConfig


class _GuardRunnable(Runnable[Any, Any]):
    """Judges what a chain gives, however it is called: once, in batches or as a stream, with or without an event loop.

    Args:
        name: what traces show.
        guard: what judges and decides.
        chain: gives the values; `AsReceived` for a guard that is itself part of the chain.
        returns: how guarded values are given back.
    """

    def __init__(self, name: str, guard: Guard, chain: Runnable[Any, Any], returns: ReturnOptions) -> None:
        self.name = name
        self._guard, self._chain, self._returns = guard, chain, returns

    @abstractmethod
    def _context(self, call: _Call) -> CallContext:
        """Return what is known of a call beside the value."""

    @abstractmethod
    def _attempts(self, call: _Call, caller: Caller) -> ChainAttempts | None:
        """Return how the question of a call can be answered again; `None` where it cannot."""

    @abstractmethod
    def _may_change(self) -> bool:
        """Tell whether the policy can give anything but the chain's first answer."""

    @abstractmethod
    def _check_use(self) -> None:
        """Refuse to judge where the policy's steps cannot act."""

    # --- one value ----------------------------------------------------------------------------------------------------

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return the guarded value.

        Raises:
            LowConfidenceError: the answer was held back and cannot be replaced by a message, or must not be.
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
        """
        return self._call_with_config(self._invoke, input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Same as `invoke`; chain, retriever and models are called on the event loop, the rest in a worker thread."""
        return await self._acall_with_config(self._ainvoke, input, config)

    def _invoke(self, value: Any, run_manager: BaseRunManager, config: RunnableConfig) -> Any:
        call = _Call(value, self._chain.invoke(value, config), run_manager, config)
        return one_or_raise(self._judged([call], call_here))

    async def _ainvoke(self, value: Any, run_manager: BaseRunManager, config: RunnableConfig) -> Any:
        call = _Call(value, await self._chain.ainvoke(value, config), run_manager, config)
        with on_this_loop() as caller:
            return one_or_raise(await in_thread(self._judged, [call], caller))

    # --- many values --------------------------------------------------------------------------------------------------

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Return the guarded values, in order; the first answers are scored in one padded batch."""
        return self._batch_with_config(self._batch, inputs, config, return_exceptions=return_exceptions)

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Same as `batch`; the judging happens in a worker thread."""
        return await self._abatch_with_config(self._abatch, inputs, config, return_exceptions=return_exceptions)

    def _batch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = self._chain.batch(values, config, return_exceptions=True)
        return self._judged(list(map(_Call, values, given, run_manager, config)), call_here)

    async def _abatch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = await self._chain.abatch(values, config, return_exceptions=True)
        with on_this_loop() as caller:
            return await in_thread(self._judged, list(map(_Call, values, given, run_manager, config)), caller)

    # --- streams ------------------------------------------------------------------------------------------------------

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the guarded value of one input: once and whole, or as it comes with the findings at the end."""
        yield from self.transform(iter([input]), config)

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Same as `stream`."""

        async def once() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(once(), config):
            yield chunk

    @override
    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Same as `stream`, for an input that comes in pieces itself."""
        yield from self._transform_stream_with_config(input, self._transform, config)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Same as `transform`; the judging happens in a worker thread."""
        async for chunk in self._atransform_stream_with_config(input, self._atransform, config):
            yield chunk

    @property
    def _annotates(self) -> bool:
        """Whether streams pass before they are judged."""
        stream = self._returns.stream
        return stream == "annotate" or (stream is None and not self._may_change())

    def _transform(self, inputs: Iterator[Any], run_manager: BaseRunManager, config: RunnableConfig) -> Iterator[Any]:
        self._check_use()
        received, value, annotates = ChunkSum(), ChunkSum(), self._annotates
        if annotates:
            yield from value.adding(self._chain.transform(received.adding(inputs), config))
            last = self._annotation(_Call(received.total, value.total, run_manager, config))
        else:
            for _ in received.adding(inputs):
                pass
            last = self._invoke(received.total, run_manager, config)
        if last is not None:
            yield last

    async def _atransform(
        self, inputs: AsyncIterator[Any], run_manager: BaseRunManager, config: RunnableConfig
    ) -> AsyncIterator[Any]:
        self._check_use()
        received, value, annotates = ChunkSum(), ChunkSum(), self._annotates
        if annotates:
            async for chunk in value.aadding(self._chain.atransform(received.aadding(inputs), config)):
                yield chunk
            call = _Call(received.total, value.total, run_manager, config)
            last = await in_thread(self._annotation, call)
        else:
            async for _ in received.aadding(inputs):
                pass
            last = await self._ainvoke(received.total, run_manager, config)
        if last is not None:
            yield last

    # --- judging ------------------------------------------------------------------------------------------------------

    def _judged(self, calls: Sequence[_Call], caller: Caller, cancel: threading.Event | None = None) -> list[Any]:
        """Return what each caller gets, in order; an exception in the place of a value that is held back or failed."""
        self._check_use()
        values = [self._chain_value(call, caller) for call in calls if not isinstance(call.value, Exception)]
        judged = iter(judge_all(self._guard, values, self._returns, cancel))
        return [call.value if isinstance(call.value, Exception) else next(judged) for call in calls]

    def _annotation(self, call: _Call, cancel: threading.Event | None = None) -> Any:
        """Return the last chunk of a stream that has passed."""
        return annotation(self._chain_value(call, None), self._guard, self._returns, cancel)

    def _chain_value(self, call: _Call, caller: Caller | None) -> ChainValue:
        """Return a value with the answers in it; without a caller, the question cannot be answered again."""
        context = self._context(call)
        if waits_for_tools(call.value, self._returns.answer_key):
            return ChainValue(call.value, (), manager=call.manager, context=context)
        attempts = self._attempts(call, caller) if caller is not None else None
        return ChainValue(call.value, candidates_in(call.value, context), attempts, call.manager, context)


class GuardedChain(_GuardRunnable):
    """A chain whose answers are judged and, where the policy says so, replaced by new ones; see `SemGradGuard.wrap`."""

    def __init__(
        self,
        guard: Guard,
        chain: Runnable[Any, Any],
        tools: RerunTools,
        returns: ReturnOptions,
        question_key: str | None,
    ) -> None:
        """Keep the chain, the tools to answer again with, and where the question is."""
        super().__init__("semgrad_guarded_chain", guard, chain, returns)
        self._tools, self._question_key = tools, question_key

    @override
    def _context(self, call: _Call) -> CallContext:
        return CallContext(
            call.manager.run_id,
            call.manager,
            within=True,
            question=question_in(call.input, self._question_key),
            key=self._returns.answer_key,
            own_model=self._tools.own_model,
        )

    @override
    def _attempts(self, call: _Call, caller: Caller) -> ChainAttempts:
        return ChainAttempts(
            tools=self._tools,
            call=caller,
            config=call.config,
            input=call.input,
            manager=call.manager,
            answer_key=self._returns.answer_key,
        )

    @override
    def _check_use(self) -> None:
        """`wrap` has checked it."""

    @override
    def _may_change(self) -> bool:
        return not self._guard.only_measures


class SemGradGuard(_GuardRunnable):
    """Judges the answer of the chain that it is part of, and gives it, or what the policy puts in its place.

    `SemGradGuard()` measures: every answer passes as it is, with its confidence and the reasons beside it, and whatever
    fails is a finding, never an exception. `SemGradGuard(accept=0.7)` holds back what is less sure, or could not be
    judged. `SemGradGuard(policy="policy.yaml")` does what the policy says.

    The value keeps its type: a message comes out as a message with `response_metadata["semgrad"]`, a text as a text, a
    mapping as a mapping with the answer replaced and `semgrad` added. A message that asks for tools is no answer and
    passes; text beside the request is treated as the policy's `beside_tool_calls` says. Where an answer is held back,
    other parts of the value that repeat it are left out, and the finding `left_out` names them. An object without text
    of its own (a parsed one) is judged by the text that the model wrote, and `LowConfidenceError` is raised where it
    must be held back.

    Args:
        llm: the chain's model, when it is local: its own weights score its answers.
        accept: in place of a policy: answers with a lower confidence, or without one, are held back.
        policy: a policy file or its content, by which the guard routes. With neither, every answer passes as it is.
        model: another scoring model: a name, Hugging Face id, folder, `.gguf` file or live object.
        scorer: a ready scorer.
        guard: a ready `semgrad_guard.Guard`, in place of policy, model and scorer.
        embeddings: the retriever's embeddings: adds signals of meaning to the scores, in place of the policy's
            `scorer.embedding`.
        output: `"same"` keeps the value's type; `"result"` gives a `GuardedAnswer`.
        stream: `"buffer"` holds a stream back until it is judged; `"annotate"` passes its tokens on and ends with a
            chunk that holds the findings, so it cannot hold anything back. `None` buffers whenever the policy can
            refuse, ask a person or put a warning before the answer or, around a chain, answer again. Callbacks and
            `astream_events` see the tokens of the model's own run in either case.
        on_withheld: `"message"` gives the policy's message in the answer's place; `"raise"` raises
            `LowConfidenceError`, on which `with_fallbacks` acts.
        answer_key: key of the answer in a mapping; `answer`, `output`, `result` and `response` are found by themselves.

    Raises:
        PolicyFileError: the policy has mistakes.
        ModelError: the scoring model is not installed, missing or misspelt; the error says what to type.
        CalibrationError: the profile is missing or another model's.
        NotGuardableError: `llm` holds no local model.
        OptionError: an option has an unknown value.
        StepUnavailableError: (of a call) a step of the policy answers again, which only `wrap` can do.

    Example:
        >>> chain = prompt | llm | SemGradGuard(policy="policy.yaml")  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        llm: object | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
        embeddings: Embeddings | None = None,
        output: Output = "same",
        stream: StreamMode | None = None,
        on_withheld: OnWithheld = "message",
        answer_key: str | None = None,
    ) -> None:
        returns = ReturnOptions(output=output, stream=stream, on_withheld=on_withheld, answer_key=answer_key)
        embedder = ChainEmbedder(embeddings) if embeddings is not None else None
        built, self._own_model = build_guard(
            GuardOptions(
                llm=llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard, embedder=embedder
            )
        )
        super().__init__("semgrad_guard", built, AsReceived(), returns)
        self._llm: Any = llm

    @override
    def _context(self, call: _Call) -> CallContext:
        manager = call.manager
        return CallContext(manager.run_id, manager, key=self._returns.answer_key, own_model=self._own_model)

    @override
    def _attempts(self, call: _Call, caller: Caller) -> None:
        return None

    @override
    def _check_use(self) -> None:
        """Refuse to stand in a chain without `wrap` where the policy answers again; only a call shows that it does."""
        check_means(self._guard, Means(asks_again=False, advice="SemGradGuard(...).wrap(chain, {})"))

    @override
    def _may_change(self) -> bool:
        return self._guard.can_change_answers

    @property
    def guard(self) -> Guard:
        """The guard that judges."""
        return self._guard

    # --- around a whole chain -----------------------------------------------------------------------------------------

    def wrap(  # noqa: PLR0913 - what the policy's steps act with, each by its own word
        self,
        chain: Runnable[Any, Any],
        *,
        retriever: Any = None,
        retrievers: Mapping[str, RetrieverLike] | None = None,
        fallbacks: Mapping[str, Runnable[Any, Any]] | None = None,
        rewriter: Runnable[Any, Any] | None = None,
        answer: Callable[[str, list[Document]], Any] | None = None,
        question_key: str | None = None,
    ) -> GuardedChain:
        """Return the chain under the policy: it retrieves and answers again, falls back, asks a person or abstains.

        Every attempt calls the chain with its first input, so nothing of an earlier answer reaches the next prompt.

        Args:
            chain: any runnable that calls a model; it is not changed.
            retriever: the retriever object that the chain calls. A retry asks it for more passages and hands them to
                the chain in its place. Where it is out of sight, inside a function, put `guard.retriever(retriever)`
                there and give that here.
            retrievers: other retrievers by the name that the policy uses; each may be a function of query and number.
            fallbacks: models by the name that the policy uses, asked with the very prompt that the chain's model read.
                A name like `openai:gpt-4o-mini` needs no entry: LangChain's `init_chat_model` makes it.
            rewriter: model that rewords the question for `rewrite_query`; the local model given to this guard, if none.
                The rewritten question is for retrieval only.
            answer: function of question and documents that answers again, for a chain that cannot be called again.
            question_key: key of the question in the chain's input; `question`, `input` and `query` are found by
                themselves.

        Raises:
            NotGuardableError: the chain does not hold the retriever where it can be found, or remembers its answers.
            StepUnavailableError: a step of the policy needs something that is not given.
            OptionError: the policy names no such fallback model or retriever.
        """
        means = Means(
            retrieves=retriever is not None,
            retrievers=retrievers or (),
            fallbacks=fallbacks or (),
            makes_models=True,
            advice="SemGradGuard(...).wrap(chain, {})",
        )
        check_means(self._guard, means)
        chain = coerce_to_runnable(chain)
        if retriever is not None and answer is None:
            chain = with_guarded_retriever(chain, retriever)
        else:
            refuse_memory(chain)
        tools = RerunTools(
            chain=chain,
            answer=answer,
            retriever=retriever,
            retrievers=dict(retrievers or {}),
            rewriter=rewriter or self._llm,
            fallbacks=FallbackModels(fallbacks),
            own_model=self._own_model,
        )
        return GuardedChain(self._guard, chain, tools, self._returns, question_key)

    @staticmethod
    def retriever(retriever: Any, *, with_top_k: WithTopK | None = None) -> GuardedRetriever:
        """Return a retriever to put into a chain in the place of another; only retries make a difference.

        Args:
            retriever: the retriever inside.
            with_top_k: function `(retriever, k) -> retriever`, where its number of documents is set in its own way.
        """
        return GuardedRetriever(inner=retriever, with_top_k=with_top_k)
