"""The program's log holds no text of an exchange, whatever fails and whatever the error says."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from semgrad_guard.errors import FallbackFailedError, ReviewError, in_log
from semgrad_guard.flow import HumanReview
from semgrad_guard.guard import Guard
from tests.fakes import LadderDecider, MemorySink, guard_of
from tests.review_queues import exchange

SECRET = "the patient has a rare disease"  # noqa: S105 - a text to be looked for


class Broken:
    """Fails at everything, and says what it was given."""

    profile = None

    def __getattr__(self, name):
        def fail(*_: object, **__: object):
            msg = f"cannot {name}: {SECRET}"
            raise ValueError(msg)

        return fail


@pytest.mark.parametrize("part", ["scorer", "calibrator", "decider", "queue", "sink"])
def test_no_text_of_an_exchange_reaches_the_log(caplog, part):
    """`log_text: false` would be no promise if an exception's words went round it."""
    caplog.set_level(logging.DEBUG)
    guard = guard_of(decider=LadderDecider([HumanReview(message="later")]), sink=MemorySink())
    guard = Guard(replace(guard.parts, **{part: Broken()}))
    guard.run(exchange(1, answer=SECRET))
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text
    assert not any(record.exc_info for record in caplog.records), "a traceback ends with the error's words"


def test_our_own_words_are_logged_unless_they_repeat_anothers():
    """They say what to do."""
    assert in_log(ReviewError("run this")) == "ReviewError: run this"
    error = FallbackFailedError(f"failed: {SECRET}")
    error.__cause__ = ValueError(SECRET)
    assert in_log(error) == "FallbackFailedError, after ValueError"
    with pytest.raises(ValueError, match=SECRET) as caught:
        Broken().anything()
    assert in_log(caught.value).startswith("ValueError in test_program_log.py:")
