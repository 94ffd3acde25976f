"""Fixtures of the LangChain adapter's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from langchain_semgrad.capture import STORE
from tests.adapters.langchain.chains import LYON
from tests.fakes import guard_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.guard import Guard


@pytest.fixture(name="guard")
def _guard() -> Guard:
    """Guard that holds back wrong answers and takes all others."""
    return guard_of(scores={"wrong": 0.9, LYON: 0.9, "also wrong": 0.8}, default=0.1)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test may leave a prompt behind."""
    yield
    assert len(STORE) == 0
