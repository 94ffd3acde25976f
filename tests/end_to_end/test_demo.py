"""The demo, run as `make demo` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).parent / "semgrad-guard")

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]


def test_the_demo_shows_a_table_a_summary_and_the_next_steps(tmp_path: Path) -> None:
    """What a newcomer sees in the first minutes: every question judged, the guard's effect in numbers."""
    done = subprocess.run(
        [PROGRAM, "demo", "--questions", "4"], capture_output=True, text=True, cwd=tmp_path, timeout=280
    )
    assert done.returncode == 0, done.stderr
    for part in ("question", "conf.", "decision", "Scoring took", "policy init"):
        assert part in done.stdout
    assert done.stdout.startswith("Before the guard: ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []
    before = re.search(r"Before the guard: 4 answers given, (\d) right, (\d) wrong", done.stdout)
    after = re.search(r"After the guard: +(\d) answers given, (\d) right, (\d) wrong; (\d) held back", done.stdout)
    assert before
    assert after
    given, right, wrong, held = map(int, after.groups())
    assert given + held == 4
    assert right + wrong == given
    assert wrong <= int(before[2])
