"""The program as a whole: help, errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [str(Path(sys.executable).parent / "semgrad-guard")]


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed program as a user does."""
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("demo",),
        ("score",),
        ("calibrate",),
        ("policy",),
        ("policy", "check"),
        ("review",),
        ("profile",),
        ("evaluate",),
    ],
    ids=lambda words: " ".join(words) or "all",
)
def test_help_shows_what_there_is(words: tuple[str, ...]) -> None:
    """Help is where people start."""
    done = run(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("score", "missing.jsonl"), "missing.jsonl"),
        (("evaluate", "missing.jsonl"), "missing.jsonl"),
        (("policy", "check", "missing.yaml"), "missing.yaml"),
        (("calibrate", "missing.jsonl", "--out", "p.json"), "missing.jsonl"),
        (("review", "list", "--url", "mysql://nowhere"), "mysql"),
        (("profile", "show", "no-such-profile"), "no-such-profile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_an_error_is_one_line_and_exit_code_two(words: tuple[str, ...], part: str, tmp_path: Path) -> None:
    """A traceback helps nobody who mistyped a path."""
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_signal_is_listed_with_its_cost() -> None:
    """What to choose from, and what it takes."""
    said = run("signals").stdout
    for word in ("hybridgrad", "support_similarity", "nats", "less sure", "forward: another forward pass"):
        assert word in said


def test_signals_of_one_family_fit_a_terminal() -> None:
    """The whole list is long, and a narrow table hides nothing."""
    said = run("signals", "--family", "gradient").stdout
    assert "paragrad" in said
    assert "grounding" not in said
    assert max(len(line) for line in said.splitlines() if "higher:" in line) <= 80
    assert run("signals", "--family", "gradients").returncode == 2


def test_the_version_is_the_package_s() -> None:
    """What a bug report needs."""
    assert run("--version").stdout.strip().count(".") >= 2


def test_a_policy_that_cannot_act_is_listed_with_all_its_mistakes_and_exit_code_two(tmp_path: Path) -> None:
    """A deployment stops at it."""
    text = "acept: 0.7\nscorer: {model: smolm2-135m, profile: nowhere.json}\n"
    (tmp_path / "policy.yaml").write_text(text)
    done = run("policy", "check", "policy.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    starts = ["error: policy.yaml:1: `acept`", "policy.yaml:2: `scorer.model`", "policy.yaml:2: `scorer.profile`"]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 3


def test_a_typo_in_a_policy_names_file_line_key_and_the_nearest_word(tmp_path: Path) -> None:
    """The four things that mend it."""
    (tmp_path / "policy.yaml").write_text("version: 1\naccept: 0.7\nescalte: []\non_error: abstain\n")
    done = run("policy", "check", "policy.yaml", cwd=tmp_path)
    assert done.returncode == 2
    for part in ("policy.yaml:3", "escalte", "escalate"):
        assert part in done.stderr
