"""The parts inside an engine, and copies of an engine with one part exchanged; the engine itself is never changed.

LlamaIndex' engines keep their parts in private attributes of the same few names; an engine that does not is asked as a
whole, and steps that need the part are skipped.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.prompt_helper import PromptHelper
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.llms import LLM
    from llama_index.core.memory import BaseMemory
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import NodeWithScore, QueryBundle

TOP_K_NAMES = (
    "similarity_top_k",
    "_similarity_top_k",
    "num_chunks_per_query",
    "_num_chunks_per_query",
    "top_k",
    "_top_k",
)
"""What retrievers call the number of nodes to return."""

_RETRIEVER, _SYNTHESIZER, _INNER = "_retriever", "_response_synthesizer", "_query_engine"
_MAX_DEPTH = 5


class FixedNodes(BaseRetriever):
    """Returns nodes that were retrieved before, whatever the query."""

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        """Keep the nodes."""
        super().__init__()
        self._nodes = list(nodes)

    @override
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._nodes)


def _holder(engine: object, name: str, depth: int = 0) -> object | None:
    """Return the engine, or the engine inside it, that has a part."""
    if getattr(engine, name, None) is not None:
        return engine
    inner = getattr(engine, _INNER, None)
    return _holder(inner, name, depth + 1) if inner is not None and depth < _MAX_DEPTH else None


def retriever_of(engine: object) -> BaseRetriever | None:
    """Return the retriever of an engine; `None` when it keeps it elsewhere."""
    found = getattr(_holder(engine, _RETRIEVER), _RETRIEVER, None)
    return found if isinstance(found, BaseRetriever) else None


def postprocessors_of(engine: object) -> tuple[BaseNodePostprocessor, ...]:
    """Return what an engine does to retrieved nodes, in order."""
    return tuple(getattr(_holder(engine, _RETRIEVER), "_node_postprocessors", None) or ())


def llm_of(engine: object) -> Any:
    """Return the LLM that writes an engine's answers; `None` when it keeps it elsewhere."""
    synthesizer = getattr(_holder(engine, _SYNTHESIZER), _SYNTHESIZER, None)
    return getattr(synthesizer, "_llm", None) or getattr(_holder(engine, "_llm"), "_llm", None)


def empty_response_of(engine: object) -> str | None:
    """Return the text that an engine gives, without asking a model, when nothing was retrieved."""
    synthesizer = getattr(_holder(engine, _SYNTHESIZER), _SYNTHESIZER, None)
    return getattr(synthesizer, "_empty_response", None)


def with_nodes(engine: Any, nodes: Sequence[NodeWithScore]) -> Any:
    """Return a copy of an engine that answers from these nodes; `None` when it keeps its retriever elsewhere."""
    return _with(engine, _RETRIEVER, {_RETRIEVER: FixedNodes(nodes), "_node_postprocessors": []})


def with_llm(engine: Any, llm: LLM) -> Any:
    """Return a copy of an engine whose answers another LLM writes; `None` when it keeps its LLM elsewhere."""
    holder = _holder(engine, _SYNTHESIZER)
    if holder is not None:
        return _with(engine, _SYNTHESIZER, {_SYNTHESIZER: _synthesizer_with(getattr(holder, _SYNTHESIZER), llm)})
    return _with(engine, "_llm", {"_llm": llm})


def with_memory(engine: Any, memory: BaseMemory) -> Any:
    """Return a copy of a chat engine that reads and writes another memory."""
    return _with(engine, "_memory", {"_memory": memory})


def with_top_k(retriever: Any, top_k: int) -> Any:
    """Return a copy of a retriever, and of those inside it, that returns at least `top_k` nodes where it can count."""
    changed = copy.copy(retriever)
    for name in TOP_K_NAMES:
        present = getattr(retriever, name, None)
        if isinstance(present, int):
            setattr(changed, name, max(present, top_k))
            break
    for name in (_RETRIEVER, "_vector_retriever"):
        if isinstance(getattr(retriever, name, None), BaseRetriever):
            setattr(changed, name, with_top_k(getattr(retriever, name), top_k))
    inner = getattr(retriever, "_retrievers", None)
    if isinstance(inner, list):
        changed._retrievers = [with_top_k(one, top_k) for one in inner]  # noqa: SLF001 - LlamaIndex offers no other way
    return changed


def _with(engine: Any, part: str, changes: dict[str, Any]) -> Any:
    """Return a copy of an engine in which the engine that has a part gets other attributes; `None` if none has it."""
    holder = _holder(engine, part)
    if holder is None:
        return None
    changed = copy.copy(engine)
    if holder is engine:
        vars(changed).update(changes)
    else:
        vars(changed)[_INNER] = _with(getattr(engine, _INNER), part, changes)
    return changed


def _synthesizer_with(synthesizer: Any, llm: LLM) -> Any:
    """Return a copy of a response synthesizer that asks another LLM."""
    changed = copy.copy(synthesizer)
    present = synthesizer._llm  # noqa: SLF001 - LlamaIndex offers no other way
    if llm.metadata.context_window < present.metadata.context_window:
        changed._prompt_helper = PromptHelper.from_llm_metadata(llm.metadata)  # noqa: SLF001 - same
    changed._llm = llm  # noqa: SLF001 - same
    for name, value in vars(changed).items():  # a bound method would still ask the LLM of the original
        if isinstance(value, MethodType) and value.__self__ is synthesizer:
            setattr(changed, name, MethodType(value.__func__, changed))
    return changed
