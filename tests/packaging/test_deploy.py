"""What `deploy/` holds can be read, and every command, option, file and setting that it names exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from semgrad_guard.guard.readiness import ready_policy
from semgrad_guard.policy import parse_policy
from semgrad_guard.serving.settings import ServerSettingError, settings_of
from tests.pages import check_command

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MADE_BY_READER = {"keys.json"}
"""Files that a comment says how to make."""


def check(words: list[str]) -> None:
    """Check the words behind `semgrad-guard`: the command and its options exist."""
    check_command(shlex.join(["semgrad-guard", *words]))


_COMMAND = re.compile(r"(?:^|review )semgrad-guard ([a-z]+ .*)")


def commands_in(text: str) -> list[list[str]]:
    """Return the commands of `semgrad-guard` in the comments of a file, without what runs them."""
    comments = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
    return [shlex.split(found[1]) for line in comments if (found := _COMMAND.search(line))]


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def kuberay() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("SEMGRAD_REVIEW_URL", "sqlite://")


def test_the_images_steps_name_what_is_there():
    """A renamed folder, extra or option would break the build on somebody else's machine."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in ignored for name in copied)
    extras = set(re.findall(r"EXTRAS=([\w,]+)", "\n".join(lines)))
    known = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S)
    assert known is not None
    assert all(re.search(rf"^{extra} = ", known[1], re.M) for names in extras for extra in names.split(","))
    assert [line for line in lines if line.startswith("ENTRYPOINT")] == ['ENTRYPOINT ["semgrad-guard"]']
    (command,) = (ast.literal_eval(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD "))
    check(command)
    for line in lines:
        for found in re.findall(r"semgrad-guard (models [^&]+)", line):
            check(found.split())


def test_the_services_run_commands_that_exist_on_files_that_are_mounted():
    """And their files exist here, or a comment says how they are made."""
    services = compose()["services"]
    for name in ("guard", "review"):
        service = services[name]
        check(service["command"])
        mounted = {target: source for source, target in (one.split(":")[:2] for one in service["volumes"])}
        wanted = [word for word in service["command"] if word.startswith("/")]
        assert set(wanted) <= set(mounted)
        sources = [Path(mounted[word]).name for word in wanted]
        assert all((DEPLOY / source).exists() or source in MADE_BY_READER for source in sources)
        port = service["command"][service["command"].index("--port") + 1]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert "http://upstream:11434/v1" in services["guard"]["command"]
    build = services["guard"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    assert set(services["guard"]["depends_on"]) <= set(services)
    assert "postgres/review" in services["guard"]["environment"]["SEMGRAD_REVIEW_URL"]


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kuberay.yaml"])
def test_the_comments_name_commands_that_exist(name):
    """Readers paste them."""
    found = commands_in((DEPLOY / name).read_text())
    assert bool(found) is (name != "Dockerfile")
    for words in found:
        check(words)


def test_the_policies_can_act():
    """With the packaged model and its profile."""
    ready_policy(DEPLOY / "policy.yaml")
    ready_policy(parse_policy(kuberay()["ConfigMap"]["data"]["policy.yaml"]))


def test_the_ray_service_says_what_the_server_knows():
    """Its arguments are the server's settings, its files are mounted, and its port is the container's."""
    service = kuberay()["RayService"]["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert any(isinstance(one, ast.FunctionDef) and one.name == name for one in ast.parse(source).body)
    settings, replicas, keys = settings_of(application["args"])
    assert (settings.upstream, replicas.least, replicas.most, replicas.gpus) == ("http://vllm:8000/v1", 2, 8, 0.5)
    groups = [service["rayClusterConfig"]["headGroupSpec"], *service["rayClusterConfig"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        mounted = {one["mountPath"] for one in container["volumeMounts"]}
        assert {str(settings.policy), str(keys.parent)} <= mounted
        volumes = {one["name"] for one in group["template"]["spec"]["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} <= volumes
        assert container["env"][0]["name"] == "SEMGRAD_UPSTREAM_KEY"
    (head, *_) = (group["template"]["spec"]["containers"][0] for group in groups)
    assert config["http_options"]["port"] in {one["containerPort"] for one in head["ports"]}
    config_map = kuberay()["ConfigMap"]["metadata"]["name"]
    assert config_map in {one.get("configMap", {}).get("name") for one in groups[0]["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("args", [{"upstrem": "http://x"}, {"limits": {"batches": 1}}, {"replicas": {"number": 2}}])
def test_a_misspelt_setting_is_refused(args):
    """It would silently have no effect."""
    with pytest.raises(ServerSettingError, match="it has"):
        settings_of(args)
