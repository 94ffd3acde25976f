"""The server as an application: its routes, what they share, and how it starts, runs and stops."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import override

from semgrad_guard.review.site.connections import BoundedProtocol, most_connections
from semgrad_guard.serving import completions, litellm_guardrail, problems, score_api
from semgrad_guard.serving.backend import Backend
from semgrad_guard.serving.completions import upstream_models
from semgrad_guard.serving.gate import Gate
from semgrad_guard.serving.score_api import backend_of
from semgrad_guard.serving.settings import ServerSettings
from semgrad_guard.wire import FingerprintForm, ModelList, ServedModel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from semgrad_guard.ports import Scorer
    from semgrad_guard.serving.gate import KeyFile
    from semgrad_guard.serving.settings import Limits, ServerListening


_CONNECTIONS = 4
"""Connections for each request that is let in at once: those beyond are told to come again, and some are idle."""


def create_app(
    settings: ServerSettings | None = None, *, keys: KeyFile | None = None, scorer: Scorer | None = None
) -> FastAPI:
    """Return the application; any ASGI server, or a deployment of Ray Serve, runs it.

    Args:
        settings: what it serves and its limits; by default the packaged model scores, and nothing writes.
        keys: the keys that callers need; without them anybody who reaches it may use it.
        scorer: a ready scorer in place of a local model.

    Raises:
        ServerSettingError: the settings exclude each other.
        PolicyFileError: the policy has mistakes.
        ModelError: a model is not installed, missing or misspelt.
        CalibrationError: the profile cannot be read, or cannot keep the error rate that the policy asks for.

    Example:
        >>> app = create_app(ServerSettings(scorer="smollm2-135m"))  # doctest: +SKIP
    """
    chosen = settings or ServerSettings()
    backend = Backend(chosen, scorer=scorer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        seconds = httpx.Timeout(chosen.limits.seconds, connect=min(10.0, chosen.limits.seconds))
        app.state.client = httpx.AsyncClient(timeout=seconds, limits=httpx.Limits(max_connections=None))
        if chosen.warm_up:
            threading.Thread(target=backend.load, name="semgrad-load", daemon=True).start()
        try:
            yield
        finally:
            await app.state.client.aclose()
            await asyncio.to_thread(backend.close)

    app = FastAPI(
        title="semgrad-guard",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other sites
        redoc_url=None,
    )
    app.state.backend, app.state.keys = backend, keys
    app.state.asked_prompts = litellm_guardrail.AskedPrompts()
    app.add_middleware(Gate, limits=chosen.limits, metrics=backend.metrics, keys=keys)
    problems.install(app)
    for part in (router, score_api.router, completions.router, litellm_guardrail.router):
        app.include_router(part)
    return app


router = APIRouter(tags=["server"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """Say whether the models are loaded; 503 until then, and where they could not be."""
    backend = backend_of(request)
    if backend.is_loaded or not backend.settings.warm_up:
        return JSONResponse({"status": "ready"})
    status = {"status": "failed", "why": backend.failure} if backend.failure else {"status": "loading"}
    return JSONResponse(status, HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Report counters in Prometheus' text format."""
    return backend_of(request).metrics.response()


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """List the models: the one that scores, which may also write, and those of the upstream."""
    backend = backend_of(request)
    own = await backend.work(request, lambda _: _served(backend))
    if backend.settings.upstream is None:
        return ModelList(data=own)
    return ModelList(data=(*await upstream_models(request), *own))


def _served(backend: Backend) -> tuple[ServedModel, ...]:
    whole, by_claim = (
        FingerprintForm.model_validate(scorer.fingerprint(), from_attributes=True)
        for scorer in (backend.scorer, backend.by_claim)
    )
    role = "writer" if backend.settings.model is not None else "scorer"
    own = ServedModel(
        id=backend.scorer.name,
        owned_by="semgrad-guard",
        role=role,
        fingerprint=whole,
        fingerprint_by_claim=by_claim,
    )
    return (own,)


def serve(app: FastAPI, listening: ServerListening, limits: Limits) -> None:
    """Serve until interrupted; what was accepted by then is finished.

    Args:
        app: the application.
        listening: where to listen.
        limits: how long accepted requests may take to finish.
    """
    logging.getLogger("semgrad_guard").setLevel(logging.INFO)
    server(app, listening, limits).run()


def server(app: FastAPI, listening: ServerListening, limits: Limits) -> uvicorn.Server:
    """Return the web server, not started: connections that do not say what they want are closed."""

    class Bounded(BoundedProtocol):
        @staticmethod
        @override
        def most() -> int:
            return most_connections(_CONNECTIONS * limits.requests)

    config = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        **listening.uvicorn_options(),
        timeout_graceful_shutdown=max(1, round(limits.shutdown_s)),
    )
    return uvicorn.Server(config)
