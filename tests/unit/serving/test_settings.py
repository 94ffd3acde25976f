"""What a server refuses to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from semgrad_guard.serving import Limits, ServerSettings
from semgrad_guard.serving.settings import ServerListening, ServerSettingError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_needs_no_keys(host):
    """Trying it out takes one command."""
    assert ServerListening(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "scores.example.com", ""])  # noqa: S104 - refused
def test_beyond_this_machine_keys_are_required(host):
    """Anybody on the network could use the models, and read what the policy holds back."""
    with pytest.raises(ServerSettingError, match="keys add"):
        ServerListening(host=host)
    assert not ServerListening(host=host, has_keys=True).is_local


def test_a_certificate_without_its_key_is_refused():
    """Half of TLS is none."""
    with pytest.raises(ServerSettingError, match="both"):
        ServerListening(certificate=Path("c"))


@pytest.mark.parametrize(
    "given",
    [
        {"model": "a", "upstream": "http://b/v1"},
        {"model": "a", "scorer": "b"},
        {"policy": {"accept": 0.5}, "accept": 0.5},
        {"own_weights": True},
    ],
)
def test_settings_that_exclude_each_other_are_refused(given):
    """The server must not guess which of them was meant."""
    with pytest.raises(ServerSettingError):
        ServerSettings(**given)


@pytest.mark.parametrize("name", ["body_bytes", "seconds", "requests", "waiting", "batch"])
def test_a_limit_that_lets_nothing_through_is_refused(name):
    """A server that answers nothing looks like one that is down."""
    with pytest.raises(ServerSettingError, match=name):
        Limits(**{name: 0})
