"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGSMITH_TRACING", "false")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch  # heavy: most rooms do without

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU that torch can use")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the size of the hostile tests."""
    parser.addoption("--hostile-cases", type=int, help="cases of each hostile test, by default few")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell `tests.hostile_cases` of it, before the tests are collected; many cases take as long as they take.

    Without it every run makes up the same cases, so that a change is judged by what it changes.
    """
    wanted: int | None = config.getoption("--hostile-cases")
    settings.register_profile("project", derandomize=wanted is None, database=None)
    settings.load_profile("project")
    if wanted is not None:
        os.environ["SEMGRAD_HOSTILE_CASES"] = str(wanted)
        if config.getoption("timeout", None) is None:
            config.option.timeout = 0


@pytest.fixture(name="shared_dir", scope="session")
def _shared_dir() -> Path:
    """Folder with evaluation data and reference numbers that are never shipped."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SEMGRAD_SHARED_DIR", default))
    if not (folder / "reference").is_dir():
        pytest.skip("needs the evaluation data, which is not part of the project (set SEMGRAD_SHARED_DIR)")
    return folder
