"""A chain's own embeddings, for the signals of meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.embeddings import Embeddings


class ChainEmbedder:
    """The embeddings of a retriever as the guard's `Embedder`; its name is their class and model."""

    def __init__(self, embeddings: Embeddings) -> None:
        """Take the embeddings, such as those of a vector store."""
        self._embeddings = embeddings
        model = next(
            (found for key in ("model", "model_name") if isinstance(found := getattr(embeddings, key, None), str)), ""
        )
        self._name = f"{type(embeddings).__name__} {model}".strip()

    @property
    def name(self) -> str:
        """Class and model; a profile fits one."""
        return self._name

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""
        return self._embeddings.embed_documents(list(texts))
