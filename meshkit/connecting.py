"""How a mesh begins: a connection for the time of a block, or for as long as a service runs."""

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from meshkit import codec as codecs
from meshkit import loop
from meshkit.discovery.protocol import new_instance_id
from meshkit.errors import ConfigError, MeshError, shortened
from meshkit.mesh import Mesh, StrPath
from meshkit.policies import NO_POLICIES, Policies, load
from meshkit.service import Service
from meshkit.telemetry.metrics.otel import exporting
from meshkit.telemetry.telemetry import Telemetry
from meshkit.telemetry.traces.exporting import tracer

if TYPE_CHECKING:
    from meshkit.transport.nats import NatsTransport


@asynccontextmanager
async def connect(
    url: str | list[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = 2.0,
    codec: str = "json",
    policies: StrPath | Policies | None = None,
    credentials: StrPath | None = None,
    nkey: StrPath | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    tls_ca: StrPath | None = None,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
    metrics_port: int | None = None,
) -> AsyncGenerator[Mesh]:
    """Connect to NATS for the time of an `async with` block.

    What is not given comes from the environment, by the names that the `nats` command uses.

    Args:
        url: One server or several of a cluster, as a list or separated by commas; NATS_URL, else
            nats://127.0.0.1:4222. tls:// asks for an encrypted connection.
        name: What the connection is called in the server's monitoring.
        timeout: Seconds to go on trying to make the first connection.
        codec: How messages are sent, json or msgpack; replies come the same way.
        policies: For what is called and served on this connection: a file like meshkit.toml, whose
            `[call."…"]` and `[serve."…"]` tables are read, or `meshkit.Policies`.
        credentials: A `.creds` file; NATS_CREDS.
        nkey: A file with an nkey seed; NATS_NKEY.
        user: With password; NATS_USER, NATS_PASSWORD.
        password: With user.
        token: NATS_TOKEN.
        tls_ca: Certificate authority to check the server by; NATS_CA.
        tls_cert: Client certificate; NATS_CERT.
        tls_key: Its key; NATS_KEY.
        metrics_port: Where the process answers HTTP on `/metrics`, `/livez` and `/readyz`, on all interfaces;
            by default nowhere.

    Raises:
        Disconnected: No server could be reached, or it refused; the text says which and why.
        ConfigError: An option is of no use; the text says which and why.
    """
    # nats-py takes a tenth of a second to import, which who only declares services need not wait for.
    from meshkit.transport.nats import NatsTransport
    from meshkit.transport.options import options

    content = _content(codec)
    if policies is None:
        policies = NO_POLICIES
    elif isinstance(policies, str | os.PathLike):
        policies = load(Path(policies))
    elif not isinstance(policies, Policies):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
        raise ConfigError(
            "policies is a file such as 'meshkit.toml', or Policies(call={'rooms.>': CallPolicy(...)}), "
            f"not {shortened(repr(policies), 200)}"
        )
    transport = NatsTransport(
        options(
            url,
            credentials=credentials,
            nkey=nkey,
            user=user,
            password=password,
            token=token,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        ),
        name=name,
    )
    tracing = tracer(name)
    await transport.connect(timeout)
    telemetry = Telemetry(transport, tracing)
    mesh = Mesh(transport, content=content, policies=policies, telemetry=telemetry, name=name)
    try:
        async with exporting(telemetry), _showing(telemetry, metrics_port):
            yield mesh
    finally:
        with anyio.CancelScope(shield=True):
            mesh.telemetry.stop()
            await mesh.directory.close()
            await transport.close()


@asynccontextmanager
async def reach(url: str | None, *, name: str, timeout: float = 2.0) -> AsyncGenerator["NatsTransport"]:
    """A connection to NATS alone, for who looks around: nothing is told to OpenTelemetry.

    Args:
        url: As in `connect`, as the others.
        name: Likewise.
        timeout: Likewise.

    Raises:
        Disconnected: No server could be reached, or it refused; the text says which and why.
        ConfigError: The environment says what is of no use.
    """
    from meshkit.transport.nats import NatsTransport
    from meshkit.transport.options import options

    transport = NatsTransport(options(url), name=name)
    await transport.connect(timeout)
    try:
        yield transport
    finally:
        with anyio.CancelScope(shield=True):
            await transport.close()


def _showing(telemetry: Telemetry, port: int | None) -> AbstractAsyncContextManager[None]:
    if port is None:
        return nullcontext()
    if not isinstance(port, int) or not 0 < port < 65536:  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
        raise ConfigError(f"metrics_port is a port such as 9100, not {shortened(repr(port), 200)}")
    # Who has no port need not wait for what answers on it.
    from meshkit.telemetry.metrics.listener import listening
    from meshkit.telemetry.metrics.views import pages

    return listening(port, pages(telemetry))


def _content(name: str) -> str:
    if name not in codecs.CODECS:
        raise ConfigError(f"codec {name!r} is not known; write {' or '.join(codecs.CODECS)}")
    return codecs.CODECS[name]


def run(service: Service, url: str | None = None, **options: Any) -> None:
    """What `Service.run` does."""

    async def serve() -> None:
        instance_id = new_instance_id()
        name = f"{service.name}/{service.version}/{instance_id}"
        options.setdefault("name", name)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with connect(url, **options) as mesh, mesh.serve(service, instance_id=instance_id):
                await anext(signals)

    try:
        loop.run(serve)
    except (MeshError, ConfigError) as error:
        sys.exit(f"meshkit: {getattr(error, 'message', error)}")
