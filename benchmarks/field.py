"""Who takes part, and how each is put on the stage: server, client, and what stands between them."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import environments
from benchmarks.environments import Missing
from benchmarks.proxies import envoys, free_port
from benchmarks.stage import Child, Process, certificates, nats_server, spending
from benchmarks.work import Figures

_HERE = Path(__file__).parent / "contenders"


class Contender(NamedTuple):
    """One that takes part.

    Attributes:
        title: What tables call it.
        module: Below `benchmarks.contenders`.
        way: What stands between client and server: nats, nats-tls, nothing, envoys or envoys-tls.
        environment: Its environment, if it is none of the suite's own.
        server: Settings of its server.
        client: Settings of its client.
    """

    title: str
    module: str
    way: str = "nats"
    environment: str | None = None
    server: Mapping[str, Any] = MappingProxyType({})
    client: Mapping[str, Any] = MappingProxyType({})


_HEADERS = {"with_headers": True}
_BARE = {"layers": "none", "counted": False}
CONTENDERS = {
    "nats_py": Contender("bare nats-py, no headers", "nats_py"),
    "nats_py_headers": Contender("bare nats-py, three headers", "nats_py", server=_HEADERS, client=_HEADERS),
    # What travels for a call of meshkit, whose replies need none.
    "nats_py_headers_there": Contender(
        "bare nats-py, three headers there, none back", "nats_py", client=_HEADERS
    ),
    "nats_py_tasks": Contender(
        "bare nats-py, three headers, a task for each call",
        "nats_py",
        server={**_HEADERS, "tasks": True},
        client=_HEADERS,
    ),
    "nats_py_mtls": Contender(
        "bare nats-py, three headers, mutual TLS", "nats_py", "nats-tls", server=_HEADERS, client=_HEADERS
    ),
    "nats_micro": Contender("nats.micro, no headers", "nats_micro"),
    "faststream": Contender("FastStream", "faststream_", environment="faststream"),
    "faststream_64": Contender(
        "FastStream, max_workers=64", "faststream_", environment="faststream", server={"max_workers": 64}
    ),
    "grpc_aio": Contender("gRPC aio", "grpc_aio", "nothing", "grpc"),
    "grpc_envoy": Contender("gRPC aio, two Envoys", "grpc_aio", "envoys", "grpc"),
    "grpc_envoy_mtls": Contender("gRPC aio, two Envoys, mutual TLS", "grpc_aio", "envoys-tls", "grpc"),
    "aiohttp_direct": Contender("aiohttp", "aiohttp_", "nothing", "aiohttp"),
    "aiohttp_envoy": Contender("aiohttp, two Envoys", "aiohttp_", "envoys", "aiohttp"),
    "node_services": Contender("Node's services client, no headers", "node", environment="node"),
    "wire": Contender("the limit: no library, no headers", "wire"),
    "wire_headers": Contender("the limit: three headers", "wire", server=_HEADERS, client=_HEADERS),
    "wire_headers_there": Contender("the limit: three headers there, none back", "wire", client=_HEADERS),
    "meshkit_bare": Contender("meshkit, no optional layer", "meshkit_", server={"layers": []}, client=_BARE),
    "meshkit_statistics": Contender(
        "meshkit, statistics alone",
        "meshkit_",
        server={"layers": ["statistics"]},
        client=_BARE,
    ),
    "meshkit_concurrency": Contender(
        "meshkit, concurrency alone", "meshkit_", server={"layers": ["bounds"]}, client=_BARE
    ),
    "meshkit_all": Contender(
        "meshkit, every layer there is", "meshkit_", server={"everything": True}, client={"layers": "all"}
    ),
    "meshkit": Contender("meshkit, as it is", "meshkit_"),
    "meshkit_uncounted": Contender(
        "meshkit, nothing counted", "meshkit_", server={"layers": ["bounds"]}, client={"counted": False}
    ),
    **{
        f"meshkit_traced_{name}": Contender(f"meshkit, traced {how}", "meshkit_", server=said, client=said)
        for name, how, said in (
            ("1", "at 1 %", {"trace": 0.01}),
            ("100", "at 100 %, spans counted", {"trace": 1.0}),
            ("100_otlp", "at 100 %, spans sent by OTLP", {"trace": 1.0, "otlp": True}),
        )
    },
    "meshkit_mtls": Contender("meshkit, as it is, mutual TLS", "meshkit_", "nats-tls"),
}


class Staged(NamedTuple):
    """A contender's processes.

    Attributes:
        client: Takes the loads as commands.
        server: Idle until it is called.
        between: Process ids of nats-server, or of the proxies.
    """

    client: Child
    server: Child
    between: dict[str, list[int]]

    def load(self, command: str, **arguments: Any) -> Figures:
        """Put a load on it; `processor` becomes the microseconds a call of each, and of all together."""
        with spending({"server": [self.server.pid], **self.between}) as spent:
            figures = self.client.ask(command, **arguments)
        each = {"client": figures["processor"]}
        each |= {what: seconds / figures["calls"] * 1e6 for what, seconds in spent.items()}
        return {**figures, "processor": {**each, "total": sum(each.values())}}


@contextmanager
def staged(name: str, loop: str, *, nap: float = 0, **settings: Any) -> Iterator[Staged]:
    """Start a contender's processes.

    Args:
        name: Its name in CONTENDERS.
        loop: asyncio or uvloop.
        nap: Seconds that the handler waits.
        settings: More for both its sides: `payload`, the size of bytes to echo in place of the message.

    Raises:
        Missing: It cannot take part; the text says why.
    """
    contender = CONTENDERS[name]
    served = {**contender.server, **settings, **({"nap": nap} if nap else {})}
    with ExitStack() as stack:
        if contender.way.startswith("nats"):
            nats = stack.enter_context(nats_server(tls=contender.way == "nats-tls"))
            where: dict[str, Any] = {"url": nats.url, **({"tls": nats.tls} if nats.tls else {})}
            server = stack.enter_context(_process(contender, "serve", loop, {**where, **served}))
            between = {"nats-server": [nats.pid]}
        else:
            where, between = {"port": free_port()}, {}
            server = stack.enter_context(_process(contender, "serve", loop, {**where, **served}))
            if contender.way.startswith("envoys"):
                tls = stack.enter_context(certificates()) if contender.way == "envoys-tls" else None
                in_front = envoys(where["port"], http2=contender.environment == "grpc", tls=tls)
                where["port"], between["proxies"] = stack.enter_context(in_front)
        client = _process(contender, "call", loop, {**where, **contender.client, **settings})
        yield Staged(stack.enter_context(client), server, between)


# Who has no figures, on which loop: what to call it, and why.
Absent = dict[tuple[str, str], tuple[str, str]]


def absence(error: Exception) -> tuple[str, str]:
    """What to call it that a contender has no figures, and why, in a line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "missing" if isinstance(error, Missing) else "failed", lines[-1]


def _process(contender: Contender, role: str, loop: str, settings: dict[str, Any]) -> Child:
    if contender.environment == "node":
        node, packages = environments.node()
        return Child([node, _HERE / "node.mjs", packages, role, settings["url"]])
    python = environments.python(contender.environment) if contender.environment else sys.executable
    module = f"benchmarks.contenders.{contender.module}"
    return Process(module, role, python=python, loop=loop, **settings)
