import asyncio
import json
import logging
from datetime import UTC, datetime

import msgspec
import pytest

from meshkit.discovery import registry
from meshkit.errors import NotFound


async def test_nobody_there(transport):
    assert await registry.services(transport) == []
    assert await registry.ping(transport) == []
    with pytest.raises(NotFound, match="no service 'rooms' answers; services that do: none"):
        await registry.service(transport, "rooms")


async def test_instances_of_a_service_are_added_up(transport, answering):
    old = answering("rooms", num_requests=3, num_errors=1, last_error="500:x", processing_time=700)
    new = answering(
        "rooms",
        version="1.10.0",
        description="Rooms",
        metadata={"zone": "a"},
        num_requests=1,
        processing_time=301,
    )
    async with old as first, new as second, answering("Payments"):
        payments, rooms = await registry.services(transport)
    assert payments.name == "Payments"
    assert rooms.description == "Rooms"
    assert rooms.versions == ("1.0.0", "1.10.0")
    assert [(one.id, one.metadata) for one in rooms.instances] == [(first.id, {}), (second.id, {"zone": "a"})]
    assert rooms.instances[0].started == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    assert [one.endpoints[0].num_requests for one in rooms.instances] == [3, 1]
    assert rooms.endpoints == (
        registry.DiscoveredEndpoint(
            name="book",
            subject="rooms.book",
            queue_group="q",
            num_requests=4,
            num_errors=1,
            last_error="500:x",
            processing_time=1001,
            average_processing_time=250,
            metadata={"of": "1.10.0"},
        ),
    )


async def test_one_service_and_one_instance(transport, answering):
    async with answering("rooms") as first, answering("rooms") as second, answering("payments"):
        found = await registry.service(transport, "rooms")
        assert {one.id for one in found.instances} == {first.id, second.id}
        found = await registry.service(transport, "rooms", second.id)
        assert [one.id for one in found.instances] == [second.id]


async def test_not_found_says_what_is_there(transport, answering):
    async with answering("rooms") as first, answering("payments"):
        with pytest.raises(NotFound, match="no service 'room' answers; services that do: payments, rooms"):
            await registry.service(transport, "room")
        with pytest.raises(
            NotFound, match=f"service 'rooms' has no instance 'A1'; its instances: {first.id}"
        ):
            await registry.service(transport, "rooms", "A1")


@pytest.mark.parametrize("name", ["*", ">", "rooms.A1", "a b"])
async def test_a_name_cannot_widen_the_question(transport, answering, name):
    async with answering("rooms"):
        assert await registry.health(transport, name) == []
        with pytest.raises(NotFound):
            await registry.ping(transport, name)
        with pytest.raises(NotFound):
            await registry.service(transport, name)
        with pytest.raises(NotFound):
            await registry.service(transport, "rooms", name)


async def test_health_is_known_only_where_it_is_spoken_of(transport, answering):
    async def database():
        raise RuntimeError("gone")

    async with answering("rooms", checks={"database": database}), answering("payments"):
        await silent_service(transport)
        found = {one.name: one.instances[0] for one in await registry.services(transport)}
        pings = {one.service: one for one in await registry.ping(transport)}
        reports = await registry.health(transport, "rooms")
    assert found["rooms"].healthy is False
    assert found["rooms"].checks == {"database": "RuntimeError: gone"}
    assert found["payments"].healthy is True
    assert found["js"].healthy is None
    assert [report.checks for report in reports] == [{"database": "RuntimeError: gone"}]
    assert {name: one.healthy for name, one in pings.items()} == {
        "rooms": False,
        "payments": True,
        "js": None,
    }
    assert all(0 < one.rtt_ms < 1000 for one in pings.values() if one.service != "js")
    assert pings["js"].rtt_ms is None


async def silent_service(transport):
    """One that answers neither STATS nor health, nor a ping for itself alone."""
    who = {"name": "js", "id": "J1", "version": "0.0.1"}
    info = {**who, "endpoints": [{"name": "add", "subject": "add"}]}
    for verb, answer in {"PING": who, "INFO": info}.items():
        payload = json.dumps(answer).encode()
        await transport.subscribe(
            f"$SRV.{verb}", lambda message, payload=payload: spawn(transport.publish(message.reply, payload))
        )
    await transport.subscribe("$SRV.*.js.J1", lambda message: None)
    await transport.flush()


_tasks = set()


def spawn(coroutine):
    task = asyncio.ensure_future(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def answer_with(transport, verb, **fields):
    payload = msgspec.json.encode({"name": "go", "id": "G1", "version": "1.0.0", **fields})
    await transport.subscribe(
        f"$SRV.{verb}.go", lambda message: spawn(transport.publish(message.reply, payload))
    )


async def test_an_instance_that_does_not_count(transport):
    await silent_service(transport)
    (found,) = await registry.services(transport)
    assert found.instances[0].started is None
    assert found.endpoints[0].num_requests == 0


async def test_endpoints_that_differ_in_the_queue_group_only(transport):
    same = {"name": "watch", "subject": "watch"}
    await answer_with(
        transport, "INFO", endpoints=[{**same, "queue_group": "a"}, {**same, "queue_group": "b"}]
    )
    await answer_with(
        transport,
        "STATS",
        started="2026-01-01T00:00:00Z",
        endpoints=[
            {**same, "queue_group": "b", "num_requests": 2},
            {**same, "queue_group": "a", "num_requests": 1},
        ],
    )
    found = await registry.service(transport, "go")
    assert [(one.queue_group, one.num_requests) for one in found.endpoints] == [("a", 1), ("b", 2)]


async def test_statistics_that_lost_their_queue_group(transport):
    same = {"name": "watch", "subject": "watch"}
    await answer_with(
        transport, "INFO", endpoints=[{**same, "queue_group": "q"}, {**same, "queue_group": "q"}]
    )
    counted = [{**same, "queue_group": "", "num_requests": number} for number in (1, 2)]
    await answer_with(transport, "STATS", started="2026-01-01T00:00:00Z", endpoints=counted)
    found = await registry.service(transport, "go")
    assert [(one.queue_group, one.num_requests) for one in found.endpoints] == [("q", 3)]


async def test_what_cannot_be_read_is_left_out_with_a_warning(transport, answering, caplog):
    await answer_with(transport, "INFO", version=7)
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"), pytest.raises(NotFound):
        await registry.service(transport, "go")
    (record,) = caplog.records
    assert record.getMessage().startswith("a reply to $SRV.INFO.go is left out: from go/G1: Expected `str`")


async def test_what_is_discovered_is_json(transport, answering):
    async with answering("rooms") as info:
        found = await registry.service(transport, "rooms")
    fields = json.loads(msgspec.json.encode(found))
    assert fields["versions"] == ["1.0.0"]
    assert fields["instances"][0]["id"] == info.id
    assert fields["endpoints"][0]["average_processing_time"] == 0
    assert "data" not in fields["endpoints"][0]
