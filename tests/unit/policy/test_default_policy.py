"""The shipped policy: what users copy."""

from __future__ import annotations

import re

import yaml

from semgrad_guard.flow import Action, RetryRetrieval
from semgrad_guard.policy import default_text, load_policy, parse_policy
from semgrad_guard.policy.explain import notes
from semgrad_guard.policy.mistakes import keys_at
from semgrad_guard.policy.model import Policy


def test_it_retries_then_abstains_and_fails_closed() -> None:
    """What was not judged is held back, unless the user writes otherwise."""
    policy = load_policy()
    assert [rung.name for rung in policy.escalate] == [Action.RETRY_RETRIEVAL]
    assert policy.escalate[0].spec.to_flow("") == RetryRetrieval(top_k=8)
    assert (policy.otherwise, policy.on_error, policy.on_uncalibrated) == ("abstain", "abstain", "abstain")
    assert policy.beside_tool_calls == "judge"


def test_it_asks_nobody_until_a_queue_is_named() -> None:
    """A copied file must not write a database into the working folder, nor promise a person who does not exist."""
    assert load_policy().review.url is None
    assert "human_review" in default_text()


def test_it_gives_no_reason_for_a_note() -> None:
    """What we ship must not look like a mistake."""
    assert notes(load_policy()) == []


def test_its_scorer_is_what_a_file_without_one_gets() -> None:
    """Leaving `scorer` out and copying it from the shipped file must mean the same."""
    assert load_policy().scorer == Policy(accept=0.5).scorer


def test_it_names_every_key_at_the_top() -> None:
    """Users learn the keys from this file."""
    assert {*yaml.safe_load(default_text()), "review"} == set(keys_at(()))
    assert "\n#review:\n" in default_text()


def test_its_commented_out_examples_are_right() -> None:
    """An example that is refused when uncommented teaches the wrong thing."""
    text = re.sub(r"^ *(overrides: \[\]|accept: 0.7)\n", "", default_text(), flags=re.MULTILINE)
    policy = parse_policy(re.sub(r"^( *)#(?! |$)", r"\1", text, flags=re.MULTILINE))
    assert len(policy.overrides) == 2
    assert policy.budget.cost == 3
    assert policy.telemetry.jsonl == "guard.jsonl"
    assert policy.review.queue_url == "sqlite:///semgrad-review.db"
    assert [rung.name for rung in policy.escalate] == ["retry_retrieval", "fallback_model", "human_review"]
    assert policy.model_dump()["accept"] == {"max_error_rate": 0.1, "delta": 0.05}


def test_it_logs_no_text() -> None:
    """Prompts and answers may be private; logging them must be asked for."""
    assert load_policy().telemetry.log_text is False
