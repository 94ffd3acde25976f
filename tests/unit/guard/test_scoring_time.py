"""A score takes no longer than what is left of the policy's time; then `on_error` decides."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from semgrad_guard.flow import Exchange, Progress, Status
from semgrad_guard.guard import Guard, question_run
from semgrad_guard.guard.assembly import LazyScorer
from semgrad_guard.scoring import SemGradScorer
from tests.fakes import LadderDecider, TableScorer, guard_of
from tests.models_for_tests import in_use, local_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Outcome, Score
    from semgrad_guard.ports import Scorer

    Run = Callable[[Guard], Outcome]

EXCHANGE = Exchange(prompt="p", answer="good")
BUDGET_S = 0.3
RUNS: dict[str, Run] = {
    "sync": lambda guard: guard.run(EXCHANGE),
    "async": lambda guard: asyncio.run(guard.arun(EXCHANGE)),
    "batch": lambda guard: guard.run_batch([EXCHANGE])[0],
}


@pytest.fixture(name="busy")
def _busy() -> Iterator[SemGradScorer]:
    """A real scorer whose model another thread holds until the test is over."""
    local = local_model()
    scorer = SemGradScorer(local)
    with in_use(local):
        yield scorer


class Stuck(TableScorer):
    """A scorer of somebody else's that ignores its time limit."""

    release: threading.Event

    @override
    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        self.release.wait(timeout=60)
        return super().score(exchange)


@pytest.fixture(name="stuck")
def _stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    monkeypatch.setattr(question_run, "SCORER_GRACE_S", 0.1)
    scorer = Stuck()
    scorer.release = threading.Event()
    yield scorer
    scorer.release.set()


def guard_with(scorer: Scorer, budget_s: float | None = BUDGET_S) -> Guard:
    guard = guard_of(decider=LadderDecider(), budget_s=budget_s)
    return Guard(replace(guard.parts, scorer=scorer))


def given_up(run: Run, guard: Guard) -> Outcome:
    started = time.monotonic()
    outcome = run(guard)
    assert time.monotonic() - started < 20
    return outcome


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("lazy", [False, True])
def test_a_score_that_outlasts_the_budget_goes_to_on_error(busy: SemGradScorer, run: Run, lazy: bool) -> None:
    """The caller gets the policy's word in time, and the answer is still in the record."""
    outcome = given_up(run, guard_with(LazyScorer("tiny", lambda: busy) if lazy else busy))
    assert (outcome.status, outcome.decision.rule) == (Status.ABSTAINED, "on_error")
    assert [failure.type for failure in outcome.record.failures] == ["ScoringEndedError"]
    assert outcome.exchange.answer == "good"


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_a_scorer_that_ignores_its_limit_is_not_waited_for(stuck: Stuck, run: Run) -> None:
    """A remote scorer that hangs must not hang the guard."""
    outcome = given_up(run, guard_with(stuck))
    assert (outcome.status, outcome.decision.rule) == (Status.ABSTAINED, "on_error")
    assert [failure.type for failure in outcome.record.failures] == ["TimeoutError"]


class Limited(TableScorer):
    """A scorer that notes its limits."""

    limits: list[tuple[float | None, threading.Event | None]]

    @override
    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        self.limits.append((timeout_s, cancel))
        return super().score(exchange)

    @override
    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        self.limits.append((timeout_s, cancel))
        return super().score_batch(exchanges)


LIMITED: dict[str, tuple[Callable[[Guard, threading.Event], object], float]] = {
    "run": (lambda guard, cancel: guard.run(EXCHANGE, cancel=cancel), 60.0),
    "judge": (lambda guard, cancel: guard.judge(EXCHANGE, Progress(elapsed_s=20.0), cancel=cancel), 40.0),
    "batch": (lambda guard, cancel: guard.run_batch([EXCHANGE] * 3, cancel=cancel), 180.0),
}


@pytest.mark.parametrize(("call", "limit_s"), LIMITED.values(), ids=LIMITED.keys())
@pytest.mark.parametrize("lazy", [False, True])
def test_a_scorer_is_told_its_limits(
    call: Callable[[Guard, threading.Event], object], limit_s: float, lazy: bool
) -> None:
    """One on another machine can stop only by what it is told; a batch may take what its questions may together."""
    limited, cancel = Limited(default=0.1), threading.Event()
    limited.limits = []
    call(guard_with(LazyScorer("far", lambda: limited) if lazy else limited, budget_s=60.0), cancel)
    timeout_s, event = limited.limits[0]
    assert timeout_s == pytest.approx(limit_s, abs=10)
    assert event is cancel


def test_loading_the_model_counts_and_goes_on_for_the_next_answer() -> None:
    """The first caller of a large model is not kept waiting; those that follow find it loaded."""
    release, loaded = threading.Event(), threading.Event()

    def load() -> TableScorer:
        release.wait(timeout=60)
        loaded.set()
        return TableScorer(default=0.1)

    guard = guard_with(LazyScorer("large", load))
    outcome = given_up(RUNS["sync"], guard)
    assert [failure.message for failure in outcome.record.failures] == ["loading large took longer than 0.3 s"]
    release.set()
    assert loaded.wait(timeout=60)
    assert Guard(replace(guard.parts, budget_s=60.0)).run(EXCHANGE).status is Status.ANSWERED


def test_a_loaded_model_is_asked_in_the_callers_thread() -> None:
    """Only loading needs a thread to be left behind in: an answer more costs no thread more."""
    threads: list[threading.Thread] = []

    class Noting(TableScorer):
        @override
        def score(
            self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
        ) -> Score:
            threads.append(threading.current_thread())
            return super().score(exchange)

    lazy, started = LazyScorer("tiny", Noting), list[str]()
    lazy.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
        lazy.score(EXCHANGE, timeout_s=60.0)
    assert threads == [threading.current_thread()]
    assert started == []


def test_what_earlier_attempts_used_is_gone(busy: SemGradScorer) -> None:
    """The budget is the question's, so a late attempt that is judged alone gets what is left of it."""
    decision = guard_with(busy, budget_s=60.0).judge(EXCHANGE, Progress(elapsed_s=61.0))
    assert decision.failure is not None
    assert decision.failure.type == "ScoringEndedError"


def test_a_budget_that_is_not_used_up_changes_nothing() -> None:
    """Only the time is limited."""
    guard = guard_with(TableScorer(default=0.1), budget_s=60.0)
    assert {run(guard).status for run in RUNS.values()} == {Status.ANSWERED}
