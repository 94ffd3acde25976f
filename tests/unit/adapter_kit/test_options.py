"""The options that every entry point of an adapter shares."""

from __future__ import annotations

import logging

import pytest

from semgrad_guard.adapter_kit import GuardOptions, check_option, options
from semgrad_guard.errors import OptionError
from tests.fakes import TableScorer, guard_of

POLICY = {"version": 1, "accept": 0.5, "otherwise": "abstain", "review": {"url": "sqlite:///:memory:"}}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"llm": 1, "model": 2}, "llm+model"),
        ({"model": 1, "scorer": TableScorer()}, "model+scorer"),
        ({"guard": guard_of(), "policy": {}}, "guard"),
        ({"scorer": TableScorer(), "embedder": 1, "embedder_option": "embed_model"}, "scorer+embed_model"),
    ],
)
def test_options_that_exclude_each_other_are_refused_at_once(given: dict, named: str) -> None:
    """A mistake must show when the chain is built, not at the first answer."""
    with pytest.raises(OptionError) as caught:
        GuardOptions(**given)
    assert caught.value.option == named


def test_a_ready_guard_is_used_as_it_is() -> None:
    """Whoever made it has said everything."""
    guard = guard_of()
    assert GuardOptions(guard=guard).build() is guard
    assert GuardOptions(guard=guard, llm=object()).build() is guard


def test_the_scorer_given_scores() -> None:
    """No model is loaded for it."""
    scorer = TableScorer()
    assert GuardOptions(policy=POLICY, scorer=scorer).build().parts.scorer is scorer


def test_the_demo_model_is_named_once_when_nothing_else_was(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who forgot the options should hear that answers are scored from outside, but not at every call."""
    options._default_noted.clear()
    monkeypatch.setattr(options.Guard, "from_yaml", lambda *_, **__: guard_of())
    with caplog.at_level(logging.WARNING, "semgrad_guard"):
        GuardOptions(policy=POLICY).build()
        GuardOptions().build(local=object())
        assert not caplog.records
        GuardOptions().build()
        GuardOptions().build()
    assert len(caplog.records) == 1


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    """The message is help."""
    check_option("stream", None, (None, "buffer"))
    with pytest.raises(OptionError, match="'buffer'"):
        check_option("stream", "bufer", (None, "buffer"))
