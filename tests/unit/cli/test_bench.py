"""`semgrad-guard bench`: a model of a known shape, measured without a download."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.app import app
from semgrad_guard.errors import ModelSettingError

RUN = CliRunner()
SMALL = ["--shape", "smollm2", "--layers", "2", "--context", "16", "--answer", "2", "--repeats", "1"]


def test_a_shape_is_measured_into_a_table_and_a_file(tmp_path):
    """The ratios are what a reader compares, so every way must be in one run."""
    out = tmp_path / "deep" / "cost.json"
    done = RUN.invoke(app, ["bench", *SMALL, "--device", "cpu", "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["model"] == "smollm2 with random weights"
    assert {row["way"] for row in report["rows"]} >= {"generation", "single pass", "cold", "plain", "forward"}
    assert "16 + 2" in done.output


@pytest.mark.parametrize(("option", "value"), [("--shape", "gpt-5"), ("--device", "abacus"), ("--dtype", "int8")])
def test_what_there_is_not_is_refused_in_words(option, value):
    """Before minutes are spent on it."""
    done = RUN.invoke(app, ["bench", *SMALL, option, value])
    assert isinstance(done.exception, ModelSettingError)
    assert done.exception.setting == option.removeprefix("--")
