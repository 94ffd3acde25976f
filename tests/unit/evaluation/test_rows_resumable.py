"""A file that goes on where it was cut off belongs to one run at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.rows import ROW_KEY, ResumableFile

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from semgrad_guard.evaluation.rows import ResumableFile
file = ResumableFile(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_never_write_to_one_file(tmp_path: Path) -> None:
    """The second would answer every question again, and mix its lines with those of the first."""
    path = tmp_path / "answers.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataFileError, match="another run is writing to it"):
            ResumableFile(path)
        other.kill()
        other.wait(timeout=10)
        ResumableFile(path).append({ROW_KEY: "1"})


def test_a_run_that_has_ended_lets_go(tmp_path: Path) -> None:
    """The next one goes on."""
    path = tmp_path / "answers.jsonl"
    ResumableFile(path).append({ROW_KEY: "1"})
    assert ResumableFile(path).done == {"1"}
