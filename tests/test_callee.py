"""What holds for a call: where its policy is from, and what the calls to a target share."""

import asyncio
from typing import Any

import pytest
from support import gated, until

from meshkit import (
    CallPolicy,
    CircuitOpen,
    Context,
    InternalError,
    NoResponders,
    Overloaded,
    Policies,
    RateLimited,
    ServePolicy,
    Service,
    connect,
)
from meshkit import callee as callees
from meshkit.policy import SHARED


def rooms(**options):
    """A service whose endpoints tell what reached them."""
    service = Service("rooms", version="1.0.0", **options)
    service.asked = []

    async def told(ctx: Context) -> dict[str, Any]:
        service.asked.append(ctx.subject)
        return {"timeout": int(ctx.headers["Mesh-Timeout"]) / 1000, **ctx.headers}

    @service.endpoint("rooms.{room}.about", idempotent=True, call=CallPolicy(retries=1))
    async def about(ctx: Context, room: str) -> dict[str, Any]:
        return await told(ctx)

    @service.endpoint("rooms.plain")
    async def plain(ctx: Context) -> dict[str, Any]:
        return await told(ctx)

    @service.endpoint("rooms.{room}.fails")
    async def fails(room: str) -> None:
        raise InternalError(room)

    service.about, service.plain, service.fails = about, plain, fails
    return service


@pytest.fixture
def with_policies(nats_server):
    """Connects with policies for calls."""

    def connected(**call):
        return connect(nats_server.url, policies=Policies(call["call"], where="meshkit.toml"))

    return connected


# Where a policy is from


async def test_a_target_that_says_nothing_has_the_defaults(mesh):
    async with mesh.serve(rooms()):
        await mesh.call("rooms.plain")
    callee = mesh.callees["rooms.plain"]
    assert set(callee.stands.values()) == {"default"}
    assert (callee.policy.timeout, callee.policy.retries, callee.circuit) == (5.0, 2, "closed")


async def test_the_stronger_source_has_each_field(mesh, with_policies):
    """Defaults, the service, its endpoint, the file by how specific its pattern is."""
    service = rooms(timeout=4, call=CallPolicy(hedge="1s", retries=5, retry_delay="1ms"))
    mine = {
        "rooms.12.about": CallPolicy(breaker_failures=3),
        "rooms.>": CallPolicy(timeout=3, breaker_failures=9, priority="sheddable"),
        "rooms.*.about": CallPolicy(timeout=2),
        "bills.>": CallPolicy(timeout=1),
    }
    async with mesh.serve(service), with_policies(call=mine) as caller:
        await caller.call(service.about.at(room=12))
    callee = caller.callees["rooms.*.about"]
    assert {name: (getattr(callee.policy, name), where) for name, where in callee.stands.items()} == {
        **{name: (getattr(callee.policy, name), "default") for name in CallPolicy.__struct_fields__},
        "hedge": (1.0, "service rooms"),
        "retry_delay": (0.001, "service rooms"),
        "retries": (1, "endpoint rooms.about"),
        "idempotent": (True, "endpoint rooms.about"),
        "priority": ("sheddable", 'meshkit.toml [call."rooms.>"]'),
        "timeout": (2.0, 'meshkit.toml [call."rooms.*.about"]'),
        "breaker_failures": (3, 'meshkit.toml [call."rooms.12.about"]'),
    }


async def test_one_call_goes_before_the_file_and_its_keyword_before_its_policy(mesh, with_policies):
    service = rooms(timeout=4)
    async with mesh.serve(service), with_policies(call={"rooms.>": CallPolicy(timeout=3)}) as caller:

        async def timeout(**options):
            return (await caller.call(service.plain, **options))["timeout"]

        assert 2 < await timeout() <= 3
        own = CallPolicy(timeout="2s")
        assert 1 < await timeout(policy=own) <= 2
        assert await timeout(policy=own, timeout="500ms") <= 0.5
        assert 9 < await timeout(policy=own, timeout=10) <= 10
        assert 2 < await timeout(policy=CallPolicy(retries=0)) <= 3


async def test_who_knows_only_the_subject_gets_what_the_service_announces(nats_server, mesh):
    service = rooms(timeout="3s")
    async with mesh.serve(service), connect(nats_server.url) as caller:
        assert (await caller.call("rooms.7.about"))["timeout"] > 4  # not known yet, and not waited for
        async with asyncio.timeout(5):
            while (await caller.call("rooms.7.about"))["timeout"] > 3:
                await asyncio.sleep(0.02)
    callee = caller.callees["rooms.*.about"]
    assert (callee.policy.idempotent, callee.policy.retries) == (True, 1)
    assert {callee.stands[name] for name in ("timeout", "idempotent", "retries")} == {
        "service rooms 1.0.0 (announced)"
    }


async def test_a_service_that_starts_later_is_heard_of(nats_server, mesh):
    async with connect(nats_server.url) as caller:
        await caller.directory.learn()
        with pytest.raises(NoResponders):
            await caller.call("rooms.plain", policy=CallPolicy(retries=0))
        async with mesh.serve(rooms(timeout="3s")):
            async with asyncio.timeout(5):
                while (await caller.call("rooms.plain"))["timeout"] > 3:
                    await asyncio.sleep(0.02)


async def test_the_file_goes_before_what_is_announced(mesh, with_policies):
    mine = {"rooms.7.*": CallPolicy(timeout=2)}
    async with mesh.serve(rooms(timeout="3s")), with_policies(call=mine) as caller:
        await caller.directory.learn()
        assert (await caller.call("rooms.7.about"))["timeout"] <= 2
        assert 2 < (await caller.call("rooms.8.about"))["timeout"] <= 3
        assert (await caller.call("rooms.7.about"))["timeout"] <= 2


async def test_a_call_by_subject_does_not_hide_what_the_code_says(mesh):
    service = rooms(timeout="3s")
    async with mesh.serve(service):
        assert (await mesh.call("rooms.plain"))["timeout"] > 4
        assert (await mesh.call(service.plain))["timeout"] <= 3


async def test_a_service_calls_by_the_policies_of_its_connection(with_policies):
    service = Service("desk")

    @service.endpoint("desk.ask")
    async def ask(ctx: Context) -> float:
        return (await ctx.mesh.call("rooms.plain"))["timeout"]

    mine = {"rooms.>": CallPolicy(timeout=2)}
    async with with_policies(call=mine) as mesh, mesh.serve(rooms()), mesh.serve(service):
        assert await mesh.call("desk.ask") <= 2


async def test_what_is_served_has_the_policies_of_its_connection(nats_server, mesh):
    busy = gated("busy", concurrency=9)
    mine = Policies(serve={"busy.>": ServePolicy(concurrency=1, backlog=0), "busy": ServePolicy(backlog=5)})
    async with connect(nats_server.url, policies=mine) as server, server.serve(busy):
        first = asyncio.create_task(mesh.call("busy.wait"))
        await until(lambda: busy.running == 1)
        with pytest.raises(Overloaded):
            await mesh.call("busy.wait", policy=CallPolicy(retries=0))
        busy.gate.set()
        await first


async def test_policies_of_a_file(nats_server, tmp_path, mesh):
    file = tmp_path / "mesh.toml"
    file.write_text('[call."rooms.>"]\ntimeout = "2s"')
    async with mesh.serve(rooms()), connect(nats_server.url, policies=str(file)) as caller:
        assert (await caller.call("rooms.plain"))["timeout"] <= 2
    assert caller.callees["rooms.plain"].stands["timeout"] == f'{file} [call."rooms.>"]'


async def test_subjects_of_an_endpoint_may_have_policies_of_their_own(mesh, with_policies):
    service = rooms(timeout=4)
    mine = {"rooms.12.about": CallPolicy(timeout=2), "rooms.*.about": CallPolicy(timeout=3)}
    async with mesh.serve(service), with_policies(call=mine) as caller:
        for _ in range(2):
            assert (await caller.call(service.about.at(room=12)))["timeout"] <= 2
            assert 2 < (await caller.call(service.about.at(room=13)))["timeout"] <= 3
            assert 3 < (await caller.call(service.plain))["timeout"] <= 4
    assert [callee.target for callee in caller._callees._known.values()] == [
        *("rooms.*.about", "rooms.*.about", "rooms.plain")
    ]


# Policies of one call


@pytest.mark.parametrize("name", SHARED)
async def test_one_call_cannot_have_what_all_share(mesh, name):
    given = {"rate_limit": "1/second", "breaker_success": 0.5, "retry_budget": 0.5}.get(name, 1)
    with pytest.raises(ValueError, match=rf"^{name} is shared by all calls to 'rooms\.plain', and one call"):
        await mesh.call("rooms.plain", policy=CallPolicy(**{name: given}))


async def test_one_call_may_do_without_the_breaker(mesh):
    service = rooms()
    async with mesh.serve(service):
        for _ in range(5):
            with pytest.raises(InternalError):
                await mesh.call(service.fails.at(room=1))
        with pytest.raises(CircuitOpen):
            await mesh.call(service.fails.at(room=1))
        with pytest.raises(InternalError):
            await mesh.call(service.fails.at(room=1), policy=CallPolicy(breaker=False))


# What calls to a target share


async def test_subjects_of_one_endpoint_are_one_target(mesh):
    service = rooms()
    async with mesh.serve(service):
        for room in range(5):  # and its success rate falls
            with pytest.raises(InternalError):
                await mesh.call(service.fails.at(room=room))
        with pytest.raises(CircuitOpen):
            await mesh.call(service.fails.at(room=99))
        await mesh.call(service.plain)
    assert {target: callee.circuit for target, callee in mesh.callees.items()} == {
        "rooms.*.fails": "open",
        "rooms.plain": "closed",
    }
    assert mesh.callees["rooms.*.fails"].statistics.circuit_opened == 1


async def test_subjects_of_one_announced_endpoint_are_one_target(nats_server, mesh):
    async with mesh.serve(rooms()), connect(nats_server.url) as caller:
        await caller.directory.learn()
        for room in range(5):
            with pytest.raises(InternalError):
                await caller.call(f"rooms.{room}.fails")
        with pytest.raises(CircuitOpen):
            await caller.call("rooms.99.fails")
    assert list(caller.callees) == ["rooms.*.fails"]


async def test_subjects_with_policies_of_their_own_still_are_one_target(mesh, with_policies):
    service = rooms()
    mine = {"rooms.12.fails": CallPolicy(breaker=True, retries=0)}
    async with mesh.serve(service), with_policies(call=mine) as caller:
        for room in range(5):
            with pytest.raises(InternalError):
                await caller.call(service.fails.at(room=room))
        with pytest.raises(CircuitOpen):
            await caller.call(service.fails.at(room=12))
        with pytest.raises(CircuitOpen):
            await caller.call(service.fails.at(room=0))
    assert list(caller.callees) == ["rooms.*.fails"]


async def test_news_change_nothing_of_what_they_do_not_speak_of(mesh):
    service = rooms()
    async with mesh.serve(service):
        await mesh.call(service.plain)
        before = mesh.callees["rooms.plain"]
        async with mesh.serve(gated()):
            await mesh.directory.learn()
            await mesh.call(service.plain)
    assert mesh.callees["rooms.plain"] is before


async def test_a_new_policy_keeps_the_state_unless_it_is_of_that(nats_server, mesh):
    async with connect(nats_server.url) as caller:
        await caller.directory.learn()

        async def version(**options):
            async with mesh.serve(rooms(**options)):
                async with asyncio.timeout(5):
                    while True:
                        await caller.call("rooms.plain")
                        callee = caller.callees["rooms.plain"]
                        if all(
                            getattr(callee.policy, name) == value
                            for name, value in options["call"].said().items()
                        ):
                            return callee
                        await asyncio.sleep(0.02)

        first = await version(call=CallPolicy(retries=1))
        second = await version(call=CallPolicy(retries=3))
        third = await version(call=CallPolicy(retries=3, breaker_failures=2))
    assert second is not first
    assert second.shared.breaker is first.shared.breaker
    assert third.shared.breaker is not first.shared.breaker
    assert third.shared.budget is first.shared.budget
    assert third.statistics is first.statistics


async def test_a_policy_for_some_subjects_leaves_the_state_to_all_of_them(mesh, with_policies):
    mine = {
        "rooms.*.fails": CallPolicy(breaker_failures=3, retries=0),
        "rooms.12.fails": CallPolicy(breaker_failures=4, timeout="2s"),
    }
    service = rooms()
    async with mesh.serve(service), with_policies(call=mine) as caller:
        await caller.directory.learn()
        for room in (12, 13, 12):
            with pytest.raises(InternalError):
                await caller.call(f"rooms.{room}.fails")
        for room in (12, 13, 14):
            with pytest.raises(CircuitOpen):
                await caller.call(f"rooms.{room}.fails")
        async with mesh.serve(Service("news")):
            await asyncio.sleep(0.05)
            with pytest.raises(CircuitOpen):
                await caller.call("rooms.12.fails")
        assert caller.callees["rooms.*.fails"].circuit == "open"


async def test_news_of_one_thing_leave_the_others_as_they_are(mesh, nats_server):
    """A bulkhead with calls in it goes on with them, whatever else a new version says."""
    busy = gated("busy", call=CallPolicy(concurrency=1, backlog=0, retries=0))
    async with connect(nats_server.url) as caller, mesh.serve(busy):
        await caller.directory.learn()
        running = asyncio.create_task(caller.call("busy.wait", timeout=60))
        await until(lambda: busy.running == 1)
        newer = gated("busy", call=CallPolicy(concurrency=1, backlog=0, retries=0, breaker_failures=3))
        async with mesh.serve(newer):
            await until(lambda: caller.callees["busy.wait"] and caller._callees.get("busy.wait") is None)
            with pytest.raises(Overloaded):
                await caller.call("busy.wait")
        busy.gate.set()
        await running


async def test_an_open_circuit_is_not_forgotten_for_other_targets(mesh, monkeypatch):
    monkeypatch.setattr(callees, "_MOST", 10)
    service = rooms()
    async with mesh.serve(service):
        policy = CallPolicy(retries=0)
        for _ in range(5):
            with pytest.raises(InternalError):
                await mesh.call("rooms.1.fails", policy=policy)
        for number in range(20):
            with pytest.raises(NoResponders):
                await mesh.call(f"nobody.{number}", policy=policy)
        with pytest.raises(CircuitOpen):
            await mesh.call("rooms.1.fails", policy=policy)
        assert len(mesh.callees) == 10


async def test_a_caller_bounds_itself(mesh, with_policies):
    busy, service = gated("busy"), rooms()
    mine = {
        "busy.>": CallPolicy(concurrency=1, backlog=0, retries=0),
        "rooms.>": CallPolicy(rate_limit="2/minute", retries=0),
    }
    async with mesh.serve(busy), mesh.serve(service), with_policies(call=mine) as caller:
        first = asyncio.create_task(caller.call("busy.wait"))
        await until(lambda: busy.running == 1)
        with pytest.raises(Overloaded, match=r"calls to busy\.wait") as error:
            await caller.call("busy.wait")
        assert error.value.instance is None
        busy.gate.set()
        await first
        for _ in range(2):
            await caller.call(service.plain)
        with pytest.raises(RateLimited, match=r"calls to rooms\.plain") as error:
            await caller.call(service.plain)
        assert len(service.asked) == 2
    assert [caller.callees[target].statistics.refused for target in ("busy.wait", "rooms.plain")] == [1, 1]


async def test_what_is_remembered_is_bounded(mesh, monkeypatch):
    monkeypatch.setattr(callees, "_MOST", 3)
    monkeypatch.setattr(callees, "_MOST_POLICIES", 2)
    service = rooms()
    async with mesh.serve(service):
        await mesh.directory.learn()
        for number in range(10):
            await mesh.call(service.plain, policy=CallPolicy(timeout=1 + number))
        assert len(mesh.callees["rooms.plain"]._with) == 2
        for number in range(10):
            await mesh.call(f"rooms.{number}.about")
            with pytest.raises(NoResponders):
                await mesh.call(f"nobody.{number}", policy=CallPolicy(retries=0))
    assert len(mesh.callees) <= 3
    assert len(mesh._callees._known) <= 3


# Priorities


@pytest.mark.parametrize(
    ("policy", "arrives"),
    [
        (None, "none"),
        (CallPolicy(priority="critical"), "critical"),
        (CallPolicy(priority="sheddable"), "sheddable"),
    ],
)
async def test_a_priority_is_passed_on(mesh, policy, arrives):
    service = Service("desk")

    @service.endpoint()
    async def ask(ctx: Context) -> str:
        return await ctx.mesh.call("desk.inner")

    @service.endpoint()
    async def inner(ctx: Context) -> str:
        return ctx.headers.get("Mesh-Priority", "none")

    async with mesh.serve(service):
        assert await mesh.call("desk.ask", policy=policy) == arrives


async def test_a_nested_call_may_have_a_priority_of_its_own(mesh):
    service = Service("desk")

    @service.endpoint()
    async def ask(ctx: Context) -> str:
        return await ctx.mesh.call("desk.inner", policy=CallPolicy(priority="sheddable"))

    @service.endpoint()
    async def inner(ctx: Context) -> str:
        return ctx.headers["Mesh-Priority"]

    async with mesh.serve(service):
        assert await mesh.call("desk.ask", policy=CallPolicy(priority="critical")) == "sheddable"
