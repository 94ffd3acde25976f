"""`semgrad-guard policy`: check, schema, init."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.policy import app
from semgrad_guard.errors import PolicyError, PolicyFileError
from semgrad_guard.policy import default_text, explain, load_policy, policy_schema

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()


def test_check_explains_a_file(tmp_path: Path) -> None:
    """What it prints is the explanation, nothing else."""
    path = tmp_path / "policy.yaml"
    path.write_text("accept: 0.7\n", encoding="utf-8")
    result = RUN.invoke(app, ["check", str(path)])
    assert result.exit_code == 0
    assert result.output == "\n".join(explain(load_policy(path))) + "\n"


def test_check_without_a_file_explains_the_shipped_policy() -> None:
    """What runs when no policy was given."""
    assert RUN.invoke(app, ["check"]).output.startswith("the shipped policy (digest ")


def test_check_raises_the_mistake(tmp_path: Path) -> None:
    """The program's entry turns it into one line and exit code 2."""
    path = tmp_path / "policy.yaml"
    path.write_text("acept: 0.7\n", encoding="utf-8")
    error = RUN.invoke(app, ["check", str(path)]).exception
    assert isinstance(error, PolicyFileError)
    assert (error.path, error.line, error.key) == (str(path), 1, "acept")


def test_schema_goes_to_standard_output_or_a_file(tmp_path: Path) -> None:
    """For pipes and for editors."""
    out = tmp_path / "policy.schema.json"
    assert json.loads(RUN.invoke(app, ["schema"]).output) == policy_schema()
    assert RUN.invoke(app, ["schema", "--out", str(out)]).output == f"wrote {out}\n"
    assert json.loads(out.read_text(encoding="utf-8")) == policy_schema()


def test_init_writes_the_shipped_policy_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its comments: it is the manual."""
    monkeypatch.chdir(tmp_path)
    assert "semgrad-guard policy check policy.yaml" in RUN.invoke(app, ["init"]).output
    assert (tmp_path / "policy.yaml").read_text(encoding="utf-8") == default_text()


def test_init_never_overwrites_unless_told(tmp_path: Path) -> None:
    """A tuned policy must not be lost to a repeated command."""
    path = tmp_path / "mine.yaml"
    path.write_text("accept: 0.7\n", encoding="utf-8")
    error = RUN.invoke(app, ["init", str(path)]).exception
    assert isinstance(error, PolicyError)
    assert "--force" in str(error)
    assert path.read_text(encoding="utf-8") == "accept: 0.7\n"
    assert RUN.invoke(app, ["init", str(path), "--force"]).exit_code == 0
    assert path.read_text(encoding="utf-8") == default_text()


@pytest.mark.parametrize("command", [["init", "no/such/folder/p.yaml"], ["schema", "--out", "no/such/folder/s.json"]])
def test_a_place_that_cannot_be_written_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """One line, no traceback."""
    monkeypatch.chdir(tmp_path)
    error = RUN.invoke(app, command).exception
    assert isinstance(error, PolicyError)
    assert "no/such/folder" in str(error)


@pytest.mark.parametrize("command", ["check", "schema", "init"])
def test_help_shows_an_example(command: str) -> None:
    """Help with an example is read; help without is searched for one."""
    assert f"semgrad-guard policy {command}" in RUN.invoke(app, [command, "--help"]).output
