"""The commands that look around: ls, info, stats, ping and call."""

import enum
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
import pytest

from meshkit import Context, NotFound, Service
from meshkit.cli.shape import shape

NOBODY = "nats://127.0.0.1:1"


class Booking(msgspec.Struct):
    room: int
    guest: str
    nights: int = 1


class Receipt(msgspec.Struct):
    room: int
    total: float


@pytest.fixture
async def rooms(mesh):
    service = Service("rooms", version="1.2.0", description="Rooms of the hotel", metadata={"zone": "eu"})

    @service.endpoint("hotel.rooms.book")
    async def book(booking: Booking) -> Receipt:
        """Book a room."""
        if booking.room == 13:
            raise NotFound("there is no room 13")
        return Receipt(booking.room, 120.0 * booking.nights)

    @service.endpoint("hotel.rooms.{room}.price", queue=None)
    async def price(room: int) -> float:
        return 120.0 + room

    @service.endpoint("hotel.rooms.echo")
    async def echo(ctx: Context, payload: bytes) -> bytes:
        return ctx.headers.get("X-Reply", "").encode() or payload

    @service.health
    async def database() -> None:
        if service.version == "0.0.0":
            raise ConnectionRefusedError("port 5432")

    async with mesh.serve(service) as instance:
        yield instance


def lines(out):
    return [line.split("\t") for line in out.splitlines()]


# ls


async def test_ls(meshkit, rooms):
    code, out, err = await meshkit("ls")
    assert (code, err) == (0, "")
    assert lines(out) == [
        ["name", "versions", "instances", "endpoints", "description"],
        ["rooms", "1.2.0", "1", "3", "Rooms of the hotel"],
    ]


async def test_ls_json(meshkit, rooms):
    code, out, _ = await meshkit("ls", "--json")
    (service,) = json.loads(out)
    assert code == 0
    assert service["instances"][0]["id"] == rooms.id
    assert out.count("\n") == 1


async def test_ls_of_an_empty_mesh(meshkit):
    assert await meshkit("ls") == (0, "", "No service answers. `meshkit run` starts those of a folder.\n")
    assert await meshkit("ls", "--json") == (0, "[]\n", "")


async def test_on_a_narrow_terminal(on_terminal, rooms):
    for arguments in (["ls"], ["info", "rooms"], ["stats", "rooms", "--instances"], ["ping"]):
        shown = await on_terminal(*arguments)
        assert "rooms" in shown or rooms.id in shown
        assert all(len(line) <= 60 for line in shown.splitlines()), shown


@pytest.mark.parametrize("command", [["ls"], ["call", "x"]])
async def test_no_server(meshkit, command):
    code, out, err = await meshkit(*command, "--nats", NOBODY)
    assert (code, out) == (69, "")
    assert err.startswith(f"meshkit: cannot connect to NATS at {NOBODY}: ")
    assert err.count("\n") == 1


# info


async def test_info(meshkit, rooms):
    code, out, err = await meshkit("info", "rooms")
    assert (code, err) == (0, "")
    book, price = out.split("\n\t\n")[1:3]
    assert lines(book) == [
        ["endpoint", "book"],
        ["subject", "hotel.rooms.book"],
        ["queue group", "q"],
        ["request", "Booking{room:int, guest:str, nights:int=1}"],
        ["reply", "Receipt{room:int, total:float}"],
        ["description", "Book a room."],
    ]
    assert lines(price)[:3] == [
        ["endpoint", "price"],
        ["subject", "hotel.rooms.{room}.price"],
        ["queue group", "none: every instance answers"],
    ]
    instance = dict(lines(out.split("\n\t\n")[-1]))
    assert instance.pop("started")
    assert instance == {
        "instance": rooms.id,
        "version": "1.2.0",
        "health": "ok",
        "check database": "ok",
        "zone": "eu",
    }


async def test_info_of_an_instance(meshkit, mesh, rooms):
    async with mesh.serve(rooms.service):
        _, out, _ = await meshkit("info", "rooms", rooms.id, "--json")
    assert [one["id"] for one in json.loads(out)["instances"]] == [rooms.id]


async def test_info_of_a_service_that_is_not_there(meshkit, rooms):
    answer = await meshkit("info", "room")
    assert answer == (1, "", "meshkit: no service 'room' answers; services that do: rooms\n")
    answer = await meshkit("info", "rooms", "A1")
    assert answer == (1, "", f"meshkit: service 'rooms' has no instance 'A1'; its instances: {rooms.id}\n")


# stats


async def test_stats(meshkit, mesh, rooms):
    async with mesh.serve(rooms.service) as second:
        for room in range(12, 16):
            if room != 13:
                await mesh.call("hotel.rooms.book", Booking(room, "Ann"))
        with pytest.raises(NotFound):
            await mesh.call("hotel.rooms.book", Booking(13, "Ann"))
        code, out, err = await meshkit("stats", "rooms")
        _, each, _ = await meshkit("stats", "rooms", "--instances")
    assert (code, err) == (0, "")
    heading, book, *_ = lines(out)
    assert heading == ["endpoint", "requests", "errors", "avg ms", "total ms", "last error"]
    assert book[:3] == ["book", "4", "1"]
    assert float(book[4]) > float(book[3]) > 0
    assert book[5] == "404:there is no room 13"
    books = [row for row in lines(each) if row[1] == "book"]
    assert {row[0] for row in books} == {rooms.id, second.id}
    assert sum(int(row[2]) for row in books) == 4


async def test_stats_json(meshkit, rooms):
    _, out, _ = await meshkit("stats", "rooms", "--json")
    assert json.loads(out)[0]["num_requests"] == 0
    _, out, _ = await meshkit("stats", "rooms", "--json", "--instances")
    assert json.loads(out)[0]["id"] == rooms.id


# ping


async def test_ping(meshkit, rooms):
    code, out, err = await meshkit("ping", "rooms")
    assert (code, err) == (0, "")
    heading, row = lines(out)
    assert heading == ["service", "id", "version", "rtt ms", "health"]
    assert row[:3] == ["rooms", rooms.id, "1.2.0"]
    assert 0 < float(row[3]) < 1000
    assert row[4] == "ok"


async def test_ping_fails_if_an_instance_is_not_well(meshkit, rooms):
    rooms.service.version = "0.0.0"
    code, out, _ = await meshkit("ping", "--json")
    (one,) = json.loads(out)
    assert (code, one["healthy"]) == (1, False)


async def test_ping_fails_if_nobody_answers(meshkit):
    assert await meshkit("ping") == (1, "", "No service answers.\n")
    answer = await meshkit("ping", "rooms")
    assert answer == (1, "", "meshkit: no service 'rooms' answers; services that do: none\n")


# call


async def test_call(meshkit, rooms):
    answer = await meshkit("call", "hotel.rooms.book", '{"room": 12, "guest": "Ann"}')
    assert answer == (0, '{"room":12,"total":120.0}\n', "")
    assert await meshkit("call", "hotel.rooms.12.price") == (0, "132.0\n", "")


async def test_call_is_pretty_on_a_terminal(on_terminal, rooms):
    shown = await on_terminal("call", "hotel.rooms.book", '{"room": 12, "guest": "Ann"}')
    assert shown == '{\n  "room": 12,\n  "total": 120.0\n}\n'


async def test_call_whose_reply_would_drive_the_terminal(meshkit, on_terminal, rooms):
    sent = '"é\u4e2d\x7f\x9b31m\u202e\U000e0001"'
    assert await on_terminal("call", "hotel.rooms.echo", sent) == (
        r'"é中\u007f\u009b31m\u202e\udb40\udc01"'.replace(r"\u4e2d", "\u4e2d") + "\n"
    )
    assert await meshkit("call", "hotel.rooms.echo", sent) == (0, f"{sent}\n", "")


async def test_call_from_standard_input(meshkit, rooms):
    answer = await meshkit("call", "hotel.rooms.echo", "-", stdin=b'{ "a": [1, 2] }\n')
    assert answer == (0, '{"a":[1,2]}\n', "")


async def test_call_with_headers(meshkit, rooms):
    answer = await meshkit("call", "hotel.rooms.echo", "1", "--header", "X-Reply: 2")
    assert answer == (0, "2\n", "")


async def test_call_raw(meshkit, rooms):
    assert await meshkit("call", "hotel.rooms.echo", "no JSON", "--raw") == (0, "no JSON", "")


async def test_call_of_a_stream(meshkit, mesh, on_terminal):
    service = Service("counter")

    @service.endpoint()
    async def count(to: int) -> AsyncIterator[dict[str, int]]:
        for number in range(1, to + 1):
            yield {"number": number}
        if to == 3:
            raise NotFound("there are no more")

    @service.endpoint()
    async def one() -> int:
        return 1

    async with mesh.serve(service):
        answer = await meshkit("call", "counter.count", "2", "--stream")
        assert answer == (0, '{"number":1}\n{"number":2}\n', "")
        assert await meshkit("call", "counter.count", "2", "--stream", "--raw") == (
            0,
            '{"number":1}{"number":2}',
            "",
        )
        assert await on_terminal("call", "counter.count", "1", "--stream") == '{\n  "number": 1\n}\n'
        code, out, err = await meshkit("call", "counter.count", "3", "--stream")
        assert (code, out.count("\n")) == (1, 3)
        assert err.startswith("meshkit: counter.count: 404 NotFound: there are no more (")
        answer = await meshkit("call", "counter.count", "2")
        assert answer[:2] == (1, "")
        assert "'counter.count' answers with a stream; read it with mesh.stream, or --stream" in answer[2]
        answer = await meshkit("call", "counter.one", "--stream")
        assert answer[:2] == (1, "")
        assert "'counter.one' answers with one reply; use mesh.call, or no --stream" in answer[2]


async def test_call_of_a_service_that_answers_no_json(meshkit, rooms):
    code, out, err = await meshkit("call", "hotel.rooms.echo", "1", "--header", "X-Reply:no JSON")
    assert (code, out) == (1, "")
    assert err.startswith("meshkit: the reply is not JSON: ")
    assert "--raw prints it" in err


async def test_call_that_fails(meshkit, rooms):
    code, out, err = await meshkit("call", "hotel.rooms.book", '{"room": 13, "guest": "Ann"}')
    assert (code, out) == (1, "")
    assert err.startswith("meshkit: hotel.rooms.book: 404 NotFound: there is no room 13 (")
    assert err.count("\n") == 1


async def test_call_of_nobody(meshkit):
    code, _, err = await meshkit("call", "hotel.rooms.book")
    assert code == 1
    assert "no service listens on 'hotel.rooms.book'" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["hotel.rooms.book", "Ann"], "a string has quotes of its own, within the shell's: '\"Ann\"'"),
        (["hotel.rooms.book", "[" * 10_000], "the message is not JSON: maximum recursion depth"),
        (["hotel.rooms.*", "1"], "contains a wildcard"),
        (["hotel rooms"], "white space"),
        (["hotel", "--header", "Name"], "--header 'Name' has no colon; write NAME:VALUE"),
        (["hotel", "--header", "a b:c"], "header name 'a b'"),
        (["hotel", "--timeout", "0"], "seconds above 0, or text such as 250ms, is wanted"),
        (["hotel", "--timeout", "nan"], "seconds above 0, or text such as 250ms, is wanted"),
        (["hotel", "--timeout", "inf"], "seconds above 0, or text such as 250ms, is wanted"),
    ],
)
async def test_what_cannot_be_called(meshkit, arguments, why):
    code, out, err = await meshkit("call", *arguments)
    assert (code, out) == (2, "")
    assert why in " ".join(err.split())


# Completion


async def completions(meshkit, *words, **environment):
    line = " ".join(["meshkit", *words])
    code, out, err = await meshkit(
        **{
            "_MESHKIT_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
            **environment,
        }
    )
    assert (code, err) == (0, "")
    return out.split()


async def test_completion(meshkit, mesh, rooms):
    async with mesh.serve(Service("payments")):
        assert await completions(meshkit, "info", "r") == ["plain,rooms"]
        assert await completions(meshkit, "stats", "rooms", rooms.id[:3]) == [f"plain,{rooms.id}"]
        assert await completions(meshkit, "ping", "p") == ["plain,payments"]


async def test_completion_is_silent_without_a_mesh(meshkit):
    assert await completions(meshkit, "info", "r") == []
    assert await completions(meshkit, "info", "r", NATS_URL=NOBODY) == []
    assert await completions(meshkit, "info", "r", NATS_URL="junk://") == []


# Schemas


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Guest(msgspec.Struct):
    name: str
    friends: list["Guest"] = []


class Everything(msgspec.Struct, rename="camel"):
    guest: Guest
    first_color: Color = Color.RED
    tags: list[str] = msgspec.field(default_factory=lambda: ["a"])
    prices: dict[str, float] = {}
    at: tuple[int, str] | None = None
    kind: Literal["x", 1] = "x"
    key: uuid.UUID | None = None
    rest: Any = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    pass


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (int, "int"),
        (None, "None"),
        (Any, "any"),
        (list[str | None], "list[str | None]"),
        (Booking, "Booking{room:int, guest:str, nights:int=1}"),
        (list[Guest], "list[Guest{name:str, friends:list[Guest]=[]}]"),
        (Cat | Dog, 'Cat{type:"Cat", lives:int} | Dog{type:"Dog"}'),
        (
            Everything,
            (
                'Everything{guest:Guest{name:str, friends:list[Guest]=[]}, firstColor:"blue" | "red"="red", '
                "tags?:list[str], prices:dict[str, float]={}, at:tuple[int, str] | None=None, "
                'kind:1 | "x"="x", key:uuid | None=None, rest:any=None}'
            ),
        ),
    ],
)
def test_schemas_are_shortened(type_, expected):
    assert shape(msgspec.json.encode(msgspec.json.schema(type_)).decode()) == expected


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "junk",
        "true",
        '{"type": ["string", "null"]}',
        '{"$ref": "#/definitions/x"}',
        '{"$ref": "#/$defs/x"}',
        '{"items":' * 2000 + "{}" + "}" * 2000,
    ],
)
def test_schemas_of_another_kind_stay_as_they_are(schema):
    assert shape(schema) == schema
