"""A server that says that it is about to end is left before it does, and nothing is lost."""

import asyncio
import contextlib
import os
import re
import signal

import pytest
from support import gated, until

from meshkit import ConnectionLost, DeadlineExceeded, NoResponders, Service, connect
from meshkit.headers import NO_RESPONDERS
from meshkit.transport.interest import Crossing, Interest
from meshkit.transport.server import EmbeddedServer


@pytest.fixture
def cluster(tmp_path):
    """Three servers; the second and the third are told of the first only."""
    servers, routes = [], ""
    with contextlib.ExitStack() as stack:
        for number in range(3):
            config = tmp_path / f"{number}.conf"
            config.write_text(
                f"server_name: s{number}\nlame_duck_grace_period: 10s\nlame_duck_duration: 30s\n"
                f"cluster {{ name: c, listen: '127.0.0.1:-1', routes: [{routes}] }}\n"
            )
            servers.append(stack.enter_context(EmbeddedServer(config=config)))
            stack.callback(servers[-1].kill)  # it would take its ten seconds
            said = re.search(r"route connections on (127.0.0.1:\d+)", servers[0].log.read_text())
            routes = f"nats://{said[1]}"
        yield servers


@pytest.fixture
async def meshes(cluster):
    """Two on the first server, which is to leave, and one on the second; all know all three."""
    async with (
        connect(cluster[0].url) as one,
        connect(cluster[0].url) as two,
        connect(cluster[1].url) as three,
    ):
        for mesh in (one, two, three):
            await until(lambda mesh=mesh: len(mesh.transport._client.servers) == 3)
        yield one, two, three


def say_that_it_ends(server):
    os.kill(server.pid, signal.SIGUSR2)


async def moved(mesh, server):
    """Away from the server, with nothing left on it."""
    transport = mesh.transport
    await until(
        lambda: transport.server_url != server.url and (transport._moving is None or transport._moving.done())
    )


async def test_no_call_is_lost_and_none_is_executed_twice(cluster, meshes):
    leaving, (serving, calling, away) = cluster[0], meshes
    service = Service("numbers")
    executed, answered, numbers = [], [], iter(range(1_000_000))
    gate, enough = asyncio.Event(), asyncio.Event()

    @service.endpoint()
    async def take(number: int) -> int:
        executed.append(number)
        await asyncio.sleep(0.003)
        return number

    @service.endpoint()
    async def long() -> str:
        await gate.wait()
        return "done"

    async def ask(mesh):
        while not enough.is_set():
            number = next(numbers)
            assert await mesh.call(take, number) == number
            answered.append(number)

    async with serving.serve(service):
        in_flight = [asyncio.create_task(mesh.call(long, timeout=60)) for mesh in (calling, away)]
        load = [asyncio.create_task(ask(mesh)) for mesh in (calling, away) for _ in range(10)]
        await until(lambda: len(answered) > 100)
        say_that_it_ends(leaving)
        for mesh in (serving, calling):
            await moved(mesh, leaving)
        assert leaving.is_running  # before it cut anybody
        leaving.kill()
        since = len(answered)
        await until(lambda: len(answered) > since + 100)
        enough.set()
        gate.set()
        await asyncio.gather(*load)
        assert await asyncio.gather(*in_flight) == ["done"] * 2
    assert sorted(executed) == sorted(answered)


@pytest.mark.parametrize("queue", ["", "q"])
async def test_events_come_once_and_those_for_all_in_order(cluster, meshes, queue):
    leaving, (listening, beside, away) = cluster[0], meshes
    heard, published = [], []
    enough = asyncio.Event()
    await listening.transport.subscribe("news", lambda message: heard.append(message.payload), queue)
    await listening.transport.flush()
    await asyncio.sleep(0.1)  # until the other servers know

    async def publish(mesh, name):
        while not enough.is_set():
            published.append(b"%b%d" % (name, len(published)))
            await mesh.transport.publish("news", published[-1])
            await asyncio.sleep(0.001)

    publishing = [asyncio.create_task(publish(*who)) for who in ((beside, b"beside"), (away, b"away"))]
    say_that_it_ends(leaving)
    for mesh in (listening, beside):
        await moved(mesh, leaving)
    await until(lambda: len(heard) > 1000)
    enough.set()
    await asyncio.gather(*publishing)
    await until(lambda: len(heard) >= len(published))
    assert sorted(heard) == sorted(published)
    if not queue:
        for name in (b"beside", b"away"):
            assert [one for one in heard if name in one] == [one for one in published if name in one]


async def test_streams_go_on(cluster, meshes):
    leaving, (serving, reading, away) = cluster[0], meshes
    service = Service("counter")

    @service.endpoint()
    async def count(to: int):
        for number in range(to):
            yield number
            if number % 10 == 0:
                await asyncio.sleep(0.005)

    async def read(mesh):
        return [number async for number in mesh.stream("counter.count", 4000, timeout=60)]

    async with serving.serve(service):
        streams = [asyncio.create_task(read(mesh)) for mesh in (reading, away) for _ in range(3)]
        await asyncio.sleep(0.1)
        say_that_it_ends(leaving)
        for mesh in (serving, reading):
            await moved(mesh, leaving)
        leaving.kill()
        assert not any(stream.done() for stream in streams)
        for items in await asyncio.gather(*streams):
            assert items == list(range(4000))


async def test_one_server_after_the_other(cluster, meshes):
    serving, _, calling = meshes
    service = gated()
    async with serving.serve(service):
        call = asyncio.create_task(calling.call("gated.wait", timeout=60))
        await until(lambda: service.running)
        for server in cluster[:2]:
            say_that_it_ends(server)
            for mesh in (serving, calling):
                await moved(mesh, server)
        assert serving.transport.server_url == calling.transport.server_url == cluster[2].url
        service.gate.set()
        assert await call == "done"


async def is_moving(mesh):
    await until(lambda: not mesh.transport._steady.is_set())


async def refused(mesh, subject):
    """When every server knows that nobody listens."""
    async with asyncio.timeout(5):
        while True:
            try:
                await mesh.call(subject, timeout=0.1)
            except NoResponders:
                return
            except DeadlineExceeded:
                pass


async def test_a_service_that_comes_meanwhile(cluster, meshes):
    leaving, (mesh, _, away) = cluster[0], meshes
    service = gated()
    service.gate.set()
    say_that_it_ends(leaving)
    await is_moving(mesh)
    async with mesh.serve(service):
        await moved(mesh, leaving)
        assert await away.call("gated.wait") == "done"
    await refused(away, "gated.wait")


async def test_a_service_that_leaves_meanwhile(cluster, meshes):
    leaving, (mesh, beside, away) = cluster[0], meshes
    service = gated()
    async with mesh.serve(service):
        call = asyncio.create_task(away.call("gated.wait", timeout=60))
        await until(lambda: service.running)
        say_that_it_ends(leaving)
        await is_moving(mesh)
        asyncio.get_running_loop().call_later(0.2, service.gate.set)
    assert await call == "done"
    for other in (beside, away):
        await moved(other, leaving)
        await refused(other, "gated.wait")


async def test_interests_that_begin_and_end_meanwhile(cluster, meshes):
    mesh, _, away = meshes
    heard, ended, tasks = [], [], []
    interest = await mesh.transport.subscribe("ended", ended.append)
    hand_over = mesh.transport._hand_over

    async def meanwhile(*clients_and_crossings):
        tasks.append(asyncio.create_task(interest.close()))
        tasks.append(asyncio.create_task(mesh.transport.subscribe("begun", heard.append)))
        await hand_over(*clients_and_crossings)

    mesh.transport._hand_over = meanwhile
    say_that_it_ends(cluster[0])
    await moved(mesh, cluster[0])
    await asyncio.gather(*tasks)
    await mesh.transport.flush()
    await asyncio.sleep(0.1)  # until the other servers know
    for subject in ("ended", "begun"):
        await away.publish(subject)
    await until(lambda: heard)
    assert ended == []


async def test_a_server_that_cuts_too_early(cluster, meshes):
    leaving, (listening, _, away) = cluster[0], meshes
    heard = []
    await listening.transport.subscribe("news", lambda message: heard.append(message.payload))
    say_that_it_ends(leaving)
    await until(lambda: listening.transport.server_url != leaving.url)
    leaving.kill()
    await moved(listening, leaving)
    await asyncio.sleep(0.5)
    for number in range(10):
        await away.transport.publish("news", b"%d" % number)
    await until(lambda: len(heard) >= 10)
    await away.transport.flush()
    await listening.transport.flush()
    assert heard == [b"%d" % number for number in range(10)]


async def test_a_connection_that_is_closed_meanwhile_leaves_no_task(cluster):
    before = asyncio.all_tasks()
    async with connect(cluster[0].url) as mesh:
        await until(lambda: len(mesh.transport._client.servers) == 3)
        say_that_it_ends(cluster[0])
        await is_moving(mesh)
    assert mesh.transport._client.is_closed
    await until(lambda: asyncio.all_tasks() <= before)


# Nowhere to go


@pytest.fixture
def server():
    with EmbeddedServer() as server:
        yield server
        server.kill()


async def test_without_another_server_all_is_as_it_was(server):
    service = gated()
    async with connect(server.url) as mesh, mesh.serve(service):
        call = asyncio.create_task(mesh.call("gated.wait", timeout=60))
        await until(lambda: service.running)
        say_that_it_ends(server)
        await until(lambda: mesh.transport._moving and mesh.transport._moving.done())
        service.gate.set()
        assert await call == "done"
        server.kill()
        await until(lambda: not mesh.transport.is_connected)
        server.restart()
        await until(lambda: mesh.transport.is_connected)
        assert await mesh.call("gated.wait") == "done"


async def test_another_that_takes_nobody_is_tried_until_the_end(server, unused_port, caplog):
    before = asyncio.all_tasks()
    service = gated()
    async with connect([server.url, f"nats://127.0.0.1:{unused_port}"]) as mesh, mesh.serve(service):
        call = asyncio.create_task(mesh.call("gated.wait", timeout=60))
        await until(lambda: service.running)
        say_that_it_ends(server)
        await until(lambda: mesh.transport._moving)
        await asyncio.sleep(0.8)
        assert not mesh.transport._moving.done()
        assert not call.done()
        server.kill()
        with pytest.raises(ConnectionLost):
            await call
        server.restart()
        await until(lambda: mesh.transport.is_connected)
        service.gate.set()
        assert await mesh.call("gated.wait") == "done"
        say_that_it_ends(server)
        await asyncio.sleep(0.8)
    await until(lambda: asyncio.all_tasks() <= before)
    assert "there was no way to another" in caplog.text


@pytest.mark.parametrize("goes_on", [True, False])
async def test_an_attempt_that_passes_over_a_cancellation(server, nats_server, unused_port, goes_on):
    """As asyncio.wait_for does until Python 3.12."""
    before = asyncio.all_tasks()
    nowhere = f"nats://127.0.0.1:{unused_port}"
    async with connect([server.url, nowhere]) as mesh:
        dial, dialled = mesh.transport._dial, []

        async def pass_over(client, servers):
            with contextlib.suppress(asyncio.CancelledError):
                await dial(client, servers)
            dialled.append(client)
            client._server_pool.clear()
            await dial(client, [nowhere if goes_on else nats_server.url])

        mesh.transport._dial = pass_over
        say_that_it_ends(server)
        await until(lambda: mesh.transport._moving)
        await asyncio.sleep(0.6)
        server.kill()
        await until(mesh.transport._moving.done)
        await asyncio.sleep(0.3)
        assert dialled[0].is_closed
    await until(lambda: asyncio.all_tasks() <= before)


# What is on two servers for a while


class Client:
    """Stands in for a connection: `to` is where its messages go."""

    async def listen(self, subject, queue, deliver):
        self.to = deliver
        return self

    def redirect(self, subscription, deliver):
        self.to = deliver

    def send(self, *numbers, head=b""):
        for number in numbers:
            self.to(b"x", b"", head, b"%d" % number)


@pytest.fixture
async def crossing():
    first, second, heard = Client(), Client(), []

    async def leave(interest, drain): ...

    interest = Interest("x", "", lambda *message: heard.append(int(message[3])), leave)
    await interest.begin(first)
    crossing = Crossing(interest, second)
    await crossing.begin()
    return crossing, first, second, heard


async def test_what_comes_on_both_is_handed_out_once_in_the_order_of_the_first(crossing):
    crossing, first, second, heard = crossing
    first.send(1)  # before its sender knew of the second
    second.send(2, 3)
    first.send(2, 3, 4)
    second.send(4, 5)
    assert heard == [1, 2, 3, 4]
    crossing.release()
    second.send(6)
    assert heard == [1, 2, 3, 4, 5, 6]


async def test_a_copy_that_comes_late_is_dropped_and_what_is_sent_twice_is_not(crossing):
    crossing, first, second, heard = crossing
    second.send(1)
    first.send(1, 1, 2)
    crossing.release()
    second.send(1, 2, 1)
    assert heard == [1, 1, 2, 1]
    crossing.settle()
    second.send(2)
    assert heard == [1, 1, 2, 1, 2]


async def test_that_nobody_listens_is_said_at_once(crossing):
    crossing, _first, second, heard = crossing
    second.send(1, head=NO_RESPONDERS)
    assert heard == [1]


async def test_who_gives_up_stays_on_the_first(crossing):
    crossing, first, second, heard = crossing
    first.send(1)
    second.send(1)
    crossing.give_up()
    first.send(1, 2)
    assert heard == [1, 1, 2]
