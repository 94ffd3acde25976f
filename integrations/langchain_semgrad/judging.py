"""Turns the values of a chain into what its caller gets: judged, and with another text where the policy says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.runnables.utils import AddableDict

from langchain_semgrad.capture import recorded
from langchain_semgrad.copies import without_copies
from langchain_semgrad.exchanges import candidate_at
from langchain_semgrad.values import (
    METADATA_KEY,
    GuardedAnswer,
    texts_beside_tools,
    with_answer,
    with_message,
)
from semgrad_guard.adapter_kit import (
    OnWithheld,
    check_option,
    findings,
    held_back,
    judge_beside_tools,
    no_place,
    text_for,
    withheld_by,
)
from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.routing import NO_RESOURCES, Resources
from semgrad_guard.telemetry import judged_within

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from langchain_core.callbacks.manager import BaseRunManager

    from langchain_semgrad.exchanges import CallContext, ChainCandidate
    from langchain_semgrad.rerun import ChainAttempts
    from langchain_semgrad.values import Slot
    from semgrad_guard.adapter_kit import Place
    from semgrad_guard.flow import ExchangeId, Json, Outcome
    from semgrad_guard.guard import Guard


Output = Literal["same", "result"]
StreamMode = Literal["buffer", "annotate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnOptions:
    """How a guarded value is given back.

    Raises:
        OptionError: an option has an unknown value.
    """

    output: Output = "same"
    stream: StreamMode | None = None
    on_withheld: OnWithheld = "message"
    answer_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown words at once, not at the first answer."""
        check_option("output", self.output, get_args(Output))
        check_option("stream", self.stream, (None, *get_args(StreamMode)))
        check_option("on_withheld", self.on_withheld, get_args(OnWithheld))


@dataclass(frozen=True, slots=True)
class ChainValue:
    """A value that a chain gave, and the answers in it."""

    value: Any
    candidates: tuple[ChainCandidate, ...]
    """Empty where the value is no answer: a request for tools."""
    attempts: ChainAttempts | None = None
    """How to answer again; `None` where that is not possible."""
    manager: BaseRunManager | None = None
    """The guard's own run."""
    context: CallContext | None = None
    """What is known of the call, to find the model calls behind text beside requests for tools."""

    def resources(self, candidate: ChainCandidate) -> Resources:
        """Return what the policy may act with for one answer."""
        return self.attempts.first(self.value, candidate) if self.attempts else NO_RESOURCES

    def after(self, outcomes: Sequence[Outcome]) -> ChainValue:
        """Return the value of the attempt that the caller gets; a value with several answers stays as it is."""
        if self.attempts is None or len(self.candidates) != 1:
            return self
        value, candidate = self.attempts.values.get(outcomes[0].exchange.id, (self.value, self.candidates[0]))
        return replace(self, value=value, candidates=(candidate,), attempts=None)


def findings_with_run(outcome: Outcome, left_out: Sequence[str] = ()) -> dict[str, Json]:
    """Return what the guard found as plain JSON values: the keys of all adapters, and the run that wrote the answer.

    Args:
        outcome: how the question ended.
        left_out: names of the other places that repeated what the caller does not get.
    """
    metadata = outcome.exchange.metadata
    return {
        **findings(outcome, left_out=left_out),
        **{key: metadata.get(key) for key in ("llm_run_id", "llm_run_name")},
    }


def judge_all(
    guard: Guard, values: Sequence[ChainValue], returns: ReturnOptions, cancel: threading.Event | None = None
) -> list[Any]:
    """Return what the caller gets for each value, in order; `LowConfidenceError` in the place of one held back.

    All answers of all values are scored in one padded batch.
    """
    judged = zip(values, _outcomes(guard, values, cancel), strict=True)
    return [_given(guard, value.after(outcomes), outcomes, returns, cancel) for value, outcomes in judged]


def outcome_of(guard: Guard, value: ChainValue, cancel: threading.Event | None = None) -> Outcome:
    """Return the outcome of the only answer in a value."""
    ((outcome,),) = _outcomes(guard, [value], cancel)
    return outcome


def one_or_raise(given: list[Any]) -> Any:
    """Return the only value of a list.

    Raises:
        LowConfidenceError: it was held back.
    """
    (only,) = given
    if isinstance(only, LowConfidenceError):
        raise only
    return only


def _outcomes(guard: Guard, values: Sequence[ChainValue], cancel: threading.Event | None) -> list[tuple[Outcome, ...]]:
    """Return the outcomes of all answers; those whose prompt is not known take the policy's `on_error`."""
    with judged_within(_runs(values)):
        return _judged(guard, values, cancel)


def _runs(values: Sequence[ChainValue]) -> dict[ExchangeId, Any]:
    """Return the guard's run in LangSmith for each answer: in a batch each value has one of its own."""
    runs = [(candidate.exchange.id, recorded(value.manager)) for value in values for candidate in value.candidates]
    return {key: run for key, run in runs if run is not None}


def _judged(guard: Guard, values: Sequence[ChainValue], cancel: threading.Event | None) -> list[tuple[Outcome, ...]]:
    candidates = [(candidate, value.resources(candidate)) for value in values for candidate in value.candidates]
    known = [(candidate.exchange, resources) for candidate, resources in candidates if candidate.error is None]
    if len(known) == 1:
        judged = iter([guard.run(*known[0], cancel=cancel)])
    else:
        exchanges, each = [e for e, _ in known], [r for _, r in known]
        judged = iter(guard.run_batch(exchanges, each, cancel=cancel) if known else [])
    outcomes = iter([
        guard.run_unjudged(one.exchange, one.error, resources, cancel=cancel) if one.error else next(judged)
        for one, resources in candidates
    ])  # fmt: skip
    return [tuple(next(outcomes) for _ in value.candidates) for value in values]


def _given(
    guard: Guard,
    judged: ChainValue,
    outcomes: Sequence[Outcome],
    returns: ReturnOptions,
    cancel: threading.Event | None,
) -> Any:
    several, value = len(judged.candidates) > 1, judged.value
    for candidate, outcome in zip(judged.candidates, outcomes, strict=True):
        if outcome.withheld and (returns.on_withheld == "raise" or candidate.slot is None):
            return held_back(outcome)
        if candidate.slot is None and text_for(outcome, is_field=True) != candidate.exchange.answer:
            return no_place(outcome)
    answers = [candidate.slot.text_path for candidate in judged.candidates if candidate.slot is not None]
    question = outcomes[0].exchange.question if outcomes else None
    value = _without_texts_beside(guard, judged, answers, question, returns, cancel)
    for candidate, outcome in zip(judged.candidates, outcomes, strict=True):
        if candidate.slot is not None:
            value = _replaced(value, candidate, outcome, answers, _name(candidate) if several else None)
    if returns.output == "same" or not judged.candidates:
        return value
    results = {
        _name(candidate): GuardedAnswer(text=outcome.text, value=value, outcome=outcome)
        for candidate, outcome in zip(judged.candidates, outcomes, strict=True)
    }
    return results if several else next(iter(results.values()))


def _name(candidate: ChainCandidate) -> str:
    return candidate.slot.name if candidate.slot else "answer"


def _replaced(value: Any, candidate: ChainCandidate, outcome: Outcome, kept: Sequence[Place], name: str | None) -> Any:
    slot = candidate.slot
    if slot is None:
        return value
    value, left_out = without_copies(value, withheld_by(outcome), kept)
    text = text_for(outcome, is_field=slot.is_field)
    # An answer that is given as it is keeps its form to the letter: content blocks, white space, a repeated prompt.
    text = slot.text if text == candidate.exchange.answer else text
    return with_answer(value, slot, text, findings_with_run(outcome, left_out), name)


def _without_texts_beside(
    guard: Guard,
    judged: ChainValue,
    answers: Sequence[Place],
    question: str | None,
    returns: ReturnOptions,
    cancel: threading.Event | None,
) -> Any:
    """Return a value whose texts beside requests for tools are treated as the policy says."""
    value = judged.value
    for slot, outcome in _beside_tools(guard, judged, question, returns, cancel):
        value, left_out = without_copies(value, withheld_by(outcome), [*answers, slot.text_path])
        text = text_for(outcome, is_field=slot.is_field)
        text = slot.text if text == outcome.exchange.answer else text
        value = with_message(value, slot, text, findings_with_run(outcome, left_out))
    return value


def _beside_tools(
    guard: Guard, judged: ChainValue, question: str | None, returns: ReturnOptions, cancel: threading.Event | None
) -> list[tuple[Slot, Outcome]]:
    """Return the texts beside requests for tools in a value, each with what the policy does with it."""
    context = judged.context
    if context is None:
        return []
    slots = texts_beside_tools(judged.value, question or context.question, returns.answer_key)
    candidates = [(slot, candidate_at(judged.value, slot, context)) for slot in slots]
    return [(slot, judge_beside_tools(guard, candidate, cancel)) for slot, candidate in candidates]


def annotation(passed: ChainValue, guard: Guard, returns: ReturnOptions, cancel: threading.Event | None = None) -> Any:
    """Return the last chunk of a stream that has passed: no text, only the findings; `None` for plain text.

    Raises:
        LowConfidenceError: the policy holds an answer back, and the caller wants an exception for that.
    """
    (outcomes,) = _outcomes(guard, [passed], cancel)
    withheld = next((outcome for outcome in outcomes if outcome.withheld), None)
    if withheld is not None and returns.on_withheld == "raise":
        raise held_back(withheld)
    question = outcomes[0].exchange.question if outcomes else None
    beside = _beside_tools(guard, passed, question, returns, cancel)
    slots = [candidate.slot for candidate in passed.candidates] or [slot for slot, _ in beside]
    names = [slot.name if slot else "answer" for slot in slots]
    found = list(map(findings_with_run, outcomes or [outcome for _, outcome in beside]))
    if not found:
        return None
    shown: Mapping[str, Any] = found[0] if len(found) == 1 else dict(zip(names, found, strict=True))
    slot = slots[0]
    if slot is not None and slot.message is not None and not slot.path:
        return type(slot.message)(content="", id=slot.message.id, response_metadata={METADATA_KEY: shown})
    if isinstance(passed.value, AddableDict):
        return AddableDict({METADATA_KEY: shown})
    # A reader of a parser's mapping takes the last one for the whole.
    return {**passed.value, METADATA_KEY: shown} if slot is not None and isinstance(passed.value, dict) else None
