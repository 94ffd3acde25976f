"""What a check of the adapters' contract gives to a driver, and what the driver gives back.

A `Case` holds the question, the scripted models and a guard of small parts, which keep what they saw. A `Driver` asks
its framework with them and returns a `Reply`; `reachable` collects what a caller can read in a framework's value.
"""

from __future__ import annotations

import json
import re
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from semgrad_guard.errors import ScoringEndedError, ScoringError
from semgrad_guard.flow import Confidence, Fingerprint, ReviewId, Score
from semgrad_guard.guard import Guard, Parts
from semgrad_guard.policy import PolicyDecider, policy_from
from semgrad_guard.policy.needs import needs_of

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Record
    from semgrad_guard.policy import Policy

Ability = Literal[
    "sync",
    "async",
    "cancel",
    "fallback",
    "retry",
    "raise",
    "queue",
    "tools",
    "tool_text",
    "broken_tools",
    "copies",
    "field",
]
"""What a form of an adapter can do.

It is called by `ask` (`sync`), by `aask` (`async`) or by both; cancelling the task that awaits `aask` ends the question
(`cancel`); it asks the fallback model `FALLBACK`; it retrieves and answers again (`retry`); it raises in the place of a
withheld answer where the case `raises`; it uses the policy's review queue; it lets requests for tools pass; its model
can write text beside such a request (`tool_text`), or a request that cannot be read (`broken_tools`); its values have
room for copies of the answer (`copies`); its answers are fields that programs read, so a warning is a finding only
(`field`).
"""

QUESTION = "Who discovered radium?"
GOOD = "Marie Curie."
DOUBTFUL = "Quixotic marmalade zeppelins."
"""An answer that the guard doubts; its words are in no other text."""
ALSO_DOUBTFUL = "Perhaps lukewarm periwinkles."
TOOL_REQUEST = "(request for the tool look_up)"
"""What a `Writer` gives where the framework's model must ask for the tool `TOOL` instead of answering."""
BROKEN_REQUEST = "(request that cannot be read)"
"""The same for a request whose arguments cannot be read.

What stands before one of the two in a text is what the model says beside its request.
"""
BROKEN_ARGUMENTS = '{"query": "bombastic'
"""The arguments of such a request."""
LONG = "Quixotic zeppelins hover above marmalade meadows. Unbuttoned walruses seldom juggle turquoise anvils there."
"""A longer answer that the guard doubts."""
TOOL = "look_up"
FALLBACK = "big"
"""Name of the fallback model in the policies of the checks."""
ABSTAIN, PENDING, UNCHECKED = "I do not know.", "A person will answer.", "This was not checked."


@dataclass
class Writer:
    """What a fake model writes: the texts in turn, and then the last one for ever; an exception is raised."""

    script: Sequence[str | Exception]
    calls: int = 0

    def write(self) -> str:
        """Return the next text."""
        text = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if isinstance(text, Exception):
            raise text
        return text


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the caller of a guarded framework got."""

    text: str
    """What the user is shown."""
    findings: Mapping[str, Any] | None
    """What the framework's value holds under `semgrad`; `None` for a form without a place for it."""
    everything: str
    """All that the caller can read: `reachable` of the returned value, the conversation and so on."""


class Driver(Protocol):
    """One way in which a framework is guarded."""

    @property
    def abilities(self) -> AbstractSet[Ability]:
        """What this form can do."""
        ...

    def ask(self, case: Case) -> Reply:
        """Set the framework up with the case's guard and models, ask its question, and return what came out."""
        ...

    async def aask(self, case: Case) -> Reply:
        """Same as `ask` by the framework's asynchronous calls."""
        ...


# --- a guard of small parts -------------------------------------------------------------------------------------------


@dataclass
class AnswerScorer:
    """Scores an answer by a table, or else by `doubt`; an exception in the table is raised."""

    table: Mapping[str, float | Exception] = field(default_factory=dict[str, "float | Exception"])
    waits: bool = False
    """Work on each score until somebody cancels it, its time is up, or `released` is set."""
    name: str = "contract"
    seen: list[Exchange] = field(default_factory=list["Exchange"])
    begun: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    begun_at: float = 0.0

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return the fingerprint of a model that does not exist."""
        return Fingerprint(model="contract", dtype="float32", template="none", settings="contract", proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score that the table has for an answer.

        Raises:
            ScoringEndedError: it was cancelled, or ran out of time.
        """
        self.seen.append(exchange)
        if self.waits:
            self._wait(timeout_s, cancel)
        value = self.table.get(exchange.answer, doubt(exchange.question, exchange.answer))
        if isinstance(value, Exception):
            raise value
        return Score(method="fake", value=value, signals={}, fingerprint=self.fingerprint(), model=self.name)

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return a score or an error for each exchange."""
        results: list[Score | ScoringError] = []
        for exchange in exchanges:
            try:
                results.append(self.score(exchange, timeout_s=timeout_s, cancel=cancel))
            except ScoringError as error:
                results.append(error)
        return results

    def _wait(self, timeout_s: float | None, cancel: threading.Event | None) -> None:
        self.begun_at = time.monotonic()
        self.begun.set()
        while not self.released.wait(0.01):
            if cancel is not None and cancel.is_set():
                self.cancelled.set()
                raise ScoringEndedError
            if timeout_s is not None and time.monotonic() > self.begun_at + timeout_s:
                raise ScoringEndedError


def doubt(question: str | None, answer: str) -> float:
    """Return a score from 0 to 1 that depends on question and answer alone: frameworks make different prompts."""
    return zlib.crc32(f"{question}\n{answer}".encode()) / 2**32


class _OneMinusScore:
    """Takes one minus the score for the confidence."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        why = f"one minus the score of attempt {exchange.attempt}"
        return Confidence(value=1 - score.value, why=why, profile="contract")

    def with_span_confidences(self, score: Score) -> Score:
        return score


@dataclass
class ListQueue:
    """Keeps answers for review in a list; `fault` is raised."""

    fault: Exception | None = None
    items: list[Exchange] = field(default_factory=list["Exchange"])

    def submit(self, exchange: Exchange, *_: object, **__: object) -> ReviewId:
        """Keep an answer."""
        if self.fault is not None:
            raise self.fault
        self.items.append(exchange)
        return ReviewId(f"item-{len(self.items)}")

    def wait(self, *_: object, **__: object) -> None:
        """Return nothing: there is no verdict."""


@dataclass
class ListSink:
    """Keeps records in a list."""

    records: list[Record] = field(default_factory=list["Record"])

    def emit(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)

    def close(self) -> None:
        """Do nothing."""


@dataclass(kw_only=True)
class Case:
    """One question, what a driver answers it with, and what the parts of the guard saw of it."""

    model: Writer
    """The framework's own model."""
    scorer: AnswerScorer
    policy: Mapping[str, object] = field(default_factory=dict[str, object])
    fallback: Writer = field(default_factory=lambda: Writer([GOOD]))
    """The fallback model; its name is `FALLBACK`."""
    raises: bool = False
    """Whether a withheld answer must be raised; only where the driver can do that."""
    copies: bool = False
    """Whether each place that a value has beside the answer holds `copies_of` the answer; only where the driver can."""
    question: str = QUESTION
    queue: ListQueue = field(default_factory=ListQueue)
    budget_s: float | None = None
    sink: ListSink = field(default_factory=ListSink)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Names of the fallback models that the policy names: `FALLBACK`, or none."""
        return tuple(need.name for need in needs_of(self._policy()) if need.what == "fallback")

    def _policy(self) -> Policy:
        messages = {"abstain": ABSTAIN, "pending": PENDING, "unchecked": UNCHECKED}
        queue = {"url": "interrupt"}  # the queue is the one below
        return policy_from({"version": 1, "accept": 0.7, "messages": messages, "review": queue, **self.policy})

    @property
    def guard(self) -> Guard:
        """The guard that the framework must use."""
        parts = Parts(
            scorer=self.scorer,
            calibrator=_OneMinusScore(),
            decider=PolicyDecider(self._policy()),
            queue=self.queue,
            sink=self.sink,
            abstain_message=ABSTAIN,
            budget_s=self.budget_s,
        )
        return Guard(parts)


def copies_of(answer: str) -> dict[str, Any]:
    """Return copies of an answer as programs carry them along: whole, in another spelling, quoted, nested, as a key."""
    return {
        "draft": answer,
        "shouted": f"  {answer.upper()}\n",
        "raw": json.dumps({"said": answer}),
        "first": answer.split(". ", maxsplit=1)[0],
        "steps": [f"I think: {answer}", {"noted": {answer: 1}}, ("step", answer)],
        "tokens": re.findall(r"\w+\W*", answer),
    }


# --- what the caller can read -----------------------------------------------------------------------------------------


def reachable(value: object) -> str:
    """Return all that can be read in a value as one text: it, its items and its attributes, private ones included.

    An `outcome` is left out: it is documented to hold the whole.
    """
    seen: dict[int, object] = {}
    return "\n".join(_texts(value, seen, 8))


def _texts(value: object, seen: dict[int, object], depth: int) -> Iterator[str]:
    if id(value) in seen or not depth or isinstance(value, type | FunctionType | ModuleType):
        return
    seen[id(value)] = value
    yield f"{value!r}\n{value}"
    if isinstance(value, BaseException):
        yield "".join(traceback.format_exception(value))
    for part in _parts(value):
        yield from _texts(part, seen, depth - 1)


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | AbstractSet):
        return list(value)
    names = {*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())} - {"outcome"}
    return [getattr(value, name, None) for name in names]
