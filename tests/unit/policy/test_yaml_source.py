"""Only plain YAML is read; what would be guessed, executed or silently dropped is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from semgrad_guard.policy import parse_policy
from semgrad_guard.policy.yaml_source import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.errors import PolicyFileError

    Mistake = Callable[..., PolicyFileError]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

# text, line, what the message says
REFUSED = [
    pytest.param("", None, "the file is empty: `semgrad-guard policy init`", id="empty"),
    pytest.param("# only a comment\n", None, "the file is empty", id="only comments"),
    pytest.param("null", None, "the file is empty", id="null"),
    pytest.param("- accept", 1, "must be `key: value` lines", id="a list"),
    pytest.param("accept", 1, "must be `key: value` lines", id="a word"),
    pytest.param("accept: 0.7\n\nbudget: {}\naccept: 0.8", 4, "given twice, first on line 1", id="duplicate key"),
    pytest.param("accept: !!python/object/apply:os.system [ls]", 1, "is not allowed", id="python object"),
    pytest.param("accept: !percent 70", 1, "the tag '!percent' is not allowed", id="own tag"),
    pytest.param("accept: !!binary aGk=", 1, "is not allowed", id="bytes"),
    pytest.param("base: &b {accept: 0.7}\n<<: *b", 2, "merge keys (<<) are not supported", id="merge key"),
    pytest.param("1: x", 1, "a key must be text, but '1' is not", id="number as key"),
    pytest.param("on: x", 1, "a key must be text, but 'on' is not", id="YAML's on is a truth value"),
    pytest.param("? [a]\n: x", 1, "a key must be text", id="list as key"),
    pytest.param("accept: 0.7\n\tbudget: {}", 2, "indent with spaces, not tabs", id="tab"),
    pytest.param("accept: [0.7", 1, "not valid YAML", id="open bracket"),
    pytest.param("accept: 0.7\n---\naccept: 0.8", 2, "but found another document", id="two documents"),
    pytest.param("a: &a [*a]", 1, "contains itself", id="endless alias"),
    pytest.param(BOMB, 1, "more than 20,000 values", id="alias bomb"),
    pytest.param("[" * 5000, None, "nested too deeply", id="deep nesting"),
    pytest.param("accept: " + "9" * 5000, 1, "cannot be read as int", id="number of 5,000 digits"),
    pytest.param("accept: 0.7\0", None, "not valid YAML", id="null byte"),
    pytest.param("accept: *x", 1, "not valid YAML", id="alias of nothing"),
]


@pytest.mark.parametrize(("text", "line", "said"), REFUSED)
def test_what_is_not_plain_yaml_is_refused_with_its_line(
    mistake: Mistake, text: str, line: int | None, said: str
) -> None:
    """A policy must mean what a reader thinks it means, and reading it must run nothing."""
    error = mistake(text)
    assert any(one.line == line and said in one.why for one in (error, *error.others))


def test_an_exponent_needs_no_dot() -> None:
    """`5e-2` is a number to people, JSON and editors; PyYAML alone would read a text."""
    policy = parse_policy("accept: {max_error_rate: 5e-2}")
    assert policy.model_dump()["accept"]["max_error_rate"] == 0.05


def test_dates_stay_text() -> None:
    """A tag or metadata value that looks like a date must match the text it was written as."""
    assert read_yaml("day: 2024-05-01", "p").data == {"day": "2024-05-01"}


def test_aliases_repeat_their_value() -> None:
    """Sharing a block by `&name` and `*name` is plain YAML and unsurprising."""
    policy = parse_policy("accept: 0.7\nescalate: &e [retry_retrieval]\noverrides: [{match: {tags: a}, escalate: *e}]")
    assert policy.overrides[0].escalate == policy.escalate


def test_every_value_knows_its_line() -> None:
    """Errors need the line of the key, and for list items that of the item."""
    document = read_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "p")
    places = [("a",), ("b",), ("b", 1), ("b", 1, "c"), ("b", 1, "missing", "deeper")]
    assert [document.line_of(place) for place in places] == [1, 2, 4, 4, 4]
