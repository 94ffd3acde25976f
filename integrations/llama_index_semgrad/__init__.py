"""LlamaIndex adapter."""

from semgrad_guard.extras import require

require("llama_index.core", extra="llama-index")

from llama_index_semgrad.chat_engine import GuardedChatEngine  # noqa: E402 - a missing extra names itself first
from llama_index_semgrad.guard import SemGradGuard  # noqa: E402 - same
from llama_index_semgrad.query_engine import GuardedQueryEngine  # noqa: E402 - same

__all__ = ["GuardedChatEngine", "GuardedQueryEngine", "SemGradGuard"]
