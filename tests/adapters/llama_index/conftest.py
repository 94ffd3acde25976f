"""Fixtures of the LlamaIndex adapter's tests."""

from __future__ import annotations

from tests.adapters.llama_index.index_and_llm import _own_loop

__all__ = ["_own_loop"]
