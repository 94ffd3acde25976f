"""`policy simulate`, from files to tables, JSON and a plot."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli.policy import app
from semgrad_guard.errors import DataFileError, PolicyFileError
from semgrad_guard.telemetry.jsonl import JsonlSink
from tests.records import make_attempt, make_record

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """
scorer: {model: smollm2-135m}
accept: 0.7
escalate: [retry_retrieval, {human_review: {when: {below: 0.3}}}]
review: {url: interrupt}
"""
ROWS: list[dict[str, Any]] = [
    {"question": "one", "answer": "a", "confidence": 0.9, "correct": True, "seconds": 0.5},
    {"question": "two", "answer": "a", "confidence": 0.5, "correct": False, "seconds": 0.5},
    {"question": "two", "attempt": 2, "answer": "a", "confidence": 0.8, "correct": False, "answer_s": 2},
    {"question": "three", "answer": "a", "confidence": 0.1, "correct": True, "seconds": 0.5},
    {"question": "four", "answer": "", "error": "EmptyAnswerError: empty", "correct": False},
]
"""One accepted, one accepted after a retry, one for people, one that could not be scored; two of four wrong."""


def run(*arguments: object) -> Any:
    """Return the result of a command; errors of ours come out as they are."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["simulate", *(str(a) for a in arguments)])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(name="policy")
def _policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_a_table_by_route_and_what_it_does_not_show(policy: Path, data: Path) -> None:
    """In 80 columns, no number cut off."""
    printed = run(policy, data).stdout
    cells = [line.split() for line in printed.splitlines()]
    for wanted in (
        "accept 1 25.0% 0.0%",
        "retry_retrieval 1 25.0% 100.0%",
        "human_review 1 25.0% 1 of 1",
        "all 4 100.0%",
    ):
        assert any(line[: len(wanted.split())] == wanted.split() for line in cells), wanted
    assert "answered: 50.0% (" in printed
    assert "1 first answers could not be scored" in printed
    assert "What this does not show:" in printed
    assert "…" not in printed


def test_json_holds_the_same_and_nothing_else_is_printed(policy: Path, data: Path) -> None:
    """For programs; the progress bar goes to the error stream."""
    found = json.loads(run(policy, data, "--json").stdout)
    assert found["accept"] == {"accept": 0.7}
    assert (found["all"]["n"], found["all"]["n_answered"], found["all"]["n_wrong"]) == (4, 2, 1)
    assert [route["route"] for route in found["routes"]] == ["accept", "retry_retrieval", "human_review", "abstain"]
    assert found["routes"][1]["mean_seconds"] == 2.5
    assert found["first_answers"]["error_rate"]["value"] == 0.5
    assert found["first_answers"]["curve"][14] == {"accept": 0.7, "coverage": 0.25, "error_rate": 0.0}
    assert found["not_recorded"] == {"retry_retrieval": 1}
    assert found["cautions"]
    assert found["limits"]


def test_a_plot_on_request(policy: Path, data: Path, tmp_path: Path) -> None:
    """Named on the error stream, so JSON can be piped."""
    plot = tmp_path / "plot.svg"
    assert f"plot: {plot}" in run(policy, data, "--json", "--plot", plot).stderr.replace("\n", "")
    assert plot.stat().st_size > 1_000


def test_a_guards_records_are_replayed_with_labels(policy: Path, tmp_path: Path) -> None:
    """The last of the two attempts has no label and is accepted."""
    sink = JsonlSink(tmp_path / "guard.jsonl", log_text=False)
    sink.emit(make_record(make_attempt("a", 0.9)))
    sink.emit(make_record(make_attempt("b", 0.8)))
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"id": "a", "correct": true}\n', encoding="utf-8")
    found = json.loads(run(policy, tmp_path / "guard.jsonl", "--labels", labels, "--json").stdout)
    assert (found["all"]["n"], found["all"]["n_answered"], found["all"]["n_answered_labelled"]) == (2, 2, 1)


def test_records_without_labels_are_refused(policy: Path, tmp_path: Path) -> None:
    """They do not say what is right; the message names the option."""
    JsonlSink(tmp_path / "guard.jsonl").emit(make_record(make_attempt("a", 0.9)))
    with pytest.raises(DataFileError, match="--labels"):
        run(policy, tmp_path / "guard.jsonl")


def test_a_row_without_a_label_is_named(policy: Path, tmp_path: Path) -> None:
    """Nothing is counted as right or wrong that nobody judged."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "one", "answer": "a", "confidence": 0.9}\n', encoding="utf-8")
    with pytest.raises(DataFileError) as caught:
        run(policy, data)
    assert caught.value.line == 1


def test_a_mistake_in_the_policy_comes_first(data: Path, tmp_path: Path) -> None:
    """Before a long file is read."""
    (tmp_path / "bad.yaml").write_text("acept: 0.7\n", encoding="utf-8")
    with pytest.raises(PolicyFileError):
        run(tmp_path / "bad.yaml", data)


def test_the_log_level_is_put_back(policy: Path, data: Path) -> None:
    """Single answers that fail are counted, not shouted, and only while the simulation runs."""
    log = logging.getLogger("semgrad_guard")
    before = log.level
    assert "could not judge" not in run(policy, data).stderr
    assert log.level == before


def test_help_shows_an_example() -> None:
    """Help without one is searched for one."""
    assert "semgrad-guard policy simulate policy.yaml" in CliRunner().invoke(app, ["simulate", "--help"]).output
