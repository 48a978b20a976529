"""The path of a message: what real servers of a cluster, behind a gateway and on a leaf node tell of it."""

import asyncio
from contextlib import AsyncExitStack

import msgspec
import network
import pytest

from meshkit import BadReply, DeadlineExceeded, Forbidden, MeshError, connect
from meshkit.telemetry.paths.events import Event
from meshkit.telemetry.paths.hops import Egress, Mapping, ServiceImport, Stored, StreamExport
from meshkit.telemetry.paths.path import MISSING, Path, put_together


@pytest.fixture
async def meshes(servers):
    """Connections, by the name of their server, and of the user where it is not ann."""
    async with AsyncExitStack() as stack:

        async def meet(server, user="ann"):
            login = {"user": user, "password": network.PASSWORD} if server is not servers.leaf else {}
            return await stack.enter_async_context(connect(server.url, name=f"client of {user}", **login))

        yield meet


async def path_until(mesh, subject, is_it, **options):
    """Servers learn of each other, and of who listens, within a second or two."""
    async with asyncio.timeout(15):
        while not is_it(path := await mesh.trace_path(subject, **options)):
            pass
    return path


async def listen(mesh, subject, queue=""):
    got = []
    await mesh.transport.subscribe(subject, got.append, queue)
    await mesh.transport.flush()
    return got


def onward(hop):
    """The one server that a message went on to, and how it left for it."""
    (step,) = (step for step in hop.steps if isinstance(step, Egress) and step.hop)
    return step, step.hop


def reaches(count):
    return lambda path: path.reached == count


async def test_a_route_of_a_cluster(servers, meshes):
    sending, receiving = await meshes(servers.routers[0]), await meshes(servers.routers[1])
    got = await listen(receiving, "hello", "workers")
    path = await path_until(sending, "hello", reaches(1), message={"a": 1})
    assert (path.complete, path.errors, path.hidden, path.delivered) == (True, (), (), False)
    assert path.egress == {"router": 1, "client": 1}
    origin = path.origin
    assert (origin.server, origin.cluster, origin.kind, origin.name) == (
        "s0",
        "near",
        "client",
        "client of ann",
    )
    assert (origin.account, origin.subject, origin.transit) == ("A", "hello", None)
    left, other = onward(origin)
    assert (left.kind, left.name) == ("router", "s1")
    assert (other.server, other.kind, other.name) == ("s1", "router", "s0")
    (end,) = other.steps
    assert (end.kind, end.subscription, end.queue, end.name) == (
        "client",
        "hello",
        "workers",
        "client of ann",
    )
    # One machine, so that the clocks are one: nothing comes before it has left.
    assert 0 <= left.after < 1
    assert 0 <= other.transit < 1
    assert 0 <= end.after < 1
    assert got == []


async def test_gateway_and_leaf_node(servers, meshes):
    sending = await meshes(servers.routers[0])
    for server in (servers.routers[1], servers.leaf, servers.far):
        await listen(await meshes(server), "everywhere")
    path = await path_until(sending, "everywhere", reaches(3))
    assert path.egress == {"router": 2, "gateway": 1, "leafnode": 1, "client": 3}
    by_server = {step.name: step.hop for step in path.origin.steps}
    assert by_server["far"].kind == "gateway"
    _, leaf = onward(by_server["s2"])
    assert (leaf.server, leaf.kind, leaf.account) == ("leaf", "leafnode", "$G")


async def test_a_subject_mapping(servers, meshes):
    sending = await meshes(servers.routers[0])
    await listen(sending, "hello")
    path = await path_until(sending, "old.hello", reaches(1))
    mapping, end = path.origin.steps
    assert isinstance(mapping, Mapping)
    assert mapping.to == end.subscription == "hello"
    assert mapping.after <= end.after


async def test_a_service_import_that_lets_traces_in(servers, meshes):
    sending = await meshes(servers.routers[0])
    await listen(await meshes(servers.routers[1], "eve"), "sum.add")
    path = await path_until(sending, "add", reaches(1))
    service_import = path.origin.steps[0]
    assert isinstance(service_import, ServiceImport)
    assert (service_import.source, service_import.to, service_import.account) == ("add", "sum.add", "B")
    assert path.hidden == ()


async def test_a_service_import_that_does_not(servers, meshes):
    await listen(await meshes(servers.routers[0], "eve"), "sum.hidden")
    path = await (await meshes(servers.routers[0])).trace_path("sum.hidden")
    assert (path.hidden, path.reached, path.errors) == (("B",), 0, ())


async def test_a_stream_export(servers, meshes):
    sending = await meshes(servers.routers[0], "eve")
    await listen(await meshes(servers.routers[0]), "ticker")
    path = await path_until(sending, "ticker", reaches(1))
    export, end = path.origin.steps
    assert isinstance(export, StreamExport)
    assert (export.account, export.to, end.account) == ("A", "ticker", "A")


async def test_a_denied_subject(servers, meshes):
    path = await (await meshes(servers.routers[0], "bob")).trace_path("secret.room")
    error = 'Permissions Violation for Publish to "secret.room"'
    assert (path.origin.error, path.errors) == (error, (f"s0: {error}",))
    assert (path.reached, path.complete) == (0, True)


async def test_nobody_listens(servers, meshes):
    path = await (await meshes(servers.routers[0])).trace_path("nobody.is.here")
    assert (path.reached, path.errors, path.egress, path.complete) == (0, (), {}, True)


async def test_streams_of_jetstream(servers, meshes):
    mesh = await meshes(servers.leaf)
    for name, options in (
        ("KEPT", {}),
        ("WANTED", {"retention": "interest"}),
        ("SMALL", {"max_msg_size": 9}),
    ):
        config = {"name": name, "subjects": [f"{name}.>"], "storage": "memory", **options}
        await mesh.call(f"$JS.API.STREAM.CREATE.{name}", config, returns=bytes)
    paths = [await mesh.trace_path(f"{name}.1", "a long text") for name in ("KEPT", "WANTED", "SMALL")]
    kept, unwanted, refused = (path.origin.steps[0] for path in paths)
    assert isinstance(kept, Stored)
    assert (kept.stream, kept.subject, paths[0].reached, paths[0].egress) == (
        "KEPT",
        "KEPT.1",
        1,
        {"jetstream": 1},
    )
    assert (unwanted.no_interest, paths[1].reached) == (True, 0)
    assert refused.error == "maximum payload exceeded"
    assert paths[2].errors == ("leaf: maximum payload exceeded",)
    info = msgspec.json.decode(await mesh.call("$JS.API.STREAM.INFO.KEPT", returns=bytes))
    assert info["state"]["messages"] == 0


async def test_delivered_if_asked(servers, meshes):
    mesh = await meshes(servers.routers[0])
    got = await listen(mesh, "hello")
    path = await mesh.trace_path("hello", "hi", headers={"X-Room": "12"}, deliver=True)
    assert (path.reached, path.delivered) == (1, True)
    (message,) = got
    assert message.payload == b'"hi"'
    assert message.headers["X-Room"] == "12"


async def test_it_is_json(servers, meshes):
    path = await (await meshes(servers.routers[0])).trace_path("nobody.is.here")
    assert msgspec.json.decode(msgspec.json.encode(path), type=Path) == path


async def test_events_that_are_compressed(servers, meshes):
    mesh = await meshes(servers.routers[0])
    await listen(mesh, "hello")
    assert (await mesh.trace_path("hello", headers={"Accept-Encoding": "gzip"})).reached == 1
    with pytest.raises(BadReply, match="snappy"):
        await mesh.trace_path("hello", headers={"Accept-Encoding": "snappy"})


async def test_whoever_may_not_publish_to_an_inbox_is_told(servers, meshes):
    with pytest.raises(Forbidden, match=r"'_INBOX\.\w+', where the servers tell"):
        await (await meshes(servers.routers[0], "cid")).trace_path("hello", timeout=60)


async def test_a_server_that_is_too_old(mesh, monkeypatch):
    monkeypatch.setattr(type(mesh.transport), "server_version", "2.10.29")
    with pytest.raises(MeshError, match=r"is 2\.10\.29; servers tell the path of a message since 2.11"):
        await mesh.trace_path("hello")


async def test_silence(mesh, monkeypatch):
    monkeypatch.setattr("meshkit.telemetry.paths.path.DESTINATION", "X-Unknown")
    with pytest.raises(DeadlineExceeded, match=r"in 0\.1 s"):
        await mesh.trace_path("hello", timeout="100ms")
    assert mesh.transport._waiting == {}


@pytest.mark.parametrize(
    ("subject", "options", "error"),
    [
        ("hello", {"headers": {"nats-trace-dest": "mine"}}, "nats-trace-dest is set by the trace itself"),
        ("hello.*", {}, "wildcard"),
        ("hello", {"timeout": 0}, "timeout"),
    ],
)
async def test_what_cannot_be_traced(mesh, subject, options, error):
    with pytest.raises(ValueError, match=error):
        await mesh.trace_path(subject, **options)


# What the servers tell, put together


def told(server, hop="", *, to=(), kind=1, of="", error=""):
    """What a server tells: its place in the tree, and those of the servers that the message went on to."""
    events = [{"type": "in", "ts": "2026-11-22T12:00:00.000000001Z", "kind": kind, "name": of, "acc": "A"}]
    events[0] |= {"subj": "x", "error": error} if error else {"subj": "x"}
    events += [
        {"type": "eg", "ts": "2026-11-22T12:00:00.0001Z", "kind": 1, "name": name, "hop": place}
        for name, place in to
    ]
    events.append({"type": "of the future", "ts": "2026-11-22T12:00:00.0002Z", "what": 1})
    request = {"header": {"Nats-Trace-Hop": [hop]} if hop else {}, "msgsize": 9}
    event = {"server": {"name": server, "flags": 3}, "request": request, "events": events}
    return hop, msgspec.convert(event, Event, strict=False)


def tree(hop):
    return hop.server, [tree(step.hop) for step in hop.steps if isinstance(step, Egress) and step.hop]


def test_all_told():
    events = dict(
        [
            told("a", to=[("b", "1"), ("c", "2")], kind=0),
            told("b", "1", to=[("d", "1.1")], of="a"),
            told("c", "2", of="a"),
            told("d", "1.1", of="b"),
        ]
    )
    path = put_together("x", events, delivered=False)
    assert tree(path.origin) == ("a", [("b", [("d", [])]), ("c", [])])
    assert path.complete


@pytest.mark.parametrize("missing", ["", "1", "1.1"])
def test_a_server_that_said_nothing_has_its_place(missing):
    events = dict(
        [
            told("a", to=[("b", "1"), ("c", "2")], kind=0),
            told("b", "1", to=[("d", "1.1")], of="a"),
            told("c", "2", of="a"),
            told("d", "1.1", of="b"),
        ]
    )
    name = events.pop(missing).server.name
    path = put_together("x", events, delivered=False)
    assert tree(path.origin) == ("a", [("b", [("d", [])]), ("c", [])])
    assert not path.complete
    assert path.errors == (f"{name}: {MISSING}",)


def test_two_in_a_row_that_said_nothing():
    path = put_together("x", dict([told("d", "1.1", of="b")]), delivered=False)
    assert tree(path.origin) == ("", [("b", [("d", [])])])


def test_what_leads_in_circles_is_not_followed():
    hop, event = told("a", to=[("b", "1")], kind=0)
    _, mischief = told("b", "1", to=[("a", ""), ("b", "1"), ("c", "2")], of="a")
    path = put_together("x", {hop: event, "1": mischief}, delivered=False)
    assert tree(path.origin) == ("a", [("b", [])])


def test_a_server_behind_that_is_too_old_is_no_failure():
    hop, event = told("a", to=[("b", "")], kind=0)
    text = (
        "Message delivered but remote does not support message tracing so no trace event generated from there"
    )
    events = [*event.events[:1], msgspec.structs.replace(event.events[1], error=text)]
    path = put_together("x", {hop: msgspec.structs.replace(event, events=events)}, delivered=True)
    assert (path.errors, path.complete) == ((), True)
    assert path.origin.steps[0].error == text
