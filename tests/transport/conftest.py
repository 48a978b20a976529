"""A proxy between a client and the real server, to see what passes, and to hold, cut or add to it."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import trustme

from meshkit.transport.server import EmbeddedServer


class Proxy:
    """Passes bytes both ways; `sent` is what the client wrote.

    What is held is held for the connections that are there; a new one passes.
    """

    def __init__(self, port):
        self._port = port
        self.sent = b""
        self.connections = 0
        self._down = []
        self._up = []
        self._writers = []
        self._tasks = set()

    def hold_replies(self):
        for gate in self._down:
            gate.clear()

    def hold_requests(self):
        for gate in self._up:
            gate.clear()

    def release(self):
        for gate in self._up + self._down:
            gate.set()

    async def stall(self, mesh):
        """Fill every buffer on the way, until what is published stays in nats-py's own."""
        self.hold_requests()
        while mesh.transport._client.pending_data_size < 200_000:
            await mesh.publish("bulk", b"x" * 200_000)
            await asyncio.to_thread(time.sleep, 0.001)  # a test's clock may stand still

    def inject(self, data):
        """Have the server say something; to be called between two of its messages."""
        self._writers[-1].write(data)

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            writer.transport.abort()
            return
        self._writers += [server_writer, writer]
        for source, target, gates, record in (
            (reader, server_writer, self._up, True),
            (server_reader, writer, self._down, False),
        ):
            gate = asyncio.Event()
            gate.set()
            gates.append(gate)
            task = asyncio.create_task(self._pass(source, target, gate, record))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source, target, gate, record):
        try:
            while True:
                await gate.wait()
                data = await source.read(65536)
                if not data:
                    break
                # Read before the gate closed, written after.
                await gate.wait()
                if record:
                    self.sent += data
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.transport.abort()

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.release()
            self.cut()
            server.close()
            await server.wait_closed()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def proxy_to():
    """Makes a proxy for the server on a port: `async with proxy_to(port) as proxy`."""
    return lambda port: Proxy(port).running()


@pytest.fixture
async def proxy(proxy_to, nats_server):
    async with proxy_to(nats_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A server that wants TLS and a client certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, certificate in (
        ("server", authority.issue_cert("localhost", "127.0.0.1")),
        ("client", authority.issue_cert("ann@example.org")),
    ):
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in certificate.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    config = folder / "nats.conf"
    config.write_text(
        f'tls {{ cert_file: "{folder}/server.pem", key_file: "{folder}/server.key", '
        f'ca_file: "{folder}/ca.pem", verify: true }}'
    )
    with EmbeddedServer(config=config) as server:
        yield server, folder
