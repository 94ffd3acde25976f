"""Recognises what repeats a withheld answer.

A framework's value may hold an answer many times: in other keys of a mapping, in earlier messages of the same turn, in
metadata, in the arguments of a tool call. `Withheld` says whether a text repeats what the caller must not get; the
cleaner takes such texts out of values.

What was there before the answer stays: the question, the passages, the conversation. So an answer that is a word of a
passage takes no passage away.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from semgrad_guard.adapter_kit.findings import unescaped
from semgrad_guard.texts import one_form
from semgrad_guard.wire import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from semgrad_guard.flow import Exchange, Outcome

SENTENCE = 4
"""Words from which a sentence of a withheld answer, or an excerpt of it, is searched for on its own."""
RUN = 8
"""Longer sentences are searched for as runs of this many words, so that a copy that was cut short is found too."""
SNIPPET = 8
"""Words from which a text that is part of a passage counts as quoted from it."""
CHANCE = 24
"""An answer of small words alone (`no`, `it is not`) is part of longer texts by chance; these do not hold it."""

_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
"""A word; scripts without spaces between words count each sign."""
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d+)?\s*\Z", re.ASCII)
_FENCE = re.compile(r"^\s*```\w*\s*|(?<!\s)\s*```\s*$")
_SMALL_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be but by can did do does for from had has have he i if in is it its my no not of on or "
        "she so that the their them there they this to was we were will with yes you your true false"
    )
)


def words_of(text: str) -> str:
    """Return the words of a text in one spelling, separated and enclosed by single spaces.

    Case, white space, punctuation, invisible signs and Unicode's different forms of one letter make no difference. A
    text without a word, such as `?!`, is returned as its signs.
    """
    plain = one_form(text).casefold()
    plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Cf")
    return f" {' '.join(_WORD.findall(plain) or plain.split())} "


class Withheld:
    """What the caller of one question must not get, and how to recognise it.

    Args:
        answers: the answers that are not given.
        question: the user's question.
        passages: the passages, and whatever else was there before the answers.
        prompts: all that the model read; what stands under a passage's name stays where it is part of one.
        instead: what the caller gets.
    """

    def __init__(
        self,
        answers: Iterable[str],
        *,
        question: str | None = None,
        passages: Iterable[str] = (),
        prompts: Iterable[str] = (),
        instead: str = "",
    ) -> None:
        """Take the answers apart."""
        texts = [answer for answer in answers if answer.strip()]
        self.instead, self.question = instead, question
        self._answers = {words_of(text) for text in texts}
        self._numbers = {float(text) for text in texts if _NUMBER.match(text)}
        self._parsed = [parsed for text in texts if (parsed := _parsed(text)) is not None]
        leaves = [leaf for parsed in self._parsed for leaf in _leaves(parsed) if leaf.strip()]
        self._equal = self._answers | {words_of(leaf) for leaf in leaves}
        asked = words_of(question or "")
        pieces = {piece for text in (*texts, *leaves) for piece in _long_pieces(text)}
        self._long = {piece for piece in pieces if piece not in asked} | {a for a in self._answers if _n(a) >= SENTENCE}
        self._asked = asked
        before = {words_of(text) for text in (question or "", *passages, *prompts)}
        self._prompts = sorted(before, key=len, reverse=True)
        # A text from before that is part of an answer would hide the answer's copies: only places tell these apart.
        self._known = [text for text in self._prompts if _n(text) and not any(text in a for a in self._answers)]

    def holds(self, text: str, *, passage: bool = False) -> bool:
        """Return whether a text repeats a withheld answer.

        Found are the whole answer as whole words, each of its sentences of `SENTENCE` words and more, and a text that
        is an excerpt of it; escaped as in JSON or Python as well.

        Args:
            text: any text of a value.
            passage: whether the text's place says that it is a passage. What the model read stays there, and an answer
                of one word does not count as repeated.
        """
        return any(self._holds(words, passage=passage) for words in {words_of(text), words_of(unescaped(text))})

    def is_copy(self, text: str) -> bool:
        """Return whether a text is a withheld answer and nothing else."""
        return words_of(text) in self._answers

    def is_parsed(self, value: object) -> bool:
        """Return whether a value of plain JSON is what a withheld answer says in JSON, or a part of it."""
        return any(value == part for parsed in self._parsed for part in _containers(parsed))

    def is_number(self, value: float) -> bool:
        """Return whether a number is a withheld answer."""
        return value in self._numbers

    def _holds(self, words: str, *, passage: bool) -> bool:
        if not _n(words) or words in self._known or (passage and words in self._prompts):
            return False
        if words in self._equal:
            return True
        if passage and any(words in text for text in self._prompts):
            return False
        if _n(words) >= SENTENCE and words not in self._asked and any(words.rstrip() in a for a in self._answers):
            return True
        rest = words
        for known in self._known:
            rest = rest.replace(known, " \n ")
        short = (answer for answer in self._answers if not passage or _n(answer) > 1)
        found = any(piece in rest for piece in self._long) or any(_stands_in(answer, rest) for answer in short)
        is_quoted = _n(words) >= SNIPPET and any(words in known for known in self._known)
        return found and not is_quoted


def _n(words: str) -> int:
    """Return the number of words that `words_of` found."""
    return len(words.split())


def _stands_in(answer: str, text: str) -> bool:
    """Return whether an answer is part of a text, and not by chance."""
    if answer not in text:
        return False
    chance = all(word in _SMALL_WORDS or len(word) == 1 for word in answer.split())
    return not chance or _n(text) <= CHANCE or text.startswith(answer) or text.endswith(answer)


def _long_pieces(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        words = words_of(sentence).split()
        if len(words) >= SENTENCE:
            for start in range(max(1, len(words) - RUN + 1)):
                yield f" {' '.join(words[start : start + RUN])} "


def _parsed(text: str) -> Any:
    """Return what an answer says in JSON; `None` where it is none."""
    try:
        parsed = read_json(_FENCE.sub("", text))
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict | list) else None


def _containers(parsed: object) -> Iterator[object]:
    if isinstance(parsed, dict | list) and parsed:
        yield parsed
        for part in parsed.values() if isinstance(parsed, dict) else parsed:
            yield from _containers(part)


def _leaves(parsed: object) -> Iterator[str]:
    if isinstance(parsed, str):
        yield parsed
    elif isinstance(parsed, dict | list):
        for part in parsed.values() if isinstance(parsed, dict) else parsed:
            yield from _leaves(part)


def withheld_by(outcome: Outcome) -> Withheld | None:
    """Return what the caller does not get of an outcome; `None` where every answer was given.

    An answer that is part of the given text (with a warning before it, say) is given. The prompt's messages up to the
    question, and what tools said after it, were there before the answer; what the model said after it was not.
    """
    answers = {attempt.exchange.answer for attempt in outcome.attempts} | {outcome.exchange.answer}
    missing = {answer for answer in answers if outcome.withheld or answer.strip() not in outcome.text}
    if not any(answer.strip() for answer in missing):
        return None
    exchanges = [*(attempt.exchange for attempt in outcome.attempts), outcome.exchange]
    prompts = {text for exchange in exchanges for text in _read(exchange)}
    # What an adapter took for a passage may have been changed since; what the model read was there before the answer.
    read = "".join(map(words_of, prompts))
    passages = {text for exchange in exchanges for p in exchange.passages for text in (p.text, p.source or "")}
    return Withheld(
        missing,
        question=outcome.exchange.question,
        passages={text for text in passages if not read.strip() or words_of(text) in read},
        prompts=prompts,
        instead=outcome.text,
    )


def _read(exchange: Exchange) -> Iterator[str]:
    """Yield the texts of a prompt that are not the model's own words about this question."""
    if isinstance(exchange.prompt, str):
        yield exchange.prompt
        return
    at = turn_start([(m.role == "user", m.content) for m in exchange.prompt], exchange.question)
    for index, message in enumerate(exchange.prompt):
        if index <= at or message.role not in {"assistant", "user"}:
            yield message.content


def turn_start(messages: Sequence[tuple[bool, str]], question: str | None) -> int:
    """Return the index of the message that asks the question: the last of the user's that holds it, else their last.

    -1 where the user said nothing.

    Args:
        messages: for each message whether the user said it, and its text.
        question: the question.
    """
    said = [(index, text) for index, (by_user, text) in enumerate(messages) if by_user]
    asking = [index for index, text in said if question and words_of(question) in words_of(text)]
    return (asking or [index for index, _ in said] or [-1])[-1]
