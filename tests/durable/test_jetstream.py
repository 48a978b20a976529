"""What is asked of JetStream itself, and what may come of it."""

import asyncio
import json

import pytest

from meshkit import StreamConfig, Unavailable
from meshkit.durable.jetstream import JetStream, JetStreamError, StreamInfo


async def imitate(mesh, verb, *answers):
    """Something that answers in JetStream's place, for a verb that it does not know."""

    def answer(message):
        mesh.transport.tell(message.reply, left.pop(0) if len(left) > 1 else left[0])

    left = list(answers)
    await mesh.transport.subscribe(f"$JS.API.{verb}", answer)
    await mesh.transport.flush()
    return left


async def test_streams_and_their_consumers_are_listed(mesh, subject):
    js = JetStream(mesh.transport)
    await mesh.declare(
        *(StreamConfig(f"{subject}-{n}", [f"{subject}.{n}"], storage="memory") for n in range(3))
    )
    for number in range(4):
        config = {"name": f"c{number}", "durable_name": f"c{number}", "filter_subject": f"{subject}.1"}
        await js.put_consumer(f"{subject}-1", config | {"ack_policy": "explicit"})
    assert {f"{subject}-{n}" for n in range(3)} <= {stream.name async for stream in js.streams()}
    assert [each.name async for each in js.consumers(f"{subject}-1")] == ["c0", "c1", "c2", "c3"]
    assert [each async for each in js.consumers(f"{subject}-0")] == []
    assert (await js.consumer(f"{subject}-1", "c2")).config["filter_subject"] == f"{subject}.1"
    assert await js.consumer(f"{subject}-1", "c9") is None
    assert await js.consumer(f"{subject}-9", "c2") is None
    assert await js.stream(f"{subject}-9") is None


async def test_messages_are_read_as_they_are_and_taken_out(mesh, stream, subject):
    js = JetStream(mesh.transport)
    await mesh.declare(stream)
    for number in range(5):
        await mesh.publish(
            f"{subject}.{number % 2}", number, durable=True, headers={"A": "ä"}, id=f"i{number}"
        )
    found = [message async for message in js.messages(stream.name, f"{subject}.0")]
    assert [(message.seq, message.payload) for message in found] == [(1, b"0"), (3, b"2"), (5, b"4")]
    assert found[0].head == "\r\nA: ä\r\nNats-Msg-Id: i0".encode()
    assert [message.seq async for message in js.messages(stream.name, f"{subject}.*", 4)] == [4, 5]
    await js.delete(stream.name, 3)
    await js.delete(stream.name, 3)
    await js.delete(stream.name, 99)
    assert await js.message(stream.name, 3) is None
    assert (await js.message(stream.name, 4)).payload == b"3"


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"config": 7}', b'{"error": "x"}'])
async def test_what_answers_in_its_place_is_told(mesh, subject, answer):
    await imitate(mesh, f"{subject}.X", answer)
    with pytest.raises(Unavailable, match=rf"what answers on \$JS.API.{subject}.X is not JetStream"):
        await JetStream(mesh.transport).ask(f"{subject}.X", StreamInfo)


async def test_it_is_asked_again_while_it_has_no_leader(mesh, subject):
    busy = json.dumps({"error": {"code": 503, "err_code": 10008, "description": "no leader"}}).encode()
    left = await imitate(mesh, f"{subject}.X", busy, busy, b'{"fine": 1}')
    assert await JetStream(mesh.transport).ask(f"{subject}.X", dict) == {"fine": 1}
    assert left == [b'{"fine": 1}']


async def test_it_is_not_asked_for_ever(mesh, subject, clock):
    busy = json.dumps({"error": {"code": 503, "err_code": 10008, "description": "no leader"}}).encode()
    await imitate(mesh, f"{subject}.X", busy)
    asking = asyncio.create_task(JetStream(mesh.transport).ask(f"{subject}.X", dict))
    for _ in range(30):
        await clock.advance(0.1)
    with pytest.raises(JetStreamError, match="JetStream: no leader"):
        await asking
