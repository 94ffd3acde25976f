"""Made-up requests, right and wrong ones, against the API's own description."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings

from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Scope
from tests.review_queues import submit
from tests.review_site import site_of

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")


@pytest.fixture(name="api")
def _api():
    """The description of a site with some items, and a token that allows everything."""
    with closing(open_queue("sqlite://")) as queue:
        for n in range(3):
            submit(queue, n)
        app = site_of(queue)
        desk = app.state.desk
        _, secret = desk.tokens.issue("fuzz", desk.accounts.get("ann"), list(Scope))
        bearer = {"Authorization": f"Bearer {secret}"}
        described = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=bearer)
        described.headers = bearer
        yield described


def test_the_api_answers_as_it_is_described(api):
    """No request brings it down or gets an answer that is not described."""
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    tried = set()
    for found in api.get_all_operations():
        operation = found.ok()

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            if "ruling" in case.path:
                case.query = {**(case.query or {}), "wait_s": 0}
            case.call_and_validate(headers=api.headers, checks=wanted)
            tried.add((case.method, case.path))

        ask()
    assert len(tried) >= 15
