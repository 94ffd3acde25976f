"""Graphs that stopped for a person go on once the person has decided in the review queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from langgraph.types import Command

from langchain_semgrad.review_interrupt import THREAD_KEY
from langchain_semgrad.review_verdict import resume_with

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    from semgrad_guard.review import SqlReviewQueue
    from semgrad_guard.review.store.outbox import Delivery


class ReviewedRuns:
    """Resumes the runs of a graph whose answers people judged in the review queue.

    The guard of the graph hands answers over with `review="both"`: the graph stops with an interrupt, and the item in
    the queue remembers the thread. Any process that can build the graph with the same checkpointer may do this; each
    verdict is acted on once, however many do, and again after a failure.

    Example:
        >>> runs = ReviewedRuns(agent, open_queue("sqlite:///review.db"))  # doctest: +SKIP
        >>> runs.resume_until(stop)  # in a thread of its own  # doctest: +SKIP
    """

    def __init__(
        self, graph: CompiledStateGraph[Any, Any, Any, Any], queue: SqlReviewQueue, *, consumer: str = "langgraph"
    ) -> None:
        """Note in the queue that verdicts are wanted, those given before included.

        Args:
            graph: the compiled graph, with the checkpointer that keeps its stopped runs.
            queue: where people judge.
            consumer: a name of its own for each graph that shares the queue.
        """
        self._graph, self._queue, self._consumer = graph, queue, consumer
        queue.subscribe(consumer, with_backlog=True)

    def resume_due(self, *, limit: int = 20) -> int:
        """Resume the runs whose verdict is final; return how many verdicts were acted on."""
        from semgrad_guard.review.store.outbox import consume  # noqa: PLC0415 - loads the database library

        return consume(self._queue, self._consumer, self._resume, limit=limit)

    def resume_until(self, stop: Event, *, every_s: float = 1.0) -> None:
        """Resume runs as their verdicts come, until `stop` is set; meant for a thread of its own."""
        from semgrad_guard.review.store.outbox import consume_until  # noqa: PLC0415 - loads the database library

        consume_until(stop, self._queue, self._consumer, self._resume, every_s=every_s)

    def _resume(self, delivery: Delivery) -> None:
        detail = self._queue.get(delivery.item_id)
        thread = detail.document.metadata.get(THREAD_KEY) if detail.document is not None else None
        if detail.ruling is None or not isinstance(thread, str):
            return
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        for stopped in self._graph.get_state(config).interrupts:
            if _item_of(stopped.value) == delivery.item_id:
                self._graph.invoke(Command(resume={stopped.id: resume_with(detail.ruling)}), config)


def _item_of(value: object) -> str | None:
    """Return the review item that an interrupt is about; `None` for one that is not ours."""
    try:
        request = cast("Mapping[str, Any]", value)["action_requests"][0]
        return str(request["args"]["review_id"])
    except (KeyError, IndexError, TypeError):
        return None
