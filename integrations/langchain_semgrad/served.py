"""A chat model at a server that `semgrad-guard serve` runs: its messages keep the confidence that came with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from pydantic import Field, model_validator
from typing_extensions import override

from langchain_semgrad.convert import SCORE_KEY
from semgrad_guard.wire import served_findings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

FINDINGS_KEY = "semgrad"
"""Where a message's `response_metadata` holds what the server says of it, as a guard's own findings do."""
DEFAULT_URL = "http://127.0.0.1:8788/v1"


class ChatSemGradServer(ChatOpenAI):
    """A `ChatOpenAI` for a scoring server, which keeps the confidence of each answer, also of streamed ones.

    A `SemGradGuard` after it whose policy names the same server under `scorer: {url: ...}` takes the score that came
    along in place of asking for it again.

    Example:
        >>> llm = ChatSemGradServer(model="smollm2-135m")  # doctest: +SKIP
        >>> llm.invoke("Capital of France?").response_metadata["semgrad"]["confidence"]  # doctest: +SKIP
        0.83
    """

    signals: bool = Field(default=True)
    """Whether to ask for the whole score, which a guard after this model uses; without it only the confidence comes."""

    @model_validator(mode="before")
    @classmethod
    def _at_this_machine(cls, values: Any) -> Any:
        """Fill in the address and a key, which the client insists on, where none is given."""
        if not isinstance(values, dict):
            return values
        given: dict[str, Any] = dict(values)
        if not {"base_url", "openai_api_base"} & given.keys():
            given["base_url"] = DEFAULT_URL
        if not {"api_key", "openai_api_key"} & given.keys():
            given["api_key"] = "none"
        return given

    @model_validator(mode="after")
    def _asks_for_the_score(self) -> Self:
        body: dict[str, Any] = dict(self.extra_body or {})
        own: Any = body.get(FINDINGS_KEY) or {}
        self.extra_body = {**body, FINDINGS_KEY: {"signals": self.signals, **own}}
        self.use_responses_api = False
        return self

    @property
    @override
    def _llm_type(self) -> str:
        return "semgrad-server"

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return False

    @override
    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        for number, generation in enumerate(result.generations):
            if isinstance(generation.message, AIMessage):
                _keep(generation.message, served_findings(response, choice=number))
        return result

    @override
    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        # the piece with the numbers of tokens says the same again, and LangChain would add both up
        if made is not None and chunk.get("choices") and isinstance(made.message, AIMessage):
            _keep(made.message, served_findings(chunk))
        return made


def _keep(message: AIMessage, found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    told = {key: value for key, value in found.items() if key != "scored"}
    message.response_metadata[FINDINGS_KEY] = told
    if found.get("scored"):
        message.response_metadata[SCORE_KEY] = found["scored"]
