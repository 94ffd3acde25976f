"""What the policy says about text that comes with requests for tools."""

from __future__ import annotations

from typing import Any

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.flow import Exchange
from semgrad_guard.policy import PolicyDecider, parse_policy, policy_from

CAUTIOUS: Any = {"accept": 0.7, "overrides": [{"match": {"tags": "internal"}, "beside_tool_calls": "pass"}]}
QUIET: Any = {
    "accept": 0.7,
    "otherwise": "answer_with_warning",
    "on_error": "answer_with_warning",
    "on_uncalibrated": "warn",
    "messages": {"warning": "", "unchecked": ""},
}


def test_it_is_judged_unless_the_policy_says_otherwise() -> None:
    """Nothing passes in silence."""
    assert PolicyDecider(policy_from({"accept": 0.7})).beside_tool_calls(Exchange()) == ("judge", "beside_tool_calls")


def test_an_override_may_say_otherwise() -> None:
    """Like every other setting."""
    decider = PolicyDecider(policy_from(CAUTIOUS))
    internal = Exchange(tags=frozenset({"internal"}))
    assert decider.beside_tool_calls(internal) == ("pass", "overrides[0].beside_tool_calls")
    assert decider.beside_tool_calls(Exchange()) == ("judge", "beside_tool_calls")


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    """A misspelt word must not let text pass."""
    with pytest.raises(PolicyFileError) as raised:
        parse_policy("accept: 0.7\nbeside_tool_calls: blanc")
    assert raised.value.key == "beside_tool_calls"
    assert "blank" in str(raised.value)


@pytest.mark.parametrize(("handling", "changes"), [("judge", False), ("pass", False), ("blank", True)])
def test_leaving_text_out_changes_answers(handling: str, changes: bool) -> None:
    """So streams must be held back for it."""
    assert PolicyDecider(policy_from({**QUIET, "beside_tool_calls": handling})).can_change_answers is changes
