"""The device of each test: the processor always, a GPU where there is one."""

from __future__ import annotations

import pytest


@pytest.fixture(name="device", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def _device(request) -> str:
    return request.param
