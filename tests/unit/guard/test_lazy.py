"""Stages made at first use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.extras import Lazy
from semgrad_guard.guard.assembly import LazyScorer

if TYPE_CHECKING:
    from tests.fakes import TableScorer


def test_a_value_is_made_once_whatever_the_number_of_threads() -> None:
    """A model loaded twice would take twice the memory."""
    made: list[object] = []
    start = threading.Barrier(8)
    lazy = Lazy(lambda: made.append(object()) or made[-1])

    def use() -> None:
        start.wait()
        lazy.get()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failed_attempt_is_made_again() -> None:
    """A database that was down at the first answer may be up at the second."""
    outcomes = iter([OSError("down"), "up"])

    def make() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    lazy = Lazy(make)
    with pytest.raises(OSError, match="down"):
        lazy.get()
    assert lazy.get() == "up"


def test_a_lazy_scorer_knows_its_name_before_it_is_loaded() -> None:
    """Logs name the model without paying for it."""

    def never() -> TableScorer:
        pytest.fail("loaded too early")

    assert LazyScorer("smollm2-135m", never).name == "smollm2-135m"
