"""What the package offers: an accidental export would have to be kept for ever."""

from __future__ import annotations

import llama_index_semgrad


def test_the_public_names_are_pinned() -> None:
    """Adding one is a decision."""
    assert set(llama_index_semgrad.__all__) == {
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
    }
    for name in llama_index_semgrad.__all__:
        assert getattr(llama_index_semgrad, name).__doc__
