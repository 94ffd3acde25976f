"""Reads YAML text into plain data with the line of every value; tags and merge keys are refused with an explanation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from semgrad_guard.errors import PolicyFileError

if TYPE_CHECKING:
    from semgrad_guard.flow import Json

Place = tuple[str | int, ...]
"""Keys and list indices that lead to a value."""

MAX_VALUES = 20_000
"""Most values in one file, counting an alias at each use; this stops a YAML bomb."""

_CORE = "tag:yaml.org,2002:"
_LONGEST_INT_BITS = 1024
"""As many as the largest floating-point number has; Python refuses to print much longer ones."""
_SCALARS = {_CORE + name for name in ("str", "int", "float", "bool", "null")}
_TEXT_TOO = {_CORE + "timestamp", _CORE + "value"}  # dates and a bare `=` have no use in a policy, so they are text


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads `5e-2` as a number, as YAML 1.2 and JSON do."""


_Loader.add_implicit_resolver(
    _CORE + "float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a policy and the line of each value."""

    data: object
    lines: dict[Place, int] = field(default_factory=dict[Place, int])
    """Place -> 1-based line; empty for data that did not come from a file."""
    mistakes: tuple[tuple[Place, PolicyFileError], ...] = ()
    """What of the text could not be read and is left out of the data: the place and the mistake."""

    def line_of(self, place: Place) -> int | None:
        """Return the line of a value, or of the nearest value that contains it."""
        return next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)


def dotted(place: Place) -> str:
    """Return a place as people write it: `escalate[0].retry_retrieval.top_k`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def read_yaml(text: str, source: str) -> Document:
    """Return the data of a YAML text.

    Args:
        text: the file's content.
        source: the file, for errors.

    Raises:
        PolicyFileError: the text is empty or not valid YAML. What is valid and no part of a policy (a key that is given
            twice, a tag) is left out and among the document's mistakes.
    """
    try:
        loader = _Loader(text)
        return _Reading(source, loader).document()
    except yaml.MarkedYAMLError as error:
        raise PolicyFileError(source, _line(error), "", _syntax(error)) from error
    except yaml.YAMLError as error:
        why = f"not valid YAML: {' '.join(str(error).split())}"
        raise PolicyFileError(source, None, "", f"{why}; save it as plain UTF-8 text") from error
    except RecursionError as error:
        raise PolicyFileError(source, None, "", "nested too deeply to be a policy") from error


def _line(error: yaml.MarkedYAMLError) -> int | None:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else None


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    advice = (
        "indent with spaces, not tabs" if "\\t" in problem else "check indentation, quotes and brackets at that line"
    )
    return f"not valid YAML: {problem}; {advice}"


class _Reading:
    """One pass over the nodes of a YAML text."""

    def __init__(self, source: str, loader: _Loader) -> None:
        self._source, self._loader = source, loader
        self._lines: dict[Place, int] = {}
        self._mistakes: list[tuple[Place, PolicyFileError]] = []
        self._open: set[int] = set()
        self._n_values = 0

    def document(self) -> Document:
        try:
            node = self._loader.get_single_node()
            if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _CORE + "null"):
                raise self._refuse((), None, "the file is empty: `semgrad-guard policy init` writes one to start from")
            data = self._value(node, ())
        finally:
            self._loader.dispose()
        return Document(data, self._lines, tuple(self._mistakes))

    def _value(self, node: yaml.Node, place: Place) -> Json:
        self._lines.setdefault(place, node.start_mark.line + 1)
        self._n_values += 1
        if self._n_values > MAX_VALUES:
            raise self._refuse(
                place, node, f"contains more than {MAX_VALUES:,} values, aliases included: too many for a policy"
            )
        if id(node) in self._open:
            raise self._refuse(place, node, "contains itself through an alias (*): write the value out")
        self._open.add(id(node))
        try:
            return self._plain(node, place)
        finally:
            self._open.remove(id(node))

    def _plain(self, node: yaml.Node, place: Place) -> Json:
        if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
            return [self._value(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS | _TEXT_TOO:
            return self._scalar(node, place)
        self._leave_out(place, node, f"the tag {node.tag!r} is not allowed: a policy is plain values only")
        return None

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Json:
        if node.tag in _TEXT_TOO:
            return str(node.value)
        try:
            value: Json = self._loader.construct_object(node)
        except (ValueError, LookupError, TypeError, AttributeError):  # the library's answers to `!!bool x` and the like
            self._leave_out(place, node, f"cannot be read as {node.tag.removeprefix(_CORE)}")
            return None
        if isinstance(value, int) and value.bit_length() > _LONGEST_INT_BITS:
            self._leave_out(place, node, "is a number with more digits than any setting has")
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, place: Place) -> Json:
        data: dict[str, Json] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, place)
            if key is None:
                continue
            inner = (*place, key)
            if key in data:
                self._leave_out(inner, key_node, f"given twice, first on line {self._lines[inner]}: keep one of them")
                continue
            self._lines[inner] = key_node.start_mark.line + 1
            data[key] = self._value(value_node, inner)
        return data

    def _key(self, node: yaml.Node, place: Place) -> str | None:
        """Return a key; `None` for one that is left out."""
        if node.tag == _CORE + "merge":
            self._leave_out(place, node, "merge keys (<<) are not supported: write the keys out")
            return None
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _TEXT_TOO | {_CORE + "str"}:
            seen = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            self._leave_out(place, node, f"a key must be text, but {seen!r} is not: put it in quotes")
            return None
        return str(node.value)

    def _leave_out(self, place: Place, node: Any, why: str) -> None:
        self._mistakes.append((place, self._refuse(place, node, why)))

    def _refuse(self, place: Place, node: Any, why: str) -> PolicyFileError:
        line = node.start_mark.line + 1 if isinstance(node, yaml.Node) else None
        return PolicyFileError(self._source, line, dotted(place), why)
