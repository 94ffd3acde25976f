"""`SemGradCallbackHandler`: judges and logs every answer, and changes nothing."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from typing_extensions import override

from langchain_semgrad.capture import STORE, llm_run
from langchain_semgrad.convert import asks_for_tools, result_message, result_score, result_text, text_of
from langchain_semgrad.exchanges import about_run, exchange_of
from langchain_semgrad.guard import build_guard
from semgrad_guard.adapter_kit import BackgroundJudge, Candidate, GuardOptions, observe
from semgrad_guard.errors import in_log
from semgrad_guard.wire import RunRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

    from langchain_semgrad.capture import LlmRun
    from semgrad_guard.flow import Exchange, Record
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer

MAX_RECORDS = 1_000
"""Records kept in `records`."""
MAX_CALLS = 10_000
"""Running model calls whose prompts are kept; beyond it the oldest is not judged."""

_log = logging.getLogger("semgrad_guard")


@dataclass(frozen=True, slots=True)
class _Call:
    """One running model call."""

    run: LlmRun
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]


class SemGradCallbackHandler(BaseCallbackHandler):
    """Judges the answer of every model call and logs a record of it; the answers themselves are never touched.

    The record says what the policy would have done; nothing is retried, handed over or held back, and failures are
    logged. Requests for tools are no answers; text beside one is judged as well, and its record says so.

    Args:
        llm: the chain's model, when it is local: its own weights score its answers.
        accept: in place of a policy: the record counts answers with less confidence, or without one, as held back.
        policy: a policy file or its content. With neither, the record is of the confidence alone.
        model: another scoring model.
        scorer: a ready scorer.
        guard: a ready guard, in place of policy, model and scorer.
        background: judge in a thread of the handler's own, so no answer waits; `flush()` waits for it. Otherwise an
            answer is judged before the chain goes on.
        on_record: called with every record, in the thread that judges.

    Example:
        >>> chain.invoke(question, config={"callbacks": [SemGradCallbackHandler()]})  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        llm: object | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
        background: bool = True,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self._guard, self._own_model = build_guard(
            GuardOptions(llm=llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard)
        )
        self._background = BackgroundJudge() if background else None
        self.run_inline = background  # quick then; otherwise LangChain keeps it off the event loop
        self._on_record = on_record
        self._calls: OrderedDict[UUID, _Call] = OrderedDict()
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        """The newest records, oldest first."""

    @property
    def dropped(self) -> int:
        """Answers that were not judged because too many waited."""
        return self._background.dropped if self._background else 0

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every answer given so far is judged; false when that took longer than `timeout_s`."""
        return self._background.flush(timeout_s) if self._background else True

    @override
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        run = llm_run(serialized, tuple(messages[0]), run_id, {"metadata": metadata, **kwargs})
        self._started(run, tags, metadata)

    @override
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        run = llm_run(serialized, prompts[0], run_id, {"metadata": metadata, **kwargs})
        self._started(run, tags, metadata)

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._calls.pop(run_id, None)

    @override
    def on_llm_end(
        self, response: LLMResult, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        call = self._calls.pop(run_id, None)
        if call is None:
            return
        try:
            message = result_message(response)
            beside_tools = asks_for_tools(message)
            exchange = self._exchange(call, response, is_root=parent_run_id is None)
        except Exception as error:  # noqa: BLE001 - an observer must never be noticed
            _log.warning("could not observe an answer: %s", in_log(error))
            return
        if exchange is None:
            return
        if self._background is None:
            self._judge(exchange, beside_tools=beside_tools)
        else:
            self._background.put(lambda: self._judge(exchange, beside_tools=beside_tools))

    def _started(self, run: LlmRun, tags: list[str] | None, metadata: Mapping[str, Any] | None) -> None:
        self._calls[run.id] = _Call(run, tuple(tags or ()), metadata or {})
        while len(self._calls) > MAX_CALLS:
            self._calls.popitem(last=False)

    def _exchange(self, call: _Call, response: LLMResult, *, is_root: bool) -> Exchange | None:
        message = result_message(response)
        text = (text_of(message) or "") if asks_for_tools(message) else result_text(response)[0]
        if asks_for_tools(message) and not text.strip():
            return None
        call.run.text, call.run.score = text, result_score(response)
        captured = STORE.around(call.run.id)
        exchange = exchange_of(
            call.run,
            questions=captured.questions if captured else (),
            documents=captured.documents if captured else (),
            own_model=self._own_model,
        )
        return replace(exchange, **about_run(call.run, traced_run(call.run.id, is_root), call.tags, call.metadata))

    def _judge(self, exchange: Exchange, *, beside_tools: bool) -> None:
        """Judge an answer and log what the policy would have done."""
        try:
            record = observe(self._guard, Candidate(exchange), is_marked=False, beside_tools=beside_tools).record
            self.records.append(record)
            if self._on_record is not None:
                self._on_record(record)
        except Exception as error:  # noqa: BLE001 - an observer must never be noticed
            _log.warning("could not observe an answer: %s", in_log(error))


def traced_run(run_id: UUID, is_root: bool) -> RunRef | None:  # noqa: FBT001 - a claim about the run
    """Return the ids of a model call in LangSmith, where it is recorded.

    Args:
        run_id: the call.
        is_root: whether nothing called it.
    """
    from langsmith import get_current_run_tree, get_tracing_context
    from langsmith.utils import get_tracer_project, tracing_is_enabled

    if is_root:
        if tracing_is_enabled() is not True:
            return None
        project = get_tracing_context()["project_name"] or get_tracer_project()
        return RunRef(run_id=str(run_id), trace_id=str(run_id), session_name=project)
    parent = get_current_run_tree()
    if parent is None:
        return None
    return RunRef(run_id=str(run_id), trace_id=str(parent.trace_id), session_name=parent.session_name)
