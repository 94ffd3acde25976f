"""An index's own embedding model, for the signals of meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.base.embeddings.base import BaseEmbedding


class IndexEmbedder:
    """An embedding model of LlamaIndex as the guard's `Embedder`; its name is its class and model."""

    def __init__(self, embed_model: BaseEmbedding) -> None:
        """Take the embedding model, such as that of an index."""
        self._embed_model = embed_model

    @property
    def name(self) -> str:
        """Class and model; a profile fits one."""
        return f"{type(self._embed_model).__name__} {self._embed_model.model_name}"

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""
        return self._embed_model.get_text_embedding_batch(list(texts))
