"""The server behind this one, which writes the answers: any that speaks OpenAI's protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from semgrad_guard.errors import FallbackFailedError
from semgrad_guard.serving.openai_forms import Dialect, Fields, choices_of
from semgrad_guard.serving.problems import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from semgrad_guard.flow import Exchange, Passage

_PASSED_ON = ("authorization", "openai-organization", "openai-project", "traceparent", "tracestate", "x-request-id")


class UpstreamError(RequestError):
    """The server behind this one gave no usable answer."""

    def __init__(self, url: str, why: str, *, status: HTTPStatus = HTTPStatus.BAD_GATEWAY, code: str) -> None:
        """Keep the address and what happened."""
        self.url, self.why = url, why
        super().__init__(status, f"the upstream at {url} {why}", code=code)


class RefusedByUpstreamError(RequestError):
    """The server behind this one refused the request; its own words are passed on."""

    def __init__(self, status: int, told: Fields, headers: Mapping[str, str]) -> None:
        """Keep the status and what it said."""
        self.told = told
        inner = told.get("error")
        message = str(inner.get("message")) if isinstance(inner, dict) else "the upstream refused the request"
        super().__init__(HTTPStatus(status), message, code="upstream_refused", headers=headers)


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
        kept = {name: caller[name] for name in _PASSED_ON if name in caller}
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

    async def whole(self, client: httpx.AsyncClient) -> Fields:
        """Return the whole answer.

        Raises:
            UpstreamError: it is down, too slow, or answers something else.
            RefusedByUpstreamError: it refused.
        """
        body = self.upstream.body({key: one for key, one in self.body.items() if key != "stream_options"}, stream=False)
        try:
            response = await client.post(self.upstream.address(self.dialect), json=body, headers=dict(self.headers))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        self._check(response, response.content)
        try:
            answer: Fields = json.loads(response.content)
            choices_of(answer)
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
        body = self.upstream.body(self.body, stream=True)
        address, ended = self.upstream.address(self.dialect), False  # some servers send no [DONE]
        try:
            async with client.stream("POST", address, json=body, headers=dict(self.headers)) as response:
                if not response.is_success:
                    self._check(response, await response.aread())
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    msg = f"answered {response.headers.get('content-type', 'nothing')} and no stream"
                    raise self._strange(msg)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    text = line.removeprefix("data:").strip()
                    if text == "[DONE]":
                        ended = True
                        break
                    piece = self._piece(text)
                    ended = ended or any(choice.get("finish_reason") for choice in piece["choices"])
                    yield piece
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        if not ended:
            raise self._strange("broke its stream off before the end", "upstream_stream_broken")

    def _piece(self, text: str) -> Fields:
        try:
            piece: Fields = json.loads(text)
        except ValueError as error:
            raise self._strange("sent a piece that is no JSON", "upstream_stream_broken") from error
        if piece.get("error"):
            raise self._strange("reported an error within its stream", "upstream_stream_broken")
        try:
            choices_of(piece)
        except ValueError as error:
            raise self._strange("sent a piece without choices", "upstream_stream_broken") from error
        return piece

    def _check(self, response: httpx.Response, content: bytes) -> None:
        if response.is_success:
            return
        headers = {name: response.headers[name] for name in ("retry-after",) if name in response.headers}
        try:
            told = json.loads(content)
        except ValueError:
            told = None
        if not isinstance(told, dict) or not 400 <= response.status_code < 600:
            msg = f"answered {response.status_code}"
            raise self._strange(msg)
        raise RefusedByUpstreamError(response.status_code, told, headers)

    def _failed(self, error: httpx.HTTPError) -> UpstreamError:
        if isinstance(error, httpx.TimeoutException):
            why = "did not answer in time"
            return UpstreamError(self.upstream.url, why, status=HTTPStatus.GATEWAY_TIMEOUT, code="upstream_timeout")
        if isinstance(error, httpx.ConnectError):
            return UpstreamError(self.upstream.url, "cannot be reached: is it running?", code="upstream_unreachable")
        return UpstreamError(self.upstream.url, f"broke off ({type(error).__name__})", code="upstream_broken")

    def _strange(self, why: str, code: str = "upstream_not_openai") -> UpstreamError:
        return UpstreamError(self.upstream.url, why, code=code)


class FallbackServer:
    """Another OpenAI-compatible server that the policy's `fallback_model` asks; implements `ports.AnswerModel`."""

    def __init__(self, call: Call, seconds: float) -> None:
        """Keep the request, which is sent as the caller wrote it."""
        self._call, self._seconds = call, seconds

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return the exchange of a new attempt.

        Raises:
            FallbackFailedError: the server gave no answer.
        """
        dialect, upstream = self._call.dialect, self._call.upstream
        left_out = {"stream", "stream_options", "n", "logprobs", "top_logprobs"}
        body = upstream.body({key: one for key, one in self._call.body.items() if key not in left_out})
        try:
            response = httpx.post(
                upstream.address(dialect), json=body, headers=dict(self._call.headers), timeout=self._seconds
            )
            answer: Fields = response.raise_for_status().json()
            (choice, *_) = choices_of(answer)
        except (httpx.HTTPError, ValueError) as error:
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
