"""What two readings of everybody's counters come to."""

import asyncio
import contextlib

import msgspec
import nats
import nats.micro
import pytest
from support import gated, until

from meshkit import NotFound, Service, connect
from meshkit.discovery.protocol import EndpointStats, StatsResponse
from meshkit.telemetry.distribution import Distribution
from meshkit.telemetry.live.changes import Reading, changes, read
from meshkit.telemetry.live.rates import rates
from meshkit.telemetry.report import Called, Consumed, Report, Served
from meshkit.transport.server import EmbeddedServer


def taken(*seconds):
    distribution = Distribution()
    for each in seconds:
        distribution.add(each)
    return distribution


def reading(at, *reports, others=()):
    return Reading(
        at,
        {(one.name, one.id): one for one in reports},
        {(one.name, one.id): one for one in others},
        {},
    )


def rooms(requests, outcomes, *, started=1.0, in_flight=0, **more):
    served = Served("book", "rooms.book", requests=requests, in_flight=in_flight, outcomes=outcomes, **more)
    return Report("rooms", "A1", started=started, served=[served])


def only(found):
    (instance,) = found
    (change,) = instance.served
    return change


def test_rate_success_and_quantiles_are_of_the_time_between():
    before = reading(10.0, rooms(100, {"ok": taken(*[5.0] * 100)}))
    now = reading(
        12.0,
        rooms(121, {"ok": taken(*[5.0] * 100, *[0.001] * 15), "InternalError": taken(0.02)}, in_flight=5),
    )
    seen = rates([only(changes(before, now))])
    assert (seen.rate, seen.success, seen.in_flight) == (10.5, 15 / 16, 5)
    assert 0.0005 < seen.p50 <= 0.001
    assert 0.01 < seen.p99 <= 0.025
    assert seen.average == pytest.approx((15 * 0.001 + 0.02) / 16)
    assert seen.outcomes == {"ok": 7.5, "InternalError": 0.5}


def test_of_one_reading_only_what_is_in_flight_is_known():
    seen = rates([only(changes(None, reading(1.0, rooms(7, {"ok": taken(1, 2)}, in_flight=5))))])
    assert (seen.rate, seen.success, seen.p50, seen.in_flight) == (None, None, None, 5)


def test_an_instance_that_was_not_there_has_no_rate_yet():
    # It may have counted for days, and not have answered in time.
    seen = rates([only(changes(reading(1.0), reading(2.0, rooms(10_000, {"ok": taken(1)}))))])
    assert seen.rate is None


@pytest.mark.parametrize(
    "again", [rooms(3, {"ok": taken(1, 1, 1)}), rooms(50, {"ok": taken(1)}, started=9.0)]
)
def test_counters_that_began_anew_are_no_negative_rate(again):
    before = reading(1.0, rooms(20, {"ok": taken(*[1.0] * 20)}))
    assert rates([only(changes(before, reading(2.0, again)))]).rate is None


def test_of_an_instance_that_does_not_answer_again_nothing_is_known_but_that_it_was_there():
    gone = Report("desk", "B1", called=[Called("rooms.book", requests=3)])
    old = StatsResponse(
        name="old",
        id="C1",
        version="1.0.0",
        started="2026-01-01T00:00:00Z",
        endpoints=(EndpointStats(name="add", subject="add"),),
    )
    one, two, three, four = changes(
        reading(1.0, rooms(3, {"ok": taken(1)}), gone, others=[old]), reading(2.0, Report("bills", "D1"))
    )
    assert [each.service for each in (one, two, three, four)] == ["bills", "desk", "old", "rooms"]
    assert [each.is_there for each in (one, two, three, four)] == [True, False, False, False]
    assert (two.called[0].name, two.called[0].seconds) == ("rooms.book", 0)
    assert rates(three.served).rate is None
    assert rates(four.served).rate is None


def test_who_had_only_its_report_missed_still_calls():
    desk = Report("desk", "B1", called=[Called("rooms.book", requests=3)])
    again = StatsResponse(name="desk", id="B1", version="1.0.0", started="2026-01-01T00:00:00Z")
    found = changes(reading(1.0, desk), reading(2.0, others=[again]))
    assert sorted((len(one.called), one.is_there) for one in found) == [(0, True), (1, False)]


def test_an_outcome_that_was_idle_and_comes_back_is_not_all_counted_again():
    before = reading(1.0, rooms(1001, {"ok": taken(0.001)}))  # a thousand faults are left out of it
    now = reading(2.0, rooms(1003, {"ok": taken(0.001, 0.001), "DeadlineExceeded": taken(*[5.0] * 1001)}))
    seen = rates([only(changes(before, now))])
    assert (seen.rate, seen.success) == (2.0, 0.5)
    assert seen.p99 <= 0.001


def test_an_outcome_that_is_new_counts():
    now = reading(2.0, rooms(4, {"ok": taken(0.001), "409": taken(1.0), "599": taken(5.0, 5.0)}))
    seen = rates([only(changes(reading(1.0, rooms(0, {"ok": taken()})), now))])
    assert (seen.success, seen.outcomes) == (0.5, {"ok": 1.0, "409": 1.0, "599": 2.0})


def test_quantiles_of_several_instances_are_of_all_their_calls():
    def two(fast, slow):
        one = rooms(fast, {"ok": taken(*[0.001] * fast)})
        return one, Report(
            "rooms",
            "A2",
            started=1.0,
            served=[Served("book", "rooms.book", requests=slow, outcomes={"ok": taken(*[1.0] * slow)})],
        )

    found = changes(reading(1.0, *two(0, 0)), reading(2.0, *two(90, 10)))
    seen = rates(change for one in found for change in one.served)
    assert [one.id for one in found] == ["A1", "A2"]
    assert (seen.rate, seen.p50 <= 0.001, seen.p95 > 0.75) == (100.0, True, True)


def test_what_is_called():
    def guests(**counts):
        return Report("guests", "B1", called=[Called("rooms.book", **counts)])

    before = reading(
        1.0, guests(requests=1, outcomes={"ok": taken(1)}, attempts={"ok": 1, "NoResponders": 5}, retries=5)
    )
    now = reading(
        3.0,
        guests(
            requests=5,
            outcomes={"ok": taken(1, 1), "Overloaded": taken(1, 1, 1)},
            attempts={"ok": 2, "Overloaded": 8, "NoResponders": 9},
            retries=13,
            refusals={"CircuitOpen": 4},
            circuit="open",
        ),
    )
    (one,) = changes(before, now)
    seen = rates(one.called, one.called)
    assert (seen.rate, seen.success, seen.retries, seen.refusals) == (2.0, 0.25, 4.0, 2.0)
    assert seen.circuits == {"rooms.book": "open"}
    # Those that nobody was there for are no messages that arrived.
    assert one.called[0].messages == 9


def test_messages_are_counted_when_they_are_sent_as_who_serves_does():
    def desk(ok, in_flight):
        called = Called("rooms.book", ok + in_flight, in_flight, {"ok": taken(*[1.0] * ok)}, {"ok": ok})
        return Report("desk", "B1", called=[called])

    for before, now, messages in (((10, 0), (10, 5), 5), ((10, 5), (15, 0), 0), ((10, 5), (20, 7), 12)):
        (one,) = changes(reading(1.0, desk(*before)), reading(2.0, desk(*now)))
        assert one.called[0].messages == messages


def test_services_of_other_clients_tell_rates_and_averages():
    def old(requests, errors, nanoseconds, started="2026-01-01T00:00:00Z"):
        stats = EndpointStats(
            name="add", subject="add", num_requests=requests, num_errors=errors, processing_time=nanoseconds
        )
        return StatsResponse(name="old", id="C1", version="1.0.0", started=started, endpoints=(stats,))

    before = reading(1.0, others=[old(10, 1, 10_000)])
    seen = rates([only(changes(before, reading(3.0, others=[old(20, 2, 40_000)])))])
    assert (seen.rate, seen.success, seen.average, seen.p50) == (5.0, 0.9, pytest.approx(3e-6), None)
    # A reset, and a restart.
    for again in (old(1, 0, 5), old(99, 0, 99_000, started="2026-02-02T00:00:00Z")):
        assert rates([only(changes(before, reading(3.0, others=[again])))]).rate is None


def test_subjects_that_are_none_are_left_out():
    odd = Report("odd", "A1", served=[Served("a", "a..b"), Served("b", "$SRV.x"), Served("c", "c")])
    (one,) = changes(None, reading(1.0, odd))
    assert [change.subject for change in one.served] == ["c"]


def test_of_a_consumer_all_instances_say_the_same_of_the_lag():
    def billing(instance, finished, **consumed):
        return Report(
            "billing",
            instance,
            started=1.0,
            served=[
                Served(
                    "billing-bill",
                    "orders.created",
                    is_event=True,
                    requests=finished,
                    outcomes={"ok": taken(*[1.0] * finished)},
                    consumed=Consumed("ORDERS", "billing-bill", **consumed),
                )
            ],
        )

    before = reading(1.0, billing("A1", 5, redelivered=3, dead=1), billing("A2", 0, redelivered=7))
    now = reading(
        3.0,
        billing("A1", 9, redelivered=4, dead=2, pending=40, unacknowledged=8),
        billing("A2", 6, redelivered=10, dead=1, pending=42, unacknowledged=9),
    )
    changed = [change for one in changes(before, now) for change in one.served]
    seen = rates(changed)
    assert (seen.rate, seen.lag, seen.unacknowledged, seen.redelivered, seen.dead) == (5.0, 42, 9, 2.0, 3)
    of_two = rates(
        [*changed, msgspec.structs.replace(changed[0], consumer=other(changed[0], "billing-ship"))]
    )
    assert of_two.lag == 82
    # Of one reading nothing is known of what happened meanwhile, and of endpoints nothing at all.
    first = rates(change for one in changes(None, now) for change in one.served)
    assert (first.lag, first.redelivered, first.dead) == (42, None, 3)
    assert rates([only(changes(None, reading(1.0, rooms(7, {}))))]).lag is None


def other(change, name):
    return msgspec.structs.replace(change.consumer, name=name)


async def test_a_mesh(mesh):
    service = gated("slow")

    @service.endpoint()
    async def find(room: int) -> int:
        if room == 13:
            raise NotFound("there is no room 13")
        return room

    async with mesh.serve(service) as instance:
        before = await read(mesh.transport)
        waiting = [asyncio.create_task(mesh.call("slow.wait")) for _ in range(3)]
        await until(lambda: service.running == 3)
        for room in (1, 2, 3, 13):
            with contextlib.suppress(NotFound):
                await mesh.call(find, room)
        (one,) = [one for one in changes(before, await read(mesh.transport)) if one.service == "slow"]
        service.gate.set()
        await asyncio.gather(*waiting)
    assert one.id == instance.id
    wait, found = one.served
    assert (wait.requests, wait.finished, wait.in_flight) == (3, 0, 3)
    assert (found.requests, found.finished, found.succeeded) == (4, 4, 4)  # an answer is no fault
    assert {name: each.count for name, each in found.outcomes.items()} == {"ok": 3, "NotFound": 1}


async def test_a_mesh_with_others_and_with_what_nobody_can_read(mesh, nats_server, caplog):
    client = await nats.connect(nats_server.url)
    service = await nats.micro.add_service(client, name="old", version="1.0.0")
    try:
        await service.add_endpoint(
            name="add", subject="old.add", handler=lambda request: request.respond(b"3")
        )

        async def nonsense(message):
            await message.respond(b'{"name": 12}')
            # Of a meshkit with other bins.
            await message.respond(b'{"name": "new", "id": "D1", "lag": {"counts": [1, 2], "sum": 3}}')

        await client.subscribe("_MESH.stats", cb=nonsense)
        await client.flush()
        before = await read(mesh.transport)
        await client.request("old.add")
        (one,) = [one for one in changes(before, await read(mesh.transport)) if one.service == "old"]
        assert (one.served[0].requests, one.called) == (1, [])
        assert caplog.text.count("2 answers are left out, such as: a report: Expected `str`, got `int`") == 2
    finally:
        await service.stop()
        await client.close()


async def test_who_may_use_the_protocol_and_no_more_sees_rates_and_averages(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ "
        '{ user: a, password: s, permissions: { publish: { deny: ["_MESH.>"] } } } ] }'
    )
    service = Service("rooms")

    @service.endpoint()
    async def book() -> None: ...

    with EmbeddedServer(config=config) as server:
        url = server.url.replace("nats://", "nats://a:s@")
        async with connect(url) as mesh, mesh.serve(service):
            before = await read(mesh.transport)
            await mesh.call(book)
            seen = rates(changes(before, await read(mesh.transport))[0].served)
    assert seen.rate > 0
    assert seen.average > 0
    assert seen.p50 is None
