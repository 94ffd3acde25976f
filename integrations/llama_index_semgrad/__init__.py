"""LlamaIndex adapter: guard an engine, evaluate, parse, listen, or ask a person in a workflow.

- `SemGradGuard(...).wrap(engine)` gives an engine of the same kind whose answers the policy has seen.
- `SemGradEvaluator` works in LlamaIndex' evaluation tools, `SemGradOutputParser` where an output parser does.
- `SemGradEventHandler` listens on the instrumentation dispatcher and changes nothing.
- `SemGradLLM` is a local model that scores while it writes; `ReviewWorkflow` waits for a person.
"""

from semgrad_guard.extras import require

require("llama_index.core", extra="llama-index")

# What follows needs LlamaIndex; the line above names the extra when it is missing.
from llama_index_semgrad.chat_engine import GuardedChatEngine  # noqa: E402
from llama_index_semgrad.evaluator import SemGradEvaluator  # noqa: E402
from llama_index_semgrad.events import SemGradAnswerEvent, SemGradEventHandler  # noqa: E402
from llama_index_semgrad.guard import SemGradGuard, WrapOptions  # noqa: E402
from llama_index_semgrad.llm import SemGradLLM  # noqa: E402
from llama_index_semgrad.output_parser import SemGradOutputParser  # noqa: E402
from llama_index_semgrad.query_engine import GuardedQueryEngine  # noqa: E402
from llama_index_semgrad.rerun import LlmRewriter  # noqa: E402
from llama_index_semgrad.streams import GuardedStreamingChatResponse  # noqa: E402
from llama_index_semgrad.workflow import (  # noqa: E402
    GuardedAnswerEvent,
    QuestionEvent,
    ReviewNeededEvent,
    ReviewWorkflow,
    VerdictEvent,
)

__all__ = [
    "GuardedAnswerEvent",
    "GuardedChatEngine",
    "GuardedQueryEngine",
    "GuardedStreamingChatResponse",
    "LlmRewriter",
    "QuestionEvent",
    "ReviewNeededEvent",
    "ReviewWorkflow",
    "SemGradAnswerEvent",
    "SemGradEvaluator",
    "SemGradEventHandler",
    "SemGradGuard",
    "SemGradLLM",
    "SemGradOutputParser",
    "VerdictEvent",
    "WrapOptions",
]
