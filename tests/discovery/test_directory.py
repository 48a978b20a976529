"""What services announce, and who learns of it."""

import asyncio
import json
import logging

import msgspec
import pytest
from support import until

from meshkit import CallPolicy, ConnectionLost, Disconnected, Forbidden, Service, connect
from meshkit.discovery import directory as directories
from meshkit.discovery.directory import ANNOUNCE, Directory
from meshkit.transport.server import EmbeddedServer

ROOMS = {"type": "io.nats.micro.v1.info_response", "name": "rooms", "id": "A1", "version": "1.0.0"}


@pytest.fixture
async def directory(mesh):
    directory = Directory(mesh.transport)
    yield directory
    await directory.close()


def announcement(*endpoints, **fields):
    """What an instance sends that has just started; endpoints are pairs of subject and policy."""
    listed = [
        {"name": "e", "subject": subject, "metadata": {"policy": policy}} for subject, policy in endpoints
    ]
    return json.dumps(ROOMS | {"endpoints": listed} | fields).encode()


@pytest.fixture
async def announced(mesh, directory):
    """Announces something to a directory that listens."""
    await directory.learn()

    async def announce(payload):
        await mesh.transport.publish(f"{ANNOUNCE}.rooms.A1", payload)
        await mesh.transport.flush()

    return announce


def policies(directory, subject):
    target, sources = directory.find(subject)
    return target, [source.policy for source in sources]


async def test_it_learns_subjects_and_policies(mesh, directory):
    service = Service("rooms", version="2.1.0", timeout="2s", call=CallPolicy(hedge="p95"))

    @service.endpoint("hotel.rooms.{room}.price", idempotent=True)
    async def price(room: int) -> int:
        return room

    @service.endpoint("hotel.rooms.book", call=CallPolicy(hedge=None, retry_codes=[500, 502]))
    async def book() -> None: ...

    async with mesh.serve(service):
        await directory.learn()
    assert policies(directory, "hotel.rooms.12.price") == (
        "hotel.rooms.*.price",
        [CallPolicy(timeout=2, hedge="p95", idempotent=True)],
    )
    assert policies(directory, "hotel.rooms.book") == (
        "hotel.rooms.book",
        [CallPolicy(timeout=2, hedge=None, retry_codes=(500, 502))],
    )
    assert directory.find("hotel.rooms.book")[1][0].where == "service rooms 2.1.0 (announced)"
    assert policies(directory, "hotel.bills") == ("hotel.bills", [])


async def test_the_most_specific_endpoint_is_the_target(directory, announced):
    said = [
        ("a.>", '{"retries": 0}'),
        ("a.b.*", '{"retries": 1}'),
        ("a.*.c", '{"retries": 2}'),
        ("a.b.c", "{}"),
    ]
    await announced(announcement(*said))
    await until(lambda: policies(directory, "a.b.c") == ("a.b.c", [CallPolicy()]))
    assert policies(directory, "a.b.d") == ("a.b.*", [CallPolicy(retries=1)])
    assert policies(directory, "a.x.c") == ("a.*.c", [CallPolicy(retries=2)])
    assert policies(directory, "a.x") == ("a.>", [CallPolicy(retries=0)])


async def test_the_latest_that_is_announced_holds(directory, announced):
    await announced(announcement(("a", '{"retries": 1}'), version="1.0.0"))
    await announced(announcement(("a", '{"retries": 2}'), version="1.1.0"))
    await until(lambda: policies(directory, "a") == ("a", [CallPolicy(retries=2)]))


async def test_what_a_newer_meshkit_announces_too_is_passed_over(directory, announced):
    await announced(announcement(("a", '{"retries": 1, "telepathy": true}')))
    await until(lambda: policies(directory, "a") == ("a", [CallPolicy(retries=1)]))


async def test_services_of_other_clients_have_no_policies(directory, announced):
    await announced(json.dumps(ROOMS | {"endpoints": [{"name": "e", "subject": "a.*"}]}).encode())
    await until(lambda: policies(directory, "a.b") == ("a.*", [CallPolicy()]))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"unknown":' + b"[" * 100_000,
        json.dumps(ROOMS | {"type": "io.nats.micro.v1.stats_response"}).encode(),
        json.dumps(ROOMS | {"name": "no such name"}).encode(),
        json.dumps(ROOMS | {"endpoints": [{"name": "e"}]}).encode(),
        announcement(("a", '{"retries": 1}'))[:-5],
    ],
    ids=range(10),  # not the payloads
)
async def test_a_malformed_announcement_is_left_out(directory, announced, payload, caplog):
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"):
        await announced(payload)
        await announced(announcement(("sound", '{"retries": 1}')))
        await until(lambda: directory.find("sound")[1])
    assert policies(directory, "a") == ("a", [])
    assert [record.name for record in caplog.records] == ["meshkit.discovery"]
    assert "an announcement is left out: " in caplog.text


@pytest.mark.parametrize(
    ("subject", "policy"),
    [
        ("a", ""),
        ("a", "no refunds"),
        ("a", "[]"),
        ("a", "null"),
        ("a", '"text"'),
        ("a", "{" + '"a":[' * 100_000),
        ("a", '{"retries": -1}'),
        ("a", '{"retries": {}}'),
        ("a", '{"rate_limit": {"limits": {}}}'),
        ("a", '{"rate_limit": {"limits": [[1]]}}'),
        ("a", '{"rate_limit": {"limits": "1/second", "by": []}}'),
        ("a", '{"retry_codes": "500"}'),
        ("a", '{"timeout": 1e400}'),
        ("a..b", "{}"),
        ("$SYS.a", "{}"),
        ("a b", "{}"),
        ("", "{}"),
    ],
)
async def test_a_malformed_endpoint_is_left_out_and_no_other(directory, announced, subject, policy, caplog):
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"):
        await announced(announcement(("first", "{}"), (subject, policy), ("last", "{}")))
        await until(lambda: directory.find("last")[1])
    assert directory.find("first")[1]
    assert directory.find(subject)[1] == []
    assert [record.name for record in caplog.records] == ["meshkit.discovery"]
    assert "what rooms announces of 'e' is left out: " in caplog.text


async def test_it_asks_when_it_meets_what_it_does_not_know_but_not_all_the_time(mesh, directory, clock):
    asked = []
    await mesh.transport.subscribe(ANNOUNCE, asked.append)
    for _ in range(3):
        assert directory.find("hotel.rooms.book") == ("hotel.rooms.book", [])
    await clock.advance(2)
    assert len(asked) == 1
    directory.find("hotel.rooms.book")
    await clock.advance(7)
    assert len(asked) == 1
    await clock.advance(1)
    directory.find("hotel.bills.pay")
    await clock.advance(2)
    assert len(asked) == 2


async def test_it_asks_less_and_less_often_for_what_nobody_announces(mesh, directory, clock):
    asked = []
    await mesh.transport.subscribe(ANNOUNCE, asked.append)
    for _ in range(100):
        directory.find("hotel.rooms.book")
        await clock.advance(10)
    assert len(asked) == 7  # at 0, and after 10, 20, 40 ... seconds more


async def test_it_asks_no_more_when_everything_is_known_or_it_is_closed(mesh, directory, clock):
    asked = []
    await mesh.transport.subscribe(ANNOUNCE, asked.append)
    directory.find("hotel.rooms.book")
    await clock.advance(60)
    assert len(asked) == 1
    await directory.close()
    directory.find("hotel.rooms.book")
    await clock.advance(60)
    assert len(asked) == 1


async def test_it_asks_again_after_a_reconnect(mesh, nats_server, monkeypatch):
    monkeypatch.setattr(directories, "_SPREAD", 0.0)
    async with connect(nats_server.url) as caller:
        directory = caller.directory
        await directory.learn()
        service = Service("rooms")

        @service.endpoint("hotel.rooms.book", idempotent=True)
        async def book() -> None: ...

        async with mesh.serve(service):
            directory._exact.clear()
            await caller.transport._client.force_reconnect()
            await until(lambda: "hotel.rooms.book" in directory._exact)


async def test_a_service_announces_what_is_its_own_and_nothing_that_is_all(
    mesh, directory, announced, caplog
):
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"):
        await mesh.transport.publish(f"{ANNOUNCE}.bills.A1", announcement(("a", "{}")))
        await announced(announcement((">", '{"idempotent": true}'), ("*.b", "{}"), ("last", "{}")))
        await until(lambda: directory.find("last")[1])
    assert directory.find("a")[1] == []
    assert directory.find("a.b")[1] == []
    assert "service 'rooms' does not announce on _MESH.announce.bills.A1" in caplog.text


async def test_what_is_left_out_is_said_less_and_less_often(directory, announced, caplog):
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"):
        await announced(announcement(*[("a..b", "{}")] * 100, ("last", "{}")))
        await until(lambda: directory.find("last")[1])
    assert len(caplog.records) == 7


async def test_a_service_that_is_too_large_to_announce_is_served(nats_server, tmp_path, caplog):
    service = Service("many")
    for number in range(30):

        async def one() -> None: ...

        service.endpoint(f"many.endpoint.{number}", name=f"e{number}", idempotent=True)(one)
    config = tmp_path / "small.conf"
    config.write_text("max_payload: 2048")
    with EmbeddedServer(config=config) as server:
        async with connect(server.url) as mesh, mesh.serve(service):
            assert await mesh.call("many.endpoint.7") is None
    assert "many has too many endpoints for one message; policies are not announced" in caplog.text


NARROW = """
authorization { users = [
  {user: service, password: p, permissions: {
    publish: ["_INBOX.>", "$SRV.>"], allow_responses: true,
    subscribe: ["rooms.>", "$SRV.>", "_MESH.health", "_MESH.health.>", "_INBOX.>"]}}
  {user: caller, password: p, permissions: {
    publish: ["rooms.>"], subscribe: ["_INBOX.>", "other.>", "$SRV.>", "_MESH.health", "_MESH.health.>"]}}
]}
"""


async def test_who_may_not_use_what_is_meshkits_own_can_serve_and_call(tmp_path, caplog):
    rooms, other = Service("rooms"), Service("other")

    @rooms.endpoint("rooms.book")
    async def book() -> str:
        return "booked"

    config = tmp_path / "narrow.conf"
    config.write_text(NARROW)
    with EmbeddedServer(config=config) as server, caplog.at_level(logging.WARNING):
        async with (
            connect(server.url, user="service", password="p") as serving,
            serving.serve(rooms),
            connect(server.url, user="caller", password="p") as calling,
        ):
            assert await calling.call("rooms.book") == "booked"
            await until(lambda: calling.directory._asking is None)
            async with calling.serve(other):
                assert await calling.call("rooms.book") == "booked"
    assert not caplog.records


async def test_who_remembers_is_told(mesh, directory, announced):
    class Listener:
        news = 0

        def forget(self):
            self.news += 1

    listener = Listener()
    directory.tell(listener)
    await announced(announcement(("a", "{}")))
    await until(lambda: listener.news == 1)


async def test_what_is_remembered_is_bounded(directory, announced, monkeypatch):
    monkeypatch.setattr(directories, "_MOST", 10)
    await announced(announcement(*((f"s{number}", "{}") for number in range(100))))
    await until(lambda: directory.find("s99")[1])
    assert sum(bool(directory.find(f"s{number}")[1]) for number in range(100)) == 10


async def test_one_instance_of_each_service_answers(nats_server, mesh):
    rooms, bills = Service("rooms"), Service("bills")

    async with mesh.serve(rooms), mesh.serve(rooms), mesh.serve(bills), connect(nats_server.url) as asking:
        answers = await asking.transport.gather(ANNOUNCE)
    assert sorted(msgspec.json.decode(answer.payload)["name"] for answer in answers) == ["bills", "rooms"]


@pytest.mark.parametrize(("error", "asked"), [(Disconnected, 3), (ConnectionLost, 3), (Forbidden, 1)])
async def test_it_goes_on_asking_as_long_as_that_may_help(mesh, directory, clock, error, asked):
    answers = iter([error(), error(), None])
    seen = []

    async def gather(subject):
        seen.append(subject)
        if (answer := next(answers)) is not None:
            raise answer
        return []

    mesh.transport.gather = gather
    directory.find("hotel.rooms.book")
    await clock.advance(100)
    assert seen == [ANNOUNCE] * asked


async def test_calls_go_on_where_nobody_can_be_asked(mesh, directory, caplog):
    async def gather(subject):
        raise Disconnected

    service = Service("rooms")

    @service.endpoint()
    async def book() -> str:
        return "booked"

    mesh.transport.gather = gather
    with caplog.at_level(logging.WARNING):
        async with mesh.serve(service):
            assert await mesh.call("rooms.book") == "booked"
            await asyncio.sleep(0)
    assert not caplog.records
    with pytest.raises(Disconnected):
        await directory.learn()
