"""Form (a): the guard behind the model, on the shapes that real chains have."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from pydantic import BaseModel

from langchain_semgrad import SemGradGuard
from langchain_semgrad.capture import STORE
from semgrad_guard.adapter_kit import findings
from tests.adapters.langchain.chains import LYON, PROMPT, REFUSAL, asked, echo, model_of, seen_by

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from semgrad_guard.guard import Guard

# --- the listed shapes ------------------------------------------------------------------------------------------------


def test_a_message_comes_out_as_a_message_with_the_findings(guard: Guard) -> None:
    """`prompt | llm | SemGradGuard()`, the first chain anybody tries."""
    answer = (PROMPT | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "Capital of France?"})
    assert isinstance(answer, AIMessage)
    assert answer.content == "Paris"
    found = answer.response_metadata["semgrad"]
    assert found["confidence"] == pytest.approx(0.9)
    assert (found["status"], found["action"], found["rule"]) == ("answered", "accept", "accept")
    assert found["llm_run_name"] == "FakeListChatModel"


def test_the_findings_are_those_of_all_adapters_and_the_models_run(guard: Guard) -> None:
    """A dashboard that reads them must not care which framework an answer came from."""
    chain = PROMPT | model_of("Paris") | SemGradGuard(guard=guard, output="result")
    given = chain.invoke({"question": "Capital?"})
    run = {"llm_run_id": given.llm_run_id, "llm_run_name": "FakeListChatModel"}
    assert given.value.response_metadata["semgrad"] == {**findings(given.outcome), **run}


def test_the_exact_prompt_question_and_author_reach_the_scorer(guard: Guard) -> None:
    """A score of another prompt would say nothing about the answer."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "Ask: {question}")])
    (prompt | model_of("Paris") | SemGradGuard(guard=guard)).invoke({"question": "Capital?"})
    (seen,) = seen_by(guard)
    assert [(m.role, m.content) for m in seen.prompt] == [("system", "Be brief."), ("user", "Ask: Capital?")]
    assert (seen.answer, seen.question) == ("Paris", "Capital?")


def test_a_withheld_message_keeps_its_id_and_holds_only_the_policys_words(guard: Guard) -> None:
    """Memory and traces find the message by id; its words must be nowhere in it."""
    telling = {
        "additional_kwargs": {"reasoning_content": LYON},
        "response_metadata": {"logprobs": [LYON], "model_name": "m"},
    }
    model = PROMPT | model_of(LYON)
    chain = model | RunnableLambda(lambda m: m.model_copy(update=telling)) | SemGradGuard(guard=guard)
    answer = chain.invoke({"question": "Capital?"})
    assert answer.content == REFUSAL
    assert answer.id.startswith("lc_run--")
    assert "Lyon" not in answer.model_dump_json()
    assert answer.response_metadata["model_name"] == "m"


def test_followed_by_a_parser(guard: Guard) -> None:
    """`… | SemGradGuard() | StrOutputParser()`."""
    chain = PROMPT | model_of("Paris", LYON) | SemGradGuard(guard=guard) | StrOutputParser()
    assert chain.invoke({"question": "Capital?"}) == "Paris"
    assert chain.invoke({"question": "Capital?"}) == REFUSAL


def test_behind_a_parser_text_stays_text(guard: Guard) -> None:
    """`… | StrOutputParser() | SemGradGuard()`: the message is gone, its prompt must still be found."""
    chain = PROMPT | model_of("Paris", LYON) | StrOutputParser() | SemGradGuard(guard=guard)
    assert chain.invoke({"question": "Capital?"}) == "Paris"
    assert chain.invoke({"question": "Capital?"}) == REFUSAL
    assert asked(seen_by(guard)[0]) == "Answer briefly. Capital?"


def test_a_model_nested_in_a_mapping_of_runnables(guard: Guard) -> None:
    """The model is not the guard's sibling, but a child of one."""
    chain = (
        {"answer": PROMPT | model_of("Paris", LYON), "question": RunnablePassthrough()}
        | RunnableLambda(lambda d: d["answer"])
        | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "Capital?"}).content == "Paris"
    assert chain.invoke({"question": "Capital?"}).content == REFUSAL


def test_a_mapping_comes_out_as_a_mapping_with_the_answer_replaced(guard: Guard) -> None:
    """`create_retrieval_chain` gives question, context and answer; all of them must stay."""
    document = Document("Paris is the capital of France.", metadata={"source": "atlas"})
    chain = (
        RunnablePassthrough.assign(context=lambda _: [document])
        | RunnablePassthrough.assign(answer=PROMPT | model_of("Paris", LYON) | StrOutputParser())
        | SemGradGuard(guard=guard)
    )
    good, bad = chain.invoke({"question": "Capital?"}), chain.invoke({"question": "Capital?"})
    assert (good["answer"], good["context"], good["question"]) == ("Paris", [document], "Capital?")
    assert good["semgrad"]["status"] == "answered"
    assert (bad["answer"], bad["context"], bad["semgrad"]["status"]) == (REFUSAL, [document], "abstained")
    assert [p.source for p in seen_by(guard)[0].passages] == ["atlas"]


def test_guards_in_the_branches_of_a_parallel(guard: Guard) -> None:
    """Two branches run at once; each guard must find its own model's call, not the sibling's."""
    one = ChatPromptTemplate.from_template("One. {question}") | model_of("Paris") | SemGradGuard(guard=guard)
    two = ChatPromptTemplate.from_template("Two. {question}") | model_of(LYON) | SemGradGuard(guard=guard)
    answers = RunnableParallel(one=one, two=two).invoke({"question": "Capital?"})
    assert (answers["one"].content, answers["two"].content) == ("Paris", REFUSAL)
    assert {seen.answer: asked(seen)[:4] for seen in seen_by(guard)} == {"Paris": "One.", LYON: "Two."}


def test_a_guard_behind_a_parallel_judges_every_answer_in_it(guard: Guard) -> None:
    """An answer that nobody named must not slip past."""
    branches = RunnableParallel(
        one=ChatPromptTemplate.from_template("One. {question}") | model_of("Paris"),
        two=ChatPromptTemplate.from_template("Two. {question}") | model_of(LYON) | StrOutputParser(),
        question=RunnableLambda(lambda d: d["question"]),
    )
    answers = (branches | SemGradGuard(guard=guard)).invoke({"question": "Capital?"})
    assert (answers["one"].content, answers["two"], answers["question"]) == ("Paris", REFUSAL, "Capital?")
    assert {name: found["status"] for name, found in answers["semgrad"].items()} == {
        "one": "answered",
        "two": "abstained",
    }


def test_a_batch_of_twenty_pairs_every_answer_with_its_own_prompt(guard: Guard) -> None:
    """Threads finish in any order."""
    chain = PROMPT | echo() | SemGradGuard(guard=guard)
    answers = chain.batch([{"question": f"q{i}"} for i in range(20)])
    assert [a.content for a in answers] == [f"re: Answer briefly. q{i}" for i in range(20)]
    assert [(asked(s), s.answer, s.question) for s in seen_by(guard)] == [
        (f"Answer briefly. q{i}", f"re: Answer briefly. q{i}", f"q{i}") for i in range(20)
    ]


async def test_an_asynchronous_batch_pairs_every_answer_with_its_own_prompt(guard: Guard) -> None:
    """Tasks finish in any order."""
    chain = PROMPT | echo() | SemGradGuard(guard=guard)
    answers = await chain.abatch([{"question": f"q{i}"} for i in range(20)])
    assert [a.content for a in answers] == [f"re: Answer briefly. q{i}" for i in range(20)]
    assert {s.answer for s in seen_by(guard)} == {f"re: {asked(s)}" for s in seen_by(guard)}


def test_two_chains_in_two_threads_do_not_see_each_other(guard: Guard) -> None:
    """A server answers many people at once."""
    start, found = threading.Barrier(2), dict[str, list[str]]()

    def run(name: str) -> None:
        chain = ChatPromptTemplate.from_template(name + " {question}") | echo() | SemGradGuard(guard=guard)
        start.wait()
        found[name] = [chain.invoke({"question": f"{i}"}).content for i in range(20)]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("left", "right"):
        assert found[name] == [f"re: {name} {i}" for i in range(20)]
    assert all(seen.answer == f"re: {asked(seen)}" for seen in seen_by(guard))


def test_a_chain_that_calls_itself_judges_each_level_by_its_own_prompt(guard: Guard) -> None:
    """The same runs, nested: the nearest call of the model is the right one."""
    chain: Any = PROMPT | model_of("same", "same", "same") | SemGradGuard(guard=guard)

    def descend(inputs: dict[str, Any]) -> Any:
        depth = inputs["depth"]
        below = recursive.invoke({"question": f"level {depth - 1}", "depth": depth - 1}) if depth else None
        answer = chain.invoke({"question": f"level {depth}"})
        return [*(below or []), answer.content]

    recursive = RunnableLambda(descend)
    assert recursive.invoke({"question": "level 2", "depth": 2}) == ["same"] * 3
    assert [(asked(s)[-7:], s.question) for s in seen_by(guard)] == [(f"level {i}", f"level {i}") for i in range(3)]


def test_a_guarded_chain_inside_its_own_guarded_chain(guard: Guard) -> None:
    """The outer guard receives the outer model's text though inner calls came later."""

    def refine(message: AIMessage, config: RunnableConfig) -> AIMessage:
        if message.text == "outer":
            inner.invoke({"question": "inner?"}, config)
        return message

    inner = PROMPT | model_of("inner") | SemGradGuard(guard=guard)
    outer = PROMPT | model_of("outer") | RunnableLambda(refine) | SemGradGuard(guard=guard)
    outer.invoke({"question": "outer?"})
    assert [(s.answer, asked(s)) for s in seen_by(guard)] == [
        ("inner", "Answer briefly. inner?"),
        ("outer", "Answer briefly. outer?"),
    ]


# --- several model calls ----------------------------------------------------------------------------------------------


def test_of_several_model_calls_the_one_whose_text_came_is_judged_and_named(guard: Guard) -> None:
    """A chain that condenses the question first has two model calls; the wrong one would give a wrong score."""
    condense = ChatPromptTemplate.from_template("Condense {question}") | model_of("short?") | StrOutputParser()
    later = ChatPromptTemplate.from_template("Title for {question}") | model_of("Title").with_config(run_name="titler")
    chain = (
        {"question": condense}
        | RunnablePassthrough.assign(answer=PROMPT | model_of("Paris").with_config(run_name="writer"))
        | RunnablePassthrough.assign(title=later)
        | RunnableLambda(lambda d: d["answer"].text)
        | SemGradGuard(guard=guard, output="result")
    )
    answer = chain.invoke({"question": "long question"})
    assert asked(seen_by(guard)[0]) == "Answer briefly. short?"
    assert answer.llm_run_name == "writer"
    assert seen_by(guard)[0].metadata["llm_run_name"] == "writer"


def test_of_two_calls_with_the_same_words_the_messages_own_is_judged(guard: Guard) -> None:
    """Short answers repeat; the message knows which call it comes from."""
    first = ChatPromptTemplate.from_template("First {question}") | model_of("yes")
    last = ChatPromptTemplate.from_template("Last {question}") | model_of("yes")
    chain = RunnablePassthrough.assign(a=first).assign(b=last) | RunnableLambda(lambda d: d["a"])
    (chain | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert asked(seen_by(guard)[0]) == "First ?"


def test_the_same_words_beat_a_text_that_holds_them(guard: Guard) -> None:
    """A later call may quote the answer."""
    first = ChatPromptTemplate.from_template("First {question}") | model_of("Paris")
    last = ChatPromptTemplate.from_template("Last {question}") | model_of("Why Paris?")
    chain = RunnablePassthrough.assign(a=first).assign(b=last) | RunnableLambda(lambda d: d["a"].text)
    (chain | SemGradGuard(guard=guard)).invoke({"question": "?"})
    assert asked(seen_by(guard)[0]) == "First ?"


def test_a_text_cut_out_of_the_models_is_found_by_containment(guard: Guard) -> None:
    """Chains often take the answer out of JSON."""
    first = ChatPromptTemplate.from_template("First {question}") | model_of('{"answer": "Paris"}')
    last = ChatPromptTemplate.from_template("Last {question}") | model_of("unrelated")
    chain = (
        RunnablePassthrough.assign(a=first).assign(b=last)
        | RunnableLambda(lambda _: "Paris")
        | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "?"}) == "Paris"
    assert asked(seen_by(guard)[0]) == "First ?"


# --- model kinds, cache -----------------------------------------------------------------------------------------------


def test_a_completion_model_gives_its_prompt_as_text(guard: Guard) -> None:
    """Base models read text, not messages."""
    chain = (
        PromptTemplate.from_template("Q: {question}\nA:")
        | FakeListLLM(responses=["Paris", LYON])
        | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "Capital?"}) == "Paris"
    assert chain.invoke({"question": "Capital?"}) == REFUSAL
    assert seen_by(guard)[0].prompt == "Q: Capital?\nA:"


def test_a_completion_that_repeats_the_prompt_is_scored_without_it(guard: Guard) -> None:
    """Pipelines with `return_full_text` give prompt and answer; the prompt is no answer."""
    chain = (
        PromptTemplate.from_template("Q: {question} A:")
        | FakeListLLM(responses=["Q: x A: Paris"])
        | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "x"}) == "Q: x A: Paris"
    assert seen_by(guard)[0].answer == " Paris"


def test_a_cached_answer_is_judged_like_a_fresh_one(guard: Guard) -> None:
    """A hit replays the message with the id of an old run."""
    model = FakeListChatModel(responses=["Paris", "Rome"], cache=InMemoryCache())
    chain = PROMPT | model | SemGradGuard(guard=guard)
    first, second = chain.invoke({"question": "Capital?"}), chain.invoke({"question": "Capital?"})
    assert first.content == second.content == "Paris"
    assert [asked(s) for s in seen_by(guard)] == ["Answer briefly. Capital?"] * 2
    assert first.response_metadata["semgrad"]["llm_run_id"] != second.response_metadata["semgrad"]["llm_run_id"]


# --- other values -----------------------------------------------------------------------------------------------------


class Reply(BaseModel):
    """A structured answer."""

    answer: str
    sources: list[str] = []


def test_a_pydantic_answer_keeps_its_type(guard: Guard) -> None:
    """Structured chains give objects."""
    chain = (
        PROMPT | model_of("Paris", LYON) | RunnableLambda(lambda m: Reply(answer=m.text)) | SemGradGuard(guard=guard)
    )
    assert chain.invoke({"question": "?"}) == Reply(answer="Paris")
    assert chain.invoke({"question": "?"}) == Reply(answer=REFUSAL)


def test_the_last_message_of_a_conversation_is_the_answer(guard: Guard) -> None:
    """Graphs give all messages."""
    chain = (
        PROMPT
        | model_of(LYON)
        | RunnableLambda(lambda m: {"messages": [HumanMessage("?"), m]})
        | SemGradGuard(guard=guard)
    )
    given = chain.invoke({"question": "?"})
    assert [m.content for m in given["messages"]] == ["?", REFUSAL]


def test_another_key_can_be_named(guard: Guard) -> None:
    """Not every chain calls its answer `answer`."""
    chain = RunnablePassthrough.assign(reply=PROMPT | model_of(LYON)) | SemGradGuard(guard=guard, answer_key="reply")
    assert chain.invoke({"question": "?"})["reply"].content == REFUSAL


def test_copies_of_a_withheld_answer_beside_it_are_replaced_too(guard: Guard) -> None:
    """Chains often carry the raw message along."""
    chain = PROMPT | model_of(LYON) | RunnableLambda(lambda m: {"answer": m.text, "raw": m}) | SemGradGuard(guard=guard)
    given = chain.invoke({"question": "?"})
    assert (given["answer"], given["raw"].content) == (REFUSAL, REFUSAL)


def test_a_request_for_tools_passes_untouched(guard: Guard) -> None:
    """It is no answer yet."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    assert (RunnableLambda(lambda _: call) | SemGradGuard(guard=guard)).invoke("?") is call
    assert seen_by(guard) == []


def test_a_conversation_that_ends_in_a_request_for_tools_passes_untouched(guard: Guard) -> None:
    """The graph goes on with it."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    for value in ({"messages": [HumanMessage("?"), call]}, [HumanMessage("?"), call], {"answer": call}):
        assert (RunnableLambda(lambda _, value=value: value) | SemGradGuard(guard=guard)).invoke("?") is value
    assert seen_by(guard) == []


def test_a_system_message_in_the_prompt_keeps_its_role(guard: Guard) -> None:
    """Roles change what a chat template makes of a prompt."""
    chain = (
        RunnableLambda(lambda q: [SystemMessage("s"), HumanMessage(q)]) | model_of("Paris") | SemGradGuard(guard=guard)
    )
    chain.invoke("Capital?")
    assert [m.role for m in seen_by(guard)[0].prompt] == ["system", "user"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_held_back_until_it_is_judged(guard: Guard) -> None:
    """Words that were sent cannot be taken back."""
    chain = PROMPT | model_of("Paris", LYON) | SemGradGuard(guard=guard)
    good, bad = list(chain.stream({"question": "Capital?"})), list(chain.stream({"question": "Capital?"}))
    assert [c.content for c in good] == ["Paris"]
    assert isinstance(good[0], AIMessageChunk)
    assert [c.content for c in bad] == [REFUSAL]
    assert seen_by(guard)[0].question == "Capital?"


def test_a_stream_behind_and_before_parsers(guard: Guard) -> None:
    """Text in pieces is put together before it is judged."""
    before = PROMPT | model_of("Paris") | StrOutputParser() | SemGradGuard(guard=guard)
    behind = PROMPT | model_of("Paris") | SemGradGuard(guard=guard) | StrOutputParser()
    assert list(before.stream({"question": "?"})) == ["Paris"]
    assert "".join(behind.stream({"question": "?"})) == "Paris"


async def test_an_asynchronous_stream_is_held_back_too(guard: Guard) -> None:
    """Servers stream asynchronously."""
    chain = PROMPT | model_of(LYON) | SemGradGuard(guard=guard)
    assert [c.content async for c in chain.astream({"question": "?"})] == [REFUSAL]


def test_annotating_passes_the_tokens_on_and_ends_with_the_findings(guard: Guard) -> None:
    """Chosen by people who want speed and a mark rather than a refusal."""
    chunks = list((PROMPT | model_of(LYON) | SemGradGuard(guard=guard, stream="annotate")).stream({"question": "?"}))
    assert "".join(c.content for c in chunks) == LYON
    assert len(chunks) == len(LYON) + 1
    assert chunks[-1].content == ""
    assert chunks[-1].response_metadata["semgrad"]["withheld"] is True
    assert sum(chunks[1:], chunks[0]).response_metadata["semgrad"]["status"] == "abstained"


async def test_annotating_asynchronously(guard: Guard) -> None:
    """The twin of the above."""
    chain = PROMPT | model_of("Paris") | SemGradGuard(guard=guard, stream="annotate")
    chunks = [c async for c in chain.astream({"question": "?"})]
    assert "".join(c.content for c in chunks) == "Paris"
    assert chunks[-1].response_metadata["semgrad"]["status"] == "answered"


def test_a_mapping_is_streamed_whole(guard: Guard) -> None:
    """Chunks of mappings are merged by key."""
    chain = RunnablePassthrough.assign(answer=PROMPT | model_of(LYON) | StrOutputParser()) | SemGradGuard(guard=guard)
    (only,) = chain.stream({"question": "?"})
    assert (only["answer"], only["question"]) == (REFUSAL, "?")


# --- no trace ---------------------------------------------------------------------------------------------------------


def test_an_abandoned_stream_leaves_no_prompt_behind(guard: Guard) -> None:
    """People close the browser."""
    stream = (PROMPT | model_of("Paris", "Paris") | SemGradGuard(guard=guard, stream="annotate")).stream(
        {"question": "?"}
    )
    next(stream)
    assert len(STORE) > 0
    stream.close()


def test_a_chain_that_fails_leaves_no_prompt_behind(guard: Guard) -> None:
    """Errors are common; a leak would grow with them."""

    def fail(_: object) -> None:
        msg = "no"
        raise RuntimeError(msg)

    chain = PROMPT | model_of("Paris") | RunnableLambda(fail) | SemGradGuard(guard=guard)
    with pytest.raises(RuntimeError, match="no"):
        chain.invoke({"question": "?"})


async def test_a_cancelled_task_leaves_no_prompt_behind(guard: Guard) -> None:
    """Time-outs cancel tasks in the middle of a model call."""
    started = asyncio.Event()

    async def hang(_: object) -> None:
        started.set()
        await asyncio.Event().wait()

    chain = PROMPT | model_of("Paris") | RunnableLambda(lambda m: m, afunc=hang) | SemGradGuard(guard=guard)
    task = asyncio.create_task(chain.ainvoke({"question": "?"}))
    await started.wait()
    assert len(STORE) > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
