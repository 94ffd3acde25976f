"""Steps that lack something are named when a guard is built, and so is what no step names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semgrad_guard.adapter_kit import Means, check_means
from semgrad_guard.errors import OptionError, StepUnavailableError
from semgrad_guard.guard import Guard
from semgrad_guard.policy import PolicyDecider, load_policy, policy_from
from tests.fakes import guard_of

BIG, WIDE = {"fallback_model": "big"}, {"retry_retrieval": {"retriever": "wide"}}
OPENAI, FIELDS = {"fallback_model": "openai:gpt-4o"}, {"retry_retrieval": {"configurable": {"k": 9}}}


def guard(*steps: object) -> Guard:
    """Guard whose policy has these steps."""
    decider = PolicyDecider(policy_from({"accept": 0.7, "escalate": list(steps)}))
    return Guard(replace(guard_of().parts, decider=decider))


@pytest.mark.parametrize(
    ("step", "means", "said"),
    [
        ("retry_retrieval", {}, "escalate[0].retry_retrieval needs wrap(chain, retriever=...)"),
        ("retry_retrieval", {"asks_again": False, "retrieves": True}, "needs wrap(chain, retriever=...)"),
        (FIELDS, {"asks_again": False}, "needs wrap(chain): without"),
        (WIDE, {"retrieves": True}, "needs wrap(chain, retrievers={'wide': ...})"),
        (BIG, {"retrieves": True, "makes_models": True}, "needs wrap(chain, fallbacks={'big': ...})"),
        (OPENAI, {"makes_models": True, "asks_again": False}, "escalate[0].fallback_model needs wrap(chain)"),
        (OPENAI, {"advice": "Node({})"}, "needs Node()"),
    ],
)
def test_a_step_without_its_means_is_named_with_what_to_give(step: object, means: dict[str, Any], said: str) -> None:
    """It would be skipped at every answer, and only the records would tell."""
    with pytest.raises(StepUnavailableError) as caught:
        check_means(guard(step), Means(**means))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("step", "means"),
    [
        ("retry_retrieval", {"retrieves": True}),
        (FIELDS, {}),
        (WIDE, {"retrievers": ["wide"]}),
        (BIG, {"fallbacks": ["big"]}),
        (OPENAI, {"makes_models": True}),
        (OPENAI, {"fallbacks": ["openai:gpt-4o"]}),
        (BIG, {"fallbacks": ["big", "bigger"], "may_have_more": True}),
    ],
)
def test_a_step_with_its_means_is_fine(step: object, means: dict[str, Any]) -> None:
    """Nothing more is asked for."""
    check_means(guard(step), Means(**means))


@pytest.mark.parametrize(
    ("means", "option"), [({"fallbacks": ["big", "bgi"]}, "fallbacks"), ({"retrievers": ["wdie"]}, "retrievers")]
)
def test_what_no_step_names_is_refused(means: dict[str, Any], option: str) -> None:
    """It is misspelt, here or in the policy."""
    with pytest.raises(OptionError, match=r"big|wide") as caught:
        check_means(guard(BIG, WIDE), Means(**{"fallbacks": ["big"], "retrievers": ["wide"], **means}))
    assert caught.value.option == option


def test_a_policy_that_nobody_chose_and_a_decider_of_ones_own_are_left_alone() -> None:
    """Neither says what it needs."""
    shipped = Guard(replace(guard_of().parts, decider=PolicyDecider(load_policy())))
    check_means(shipped, Means(asks_again=False))
    check_means(guard_of(), Means(asks_again=False, fallbacks=["big"]))
