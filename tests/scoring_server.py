"""A real scoring server on this machine, whose small model writes and scores, and which notes what it is asked."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from semgrad_guard.serving import Limits, ServerSettings, create_app
from tests.models_for_tests import local_model
from tests.review_site import serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Served:
    """Where the server is, and how often each path was asked for."""

    url: str
    model: str
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def policy(self) -> dict[str, object]:
        """A policy that scores at this server and lets everything through."""
        return {"accept": 0, "on_uncalibrated": "give", "otherwise": "give", "scorer": {"url": self.url}}


@contextmanager
def scoring_server(**settings) -> Iterator[Served]:
    """Run a server of a tiny model as long as the context lasts."""
    local = local_model(max_position_embeddings=2048)
    app = create_app(ServerSettings(model=local, max_tokens=8, limits=Limits(window_s=0.0, shutdown_s=2.0), **settings))
    asked: Counter[str] = Counter()

    async def noting(scope, receive, send):
        if scope["type"] == "http":
            asked[scope["path"]] += 1
        await app(scope, receive, send)

    with serving(noting) as url:
        yield Served(url, local.name, asked)
