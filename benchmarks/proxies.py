"""Envoy as a sidecar on both sides, as cheap as it can be had: a route, one worker, and nothing else.

No access log, no tracing, no statistics sink, no ids for requests, no administration.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import environments
from benchmarks.stage import Certificates

_READY = 30  # seconds
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP_OPTIONS = f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
_TLS = f"{_EXTENSIONS}.transport_sockets.tls.v3"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def envoys(port: int, *, http2: bool, tls: Certificates | None = None) -> Iterator[tuple[int, list[int]]]:
    """Two in a row, in front of a port; gives the port in front of them, and their process ids."""
    middle, front = free_port(), free_port()
    with (
        _envoy(_sidecar(middle, port, http2=http2, listen_tls=tls)) as beside_server,
        _envoy(_sidecar(front, middle, http2=http2, connect_tls=tls)) as beside_client,
    ):
        _wait(beside_server, middle)
        _wait(beside_client, front)
        yield front, [beside_server.pid, beside_client.pid]


def _sidecar(
    listen: int,
    connect: int,
    *,
    http2: bool,
    listen_tls: Certificates | None = None,
    connect_tls: Certificates | None = None,
) -> dict[str, Any]:
    """Its configuration."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "next"}}
    manager = {
        "@type": _HTTP,
        "stat_prefix": "in",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
            }
        ],
    }
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    endpoint = {"endpoint": {"address": _address(connect)}}
    cluster: dict[str, Any] = {
        "name": "next",
        "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        options = {"@type": _HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    if listen_tls:
        context = {"@type": f"{_TLS}.DownstreamTlsContext", "require_client_certificate": True}
        chain["transport_socket"] = _secure(context, listen_tls)
    if connect_tls:
        context = {"@type": f"{_TLS}.UpstreamTlsContext", "sni": "localhost"}
        cluster["transport_socket"] = _secure(context, connect_tls)
    listener = {"name": "in", "address": _address(listen), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _secure(context: dict[str, Any], files: Certificates) -> dict[str, Any]:
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [
            {"certificate_chain": {"filename": files.cert}, "private_key": {"filename": files.key}}
        ],
        "validation_context": {"trusted_ca": {"filename": files.ca}},
    }
    typed = {**context, "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


@contextmanager
def _envoy(configuration: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    command = [environments.envoy(), "--config-yaml", json.dumps(configuration), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "error"]
    with subprocess.Popen(command) as process:  # noqa: S603 # ours
        try:
            yield process
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + _READY
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(
                    f"Envoy does not listen on port {port}; its standard error says why"
                ) from None
            time.sleep(0.01)
        else:
            return
