"""Who writes the answers: a local model, or the server behind this one. Both give OpenAI's form."""

from __future__ import annotations

from contextlib import aclosing, closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from semgrad_guard.adapter_kit import AnswerSettings, ScoredAnswer
from semgrad_guard.serving.backend import in_own_thread
from semgrad_guard.serving.judged import Written
from semgrad_guard.serving.openai_forms import Dialect, Fields, bad, choices_of, frame
from semgrad_guard.serving.problems import ClientGoneError, RequestError

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator

    import httpx

    from semgrad_guard.flow import Prompt
    from semgrad_guard.serving.backend import Backend
    from semgrad_guard.serving.upstream import Call

_FINISH = {"stop_sequence": "stop", "cancelled": "length"}


@dataclass(slots=True)
class Reply:
    """A whole answer: the response and its choices as they were written."""

    response: Fields
    written: list[Written]


class Writer(Protocol):
    """Writes one answer, whole or in pieces."""

    async def whole(self) -> Reply:
        """Return the whole answer."""
        ...

    def pieces(self) -> AsyncGenerator[Fields | ScoredAnswer]:
        """Yield the pieces of a stream, and where a local model wrote, what it knows in the end."""
        ...


@dataclass(frozen=True, slots=True)
class UpstreamWriter:
    """Asks the server behind this one."""

    call: Call
    client: httpx.AsyncClient

    async def whole(self) -> Reply:
        """Return the whole answer."""
        response = await self.call.whole(self.client)
        return Reply(response, [written_of(self.call.dialect, choice) for choice in choices_of(response)])

    async def pieces(self) -> AsyncGenerator[Fields | ScoredAnswer]:
        """Yield the pieces of a stream."""
        async with aclosing(self.call.pieces(self.client)) as pieces:
            async for piece in pieces:
                yield piece


def written_of(dialect: Dialect, choice: Fields) -> Written:
    """Return a choice of a response as it was written."""
    message = choice.get("message") or {}
    asks = dialect.asks_for_tools(choice)
    tools = message.get("tool_calls") or [message.get("function_call")] if asks else None
    return Written(dialect.text(choice), choice.get("finish_reason"), tools)


def _many(value: object) -> object:
    return [] if value is None else [value] if isinstance(value, str) else value


class _LocalRequest(BaseModel):
    """What a local model takes of a request; what it cannot do is refused, and unknown fields have no effect."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str = ""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_many)] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class LocalWriter:
    """Writes with the model in this process, and scores in the same pass."""

    backend: Backend
    dialect: Dialect
    body: Fields
    cancel: threading.Event

    def check(self) -> tuple[Prompt, AnswerSettings]:
        """Return what to write and how.

        Raises:
            RequestError: the request asks for what this model cannot do.
        """
        try:
            asked = _LocalRequest.model_validate(self.body)
        except ValidationError as error:
            first = error.errors()[0]
            place = str(first["loc"][0])
            msg = f"{place}: {first['msg']}"
            raise bad(msg, place) from error
        name = self.backend.scorer.name
        if asked.model.lower() not in {"", name.lower()}:
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                f"there is no model {asked.model!r} here: this server has {name!r}",
                code="model_not_found",
                param="model",
            )
        _refuse_unsupported(self.body)
        prompt, unread = self.dialect.prompt(self.body, 0)
        if unread:
            msg = f"{name} reads text only, and the prompt has {unread}"
            raise bad(msg, "messages", "unsupported_content")
        most = asked.max_completion_tokens or asked.max_tokens or self.backend.settings.max_tokens
        settings = AnswerSettings(
            max_tokens=most,
            temperature=asked.temperature if asked.temperature is not None else 0.0,
            top_p=asked.top_p or 1.0,
            stop=asked.stop,
            seed=asked.seed,
        )
        return prompt, settings

    async def whole(self) -> Reply:
        """Return the whole answer."""
        prompt, settings = self.check()
        answer = await in_own_thread(lambda _: self._write(prompt, settings), self.cancel)
        written = Written(answer.generated.text, _finish_of(answer), scored=answer)
        choice = self.dialect.choice(0, written.text, written.finish)
        response = {
            **frame(self.dialect, self.backend.scorer.name, pieces=False),
            "choices": [choice],
            "usage": usage_of(answer),
        }
        return Reply(response, [written])

    async def pieces(self) -> AsyncGenerator[Fields | ScoredAnswer]:
        """Yield the pieces of a stream, and in the end what is known of the answer."""
        prompt, settings = self.check()
        around = frame(self.dialect, self.backend.scorer.name, pieces=True)
        writer = await in_own_thread(lambda _: self.backend.writer, self.cancel)  # loads the model
        is_begun = False
        async with aclosing(writer.astream(prompt, settings)) as items:
            async for item in items:
                if not is_begun:  # not before: what fails at once has its own status
                    is_begun = True
                    yield {**around, "choices": [self.dialect.piece(0, None)]}
                if isinstance(item, str):
                    yield {**around, "choices": [self.dialect.piece(0, item)]}
                    continue
                yield item
                yield {**around, "choices": [self.dialect.piece(0, None, _finish_of(item))]}
                if (self.body.get("stream_options") or {}).get("include_usage"):
                    yield {**around, "choices": [], "usage": usage_of(item)}

    def _write(self, prompt: Prompt, settings: AnswerSettings) -> ScoredAnswer:
        """Write the answer, as long as somebody waits for it."""
        with closing(self.backend.writer.stream(prompt, settings)) as items:
            for item in items:
                if isinstance(item, ScoredAnswer):
                    return item
                if self.cancel.is_set():
                    raise ClientGoneError
        raise ClientGoneError


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "logprobs": (None, False, 0), "top_logprobs": (None, 0),
    "tools": (None, []), "functions": (None, []), "echo": (None, False), "suffix": (None, ""), "audio": (None,),
}  # fmt: skip
"""Fields that a local model cannot honour, with the values that ask for nothing."""


def _refuse_unsupported(body: Fields) -> None:
    for name, allowed in _UNSUPPORTED.items():
        if body.get(name) not in allowed:
            msg = f"`{name}` is not supported by a model in this process: put a model server behind it with --upstream"
            raise bad(
                msg,
                name,
                "unsupported_parameter",
            )
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") not in {None, "text"}:
        why = "`response_format` is not supported by a model in this process"
        raise bad(why, "response_format", "unsupported_parameter")


def usage_of(answer: ScoredAnswer) -> Fields:
    """Return the numbers of tokens in OpenAI's form."""
    read, wrote = answer.n_prompt_tokens, answer.n_answer_tokens
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _finish_of(answer: ScoredAnswer) -> str:
    reason = answer.generated.finish_reason
    return _FINISH.get(reason, reason)
