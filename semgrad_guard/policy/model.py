"""The policy as frozen types: the sections and keys of its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard.flow import BesideToolCalls
from semgrad_guard.policy.conditions import Selector
from semgrad_guard.policy.fields import Frozen, OptionalText, Probability, Seconds, Share, Text, mask_url
from semgrad_guard.policy.review import NO_QUEUE, ReviewSettings
from semgrad_guard.policy.steps import EscalationStep
from semgrad_guard.signals import COSTLY, METHODS

FUSED = "fused"
"""The method that combines all signals with the profile's weights."""
if TYPE_CHECKING:
    Method = str
    CostlySignal = str
else:
    Method = Literal[(*METHODS, FUSED)]
    """The signal used as a score's `value`; `fused` combines all signals with the profile's weights."""
    CostlySignal = Literal[COSTLY]
    """A signal that costs another forward pass."""


class RiskTarget(Frozen):
    """The error rate allowed among accepted answers; as many answers as possible are accepted within it."""

    max_error_rate: Share
    """Highest share of wrong answers among the accepted ones."""
    delta: Share = 0.05
    """Probability with which the error rate may be higher."""


def _band(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise PydanticCustomError(
            "band", "must be [first, last] with first <= last: decoder blocks from 0, both included"
        )
    return value


def _http(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise PydanticCustomError("scorer", "must be an address such as http://127.0.0.1:8788")
    return value


Block = Annotated[int, Field(ge=0)]


class ScorerSettings(Frozen):
    """Which model scores, and how."""

    url: Annotated[Text, AfterValidator(_http)] | None = None
    """Address of a server that scores, which `semgrad-guard serve` runs, in place of a model in this process."""
    key: Annotated[Text | None, Field(repr=False)] = None
    """Key for that server, best given as ${NAME}; `semgrad-guard keys add` makes one."""
    model: Text = "smollm2-135m"
    """The demo model's name, a Hugging Face id, a folder or a .gguf file."""
    method: Method = FUSED
    """The signal used as the score; `fused` combines all signals with the profile's weights."""
    granularity: Literal["answer", "sentence"] = "answer"
    """`sentence` also scores every sentence, which takes one more backward pass for each."""
    profile: Text | None = None
    """Calibration: the name of a shipped profile, or a JSON file, relative to the folder of the policy file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None
    """Number type of the weights; if left out, the loader chooses."""
    device: Text | None = None
    """`cpu`, `cuda`, `cuda:1`, `mps`, ...; if left out, the loader chooses."""
    position: Annotated[int, Field(lt=0)] | None = None
    """Token position t*, counted from the prompt's end: -1 is its last token; if left out, the profile's."""
    band: Annotated[tuple[Block, Block], Field(strict=False), AfterValidator(_band)] | None = None
    """Decoder blocks [first, last], both included, that SemGrad averages over; if left out, the upper half."""
    signals: Annotated[tuple[CostlySignal, ...], Field(strict=False)] = ()
    """Signals to compute in addition to the free ones; each costs another forward pass."""
    embedding: Text | None = None
    """Sentence-transformers model (`minilm-l6-v2`, a Hugging Face id or a folder) for signals that compare meanings."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.url is None and self.key is not None:
            raise PydanticCustomError("scorer", "is for a server: add `url: http://127.0.0.1:8788`", {"path": ("key",)})
        for key in sorted(self.model_fields_set & _SERVERS_OWN if self.url is not None else ()):
            raise PydanticCustomError("scorer", "is set at the server, by `semgrad-guard serve`", {"path": (key,)})
        return self


_SERVERS_OWN = frozenset({"model", "dtype", "device", "position", "band", "signals", "embedding"})
"""Settings of a scorer that a server chooses for itself."""


class Messages(Frozen):
    """Messages for the caller."""

    abstain: Text = "I am not sure enough to answer that."
    """In place of an answer that is held back."""
    pending: Text = "A person will answer this."
    """In place of an answer that waits for a person."""
    warning: OptionalText = "Please check this answer: I am not sure of it."
    """Put before an answer that is given although it is doubtful; empty marks it in its metadata only."""
    unchecked: OptionalText = "This answer could not be checked."
    """Put before an answer that is given although nothing could judge it; empty marks it in its metadata only."""


class MessageChanges(Frozen):
    """Messages that an override changes."""

    abstain: Text | None = None
    """In place of an answer that is held back."""
    pending: Text | None = None
    """In place of an answer that waits for a person."""
    warning: OptionalText | None = None
    """Put before an answer that is given although it is doubtful; empty marks it in its metadata only."""
    unchecked: OptionalText | None = None
    """Put before an answer that is given although nothing could judge it; empty marks it in its metadata only."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("messages", "must change at least one message")
        return self


class Budget(Frozen):
    """When retries and fallbacks stop; review and `otherwise` still happen."""

    seconds: Seconds | None = None
    """Seconds since the question's first answer; an answer that is not scored by then goes to `on_error`."""
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Number of attempts, including the first answer."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """Cost units of all retries and fallbacks together; each step sets its `cost`."""


class TelemetrySection(Frozen):
    """Where decisions are logged."""

    langsmith: bool = False
    """Put confidence and decision on LangSmith runs, where tracing is on."""
    otel: bool = False
    """Send OpenTelemetry events, spans and metrics."""
    jsonl: Text | None = None
    """File to which one JSON line is appended for each question."""
    log_text: bool = False
    """Log prompts, passages and answers as well, not only numbers and decisions."""
    all_signals: bool = False
    """Put every raw signal on LangSmith runs, not only the few keys that one reads."""


AcceptTarget = Probability | RiskTarget
Otherwise = Literal["abstain", "answer_with_warning", "give"]
OnError = Literal["abstain", "human_review", "answer_with_warning", "give"]
OnUncalibrated = Literal["abstain", "warn", "give", "error"]


MAX_LADDER = 50
"""Most tries of all steps of one `escalate` list together, so that every question ends."""

SHIPPED_PROFILES = ("proxy", "smollm2-135m-demo")
"""Where nobody chose a scorer: the shipped profiles of the packaged model, of which the first that fits is used."""
DEFAULT_PROFILE = SHIPPED_PROFILES[0]
"""The shipped profile that the packaged model reads and computes its signals for."""
SHIPPED = "the shipped policy"
"""`source` of the policy that comes with the package."""


_NUMBER, _TARGET = "<number>", "<target>"
ACCEPT_KINDS = (_NUMBER, _TARGET)
"""Names of the two forms of `accept`, which pydantic adds to the keys that lead to an error."""


def _accept_kind(value: object) -> str:
    return _TARGET if isinstance(value, Mapping | RiskTarget) else _NUMBER


AcceptSetting = Annotated[
    Annotated[Probability, Tag(_NUMBER)] | Annotated[RiskTarget, Tag(_TARGET)], Discriminator(_accept_kind)
]
"""Confidence that an answer needs, or the error rate from which it is computed."""


def _number(value: object) -> object:
    """Refuse `true`, which equals 1 in Python."""
    if isinstance(value, bool):
        raise PydanticCustomError("version", "must be the number 1")
    return value


Escalation = Annotated[tuple[EscalationStep, ...], Field(strict=False)]
"""Steps in the order in which they are tried."""


class Override(Frozen):
    """Other settings for some exchanges; settings that are left out stay as they are."""

    match: Selector
    """The exchanges that it applies to."""
    accept: AcceptSetting | None = None
    """Confidence that an answer needs."""
    escalate: Escalation | None = None
    """Steps tried in this order while the confidence is too low."""
    otherwise: Otherwise | None = None
    """What happens when no step is left."""
    messages: MessageChanges | None = None
    """Changed messages."""
    on_error: OnError | None = None
    """What happens to an answer when the guard itself fails."""
    on_uncalibrated: OnUncalibrated | None = None
    """What happens to an answer when no profile fits its score."""
    beside_tool_calls: BesideToolCalls | None = None
    """What happens to text that comes with requests for tools."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.model_fields_set <= {"match"}:
            raise PydanticCustomError(
                "override", "changes nothing: add accept, escalate, otherwise, messages, on_... or beside_tool_calls"
            )
        if isinstance(self.accept, RiskTarget) and self.match.metadata is not None:
            raise PydanticCustomError(
                "promise",
                "cannot be computed for a `match` by `metadata`: labelled answers have tags only; match by `tags`, or "
                "give a number",
                {"path": ("accept",)},
            )
        _check_length(self.escalate or ())
        return self


class Policy(Frozen):
    """The rules for what happens to an answer, depending on its confidence."""

    version: Annotated[Literal[1], BeforeValidator(_number)] = 1
    """Version of this file format."""
    scorer: ScorerSettings = ScorerSettings(profile=DEFAULT_PROFILE)
    """Which model scores, and how."""
    accept: AcceptSetting
    """Confidence that an answer needs: a number from 0 to 1, or {max_error_rate, delta} to have it computed."""
    escalate: Escalation = ()
    """Steps tried in this order while the confidence is too low."""
    otherwise: Otherwise = "abstain"
    """What happens when no step is left."""
    messages: Messages = Messages()
    """Messages for the caller."""
    overrides: Annotated[tuple[Override, ...], Field(strict=False)] = ()
    """Other settings for some exchanges; if several match, the first one that sets a key is used for that key."""
    budget: Budget = Budget()
    """When retries and fallbacks stop."""
    on_error: OnError = "abstain"
    """What happens to an answer when the guard itself fails."""
    on_uncalibrated: OnUncalibrated = "abstain"
    """What happens to an answer when no profile fits its score."""
    beside_tool_calls: BesideToolCalls = "judge"
    """What happens to text that comes with requests for tools: it is judged like an answer, left out, or passes."""
    review: ReviewSettings = ReviewSettings()
    """The review queue: where answers wait for people, and when earlier verdicts are used again."""
    telemetry: TelemetrySection = TelemetrySection()
    """Where decisions are logged."""

    _source: str = PrivateAttr("policy")
    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        _check_length(self.escalate)
        if self.scorer.granularity != "sentence":
            for rule, entry in self.escalation_steps():
                if entry.spec.when.any_sentence_below is not None:
                    raise PydanticCustomError(
                        "sentences",
                        "needs `scorer: {granularity: sentence}`: only then do sentences have a confidence",
                        {"path": (*_path(rule), entry.name, "when", "any_sentence_below")},
                    )
        _check_queue(self)
        return self

    @property
    def source(self) -> str:
        """Where the policy came from: a path or a description."""
        return self._source

    @cached_property
    def digest(self) -> str:
        """Digest of the policy's content without passwords; policies with equal digests decide equally."""
        content = self.model_dump()
        content["review"]["url"] = mask_url(self.review.url) if self.review.url else None
        content["review"]["token"] = None
        key, url = content["scorer"].pop("key"), content["scorer"].pop("url")
        content["scorer"] |= {} if url is None else {"url": mask_url(url), "has_key": key is not None}
        text = json.dumps(content, sort_keys=True, default=sorted)  # sorted: a set has another order in every process
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def profile(self) -> str | None:
        """Name of a shipped profile, or the path of a profile file; `None` when the policy names none.

        A relative path is taken from the folder of the policy file.
        """
        named = self.scorer.profile
        if named is None and self.scorer.url is not None:
            return DEFAULT_PROFILE
        if named is None or not _is_path(named):
            return named
        return str(self._folder / Path(named).expanduser())

    @property
    def chooses_profile(self) -> bool:
        """Whether the policy itself says what a confidence is computed with; otherwise a shipped profile is."""
        only_url = self.scorer.url is not None and self.scorer.profile is None
        return "scorer" in self.model_fields_set and not only_url

    def from_source(self, source: str, folder: Path) -> Self:
        """Return the same policy with its origin noted.

        Args:
            source: a path or a description.
            folder: where relative profile paths start.
        """
        copy = self.model_copy()
        copy._source, copy._folder = source, folder  # noqa: SLF001 - its own private attributes
        return copy

    def escalation_steps(self) -> list[tuple[str, EscalationStep]]:
        """Return every escalation step with its place in the file: `overrides[0].escalate[1]`."""
        found = [(f"escalate[{i}]", entry) for i, entry in enumerate(self.escalate)]
        for number, override in enumerate(self.overrides):
            found += [(f"overrides[{number}].escalate[{i}]", entry) for i, entry in enumerate(override.escalate or ())]
        return found


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".json")


def _path(rule: str) -> tuple[str | int, ...]:
    """Return `overrides[0].escalate[1]` as the keys and indices that lead there."""
    parts = rule.replace("]", "").replace("[", ".").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _check_queue(policy: Policy) -> None:
    """Refuse a policy that asks a person without saying how: an answer that nobody can read would wait for ever."""
    if policy.review.url is not None:
        return
    steps = [(*_path(rule), step.name) for rule, step in policy.escalation_steps() if step.human_review is not None]
    sections: list[tuple[tuple[str | int, ...], OnError | None]] = [((), policy.on_error)]
    for number, override in enumerate(policy.overrides):
        sections.append((("overrides", number), override.on_error))
    for path in [*steps, *((*place, "on_error") for place, end in sections if end == "human_review")]:
        raise PydanticCustomError("queue", NO_QUEUE, {"path": path})


def _check_length(steps: tuple[EscalationStep, ...]) -> None:
    tries = sum(entry.spec.tries for entry in steps)
    if tries > MAX_LADDER:
        raise PydanticCustomError(
            "ladder",
            "allows {tries} tries for one question, but the limit is {limit}: remove steps or lower their `attempts`",
            {"tries": tries, "limit": MAX_LADDER, "path": ("escalate",)},
        )
