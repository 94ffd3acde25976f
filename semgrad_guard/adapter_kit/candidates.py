"""Answers that a guard may judge, the model calls that wrote them, and the attempts at one question."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from semgrad_guard.adapter_kit.stated import stated_here
from semgrad_guard.context import question_asked
from semgrad_guard.flow import Exchange
from semgrad_guard.routing import NO_RESOURCES

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import ExchangeId, Json, Outcome, Passage, Prompt, Score
    from semgrad_guard.guard import Guard
    from semgrad_guard.routing import Resources

Value = TypeVar("Value")
"""What a framework gives for a question: an answer in its own type."""


class WritingCall(Protocol):
    """A model call as far as matching looks at it."""

    @property
    def text(self) -> str | None:
        """What the model wrote; `None` while it is still writing."""
        ...

    @property
    def asked_for_tools(self) -> bool:
        """Whether it asked for tools instead of answering."""
        ...


Call = TypeVar("Call", bound=WritingCall)


def match_call(
    groups: Sequence[Sequence[Call]],
    text: str | None,
    *,
    named: Callable[[Call], bool] | None = None,
    exact: bool = False,
) -> Call | None:
    """Return the model call that wrote a text; `None` where there is none.

    The surest sign decides, whichever group it is found in: the call that the answer itself names, then one that wrote
    this very text, then one whose text holds it or is held by it, then any answer, then any call. Among equals the
    nearest group counts, and the latest call in it.

    Args:
        groups: calls that came to their end, oldest first; the nearest group first where there are several.
        text: the text that is judged; `None` where the value holds none.
        named: tells whether the answer says that a call wrote it.
        exact: accept only a named call or one that wrote this very text.
    """
    signs: list[Callable[[Call], bool]] = [
        *([named] if named else []),
        lambda call: text is not None and _stripped(call) == text.strip(),
    ]
    if not exact:
        signs += [lambda call: text is not None and _overlap(_stripped(call), text.strip())]
        signs += [lambda call: not call.asked_for_tools, lambda _: True]
    finished = [[call for call in group if call.text is not None] for group in groups]
    for sign in signs:
        for group in finished:
            found = [call for call in group if sign(call)]
            if found:
                return found[-1]
    return None


def _stripped(call: WritingCall) -> str:
    return (call.text or "").strip()


def _overlap(written: str, received: str) -> bool:
    return bool(written and received) and (written in received or received in written)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """What a language model read and wrote in one call, in plain values: for frameworks without a type of their own."""

    prompt: Prompt
    text: str
    author: str | None = None
    """Name of the model."""
    on_policy: bool = False
    """True when the scoring model's own weights wrote it."""
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None
    score: Score | None = None
    """A score taken while it was written."""
    asked_for_tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a framework's value says: the text to judge, and what it was written from."""

    text: str
    passages: tuple[Passage, ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict[str, "Json"])
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to judge, or the reason why it cannot be judged."""

    exchange: Exchange
    error: ScoringError | None = None


def candidate_of(
    answer: Answer, calls: Sequence[ModelCall], *, question: str, missing: ScoringError | None = None
) -> Candidate:
    """Return an answer with the prompt of the model call that wrote it.

    Args:
        answer: what the framework's value says.
        calls: the model calls that were made for it, oldest first.
        question: the user's question alone.
        missing: why there is nothing to judge where no call wrote the answer; without it, a prompt is made of the
            question and the passages.
    """
    call = match_call([calls], answer.text)
    prompt = call.prompt if call else "\n\n".join([*(p.text for p in answer.passages), question])
    exchange = Exchange(
        prompt=prompt,
        answer=answer.text,
        question=question_asked(prompt, [question, *(one.text for one in calls if one is not call)]),
        passages=answer.passages,
        passages_from="retriever" if answer.passages else None,
        metadata={**answer.metadata, "prompt": "captured" if call else "rebuilt"},
        tags=answer.tags,
    )
    exchange = stated_here().apply(exchange)
    if call is None:
        return Candidate(exchange, missing)
    return Candidate(with_call(exchange, call))


def with_call(exchange: Exchange, call: ModelCall) -> Exchange:
    """Return an exchange with what a model call says of it.

    Token ids, and a score that was taken while writing, belong to the call's own text: they are left out where the
    answer is another text.
    """
    whole = call.text.strip() == exchange.answer.strip()
    return replace(
        exchange,
        author=call.author,
        on_policy=call.on_policy and whole,
        prompt_ids=call.prompt_ids if whole else None,
        answer_ids=call.answer_ids if whole else None,
        score=call.score if whole else None,
    )


def next_exchange(earlier: Exchange, candidate: Candidate) -> Exchange:
    """Return the exchange of a new attempt at an earlier one's question.

    Raises:
        ScoringError: the new answer cannot be judged.
    """
    if candidate.error is not None:
        raise candidate.error
    new = candidate.exchange
    following = earlier.next_attempt(prompt=new.prompt, answer=new.answer, passages=new.passages, author=new.author)
    return replace(
        following,
        passages_from=new.passages_from,
        prompt_ids=new.prompt_ids,
        answer_ids=new.answer_ids,
        on_policy=new.on_policy,
        score=new.score,
        metadata={**following.metadata, **new.metadata},
    )


@dataclass(slots=True)
class Attempts(Generic[Value]):
    """The attempts at one question."""

    values: dict[ExchangeId, Value] = field(default_factory=dict["ExchangeId", Value])
    """What the framework gave for each."""

    def first(self, candidate: Candidate, value: Value) -> Candidate:
        """Keep the value of the first answer, and return the answer."""
        self.values[candidate.exchange.id] = value
        return candidate

    def following(self, earlier: Exchange, candidate: Candidate, value: Value) -> Exchange:
        """Keep the value of a new attempt, and return its exchange.

        Raises:
            ScoringError: the new answer cannot be judged.
        """
        exchange = next_exchange(earlier, candidate)
        self.values[exchange.id] = value
        return exchange


def run_guard(
    guard: Guard,
    first: Candidate,
    resources: Resources = NO_RESOURCES,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Return what the caller gets for an answer; one that cannot be judged takes the policy's `on_error`.

    Args:
        guard: what judges and decides.
        first: the first answer to the question.
        resources: what the policy's steps may use to answer again.
        cancel: set, from another thread, when the outcome is no longer needed.
    """
    if first.error is not None:
        return guard.run_unjudged(first.exchange, first.error, resources, cancel=cancel)
    return guard.run(first.exchange, resources, cancel=cancel)
