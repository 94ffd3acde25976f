"""Local models: load one, turn prompts into token ids, write answers, keep the KV cache of it for scoring."""

from semgrad_guard.models.cache import KeptCache
from semgrad_guard.models.generate import FinishReason, Generated
from semgrad_guard.models.load import load_model
from semgrad_guard.models.local import LocalModel, LocalTextModel

__all__ = ["FinishReason", "Generated", "KeptCache", "LocalModel", "LocalTextModel", "load_model"]
