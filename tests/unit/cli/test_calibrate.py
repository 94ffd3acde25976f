"""`calibrate` and `profile`, from files to files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from semgrad_guard.calibration import load_profile
from semgrad_guard.cli import calibrate, profile
from semgrad_guard.errors import DataFileError, OneClassError, ProfileFileError, TooFewLabelsError
from semgrad_guard.flow import Abstain, Attempt, Decision, Exchange, Fingerprint, HumanReview, Record, Score, Status
from semgrad_guard.review import open_queue
from semgrad_guard.telemetry.jsonl import JsonlSink
from tests.models_for_tests import local_model
from tests.pages import WIDTH, too_wide

if TYPE_CHECKING:
    from pathlib import Path

FINGERPRINT = {"model": "m1", "dtype": "float32", "template": "t", "settings": "position -3", "proxy": False}

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(calibrate.calibrate)
app.add_typer(profile.app, name="profile")


def run(*arguments: object, code: int = 0) -> str:
    """Return what a command printed; errors of ours come out as they are."""
    result = CliRunner(env={"COLUMNS": WIDTH}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def scored(n: int, *, seed: int = 0) -> list[dict]:
    """Return rows as `semgrad-guard score` writes them, with labels."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        right = bool(rng.random() < 0.5)
        rows.append(
            {
                "question": f"question {i}",
                "answer": "yes" if right else "no",
                "correct": right,
                "semgrad": float(np.exp(rng.normal(-1.5 * right, 1))),
                "mean_nll": float(rng.gamma(2.0 - right)),
                "score": 1.0,
                "fingerprint": FINGERPRINT,
            }
        )
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSONL."""
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    return write(tmp_path / "scored.jsonl", scored(120))


@pytest.fixture(name="made")
def _made(data: Path, tmp_path: Path) -> Path:
    run("calibrate", data, "--out", tmp_path / "made.json", "--calibrator", "platt")
    return tmp_path / "made.json"


def test_scored_rows_become_a_profile(data: Path, tmp_path: Path) -> None:
    """No model is needed; the profile is written and its evidence printed."""
    printed = run("calibrate", data, "--out", tmp_path / "p.json", "--name", "mine")
    made = load_profile(tmp_path / "p.json")
    assert (made.name, made.method, made.n_labels) == ("mine", "fused", 120)
    assert made.fingerprint == Fingerprint(**FINGERPRINT)
    for word in ("AUROC", "PRR", "ECE", "120 labelled answers", "semgrad", "out-of-sample"):
        assert word in printed
    assert too_wide(printed) == []


def test_references_are_graded(tmp_path: Path) -> None:
    """Rows with `answers` in place of `correct` give the same labels."""
    rows = [{**row, "answers": ["yes"]} for row in scored(60)]
    expected = sum(row.pop("correct") for row in rows) / 60
    printed = run("calibrate", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json").base_rate == pytest.approx(expected)
    assert "60 answers graded by `contains`" in printed


def test_a_grader_that_never_matches_is_pointed_out(tmp_path: Path) -> None:
    """One class only: a clear error, not a profile of nothing."""
    rows = [{**row, "answers": ["zebra"]} for row in scored(60)]
    for row in rows:
        del row["correct"]
    with pytest.raises(OneClassError) as caught:
        run("calibrate", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "p.json")
    assert caught.value.label is False
    assert not (tmp_path / "p.json").exists()


def test_a_plot_and_a_threshold_on_request(data: Path, tmp_path: Path) -> None:
    """The promise is printed with what breaks it."""
    out, plot = tmp_path / "p.json", tmp_path / "p.svg"
    printed = run("calibrate", data, "--out", out, "--plot", plot, "--error-rate", 0.4, "--delta", 0.1)
    assert plot.stat().st_size > 1_000
    assert "with 90% certainty at most 40% of accepted answers are wrong" in " ".join(printed.split())
    assert "retries" in printed


def test_a_threshold_out_of_reach_does_not_spoil_the_profile(data: Path, tmp_path: Path) -> None:
    """It is told what would be reachable; the profile is there."""
    printed = run("calibrate", data, "--out", tmp_path / "p.json", "--error-rate", 0.01)
    assert "no threshold keeps the error rate at most 0.01" in printed
    assert (tmp_path / "p.json").exists()


def test_an_expiry_date_on_request(data: Path, tmp_path: Path) -> None:
    """In days from now."""
    run("calibrate", data, "--out", tmp_path / "p.json", "--expires-days", 30)
    left = load_profile(tmp_path / "p.json").expires_at - datetime.now(UTC)
    assert 29 < left.total_seconds() / 86_400 <= 30


def test_one_signal_and_one_curve_on_request(data: Path, tmp_path: Path) -> None:
    """What the options name is what the profile has."""
    run("calibrate", data, "--out", tmp_path / "p.json", "--method", "mean_nll", "--calibrator", "venn_abers")
    made = load_profile(tmp_path / "p.json")
    assert (made.method, made.curve.kind) == ("mean_nll", "venn_abers")


def test_rows_without_signals_and_no_model_are_an_error(tmp_path: Path) -> None:
    """It names the line and the ways on."""
    data = write(tmp_path / "d.jsonl", [{"question": "q", "answer": "a", "correct": True}])
    with pytest.raises(DataFileError, match="--model") as caught:
        run("calibrate", data, "--out", tmp_path / "p.json")
    assert caught.value.line == 1


@pytest.fixture(name="tiny")
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a tiny random model under any name."""
    local = local_model("llama")
    monkeypatch.setattr("semgrad_guard.models.load_model", lambda *_, **__: local)


@pytest.mark.usefixtures("tiny")
def test_rows_without_signals_are_scored_by_the_model(tmp_path: Path) -> None:
    """With every free signal; answers of another model make a proxy profile."""
    rows = [{"prompt": f"q {i}", "answer": "abc"[: 1 + i % 3], "correct": i % 3 == 0} for i in range(24)]
    run("calibrate", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "p.json", "--model", "tiny")
    made = load_profile(tmp_path / "p.json")
    assert made.n_labels == 24
    assert made.fingerprint.proxy
    assert made.position is not None
    assert {"semgrad", "hybridgrad", "mean_nll"} <= set(made.evidence.signals)


@pytest.mark.usefixtures("tiny")
def test_rows_without_answers_are_answered_by_the_model(tmp_path: Path) -> None:
    """Its own answers, so no proxy; graded by the accepted ones, right or wrong by how they are written here."""
    rows = [{"prompt": f"q {i}", "answers": ["x"], "correct": i % 2 == 0} for i in range(20)]
    run("calibrate", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "p.json", "--model", "tiny")
    assert not load_profile(tmp_path / "p.json").fingerprint.proxy


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """Before anything is fitted."""
    data = write(tmp_path / "d.jsonl", scored(3))
    data.write_text(data.read_text() + "{oops\n")
    with pytest.raises(DataFileError) as caught:
        run("calibrate", data, "--out", tmp_path / "p.json")
    assert caught.value.line == 4


def test_a_pipe_cannot_be_read_twice(tmp_path: Path) -> None:
    """Better said at once than found empty at the second reading."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataFileError, match="read twice"):
        run("calibrate", pipe, "--out", tmp_path / "p.json")


def test_three_rows_are_too_few(tmp_path: Path) -> None:
    """And leave no file behind."""
    rows = [{**row, "correct": i > 0} for i, row in enumerate(scored(3))]
    with pytest.raises(TooFewLabelsError):
        run("calibrate", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def judged(url: str, rows: list[dict], *, model: str = "m1") -> None:
    """Put answers into a review queue and have people judge them, long enough ago that no verdict can be undone."""
    queue = open_queue(url, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for row in rows:
        score = Score(
            method="semgrad",
            value=row["semgrad"],
            signals={"mean_nll": row["mean_nll"]},
            fingerprint=replace(Fingerprint(**FINGERPRINT), model=model),
            model=model,
        )
        exchange = Exchange(prompt="p", answer=row["answer"], question=row["question"])
        decision = Decision(step=HumanReview(), rule="escalate[0]", why="", exchange_id=exchange.id, score=score)
        item = queue.submit(exchange, decision)
        (queue.approve if row["correct"] else queue.reject)(item, "ann")


def test_verdicts_of_people_are_labels_too(data: Path, tmp_path: Path) -> None:
    """Beside a file or alone; answers of another model are left out, and the bias of the choice is told."""
    url = f"sqlite:///{tmp_path / 'review.db'}"
    judged(url, scored(30, seed=3))
    judged(url, [{**row, "question": "other " + row["question"]} for row in scored(5, seed=4)], model="m2")
    printed = run("calibrate", data, "--from-review", url, "--out", tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json").n_labels == 150
    assert "30 labels are reviewers' verdicts" in printed
    assert "5 left out: scored by another model or setting" in printed
    run("calibrate", "--from-review", url, "--out", tmp_path / "q.json")
    assert load_profile(tmp_path / "q.json").n_labels == 30


def test_neither_file_nor_queue_is_an_error() -> None:
    """The message names both."""
    assert "--from-review" in run("calibrate", code=2)


def test_show_says_what_a_profile_is(made: Path) -> None:
    """Basis, fingerprint, signals with weights, evidence."""
    printed = run("profile", "show", made)
    for word in ("fused", "platt curve", "120 labelled answers", "m1", "no expiry date", "Signals it uses", "AUROC"):
        assert word in printed


def test_show_of_a_missing_profile_is_an_error(tmp_path: Path) -> None:
    """One that says how to make one."""
    with pytest.raises(ProfileFileError, match="semgrad-guard calibrate"):
        run("profile", "show", tmp_path / "none.json")


def test_status_of_a_valid_profile_is_zero(made: Path) -> None:
    """A script can ask."""
    assert "valid" in run("profile", "status", made)


def test_status_of_an_expired_profile_is_one(made: Path) -> None:
    """A script can ask."""
    over = load_profile(made).model_copy(update={"expires_at": datetime(2020, 1, 1, tzinfo=UTC)})
    over.save(made)
    assert "expired" in run("profile", "status", made, code=1)


def logged(path: Path, n: int, *, shift: float = 0.0, fingerprint: Fingerprint | None = None) -> Path:
    """Write the records of a guard that judged n answers."""
    sink = JsonlSink(path)
    for i, row in enumerate(scored(n, seed=9)):
        signals = {"semgrad": row["semgrad"], "mean_nll": row["mean_nll"] + shift}
        score = Score(
            method="semgrad",
            value=signals["semgrad"],
            signals=signals,
            fingerprint=fingerprint or Fingerprint(**FINGERPRINT),
            model="tiny",
        )
        exchange = Exchange(prompt="p", answer="a")
        decision = Decision(step=Abstain(message=""), rule="otherwise", why="", exchange_id=exchange.id, score=score)
        attempt = Attempt(exchange, decision)
        sink.emit(
            Record(
                id=exchange.id,
                at=datetime(2026, 1, 1, tzinfo=UTC),
                status=Status.ABSTAINED,
                text=str(i),
                attempts=(attempt,),
                policy="test",
                seconds=0.0,
                scoring_s=0.0,
            )
        )
    sink.close()
    return path


def test_status_with_records_like_the_labels_finds_no_drift(made: Path, tmp_path: Path) -> None:
    """The same kind of answers: exit code 0."""
    printed = run("profile", "status", made, "--records", logged(tmp_path / "guard.jsonl", 250))
    assert "250 scores of this profile" in printed
    assert "as before" in printed


def test_status_with_moved_records_finds_drift(made: Path, tmp_path: Path) -> None:
    """Exit code 1, and what moved."""
    printed = run("profile", "status", made, "--records", logged(tmp_path / "g.jsonl", 250, shift=4.0), code=1)
    assert "profile drifted" in printed


def test_status_leaves_other_models_scores_out(made: Path, tmp_path: Path) -> None:
    """They say nothing about this profile."""
    other = replace(Fingerprint(**FINGERPRINT), model="m2")
    printed = run("profile", "status", made, "--records", logged(tmp_path / "g.jsonl", 20, fingerprint=other))
    assert "20 other scores left out" in printed
    assert "too few to compare" in printed
