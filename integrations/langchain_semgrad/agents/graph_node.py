"""`SemGradNode`: the guard as a node of a hand-built LangGraph graph, and the node that asks a person."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs, patch_config
from langgraph.constants import TAG_NOSTREAM
from typing_extensions import TypedDict, override

from langchain_semgrad.agents.search import final_answer
from langchain_semgrad.agents.state import cleaned_state, state_update, treated_beside_tools
from langchain_semgrad.convert import asks_for_tools, documents_in, fields_of, question_in, text_of
from langchain_semgrad.exchanges import CallContext, ChainCandidate, candidates_in
from langchain_semgrad.guard import build_guard
from langchain_semgrad.invoke import call_here, on_this_loop
from langchain_semgrad.judging import ChainValue, findings_with_run, outcome_of
from langchain_semgrad.rerun import ChainAttempts, FallbackModels, RerunTools
from langchain_semgrad.review import REVIEWS, Review, guard_for, held_answer, settle_held, stops
from langchain_semgrad.values import METADATA_KEY, Slot, with_answer
from semgrad_guard.adapter_kit import GuardOptions, Means, check_means, check_option, held_back, no_place, text_for
from semgrad_guard.errors import NotGuardableError, ScoringError
from semgrad_guard.flow import Exchange, Status
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Mapping

    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document

    from langchain_semgrad.invoke import Caller
    from langchain_semgrad.retrievers import RetrieverLike
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer

HELD_KEY = "semgrad_held"
"""Key of the state under which an answer waits for a person."""


class SemGradGraphState(TypedDict, total=False):
    """What the guard adds to a graph's state: `class State(MessagesState, SemGradGraphState): ...`."""

    semgrad: dict[str, Any]
    """The findings about the last answer: `status`, `action`, `confidence` and so on, for conditional edges."""
    semgrad_held: dict[str, Any] | None
    """The answer that waits for a person."""


class SemGradNode(Runnable[Any, Any]):
    """Judges the answer in a graph's state and puts what the caller may see in its place.

    The prompt is that of the model call of an earlier node of the same run; where it was not seen, as after a restart,
    it is the messages before the answer. A person is asked in a node of its own, because LangGraph runs a node again
    from its start when the graph goes on: add `node.review` after this node.

    Args:
        llm: the graph's model, when it is local: its own weights score its answers.
        accept: in place of a policy: answers with a lower confidence, or without one, are held back.
        policy: a policy file or its content, by which the guard routes. With neither, every answer passes as it is.
        model: another scoring model.
        scorer: a ready scorer.
        guard: a ready guard, in place of policy, model and scorer.
        answer_key: key of the state that holds the answer: messages, of which the last one is judged, a text, or an
            object, which is judged by the text that the model wrote.
        question_key: key of the state that holds the question; `question`, `input`, `query` and the last human message
            are found by themselves.
        retriever: finds passages for `retry_retrieval`.
        retrievers: other retrievers by the name that the policy uses.
        answer: function of question and documents that answers again.
        fallbacks: models by the name that the policy uses.
        rewriter: model that rewords the question for retrieval.
        review: `"interrupt"`, `"queue"` or `"both"`, as for `SemGradMiddleware`; `None` interrupts where the graph has
            a checkpointer.
        reduced_keys: keys of the state, beside its messages, whose reducer adds to what is there, as `operator.add`
            does: where such a part repeats a withheld answer it is overwritten.

    Example:
        >>> node = SemGradNode(policy="policy.yaml")  # doctest: +SKIP
        >>> builder.add_node("guard", node)  # doctest: +SKIP
        >>> builder.add_node("review", node.review)  # doctest: +SKIP
        >>> builder.add_edge("guard", "review")  # doctest: +SKIP
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
        answer_key: str = "messages",
        question_key: str | None = None,
        retriever: Runnable[Any, Any] | None = None,
        retrievers: Mapping[str, RetrieverLike] | None = None,
        answer: Callable[[str, list[Document]], Any] | None = None,
        fallbacks: Mapping[str, Runnable[Any, Any]] | None = None,
        rewriter: Runnable[Any, Any] | None = None,
        review: Review | None = None,
        reduced_keys: Collection[str] = (),
    ) -> None:
        check_option("review", review, REVIEWS)
        self.name = "semgrad_node"
        self._guard, own_model = build_guard(
            GuardOptions(llm=llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard)
        )
        means = Means(
            retrieves=retriever is not None and answer is not None,
            retrievers=(retrievers or ()) if answer is not None else (),
            fallbacks=fallbacks or (),
            makes_models=True,
            advice="SemGradNode({})" if answer is not None else "SemGradNode(answer=..., {})",
        )
        check_means(self._guard, means)
        self._answer_key, self._question_key = answer_key, question_key
        self._review: Review | None = review
        self._reduced = frozenset(reduced_keys)
        self._tools = RerunTools(
            answer=answer,
            retriever=retriever,
            retrievers=dict(retrievers or {}),
            rewriter=rewriter,
            fallbacks=FallbackModels(fallbacks),
            own_model=own_model,
        )

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the update of the state.

        Raises:
            NotGuardableError: there is no answer under the key, and the guard does more than measure.
            LowConfidenceError: the answer is an object without text and was held back.
        """
        update: dict[str, Any] = self._call_with_config(self._invoke, input, config)
        return update

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Same as `invoke`; retriever and models are called on the event loop, the rest in a worker thread."""
        update: dict[str, Any] = await self._acall_with_config(self._ainvoke, input, config)
        return update

    def review(self, state: Any) -> dict[str, Any]:
        """Ask a person about an answer that waits, and put what they decide in its place; a node of its own."""
        state = fields_of(state)
        held = state.get(HELD_KEY)
        if not held:
            return {}
        text, status = settle_held(held, self._guard, self._review)
        findings = {**state.get(METADATA_KEY, {}), "status": status.value, "withheld": status is Status.ABSTAINED}
        message = next((m for m in _messages(state[self._answer_key]) if m.id == held["message_id"]), None)
        changed: Any = text
        if message is not None:
            changed = with_answer(message, Slot((), text_of(message) or "", message), text, findings)
        return {self._answer_key: self._in_place(state, changed), METADATA_KEY: findings, HELD_KEY: None}

    def _invoke(self, state: Any, run_manager: BaseRunManager, config: RunnableConfig) -> dict[str, Any]:
        return self._update(state, run_manager, config, call_here)

    async def _ainvoke(self, state: Any, run_manager: BaseRunManager, config: RunnableConfig) -> dict[str, Any]:
        with on_this_loop() as call:
            return await in_thread(self._update, state, run_manager, config, call)

    def _update(
        self, state: Any, manager: Any, config: RunnableConfig, call: Caller, cancel: threading.Event | None = None
    ) -> dict[str, Any]:
        state = fields_of(state)
        try:
            self._answer(state)
        except NotGuardableError as error:
            if not self._guard.only_measures:
                raise
            exchange = Exchange(question=question_in(state, self._question_key))
            missing = self._guard.run_unjudged(exchange, ScoringError(str(error)), cancel=cancel)
            return {METADATA_KEY: findings_with_run(missing)}
        before, state = state, self._treated(state, cancel)
        value = self._answer(state)
        if asks_for_tools(value):
            return state_update(before, state, self._reduced)
        # what the node's own models write is not judged yet, so `stream_mode="messages"` must not show it
        config = merge_configs(patch_config(config, callbacks=manager.get_child()), {"tags": [TAG_NOSTREAM]})
        attempts = ChainAttempts(tools=self._tools, call=call, config=config, input=value, manager=manager)
        judged = ChainValue(value, (self._candidate(state, value, manager),), attempts, manager)
        outcome = outcome_of(guard_for(self._guard, self._review), judged, cancel)
        if not isinstance(value, AIMessage | str):
            return {**self._object(judged, outcome), METADATA_KEY: findings_with_run(outcome)}
        return self._settled(before, state, value, outcome)

    def _treated(self, state: Mapping[str, Any], cancel: threading.Event | None) -> Mapping[str, Any]:
        """Return the state with its texts beside requests for tools treated as the policy says."""
        part = state[self._answer_key]
        messages = part if isinstance(part, list | tuple) else [part]
        if not all(isinstance(message, BaseMessage) for message in messages):
            return state
        treated, outcomes = treated_beside_tools(
            messages, (), self._guard, own_model=self._tools.own_model, within=False, cancel=cancel
        )
        if not outcomes:
            return state
        state = {**state, self._answer_key: treated if isinstance(part, list | tuple) else treated[0]}
        for outcome in outcomes:
            state, _ = cleaned_state(state, outcome, self._answer_key)
        return state

    def _answer(self, state: Mapping[str, Any]) -> Any:
        """Return the answer in the state.

        Raises:
            NotGuardableError: there is none under the key.
        """
        part = state.get(self._answer_key)
        value = part[-1] if isinstance(part, list | tuple) and part else part
        if isinstance(value, AIMessage):
            return value
        if part is not None and not isinstance(value, BaseMessage):
            return part
        msg = (
            f"the graph's state holds no answer under {self._answer_key!r} but {type(value).__name__}: put the node "
            "after the one that calls the model, or name the answer's key, as in SemGradNode(answer_key='generation')"
        )
        raise NotGuardableError(msg)

    def _candidate(self, state: Mapping[str, Any], value: Any, manager: BaseRunManager) -> ChainCandidate:
        question = question_in(state, self._question_key)
        documents, own_model = documents_in(state), self._tools.own_model
        if isinstance(value, AIMessage):
            before = _messages(state[self._answer_key])[:-1]
            return final_answer(
                value, before, own_model=own_model, within=False, question=question, documents=documents
            )
        context = CallContext(
            manager.run_id, manager, question=question, documents={"state": documents}, own_model=own_model
        )
        candidate = candidates_in(value, context)[0]
        return candidate if isinstance(value, str) else replace(candidate, slot=None)

    def _settled(
        self, before: Mapping[str, Any], state: Mapping[str, Any], value: Any, outcome: Outcome
    ) -> dict[str, Any]:
        """Return the update of the state: the answer, what repeated it, and the findings.

        Args:
            before: the state as the graph has it.
            state: the same with its texts beside requests for tools treated.
            value: the answer.
            outcome: how the question ended.
        """
        cleaned, left_out = cleaned_state(state, outcome, self._answer_key)
        findings = findings_with_run(outcome, left_out)
        changed: Any = text_for(outcome, is_field=isinstance(value, str))
        if isinstance(value, AIMessage):
            same = outcome.text == outcome.exchange.answer and outcome.exchange.attempt == 1
            text = text_of(value) or ""
            changed = with_answer(value, Slot((), text, value), text if same else outcome.text, findings)
            changed = changed if changed.id else changed.model_copy(update={"id": str(uuid4())})
        held = held_answer(outcome, str(changed.id) if isinstance(value, AIMessage) else "")
        waits = held if stops(self._review) else None
        update = state_update(before, cleaned, self._reduced)
        earlier = [m for m in update.pop(self._answer_key, ()) if m is not value]
        given_back = self._in_place(state, changed)
        update[self._answer_key] = [*earlier, *given_back] if isinstance(given_back, list) else given_back
        return {**update, METADATA_KEY: findings, HELD_KEY: waits}

    def _object(self, judged: ChainValue, outcome: Outcome) -> dict[str, Any]:
        """Return the update of an object without text: nothing, or the object of a later attempt.

        Raises:
            LowConfidenceError: it was held back, or another text than the one it was made of is given.
        """
        given = judged.after((outcome,))
        own = given.candidates[0].exchange.id == outcome.exchange.id
        if outcome.withheld:
            raise held_back(outcome)
        if not own or text_for(outcome, is_field=True) != outcome.exchange.answer:
            raise no_place(outcome)
        return {} if given.value is judged.value else {self._answer_key: given.value}

    def _in_place(self, state: Mapping[str, Any], changed: Any) -> Any:
        """Return the update of the answer's key: the reducer of messages replaces the one with the same id."""
        return [changed] if isinstance(state.get(self._answer_key), list | tuple) else changed


def _messages(part: Any) -> list[BaseMessage]:
    parts = part if isinstance(part, list | tuple) else [part]
    return [message for message in parts if isinstance(message, BaseMessage)]
