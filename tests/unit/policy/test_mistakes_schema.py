"""The JSON schema that editors use says the same as the parser."""

from __future__ import annotations

import pytest
import yaml
from jsonschema import Draft202012Validator

from semgrad_guard.policy import default_text, policy_schema
from semgrad_guard.policy.mistakes import homes_of, keys_at, words_at
from semgrad_guard.signals import METHODS, SIGNALS

VALIDATOR = Draft202012Validator(policy_schema())


def test_it_is_a_valid_schema() -> None:
    """Editors drop a schema that is not."""
    Draft202012Validator.check_schema(policy_schema())


def test_it_accepts_the_shipped_policy() -> None:
    """The first file that users open in an editor shows no red line."""
    assert list(VALIDATOR.iter_errors(yaml.safe_load(default_text()))) == []


@pytest.mark.parametrize(
    "content",
    [
        {"accept": 0.7, "escalate": ["human_review", "retry_retrieval"]},
        {"accept": 1, "escalate": [{"retry_retrieval": None}, {"human_review": {}}, {"fallback_model": "big"}]},
        {"accept": {"max_error_rate": 0.1}},
        {"accept": 0, "overrides": [{"match": {"tags": "a", "metadata": {"x": 1, "y": [True, None]}}, "accept": 1}]},
        {"accept": 0, "escalate": [{"human_review": {"when": {"attempt": 2, "tags": ["a"]}}}]},
    ],
)
def test_it_knows_the_short_forms(content: object) -> None:
    """What the parser takes must not be marked as wrong."""
    assert list(VALIDATOR.iter_errors(content)) == []


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"accept": 2},
        {"accept": "0.7"},
        {"accept": 0.7, "escalte": []},
        {"accept": 0.7, "escalate": ["fallback_model"]},
        {"accept": 0.7, "escalate": [{}]},
        {"accept": 0.7, "escalate": [{"human_review": {}, "retry_retrieval": {}}]},
        {"accept": 0.7, "escalate": [{"fallback_model": None}]},
        {"accept": 0.7, "escalate": [{"fallback_model": ""}]},
        {"accept": 0.7, "otherwise": "human_review"},
        {"accept": 0.7, "overrides": [{"accept": 0.9}]},
    ],
)
def test_it_refuses_what_the_parser_refuses(content: object) -> None:
    """The editor shows a mistake while it is made."""
    assert list(VALIDATOR.iter_errors(content))


def test_every_key_is_described() -> None:
    """Editors show the description beside the key."""
    schema = policy_schema()
    sections = schema["$defs"] | {"policy": schema}
    undescribed = [
        f"{section}.{key}"
        for section, described in sections.items()
        for key, value in described.get("properties", {}).items()
        if "description" not in value | schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
    ]
    assert undescribed == []


def test_the_caller_gets_a_copy() -> None:
    """Changing the returned schema must not change the words in later error messages."""
    policy_schema()["properties"].clear()
    assert "accept" in policy_schema()["properties"]


def test_words_and_keys_are_found_by_place() -> None:
    """Error messages choose the nearest word from these."""
    assert "top_k" in keys_at(("escalate", 0, "retry_retrieval"))
    assert "below" in keys_at(("overrides", 1, "escalate", 0, "human_review", "when"))
    assert words_at(("otherwise",)) == ("abstain", "answer_with_warning", "give")
    assert keys_at(("accept", "max_error_rate", "nothing")) == ()
    assert homes_of("wait_s") == ("escalate[].human_review", "overrides[].escalate[].human_review")


def test_methods_are_those_that_scoring_knows() -> None:
    """A method that only one side knows could not be used."""
    assert set(words_at(("scorer", "method"))) == {*METHODS, "fused"}


def test_costly_signals_are_those_that_scoring_knows() -> None:
    """The same for signals that are computed only when asked for."""
    assert set(words_at(("scorer", "signals", 0))) == {n for n, signal in SIGNALS.items() if signal.cost == "forward"}
