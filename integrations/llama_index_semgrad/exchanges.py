"""The exchange that is judged, made of a response and the model calls of its question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.schema import BaseNode, NodeWithScore

from llama_index_semgrad.convert import passage_of, passages_of, rebuilt_prompt, request_tags, weights_of
from semgrad_guard.adapter_kit import NOTHING_STATED, Candidate, Stated, match_call, stated_here
from semgrad_guard.adapter_kit import answering as kit_answering
from semgrad_guard.context import question_asked
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llama_index_semgrad.convert import LlmCall
    from llama_index_semgrad.responses import Reply
    from semgrad_guard.adapter_kit import Answering
    from semgrad_guard.flow import Json, Passage


def answering(
    question: str | None = None,
    passages: Iterable[NodeWithScore | BaseNode | Passage | str] | str | None = None,
) -> Answering:
    """State the question and the passages of the answers that are written or judged within a `with` block.

    They take the place of those that the guard finds; see `semgrad_guard.adapter_kit.answering` for how blocks nest and
    which threads know them.

    Args:
        question: the user's question alone; `None` leaves it to be found.
        passages: the texts that the answer is written from: nodes, strings or `Passage`. An empty list says that it is
            written without any; `None` leaves them to be found.

    Raises:
        OptionError: something among the passages is no text.

    Example:
        >>> with answering(question="Who discovered radium?", passages=nodes):  # doctest: +SKIP
        ...     handler_judges = llm.complete(prompt)
    """
    return kit_answering(question, passages, convert=_passage_or_none)


def _passage_or_none(value: object) -> Passage | None:
    node = NodeWithScore(node=value) if isinstance(value, BaseNode) else value
    return passage_of(node) if isinstance(node, NodeWithScore) else None


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What is known about a question to an engine before there is an answer."""

    question: str
    tags: frozenset[str] = frozenset()
    weights: object | None = None
    """The live model that scores; an answer that it wrote itself is on-policy."""
    empty_response: str | None = None
    """The text that the engine returns, without calling a model, when nothing was retrieved."""
    stated: Stated = field(default_factory=stated_here)
    """What `answering` blocks around the question state."""


def engine_candidate(reply: Reply, calls: Sequence[LlmCall], context: EngineContext) -> Candidate:
    """Return the answer of an engine as something to judge.

    Its prompt is that of the model call which wrote it (`match_call`). When no call was seen, the prompt is rebuilt
    from the question and the passages.

    Args:
        reply: the engine's response.
        calls: the model calls that the engine made for it, oldest first.
        context: what is known about the question.
    """
    passages = passages_of(reply.nodes)
    call = match_call([calls], reply.text)
    answer = _answer_text(reply, call)
    rebuilt: dict[str, Any] = {"prompt": rebuilt_prompt(context.question, [p.text for p in passages])}
    exchange = Exchange(
        answer=answer,
        question=_question(context.question, call, calls),
        passages=passages,
        passages_from="retriever" if passages else None,
        tags=context.tags | request_tags(),
        metadata=_prompt_metadata(calls, call),
        **(call_fields(call, answer, context.weights) if call else rebuilt),
    )
    exchange = (call.stated if call else NOTHING_STATED).over(context.stated).apply(exchange)
    is_empty_response = call is None and reply.text == context.empty_response
    return Candidate(exchange, _no_model_call() if is_empty_response else None)


def _question(question: str, call: LlmCall | None, calls: Sequence[LlmCall]) -> str | None:
    """Return the question that a model call answered; an earlier call may have reworded the user's."""
    if call is None:
        return question or None
    return question_asked(call.prompt, [question, *(one.text for one in calls if one is not call)])


def call_fields(call: LlmCall, answer: str, weights: object | None) -> dict[str, Any]:
    """Return the fields of an exchange that its model call determines.

    Args:
        call: the model call.
        answer: the text that is judged. Token ids and a score taken while writing belong to the call's own text: they
            are left out when the answer is another text.
        weights: the live model that scores.
    """
    same_text = call.text.strip() == answer.strip()
    on_policy = weights is not None and weights_of(call.llm) is weights
    ids = call.ids() if same_text and on_policy else None
    return {
        "prompt": call.rendered if on_policy and call.rendered is not None else call.prompt,
        "prompt_ids": ids[0] if ids else None,
        "answer_ids": ids[1] if ids else None,
        "author": call.author,
        "on_policy": on_policy,
        "score": call.score if same_text else None,
    }


def _answer_text(reply: Reply, call: LlmCall | None) -> str:
    """Return the text to judge: what the model wrote, when the response is an object that was parsed from it."""
    if isinstance(reply.native, PydanticResponse) and call is not None and call.text.strip():
        return call.text
    return reply.text


def _prompt_metadata(calls: Sequence[LlmCall], call: LlmCall | None) -> dict[str, Json]:
    """Return where the prompt of an exchange comes from."""
    if call is None:
        return {"prompt": "rebuilt"}
    number = next(number for number, one in enumerate(calls, start=1) if one is call)
    return {"prompt": "captured", "model_calls": len(calls), "judged_call": number}


def _no_model_call() -> PromptNotFoundError:
    return PromptNotFoundError(
        "among the model calls of this query",
        "no model was asked, usually because nothing was retrieved: check the retriever and its filters",
    )
