"""The responder of nats-py, and the official Python client without meshkit."""

import json

import nats
import nats.micro
import pytest
from nats.micro.request import ServiceError as NatsServiceError
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from meshkit import InternalError, Service, ServiceError


@pytest.fixture
async def client(nats_server):
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
async def theirs(client):
    """A service as the documentation of nats-py writes them."""

    async def echo(request):
        await request.respond(request.data)

    async def refuse(request):
        raise NatsServiceError("411", "not like this")

    async def fail(request):
        raise RuntimeError("boom")

    service = await nats.micro.add_service(client, name="theirs", version="1.2.3")
    group = service.add_group(name="their")
    await group.add_endpoint(name="echo", handler=echo, metadata={"accepts": "all"})
    await group.add_endpoint(name="refuse", handler=refuse, queue_group="own")
    await group.add_endpoint(name="fail", handler=fail)
    # Not `flush`, whose PING overtakes the subscriptions: an answer comes after them.
    await client.request("$SRV.PING.theirs")
    yield service
    await service.stop()


async def test_a_nats_py_service_is_found_and_called(mesh, theirs):
    assert await mesh.call("their.echo", {"a": 1}) == {"a": 1}
    with pytest.raises(ServiceError, match="not like this") as refused:
        await mesh.call("their.refuse")
    assert refused.value.code == 411
    with pytest.raises(InternalError, match="boom"):
        await mesh.call("their.fail")

    (found,) = await mesh.services()
    assert (found.name, found.description, found.versions) == ("theirs", "", ("1.2.3",))
    assert [(one.id, one.healthy) for one in found.instances] == [(theirs.id, None)]
    assert found.instances[0].started is not None
    rows = [
        (one.name, one.subject, one.queue_group, one.metadata, one.num_requests, one.num_errors)
        for one in found.endpoints
    ]
    assert rows == [
        ("echo", "their.echo", "q", {"accepts": "all"}, 1, 0),
        ("refuse", "their.refuse", "own", {}, 1, 1),
        ("fail", "their.fail", "q", {}, 1, 1),
    ]
    assert found.endpoints[2].last_error == "RuntimeError('boom')"


async def test_nats_py_reads_what_a_service_says_of_itself(client, mesh):
    service = Service("ours", version="1.2.3", metadata={"zone": "a"})

    @service.endpoint("our.echo")
    async def echo(value: int) -> int:
        return value

    async with mesh.serve(service) as instance:
        assert (await client.request("our.echo", b"7")).data == b"7"
        replies = {verb: await client.request(f"$SRV.{verb}.ours") for verb in ("PING", "INFO", "STATS")}
    assert all(reply.headers is None for reply in replies.values())
    ping = ServicePing.from_dict(json.loads(replies["PING"].data))
    info = ServiceInfo.from_dict(json.loads(replies["INFO"].data))
    stats = ServiceStats.from_dict(json.loads(replies["STATS"].data))
    for answer in (ping, info, stats):
        assert (answer.name, answer.id, answer.version) == ("ours", instance.id, "1.2.3")
        assert answer.metadata == {"zone": "a"}
    assert [(one.name, one.subject, one.queue_group) for one in info.endpoints] == [("echo", "our.echo", "q")]
    (counted,) = stats.endpoints
    assert (counted.num_requests, counted.num_errors, counted.last_error) == (1, 0, "")
    assert 0 < counted.average_processing_time == counted.processing_time


async def test_a_plain_client_gets_plain_answers(client, mesh):
    service = Service("ours")

    @service.endpoint("our.half")
    async def half(number: int) -> float:
        if number < 0:
            raise ServiceError(422, "below zero")
        return number / 2

    async with mesh.serve(service):
        reply = await client.request("our.half", b"3", headers={"X-Own": "1"})
        assert (reply.data, reply.headers) == (b"1.5", None)
        reply = await client.request("our.half", b"-3")
        assert reply.headers["Nats-Service-Error"] == "below zero"
        assert reply.headers["Nats-Service-Error-Code"] == "422"
        reply = await client.request("our.half", b"three")
        assert reply.headers["Nats-Service-Error-Code"] == "400"
