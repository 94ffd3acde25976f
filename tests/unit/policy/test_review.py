"""The section `review` of a policy: what it says, what is refused, and what people read about it."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import jsonschema
import pytest

from semgrad_guard.policy import explain, parse_policy
from semgrad_guard.policy.mistakes import policy_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.errors import PolicyFileError

WHOLE = """
    accept: 0.7
    review:
      url: sqlite:///r.db
      deadline_s: 3600
      at_deadline: reject
      lease_s: 600
      tag_weights: {medical: 3, chat: 0.5}
      retention_days: 90
      reuse_verdicts: {mode: similar, threshold: 0.8, expires_days: 30, tags: faq}
"""
SITE = """
    accept: 0.7
    review:
      url: https://review.example.com
      token: ${TOKEN}
      deadline_s: 7200
      reuse_verdicts: {}
"""


def test_every_key_is_said_in_words() -> None:
    """What a file does must be readable without the documentation."""
    said = "\n".join(explain(parse_policy(dedent(WHOLE))))
    for expected in (
        "Answers wait for people in sqlite:///r.db.",
        "Without a verdict after 60 minutes, the answer is held back for good. [review.deadline_s]",
        "is reserved for its reviewer for 10 minutes. [review.lease_s]",
        "answers with these tags: chat 0.5 times and medical 3 times. [review.tag_weights]",
        "Texts of settled answers are erased after 90 days. [review.retention_days]",
        (
            "for the same question, or one with a similarity of at least 0.8, is given again without asking, "
            "if it is tagged faq, for 30 days; the passages must be the same. [review.reuse_verdicts]"
        ),
    ):
        assert expected in said, said


def test_verdicts_are_given_again_only_where_questions_mean_the_same() -> None:
    """Without tags or metadata, nobody's balance is another's; the explanation says so."""
    head = "accept: 0.7\nreview: {url: 'sqlite://', reuse_verdicts: "
    off = parse_policy(head + "{mode: exact}}")
    assert "No earlier verdict is given again: name `tags` or `same_metadata`" in "\n".join(explain(off))
    by_user = parse_policy(head + "{same_metadata: [tenant, user_id]}}")
    assert "if its metadata have the same tenant and user_id" in "\n".join(explain(by_user))
    assert not off.review.reuse_verdicts.is_scoped
    assert by_user.review.reuse_verdicts.is_scoped


def test_a_review_site_is_reached_with_a_token_from_the_environment() -> None:
    """The token is a password: it is in no file, no explanation and no digest."""
    policy = parse_policy(dedent(SITE), env={"TOKEN": "s3cret"})
    assert policy.review.is_site
    assert policy.review.token == "s3cret"  # noqa: S105 - made up
    said = "\n".join(explain(policy))
    assert "at the review site https://review.example.com" in said
    assert "Without a verdict after 2 hours that site decides." in said
    assert "s3cret" not in said + repr(policy)
    assert policy.digest == parse_policy(dedent(SITE), env={"TOKEN": "other"}).digest


@pytest.mark.parametrize(
    ("review", "key", "message"),
    [
        ("{lease: 5}", "review.lease", "did you mean `lease_s`?"),
        ("{deadline_s: 0}", "review.deadline_s", "must be more than 0"),
        ("{deadline_s: soon}", "review.deadline_s", "number"),
        ("{url: 'sqlite://', deadline_s: 60, at_deadline: rejct}", "review.at_deadline", "did you mean `reject`?"),
        ("{at_deadline: reject}", "review.at_deadline", "needs `deadline_s`"),
        ("{tag_weights: {a: -1}}", "review.tag_weights.a", "must be at least 0"),
        ("{retention_days: 0}", "review.retention_days", "must be more than 0"),
        ("{reuse_verdicts: exact}", "review.reuse_verdicts", ""),
        ("{reuse_verdicts: {mode: exakt}}", "review.reuse_verdicts.mode", "did you mean `exact`?"),
        ("{reuse_verdicts: {threshold: 0.9}}", "review.reuse_verdicts.threshold", "needs `mode: similar`"),
        ("{reuse_verdicts: {mode: similar, threshold: 2}}", "review.reuse_verdicts.threshold", "must be at most 1"),
        ("{url: 'mysql://x/y'}", "review.url", "must be a database URL"),
        ("{url: 'https://r.example.com'}", "review.url", "needs a token"),
        ("{url: 'http://r.example.com', token: t}", "review.url", "must start with https"),
        ("{url: 'https://u:p@r.example.com', token: t}", "review.url", "plain address"),
        ("{url: 'sqlite:///r.db', token: t}", "review.token", "is for a review site"),
        ("{url: 'https://r.example.com', token: t, lease_s: 5}", "review.lease_s", "is set at the review site"),
        ("{url: 'https://r.example.com', token: '${NOWHERE}'}", "review.token", "NOWHERE is not set"),
    ],
)
def test_a_mistake_names_its_line_and_key(
    mistake: Callable[..., PolicyFileError], review: str, key: str, message: str
) -> None:
    """Each is found when the file is read, not when an answer waits."""
    found = mistake(f"accept: 0.7\nreview: {review}")
    assert (found.line, found.key) == (2, key)
    assert message in str(found)


@pytest.mark.parametrize(
    ("review", "is_valid"),
    [
        ({"deadline_s": 60, "at_deadline": "approve", "tag_weights": {"a": 2}}, True),
        ({"reuse_verdicts": {"mode": "similar", "tags": ["faq"]}, "token": "t"}, True),
        ({"at_deadline": "keep"}, False),
        ({"tag_weights": {"a": "much"}}, False),
        ({"reuse_verdicts": {"mode": "alike"}}, False),
    ],
)
def test_the_json_schema_knows_the_keys(review: dict[str, object], is_valid: bool) -> None:
    """Editors complete and check them."""
    check = jsonschema.Draft202012Validator(policy_schema())
    assert check.is_valid({"accept": 0.7, "review": review}) is is_valid


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("escalate: [retry_retrieval, human_review]", "escalate[1].human_review"),
        ("escalate: [{human_review: {wait_s: 5}}]", "escalate[0].human_review"),
        ("on_error: human_review", "on_error"),
        ("overrides: [{match: {tags: a}, escalate: [human_review]}]", "overrides[0].escalate[0].human_review"),
        ("overrides: [{match: {tags: a}, on_error: human_review}]", "overrides[0].on_error"),
    ],
)
def test_a_policy_that_asks_a_person_names_where_answers_wait(
    mistake: Callable[..., PolicyFileError], text: str, key: str
) -> None:
    """Otherwise a file would appear in the working folder, and a person be promised who never hears of it."""
    error = mistake(f"accept: 0.7\n{text}")
    assert (error.key, error.line) == (key, 2)
    assert "add `review: {url: sqlite:///review.db}`" in error.why
    for queue in ("sqlite:///review.db", "interrupt"):
        assert parse_policy(f"accept: 0.7\n{text}\nreview: {{url: '{queue}'}}").review.url == queue


@pytest.mark.parametrize("queue", ["", "url: interrupt, "])
def test_settings_of_a_queue_need_a_queue(mistake: Callable[..., PolicyFileError], queue: str) -> None:
    """A deadline of nothing would be believed to hold."""
    error = mistake(f"accept: 0.7\nreview: {{{queue}deadline_s: 60}}")
    assert (error.key, error.why) == ("review.deadline_s", "needs a queue: add `url: sqlite:///review.db` beside it")


def test_a_graph_that_stops_for_a_person_is_no_queue() -> None:
    """Nothing is opened, and the explanation says who asks."""
    policy = parse_policy("accept: 0.7\nescalate: [human_review]\nreview: {url: interrupt}")
    assert policy.review.queue_url is None
    assert "The graph or workflow around the guard stops for a person; there is no queue." in explain(policy)
