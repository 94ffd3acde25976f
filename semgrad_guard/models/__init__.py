"""Local models: load one, turn prompts into token ids, generate answers and keep their KV cache for scoring."""

from semgrad_guard.models.cache import KeptCache
from semgrad_guard.models.generate import FinishReason, Generated
from semgrad_guard.models.load import load_model
from semgrad_guard.models.local import LocalModel, LocalTextModel

__all__ = ["FinishReason", "Generated", "KeptCache", "LocalModel", "LocalTextModel", "load_model"]
