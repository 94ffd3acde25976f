"""Where policies come from, and what is known of their origin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy import Policy, load_policy, parse_policy, policy_from

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(name="policy_file")
def _policy_file(tmp_path: Path) -> Path:
    """A small policy file."""
    path = tmp_path / "policy.yaml"
    path.write_text("accept: 0.7\nscorer: {profile: profiles/mine.json}\n", encoding="utf-8")
    return path


def test_every_usual_form_is_taken(policy_file: Path) -> None:
    """Path, text of a path, mapping, policy."""
    policy = policy_from(policy_file)
    assert policy_from(str(policy_file)) == policy
    assert policy_from(policy) is policy
    assert policy_from({"accept": 0.7}).accept == 0.7


def test_the_source_is_kept(policy_file: Path) -> None:
    """Records say which policy decided."""
    assert load_policy(policy_file).source == str(policy_file)
    assert load_policy().source == "the shipped policy"
    assert policy_from({"accept": 0.7}).source == "policy"


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("profiles/mine.json", "{folder}/profiles/mine.json"),
        ("mine.json", "{folder}/mine.json"),
        ("/abs/mine.json", "/abs/mine.json"),
        ("smollm2-135m-demo", "smollm2-135m-demo"),  # a shipped profile: calibration knows where it is
    ],
)
def test_a_relative_profile_is_found_from_the_file(tmp_path: Path, named: str, found: str) -> None:
    """A policy moves with its profile, whatever folder the program runs in."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"accept: 0.7\nscorer: {{profile: {named}}}", encoding="utf-8")
    assert load_policy(path).profile == found.format(folder=tmp_path)


def test_a_profile_of_the_home_folder_is_found() -> None:
    """`~` means what it means in a shell."""
    policy = policy_from({"accept": 0.7, "scorer": {"profile": "~/mine.json"}})
    assert policy.profile == str(Path("~/mine.json").expanduser())


def test_a_scorer_that_is_spelled_out_has_no_profile_unless_it_names_one() -> None:
    """The shipped profile fits the shipped scorer only."""
    assert policy_from({"accept": 0.7}).profile == "proxy"
    assert policy_from({"accept": 0.7, "scorer": {"model": "other"}}).profile is None


EVERY_SECTION = """
version: 1
scorer: {model: smollm2-135m, method: hybridgrad, granularity: answer, profile: profiles/smollm2-rag.json}
accept: 0.70
escalate:
  - retry_retrieval: {top_k: 8, rewrite_query: true, attempts: 2}
  - fallback_model: {name: big}
  - human_review: {when: {below: 0.35}, wait_s: 0}
otherwise: abstain
messages: {abstain: "I am not sure enough to answer that.", pending: "A person will answer this."}
overrides: [{match: {tags: [medical]}, accept: 0.90, escalate: [human_review]}]
budget: {seconds: 30, attempts: 4}
on_error: human_review
on_uncalibrated: warn
beside_tool_calls: blank
review: {url: "sqlite:///review.db"}
telemetry: {langsmith: true, otel: false, jsonl: guard.jsonl, log_text: true}
"""


def test_a_file_with_every_section_is_read_and_written_back_unchanged() -> None:
    """What a policy holds is again a policy that says the same."""
    policy = parse_policy(EVERY_SECTION)
    assert policy.model_fields_set == set(Policy.model_fields)
    assert policy_from(policy.model_dump(exclude_unset=True)).digest == policy.digest


# --- files that can't be used -----------------------------------------------------------------------------------------


def _missing(folder: Path) -> Path:
    return folder / "nowhere.yaml"


def _folder(folder: Path) -> Path:
    return folder


def _latin1(folder: Path) -> Path:
    path = folder / "latin1.yaml"
    path.write_bytes("accept: 0.7\nmessages: {abstain: 'désolé'}".encode("latin-1"))
    return path


def _huge(folder: Path) -> Path:
    path = folder / "huge.yaml"
    path.write_bytes(b"#" * 1_000_001)
    return path


def _null_in_name(folder: Path) -> Path:
    return folder / "a\0b"


@pytest.mark.parametrize(
    ("make", "line", "said"),
    [
        (_missing, None, "no such file: `semgrad-guard policy init`"),
        (_folder, None, "cannot be read"),
        (_null_in_name, None, "cannot be read"),
        (_latin1, 2, "save the file as UTF-8"),
        (_huge, None, "too many for a policy"),
    ],
)
def test_a_file_that_is_no_policy_text_is_named(
    tmp_path: Path, make: Callable[[Path], Path], line: int | None, said: str
) -> None:
    """The wrong path is the commonest mistake of all."""
    path = make(tmp_path)
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert said in caught.value.why


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Some Windows editors write one."""
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xef\xbb\xbfaccept: 0.7")
    assert load_policy(path).accept == 0.7


# --- digest -----------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_is_said_not_how() -> None:
    """Comments, order and short forms change nothing that is decided."""
    queue = "review: {url: interrupt}\n"
    one = parse_policy(queue + "accept: 0.7\nescalate: [human_review]\noverrides: [{match: {tags: [a, b]}, accept: 1}]")
    two = parse_policy("""
        # the same
        overrides: [{accept: 1.0, match: {tags: [b, a]}}]
        escalate: [{human_review: {wait_s: 0}}]
        accept: 0.70
        review: {url: interrupt}
    """)
    assert one.digest == two.digest
    assert one.digest != parse_policy(queue + "accept: 0.71\nescalate: [human_review]").digest


def test_the_digest_is_the_same_in_every_process() -> None:
    """Sets have another order in each process; records of all of them must agree."""
    code = (
        "from semgrad_guard.policy import policy_from; "
        "print(policy_from({'accept': 1, 'overrides': [{'match': {'tags': list('abcdefgh')}, 'accept': 1}]}).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1
