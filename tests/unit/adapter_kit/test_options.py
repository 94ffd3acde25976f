"""The options that every entry point of an adapter shares."""

from __future__ import annotations

import pytest

from semgrad_guard.adapter_kit import GuardOptions, check_option
from semgrad_guard.errors import OptionError
from tests.fakes import TableScorer, guard_of

POLICY = {"version": 1, "accept": 0.5, "otherwise": "abstain", "review": {"url": "sqlite:///:memory:"}}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"llm": 1, "model": 2}, "llm+model"),
        ({"model": 1, "scorer": TableScorer()}, "model+scorer"),
        ({"guard": guard_of(), "policy": {}}, "guard"),
        ({"accept": 0.7, "policy": {}}, "accept+policy"),
        ({"accept": 0.7, "guard": guard_of()}, "accept+guard"),
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


@pytest.mark.parametrize("accept", [None, 0.7])
def test_without_a_policy_nothing_is_asked_written_or_logged(accept: float | None) -> None:
    """A first try must leave nothing behind."""
    parts = GuardOptions(accept=accept, scorer=TableScorer()).build().parts
    assert (parts.queue, parts.earlier, parts.verdicts, parts.sink) == (None, None, None, None)
    assert parts.policy.startswith("measuring" if accept is None else "accepting from 0.7")


def test_a_threshold_that_is_none_is_refused_at_once() -> None:
    """Not when the guard is built, which may be later."""
    with pytest.raises(OptionError, match="a number from 0 to 1"):
        GuardOptions(accept=7)


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    """The message is help."""
    check_option("stream", None, (None, "buffer"))
    with pytest.raises(OptionError, match="'buffer'"):
        check_option("stream", "bufer", (None, "buffer"))
