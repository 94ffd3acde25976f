"""The examples, run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semgrad_guard.calibration.profile import shipped_profiles

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, folder: Path) -> str:
    """Return what an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=folder, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_custom_action_opens_a_ticket_for_the_tagged_answer_only(tmp_path: Path) -> None:
    """Confident answers pass, doubtful ones are refused, and the tagged one goes to the help desk."""
    shown = run("custom_action.py", tmp_path)
    assert "answered by accept, no ticket" in shown
    assert "abstained by otherwise, no ticket" in shown
    assert "pending by ticket_for_billing, TICKET-1" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.end_to_end
@pytest.mark.xdist_group("demo-model")
@pytest.mark.skipif("smollm2-135m-demo" not in shipped_profiles(), reason="needs the demo model's shipped profile")
@pytest.mark.parametrize("name", ["llama_index_rag.py", "no_framework.py", "own_framework.py"])
def test_an_example_on_the_demo_model_runs(name: str, tmp_path: Path) -> None:
    """Offline, from any folder, leaving nothing behind."""
    shown = run(name, tmp_path)
    assert "answered" in shown
    assert list(tmp_path.iterdir()) == []


def test_every_example_has_a_test() -> None:
    """The others are run by the tests of LangChain's and LangSmith's examples; several use the loopback server."""
    here = Path(__file__)
    tested = "".join(path.read_text(encoding="utf-8") for path in here.parent.glob("test_*.py") if path != here)
    tested += here.read_text(encoding="utf-8").partition("def test_every_example")[0]
    untested = [path.stem for path in EXAMPLES.glob("*.py") if f"{path.stem}.py" not in tested]
    assert [stem for stem in untested if f"from examples.{stem} import" not in tested] == []
