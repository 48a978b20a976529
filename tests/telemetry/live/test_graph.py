"""Who calls whom, from what services say that they call and serve."""

import asyncio
import contextlib
from time import perf_counter

import pytest

from meshkit import Context, InternalError, MeshError, Service
from meshkit.telemetry.distribution import Distribution
from meshkit.telemetry.live.changes import Change, InstanceChange, changes, read
from meshkit.telemetry.live.graph import Edge, edges


def served(service, subject, requests, *, instance="1", name="", **more):
    change = Change(
        name=name or subject, subject=subject, seconds=2.0, requests=requests, finished=requests, **more
    )
    return InstanceChange(service=service, id=instance, served=[change])


def calling(service, target, calls, *, instance="1", **more):
    change = Change(
        name=target,
        subject=target,
        **{"seconds": 2.0, "requests": calls, "finished": calls, "messages": calls, **more},
    )
    return InstanceChange(service=service, id=instance, served=[], called=[change])


def pairs(instances):
    return {(edge.caller, edge.callee, edge.subject): edge.rate for edge in edges(instances)}


@pytest.mark.parametrize("pattern", ["*.price", "rooms.*", "rooms.*.*.price", "rooms.*.cost"])
@pytest.mark.parametrize("target", ["rooms.1.price", "rooms.>"])
def test_a_target_that_no_pattern_covers(target, pattern):
    assert pairs([served("rooms", pattern, 0), calling("desk", target, 0)]) == {
        ("desk", "(unknown)", target): 0
    }


@pytest.mark.parametrize(
    ("target", "subject"),
    [
        ("rooms.book", "rooms.book"),
        ("rooms.*.price", "rooms.*.price"),
        ("rooms.12.price", "rooms.*.price"),
        ("rooms.12.price", "rooms.>"),
        ("rooms.>", "rooms.>"),
    ],
)
def test_a_target_belongs_to_who_serves_its_subject(target, subject):
    assert pairs([served("rooms", subject, 10), calling("desk", target, 10)]) == {
        ("desk", "rooms", subject): 5
    }


def test_the_most_precise_of_patterns():
    mesh = [
        served("rooms", "rooms.*.price", 10),
        served("all", "rooms.>", 0),
        calling("desk", "rooms.1.price", 10),
    ]
    assert pairs(mesh) == {("desk", "rooms", "rooms.*.price"): 5}


def test_instances_of_a_caller_are_added_up_and_the_worst_breaker_shows():
    mesh = [
        served("rooms", "rooms.book", 30),
        calling("desk", "rooms.book", 10, succeeded=10),
        calling("desk", "rooms.book", 20, instance="2", succeeded=5, circuit="half-open"),
    ]
    assert edges(mesh) == [
        Edge(
            caller="desk",
            callee="rooms",
            endpoint="rooms.book",
            subject="rooms.book",
            rate=15,
            success=0.5,
            circuit="half-open",
        )
    ]


def outcomes(*names):
    return {name: Distribution() for name in names}


@pytest.mark.parametrize(
    ("ended", "callee"),
    [
        (("NoResponders",), "(nobody)"),
        (("NoResponders", "CircuitOpen"), "(nobody)"),
        (("NoResponders", "ok"), "(unknown)"),
        (("CircuitOpen",), "(unknown)"),
        ((), "(unknown)"),
    ],
)
def test_what_no_service_tells_that_it_serves(ended, callee):
    assert pairs([calling("desk", "bills.pay", 4, outcomes=outcomes(*ended))]) == {
        ("desk", callee, "bills.pay"): 2
    }


def test_what_is_not_counted_one_by_one():
    assert pairs([calling("desk", "_OTHER", 2)]) == {("desk", "(others)", "_OTHER"): 1}


def test_two_services_of_one_subject_have_a_share_by_what_arrived():
    mesh = [served("old", "pay", 30), served("new", "pay", 90), calling("desk", "pay", 120)]
    assert pairs(mesh) == {("desk", "old", "pay"): 15, ("desk", "new", "pay"): 45}
    # Clients too are not counted twice.
    mesh[-1] = calling("desk", "pay", 80)
    assert pairs(mesh) == {
        ("desk", "old", "pay"): 10,
        ("desk", "new", "pay"): 30,
        ("(clients)", "old", "pay"): 5,
        ("(clients)", "new", "pay"): 15,
    }
    idle = [served("old", "pay", 0), served("new", "pay", 0), calling("desk", "pay", 0)]
    assert pairs(idle) == {("desk", "old", "pay"): 0, ("desk", "new", "pay"): 0}


def test_two_services_that_both_get_all_have_all():
    mesh = [served("old", "pay", 60), served("new", "pay", 60, queue="new"), calling("desk", "pay", 60)]
    assert pairs(mesh) == {("desk", "old", "pay"): 30, ("desk", "new", "pay"): 30}


def test_thousands_of_targets_and_endpoints():
    endpoints = [Change(name=str(each), subject=f"a.*.b{each}.>", seconds=2.0) for each in range(3000)]
    targets = [Change(name=f"a.1.b{each}.c", subject="", seconds=2.0) for each in range(3000)]
    started = perf_counter()
    found = edges([InstanceChange(service="s", id="1", served=endpoints, called=targets)])
    assert perf_counter() - started < 3
    assert len(found) == 3000


def test_clients_are_what_arrives_that_no_service_has_sent():
    mesh = [served("rooms", "rooms.book", 60), served("rooms", "rooms.book", 40, instance="2")]
    assert pairs(mesh) == {("(clients)", "rooms", "rooms.book"): 50}
    # Retries and hedges are messages that arrive, too.
    some = calling("desk", "rooms.book", 30, messages=40)
    assert pairs([*mesh, some]) == {
        ("desk", "rooms", "rooms.book"): 15,
        ("(clients)", "rooms", "rooms.book"): 30,
    }


@pytest.mark.parametrize(("arrived", "sent"), [(1000, 991), (10, 8), (10, 12), (1000, 2000)])
def test_small_differences_are_noise_and_there_are_none_below_nothing(arrived, sent):
    mesh = [served("rooms", "rooms.book", arrived), calling("desk", "rooms.book", sent)]
    assert [edge.caller for edge in edges(mesh)] == ["desk"]


def test_what_goes_to_all_instances_is_counted_once():
    mesh = [served("rooms", "rooms.all", 10, instance=str(each), queue="") for each in range(3)]
    assert pairs([*mesh, calling("desk", "rooms.all", 10)]) == {("desk", "rooms", "rooms.all"): 5}


def test_no_clients_are_made_up_of_what_is_not_known():
    mesh = [served("rooms", "rooms.book", 10)]
    new = Change(name="rooms.book", subject="rooms.book")
    assert pairs([*mesh, InstanceChange(service="desk", id="1", served=[], called=[new])]) == {
        ("desk", "rooms", "rooms.book"): None
    }


def test_events_are_not_calls():
    assert not edges([served("log", "hotel.>", 10, is_event=True)])


async def test_four_services(mesh):
    desk, rooms, bills, loop = (Service(name) for name in ("desk", "rooms", "bills", "loop"))

    @rooms.endpoint("rooms.{room}.price")
    async def price(room: int) -> int:
        if room == 13:
            raise InternalError
        return room

    @bills.endpoint()
    async def write(room: int, ctx: Context) -> int:
        return await ctx.mesh.call(price.at(room=room))

    @desk.endpoint()
    async def book(room: int, ctx: Context) -> int:
        await ctx.mesh.call(write, room)
        return await ctx.mesh.call("rooms.1.price", returns=int)

    @loop.endpoint()
    async def again(times: int, ctx: Context) -> int:
        return await ctx.mesh.call(again, times - 1) if times else 0

    async with contextlib.AsyncExitStack() as stack:
        for service in (desk, rooms, bills, loop, desk):
            await stack.enter_async_context(mesh.serve(service))
        # Policies and patterns that services announce are learnt in the background.
        await mesh.directory.learn()
        # So many that both desks have called everybody: what one calls for the first time has no rate yet.
        for room in range(1, 13):
            await asyncio.gather(*(mesh.call(book, room) for _ in range(2)))
        await mesh.call(again, 1)
        before = await read(mesh.transport)
        for room in [*range(1, 11)] * 3:
            await mesh.call(book, room)
        for room in (13, 13):
            with pytest.raises(MeshError):
                await mesh.call(book, room)
        await asyncio.gather(*(mesh.call(price.at(room=room)) for room in range(20, 40)))
        await mesh.call(again, 5)
        instances = changes(before, await read(mesh.transport))
    found = {
        (edge.caller, edge.callee, edge.endpoint): (edge.rate and round(edge.rate * seconds), edge.success)
        for edge in edges(instances)
        for seconds in [instances[0].served[0].seconds]
    }
    assert found == {
        ("(clients)", "desk", "book"): (32, 30 / 32),
        ("(clients)", "rooms", "price"): (20, None),
        ("bills", "rooms", "price"): (32, 30 / 32),
        ("desk", "bills", "write"): (32, 30 / 32),
        ("desk", "rooms", "price"): (30, 1.0),
        ("loop", "loop", "again"): (5, 1.0),
    }
