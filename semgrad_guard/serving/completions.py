"""`POST /v1/chat/completions` and `/v1/completions`: answers in OpenAI's form that carry their confidence."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from semgrad_guard.deadline import Deadline
from semgrad_guard.serving.gate import Caller
from semgrad_guard.serving.judged import Given, Question, Written
from semgrad_guard.serving.openai_forms import CHAT, TEXT, Dialect, Fields, bad, options_of
from semgrad_guard.serving.problems import RequestError, TooSlowError
from semgrad_guard.serving.score_api import backend_of
from semgrad_guard.serving.streams import annotated, by_sentence, checked, whole_as_stream
from semgrad_guard.serving.writers import (
    Call,
    FallbackServer,
    LocalWriter,
    RefusedByUpstreamError,
    Reply,
    Upstream,
    UpstreamWriter,
    Writer,
)
from semgrad_guard.wire import ServedModel, body_of, read_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from semgrad_guard.serving.backend import Backend

router = APIRouter(tags=["completions"])
SSE = "text/event-stream"
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Keeps proxies from holding a stream back."""
_MODELS_S = 5.0
"""Longest wait for the list of the upstream's models."""


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request) -> Response:
    """Answer chat messages; the answer says how sure it is under `semgrad`."""
    return await _completions(request, CHAT)


@router.post("/v1/completions", response_model=None)
async def completions(request: Request) -> Response:
    """Continue a text; the answer says how sure it is under `semgrad`."""
    return await _completions(request, TEXT)


async def _completions(request: Request, dialect: Dialect) -> Response:
    backend, cancel = backend_of(request), threading.Event()
    body = await _body(request)
    question = Question(backend, dialect, body, options_of(body), traceparent=request.headers.get("traceparent"))
    dialect.prompt(body, 0)  # refuses what is no prompt before anything is asked
    deadline = Deadline.after(backend.settings.limits.seconds)
    question.fallbacks = _fallbacks(request, question, deadline)
    writer = _writer(request, question, cancel)
    try:
        if body.get("stream") and _mode(backend, body) != "buffer":
            return await _stream(request, question, writer, deadline)
        reply, given = await _judged(request, question, writer, deadline)
    except RefusedByUpstreamError as error:
        return JSONResponse(error.told, error.status, error.headers)
    except TooSlowError as error:
        raise TooSlowError(backend.settings.limits.seconds) from error
    finally:
        cancel.set()
    if body.get("stream"):
        return _judged_stream(request, question, reply, given)
    return JSONResponse(question.response(reply.response, reply.written, given), headers=given[0].headers)


async def _judged(
    request: Request, question: Question, writer: Writer, deadline: Deadline
) -> tuple[Reply, list[Given]]:
    """Return the whole answer and what the caller gets of it."""
    backend = question.backend
    try:
        reply = await backend.while_there(request, asyncio.ensure_future(writer.whole()), deadline.remaining_s())
    except RequestError as error:
        return await _elsewhere(request, question, error, deadline)

    def judge(gone: threading.Event) -> list[Given]:
        return [question.judge(number, one, reply.response, gone) for number, one in enumerate(reply.written)]

    return reply, await backend.work(request, judge, deadline.remaining_s())


async def _elsewhere(
    request: Request, question: Question, error: RequestError, deadline: Deadline
) -> tuple[Reply, list[Given]]:
    """Return the judged answer of the policy's fallback servers in place of the upstream's.

    Raises:
        RequestError: (the given one) there is none.
    """
    if not (error.may_differ_elsewhere and question.fallbacks):
        raise error
    backend = question.backend
    given = await backend.work(request, lambda gone: question.elsewhere(error, gone), deadline.remaining_s())
    return Reply(question.no_reply(), [Written("")]), [given]


def _judged_stream(request: Request, question: Question, reply: Reply, given: list[Given]) -> Response:
    events = checked(whole_as_stream(question, reply, given), _may_go_on(request))
    return StreamingResponse(events, media_type=SSE, headers=_UNBUFFERED | given[0].headers)


async def _stream(request: Request, question: Question, writer: Writer, deadline: Deadline) -> Response:
    """Return a stream once its first piece is there, so that what fails at once has its own status."""
    mode = _mode(question.backend, question.body)
    events = by_sentence(question, writer) if mode == "sentence" else annotated(question, writer)
    try:
        first = await anext(events)
    except RequestError as error:
        return _judged_stream(request, question, *await _elsewhere(request, question, error, deadline))

    async def all_of_it() -> AsyncGenerator[str]:
        try:
            yield first
            async for one in events:
                yield one
        finally:
            await events.aclose()

    return StreamingResponse(checked(all_of_it(), _may_go_on(request)), media_type=SSE, headers=_UNBUFFERED)


def _mode(backend: Backend, body: Fields) -> str:
    """Return how an answer is streamed; sentences are looked at where one answer comes from an upstream."""
    mode = backend.settings.stream
    if mode == "auto":
        return "annotate" if backend.guard.only_measures else "buffer"
    if mode == "sentence" and (
        backend.settings.upstream is None or body.get("n") not in (None, 1) or body.get("tools")
    ):
        return "buffer"
    return mode


def _writer(request: Request, question: Question, cancel: threading.Event) -> Writer:
    backend = question.backend
    if backend.settings.model is not None:
        return LocalWriter(backend, question.dialect, question.body, cancel)
    if backend.settings.upstream is None:
        raise RequestError(
            HTTPStatus.NOT_IMPLEMENTED,
            "this server only scores: start it with --model or --upstream to have answers written",
            code="no_writer",
        )
    client: httpx.AsyncClient = request.app.state.client
    return UpstreamWriter(_call(request, question, _upstream_of(backend)), client)


async def upstream_models(request: Request) -> tuple[ServedModel, ...]:
    """Return the models of the upstream; none while it cannot be asked."""
    upstream, keys = _upstream_of(backend_of(request)), request.app.state.keys
    client: httpx.AsyncClient = request.app.state.client
    headers = upstream.headers(request.headers, own_keys=keys is not None)
    try:
        async with asyncio.timeout(_MODELS_S):
            async with client.stream("GET", f"{upstream.url.rstrip('/')}/models", headers=headers) as answer:
                listed = read_json(await body_of(answer.raise_for_status()))
        names = [str(model["id"]) for model in listed["data"]]
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError):
        return ()
    return tuple(ServedModel(id=name, owned_by="upstream", role="upstream") for name in names)


def _upstream_of(backend: Backend) -> Upstream:
    settings = backend.settings
    return Upstream(settings.upstream or "", settings.upstream_key, settings.upstream_model)


def _call(request: Request, question: Question, upstream: Upstream) -> Call:
    headers = upstream.headers(request.headers, own_keys=request.app.state.keys is not None)
    return Call(upstream, question.dialect, question.body, headers, question.backend.settings.upstream_s)


def _fallbacks(request: Request, question: Question, deadline: Deadline) -> dict[str, FallbackServer]:
    """Return the servers that the policy's `fallback_model` may ask."""
    settings = question.backend.settings
    found: dict[str, FallbackServer] = {}
    for name, address in settings.fallbacks:
        url, _, model = address.partition("#")
        upstream = Upstream(url, settings.upstream_key, model or None)
        found[name] = FallbackServer(_call(request, question, upstream), deadline)
    return found


async def _body(request: Request) -> Fields:
    try:
        body: Any = read_json(await request.body(), strict=True)
    except ValueError as error:
        raise bad("the body is no JSON") from error
    if not isinstance(body, dict):
        raise bad("the body must be a JSON object")
    return body


def _may_go_on(request: Request) -> Any:
    keys, caller = request.app.state.keys, getattr(request.state, "caller", Caller())
    return lambda: keys is None or keys.find(caller.secret) == caller.name
