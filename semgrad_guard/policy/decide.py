"""Decides about one answer by the policy: which rules apply, which step comes next, which attempt is best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, assert_never

from semgrad_guard.errors import CalibrationError, UncalibratedError
from semgrad_guard.flow import (
    UNCALIBRATED,
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Confidence,
    Decision,
    Failure,
    HumanReview,
)
from semgrad_guard.policy.conditions import StepContext
from semgrad_guard.policy.fields import versus
from semgrad_guard.policy.model import SHIPPED, RiskTarget
from semgrad_guard.policy.needs import needs_of
from semgrad_guard.policy.promises import promises
from semgrad_guard.policy.steps import FallbackModelStep, NewAttemptStep
from semgrad_guard.suspicious import suspicious_passages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from semgrad_guard.flow import BesideToolCalls, Exchange, Progress, Score, Step
    from semgrad_guard.policy.model import Budget, Messages, OnError, OnUncalibrated, Otherwise, Override, Policy
    from semgrad_guard.policy.needs import Need
    from semgrad_guard.policy.promises import Promise
    from semgrad_guard.policy.steps import EscalationStep

    Thresholds = Callable[[Promise], float]
    """Promise -> the lowest confidence that keeps it; raises `CalibrationError` if none does."""


def known(confidence: Confidence) -> float | None:
    """Return the confidence as a number in [0, 1]; `None` when there is none or it lies outside."""
    value = confidence.value
    return value if value is not None and math.isfinite(value) and 0 <= value <= 1 else None


def best_attempt(progress: Progress, present: Attempt) -> Attempt:
    """Return the attempt with the highest confidence, the earliest of equals.

    Attempts without a usable confidence come last; if no attempt has one, the present attempt is returned.
    """
    return best_judged((*progress.attempts, present)) or present


def best_judged(attempts: Iterable[Attempt]) -> Attempt | None:
    """Return the attempt with the highest usable confidence, the earliest of equals; `None` if none has one."""
    judged = [(value, a) for a in attempts if (value := known(a.decision.confidence)) is not None]
    return max(judged, key=lambda pair: pair[0])[1] if judged else None


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
    escalate: tuple[Ruled[EscalationStep], ...]
    otherwise: Ruled[Otherwise]
    on_error: Ruled[OnError]
    on_uncalibrated: Ruled[OnUncalibrated]
    beside_tool_calls: Ruled[BesideToolCalls]
    messages: Messages


def rules_for(policy: Policy, exchange: Exchange) -> Rules:
    """Return the settings for an exchange: each from the first matching override that sets it, else from the top."""
    matching = [(f"overrides[{i}]", o) for i, o in enumerate(policy.overrides) if o.match.fits(exchange)]
    return Rules(
        accept=_setting("accept", policy.accept, matching),
        escalate=_escalation(policy, matching),
        otherwise=_setting("otherwise", policy.otherwise, matching),
        on_error=_setting("on_error", policy.on_error, matching),
        on_uncalibrated=_setting("on_uncalibrated", policy.on_uncalibrated, matching),
        beside_tool_calls=_setting("beside_tool_calls", policy.beside_tool_calls, matching),
        messages=_messages(policy, matching),
    )


def step_rule(place: str, entry: EscalationStep) -> str:
    """Return the rule name of a step, such as `escalate[0].retry_retrieval` for the step at `escalate[0]`."""
    return f"{place}.{entry.name}"


def _setting(key: str, general: T, matching: list[tuple[str, Override]]) -> Ruled[T]:
    for place, override in matching:
        value: T | None = getattr(override, key)
        if value is not None:
            return Ruled(value, f"{place}.{key}")
    return Ruled(general, key)


def _escalation(policy: Policy, matching: list[tuple[str, Override]]) -> tuple[Ruled[EscalationStep], ...]:
    escalation = _setting("escalate", policy.escalate, matching)
    return tuple(Ruled(entry, step_rule(f"{escalation.rule}[{i}]", entry)) for i, entry in enumerate(escalation.value))


def _messages(policy: Policy, matching: list[tuple[str, Override]]) -> Messages:
    changes: dict[str, str] = {}
    for _, override in reversed(matching):
        if override.messages is not None:
            changes |= override.messages.model_dump(exclude_none=True)
    return policy.messages.model_copy(update=changes) if changes else policy.messages


@dataclass(frozen=True, slots=True)
class Spent:
    """What a question has used of its budget."""

    seconds: float
    attempts: int
    cost: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step that is not tried, and why."""

    rule: str
    why: str
    limit: str = ""
    """The budget limit that stops the step, for example `budget.seconds`; empty for any other reason."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The step to try, if any, and the steps before it that were skipped."""

    entry: Ruled[EscalationStep] | None
    skipped: tuple[Skipped, ...] = ()

    @property
    def limit(self) -> str:
        """The first budget limit that stopped a step; empty where none did."""
        return next((skipped.limit for skipped in self.skipped if skipped.limit), "")


def next_step(
    escalation: Sequence[Ruled[EscalationStep]], context: StepContext, progress: Progress, budget: Budget, spent: Spent
) -> Choice:
    """Return the first step that may be tried now.

    Args:
        escalation: the steps, in the order of the file.
        context: the best attempt so far, which the conditions are checked against.
        progress: which steps were tried, and which cannot help any more.
        budget: limits on new attempts.
        spent: how much of the budget is used.
    """
    skipped: list[Skipped] = []
    for entry in escalation:
        obstacle = _obstacle(entry, context, progress) or _over_budget(entry, budget, spent)
        if obstacle is None:
            return Choice(entry, tuple(skipped))
        skipped.append(obstacle)
    return Choice(None, tuple(skipped))


def cost_of(escalation: Sequence[Ruled[EscalationStep]], tried: Mapping[str, int]) -> float:
    """Return the cost units of all tries of the steps of an escalation."""
    return sum(tried.get(r.rule, 0) * r.value.spec.cost for r in escalation if isinstance(r.value.spec, NewAttemptStep))


def tries_left(entry: Ruled[EscalationStep], progress: Progress) -> int:
    """Return how often a step may still be tried; always 1 for a step that ends the question."""
    spec = entry.value.spec
    return spec.tries - progress.tried.get(entry.rule, 0) if spec.answers_again else 1


def _obstacle(entry: Ruled[EscalationStep], context: StepContext, progress: Progress) -> Skipped | None:
    if entry.rule in progress.exhausted:
        return Skipped(entry.rule, "failed or can't help any more")
    if tries_left(entry, progress) < 1:
        return Skipped(entry.rule, "used up")
    if not entry.value.spec.when.holds(context):
        return Skipped(entry.rule, "not meant for this answer")
    return None


def _over_budget(entry: Ruled[EscalationStep], budget: Budget, spent: Spent) -> Skipped | None:
    """Return the budget limit that stops a step, if any; steps that end the question are never stopped."""
    spec = entry.value.spec
    if not isinstance(spec, NewAttemptStep):
        return None
    if budget.seconds is not None and not spent.seconds < budget.seconds:
        return Skipped(entry.rule, f"{spent.seconds:.3g} of {budget.seconds:g} s used", "budget.seconds")
    if budget.attempts is not None and spent.attempts >= budget.attempts:
        return Skipped(entry.rule, f"{spent.attempts} of {budget.attempts} attempts used", "budget.attempts")
    if budget.cost is not None and not spent.cost + spec.cost <= budget.cost:
        return Skipped(entry.rule, f"{spent.cost:g} + {spec.cost:g} of {budget.cost:g} cost units", "budget.cost")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionInput:
    """Everything that one decision depends on."""

    rules: Rules
    exchange: Exchange
    """The present attempt."""
    progress: Progress
    score: Score | None = None
    confidence: Confidence = UNCALIBRATED

    @property
    def judged_before(self) -> bool:
        """Whether an earlier attempt has a usable confidence."""
        return best_judged(self.progress.attempts) is not None

    def context(self) -> StepContext:
        """Return the best attempt so far, which the steps' conditions are checked against."""
        best, score = known(self.confidence), self.score
        before = best_judged(self.progress.attempts)
        earlier = known(before.decision.confidence) if before else None
        if before and earlier is not None and (best is None or earlier >= best):
            best, score = earlier, before.decision.score
        ids = {attempt.exchange.id for attempt in self.progress.attempts} | {self.exchange.id}
        return StepContext(
            exchange=self.exchange,
            confidence=best or 0.0,
            spans=score.spans if score else (),
            n_attempts=max(len(ids), self.exchange.attempt),
            is_suspicious=bool(suspicious_passages(self.exchange.passages)),
        )

    def doubt(self, threshold: float) -> str:
        """Return in words why the present attempt is not accepted."""
        value, best = known(self.confidence), self.context().confidence
        if value is None:
            return (
                f"no calibrated confidence ({self.confidence.why}), best of the attempts {best:.2f} < {threshold:.2f}"
            )
        text = f"confidence {versus(value, '<', threshold)}"
        return f"{text} (best attempt {best:.2f})" if best > value else text

    def decision(self, step: Step, rule: str, why: str, failure: Failure | None = None) -> Decision:
        """Return the decision for the present attempt."""
        return Decision(
            step=step,
            rule=rule,
            why=why,
            exchange_id=self.exchange.id,
            score=self.score,
            confidence=self.confidence,
            failure=failure,
        )


_GIVING = frozenset({"give", "answer_with_warning", "warn", None})
"""The endings that give the answer itself; `None` in an override leaves the ending as it is."""


def no_thresholds(promise: Promise) -> float:  # noqa: ARG001 - the shape of a resolver
    """Refuse to compute a threshold, because there is no profile to compute it from."""
    raise UncalibratedError("`accept` asks for an error rate, and no profile was given to compute its threshold from")


class PolicyDecider:
    """Decides by a policy. It has no side effects, so many threads may share one decider."""

    def __init__(self, policy: Policy, thresholds: Thresholds = no_thresholds) -> None:
        """Make a decider.

        Args:
            policy: the rules to decide by.
            thresholds: computes the confidence that keeps an error rate; called once for each `accept` that needs it.
        """
        self.policy = policy
        self._thresholds = thresholds
        self._promises = promises(policy)
        self._computed: dict[str, float] = {}

    @property
    def can_change_answers(self) -> bool:
        """Whether the caller may get anything but the model's own text: a refusal, a person's text or a warning.

        Adapters may stream an answer before it is judged only where this is false.
        """
        policy = self.policy
        sections: list[Policy | Override] = [policy, *policy.overrides]
        last = {section.otherwise for section in sections}
        failed = {end for section in sections for end in (section.on_error, section.on_uncalibrated)}
        ended = any(not entry.spec.answers_again for _, entry in policy.escalation_steps())
        texts = [section.messages for section in sections if section.messages is not None]
        return (
            not last | failed <= _GIVING
            or ended
            or any(section.beside_tool_calls == "blank" for section in sections)
            or ("answer_with_warning" in last and any(messages.warning for messages in texts))
            or (bool(failed & {"answer_with_warning", "warn"}) and any(messages.unchecked for messages in texts))
        )

    @property
    def can_answer_again(self) -> bool:
        """Whether a step of the policy asks the chain or a fallback model for another answer."""
        return any(entry.spec.answers_again for _, entry in self.policy.escalation_steps())

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the steps need from the code around the policy; nothing for the shipped policy, which nobody chose."""
        return () if self.policy.source == SHIPPED else needs_of(self.policy)

    def compute_thresholds(self) -> dict[str, float]:
        """Compute and return the confidence that each `accept` requires, by rule.

        A rule that asks for an error rate is left out if it never decides because earlier rules take all its answers.

        Raises:
            CalibrationError: an error rate cannot be kept, or there is no profile to compute its threshold from.
        """
        overrides = enumerate(self.policy.overrides)
        accepts = {"accept": self.policy.accept, **{f"overrides[{i}].accept": o.accept for i, o in overrides}}
        decided = {
            rule: accept
            for rule, accept in accepts.items()
            if not isinstance(accept, RiskTarget) or rule in self._promises
        }
        return {rule: self._number(Ruled(accept, rule)) for rule, accept in decided.items() if accept is not None}

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        """Return the step for a judged attempt.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
        """
        rules = rules_for(self.policy, exchange)
        question = DecisionInput(rules=rules, exchange=exchange, progress=progress, score=score, confidence=confidence)
        value = known(confidence)
        if value is None and confidence.value is not None:
            why = f"confidence {confidence.value} is not in [0, 1]"
            return self._failed(question, Failure("calibration", "ConfidenceOutOfRange", why))
        if value is None and not question.judged_before:
            return self._unjudged(question, f"no calibrated confidence: {confidence.why}", confidence.why)
        try:
            threshold = self._number(rules.accept)
        except CalibrationError as error:
            return self._unjudged(question, f"no threshold to compare with: {error}", str(error))
        if value is not None and value >= threshold:
            return question.decision(Accept(), rules.accept.rule, _accepted(confidence, value, threshold))
        return self._escalate(question, threshold)

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        """Return what happens to an answer that could not be judged or handed over: the policy's `on_error`."""
        question = DecisionInput(rules=rules_for(self.policy, exchange), exchange=exchange, progress=progress)
        return self._failed(question, failure)

    def without_answer(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision | None:
        """Return the decision to ask another model where the first one gave no answer; `None` where none is left.

        Only the steps that ask a fallback model can help. Their conditions are checked against a confidence of 0.
        """
        rules = rules_for(self.policy, exchange)
        question = DecisionInput(rules=rules, exchange=exchange, progress=progress)
        others = [entry for entry in rules.escalate if isinstance(entry.value.spec, FallbackModelStep)]
        choice = next_step(others, question.context(), progress, self.policy.budget, _spent(question))
        if choice.entry is None:
            return None
        why = f"the model gave no answer ({failure.type}); {_how(choice, progress)}"
        return question.decision(
            choice.entry.value.spec.to_flow(rules.messages.pending), choice.entry.rule, why, failure
        )

    def beside_tool_calls(self, exchange: Exchange) -> tuple[BesideToolCalls, str]:
        """Return what happens to text beside a request for tools, and the rule that says so."""
        ruled = rules_for(self.policy, exchange).beside_tool_calls
        return ruled.value, ruled.rule

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        """Return the attempt with the highest confidence among the earlier ones and the present one."""
        return best_attempt(progress, Attempt(exchange, decision)).exchange

    def _number(self, accept: Ruled[float | RiskTarget]) -> float:
        if not isinstance(accept.value, RiskTarget):
            return accept.value
        if accept.rule not in self._computed:
            self._computed[accept.rule] = self._thresholds(self._promises[accept.rule])
        return self._computed[accept.rule]

    def _unjudged(self, question: DecisionInput, why: str, error: str) -> Decision:
        """Decide about an answer that has no confidence or no threshold to compare it with."""
        on_uncalibrated, messages = question.rules.on_uncalibrated, question.rules.messages
        match on_uncalibrated.value:
            case "error":
                raise UncalibratedError(error)
            case "warn":
                step: Step = AnswerWithWarning(warning=messages.unchecked)
            case "give":
                step = AnswerWithWarning()
            case "abstain":
                step = Abstain(message=messages.abstain)
            case _:
                assert_never(on_uncalibrated.value)
        return question.decision(step, on_uncalibrated.rule, why)

    def _escalate(self, question: DecisionInput, threshold: float) -> Decision:
        rules, context, progress = question.rules, question.context(), question.progress
        choice = next_step(rules.escalate, context, progress, self.policy.budget, _spent(question))
        doubt = question.doubt(threshold)
        if choice.entry is not None:
            why = f"{doubt}; {_how(choice, progress)}"
            step = choice.entry.value.spec.to_flow(rules.messages.pending)
            return question.decision(step, choice.entry.rule, why)
        skipped = (f"{step.rule}: {step.why}" for step in choice.skipped)
        why = "; ".join([f"{doubt}, and no step is left", *skipped])
        return question.decision(_last_step(rules), choice.limit or rules.otherwise.rule, why)

    def _failed(self, question: DecisionInput, failure: Failure) -> Decision:
        on_error, messages = question.rules.on_error, question.rules.messages
        step: Step = Abstain(message=messages.abstain)
        why = f"{failure.stage} failed ({failure.type}: {failure.message})"
        not_handed_over = failure.stage == HumanReview.action.value or on_error.rule in question.progress.exhausted
        if on_error.value == "human_review" and not not_handed_over:
            step = HumanReview(message=messages.pending)
        elif on_error.value in _GIVING and not (not_handed_over or question.judged_before):
            step = AnswerWithWarning(warning="" if on_error.value == "give" else messages.unchecked)
        elif on_error.value != "abstain":
            why += (
                f"; `{on_error.rule}: {on_error.value}` would let out or lose an answer that is held back: abstaining"
            )
        return question.decision(step, on_error.rule, why, failure)


def _spent(question: DecisionInput) -> Spent:
    progress = question.progress
    return Spent(
        seconds=progress.elapsed_s,
        attempts=question.context().n_attempts,
        cost=max(progress.cost, cost_of(question.rules.escalate, progress.tried)),
    )


def _last_step(rules: Rules) -> Step:
    match rules.otherwise.value:
        case "abstain":
            return Abstain(message=rules.messages.abstain)
        case "answer_with_warning":
            return AnswerWithWarning(warning=rules.messages.warning)
        case "give":
            return AnswerWithWarning()
        case _:
            assert_never(rules.otherwise.value)


def _accepted(confidence: Confidence, value: float, threshold: float) -> str:
    """Describe why an answer is given: by the comparison, or by its confidence where nothing is asked of it."""
    if threshold > 0:
        return f"confidence {versus(value, '>=', threshold)}"
    return ": ".join(filter(None, [f"confidence {value:.2f}", confidence.why]))


def _how(choice: Choice, progress: Progress) -> str:
    """Describe the step taken and the steps skipped for the budget."""
    entry = choice.entry
    if entry is None:
        return ""
    spec = entry.value.spec
    passed = [f"{skipped.rule} is over budget ({skipped.why})" for skipped in choice.skipped if skipped.limit]
    return "; ".join([*passed, spec.try_in_words(spec.tries - tries_left(entry, progress) + 1)])
