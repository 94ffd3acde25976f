"""What the caller gets for a step that ends the question."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from semgrad_guard.flow import (
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Decision,
    Exchange,
    Outcome,
    Settling,
    Status,
)
from semgrad_guard.routing import Settled, settle
from tests.records import make_record

EXCHANGE = Exchange(answer="Paris")


@pytest.mark.parametrize(
    ("step", "settled"),
    [
        (Accept(), Settled("Paris", Status.ANSWERED)),
        (AnswerWithWarning(), Settled("Paris", Status.WARNED)),
        (AnswerWithWarning(warning="Doubtful:"), Settled("Doubtful:\n\nParis", Status.WARNED)),
        (Abstain(message="I do not know."), Settled("I do not know.", Status.ABSTAINED)),
    ],
)
def test_each_ending_says_which_text_and_what_kind_of_text(step: Settling, settled: Settled) -> None:
    """The text goes out as it is."""
    assert settle(step, EXCHANGE) == settled


@pytest.mark.parametrize(
    "answer",
    [
        '{"city": "Paris"}',
        '  {"city": "Par',  # cut off
        '["Paris", "Rome"]',
        "[]",
        "<answer><city>Paris</city></answer>",
        '```json\n{"city": "Paris"}\n```',
        "~~~\nprint('Paris')\n~~~\n",
    ],
)
def test_a_warning_never_stands_before_data(answer: str) -> None:
    """A parser could not read it any more; the findings hold the warning."""
    step = AnswerWithWarning(warning="Doubtful:")
    assert settle(step, Exchange(answer=answer)) == Settled(answer, Status.WARNED)


@pytest.mark.parametrize(
    "answer",
    [
        "[1] says that it is Paris.",
        "42",
        "true",
        '"Paris"',
        "Write `{}` for it.",
        "",
        "```\na\n``` and ```\nb\n``` do.",
    ],
)
def test_a_warning_stands_before_what_people_read(answer: str) -> None:
    """Brackets, numbers and a piece of code alone make no data."""
    assert settle(AnswerWithWarning(warning="Doubtful:"), Exchange(answer=answer)).text == f"Doubtful:\n\n{answer}"


def test_every_step_that_settles_is_tested_here() -> None:
    """A new ending must say what the caller gets."""
    assert set(get_args(Settling)) == {Accept, AnswerWithWarning, Abstain}


@pytest.mark.parametrize("status", Status)
def test_only_texts_of_a_model_or_a_person_count_as_given(status: Status) -> None:
    """A status that nobody thought of here must not let an answer count as given."""
    decision = Decision(step=Accept(), rule="r", why="w", exchange_id=EXCHANGE.id)
    attempts = (Attempt(EXCHANGE, decision),)
    record = replace(make_record(), attempts=attempts)
    outcome = Outcome(text="", status=status, decision=decision, exchange=EXCHANGE, attempts=attempts, record=record)
    assert outcome.withheld is (status not in {Status.ANSWERED, Status.WARNED, Status.REVIEWED})
