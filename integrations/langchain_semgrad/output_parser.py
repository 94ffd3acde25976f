"""`SemGradOutputParser`: guards the answer as the last parser of a chain, and parses it on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.output_parsers import BaseOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables.config import ensure_config
from pydantic import PrivateAttr
from typing_extensions import override

from langchain_semgrad.convert import asks_for_tools, to_message
from langchain_semgrad.exchanges import ADVICE, CallContext, candidates_in
from langchain_semgrad.guard import build_guard
from semgrad_guard.adapter_kit import Candidate, GuardOptions, Means, check_means, held_back, run_guard
from semgrad_guard.errors import OptionError, PromptNotFoundError
from semgrad_guard.flow import Exchange, Status
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading

    from pydantic import BaseModel

    from langchain_semgrad.exchanges import OwnModel
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer

_RAISE: Any = object()


class SemGradOutputParser(BaseOutputParser[Any]):
    """Guards the answer at the end of a chain and parses what may be given.

    A withheld answer is never parsed: there is no place in an object for the policy's message, so `LowConfidenceError`
    is raised, or `withheld` given in its place. A doubtful answer that the policy lets out is parsed without the
    warning. Without a parser the text itself is given, and the policy's message in the place of a withheld one.

    Args:
        pydantic_object: type to parse into, by LangChain's `PydanticOutputParser`.
        parser: any other parser, in place of `pydantic_object`.
        llm: the chain's model, when it is local: its own weights score its answers.
        accept: in place of a policy: answers with a lower confidence, or without one, are held back.
        policy: a policy file or its content, by which the guard routes. With neither, every answer passes as it is.
        model: another scoring model.
        scorer: a ready scorer.
        guard: a ready guard, in place of policy, model and scorer.
        withheld: value to give in the place of a withheld answer.

    Raises:
        OptionError: both a type and a parser.
        StepUnavailableError: a step of the policy answers again, which only a guard around the chain can do.

    Example:
        >>> chain = prompt | llm | SemGradOutputParser(Reply)  # doctest: +SKIP
    """

    _parser: BaseOutputParser[Any] | None = PrivateAttr(default=None)
    _guard: Guard = PrivateAttr()
    _own_model: OwnModel | None = PrivateAttr(default=None)
    _withheld: Any = PrivateAttr()

    def __init__(  # noqa: PLR0913 - what users set, each by its own word
        self,
        pydantic_object: type[BaseModel] | None = None,
        *,
        parser: BaseOutputParser[Any] | None = None,
        llm: object | None = None,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        guard: Guard | None = None,
        withheld: Any = _RAISE,
    ) -> None:
        super().__init__()
        if pydantic_object is not None and parser is not None:
            raise OptionError("pydantic_object+parser", "given together", "one of them")
        self._parser = PydanticOutputParser(pydantic_object=pydantic_object) if pydantic_object is not None else parser
        self._guard, self._own_model = build_guard(
            GuardOptions(llm=llm, accept=accept, policy=policy, model=model, scorer=scorer, guard=guard)
        )
        check_means(self._guard, Means(asks_again=False, advice="SemGradGuard(...).wrap(chain, {}) around the chain"))
        self._withheld = withheld

    @property
    @override
    def OutputType(self) -> Any:
        """The inner parser's type, or text."""
        return self._parser.OutputType if self._parser is not None else str

    @property
    @override
    def _type(self) -> str:
        return "semgrad_output_parser"

    @override
    def get_format_instructions(self) -> str:
        """Return the inner parser's instructions for the prompt."""
        return self._parser.get_format_instructions() if self._parser is not None else ""

    @override
    def parse(self, text: str) -> Any:
        """Return the guarded and parsed text; see `parse_result`."""
        return self.parse_result([Generation(text=text)])

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the parsed answer.

        Raises:
            LowConfidenceError: the answer was held back and no value was given for that case.
            OutputParserException: the answer may be given, but the inner parser cannot read it.
        """
        return self._parsed(result, partial=partial)

    @override
    async def aparse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Same as `parse_result` in a worker thread; cancelling the task ends the question."""
        return await in_thread(lambda cancel: self._parsed(result, partial=partial, cancel=cancel))

    def _parsed(self, result: list[Generation], *, partial: bool, cancel: threading.Event | None = None) -> Any:
        candidate = self._candidate(result[0])
        outcome = run_guard(self._guard, candidate, cancel=cancel)
        if outcome.withheld:
            return self._instead(outcome)
        if self._parser is None:
            return outcome.text
        changed = outcome.status is Status.REVIEWED and outcome.text != candidate.exchange.answer
        return self._parser.parse_result([Generation(text=outcome.text)] if changed else result, partial=partial)

    def _instead(self, outcome: Outcome) -> Any:
        if self._withheld is not _RAISE:
            return self._withheld
        if self._parser is None:
            return outcome.text
        raise held_back(outcome)

    def _candidate(self, generation: Generation) -> Candidate:
        """Return the answer with the prompt that the model read, which is found by the parser's own run."""
        message = generation.message if isinstance(generation, ChatGeneration) else None
        value = to_message(message).content if asks_for_tools(message) and message else message or generation.text
        callbacks = ensure_config().get("callbacks")
        run_id = getattr(callbacks, "parent_run_id", None)
        if not isinstance(callbacks, BaseCallbackManager) or run_id is None:
            error = PromptNotFoundError("because the parser was called outside of a chain", ADVICE)
            return Candidate(Exchange(answer=generation.text), error)
        return candidates_in(value, CallContext(run_id, callbacks, own_model=self._own_model))[0]
