"""Two traps of an account's `msg_trace`: what its sampler adds to messages, and who may not publish to it."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from support import gated, until

from meshkit import Context, DeadlineExceeded, Forbidden, Service, connect
from meshkit.transport.server import EmbeddedServer

SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
NOT_SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Of a hundred sampled messages it traces all in account A, and two in account B."""
    config = tmp_path_factory.mktemp("traps") / "nats.conf"
    config.write_text("""
        accounts {
          A {
            msg_trace: { dest: "trace.dest", sampling: "100%" }
            users: [
              { user: ann, password: secret }
              { user: bob, password: secret, permissions: { publish: { deny: ["trace.>", "secret"] } } }
            ]
          }
          B { msg_trace: { dest: "trace.dest", sampling: "1%" }, users: [{ user: eve, password: secret }] }
        }""")
    with EmbeddedServer(config=config) as server:
        yield server


@pytest.fixture
async def service():
    service = Service("rooms")
    service.seen = []

    @service.endpoint("rooms.first")
    async def first(ctx: Context) -> None:
        service.seen.append(dict(ctx.headers))
        await ctx.mesh.call("rooms.second")
        await ctx.mesh.publish("rooms.third")

    @service.endpoint("rooms.second")
    async def second() -> None:
        pass

    @service.subscribe("rooms.third")
    async def third() -> None:
        pass

    @service.endpoint("rooms.items")
    async def items() -> AsyncIterator[int]:
        yield 1

    return service


@pytest.fixture
async def bob(server, service):
    """May not publish to the trace destination."""
    async with (
        connect(server.url, user="ann", password="secret") as ann,
        connect(server.url, user="bob", password="secret") as bob,
        ann.serve(service),
    ):
        yield bob


async def test_that_a_message_was_not_sampled_is_not_handed_on(server, service, proxy_to):
    async with (
        proxy_to(server.port) as proxy,
        connect(proxy.url, user="eve", password="secret") as serving,
        connect(server.url, user="eve", password="secret") as calling,
        serving.serve(service),
    ):
        async with asyncio.timeout(10):
            while not service.seen or "Nats-Trace-Dest" not in service.seen[-1]:
                await calling.call("rooms.first", headers=SAMPLED)
        assert service.seen[-1]["Nats-Trace-Dest"] == "trace disabled"
        await until(lambda: proxy.sent.count(b"PUB rooms.third ") == len(service.seen))
        assert proxy.sent.count(b"PUB rooms.second ") == len(service.seen)
        assert b"traceparent" in proxy.sent
        assert b"nats-trace" not in proxy.sent.lower()


async def call(mesh, **options):
    await mesh.call("rooms.second", **options)


async def read(mesh, timeout=None, **options):
    async for _ in mesh.stream("rooms.items", returns=int, message_timeout=timeout, **options):
        pass


@pytest.mark.parametrize("use", [call, read])
async def test_a_sampled_call_that_is_dropped_says_why(bob, use):
    with pytest.raises(DeadlineExceeded, match=r'in time; this .* publish to "trace\.dest": if '):
        await use(bob, headers=SAMPLED, timeout=0.2)
    await use(bob, headers=NOT_SAMPLED)


async def test_a_call_that_is_late_for_another_reason_does_not(bob, server):
    slow = gated("slow")
    async with connect(server.url, user="ann", password="secret") as ann, ann.serve(slow):
        late = asyncio.create_task(bob.call("slow.wait", headers=NOT_SAMPLED, timeout=0.5))
        await until(lambda: slow.running)
        await bob.publish("rooms.third", headers=SAMPLED)
        with pytest.raises(DeadlineExceeded) as caught:
            await late
    assert bob.transport.denials.unasked == 1
    assert "trace.dest" not in str(caught.value)


async def test_the_log_says_it_of_events(bob, caplog):
    await bob.publish("rooms.third", headers=SAMPLED)
    await bob.transport.flush()
    await until(lambda: "it is the account's msg_trace destination" in caplog.text)
    assert [record.levelno for record in caplog.records if "trace.dest" in record.message] == [
        logging.WARNING
    ]


async def test_a_call_that_is_denied_itself_is_told_apart(bob, caplog):
    with pytest.raises(Forbidden, match="may not publish to 'secret'"):
        await bob.call("secret", headers=NOT_SAMPLED)
    assert "msg_trace" not in caplog.text
