"""For which answers a policy promises an error rate, and with which share of delta."""

from __future__ import annotations

from textwrap import dedent

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy import PolicyDecider, parse_policy
from semgrad_guard.policy.promises import Promise, promises

RATE = "accept: {max_error_rate: 0.1, delta: 0.06}"


def promised(text: str) -> dict[str, Promise]:
    """Return the promises of a policy."""
    return promises(parse_policy(dedent(text)))


def test_a_policy_of_numbers_promises_nothing() -> None:
    """A threshold is no error rate."""
    assert promised("accept: 0.7\noverrides: [{match: {tags: a}, accept: 0.9}]") == {}


def test_one_promise_has_the_whole_delta() -> None:
    """There is nobody to share it with."""
    assert promised(RATE)["accept"] == Promise(rule="accept", max_error_rate=0.1, delta=0.06)


def test_promises_share_delta_and_each_is_about_the_answers_that_its_rule_decides() -> None:
    """Tags of an override mean any of them; what an earlier rule takes is no later one's."""
    found = promised(f"""
        {RATE}
        overrides:
        - {{match: {{tags: [medical, legal]}}, accept: {{max_error_rate: 0.02, delta: 0.03}}}}
        - {{match: {{tags: beta}}, accept: 0.9}}
        - {{match: {{tags: [news, legal]}}, accept: {{max_error_rate: 0.2}}}}
        """)
    first, third, top = frozenset({"medical", "legal"}), frozenset({"news", "legal"}), "accept"
    assert found == {
        "overrides[0].accept": Promise(rule="overrides[0].accept", max_error_rate=0.02, delta=0.01, any_of=first),
        "overrides[2].accept": Promise(
            rule="overrides[2].accept", max_error_rate=0.2, delta=0.05 / 3, any_of=third, none_of=first | {"beta"}
        ),
        top: Promise(rule=top, max_error_rate=0.1, delta=0.02, none_of=first | third | {"beta"}),
    }


def test_a_rule_that_never_decides_promises_nothing() -> None:
    """Its share is not lost on it, and no labels of its kind are looked for."""
    text = f"accept: 0.5\noverrides: [{{match: {{tags: a}}, {RATE}}}, {{match: {{tags: a}}, {RATE}}}]"
    assert {rule: one.delta for rule, one in promised(text).items()} == {"overrides[0].accept": 0.06}
    thresholds = PolicyDecider(parse_policy(text), lambda _: 0.8).compute_thresholds()
    assert thresholds == {"accept": 0.5, "overrides[0].accept": 0.8}


def test_an_override_by_metadata_takes_no_tags() -> None:
    """It takes only some of the answers with them."""
    text = f"{RATE}\noverrides: [{{match: {{tags: a, metadata: {{x: 1}}}}, accept: 0.9}}]"
    assert promised(text)["accept"].none_of == frozenset()


def test_a_rate_for_a_match_by_metadata_is_refused_where_it_stands() -> None:
    """Labels carry no metadata, so it would be computed from other answers than it is used for."""
    with pytest.raises(PolicyFileError, match="labelled answers have tags only") as caught:
        promised(f"accept: 0.5\noverrides:\n- match: {{metadata: {{x: 1}}}}\n  {RATE}")
    assert (caught.value.line, caught.value.key) == (4, "overrides[0].accept")


@pytest.mark.parametrize(
    ("any_of", "none_of", "words"),
    [
        ("", "", "answers"),
        ("ab", "", "answers tagged a or b"),
        ("", "c", "answers not tagged c"),
        ("a", "bc", "answers tagged a and not tagged b or c"),
    ],
)
def test_the_answers_in_words(any_of: str, none_of: str, words: str) -> None:
    """`policy check` says them."""
    promise = Promise(rule="r", max_error_rate=0.1, delta=0.1, any_of=frozenset(any_of), none_of=frozenset(none_of))
    assert promise.answers == words
