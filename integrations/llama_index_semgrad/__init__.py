"""The guard for LlamaIndex: for engines, and as evaluator, output parser, event handler, LLM and workflow.

- `SemGradGuard(...).wrap(engine)` returns an engine of the same kind whose answers are guarded by the policy.
- `SemGradEvaluator` is for LlamaIndex' evaluation tools, `SemGradOutputParser` for any place of an output parser.
- `SemGradEventHandler` judges every answer in the process, and changes none.
- `answering` states the question and the passages of an answer, where they cannot be found.
- `SemGradLLM` is a local model that scores its answers while it writes; `ReviewWorkflow` waits for a reviewer.
"""

from semgrad_guard.extras import require

require("llama_index.core", extra="llama-index")

# What follows needs LlamaIndex; the line above names the extra when it is missing.
from llama_index_semgrad.chat_engine import GuardedChatEngine  # noqa: E402
from llama_index_semgrad.evaluator import SemGradEvaluator  # noqa: E402
from llama_index_semgrad.events import SemGradAnswerEvent, SemGradEventHandler  # noqa: E402
from llama_index_semgrad.exchanges import answering  # noqa: E402
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
    "answering",
]
