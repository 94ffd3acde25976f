"""Sentence embeddings, from a chain's retriever or from a model of `sentence-transformers`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from importlib.util import find_spec
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from typing_extensions import override

from semgrad_guard.errors import EmbeddingFailedError, ModelNotFoundError
from semgrad_guard.extras import require
from semgrad_guard.model_names import MINILM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

N_REMEMBERED = 20_000
"""How many vectors are cached, since the same passages are retrieved repeatedly; 30 MB at 384 numbers each."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors; the cosine of two vectors measures how similar the texts' meanings are."""

    @property
    def name(self) -> str:
        """Name, for people; what an embedder is known by is what it does to a few probe texts."""
        ...

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]] | NDArray[np.float64]:
        """Return one vector per text, ``(text, dimension)``, not necessarily of length 1."""
        ...


class SentenceModel:
    """An embedding model of `sentence-transformers`."""

    def __init__(self, model: str = MINILM.name) -> None:
        """Load the model.

        Args:
            model: the packaged `minilm-l6-v2`, a Hugging Face id, or a folder.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            ModelNotFoundError: there is no such model.
        """
        library: Any = require("sentence_transformers", extra="evaluation")
        place = str(MINILM.paths()[0].parent) if model == MINILM.name else model
        try:
            self._model: Any = library.SentenceTransformer(place)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(model, [place], "name a sentence-transformers model, or minilm-l6-v2") from error
        self._name = model
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._name

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one vector per text."""
        with self._lock:
            vectors = self._model.encode(list(texts), show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)


PROBES = ("the cat sat on the mat", "a dog lay by the door", "interest rates rose in March", "the rate of interest")
"""Texts whose likeness to each other tells one embedder from another."""


def vectors_of(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the vectors of texts, ``(text, number)``; whatever else the embedder raises is passed on.

    Raises:
        EmbeddingFailedError: the embedder did not return a vector of finite numbers for each text.
    """
    vectors = np.asarray(embedder(texts), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EmbeddingFailedError(embedder.name, f"gave {vectors.shape} finite numbers for {len(texts)} texts")
    return vectors


class UnitVectors(Embedder):
    """Scales the vectors of an embedder to length 1, and caches them."""

    def __init__(self, embedder: Embedder, n_remembered: int = N_REMEMBERED) -> None:
        """Wrap an embedder; up to `n_remembered` vectors are cached."""
        self._embedder, self._n_remembered = embedder, n_remembered
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._probed: str | None = None
        self._dimension: int | None = None

    @property
    @override
    def name(self) -> str:
        return self._embedder.name

    @property
    def fingerprint(self) -> str:
        """Name, and the cosines between the probe texts, which tell one embedder from another whatever its name."""
        if self._probed is None:
            try:
                vectors = self(PROBES)
            except Exception:  # noqa: BLE001 - the embedder is foreign code, and answers are scored without it
                return self.name
            cosines = [f"{vectors[i] @ vectors[j]:.3f}" for i, j in combinations(range(len(PROBES)), 2)]
            self._probed = f"{self.name} [{' '.join(cosines)}]"
        return self._probed

    @override
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one vector of length 1 per text; a vector of zeros is not changed."""
        with self._lock:
            known = {text: self._vectors[text] for text in set(texts) if text in self._vectors}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= dict(zip(new, self._unit(new), strict=True))
        with self._lock:
            for text in texts:
                self._vectors[text] = known[text]
                self._vectors.move_to_end(text)
            while len(self._vectors) > self._n_remembered:
                self._vectors.popitem(last=False)
        return np.array([known[text] for text in texts], dtype=np.float64)

    def _unit(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return new vectors of length 1; nothing wrong is cached, so that an embedder may recover.

        Raises:
            EmbeddingFailedError: the embedder did not return a vector of finite numbers for each text, or vectors of
                another dimension than before.
        """
        vectors = vectors_of(self._embedder, texts)
        with self._lock:
            self._dimension = self._dimension or vectors.shape[1]
        if vectors.shape[1] != self._dimension:
            why = f"gave {vectors.shape[1]} numbers a text, and {self._dimension} before"
            raise EmbeddingFailedError(self.name, why)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float64] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        return unit.astype(np.float32)


def has_packaged() -> bool:
    """Return whether the packaged model and the library that runs it are installed."""
    return MINILM.is_installed() and find_spec("sentence_transformers") is not None
