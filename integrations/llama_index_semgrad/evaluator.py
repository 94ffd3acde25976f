"""The guard as an evaluator for LlamaIndex' own tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from typing_extensions import override

from llama_index_semgrad.convert import prompt_holds, rebuilt_prompt, request_tags
from llama_index_semgrad.exchanges import call_fields
from llama_index_semgrad.guard import SemGradGuard
from llama_index_semgrad.watcher import WATCHER
from semgrad_guard.adapter_kit import NOTHING_STATED, match_call, stated_here
from semgrad_guard.errors import UncalibratedError
from semgrad_guard.flow import Accept, Exchange, Passage
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from llama_index.core.llms import LLM
    from llama_index.core.prompts.mixin import PromptDictType

    from llama_index_semgrad.convert import LlmCall
    from semgrad_guard.flow import Decision
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer


class SemGradEvaluator(BaseEvaluator):
    """Evaluates how likely a response is right; it passes when the policy accepts it.

    Where there is no confidence, the result is invalid and says why; it then neither passes nor fails.

    The prompt is that of the model call which wrote the response, if this process made the call recently. Otherwise it
    is rebuilt from query and contexts by LlamaIndex' default template. No step of the policy is carried out.

    Example:
        >>> runner = BatchEvalRunner({"semgrad": SemGradEvaluator(policy="policy.yaml")})  # doctest: +SKIP
        >>> results = await runner.aevaluate_queries(engine, queries=questions)  # doctest: +SKIP
    """

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Take the same options as `SemGradGuard`."""
        chosen = SemGradGuard(llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard)
        self.guard, self._weights = chosen.guard, chosen.weights
        WATCHER.remember_recent = True

    @override
    def evaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Judge a response.

        Args:
            query: the question.
            response: the answer.
            contexts: the passages that it was written from.
            kwargs: ignored; other evaluators take more arguments.
        """
        return self._evaluation(query, response, contexts)

    @override
    async def aevaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Same as `evaluate` in a worker thread."""
        return await in_thread(self._evaluation, query, response, contexts)

    def _evaluation(
        self,
        query: str | None,
        response: str | None,
        contexts: Sequence[str] | None,
        cancel: threading.Event | None = None,
    ) -> EvaluationResult:
        exchange = self._exchange(query, response or "", tuple(contexts or ()))
        try:
            decision = self.guard.judge(exchange, cancel=cancel)
        except UncalibratedError as error:
            return _result(
                query, response, contexts, invalid_result=True, invalid_reason=str(error), feedback=str(error)
            )
        return _result(query, response, contexts, **_result_fields(decision, measures=self.guard.only_measures))

    @override
    def _get_prompts(self) -> PromptDictType:
        return {}

    @override
    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        pass

    def _exchange(self, query: str | None, answer: str, contexts: tuple[str, ...]) -> Exchange:
        call = _recent_call(answer, query, contexts)
        rebuilt: dict[str, Any] = {"prompt": rebuilt_prompt(query or "", contexts)}
        exchange = Exchange(
            answer=answer,
            question=query,
            passages=tuple(map(Passage, contexts)),
            passages_from="stated" if contexts else None,
            tags=request_tags(),
            metadata={"prompt": "captured" if call else "rebuilt"},
            **(call_fields(call, answer, self._weights) if call else rebuilt),
        )
        return (call.stated if call else NOTHING_STATED).over(stated_here()).apply(exchange)


def _recent_call(answer: str, query: str | None, contexts: Sequence[str]) -> LlmCall | None:
    """Return the latest call that wrote exactly this answer to a prompt with this question and these passages.

    Only the texts are compared, so the call may have been made in any thread.
    """
    texts = [text for text in (query, *contexts) if text]
    return match_call([[call for call in WATCHER.recent() if prompt_holds(call.prompt, texts)]], answer, exact=True)


def _result_fields(decision: Decision, *, measures: bool) -> dict[str, Any]:
    """Return what a decision says about the response; without a confidence, that the result is invalid.

    A guard that only measures asks for no confidence, so nothing passes or fails.
    """
    feedback = f"{decision.rule}: {decision.why}"
    if reason := _why_invalid(decision):
        return {"feedback": feedback, "invalid_result": True, "invalid_reason": reason}
    return {
        "score": decision.confidence.value,
        "passing": None if measures else isinstance(decision.step, Accept),
        "feedback": feedback,
        "invalid_result": False,
    }


def _why_invalid(decision: Decision) -> str | None:
    if decision.failure is not None:
        return f"{decision.failure.type}: {decision.failure.message}"
    if decision.confidence.value is None:
        return decision.confidence.why or "the answer has no calibrated confidence"
    return None


def _result(query: str | None, response: str | None, contexts: Sequence[str] | None, **fields: Any) -> EvaluationResult:
    return EvaluationResult(
        query=query, response=response or "", contexts=list(contexts) if contexts is not None else None, **fields
    )
