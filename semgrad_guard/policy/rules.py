"""Which settings are in force for one exchange, and by which key of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange
    from semgrad_guard.policy.model import Override, Policy
    from semgrad_guard.policy.sections import Messages, OnError, OnUncalibrated, Otherwise, RiskTarget
    from semgrad_guard.policy.steps import Rung

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ruled(Generic[T]):
    """A setting and the rule that it comes from."""

    value: T
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings for one exchange."""

    accept: Ruled[float | RiskTarget]
    escalate: tuple[Ruled[Rung], ...]
    otherwise: Ruled[Otherwise]
    on_error: Ruled[OnError]
    on_uncalibrated: Ruled[OnUncalibrated]
    messages: Messages


def rules_for(policy: Policy, exchange: Exchange) -> Rules:
    """Return the settings for an exchange: each from the first matching override that sets it, else from the top."""
    matching = [(f"overrides[{i}]", o) for i, o in enumerate(policy.overrides) if o.match.fits(exchange)]
    return Rules(
        accept=_setting("accept", policy.accept, matching),
        escalate=_ladder(policy, matching),
        otherwise=_setting("otherwise", policy.otherwise, matching),
        on_error=_setting("on_error", policy.on_error, matching),
        on_uncalibrated=_setting("on_uncalibrated", policy.on_uncalibrated, matching),
        messages=_messages(policy, matching),
    )


def step_rule(place: str, rung: Rung) -> str:
    """Return the rule of a step: `escalate[0].retry_retrieval` for the step at `escalate[0]`."""
    return f"{place}.{rung.name}"


def _setting(key: str, general: T, matching: list[tuple[str, Override]]) -> Ruled[T]:
    for place, override in matching:
        value: T | None = getattr(override, key)
        if value is not None:
            return Ruled(value, f"{place}.{key}")
    return Ruled(general, key)


def _ladder(policy: Policy, matching: list[tuple[str, Override]]) -> tuple[Ruled[Rung], ...]:
    ladder = _setting("escalate", policy.escalate, matching)
    return tuple(Ruled(rung, step_rule(f"{ladder.rule}[{i}]", rung)) for i, rung in enumerate(ladder.value))


def _messages(policy: Policy, matching: list[tuple[str, Override]]) -> Messages:
    changes: dict[str, str] = {}
    for _, override in reversed(matching):
        if override.messages is not None:
            changes |= override.messages.model_dump(exclude_none=True)
    return policy.messages.model_copy(update=changes) if changes else policy.messages
