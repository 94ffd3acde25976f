"""`semgrad-guard serve` and `keys`: what is refused before anything is loaded, and what reaches the server."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.errors import MissingExtraError, ModelError, OptionError, StepUnavailableError
from semgrad_guard.serving import KeyFile
from semgrad_guard.serving import app as running
from semgrad_guard.serving.gate import KeyFileError
from semgrad_guard.serving.settings import ServerSettingError


@pytest.fixture(name="served")
def _served(monkeypatch):
    """Note what would be served, in place of listening."""
    seen = []
    monkeypatch.setattr(running, "serve", lambda *parts: seen.append(parts))
    return seen


def run(*arguments: str) -> str:
    """Return what a command prints; its error is raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_options_reach_the_server(served, tmp_path):
    """Each has one place."""
    keys = tmp_path / "keys.json"
    run(
        "serve", "--upstream", "http://127.0.0.1:9/v1", "--scorer", "gpt2", "--accept", "0.7", "--own-weights",
        "--fallback", "big=http://127.0.0.1:8/v1#large", "--stream", "sentence", "--host", "0.0.0.0", "--port", "9000",  # noqa: S104 - with keys
        "--keys", str(keys), "--max-batch", "4", "--window-ms", "5", "--max-waiting", "9", "--max-tokens", "99",
        "--max-body-mb", "1", "--max-seconds", "7", "--upstream-seconds", "2",
    )  # fmt: skip
    ((application, listening, limits),) = served
    settings = application.state.backend.settings
    assert (settings.upstream, settings.scorer, settings.accept) == ("http://127.0.0.1:9/v1", "gpt2", 0.7)
    assert settings.own_weights
    assert settings.fallbacks == (("big", "http://127.0.0.1:8/v1#large"),)
    assert settings.stream == "sentence"
    assert (listening.host, listening.port, listening.has_keys) == ("0.0.0.0", 9000, True)  # noqa: S104 - with keys
    assert (limits.batch, limits.window_s, limits.waiting, limits.tokens) == (4, 0.005, 9, 99)
    assert (limits.body_bytes, limits.seconds, settings.upstream_s) == (1_048_576, 7.0, 2.0)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--host", "0.0.0.0"], ServerSettingError, "keys add"),  # noqa: S104 - refused
        (["--model", "smolm2-135m"], ModelError, "smollm2-135m"),
        (["--model", "a", "--upstream", "http://b"], ServerSettingError, "both write"),
        (["--upstream", "http://b", "--fallback", "big"], OptionError, "NAME=URL"),
        (["--replicas", "2"], OptionError, "--ray"),
        (["--ray", "--replicas", "3", "--max-replicas", "2"], ServerSettingError, "fewer"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(served, words, error, says):
    """Not at the first request."""
    with pytest.raises(error, match=says):
        run("serve", *words)
    assert served == []


def test_a_fallback_that_the_policy_names_has_to_be_given(served, tmp_path):
    """The message says with which option."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\naccept: 0.7\nescalate: [{fallback_model: {name: big}}]\n")
    words = ["serve", "--upstream", "http://b/v1", "--scorer", "gpt2", "--policy", str(policy)]
    with pytest.raises(StepUnavailableError, match="--fallback"):
        run(*words)
    run(*words, "--fallback", "big=http://c/v1")
    assert len(served) == 1


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(served):
    """The message says what to install."""
    with pytest.raises(MissingExtraError, match=r"semgrad-guard\[ray\]"):
        run("serve", "--scorer", "gpt2", "--ray")


def test_keys_are_made_listed_and_revoked(tmp_path):
    """The secret is printed once, alone on standard output."""
    path = tmp_path / "keys.json"
    result = CliRunner().invoke(app, ["keys", "add", "rag-app", "--keys", str(path)], catch_exceptions=False)
    assert KeyFile(path).find(result.stdout.strip()) == "rag-app"
    assert "rag-app" in run("keys", "list", "--keys", str(path))
    run("keys", "revoke", "rag-app", "--keys", str(path))
    assert "rag-app" not in run("keys", "list", "--keys", str(path))
    with pytest.raises(KeyFileError, match="no key 'rag-app'"):
        run("keys", "revoke", "rag-app", "--keys", str(path))
