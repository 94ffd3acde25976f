"""A fault at any seam of the guard, in any form of any adapter: no answer that was not judged comes out."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import count, cycle, product
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.adapter_kit.contract import FALLBACK, Case, Writer
from semgrad_guard.adapter_kit.contract_case import ALSO_DOUBTFUL, DOUBTFUL, GOOD, AnswerScorer, ListQueue
from semgrad_guard.guard import Guard
from semgrad_guard.guard.question_run import SCORER_GRACE_S
from tests.contract import drivers
from tests.contract.drivers import DRIVERS
from tests.hostile.streams import ASKS_AGAIN, WAYS, Seen, StreamingWriter

if TYPE_CHECKING:
    from collections.abc import Callable

JUDGING = ("scorer", "calibrator", "decider")
"""Seams without which nothing is judged."""
SEAMS = (*JUDGING, "queue", "sink")
FAULTS = {
    "raises": lambda: ValueError(f"cannot read {DOUBTFUL!r} or {GOOD!r}"),
    "runs out of memory": MemoryError,
    "nests too deep": RecursionError,
    "ends early": StopIteration,
    "gives nothing": None,
}


STREAMED_FAULTS = {
    *((seam, "raises") for seam in SEAMS),
    ("scorer", "gives nothing"),
    ("decider", "gives nothing"),
    ("calibrator", "ends early"),
    ("scorer", "runs out of memory"),
}
"""Of all faults, those that streams are tried with: what comes out of a stream is decided by the same guard."""
SLACK_S = 4.0
"""Seconds for the framework around the guard, on a machine that does other things too."""


class Broken:
    """Does the same wrong thing whatever it is asked."""

    def __init__(self, fault) -> None:
        self._fault, self.asked = fault, []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def act(*_: object, **__: object) -> None:
            self.asked.append(name)
            if self._fault is not None:
                raise self._fault()

        return act


@dataclass(kw_only=True)
class FaultyCase(Case):
    """A case whose guard has one broken part."""

    seam: str
    fault: str

    @cached_property
    def broken(self) -> Broken:
        """The broken part."""
        return Broken(FAULTS[self.fault])

    @property
    def guard(self) -> Guard:
        """The guard that the framework must use."""
        return Guard(replace(super().guard.parts, **{self.seam: self.broken}))


def faulty(answer: str, seam: str, fault: str) -> FaultyCase:
    """Return a case whose model writes one answer, and whose policy lets none through that was not judged."""
    return FaultyCase(
        model=Writer([answer]),
        scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}),
        policy={"escalate": ["human_review"], "otherwise": "abstain", "on_error": "abstain"},
        queue=ListQueue(),
        seam=seam,
        fault=fault,
    )


def reply(driver, case, *, asynchronous):
    if asynchronous:
        return asyncio.run(driver.aask(case))
    return driver.ask(case)


CASES = [
    pytest.param(driver, seam, fault, way, id=f"{type(driver).__name__}-{seam}-{fault}-{way}")
    for driver, seam, fault, way in product(DRIVERS, SEAMS, FAULTS, ("sync", "async"))
    if way in driver.abilities
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("driver", "seam", "fault", "way"), CASES)
def test_no_unjudged_answer_comes_out(driver, seam, fault, way):
    """The guard may fail; the promise of the policy may not."""
    for answer in (DOUBTFUL, GOOD):
        case = faulty(answer, seam, fault)
        try:
            got = reply(driver, case, asynchronous=way == "async")
        except Exception as error:  # noqa: BLE001 - then the caller gets no answer
            shown = repr(error)
        else:
            shown = got.everything
        if answer == DOUBTFUL or seam in JUDGING:
            assert answer not in shown


STREAMED = [
    pytest.param(way, seam, fault, id=f"{way}-{seam}-{fault}")
    for way, seam, fault in product(WAYS, SEAMS, FAULTS)
    if (seam, fault) in STREAMED_FAULTS
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("way", "seam", "fault"), STREAMED)
def test_no_unjudged_word_is_streamed(way, seam, fault, monkeypatch):
    """A stream that the policy buffers shows nothing before the answer was judged, and nothing if that fails."""
    monkeypatch.setattr(drivers, "ChatWriter", StreamingWriter)
    for answer in (DOUBTFUL, GOOD):
        case = faulty(answer, seam, fault)
        shown = streamed(WAYS[way], case)
        if answer == DOUBTFUL or seam in JUDGING:
            # the words of the right answer are in the passages too
            assert not any(words in shown for words in ([answer] if answer == GOOD else answer.split()))


@pytest.mark.parametrize("way", WAYS)
def test_what_was_judged_is_streamed(way, monkeypatch):
    """The test before would pass where nothing ever comes out."""
    monkeypatch.setattr(drivers, "ChatWriter", StreamingWriter)
    case = Case(model=Writer([GOOD]), scorer=AnswerScorer({GOOD: 0.1}), policy={"otherwise": "abstain"})
    assert GOOD in streamed(WAYS[way], case)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ASKS_AGAIN)
def test_no_unjudged_word_of_a_fallback_is_streamed(way, monkeypatch):
    """The guard asks it while the framework listens to every model."""
    monkeypatch.setattr(drivers, "ChatWriter", StreamingWriter)
    case = Case(
        model=Writer([DOUBTFUL]),
        fallback=Writer([ALSO_DOUBTFUL]),
        scorer=AnswerScorer({DOUBTFUL: 0.9, ALSO_DOUBTFUL: 0.9}),
        policy={"escalate": [{"fallback_model": {"name": FALLBACK}}], "otherwise": "abstain"},
    )
    shown = streamed(WAYS[way], case)
    assert case.fallback.calls == 1
    assert not any(words in shown for words in f"{DOUBTFUL} {ALSO_DOUBTFUL}".split())


def streamed(read, case) -> str:
    """Return all that the reader of a stream sees until it ends, whether well or in an error."""
    seen = Seen()
    try:
        if inspect.iscoroutinefunction(read):
            asyncio.run(read(case, seen))
        else:
            read(case, seen)
    except Exception as error:  # noqa: BLE001 - then the reader gets no more
        seen.pieces.append(repr(error))
    return seen.everything


def raising() -> float:
    """A clock that cannot be read."""
    msg = f"no time, and {DOUBTFUL!r} or {GOOD!r}"
    raise OSError(msg)


CLOCKS = {
    "jumps ahead": lambda: count(0, 1e6).__next__,
    "goes back": lambda: count(1e9, -100).__next__,
    "stands still": lambda: lambda: 5.0,
    "jumps to and fro": lambda: cycle([0.0, 1e9, -1e9]).__next__,
    "is no number": lambda: lambda: math.nan,
    "has no end": lambda: lambda: math.inf,
    "raises": lambda: raising,
    "raises later": lambda: chain_calls([1.0, 2.0], raising),
}


def chain_calls(values, then):
    """Return a function that gives some values in turn and then calls another."""
    left = list(values)
    return lambda: left.pop(0) if left else then()


@dataclass(kw_only=True)
class ClockCase(Case):
    """A case whose guard reads a strange clock."""

    clock: Callable[[], float]
    budget_s: float | None = 5.0

    @property
    def guard(self) -> Guard:
        """The guard that the framework must use."""
        return Guard(super().guard.parts, clock=self.clock)


CLOCKED = [
    pytest.param(driver, clock, way, id=f"{type(driver).__name__}-{clock}-{way}")
    for driver, clock, way in product(DRIVERS, CLOCKS, ("sync", "async"))
    if way in driver.abilities
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("driver", "clock", "way"), CLOCKED)
def test_a_strange_clock_lets_no_unjudged_answer_out(driver, clock, way):
    """Time decides when to give up, never what is given; and it ends, whatever the clock says."""
    for answer in (DOUBTFUL, GOOD):
        case = ClockCase(
            model=Writer([answer]),
            scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}),
            policy={"escalate": ["human_review"], "otherwise": "abstain", "on_error": "abstain"},
            queue=ListQueue(),
            clock=CLOCKS[clock](),
        )
        shown = reply(driver, case, asynchronous=way == "async").everything
        assert (answer in shown) is (answer == GOOD), "the clock must not cost the judgement"


def no_date() -> datetime:
    """What Python says of a clock that is far out."""
    msg = f"year 60000 is out of range, {DOUBTFUL!r} or {GOOD!r}"
    raise ValueError(msg)


DATES = {
    "jumps ahead": lambda: cycle([datetime(2026, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]).__next__,
    "goes back": lambda: cycle([datetime(2026, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)]).__next__,
    "raises": lambda: no_date,
    "raises later": lambda: chain_calls([datetime(2026, 1, 1, tzinfo=UTC)], no_date),
}
DATED = [
    pytest.param(driver, date, way, id=f"{type(driver).__name__}-{date}-{way}")
    for driver, date, way in product(DRIVERS, DATES, ("sync", "async"))
    if way in driver.abilities
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("driver", "date", "way"), DATED)
def test_a_strange_calendar_lets_no_unjudged_answer_out(driver, date, way, monkeypatch):
    """A record that cannot be dated is a record all the same, and the answer is judged as ever."""
    monkeypatch.setattr("semgrad_guard.flow.datetime", CalendarOf(DATES[date]()))
    for answer in (DOUBTFUL, GOOD):
        case = Case(
            model=Writer([answer]),
            scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}),
            policy={"escalate": ["human_review"], "otherwise": "abstain", "on_error": "abstain"},
        )
        shown = reply(driver, case, asynchronous=way == "async").everything
        assert (answer in shown) is (answer == GOOD), "the date must not cost the judgement"
        assert len(case.sink.records) == 1


class CalendarOf:
    """Stands for `datetime` where the present moment is read."""

    fromtimestamp = datetime.fromtimestamp

    def __init__(self, read) -> None:
        self._read = read

    def now(self, _: object) -> datetime:
        return self._read()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clock", ["jumps ahead", "raises", "raises later", "is no number"])
def test_a_strange_clock_lets_no_unjudged_word_be_streamed(way, clock, monkeypatch):
    """As the one before, word by word."""
    monkeypatch.setattr(drivers, "ChatWriter", StreamingWriter)
    scorer = AnswerScorer({DOUBTFUL: 0.9})
    case = ClockCase(model=Writer([DOUBTFUL]), scorer=scorer, policy={"otherwise": "abstain"}, clock=CLOCKS[clock]())
    shown = streamed(WAYS[way], case)
    assert not any(word in shown for word in DOUBTFUL.split())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("driver", "way"), [(d, w) for d, w in product(DRIVERS, ("sync", "async")) if w in d.abilities]
)
def test_the_time_of_a_policy_holds_in_every_form(driver, way):
    """A scorer that looks at neither the time nor a cancellation is not waited for longer than the grace."""
    scorer = AnswerScorer({GOOD: 0.1})
    released = scorer.released
    scorer.score = lambda *_a, **_k: released.wait(30)
    case = Case(model=Writer([GOOD]), scorer=scorer, policy={"otherwise": "abstain"}, budget_s=0.05)
    started = time.monotonic()
    try:
        shown = reply(driver, case, asynchronous=way == "async").everything
    except Exception as error:  # noqa: BLE001 - then the caller gets no answer
        shown = repr(error)
    took_s = time.monotonic() - started
    released.set()
    assert GOOD not in shown
    assert took_s < 0.05 + SCORER_GRACE_S + SLACK_S
