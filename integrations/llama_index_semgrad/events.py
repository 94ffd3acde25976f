"""Only listening: an event handler that judges every answer of the process and changes none."""

from __future__ import annotations

import logging
import threading
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

from llama_index_instrumentation.event_handlers.base import BaseEventHandler
from pydantic import PrivateAttr
from typing_extensions import override

from llama_index_semgrad.answers import SemGradAnswerEvent, follow
from llama_index_semgrad.exchanges import About, Judgeable, judgeable
from llama_index_semgrad.guard import SemGradGuard
from llama_index_semgrad.observing import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llama_index.core.llms import LLM
    from llama_index_instrumentation.base import BaseEvent

    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard

_log = logging.getLogger("semgrad_guard")

MAX_WAITING = 1_000
"""Answers that wait for the background worker; of more, the new ones are not judged, which is logged."""


class SemGradEventHandler(BaseEventHandler):
    """Judges every answer that a query engine, a chat engine or a bare LLM of this process gives, and logs the record.

    The policy's decision is logged, not carried out. Errors of the judging are logged and never reach the engine.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> get_dispatcher().add_event_handler(SemGradEventHandler(policy="policy.yaml"))  # doctest: +SKIP
    """

    _guard: Guard = PrivateAttr()
    _weights: object | None = PrivateAttr(default=None)
    _on_outcome: Callable[[Outcome], None] | None = PrivateAttr(default=None)
    _waiting: Queue[Judgeable | None] | None = PrivateAttr(default=None)

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        policy: str | Path | Mapping[str, object] | None = None,
        guard: Guard | None = None,
        background: bool = False,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Take the options of `SemGradGuard`.

        Args:
            llm: the LLM, when it is a local model: its own weights score its answers.
            policy: a policy file or its content.
            guard: a ready guard, in place of `policy`.
            background: judge in a thread of its own, so that no answer waits for its score.
            on_outcome: called with every judgement, in the thread that made it.
        """
        super().__init__()
        chosen = SemGradGuard(llm, policy=policy, guard=guard)
        self._guard, self._weights, self._on_outcome = chosen.guard, chosen.weights, on_outcome
        if background:
            self._waiting = Queue(MAX_WAITING)
            threading.Thread(target=self._work, name="semgrad-guard observer", daemon=True).start()
        follow()

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradEventHandler"

    @property
    def guard(self) -> Guard:
        """The guard that judges."""
        return self._guard

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Judge the answer of a `SemGradAnswerEvent`; other events pass by."""
        if not isinstance(event, SemGradAnswerEvent):
            return
        try:
            made = judgeable(event.reply, event.calls, About(event.question or "", weights=self._weights))
            self._judge(made) if self._waiting is None else self._waiting.put_nowait(made)
        except Full:
            _log.warning("%d answers wait to be judged: one more is not", MAX_WAITING)
        except Exception:  # noqa: BLE001 - the dispatcher would swallow it unseen
            _log.exception("an answer could not be observed")

    def flush(self) -> None:
        """Wait until every answer seen so far is judged."""
        if self._waiting is not None:
            self._waiting.join()

    def close(self) -> None:
        """Judge what waits, then end the background worker."""
        if self._waiting is not None:
            self._waiting.put(None)
            self._waiting.join()

    def _judge(self, made: Judgeable) -> None:
        outcome = observe(self._guard, made)
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    def _work(self) -> None:
        waiting = self._waiting
        while waiting is not None:
            made = waiting.get()
            try:
                if made is None:
                    return
                self._judge(made)
            except Exception:  # noqa: BLE001 - the next answer may be judged
                _log.exception("an answer could not be observed")
            finally:
                waiting.task_done()
