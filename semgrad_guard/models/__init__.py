"""Local models: load one, turn prompts into token ids, generate answers and keep their KV cache for scoring."""

from semgrad_guard.extras import require

require("torch", extra="local")
require("transformers", extra="local")

from semgrad_guard.models.cache import KeptCache  # noqa: E402 - the lines above name a missing extra
from semgrad_guard.models.generate import FinishReason, Generated  # noqa: E402
from semgrad_guard.models.load import load_model  # noqa: E402
from semgrad_guard.models.local import LocalModel, LocalTextModel  # noqa: E402

__all__ = ["FinishReason", "Generated", "KeptCache", "LocalModel", "LocalTextModel", "load_model"]
