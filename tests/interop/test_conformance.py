"""The services protocol (ADR-32), as the official clients' tests and the `nats` command's schemas have it."""

import asyncio
import contextlib
import json
import re
import time
from datetime import datetime

import pytest

from meshkit import NoResponders, Overloaded, Service, ServiceError
from meshkit.discovery.protocol import VERSION

VERBS = ("PING", "INFO", "STATS")


async def ask_all(mesh, subject, payload=b""):
    return [json.loads(message.payload) for message in await mesh.transport.gather(subject, payload)]


async def ask(mesh, subject):
    return await mesh.call(subject, returns=dict)


@contextlib.asynccontextmanager
async def serving(mesh, *services):
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(mesh.serve(service)) for service in services]


def echoing(name="echoes", **options):
    service = Service(name, **options)

    @service.endpoint(f"{name}.echo")
    async def echo(payload: bytes) -> bytes:
        return payload

    return service


# The official cross-client harness: one service with everything that a declaration can say.


@pytest.fixture
def demo():
    service = Service("demo", description="demo service", metadata={"workload": "cpu"})

    async def echo(payload: bytes) -> bytes:
        return payload

    async def faulty() -> None:
        raise ServiceError(500, "handler error")

    service.endpoint("demo.default", name="demo-default-queue", metadata={"key": "value"})(echo)
    service.endpoint("demo.default", name="demo-custom-queue", queue="endpoint-group")(echo)
    for name, group in (("g1", service.group("g1")), ("g2", service.group("g2", queue="group-queue"))):
        group.endpoint("parent.queue", name=f"{name}-parent-queue")(echo)
        group.endpoint("custom.queue", name=f"{name}-custom-queue", queue="endpoint-group")(echo)
    service.endpoint("faulty", name="faulty")(faulty)
    return service


DEMO = {
    "demo-default-queue": ("demo.default", "q"),
    "demo-custom-queue": ("demo.default", "endpoint-group"),
    "g1-parent-queue": ("g1.parent.queue", "q"),
    "g1-custom-queue": ("g1.custom.queue", "endpoint-group"),
    "g2-parent-queue": ("g2.parent.queue", "group-queue"),
    "g2-custom-queue": ("g2.custom.queue", "endpoint-group"),
    "faulty": ("faulty", "q"),
}


async def test_demo_info(mesh, demo):
    async with serving(mesh, demo) as (instance,):
        info = await ask(mesh, "$SRV.INFO.demo")
    endpoints = info.pop("endpoints")
    assert info == {
        "type": "io.nats.micro.v1.info_response",
        "name": "demo",
        "id": instance.id,
        "version": "0.1.0",
        "description": "demo service",
        "metadata": {"workload": "cpu"},
    }
    assert {one["name"]: (one["subject"], one["queue_group"]) for one in endpoints} == DEMO
    assert endpoints[0]["metadata"]["key"] == "value"
    assert all(set(one) == {"name", "subject", "queue_group", "metadata"} for one in endpoints)


async def test_demo_stats(mesh, demo):
    async with serving(mesh, demo):
        # Two endpoints in two queue groups listen on this subject: both answer.
        replies = await mesh.transport.gather("demo.default", b"hello")
        assert [reply.payload for reply in replies] == [b"hello", b"hello"]
        for group in ("g1", "g2"):
            for subject in ("parent.queue", "custom.queue"):
                assert await mesh.call(f"{group}.{subject}", b"hello", returns=bytes) == b"hello"
        with pytest.raises(ServiceError, match="handler error"):
            await mesh.call("faulty")
        stats = await ask(mesh, "$SRV.STATS.demo")
    endpoints = {one["name"]: one for one in stats["endpoints"]}
    assert {name: (one["subject"], one["queue_group"]) for name, one in endpoints.items()} == DEMO
    assert {one["num_requests"] for one in endpoints.values()} == {1}
    assert {name: one["num_errors"] for name, one in endpoints.items() if one["num_errors"]} == {"faulty": 1}
    assert endpoints["faulty"]["last_error"] == "500:handler error"


# Cases of the official clients' own tests.


async def test_five_instances_share_fifty_requests(mesh):
    async with serving(mesh, *(echoing() for _ in range(5))) as instances:
        for number in range(50):
            assert await mesh.call("echoes.echo", number) == number
        pings = await ask_all(mesh, "$SRV.PING.echoes")
        stats = await ask_all(mesh, "$SRV.STATS.echoes")
    assert sorted(one["id"] for one in pings) == sorted(one.id for one in instances)
    assert len(stats) == 5
    assert sum(one["endpoints"][0]["num_requests"] for one in stats) == 50


@pytest.mark.parametrize("verb", VERBS)
async def test_control_subjects(mesh, verb):
    async with serving(mesh, echoing("Echoes")) as (instance,):
        answers = [
            await ask(mesh, f"$SRV.{verb}{scope}") for scope in ("", ".Echoes", f".Echoes.{instance.id}")
        ]
    assert [one["id"] for one in answers] == [instance.id] * 3
    assert {one["type"] for one in answers} == {f"io.nats.micro.v1.{verb.lower()}_response"}
    assert {one["name"] for one in answers} == {"Echoes"}


@pytest.mark.parametrize("verb", VERBS)
async def test_nobody_answers_for_an_unknown_id(mesh, verb):
    async with serving(mesh, echoing()):
        for scope in ("others", "echoes.A1", "ECHOES"):
            with pytest.raises(NoResponders):
                await mesh.call(f"$SRV.{verb}.{scope}")


async def test_a_verb_published_without_reply_does_no_harm(mesh):
    async with serving(mesh, echoing()) as (instance,):
        for verb in VERBS:
            await mesh.publish(f"$SRV.{verb}", b"{}")
        assert (await ask(mesh, "$SRV.PING"))["id"] == instance.id
        assert await mesh.call("echoes.echo", 1) == 1


async def test_a_request_without_reply_counts(mesh):
    async with serving(mesh, echoing()):
        for _ in range(10):
            await mesh.call("echoes.echo", 1)
        await mesh.publish("echoes.echo", 1)
        await mesh.call("echoes.echo", 1)
        (counted,) = (await ask(mesh, "$SRV.STATS.echoes"))["endpoints"]
    assert counted["num_requests"] == 12
    assert counted["processing_time"] > 0
    assert counted["average_processing_time"] == counted["processing_time"] // 12


@pytest.mark.parametrize(
    ("groups", "subject"),
    [
        ((), "foo"),
        (("g1",), "g1.foo"),
        (("",), "foo"),
        (("", "g1", ""), "g1.foo"),
        (("g1", "g2", "g3"), "g1.g2.g3.foo"),
    ],
)
async def test_groups_prefix_subjects(mesh, groups, subject):
    service = group = Service("grouped")
    for name in groups:
        group = group.group(name)

    @group.endpoint("foo")
    async def foo() -> str:
        return "bar"

    async with serving(mesh, service):
        assert await mesh.call(subject) == "bar"
        assert (await ask(mesh, "$SRV.INFO.grouped"))["endpoints"][0]["subject"] == subject


@pytest.mark.parametrize(
    ("of_service", "of_group", "of_endpoint", "expected"),
    [
        ({}, {}, {}, "q"),
        ({"queue": "s"}, {}, {}, "s"),
        ({"queue": "s"}, {"queue": "g"}, {}, "g"),
        ({"queue": "s"}, {"queue": "g"}, {"queue": "e"}, "e"),
        ({"queue": None}, {}, {}, ""),
        ({"queue": "s"}, {"queue": None}, {}, ""),
        ({"queue": "s"}, {"queue": "g"}, {"queue": None}, ""),
        ({"queue": None}, {"queue": "g"}, {}, "g"),
    ],
)
async def test_queue_groups_are_inherited(mesh, of_service, of_group, of_endpoint, expected):
    service = Service("queued", **of_service)

    @service.group("queued", **of_group).endpoint("foo", **of_endpoint)
    async def foo() -> None:
        pass

    async with serving(mesh, service):
        for verb in ("INFO", "STATS"):
            answer = await ask(mesh, f"$SRV.{verb}.queued")
            assert answer["endpoints"][0]["queue_group"] == expected


async def test_five_queue_groups_give_five_answers(mesh):
    services = [echoing(queue=f"group-{number}") for number in range(5)]
    async with serving(mesh, *services):
        assert len(await mesh.transport.gather("echoes.echo", b"hello")) == 5


async def test_without_a_queue_group_every_instance_answers(mesh):
    async with serving(mesh, *(echoing(queue=None) for _ in range(10))):
        assert len(await mesh.transport.gather("echoes.echo", b"hello")) == 10
        stats = await ask_all(mesh, "$SRV.STATS.echoes")
    assert [one["endpoints"][0]["num_requests"] for one in stats] == [1] * 10


async def test_metadata_of_service_and_endpoint(mesh):
    service = Service("tagged", metadata={"zone": "a"})

    @service.endpoint("tagged.foo", metadata={"format": "json"})
    async def foo() -> None:
        pass

    async with serving(mesh, service):
        for verb in VERBS:
            assert (await ask(mesh, f"$SRV.{verb}.tagged"))["metadata"] == {"zone": "a"}
        (endpoint,) = (await ask(mesh, "$SRV.INFO.tagged"))["endpoints"]
    assert endpoint["metadata"]["format"] == "json"


async def test_names_and_subjects_keep_their_case(mesh):
    service = Service("Cased")

    @service.endpoint("Cased.Foo", name="Foo")
    async def foo() -> None:
        pass

    async with serving(mesh, service):
        for verb in ("INFO", "STATS"):
            answer = await ask(mesh, f"$SRV.{verb}.Cased")
            assert (answer["name"], answer["endpoints"][0]["name"]) == ("Cased", "Foo")
            assert answer["endpoints"][0]["subject"] == "Cased.Foo"


async def test_errors_raised_on_purpose_count(mesh):
    service = Service("failing")

    @service.endpoint("failing.now")
    async def now(code: int) -> str:
        if code:
            raise ServiceError(code, "as you wish")
        return "fine"

    async with serving(mesh, service):
        for code in (411, 0, 507):
            with contextlib.suppress(ServiceError):
                await mesh.call("failing.now", code)
        (counted,) = (await ask(mesh, "$SRV.STATS.failing"))["endpoints"]
    assert (counted["num_requests"], counted["num_errors"]) == (3, 2)
    assert counted["last_error"] == "507:as you wish"


async def test_answers_come_in_time_while_every_slot_is_taken(mesh):
    busy = Service("busy", concurrency=2, backlog=1)
    release = asyncio.Event()

    @busy.endpoint("busy.work")
    async def work() -> None:
        await release.wait()

    @busy.health
    async def patience() -> None:
        await asyncio.sleep(0.1)

    async with serving(mesh, busy) as (instance,):
        calls = [asyncio.create_task(mesh.call("busy.work")) for _ in range(4)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)  # the refused one
        for subject in (*(f"$SRV.{verb}.busy.{instance.id}" for verb in VERBS), "_MESH.health.busy"):
            before = time.monotonic()
            assert await mesh.call(subject)
            assert time.monotonic() - before < 0.3
        release.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in outcomes if one is not None] == [Overloaded]


async def test_an_ended_service_has_left(mesh):
    async with serving(mesh, echoing()):
        pass
    for verb in VERBS:
        assert await ask_all(mesh, f"$SRV.{verb}") == []


# What the `nats` command checks before it shows a service: jsm.go's schemas/micro/v1/*.json.


def check_standard(answer, verb):
    assert answer["type"] == f"io.nats.micro.v1.{verb}_response"
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", answer["name"])
    assert isinstance(answer["id"], str)
    assert answer["id"]
    assert VERSION.match(answer["version"])
    assert all(isinstance(value, str) for value in answer["metadata"].values())


def check_endpoint(endpoint):
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", endpoint["name"])
    assert isinstance(endpoint["subject"], str)
    assert isinstance(endpoint["queue_group"], str)


@pytest.mark.parametrize("metadata", [None, {"zone": "a"}])
async def test_the_nats_command_takes_what_services_say(mesh, metadata):
    service = Service("checked", metadata=metadata)

    @service.endpoint("checked.{number}", metadata=metadata)
    async def half(number: int) -> float:
        return number / 2

    @service.endpoint("checked.never.called", queue=None)
    async def never() -> None:
        pass

    async with serving(mesh, service):
        for number in (2, 3, "x"):
            with contextlib.suppress(ServiceError):
                await mesh.call(f"checked.{number}")
        ping, info, stats = [await ask(mesh, f"$SRV.{verb}.checked") for verb in VERBS]
    check_standard(ping, "ping")
    check_standard(info, "info")
    assert isinstance(info["description"], str)
    for endpoint in info["endpoints"]:
        check_endpoint(endpoint)
        assert all(isinstance(value, str) for value in endpoint["metadata"].values())
    check_standard(stats, "stats")
    assert datetime.fromisoformat(stats["started"]).tzinfo
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stats["started"])
    for endpoint in stats["endpoints"]:
        check_endpoint(endpoint)
        assert isinstance(endpoint["last_error"], str)
        for count in ("num_requests", "num_errors", "processing_time", "average_processing_time"):
            assert type(endpoint[count]) is int
