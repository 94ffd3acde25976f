"""Records every prompt, retrieval and question of the running chains; the user has nothing to set up.

LangChain asks every registered context variable for a handler whenever a chain starts. Ours has a *default*, so the one
handler below is called in every thread and every event loop, and sees each run together with its parent. A guard later
in the same chain looks up the question, and the model call that wrote the text it received. A tree of runs is forgotten
as soon as its root ends, fails or is cancelled.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.context import register_configure_hook
from langsmith import get_current_run_tree  # noqa: TID253 - langchain-core cannot do without it
from typing_extensions import override

from langchain_semgrad.convert import documents_in, question_in, result_score, result_text
from semgrad_guard.adapter_kit import NOTHING_STATED, match_call, stated_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from langchain_core.callbacks import BaseCallbackManager
    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langsmith import RunTree as TracedRun

    from semgrad_guard.adapter_kit import Stated
    from semgrad_guard.flow import PassagesFrom, Score

    Documents = Mapping[PassagesFrom, Sequence[Document]]
    """Documents by where they were found."""

_ID_LENGTH = 36


def traced_above(run_id: UUID) -> list[UUID]:
    """Return the runs above the run that LangSmith traces here, nearest first; none where another run is traced."""
    tree = get_current_run_tree()
    if tree is None or tree.id != run_id:
        return []
    return [UUID(step[-_ID_LENGTH:]) for step in reversed(tree.dotted_order.split("."))][1:]


def recorded(manager: BaseRunManager | BaseCallbackManager | None) -> TracedRun | None:
    """Return the open LangSmith run of a call; `None` where it is not traced."""
    run_id = getattr(manager, "run_id", None) or getattr(manager, "parent_run_id", None)
    for handler in manager.handlers if manager else ():
        if isinstance(handler, LangChainTracer):
            return handler.run_map.get(str(run_id))
    return None


MAX_LLM_RUNS = 256
"""Model calls kept per tree, newest last: an agent that runs for days must not keep every prompt it ever sent."""
MAX_RETRIEVALS = 256
"""Retrievals kept per tree."""
MAX_DEPTH = 1_000
"""The most levels that are walked upwards, in case parents form a circle."""


@dataclass(slots=True, kw_only=True)
class LlmRun:
    """One call of a language model."""

    id: UUID
    name: str
    prompt: str | tuple[BaseMessage, ...]
    model: str | None = None
    """The model's name, where the integration says it."""
    serialized: object = None
    """The model's description of itself for callbacks; the very same object for every call of one model object."""
    text: str | None = None
    """What it wrote; `None` while it is still writing."""
    score: Score | None = None
    """The score that a single-pass model took while it wrote."""
    asked_for_tools: bool = False
    """Whether it asked for tools instead of answering."""
    stated: Stated = NOTHING_STATED
    """What `answering` blocks around the call state."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Documents that a retriever returned, or that a step of a chain was given or gave."""

    id: UUID
    query: str | None
    documents: tuple[Document, ...]
    found: PassagesFrom = "retriever"


@dataclass(slots=True)
class RunTree:
    """All runs below one root; not thread-safe by itself."""

    root: UUID
    parents: dict[UUID, UUID | None] = field(default_factory=dict)
    questions: dict[UUID, str] = field(default_factory=dict)
    """The question in each run's input, where there is one; the inputs of streaming chains are not known."""
    llm_runs: deque[LlmRun] = field(default_factory=lambda: deque(maxlen=MAX_LLM_RUNS))
    retrievals: deque[Retrieval] = field(default_factory=lambda: deque(maxlen=MAX_RETRIEVALS))
    passed_on: deque[Retrieval] = field(default_factory=lambda: deque(maxlen=MAX_RETRIEVALS))
    """Documents in what steps were given and gave: those of searches that are no retriever's run."""

    def upwards(self, run_id: UUID) -> Iterator[UUID]:
        """Yield a run, its parent, and so on up to the root."""
        current: UUID | None = run_id
        for _ in range(MAX_DEPTH):
            if current is None or current not in self.parents:
                return
            yield current
            current = self.parents[current]

    def is_below(self, run_id: UUID, ancestor: UUID) -> bool:
        """Tell whether a run is `ancestor` or was started, directly or not, by it."""
        return ancestor in self.upwards(run_id)

    def written_below(self, ancestor: UUID) -> list[LlmRun]:
        """Return the finished model calls at or below a run, oldest first."""
        return [run for run in self.llm_runs if run.text is not None and self.is_below(run.id, ancestor)]

    def questions_for(self, scopes: Sequence[UUID], llm_run: UUID | None) -> tuple[str, ...]:
        """Return what the question may be, the likeliest first: what the runs above were given, nearest first.

        A chain that streams learns its input only while it runs; then the oldest step before the model's call that was
        given a question knows it. Last is what a retriever was asked, which may be the question in other words.

        Args:
            scopes: the runs looked below, nearest first.
            llm_run: the model call that wrote the answer.
        """
        above = [*scopes[:-1], *self.upwards(scopes[-1])] if scopes else []
        known = [self.questions[run] for run in above if run in self.questions]
        if not known and llm_run in self.parents:
            before = takewhile(lambda run: run != llm_run, self.parents)
            asked = (run for run in before if run in self.questions)
            known += [self.questions[run] for run in asked if any(self.is_below(run, scope) for scope in scopes)][:1]
        return (*known, *filter(None, map(self.query_below, scopes)))

    def query_below(self, ancestor: UUID) -> str | None:
        """Return the query of the last retriever call at or below a run."""
        return next((r.query for r in reversed(self.retrievals) if r.query and self.is_below(r.id, ancestor)), None)

    def documents_below(self, ancestor: UUID) -> Documents:
        """Return the documents retrieved or passed on at or below a run, oldest first, by where they were found."""
        documents: dict[PassagesFrom, list[Document]] = {}
        for retrieval in (*self.retrievals, *self.passed_on):
            if self.is_below(retrieval.id, ancestor):
                documents.setdefault(retrieval.found, []).extend(retrieval.documents)
        return documents


MAX_TREES = 10_000
"""Running chains whose prompts are kept; beyond it the oldest is forgotten, and its guard fails closed."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What is known about the text that a guard received."""

    llm_run: LlmRun | None
    questions: tuple[str, ...]
    """What the question may be, the likeliest first."""
    documents: tuple[Documents, ...]
    """Documents below each of the runs above, nearest first."""
    query: str | None
    """The retriever's query, which need not be the question."""
    root: UUID


class RunStore:
    """The trees of all running chains; safe to use from many threads."""

    def __init__(self, max_trees: int = MAX_TREES) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._max_trees = max_trees
        self._trees: OrderedDict[UUID, RunTree] = OrderedDict()
        self._tree_of: dict[UUID, RunTree] = {}

    def __len__(self) -> int:
        return len(self._tree_of)

    def start(self, run_id: UUID, parent: UUID | None, question: str | None = None) -> None:
        """Note that a run began; one with an unknown parent is a root of its own."""
        with self._lock:
            self._start(run_id, parent, question)

    def passed(self, run_id: UUID, documents: Sequence[Document]) -> None:
        """Note documents that a step of a chain was given, or gave."""
        with self._lock:
            tree = self._tree_of.get(run_id) if documents else None
            if tree is not None:
                tree.passed_on.append(Retrieval(run_id, None, tuple(documents), "state"))

    def start_llm(self, run: LlmRun, parent: UUID | None) -> None:
        """Note that a model was called."""
        with self._lock:
            self._start(run.id, parent, None).llm_runs.append(run)

    def wrote(self, run_id: UUID, text: str, *, asked_for_tools: bool, score: Score | None = None) -> None:
        """Note what a model call wrote."""
        with self._lock:
            tree = self._tree_of.get(run_id)
            for run in tree.llm_runs if tree else ():
                if run.id == run_id:
                    run.text, run.asked_for_tools, run.score = text, asked_for_tools, score

    def retrieved(self, run_id: UUID, documents: Sequence[Document]) -> None:
        """Note what a retriever returned."""
        with self._lock:
            tree = self._tree_of.get(run_id)
            if tree is not None:
                tree.retrievals.append(Retrieval(run_id, tree.questions.get(run_id), tuple(documents)))

    def end(self, run_id: UUID) -> None:
        """Forget the whole tree when its root ended, however it ended."""
        with self._lock:
            if run_id in self._trees:
                self._forget(run_id)

    def find(
        self, run_id: UUID, text: str | None, *, message_run_id: UUID | None = None, within: bool = False
    ) -> Captured | None:
        """Return what is known about a text that a run received; `None` when the run is not known.

        Args:
            run_id: the guard's own run or, with `within`, the run of the chain that gave the text.
            text: the text; `None` where the value holds none.
            message_run_id: the model call that the message says it comes from.
            within: look below the run only, never at its ancestors.
        """
        with self._lock:
            tree = self._tree_of.get(run_id)
            if tree is None:
                return None
            scopes = [run_id] if within else list(tree.upwards(run_id))[1:]
            calls = [tree.written_below(scope) for scope in scopes]
            run = match_call(calls, text, named=lambda call: call.id == message_run_id)
            return _around(tree, scopes, run)

    def around(self, llm_run_id: UUID) -> Captured | None:
        """Return what is known about a running model call; `None` when nothing is."""
        with self._lock:
            tree = self._tree_of.get(llm_run_id)
            run = next((run for run in tree.llm_runs if run.id == llm_run_id), None) if tree else None
            return _around(tree, list(tree.upwards(llm_run_id))[1:], run) if tree else None

    def wrote_text(self, run_id: UUID, text: str) -> bool:
        """Tell whether some model call of the same tree wrote exactly this text."""
        with self._lock:
            tree = self._tree_of.get(run_id)
            return tree is not None and any((run.text or "").strip() == text.strip() for run in tree.llm_runs)

    def _start(self, run_id: UUID, parent: UUID | None, question: str | None) -> RunTree:
        parent = self._known(parent)
        tree = self._tree_of.get(parent) if parent else None
        if tree is None:
            tree = self._trees[run_id] = RunTree(run_id)
            parent = None
            while len(self._trees) > self._max_trees:
                self._forget(next(iter(self._trees)))
        tree.parents[run_id] = parent
        self._tree_of[run_id] = tree
        if question:
            tree.questions[run_id] = question
        return tree

    def _known(self, parent: UUID | None) -> UUID | None:
        """Return the nearest run above that LangChain reported: LangSmith traces functions in between by itself."""
        if parent is None or parent in self._tree_of:
            return parent
        return next((run_id for run_id in traced_above(parent) if run_id in self._tree_of), None)

    def _forget(self, root: UUID) -> None:
        for run_id in self._trees.pop(root).parents:
            self._tree_of.pop(run_id, None)


def _around(tree: RunTree, scopes: Sequence[UUID], run: LlmRun | None) -> Captured:
    questions = tree.questions_for(scopes, run.id if run else None)
    above = [*scopes[:-1], *tree.upwards(scopes[-1])] if scopes else []
    documents = tuple(filter(None, map(tree.documents_below, above)))
    query = next((q for q in map(tree.query_below, scopes) if q), None)
    return Captured(run, questions, documents, query, tree.root)


class CaptureHandler(BaseCallbackHandler):
    """Writes what LangChain reports into a store; quick, never raises, changes nothing."""

    run_inline = True  # in order, on the thread that runs the chain: a worker thread might come too late

    def __init__(self, store: RunStore) -> None:
        """Keep where to write."""
        self._store = store

    @override
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._store.start(run_id, parent_run_id, question_in(inputs))
        self._store.passed(run_id, documents_in(inputs))

    @override
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._store.start(run_id, parent_run_id)

    @override
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._store.start(run_id, parent_run_id, query)

    @override
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._store.start_llm(llm_run(serialized, tuple(messages[0]), run_id, kwargs), parent_run_id)

    @override
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        self._store.start_llm(llm_run(serialized, prompts[0], run_id, kwargs), parent_run_id)

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        text, asked_for_tools = result_text(response)
        self._store.wrote(run_id, text, asked_for_tools=asked_for_tools, score=result_score(response))
        self._store.end(run_id)

    @override
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        self._store.retrieved(run_id, documents)
        self._store.end(run_id)

    @override
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._store.passed(run_id, documents_in(outputs))
        self._store.end(run_id)

    @override
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._store.end(run_id)

    @override
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._store.end(run_id)

    on_tool_error = on_llm_error = on_retriever_error = on_chain_error


def llm_run(
    serialized: dict[str, Any] | None, prompt: str | tuple[BaseMessage, ...], run_id: UUID, details: dict[str, Any]
) -> LlmRun:
    """Return a model call as LangChain announces it to callbacks.

    Args:
        serialized: what the model says about itself.
        prompt: what it reads.
        run_id: its run.
        details: the callback's other arguments.
    """
    about, metadata, params = serialized or {}, details.get("metadata") or {}, details.get("invocation_params") or {}
    model = metadata.get("ls_model_name") or params.get("model") or params.get("model_name") or params.get("model_id")
    name = details.get("name") or about.get("name") or (about.get("id") or ["model"])[-1]
    return LlmRun(
        id=run_id,
        name=str(name),
        prompt=prompt,
        model=str(model) if model else None,
        serialized=serialized,
        stated=stated_here(),
    )


STORE = RunStore()
"""The store that the registered handler writes to."""

_HANDLER = CaptureHandler(STORE)

_handler: ContextVar[BaseCallbackHandler | None] = ContextVar("semgrad_guard_capture", default=_HANDLER)


register_configure_hook(_handler, inheritable=True)
