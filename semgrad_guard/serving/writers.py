"""Who writes the answers: a local model, or the server behind this one, any that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import override

from semgrad_guard.adapter_kit import AnswerSettings, ScoredAnswer
from semgrad_guard.errors import FallbackFailedError
from semgrad_guard.serving.backend import in_own_thread
from semgrad_guard.serving.judged import Written
from semgrad_guard.serving.openai_forms import Dialect, Fields, bad, choices_of, frame, is_text_format, wants_usage
from semgrad_guard.serving.problems import ClientGoneError, RequestError
from semgrad_guard.wire import TooLargeError, body_of, lines_of, read_json

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from semgrad_guard.deadline import Deadline
    from semgrad_guard.flow import Exchange, Passage, Prompt
    from semgrad_guard.serving.backend import Backend


_PASSED_ON = ("authorization", "openai-organization", "openai-project", "traceparent", "tracestate", "x-request-id")


_CONNECT_S = 10.0
"""Longest wait for a connection."""
_REFUSALS = frozenset(status.value for status in HTTPStatus if status >= 400)
"""Statuses that are passed on."""


class UpstreamError(RequestError):
    """The server behind this one gave no usable answer."""

    def __init__(self, url: str, why: str, *, status: HTTPStatus = HTTPStatus.BAD_GATEWAY, code: str) -> None:
        """Keep the address and what happened."""
        self.url, self.why = url, why
        super().__init__(status, f"the upstream at {url} {why}", code=code)

    @property
    @override
    def may_differ_elsewhere(self) -> bool:
        return True


class RefusedByUpstreamError(RequestError):
    """The server behind this one refused the request; its own words are passed on."""

    def __init__(self, status: int, told: Fields, headers: Mapping[str, str]) -> None:
        """Keep the status and what it said."""
        self.told = told
        inner = told.get("error")
        message = str(inner.get("message")) if isinstance(inner, dict) else "the upstream refused the request"
        super().__init__(HTTPStatus(status), message, code="upstream_refused", headers=headers)

    @property
    @override
    def may_differ_elsewhere(self) -> bool:
        return self.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS} or self.status >= 500

    @override
    def with_others(self, others: Sequence[str]) -> RefusedByUpstreamError:
        return self  # its own words are what its clients understand


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where answers are asked for."""

    url: str
    """With its `/v1`."""
    key: str | None = None
    """Sent in place of the caller's own."""
    model: str | None = None
    """Asked for in place of what the caller names."""

    def address(self, dialect: Dialect) -> str:
        """Return the address for one form of request."""
        return self.url.rstrip("/") + dialect.path

    def body(self, body: Fields, **changes: Any) -> Fields:
        """Return a request for this server."""
        return {**body, **({"model": self.model} if self.model else {}), **changes}

    def headers(self, caller: Mapping[str, str], *, own_keys: bool) -> dict[str, str]:
        """Return the headers to send: a caller's key is passed on only where it is not one of this server's."""
        kept = {name: caller[name] for name in _PASSED_ON if caller.get(name, "").isascii() and name in caller}
        if own_keys or self.key:
            kept.pop("authorization", None)
        return kept | ({"authorization": f"Bearer {self.key}"} if self.key else {})


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the upstream."""

    upstream: Upstream
    dialect: Dialect
    body: Fields
    headers: Mapping[str, str]
    seconds: float
    """Longest wait for the whole answer, or for the next piece of a stream."""

    async def whole(self, client: httpx.AsyncClient) -> Fields:
        """Return the whole answer.

        Raises:
            UpstreamError: it is down, too slow, or answers something else.
            RefusedByUpstreamError: it refused.
        """
        body = self.upstream.body({key: one for key, one in self.body.items() if key != "stream_options"}, stream=False)
        try:
            async with asyncio.timeout(self.seconds), self._asked(client, body) as response:
                content = await body_of(response)
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            raise self.failed(error) from error
        self._check(response, content)
        try:
            answer: Fields = read_json(content)
            if not choices_of(answer):
                raise ValueError("no choice")  # noqa: TRY301 - as all else that is no completion
        except ValueError as error:
            msg = f"answered what is no completion ({type(error).__name__})"
            raise self._strange(msg) from error
        return answer

    async def pieces(self, client: httpx.AsyncClient) -> AsyncGenerator[Fields]:
        """Yield the pieces of a streamed answer until its end.

        Raises:
            UpstreamError: it is down, too slow, or the stream breaks off.
            RefusedByUpstreamError: it refused.
        """
        body, ended = self.upstream.body(self.body, stream=True), False  # some servers send no [DONE]
        try:
            async with self._asked(client, body) as response:
                if not response.is_success:
                    self._check(response, await body_of(response))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    msg = f"answered {response.headers.get('content-type', 'nothing')[:100]} and no stream"
                    raise self._strange(msg)
                async with aclosing(lines_of(response)) as lines:
                    async for line in lines:
                        if not line.startswith(b"data:"):
                            continue
                        text = line.removeprefix(b"data:").strip()
                        if text == b"[DONE]":
                            ended = True
                            break
                        piece = self._piece(text)
                        ended = ended or any(choice.get("finish_reason") for choice in piece["choices"])
                        yield piece
        except (httpx.HTTPError, TooLargeError) as error:
            raise self.failed(error) from error
        if not ended:
            raise self._strange("broke its stream off before the end", "upstream_stream_broken")

    def _asked(self, client: httpx.AsyncClient, body: Fields) -> AbstractAsyncContextManager[httpx.Response]:
        address = self.upstream.address(self.dialect)
        timeout = httpx.Timeout(self.seconds, connect=min(_CONNECT_S, self.seconds))
        return client.stream("POST", address, json=body, headers=dict(self.headers), timeout=timeout)

    def _piece(self, text: bytes) -> Fields:
        try:
            piece: Any = read_json(text)
        except ValueError as error:
            raise self._strange("sent a piece that is no JSON", "upstream_stream_broken") from error
        if isinstance(piece, dict) and piece.get("error"):
            raise self._strange("reported an error within its stream", "upstream_stream_broken")
        try:
            choices_of(piece)
        except ValueError as error:
            raise self._strange("sent a piece without choices", "upstream_stream_broken") from error
        found: Fields = piece
        return found

    def _check(self, response: httpx.Response, content: bytes) -> None:
        if response.is_success:
            return
        again = response.headers.get("retry-after", "")
        headers = {"retry-after": again} if again and again.isascii() and again.isprintable() else {}
        try:
            told = read_json(content)
        except ValueError:
            told = None
        if not isinstance(told, dict) or response.status_code not in _REFUSALS:
            msg = f"answered {response.status_code}"
            raise self._strange(msg)
        raise RefusedByUpstreamError(response.status_code, told, headers)

    def failed(self, error: httpx.HTTPError | TimeoutError | TooLargeError) -> UpstreamError:
        """Return what is said of an answer that did not come."""
        if isinstance(error, TooLargeError):
            return UpstreamError(self.upstream.url, f"answered too much: {error}", code="upstream_too_large")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            why = "did not answer in time"
            return UpstreamError(self.upstream.url, why, status=HTTPStatus.GATEWAY_TIMEOUT, code="upstream_timeout")
        if isinstance(error, httpx.ConnectError):
            return UpstreamError(self.upstream.url, "cannot be reached: is it running?", code="upstream_unreachable")
        return UpstreamError(self.upstream.url, f"broke off ({type(error).__name__})", code="upstream_broken")

    def _strange(self, why: str, code: str = "upstream_not_openai") -> UpstreamError:
        return UpstreamError(self.upstream.url, why, code=code)


class FallbackServer:
    """Another OpenAI-compatible server that the policy's `fallback_model` asks; implements `ports.AnswerModel`."""

    def __init__(self, call: Call, deadline: Deadline) -> None:
        """Keep the request, which is sent as the caller wrote it, and when its answer is no longer waited for."""
        self._call, self._deadline = call, deadline

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return the exchange of a new attempt.

        Raises:
            FallbackFailedError: the server gave no answer.
        """
        dialect, upstream = self._call.dialect, self._call.upstream
        left_out = {"stream", "stream_options", "n", "logprobs", "top_logprobs"}
        body = upstream.body({key: one for key, one in self._call.body.items() if key not in left_out})
        try:
            answer: Fields = read_json(asyncio.run(self._asked(body)))
            (choice, *_) = choices_of(answer)
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            msg = f"the server at {upstream.url} gave no answer ({type(error).__name__})"
            raise FallbackFailedError(msg) from error
        if dialect.asks_for_tools(choice):
            msg = f"the server at {upstream.url} asked for tools in place of answering"
            raise FallbackFailedError(msg)
        return exchange.next_attempt(
            prompt=exchange.prompt,
            answer=dialect.text(choice),
            passages=exchange.passages if passages is None else tuple(passages),
            author=str(answer.get("model") or upstream.model or upstream.url),
        )

    async def _asked(self, body: Fields) -> bytes:
        """Return the body of the server's answer, which has one time limit for all of it."""
        address, headers = self._call.upstream.address(self._call.dialect), dict(self._call.headers)
        seconds = self._call_s()
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=seconds) as client,
            client.stream("POST", address, json=body, headers=headers) as response,
        ):
            return await body_of(response.raise_for_status())

    def _call_s(self) -> float:
        left_s = self._deadline.remaining_s()
        return self._call.seconds if left_s is None else min(self._call.seconds, left_s)


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
            while (piece := await self._next(pieces)) is not None:
                yield piece

    async def _next(self, pieces: AsyncGenerator[Fields]) -> Fields | None:
        """Return the next piece; lines that hold none, such as comments, do not renew the time for it."""
        try:
            async with asyncio.timeout(self.call.seconds):
                return await anext(pieces, None)
        except TimeoutError as error:
            raise self.call.failed(error) from error


def written_of(dialect: Dialect, choice: Fields) -> Written:
    """Return a choice of a response as it was written."""
    asks, message = dialect.asks_for_tools(choice), choice.get("message") or choice.get("delta") or {}
    tools = message.get("tool_calls") or [message["function_call"]] if asks else None
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
                if wants_usage(self.body):
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
    if not is_text_format(body.get("response_format")):
        why = "`response_format` is not supported by a model in this process"
        raise bad(why, "response_format", "unsupported_parameter")


def usage_of(answer: ScoredAnswer) -> Fields:
    """Return the numbers of tokens in OpenAI's form."""
    read, wrote = answer.n_prompt_tokens, answer.n_answer_tokens
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _finish_of(answer: ScoredAnswer) -> str:
    reason = answer.generated.finish_reason
    return _FINISH.get(reason, reason)
