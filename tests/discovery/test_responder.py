import asyncio
import json
import logging
import time

import pytest

from meshkit.discovery.protocol import InfoResponse, StatsResponse, control_subjects
from meshkit.discovery.responder import Responder
from meshkit.errors import NoResponders
from meshkit.telemetry.report import Report


async def ask(transport, subject, payload=b"", head=b""):
    return await transport.request(subject, payload, head, asyncio.get_running_loop().time() + 2)


def report():
    return Report(name="rooms", id="A1")


def rooms():
    return InfoResponse(name="rooms", id="A1", version="1.0.0")


async def test_nine_subjects_answer(transport, answering):
    async with answering("Rooms", num_requests=2) as info:
        for subject in control_subjects("Rooms", info.id):
            reply = await ask(transport, subject)
            verb = subject.split(".")[1].lower()
            fields = json.loads(reply.payload)
            assert fields["type"] == f"io.nats.micro.v1.{verb}_response"
            assert (fields["name"], fields["id"], fields["version"]) == ("Rooms", info.id, "1.0.0")
            if verb == "stats":
                assert fields["endpoints"][0]["num_requests"] == 2


async def test_names_keep_their_case(transport, answering):
    async with answering("Rooms") as info:
        for scope in ("rooms", "ROOMS", f"Rooms.{info.id.swapcase()}"):
            with pytest.raises(NoResponders):
                await ask(transport, f"$SRV.PING.{scope}")


async def test_payload_and_headers_of_a_request_have_no_effect(transport, answering):
    async with answering("rooms") as info:
        for verb in ("PING", "INFO", "STATS"):
            reply = await ask(transport, f"$SRV.{verb}.rooms", b'{"x', b"\r\nAccept-Encoding: snappy")
            assert json.loads(reply.payload)["id"] == info.id
            assert not reply.head


async def test_nothing_happens_to_a_request_that_wants_no_answer(transport, answering, caplog):
    async with answering("rooms") as info:
        for subject in (*control_subjects("rooms", info.id), "_MESH.health"):
            await transport.publish(subject, b"")
        assert json.loads((await ask(transport, "$SRV.PING.rooms")).payload)["id"] == info.id
    assert not caplog.records


async def test_statistics_are_those_of_the_moment(transport):
    asked = 0

    def stats():
        nonlocal asked
        asked += 1
        return StatsResponse(
            name="rooms", id="A1", version=f"1.0.{asked}", started="2026-01-02T03:04:05.678Z"
        )

    responder = Responder(transport, rooms, rooms, stats, report)
    await responder.start()
    for number in (1, 2):
        assert json.loads((await ask(transport, "$SRV.STATS.rooms")).payload)["version"] == f"1.0.{number}"
    await responder.stop()


async def test_what_fails_is_logged_and_the_rest_answers(transport, caplog):
    def stats():
        raise RuntimeError("counter lost")

    responder = Responder(transport, rooms, rooms, stats, report)
    await responder.start()
    with caplog.at_level(logging.WARNING, logger="meshkit.discovery"):
        assert await transport.gather("$SRV.STATS.rooms", timeout=0.2) == []
    assert "a request on $SRV.STATS.rooms was not answered: counter lost" in caplog.text
    assert await ask(transport, "$SRV.PING.rooms")
    await responder.stop()


async def test_stop_answers_what_has_arrived(transport, answering):
    steps = []

    async def slow():
        await asyncio.sleep(0.1)
        steps.append("answered")

    async with answering("rooms", checks={"slow": slow}):
        answer = asyncio.create_task(ask(transport, "_MESH.health.rooms"))
        await ask(transport, "$SRV.PING.rooms")  # arrives later than the request above
    steps.append("stopped")
    assert json.loads((await answer).payload)["healthy"] is True
    assert steps == ["answered", "stopped"]
    with pytest.raises(NoResponders):
        await ask(transport, "$SRV.PING.rooms")


async def test_an_instance_without_checks_is_healthy(transport, answering):
    async with answering("rooms") as info:
        for subject in ("_MESH.health", "_MESH.health.rooms", f"_MESH.health.rooms.{info.id}"):
            assert json.loads((await ask(transport, subject)).payload) == {
                "service": "rooms",
                "id": info.id,
                "version": "1.0.0",
                "healthy": True,
                "checks": {},
            }


async def test_a_check_that_raises_is_named(transport, answering):
    async def database():
        raise ConnectionRefusedError("port 5432")

    async def cache():
        await asyncio.create_task(cancelled())

    async def cancelled():
        raise asyncio.CancelledError

    async def disk():
        pass

    async with answering("rooms", checks={"database": database, "cache": cache, "disk": disk}):
        answer = json.loads((await ask(transport, "_MESH.health.rooms")).payload)
    assert answer["healthy"] is False
    assert answer["checks"] == {
        "database": "ConnectionRefusedError: port 5432",
        "cache": "CancelledError",
        "disk": "ok",
    }


async def test_checks_that_hang_do_not_hold_the_answer_back(transport, answering):
    async def hangs():
        await asyncio.Event().wait()

    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    async def slow():
        await asyncio.sleep(0.15)

    async with answering("rooms", checks={"hangs": hangs, "stubborn": stubborn, "slow": slow, "slow2": slow}):
        before = time.monotonic()
        answer = json.loads((await ask(transport, "_MESH.health.rooms")).payload)
        assert time.monotonic() - before < 0.4  # they take 0.15 + 0.15 + 0.25 + 0.25 s one by one
    assert answer["checks"] == {
        "hangs": "no answer in 0.25 s",
        "stubborn": "no answer in 0.25 s",
        "slow": "ok",
        "slow2": "ok",
    }


async def test_a_hanging_check_is_ended(transport, answering):
    ended = asyncio.Event()

    async def hangs():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with answering("rooms", checks={"hangs": hangs}):
        await ask(transport, "_MESH.health.rooms")
        await asyncio.wait_for(ended.wait(), 2)
