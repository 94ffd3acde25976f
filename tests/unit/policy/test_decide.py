"""Each rule of how a policy is read; `decider.py` states them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import RiskNotControllableError, UncalibratedError
from semgrad_guard.flow import (
    Abstain,
    Accept,
    Action,
    AnswerWithWarning,
    Failure,
    FallbackModel,
    HumanReview,
    RetryRetrieval,
)
from semgrad_guard.policy import PolicyDecider
from semgrad_guard.ports import Decider

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from semgrad_guard.flow import Decision
    from semgrad_guard.policy.promises import Promise

    Ask = Callable[..., Any]

LADDER = """
    accept: 0.7
    escalate:
      - retry_retrieval: {top_k: 8, attempts: 2}
      - fallback_model: big
      - human_review: {when: {below: 0.35}}
    messages: {abstain: REFUSED, pending: WAIT, warning: CARE, unchecked: UNKNOWN}
"""
RETRY, FALLBACK, REVIEW = "escalate[0].retry_retrieval", "escalate[1].fallback_model", "escalate[2].human_review"


# --- accept -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("confidence", "accepted"), [(0.7, True), (1.0, True), (0.6999, False), (0.0, False)])
def test_an_answer_is_accepted_from_the_threshold_on(ask: Ask, confidence: float, accepted: bool) -> None:
    """`accept: 0.7` means at least 0.7."""
    decision = ask(LADDER).decide(confidence)
    assert (decision.step == Accept()) is accepted
    assert (decision.rule == "accept") is accepted


def test_the_reason_tells_close_numbers_apart(ask: Ask) -> None:
    """`0.70 < 0.70` would look like a fault."""
    assert ask(LADDER).decide(0.6999).why.startswith("confidence 0.6999 < 0.7000")


def test_the_decision_carries_what_it_was_made_from(ask: Ask) -> None:
    """Records show score, confidence and exchange of the very attempt."""
    question = ask(LADDER)
    decision = question.decide(0.9)
    assert decision.exchange_id == question.exchange.id
    assert decision.score is not None
    assert decision.confidence.value == 0.9


def test_the_decider_is_what_the_guard_asks_for(ask: Ask) -> None:
    """The guard knows only the protocol."""
    assert isinstance(ask(LADDER).decider, Decider)


# --- ladder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "tried", "exhausted", "rule"),
    [
        (0.5, {}, (), RETRY),  # first step first
        (0.5, {RETRY: 1}, (), RETRY),  # it has two tries
        (0.5, {RETRY: 2}, (), FALLBACK),  # used up: the next
        (0.5, {RETRY: 1}, (RETRY,), FALLBACK),  # same passages, or it failed: a second try can't help
        (0.5, {RETRY: 2, FALLBACK: 1}, (), "otherwise"),  # 0.5 is not below 0.35: no review
        (0.2, {RETRY: 2, FALLBACK: 1}, (), REVIEW),
        (0.2, {RETRY: 2, FALLBACK: 1}, (REVIEW,), "otherwise"),  # the queue is down
        (0.2, {}, (RETRY, FALLBACK, REVIEW), "otherwise"),
    ],
)
def test_steps_are_tried_in_order_and_only_as_often_as_allowed(
    ask: Ask, confidence: float, tried: dict[str, int], exhausted: tuple[str, ...], rule: str
) -> None:
    """The ladder of the file, rung by rung."""
    question = ask(LADDER).at(tried=tried, exhausted=frozenset(exhausted))
    assert question.decide(confidence).rule == rule


def test_the_step_of_the_rule_is_the_one_decided(ask: Ask) -> None:
    """Rule and step must not come apart."""
    steps = [
        ask(LADDER).decide(0.2).step,
        ask(LADDER).at(tried={RETRY: 2}).decide(0.2).step,
        ask(LADDER).at(exhausted=frozenset({RETRY, FALLBACK})).decide(0.2).step,
        ask(LADDER).at(exhausted=frozenset({RETRY, FALLBACK, REVIEW})).decide(0.2).step,
    ]
    assert steps == [
        RetryRetrieval(top_k=8),
        FallbackModel(name="big"),
        HumanReview(message="WAIT"),
        Abstain(message="REFUSED"),
    ]


def test_otherwise_may_answer_with_a_warning(ask: Ask) -> None:
    """Some applications prefer a doubtful answer to none."""
    decision = ask("accept: 0.7\notherwise: answer_with_warning\nmessages: {warning: CARE}").decide(0.1)
    assert (decision.step, decision.rule) == (AnswerWithWarning(warning="CARE"), "otherwise")


def test_the_reason_of_the_end_names_what_was_skipped(ask: Ask) -> None:
    """Whoever reads the log sees why no step was left."""
    why = ask(LADDER).at(tried={RETRY: 2}, exhausted=frozenset({FALLBACK})).decide(0.5).why
    assert f"{RETRY}: used up" in why
    assert f"{FALLBACK}: failed or can't help any more" in why
    assert f"{REVIEW}: not meant for this answer" in why


def test_conditions_look_at_the_best_attempt(ask: Ask) -> None:
    """The best attempt is what a person would get: a retry that made it worse must not send a good one to review."""
    question = ask(LADDER).after(0.6).at(exhausted=frozenset({RETRY, FALLBACK}))
    assert question.decide(0.2).rule == "otherwise"
    assert "best attempt 0.60" in question.decide(0.2).why


def test_sentences_are_those_of_the_best_attempt(ask: Ask) -> None:
    """A weak sentence of an attempt that is not returned does not matter."""
    question = ask("""
        accept: 0.9
        scorer: {granularity: sentence}
        escalate: [{human_review: {when: {any_sentence_below: 0.3}}}]
    """)
    weak, fine = (0.2, 0.9), (0.8, 0.9)
    assert question.after(0.6, spans=fine).decide(0.5, weak).action == Action.ABSTAIN
    assert question.after(0.6, spans=weak).decide(0.5, fine).action == Action.HUMAN_REVIEW
    assert question.decide(0.5, weak).action == Action.HUMAN_REVIEW


def test_of_equal_attempts_the_earliest_counts(ask: Ask) -> None:
    """It is the one that is returned, so its sentences are the ones to look at."""
    question = ask("""
        accept: 0.9
        scorer: {granularity: sentence}
        escalate: [{human_review: {when: {any_sentence_below: 0.3}}}]
    """)
    assert question.after(0.5, spans=(0.2,)).decide(0.5, (0.8,)).action == Action.HUMAN_REVIEW


def test_the_attempt_number_counts_attempts_not_failed_steps(ask: Ask) -> None:
    """A retriever that failed gave no second attempt."""
    question = ask("accept: 0.7\nescalate: [{human_review: {when: {attempt: 2}}}]")
    assert question.at(tried={"x": 3}).decide(0.5).rule == "otherwise"
    assert question.after(0.5).decide(0.5).rule == "escalate[0].human_review"


def test_a_present_attempt_that_is_worse_than_the_threshold_is_never_accepted_for_an_earlier_one(ask: Ask) -> None:
    """Accepting means giving the present answer; an earlier, better one does not vouch for it."""
    assert ask(LADDER).after(0.9).decide(0.1).action != Action.ACCEPT


# --- budget -----------------------------------------------------------------------------------------------------------

COSTED = """
    accept: 0.7
    escalate:
      - fallback_model: {name: big, cost: 5, attempts: 3}
      - retry_retrieval: {attempts: 3}
      - human_review: {when: {tags: reviewed}}
    budget: {seconds: 30, attempts: 3, cost: 6}
"""
BIG, AGAIN = "escalate[0].fallback_model", "escalate[1].retry_retrieval"


@pytest.mark.parametrize(
    ("elapsed_s", "tried", "rule"),
    [
        (29.9, {}, BIG),
        (30.0, {}, "budget.seconds"),
        (0.0, {BIG: 1}, AGAIN),  # 5 + 5 > 6, but a retry for 1 still fits
        (0.0, {BIG: 1, AGAIN: 1}, "budget.cost"),  # 5 + 1 are spent
        (float("nan"), {}, "budget.seconds"),  # a broken clock must not make the budget endless
    ],
)
def test_the_budget_stops_new_attempts(ask: Ask, elapsed_s: float, tried: dict[str, int], rule: str) -> None:
    """Seconds and cost units, counted by what was tried."""
    decision = ask(COSTED).at(elapsed_s=elapsed_s, tried=tried).decide(0.5)
    assert decision.rule == rule


def test_cost_that_the_guard_counted_counts_too(ask: Ask) -> None:
    """A guard may know real prices."""
    assert ask(COSTED).at(cost=6.0).decide(0.5).rule == "budget.cost"


def test_attempts_include_the_first_answer(ask: Ask) -> None:
    """`attempts: 3` is three answers in all."""
    assert ask(COSTED).after(0.5).decide(0.5).rule == BIG
    assert ask(COSTED).after(0.5, 0.5).decide(0.5).rule == "budget.attempts"


def test_an_attempt_seen_twice_counts_once(ask: Ask) -> None:
    """After a failed step the present attempt may also stand among the earlier ones."""
    question = ask(COSTED).after(0.5)
    again = question.about(id=question.progress.attempts[0].exchange.id, attempt=1)
    assert again.at(attempts=question.progress.attempts * 5).decide(0.5).rule == BIG


def test_the_attempt_number_of_the_exchange_counts_where_no_history_is_kept(ask: Ask) -> None:
    """Agents keep the count on the exchange."""
    assert ask(COSTED).about(attempt=3).decide(0.5).rule == "budget.attempts"


def test_the_budget_never_stops_review(ask: Ask) -> None:
    """A person costs no attempt, and an answer that needs one must not be dropped for lack of seconds."""
    decision = ask(COSTED).about(tags=frozenset({"reviewed"})).at(elapsed_s=99.0).decide(0.5)
    assert decision.rule == "escalate[2].human_review"
    assert "over budget (99 of 30 s used)" in decision.why


def test_a_budget_that_stopped_nothing_is_not_blamed(ask: Ask) -> None:
    """Only a step that would have been tried was stopped."""
    decision = ask(COSTED).at(elapsed_s=99.0, exhausted=frozenset({BIG, AGAIN})).decide(0.5)
    assert decision.rule == "otherwise"


# --- no confidence ----------------------------------------------------------------------------------------------------


def test_without_a_confidence_warn_answers_as_unchecked(ask: Ask) -> None:
    """Nothing judged it, and the caller is told so."""
    decision = ask("accept: 0.1\non_uncalibrated: warn\nmessages: {unchecked: UNKNOWN}").decide(None)
    assert (decision.step, decision.rule) == (AnswerWithWarning(warning="UNKNOWN"), "on_uncalibrated")


@pytest.mark.parametrize(
    ("line", "asked", "rule"),
    [
        ("on_uncalibrated: give", lambda question: question.decide(None), "on_uncalibrated"),
        ("otherwise: give", lambda question: question.decide(0.1), "otherwise"),
        ("on_error: give", lambda question: question.decide(math.nan), "on_error"),
    ],
)
def test_give_passes_the_answer_without_a_word_to_its_reader(
    ask: Ask, line: str, asked: Callable[..., Decision], rule: str
) -> None:
    """What is the matter is in the findings only, so the answer counts as doubtful and carries no text."""
    decision = asked(ask(f"accept: 0.7\n{line}\nmessages: {{warning: CARE, unchecked: UNKNOWN}}"))
    assert (decision.step, decision.rule) == (AnswerWithWarning(warning=""), rule)


def test_where_everything_is_accepted_the_reason_is_that_of_the_confidence(ask: Ask) -> None:
    """`0.43 >= 0.00` would tell nobody why."""
    assert ask("accept: 0").decide(0.43).why == "confidence 0.43: test"


@pytest.mark.parametrize("line", ["", "on_uncalibrated: abstain"])
def test_without_a_confidence_the_answer_is_held_back_unless_the_policy_says_otherwise(ask: Ask, line: str) -> None:
    """Left out, the safe choice holds."""
    assert ask(f"accept: 0\n{line}").decide(None).step == Abstain(message="I am not sure enough to answer that.")


def test_without_a_confidence_error_raises_with_the_reason(ask: Ask) -> None:
    """Some want to hear of it at once."""
    with pytest.raises(UncalibratedError) as caught:
        ask("accept: 0.7\non_uncalibrated: error").decide(None)
    assert caught.value.why == "test"


@pytest.mark.parametrize("setting", ["abstain", "warn", "give", "error"])
def test_an_unjudged_retry_does_not_undo_an_earlier_judgement(ask: Ask, setting: str) -> None:
    """A fallback without a profile must not turn a held-back answer into a warned one, nor into an error."""
    question = ask(LADDER + f"    on_uncalibrated: {setting}").after(0.2).at(exhausted=frozenset({RETRY, FALLBACK}))
    assert question.decide(None).rule == REVIEW


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.0001])
def test_a_confidence_outside_its_range_is_a_failure(ask: Ask, value: float) -> None:
    """A number that is no probability must not accept anything."""
    decision = ask("accept: 0\non_uncalibrated: warn").decide(value)
    assert (decision.rule, decision.action) == ("on_error", Action.ABSTAIN)
    assert decision.failure is not None
    assert decision.failure.stage == "calibration"


# --- error rates ------------------------------------------------------------------------------------------------------

RISKY = """
    accept: {max_error_rate: 0.1}
    on_uncalibrated: warn
    overrides: [{match: {tags: medical}, accept: {max_error_rate: 0.01, delta: 0.1}}]
"""


def test_an_error_rate_is_compared_by_the_threshold_computed_for_it(ask: Ask) -> None:
    """Policy files name rates; the profile knows which confidence keeps them, for which answers."""
    asked: list[Promise] = []

    def thresholds(promise: Promise) -> float:
        asked.append(promise)
        return 0.95 if promise.any_of else 0.6

    question = ask(RISKY, thresholds)
    assert question.decide(0.6).rule == "accept"
    medical = question.about(tags=frozenset({"medical"}))
    assert medical.decide(0.9).rule == "otherwise"
    assert medical.decide(0.95).rule == "overrides[0].accept"
    assert [one.rule for one in asked] == ["accept", *["overrides[0].accept"] * 2]
    assert (asked[0].max_error_rate, asked[1].max_error_rate) == (0.1, 0.01)


def test_thresholds_are_computed_once(ask: Ask) -> None:
    """Computing one goes over all labels; deciding must stay instant."""
    calls: list[object] = []
    decider = PolicyDecider(ask(RISKY).policy, lambda *args: calls.append(args) or 0.5)
    assert decider.compute_thresholds() == {"accept": 0.5, "overrides[0].accept": 0.5}
    decider.compute_thresholds()
    assert len(calls) == 2


def test_an_error_rate_that_cannot_be_kept_accepts_nothing(ask: Ask) -> None:
    """Then nothing is known about the answer: `on_uncalibrated` says what happens, at start or at the first answer."""

    def impossible(promise: Promise) -> float:
        raise RiskNotControllableError(promise.max_error_rate, promise.delta, "best is 0.2")

    question = ask(RISKY, impossible)
    assert question.decide(1.0).rule == "on_uncalibrated"
    with pytest.raises(RiskNotControllableError):
        question.decider.compute_thresholds()


def test_an_error_rate_without_a_profile_is_uncalibrated(ask: Ask) -> None:
    """There is nothing to compute the threshold from."""
    assert ask(RISKY).decide(1.0).rule == "on_uncalibrated"
    with pytest.raises(UncalibratedError):
        ask(RISKY.replace("warn", "error")).decide(1.0)


@pytest.mark.parametrize("threshold", [float("inf"), float("nan"), 1.1])
def test_a_threshold_that_nothing_reaches_accepts_nothing(ask: Ask, threshold: float) -> None:
    """`accept nothing` is a sound answer of a resolver."""
    assert ask(RISKY, lambda *_: threshold).decide(1.0).action == Action.ABSTAIN


# --- overrides --------------------------------------------------------------------------------------------------------

OVERRIDDEN = """
    accept: 0.5
    escalate: [retry_retrieval]
    messages: {abstain: REFUSED, pending: WAIT}
    overrides:
      - {match: {tags: medical}, accept: 0.9, escalate: [human_review]}
      - match: {metadata: {tenant: acme}}
        accept: 0.1
        otherwise: answer_with_warning
        messages: {pending: ACME, warning: W}
      - {match: {tags: silent}, escalate: [], on_error: human_review, on_uncalibrated: warn, messages: {pending: LAST}}
"""
MEDICAL, ACME, SILENT = (
    {"tags": frozenset({"medical"})},
    {"metadata": {"tenant": "acme"}},
    {"tags": frozenset({"silent"})},
)


@pytest.mark.parametrize(
    ("about", "confidence", "rule"),
    [
        ({}, 0.5, "accept"),
        ({}, 0.4, "escalate[0].retry_retrieval"),
        (MEDICAL, 0.8, "overrides[0].escalate[0].human_review"),
        (MEDICAL, 0.9, "overrides[0].accept"),
        (ACME, 0.1, "overrides[1].accept"),
        (ACME, 0.0, "escalate[0].retry_retrieval"),  # what an override leaves out stays
        (MEDICAL | ACME, 0.8, "overrides[0].escalate[0].human_review"),  # of two accepts the first one's
        (SILENT, 0.4, "otherwise"),  # an empty ladder is a setting too
        (SILENT, None, "overrides[2].on_uncalibrated"),
    ],
)
def test_each_setting_comes_from_the_first_override_that_sets_it(
    ask: Ask, about: dict[str, Any], confidence: float | None, rule: str
) -> None:
    """The order of the file decides, key by key."""
    assert ask(OVERRIDDEN).about(**about).decide(confidence).rule == rule


def test_several_overrides_add_up(ask: Ask) -> None:
    """Accept and ladder of the first, `otherwise` and messages of the second."""
    question = ask(OVERRIDDEN).about(**(MEDICAL | ACME))
    assert question.decide(0.8).step == HumanReview(message="ACME")
    exhausted = frozenset({"overrides[0].escalate[0].human_review"})
    ended = question.at(exhausted=exhausted).decide(0.8)
    assert (ended.step, ended.rule) == (AnswerWithWarning(warning="W"), "overrides[1].otherwise")


def test_messages_are_overridden_one_by_one(ask: Ask) -> None:
    """Changing one message leaves the others; of two changes the first counts."""
    question = ask(OVERRIDDEN)
    failure = Failure("scoring", "X", "x")
    both = question.about(tags=frozenset({"silent"}), metadata={"tenant": "acme"})
    assert both.decider.decide_failure(both.exchange, failure, both.progress).step == HumanReview(message="ACME")
    silent = question.about(**SILENT)
    assert silent.decide(0.1).step == Abstain(message="REFUSED")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "stage", "judged", "action"),
    [
        ("abstain", "scoring", False, Action.ABSTAIN),
        ("human_review", "scoring", False, Action.HUMAN_REVIEW),
        ("human_review", "scoring", True, Action.HUMAN_REVIEW),
        ("human_review", "human_review", True, Action.ABSTAIN),  # the queue itself is down: there is nobody to ask
        ("answer_with_warning", "scoring", False, Action.ANSWER_WITH_WARNING),
        ("answer_with_warning", "scoring", True, Action.ABSTAIN),  # the best attempt was judged too doubtful
        ("answer_with_warning", "human_review", False, Action.ABSTAIN),  # it was meant for a person's eyes first
    ],
)
def test_a_failure_never_lets_out_what_was_held_back(
    ask: Ask, setting: str, stage: str, judged: bool, action: Action
) -> None:
    """`on_error`, and where failing closed goes before it."""
    question = ask(f"accept: 0.7\non_error: {setting}\nmessages: {{unchecked: U, pending: WAIT}}")
    question = question.after(0.3) if judged else question
    failure = Failure(stage, "OutOfMemoryError", "too long")
    decision = question.decider.decide_failure(question.exchange, failure, question.progress)
    assert (decision.action, decision.rule, decision.failure) == (action, "on_error", failure)
    assert "too long" in decision.why


def test_review_on_error_is_not_asked_for_again_when_it_is_exhausted(ask: Ask) -> None:
    """A caller that marks the rule as failed gets an end, not a loop."""
    question = ask("accept: 0.7\non_error: human_review").at(exhausted=frozenset({"on_error"}))
    decision = question.decider.decide_failure(question.exchange, Failure("scoring", "X", "x"), question.progress)
    assert decision.action == Action.ABSTAIN


def test_a_failed_judgement_warns_as_unchecked(ask: Ask) -> None:
    """The caller reads that nothing checked the answer, not that it is doubtful."""
    question = ask("accept: 0.7\non_error: answer_with_warning\nmessages: {unchecked: U, warning: W}")
    decision = question.decider.decide_failure(question.exchange, Failure("scoring", "X", "x"), question.progress)
    assert decision.step == AnswerWithWarning(warning="U")
