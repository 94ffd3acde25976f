"""LiteLLM's Generic Guardrail API: the guard for everybody behind a LiteLLM proxy, added in its configuration.

LiteLLM asks twice about one call, with the same `litellm_call_id`: with the messages before the model is asked, and
with the texts that it wrote, without the messages. So the messages are kept until then.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.serving.judged import Given, Question, Written
from semgrad_guard.serving.openai_forms import CHAT, Fields, Options
from semgrad_guard.serving.score_api import backend_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.serving.backend import Backend

router = APIRouter(tags=["gateways"])


class GuardrailOptions(Options):
    """What LiteLLM's configuration says under `additional_provider_specific_params`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    on_withheld: Literal["block", "message"] = "block"
    """What LiteLLM's caller gets in place of an answer that is held back: an error, or the policy's message.

    LiteLLM carries out messages in streams only with `streaming_transform_mode: incremental_diff`, so `block` is the
    safe one.
    """


class GuardrailRequest(BaseModel):
    """What LiteLLM asks; fields that are not needed here have no effect."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_type: Literal["request", "response"]
    litellm_call_id: str | None = None
    texts: list[str] | None = None
    structured_messages: list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None
    model: str | None = None
    additional_provider_specific_params: GuardrailOptions | None = None


class GuardrailReply(BaseModel):
    """What LiteLLM does with the texts."""

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    texts: list[str] | None = None
    semgrad: list[Fields] = Field(default_factory=list[Fields])
    """What was found of each text; LiteLLM logs it and passes nothing on."""


NOTHING = GuardrailReply(action="NONE")


class AskedPrompts:
    """The messages of calls whose answers are still to come; the oldest are dropped. It is safe to share."""

    def __init__(
        self,
        *,
        most: int = 10_000,
        most_bytes: int = 256 * 1024 * 1024,
        keep_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            most: most calls to remember.
            most_bytes: most bytes of the requests that are remembered, all together.
            keep_s: seconds after which a call is forgotten.
            clock: returns seconds that never go back.
        """
        self._most, self._most_bytes, self._keep_s, self._clock = most, most_bytes, keep_s, clock
        self._kept: OrderedDict[str, tuple[float, int, list[Fields]]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def keep(self, call_id: str, messages: list[Fields], n_bytes: int) -> None:
        """Remember the messages of a call, which came in a request of so many bytes."""
        with self._lock:
            _, before, _ = self._kept.pop(call_id, (0.0, 0, []))
            self._kept[call_id] = (self._clock(), n_bytes, messages)
            self._n_bytes += n_bytes - before
            while self._kept and self._is_too_much():
                _, (_, dropped, _) = self._kept.popitem(last=False)
                self._n_bytes -= dropped

    def find(self, call_id: str | None) -> list[Fields] | None:
        """Return the messages of a call; a streamed answer is asked about several times."""
        with self._lock:
            found = self._kept.get(call_id or "")
        return None if found is None or self._is_old(found[0]) else found[2]

    def _is_too_much(self) -> bool:
        oldest_at, _, _ = next(iter(self._kept.values()))
        return len(self._kept) > self._most or self._n_bytes > self._most_bytes or self._is_old(oldest_at)

    def _is_old(self, kept_at: float) -> bool:
        return self._clock() - kept_at > self._keep_s


@router.post("/beta/litellm_basic_guardrail_api")
async def guardrail(request: Request, body: GuardrailRequest) -> GuardrailReply:
    """Judge the texts of an answer for LiteLLM; of a request, remember the messages."""
    backend, asked = backend_of(request), request.app.state.asked_prompts
    if body.input_type == "request":
        if body.litellm_call_id and body.structured_messages:
            asked.keep(body.litellm_call_id, body.structured_messages, len(await request.body()))
        return NOTHING
    messages = body.structured_messages or asked.find(body.litellm_call_id)
    return await backend.work(request, lambda cancel: _judged(backend, body, messages, cancel))


def _judged(
    backend: Backend, body: GuardrailRequest, messages: list[Fields] | None, cancel: threading.Event
) -> GuardrailReply:
    texts = body.texts or []
    options = body.additional_provider_specific_params or GuardrailOptions()
    question = Question(backend, CHAT, {"messages": messages}, options)
    given = [_given(question, body, text, cancel) if text.strip() else None for text in texts]
    tells = [one.tells for one in given if one is not None]
    withheld = next((one for one in given if one is not None and one.tells["withheld"]), None)
    if withheld is not None and options.on_withheld == "block":
        return GuardrailReply(action="BLOCKED", blocked_reason=withheld.text or "held back", semgrad=tells)
    new = [text if one is None else one.text for one, text in zip(given, texts, strict=True)]
    if new == texts:
        return GuardrailReply(action="NONE", semgrad=tells)
    return GuardrailReply(action="GUARDRAIL_INTERVENED", texts=new, semgrad=tells)


def _given(question: Question, body: GuardrailRequest, text: str, cancel: threading.Event) -> Given:
    response = {"id": body.litellm_call_id, "model": body.model}
    written = Written(text, tools=body.tool_calls or None)
    if question.body["messages"]:
        return question.judge(0, written, response, cancel)
    advice = "set `mode: [pre_call, post_call]` in LiteLLM, and send both calls to the same replica"
    return question.unreadable(written, response, PromptNotFoundError("among the calls that LiteLLM announced", advice))
