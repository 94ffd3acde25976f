"""One exchange is judged as the same question, passages and answer, wherever the guard stands.

Each form asks the same question, its model reads the same two texts, and the answer is the same. What differs is who
finds the texts: a retriever, a search by hand that leaves no trace, a tool, the graph's state, LlamaIndex.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NotRequired

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, AgentState, dynamic_prompt
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel
from typing_extensions import TypedDict

import langchain_semgrad
import llama_index_semgrad
from langchain_semgrad import (
    SemGradCallbackHandler,
    SemGradGraphState,
    SemGradGuard,
    SemGradMiddleware,
    SemGradNode,
    SemGradOutputParser,
)
from llama_index_semgrad import ReviewWorkflow, SemGradEvaluator, SemGradEventHandler
from semgrad_guard.flow import Exchange, Message, Passage
from tests.adapters.langchain.agents import call_of, says
from tests.adapters.llama_index.index_and_llm import WordEmbedding, llm
from tests.fakes import LadderDecider, TableScorer, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from semgrad_guard.guard import Guard

QUESTION = "Who discovered radium?"
TEXTS = ("Radium was discovered by Marie Curie in 1898.", "Radium glows and was painted on watch dials.")
ANSWER = "Marie Curie."
SHOWN = "\n\n".join(TEXTS)
SYSTEM = "Use the following context in your response:"
RAG = ChatPromptTemplate.from_template(
    "Answer the question from the context.\n\nContext:\n{context}\n\nQuestion: {question}"
)
PROMPT_TEXT = RAG.format(context=SHOWN, question=QUESTION).removeprefix("Human: ")
"""The prompt of the tutorials as one text."""


def docs() -> list[Document]:
    """What a search by hand finds, for instance `vector_store.similarity_search`."""
    return [Document(text) for text in TEXTS]


class Search(BaseRetriever):
    """The same search as a retriever."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return docs()


def model() -> Any:
    """Chat model that gives the answer."""
    return GenericFakeChatModel(messages=iter([AIMessage(ANSWER)] * 9))


def shown(found: list[Document]) -> str:
    """Documents as the tutorials show them to a model."""
    return "\n\n".join(document.page_content for document in found)


# --- LangChain: chains ------------------------------------------------------------------------------------------------


def chain_with_a_retriever(guard: Guard) -> None:
    """`{"context": retriever | format_docs, "question": RunnablePassthrough()} | prompt | llm | guard`."""
    found = {"context": Search() | shown, "question": RunnablePassthrough()}
    (found | RAG | model() | SemGradGuard(guard=guard)).invoke(QUESTION)


def chain_with_a_search_function(guard: Guard) -> None:
    """A function in the place of the retriever."""
    found = {"context": RunnableLambda(lambda _: docs()) | shown, "question": RunnablePassthrough()}
    (found | RAG | model() | StrOutputParser() | SemGradGuard(guard=guard)).invoke(QUESTION)


def chain_that_was_given_the_texts(guard: Guard) -> None:
    """The search happened before the chain."""
    (RAG | model() | SemGradGuard(guard=guard)).invoke({"context": SHOWN, "question": QUESTION})


def chain_that_was_given_the_prompt(guard: Guard) -> None:
    """Even the prompt was made before."""
    (model() | SemGradGuard(guard=guard)).invoke(PROMPT_TEXT)


def chain_that_searches_in_a_function(guard: Guard) -> None:
    """Only the inner step's output shows the documents."""
    search = RunnableLambda(lambda _: [(document, 0.5) for document in docs()])
    found = RunnableLambda(lambda question: shown([document for document, _ in search.invoke(question)]))
    ({"context": found, "question": RunnablePassthrough()} | RAG | model() | SemGradGuard(guard=guard)).invoke(QUESTION)


def chain_that_was_given_the_documents(guard: Guard) -> None:
    """Only the chain's input shows them; some are not used, and the others stand in another order."""
    chain = RunnableLambda(lambda d: {"question": d["question"], "context": shown(d["context"][:0:-1])})
    found = [Document("Radium is a metal."), *docs()[::-1]]
    (chain | RAG | model() | SemGradGuard(guard=guard)).invoke({"question": QUESTION, "context": found})


def stream_of_a_chain(guard: Guard) -> None:
    """A stream that passes and is judged at its end."""
    found = {"context": Search() | shown, "question": RunnablePassthrough()}
    list((found | RAG | model() | SemGradGuard(guard=guard, stream="annotate")).stream(QUESTION))


def wrapped_chain(guard: Guard) -> None:
    """The guard around the chain."""
    search = Search()
    chain = {"context": search | shown, "question": RunnablePassthrough()} | RAG | model()
    SemGradGuard(guard=guard).wrap(chain, retriever=search).invoke(QUESTION)


def wrapped_function(guard: Guard) -> None:
    """The guard around a function that searches by hand."""
    llm_ = model()
    chain = RunnableLambda(lambda question: llm_.invoke(RAG.invoke({"context": shown(docs()), "question": question})))
    SemGradGuard(guard=guard).wrap(chain).invoke(QUESTION)


def history_aware_chain(guard: Guard) -> None:
    """The retriever is asked the reworded question, and the model the user's own."""
    reword = (
        ChatPromptTemplate.from_messages(
            [
                ("system", "Make a standalone question."),
                MessagesPlaceholder("chat_history"),
                ("human", "{input}"),
            ]
        )
        | GenericFakeChatModel(messages=iter([AIMessage("Who found the element radium?")]))
        | StrOutputParser()
    )
    answer = (
        ChatPromptTemplate.from_messages(
            [
                ("system", f"{SYSTEM}\n\n{{context}}"),
                MessagesPlaceholder("chat_history"),
                ("human", "{input}"),
            ]
        )
        | model()
    )
    chain = RunnablePassthrough.assign(context=reword | Search() | shown) | answer | SemGradGuard(guard=guard)
    history = [HumanMessage("What is radium?"), AIMessage("A metal.\n\nIt glows.")]
    chain.invoke({"input": QUESTION, "chat_history": history})


def history_aware_chain_with_a_hidden_search(guard: Guard) -> None:
    """The same, and no retriever is seen: earlier turns are no passages."""
    answer = ChatPromptTemplate.from_messages(
        [
            ("system", f"{SYSTEM}\n\n{SHOWN}"),
            MessagesPlaceholder("chat_history"),
            ("human", "{input}"),
        ]
    )
    history = [HumanMessage("What is radium?"), AIMessage("A metal.\n\nIt glows.")]
    (answer | model() | SemGradGuard(guard=guard)).invoke({"input": QUESTION, "chat_history": history})


def reworded_chain(guard: Guard) -> None:
    """The model is asked the reworded question, so that is the one that was answered."""
    reworded = RunnableLambda(lambda _: QUESTION)
    found = {"context": reworded | Search() | shown, "question": reworded}
    (found | RAG | model() | SemGradGuard(guard=guard)).invoke({"question": "And who found it?"})


def output_parser(guard: Guard) -> None:
    """The guard as the last parser."""
    found = {"context": Search() | shown, "question": RunnablePassthrough()}
    (found | RAG | model() | SemGradOutputParser(guard=guard)).invoke(QUESTION)


def callback_handler(guard: Guard) -> None:
    """The guard that only watches."""
    chain = {"context": Search() | shown, "question": RunnablePassthrough()} | RAG | model()
    handler = SemGradCallbackHandler(guard=guard)
    chain.invoke(QUESTION, {"callbacks": [handler]})
    assert handler.flush(10)


def stated_chain(guard: Guard) -> None:
    """Nothing can be found: the prompt says it in other words."""
    chain = ChatPromptTemplate.from_template("{x}") | model() | SemGradGuard(guard=guard)
    with langchain_semgrad.answering(question=QUESTION, passages=docs()):
        chain.invoke({"x": "Radium, Curie, 1898, dials. Its discoverer, please"})


# --- LangChain: graphs ------------------------------------------------------------------------------------------------


class State(TypedDict, SemGradGraphState, total=False):
    """State of the tutorials' graph."""

    question: str
    context: list[Document]
    answer: str


class Chat(MessagesState, SemGradGraphState):
    """State of a chat's graph."""


class Typed(BaseModel):
    """State as a pydantic model."""

    question: str
    context: list[Document] = []
    answer: str = ""
    semgrad: dict[str, Any] | None = None
    semgrad_held: dict[str, Any] | None = None


def run_graph(state: Any, question: Any, **nodes: Callable[[Any], Any]) -> None:
    """Run nodes one after the other."""
    builder, before = StateGraph(state), START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    builder.add_edge(before, END)
    builder.compile().invoke(question)


def graph_with_documents_in_its_state(guard: Guard) -> None:
    """The search by hand in one node, the model in the next, the guard in a third."""
    llm_ = model()
    run_graph(
        State,
        {"question": QUESTION},
        retrieve=lambda _: {"context": docs()},
        generate=lambda s: {
            "answer": llm_.invoke(RAG.invoke({"context": shown(s["context"]), "question": s["question"]})).text
        },
        guard=SemGradNode(guard=guard, answer_key="answer"),
    )


def graph_with_a_typed_state(guard: Guard) -> None:
    """The same with a pydantic state."""
    llm_ = model()
    run_graph(
        Typed,
        {"question": QUESTION},
        retrieve=lambda _: {"context": docs()},
        generate=lambda s: {
            "answer": llm_.invoke(RAG.invoke({"context": shown(s.context), "question": s.question})).text
        },
        guard=SemGradNode(guard=guard, answer_key="answer"),
    )


def graph_with_a_guard_in_its_node(guard: Guard) -> None:
    """The chain of a node ends in the guard."""
    chain = model() | SemGradGuard(guard=guard)
    run_graph(
        State,
        {"question": QUESTION},
        retrieve=lambda _: {"context": docs()},
        generate=lambda s: {
            "answer": chain.invoke(RAG.invoke({"context": shown(s["context"]), "question": s["question"]})).text
        },
    )


def graph_with_a_hidden_search(guard: Guard) -> None:
    """The node's last human message is the whole prompt."""
    llm_ = model()
    run_graph(
        Chat,
        {"messages": [HumanMessage(QUESTION)]},
        model=lambda s: {
            "messages": [
                llm_.invoke([HumanMessage(RAG.format(context=shown(docs()), question=s["messages"][-1].text)[7:])])
            ]
        },
        guard=SemGradNode(guard=guard),
    )


def graph_with_a_stated_search(guard: Guard) -> None:
    """The node states what it searched; the guard comes after the block has ended."""
    llm_ = model()

    def generate(state: Any) -> Any:
        with langchain_semgrad.answering(question=state["messages"][-1].text, passages=docs()):
            return {"messages": [llm_.invoke("Radium, Curie, 1898, dials. Its discoverer, please")]}

    run_graph(Chat, {"messages": [HumanMessage(QUESTION)]}, model=generate, guard=SemGradNode(guard=guard))


# --- LangChain: agents ------------------------------------------------------------------------------------------------


@tool(response_format="content_and_artifact")
def search_with_artifact(query: str) -> tuple[str, list[Document]]:
    """Search."""
    return "\n\n".join(f"Source: {i}\nContent: {text}" for i, text in enumerate(TEXTS)), docs()


@tool
def search_with_text(query: str) -> str:
    """Search."""
    return SHOWN


def ask_agent(guard: Guard, *script: Any, middleware: Any = (), tools: Any = (), prompt: str | None = None) -> None:
    """Ask a guarded agent."""
    agent = create_agent(
        says(*script, ANSWER),
        list(tools),
        system_prompt=prompt,
        middleware=[SemGradMiddleware(guard=guard), *middleware],
    )
    agent.invoke({"messages": [HumanMessage(QUESTION)]})


def agent_with_a_tools_artifact(guard: Guard) -> None:
    """Documents beside the tool's text."""
    call = call_of("search_with_artifact", query="radium")
    ask_agent(guard, call, tools=[search_with_artifact], prompt="You are helpful.")


def agent_with_a_tools_text(guard: Guard) -> None:
    """Text only."""
    ask_agent(guard, call_of("search_with_text", query="radium"), tools=[search_with_text], prompt="You are helpful.")


def agent_with_a_dynamic_prompt(guard: Guard) -> None:
    """The search by hand in a middleware leaves no trace."""

    @dynamic_prompt
    def prompt_with_context(_: Any) -> str:
        return f"You are a helpful assistant. {SYSTEM}\n\n{shown(docs())}"

    ask_agent(guard, middleware=[prompt_with_context])


class _WithContext(AgentState[Any]):
    context: NotRequired[list[Document]]


class _Augment(AgentMiddleware[_WithContext, Any, Any]):
    """The tutorials' middleware: the user's message becomes question and context."""

    state_schema = _WithContext

    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Search by hand."""
        last = state["messages"][-1]
        text = f"{last.text}\n\nUse the following context to answer the query:\n{shown(docs())}"
        return {"messages": [last.model_copy(update={"content": text})], "context": docs()}


def agent_with_a_longer_message(guard: Guard) -> None:
    """Question and passages are in one user message."""
    ask_agent(guard, middleware=[_Augment()])


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


def index() -> VectorStoreIndex:
    """Index over the two texts."""
    nodes = [TextNode(text=text, id_=f"node-{i}") for i, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding())


def engine(**options: Any) -> Any:
    """Query engine over them."""
    return index().as_query_engine(llm=llm(ANSWER), similarity_top_k=2, **options)


def wrap(guard: Guard, inner: Any, **options: Any) -> Any:
    """Guarded engine."""
    return llama_index_semgrad.SemGradGuard(guard=guard, **options).wrap(inner)


def memory() -> ChatMemoryBuffer:
    """Conversation with an earlier turn."""
    turns = [ChatMessage(role="user", content="What is radium?"), ChatMessage(role="assistant", content="A metal.")]
    return ChatMemoryBuffer.from_defaults(turns, token_limit=3000, tokenizer_fn=str.split)


def query_engine(guard: Guard) -> None:
    """Retriever and synthesizer."""
    wrap(guard, engine()).query(QUESTION)


def query_stream(guard: Guard) -> None:
    """Judged when it has been read."""
    response = wrap(guard, engine(streaming=True), stream="annotate").query(QUESTION)
    assert "".join(response.response_gen).split() == ANSWER.split()


def chat_engine(guard: Guard) -> None:
    """Context in the system message, after an earlier turn."""
    inner = ContextChatEngine.from_defaults(index().as_retriever(similarity_top_k=2), llm=llm(ANSWER), memory=memory())
    wrap(guard, inner).chat(QUESTION)


def condensing_context_chat(guard: Guard) -> None:
    """The retriever is asked the reworded question, the model the user's own."""
    writer = llm(lambda prompt: "Who found radium?" if "standalone question" in prompt.casefold() else ANSWER)
    inner = CondensePlusContextChatEngine.from_defaults(
        index().as_retriever(similarity_top_k=2), llm=writer, memory=memory()
    )
    wrap(guard, inner).chat(QUESTION)


def condensing_chat(guard: Guard) -> None:
    """The model is asked the reworded question: that was answered."""
    writer = llm(lambda prompt: ANSWER if "Context information" in prompt else QUESTION)
    inner = CondenseQuestionChatEngine.from_defaults(
        index().as_query_engine(llm=writer, similarity_top_k=2), llm=writer, memory=memory()
    )
    wrap(guard, inner).chat("And who found it?")


def workflow(guard: Guard) -> None:
    """The engine in a workflow."""

    async def ask() -> None:
        await ReviewWorkflow(wrap(guard, engine())).run(question=QUESTION)

    asyncio.run(ask())


@contextmanager
def watching(guard: Guard) -> Iterator[None]:
    """Judge all answers of the process."""
    handler, root = SemGradEventHandler(guard=guard), get_dispatcher()
    root.add_event_handler(handler)
    try:
        yield
    finally:
        root.event_handlers.remove(handler)


def event_handler(guard: Guard) -> None:
    """The guard that only watches an engine."""
    with watching(guard):
        engine().query(QUESTION)


def model_called_by_hand(guard: Guard) -> None:
    """No engine: the prompt is all there is."""
    with watching(guard):
        llm(ANSWER).complete(PROMPT_TEXT)


def stated_call(guard: Guard) -> None:
    """Nothing can be found: the prompt says it in other words."""
    nodes = [TextNode(text=text) for text in TEXTS]
    with watching(guard), llama_index_semgrad.answering(question=QUESTION, passages=nodes):
        llm(ANSWER).complete("Radium, Curie, 1898, dials. Its discoverer, please")


def stated_call_that_is_evaluated(guard: Guard) -> None:
    """The evaluation comes after the block has ended."""
    evaluator = SemGradEvaluator(guard=guard)
    with llama_index_semgrad.answering(question=QUESTION, passages=TEXTS):
        llm(ANSWER).complete("Radium, Curie, 1898, dials. Its discoverer, please")
    evaluator.evaluate(response=ANSWER)


def llama_index_parser(guard: Guard) -> None:
    """The guard as an output parser of a prompt."""
    parser = llama_index_semgrad.SemGradOutputParser(guard=guard)
    template = PromptTemplate(PROMPT_TEXT.replace(QUESTION, "{question}"))
    writer = llm(ANSWER, output_parser=parser)
    assert writer.predict(template, question=QUESTION) == ANSWER


def evaluator(guard: Guard) -> None:
    """LlamaIndex' own evaluation."""
    SemGradEvaluator(guard=guard).evaluate(query=QUESTION, response=ANSWER, contexts=TEXTS)


# --- no framework -----------------------------------------------------------------------------------------------------


def core_with_everything(guard: Guard) -> None:
    """The program says it all."""
    passages = tuple(map(Passage, (*TEXTS, TEXTS[0])))
    guard.judge(Exchange(prompt=PROMPT_TEXT, question=QUESTION, passages=passages, answer=ANSWER))


def core_with_the_prompt_alone(guard: Guard) -> None:
    """The README's shape."""
    guard.run(Exchange(prompt=PROMPT_TEXT, answer=ANSWER))


def core_batch(guard: Guard) -> None:
    """Several at once."""
    messages = (Message("system", f"{SYSTEM}\n\n{SHOWN}"), Message("user", QUESTION))
    guard.run_batch([Exchange(prompt=messages, answer=ANSWER)])


FORMS: dict[Callable[[Guard], None], str] = {
    chain_with_a_retriever: "retriever",
    chain_with_a_search_function: "state",
    chain_that_searches_in_a_function: "state",
    chain_that_was_given_the_documents: "state",
    chain_that_was_given_the_texts: "prompt",
    chain_that_was_given_the_prompt: "prompt",
    stream_of_a_chain: "retriever",
    wrapped_chain: "retriever",
    wrapped_function: "prompt",
    history_aware_chain: "retriever",
    history_aware_chain_with_a_hidden_search: "prompt",
    reworded_chain: "retriever",
    output_parser: "retriever",
    callback_handler: "retriever",
    stated_chain: "stated",
    graph_with_documents_in_its_state: "state",
    graph_with_a_typed_state: "state",
    graph_with_a_guard_in_its_node: "state",
    graph_with_a_hidden_search: "prompt",
    graph_with_a_stated_search: "stated",
    agent_with_a_tools_artifact: "tool",
    agent_with_a_tools_text: "tool",
    agent_with_a_dynamic_prompt: "prompt",
    agent_with_a_longer_message: "state",
    query_engine: "retriever",
    query_stream: "retriever",
    chat_engine: "retriever",
    condensing_context_chat: "retriever",
    condensing_chat: "retriever",
    workflow: "retriever",
    event_handler: "retriever",
    model_called_by_hand: "prompt",
    stated_call: "stated",
    stated_call_that_is_evaluated: "stated",
    llama_index_parser: "prompt",
    evaluator: "stated",
    core_with_everything: "stated",
    core_with_the_prompt_alone: "prompt",
    core_batch: "prompt",
}
"""Each form, and where its passages are found."""


def ask(form: Callable[[Guard], None], guard: Guard) -> None:
    """Ask the question in one form."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # LlamaIndex' synchronous methods would make one and leave it behind
    try:
        form(guard)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_one_exchange_is_the_same_wherever_the_guard_stands(form: Callable[[Guard], None]) -> None:
    """A number that changes with the place of the guard means nothing."""
    guard = guard_of(default=0.1, decider=LadderDecider(accept=0.0))
    ask(form, guard)
    scorer = guard.parts.scorer
    assert isinstance(scorer, TableScorer)
    (seen,) = scorer.seen
    assert (seen.question, [p.text for p in seen.passages], seen.answer) == (QUESTION, list(TEXTS), ANSWER)
    assert seen.passages_from == FORMS[form]
