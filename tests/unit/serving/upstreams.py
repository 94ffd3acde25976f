"""Servers that write answers, for tests of what stands in front of them: a script in place of a model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the types of routes
from starlette.responses import JSONResponse, Response, StreamingResponse


@dataclass
class Scripted:
    """An OpenAI-compatible server that gives the same answer to everything, and notes what it was asked."""

    text: str = "Paris"
    choice: dict[str, Any] = field(default_factory=dict)
    """Further fields of each choice."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of the response."""
    instead: Response | None = None
    """Given in place of an answer."""
    breaks_off: bool = False
    """Whether a stream ends in the middle."""
    hangs_s: float = 0.0
    pieces: list[str] | None = None
    """What a stream gives; by default the text by words."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(request: Request) -> Response:
            return await self._answer(request, is_chat=True)

        @app.post("/v1/completions", response_model=None)
        async def complete(request: Request) -> Response:
            return await self._answer(request, is_chat=False)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "scripted", "object": "model"}]}

        return app

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.hangs_s)
        if self.instead is not None:
            return self.instead
        if body.get("stream"):
            return StreamingResponse(self._stream(body), media_type="text/event-stream")
        content = {"message": {"role": "assistant", "content": self.text}} if is_chat else {"text": self.text}
        choices = [{"index": n, "finish_reason": "stop", **content, **self.choice} for n in range(body.get("n") or 1)]
        usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        around = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "scripted", "usage": usage}
        return JSONResponse({**around, "choices": choices, **self.more})

    async def _stream(self, body: dict[str, Any]):
        around = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}

        def piece(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, **self.choice}
            return f"data: {json.dumps({**around, 'choices': [choice]})}\n\n"

        yield piece({"role": "assistant", "content": ""})
        words = self.pieces or [f"{word} " for word in self.text.split()]
        for n, word in enumerate(words):
            if self.breaks_off and n == 1:
                return
            yield piece({"content": word})
        if self.breaks_off:
            return
        yield piece({}, "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
            yield f"data: {json.dumps({**around, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
