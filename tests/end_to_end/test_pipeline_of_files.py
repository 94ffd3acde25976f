"""The program calibrates logged answers in one command, as a user runs it, with a tiny model in a folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semgrad_guard.models.embedding import has_packaged
from tests.models_for_tests import local_model

PROGRAM = str(Path(sys.executable).parent / "semgrad-guard")
COMMAND = (
    PROGRAM,
    "calibrate",
    "logs.jsonl",
    "--proxy",
    "--model",
    "tiny",
    "--rows",
    "scored.jsonl",
    "--out",
    "p.json",
)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A folder with a tiny model, and the logged answers of an API model."""
    local = local_model()
    local.model.save_pretrained(tmp_path / "tiny")
    local.tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [
        {"question": f"q {i}", "passages": [f"p {i}"], "answer": f"{i}" if i % 2 else "no", "correct": bool(i % 2)}
        for i in range(32)
    ]
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder."""
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300, check=True)


def test_results_come_on_stdout_and_progress_on_stderr(folder: Path) -> None:
    """So that a pipe gets the results alone."""
    done = run(folder, *COMMAND)
    assert "32 labelled answers" in done.stdout
    assert "Scoring" not in done.stdout
    assert "Scoring" in done.stderr


@pytest.mark.skipif(not has_packaged(), reason="the packaged sentence embeddings are not installed")
def test_the_bars_of_other_libraries_are_silent(folder: Path) -> None:
    """Loading weights takes a moment; the bar of the command says enough."""
    done = run(folder, PROGRAM, "score", "logs.jsonl", "--model", "tiny", "--embedding", "minilm-l6-v2")
    assert done.stdout == "32 rows in logs.scored.jsonl\n"
    assert "Loading weights" not in done.stderr


def test_a_kill_loses_at_most_one_row(folder: Path) -> None:
    """What the killed run had written is taken as it is."""
    path = folder / "scored.jsonl"
    with subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as going:
        ended = time.monotonic() + 120
        while time.monotonic() < ended and not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            time.sleep(0.002)
        going.send_signal(signal.SIGKILL)
    before = path.read_bytes()
    assert 3 <= before.count(b"\n") < 32
    run(folder, *COMMAND)
    after = path.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert after.count(b"\n") == 32
