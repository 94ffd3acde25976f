"""The device of each test: the processor, or the pretended one (`make test-device`), and a GPU where there is one."""

from __future__ import annotations

import pytest

from tests.models_for_tests import DEVICE

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
PRETENDED = pytest.param("pretend", marks=pytest.mark.skipif(DEVICE.type != "pretend", reason="see `make test-device`"))


@pytest.fixture(name="device", params=["cpu" if DEVICE.type == "cuda" else DEVICE.type, GPU])
def _device(request) -> str:
    return request.param


@pytest.fixture(name="accelerator", params=[PRETENDED, GPU])
def _accelerator(request) -> str:
    return request.param
