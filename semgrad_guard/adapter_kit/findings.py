"""Explain an outcome to the caller, without revealing a withheld answer.

A caller who does not get an answer must not read it in the explanation either. The guard's own messages never contain
it, but those of other components may: a review queue that raises `could not store 'Lyon'`, a scorer that prints its
input, a database driver that lists the values of a failed statement. Such a message is left out; its type stays.

* `findings` returns what callers see of an outcome, as JSON values.
* `text_for` returns the text that takes the answer's place in a value.
* `shown_decision` returns the last decision as the caller may see it, and `shown_error` what failed.
* `held_back` returns the exception that replaces a withheld answer.
* `without_answers` is used by all of them: it leaves out a text that repeats an answer.

The outcome itself is not changed. With `log_text: true` in the policy, a `Record` is logged whole, answer included;
otherwise it is logged without any free text (`semgrad_guard.wire`).
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.flow import AnswerWithWarning, Status
from semgrad_guard.wire import answered_attempt, signals_fields, summary_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Decision, Failure, Json, Outcome, Step

LEFT_OUT = "[left out]"
"""Replaces an error's message that repeats the answer."""
SHORT = 4
"""Answers with fewer letters and digits are searched for as whole words: `no` is part of many words."""
EXCERPT = 24
"""Length, in letters and digits, of the excerpts that are searched for: error messages are often cut."""

_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|.)", re.DOTALL)


def findings(outcome: Outcome, *, left_out: Sequence[str] = ()) -> dict[str, Json]:
    """Return what the guard found as plain JSON values; callers see them under `semgrad`.

    Confidence and score are those of the attempt that was returned, withheld or sent to review. No text of a withheld
    answer is included. Without a score, the keys of the score are `None`.

    Args:
        outcome: how the question ended.
        left_out: names of the other places of the value whose text repeated an answer that the caller does not get.
    """
    judged = answered_attempt(outcome.record) or outcome.attempts[-1]
    score = judged.decision.score
    return {
        **dict.fromkeys(("method", "score", "scorer", "proxy")),
        **summary_fields(outcome.record),
        "why": shown_decision(outcome).why,
        "confidence_why": without_answers(judged.decision.confidence.why, outcome, shortest=SHORT),
        "warning": _warning(outcome.decision.step),
        "withheld": outcome.withheld,
        "author": judged.exchange.author,
        "signals": dict(signals_fields(score.signals)) if score else {},
        "error": shown_error(outcome),
        "left_out": list(left_out),
    }


def _warning(step: Step) -> str | None:
    """Return the policy's warning, whether or not the value has a place for it before the answer."""
    return step.warning or None if isinstance(step, AnswerWithWarning) else None


def text_for(outcome: Outcome, *, is_field: bool) -> str:
    """Return the text that takes the answer's place in a value.

    Args:
        outcome: how the question ended.
        is_field: whether the place is a field of a mapping or an object, or the value is no text at all. Programs read
            it, so it never gets the policy's warning, which `findings` hold.
    """
    return outcome.exchange.answer if is_field and outcome.status is Status.WARNED else outcome.text


def shown_decision(outcome: Outcome) -> Decision:
    """Return the last decision as the caller may see it, without texts that repeat a withheld answer."""
    decision, why = outcome.decision, outcome.decision.why
    for failure in _failures(outcome):
        if without_answers(failure.message, outcome) != failure.message:
            why = why.replace(failure.message, LEFT_OUT)
    shown = decision.failure
    if shown is not None:
        shown = replace(shown, message=without_answers(shown.message, outcome))
    # The policy's own text may contain a short answer such as "no" by chance.
    return replace(decision, why=without_answers(why, outcome, shortest=SHORT), failure=shown)


def shown_error(outcome: Outcome) -> str | None:
    """Return the first failure as the caller may see it; only its type if its message repeats the answer."""
    failure = next(iter(_failures(outcome)), None)
    if failure is None:
        return None
    message = without_answers(failure.message, outcome)
    return failure.type if message != failure.message else f"{failure.type}: {message}"


def held_back(outcome: Outcome) -> LowConfidenceError:
    """Return the exception that replaces a withheld answer; its message does not repeat the answer.

    Its `outcome` is complete, for handlers that need the answer.
    """
    return LowConfidenceError(shown_decision(outcome), outcome)


def no_place(outcome: Outcome) -> LowConfidenceError:
    """Return the exception for an object that was made of another text than the one to give, such as a reviewer's."""
    error = held_back(outcome)
    error.add_note("the text to give in the object's place is none of that type")
    return error


def without_answers(text: str, outcome: Outcome, *, shortest: int = 0) -> str:
    """Return a text unchanged, or the empty text if it repeats an answer that the caller does not get.

    An answer is recognised verbatim, quoted, escaped as in Python or JSON, wrapped, or cut to an excerpt.

    Args:
        text: an explanation or an error's message.
        outcome: contains the answers, and whether one was returned.
        shortest: answers with fewer letters and digits are not searched for.
    """
    answers = {attempt.exchange.answer.strip() for attempt in outcome.attempts}
    not_given = (answer for answer in answers - {""} if outcome.withheld or answer not in outcome.text)
    return "" if any(len(_letters(answer)) >= shortest and _repeats(text, answer) for answer in not_given) else text


def _failures(outcome: Outcome) -> list[Failure]:
    """Return all failures; the one that led to the last decision comes first."""
    last = outcome.decision.failure
    return [*([last] if last else []), *outcome.record.failures]


def _repeats(text: str, answer: str) -> bool:
    readings, letters = (text, unescaped(text)), _letters(answer)
    if len(letters) < SHORT:
        words = "|".join(map(re.escape, (answer, answer.strip(string.punctuation) or answer)))
        return any(re.search(rf"(?<!\w)({words})(?!\w)", reading, re.ASCII | re.IGNORECASE) for reading in readings)
    length = min(EXCERPT, len(letters))
    excerpts = _excerpts(letters, length)
    return any(not excerpts.isdisjoint(_excerpts(_letters(reading), length)) for reading in readings)


def unescaped(text: str) -> str:
    """Return a text with Python and JSON escapes decoded; escapes without a character code become spaces."""
    plain = _ESCAPED.sub(lambda found: chr(int(code, 16)) if (code := found[1] or found[2]) else " ", text)
    return plain.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # JSON escapes rare letters in two halves


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _excerpts(letters: str, length: int) -> set[str]:
    return {letters[start : start + length] for start in range(len(letters) - length + 1)}
