"""The pure decision: exchange, score, confidence and progress in; the step, its rule and the reason out.

How a policy is read
--------------------
1. **Settings.** Every override whose `match` fits counts. Each key comes from the first of them that sets it, else
   from the top of the file; messages one by one. Tags match when the exchange carries at least one of the list.
2. **No usable confidence.** None at all: rule `on_uncalibrated` (`warn` answers with `messages.unchecked`, `abstain`,
   `error` raises `UncalibratedError`). NaN or outside [0, 1]: a failure, rule `on_error`. The same for an error rate
   whose threshold cannot be computed: rule `on_uncalibrated`. Which labelled answers a rate is computed from, and with
   which certainty, stands in `promises`.
3. **Accept.** Present confidence >= threshold: rule `accept` (or `overrides[0].accept`).
4. **Ladder.** Otherwise the steps of `escalate` are gone through from the top, each time anew; the first that is not
   exhausted, not used up, whose `when` holds and that the budget allows is taken: rule `escalate[0].retry_retrieval`.
   `when` looks at the best attempt so far, because that is the one which is returned or handed on.
5. **Budget.** `seconds`, `attempts` (first answer included) and `cost` stop retries and fallbacks only. A step that
   would pass the cost limit is skipped; a cheaper one below it is still tried.
6. **The end.** No step left: `otherwise`, under the rule `otherwise`, or `budget.seconds`, `budget.attempts`,
   `budget.cost` when the budget stopped a step that would have been tried.
7. **Failures.** `on_error` says what happens to an answer that could not be judged or handed over.

Fail closed: an answer that was judged too doubtful, or that a person was to see, is never let out by a later failure.
So `on_error: answer_with_warning` abstains when handing over failed or when an earlier attempt was judged, and
`human_review` abstains when handing over is what failed. When an earlier attempt was judged, `on_uncalibrated` does not
apply to a later one without a confidence (say, of a fallback model without a profile): it counts as no better, and the
ladder goes on.

A ladder ends: each step has a number of tries, all of them together at most `MAX_LADDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.errors import CalibrationError, UncalibratedError
from semgrad_guard.flow import Abstain, Accept, AnswerWithWarning, Attempt, Failure, HumanReview
from semgrad_guard.policy.best import best_attempt, known
from semgrad_guard.policy.fields import versus
from semgrad_guard.policy.ladder import Spent, climb, cost_of, tries_left
from semgrad_guard.policy.promises import promises
from semgrad_guard.policy.question import Question
from semgrad_guard.policy.rules import Ruled, rules_for
from semgrad_guard.policy.sections import RiskTarget
from semgrad_guard.policy.steps import HumanReviewStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.flow import Confidence, Decision, Exchange, Progress, Score, Step
    from semgrad_guard.policy.ladder import Choice
    from semgrad_guard.policy.model import Override, Policy
    from semgrad_guard.policy.promises import Promise
    from semgrad_guard.policy.rules import Rules

    Thresholds = Callable[[Promise], float]
    """A promise -> the lowest confidence that keeps it; raises `CalibrationError` if none does."""


def no_thresholds(promise: Promise) -> float:  # noqa: ARG001 - the shape of a resolver
    """Refuse to compute a threshold: there is nothing to compute it from."""
    raise UncalibratedError("`accept` asks for an error rate, and no profile was given to compute its threshold from")


class PolicyDecider:
    """Decides as a policy says; pure, so one decider may be used from many threads at once."""

    def __init__(self, policy: Policy, thresholds: Thresholds = no_thresholds) -> None:
        """Make a decider.

        Args:
            policy: what to do.
            thresholds: computes the confidence that keeps an error rate; asked once for each `accept` that needs it.
        """
        self.policy = policy
        self._thresholds = thresholds
        self._promises = promises(policy)
        self._computed: dict[str, float] = {}

    @property
    def can_change_answers(self) -> bool:
        """Whether the caller may get anything but the model's own words: a refusal, a person's words or a warning.

        Adapters may pass the tokens of an answer on before it is judged only where this is false.
        """
        policy = self.policy
        said: list[Policy | Override] = [policy, *policy.overrides]
        ends = {end for rules in said for end in (rules.otherwise, rules.on_error, rules.on_uncalibrated)} - {None}
        people = any(rung.human_review is not None for _, rung in policy.ladders())
        texts = [rules.messages for rules in said if rules.messages is not None]
        warned = any(messages.warning or messages.unchecked for messages in texts)
        return bool(ends - {"answer_with_warning", "warn"}) or people or warned

    def compute_thresholds(self) -> dict[str, float]:
        """Return the confidence that each `accept` needs, by rule; error rates are computed now, not at first use.

        A rule that never decides, because earlier ones take all its answers, is left out where it asks for a rate.

        Raises:
            CalibrationError: an error rate cannot be kept, or there is no profile to compute its threshold from.
        """
        overrides = enumerate(self.policy.overrides)
        wanted = {"accept": self.policy.accept, **{f"overrides[{i}].accept": o.accept for i, o in overrides}}
        decided = {
            rule: one for rule, one in wanted.items() if not isinstance(one, RiskTarget) or rule in self._promises
        }
        return {rule: self._number(Ruled(one, rule)) for rule, one in decided.items() if one is not None}

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        """Return the step for a judged attempt.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
        """
        rules = rules_for(self.policy, exchange)
        question = Question(rules=rules, exchange=exchange, progress=progress, score=score, confidence=confidence)
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
            return question.decision(Accept(), rules.accept.rule, f"confidence {versus(value, '>=', threshold)}")
        return self._escalate(question, threshold)

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        """Return what happens to an answer that could not be judged or handed over: the policy's `on_error`."""
        question = Question(rules=rules_for(self.policy, exchange), exchange=exchange, progress=progress)
        return self._failed(question, failure)

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        """Return the attempt with the highest confidence among the earlier ones and the present one."""
        return best_attempt(progress, Attempt(exchange, decision)).exchange

    def _number(self, accept: Ruled[float | RiskTarget]) -> float:
        if not isinstance(accept.value, RiskTarget):
            return accept.value
        if accept.rule not in self._computed:
            self._computed[accept.rule] = self._thresholds(self._promises[accept.rule])
        return self._computed[accept.rule]

    def _unjudged(self, question: Question, why: str, error: str) -> Decision:
        """Decide when nothing can be compared."""
        on_uncalibrated, messages = question.rules.on_uncalibrated, question.rules.messages
        if on_uncalibrated.value == "error":
            raise UncalibratedError(error)
        warn = on_uncalibrated.value == "warn"
        step: Step = AnswerWithWarning(warning=messages.unchecked) if warn else Abstain(message=messages.abstain)
        return question.decision(step, on_uncalibrated.rule, why)

    def _escalate(self, question: Question, threshold: float) -> Decision:
        rules, standing, progress = question.rules, question.standing(), question.progress
        spent = Spent(
            seconds=progress.elapsed_s,
            attempts=standing.n_attempts,
            cost=max(progress.cost, cost_of(rules.escalate, progress.tried)),
        )
        choice = climb(rules.escalate, standing, progress, self.policy.budget, spent)
        doubt = question.doubt(threshold)
        if choice.rung is not None:
            why = f"{doubt}; {_how(choice, progress)}"
            step = choice.rung.value.spec.to_flow(rules.messages.pending)
            return question.decision(step, choice.rung.rule, why)
        why = "; ".join([f"{doubt}, and no step is left", *(f"{one.rule}: {one.why}" for one in choice.skipped)])
        return question.decision(_last_step(rules), choice.limit or rules.otherwise.rule, why)

    def _failed(self, question: Question, failure: Failure) -> Decision:
        on_error, messages = question.rules.on_error, question.rules.messages
        step: Step = Abstain(message=messages.abstain)
        why = f"{failure.stage} failed ({failure.type}: {failure.message})"
        not_handed_over = failure.stage == HumanReview.action.value or on_error.rule in question.progress.exhausted
        if on_error.value == "human_review" and not not_handed_over:
            step = HumanReview(message=messages.pending)
        elif on_error.value == "answer_with_warning" and not (not_handed_over or question.judged_before):
            step = AnswerWithWarning(warning=messages.unchecked)
        elif on_error.value != "abstain":
            why += (
                f"; `{on_error.rule}: {on_error.value}` would let out or lose an answer that is held back: abstaining"
            )
        return question.decision(step, on_error.rule, why, failure)


def _last_step(rules: Rules) -> Step:
    if rules.otherwise.value == "abstain":
        return Abstain(message=rules.messages.abstain)
    return AnswerWithWarning(warning=rules.messages.warning)


def _how(choice: Choice, progress: Progress) -> str:
    """Return in words which step is taken, and which were passed over by the budget."""
    rung = choice.rung
    if rung is None:
        return ""
    spec = rung.value.spec
    passed = [f"{one.rule} is over budget ({one.why})" for one in choice.skipped if one.limit]
    if isinstance(spec, HumanReviewStep):
        return "; ".join([*passed, "a person decides"])
    this = spec.attempts - tries_left(rung, progress) + 1
    return "; ".join([*passed, f"try {this} of {spec.attempts}"])
