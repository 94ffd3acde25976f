"""An agent that searches again by its own tools: what its state keeps between a rejected answer and the next one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from langchain.agents.middleware import ModelResponse
from langchain_core.messages import HumanMessage

from semgrad_guard.flow import Failure, Progress, RetryRetrieval, utc_now
from semgrad_guard.wire import attempt_fields, attempt_from_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain.agents.middleware import ModelRequest

    from semgrad_guard.flow import Exchange, ExchangeId

SEARCH_AGAIN = (
    "What your tools found so far is not enough for an answer that can be relied on. Search again with your tools "
    "before you answer: in other words than before, or with another tool."
)
"""What the agent's model is told, at the end of its system message; nothing of the rejected answer is in it."""
REWORDED = "You may ask for: {query}"
"""The question in other words, where the policy wants that and there is a rewriter."""


def instruction(query: str, question: str | None) -> str:
    """Return what the model is told before it searches again."""
    return SEARCH_AGAIN if query == question else f"{SEARCH_AGAIN} {REWORDED.format(query=query)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One question whose last answer was not good enough, while the agent searches again."""

    told: str = ""
    """What the model is told."""
    progress: Progress = field(default_factory=Progress)
    given: Mapping[ExchangeId, ModelResponse[Any]] = field(default_factory=dict["ExchangeId", ModelResponse[Any]])
    """Attempt -> what the model gave then: the best may be an earlier one."""

    def continued(self, exchange: Exchange) -> Exchange:
        """Return the exchange of a new answer as the next attempt."""
        earlier = self.progress.attempts
        return replace(exchange, attempt=earlier[-1].exchange.attempt + 1) if earlier else exchange

    def progress_at(self, exchange: Exchange) -> Progress:
        """Return what happened before an answer; a search that found nothing new is not made once more."""
        last = self.progress.attempts[-1] if self.progress.attempts else None
        if last is None or {p.text for p in exchange.passages} != {p.text for p in last.exchange.passages}:
            return self.progress
        nothing_new = Failure(
            RetryRetrieval.action.value, "RetrievalFailedError", "the agent's tools found nothing new: no use in again"
        )
        return replace(
            self.progress,
            exhausted=self.progress.exhausted | {last.decision.rule},
            failures=(*self.progress.failures, nothing_new),
        )


NO_SEARCH = Search()


def to_state(search: Search, message_id: str, messages: Sequence[object]) -> dict[str, Any]:
    """Return what the graph's state keeps: JSON values and messages, so any checkpointer can store it.

    Args:
        search: what to keep.
        message_id: the empty message that stands in the place of the rejected answer until the model is asked again.
        messages: the messages that led to the answer.
    """
    progress = search.progress
    return {
        "message_id": message_id,
        "asked": _asked(messages),
        "told": search.told,
        "stopped_at": utc_now().isoformat(),
        "progress": {
            "attempts": [attempt_fields(attempt, log_text=True) for attempt in progress.attempts],
            "tried": dict(progress.tried),
            "exhausted": sorted(progress.exhausted),
            "elapsed_s": progress.elapsed_s,
            "cost": progress.cost,
            "failures": [asdict(failure) for failure in progress.failures],
        },
        "given": {
            str(key): {"result": list(one.result), "structured": one.structured_response}
            for key, one in search.given.items()
        },
    }


def search_in(request: ModelRequest[Any]) -> Search:
    """Return the search that is under way for the question of a request; an empty one where there is none."""
    state = cast("dict[str, Any]", request.state)
    kept = state.get("semgrad_search")
    if not kept or kept["asked"] != _asked(request.messages):
        return NO_SEARCH
    said = dict(kept["progress"])
    since = utc_now() - datetime.fromisoformat(kept["stopped_at"])
    progress = Progress(
        attempts=tuple(attempt_from_fields(one) for one in said["attempts"]),
        tried=said["tried"],
        exhausted=frozenset(said["exhausted"]),
        elapsed_s=said["elapsed_s"] + max(0.0, since.total_seconds()),
        cost=said["cost"],
        failures=tuple(Failure(**one) for one in said["failures"]),
    )
    given = {
        key: ModelResponse(result=one["result"], structured_response=one["structured"])
        for key, one in kept["given"].items()
    }
    return Search(told=kept["told"], progress=progress, given=cast("dict[ExchangeId, ModelResponse[Any]]", given))


def _asked(messages: Sequence[object]) -> str | None:
    """Return the id of the question: another one begins afresh."""
    return next((m.id for m in reversed(messages) if isinstance(m, HumanMessage)), None)
