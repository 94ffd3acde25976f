"""LangChain adapter: put a guard behind a model, around a chain, into an agent, or only listen.

- `SemGradGuard` judges the answer of the chain that it stands in; `.wrap(chain, ...)` retries and falls back as well.
"""

from semgrad_guard.extras import require

require("langchain_core", extra="langchain")

from langchain_semgrad.guard import SemGradGuard  # noqa: E402 - the line above names the extra when it is missing
from langchain_semgrad.result import GuardedAnswer  # noqa: E402

__all__ = ["GuardedAnswer", "SemGradGuard"]
