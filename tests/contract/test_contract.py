"""Every form of every adapter keeps one contract; the checks themselves ship with the adapter kit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from typing_extensions import override

from semgrad_guard.adapter_kit.contract import Case, Check, Driver, Writer, checks_for
from semgrad_guard.adapter_kit.contract_case import GOOD, AnswerScorer
from semgrad_guard.errors import OptionError
from tests.contract.drivers import DRIVERS, SAME_PROMPT, OwnFramework

if TYPE_CHECKING:
    import threading

    from semgrad_guard.flow import Exchange, Score

CHECKS = [check for driver in DRIVERS for check in checks_for(driver)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_contract(check: Check) -> None:
    """What users may rely on does not depend on the framework."""
    check()


@dataclass
class WholeExchangeScorer(AnswerScorer):
    """Scores all that the model read and wrote."""

    @override
    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        whole = repr((exchange.prompt, exchange.answer, exchange.question, exchange.passages))
        self.table = {exchange.answer: crc32(whole.encode()) / 2**32}
        return super().score(exchange, timeout_s=timeout_s, cancel=cancel)


def confidence_of(driver: Driver, *, asynchronous: bool) -> tuple[object, float | None]:
    """Prompt that a form made, and the confidence that it gave."""
    case = Case(model=Writer([GOOD]), scorer=WholeExchangeScorer(), policy={"accept": 0.0})
    if asynchronous:
        asyncio.run(driver.aask(case))
    else:
        driver.ask(case)
    (record,) = case.sink.records
    return case.scorer.seen[0].prompt, record.attempts[-1].decision.confidence.value


def test_the_same_prompt_and_answer_have_the_same_confidence() -> None:
    """The forms of LangChain make one prompt.

    The other frameworks make their own, so the contract compares all by question and answer alone.
    """
    found = {confidence_of(driver, asynchronous=way) for driver in SAME_PROMPT for way in (False, True)}
    assert len(found) == 1


def test_a_misspelt_ability_is_refused() -> None:
    """Left alone, it would leave out the checks that it stands for."""
    driver = OwnFramework()
    driver.abilities = frozenset({"sync", "fallbak"})
    with pytest.raises(OptionError, match="fallback"):
        checks_for(driver)
