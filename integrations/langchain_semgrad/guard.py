"""`SemGradGuard`: the runnable that is put behind the model of a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from langchain_semgrad.convert import question_in
from langchain_semgrad.exchanges import CallContext, OwnModel, candidates_in
from langchain_semgrad.invoke import add_chunk, call_here, on_this_loop
from langchain_semgrad.judging import Output, ReturnOptions, StreamMode, Work, annotation, judge_all, one_or_raise
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
from semgrad_guard.adapter_kit import GuardOptions, OnWithheld
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from langchain_semgrad.invoke import Caller
    from semgrad_guard.guard import Guard
    from semgrad_guard.ports import Scorer


class GuardedChain(Runnable[Any, Any]):
    """A chain whose answers are judged and, where the policy says so, made again; made by `SemGradGuard.wrap`."""

    def __init__(self, guard: Guard, tools: RerunTools, returns: ReturnOptions, question_key: str | None) -> None:
        """Keep the guard, what it acts with and how values are given back."""
        self.name = "semgrad_guarded_chain"
        self._guard, self._tools, self._returns, self._question_key = guard, tools, returns, question_key

    # --- one value ----------------------------------------------------------------------------------------------------

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return what the chain gives, guarded.

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
        config = _below(config, run_manager)
        given = self._tools.chain.invoke(value, config)
        return one_or_raise(self._judge([self._work(value, given, run_manager, config, call_here)]))

    async def _ainvoke(self, value: Any, run_manager: BaseRunManager, config: RunnableConfig) -> Any:
        config = _below(config, run_manager)
        given = await self._tools.chain.ainvoke(value, config)
        with on_this_loop() as call:
            work = self._work(value, given, run_manager, config, call)
            return one_or_raise(await in_thread(self._judge, [work]))

    def _judge(self, works: list[Work], cancel: threading.Event | None = None) -> list[Any]:
        return judge_all(self._guard, works, self._returns, cancel)

    def _work(self, value: Any, given: Any, run_manager: BaseRunManager, config: RunnableConfig, call: Caller) -> Work:
        if waits_for_tools(given, self._returns.answer_key):
            return Work(given, ())
        attempts = ChainAttempts(
            tools=self._tools,
            call=call,
            config=config,
            input=value,
            manager=run_manager,
            answer_key=self._returns.answer_key,
        )
        return Work(given, candidates_in(given, self._setting(value, run_manager)), attempts, run_manager)

    def _setting(self, value: Any, run_manager: BaseRunManager) -> CallContext:
        return CallContext(
            run_manager.run_id,
            run_manager,
            within=True,
            question=question_in(value, self._question_key),
            key=self._returns.answer_key,
            own_model=self._tools.own_model,
        )

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
        """Return what the chain gives for each input, guarded; the first answers are scored in one padded batch."""
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
        """Same as `batch`."""
        return await self._abatch_with_config(self._abatch, inputs, config, return_exceptions=return_exceptions)

    def _batch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = self._tools.chain.batch(values, config, return_exceptions=True)
        works, errors = self._works(values, given, run_manager, config, call_here)
        return _merged(self._judge(works), errors)

    async def _abatch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = await self._tools.chain.abatch(values, config, return_exceptions=True)
        with on_this_loop() as call:
            works, errors = self._works(values, given, run_manager, config, call)
            return _merged(await in_thread(self._judge, works), errors)

    def _works(
        self, values: list[Any], given: list[Any], managers: list[Any], configs: list[RunnableConfig], call: Caller
    ) -> tuple[list[Work], list[Exception | None]]:
        errors = [value if isinstance(value, Exception) else None for value in given]
        works = [
            self._work(value, answer, manager, config, call)
            for value, answer, manager, config in zip(values, given, managers, configs, strict=True)
            if not isinstance(answer, Exception)
        ]
        return works, errors

    # --- streams ------------------------------------------------------------------------------------------------------

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the guarded value once and whole; with `stream="annotate"` as it comes, and the findings at the end."""
        if not self._annotates:
            yield self.invoke(input, config)
            return
        yield from self._transform_stream_with_config(iter([input]), self._stream, config)

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Same as `stream`."""
        if not self._annotates:
            yield await self.ainvoke(input, config)
            return

        async def once() -> AsyncIterator[Any]:
            yield input

        async for chunk in self._atransform_stream_with_config(once(), self._astream, config):
            yield chunk

    @property
    def _annotates(self) -> bool:
        return self._returns.stream == "annotate"

    def _stream(self, inputs: Iterator[Any], run_manager: BaseRunManager, config: RunnableConfig) -> Iterator[Any]:
        for value in inputs:
            whole = None
            for chunk in self._tools.chain.stream(value, config):
                whole = add_chunk(whole, chunk)
                yield chunk
            last = self._annotation(value, whole, run_manager)
            if last is not None:
                yield last

    async def _astream(
        self, inputs: AsyncIterator[Any], run_manager: BaseRunManager, config: RunnableConfig
    ) -> AsyncIterator[Any]:
        async for value in inputs:
            whole = None
            async for chunk in self._tools.chain.astream(value, config):
                whole = add_chunk(whole, chunk)
                yield chunk
            last = await in_thread(self._annotation, value, whole, run_manager)
            if last is not None:
                yield last

    def _annotation(
        self, value: Any, given: Any, run_manager: BaseRunManager, cancel: threading.Event | None = None
    ) -> Any:
        candidates = (
            ()
            if waits_for_tools(given, self._returns.answer_key)
            else candidates_in(given, self._setting(value, run_manager))
        )
        return annotation(Work(given, candidates), self._guard, self._returns, cancel)


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


def may_change(guard: Guard) -> bool:
    """Tell whether the policy can give anything but the model's own words; an unknown kind of policy is taken to."""
    decider: Any = guard.parts.decider
    return bool(getattr(decider, "can_change_answers", True))


def _below(config: RunnableConfig, run_manager: Any) -> RunnableConfig:
    return patch_config(config, callbacks=run_manager.get_child())


def _merged(judged: list[Any], errors: list[Exception | None]) -> list[Any]:
    """Return the judged values with the chain's own errors back in their places."""
    values = iter(judged)
    return [next(values) if error is None else error for error in errors]


class SemGradGuard(Runnable[Any, Any]):
    """Judges the answer of the chain that it stands in, and gives it, or what the policy puts in its place.

    The value keeps its type: a message comes out as a message with `response_metadata["semgrad"]`, a text as a text, a
    mapping as a mapping with the answer replaced and `semgrad` added. A message that asks for tools is no answer and
    passes untouched. An object without text of its own (a parsed one) is judged by the text that the model wrote, and
    `LowConfidenceError` is raised where it must be held back.

    Args:
        llm: the chain's model, when it is local: its own weights score its answers.
        policy: a policy file or its content; the policy that ships with the package when left out.
        model: another scoring model: a name, Hugging Face id, folder, `.gguf` file or live object.
        scorer: a ready scorer.
        guard: a ready `semgrad_guard.Guard`, in place of policy, model and scorer.
        embeddings: the retriever's embeddings: adds signals of meaning to the scores, in place of the policy's
            `scorer.embedding`.
        output: `"same"` keeps the value's type; `"result"` gives a `GuardedAnswer`.
        stream: `"buffer"` holds a stream back until it is judged; `"annotate"` passes its tokens on and ends with a
            chunk that holds the findings, so it cannot hold anything back. `None` buffers whenever the policy can
            refuse, ask a person or put a warning before the answer. Callbacks and `astream_events` see the tokens of
            the model's own run in either case.
        on_withheld: `"message"` gives the policy's message in the answer's place; `"raise"` raises
            `LowConfidenceError`, on which `with_fallbacks` acts.
        answer_key: key of the answer in a mapping; `answer`, `output`, `result` and `response` are found by themselves.

    Raises:
        PolicyFileError: the policy has a mistake.
        NotGuardableError: `llm` holds no local model.
        OptionError: an option has an unknown value.

    Example:
        >>> chain = prompt | llm | SemGradGuard(policy="policy.yaml")  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        llm: object | None = None,
        *,
        policy: str | Path | Mapping[str, object] | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
        embeddings: Embeddings | None = None,
        output: Output = "same",
        stream: StreamMode | None = None,
        on_withheld: OnWithheld = "message",
        answer_key: str | None = None,
    ) -> None:
        self.name = "semgrad_guard"
        self._llm: Any = llm
        self._returns = ReturnOptions(output=output, stream=stream, on_withheld=on_withheld, answer_key=answer_key)
        embedder = ChainEmbedder(embeddings) if embeddings is not None else None
        self._guard, self._own_model = build_guard(
            GuardOptions(llm=llm, policy=policy, model=model, scorer=scorer, guard=guard, embedder=embedder)
        )

    @property
    def guard(self) -> Guard:
        """The guard that judges."""
        return self._guard

    # --- whole chains -------------------------------------------------------------------------------------------------

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
        """
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
        return GuardedChain(self._guard, tools, self._returns, question_key)

    @staticmethod
    def retriever(retriever: Any, *, with_top_k: WithTopK | None = None) -> GuardedRetriever:
        """Return a retriever to put into a chain in the place of another; only retries make a difference.

        Args:
            retriever: the retriever inside.
            with_top_k: function `(retriever, k) -> retriever`, where its number of documents is set in its own way.
        """
        return GuardedRetriever(inner=retriever, with_top_k=with_top_k)

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
        """Same as `invoke`; the judging happens in a worker thread, so the event loop is never blocked."""
        return await self._acall_with_config(self._ainvoke, input, config)

    def _invoke(self, value: Any, run_manager: BaseRunManager, cancel: threading.Event | None = None) -> Any:
        return one_or_raise(judge_all(self._guard, [self._work(value, run_manager)], self._returns, cancel))

    async def _ainvoke(self, value: Any, run_manager: BaseRunManager) -> Any:
        return await in_thread(self._invoke, value, run_manager)

    def _work(self, value: Any, run_manager: BaseRunManager) -> Work:
        if waits_for_tools(value, self._returns.answer_key):
            return Work(value, ())
        context = CallContext(run_manager.run_id, run_manager, key=self._returns.answer_key, own_model=self._own_model)
        return Work(value, candidates_in(value, context), manager=run_manager)

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
        """Return the guarded values, in order; all answers are scored in one padded batch."""
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
        """Same as `batch`, in a worker thread."""
        return await self._abatch_with_config(self._abatch, inputs, config, return_exceptions=return_exceptions)

    def _batch(self, values: list[Any], run_manager: list[Any], cancel: threading.Event | None = None) -> list[Any]:
        works = [self._work(value, manager) for value, manager in zip(values, run_manager, strict=True)]
        return judge_all(self._guard, works, self._returns, cancel)

    async def _abatch(self, values: list[Any], run_manager: list[Any]) -> list[Any]:
        return await in_thread(self._batch, values, run_manager)

    # --- streams ------------------------------------------------------------------------------------------------------

    @override
    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the guarded value of a stream: once and whole, or as it comes with the findings at the end."""
        yield from self._transform_stream_with_config(input, self._transform, config)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Same as `transform`; the judging happens in a worker thread."""
        async for chunk in self._atransform_stream_with_config(input, self._atransform, config):
            yield chunk

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the guarded value of one finished input."""
        yield from self.transform(iter([input]), config)

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Same as `stream`."""

        async def once() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(once(), config):
            yield chunk

    @property
    def _annotates(self) -> bool:
        return self._returns.stream == "annotate" or (self._returns.stream is None and not may_change(self._guard))

    def _transform(self, chunks: Iterator[Any], run_manager: BaseRunManager) -> Iterator[Any]:
        whole, annotates = None, self._annotates
        for chunk in chunks:
            whole = add_chunk(whole, chunk)
            if annotates:
                yield chunk
        last = self._annotate(whole, run_manager) if annotates else self._invoke(whole, run_manager)
        if last is not None:
            yield last

    async def _atransform(self, chunks: AsyncIterator[Any], run_manager: BaseRunManager) -> AsyncIterator[Any]:
        whole, annotates = None, self._annotates
        async for chunk in chunks:
            whole = add_chunk(whole, chunk)
            if annotates:
                yield chunk
        last = await in_thread(self._annotate if annotates else self._invoke, whole, run_manager)
        if last is not None:
            yield last

    def _annotate(self, value: Any, run_manager: BaseRunManager, cancel: threading.Event | None = None) -> Any:
        return annotation(self._work(value, run_manager), self._guard, self._returns, cancel)
