"""A tiny chat model, and exchanges with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from semgrad_guard.models import LocalModel


@pytest.fixture(name="local", scope="session")
def _local() -> LocalModel:
    """Return one tiny chat model for all tests that leave no trace on it."""
    return local_model()


@pytest.fixture(name="scorer", scope="session")
def _scorer(local) -> SemGradScorer:
    return SemGradScorer(local)


@pytest.fixture(name="exchange")
def _exchange() -> Exchange:
    passage = Passage("The tower was built in 1889 by Eiffel.", score=0.5)
    return Exchange(
        prompt=(Message("user", f"Context: {passage.text}\nWho built the tower?"),),
        answer="Eiffel built it. It was done in 1889.",
        question="Who built the tower?",
        passages=(passage,),
        on_policy=True,
    )
