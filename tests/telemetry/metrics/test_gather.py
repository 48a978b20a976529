import asyncio
from contextlib import AsyncExitStack

import nats
import nats.micro
import pytest
from nats.micro.request import ServiceError
from support import gated, until, values

from meshkit import Context, NotFound, Service, connect
from meshkit.telemetry.metrics import gather
from meshkit.telemetry.metrics.gather import Gatherer
from meshkit.telemetry.metrics.monitoring import Monitoring
from meshkit.telemetry.report import STATS
from meshkit.transport.server import EmbeddedServer


@pytest.fixture
async def server():
    """A nats-server of the test's own: everybody on it is counted."""
    with EmbeddedServer(monitor=0) as server:
        yield server


@pytest.fixture
async def gatherer(server):
    async with connect(server.url, name="gatherer") as mesh:
        yield Gatherer(mesh.transport, Monitoring([]))


async def gathered(gatherer):
    return values(await gatherer.page())


def guest_and_rooms():
    rooms, guest = Service("rooms"), Service("guest")

    @rooms.endpoint("rooms.{number}")
    async def book(number: int) -> int:
        if number == 13:
            raise NotFound("no such room")
        return number

    @guest.endpoint()
    async def stay(number: int, ctx: Context) -> int:
        return await ctx.mesh.call(book.at(number=number))

    return rooms, guest


async def test_all_instances_are_gathered_with_what_they_serve_and_call(server, gatherer):
    rooms, guest = guest_and_rooms()
    async with AsyncExitStack() as stack:
        for service, name in ((rooms, "r1"), (rooms, "r2"), (guest, "g1")):
            mesh = await stack.enter_async_context(connect(server.url))
            await stack.enter_async_context(mesh.serve(service, instance_id=name))
        caller = await stack.enter_async_context(connect(server.url))
        for number in range(20):
            await caller.call("guest.stay", number) if number != 13 else None
        with pytest.raises(NotFound):
            await caller.call("guest.stay", 13)
        found = await gathered(gatherer)
    answered = [
        value
        for name, value in found.items()
        if name.startswith('rpc_server_call_duration_seconds_count{service_name="rooms"')
        and "error" not in name
    ]
    assert sum(answered) == 19
    assert len(answered) == 2
    calls = (
        'rpc_client_call_duration_seconds_count{service_name="guest",service_instance_id="g1",'
        'rpc_system_name="nats",rpc_method="rooms.*"'
    )
    assert found[calls + "}"] == 19
    assert found[calls + ',error_type="NotFound"}'] == 1
    assert found["meshkit_gather_up"] == 1
    assert found["meshkit_gather_instances"] == 3
    assert found["meshkit_gather_other_instances"] == 0
    assert found["meshkit_gather_unreadable"] == 0
    assert 0.3 < found["meshkit_gather_duration_seconds"] < 3


async def test_services_of_other_clients_are_there_with_what_they_count(server, gatherer):
    client = await nats.connect(server.url)

    async def answer(request):
        if request.data == b"fail":
            raise ServiceError("500", "failed")
        await asyncio.sleep(0.01)
        await request.respond(b"fine")

    service = await nats.micro.add_service(client, name="billing", version="2.0.0")
    await service.add_endpoint(name="pay", handler=answer, subject="billing.pay")
    # Of the same subject, in a group of its own.
    await service.add_endpoint(name="audit", handler=answer, subject="billing.pay", queue_group="audit")
    for payload in (b"1", b"2", b"fail"):
        await client.request("billing.pay", payload)
    await asyncio.sleep(0.05)
    async with connect(server.url) as mesh, mesh.serve(gated("own")):
        found = await gathered(gatherer)
    whose = f'{{service_name="billing",service_instance_id="{service.id}"'
    assert found[f'nats_micro_requests_total{whose},rpc_method="billing.pay"}}'] == 6
    assert found[f'nats_micro_errors_total{whose},rpc_method="billing.pay"}}'] == 2
    assert 0.04 < found[f'nats_micro_processing_time_seconds_total{whose},rpc_method="billing.pay"}}'] < 1
    assert f'nats_micro_start_time_seconds{whose},service_version="2.0.0"}}' in found
    assert found["meshkit_gather_other_instances"] == 1
    assert found["meshkit_gather_instances"] == 1
    # What is of meshkit is not there twice.
    assert not any('service_name="own"' in name for name in found if name.startswith("nats_micro"))
    await service.stop()
    await client.close()


async def test_scrapes_that_come_together_share_one_gathering(server, gatherer):
    asked = []
    async with connect(server.url) as mesh:
        await mesh.transport.subscribe(STATS, asked.append)
        await mesh.transport.flush()
        first, second = await asyncio.gather(gatherer.page(), gatherer.page())
        assert first is second
        assert len(asked) == 1
        assert await gatherer.page() is not first
        assert len(asked) == 2


async def test_a_scrape_that_is_given_up_does_not_end_the_others(server, gatherer):
    async with connect(server.url) as mesh, mesh.serve(gated("there")):
        one, other = (asyncio.create_task(gatherer.page()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert 'service_name="there"' in await other


async def test_answers_that_cannot_be_read_are_left_out_and_counted(server, gatherer, caplog):
    async with connect(server.url) as mesh, mesh.serve(gated("fine")):
        for subject, payload in (
            (STATS, b'{"name": "new", "id": "1", "lag": {"counts": [1, 2], "sum": 1}}'),
            (STATS, b'{"name": "odd", "id": "2", "called": [{"target": "x", "circuit": "ajar"}]}'),
            ("$SRV.STATS", b"nonsense"),
        ):
            await answer_with(mesh, subject, payload)
        for _ in range(2):
            found = await gathered(gatherer)
    assert found["meshkit_gather_unreadable"] == 3
    assert found["meshkit_gather_instances"] == 1
    assert caplog.text.count("3 answers are left out, such as: a report: 2 bins, not 22 - at `$.lag`") == 1


def much(called):
    """What an instance reports that calls a lot."""
    return b'{"name": "much", "id": "%d", "called": [%s]}' % (len(called), b", ".join(called))


def targets(count, more=b""):
    return [b'{"target": "t%d"%s}' % (number, more) for number in range(count)]


@pytest.mark.parametrize(
    "called",
    [
        [b'{"target": "%s"}' % (b"x" * 600_000)],
        targets(2049),
        targets(100, b', "outcomes": {%s}' % b", ".join(b'"%d": {}' % kind for kind in range(30))),
        targets(100, b', "attempts": {%s}' % b", ".join(b'"%d": 1' % kind for kind in range(30))),
    ],
    ids=["bytes", "targets", "outcomes", "attempts"],
)
async def test_reports_that_would_fill_the_page_are_left_out(server, gatherer, called):
    async with connect(server.url) as mesh, mesh.serve(gated("fine")):
        await answer_with(mesh, STATS, much(called))
        found = await gathered(gatherer)
    assert found["meshkit_gather_unreadable"] == 1
    assert found["meshkit_gather_instances"] == 1
    assert len(found) < 1000


async def test_so_are_those_whose_sender_has_a_name_without_end(server, gatherer):
    async with connect(server.url) as mesh:
        await answer_with(mesh, STATS, b'{"name": "%s", "id": "1"}' % (b"x" * 256))
        await answer_with(mesh, STATS, b'{"name": "%s", "id": "1"}' % (b"x" * 255))
        found = await gathered(gatherer)
    assert found["meshkit_gather_unreadable"] == 1
    assert found["meshkit_gather_instances"] == 1


async def test_who_calls_as_many_targets_as_are_counted_is_shown(server, gatherer):
    of_each = b', "outcomes": {"ok": {}, "NotFound": {}}, "attempts": {"ok": 1, "NotFound": 1}'
    async with connect(server.url) as mesh:
        await answer_with(mesh, STATS, much(targets(257, of_each)))
        found = await gathered(gatherer)
    assert found["meshkit_gather_unreadable"] == 0
    assert found["meshkit_gather_instances"] == 1


async def answer_with(mesh, subject, payload):
    def answer(message):
        mesh.transport.tell(message.reply, payload)

    await mesh.transport.subscribe(subject, answer)
    await mesh.transport.flush()


async def test_who_answers_without_end_is_waited_for_no_longer(server, gatherer, monkeypatch):
    monkeypatch.setattr(gather, "_ALL", 0.5)
    flooding = []

    async def flood(message):
        while True:
            mesh.transport.tell(message.reply, b"{}")
            await asyncio.sleep(0.01)

    async with connect(server.url) as mesh:
        await mesh.transport.subscribe(
            STATS, lambda message: flooding.append(asyncio.create_task(flood(message)))
        )
        await mesh.transport.flush()
        async with asyncio.timeout(5):
            found = await gathered(gatherer)
        flooding[0].cancel()
    assert 0.45 < found["meshkit_gather_duration_seconds"] < 2


async def test_without_a_connection_there_is_still_a_page(caplog):
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh:
            gatherer = Gatherer(mesh.transport, Monitoring([]))
            server.kill()
            await until(lambda: not mesh.transport.is_connected)
            for _ in range(2):
                found = await gathered(gatherer)
            assert found["meshkit_gather_up"] == 0
            assert "meshkit_gather_instances" not in found
            assert caplog.text.count("the mesh cannot be asked: there is no connection to NATS") == 1


async def test_what_may_not_be_asked_is_said(tmp_path, caplog):
    config = tmp_path / "nats.conf"
    config.write_text(
        'authorization { users [{ user: a, password: b, permissions { publish: { deny: "_MESH.stats" } } }] }'
    )
    with EmbeddedServer(config=config) as server:
        async with connect(server.url, user="a", password="b") as mesh:
            found = await gathered(Gatherer(mesh.transport, Monitoring([])))
    assert found["meshkit_gather_up"] == 0
    assert "the mesh cannot be asked: " in caplog.text
    assert "_MESH.stats" in caplog.text


async def test_what_the_servers_say_is_on_the_same_page(server):
    async with connect(server.url) as mesh, mesh.serve(gated("beside")):
        gatherer = Gatherer(mesh.transport, Monitoring([server.monitor_url]))
        found = await gathered(gatherer)
    assert found[f'gnatsd_varz_connections{{server_id="{server.monitor_url}"}}'] == 1
    assert found["meshkit_gather_instances"] == 1
