"""Takes copies of a withheld answer out of the values that come out beside it.

`Cleaner` walks a value and returns one of the same type without those texts. An adapter tells it how its own types are
taken apart; texts, numbers, mappings, lists and plain objects are known here.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from semgrad_guard.adapter_kit.findings import LEFT_OUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from semgrad_guard.adapter_kit.withheld import Withheld

Place = tuple[str | int, ...]
"""Keys and indices that lead to a part of a value."""

MAX_DEPTH = 24
"""Levels of a value that are walked; what lies deeper is left out where it repeats the answer."""
MAX_LEVELS, MAX_PARTS = 6, 10_000
"""Levels and parts of an object of an unknown type that are read."""
_NO_TEXT = (type, FunctionType, MethodType, ModuleType)

UNKNOWN: Any = object()
"""What an adapter's function gives for a value that is not of its framework's own types."""


QUESTION_KEYS = frozenset({"question", "input", "query"})
"""Keys of the user's question, at the first level of a value; it stays as it is."""
PASSAGE_KEYS = frozenset(
    {"context", "contexts", "documents", "docs", "passages", "source_documents", "sources", "chunks"}
)
"""Keys of retrieved texts; what the model read stays."""
ORIGIN_KEYS = frozenset({"source", "title", "url", "id", "file_path", "file_name"})
"""Keys that say where a passage comes from; in the passage's metadata, they stay."""


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
        is_kept = key in (ORIGIN_KEYS if of_passage else () if place else QUESTION_KEYS)
        if is_kept and isinstance(part, str):
            return part
        at = (*place, key if isinstance(key, int) else str(key))
        return self.clean(part, at, passage=passage or of_passage or key in PASSAGE_KEYS)

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
