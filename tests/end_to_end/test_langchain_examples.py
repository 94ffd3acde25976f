"""The LangChain examples, run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semgrad_guard.calibration.profile import shipped_profiles

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("demo-model"),
    pytest.mark.skipif("smollm2-135m-demo" not in shipped_profiles(), reason="needs the demo model's shipped profile"),
]


def run(name: str, folder: Path) -> str:
    """Return what an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=folder, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_guarded_chain_answers_and_refuses(tmp_path: Path) -> None:
    """Offline, from any folder, leaving nothing behind."""
    shown = run("langchain_rag.py", tmp_path)
    assert shown.count("confidence 0.") == 4
    assert "answered" in shown
    assert list(tmp_path.iterdir()) == []


def test_an_agents_answers_are_approved_edited_and_rejected(tmp_path: Path) -> None:
    """The user sees nothing before the person has decided."""
    shown = run("agent_with_approval.py", tmp_path)
    assert shown.count("user sees: A colleague looks at this answer.") == 3
    assert "person says: edit\n  user gets: For ten days.\n  reviewed" in shown
    assert "person says: reject\n  user gets: I am not sure enough to answer that.\n  abstained" in shown
    assert list(tmp_path.iterdir()) == []
