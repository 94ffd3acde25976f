"""A real local Ray with two scoring replicas: the numbers of one process, and nothing lost when one of them dies."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the types of routes

from semgrad_guard.flow import Exchange
from semgrad_guard.models import load_model
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.serving import Limits, ServerSettings
from semgrad_guard.serving.settings import Replicas, ServerListening
from semgrad_guard.wire import score_from_fields
from tests.models_for_tests import local_model
from tests.review_site import serving

if TYPE_CHECKING:
    from pathlib import Path

ray = pytest.importorskip("ray", reason="needs pip install 'ray[serve,data]'", exc_type=ImportError)

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(600),
]
LIMITS = Limits(window_s=0.002, batch=4, shutdown_s=5.0, seconds=60.0)


@dataclass
class Cluster:
    """Where the server is, its model, the file of its records, and how often each question reached the upstream."""

    url: str
    model: Path
    records: Path
    asked: Counter[str]

    def replicas(self) -> list[str]:
        """Return the names of the processes that score."""
        found = ray.util.list_named_actors(all_namespaces=True)
        return sorted(one["name"] for one in found if "semgrad-guard#scoring#" in one["name"])

    def kill(self, name: str) -> None:
        """End one of them as a crash does."""
        ray.kill(ray.get_actor(name, namespace="serve"))

    def wait_for(self, n: int) -> list[str]:
        """Wait until so many processes score, and return their names."""
        ends_at = time.monotonic() + 120
        while len(found := self.replicas()) < n:
            assert time.monotonic() < ends_at, found
            time.sleep(0.5)
        return found


def echo(asked: Counter[str]) -> FastAPI:
    """Return a server that answers each question with its own words."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        question = (await request.json())["messages"][-1]["content"]
        asked[question] += 1
        message = {"role": "assistant", "content": f"Answer to {question}"}
        return {"id": question, "model": "echo", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    return app


@pytest.fixture(name="cluster", scope="module")
def _cluster(tmp_path_factory):
    from semgrad_guard.serving.ray import started  # needs Ray
    from tests.end_to_end.test_serve import free_ports

    folder, (port,) = tmp_path_factory.mktemp("ray"), free_ports(1)
    local = local_model(max_position_embeddings=1024)
    local.model.save_pretrained(folder / "model")
    local.tokenizer.save_pretrained(folder / "model")
    asked: Counter[str] = Counter()
    policy = {
        "accept": 0, "on_uncalibrated": "give", "otherwise": "give", "on_error": "abstain",
        "scorer": {"model": str(folder / "model")}, "telemetry": {"jsonl": str(folder / "records.jsonl")},
    }  # fmt: skip
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(echo(asked)))
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        stack.callback(ray.shutdown)
        settings = ServerSettings(upstream=f"{upstream}/v1", policy=policy, limits=LIMITS)
        stack.callback(started(settings, Replicas(least=2, cpus=0.5), ServerListening(port=port)))
        url = f"http://127.0.0.1:{port}"
        ends_at = time.monotonic() + 120
        while httpx.get(f"{url}/readyz", timeout=30).status_code != 200:
            assert time.monotonic() < ends_at
            time.sleep(0.5)
        yield Cluster(url, folder / "model", folder / "records.jsonl", asked)


def exchanges(n: int) -> list[dict[str, str]]:
    rng = random.Random(1)  # noqa: S311 - test material
    words = ["north", "river", "seven", "glass", "often", "quiet"]
    return [
        {"prompt": f"Topic {i % 3}. " + " ".join(rng.choices(words, k=12)), "answer": " ".join(rng.choices(words, k=4))}
        for i in range(n)
    ]


def test_many_replicas_give_the_numbers_of_one_process(cluster):
    """Where a score is computed must not matter."""
    asked = exchanges(24)
    reply = httpx.post(f"{cluster.url}/v1/score", json={"exchanges": asked}, timeout=120).json()
    scorer = SemGradScorer(load_model(cluster.model))
    assert reply["model"] == scorer.name
    for one, exchange in zip(reply["results"], asked, strict=True):
        expected = scorer.score(Exchange(**exchange))
        found = score_from_fields(one["score"])
        assert found.value == pytest.approx(expected.value, rel=1e-4)
        assert found.fingerprint == expected.fingerprint


def test_sentences_are_scored_where_they_are_asked_for(cluster):
    """The replicas score by claim too, and an exchange that cannot be scored has an error of its own."""
    asked = [{"prompt": "Two?", "answer": "One is good. Two is bad."}, {"prompt": "Empty?", "answer": ""}]
    body = {"exchanges": asked, "claims": True}
    found = httpx.post(f"{cluster.url}/v1/score", json=body, timeout=120).json()["results"]
    assert [claim["text"].strip() for claim in found[0]["claims"]] == ["One is good.", "Two is bad."]
    assert found[1]["error"]["type"] == "EmptyAnswerError"


def test_a_replica_that_dies_under_load_costs_no_answer_and_answers_none_twice(cluster):
    """Each caller gets one answer, judged; the upstream is asked and a record is written once for each."""
    n, begun = 240, threading.Semaphore(0)
    before = cluster.wait_for(2)

    def ask(number: int) -> httpx.Response:
        begun.release()
        message = {"role": "user", "content": f"question {number:03}, {'of many words ' * 20}"}
        body = {"model": "echo", "messages": [message]}
        return httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=120)

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, number) for number in range(n)]
        for _ in range(60):
            begun.acquire()
        cluster.kill(before[0])
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * n
    bodies = [answer.json() for answer in found]
    assert [body["id"][:12] for body in bodies] == [f"question {number:03}" for number in range(n)]
    assert [body["semgrad"]["error"] for body in bodies] == [None] * n
    assert all(body["semgrad"]["score"] is not None for body in bodies)
    assert set(cluster.asked.values()) == {1}
    assert len(cluster.asked) == n
    after = cluster.wait_for(2)
    assert before[0] not in after, "the replica was not killed"
    ends_at = time.monotonic() + 30
    while len(records := cluster.records.read_text().splitlines()) < n and time.monotonic() < ends_at:
        time.sleep(0.5)
    ids = Counter(json.loads(line)["id"] for line in records)
    assert (len(ids), set(ids.values())) == (n, {1})


def test_a_body_over_the_limit_is_refused_by_the_front(cluster):
    """Before any replica sees it."""
    answer = httpx.post(f"{cluster.url}/v1/score", content=b"x" * (LIMITS.body_bytes + 1), timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
