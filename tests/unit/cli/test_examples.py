"""The examples that `--help` shows: there are some, they fit a terminal, and the program takes them as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from semgrad_guard.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {".yaml", ".json", ".jsonl", ".pem", ".txt"}
"""Endings of the files that examples name; the reader has them."""


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the names of a command and of all below it."""
    below = getattr(command, "commands", {})
    return [path, *(found for name, one in below.items() for found in commands(one, (*path, name)))]


ALL = commands(typer.main.get_command(app))


def examples(path: tuple[str, ...]) -> list[str]:
    """Return the examples that a reader sees in a terminal of 80 columns, each as the one line that it has there."""
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).stdout
    below = shown.partition("Examples")[2]
    return [line.strip() for line in re.findall(r"^ {1,4}(semgrad-guard .*)$", below, re.M)]


def note_in(ran: list[tuple[str, ...]], names: tuple[str, ...]) -> Callable[..., None]:
    """Return what takes the place of a command: it notes that it would have been carried out."""
    return lambda **_options: ran.append(names)


def runs(line: str, folder: Path) -> tuple[str, ...]:
    """Give a command line to the program's own parser, and return the command that it would carry out."""
    words = shlex.split(line)[1:]
    for word in words:
        if Path(word).suffix in FILES and "://" not in word:
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).touch()
    root, ran = typer.main.get_command(app), []
    for names in ALL:
        command = root
        for name in names:
            command = command.commands[name]
        if not hasattr(command, "commands"):
            command.callback = note_in(ran, names)
    root.main(words, prog_name="semgrad-guard", standalone_mode=False)
    return ran[0]


def test_the_whole_tree_is_looked_at():
    """Groups within groups, too."""
    assert {("demo",), ("review", "token", "add"), ("profile", "find")} <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_two_examples_that_can_be_pasted(path, tmp_path, monkeypatch):
    """Most people read nothing else. What the terminal has wrapped is no longer one command."""
    monkeypatch.chdir(tmp_path)
    found = examples(path)
    assert len(found) >= 2
    assert len(set(found)) == len(found)
    for line in found:
        assert runs(line, tmp_path)[: len(path)] == path, line
