"""`semgrad-guard doctor`: what is configured must work, what is not is only mentioned."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from semgrad_guard import model_names
from semgrad_guard.cli.app import app
from semgrad_guard.cli.doctor import examine
from semgrad_guard.model_names import PackagedModel


def looked_at(tmp_path, text: str):
    """Return part -> finding for a policy."""
    file = tmp_path / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    return {found.part: found for found in examine(file)}


def test_the_shipped_policy_works_here():
    """Exit code 0, and nothing wider than a terminal."""
    done = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "Everything that is configured works." in done.output
    assert max(len(line) for line in done.output.splitlines()[:30]) <= 80


def test_what_is_configured_and_does_not_work_ends_with_exit_code_1(tmp_path):
    """For scripts that start a service."""
    file = tmp_path / "policy.yaml"
    file.write_text("accept: 0.7\nscorer: {model: smollm2-135m, profile: missing.json}\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["doctor", "--policy", str(file)], env={"COLUMNS": "80"})
    assert done.exit_code == 1
    assert "profile: semgrad-guard calibrate answers.jsonl --out profile.json" in done.output
    assert "1 of " in done.output


def test_a_missing_model_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    """It is what a new user lacks most often."""
    gone = PackagedModel(name="tiny-1m", files=(("not_there_at_all", "x.gguf"),), distribution="tiny")
    monkeypatch.setitem(model_names.LANGUAGE_MODELS, "tiny-1m", gone)
    monkeypatch.setitem(model_names.PACKAGED, "tiny-1m", gone)
    found = looked_at(tmp_path, "accept: 0.7\nscorer: {model: tiny-1m}\n")["scoring model"]
    assert (found.state, found.advice) == ("fails", "semgrad-guard models install tiny-1m")


def test_a_scoring_server_is_asked_whether_it_is_ready(tmp_path):
    """Nothing is scored for that."""
    found = looked_at(tmp_path, "accept: 0.7\nscorer: {url: 'http://127.0.0.1:1'}\n")["scoring server"]
    assert (found.state, found.advice) == ("fails", "start it there: semgrad-guard serve")


def test_a_policy_with_mistakes_names_the_command_that_lists_them(tmp_path):
    """The doctor does not repeat `policy check`."""
    found = looked_at(tmp_path, "acept: 0.7\n")["policy"]
    assert found.state == "fails"
    assert found.advice.startswith("semgrad-guard policy check ")


def test_a_device_that_is_not_there_is_found(tmp_path):
    """It would fail at the first answer only."""
    assert looked_at(tmp_path, "accept: 0.7\nscorer: {device: 'cuda:63'}\n")["scorer's device"].state == "fails"
    assert looked_at(tmp_path, "accept: 0.7\nscorer: {device: cpu}\n")["scorer's device"].state == "works"


def test_a_queue_is_tried_and_no_file_is_made_for_that(tmp_path):
    """Looking changes nothing."""
    new = looked_at(tmp_path, f"accept: 0.7\nreview: {{url: 'sqlite:///{tmp_path}/new.db'}}\n")["review queue"]
    assert (new.state, list(tmp_path.glob("*.db"))) == ("works", [])
    lost = looked_at(tmp_path, f"accept: 0.7\nreview: {{url: 'sqlite:///{tmp_path}/no/new.db'}}\n")["review queue"]
    assert lost.state == "fails"
    (tmp_path / "broken.db").write_text("this is no database, " * 50)
    broken = looked_at(tmp_path, f"accept: 0.7\nreview: {{url: 'sqlite:///{tmp_path}/broken.db'}}\n")["review queue"]
    assert broken.state == "fails"


def test_a_password_is_not_shown(tmp_path):
    """People paste what the doctor prints."""
    url = "postgresql+psycopg://user:hush@127.0.0.1:1/none"
    found = looked_at(tmp_path, f"accept: 0.7\nreview: {{url: '{url}'}}\n")["review queue"]
    assert found.state == "fails"
    assert "hush" not in found.seen


def test_traces_are_tried_as_far_as_that_costs_nothing(tmp_path, monkeypatch):
    """A collector that does not listen, tracing that is off."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert looked_at(tmp_path, "accept: 0.7\ntelemetry: {otel: true}\n")["traces: OpenTelemetry"].state == "works"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert looked_at(tmp_path, "accept: 0.7\ntelemetry: {otel: true}\n")["traces: OpenTelemetry"].state == "fails"
    monkeypatch.delenv("LANGSMITH_TRACING", raising=False)
    monkeypatch.delenv("LANGCHAIN_TRACING_V2", raising=False)
    off = looked_at(tmp_path, "accept: 0.7\ntelemetry: {langsmith: true}\n")["traces: LangSmith"]
    assert (off.state, off.advice) == ("fails", "export LANGSMITH_TRACING=true")
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "key")
    assert looked_at(tmp_path, "accept: 0.7\ntelemetry: {langsmith: true}\n")["traces: LangSmith"].state == "works"


@pytest.mark.parametrize("name", ["guard.jsonl", "new/guard.jsonl"])
def test_a_file_for_records_may_be_new(tmp_path, name):
    """The sink makes it, and its folder."""
    assert looked_at(tmp_path, f"accept: 0.7\ntelemetry: {{jsonl: '{tmp_path}/{name}'}}\n")["records"].state == "works"
