"""What the package offers."""

from __future__ import annotations

import subprocess
import sys

import langchain_semgrad


def test_exactly_these_names_are_public() -> None:
    """An accidental export would have to be kept."""
    assert sorted(langchain_semgrad.__all__) == [
        "ChatSemGradServer",
        "GuardedAnswer",
        "GuardedChain",
        "GuardedRetriever",
        "ReviewedRuns",
        "SemGradCallbackHandler",
        "SemGradChatModel",
        "SemGradGraphState",
        "SemGradGuard",
        "SemGradMiddleware",
        "SemGradNode",
        "SemGradOutputParser",
        "answering",
        "resume_with",
    ]
    assert all(getattr(langchain_semgrad, name) is not None for name in langchain_semgrad.__all__)


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)


def test_the_agents_library_is_loaded_only_when_it_is_asked_for() -> None:
    """Chains need only langchain-core."""
    done = run("import langchain_semgrad, sys; print('langchain' in sys.modules, 'langgraph' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_missing_agents_library_names_its_pip_line() -> None:
    """A bare ModuleNotFoundError leaves the reader guessing."""
    done = run("import sys; sys.modules['langchain'] = None; from langchain_semgrad import SemGradMiddleware")
    assert done.returncode != 0
    assert "semgrad-guard[agents]" in done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`hasattr` and tools rely on it."""
    assert not hasattr(langchain_semgrad, "Nonsense")
