"""The LangSmith example, as its reader runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "langsmith_traces.py"
PROFILE = files("semgrad_guard") / "calibration" / "profiles" / "smollm2-135m-demo.json"


@pytest.mark.end_to_end
@pytest.mark.skipif(not PROFILE.is_file(), reason="needs the profile of the demo model")
def test_the_example_shows_runs_feedback_and_verdict_without_an_account(tmp_path: Path) -> None:
    """A reader without a LangSmith account must see the same."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LANGSMITH_", "LANGCHAIN_"))}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
        cwd=tmp_path,
        env=environment,
    )
    runs, feedback = done.stdout.split("Feedback that LangSmith received:")
    assert runs.count("semgrad_confidence = ") == 2
    assert feedback.count("semgrad_confidence = ") == 2
    assert "semgrad_verdict = 1.0 on SemGradChatModel" in feedback
