"""LangChain adapter: put a guard behind a model, around a chain, into an agent, or only listen.

- `SemGradGuard` judges the answer of the chain that it stands in; `.wrap(chain, ...)` retries and falls back as well.
- `SemGradOutputParser` does the same as the last parser of a chain.
- `SemGradCallbackHandler` judges and logs, and changes nothing.
- `SemGradChatModel` is a local model that scores its answers while it writes them.
"""

from semgrad_guard.extras import require

require("langchain_core", extra="langchain")

from langchain_semgrad.callback import SemGradCallbackHandler  # noqa: E402 - the line above names a missing extra
from langchain_semgrad.chat_model import SemGradChatModel  # noqa: E402
from langchain_semgrad.guard import SemGradGuard  # noqa: E402
from langchain_semgrad.guarded_chain import GuardedChain  # noqa: E402
from langchain_semgrad.output_parser import SemGradOutputParser  # noqa: E402
from langchain_semgrad.result import GuardedAnswer  # noqa: E402
from langchain_semgrad.retrievers import GuardedRetriever  # noqa: E402

__all__ = [
    "GuardedAnswer",
    "GuardedChain",
    "GuardedRetriever",
    "SemGradCallbackHandler",
    "SemGradChatModel",
    "SemGradGuard",
    "SemGradOutputParser",
]
