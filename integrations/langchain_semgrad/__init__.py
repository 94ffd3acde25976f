"""LangChain adapter: a guard at the end of a chain, around one, in an agent, or as an observer.

- `SemGradGuard` judges the answer of the chain that it is part of; `.wrap(chain, ...)` retries and falls back as well.
- `SemGradOutputParser` does the same as the last parser of a chain.
- `SemGradCallbackHandler` judges and logs, and changes nothing.
- `SemGradMiddleware` guards agents made by `create_agent`, `SemGradNode` hand-built graphs (extra `agents`);
  `ReviewedRuns` resumes their stopped runs once people have judged in the review queue, and `resume_with` turns one
  verdict into what such a graph is resumed with.
- `answering` states the question and the passages of an answer, where they cannot be found.
- `SemGradChatModel` is a local model that scores its answers while it writes them; `ChatSemGradServer` is one at a
  server that `semgrad-guard serve` runs (extra `openai`).
"""

from typing import TYPE_CHECKING

from semgrad_guard.extras import require

require("langchain_core", extra="langchain")

from langchain_semgrad.callback import SemGradCallbackHandler  # noqa: E402 - the line above names a missing extra
from langchain_semgrad.chat_model import SemGradChatModel  # noqa: E402
from langchain_semgrad.exchanges import answering  # noqa: E402
from langchain_semgrad.guard import GuardedChain, SemGradGuard  # noqa: E402
from langchain_semgrad.output_parser import SemGradOutputParser  # noqa: E402
from langchain_semgrad.retrievers import GuardedRetriever  # noqa: E402
from langchain_semgrad.values import GuardedAnswer  # noqa: E402

if TYPE_CHECKING:
    from langchain_semgrad.agents.graph_node import SemGradGraphState, SemGradNode
    from langchain_semgrad.agents.middleware import SemGradMiddleware
    from langchain_semgrad.review import ReviewedRuns, resume_with
    from langchain_semgrad.served import ChatSemGradServer

__all__ = [
    "ChatSemGradServer",
    "GuardedAnswer",
    "GuardedChain",
    "GuardedRetriever",
    "ReviewedRuns",
    "SemGradCallbackHandler",
    "SemGradChatModel",
    "SemGradGraphState",
    "SemGradGuard",
    "SemGradMiddleware",
    "SemGradNode",
    "SemGradOutputParser",
    "answering",
    "resume_with",
]

_LATER = {
    "ChatSemGradServer": ("served", "langchain_openai", "openai"),
    "ReviewedRuns": ("review", "langchain.agents", "agents"),
    "SemGradMiddleware": ("agents.middleware", "langchain.agents", "agents"),
    "SemGradNode": ("agents.graph_node", "langchain.agents", "agents"),
    "SemGradGraphState": ("agents.graph_node", "langchain.agents", "agents"),
    "resume_with": ("review", "langchain.agents", "agents"),
}
"""Names that are imported when they are first used: the module, what it needs, and the extra that brings it."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module, library, extra = _LATER[name]
    require(library, extra=extra)
    return getattr(require(f"langchain_semgrad.{module}", extra=extra), name)
