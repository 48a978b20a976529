"""The fast path: what is its own; all that holds on both ways is shown by the other tests, run both ways."""

import asyncio
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import BadSubjectError
from support import until

from meshkit import Service, connect
from meshkit.headers import render
from meshkit.transport import fast
from meshkit.transport.client import GuardedClient
from meshkit.transport.server import EmbeddedServer


@pytest.fixture(autouse=True)
def on_the_fast_path(monkeypatch):
    monkeypatch.delenv("MESHKIT_FAST_PATH", raising=False)


PAYLOADS = st.binary(max_size=40) | st.sampled_from(
    [b"\r\n", b"MSG cut 1 5\r\nhello\r\n", b"PING\r\n", b"\x00" * 5000]
)
HEADS = st.just(b"") | st.dictionaries(
    st.sampled_from(["A", "Mesh-Timeout"]), st.sampled_from(["", "1", "x y"])
).map(render)


async def test_messages_arrive_however_they_are_cut(mesh):
    heard = []
    interest = await mesh.transport.subscribe("cut.>", heard.append)
    number = interest.subscription._id
    wire = mesh.transport._client._wire

    def on_the_wire(subject, reply, head, payload):
        words = b" ".join(word for word in (subject, b"%d" % number, reply) if word)
        if not head:
            return b"MSG %b %d\r\n%b\r\n" % (words, len(payload), payload)
        block = b"NATS/1.0%b\r\n\r\n" % head
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (words, len(block), len(block) + len(payload), block, payload)

    messages = st.tuples(
        st.sampled_from([b"cut.a", b"cut.\xff"]), st.sampled_from([b"", b"_INBOX.x"]), HEADS, PAYLOADS
    )

    @settings(deadline=None)
    @given(
        st.lists(messages, max_size=6), st.lists(st.integers(0, 10_000)), st.sampled_from([b"", b"+OK\r\n"])
    )
    def arrive(sent, cuts, between):
        heard.clear()
        data = between.join(on_the_wire(*message) for message in sent)
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            wire.data_received(data[start:end])
        assert [
            (one.subject, one.reply, one.head.removesuffix(b"\r\n\r\n"), one.payload) for one in heard
        ] == [
            (subject.decode(errors="replace"), reply.decode(), head, payload)
            for subject, reply, head, payload in sent
        ]

    arrive()
    await mesh.transport.flush()


async def test_a_large_message_arrives_whole(proxy):
    async with connect(proxy.url) as mesh:
        heard = asyncio.Queue()
        await mesh.transport.subscribe("large", heard.put_nowait)
        payload = bytes(range(256)) * 4000
        await mesh.publish("large", payload, headers={"A": "b"})
        message = await heard.get()
        assert (message.payload, message.headers) == (payload, {"A": "b"})


async def test_order_is_kept_with_and_without_headers(mesh):
    heard = []
    await mesh.transport.subscribe("order", lambda message: heard.append(int(message.payload)))
    for number in range(5000):
        await mesh.publish("order", number, headers={"A": "b"} if number % 3 else None)
    await mesh.transport.flush()
    assert heard == list(range(5000))


async def test_jetstream_of_nats_py_works_beside_it(mesh):
    streams = mesh.transport._client.jetstream()
    await streams.add_stream(name="BESIDE", subjects=["beside.>"])
    try:
        for number in range(20):
            await streams.publish("beside.it", b"%d" % number)
        consumer = await streams.pull_subscribe("beside.>", "all")
        fetched = await consumer.fetch(20, timeout=2)
        assert [int(message.data) for message in fetched] == list(range(20))
        pushed = asyncio.Queue()
        await streams.subscribe("beside.>", cb=pushed.put, ordered_consumer=True)
        async with asyncio.timeout(5):
            assert [int((await pushed.get()).data) for _ in range(20)] == list(range(20))
    finally:
        await streams.delete_stream("BESIDE")


@pytest.mark.parametrize(
    "said",
    [
        b"NONSENSE\r\n",
        b"\r\n",
        b"MSG a b c\r\n",
        b"HMSG a 1 x 2\r\n",
        b"MSG\r\n",
        b"INFO {\r\n",
        b"INFO " + b"[" * 100_000 + b"\r\n",
        b"x" * 2_000_000,
        b"MSG alive SID -19\r\n",  # from behind the line, and a line break, it would begin again
        b"MSG alive SID -1\r\nx\r\n",
        b"HMSG alive SID 99 5\r\nhello\r\n",
        b"HMSG alive SID -3 5\r\nhello\r\n",
    ],
)
async def test_what_is_not_the_protocol_ends_the_connection_and_not_the_client(proxy, said):
    heard = []

    def take(message):
        heard.append(message.payload)
        if len(heard) > 100:
            pytest.fail("the same again and again")

    async with connect(proxy.url) as mesh:
        interest = await mesh.transport.subscribe("alive", take)
        await mesh.transport.flush()
        number = b"%d" % interest.subscription._id
        assert len(number) == 1
        proxy.inject(said.replace(b"SID", number))
        await until(lambda: proxy.connections == 2 and mesh.transport.is_connected)
        await mesh.publish("alive", b"still here")
        await until(lambda: heard)
    assert heard == [b"still here"]


async def test_a_refused_subscription_leaves_nobody_to_take_the_messages_of_the_next(mesh):
    taken, own = [], asyncio.Queue()
    with pytest.raises(BadSubjectError):
        await mesh.transport.subscribe("white space", taken.append)
    await mesh.transport._client.subscribe("next", cb=own.put)
    await mesh.publish("next", b"x")
    await until(lambda: taken or not own.empty())
    assert taken == []


async def test_a_request_given_up_while_the_socket_is_full_is_not_sent_later(proxy, nats_server):
    heard = []
    async with connect(nats_server.url) as listener, connect(proxy.url) as mesh:
        await listener.transport.subscribe("full.*", lambda message: heard.append(message.subject))
        await listener.transport.flush()
        await proxy.stall(mesh)
        given_up, kept = (
            asyncio.create_task(mesh.call(subject, timeout=60)) for subject in ("full.given_up", "full.kept")
        )
        await until(lambda: len(mesh.transport._waiting) == 2)
        await mesh.publish("full.event")
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert heard == []
        proxy.release()
        await mesh.transport.flush()
        await listener.transport.flush()
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)
    assert heard == ["full.kept", "full.event"]


async def test_a_server_that_cuts_off_a_slow_consumer_is_connected_to_again(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("max_pending: 1MB\nwrite_deadline: 100ms")
    with EmbeddedServer(config=config) as server:
        async with connect(server.url) as slow, connect(server.url) as flood:
            heard = []
            await slow.transport.subscribe("flood", lambda _message: (heard.append(1), time.sleep(0.001)))
            await slow.transport.flush()
            client = slow.transport._client.client_id
            async with asyncio.timeout(30):
                while slow.transport._client.client_id == client:
                    await flood.publish("flood", b"x" * 100_000)
            await until(lambda: slow.transport.is_connected)
            before = len(heard)
            await flood.publish("flood", b"after")
            await until(lambda: len(heard) > before)


async def test_another_version_of_nats_py_is_used_by_its_public_interface(monkeypatch, nats_server, caplog):
    monkeypatch.setattr(fast, "__version__", "9.1.0")
    monkeypatch.setattr(fast, "PROBLEM", fast._problem())
    await works_plainly(nats_server)
    assert "nats-py 9.1.0 is none of 2.16.x, which it is proved with: going on by its public" in caplog.text


async def test_a_nats_py_that_lacks_something_is_used_by_its_public_interface(
    monkeypatch, nats_server, caplog
):
    monkeypatch.setattr(fast, "_CLIENT", (*fast._CLIENT, "_gone"))
    monkeypatch.setattr(fast, "PROBLEM", fast._problem())
    await works_plainly(nats_server)
    assert "has no _gone: going on by its public interface, which is slower" in caplog.text


async def test_it_can_be_switched_off(monkeypatch, nats_server, caplog):
    monkeypatch.setenv("MESHKIT_FAST_PATH", "off")
    await works_plainly(nats_server)
    assert not caplog.records


async def works_plainly(nats_server):
    async with connect(nats_server.url) as mesh:
        assert type(mesh.transport._client) is GuardedClient
        heard = asyncio.Queue()
        await mesh.transport.subscribe("plain", heard.put_nowait)
        await mesh.publish("plain", "x", headers={"A": "b"})
        assert (await heard.get()).headers == {"A": "b"}


async def test_tls_is_on_it(tls):
    server, folder = tls
    async with connect(
        f"tls://127.0.0.1:{server.port}",
        tls_ca=folder / "ca.pem",
        tls_cert=folder / "client.pem",
        tls_key=folder / "client.key",
    ) as mesh:
        assert type(mesh.transport._client._wire.transport).__name__ == "_SSLProtocolTransport"
        heard = asyncio.Queue()
        await mesh.transport.subscribe("secret", heard.put_nowait)
        await mesh.publish("secret", b"x" * 300_000)
        assert len((await heard.get()).payload) == 300_000


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": True}), ("asyncio", {"use_uvloop": False})],
    ids=["uvloop", "asyncio"],
)
async def test_a_burst_is_taken_in_turns_and_none_of_it_dropped(nats_server, anyio_backend):
    """More than an instance keeps: uvloop would read all of it before the first task has run."""
    heard = []
    listener = Service("listener")

    @listener.subscribe("burst")
    async def on(number: int) -> None:
        heard.append(number)

    async with connect(nats_server.url) as sender, connect(nats_server.url) as mesh, mesh.serve(listener):
        for number in range(50_000):
            await sender.publish("burst", number)
        sender.transport._client._write()
        time.sleep(0.3)  # noqa: ASYNC251 # until the server has sent it all, and nothing of it is read
        await until(lambda: len(heard) == 50_000, 30)
    assert heard == list(range(50_000))
