"""Chat messages -> the text that the model reads, by its own chat template."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, cast

from jinja2.exceptions import TemplateError

from semgrad_guard.flow import Message
from semgrad_guard.models.special import special_tokens
from semgrad_guard.models.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_PROBE = "probe"


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the model was made for chat: its tokenizer carries a template."""
    return bool(tokenizer.chat_template)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 digest of the chat template; of the empty text for a base model."""
    template: object = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the text of a chat, up to the point where the assistant's answer begins.

    - A chat model's own template is used, with its generation prompt.
    - A template that refuses a system message, or turns that do not alternate, gets the same contents merged: the
      system message at the head of the first user message, neighbours of one role joined by a blank line.
    - A base model has no template: contents are joined by blank lines. Only when earlier turns of an assistant are
      among them is each led by its role (`user: …`), and `assistant:` ends the text.
    """
    messages = [Message(message.role, clean_text(message.content)) for message in messages]
    if not has_template(tokenizer):
        return join_plainly(messages)
    try:
        return _apply(tokenizer, messages)
    except TemplateError:
        return _apply(tokenizer, _merged(messages))


def join_plainly(messages: Sequence[Message]) -> str:
    """Return the messages as plain text, for a model without a chat template."""
    if not any(message.role == "assistant" for message in messages):
        return "\n\n".join(message.content for message in messages)
    turns = [f"{message.role}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "assistant:"])


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the id of the special token that closes an assistant's turn in the chat template, or nothing.

    Checkpoints do not always name it as an end token: the template is where it can be read with certainty.
    """
    if not has_template(tokenizer):
        return ()
    turn = [Message("user", _PROBE), Message("assistant", _PROBE)]
    try:
        text = _apply(tokenizer, turn, add_generation_prompt=False)
    except TemplateError:
        return ()
    rest = text.rpartition(_PROBE)[2].lstrip()
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
    return tuple(ids[:1]) if ids and ids[0] in special_tokens(tokenizer).values() else ()


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    return cast("str", rendered)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Return messages of alternating roles without a system message."""
    merged: list[Message] = []
    for message in messages:
        role = "user" if message.role == "system" else message.role
        if merged and merged[-1].role == role:
            merged[-1] = Message(role, f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(Message(role, message.content))
    return merged
