"""Helpers for all fields of a policy: their types, `${ENV}` references, hidden passwords, and lists in words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pydantic import ValidationInfo

_REFERENCE = re.compile(r"\$\{([^}]*)\}?")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def has_reference(text: str) -> bool:
    """Return whether a text refers to an environment variable."""
    return "${" in text


def expand(value: object, info: ValidationInfo) -> object:
    """Fill in the environment values of a text; any other value is returned unchanged.

    The environment is `env` in the validation context, by default that of the process.
    """
    if not isinstance(value, str) or not has_reference(value):
        return value
    context: object = info.context
    env: object = cast("Mapping[str, object]", context).get("env") if isinstance(context, Mapping) else None
    environment = cast("Mapping[str, str]", env) if isinstance(env, Mapping) else os.environ
    return _REFERENCE.sub(lambda match: _value(match, environment), value)


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
    """Return the value, or raise if it or a part of it refers to an environment variable."""
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


_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^:@/?#\s]*):(?P<password>.*)@")
_PARAMETER = re.compile(r"(?P<key>[?&;][^=&;\s]+)=[^&;\s#]*")
_HIDDEN = "***"


def mask_url(text: str) -> str:
    """Replace the password and the query values of a URL in a text by `***`."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\g<key>={_HIDDEN}", _USERINFO.sub(rf"\g<scheme>\g<user>:{_HIDDEN}@", text))


def versus(value: float, relation: str, limit: float) -> str:
    """Return a comparison of two numbers with enough digits to tell them apart.

    Example:
        >>> versus(0.6999, "<", 0.7)
        '0.6999 < 0.7000'
    """
    for digits in range(2, 17):
        left, right = f"{value:.{digits}f}", f"{limit:.{digits}f}"
        if left != right:
            return f"{left} {relation} {right}"
    return f"{value:.2f} {relation} {limit:.2f}"


def listed(words: list[str], joint: str = "and") -> str:
    """Join words as in a sentence.

    Example:
        >>> listed(["a", "b", "c"], "or")
        'a, b or c'
    """
    return f" {joint} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


class Frozen(BaseModel):
    """Base class of all parts of a policy."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def one_or_many(value: object) -> object:
    """Return a single value as a list of one: `tags: medical` means `tags: [medical]`."""
    return value if isinstance(value, list | tuple | set | frozenset) else [value]


Probability = Annotated[float, Field(ge=0, le=1)]
"""A confidence, from 0 to 1."""

Share = Annotated[float, Field(gt=0, lt=1)]
"""A share strictly between 0 and 1."""

Seconds = Annotated[float, Field(gt=0)]
"""A span of time in seconds."""

Text = Annotated[str, Field(min_length=1), BeforeValidator(expand)]
"""A non-empty text; `${NAME}` is filled in."""

OptionalText = Annotated[str, BeforeValidator(expand)]
"""A text that may be empty; `${NAME}` is filled in."""

Word = Annotated[str, Field(min_length=1), AfterValidator(refuse)]
"""A text that is matched literally: no environment values."""

Words = Annotated[
    frozenset[Word],
    Field(strict=False, min_length=1),
    BeforeValidator(one_or_many, json_schema_input_type=str | list[str]),
]
"""One word or a list of words."""
