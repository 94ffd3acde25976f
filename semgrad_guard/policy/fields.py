"""What the values of a policy are made of: frozen, strictly typed, nothing unknown let through."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from semgrad_guard.policy.environment import expand, refuse


class Frozen(BaseModel):
    """Base of every part of a policy."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def one_or_many(value: object) -> object:
    """Return a list of what may be written alone: `tags: medical` means `tags: [medical]`."""
    return value if isinstance(value, list | tuple | set | frozenset) else [value]


Probability = Annotated[float, Field(ge=0, le=1)]
"""A confidence, from 0 to 1."""

Share = Annotated[float, Field(gt=0, lt=1)]
"""A share strictly between nothing and all."""

Seconds = Annotated[float, Field(gt=0)]
"""A span of time in seconds."""

Text = Annotated[str, Field(min_length=1), BeforeValidator(expand)]
"""A text that is not empty; `${NAME}` is filled in."""

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
