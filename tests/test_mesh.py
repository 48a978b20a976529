"""Calls and events, from the caller's side."""

import asyncio
import enum
import gc
import sys
import threading
import time
import uuid
from typing import Annotated, Any

import msgspec
import pytest
from support import until

from meshkit import (
    BadReply,
    BadRequest,
    CallPolicy,
    Context,
    DeadlineExceeded,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Service,
    ServiceError,
    connect,
)
from meshkit.errors import from_headers
from meshkit.headers import render


class Booking(msgspec.Struct):
    room: int
    guest: str
    nights: int = 1


class Receipt(msgspec.Struct):
    room: int
    total: float


class Kind(enum.Enum):
    SINGLE = "single"
    DOUBLE = "double"


service = Service("rooms", version="1.0.0")


@service.endpoint("hotel.rooms.book", timeout=2.0)
async def book(booking: Booking) -> Receipt:
    return Receipt(room=booking.room, total=120.0 * booking.nights)


@service.endpoint("hotel.rooms.{room}.price", idempotent=True)
async def price(ctx: Context, room: int, nights: int = 1) -> float:
    return 10.0 * room * nights


@service.endpoint("typed.{kind}.{key}.{share}")
async def typed(kind: Kind, key: uuid.UUID, share: Annotated[float, msgspec.Meta(le=1)]) -> list[str]:
    return [kind.name, key.hex, str(share)]


@service.endpoint("tail.{first}.>")
async def tail(ctx: Context, first: str) -> str:
    return f"{first} of {ctx.subject}"


@service.endpoint()
async def raw(payload: bytes) -> bytes:
    return payload[::-1]


@service.endpoint()
async def anything(message: Any) -> Any:
    return message


@service.endpoint()
async def nothing() -> None: ...


@service.endpoint()
async def about(ctx: Context) -> dict[str, Any]:
    return {
        "subject": ctx.subject,
        "headers": dict(ctx.headers),
        "instance": ctx.instance,
        "caller": ctx.caller,
        "remaining": ctx.remaining,
    }


@service.endpoint()
async def through(ctx: Context, subject: str) -> Any:
    return await ctx.mesh.call(subject, returns=Any)


@service.endpoint()
def blocking(ctx: Context, subject: str) -> Any:
    assert threading.current_thread() is not threading.main_thread()
    return ctx.run(ctx.mesh.call(subject, returns=Any))


@service.endpoint()
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@service.endpoint()
async def fail(kind: str) -> None:
    match kind:
        case "missing":
            raise NotFound("no room 12")
        case "own":
            raise ServiceError(409, "room 12 is taken")
        case "bug":
            raise KeyError("db password=hunter2")
        case "cancelled":
            task = asyncio.create_task(asyncio.sleep(10))
            task.cancel()
            await task
        case "exit":
            sys.exit(3)
        case "timeout":
            raise TimeoutError("the database's, not the mesh's")


@pytest.fixture
async def mesh(nats_server):
    """The caller, on a connection of its own."""
    async with connect(nats_server.url) as server, server.serve(service), connect(nats_server.url) as mesh:
        yield mesh


# Calls


async def test_an_endpoint_is_a_typed_target(mesh):
    assert await mesh.call(book, Booking(12, "Ann", 2)) == Receipt(12, 240.0)
    assert await mesh.call(book, {"room": 1, "guest": "Bob"}) == Receipt(1, 120.0)


async def test_a_subject_gives_what_the_json_is_or_what_is_asked_for(mesh):
    booking = Booking(12, "Ann")
    assert await mesh.call("hotel.rooms.book", booking) == {"room": 12, "total": 120.0}
    assert await mesh.call("hotel.rooms.book", booking, returns=Receipt) == Receipt(12, 120.0)
    assert await mesh.call("hotel.rooms.book", booking, returns=bytes) == b'{"room":12,"total":120.0}'


async def test_subjects_have_parameters(mesh):
    assert await mesh.call(price.at(room=12)) == 120.0
    assert await mesh.call(price.at(room=12), 3) == 360.0
    assert await mesh.call("hotel.rooms.7.price", returns=float) == 70.0
    with pytest.raises(ValueError, match=r"call price.at\(\.\.\.\) with its parameters"):
        await mesh.call(price)
    assert await mesh.call("tail.a.b.c") == "a of tail.a.b.c"


async def test_parameters_of_subjects_are_checked(mesh):
    with pytest.raises(
        BadRequest, match=r"room='x' in subject 'hotel.rooms.x.price': Expected `int`, got `str`"
    ):
        await mesh.call("hotel.rooms.x.price")
    key = uuid.uuid4()
    assert await mesh.call(typed.at(kind="double", key=key, share=1)) == ["DOUBLE", key.hex, "1.0"]
    with pytest.raises(BadRequest, match=r"kind='triple'.*Invalid enum value"):
        await mesh.call(f"typed.triple.{key}.1")
    with pytest.raises(BadRequest, match=r"share='2'.*Expected `float` <= 1"):
        await mesh.call(f"typed.double.{key}.2")
    error = await refusal(mesh, "tail.*.x")
    assert error.message == "first in subject 'tail.*.x' is a wildcard, not a value"


async def refusal(mesh, subject, headers=None):
    """What a client is answered that checks nothing."""
    message = await mesh.transport.request(
        subject, b"", render(headers or {}), asyncio.get_running_loop().time() + 5
    )
    return from_headers(message.headers)


async def test_bytes_pass_as_they_are(mesh):
    payload = bytes(range(256))
    assert await mesh.call(raw, payload) == payload[::-1]
    assert await mesh.call(raw) == b""


async def test_no_message_and_no_reply(mesh):
    assert await mesh.call(nothing) is None
    assert await mesh.call(anything) is None
    assert await mesh.call(anything, [1, {"a": None}]) == [1, {"a": None}]
    with pytest.raises(BadRequest, match="no message was sent; Booking is expected"):
        await mesh.call(book)


async def test_what_does_not_decode_names_the_field(mesh):
    with pytest.raises(BadRequest, match=r"Expected `int`, got `str` - at `\$.room`"):
        await mesh.call(book, {"room": "twelve", "guest": "Ann"})
    with pytest.raises(BadRequest, match=r"missing required field `guest`"):
        await mesh.call(book, {"room": 12})
    with pytest.raises(BadRequest, match="malformed"):
        await mesh.call("hotel.rooms.book", b"{nonsense")


async def test_msgpack(nats_server, mesh):
    async with connect(nats_server.url, codec="msgpack") as packed:
        assert await packed.call(book, Booking(12, "Ann")) == Receipt(12, 120.0)
        reply = await packed.call("hotel.rooms.book", Booking(12, "Ann"), returns=bytes)
        assert msgspec.msgpack.decode(reply) == {"room": 12, "total": 120.0}
        with pytest.raises(BadRequest, match=r"at `\$.room`"):
            await packed.call(book, {"room": "x"})
    reply = await mesh.call(
        "hotel.rooms.book",
        Booking(1, "Bob"),
        headers={"Content-Type": "application/msgpack"},
        returns=Receipt,
    )
    assert reply == Receipt(1, 120.0)


async def test_msgpack_with_headers(nats_server, mesh):
    async with connect(nats_server.url, codec="msgpack") as packed:
        assert await packed.call(anything, {"a": 1}, headers={"Note": "x"}) == {"a": 1}


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
async def test_a_content_type_that_is_given_is_sent_alone_however_it_is_written(nats_server, mesh, name):
    json = {name: "application/json"}
    async with connect(nats_server.url, codec="msgpack") as packed:
        assert await packed.call(anything, {"a": 1}, headers=json) == {"a": 1}
        seen = (await packed.call(about, headers=json))["headers"]
    assert {key: value for key, value in seen.items() if key.lower() == "content-type"} == json


async def test_raw_bytes_may_be_of_any_type(mesh):
    image = {"Content-Type": "image/png"}
    assert await mesh.call(raw, b"abc", headers=image) == b"cba"
    with pytest.raises(BadRequest, match="'image/png' is not understood"):
        await mesh.call("rooms.anything", b"abc", headers=image)
    with pytest.raises(BadRequest, match="'image/png' is not understood"):
        await mesh.call(anything, {"a": 1}, headers=image)


async def test_an_unknown_content_type(mesh):
    with pytest.raises(BadRequest, match="'text/xml' is not understood"):
        await mesh.call("hotel.rooms.book", b"<x/>", headers={"Content-Type": "text/xml"})


async def test_a_reply_of_another_type(mesh):
    with pytest.raises(BadReply, match=r"rooms.anything: 502 .* Expected `int`, got `str`; returns=bytes"):
        await mesh.call("rooms.anything", "text", returns=int)


async def test_concurrent_calls_do_not_wait_for_each_other(mesh):
    started = time.perf_counter()
    await asyncio.gather(*(mesh.call(nap, 0.1) for _ in range(10)))
    assert time.perf_counter() - started < 0.5


async def test_nonsense_is_refused_before_sending(mesh):
    with pytest.raises(ValueError, match="contains a wildcard"):
        await mesh.call("hotel.*.book")
    with pytest.raises(ValueError, match="is empty"):
        await mesh.call("")
    for timeout in (0, float("inf"), "soon"):
        with pytest.raises(ValueError, match="timeout is seconds above 0, or text such as '250ms'"):
            await mesh.call(nothing, timeout=timeout)
    with pytest.raises(ValueError, match="is longer than 1,000 bytes"):
        await mesh.call(price.at(room="x" * 5000))
    with pytest.raises(TypeError, match="cannot be called; give a subject, an endpoint"):
        await mesh.call(refusal)
    with pytest.raises(TypeError, match="Encoding objects of type"):
        await mesh.call(anything, object())


# Errors


async def test_errors_of_handlers(mesh):
    with pytest.raises(NotFound, match="no room 12"):
        await mesh.call(fail, "missing")
    with pytest.raises(ServiceError) as e:
        await mesh.call(fail, "own")
    assert (e.value.code, e.value.message) == (409, "room 12 is taken")


@pytest.mark.parametrize("kind", ["bug", "cancelled", "timeout", "exit"])
async def test_a_bug_tells_the_caller_nothing_but_an_id(mesh, kind, caplog):
    with pytest.raises(InternalError) as e:
        await mesh.call(fail, kind)
    assert "hunter2" not in str(e.value)
    number = e.value.message.split()[2].rstrip(";")
    assert f"rooms.fail failed, error {number}" in caplog.text
    assert await mesh.call(nothing) is None


async def test_an_error_names_target_instance_and_time(mesh):
    with pytest.raises(NotFound) as e:
        await mesh.call(fail, "missing")
    error = e.value
    assert error.target == "rooms.fail"
    assert error.instance.startswith("rooms/")
    assert error.attempt == 1
    assert 0 < error.elapsed < 2


async def test_an_error_that_a_nested_call_met_is_no_nack(mesh):
    """The outer handler was executed: nobody may call it again for free."""
    with pytest.raises(MeshError) as e:
        await mesh.call(through, "nobody.here")
    assert e.value.code == 503
    assert e.value.executed is not False
    with pytest.raises(NoResponders) as e:
        await mesh.call("nobody.here")
    assert e.value.executed is False


# Deadlines


async def test_a_call_has_a_deadline(mesh):
    about_it = await mesh.call(about)
    assert 4 < about_it["remaining"] <= 5
    assert int(about_it["headers"]["Mesh-Timeout"]) <= 5000
    assert (await mesh.call(about, timeout=60))["remaining"] > 50


async def test_an_endpoints_own_timeout_is_what_a_call_gets(mesh):
    assert book.call.timeout == book.serve.timeout == 2.0
    slow = Service("slow")

    @slow.endpoint(timeout=0.1)
    async def late() -> None:
        await asyncio.sleep(60)

    async with mesh.serve(slow):
        for target, timeout in ((late, None), ("slow.late", None), ("slow.late", 30)):
            with pytest.raises(DeadlineExceeded) as e:
                await mesh.call(target, timeout=timeout)
            assert e.value.elapsed < 2
        # The service stopped it, and said so.
        assert e.value.message == "the handler was stopped at the deadline"
        assert e.value.instance


async def test_a_caller_without_the_header_is_stopped_after_five_seconds(nats_server, clock):
    running = asyncio.Event()
    stopped = []
    slow = Service("patient")

    @slow.endpoint()
    async def late() -> None:
        running.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.append(clock.now())

    async with connect(nats_server.url) as mesh, mesh.serve(slow):
        begin = clock.now()
        plain = asyncio.create_task(mesh.transport.request("patient.late", b"", b"", begin + 60))
        await running.wait()
        await clock.advance(4.9)
        assert not stopped
        await clock.advance(0.2)
        assert stopped
        assert (await plain).headers["Nats-Service-Error-Code"] == "504"


async def test_a_nested_call_ends_with_the_deadline_of_the_outer_one(mesh):
    about_it = await mesh.call(through, "rooms.about", timeout=1.0)
    assert about_it["remaining"] <= 1.0
    # The same from a `def` handler's thread.
    about_it = await mesh.call(blocking, "rooms.about", timeout=1.0)
    assert about_it["remaining"] <= 1.0


async def test_expired_work_is_refused(mesh):
    error = await refusal(mesh, "rooms.nothing", {"Mesh-Timeout": "0"})
    assert (error.code, error.message) == (504, "the deadline had passed when the call's turn came")


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "9" * 5000, "²", ""])
async def test_a_timeout_that_is_none(mesh, text):
    assert (await refusal(mesh, "rooms.nothing", {"Mesh-Timeout": text})).code == 400


async def test_a_deadline_that_has_passed_is_not_sent(mesh):
    late = Service("late")
    errors = []

    @late.endpoint()
    async def give_up(ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            with pytest.raises(DeadlineExceeded, match="passed before the call was sent") as e:
                await ctx.mesh.call(nothing)
            errors.append(e.value)
            raise

    async with mesh.serve(late):
        with pytest.raises(DeadlineExceeded):
            await mesh.call(give_up, timeout=1)
        await until(lambda: errors)
    assert errors[0].executed is False


async def test_what_a_handler_has_started_outlives_its_deadline(nats_server):
    done = asyncio.Event()
    tasks = []
    starter = Service("starter")

    async def later(mesh):
        await done.wait()
        return await mesh.call("starter.answer")

    @starter.endpoint(timeout=0.1)
    async def start(ctx: Context) -> None:
        tasks.append(asyncio.create_task(later(ctx.mesh)))

    @starter.endpoint()
    async def answer() -> int:
        return 42

    async with connect(nats_server.url) as mesh, mesh.serve(starter):
        await mesh.call(start)
        await asyncio.sleep(0.15)
        done.set()
        assert await tasks[0] == 42


async def test_a_reply_cannot_be_given_by_who_got_another_request(mesh):
    """The reply subjects of one connection do not follow from each other."""
    subjects = []

    def take(message):
        subjects.append(message.reply.rpartition(".")[2])

    await mesh.transport.subscribe("spy", take)
    await mesh.transport.flush()
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            await mesh.call("spy", timeout=0.02)
    assert all(len(subject) >= 9 for subject in subjects)
    assert len({subject[-8:] for subject in subjects}) == 3


# What travels along


TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
    "baggage": "guest=ann",
}


async def test_the_trace_and_nothing_else_goes_on_in_nested_calls(mesh):
    headers = {**TRACE, "Authorization": "secret", "Nats-Msg-Id": "7"}
    seen = (await mesh.call(through, "rooms.about", headers=headers))["headers"]
    assert {name: seen[name] for name in TRACE} == TRACE
    assert set(seen) == {*TRACE, "Mesh-Timeout", "Mesh-Caller"}
    titled = {name.title(): value for name, value in TRACE.items()}
    seen = (await mesh.call(through, "rooms.about", headers=titled))["headers"]
    assert {name: seen[name] for name in TRACE} == TRACE


OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
async def test_a_trace_that_is_given_goes_before_that_inherited_however_it_is_written(mesh, name):
    seen = await inner_headers(mesh, {name: OTHER})
    assert [value for key, value in seen.items() if key.lower() == "traceparent"] == [OTHER]
    assert (seen["tracestate"], seen["baggage"]) == (TRACE["tracestate"], TRACE["baggage"])


@pytest.mark.parametrize("name", ["Mesh-Caller", "mesh-caller"])
async def test_a_service_cannot_pass_for_another(mesh, name):
    seen = await inner_headers(mesh, {name: "bank/1"})
    (caller,) = (value for key, value in seen.items() if key.lower() == "mesh-caller")
    assert caller.startswith("outer/")


async def inner_headers(mesh, given):
    """What arrives of a call with these headers, made by a handler that was called with a trace."""
    outer = Service("outer")

    @outer.endpoint()
    async def relay(ctx: Context) -> dict[str, Any]:
        return await ctx.mesh.call(about, headers=given)

    async with mesh.serve(outer):
        return (await mesh.call(relay, headers=TRACE))["headers"]


async def test_a_service_says_who_calls(mesh):
    direct = await mesh.call(about)
    nested = await mesh.call(through, "rooms.about")
    assert direct["caller"] is None
    assert nested["caller"] == direct["instance"]
    assert direct["subject"] == "rooms.about"


async def test_requests_do_not_inherit_from_each_other(mesh):
    """nats-py runs all callbacks of a subscription in one context."""
    await mesh.call(about, headers=TRACE)
    assert set((await mesh.call(about))["headers"]) == {"Mesh-Timeout"}


async def test_a_successful_reply_has_no_headers(mesh):
    message = await mesh.transport.request(
        "rooms.nothing", b"", render(TRACE), asyncio.get_running_loop().time() + 5
    )
    assert message.head == b""


# Events


async def test_events(nats_server):
    heard = asyncio.Queue()
    listener = Service("listener")

    @listener.subscribe("hotel.*.saved")
    async def on_saved(receipt: Receipt, ctx: Context) -> None:
        heard.put_nowait((ctx.subject, receipt, dict(ctx.headers), ctx.remaining))

    @listener.group("hotel").subscribe("{what}.deleted")
    def on_deleted(what: str) -> None:
        heard.put_nowait(what)

    async with connect(nats_server.url) as mesh, mesh.serve(listener):
        await mesh.publish("hotel.rooms.saved", Receipt(12, 120.0), headers={"Note": "x"})
        assert await heard.get() == ("hotel.rooms.saved", Receipt(12, 120.0), {"Note": "x"}, float("inf"))
        await mesh.publish("hotel.booking.deleted")
        assert await heard.get() == "booking"
        async with connect(nats_server.url, codec="msgpack") as packed:
            await packed.publish("hotel.rooms.saved", Receipt(1, 2.0))
        assert (await heard.get())[1] == Receipt(1, 2.0)


async def test_events_keep_their_order_and_bad_ones_do_no_harm(nats_server, caplog):
    heard = []
    done = asyncio.Event()
    listener = Service("listener")

    @listener.subscribe("numbers")
    async def on_number(number: int) -> None:
        await asyncio.sleep(0.01 if number % 2 else 0)
        if number == 5:
            raise RuntimeError("five")
        heard.append(number)
        if number == 19:
            done.set()

    async with connect(nats_server.url) as mesh, mesh.serve(listener):
        for number in range(20):
            await mesh.publish("numbers", number)
            await mesh.publish("numbers", b"{nonsense" if number == 7 else number + 0.5)
        await done.wait()
    assert heard == [number for number in range(20) if number != 5]
    assert "an event on numbers was not handled: 500" in caplog.text
    assert "an event on numbers was not handled: 400" in caplog.text


async def test_a_queue_shares_events_and_no_queue_does_not(nats_server):
    shared, all_of_them = [], []
    listener = Service("listener")

    @listener.subscribe("work", queue="workers")
    async def work(number: int) -> None:
        shared.append(number)

    @listener.subscribe("work")
    async def watch(number: int) -> None:
        all_of_them.append(number)

    async with (
        connect(nats_server.url) as mesh,
        mesh.serve(listener),
        mesh.serve(listener),
        mesh.serve(listener),
    ):
        for number in range(30):
            await mesh.publish("work", number)
        await until(lambda: len(shared) == 30 and len(all_of_them) == 90)
    assert sorted(shared) == list(range(30))
    assert len(all_of_them) == 90


async def test_an_event_passes_the_trace_on(nats_server):
    heard = asyncio.Queue()
    listener = Service("listener")

    @listener.subscribe("first")
    async def first(ctx: Context) -> None:
        await ctx.mesh.publish("second")

    @listener.subscribe("second")
    async def second(ctx: Context) -> None:
        heard.put_nowait(dict(ctx.headers))

    async with connect(nats_server.url) as mesh, mesh.serve(listener):
        await mesh.publish("first", headers={**TRACE, "Nats-Msg-Id": "1"})
        assert await heard.get() == TRACE


async def test_calls_leave_nothing_to_the_garbage_collector(mesh):
    """However they end: what refers to itself stays in memory until the collector comes."""

    async def late():
        with pytest.raises(DeadlineExceeded):
            await mesh.call("cyclic.slow", timeout=0.001, policy=CallPolicy(breaker=False))

    async def nobody():
        with pytest.raises(NoResponders):
            await mesh.call("cyclic.nobody")

    async def refused():
        with pytest.raises(BadRequest):
            await mesh.call("cyclic.double", "x")

    async def answered():
        await mesh.call("cyclic.double", 2)

    service = Service("cyclic")

    @service.endpoint()
    async def double(number: int) -> int:
        return 2 * number

    @service.endpoint()
    async def slow() -> None:
        await asyncio.sleep(0.01)

    async with mesh.serve(service):
        for call in (late, nobody, refused, answered):
            await call()
            gc.collect()
            gc.disable()
            try:
                for _ in range(50):
                    await call()
                assert gc.collect() < 50, call.__name__
            finally:
                gc.enable()
