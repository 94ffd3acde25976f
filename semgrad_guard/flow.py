"""The values passed from stage to stage: Exchange -> Score -> Confidence -> Decision -> Outcome -> Record.

All are frozen and contain plain Python values, so they can be logged, compared and stored.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, NewType, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

ExchangeId = NewType("ExchangeId", str)
ReviewId = NewType("ReviewId", str)

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value that JSON can represent."""


def new_exchange_id() -> ExchangeId:
    """Return a fresh random id."""
    return ExchangeId(str(uuid.uuid4()))


def utc_now() -> datetime:
    """Return the present moment, timezone-aware."""
    return datetime.now(UTC)


def utc_now_or_epoch() -> datetime:
    """Return the present moment, or the Unix epoch where the machine's clock gives none.

    For the dates in records: an answer that cannot be dated is judged and recorded all the same.
    """
    try:
        return utc_now()
    except (OSError, OverflowError, ValueError):
        return datetime.fromtimestamp(0, UTC)


# --- Exchange ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrieved text that the prompt contained."""

    text: str
    source: str | None = None
    """Where it came from: a title, path or URL."""
    score: float | None = None
    """The retriever's relevance score, in the retriever's own unit and direction."""


PassagesFrom = Literal["stated", "retriever", "tool", "state", "prompt"]
"""Where the passages of an exchange were found.

- `stated`: whoever made the exchange named them.
- `retriever`: a retriever of the framework returned them.
- `tool`: a tool returned them, as text or beside it.
- `state`: they were in the values that a chain's steps or a graph's nodes pass on.
- `prompt`: no retrieval was seen; they are the text of the prompt beside the question.
"""

RUN_KEY = "run"
"""Reserved key of `Exchange.metadata`: the traced run that wrote the answer; see `semgrad_guard.wire.RunRef`."""

Prompt = str | tuple[Message, ...]
"""The input of a model: plain text, or chat messages that the model's template turns into text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One prompt and its answer: the unit that is judged.

    Token ids, if given, take precedence over the texts, because they are what the model really read and wrote.
    """

    prompt: Prompt = ""
    answer: str = ""
    question: str | None = None
    """The user's question alone, without passages and instructions."""
    passages: tuple[Passage, ...] = ()
    passages_from: PassagesFrom | None = None
    """Where the passages were found; `stated` without any says that there are none, so the prompt is not searched."""
    tags: frozenset[str] = frozenset()
    metadata: Mapping[str, Json] = field(default_factory=dict[str, "Json"])
    attempt: int = 1
    """1 for the first answer to a question; each retry or fallback adds 1."""
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None
    """Ids of the answer, ending with the end-of-turn token where the model produced it."""
    author: str | None = None
    """Name of the model that wrote the answer, where known."""
    on_policy: bool = False
    """True when the scoring model's own weights wrote the answer; otherwise the score is a proxy."""
    score: Score | None = None
    """A score taken while the answer was generated; it is used instead of scoring again."""
    id: ExchangeId = field(default_factory=new_exchange_id)

    def next_attempt(
        self, *, prompt: Prompt, answer: str, passages: tuple[Passage, ...], author: str | None = None
    ) -> Exchange:
        """Return the exchange of a new attempt at the same question; nothing of the earlier answer is carried over.

        Other passages than before count as found by a retriever.
        """
        found: PassagesFrom | None = "retriever" if passages else None
        return replace(
            self,
            prompt=prompt,
            answer=answer,
            passages=passages,
            passages_from=self.passages_from if passages == self.passages else found,
            attempt=self.attempt + 1,
            metadata={key: value for key, value in self.metadata.items() if key != RUN_KEY},
            prompt_ids=None,
            answer_ids=None,
            author=author,
            on_policy=False,
            score=None,
            id=new_exchange_id(),
        )


# --- Score ------------------------------------------------------------------------------------------------------------

ScorePath = Literal["cold", "reused", "full"]
"""How a score was computed: after a prefix run without gradients, from the generation's KV cache, or in one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a score depends on apart from the exchange; a profile fits only scores with an equal fingerprint."""

    model: str
    """Digest of architecture and weights."""
    dtype: str
    template: str
    """Digest of the chat template; of the empty text for a base model."""
    settings: str
    """Readable score settings: position, layer band, granularity."""
    proxy: bool = False
    """True when another model wrote the answers."""


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Score of one part of the answer."""

    start: int
    """Offset of the first character in the answer."""
    end: int
    """Offset after the last character in the answer."""
    signals: Mapping[str, float]
    confidence: float | None = None
    """Calibrated P(this part is correct), in [0, 1]; `None` when it is not calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Raw uncertainty of one answer: >= 0, unbounded, higher is less sure, comparable only within one profile."""

    method: str
    """Name of the signal used as `value`, for example `hybridgrad`."""
    value: float
    signals: Mapping[str, float]
    """All raw signals by name; see `semgrad_guard.signals` for units and directions."""
    fingerprint: Fingerprint
    model: str
    """Readable name of the scoring model."""
    path: ScorePath = "cold"
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock time of scoring."""
    spans: tuple[SpanScore, ...] = ()
    passage_attention: tuple[float | None, ...] = ()
    """Share of each passage in the answer's attention, of what does not rest on the first token; `None` for a passage
    that the prompt does not show word for word. Empty where attention is not read or no passage was known."""
    passage_gradients: tuple[float | None, ...] = ()
    """Share of each passage in the gradients by the prompt's cached keys and values, as for `passage_attention`."""
    read_for: str = ""
    """Digests of the question and of the passages that the prompt was searched for, for signals of attention; empty
    where it was not."""
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, "tuple[float, ...]"])
    """What a profile's probes read, by the probe's signal; empty unless asked for."""

    @property
    def proxy(self) -> bool:
        """True when the scored answer was written by another model."""
        return self.fingerprint.proxy


# --- Confidence -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contribution:
    """How much one signal moved a confidence."""

    signal: str
    weight: float
    """Change of the log-odds of being correct, relative to the average answer; below 0 lowers confidence."""
    text: str
    """Explanation in words, for example `answer words not in the passages`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """Calibrated P(answer is correct)."""

    value: float | None
    """In [0, 1]; `None` when the score is not calibrated."""
    why: str = ""
    """Where the value comes from, or why there is none."""
    profile: str | None = None
    """Name of the profile used."""
    contributions: tuple[Contribution, ...] = ()
    drifted: bool = False
    """True when recent scores no longer look like those that the profile was fitted on."""
    label_free: bool = False
    """True when `value` is a percentile of recent scores and not a probability, because there were no labels."""


UNCALIBRATED = Confidence(value=None, why="no profile")


# --- Decision ---------------------------------------------------------------------------------------------------------


class Action(StrEnum):
    """The actions that a policy can choose, in the order of reports; the values are the names in the policy file."""

    ACCEPT = "accept"
    RETRY_RETRIEVAL = "retry_retrieval"
    FALLBACK_MODEL = "fallback_model"
    ANSWER_WITH_WARNING = "answer_with_warning"
    HUMAN_REVIEW = "human_review"
    ABSTAIN = "abstain"


AUTHORS_TEXT: Mapping[str, bool] = MappingProxyType({"authors_text": True})
"""Marks parameters of a step that contain text by the policy's author; logs without texts leave them out."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Give the answer as it is."""

    action = Action.ACCEPT
    ends_question: ClassVar[Literal[True]] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRetrieval:
    """Retrieve again and answer again."""

    top_k: int | None = None
    """How many passages to ask for; `None` doubles the number of the first attempt."""
    rewrite_query: bool = False
    retriever: str | None = None
    """Name of another retriever given to the guard; `None` is the chain's retriever."""
    drop_unused: bool = False
    """Leave out earlier passages that gave the answer nothing: no word, and little of the model's attention."""
    configurable: Mapping[str, Json] = field(default_factory=dict[str, "Json"], metadata=AUTHORS_TEXT)
    """`configurable` fields for chains that have their own retriever."""
    timeout_s: float | None = None
    action = Action.RETRY_RETRIEVAL
    ends_question: ClassVar[Literal[False]] = False

    @property
    def route(self) -> str:
        """Name of this step's answers in recorded data and reports."""
        return self.action.value


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackModel:
    """Ask another model."""

    name: str
    unscored: bool = False
    """Give its answer to the caller without judging it."""
    timeout_s: float | None = None
    action = Action.FALLBACK_MODEL
    ends_question: ClassVar[Literal[False]] = False

    @property
    def route(self) -> str:
        """Name of this step's answers in recorded data and reports, which includes the model."""
        return f"{self.action.value}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanReview:
    """Hand the answer to a person."""

    wait_s: float = 0.0
    """Seconds that the caller waits for the verdict; with 0 the caller gets the pending message at once."""
    message: str = field(default="", metadata=AUTHORS_TEXT)
    action = Action.HUMAN_REVIEW
    ends_question: ClassVar[Literal[True]] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstain:
    """Give a refusal instead of the answer."""

    message: str = field(metadata=AUTHORS_TEXT)
    action = Action.ABSTAIN
    ends_question: ClassVar[Literal[True]] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWithWarning:
    """Give the answer and say that it is doubtful."""

    warning: str = field(default="", metadata=AUTHORS_TEXT)
    """Text put before the answer; empty marks the answer in its metadata only."""
    action = Action.ANSWER_WITH_WARNING
    ends_question: ClassVar[Literal[True]] = True


Step = Accept | RetryRetrieval | FallbackModel | HumanReview | Abstain | AnswerWithWarning
"""A step that the policy chooses; `ends_question` is False if another attempt follows."""
STEP_TYPES: Mapping[str, type[Step]] = MappingProxyType({kind.action: kind for kind in get_args(Step)})
"""The step of each action."""
NewAttempt = RetryRetrieval | FallbackModel
"""The steps that do not end the question."""
Settling = Accept | AnswerWithWarning | Abstain
"""The steps that end the question without anyone else: `routing.settle` says what the caller gets."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of the guard itself or of a step of the policy, as a value."""

    stage: str
    """`scoring`, `calibration`, `policy`, `retry_retrieval`, `fallback_model`, `human_review`."""
    type: str
    """Class name of the error."""
    message: str

    @classmethod
    def of(cls, stage: str, error: BaseException) -> Failure:
        """Return the failure for an exception."""
        return cls(stage, type(error).__name__, str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The step that the policy chose for one attempt, and the rule that chose it."""

    step: Step
    rule: str
    """The policy's key that decided, for example `accept`, `escalate[1].fallback_model`, `on_error`."""
    why: str
    """The reason in words, with the numbers compared."""
    exchange_id: ExchangeId
    score: Score | None = None
    confidence: Confidence = UNCALIBRATED
    failure: Failure | None = None
    """What failed, when `rule` is `on_error`."""

    @property
    def action(self) -> Action:
        """The chosen action."""
        return self.step.action


@dataclass(frozen=True, slots=True)
class Attempt:
    """One round of retrieving, answering and scoring, and the decision after it."""

    exchange: Exchange
    decision: Decision
    failure: Failure | None = None
    """Why the step chosen after this attempt could not be carried out."""
    judged_at: datetime | None = None
    """When the decision was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has happened to a question so far; the policy decides by this and by the present attempt."""

    attempts: tuple[Attempt, ...] = ()
    """Earlier attempts, oldest first."""
    tried: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rule -> how often its step was chosen."""
    exhausted: frozenset[str] = frozenset()
    """Rules whose step failed or cannot help any more."""
    elapsed_s: float = 0.0
    cost: float = 0.0
    """Cost units spent on retries and fallbacks."""
    failures: tuple[Failure, ...] = ()
    """Failures so far."""


# --- Outcome ----------------------------------------------------------------------------------------------------------


class Status(StrEnum):
    """The kind of text that the caller got."""

    ANSWERED = "answered"
    WARNED = "warned"
    """The answer, marked as doubtful."""
    ABSTAINED = "abstained"
    PENDING = "pending"
    """Waiting for a person."""
    REVIEWED = "reviewed"
    """Approved or edited by a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result for the caller."""

    text: str
    status: Status
    decision: Decision
    """The last decision."""
    exchange: Exchange
    """The attempt with the highest confidence: the one that was returned, held back or handed to a person."""
    attempts: tuple[Attempt, ...]
    """All attempts, oldest first."""
    record: Record
    review_id: ReviewId | None = None
    reused: bool = False
    """True when the text comes from an earlier verdict on the question; `review_id` is that of the earlier item."""

    @property
    def confidence(self) -> float | None:
        """Calibrated P(answer is correct) of the best attempt, in [0, 1]; `None` when it is not calibrated."""
        best = next((a for a in reversed(self.attempts) if a.exchange.id == self.exchange.id), None)
        return (best.decision if best else self.decision).confidence.value

    @property
    def withheld(self) -> bool:
        """True when the caller did not get a model's answer."""
        return self.status not in {Status.ANSWERED, Status.WARNED, Status.REVIEWED}


# --- Review -----------------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What a person decided."""

    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    EXPIRED = "expired"
    """The deadline passed without a decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """A person's verdict on one answer."""

    review_id: ReviewId
    verdict: Verdict
    text: str
    """The approved or edited answer; after a rejection, the reviewer's reason."""
    by: str
    at: datetime


BesideToolCalls = Literal["judge", "blank", "pass"]
"""What happens to text beside a request for tools: it is judged like an answer, left out, or passes unjudged."""


# --- Record -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The log of one question: all attempts and decisions, what the caller got, and how long it took."""

    id: ExchangeId
    """Id of the first attempt."""
    at: datetime
    status: Status
    text: str
    attempts: tuple[Attempt, ...]
    policy: str
    """Origin and digest of the policy."""
    seconds: float
    """Time from the first judgement to the outcome."""
    scoring_s: float
    review_id: ReviewId | None = None
    reused: bool = False
    """True when an earlier verdict on the same question was given again."""
    failures: tuple[Failure, ...] = ()
    answer_id: ExchangeId | None = None
    """Id of the attempt that was returned, held back or handed to a person."""
    follows: ExchangeId | None = None
    """Id of an earlier record, in a record of the verdict that a person gave later; it has no attempts."""
    ruling: Ruling | None = None
    """The person's verdict, in a record that follows another."""
    beside_tool_calls: BesideToolCalls | None = None
    """What happened to it, in the record of a text that is no answer but stood beside a request for tools."""
