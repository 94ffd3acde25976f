"""Guarded LangChain chains whose runs LangChain's own tracer sends to LangSmith."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from examples.loopback_langsmith import LoopbackLangSmith
from semgrad_guard.flow import RetryRetrieval
from semgrad_guard.telemetry import LangSmithSink
from semgrad_guard.telemetry.langsmith import Timing
from tests.fakes import LadderDecider, guard_of

langsmith = pytest.importorskip("langsmith")
adapter = pytest.importorskip("langchain_semgrad")
fake_chat_models = pytest.importorskip("langchain_core.language_models.fake_chat_models")
output_parsers = pytest.importorskip("langchain_core.output_parsers")
prompts = pytest.importorskip("langchain_core.prompts")
retrievers = pytest.importorskip("langchain_core.retrievers")
runnables = pytest.importorskip("langchain_core.runnables")
tracers = pytest.importorskip("langchain_core.tracers")
documents = pytest.importorskip("langchain_core.documents")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.documents import Document
    from langchain_core.runnables import Runnable, RunnableConfig

    from semgrad_guard.guard import Guard

PROMPT = prompts.ChatPromptTemplate.from_template("Answer briefly. {question}")
ASKED = {"question": "Capital of France?"}


def model(*answers: str) -> Any:
    """Model that gives these answers in turn."""
    return fake_chat_models.FakeListChatModel(responses=list(answers))


def bare(guard: Guard) -> Any:
    """Chain with the guard behind the model."""
    return PROMPT | model("Paris", "Lyon", "Rome") | adapter.SemGradGuard(guard=guard)


def parsed(guard: Guard) -> Any:
    """Chain with the guard behind the parser."""
    return bare_parser() | adapter.SemGradGuard(guard=guard)


def bare_parser() -> Any:
    """Chain without a guard."""
    return PROMPT | model("Paris", "Lyon", "Rome") | output_parsers.StrOutputParser()


def wrapped(guard: Guard) -> Any:
    """Chain inside the guard."""
    return adapter.SemGradGuard(guard=guard).wrap(bare_parser())


def is_guard(run: dict[str, Any]) -> bool:
    """Tell whether a run says what a guard decided."""
    return "semgrad_status" in run["extra"]["metadata"]


async def stream(chain: Runnable[Any, Any], config: RunnableConfig) -> list[Any]:
    """Everything that the chain streams."""
    return [chunk async for chunk in chain.astream(ASKED, config)]


USES: dict[str, Callable[[Runnable[Any, Any], RunnableConfig], Any]] = {
    "invoke": lambda chain, config: chain.invoke(ASKED, config),
    "batch": lambda chain, config: chain.batch([ASKED] * 3, config),
    "stream": lambda chain, config: list(chain.stream(ASKED, config)),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke(ASKED, config)),
    "abatch": lambda chain, config: asyncio.run(chain.abatch([ASKED] * 3, config)),
    "astream": lambda chain, config: asyncio.run(stream(chain, config)),
}


@pytest.fixture(name="server")
def _server() -> Iterator[LoopbackLangSmith]:
    """LangSmith on this machine."""
    with LoopbackLangSmith() as server:
        yield server


@pytest.fixture(name="client")
def _client(server: LoopbackLangSmith) -> Iterator[langsmith.Client]:
    """The real client."""
    client = langsmith.Client(api_url=server.url, api_key="key")
    yield client
    client.close(timeout=0)


@pytest.fixture(name="sink")
def _sink() -> Iterator[LangSmithSink]:
    """A sink that finds the client by itself; it sends when it is closed, and by then the runs are there."""
    sink = LangSmithSink(timing=Timing(first_s=3600.0))
    yield sink
    sink.close(0)


def send(sink: LangSmithSink) -> None:
    """Post what waits; all of it must be taken."""
    sink.close(20)
    assert (sink.dropped, sink.failed) == (0, 0)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", [bare, parsed, wrapped])
def test_guard_and_model_runs_say_the_confidence_however_the_chain_is_called(
    server: LoopbackLangSmith, client: langsmith.Client, sink: LangSmithSink, shape: Callable[[Guard], Any], use: str
) -> None:
    """Traces of batches, asynchronous and streaming chains are read as well."""
    chain = shape(guard_of(scores={"Paris": 0.05, "Lyon": 0.1, "Rome": 0.15}, sink=sink))
    USES[use](chain, {"callbacks": [tracers.LangChainTracer(client=client, project_name="shop")]})
    client.flush()
    send(sink)
    runs = list(server.runs.values())
    guards = {run["id"]: run for run in runs if is_guard(run)}
    models = {run["id"]: run for run in runs if run["name"] == "FakeListChatModel"}
    assert len(guards) == len(models) == (3 if "batch" in use else 1)
    assert {f["run_id"] for f in server.feedback.values()} == models.keys()
    for feedback in server.feedback.values():
        guard = guards[feedback["feedback_source"]["metadata"]["__run"]["run_id"]]
        assert guard["extra"]["metadata"]["semgrad_confidence"] == pytest.approx(feedback["score"])
        assert {"semgrad:answered", "semgrad:accept"} <= set(guard["tags"])
        assert feedback["trace_id"] == models[feedback["run_id"]]["trace_id"] == guard["trace_id"]
        assert feedback["session_id"] == server.session_id("shop")


def test_each_model_call_of_a_retry_gets_its_own_confidence(
    server: LoopbackLangSmith, client: langsmith.Client, sink: LangSmithSink
) -> None:
    """The first answer was doubtful, the second was not: LangSmith shows both."""

    class Passages(retrievers.BaseRetriever):
        k: int = 1

        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
            return [documents.Document(f"passage {n} on {query}") for n in range(self.k)]

    retriever = Passages()
    inputs = {"context": retriever, "question": runnables.RunnablePassthrough()}
    prompt = prompts.ChatPromptTemplate.from_template("{context} {question}")
    chain = inputs | prompt | model("wrong", "right")
    guard = guard_of(scores={"wrong": 0.9, "right": 0.1}, decider=LadderDecider([RetryRetrieval(top_k=3)]), sink=sink)
    guarded = adapter.SemGradGuard(guard=guard).wrap(chain, retriever=retriever)
    guarded.invoke("q", {"callbacks": [tracers.LangChainTracer(client=client, project_name="shop")]})
    client.flush()
    send(sink)
    models = {run["id"]: run for run in server.runs.values() if run["name"] == "FakeListChatModel"}
    said = {f["run_id"]: f["score"] for f in server.feedback.values()}
    assert said.keys() == models.keys()
    assert sorted(said.values()) == [pytest.approx(0.1), pytest.approx(0.9)]
    (run,) = filter(is_guard, server.runs.values())
    assert run["extra"]["metadata"]["semgrad_n_attempts"] == 2
    assert run["extra"]["metadata"]["semgrad_confidence"] == pytest.approx(0.9)
    assert {"semgrad:answered", "semgrad:retry_retrieval", "semgrad:accept"} <= set(run["tags"])


@pytest.fixture(name="environment")
def _environment(server: LoopbackLangSmith, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tracing as most people switch it on: by environment variables alone."""
    said = {"TRACING": "true", "ENDPOINT": server.url, "API_KEY": "key", "PROJECT": "shop"}
    for name, value in said.items():
        monkeypatch.setenv(f"LANGSMITH_{name}", value)
        monkeypatch.delenv(f"LANGCHAIN_{name}", raising=False)
    monkeypatch.setattr(langsmith.run_trees, "_CLIENT", None)
    forget_environment()
    yield
    made = langsmith.run_trees._CLIENT
    if made is not None:
        made.close(timeout=0)
    monkeypatch.undo()
    forget_environment()


def forget_environment() -> None:
    """Make LangSmith read the environment again: it remembers variables, and the project a second time."""
    langsmith.utils.get_env_var.cache_clear()
    langsmith.utils.get_tracer_project.cache_clear()


@pytest.mark.usefixtures("environment")
def test_environment_variables_alone_are_enough(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """No client, no tracer, no handler in the user's code."""
    bare(guard_of(default=0.1, sink=sink)).invoke(ASKED)
    langsmith.run_trees.get_cached_client().flush()
    send(sink)
    (run,) = filter(is_guard, server.runs.values())
    (feedback,) = server.feedback.values()
    assert server.runs[feedback["run_id"]]["name"] == "FakeListChatModel"
    assert feedback["trace_id"] == run["trace_id"]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("background", [True, False])
def test_an_observed_model_call_gets_its_confidence(
    server: LoopbackLangSmith, sink: LangSmithSink, background: bool
) -> None:
    """Observing is how people try the guard first, and LangSmith is where they look."""
    handler = adapter.SemGradCallbackHandler(guard=guard_of(default=0.1, sink=sink), background=background)
    bare_parser().invoke(ASKED, {"callbacks": [handler]})
    model("alone").invoke("q", {"callbacks": [handler]})
    assert handler.flush(20)
    langsmith.run_trees.get_cached_client().flush()
    # a flush can return while another thread of the client still posts the batch that it took before
    assert server.wait_for(lambda: sum(run["name"] == "FakeListChatModel" for run in list(server.runs.values())) == 2)
    send(sink)
    models = {run["id"] for run in server.runs.values() if run["name"] == "FakeListChatModel"}
    assert len(models) == 2
    assert {f["run_id"] for f in server.feedback.values()} == models
    assert {f["session_id"] for f in server.feedback.values()} == {server.session_id("shop")}


@pytest.mark.usefixtures("environment")
def test_an_observed_call_may_be_traced_into_a_project_named_in_code(
    server: LoopbackLangSmith, sink: LangSmithSink
) -> None:
    """A call that nothing called has no run around it that names its project."""
    handler = adapter.SemGradCallbackHandler(guard=guard_of(default=0.1, sink=sink), background=False)
    with langsmith.tracing_context(enabled=True, project_name="library"):
        model("alone").invoke("q", {"callbacks": [handler]})
    assert server.wait_for(lambda: bool(server.runs))
    send(sink)
    (feedback,) = server.feedback.values()
    assert feedback["session_id"] == server.session_id("library")


@pytest.mark.parametrize("use", ["invoke", "ainvoke"])
def test_an_agents_final_answer_gets_its_confidence(
    server: LoopbackLangSmith, client: langsmith.Client, sink: LangSmithSink, use: str
) -> None:
    """In an agent's long trace, the doubtful call is what people look for."""
    agents = pytest.importorskip("langchain.agents")
    guard = guard_of(scores={"Paris": 0.05}, sink=sink)
    agent = agents.create_agent(model("Paris"), [], middleware=[adapter.SemGradMiddleware(guard=guard)])
    asked = {"messages": [("user", "Capital of France?")]}
    config = {"callbacks": [tracers.LangChainTracer(client=client, project_name="shop")]}
    assert (agent.invoke(asked, config) if use == "invoke" else asyncio.run(agent.ainvoke(asked, config)))["messages"]
    client.flush()
    send(sink)
    (answer,) = (run for run in server.runs.values() if run["name"] == "FakeListChatModel")
    (guarding,) = filter(is_guard, server.runs.values())
    (feedback,) = server.feedback.values()
    assert (feedback["run_id"], feedback["score"]) == (answer["id"], 0.95)
    assert guarding["extra"]["metadata"]["semgrad_confidence"] == 0.95
    assert feedback["trace_id"] == answer["trace_id"] == guarding["trace_id"]


@pytest.mark.usefixtures("environment")
def test_a_traced_function_around_the_model_hides_nothing(server: LoopbackLangSmith, sink: LangSmithSink) -> None:
    """LangSmith puts runs of its own between LangChain's, which LangChain does not report."""
    llm = model("Paris")

    @langsmith.traceable
    def inner(prompt: Any) -> Any:
        return llm.invoke(prompt)

    @langsmith.traceable
    def outer(prompt: Any) -> Any:
        return inner(prompt)

    guard = guard_of(default=0.1, sink=sink)
    (PROMPT | runnables.RunnableLambda(outer) | adapter.SemGradGuard(guard=guard)).invoke(ASKED)
    langsmith.run_trees.get_cached_client().flush()
    send(sink)
    (seen,) = guard.parts.scorer.seen
    assert "Answer briefly. Capital of France?" in str(seen.prompt)
    (answer,) = (run for run in server.runs.values() if run["name"] == "FakeListChatModel")
    (feedback,) = server.feedback.values()
    assert feedback["run_id"] == answer["id"]
