"""Finds all mistakes of a policy file, not only the first: each is mended in a copy, and the copy is read again."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from semgrad_guard.policy.mistakes import MISSING, UNKNOWN, holds, keys_at, keys_of, nearest, nodes_at, place_of, reason
from semgrad_guard.policy.model import Policy
from semgrad_guard.policy.yaml_source import MAX_VALUES, Document, Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from semgrad_guard.policy.mistakes import Schema


@dataclass(frozen=True, slots=True)
class Mistake:
    """A mistake of a policy file and the place of it."""

    place: Place
    why: str
    misspelt: bool = False
    """Whether a key is wrong and not a value."""


def survey(document: Document, env: Mapping[str, str]) -> tuple[Policy | None, list[Mistake]]:
    """Return what a file says, and all mistakes in it, those of the spelling first.

    pydantic alone stops early: it compares sections with each other only when each is right, and of a misspelt key it
    also says that the right one is missing. So every mistake found is mended in a copy, and the copy is read again.

    Args:
        document: the data with its line numbers.
        env: where `${NAME}` values come from.

    Returns:
        The policy, with stand-ins for what was wrong, or `None` if nothing can be made of the file; and the mistakes.
    """
    draft = _Draft(document.data)
    draft.noted.update(place for place, _ in document.mistakes)
    found: list[Mistake] = []
    for _ in range(_MOST_ROUNDS):
        try:
            return Policy.model_validate(draft.data, context={"env": env}), found
        except ValidationError as error:
            seen, is_mended = _one_round(draft, error)
        found += seen
        if not is_mended:
            break
    return None, found


_MOST_ROUNDS = 30
"""How often a file is read again after mending; each round takes the mistakes of one level of nesting."""


def _one_round(draft: _Draft, error: ValidationError) -> tuple[list[Mistake], bool]:
    """Mend what one reading of a draft found; return what is new of it, and whether anything was mended."""
    by_place: dict[Place, ErrorDetails] = {}
    for details in error.errors(include_url=False):
        by_place.setdefault(place_of(details, draft.data), details)
    seen = {
        place: Mistake(draft.origin(place), reason(details, place, draft.data), details["type"] == UNKNOWN)
        for place, details in by_place.items()
    }
    respelt = {place for place, mistake in seen.items() if mistake.misspelt and draft.respell(place)}
    found = [seen[place] for place in respelt]
    is_mended = bool(respelt)
    for place in sorted(seen.keys() - respelt, key=_ordered, reverse=True):  # from the end: items keep their index
        if by_place[place]["type"] == MISSING and draft.has(place):
            continue
        if not draft.is_noted(seen[place].place):
            found.append(seen[place])
        draft.noted.add(seen[place].place)
        is_mended |= draft.mend(place)
    return found, is_mended


def _ordered(place: Place) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (-1, str(part)) for part in place]


_STAND_INS: Mapping[str, object] = {
    "accept": 0.5,
    "match": {"tags": ["stand-in"]},
    "max_error_rate": 0.1,
    "name": "stand-in",
    "url": "sqlite:///stand-in.db",
}
"""Values of keys that a file must give, and of those that another key needs."""

_OF_TYPES: Mapping[str, tuple[object, ...]] = {
    "string": ("stand-in",),
    "number": (0.5, 1.5),
    "integer": (1, -1, 2),
    "boolean": (False,),
}

_DEEPEST = 50
"""How deep data is copied; data from code may even contain itself."""


def _stand_in(place: Place) -> object:
    """Return a value that may stand at a place; `None` if none is known."""
    if place[-1] in _STAND_INS:
        return _STAND_INS[str(place[-1])]
    for node in nodes_at(place):
        words = node.get("enum", [node["const"]] if "const" in node else None)
        for value in words or _OF_TYPES.get(str(node.get("type")), ()):
            if not isinstance(value, int | float) or _is_within(value, node):
                return value
    return None


def _is_within(value: float, node: Schema) -> bool:
    least, most = node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum"))
    return (least is None or value > least) and (most is None or value < most)


class _Draft:
    """A copy of a file's data in which mistakes are mended; it knows where each value stands in the file."""

    def __init__(self, data: object) -> None:
        self._copies: list[Any] = []
        self._renamed: dict[int, dict[Any, Any]] = {}
        self._indices: dict[int, list[int]] = {}
        self.data = self._copied(data, _DEEPEST)
        self.noted: set[Place] = set()
        """Places in the file whose mistake is known."""
        self._mended: set[Place] = set()
        """Places in the file where something was mended: what is wrong there now is no mistake of the file."""
        self._replaced: set[Place] = set()

    def _copied(self, value: Any, depth: int) -> Any:
        if not isinstance(value, dict | list | tuple) or depth == 0 or len(self._copies) > MAX_VALUES:
            return value
        made: Any = dict(value) if isinstance(value, dict) else list(value)
        self._copies.append(made)  # kept, so that no other object gets the same id
        if isinstance(made, list):
            self._indices[id(made)] = list(range(len(made)))
        for key in keys_of(made):
            made[key] = self._copied(made[key], depth - 1)
        return made

    def origin(self, place: Place) -> Place:
        """Return where a place of the draft stands in the file."""
        found: Place = ()
        node: Any = self.data
        for number, part in enumerate(place):
            if not holds(node, part):
                return (*found, *place[number:])
            inside: Any = node
            old: str | int | None = (
                self._indices[id(inside)][int(part)]
                if isinstance(inside, list)
                else self._renamed.get(id(inside), {}).get(part)
            )
            found, node = (*found, part if old is None else old), node[part]
        return found

    def is_noted(self, origin: Place) -> bool:
        """Return whether a mistake there is known, or only follows from what was mended there."""
        return origin in self.noted or origin in self._mended

    def has(self, place: Place) -> bool:
        """Return whether the draft has a value at a place."""
        return bool(place) and holds(self._at(place[:-1]), place[-1])

    def respell(self, place: Place) -> bool:
        """Put the nearest right key in the place of a wrong one; return whether there is one that is still free."""
        key, guess, parent = place[-1], nearest(str(place[-1]), keys_at(place[:-1])), self._at(place[:-1])
        if guess is None or (isinstance(parent, dict) and guess in parent):
            return False
        if isinstance(parent, str):  # a step that is only a word
            return self._set(place[:-1], guess)
        parent[guess] = parent.pop(key)
        self._renamed.setdefault(id(parent), {})[guess] = key
        return True

    def mend(self, place: Place) -> bool:
        """Put a right value in the place of a wrong or missing one, or take it away; return whether that was possible.

        A value that is taken away may be missed elsewhere in the file, so that is the last resort.
        """
        if not place:
            return False
        section, origin = self.origin(place[:-1]), self.origin(place)
        self._mended |= {section, origin}
        if isinstance(place[-1], str):
            self._mended.add((*section, place[-1]))
        stand_in = None if origin in self._replaced else _stand_in(place)
        self._replaced.add(origin)
        if stand_in is not None and (self.has(place) or place[-1] in _STAND_INS):
            return self._set(place, deepcopy(stand_in))
        is_word = isinstance(self._at(place[:-1]), str)
        return self._remove(place[:-1] if is_word else place)

    def _at(self, place: Place) -> Any:
        node: Any = self.data
        for part in place:
            if not holds(node, part):
                return None
            node = node[part]
        return node

    def _set(self, place: Place, value: object) -> bool:
        """Set a value; sections that lead to it are made, also from a word that stands for a section."""
        node: Any = self.data
        for part, following in pairwise(place):
            inner = node[part] if holds(node, part) else None
            if not isinstance(inner, dict | list):
                node[part] = {inner: {}} if inner == following else {}
            node = node[part]
        node[place[-1]] = value
        return True

    def _remove(self, place: Place) -> bool:
        if not self.has(place):
            return False
        parent: Any = self._at(place[:-1])
        last: Any = place[-1]
        if isinstance(parent, list):
            del self._indices[id(parent)][int(last)]
        del parent[last]
        return True
