"""What the README says beyond its code, which is run with the other pages (`test_pages.py`), is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from langchain_semgrad import SemGradGuard
from tests.given import rag

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("demo-model")]
QUESTION = "What is the capital of France?"


def test_the_strengths_of_its_table_do_what_they_say() -> None:
    """On a chain with a retriever, whose answers the shipped profile fits."""
    chain = rag()
    plain = chain.invoke(QUESTION).content
    given = {accept: (chain | SemGradGuard(accept=accept)).invoke(QUESTION) for accept in (None, 0.01, 0.999)}
    assert [message.content for message in given.values()] == [plain, plain, "I am not sure enough to answer that."]
    (confidence,) = {message.response_metadata["semgrad"]["confidence"] for message in given.values()}
    assert 0.01 < confidence < 0.999
    assert f"confidence {confidence:.2f}: profile " in given[None].response_metadata["semgrad"]["why"]


def test_it_is_a_screen_and_a_half() -> None:
    """Whoever wants more follows a link."""
    assert len(README.splitlines()) < 100


@pytest.mark.parametrize(
    "page", ["README.md", "docs/tutorials/review.md", "docs/index.md", "docs/explanation/method.md"]
)
def test_pictures_are_there(page: str) -> None:
    """And small enough to be carried along."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures
    for each in pictures:
        assert 1000 < ((ROOT / page).parent / each).stat().st_size < 100_000
