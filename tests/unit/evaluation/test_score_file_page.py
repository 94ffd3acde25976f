"""The page of scored answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.evaluation.score_file import write_answers

if TYPE_CHECKING:
    from pathlib import Path


def _page(tmp_path: Path, *rows: dict[str, Any]) -> str:
    scored, page = tmp_path / "s.jsonl", tmp_path / "p.html"
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_answers(scored, page)
    return page.read_text(encoding="utf-8")


def _row(answer: str, *spans: tuple[int, int, float], confidence: float | None = None) -> dict[str, Any]:
    said = [{"start": a, "end": b, "signals": {"semgrad": v}, "confidence": confidence} for a, b, v in spans]
    return {"answer": answer, "method": "semgrad", "score": 1.0, "model": "m", "spans": said}


def test_the_least_sure_sentence_has_the_strongest_mark(tmp_path: Path) -> None:
    """What a reader's eye should find first."""
    page = _page(tmp_path, _row("One. Two. Three.", (0, 4, 0.1), (5, 9, 0.9), (10, 16, 0.5)))
    marks = re.findall(r"--doubt:([\d.]+)\" title=\"[^\"]*\">([^<]+)<", page)
    assert marks == [("0.00", "One."), ("1.00", "Two."), ("0.50", "Three.")]


def test_with_a_profile_the_mark_is_the_doubt(tmp_path: Path) -> None:
    """One minus confidence."""
    assert "--doubt:0.80" in _page(tmp_path, _row("One.", (0, 4, 0.1), confidence=0.2))


def test_a_score_object_is_shown_like_a_flat_one(tmp_path: Path) -> None:
    """Files of version 0.1 hold the latter."""
    flat = {**_row("One. Two.", (0, 4, 0.1), (5, 9, 0.9)), "model": "tiny", "signals": {}}
    score = {"value": 1.0, **{key: flat[key] for key in ("method", "model", "signals", "spans")}}
    assert _page(tmp_path, {"answer": flat["answer"], "score": score}) == _page(tmp_path, flat)


@pytest.mark.parametrize("where", ["answer", "question", "error"])
def test_hostile_text_is_shown_not_run(tmp_path: Path, where: str) -> None:
    """Answers come from a model that read the web."""
    row = {**_row("x", (0, 25, 0.1)), where: "<script>alert(1)</script>"}
    page = _page(tmp_path, row)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_text_outside_the_sentences_is_kept(tmp_path: Path) -> None:
    """Nothing of the answer is lost."""
    page = _page(tmp_path, _row("  One.\n\nTwo. end", (2, 6, 0.1), (8, 12, 0.2)))
    shown = re.search(r'<p class="answer">(.*?)</p>', page, re.DOTALL)
    assert shown
    assert re.sub(r"<[^>]+>", "", shown[1]) == "  One.\n\nTwo. end"
