"""Accounts, logins, tokens and the limits on guessing, below the page."""

from __future__ import annotations

import pytest

from semgrad_guard.errors import AccountError
from semgrad_guard.review.access import PREFIX, Accounts, Role, Scope, Sessions, Tokens, is_csrf
from tests.review_site import HASHER, PASSWORD


@pytest.fixture(name="accounts")
def _accounts(queue):
    return Accounts(queue.database, HASHER)


def test_an_account_is_verified_by_its_password(accounts):
    """Only the right pair of name and password counts."""
    made = accounts.add("ann", PASSWORD, Role.ADMIN)
    assert made.is_admin
    assert accounts.verify("ann", PASSWORD) == made
    for name, password in (("ann", "wrong"), ("ann", ""), ("Ann", PASSWORD), ("bob", PASSWORD), ("ann", "x" * 100_000)):
        assert accounts.verify(name, password) is None


@pytest.mark.parametrize("name", ["", "Ann", "a b", "ann\n", "../x", "é", "x" * 65, "-x", "<b>"])
def test_a_name_that_could_mislead_is_refused(accounts, name):
    """Names stand in the audit trail for ever."""
    with pytest.raises(AccountError, match="cannot be an account's name"):
        accounts.add(name, PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1025])
def test_a_password_of_the_wrong_length_is_refused(accounts, password):
    """Short ones are guessed, endless ones keep the server busy."""
    with pytest.raises(AccountError, match="12 to 1024"):
        accounts.add("ann", password)


def test_accounts_are_changed_by_name(accounts):
    """A typo changes nobody."""
    accounts.add("ann", PASSWORD)
    with pytest.raises(AccountError, match="already"):
        accounts.add("ann", PASSWORD)
    accounts.set_role("ann", Role.ADMIN)
    accounts.set_active("ann", active=False)
    assert accounts.verify("ann", PASSWORD) is None
    accounts.set_active("ann", active=True)
    accounts.set_password("ann", PASSWORD + "!")
    assert accounts.verify("ann", PASSWORD) is None
    assert accounts.verify("ann", PASSWORD + "!").role is Role.ADMIN
    assert [user.name for user in accounts.all()] == ["ann"]
    for change in (lambda: accounts.set_role("bob", Role.ADMIN), lambda: accounts.set_password("bob", PASSWORD)):
        with pytest.raises(AccountError, match="no account 'bob'"):
            change()


def test_an_old_hash_is_renewed_at_login(queue):
    """Settings grow with the machines."""
    from argon2 import PasswordHasher

    Accounts(queue.database, HASHER).add("ann", PASSWORD)
    stronger = Accounts(queue.database, PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert stronger.verify("ann", PASSWORD) is not None
    with queue.database.engine.connect() as conn:
        assert "m=16,t=2" in conn.exec_driver_sql("SELECT password_hash FROM semgrad_users").scalar_one()


def test_sessions_are_separate(queue, accounts):
    """Logging out in one browser leaves the other."""
    ann = accounts.add("ann", PASSWORD)
    sessions = Sessions(queue.database)
    one, other = sessions.begin(ann), sessions.begin(ann)
    assert one.token != other.token
    sessions.end(one.token)
    assert sessions.find(one.token) is None
    assert sessions.find(other.token) == other
    assert is_csrf(other.token, other.csrf)
    assert not is_csrf(other.token, one.csrf)
    assert other.token not in other.csrf


def test_tokens_are_made_listed_and_revoked(queue, accounts):
    """The secret is seen once; everything else stays."""
    ann = accounts.add("ann", PASSWORD)
    tokens = Tokens(queue.database)
    token, secret = tokens.issue("guard", ann, [Scope.SUBMIT, Scope.READ], lifetime_s=60)
    assert secret.startswith(PREFIX)
    found = tokens.find(secret)
    assert found is not None
    assert (found.by, found.token.scopes) == ("ann/guard", frozenset({Scope.SUBMIT, Scope.READ}))
    assert tokens.all()[0].used_at is not None
    tokens.revoke(token.id)
    assert tokens.find(secret) is None
    for wrong in (token.id, "nothing"):
        with pytest.raises(AccountError, match="no valid token"):
            tokens.revoke(wrong)
    with pytest.raises(AccountError, match="at least one scope"):
        tokens.issue("x", ann, [])
