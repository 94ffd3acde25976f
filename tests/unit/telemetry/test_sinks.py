"""All sinks of a policy as one."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import MissingExtraError
from semgrad_guard.ports import Sink
from semgrad_guard.telemetry import JsonlSink, LangSmithSink, OtelSink, Sinks, TelemetrySettings, build_sinks
from tests.fakes import MemorySink
from tests.records import make_record

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.flow import Record


class BrokenSink:
    """Breaks the contract of sinks."""

    def emit(self, record: Record) -> None:
        """Raise."""
        raise RuntimeError(record.id)

    def close(self) -> None:
        """Raise."""
        raise RuntimeError("close")


def test_a_sink_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """People plug in sinks of their own."""
    good = MemorySink()
    sinks = Sinks([BrokenSink(), good, BrokenSink()])
    sinks.emit(make_record())
    sinks.emit(make_record())
    sinks.close()
    assert len(good.records) == 2
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 4


def test_a_policy_gets_the_sinks_that_it_names(tmp_path: Path) -> None:
    """No more and no fewer."""
    built = build_sinks(TelemetrySettings(langsmith=True, otel=True, jsonl=tmp_path / "f"))
    assert [type(s) for s in built.sinks] == [LangSmithSink, OtelSink, JsonlSink]
    assert all(isinstance(s, Sink) for s in (*built.sinks, built))
    built.close()
    assert build_sinks(TelemetrySettings()).sinks == ()


def test_log_text_reaches_every_sink(tmp_path: Path) -> None:
    """One forgotten sink would leak everything."""
    built = build_sinks(TelemetrySettings(jsonl=tmp_path / "f", log_text=False))
    built.emit(make_record(text="Xyzzy"))
    assert "Xyzzy" not in (tmp_path / "f").read_text()
    assert all(
        not vars(s).get("_log_text", vars(s).get("log_text"))
        for s in build_sinks(TelemetrySettings(langsmith=True, otel=True, jsonl=tmp_path / "f", log_text=False)).sinks
    )


@pytest.mark.parametrize(
    ("settings", "missing", "extra"),
    [
        (TelemetrySettings(langsmith=True), "langsmith", "langsmith"),
        (TelemetrySettings(otel=True), "opentelemetry", "otel"),
    ],
)
def test_a_missing_package_is_named_when_the_guard_is_built(
    settings: TelemetrySettings, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first answer in production."""

    def refuse(name: str) -> object:
        if name.startswith(missing):
            message = f"No module named {missing!r}"
            raise ModuleNotFoundError(message, name=missing)
        return importlib.import_module(name)

    monkeypatch.setattr("semgrad_guard.extras.import_module", refuse)
    with pytest.raises(MissingExtraError) as caught:
        build_sinks(settings)
    assert (caught.value.extra, f"semgrad-guard[{extra}]" in str(caught.value)) == (extra, True)


def test_the_package_loads_without_any_optional_package() -> None:
    """Whoever logs to a file need not install LangSmith."""
    script = (
        "import sys\n"
        "import semgrad_guard.telemetry\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'langsmith', 'opentelemetry', 'torch', 'requests'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
