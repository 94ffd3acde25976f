"""The server: scores over HTTP, and an OpenAI-compatible way to a model whose answers carry their confidence.

- `create_app` makes the application; `ServerSettings` says what it serves and its limits.
- `BatchingScorer` scores exchanges of many threads together.
- `KeyFile` holds the keys that callers need.

Loads the web framework; `semgrad_guard.remote` is the client's side and loads none of it.
"""

from semgrad_guard.serving.app import create_app
from semgrad_guard.serving.backend import Backend
from semgrad_guard.serving.batching import BatchingScorer, BusyError
from semgrad_guard.serving.gate import KeyFile
from semgrad_guard.serving.settings import Limits, ServerSettings

__all__ = ["Backend", "BatchingScorer", "BusyError", "KeyFile", "Limits", "ServerSettings", "create_app"]
