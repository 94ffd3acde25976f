"""The guard around LlamaIndex engines."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, get_args, overload

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index_semgrad.chat_engine import GuardedChatEngine
from llama_index_semgrad.convert import IndexEmbedder, is_local, weights_of
from llama_index_semgrad.query_engine import GuardedQueryEngine
from llama_index_semgrad.rerun import (
    LlmRewriter,
    RerunTools,
    empty_response_of,
    llm_of,
    postprocessors_of,
    retriever_of,
)
from llama_index_semgrad.streams import StreamMode
from llama_index_semgrad.watcher import install
from semgrad_guard.adapter_kit import GuardOptions, Means, check_means, check_option
from semgrad_guard.errors import NotGuardableError
from semgrad_guard.ports import AnswerModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.response_synthesizers import BaseSynthesizer

    from llama_index_semgrad.rerun import Fallback
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import QueryRewriter, Scorer


class WrapOptions(TypedDict, total=False):
    """The options of `SemGradGuard.wrap`."""

    retriever: BaseRetriever
    """Retrieves again; by default the engine's own retriever, where it can be found."""
    synthesizer: BaseSynthesizer
    """Answers from the nodes of `retriever`: when there is no engine, or when the engine hides its retriever."""
    postprocessors: Sequence[BaseNodePostprocessor]
    """Applied to retrieved nodes, in order; by default the engine's own."""
    retrievers: Mapping[str, BaseRetriever]
    """Other retrievers by the name that the policy uses."""
    fallbacks: Mapping[str, Fallback]
    """Fallback models by the name that the policy uses: LLMs, or whole engines."""
    rewriter: QueryRewriter
    """Rewords questions for retrieval; by default the engine's own LLM does."""
    tags: Iterable[str]
    """Tags of every question to this engine, for the policy's `overrides`."""


class SemGradGuard:
    """Gives the answers of an engine a confidence, and lets a policy act on it.

    `SemGradGuard()` measures: every answer passes as it is, with its confidence and the reasons beside it, and whatever
    fails is a finding, never an exception. `SemGradGuard(accept=0.7)` holds back what is less sure, or could not be
    judged. `SemGradGuard(policy="policy.yaml")` does what the policy says.

    Args:
        llm: the engine's LLM. When it is a local model of transformers, its own weights score its answers; an engine's
            own local LLM is found by `wrap` without being named. Any other model's answers are scored from outside, as
            a proxy, by the model that the policy names.
        accept: in place of a policy: answers with a lower confidence, or without one, are held back.
        policy: a policy file or its content, by which the guard routes. With neither, every answer passes as it is.
        model: another scoring model: anything `semgrad_guard.models.load_model` takes.
        scorer: a ready scorer.
        embed_model: the index's embedding model: adds signals of meaning to the scores, in place of the policy's
            `scorer.embedding`.
        guard: a ready guard, in place of all of the above; with `llm` beside it you say that it scores with that model.
        stream: `buffer` holds a stream back until its answer was judged; `annotate` lets it pass and judges the answer
            at the end, so the policy can hold nothing back. `None` buffers whenever the policy can change an answer or
            ask for another one.

    Example:
        >>> engine = SemGradGuard(policy="policy.yaml").wrap(index.as_query_engine(llm=llm))  # doctest: +SKIP
        >>> engine.query("Who wrote it?").metadata["semgrad"]["confidence"]  # doctest: +SKIP
        0.83
    """

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        llm: LLM | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        embed_model: BaseEmbedding | None = None,
        guard: Guard | None = None,
        stream: StreamMode | None = None,
    ) -> None:
        """Keep the options.

        What cannot work is said here, except that the policy's scoring model is missing: `wrap` says that, because the
        engine's own local LLM may take its place.

        Raises:
            OptionError: options that exclude each other, or an unknown one.
            PolicyFileError: the policy has mistakes.
            ModelError: `model` is not installed, missing or misspelt; the error says what to type.
            CalibrationError: the profile is missing or another model's.
        """
        self._options = GuardOptions(
            llm=llm,
            accept=accept,
            policy=policy,
            model=model,
            scorer=scorer,
            guard=guard,
            embedder=IndexEmbedder(embed_model) if embed_model is not None else None,
            embedder_option="embed_model",
        )
        check_option("stream", stream, (None, *get_args(StreamMode)))
        self._stream: StreamMode | None = stream
        self._guards: dict[int, tuple[object | None, Guard]] = {}
        self._lock = threading.Lock()
        if model is not None or scorer is not None or is_local(llm):
            self._guard_for(llm)
        elif guard is None and policy is not None:
            self._options.check_policy()
        install()

    @property
    def guard(self) -> Guard:
        """The guard itself, for `llm` or the policy's own scoring model."""
        return self._guard_for(self._options.llm)[0]

    @property
    def weights(self) -> object | None:
        """The live model that scores, where it is known; answers that it wrote itself are on-policy."""
        return self._guard_for(self._options.llm)[1]

    @overload
    def wrap(self, engine: BaseChatEngine, **options: Unpack[WrapOptions]) -> GuardedChatEngine: ...
    @overload
    def wrap(self, engine: BaseQueryEngine | None = None, **options: Unpack[WrapOptions]) -> GuardedQueryEngine: ...

    def wrap(
        self, engine: BaseQueryEngine | BaseChatEngine | None = None, **options: Unpack[WrapOptions]
    ) -> GuardedQueryEngine | GuardedChatEngine:
        """Return an engine of the same kind whose answers are guarded; the engine given is not changed.

        Args:
            engine: a query engine or chat engine; it may be left out when `retriever` and `synthesizer` are given.
            options: see `WrapOptions`.

        Raises:
            NotGuardableError: no engine can be guarded with these options; the message says what to change.
            ModelError: the policy's scoring model is needed and not installed; the error says what to type.
            StepUnavailableError: a step of the policy needs something that is neither given nor found in the engine.
            OptionError: the policy names no such fallback model or retriever.
        """
        guarded = engine if engine is not None else _assembled(options)
        if not isinstance(guarded, BaseQueryEngine | BaseChatEngine):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            msg = f"{type(guarded).__name__} cannot be guarded: give a query or chat engine, or retriever+synthesizer"
            raise NotGuardableError(msg)
        _check_fallbacks(guarded, options.get("fallbacks", {}))
        guard, weights = self._guard_for(self._options.llm or llm_of(guarded))
        tools = _rerun_tools(guarded, options, weights)
        means = Means(
            retrieves=tools.retriever is not None,
            retrievers=tools.retrievers,
            fallbacks=tools.fallbacks,
            advice="SemGradGuard(...).wrap(engine, {})",
        )
        check_means(guard, means)
        if isinstance(guarded, BaseChatEngine):
            return GuardedChatEngine(guarded, guard, tools, self._stream)
        return GuardedQueryEngine(guarded, guard, tools, self._stream)

    def _guard_for(self, llm: object | None) -> tuple[Guard, object | None]:
        """Return the guard for an LLM's answers, and the live model that scores them where it is known."""
        options = self._options
        if options.guard is not None:  # only the caller knows which model it scores with
            return options.guard, weights_of(options.llm) if is_local(options.llm) else None
        names_scorer = options.model is not None or options.scorer is not None
        local = llm if is_local(llm) and not names_scorer else None
        weights = weights_of(options.model if names_scorer else local)
        with self._lock:
            if id(weights) not in self._guards:
                self._guards[id(weights)] = (weights, options.build(local))
            return self._guards[id(weights)][1], weights


def _assembled(options: WrapOptions) -> RetrieverQueryEngine:
    """Return the query engine that a retriever and a synthesizer make."""
    if "retriever" not in options or "synthesizer" not in options:
        msg = "nothing to guard: give wrap an engine, or both retriever= and synthesizer="
        raise NotGuardableError(msg)
    processors = list(options.get("postprocessors", ()))
    return RetrieverQueryEngine(options["retriever"], options["synthesizer"], node_postprocessors=processors)


def _rerun_tools(engine: BaseQueryEngine | BaseChatEngine, options: WrapOptions, weights: object | None) -> RerunTools:
    answering: Any = engine
    own_retriever = retriever_of(engine)
    if "retriever" in options and own_retriever is None:
        if "synthesizer" not in options:
            msg = f"{type(engine).__name__} keeps its retriever out of reach: give synthesizer= beside retriever="
            raise NotGuardableError(msg)
        answering = _assembled(options)
    llm = llm_of(answering)
    rewriter = options.get("rewriter") or (LlmRewriter(llm) if isinstance(llm, LLM) else None)
    processors = options["postprocessors"] if "postprocessors" in options else postprocessors_of(engine)
    return RerunTools(
        engine=answering,
        retriever=options.get("retriever") or own_retriever,
        postprocessors=tuple(processors),
        retrievers=dict(options.get("retrievers", {})),
        rewriter=rewriter,
        fallbacks=dict(options.get("fallbacks", {})),
        tags=frozenset(options.get("tags", ())),
        weights=weights,
        empty_response=empty_response_of(engine),
    )


def _check_fallbacks(engine: BaseQueryEngine | BaseChatEngine, fallbacks: Mapping[str, object]) -> None:
    kinds = (LLM, BaseQueryEngine, *((BaseChatEngine,) if isinstance(engine, BaseChatEngine) else ()))
    for name, fallback in fallbacks.items():
        if not isinstance(fallback, kinds) and not isinstance(fallback, AnswerModel):
            allowed = ", ".join(kind.__name__ for kind in kinds)
            msg = f"fallback {name!r} is a {type(fallback).__name__}: give a LlamaIndex object ({allowed})"
            raise NotGuardableError(msg)
