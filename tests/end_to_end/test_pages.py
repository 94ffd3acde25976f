"""Everything that the pages show runs as it stands there, on the packaged model and offline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.given import GIVEN
from tests.pages import PageRun

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))]
GENERATED = "docs/reference/"

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("demo-model"),
    # An event loop that a framework never closes is noticed whenever memory is tidied, in the page that runs just then.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(GENERATED)])
def test_what_a_page_shows_is_so(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers paste it."""
    monkeypatch.chdir(tmp_path)
    PageRun(ROOT / page, GIVEN, write=bool(os.environ.get("SEMGRAD_WRITE_PAGES"))).run()
