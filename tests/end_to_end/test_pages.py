"""Everything that the pages show runs as it stands there, on the packaged model and offline."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.pages import PageRun

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]


def _chain() -> Any:
    from langchain_core.prompts import ChatPromptTemplate

    from langchain_semgrad import SemGradChatModel

    return ChatPromptTemplate.from_template("{prompt}") | SemGradChatModel(max_tokens=8)


def _own_framework(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / "own_framework.py"))[name]


def _desk() -> Any:
    from semgrad_guard.models import load_model

    model = load_model("smollm2-135m")
    return _own_framework("TrainDesk")({"own": lambda prompt: model.generate(prompt, max_new_tokens=8)})


def _policy() -> None:
    Path("policy.yaml").write_text("accept: 0.5\n", encoding="utf-8")


GIVEN = {
    "policy_file": _policy,
    "MyPipeline": lambda: _own_framework("TrainDeskPipeline"),
    "desk": _desk,
    "chain": _chain,
    "question": lambda: "What is the capital of France?",
    "documents": lambda: ["Paris is the capital of France."],
    "prompt": lambda: "Paris is the capital of France.\n\nQuestion: What is the capital of France?",
    "answer": lambda: "Paris.",
}
"""What a reader's program already has."""


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_so(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers paste it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    PageRun(ROOT / page, GIVEN, write=bool(os.environ.get("SEMGRAD_WRITE_PAGES"))).run()
