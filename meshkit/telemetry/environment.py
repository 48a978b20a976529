"""What the environment says of OpenTelemetry, by its specification: traces and metrics ask here.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import logging
import os
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from meshkit.errors import ConfigError

if TYPE_CHECKING:  # OpenTelemetry takes 0.1 s to import, which who does not use it need not wait for
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger("meshkit.telemetry")

# Seconds that the end of a connection waits for the last metrics, and meanwhile for the last spans.
PATIENCE = 2.0

Signal = Literal["traces", "metrics"]
Exporter = Literal["otlp", "console"]


def wants(signal: Signal) -> Exporter | None:
    """Where the environment has traces or metrics exported to; None for nowhere.

    `OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER` say so: otlp, console or none. Without them it is OTLP
    if the environment names a receiver. `OTEL_SDK_DISABLED=true` is the same as none.

    Raises:
        ConfigError: OTLP is to be sent by gRPC, or to what is no URL.
    """
    if is_off():
        return None
    name = f"OTEL_{signal.upper()}_EXPORTER"
    said = _said(name)
    if said == "console":
        return "console"
    if said == "otlp" or (not said and _has_receiver(signal)):
        _check_endpoint(signal)
        _check_protocol(signal)
        return "otlp"
    if said not in {"", "none"}:
        log.warning("%s=%s: %s are not exported; write otlp, console or none", name, said, signal)
    return None


def is_off() -> bool:
    """Whether the environment has OpenTelemetry do nothing."""
    return _said("OTEL_SDK_DISABLED") == "true"


def _has_receiver(signal: Signal) -> bool:
    return bool(
        _said("OTEL_EXPORTER_OTLP_ENDPOINT") or _said(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    )


def _check_endpoint(signal: Signal) -> None:
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if said := _said(name):
            if not _is_url(said):
                raise ConfigError(f"{name}={said}: write a URL such as http://localhost:4318")
            return


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none
        return False


def _check_protocol(signal: Signal) -> None:
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if said := _said(name):
            if said != "http/protobuf":
                raise ConfigError(
                    f"{name}={said}: meshkit sends OTLP by http/protobuf; write that, and in the "
                    "endpoint the port that the receiver has for it, usually 4318"
                )
            return


def _said(name: str) -> str:
    """A variable that is empty is none, and words may be written in capitals, says the specification."""
    return os.environ.get(name, "").strip().lower()


def resource(name: str, instance_id: str, version: str) -> "Resource":
    """Who sends, for OpenTelemetry; what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes first.

    Args:
        name: The service's, or the client's.
        instance_id: The instance's id; empty for a client.
        version: The service's; empty for a client.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": name, "service.instance.id": instance_id, "service.version": version}
    said = OTELResourceDetector().detect().attributes
    return Resource.create({key: value for key, value in ours.items() if value} | dict(said))
