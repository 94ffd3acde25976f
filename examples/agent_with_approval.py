"""A LangChain agent whose doubtful answers a person approves: the graph stops, and goes on with the verdict.

The agent searches with a tool and answers with a local model that scores its answers while it writes them. A model this
small cannot call tools by itself, so a rule calls the tool in its place; any tool-calling model does that on its own.
Run it with `python examples/agent_with_approval.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_semgrad import SemGradChatModel, SemGradMiddleware

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

POLICY = {
    "version": 1,
    "scorer": {"model": "smollm2-135m", "profile": "smollm2-135m-demo"},
    "accept": 0.99,  # this desk wants nearly every answer to be seen by a person
    "escalate": ["human_review"],
    "otherwise": "abstain",
    "messages": {"pending": "A colleague looks at this answer.", "abstain": "I am not sure enough to answer that."},
    "review": {"url": "interrupt"},  # the graph stops for the person; there is no queue
}

PASSAGES = (
    "A parcel of up to five kilograms to Iceland costs fourteen euros.",
    "Parcels that could not be delivered are kept for ten days at the post office.",
    "Stamps of the old currency can be exchanged until the end of the year.",
)


@tool(response_format="content_and_artifact")
def search(query: str) -> tuple[str, list[Document]]:
    """Search the handbook of the post office."""
    wanted = set(re.findall(r"\w+", query.lower()))
    best = max(PASSAGES, key=lambda text: len(wanted & set(re.findall(r"\w+", text.lower()))))
    return best, [Document(best, metadata={"source": "handbook"})]


class SearchingModel(SemGradChatModel):
    """Searches first, then answers from what was found."""

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        """Return the model: it knows its only tool."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        question = next(str(m.text) for m in reversed(messages) if isinstance(m, HumanMessage))
        if not isinstance(messages[-1], ToolMessage):
            call = {"name": search.name, "args": {"query": question}, "id": "1"}
            return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])
        system = SystemMessage("Answer the question from the passage, in a few words.")
        return super()._generate(
            [system, HumanMessage(f"{messages[-1].text}\n\nQuestion: {question}")], *args, **kwargs
        )


def main() -> None:
    """Ask three questions; a person approves, edits and rejects."""
    llm = SearchingModel(model="smollm2-135m", max_tokens=24)
    guard = SemGradMiddleware(llm, policy=POLICY)
    agent = create_agent(llm, [search], middleware=[guard], checkpointer=InMemorySaver())

    asked = (
        ("What does a parcel to Iceland cost?", {"type": "approve"}),
        ("For how many days are parcels kept at the post office?", {"type": "edit", "answer": "For ten days."}),
        ("Until when can old stamps be exchanged?", {"type": "reject"}),
    )
    for number, (question, verdict) in enumerate(asked):
        thread: Any = {"configurable": {"thread_id": str(number)}}
        state = agent.invoke({"messages": [HumanMessage(question)]}, thread)
        print(f"{question}\n  user sees: {state['messages'][-1].text}")
        for interrupt in state.get("__interrupt__", ()):
            waiting = interrupt.value["action_requests"][0]["args"]
            print(f"  person sees: {waiting['answer']!r}, because {waiting['why']}")
            state = agent.invoke(Command(resume=verdict), thread)
            print(f"  person says: {verdict['type']}\n  user gets: {state['messages'][-1].text}")
        print(f"  {state['semgrad']['status']}")


if __name__ == "__main__":
    main()
