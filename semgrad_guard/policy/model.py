"""The policy: everything that a policy file says, checked and frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard.policy.conditions import Selector
from semgrad_guard.policy.fields import Frozen, Probability, mask_url
from semgrad_guard.policy.review import ReviewSettings
from semgrad_guard.policy.sections import (
    Budget,
    MessageChanges,
    Messages,
    OnError,
    OnUncalibrated,
    Otherwise,
    RiskTarget,
    ScorerSettings,
    TelemetrySettings,
)
from semgrad_guard.policy.steps import HumanReviewStep, Rung

MAX_LADDER = 50
"""Tries of all steps of one ladder together, so every question ends."""

DEFAULT_PROFILE = "smollm2-135m-demo"
"""The shipped profile that fits the default scorer."""


_NUMBER, _TARGET = "<number>", "<target>"
ACCEPT_KINDS = (_NUMBER, _TARGET)
"""Names of the two forms of `accept`, which pydantic puts among the keys that lead to an error."""


def _accept_kind(value: object) -> str:
    return _TARGET if isinstance(value, Mapping | RiskTarget) else _NUMBER


Accept = Annotated[
    Annotated[Probability, Tag(_NUMBER)] | Annotated[RiskTarget, Tag(_TARGET)], Discriminator(_accept_kind)
]
"""Confidence that an answer needs, or the error rate from which it is computed."""


def _number(value: object) -> object:
    """Refuse `true`, which Python takes for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("version", "must be the number 1")
    return value


Ladder = Annotated[tuple[Rung, ...], Field(strict=False)]
"""Steps in the order in which they are tried."""


class Override(Frozen):
    """Other settings for some exchanges; what it leaves out stays as it is."""

    match: Selector
    """Which exchanges."""
    accept: Accept | None = None
    """Confidence that an answer needs."""
    escalate: Ladder | None = None
    """Steps tried in this order while the confidence is too low."""
    otherwise: Otherwise | None = None
    """What happens when no step is left."""
    messages: MessageChanges | None = None
    """Messages that are different."""
    on_error: OnError | None = None
    """What happens to an answer when the guard itself fails."""
    on_uncalibrated: OnUncalibrated | None = None
    """What happens to an answer when no profile fits its score."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.model_fields_set <= {"match"}:
            raise PydanticCustomError(
                "override", "changes nothing: add accept, escalate, otherwise, messages or on_..."
            )
        if isinstance(self.accept, RiskTarget) and self.match.metadata is not None:
            raise PydanticCustomError(
                "promise",
                "cannot be computed for a `match` by `metadata`: labelled answers carry tags only; match by `tags`, or "
                "give a number",
                {"path": ("accept",)},
            )
        _check_length(self.escalate or ())
        return self


class Policy(Frozen):
    """What happens to an answer, by its confidence."""

    version: Annotated[Literal[1], BeforeValidator(_number)] = 1
    """Version of this file format."""
    scorer: ScorerSettings = ScorerSettings(profile=DEFAULT_PROFILE)
    """Which model scores, and how."""
    accept: Accept
    """Confidence that an answer needs: a number from 0 to 1, or {max_error_rate, delta} to have it computed."""
    escalate: Ladder = ()
    """Steps tried in this order while the confidence is too low."""
    otherwise: Otherwise = "abstain"
    """What happens when no step is left."""
    messages: Messages = Messages()
    """What callers read."""
    overrides: Annotated[tuple[Override, ...], Field(strict=False)] = ()
    """Other settings for some exchanges; of several that match, the first that sets a key decides that key."""
    budget: Budget = Budget()
    """When to stop answering again."""
    on_error: OnError = "abstain"
    """What happens to an answer when the guard itself fails."""
    on_uncalibrated: OnUncalibrated = "abstain"
    """What happens to an answer when no profile fits its score."""
    review: ReviewSettings = ReviewSettings()
    """Where answers wait for people, and what their verdicts are good for."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """Where decisions are logged."""

    _source: str = PrivateAttr("policy")
    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        _check_length(self.escalate)
        if self.scorer.granularity != "sentence":
            for rule, rung in self.ladders():
                if rung.spec.when.any_sentence_below is not None:
                    raise PydanticCustomError(
                        "sentences",
                        "needs `scorer: {granularity: sentence}`: only then sentences have a confidence",
                        {"path": (*_path(rule), rung.name, "when", "any_sentence_below")},
                    )
        return self

    @property
    def source(self) -> str:
        """Where the policy came from: a path, or words."""
        return self._source

    @cached_property
    def digest(self) -> str:
        """Digest of what the policy says, without passwords: equal digests decide equally."""
        said = self.model_dump()
        said["review"]["url"] = mask_url(self.review.url)
        said["review"]["token"] = None
        text = json.dumps(said, sort_keys=True, default=sorted)  # sorted: a set has another order in every process
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def profile(self) -> str | None:
        """Name of a shipped profile, or the path of a profile file; `None` when the policy names none.

        A relative path is taken from the folder of the policy file.
        """
        named = self.scorer.profile
        if named is None or not _is_path(named):
            return named
        return str(self._folder / Path(named).expanduser())

    def from_source(self, source: str, folder: Path) -> Self:
        """Return the same policy, with where it came from.

        Args:
            source: a path, or words.
            folder: where relative profile paths start.
        """
        copy = self.model_copy()
        copy._source, copy._folder = source, folder  # noqa: SLF001 - its own private attributes
        return copy

    def ladders(self) -> list[tuple[str, Rung]]:
        """Return every step of every ladder with the rule's name without its step: `overrides[0].escalate[1]`."""
        found = [(f"escalate[{i}]", rung) for i, rung in enumerate(self.escalate)]
        for number, override in enumerate(self.overrides):
            found += [(f"overrides[{number}].escalate[{i}]", rung) for i, rung in enumerate(override.escalate or ())]
        return found


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".json")


def _path(rule: str) -> tuple[str | int, ...]:
    """Return `overrides[0].escalate[1]` as the keys and indices that lead there."""
    parts = rule.replace("]", "").replace("[", ".").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _check_length(ladder: tuple[Rung, ...]) -> None:
    tries = sum(1 if isinstance(rung.spec, HumanReviewStep) else rung.spec.attempts for rung in ladder)
    if tries > MAX_LADDER:
        raise PydanticCustomError(
            "ladder",
            "allows {tries} tries for one question, but at most {limit} are: remove steps or lower their `attempts`",
            {"tries": tries, "limit": MAX_LADDER, "path": ("escalate",)},
        )
