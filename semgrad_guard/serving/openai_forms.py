"""OpenAI's chat completions and completions as JSON values: prompts, answers, and pieces of a stream."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.serving.problems import RequestError
from semgrad_guard.wire import PassageForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Prompt

Fields = dict[str, Any]
OWN = "semgrad"
"""The key of a request's own options, and of what a response says of its answer."""


def _passage(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


class Options(BaseModel):
    """What a request may say under `semgrad`; the official clients send it as `extra_body={"semgrad": ...}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signals: bool = False
    """Also return the whole score with its signals, for a guard behind the client."""
    question: str | None = None
    """The user's question alone; by default it is found in the messages."""
    passages: tuple[Annotated[PassageForm, BeforeValidator(_passage)], ...] | None = None
    """The retrieved passages; by default they are found in the messages."""
    tags: tuple[str, ...] = Field(default=(), max_length=100)
    """What the policy's overrides may match."""

    def apply(self, exchange: Exchange) -> Exchange:
        """Return an exchange with what is stated here."""
        stated = {} if self.passages is None else {
            "passages": tuple(Passage(p.text, p.source, p.score) for p in self.passages),
            "passages_from": "stated",
        }  # fmt: skip
        return replace(exchange, question=self.question, tags=frozenset(self.tags), **stated)  # type: ignore[arg-type]


def bad(message: str, param: str | None = None, code: str = "invalid_request") -> RequestError:
    """Return the error of a request that cannot be carried out as it is."""
    return RequestError(HTTPStatus.BAD_REQUEST, message, code=code, param=param)


def options_of(body: Fields) -> Options:
    """Take the server's own options out of a request.

    Raises:
        RequestError: they are none of the known ones.
    """
    try:
        return Options.model_validate(body.pop(OWN, None) or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (OWN, *first["loc"]))
        msg = f"{place}: {first['msg']}"
        raise bad(msg, place) from error


class Dialect(Protocol):
    """One of the two forms in which completions are asked for and given."""

    path: str
    """Below the `/v1` of a server."""
    kind: str
    """`object` of a whole answer."""
    piece_kind: str
    """`object` of one piece of a stream."""

    def prompt(self, body: Fields, n: int) -> tuple[Prompt, str]:
        """Return the prompt of choice number `n`, and what in it a language model cannot read; empty where nothing."""
        ...

    def text(self, choice: Fields) -> str:
        """Return the text of a whole choice."""
        ...

    def asks_for_tools(self, choice: Fields) -> bool:
        """Return whether a choice, or a piece of one, asks for tools."""
        ...

    def piece_text(self, choice: Fields) -> str:
        """Return the text in a piece of a choice."""
        ...

    def choice(self, index: int, text: str, finish: str | None, tools: Any = None) -> Fields:
        """Return a whole choice with nothing in it but this."""
        ...

    def piece(self, index: int, text: str | None, finish: str | None = None, tools: Any = None) -> Fields:
        """Return a piece of a choice."""
        ...


class Chat:
    """`/v1/chat/completions`."""

    path, kind, piece_kind = "/chat/completions", "chat.completion", "chat.completion.chunk"

    def prompt(self, body: Fields, n: int) -> tuple[Prompt, str]:  # noqa: ARG002 - every choice has the same
        """Return the messages, and what in them is no text."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise bad("`messages` must be a list of at least one message", "messages")
        read = [_message(one, number) for number, one in enumerate(messages)]
        unread = sorted({kind for _, kinds in read for kind in kinds})
        return tuple(message for message, _ in read), ", ".join(unread)

    def text(self, choice: Fields) -> str:
        """Return the text of the message."""
        return _text_of(choice.get("message"))

    def asks_for_tools(self, choice: Fields) -> bool:
        """Return whether there are calls of tools or functions."""
        inner = choice.get("message") or choice.get("delta") or {}
        return bool(inner.get("tool_calls") or inner.get("function_call"))

    def piece_text(self, choice: Fields) -> str:
        """Return the text of the delta."""
        return _text_of(choice.get("delta"))

    def choice(self, index: int, text: str, finish: str | None, tools: Any = None) -> Fields:
        """Return a choice with one message."""
        message: Fields = {"role": "assistant", "content": text, **({"tool_calls": tools} if tools else {})}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def piece(self, index: int, text: str | None, finish: str | None = None, tools: Any = None) -> Fields:
        """Return a choice with a delta; without text and end it opens the message."""
        delta: Fields = {} if text is None and finish is not None else {"content": text or ""}
        if text is None and finish is None:
            delta = {"role": "assistant", "content": ""}
        if tools:
            delta["tool_calls"] = [{"index": n, **one} for n, one in enumerate(tools)]
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


class Text:
    """`/v1/completions`."""

    path, kind, piece_kind = "/completions", "text_completion", "text_completion"

    def prompt(self, body: Fields, n: int) -> tuple[Prompt, str]:
        """Return the prompt of a choice; several prompts have `n` choices each."""
        given = body.get("prompt", "")
        prompts = given if isinstance(given, list) and given and all(isinstance(one, str) for one in given) else [given]
        one = prompts[min(n // max(1, _number(body, "n", 1)), len(prompts) - 1)]
        if isinstance(one, str):
            return one, "" if one else "no text"
        return "", "token ids"

    def text(self, choice: Fields) -> str:
        """Return the text."""
        return str(choice.get("text") or "")

    def asks_for_tools(self, choice: Fields) -> bool:  # noqa: ARG002 - it cannot
        """Return False: this form knows no tools."""
        return False

    def piece_text(self, choice: Fields) -> str:
        """Return the text."""
        return self.text(choice)

    def choice(self, index: int, text: str, finish: str | None, tools: Any = None) -> Fields:  # noqa: ARG002
        """Return a choice."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def piece(self, index: int, text: str | None, finish: str | None = None, tools: Any = None) -> Fields:  # noqa: ARG002
        """Return a choice; pieces look like wholes."""
        return {"index": index, "text": text or "", "logprobs": None, "finish_reason": finish}


CHAT, TEXT = Chat(), Text()


def frame(dialect: Dialect, model: str, *, pieces: bool) -> Fields:
    """Return what stands around choices that this server writes itself."""
    return {
        "id": f"{'chatcmpl' if dialect is CHAT else 'cmpl'}-{uuid.uuid4().hex}",
        "object": dialect.piece_kind if pieces else dialect.kind,
        "created": int(time.time()),
        "model": model,
    }


_KEPT = ("id", "object", "created", "model", "service_tier", "system_fingerprint")


def bare(response: Mapping[str, Any]) -> Fields:
    """Return what stands around choices, without anything that could repeat an answer."""
    kept = {key: response[key] for key in _KEPT if isinstance(response.get(key), str | int)}
    usage = response.get("usage")
    return {**kept, **({"usage": _numbers(usage)} if isinstance(usage, dict) else {})}


def choices_of(response: object) -> list[Fields]:
    """Return the choices of a response or a piece of a stream.

    Raises:
        ValueError: it has none.
    """
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or not all(_is_choice(one) for one in choices):
        msg = "it has no list of choices"
        raise ValueError(msg)
    return choices


def _is_choice(value: object) -> bool:
    """Return whether a value has the parts of a choice, where it has them, in their form."""
    if not isinstance(value, dict) or not isinstance(value.get("index", 0), int):
        return False
    if not isinstance(value.get("finish_reason"), str | None) or not isinstance(value.get("text"), str | None):
        return False
    for inner in (value.get("message"), value.get("delta")):
        if inner is not None and not isinstance(inner, dict):
            return False
        calls, call = (inner or {}).get("tool_calls") or [], (inner or {}).get("function_call")
        if not isinstance(calls, list) or not all(isinstance(one, dict) for one in [*calls, call or {}]):
            return False
    return True


def _numbers(value: Mapping[str, Any]) -> Fields:
    """Return the numbers of a mapping, also those of mappings in it."""
    found = {key: _numbers(one) if isinstance(one, dict) else one for key, one in value.items()}
    return {key: one for key, one in found.items() if isinstance(one, int | float | dict)}


def _message(value: object, number: int) -> tuple[Message, set[str]]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise bad("every message needs a `role`", f"messages.{number}")
    role = "system" if value["role"] == "developer" else value["role"]
    return Message(role, _text_of(value)), _kinds_of(value.get("content"))


def _text_of(message: object) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if _is_text(part))
    return content if isinstance(content, str) else ""


def _kinds_of(content: object) -> set[str]:
    """Return the kinds of parts that are no text, such as images."""
    parts = content if isinstance(content, list) else []
    return {str(part.get("type")) if isinstance(part, dict) else "?" for part in parts if not _is_text(part)}


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("text", "input_text")  # no set: it may be anything


def is_text_format(wanted: object) -> bool:
    """Return whether a request's `response_format` asks for plain text, as a request without one does."""
    return not isinstance(wanted, dict) or wanted.get("type") in (None, "text")  # no set: it may be anything


def wants_usage(body: Fields) -> bool:
    """Return whether a stream is to end with the numbers of tokens."""
    wanted = body.get("stream_options")
    return isinstance(wanted, dict) and bool(wanted.get("include_usage"))


def _number(body: Fields, name: str, default: int) -> int:
    value = body.get(name)
    return value if isinstance(value, int) and value > 0 else default
