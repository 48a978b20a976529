"""`meshkit collect`, as a process, between a real server and a receiver of OTLP."""

import asyncio
import gzip
import http.server
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import until

from meshkit import Service, connect
from meshkit.cli.collect import _exporter
from meshkit.transport.server import EmbeddedServer

SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = tmp_path_factory.mktemp("collect") / "nats.conf"
    config.write_text("""
        server_name: hub
        accounts {
          A {
            msg_trace: "trace.dest"
            exports: [{ service: "sum", latency: { sampling: headers, subject: "latency" } }]
            users: [
              { user: ann, password: secret }
              { user: bob, password: secret, permissions: { publish: { deny: ["trace.dest"] } } }
              { user: dan, password: secret, permissions: { subscribe: { deny: ["trace.dest"] } } }
            ]
          }
          B {
            imports: [{ service: { account: A, subject: "sum" } }]
            users: [{ user: eve, password: secret }]
          }
        }""")
    with EmbeddedServer(config=config) as server:
        yield server


@pytest.fixture
def receiver():
    """Receives OTLP over HTTP; `spans` is what came, each with the name of who sent it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path != "/v1/traces":
                body = b""
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                who = {one.key: one.value.string_value for one in group.resource.attributes}
                for scope in group.scope_spans:
                    server.spans += [(who["service.name"], span) for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.spans = []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def collect(server, tmp_path):
    """Runs `meshkit collect ARGUMENTS` for the time of a block; `said` and `errors` are what it prints."""

    @asynccontextmanager
    async def run(*arguments, user="ann", **environment):
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "meshkit", "collect", *arguments),
                stdout=out,
                stderr=err,
                env={
                    **os.environ,
                    "NATS_URL": server.url,
                    "NATS_USER": user,
                    "NATS_PASSWORD": "secret",
                    **environment,
                },
            )
        process.said = (tmp_path / "out").read_text
        process.errors = (tmp_path / "err").read_text
        try:
            await until(lambda: "collecting from" in process.errors() or process.returncode is not None, 20)
            yield process
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
        finally:
            async with asyncio.timeout(20):
                await process.wait()

    return run


@pytest.fixture
async def used(server):
    """A function that calls a service of another account, in a trace that is sampled."""
    service = Service("adder")

    @service.endpoint("sum")
    async def add() -> int:
        return 3

    async with (
        connect(server.url, name="ann", user="ann", password="secret") as ann,
        connect(server.url, name="eve", user="eve", password="secret") as eve,
        ann.serve(service),
    ):

        async def use():
            await eve.call("sum", headers=SAMPLED)
            await ann.call("sum", headers=SAMPLED)

        yield use


async def test_spans_go_by_otlp(collect, used, receiver):
    async with collect("trace.dest", "latency", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as process:
        await used()
    assert process.returncode == 0
    names = [span.name for _, span in receiver.spans]
    assert names.count("nats-server hub") == names.count("nats service latency") == 1
    assert {who for who, _ in receiver.spans} == {"nats-server"}
    assert {span.trace_id.hex() for _, span in receiver.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert process.errors() == (
        "collecting from trace.dest, latency\n"
        f"events: 2, of no trace: 0, not understood: 0; spans: {len(receiver.spans)}\n"
    )
    assert process.said() == ""


async def test_one_picture_of_caller_and_server(collect, meshkit, used, receiver, server):
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_TRACES_SAMPLER": "always_on"}
    login = {"NATS_URL": server.url, "NATS_USER": "ann", "NATS_PASSWORD": "secret"}
    async with collect("trace.dest", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url):
        code, _, _ = await meshkit("call", "sum", **login, **traced)
        assert code == 0
    by_id = {span.span_id: (who, span) for who, span in receiver.spans}
    ((_, passed),) = [(who, span) for who, span in by_id.values() if who == "nats-server"]
    who, attempt = by_id[passed.parent_span_id]
    assert who == "meshkit"
    assert attempt.start_time_unix_nano <= passed.start_time_unix_nano + 1_000_000
    assert len({span.trace_id for _, span in receiver.spans}) == 1


async def test_console(collect, used, receiver):
    async with collect("trace.dest", "latency", "--console") as process:
        await used()
        await until(lambda: len(process.said().splitlines()) == 4)
    of = "trace 0af7651916cd43dd8448eb211c80319c span b7ad6b7169203331"
    said = process.said()
    assert f"{of}: message to sum\n" in said
    assert 'Client "ann" cid:' in said
    assert f"{of}: latency " in said
    assert ", status 200, answered by ann\n" in said
    assert receiver.spans == []


@pytest.mark.parametrize(
    ("console", "said", "where"),
    [
        (False, {}, "http://localhost:4318/v1/traces"),
        (True, {}, None),
        (True, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:1"}, "http://here:1/v1/traces"),
    ],
)
def test_where_spans_go(monkeypatch, console, said, where):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    exporter = _exporter(console=console)
    assert getattr(exporter, "_endpoint", None) == where
    if exporter is not None:
        exporter.shutdown()


async def test_who_may_not_publish_there_is_warned(collect):
    async with collect("trace.dest", "--console", user="bob") as process:
        pass
    assert (
        "this connection's user may not publish to trace.dest. If that is the account's msg_trace"
        in process.errors()
    )


async def test_who_may_not_listen_there_is_told(collect):
    async with collect("trace.dest", "--console", user="dan") as process:
        assert process.returncode == 1
    assert "NATS does not let this connection's user subscribe" in process.errors()


async def test_a_subject_that_is_none(meshkit):
    code, _, err = await meshkit("collect", "a..b")
    assert code == 2
    assert "subject 'a..b' has an empty token" in err
