"""Fallback models by the name that the policy uses: given in code, or named as `provider:model`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from semgrad_guard.extras import require


class FallbackModels(Mapping[str, Any]):
    """Models by name; one like `openai:gpt-4o-mini` is made by LangChain's `init_chat_model` when it is first needed.

    Args:
        given: models from code; they come first. Each may be such a name itself.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        """Keep the given models."""
        self._given = dict(given or {})
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    @override
    def __getitem__(self, name: str) -> Any:
        given = self._given.get(name, name)
        if not isinstance(given, str):
            return given
        if ":" not in given:
            raise KeyError(name)
        with self._lock:
            if given not in self._made:
                self._made[given] = require("langchain.chat_models", extra="agents").init_chat_model(given)
            return self._made[given]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    @override
    def __len__(self) -> int:
        return len(self._given)
