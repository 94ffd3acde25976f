"""The steps as the file may write them, and what routing gets of them."""

from __future__ import annotations

from typing import get_args

import pytest

from semgrad_guard.flow import STEP_TYPES, Action, FallbackModel, HumanReview, NewAttempt, RetryRetrieval, Step
from semgrad_guard.policy import PolicyDecider, default_text, policy_from
from semgrad_guard.policy.steps import SPECS, EscalationStep, NewAttemptStep


@pytest.mark.parametrize(
    ("short", "spelled_out"),
    [
        ("human_review", {"human_review": {}}),
        ("retry_retrieval", {"retry_retrieval": {}}),
        ({"retry_retrieval": None}, {"retry_retrieval": {}}),  # `- retry_retrieval:` with nothing behind it
        ({"fallback_model": "big"}, {"fallback_model": {"name": "big"}}),
        ({"human_review": {"when": {"tags": "a"}}}, {"human_review": {"when": {"tags": ["a"]}}}),
        ({"human_review": {"when": {"attempt": 2}}}, {"human_review": {"when": {"attempt": [2]}}}),
    ],
)
def test_short_forms_mean_the_same_as_spelled_out(short: object, spelled_out: object) -> None:
    """The simplest thing to write is right."""
    assert EscalationStep.model_validate(short) == EscalationStep.model_validate(spelled_out)


@pytest.mark.parametrize("step", get_args(Step), ids=lambda step: step.__name__)
def test_every_step_knows_whether_another_attempt_follows(step: type[Step]) -> None:
    """The flow goes by what the step says, the type checker by the union: they must agree."""
    assert step.ends_question is (step not in get_args(NewAttempt))


@pytest.mark.parametrize("written", ["retry_retrieval", {"fallback_model": "big"}, "human_review"])
def test_the_policy_counts_the_tries_of_steps_that_another_attempt_follows(written: object) -> None:
    """Budget and cost are for new attempts; whatever ends the question is never stopped by them."""
    spec = EscalationStep.model_validate(written).spec
    assert isinstance(spec, NewAttemptStep) is not spec.to_flow("pending").ends_question


@pytest.mark.parametrize(
    ("written", "step"),
    [
        ({"retry_retrieval": {}}, RetryRetrieval()),
        (
            {
                "retry_retrieval": {
                    "top_k": 8,
                    "rewrite_query": True,
                    "retriever": "wide",
                    "drop_unused": True,
                    "configurable": {"k": [1]},
                    "timeout_s": 5,
                }
            },
            RetryRetrieval(
                top_k=8,
                rewrite_query=True,
                retriever="wide",
                drop_unused=True,
                configurable={"k": [1]},
                timeout_s=5.0,
            ),
        ),
        (
            {"fallback_model": {"name": "big", "unscored": True, "timeout_s": 2.5}},
            FallbackModel(name="big", unscored=True, timeout_s=2.5),
        ),
        ({"human_review": {"wait_s": 3}}, HumanReview(wait_s=3.0, message="pending text")),
        ({"human_review": {"message": "own text"}}, HumanReview(message="own text")),
    ],
)
def test_every_setting_reaches_routing(written: object, step: Step) -> None:
    """A key that is read but not handed on would be a lie."""
    assert EscalationStep.model_validate(written).spec.to_flow("pending text") == step


def test_a_policy_cannot_be_changed() -> None:
    """Threads share it."""
    policy = policy_from({"accept": 0.7})
    with pytest.raises(ValueError, match="frozen"):
        policy.accept = 0.1  # type: ignore[misc]  # the test is that this fails


def test_every_step_of_the_policy_has_its_field_its_action_and_its_words() -> None:
    """A step that is listed in one place only would be read and then not carried out, or not explained."""
    assert set(SPECS) == set(EscalationStep.model_fields)
    for name, kind in SPECS.items():
        spec = kind.model_validate({field: "big" for field, info in kind.model_fields.items() if info.is_required()})
        step = spec.to_flow("later")
        assert step.action == name
        assert isinstance(step, STEP_TYPES[Action(name)])
        assert step.ends_question is not spec.answers_again
        assert spec.words()
        assert spec.try_in_words(1)


def test_every_action_has_its_step() -> None:
    """An action without a step could be written into a log and never be read again."""
    assert set(STEP_TYPES) == set(Action)


def test_the_shipped_policy_shows_every_step() -> None:
    """It is where people look first."""
    assert [name for name in SPECS if name not in default_text()] == []


@pytest.mark.parametrize("name", SPECS)
def test_a_step_that_ends_the_question_changes_answers(name: str) -> None:
    """Adapters pass the tokens of an answer on before it is judged where nothing may change it."""
    kind = SPECS[name]
    settings = {field: "big" for field, info in kind.model_fields.items() if info.is_required()}
    quiet = {"otherwise": "answer_with_warning", "on_error": "answer_with_warning", "on_uncalibrated": "warn"}
    silent = {"messages": {"warning": "", "unchecked": ""}, "review": {"url": "sqlite:///:memory:"}}
    policy = policy_from({"version": 1, "accept": 0.7, **quiet, **silent, "escalate": [{name: settings}]})
    decider = PolicyDecider(policy)
    assert decider.can_change_answers is not issubclass(kind, NewAttemptStep)
    assert decider.can_answer_again is issubclass(kind, NewAttemptStep)
