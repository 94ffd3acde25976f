"""The runs of one call of a chain: who started whom, what was asked, retrieved and written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from langchain_core.documents import Document
    from langchain_core.messages import BaseMessage

    from semgrad_guard.flow import Score

MAX_LLM_RUNS = 256
"""Model calls kept per tree, newest last: an agent that runs for days must not keep every prompt it ever sent."""
MAX_RETRIEVALS = 256
"""Retrievals kept per tree."""
MAX_DEPTH = 1_000
"""Levels walked upwards, whatever the parents say."""


@dataclass(slots=True, kw_only=True)
class LlmRun:
    """One call of a language model."""

    id: UUID
    name: str
    prompt: str | tuple[BaseMessage, ...]
    model: str | None = None
    """The model's name, where the integration says it."""
    serialized: object = None
    """What the model told the callbacks about itself; the very same object for every call of one model object."""
    text: str | None = None
    """What it wrote; `None` while it is still writing."""
    score: Score | None = None
    """The score that a single-pass model took while it wrote."""
    stopped: bool = False
    """True when it asked for tools instead of answering."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What one retriever call found."""

    id: UUID
    query: str | None
    documents: tuple[Document, ...]


@dataclass(slots=True)
class RunTree:
    """All runs below one root; not thread-safe by itself."""

    root: UUID
    parents: dict[UUID, UUID | None] = field(default_factory=dict)
    questions: dict[UUID, str] = field(default_factory=dict)
    """Run -> the question in its input, where there is one; empty inputs of streaming chains are not known."""
    llm_runs: deque[LlmRun] = field(default_factory=lambda: deque(maxlen=MAX_LLM_RUNS))
    retrievals: deque[Retrieval] = field(default_factory=lambda: deque(maxlen=MAX_RETRIEVALS))

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

    def question(self, scopes: Sequence[UUID], llm_run: UUID | None) -> str | None:
        """Return what was asked: the input of the nearest run above that holds a question.

        A chain that streams learns its input only while it runs; then the oldest step before the model's call that was
        given a question knows it.

        Args:
            scopes: the runs looked below, nearest first.
            llm_run: the model call that wrote the answer.
        """
        above = [*scopes[:-1], *self.upwards(scopes[-1])] if scopes else []
        for run in above:
            if run in self.questions:
                return self.questions[run]
        for run in self.parents if llm_run else ():
            if run == llm_run:
                break
            if run in self.questions and any(self.is_below(run, scope) for scope in scopes):
                return self.questions[run]
        return None

    def query_below(self, ancestor: UUID) -> str | None:
        """Return what the last retriever called at or below a run was asked."""
        return next((r.query for r in reversed(self.retrievals) if self.is_below(r.id, ancestor)), None)

    def documents_below(self, ancestor: UUID) -> list[Document]:
        """Return the documents retrieved at or below a run, oldest first, each once."""
        found: dict[tuple[str, str], Document] = {}
        for retrieval in self.retrievals:
            if self.is_below(retrieval.id, ancestor):
                for document in retrieval.documents:
                    found.setdefault((document.page_content, str(document.metadata)), document)
        return list(found.values())


def choose(tree: RunTree, scopes: Sequence[UUID], text: str | None, run_id: UUID | None = None) -> LlmRun | None:
    """Return the model call that wrote a text.

    Args:
        tree: the runs.
        scopes: runs to look below, nearest first.
        text: the text received; `None` where the value holds none, which leaves the nearest and latest call.
        run_id: the call that a message says it comes from; it is trusted when it is below one of the scopes.
    """
    by_scope = [tree.written_below(scope) for scope in scopes]
    for matches in (
        lambda run: run_id is not None and run.id == run_id,
        lambda run: text is not None and _same(run.text, text),
        lambda run: text is not None and _overlap(run.text, text),
        lambda run: not run.stopped,
        lambda _: True,
    ):
        for runs in by_scope:
            chosen = [run for run in runs if matches(run)]
            if chosen:
                return chosen[-1]
    return None


def _same(written: str | None, received: str) -> bool:
    return written is not None and written.strip() == received.strip()


def _overlap(written: str | None, received: str) -> bool:
    one, other = (written or "").strip(), received.strip()
    return bool(one and other) and (one in other or other in one)
