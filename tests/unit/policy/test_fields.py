"""Environment values come only where a text is expected, and never turn up in what is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from semgrad_guard.policy import Policy, explain, load_policy, parse_policy, policy_from, policy_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from semgrad_guard.errors import PolicyFileError

    Mistake = Callable[..., PolicyFileError]

SECRET = "hunter2"  # noqa: S105 - made up
URL = "accept: 0.7\nreview: {url: 'postgresql://guard:${PASSWORD}@db/reviews?sslpassword=${PASSWORD}'}"


def test_values_are_filled_in() -> None:
    """Deployments differ by environment, not by file."""
    env = {"MODEL": "big", "DIR": "/logs"}
    policy = parse_policy("accept: 0.7\nscorer: {model: '${MODEL}'}\ntelemetry: {jsonl: '${DIR}/a.jsonl'}", env=env)
    assert (policy.scorer.model, policy.telemetry.jsonl) == ("big", "/logs/a.jsonl")


@pytest.mark.parametrize("env", [{}, {"MODEL": ""}])
def test_the_default_stands_in_for_unset_and_empty(env: dict[str, str]) -> None:
    """As in a shell: an empty variable is as good as none."""
    assert parse_policy("accept: 0.7\nscorer: {model: '${MODEL:-small}'}", env=env).scorer.model == "small"


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users pass no environment."""
    monkeypatch.setenv("SEMGRAD_TEST_MODEL", "from-process")
    assert policy_from({"accept": 0.7, "scorer": {"model": "${SEMGRAD_TEST_MODEL}"}}).scorer.model == "from-process"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (
            "accept: 0.7\nreview: {url: '${URL}'}",
            "review.url",
            "URL is not set or empty: set it, or write ${URL:-default}",
        ),
        ("accept: 0.7\nreview: {url: '${URL'}", "review.url", "`${URL` is not an environment value"),
        ("accept: 0.7\nreview: {url: '${1a}'}", "review.url", "`${1a}` is not an environment value"),
        ("accept: 0.7\noverrides: [{match: {tags: '${T}'}, accept: 1}]", "overrides[0].match.tags", "not allowed here"),
        (
            "accept: 0.7\noverrides: [{match: {metadata: {a: '${T}'}}, accept: 1}]",
            "overrides[0].match.metadata",
            "not allowed here",
        ),
        (
            "accept: 0.7\nescalate: [{retry_retrieval: {configurable: {k: ['${T}']}}}]",
            "escalate[0].retry_retrieval.configurable",
            "not allowed here",
        ),
        ("accept: 0.7\notherwise: ${T}", "otherwise", "environment values are for texts only"),
    ],
)
def test_unset_malformed_and_misplaced_values_are_refused(mistake: Mistake, text: str, key: str, said: str) -> None:
    """`${...}` taken literally, or filled in where it changes what is decided, would both surprise."""
    error = mistake(text)
    assert error.key == key
    assert said in error.why


def test_a_password_is_used_but_never_shown() -> None:
    """Explanations, digests, schemas and reprs end in logs and tickets."""
    policy = parse_policy(URL, env={"PASSWORD": SECRET})
    assert policy.review.url.count(SECRET) == 2
    shown = [*explain(policy), policy.digest, repr(policy), str(policy), str(policy_schema())]
    assert SECRET not in "\n".join(shown)
    assert "postgresql://guard:***@db/reviews?sslpassword=***" in "\n".join(shown)


def test_the_digest_does_not_depend_on_the_password() -> None:
    """A hash of a short password can be guessed; a new password is not a new policy."""
    digests = {parse_policy(URL, env={"PASSWORD": word}).digest for word in ("a", "b")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"accept: 0.7\nreview: postgresql://u:{SECRET}@h/d",
        f"accept: 0.7\nreview: {{url: 'mysql://u:{SECRET}@h/d'}}",
        "accept: 0.7\nreview: {url: 'mysql://u:${PASSWORD}@h/d'}",
        f"accept: postgresql://u:{SECRET}@h/d",
    ],
)
def test_an_error_shows_no_password(mistake: Mistake, text: str) -> None:
    """Errors are pasted into chats."""
    error = mistake(text, env={"PASSWORD": SECRET})
    assert SECRET not in str(error)
    assert error.__cause__ is None


def test_an_error_of_pydantic_itself_shows_no_password() -> None:
    """Code that builds policies without the loader meets these."""
    with pytest.raises(ValidationError) as caught:
        Policy.model_validate({"accept": 0.7, "review": {"url": f"mysql://u:{SECRET}@h/d"}})
    assert SECRET not in str(caught.value)


def test_the_shipped_policy_needs_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`SemGradGuard()` works anywhere."""
    monkeypatch.chdir(tmp_path)
    assert load_policy(env={}).accept == load_policy().accept
