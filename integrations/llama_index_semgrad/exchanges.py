"""A response and the model calls behind it -> the exchange that is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import PydanticResponse

from llama_index_semgrad.convert import passages_of, rebuilt_prompt, request_tags
from llama_index_semgrad.watcher import weights_of
from semgrad_guard.errors import PromptNotFoundError, ScoringError
from semgrad_guard.flow import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index_semgrad.responses import Reply
    from llama_index_semgrad.watcher import ModelCall
    from semgrad_guard.flow import Json

NO_MODEL_ASKED = PromptNotFoundError(
    "among the model calls of this query",
    "no model was asked, usually because nothing was retrieved: check the retriever and its filters",
)


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a question beside the answer."""

    question: str
    tags: frozenset[str] = frozenset()
    weights: object | None = None
    """The live model whose weights score; an answer that they wrote is on-policy."""
    empty_response: str | None = None
    """The text that the engine gives without asking a model."""


@dataclass(frozen=True, slots=True)
class Judgeable:
    """An exchange, and why it cannot be judged where it can't."""

    exchange: Exchange
    error: ScoringError | None = None


def judgeable(reply: Reply, calls: Sequence[ModelCall], about: About) -> Judgeable:
    """Return the exchange of a response.

    Of several model calls the one that wrote the response's text is judged, else the last one.
    """
    passages = passages_of(reply.nodes)
    at = which_call(calls, reply.text)
    call = calls[at] if at is not None else None
    answer = _answer(reply, call)
    rebuilt: dict[str, Any] = {"prompt": rebuilt_prompt(about.question, [p.text for p in passages])}
    exchange = Exchange(
        answer=answer,
        question=about.question,
        passages=passages,
        tags=about.tags | request_tags(),
        metadata=_said(calls, at),
        **(call_fields(call, answer, about.weights) if call else rebuilt),
    )
    asked_nobody = call is None and reply.text == about.empty_response
    return Judgeable(exchange, NO_MODEL_ASKED if asked_nobody else None)


def call_fields(call: ModelCall, answer: str, weights: object | None) -> dict[str, Any]:
    """Return what a model call says about its exchange.

    Args:
        call: the call.
        answer: the text that is judged; token ids and a score taken while writing are those of the call's own text.
        weights: the live model that scores.
    """
    whole = call.text.strip() == answer.strip()
    on_policy = weights is not None and weights_of(call.llm) is weights
    ids = call.ids() if whole and on_policy else None
    return {
        "prompt": call.rendered if on_policy and call.rendered is not None else call.prompt,
        "prompt_ids": ids[0] if ids else None,
        "answer_ids": ids[1] if ids else None,
        "author": call.author,
        "on_policy": on_policy,
        "score": call.score if whole else None,
    }


def next_judgeable(earlier: Exchange, made: Judgeable) -> Exchange:
    """Return the exchange of a new attempt at an earlier one's question.

    Raises:
        ScoringError: it cannot be judged.
    """
    if made.error is not None:
        raise made.error
    new = made.exchange
    following = earlier.next_attempt(prompt=new.prompt, answer=new.answer, passages=new.passages, author=new.author)
    return replace(
        following,
        prompt_ids=new.prompt_ids,
        answer_ids=new.answer_ids,
        on_policy=new.on_policy,
        score=new.score,
        metadata={**following.metadata, **new.metadata},
    )


def which_call(calls: Sequence[ModelCall], text: str) -> int | None:
    """Return the index of the call that wrote a text: its very text, else one that shares it, else the last."""
    wanted = text.strip()
    for same in (_equal, _overlapping):
        found = [i for i, call in enumerate(calls) if same(call.text.strip(), wanted)]
        if found:
            return found[-1]
    return len(calls) - 1 if calls else None


def _equal(written: str, wanted: str) -> bool:
    return written == wanted


def _overlapping(written: str, wanted: str) -> bool:
    return bool(written and wanted) and (written in wanted or wanted in written)


def _answer(reply: Reply, call: ModelCall | None) -> str:
    """Return the text to judge: what the model wrote where the response is an object made of it."""
    if isinstance(reply.native, PydanticResponse) and call is not None and call.text.strip():
        return call.text
    return reply.text


def _said(calls: Sequence[ModelCall], at: int | None) -> dict[str, Json]:
    if at is None:
        return {"prompt": "rebuilt"}
    return {"prompt": "captured", "model_calls": len(calls), "judged_call": at + 1}
