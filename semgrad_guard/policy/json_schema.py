"""The JSON schema of policy files: for editors, and the list of words that error messages choose from."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from semgrad_guard.policy.model import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.policy.yaml_source import Place

Schema = dict[str, Any]


def policy_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a policy file."""
    return copy.deepcopy(_schema())


@cache
def _schema() -> Schema:
    made = Policy.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "semgrad-guard policy"}


def keys_at(place: Place) -> tuple[str, ...]:
    """Return the keys that the mapping at a place may have."""
    return tuple(dict.fromkeys(key for node in _nodes_at(place) for key in node.get("properties", {})))


def words_at(place: Place) -> tuple[str, ...]:
    """Return the words that the value at a place may be, when it is one of a fixed list."""
    nodes = _nodes_at(place)
    listed = [str(word) for node in nodes for word in node.get("enum", [])]
    return tuple(dict.fromkeys([*listed, *(str(node["const"]) for node in nodes if "const" in node)]))


def homes_of(key: str) -> tuple[str, ...]:
    """Return the sections where a key is valid, as people write them; the top of the file is `the top level`."""
    return tuple(dict.fromkeys(home for home, name in _all_keys(_schema(), "") if name == key))


def _all_keys(node: Schema, home: str) -> Iterator[tuple[str, str]]:
    for branch in _branches(node):
        for key, inner in branch.get("properties", {}).items():
            yield home or "the top level", key
            yield from _all_keys(inner, f"{home}.{key}".removeprefix("."))
        if "items" in branch:
            yield from _all_keys(branch["items"], f"{home}[]")


def _nodes_at(place: Place) -> list[Schema]:
    nodes = _branches(_schema())
    for part in place:
        nodes = [branch for node in nodes for inner in _inner(node, part) for branch in _branches(inner)]
    return nodes


def _inner(node: Schema, part: str | int) -> list[Schema]:
    """Return the schemas of one entry of what a schema describes."""
    if isinstance(part, int):
        return [cast("Schema", node["items"])] if "items" in node else []
    if part in node.get("properties", {}):
        return [node["properties"][part]]
    rest = node.get("additionalProperties")
    return [cast("Schema", rest)] if isinstance(rest, dict) else []


def _branches(node: Schema) -> list[Schema]:
    """Return the alternatives of a schema, references followed."""
    if "$ref" in node:
        return _branches(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    kinds = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [branch for kind in kinds for branch in _branches(kind)] or [node]
