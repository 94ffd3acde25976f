"""Answers of agents: the final message of a model, the prompt that it read and the passages that its tools found."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables.config import ensure_config

from langchain_semgrad.capture import STORE, LlmRun
from langchain_semgrad.convert import run_id_of, to_message
from langchain_semgrad.exchanges import Job, Setting, exchange_of, jobs_in, passages_in
from langchain_semgrad.values import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.messages import AIMessage, BaseMessage

    from langchain_semgrad.exchanges import OwnModel
    from semgrad_guard.flow import Exchange


def final_answer(
    message: AIMessage, before: Sequence[BaseMessage], *, own_model: OwnModel | None, within: bool = True
) -> Job:
    """Return the answer of an agent's model with what it read.

    The prompt is what the model's call was seen to read, whatever the middleware in between made of it; where the call
    was not seen, as when a graph is resumed, it is the messages before the answer.

    Args:
        message: the answer; calls of tools (a structured answer) are judged as their text.
        before: the messages that led to it, with the system message.
        own_model: the scoring model, where it may have written the answer.
        within: whether the model was called by the node that runs now, or by an earlier one.
    """
    callbacks = ensure_config().get("callbacks")
    run_id = getattr(callbacks, "parent_run_id", None)
    text = to_message(message).content
    job = Job(Slot((), text, message), exchange_of(_unseen(message, before), question=None, documents=()), None)
    if isinstance(callbacks, BaseCallbackManager) and run_id is not None:
        setting = Setting(run_id, callbacks, within=within, own_model=own_model)
        seen = jobs_in(message if text == str(message.text) else text, setting)[0]
        job = replace(seen, slot=job.slot) if seen.error is None else _about(job, seen.exchange)
    return _with_passages(job, before)


def _about(job: Job, said: Exchange) -> Job:
    return replace(job, exchange=replace(job.exchange, tags=said.tags, metadata=said.metadata))


def _unseen(message: AIMessage, before: Sequence[BaseMessage]) -> LlmRun:
    return LlmRun(
        id=run_id_of(message) or uuid4(),
        name="model",
        prompt=tuple(before),
        model=message.response_metadata.get("model_name"),
        text=to_message(message).content,
    )


def _with_passages(job: Job, before: Sequence[BaseMessage]) -> Job:
    """Add what was found since the question: artifacts of tools, what was seen to be retrieved, else tools' texts."""
    exchange = job.exchange
    if exchange.passages:
        return job
    messages = _since_question(before)
    around = STORE.around(job.llm_run.id) if job.llm_run else None
    found = documents_of(messages) or list(around.documents if around else ())
    found = found or [
        Document(str(m.text), metadata={"source": m.name}) for m in messages if isinstance(m, ToolMessage)
    ]
    return replace(job, exchange=replace(exchange, passages=passages_in(found, exchange.prompt)))


def documents_of(messages: Sequence[BaseMessage]) -> list[Document]:
    """Return the documents that tools gave as artifacts beside their text."""
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    parts: list[Any] = [part for a in artifacts for part in (a if isinstance(a, list | tuple) else [a])]
    return [part for part in parts if isinstance(part, Document)]


def _since_question(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    last = max((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    return list(messages[last + 1 :])
