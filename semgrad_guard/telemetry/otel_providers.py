"""Find or make OpenTelemetry providers: the application's, or new ones that send to the OTLP endpoint."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

EXTRA = "otel"
SERVICE_NAME = "semgrad-guard"
"""Default name of the service, unless the environment (`OTEL_SERVICE_NAME`) sets one."""

_SIGNALS = ("", "TRACES_", "LOGS_", "METRICS_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """A provider for each signal."""

    tracer: TracerProvider
    logger: LoggerProvider
    meter: MeterProvider
    own: tuple[Any, ...] = ()
    """The providers that were made here; they are shut down with the sink."""

    def shutdown(self, timeout_s: float) -> None:
        """Send pending signals and shut down the providers that were made here, within `timeout_s` seconds."""
        threads = [threading.Thread(target=p.shutdown, name="semgrad-otel-end", daemon=True) for p in self.own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout_s / len(threads))


def need_packages() -> None:
    """Import all needed packages in advance, because importing them would delay an answer.

    Raises:
        MissingExtraError: OpenTelemetry is not installed; the error names the extra.
    """
    for sdk in ("trace", "_logs", "metrics"):
        _sdk(sdk)
    for exporter in ("trace_exporter", "_log_exporter", "metric_exporter"):
        _exporter(exporter)


def find_providers() -> Providers:
    """Return the application's providers, or new ones.

    If the application has set up OpenTelemetry for any signal, its providers are used and signals that it did not set
    up are not sent. Otherwise, and whenever `OTEL_EXPORTER_OTLP_ENDPOINT` or the variable of a single signal is set,
    signals without a provider go to the OTLP endpoint over HTTP, configured by the standard variables.
    """
    trace, logs, metrics = (require(f"opentelemetry.{name}", extra=EXTRA) for name in ("trace", "_logs", "metrics"))
    present = (trace.get_tracer_provider(), logs.get_logger_provider(), metrics.get_meter_provider())
    if any(map(is_set_up, present)) and not _names_endpoint():
        tracer, logger, meter = present
        return Providers(tracer=tracer, logger=logger, meter=meter)
    make = (_own_tracer_provider, _own_logger_provider, _own_meter_provider)
    tracer, logger, meter = (_present_or(p, own) for p, own in zip(present, make, strict=True))
    own = tuple(p for p in (tracer, logger, meter) if p not in present)
    return Providers(tracer=tracer, logger=logger, meter=meter, own=own)


def is_set_up(provider: object) -> bool:
    """Return whether a global provider was set up; before that it is a placeholder."""
    return not type(provider).__name__.lstrip("_").startswith(("Proxy", "NoOp", "Default"))


def _present_or(provider: Any, make: Callable[[], Any]) -> Any:
    return provider if is_set_up(provider) else make()


def _names_endpoint() -> bool:
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in _SIGNALS)


def _sdk(name: str) -> Any:
    return require(f"opentelemetry.sdk.{name}", extra=EXTRA)


def _exporter(name: str) -> Any:
    return require(f"opentelemetry.exporter.otlp.proto.http.{name}", extra=EXTRA)


def _resource() -> Any:
    """Return the resource that the environment describes."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return _sdk("resources").Resource.create({} if named else {"service.name": SERVICE_NAME})


def _own_tracer_provider() -> Any:
    provider = _sdk("trace").TracerProvider(resource=_resource())
    exporter = _exporter("trace_exporter").OTLPSpanExporter()
    provider.add_span_processor(_sdk("trace.export").BatchSpanProcessor(exporter))
    return provider


def _own_logger_provider() -> Any:
    provider = _sdk("_logs").LoggerProvider(resource=_resource())
    exporter = _exporter("_log_exporter").OTLPLogExporter()
    provider.add_log_record_processor(_sdk("_logs.export").BatchLogRecordProcessor(exporter))
    return provider


def _own_meter_provider() -> Any:
    exporter = _exporter("metric_exporter").OTLPMetricExporter()
    reader = _sdk("metrics.export").PeriodicExportingMetricReader(exporter)
    return _sdk("metrics").MeterProvider(metric_readers=[reader], resource=_resource())
