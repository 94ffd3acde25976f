"""What the README says of reviewing is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.policy import parse_policy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^semgrad-guard (review [^#\n]*)", README, re.MULTILINE)


def test_its_policy_is_one():
    """Readers copy it."""
    text = re.search(r"<!-- test: review -->\n```yaml\n(.*?)```", README, re.DOTALL)
    review = parse_policy(text[1]).review
    assert (review.deadline_s, review.at_deadline, review.reuse_verdicts.expires_days) == (86_400, "reject", 30)


def test_there_are_commands_to_try():
    """The others here would pass without any."""
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_and_options_exist(line):
    """Each word but values is in the command's own help."""
    words = line.split()
    names = [word for word in words[:3] if not word.startswith("-")]
    while CliRunner().invoke(app, [*names, "--help"]).exit_code != 0:
        names.pop()
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"}).stdout
    assert len(names) >= 2
    assert all(option in shown for option in words if option.startswith("--"))


def test_its_pictures_are_there():
    """And small enough to be carried along."""
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert "docs/review.png" in pictures
    for each in pictures:
        assert 1000 < (ROOT / each).stat().st_size < 100_000
