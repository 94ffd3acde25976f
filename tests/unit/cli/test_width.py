"""What commands print can be read in a terminal of 80 columns: nothing is cut, and no table is wider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semgrad_guard.calibration import Interval
from semgrad_guard.calibration.profile import AdversarialEvidence
from semgrad_guard.cli import evaluate
from semgrad_guard.cli.app import app
from semgrad_guard.evaluation.adversarial import KINDS
from semgrad_guard.evaluation.compare.comparing import Comparison, MethodResult
from semgrad_guard.evaluation.compare.report import Result
from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Accounts, Role, Scope, Tokens
from semgrad_guard.review.webhooks import add_webhook
from semgrad_guard.serving.gate import KeyFile
from semgrad_guard.signals import SIGNALS
from semgrad_guard.telemetry import JsonlSink
from tests.pages import WIDTH, too_wide
from tests.records import make_attempt, make_record
from tests.review_queues import submit

LONG = "supercalifragilisticexpialidociously " * 3


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands read: a queue, records, keys, labelled answers, each with long texts."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'review.db'}"
    monkeypatch.setenv("SEMGRAD_REVIEW_URL", url)
    queue = open_queue(url)
    for n in range(3):
        submit(queue, n, confidence=0.1 * n, question=LONG, answer=LONG)
    account = Accounts(queue.database).add("annabel.featherstonehaugh", "a good password", Role.ADMIN)
    Tokens(queue.database).issue("the guard in production", account, list(Scope), lifetime_s=86_400)
    add_webhook(
        queue, "chat", "https://chat.example.com/hooks/review/of/the/guard/in/production", ["verdict", "submit"]
    )
    queue.close()
    sink = JsonlSink(tmp_path / "guard.jsonl")
    sink.emit(make_record(make_attempt("a1", 0.9, text=LONG)))
    KeyFile(tmp_path / "keys.json").issue("the-rag-application-in-production")
    (tmp_path / "policy.yaml").write_text(
        "accept: 0.7\nescalate: [retry_retrieval, {fallback_model: {name: the-largest-model-there-is}}]\n"
    )
    rows = [
        {"question": str(n), "answer": LONG, "confidence": 0.9 - n / 20, "correct": n % 3 > 0, "seconds": 123.456}
        for n in range(12)
    ]
    rows += [
        {**row, "attempt": 2, "route": route}
        for row in rows[6:]
        for route in ("retry_retrieval", "fallback_model:the-largest-model-there-is")
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "signals",
        "models list",
        "doctor",
        "doctor --policy policy.yaml",
        "profile show proxy",
        "profile show smollm2-135m-demo",
        "profile status proxy",
        "keys list",
        "watch guard.jsonl --once",
        "policy simulate policy.yaml scored.jsonl",
        "review list",
        "review stats",
        "review user list",
        "review token list",
        "review webhook list",
    ],
)
def test_tables_fit_a_terminal(folder: Path, line: str) -> None:
    """A heading that is cut to `gener…` says nothing, and a table that the terminal wraps cannot be read."""
    done = CliRunner(env={"COLUMNS": WIDTH, "TERM": "dumb"}).invoke(app, line.split())
    assert done.exception is None, done.output
    assert done.stdout.strip()
    assert too_wide(done.stdout) == []


def test_the_comparison_of_methods_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """With the longest names that signals have, and figures of the widest kind."""
    monkeypatch.setenv("COLUMNS", WIDTH)
    figure, behind = Interval(value=0.7351, low=0.7012, high=0.7689), Interval(value=-0.0412, low=-0.06, high=-0.02)
    methods = tuple(
        MethodResult(
            **dict.fromkeys(("auroc", "auprc", "prr", "aurc", "ece"), figure),
            name=name,
            kind=kind,
            signals=(name,),
            n=12_345,
            coverage={"0.1": figure},
            behind_fused=behind,
            seconds=12.34,
        )
        for name, kind in [
            ("fused, only texts and embeddings", "fused"),
            *((name, "likelihood") for name in sorted(SIGNALS, key=len)[-5:]),
        ]
    )
    result = Result(
        data="a-data-set-with-a-long-name",
        model="Qwen2.5-7B-Instruct",
        grader="contains",
        settings={},
        left_out={"ContextTooLongError: the prompt has 40,000 tokens, and the model reads 8,192 at most": 12},
        seconds={"answering": 1.0},
        comparison=Comparison(n=12_345, n_groups=12_345, right=figure, methods=methods, ablations={}, tags=()),
        promises=(),
        adversarial={kind: AdversarialEvidence(n=1234, mean=0.5, accepted=0.25) for kind in KINDS},
    )
    evaluate._report(result, Path("runs"))
    said = capsys.readouterr().out
    assert too_wide(said) == []
    assert "-0.041*" in said
    assert "runs/result.json" in said
