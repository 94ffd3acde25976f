"""The local model that a guard scores with, when it is also the model of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_semgrad.capture import LlmRun
    from semgrad_guard.flow import Prompt


class OwnModel:
    """A LangChain model whose own weights score its answers.

    Args:
        llm: the model, with or without arguments bound to it.
    """

    def __init__(self, llm: object) -> None:
        """Open what `bind` and `with_config` put around the model."""
        inner: Any = llm
        while (bound := getattr(inner, "bound", None)) is not None:
            inner = bound
        self._llm = inner
        # The object that this model hands to callbacks with every call: the same one, so identity tells the model.
        self._serialized: object = getattr(inner, "_serialized", None)

    def wrote(self, run: LlmRun) -> bool:
        """Tell whether this very model made a call."""
        return run.serialized is not None and run.serialized is self._serialized

    def without_prompt(self, text: str, prompt: Prompt) -> str:
        """Return the answer alone, where the pipeline gives prompt and answer (`return_full_text`)."""
        return text.removeprefix(prompt if isinstance(prompt, str) else self._rendered(prompt))

    def _rendered(self, prompt: Prompt) -> str:
        tokenizer = getattr(self._llm, "tokenizer", None)
        if tokenizer is None or isinstance(prompt, str):
            return ""
        from semgrad_guard.models.tokens import render  # noqa: PLC0415 - loads transformers, as the model already did

        return render(tokenizer, prompt)
