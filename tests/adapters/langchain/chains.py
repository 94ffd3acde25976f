"""Chains of LangChain with a model that gives prepared answers, and what its guard saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import SimpleChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate

from tests.fakes import TableScorer

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage

    from semgrad_guard.flow import Exchange
    from semgrad_guard.guard import Guard

REFUSAL = "I do not know."
"""What the fake policy says in the place of an answer."""
LYON = "wrong Lyon"
"""An answer that the fake guard holds back."""
PROMPT = ChatPromptTemplate.from_template("Answer briefly. {question}")


class Echo(SimpleChatModel):
    """Answers with the last message, so every answer is known to belong to its prompt."""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _call(self, messages: list[BaseMessage], *_: Any, **__: Any) -> str:
        return f"re: {messages[-1].text}"


def model_of(*answers: str) -> BaseChatModel:
    """Chat model that gives these answers in turn."""
    return FakeListChatModel(responses=list(answers))


def echo() -> Echo:
    """Chat model that answers with its prompt."""
    return Echo()


def seen_by(guard: Guard) -> list[Exchange]:
    """Exchanges that reached the guard's scorer, in order."""
    scorer = guard.parts.scorer
    assert isinstance(scorer, TableScorer)
    return scorer.seen


def asked(exchange: Exchange) -> str:
    """Last message of an exchange's prompt."""
    return exchange.prompt if isinstance(exchange.prompt, str) else exchange.prompt[-1].content
