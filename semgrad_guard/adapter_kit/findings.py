"""How an outcome is explained to the caller.

A caller who does not get an answer must not read it in the explanation either. The guard's own words never hold it,
but those of foreign parts may: a review queue that raises `could not store 'Lyon'`, a scorer that prints its input, a
database driver that lists the values of a failed statement. Such a text is left out, and the type of the error stays.

* `findings` is what callers read of an outcome, as JSON values.
* `shown_decision` is the last decision as the caller may read it, and `shown_error` what failed.
* `held_back` is the exception in the place of a withheld answer.
* `without_answers` is what both are made with: it leaves out a text that repeats an answer.

The outcome itself is not changed: a `Record` is logged whole where the policy says `log_text: true`, with the answer in
it, and without any free text elsewhere (`semgrad_guard.wire`).
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.wire import answered_attempt, signals_fields, summary_fields

if TYPE_CHECKING:
    from semgrad_guard.flow import Decision, Failure, Json, Outcome

LEFT_OUT = "[left out]"
"""What an explanation has in the place of an error's message that repeats the answer."""
SHORT = 4
"""Letters and digits below which an answer is looked for as a word of its own: `no` is part of many words."""
EXCERPT = 24
"""Letters and digits in a row that make an excerpt of a longer answer: error messages are often cut."""

_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|.)", re.DOTALL)


def findings(outcome: Outcome) -> dict[str, Json]:
    """Return what the guard found as plain JSON values, as callers read them under `semgrad`.

    Confidence and score are those of the attempt that was given, held back or handed on. No text of a withheld answer
    is in it. Keys of a score are there, as `None`, where nothing was scored.
    """
    judged = answered_attempt(outcome.record) or outcome.attempts[-1]
    score = judged.decision.score
    return {
        **dict.fromkeys(("method", "score", "scorer", "proxy")),
        **summary_fields(outcome.record),
        "why": shown_decision(outcome).why,
        "withheld": outcome.withheld,
        "author": judged.exchange.author,
        "signals": dict(signals_fields(score.signals)) if score else {},
        "error": shown_error(outcome),
    }


def shown_decision(outcome: Outcome) -> Decision:
    """Return the last decision as the caller may read it: a text that repeats an answer not given is left out."""
    decision, why = outcome.decision, outcome.decision.why
    for failure in _failures(outcome):
        if without_answers(failure.message, outcome) != failure.message:
            why = why.replace(failure.message, LEFT_OUT)
    shown = decision.failure
    if shown is not None:
        shown = replace(shown, message=without_answers(shown.message, outcome))
    # The policy's own words may hold a short answer such as "no" by chance.
    return replace(decision, why=without_answers(why, outcome, shortest=SHORT), failure=shown)


def shown_error(outcome: Outcome) -> str | None:
    """Return what failed first, as the caller may read it; only its type where the message repeats the answer."""
    failure = next(iter(_failures(outcome)), None)
    if failure is None:
        return None
    message = without_answers(failure.message, outcome)
    return failure.type if message != failure.message else f"{failure.type}: {message}"


def held_back(outcome: Outcome) -> LowConfidenceError:
    """Return the exception that a caller gets in the place of a withheld answer; its text does not repeat the answer.

    Its `outcome` is the whole one, for handlers that need the answer.
    """
    return LowConfidenceError(shown_decision(outcome), outcome)


def without_answers(text: str, outcome: Outcome, *, shortest: int = 0) -> str:
    """Return a text, or nothing of one that repeats an answer which the caller does not get.

    An answer is found as it is, quoted, escaped as in Python or JSON, wrapped, and cut to an excerpt.

    Args:
        text: an explanation or an error's message.
        outcome: says which answers there were, and whether one was given.
        shortest: letters and digits that an answer must have to be looked for.
    """
    answers = {attempt.exchange.answer.strip() for attempt in outcome.attempts}
    not_given = (answer for answer in answers - {""} if outcome.withheld or answer not in outcome.text)
    return "" if any(len(_letters(answer)) >= shortest and _repeats(text, answer) for answer in not_given) else text


def _failures(outcome: Outcome) -> list[Failure]:
    """Return what failed; the failure that the last decision is about comes first."""
    last = outcome.decision.failure
    return [*([last] if last else []), *outcome.record.failures]


def _repeats(text: str, answer: str) -> bool:
    readings, letters = (text, _unescaped(text)), _letters(answer)
    if len(letters) < SHORT:
        words = "|".join(map(re.escape, (answer, answer.strip(string.punctuation) or answer)))
        return any(re.search(rf"(?<!\w)({words})(?!\w)", reading, re.ASCII | re.IGNORECASE) for reading in readings)
    length = min(EXCERPT, len(letters))
    excerpts = _excerpts(letters, length)
    return any(not excerpts.isdisjoint(_excerpts(_letters(reading), length)) for reading in readings)


def _unescaped(text: str) -> str:
    """Return a text with the escapes of Python and JSON undone; those that stand for no letter become spaces."""
    plain = _ESCAPED.sub(lambda found: chr(int(code, 16)) if (code := found[1] or found[2]) else " ", text)
    return plain.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # JSON escapes rare letters in two halves


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _excerpts(letters: str, length: int) -> set[str]:
    return {letters[start : start + length] for start in range(len(letters) - length + 1)}
