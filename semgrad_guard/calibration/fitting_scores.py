"""Which scores a profile fits: those that agree with it in what its own signals depend on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from semgrad_guard.signals import signal_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from semgrad_guard.flow import Fingerprint

_POSITION = re.compile(r"position (-\d{1,9})(?!\d)")
_BAND = re.compile(r"blocks (\d{1,9}) to (\d{1,9})(?!\d)")
_COSINE = r"-?\d\.\d{1,9}"
_EMBEDDER = re.compile(rf", embedder (.+?)(?: \[({_COSINE}(?: {_COSINE})*)\])?$")
_TEXTS = re.compile(r", texts ([^,]+)")
_BY_POSITION = frozenset({"semgrad", "hybridgrad"})
"""Signals that are read at t*; the others of their family are the same at any."""
PROBE_TOLERANCE = 0.02
"""Cosines of the probe texts that differ by no more than this are those of the same embedder: rounding, not meaning."""


def position_in(settings: str) -> int | None:
    """Return the token position t* that settings name, counted from the prompt's end."""
    found = _POSITION.search(settings)
    return int(found[1]) if found else None


def band_in(settings: str) -> tuple[int, int] | None:
    """Return the first and last decoder block that settings name."""
    found = _BAND.search(settings)
    return (int(found[1]), int(found[2])) if found else None


def embedder_in(settings: str) -> str | None:
    """Return the name of the embedder that settings name."""
    found = _EMBEDDER.search(settings)
    return found[1] if found else None


def differences(expected: Fingerprint, found: Fingerprint, signals: Iterable[str] | None = None) -> tuple[str, ...]:
    """Describe every way in which two fingerprints differ that matters to some signals.

    Args:
        expected: the fingerprint of a profile, or of earlier rows.
        found: the fingerprint of a score.
        signals: names of the signals that are used; `None` for all there are.
    """
    needed = _FACETS if signals is None else _needs(signals)
    ours, theirs = _facets(expected), _facets(found)
    return tuple(
        f"{facet} {theirs[facet]!r} instead of {ours[facet]!r}"
        for facet in _FACETS
        if facet in needed and ours[facet] != theirs[facet]
    )


_MODEL = ("model", "dtype", "template", "proxy")
_FACETS = (*_MODEL, "position", "blocks", "texts", "embedder")
"""What signals depend on, apart from the exchange."""


def _needs(signals: Iterable[str]) -> set[str]:
    """Return what the values of signals depend on."""
    needed = set[str]()
    for name in signals:
        signal = signal_of(name)
        if signal is None:  # the caller's own, which cannot depend on our embedder
            needed |= {*_FACETS} - {"embedder"}
            continue
        match signal.family:
            case "text":
                needed |= {"texts"}
            case "embedding":
                needed |= {"texts", "embedder"}
            case "attention" | "probe":
                needed |= {*_MODEL, "blocks"}
            case "gradient":
                needed |= {*_MODEL, "blocks"} | ({"position"} if name in _BY_POSITION else set())
            case _:
                needed |= {*_MODEL}
    return needed


def _facets(fingerprint: Fingerprint) -> dict[str, object]:
    settings = fingerprint.settings
    texts, embedder = _TEXTS.search(settings), _EMBEDDER.search(settings)
    return {
        **{name: getattr(fingerprint, name) for name in _MODEL},
        "position": position_in(settings),
        "blocks": band_in(settings),
        "texts": texts[1] if texts else "of whole answers",
        "embedder": None if embedder is None else _Embedder(embedder[1], embedder[2] or ""),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Embedder:
    """An embedder as a fingerprint has it; two are equal where they do the same to the probe texts."""

    name: str
    probe: str
    """Cosines between the probe texts; empty where it was not probed, and then its name decides."""

    @override
    def __repr__(self) -> str:
        return repr(self.name)

    @override
    def __hash__(self) -> int:
        return 0

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Embedder):
            return NotImplemented
        if not (self.probe and other.probe):
            return self.name == other.name
        ours, theirs = ([float(part) for part in one.probe.split()] for one in (self, other))
        return len(ours) == len(theirs) and all(
            abs(a - b) <= PROBE_TOLERANCE for a, b in zip(ours, theirs, strict=True)
        )
