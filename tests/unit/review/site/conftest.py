"""A site with accounts, and reviewers who are logged in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape

import pytest
from starlette.testclient import TestClient

from semgrad_guard.review.access import Scope
from semgrad_guard.review.site.desk import WebSettings
from semgrad_guard.review.throttle import Limits
from tests.review_site import PASSWORD, site_of


@dataclass
class Browser:
    """A browser without JavaScript: follows links, fills in the forms that a page shows."""

    client: TestClient
    page: str = ""
    status: int = 0

    def get(self, path: str) -> str:
        """Open a page."""
        return self._show(self.client.get(path))

    def post(self, path: str, /, **fields: object) -> str:
        """Send a form with exactly these fields."""
        return self._show(self.client.post(path, data=fields))

    def submit(self, action: str, /, **fields: object) -> str:
        """Fill in the form of the shown page that goes to `action`, and send it."""
        return self.post(action, **{**self.hidden(action), **fields})

    def hidden(self, action: str) -> dict[str, str]:
        """Return the hidden fields of a form on the shown page."""
        form = re.search(rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.page, re.S)
        assert form is not None, f"no form to {action} on the page"
        found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[1])
        return {unescape(name): unescape(value) for name, value in found}

    def log_in(self, name: str, password: str = PASSWORD) -> str:
        """Log in as a reviewer would."""
        self.get("/login")
        return self.submit("/login", name=name, password=password)

    def _show(self, response) -> str:
        self.page, self.status = response.text, response.status_code
        self.response = response
        return self.page


@pytest.fixture(name="settings")
def _settings() -> WebSettings:
    return WebSettings(limits=Limits(by_account=3, by_account_everywhere=9, by_address=6, within_s=600))


@pytest.fixture(name="app")
def _app(memory_queue, settings):
    return site_of(memory_queue, settings)


@pytest.fixture(name="desk")
def _desk(app):
    return app.state.desk


@pytest.fixture(name="visit")
def _visit(app):
    """Open another browser."""
    opened = []

    def another(**options: object) -> Browser:
        opened.append(TestClient(app, base_url="http://review.test", **options))
        return Browser(opened[-1])

    yield another
    for client in opened:
        client.close()


@pytest.fixture(name="ann")
def _ann(visit) -> Browser:
    """A reviewer who is logged in."""
    browser = visit()
    browser.log_in("ann")
    return browser


@pytest.fixture(name="program")
def _program(app, desk):
    """A program with a token for the given scopes: `program(Scope.READ)`."""
    opened = []

    def with_token(*scopes: Scope, user: str = "ann") -> TestClient:
        _, secret = desk.tokens.issue("bot", desk.accounts.get(user), scopes or tuple(Scope))
        opened.append(TestClient(app, base_url="http://review.test", headers={"Authorization": f"Bearer {secret}"}))
        return opened[-1]

    yield with_token
    for client in opened:
        client.close()
