"""The demo's knowledge: passages about the 118 chemical elements, and questions whose answers are known.

Everything is built at run time from the tables of the package `mendeleev`; nothing of it is stored here.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from semgrad_guard.extras import require
from semgrad_guard.flow import Passage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Split = Literal["train", "demo"]

DEMO_ELEMENTS = (
    "Neon", "Gold", "Plutonium", "Titanium", "Helium", "Cobalt", "Iodine", "Radium", "Germanium", "Tennessine", "Argon",
    "Uranium", "Silicon", "Aluminum", "Mercury", "Zinc",
)  # fmt: skip
"""Elements whose questions are never used for calibration."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element; texts are empty where the tables have no entry."""

    name: str
    symbol: str
    number: int
    description: str
    uses: str
    sources: str
    name_origin: str
    discoverers: str
    discovery_year: int | None
    discovery_location: str
    melting_point_k: float | None
    group: int | None
    period: int


@dataclass(frozen=True, slots=True)
class ElementQuestion:
    """One question about an element."""

    id: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers, any of which is right; empty if the passages do not contain the answer."""
    element: str


def passages() -> list[Passage]:
    """Return the corpus: up to four short passages for each element, each with the element's name."""
    return [passage for element in elements() for passage in _passages_of(element)]


def questions(split: Split, *, seed: int = 0) -> list[ElementQuestion]:
    """Return questions in a fixed order that mixes elements and kinds; some cannot be answered from the passages.

    Args:
        split: `demo` asks about `DEMO_ELEMENTS` only, `train` about all others.
        seed: of the order.
    """
    chosen = [e for e in elements() if (e.name in DEMO_ELEMENTS) == (split == "demo")]
    selected = [question for element in chosen for question in _questions_of(element)]
    random.Random(seed).shuffle(selected)  # noqa: S311 - an order, not a secret
    return selected


@cache
def elements() -> tuple[Element, ...]:
    """Return all elements by atomic number.

    Raises:
        MissingExtraError: `mendeleev` is not installed.
    """
    fetch = require("mendeleev.fetch", extra="demo")
    table = fetch.fetch_table("elements").to_dict("records")
    return tuple(_element(row) for row in sorted(table, key=lambda row: row["atomic_number"]))


def _element(row: dict[str, object]) -> Element:
    def text(key: str) -> str:
        value = row.get(key)
        return re.sub(r"\s+", " ", value).strip() if isinstance(value, str) else ""

    def number(key: str) -> float | None:
        value = row.get(key)
        return None if not isinstance(value, int | float) or math.isnan(value) else float(value)

    year, group = number("discovery_year"), number("group_id")
    return Element(
        name=text("name"),
        symbol=text("symbol"),
        number=int(number("atomic_number") or 0),
        description=text("description"),
        uses=text("uses"),
        sources=text("sources"),
        name_origin=text("name_origin").rstrip("."),
        discoverers=text("discoverers").rstrip("."),
        discovery_year=None if year is None else int(year),
        discovery_location=text("discovery_location"),
        melting_point_k=number("melting_point"),
        group=None if group is None else int(group),
        period=int(number("period") or 0),
    )


def _passages_of(element: Element) -> Iterator[Passage]:
    name = element.name
    yield Passage(
        f"{name} (symbol {element.symbol}) is the chemical element with atomic number {element.number}. "
        f"It belongs to period {element.period}. {element.description}".strip(),
        source=f"{name}: description",
    )
    if element.uses:
        yield Passage(f"Uses of {name}. {element.uses}", source=f"{name}: uses")
    yield Passage(f"Sources of {name}. {element.sources}", source=f"{name}: sources")
    yield Passage(f"History of {name}. {_history(element)}", source=f"{name}: history")


def _history(element: Element) -> str:
    if element.discovery_year is None:
        found = f"{element.name}: {element.discoverers}."
    else:
        where = f" in {element.discovery_location}" if element.discovery_location else ""
        found = f"{element.name} was discovered in {element.discovery_year}{where} by {element.discoverers}."
    return f"{found} Origin of its name: {element.name_origin}."


def _questions_of(element: Element) -> Iterator[ElementQuestion]:
    for kind, (ask, answers) in _KINDS.items():
        found = answers(element)
        if found is not None:
            yield ElementQuestion(f"{element.symbol}-{kind}", ask.format(name=element.name), found, element.name)


def _year(element: Element) -> tuple[str, ...] | None:
    return None if element.discovery_year is None else (str(element.discovery_year),)


def _place(element: Element) -> tuple[str, ...] | None:
    return tuple(re.split(r"\s*/\s*", element.discovery_location)) if element.discovery_location else None


def _surnames(element: Element) -> tuple[str, ...] | None:
    if element.discovery_year is None or re.search(r"Laborator|Institute|Joint", element.discoverers):
        return None
    people = re.split(r",\s*(?!Jr)|\s+and\s+|\s*&\s*|\s*/\s*", element.discoverers)
    return tuple(person.split()[-1].split(".")[-1] for person in people if person.strip()) or None


def _nothing(element: Element) -> tuple[str, ...] | None:
    return () if element.number % 3 == 0 else None


_KINDS: dict[str, tuple[str, Callable[[Element], tuple[str, ...] | None]]] = {
    "year": ("In which year was {name} discovered?", _year),
    "place": ("In which country was {name} discovered?", _place),
    "who": ("Who discovered {name}?", _surnames),
    "symbol": ("What is the chemical symbol of {name}?", lambda element: (element.symbol,)),
    "number": ("What is the atomic number of {name}?", lambda element: (str(element.number),)),
    "price": ("How many dollars does one kilogram of {name} cost?", _nothing),
    "sound": ("What is the speed of sound in {name}, in metres per second?", _nothing),
}
"""Kind of question -> its words, and the accepted answers: `None` not to ask it, empty where nothing can be found."""
