"""Fixtures of the LangChain adapter's tests."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from langchain_semgrad.capture import STORE
from tests.adapters.langchain.chains import LYON
from tests.fakes import guard_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from langgraph.checkpoint.sqlite import SqliteSaver

    from semgrad_guard.guard import Guard


@pytest.fixture(name="guard")
def _guard() -> Guard:
    """Guard that holds back wrong answers and takes all others."""
    return guard_of(scores={"wrong": 0.9, LYON: 0.9, "also wrong": 0.8}, default=0.1)


@pytest.fixture(name="saver")
def _saver(tmp_path: Path) -> Iterator[SqliteSaver]:
    """A real checkpointer."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite3.connect(tmp_path / "graph.db", check_same_thread=False)
    yield SqliteSaver(connection)
    connection.close()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test may leave a prompt behind."""
    yield
    assert len(STORE) == 0
