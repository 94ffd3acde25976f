"""Run the server until it is told to stop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

    from semgrad_guard.serving.settings import Limits, Listening


def serve(app: FastAPI, listening: Listening, limits: Limits) -> None:
    """Serve until interrupted; what was accepted by then is finished.

    Args:
        app: the application.
        listening: where to listen.
        limits: how long accepted requests may take to finish.

    Raises:
        ServerSettingError: it may not listen there.
    """
    listening.check()
    logging.getLogger("semgrad_guard").setLevel(logging.INFO)
    server(app, listening, limits).run()


def server(app: FastAPI, listening: Listening, limits: Limits) -> uvicorn.Server:
    """Return the web server, not started."""
    config = uvicorn.Config(
        app,
        host=listening.host,
        port=listening.port,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
        server_header=False,
        access_log=False,  # the gate logs what is needed, without addresses
        log_level="warning",
        timeout_graceful_shutdown=max(1, round(limits.shutdown_s)),
    )
    return uvicorn.Server(config)
