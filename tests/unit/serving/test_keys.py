"""Keys that callers need: kept as digests, and revoked at once."""

from __future__ import annotations

import stat

import pytest

from semgrad_guard.serving import KeyFile
from semgrad_guard.serving.gate import KeyFileError


@pytest.fixture(name="keys")
def _keys(tmp_path):
    return KeyFile(tmp_path / "keys.json")


def test_a_key_is_known_by_its_secret_which_is_nowhere_in_the_file(keys):
    """Who reads the file must not be able to use the keys."""
    secret = keys.issue("app")
    assert keys.find(secret) == "app"
    assert keys.find(secret + "x") is None
    assert secret not in keys.path.read_text()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_a_revoked_key_is_refused_by_a_server_that_runs(keys):
    """The file is read again when it changes."""
    server = KeyFile(keys.path)
    secret, other = keys.issue("app"), keys.issue("other")
    assert server.find(secret) == "app"
    keys.revoke("app")
    assert server.find(secret) is None
    assert server.find(other) == "other"
    assert [key.name for key in keys.all()] == ["other"]


def test_names_are_unique_and_known(keys):
    """Revoking by name must end the one that was meant."""
    keys.issue("app")
    with pytest.raises(KeyFileError, match="already a key 'app'"):
        keys.issue("app")
    with pytest.raises(KeyFileError, match="it holds app"):
        keys.revoke("apple")


def test_without_a_file_no_key_is_known(keys):
    """A server that was pointed at a missing file lets nobody in."""
    assert keys.find("anything") is None


def test_a_file_of_something_else_is_refused(keys):
    """An unreadable file must not count as one without keys."""
    keys.path.write_text("{}")
    with pytest.raises(KeyFileError, match="keys add"):
        keys.find("anything")
