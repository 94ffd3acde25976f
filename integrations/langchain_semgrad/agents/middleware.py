"""`SemGradMiddleware`: the guard in agents made by LangChain's `create_agent`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NotRequired
from uuid import uuid4

from langchain.agents.middleware import AgentMiddleware, AgentState, ExtendedModelResponse, ModelResponse, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, RemoveMessage
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command
from typing_extensions import override

from langchain_semgrad.agents.search import (
    AgentAttempts,
    Search,
    answer_in,
    final_answer,
    messages_of,
    search_in,
    to_state,
    with_instruction,
)
from langchain_semgrad.agents.state import cleaned_state, state_update, treated_beside_tools
from langchain_semgrad.convert import text_of
from langchain_semgrad.guard import build_guard
from langchain_semgrad.invoke import call_here, on_this_loop
from langchain_semgrad.judging import ReturnOptions, StreamMode, findings_with_run
from langchain_semgrad.rerun import FallbackModels, RerunTools
from langchain_semgrad.review import (
    REVIEWS,
    Review,
    guard_for,
    held_answer,
    settle_held,
    stops,
)
from langchain_semgrad.values import METADATA_KEY, Slot, with_answer
from semgrad_guard.adapter_kit import (
    GuardOptions,
    Means,
    OnWithheld,
    check_means,
    check_option,
    held_back,
    text_for,
)
from semgrad_guard.flow import Status
from semgrad_guard.guard import in_thread
from semgrad_guard.routing import PostponedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable, Mapping

    from langchain.agents.middleware import ModelRequest
    from langchain_core.runnables import Runnable
    from langgraph.runtime import Runtime

    from langchain_semgrad.invoke import Caller
    from langchain_semgrad.retrievers import RetrieverLike
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer


class SemGradState(AgentState[Any]):
    """What the guard adds to an agent's state."""

    semgrad: NotRequired[dict[str, Any]]
    """The findings about the last final answer."""
    semgrad_held: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]
    """The answer that waits for a person; only while the graph is stopped for it."""
    semgrad_search: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]
    """What happened to a question so far; only while the agent searches again for it."""
    semgrad_ends: NotRequired[Annotated[bool, PrivateStateAttr]]
    """Whether the agent ends here although a structured answer is missing: it was held back."""


class SemGradMiddleware(AgentMiddleware[SemGradState, Any, Any]):
    """Judges the final answers of an agent and carries out the policy; requests for tools pass.

    Text beside a request for tools is treated as the policy's `beside_tool_calls` says; a request that cannot be read
    ends the agent's loop, so its message is judged as an answer. Where an answer is held back, earlier messages since
    the question and other parts of the state that repeat it are changed too.

    The answer is judged around the model's call, so a retry or fallback happens before anything reaches the state.
    `retry_retrieval` finds passages by the `retriever`; without one the agent searches again itself: its model is
    called once more with the instruction to use its tools in another way, and does not see the rejected answer.

    A person is asked afterwards: the graph stops with an interrupt and, resumed by
    `Command(resume={"type": "approve"})`, `{"type": "edit", "answer": "..."}` or `{"type": "reject"}`, goes on without
    calling the model again.

    While answers are buffered, `stream_mode="messages"` shows final texts only. What it cannot hide: `astream_events`
    and callbacks see every token as it is made, and `values` and `updates` show an answer that waits for a person to
    the program that handles the interrupt.

    Args:
        llm: the agent's model, when it is local: its own weights score its answers.
        accept: in place of a policy: answers with a lower confidence, or without one, are held back.
        policy: a policy file or its content, by which the guard routes. With neither, every answer passes as it is.
        model: another scoring model.
        scorer: a ready scorer.
        guard: a ready guard, in place of policy, model and scorer.
        retriever: finds passages for `retry_retrieval`; they are shown to the model in its system message. Without it
            the agent's own tools are used.
        retrievers: other retrievers by the name that the policy uses.
        fallbacks: chat models by the name that the policy uses; `provider:model` names need no entry.
        rewriter: model that rewords the question for retrieval.
        review: `"interrupt"` stops the graph for a person, `"queue"` stores the answer in the policy's review queue and
            gives the pending message. `"both"` does both: resuming the graph settles the queue's item, while a verdict
            in the queue resumes nothing by itself (`resume_with` makes of it what the graph is resumed with). With
            a review site that needs a token with the scopes `submit` and `judge`; only an administrator's settles what
            another reviewer holds. `None` stops the graph where it has a checkpointer and uses the queue elsewhere.
            Without a checkpointer nothing can go on after a stop, so the answer is held back then.
        stream: `"buffer"` holds tokens back until the answer is judged, `"annotate"` lets them pass. `None` buffers
            whenever the policy can change an answer or ask for another one.
        on_withheld: `"message"` gives the policy's message; `"raise"` raises `LowConfidenceError` inside the model's
            call, where a `ModelFallbackMiddleware` listed before this one asks its own models.

    Example:
        >>> agent = create_agent(model, tools, middleware=[SemGradMiddleware(policy="policy.yaml")])  # doctest: +SKIP
    """

    state_schema = SemGradState

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        llm: object | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
        retriever: Runnable[Any, Any] | None = None,
        retrievers: Mapping[str, RetrieverLike] | None = None,
        fallbacks: Mapping[str, Runnable[Any, Any]] | None = None,
        rewriter: Runnable[Any, Any] | None = None,
        review: Review | None = None,
        stream: StreamMode | None = None,
        on_withheld: OnWithheld = "message",
    ) -> None:
        super().__init__()
        check_option("review", review, REVIEWS)
        self._review: Review | None = review
        self._returns = ReturnOptions(stream=stream, on_withheld=on_withheld)
        self._guard, own_model = build_guard(
            GuardOptions(llm=llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard)
        )
        means = Means(
            retrieves=True,  # without a retriever the agent searches again by its own tools
            retrievers=retrievers or (),
            fallbacks=fallbacks or (),
            makes_models=True,
            advice="SemGradMiddleware({})",
        )
        check_means(self._guard, means)
        self._tools = RerunTools(
            retriever=retriever,
            retrievers=dict(retrievers or {}),
            rewriter=rewriter,
            fallbacks=FallbackModels(fallbacks),
            own_model=own_model,
        )

    # --- around the model's call --------------------------------------------------------------------------------------

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Return the model's response, guarded.

        Raises:
            LowConfidenceError: the answer was held back and `on_withheld` is `"raise"`.
        """
        attempts, search = self._attempts(request, handler, call_here), search_in(request)
        instructed = with_instruction(request, search.instruction)
        return self._guarded(attempts, search, instructed, handler(attempts.quiet(instructed)))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Same as `wrap_model_call`; models run on the event loop, the judging in a worker thread."""
        with on_this_loop() as call:

            def ask(request: ModelRequest[Any]) -> ModelResponse[Any]:
                response: ModelResponse[Any] = call.wait_for(lambda: _awaited(handler(request)))
                return response

            attempts, search = self._attempts(request, ask, call), search_in(request)
            instructed = with_instruction(request, search.instruction)
            response = await handler(attempts.quiet(instructed))
            return await in_thread(self._guarded, attempts, search, instructed, response)

    @property
    def _is_buffered(self) -> bool:
        stream = self._returns.stream
        return stream == "buffer" or (stream is None and not self._guard.only_measures)

    def _attempts(
        self, request: ModelRequest[Any], ask: Callable[[ModelRequest[Any]], ModelResponse[Any]], call: Caller
    ) -> AgentAttempts:
        return AgentAttempts(
            tools=self._tools,
            call=call,
            config=ensure_config(),
            request=request,
            ask=ask,
            is_buffered=self._is_buffered,
        )

    def _guarded(
        self,
        attempts: AgentAttempts,
        search: Search,
        request: ModelRequest[Any],
        response: ModelResponse[Any],
        cancel: threading.Event | None = None,
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        message = answer_in(response)
        if message is None:
            return self._asking(request, response, cancel)
        candidate = final_answer(message, messages_of(request), own_model=self._tools.own_model)
        exchange = search.continued(candidate.exchange)
        attempts.responses |= {**search.responses, exchange.id: response}
        guard = guard_for(self._guard, self._review)
        try:
            outcome = guard.run(exchange, attempts.resources(), progress=search.progress_at(exchange), cancel=cancel)
        except PostponedError as later:
            return _searching(
                attempts,
                Search(instruction=attempts.instruction, progress=later.progress, responses=attempts.responses),
            )
        if attempts.stopped_by is not None:
            raise attempts.stopped_by
        pending = stops(self._review) and outcome.status is Status.PENDING
        if outcome.withheld and not pending and self._returns.on_withheld == "raise":
            raise held_back(outcome)
        return _settled(attempts, outcome, held=pending)

    def _asking(
        self, request: ModelRequest[Any], response: ModelResponse[Any], cancel: threading.Event | None
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Return a response that asks for tools; text beside the request is treated as the policy says."""
        treated, outcomes = treated_beside_tools(
            response.result,
            messages_of(request),
            self._guard,
            own_model=self._tools.own_model,
            within=True,
            cancel=cancel,
        )
        if not outcomes:
            return response
        before: dict[str, Any] = dict(request.state)
        state = before
        for outcome in outcomes:
            state, _ = cleaned_state(state, outcome, "messages", answered=False)
        changed, update = ModelResponse(treated, response.structured_response), state_update(before, state)
        return ExtendedModelResponse(changed, Command(update=update)) if update else changed

    # --- a person -----------------------------------------------------------------------------------------------------

    @hook_config(can_jump_to=["model", "end"])
    @override
    def after_model(self, state: SemGradState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Let the agent search again, or ask a person about an answer that waits and put what they decide there."""
        held, message = state.get("semgrad_held"), state["messages"][-1] if state["messages"] else None
        search = state.get("semgrad_search")
        if search and message is not None and message.id == search["message_id"]:
            return {"messages": [RemoveMessage(search["message_id"])], "jump_to": "model"}
        ends = {"jump_to": "end"} if state.get("semgrad_ends") else {}
        if not held or message is None or message.id != held["message_id"]:
            return ends or None
        text, status = settle_held(held, self._guard, self._review)
        findings = {**state.get("semgrad", {}), "status": status.value, "withheld": status is Status.ABSTAINED}
        changed = with_answer(message, Slot((), text_of(message) or "", message), text, findings)
        return {"messages": [changed], "semgrad": findings, "semgrad_held": None, **ends}

    @hook_config(can_jump_to=["model", "end"])
    @override
    async def aafter_model(self, state: SemGradState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Same as `after_model`, which waits for nothing."""
        return self.after_model(state, runtime)


async def _awaited(response: Awaitable[ModelResponse[Any]]) -> ModelResponse[Any]:
    return await response


def _searching(attempts: AgentAttempts, search: Search) -> ExtendedModelResponse[Any]:
    """Return an empty message in the place of an answer for which the agent searches again, and what it goes on with.

    The message is there because middleware looks at the last one; `after_model` removes it.
    """
    empty = AIMessage("", id=str(uuid4()))
    kept = to_state(search, str(empty.id), attempts.request.messages)
    return ExtendedModelResponse(ModelResponse([empty]), Command(update={"semgrad_search": kept}))


def _settled(attempts: AgentAttempts, outcome: Outcome, *, held: bool) -> ExtendedModelResponse[Any]:
    """Return the response of the chosen attempt with the outcome's text in it, and what the state must know."""
    response = attempts.responses[outcome.exchange.id]
    message = answer_in(response) or AIMessage("")
    given = text_for(outcome, is_field=response.structured_response is not None)
    same = given == outcome.exchange.answer
    before: dict[str, Any] = dict(attempts.request.state)
    cleaned, left_out = cleaned_state(before, outcome, "messages", answered=False)
    findings, written = findings_with_run(outcome, left_out), text_of(message) or ""
    changed = with_answer(message, Slot((), written, message), written if same else given, findings)
    update: dict[str, Any] = {} if same else {"tool_calls": [], "invalid_tool_calls": []}
    changed = changed.model_copy(update={**update, "id": changed.id or str(uuid4())})
    result = [changed if part is message else part for part in response.result] if same else [changed]
    command: Command[Any] = Command(
        update={
            **state_update(before, cleaned),
            METADATA_KEY: findings,
            "semgrad_held": held_answer(outcome, str(changed.id)) if held else None,
            "semgrad_search": None,
            # An agent that owes a structured answer calls its model for ever, unless the state says that it ends.
            "semgrad_ends": not same and attempts.request.response_format is not None,
        }
    )
    return ExtendedModelResponse(ModelResponse(result, response.structured_response if same else None), command)
