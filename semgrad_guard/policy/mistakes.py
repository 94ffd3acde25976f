"""Explains mistakes in a policy file: file, line and key, what is allowed there, and the nearest valid word."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from semgrad_guard.policy.fields import has_reference, mask_url
from semgrad_guard.policy.model import ACCEPT_KINDS, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

    from semgrad_guard.policy.yaml_source import Place

Schema = dict[str, Any]


def policy_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a policy file."""
    return copy.deepcopy(_schema())


@cache
def _schema() -> Schema:
    schema = Policy.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "semgrad-guard policy"}


def keys_at(place: Place) -> tuple[str, ...]:
    """Return the keys that the mapping at a place may have."""
    return tuple(dict.fromkeys(key for node in nodes_at(place) for key in node.get("properties", {})))


def words_at(place: Place) -> tuple[str, ...]:
    """Return the words allowed for the value at a place, if it must be one of a fixed list."""
    nodes = nodes_at(place)
    listed = [str(word) for node in nodes for word in node.get("enum", [])]
    return tuple(dict.fromkeys([*listed, *(str(node["const"]) for node in nodes if "const" in node)]))


def homes_of(key: str) -> tuple[str, ...]:
    """Return the dotted names of the sections where a key is valid; the top of the file is `the top level`."""
    return tuple(dict.fromkeys(home for home, name in _all_keys(_schema(), "") if name == key))


def _all_keys(node: Schema, home: str) -> Iterator[tuple[str, str]]:
    for branch in _branches(node):
        for key, inner in branch.get("properties", {}).items():
            yield home or "the top level", key
            yield from _all_keys(inner, f"{home}.{key}".removeprefix("."))
        if "items" in branch:
            yield from _all_keys(branch["items"], f"{home}[]")


def nodes_at(place: Place) -> list[Schema]:
    """Return the schemas that a value at a place may have."""
    nodes = _branches(_schema())
    for part in place:
        nodes = [branch for node in nodes for inner in _inner(node, part) for branch in _branches(inner)]
    return nodes


def _inner(node: Schema, part: str | int) -> list[Schema]:
    """Return the schemas of one entry of the mapping or list that a schema describes."""
    if isinstance(part, int):
        return [cast("Schema", node["items"])] if "items" in node else []
    if part in node.get("properties", {}):
        return [node["properties"][part]]
    rest = node.get("additionalProperties")
    return [cast("Schema", rest)] if isinstance(rest, dict) else []


def _branches(node: Schema) -> list[Schema]:
    """Return the alternatives of a schema, with references resolved."""
    if "$ref" in node:
        return _branches(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    kinds = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [branch for kind in kinds for branch in _branches(kind)] or [node]


SHOWN = 60
"""How many characters of a wrong value are shown."""

_KINDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping (`key: value` lines)",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "frozen_set_type": "must be a word or a list of words",
    "invalid_key": "must have text as keys",
    "int_type": "must be a whole number",
    "mapping_type": "must be a mapping (`key: value` lines)",
    "model_type": "must be a mapping (`key: value` lines)",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_unicode": "contains characters that are not valid Unicode text",
    "too_short": "must not be an empty list",
    "tuple_type": "must be a list (`- item` lines)",
}

_ACCEPT = "must be a number from 0 to 1 or {max_error_rate: 0.1, delta: 0.05}"

_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}

MISSING, UNKNOWN = "missing", "extra_forbidden"
"""pydantic's names for a key that is missing, and for one that does not exist."""

_NEEDED = {
    "accept": "the confidence that an answer needs, for example `accept: 0.7`",
    "match": "the exchanges to apply it to, for example `match: {tags: [medical]}`",
    "max_error_rate": "the highest share of wrong answers among the accepted ones, for example 0.1",
    "name": "the model to ask, for example `fallback_model: {name: big}`",
}


def nearest(word: str, allowed: tuple[str, ...]) -> str | None:
    """Return the allowed word that was probably meant."""
    return next(iter(difflib.get_close_matches(word.lower().replace("-", "_"), allowed, n=1, cutoff=0.6)), None)


def place_of(details: ErrorDetails, content: object) -> Place:
    """Return the place of an error in the file, without pydantic's own steps such as union members."""
    inner: Place = tuple(details.get("ctx", {}).get("path", ()))
    loc = (*details["loc"], *inner)
    if details["type"] in {MISSING, UNKNOWN}:
        return (*(part for part in loc[:-1] if part not in ACCEPT_KINDS), loc[-1])
    if inner:
        return tuple(part for part in loc if part not in ACCEPT_KINDS)
    data = content
    place: Place = ()
    for part in loc:
        if isinstance(data, Mapping) and part in data:
            data = cast("Mapping[object, object]", data)[part]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(cast("list[object]", data)):
            data = cast("list[object]", data)[part]
        else:
            continue
        place = (*place, part)
    return place


def _value_at(place: Place, content: object) -> object:
    data: Any = content
    for part in place:
        data = data[part] if holds(data, part) else None
    return data


def reason(details: ErrorDetails, place: Place, content: object) -> str:
    """Explain one mistake: what was seen, what is allowed, what was probably meant."""
    kind = details["type"]
    if kind in {MISSING, UNKNOWN}:
        return _missing(place) if kind == MISSING else _unknown_key(place, content)
    seen = _value_at(place, content)
    if kind == "literal_error":
        return _not_listed(seen, place)
    if kind in _LIMITS:
        return _outside(details, seen)
    if kind in _KINDS:
        expected = _ACCEPT if kind == "float_type" and place[-1] == "accept" else _KINDS[kind]
        return f"{expected}, saw {show(seen)}{_advice(kind, seen)}"
    return details["msg"]


def _missing(place: Place) -> str:
    needed = _NEEDED.get(str(place[-1]))
    return f"is missing: {needed}" if needed else "is missing"


def _unknown_key(place: Place, content: object) -> str:
    key, allowed = str(place[-1]), keys_at(place[:-1])
    is_bare = isinstance(_value_at(place[:-1], content), str)
    what = "unknown step" if is_bare else "unknown key"
    guess = nearest(key, allowed)
    homes = () if is_bare else homes_of(key)
    meant = f": did you mean `{guess}`?" if guess else "."
    if homes and not guess:
        meant = f": `{key}` belongs to {' or '.join(homes)}, check the indentation."
    return f"{what}{meant} Allowed here: {', '.join(allowed)}"


def _not_listed(seen: object, place: Place) -> str:
    allowed = words_at(place)
    guess = nearest(seen, allowed) if isinstance(seen, str) else None
    meant = f": did you mean `{guess}`?" if guess else "."
    if guess == seen:
        meant = ": write it without quotes."
    return f"saw {show(seen)}{meant} Allowed: {', '.join(allowed)}{_advice('literal_error', seen)}"


def _outside(details: ErrorDetails, seen: object) -> str:
    words, name = _LIMITS[details["type"]]
    limit = details.get("ctx", {})[name]
    why = f"must be {words} {limit:g}, saw {show(seen)}"
    if limit == 1 and isinstance(seen, int | float) and (isinstance(seen, int) or seen >= 10) and 1 < seen <= 100:
        why += f": write {seen} % as {seen / 100:g}"
    return why


def _advice(kind: str, seen: object) -> str:
    if isinstance(seen, str) and has_reference(seen):
        return "; environment values are for texts only"
    if kind == "float_type" and isinstance(seen, str) and seen.rstrip().endswith("%"):
        return "; write 70 % as 0.7"
    if kind == "string_type" and isinstance(seen, bool | int | float):
        return "; put it in quotes"
    return ""


def show(value: object) -> str:
    """Return a value as it is written in the file, shortened and with passwords hidden."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    text = mask_url(repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def holds(node: object, part: object) -> bool:
    """Return whether a value is a mapping or list with this key or index."""
    return isinstance(node, dict | list) and part in keys_of(node)


def keys_of(node: dict[Any, Any] | list[Any]) -> list[Any]:
    """Return the keys of a mapping, or the indices of a list."""
    return list(node) if isinstance(node, dict) else list(range(len(node)))
