from collections.abc import AsyncIterator

import pytest
from support import until

from meshkit import InternalError, Service, ServiceError


@pytest.fixture
async def rooms(mesh):
    service = Service("Rooms", version="1.2.3", description="Rooms of the hotel", metadata={"zone": "a"})

    @service.endpoint("hotel.book", metadata={"kind": "write"})
    async def book(booking: dict[str, int]) -> int:
        """Book a room."""
        return 120 * booking["nights"]

    @service.endpoint("hotel.close", queue=None)
    async def close() -> None:
        raise ServiceError(409, "the hotel is full")

    async with mesh.serve(service) as instance:
        yield instance


async def test_javascript_finds_services(peer, rooms):
    await peer.do("request", subject="hotel.book", payload='{"nights": 2}')
    await peer.do("request", subject="hotel.close", payload="")
    who = {"name": "Rooms", "id": rooms.id, "version": "1.2.3", "metadata": {"zone": "a"}}
    for scope in ({}, {"name": "Rooms"}, {"name": "Rooms", "id": rooms.id}):
        (ping,) = await peer.do("find", verb="ping", **scope)
        assert ping == {"type": "io.nats.micro.v1.ping_response", **who}

        (info,) = await peer.do("find", verb="info", **scope)
        book, close = info.pop("endpoints")
        assert info == {
            "type": "io.nats.micro.v1.info_response",
            **who,
            "description": "Rooms of the hotel",
        }
        assert book.pop("metadata").items() >= {"kind": "write", "description": "Book a room."}.items()
        assert book == {"name": "book", "subject": "hotel.book", "queue_group": "q"}
        assert close.pop("metadata")
        assert close == {"name": "close", "subject": "hotel.close", "queue_group": ""}

        (stats,) = await peer.do("find", verb="stats", **scope)
        assert set(stats) == {"type", *who, "started", "endpoints"}
        book, close = stats["endpoints"]
        assert (
            set(book)
            == set(close)
            == {
                "name",
                "subject",
                "queue_group",
                "num_requests",
                "num_errors",
                "last_error",
                "processing_time",
                "average_processing_time",
                "data",
            }
        )
        assert (book["num_requests"], book["num_errors"], book["last_error"]) == (1, 0, "")
        assert (close["num_requests"], close["num_errors"]) == (1, 1)
        assert close["last_error"] == "409:the hotel is full"


@pytest.mark.parametrize("verb", ["ping", "info", "stats"])
async def test_javascript_finds_nobody_by_an_unknown_name(peer, rooms, verb):
    for scope in ({"name": "rooms"}, {"name": "Rooms", "id": "A1"}):
        with pytest.raises(RuntimeError, match="NoResponders"):
            await peer.do("find", verb=verb, **scope)


async def test_javascript_calls_services(peer, rooms):
    answer = await peer.do("request", subject="hotel.book", payload='{"nights": 2}')
    assert answer == {"payload": "240"}
    answer = await peer.do("request", subject="hotel.close", payload="")
    assert answer == {"code": 409, "message": "the hotel is full"}
    answer = await peer.do("request", subject="hotel.book", payload="{")
    assert answer["code"] == 400


async def test_javascript_reads_a_stream(peer, mesh):
    service = Service("Numbers")
    ended = []

    @service.endpoint("numbers.to")
    async def to(most: int) -> AsyncIterator[int]:
        try:
            for number in range(1, most + 1):
                yield number
            if most == 3:
                raise ServiceError(409, "no more")
        finally:
            ended.append(most)

    async with mesh.serve(service):
        read = await peer.do("read", subject="numbers.to", payload="200")
        assert read == {"items": list(range(1, 201)), "end": "200", "code": None}
        read = await peer.do("read", subject="numbers.to", payload="3")
        assert read == {"items": [1, 2, 3], "end": "3", "code": 409}
        # Who unsubscribes stops the handler.
        assert await peer.do("readSome", subject="numbers.to", payload="1000000000", most=5) == [
            1,
            2,
            3,
            4,
            5,
        ]
        await until(lambda: len(ended) == 3)


async def test_a_javascript_service_is_found(peer, mesh):
    who = await peer.do("serve", name="js-found")
    (found,) = await mesh.services()
    assert (found.name, found.description, found.versions) == ("js-found", "sums", ("1.2.3",))
    (instance,) = found.instances
    assert (instance.id, instance.metadata, instance.healthy) == (who["id"], {"from": "js"}, None)
    assert instance.started is not None
    assert [(one.name, one.subject, one.queue_group, one.metadata) for one in found.endpoints] == [
        ("sum", "js-found.math.sum", "q", {"accepts": "numbers"}),
        ("refuse", "js-found.refuse", "q", {}),
        ("raise", "js-found.raise", "q", {}),
        ("raise-with-code", "js-found.raise-with-code", "q", {}),
    ]


async def test_a_javascript_service_is_called(peer, mesh):
    await peer.do("serve", name="js-called")
    assert await mesh.call("js-called.math.sum", [1, 2, 3], returns=int) == 6
    with pytest.raises(ServiceError, match="not like this") as refused:
        await mesh.call("js-called.refuse")
    assert refused.value.code == 411
    with pytest.raises(InternalError, match="boom"):
        await mesh.call("js-called.raise")
    with pytest.raises(ServiceError, match="something") as raised:
        await mesh.call("js-called.raise-with-code")
    assert raised.value.code == 1210

    endpoints = (await mesh.service("js-called")).endpoints
    # JavaScript does not count the errors that a handler answers with, only those that it raises.
    assert [(one.name, one.num_requests, one.num_errors, one.last_error) for one in endpoints] == [
        ("sum", 1, 0, ""),
        ("refuse", 1, 0, ""),
        ("raise", 1, 1, "boom"),
        ("raise-with-code", 1, 1, "something"),
    ]
