"""Form (b): a chain under the policy, with retries and fallbacks that really act."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core._api import LangChainDeprecationWarning
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import BaseModel

from langchain_semgrad import SemGradGuard
from langchain_semgrad.capture import STORE
from semgrad_guard.errors import LowConfidenceError, NotGuardableError
from semgrad_guard.flow import FallbackModel, RetryRetrieval
from tests.adapters.langchain.chains import REFUSAL, asked, model_of, seen_by
from tests.adapters.langchain.rag import FACTS, RAG, Facts, Reader, rag, shown
from tests.fakes import LadderDecider, guard_of

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

    from semgrad_guard.flow import Step
    from semgrad_guard.guard import Guard


def policy(*steps: Step, good: tuple[str, ...] = ("8 facts",), **changes: Any) -> Guard:
    """Guard that takes only the good answers, else goes down the steps."""
    return guard_of(scores=dict.fromkeys(good, 0.05), default=0.8, decider=LadderDecider(steps, **changes))


# --- retrieving again -------------------------------------------------------------------------------------------------


def test_a_retry_gives_the_same_chain_more_passages() -> None:
    """The whole point: the model reads eight facts instead of two, in the chain's own format."""
    facts, model = Facts(), Reader()
    guard = policy(RetryRetrieval(top_k=8))
    answer = SemGradGuard(guard=guard).wrap(rag(facts, model), retriever=facts).invoke("How many?")
    assert answer.content == "8 facts"
    assert facts.queries == [("How many?", 2), ("How many?", 8)]
    assert "[t7] Fact 7." in model.prompts[1]
    assert answer.response_metadata["semgrad"]["n_attempts"] == 2
    assert [len(s.passages) for s in seen_by(guard)] == [2, 8]
    assert [asked(s) for s in seen_by(guard)] == model.prompts
    assert [s.attempt for s in seen_by(guard)] == [1, 2]


def test_nothing_of_the_bad_answer_reaches_the_next_prompt() -> None:
    """A model that reads its own mistake repeats it."""
    facts, model = Facts(), Reader(reply="MISTAKE {n} facts")
    guard = policy(RetryRetrieval(top_k=8), good=("MISTAKE 8 facts",))
    SemGradGuard(guard=guard).wrap(rag(facts, model), retriever=facts).invoke("How many?")
    assert len(model.prompts) == 2
    assert "MISTAKE" not in model.prompts[1]


def test_the_chain_itself_stays_as_it_was() -> None:
    """Other users of the same chain must not notice."""
    facts, model = Facts(), Reader()
    chain = rag(facts, model)
    SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=facts).invoke("How many?")
    assert chain.invoke("How many?").content == "2 facts"
    assert facts.k == 2


def test_the_best_attempt_is_held_back_when_none_is_good_enough() -> None:
    """More passages may still not be enough."""
    facts = Facts()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=4))).wrap(rag(facts, Reader()), retriever=facts)
    answer = guarded.invoke("How many?")
    assert answer.content == REFUSAL
    assert answer.response_metadata["semgrad"]["n_attempts"] == 2


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"])
async def test_every_way_of_calling_retries(how: str) -> None:
    """Sync, async, batch and stream are one chain to its users."""
    facts, model = Facts(), Reader()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(rag(facts, model), retriever=facts)
    ways: dict[str, Any] = {
        "invoke": lambda: [guarded.invoke("q")],
        "batch": lambda: guarded.batch(["q", "q"]),
        "stream": lambda: list(guarded.stream("q")),
    }
    if how in ways:
        answers = ways[how]()
    elif how == "astream":
        answers = [chunk async for chunk in guarded.astream("q")]
    else:
        answers = [await guarded.ainvoke("q")] if how == "ainvoke" else await guarded.abatch(["q", "q"])
    assert {a.content for a in answers} == {"8 facts"}


async def test_an_asynchronous_only_chain_can_be_called_again() -> None:
    """Its functions have no synchronous twin."""
    facts, model = Facts(), Reader()

    async def find(question: str) -> dict[str, str]:
        return {"context": shown(await proxy.ainvoke(question)), "question": question}

    proxy = SemGradGuard.retriever(facts)
    chain = RunnableLambda(find) | RAG | model
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=proxy)
    assert (await guarded.ainvoke("q")).content == "8 facts"


def test_the_same_passages_end_the_retrying_without_another_answer() -> None:
    """Asking again can't help, and costs a model call."""
    facts, model = Facts(k=8), Reader(reply="bad {n}")
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(rag(facts, model), retriever=facts)
    answer = guarded.invoke("q")
    assert len(model.prompts) == 1
    assert "same passages" in answer.response_metadata["semgrad"]["error"]


def test_a_retriever_that_finds_nothing_ends_the_retrying() -> None:
    """There is nothing to answer from; the first answer is not lost."""
    facts, model = Facts(), Reader()
    guard = policy(RetryRetrieval(retriever="empty"))
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, model), retriever=facts, retrievers={"empty": lambda _, __: []})
    answer = guarded.invoke("q")
    assert len(model.prompts) == 1
    assert "no passages" in answer.response_metadata["semgrad"]["error"]


def test_a_chain_whose_first_retrieval_finds_nothing_is_asked_again() -> None:
    """The retry may find more."""
    facts, model = Facts(k=0), Reader()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(rag(facts, model), retriever=facts)
    assert guarded.invoke("q").content == "8 facts"


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")  # newer releases warn
def test_a_history_around_the_guarded_chain_remembers_only_what_was_given() -> None:
    """The withheld answer must not be read in the next turn."""
    history = InMemoryChatMessageHistory()
    chat = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "{question}")]) | Reader(
        reply="wrong"
    )
    guarded = SemGradGuard(guard=policy()).wrap(chat)
    remembering = RunnableWithMessageHistory(
        guarded, lambda _: history, input_messages_key="question", history_messages_key="history"
    )
    given = remembering.invoke({"question": "q"}, {"configurable": {"session_id": "1"}})
    assert given.content == REFUSAL
    assert [m.content for m in history.messages] == ["q", REFUSAL]


def test_a_retriever_that_fails_counts_as_a_failed_step() -> None:
    """The ladder goes on; the first answer is not lost."""
    broken = RunnableLambda(lambda _: 1 / 0)
    facts = Facts()
    guard = policy(RetryRetrieval(retriever="other"), RetryRetrieval(top_k=8))
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, Reader()), retriever=facts, retrievers={"other": broken})
    assert guarded.invoke("q").content == "8 facts"


def test_another_retriever_by_name() -> None:
    """A second index, or a function of query and number."""
    facts, model = Facts(), Reader()
    guard = policy(RetryRetrieval(retriever="all", top_k=8))
    everything = lambda query, k: [Document(text, metadata={"title": query}) for text in FACTS[:k]]  # noqa: E731
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, model), retriever=facts, retrievers={"all": everything})
    assert guarded.invoke("q").content == "8 facts"
    assert "[q] Fact 7." in model.prompts[1]
    assert len(facts.queries) == 1


def test_a_rewritten_question_is_for_retrieval_only() -> None:
    """The model must answer what was asked."""
    facts, model = Facts(), Reader()
    guard = policy(RetryRetrieval(top_k=8, rewrite_query=True))
    rewriter = model_of('"other words"')
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, model), retriever=facts, rewriter=rewriter)
    assert guarded.invoke("original words").content == "8 facts"
    assert facts.queries[1] == ("other words", 8)
    assert "Question: original words" in model.prompts[1]
    assert "other words" not in model.prompts[1]
    assert {s.question for s in seen_by(guard)} == {"original words"}


def test_a_retry_asks_the_retriever_what_the_chain_asked_it() -> None:
    """A chain that makes the question independent of the chat knows better than its last words."""
    facts, model = Facts(), Reader()
    chain = {"context": (lambda q: f"standalone {q}") | facts | shown, "question": RunnablePassthrough()} | RAG | model
    SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=facts).invoke("it?")
    assert facts.queries == [("standalone it?", 2), ("standalone it?", 8)]


def test_a_chain_that_owns_its_retriever_is_reconfigured() -> None:
    """`configurable` fields reach what wrap was not given."""
    facts = Facts().configurable_fields(k=ConfigurableField(id="k"))
    guard = policy(RetryRetrieval(configurable={"k": 8}))
    assert SemGradGuard(guard=guard).wrap(rag(facts, Reader())).invoke("q").content == "8 facts"


def test_without_a_retriever_the_step_says_what_to_pass() -> None:
    """Silence would look like a retry that did not help."""
    answer = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(rag(Facts(), Reader())).invoke("q")
    assert answer.content == REFUSAL
    assert "wrap(chain, retriever=retriever)" in answer.response_metadata["semgrad"]["error"]


def test_an_answer_function_takes_the_chains_place() -> None:
    """For chains that cannot be called again."""
    facts, model = Facts(), Reader()
    hidden = RunnableLambda(lambda q: rag(facts, model).invoke(q))

    def answer(question: str, documents: list[Document]) -> AIMessage:
        return (RAG | model).invoke({"question": question, "context": shown(documents)})

    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(hidden, retriever=facts, answer=answer)
    assert guarded.invoke("q").content == "8 facts"


def test_a_history_in_the_input_can_name_its_question() -> None:
    """Chains call their question what they like."""
    facts, model = Facts(), Reader()
    chain = {"context": (lambda d: d["ask"]) | facts | shown, "question": lambda d: d["ask"]} | RAG | model
    guard = policy(RetryRetrieval(top_k=8))
    SemGradGuard(guard=guard).wrap(chain, retriever=facts, question_key="ask").invoke({"ask": "q1", "input": "other"})
    assert [s.question for s in seen_by(guard)] == ["q1", "q1"]


# --- where the retriever is -------------------------------------------------------------------------------------------


def test_a_retriever_is_found_anywhere_in_the_tree() -> None:
    """Bindings, assignments, branches, fallbacks: chains nest deeply."""
    for build in (
        lambda r: RunnablePassthrough.assign(context=(lambda d: d["question"]) | r | shown) | RAG,
        lambda r: (
            RunnablePassthrough.assign(context=(lambda d: d["question"]) | r.with_config(tags=["t"]) | shown) | RAG
        ),
        lambda r: RunnablePassthrough.assign(context=(lambda d: d["question"]) | r.with_retry() | shown) | RAG,
        lambda r: (RunnablePassthrough.assign(context=(lambda d: d["question"]) | r | shown) | RAG).with_fallbacks(
            [RAG]
        ),
    ):
        facts = Facts()
        guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(build(facts) | Reader(), retriever=facts)
        assert guarded.invoke({"question": "q"}).content == "8 facts"


def test_a_retriever_inside_a_function_is_refused_with_the_way_out() -> None:
    """It cannot be replaced there; a retry would read the old passages."""
    facts = Facts()

    def find(question: str) -> dict[str, str]:
        return {"context": shown(facts.invoke(question)), "question": question}

    with pytest.raises(NotGuardableError, match=r"function find.*guard\.retriever\(retriever\)"):
        SemGradGuard(guard=policy()).wrap(RunnableLambda(find) | RAG | Reader(), retriever=facts)


def test_a_guarded_retriever_inside_a_function_is_handed_the_passages() -> None:
    """The way out that the error names."""
    facts = SemGradGuard.retriever(Facts())

    def find(question: str) -> dict[str, str]:
        return {"context": shown(facts.invoke(question)), "question": question}

    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(
        RunnableLambda(find) | RAG | Reader(), retriever=facts
    )
    assert guarded.invoke("q").content == "8 facts"


def test_passages_that_the_chain_did_not_read_fail_the_step() -> None:
    """An answer from the old passages must not count as a better one."""
    facts, model = Facts(), Reader()

    def find(question: str) -> dict[str, str]:
        return {"context": shown(Facts().invoke(question)), "question": question}

    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(
        RunnableLambda(find) | RAG | model, retriever=SemGradGuard.retriever(facts)
    )
    answer = guarded.invoke("q")
    assert answer.content == REFUSAL
    assert "without reading" in answer.response_metadata["semgrad"]["error"]


def test_a_chain_with_a_memory_is_refused() -> None:
    """It would remember the bad answer and read it at the retry."""
    with pytest.warns(LangChainDeprecationWarning):
        history = RunnableWithMessageHistory(RAG | Reader(), lambda _: InMemoryChatMessageHistory())
    with pytest.raises(NotGuardableError, match="remembers"):
        SemGradGuard(guard=policy()).wrap(history)


# --- fallback models --------------------------------------------------------------------------------------------------


def test_a_fallback_model_reads_the_very_same_prompt_and_is_judged() -> None:
    """Its answer may be wrong too."""
    facts, big = Facts(), Reader(reply="8 facts")
    guard = policy(FallbackModel(name="big"))
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, Reader()), retriever=facts, fallbacks={"big": big})
    answer = guarded.invoke("q")
    assert answer.content == "8 facts"
    assert [asked(s) for s in seen_by(guard)] == [big.prompts[0]] * 2
    assert [s.author for s in seen_by(guard)] == [None, "big"]
    runs = [s.metadata["llm_run_id"] for s in seen_by(guard)]
    assert runs[0] != runs[1]
    assert answer.response_metadata["semgrad"]["llm_run_id"] == runs[1]


def test_a_fallbacks_message_is_its_own() -> None:
    """Token counts and the model's name are those of the model that answered."""
    big = model_of("8 facts") | RunnableLambda(
        lambda m: m.model_copy(update={"response_metadata": {"model_name": "big"}})
    )
    guarded = SemGradGuard(guard=policy(FallbackModel(name="big"))).wrap(rag(Facts(), Reader()), fallbacks={"big": big})
    answer = guarded.invoke("q")
    assert (answer.content, answer.response_metadata["model_name"]) == ("8 facts", "big")
    assert answer.response_metadata["semgrad"]["n_attempts"] == 2


def test_a_fallback_after_a_retry_reads_the_retrys_prompt() -> None:
    """It gets the best passages found so far."""
    facts, big = Facts(), Reader(reply="big {n}")
    guard = policy(RetryRetrieval(top_k=4), FallbackModel(name="big"), good=("big 4",))
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, Reader()), retriever=facts, fallbacks={"big": big})
    assert guarded.invoke("q").content == "big 4"


def test_an_unknown_fallback_is_a_failed_step() -> None:
    """A typo in the policy must not lose the answer."""
    answer = SemGradGuard(guard=policy(FallbackModel(name="bigg"))).wrap(rag(Facts(), Reader())).invoke("q")
    assert "bigg" in answer.response_metadata["semgrad"]["error"]


def test_a_provider_string_makes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML file alone can name a fallback."""
    import langchain.chat_models

    made: list[str] = []

    def make(name: str) -> Reader:
        made.append(name)
        return Reader(reply="8 facts")

    monkeypatch.setattr(langchain.chat_models, "init_chat_model", make)
    guarded = SemGradGuard(guard=policy(FallbackModel(name="acme:large"))).wrap(rag(Facts(), Reader()))
    assert [guarded.invoke("q").content, guarded.invoke("q").content] == ["8 facts", "8 facts"]
    assert made == ["acme:large"]
    by_name = SemGradGuard(guard=policy(FallbackModel(name="big"))).wrap(
        rag(Facts(), Reader()), fallbacks={"big": "acme:small"}
    )
    assert by_name.invoke("q").content == "8 facts"
    assert made == ["acme:large", "acme:small"]


def test_a_fallback_that_is_too_slow_is_a_failed_step() -> None:
    """The caller must not wait for ever."""
    release = threading.Event()
    slow = RunnableLambda(lambda _: release.wait(10) and "late")
    guard = policy(FallbackModel(name="slow", timeout_s=0.05), FallbackModel(name="big"))
    guarded = SemGradGuard(guard=guard).wrap(
        rag(Facts(), Reader()), fallbacks={"slow": slow, "big": Reader(reply="8 facts")}
    )
    assert guarded.invoke("q").content == "8 facts"
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("semgrad-guard"):
            thread.join(5)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_text_chain_gives_text() -> None:
    """The shape of the chain is the shape of the guarded chain."""
    facts = Facts()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(
        rag(facts, Reader()) | StrOutputParser(), retriever=facts
    )
    assert guarded.invoke("q") == "8 facts"


def test_a_mapping_gives_the_mapping_of_the_attempt_that_was_chosen() -> None:
    """Its context must be the one that the answer was made from."""
    facts = Facts()
    chain = RunnablePassthrough.assign(context=(lambda d: d["question"]) | facts).assign(
        answer=(lambda d: {**d, "context": shown(d["context"])}) | RAG | Reader() | StrOutputParser()
    )
    given = SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=facts).invoke({"question": "q"})
    assert given["answer"] == "8 facts"
    assert len(given["context"]) == 8


class Reply(BaseModel):
    """A structured answer."""

    answer: str
    n: int


def test_a_pydantic_chain_gives_its_type() -> None:
    """Structured chains as well."""
    facts = Facts()
    chain = rag(facts, Reader()) | RunnableLambda(lambda m: Reply(answer=m.text, n=int(m.text[0])))
    assert SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=facts).invoke("q") == Reply(
        answer="8 facts", n=8
    )


def test_a_parsed_object_is_made_again_too() -> None:
    """It has no text of its own, but the model's call has."""
    facts = Facts()
    chain = rag(facts, Reader()) | RunnableLambda(lambda m: [int(m.text[0])])
    assert SemGradGuard(guard=policy(RetryRetrieval(top_k=8))).wrap(chain, retriever=facts).invoke("q") == [8]


def test_the_result_form_holds_all_attempts() -> None:
    """For those who want to show them."""
    facts = Facts()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=8)), output="result").wrap(
        rag(facts, Reader()), retriever=facts
    )
    result = guarded.invoke("q")
    assert [a.exchange.answer for a in result.attempts] == ["2 facts", "8 facts"]
    assert result.value.content == "8 facts"


def test_raising_when_all_was_in_vain() -> None:
    """LangChain's own fallbacks take over."""
    facts = Facts()
    guarded = SemGradGuard(guard=policy(RetryRetrieval(top_k=4)), on_withheld="raise").wrap(
        rag(facts, Reader()), retriever=facts
    )
    with pytest.raises(LowConfidenceError) as raised:
        guarded.invoke("q")
    assert raised.value.outcome is not None
    assert len(raised.value.outcome.attempts) == 2
    assert guarded.with_fallbacks([RunnableLambda(lambda _: "else")]).invoke("q") == "else"


def test_annotating_a_chain_passes_its_tokens_on() -> None:
    """Nothing can be made again then; the findings come last."""
    facts = Facts()
    guarded = SemGradGuard(guard=policy(), stream="annotate").wrap(rag(facts, Reader()), retriever=facts)
    chunks = list(guarded.stream("q"))
    assert "".join(c.content for c in chunks) == "2 facts"
    assert chunks[-1].response_metadata["semgrad"]["withheld"] is True


@pytest.mark.parametrize("stream", ["buffer", "annotate"])
async def test_an_input_that_comes_in_pieces_is_put_together(stream: Any) -> None:
    """Steps before the guarded chain stream too: one key of a mapping in each piece."""
    chain = ChatPromptTemplate.from_template("{question} {place}") | model_of("8 facts")
    guard = policy()
    before = {"question": RunnableLambda(lambda _: "How many?"), "place": RunnableLambda(lambda _: "Here")}
    whole = before | SemGradGuard(guard=guard, stream=stream).wrap(chain)
    assert "".join(chunk.content for chunk in whole.stream("")) == "8 facts"
    assert "".join([chunk.content async for chunk in whole.astream("")]) == "8 facts"
    assert [(asked(seen), seen.question) for seen in seen_by(guard)] == [("How many? Here", "How many?")] * 2


def test_an_error_in_one_chain_of_a_batch_stays_its_own() -> None:
    """The others are judged and given."""

    def fail_on_b(question: str) -> str:
        if question == "b":
            msg = "b is bad"
            raise RuntimeError(msg)
        return question

    chain = RunnableLambda(fail_on_b) | ChatPromptTemplate.from_template("{q}") | Reader(reply="8 facts")
    guarded = SemGradGuard(guard=policy()).wrap(chain)
    first, second, third = guarded.batch(["a", "b", "c"], return_exceptions=True)
    assert (first.content, third.content) == ("8 facts", "8 facts")
    assert isinstance(second, RuntimeError)
    with pytest.raises(RuntimeError, match="b is bad"):
        guarded.batch(["a", "b"])


def test_many_requests_at_once_do_not_mix() -> None:
    """Two hundred questions, one guard, retries in all of them."""
    facts = Facts()
    chain = {"context": facts | shown, "question": RunnablePassthrough()} | RAG | Reader(reply="{question} {n}")
    guard = guard_of(
        default=0.05, scores={f"q{i} 2": 0.9 for i in range(200)}, decider=LadderDecider([RetryRetrieval(top_k=8)])
    )
    guarded = SemGradGuard(guard=guard).wrap(chain, retriever=facts)
    found: dict[int, str] = {}

    def work(start: int) -> None:
        for i in range(start, 200, 8):
            found[i] = guarded.invoke(f"q{i}").content

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"q{i} 8" for i in range(200)}


async def test_a_cancelled_retry_leaves_nothing_behind() -> None:
    """The worker thread must end, and no prompt may stay."""
    facts, started = Facts(), asyncio.Event()

    async def hang(_: object) -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    never = RunnableLambda(lambda _: "never", afunc=hang)
    guarded = SemGradGuard(guard=policy(FallbackModel(name="never"))).wrap(
        rag(facts, Reader()), retriever=facts, fallbacks={"never": never}
    )
    task = asyncio.create_task(guarded.ainvoke("q"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.get_running_loop().shutdown_default_executor()
    assert len(STORE) == 0
