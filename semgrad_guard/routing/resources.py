"""What a guard may act with: given by the chain that it guards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.ports import AnswerModel, QueryRewriter, Retriever, RetrievingChain


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Retrievers, models and chains by which the policy's steps act; a step without its resource is skipped."""

    chain: AnswerModel | RetrievingChain | None = None
    """Answers the question again: from passages found by `retriever`, or with a retriever of its own."""
    retriever: Retriever | None = None
    retrievers: Mapping[str, Retriever] = field(default_factory=dict[str, "Retriever"])
    """Other retrievers by the name that the policy uses."""
    rewriter: QueryRewriter | None = None
    fallbacks: Mapping[str, AnswerModel] = field(default_factory=dict[str, "AnswerModel"])
    """Fallback models by the name that the policy uses."""


NO_RESOURCES = Resources()
