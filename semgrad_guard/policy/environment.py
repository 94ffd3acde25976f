"""`${NAME}` and `${NAME:-default}` in the text values of a policy: where they are allowed, and how they are filled in.

Numbers, words of a fixed list, tags and metadata take no environment values: a policy should not mean something else
on another machine by accident.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pydantic import ValidationInfo

_REFERENCE = re.compile(r"\$\{([^}]*)\}?")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def has_reference(text: str) -> bool:
    """Return whether a text asks for an environment value."""
    return "${" in text


def expand(value: object, info: ValidationInfo) -> object:
    """Return a text with its environment values filled in; anything else comes back as it is.

    The environment is the `env` of the validation context, else that of the process.
    """
    if not isinstance(value, str) or not has_reference(value):
        return value
    context: object = info.context
    env: object = cast("Mapping[str, object]", context).get("env") if isinstance(context, Mapping) else None
    known = cast("Mapping[str, str]", env) if isinstance(env, Mapping) else os.environ
    return _REFERENCE.sub(lambda match: _value(match, known), value)


def _value(match: re.Match[str], env: Mapping[str, str]) -> str:
    inside = _INSIDE.fullmatch(match[1]) if match[0].endswith("}") else None
    if inside is None:
        raise PydanticCustomError(
            "environment", "`{seen}` is not an environment value: write ${NAME} or ${NAME:-default}", {"seen": match[0]}
        )
    found = env.get(inside["name"]) or inside["default"]
    if found is None:
        raise PydanticCustomError(
            "environment",
            "the environment variable {name} is not set or empty: set it, or write ${{name}:-default}",
            {"name": inside["name"]},
        )
    return found


def refuse(value: object) -> object:
    """Return a value that asks for no environment value, looking into lists and mappings."""
    if isinstance(value, str) and has_reference(value):
        raise PydanticCustomError("environment", "environment values are not allowed here: write the value itself")
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            refuse(key)
            refuse(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in cast("list[object]", value):
            refuse(inner)
    return value
