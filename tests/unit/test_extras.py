"""Optional packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import MissingExtraError
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from pathlib import Path


def test_a_module_that_is_there_comes_back() -> None:
    """The usual case."""
    assert require("json.decoder", extra="x").__name__ == "json.decoder"


def test_a_missing_package_names_the_extra() -> None:
    """The message is the pip line."""
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package_here.part", extra="otel")
    assert (caught.value.module, caught.value.extra) == ("no_such_package_here", "otel")


def test_an_error_inside_an_installed_package_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation must not look like one that is not there."""
    (tmp_path / "broken_package_here.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as caught:
        require("broken_package_here", extra="x")
    assert not isinstance(caught.value, MissingExtraError)
