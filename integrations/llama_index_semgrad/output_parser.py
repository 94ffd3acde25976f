"""The guard as an output parser: it judges the text of a model before another parser reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from llama_index.core.types import BaseOutputParser
from typing_extensions import override

from llama_index_semgrad.convert import request_tags
from llama_index_semgrad.exchanges import call_fields
from llama_index_semgrad.guard import SemGradGuard
from llama_index_semgrad.watcher import WATCHER, last_calls
from semgrad_guard.adapter_kit import (
    NOTHING_STATED,
    Candidate,
    Means,
    OnWithheld,
    check_means,
    check_option,
    held_back,
    match_call,
    run_guard,
    stated_here,
)
from semgrad_guard.errors import PromptNotFoundError
from semgrad_guard.flow import Exchange, Status

if TYPE_CHECKING:
    from llama_index.core.llms import LLM, ChatMessage

    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource

_NO_CALL = PromptNotFoundError(
    "among the latest model calls of this thread or task",
    "parse where the model was called, as `LLM.predict` and LlamaIndex' programs do",
)


class SemGradOutputParser(BaseOutputParser):
    """Judges the text of a model, then passes it to another parser.

    The prompt is that of the model call which wrote the text: the latest such call in the current thread or task.

    Example:
        >>> parser = SemGradOutputParser(PydanticOutputParser(Person), policy="policy.yaml")  # doctest: +SKIP
        >>> program = LLMTextCompletionProgram.from_defaults(  # doctest: +SKIP
        ...     output_parser=parser, prompt_template_str="Who discovered radium?", llm=llm
        ... )
    """

    def __init__(
        self,
        parser: BaseOutputParser | None = None,
        *,
        llm: LLM | None = None,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        guard: Guard | None = None,
        on_withheld: OnWithheld | None = None,
    ) -> None:
        """Take the inner parser and the options of `SemGradGuard`.

        Args:
            parser: parses an answer that may be given; without a parser the text is returned.
            llm: the LLM, when it is a local model: its own weights score its answers.
            accept: in place of a policy: answers with a lower confidence, or without one, are held back.
            policy: a policy file or its content. With neither, every answer passes.
            guard: a ready guard, in place of `policy`.
            on_withheld: `None` raises when there is a parser, because it could not parse the policy's message.

        Raises:
            OptionError: an unknown option.
            StepUnavailableError: a step of the policy answers again, which only a guarded engine can do.
        """
        if on_withheld is not None:
            check_option("on_withheld", on_withheld, get_args(OnWithheld))
        chosen = SemGradGuard(llm, accept=accept, policy=policy, guard=guard)
        self.guard, self._weights = chosen.guard, chosen.weights
        check_means(self.guard, Means(asks_again=False, advice="SemGradGuard(...).wrap(engine, {})"))
        self._parser = parser
        self._raises = (parser is not None) if on_withheld is None else on_withheld == "raise"
        WATCHER.remember_last = True

    @override
    def parse(self, output: str) -> Any:
        """Return what the inner parser makes of an answer that the policy allows.

        Raises:
            LowConfidenceError: the answer is withheld, and `on_withheld` says that this is an error.
        """
        outcome = self._outcome(output)
        if outcome.withheld and self._raises:
            raise held_back(outcome)
        if self._parser is None or outcome.withheld:
            return outcome.text
        return self._parser.parse(outcome.exchange.answer if outcome.status is Status.WARNED else outcome.text)

    @override
    def format(self, query: str) -> str:
        """Return a prompt with the inner parser's instructions."""
        return self._parser.format(query) if self._parser else query

    @override
    def format_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        """Return messages with the inner parser's instructions."""
        return self._parser.format_messages(messages) if self._parser else messages

    def _outcome(self, output: str) -> Outcome:
        call = match_call([last_calls()], output, exact=True)
        fields = call_fields(call, output, self._weights) if call else {}
        exchange = Exchange(answer=output, tags=request_tags(), **fields)
        exchange = (call.stated if call else NOTHING_STATED).over(stated_here()).apply(exchange)
        return run_guard(self.guard, Candidate(exchange, None if call else _NO_CALL))
