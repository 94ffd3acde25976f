"""LangChain's own standard tests, run on our chat model."""

from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_semgrad import SemGradChatModel


class TestSemGradChatModel(ChatModelUnitTests):
    """What LangChain expects of every chat model."""

    @property
    def chat_model_class(self) -> type[SemGradChatModel]:
        """The class under test."""
        return SemGradChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Arguments with which it is made."""
        return {"model": "smollm2-135m"}
