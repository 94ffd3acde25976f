"""Finds copies of a withheld answer in what comes out beside it, and leaves them out.

A framework's value may hold an answer many times: in other keys of a mapping, in earlier messages of the same turn, in
metadata, in the arguments of a tool call. `Withheld` says whether a text repeats what the caller must not get;
`Cleaner` walks a value and returns one of the same type without those texts. An adapter tells the cleaner how its own
types are taken apart; texts, mappings, lists and plain objects are known here.

What was there before the answer stays: the question, the passages, the conversation. So an answer that is a word of a
passage takes no passage away.
"""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from semgrad_guard.adapter_kit.findings import LEFT_OUT, unescaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from semgrad_guard.flow import Exchange, Outcome

Place = tuple[str | int, ...]
"""Keys and indices that lead to a part of a value."""

SENTENCE = 4
"""Words from which a sentence of a withheld answer, or an excerpt of it, is searched for on its own."""
RUN = 8
"""Longer sentences are searched for as runs of this many words, so that a copy that was cut short is found too."""
SNIPPET = 8
"""Words from which a text that is part of a passage counts as quoted from it."""
CHANCE = 24
"""An answer of small words alone (`no`, `it is not`) is part of longer texts by chance; these do not hold it."""
MAX_DEPTH = 24
"""Levels of a value that are walked; what lies deeper is left out where it repeats the answer."""
MAX_LEVELS, MAX_PARTS = 6, 10_000
"""Levels and parts of an object of an unknown type that are read."""
_NO_TEXT = (type, FunctionType, MethodType, ModuleType)

_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
"""A word; scripts without spaces between words count each sign."""
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d+)?\s*\Z", re.ASCII)
_FENCE = re.compile(r"^\s*```\w*\s*|\s*```\s*$")
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
    plain = unicodedata.normalize("NFKC", text).casefold()
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
        parsed = json.loads(_FENCE.sub("", text))
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


UNKNOWN: Any = object()
"""What an adapter's function gives for a value that is not of its framework's own types."""


@dataclass(frozen=True, slots=True)
class KeyNames:
    """Keys of mappings whose texts say what they are."""

    questions: frozenset[str] = frozenset({"question", "input", "query"})
    """The user's question, at the first level of a value; it stays as it is."""
    passages: frozenset[str] = frozenset(
        {"context", "contexts", "documents", "docs", "passages", "source_documents", "sources", "chunks"}
    )
    """Retrieved texts; what was in the prompt stays."""
    origins: frozenset[str] = frozenset({"source", "title", "url", "id", "file_path", "file_name"})
    """Where a passage comes from; in the passage's metadata, it stays."""


KEY_NAMES = KeyNames()


class Cleaner:
    """Returns values without the texts that repeat a withheld answer; the values given are not changed.

    A text that is the answer becomes what the caller gets; one that holds it becomes `[left out]`; an object that was
    parsed from it becomes `None`, because there is no honest value for its fields.

    Args:
        withheld: what must not come out.
        own: takes the framework's types apart: called with the cleaner, a value and its place, it returns the cleaned
            value, or `UNKNOWN` for a value of another type.
        kept: places that are left alone, such as those of the answers themselves.
    """

    def __init__(
        self,
        withheld: Withheld,
        own: Callable[[Cleaner, Any, Place], Any] = lambda *_: UNKNOWN,
        kept: Iterable[Place] = (),
    ) -> None:
        """Start without a place left out."""
        self.withheld = withheld
        self._own, self._kept = own, frozenset(kept)
        self._places: dict[str, None] = {}

    @property
    def left_out(self) -> list[str]:
        """Names of the places whose text was left out, in order; names that hold the answer are left out too."""
        return list(self._places)

    def keeps(self, place: Place) -> bool:
        """Return whether a place is left alone."""
        return place in self._kept

    def note(self, place: Place) -> None:
        """Count a place as left out."""
        names = (str(part) for part in place)
        self._places[".".join(LEFT_OUT if self.withheld.holds(name) else name for name in names) or "value"] = None

    def clean(self, value: Any, place: Place = (), *, passage: bool = False) -> Any:
        """Return a value of the same type without copies of the answer.

        Args:
            value: any part of what a framework gave.
            place: where it is.
            passage: whether its place says that it is a passage.
        """
        if self.keeps(place) or value is None or isinstance(value, bool | type | FunctionType | ModuleType):
            return value
        if len(place) > MAX_DEPTH:
            return self._opaque(value, place, passage=passage)
        own = self._own(self, value, place)
        return own if own is not UNKNOWN else self._clean(value, place, passage=passage)

    def text(self, text: str, place: Place, *, passage: bool = False) -> str:
        """Return a text, or what stands in its place where it repeats the answer."""
        if not self.withheld.holds(text, passage=passage):
            return text
        self.note(place)
        return self.withheld.instead if self.withheld.is_copy(text) else LEFT_OUT

    def fields(self, values: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """Return the cleaned ones of an object's fields that changed."""
        cleaned = {name: self._entry(name, value, place) for name, value in values.items()}
        return {name: value for name, value in cleaned.items() if value is not values[name]}

    def mapping(
        self, value: Mapping[Any, Any], place: Place, *, passage: bool = False, of_passage: bool = False
    ) -> Any:
        """Return a mapping whose keys and values are cleaned; the same one where nothing changed.

        Args:
            value: the mapping.
            place: where it is.
            passage: whether its place says that it is a passage.
            of_passage: whether it is a passage's metadata.
        """
        if place and self.withheld.is_parsed(value):
            self.note(place)
            return None
        changed: dict[Any, Any] = {}
        for key, part in value.items():
            cleaned = self._entry(key, part, place, passage=passage, of_passage=of_passage)
            changed[self._key(key, place, changed)] = cleaned
        return value if _same(changed, value) else _like(value, changed)

    def _entry(self, key: Any, part: Any, place: Place, *, passage: bool = False, of_passage: bool = False) -> Any:
        """Return one part of a mapping or an object, cleaned as its name says."""
        is_kept = key in (KEY_NAMES.origins if of_passage else () if place else KEY_NAMES.questions)
        if is_kept and isinstance(part, str):
            return part
        at = (*place, key if isinstance(key, int) else str(key))
        return self.clean(part, at, passage=passage or of_passage or key in KEY_NAMES.passages)

    def _key(self, key: Any, place: Place, used: Mapping[Any, Any]) -> Any:
        """Return a key; of data, not of the program's own first level, it may be the answer itself."""
        if not isinstance(key, str) or not place or not self.withheld.holds(key):
            return key
        self.note((*place, key))
        names = (LEFT_OUT if number == 1 else f"{LEFT_OUT} {number}" for number in range(1, len(used) + 2))
        return next(name for name in names if name not in used)

    def _clean(self, value: Any, place: Place, *, passage: bool) -> Any:  # noqa: PLR0911 - one line for each kind of value
        if isinstance(value, str) and not isinstance(value, Enum):
            return self.text(value, place, passage=passage)
        if isinstance(value, int | float):
            return self._without(value, place, held=self.withheld.is_number(value))
        if isinstance(value, Mapping):
            return self.mapping(value, place, passage=passage)
        if isinstance(value, list | tuple | deque):
            return self._sequence(value, place, passage=passage)
        if isinstance(value, AbstractSet):
            parts = [self.clean(part, (*place, index), passage=passage) for index, part in enumerate(value)]
            return value if all(part in value for part in parts) else type(value)(parts)  # type: ignore[call-arg]
        if not place:
            return self._object(value)
        return self._opaque(value, place, passage=passage)

    def _sequence(self, value: Any, place: Place, *, passage: bool) -> Any:
        parts = [self.clean(part, (*place, index), passage=passage) for index, part in enumerate(value)]
        if self._in_pieces(parts, passage=passage) and parts == list(value):
            self.note(place)
            parts = [""] * len(parts)
        if len(parts) == len(value) and all(part is before for part, before in zip(parts, value, strict=True)):
            return value
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*parts)
        return type(value)(parts)

    def _in_pieces(self, parts: Sequence[Any], *, passage: bool) -> bool:
        """Return whether texts put together repeat the answer, as its tokens do; for passages, whether they are it."""
        texts = [part for part in parts if isinstance(part, str)]
        check = self.withheld.is_copy if passage else self.withheld.holds
        return 1 < len(texts) == len(parts) and any(check(between.join(texts)) for between in ("", " "))

    def _object(self, value: Any) -> Any:
        """Return the value itself, which is no text, mapping or list, with its fields cleaned."""
        own = _attributes(value)
        changed = self.fields(own, ())
        if not changed:
            return value
        copied = value.model_copy() if hasattr(value, "model_copy") else copy.copy(value)
        for name, part in changed.items():
            object.__setattr__(copied, name, part)
        return copied

    def _opaque(self, value: Any, place: Place, *, passage: bool) -> Any:
        """Return an object of a type that nobody takes apart, or `None` where it holds the answer."""
        texts = _readable(value, MAX_LEVELS, {})
        held = self._is_parsed_object(value) or any(self.withheld.holds(text, passage=passage) for text in texts)
        return self._without(value, place, held=held)

    def _is_parsed_object(self, value: Any) -> bool:
        return bool(attributes := _plain_attributes(value)) and self.withheld.is_parsed(attributes)

    def _without(self, value: Any, place: Place, *, held: bool) -> Any:
        if held:
            self.note(place)
        return None if held else value


def _same(changed: Mapping[Any, Any], value: Mapping[Any, Any]) -> bool:
    return len(changed) == len(value) and all(key in changed and changed[key] is part for key, part in value.items())


def _like(value: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Return a mapping of the same kind with other entries."""
    if type(value) is dict or not isinstance(value, dict):
        return parts
    copied = copy.copy(value)
    copied.clear()
    copied.update(parts)
    return copied


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds, by name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return {**getattr(value, "__dict__", {}), **(getattr(value, "model_extra", None) or {})}


def _plain_attributes(value: Any) -> Any:
    """Return an object as plain JSON values, where it is a pydantic object or a data class."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return _attributes(value) if is_dataclass(value) else None


def _readable(value: Any, levels: int, seen: dict[int, object]) -> Iterator[str]:
    """Yield what can be read in an object: its texts, and how it prints itself."""
    if id(value) in seen or not levels or len(seen) > MAX_PARTS or isinstance(value, _NO_TEXT):
        return
    seen[id(value)] = value  # kept alive, so that no other object gets its id
    if isinstance(value, str):
        yield str.__str__(value)
        return
    if isinstance(value, bytes | bytearray):
        yield value.decode("utf-8", "replace")
        return
    yield from _printed(value)
    inside = value if isinstance(value, Mapping) else _attributes(value)
    listed = value if isinstance(value, list | tuple | AbstractSet | deque) else ()
    for part in (*inside.keys(), *inside.values(), *listed):
        yield from _readable(part, levels - 1, seen)


def _printed(value: object) -> Iterator[str]:
    for printing in (str, repr):
        try:
            yield printing(value)
        except Exception:  # noqa: BLE001, S112 - an object that cannot print itself shows nothing
            continue
