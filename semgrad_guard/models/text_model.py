"""A local model where only text is asked for: rewriting a query, a fallback answer, a judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Prompt
    from semgrad_guard.models.local import LocalModel


class LocalTextModel:
    """A `TextModel` that continues prompts greedily with a local model."""

    def __init__(self, local: LocalModel, *, max_new_tokens: int = 256, stop: Sequence[str] = ()) -> None:
        """Take the model and how it ends.

        Args:
            local: the model.
            max_new_tokens: the most tokens of one answer.
            stop: texts that end an answer, for base models that would go on writing.
        """
        self._local, self._max_new_tokens, self._stop = local, max_new_tokens, tuple(stop)

    def complete(self, prompt: Prompt) -> str:
        """Return the model's answer to a prompt, without surrounding blanks."""
        answer = self._local.generate(prompt, max_new_tokens=self._max_new_tokens, stop=self._stop, keep=False)
        return answer.text.strip()
