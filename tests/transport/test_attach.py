"""Reply subjects that stay: all that arrives on one goes to whoever has attached itself."""

import asyncio

from support import until

from meshkit import ConnectionLost, Forbidden, connect
from meshkit.headers import NO_RESPONDERS
from meshkit.transport.server import EmbeddedServer


class Sink:
    """Takes so many messages."""

    def __init__(self, wanted=1000):
        self.wanted = wanted
        self.taken = []
        self.error = None

    def done(self):
        return len(self.taken) >= self.wanted or self.error is not None

    def set_result(self, message):
        self.taken.append(message.payload)

    def set_exception(self, error):
        self.error = error


async def count(mesh, subject):
    """Whoever asks there gets numbers, as many as the message says."""
    tasks = set()

    async def answer(message):
        for number in range(int(message.payload)):
            await mesh.transport.publish(message.reply, b"%d" % number)

    def take(message):
        task = asyncio.create_task(answer(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await mesh.transport.subscribe(subject, take)
    await mesh.transport.flush()


async def test_all_messages_reach_the_sink_in_order_until_it_is_detached(mesh):
    await count(mesh, "numbers")
    sink, other = Sink(), Sink()
    reply = mesh.transport.attach("numbers", sink)
    assert mesh.transport.attach("numbers", other) != reply
    await mesh.transport.publish("numbers", b"100", reply=reply)
    await until(lambda: len(sink.taken) == 100)
    assert sink.taken == [b"%d" % number for number in range(100)]
    assert await mesh.call("numbers", 1) == 0  # requests go on beside it
    mesh.transport.detach(reply)
    mesh.transport.detach(reply)  # whoever was done twice
    await mesh.transport.publish("numbers", b"5", reply=reply)
    await mesh.call("numbers", 1)
    assert len(sink.taken) == 100
    assert other.taken == []


async def test_who_is_done_gets_nothing_more(mesh):
    await count(mesh, "numbers")
    sink = Sink(wanted=3)
    reply = mesh.transport.attach("numbers", sink)
    await mesh.transport.publish("numbers", b"10", reply=reply)
    await mesh.call("numbers", 1)
    await mesh.transport.flush()
    assert sink.taken == [b"0", b"1", b"2"]


async def test_that_nobody_listens_is_a_message(mesh):
    heads = []
    sink = Sink()
    sink.set_result = lambda message: heads.append(message.head)
    reply = mesh.transport.attach("nobody.here", sink)
    await mesh.transport.publish("nobody.here", b"", reply=reply)
    await until(lambda: heads)
    assert heads[0].startswith(NO_RESPONDERS)


async def test_a_lost_connection_is_told_to_sinks_that_detach_meanwhile(caplog):
    sinks = [Sink(), Sink()]
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh:
            for sink in sinks:
                reply = mesh.transport.attach("x", sink)

                def fail(error, sink=sink, reply=reply):
                    sink.error = error
                    mesh.transport.detach(reply)

                sink.set_exception = fail
            await asyncio.to_thread(server.kill)
            await until(lambda: sinks[1].error)
    assert [type(sink.error) for sink in sinks] == [ConnectionLost] * 2
    assert "ERROR" not in {record.levelname for record in caplog.records}


async def test_a_missing_permission_is_told_to_the_sink(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "accounts { A { users = [ { user: ann, password: secret, permissions: "
        '{ publish: { deny: ["Closed.>"] } } } ] } }'
    )
    with EmbeddedServer(config=config) as server:
        async with connect(server.url, user="ann", password="secret") as mesh:
            sink, other = Sink(), Sink()
            reply = mesh.transport.attach("Closed.door", sink)
            mesh.transport.attach("open.door", other)
            await mesh.transport.publish("Closed.door", b"", reply=reply)
            await until(lambda: sink.error)
            assert isinstance(sink.error, Forbidden)
            assert other.error is None


async def test_what_is_asked_for_a_sink_is_sent_when_the_server_reads_again(proxy, nats_server, clock):
    heard = []
    async with connect(nats_server.url) as other, connect(proxy.url) as mesh:
        await other.transport.subscribe("asked", heard.append)
        await other.transport.flush()
        await proxy.stall(mesh)
        await mesh.transport.publish("asked", b"", reply=mesh.transport.attach("asked", Sink()))
        proxy.release()
        await mesh.transport.flush()
        await other.transport.flush()
    assert len(heard) == 1


async def test_a_sink_that_fails_does_not_end_the_connection(mesh, caplog):
    await count(mesh, "numbers")
    sink = Sink()
    sink.set_result = None
    reply = mesh.transport.attach("numbers", sink)
    await mesh.transport.publish("numbers", b"2", reply=reply)
    assert await mesh.call("numbers", 1) == 0
    assert mesh.transport.is_connected
    assert "an answer of numbers was not handled" in caplog.text
