"""A fault at any seam of the guard, in any form of any adapter: no answer that was not judged comes out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import pytest

from semgrad_guard.adapter_kit.contract import Case, Writer
from semgrad_guard.adapter_kit.contract_case import DOUBTFUL, GOOD, AnswerScorer, ListQueue
from semgrad_guard.guard import Guard
from tests.contract.drivers import DRIVERS

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
        case = FaultyCase(
            model=Writer([answer]),
            scorer=AnswerScorer({DOUBTFUL: 0.9, GOOD: 0.1}),
            policy={"escalate": ["human_review"], "otherwise": "abstain", "on_error": "abstain"},
            queue=ListQueue(),
            seam=seam,
            fault=fault,
        )
        try:
            got = reply(driver, case, asynchronous=way == "async")
        except Exception as error:  # noqa: BLE001 - then the caller gets no answer
            shown = repr(error)
        else:
            shown = got.everything
        if answer == DOUBTFUL or seam in JUDGING:
            assert answer not in shown
