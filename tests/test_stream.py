"""Streams, as those who write and read them see them."""

import asyncio
import contextlib
import functools
import gc
import typing
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest
from support import until, until_by

from meshkit import (
    BadReply,
    BadRequest,
    CallPolicy,
    Cancelled,
    CircuitOpen,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    DeclarationError,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    Service,
    Unavailable,
    connect,
)
from meshkit import instance as instance_module
from meshkit.transport.server import EmbeddedServer


class Query(msgspec.Struct):
    most: int = 1000
    fail: bool = False


class Line(msgspec.Struct):
    number: int


class Log(Service):
    """Streams of numbers; `sent` is the last one yielded, `ended` how the streams have ended."""

    def __init__(self, name="log", **options):
        super().__init__(name, **options)
        self.sent, self.ended = 0, []
        self.gate = asyncio.Event()
        self.gate.set()
        self.tail = self.endpoint()(self._tail())
        self.where = self.endpoint("log.{room}.where")(where)

    def _tail(self):
        async def tail(query: Query) -> AsyncIterator[Line]:
            try:
                for self.sent in range(1, query.most + 1):
                    yield Line(self.sent)
                    await self.gate.wait()
                if query.fail:
                    raise NotFound("the log ends here")
            except BaseException as error:
                self.ended.append(type(error))
                raise
            else:
                self.ended.append(None)

        return tail

    @property
    def is_stopped(self):
        """Whether one stream was stopped, where it waited or where it yielded."""
        return self.ended in ([asyncio.CancelledError], [GeneratorExit])


async def where(room: int, ctx: Context) -> AsyncGenerator[str, None]:
    yield f"{room} {ctx.subject}"


@pytest.fixture
async def log(mesh):
    service = Log()
    async with mesh.serve(service):
        yield service


@pytest.fixture
async def reader(nats_server):
    """Another connection than the one that serves."""
    async with connect(nats_server.url) as mesh:
        yield mesh


async def numbers(stream):
    return [line.number async for line in stream]


async def outcome(stream):
    """The numbers that come, and the error after them."""
    read = []
    try:
        async for line in stream:
            read.append(line.number)  # noqa: PERF401 - what has come before the error counts
    except MeshError as error:
        return read, error
    return read, None


# Order and ends


async def test_items_come_in_order_until_the_end(log, reader):
    assert await numbers(reader.stream(log.tail, Query(1000))) == list(range(1, 1001))
    assert log.ended == [None]
    assert not log_of(reader)


def log_of(mesh):
    """Reply subjects that somebody still holds."""
    return [subject for subject, _ in mesh.transport._waiting.values()]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65])
async def test_around_the_window(log, reader, count):
    assert len(await numbers(reader.stream(log.tail, Query(count)))) == count


async def test_streams_run_side_by_side(log, reader):
    both = await asyncio.gather(*(numbers(reader.stream(log.tail, Query(500))) for _ in range(2)))
    assert both == [list(range(1, 501))] * 2


async def test_every_way_to_name_it(log, mesh):
    async with mesh.stream("log.tail", Query(2), returns=Line, timeout="10m", message_timeout="5s") as lines:
        assert await numbers(lines) == [1, 2]
    assert [item async for item in mesh.stream("log.tail", {"most": 1})] == [{"number": 1}]
    assert [item async for item in mesh.stream("log.tail", {"most": 1}, returns=bytes)] == [b'{"number":1}']
    assert [text async for text in mesh.stream(log.where.at(room=7))] == ["7 log.7.where"]
    # Without the mesh it is the function.
    assert await numbers(log.tail(Query(2))) == [1, 2]


async def test_in_messagepack(log, nats_server):
    async with connect(nats_server.url, codec="msgpack") as mesh:
        assert await numbers(mesh.stream(log.tail, Query(100))) == list(range(1, 101))
        raw = [item async for item in mesh.stream(log.tail, Query(1), returns=bytes)]
    assert raw == [msgspec.msgpack.encode(Line(1))]


async def test_after_the_end_there_is_nothing(log, mesh):
    stream = mesh.stream(log.tail, Query(1))
    assert await numbers(stream) == [1]
    assert await numbers(stream) == []
    never = mesh.stream(log.tail, Query(1))
    await never.aclose()
    assert await numbers(never) == []


async def test_an_error_comes_after_the_items_before_it(log, reader):
    stream = reader.stream(log.tail, Query(3, fail=True))
    read, error = await outcome(stream)
    assert (read, type(error), error.message) == ([1, 2, 3], NotFound, "the log ends here")
    assert (error.executed, error.target, error.instance.partition("/")[0]) == (True, "log.tail", "log")
    assert error.elapsed > 0
    # It never looks like one that has come to its end.
    with pytest.raises(NotFound):
        await anext(stream)


async def test_an_error_before_the_first_item_is_an_ordinary_error(log, reader):
    for message, error in ((Query(0, fail=True), NotFound), ({"most": "x"}, BadRequest)):
        with pytest.raises(error):
            await anext(reader.stream(log.tail, message))
    with pytest.raises(NoResponders, match=r"nobody\.here"):
        await anext(reader.stream("nobody.here"))


async def test_what_cannot_be_sent_or_encoded_is_an_error_of_the_handler(mesh, caplog):
    service = Service("log")

    @service.endpoint()
    async def large() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"x" * (mesh.transport.max_payload + 1)

    @service.endpoint()
    async def strange() -> AsyncIterator[Line]:
        yield object()

    async with mesh.serve(service):
        stream = mesh.stream(large)
        assert await anext(stream) == b"x"
        with pytest.raises(InternalError, match=r"item 2 cannot be sent: the message to .* bytes"):
            await anext(stream)
        with pytest.raises(InternalError, match="internal error"):
            await anext(mesh.stream(strange))
    assert "Encoding objects of type object is unsupported" in caplog.text


async def test_an_item_of_another_type_is_an_error(log, reader):
    with pytest.raises(BadReply, match="Expected `str`"):
        await anext(reader.stream(log.tail, Query(), returns=str))
    await until(lambda: log.is_stopped)


# The reader stops


@pytest.mark.parametrize("how", ["break", "aclose", "with", "cancel", "error", "drop"])
async def test_when_the_reader_stops_the_handler_stops(log, reader, how):
    stream = reader.stream(log.tail, Query(10**6))
    if how == "break":
        async for line in stream:
            if line.number == 100:
                break
        del stream
    elif how == "aclose":
        await anext(stream)
        await stream.aclose()
        assert await numbers(stream) == []
    elif how == "with":
        async with stream as lines:
            await anext(lines)
    elif how == "error":
        with contextlib.suppress(ZeroDivisionError):
            async with stream as lines:
                async for line in lines:
                    1 / (line.number - 1)
    elif how == "drop":
        await anext(stream)
        stream = [stream]
        stream.append(stream)
        del stream
        gc.collect()
    else:
        log.gate.clear()
        reading = asyncio.create_task(numbers(stream))
        await until(lambda: log.sent == 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        with pytest.raises(Cancelled, match="CancelledError"):
            await anext(stream)
    await until(lambda: log.is_stopped)
    assert log.sent <= 200
    assert not log_of(reader)


async def test_a_reader_that_stops_while_it_opens_stops_the_handler(log, reader):
    log.gate.clear()
    entered = asyncio.Event()

    @Service("slow").endpoint()
    async def slow() -> AsyncIterator[int]:
        try:
            entered.set()
            await log.gate.wait()
            yield 1
        finally:
            log.ended.append("slow")

    async with reader.serve(slow.service):
        reading = asyncio.create_task(anext(reader.stream(slow)))
        await entered.wait()
        reading.cancel()
        await until(lambda: log.ended == ["slow"])
    assert not log_of(reader)


async def test_a_stream_that_nobody_opened_is_nothing(log, reader):
    reader.stream(log.tail, Query())
    async with reader.stream(log.tail, Query()):
        pass
    assert await numbers(reader.stream(log.tail, Query(1))) == [1]
    assert log.ended == [None]


async def test_a_reader_whose_connection_is_gone_stops_the_handler(log, mesh, nats_server):
    log.gate.clear()
    async with connect(nats_server.url) as reader:
        stream = reader.stream(log.tail, Query())
        await anext(stream)
        reply = stream._arrivals.reply
    with pytest.raises(ConnectionLost):
        await anext(stream)
    await nobody_listens(mesh, reply)
    log.gate.set()
    # NATS says so with the next item.
    await until(lambda: log.is_stopped)
    assert log.sent <= 65


async def nobody_listens(mesh, subject):
    async with asyncio.timeout(5):
        while await mesh.transport.gather(subject, timeout=0.01):
            pass


async def test_two_cannot_read_one_stream(log, reader):
    log.gate.clear()
    stream = reader.stream(log.tail, Query(2))
    await anext(stream)
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="somebody reads this stream already"):
        await anext(stream)
    log.gate.set()
    assert (await first).number == 2


async def test_closing_it_while_another_task_reads_does_not_look_like_its_end(log, reader):
    log.gate.clear()
    stream = reader.stream(log.tail, Query(2))
    reading = asyncio.create_task(numbers(stream))
    await until(lambda: log.sent == 1 and stream._arrivals and stream._arrivals._taken)
    await stream.aclose()
    for read in (reading, anext(stream)):
        with pytest.raises(Cancelled, match="the stream was closed while it was read"):
            await read
    await until(lambda: log.is_stopped)


async def test_closing_it_while_it_opens(log, reader):
    log.gate.clear()
    service = Service("slow")

    @service.endpoint()
    async def slow() -> AsyncIterator[int]:
        await log.gate.wait()
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            log.ended.append("slow")

    async with reader.serve(service):
        stream = reader.stream(slow)
        reading = asyncio.create_task(anext(stream, "the end"))
        await until(lambda: log_of(reader))
        await stream.aclose()
        log.gate.set()
        with pytest.raises(Cancelled, match="closed while it was read"):
            await reading
        await until(lambda: log.ended == ["slow"])


async def test_streams_leave_no_work_for_the_garbage_collector(log, reader):
    async def complete():
        await numbers(reader.stream(log.tail, Query(100)))

    async def fails():
        await outcome(reader.stream(log.tail, Query(1, fail=True)))

    async def refused():
        await outcome(reader.stream(log.tail, {"most": "x"}))

    async def left():
        async for _line in reader.stream(log.tail, Query(1000)):
            break
        log.ended.clear()
        await until(lambda: log.ended)

    async def mistaken():
        with contextlib.suppress(BadReply):
            await reader.call("log.tail", Query(10**6))
        log.ended.clear()
        await until(lambda: log.ended)

    for read in (complete, fails, refused, left, mistaken):
        await read()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await read()
            assert gc.collect() < 50, read.__name__
        finally:
            gc.enable()


# Deadlines


async def test_an_item_that_does_not_come_in_time(log, mesh, clock):
    log.gate.clear()
    stream = mesh.stream(log.tail, Query(), message_timeout="3s")
    assert (await anext(stream)).number == 1
    await clock.advance(60)  # nobody waits for it yet
    reading = asyncio.create_task(anext(stream))
    await clock.advance(2.9)
    assert not reading.done()
    await clock.advance(0.2)
    with pytest.raises(DeadlineExceeded, match=r"log\.tail: .*no item came in time .*63\.000 s"):
        await reading
    await until_by(clock, lambda: log.is_stopped)


async def test_the_first_item_has_its_deadline_too(mesh, clock):
    await mesh.transport.subscribe("silent", lambda _message: None)
    await mesh.transport.flush()
    reading = asyncio.create_task(anext(mesh.stream("silent")))
    await clock.advance(4.9)
    assert not reading.done()
    await clock.advance(0.2)
    with pytest.raises(DeadlineExceeded):
        await reading


async def test_the_deadline_of_the_stream(log, mesh, clock):
    log.gate.clear()
    stream = mesh.stream(log.tail, Query(), timeout=10, message_timeout=60)
    await anext(stream)
    reading = asyncio.create_task(anext(stream))
    await clock.advance(9.9)
    assert not reading.done()
    await clock.advance(0.2)
    with pytest.raises(DeadlineExceeded):
        await reading
    await until_by(clock, lambda: log.is_stopped)


async def test_without_a_deadline_it_goes_on(log, mesh, clock):
    """And a reader that is alive keeps alive a producer that has no room."""
    stream = mesh.stream(log.tail, Query(100))
    assert (await anext(stream)).number == 1
    await clock.advance(120)
    assert log.sent == 65
    assert await numbers(stream) == list(range(2, 101))


async def test_after_its_end_nothing_is_sent(log, mesh, clock, monkeypatch):
    await numbers(mesh.stream(log.tail, Query(100)))
    told = []
    monkeypatch.setattr(mesh.transport, "tell", lambda *message: told.append(message))
    await clock.advance(60)
    assert told == []


async def test_the_endpoints_own_timeout_bounds_the_stream(mesh, clock):
    service = Service("log")

    @service.endpoint(timeout=2)
    async def tail() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with mesh.serve(service):
        stream = mesh.stream(tail, message_timeout=60)
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await clock.advance(2.1)
        with pytest.raises(DeadlineExceeded, match="the handler was stopped at the deadline"):
            await reading


async def test_a_nested_stream_inherits_deadline_and_trace(mesh, reader):
    outer, inner = Service("outer"), Service("inner")
    seen = []

    @inner.endpoint()
    async def count(ctx: Context) -> AsyncIterator[int]:
        seen.append((ctx.remaining, ctx.headers["traceparent"], ctx.caller.partition("/")[0]))
        yield 1
        yield 2

    @outer.endpoint()
    async def doubled(ctx: Context) -> AsyncIterator[int]:
        async for number in ctx.mesh.stream(count):
            yield 2 * number

    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with mesh.serve(inner), mesh.serve(outer):
        stream = reader.stream(doubled, timeout=30, headers={"traceparent": trace})
        assert [number async for number in stream] == [2, 4]
    ((remaining, traceparent, caller),) = seen
    assert 0 < remaining <= 30
    assert (traceparent, caller) == (trace, "outer")


# Room


async def test_a_slow_reader_holds_the_producer_back(log, reader):
    stream = reader.stream(log.tail, Query(1000))
    for taken in range(1, 200):
        assert (await anext(stream)).number == taken
        await asyncio.sleep(0.001)
        # One more than there is room for has been made, and waits.
        assert log.sent <= taken + 64 + 1
        assert len(stream._arrivals._items) <= 64
    await until(lambda: log.sent >= 199 + 32)


@pytest.mark.parametrize(("size", "most"), [(200_000, 5), (1_000_000, 2)])
async def test_large_items_are_held_back_before_they_are_many(mesh, reader, size, most):
    service = Service("log")
    sent = 0

    @service.endpoint()
    async def large() -> AsyncIterator[bytes]:
        nonlocal sent
        for sent in range(1, 31):
            yield bytes([sent]) * size

    async with mesh.serve(service):
        stream = reader.stream(large)
        read = [(await anext(stream))[0]]
        await until(lambda: len(stream._arrivals._items) == most)
        await mesh.services()
        # One more has been made, and waits.
        assert sent == 1 + most + 1
        async for item in stream:
            read.append(item[0])
            assert (len(stream._arrivals._items) - 1) * size < 1024 * 1024
    assert read == list(range(1, 31))


async def test_a_generator_that_waits_for_nothing_leaves_room_for_others(mesh, nats_server):
    service = Service("busy")
    turns = []

    @service.endpoint()
    async def count() -> AsyncIterator[int]:
        while True:
            yield 1

    @service.endpoint()
    async def turn() -> None:
        turns.append(1)

    async with mesh.serve(service), connect(nats_server.url) as other:
        # A reader with room for everything, who does not take it.
        await other.transport.publish("busy.count", b"", b"", other.transport.attach("busy.count", _Full()))
        for _ in range(5):
            await other.call(turn)
    assert len(turns) == 5


class _Full:
    def done(self):
        return True


# What keeps the opening alive


async def test_opening_is_tried_again_where_it_was_not_executed(mesh, reader):
    service = Log(concurrency=1, backlog=0)
    service.gate.clear()
    async with mesh.serve(service):
        first = reader.stream(service.tail, Query(2))
        await anext(first)
        second = reader.stream(service.tail, Query(2), policy=CallPolicy(retries=5, retry_delay=0.05))
        opening = asyncio.create_task(anext(second))
        statistics = reader.callees["log.tail"].statistics
        await until(lambda: statistics.retries >= 1)
        await first.aclose()  # and the slot is free
        assert (await opening).number == 1
        with pytest.raises(Overloaded):
            await anext(reader.stream(service.tail, Query(2), policy=CallPolicy(retries=0)))
        await second.aclose()


async def test_a_breaker_judges_the_opening(mesh, reader):
    service = Service("log")

    @service.endpoint()
    async def tail() -> AsyncIterator[int]:
        raise RuntimeError
        yield

    async with mesh.serve(service):
        for _ in range(5):
            with pytest.raises(InternalError):
                await anext(reader.stream(tail))
        with pytest.raises(CircuitOpen):
            await anext(reader.stream(tail))


async def test_what_has_begun_is_not_tried_again(mesh, reader):
    service = Service("log")
    begun = []

    @service.endpoint(idempotent=True)
    async def tail() -> AsyncIterator[int]:
        begun.append(1)
        yield 1
        raise RuntimeError

    async with mesh.serve(service):
        stream = reader.stream(tail)
        assert await anext(stream) == 1
        with pytest.raises(InternalError):
            await anext(stream)
    assert begun == [1]


async def test_a_stream_is_not_hedged(mesh, reader):
    service = Service("log")
    begun = []

    @service.endpoint(call=CallPolicy(idempotent=True, hedge=0.01))
    async def tail() -> AsyncIterator[int]:
        begun.append(1)
        await asyncio.sleep(0.1)
        yield 1

    async with mesh.serve(service):
        assert [number async for number in reader.stream(tail)] == [1]
    assert begun == [1]


async def test_an_attempt_bounds_the_opening_and_not_the_stream(mesh, clock):
    service = Service("log")
    begun = []

    @service.endpoint(call=CallPolicy(idempotent=True, attempt_timeout=1, retry_delay=0.001))
    async def tail(ctx: Context) -> AsyncIterator[float]:
        begun.append(ctx.remaining)
        if len(begun) == 1:
            await asyncio.sleep(100)
        yield 1
        await asyncio.sleep(4)
        yield 2

    async with mesh.serve(service):
        reading = asyncio.create_task(numbers_of(mesh.stream(tail)))
        await until_by(clock, lambda: begun)
        await clock.advance(20)
        assert await reading == [1, 2]
    assert len(begun) == 2
    assert min(begun) > 1e6


async def numbers_of(stream):
    return [number async for number in stream]


# Connections and drains


async def test_a_lost_connection_is_an_error_after_what_has_come(clock):
    service = Log()
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh, connect(server.url) as reader, mesh.serve(service):
            stream = reader.stream(service.tail, Query())
            await anext(stream)
            await until_by(clock, lambda: stream._arrivals._came == 64)
            await asyncio.to_thread(server.kill)
            read, error = await outcome(stream)
            assert (read, type(error)) == (list(range(2, 65)), ConnectionLost)
            await until_by(clock, lambda: service.is_stopped)
            await clock.advance(6)  # it waits for a connection to say so, and then no more


async def test_a_producer_whose_connection_breaks_ends_the_stream(mesh, reader):
    service = Log()
    async with mesh.serve(service):
        stream = reader.stream(service.tail, Query())
        await anext(stream)
        await until(lambda: service.sent == 65)
        await mesh.transport._client.force_reconnect()
        read, error = await outcome(stream)
        assert (read, type(error)) == (list(range(2, 65)), Unavailable)
        assert "items of the stream may be lost" in error.message
    assert service.ended == [GeneratorExit]


async def test_a_drain_waits_for_streams(mesh, reader):
    service = Log()
    service.gate.clear()
    serving = mesh.serve(service)
    await serving.__aenter__()
    stream = reader.stream(service.tail, Query(500))
    await anext(stream)
    leaving = asyncio.create_task(serving.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    service.gate.set()
    assert await numbers(stream) == list(range(2, 501))
    await leaving


async def test_what_outlasts_the_drain_ends_with_an_error(mesh, reader, monkeypatch):
    monkeypatch.setattr(instance_module, "DRAIN_TIMEOUT", 0.05)
    service = Log()
    async with mesh.serve(service):
        stream = reader.stream(service.tail, Query(100))
        await anext(stream)
        await until(lambda: service.sent == 65)
    read, error = await outcome(stream)
    assert (read, type(error)) == (list(range(2, 65)), Unavailable)
    assert error.message == "the instance stopped before the call was finished"


# Calls and streams are not the same


async def test_neither_is_read_as_the_other(log, mesh, reader):
    service = Service("plain")

    @service.endpoint()
    async def one() -> int:
        return 1

    async with mesh.serve(service):
        with pytest.raises(TypeError, match=r"tail yields: read it with mesh\.stream"):
            await reader.call(log.tail, Query())
        with pytest.raises(TypeError, match="one yields nothing: call it"):
            reader.stream(one)
        with pytest.raises(BadReply, match=r"'plain\.one' answers with one reply; use mesh\.call"):
            await anext(reader.stream("plain.one"))
        for most in (0, 10**6):
            with pytest.raises(BadReply, match=r"'log\.tail' answers with a stream; read it with mesh"):
                await reader.call("log.tail", Query(most), timeout=60)
    # And what nobody reads stops.
    await until(lambda: len(log.ended) == 2)
    assert log.sent < 10**6
    assert reader.callees["log.tail"].circuit == "closed"


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"message_timeout": "soon"}, {"message_timeout": -1}, {"headers": {"a": "\n"}}]
)
async def test_what_is_wrong_is_said_at_once(log, mesh, wrong):
    with pytest.raises(ValueError, match=r"timeout is seconds|line break"):
        mesh.stream(log.tail, Query(), **wrong)


async def test_each_timeout_is_named(mesh):
    with pytest.raises(ValueError, match=r"^message_timeout is seconds above 0.*'1y'"):
        mesh.stream("log.tail", message_timeout="1y")
    with pytest.raises(ValueError, match=r"^timeout is seconds"):
        mesh.stream("log.tail", timeout="1y")


async def test_what_is_not_even_json_is_said_so(mesh):
    service = Service("log")

    @service.endpoint()
    async def tail() -> AsyncIterator[bytes]:
        yield b"plain text"

    async with mesh.serve(service):
        with pytest.raises(BadReply, match=r"the reply is not application/json: .*returns=bytes"):
            await anext(mesh.stream("log.tail"))


@pytest.mark.parametrize("annotation", [typing.AsyncIterator, AsyncIterator, typing.AsyncGenerator])
def test_what_it_yields_has_to_be_said(annotation):
    async def tail() -> annotation:
        yield 1

    with pytest.raises(DeclarationError, match=r"tail\(\).* yields, but .* write `-> AsyncIterator\[T\]`"):
        Service("log").endpoint()(tail)


async def test_what_a_decorator_made_one_reply_of_is_no_stream(mesh):
    def collected(function):
        @functools.wraps(function)
        async def inner() -> list[int]:
            return [number async for number in function()]

        inner.__annotations__ = {"return": list[int]}
        return inner

    def logged(function):
        @functools.wraps(function)
        def inner():
            return function()

        return inner

    async def tail() -> AsyncIterator[int]:
        yield 1
        yield 2

    service = Service("log")
    at_once = service.endpoint("log.once")(logged(collected(tail)))
    one_by_one = service.endpoint("log.each")(logged(tail))
    async with mesh.serve(service):
        assert await mesh.call(at_once) == [1, 2]
        assert [number async for number in mesh.stream(one_by_one)] == [1, 2]


async def test_it_is_announced(log, mesh):
    (found,) = await mesh.services()
    tail = next(endpoint for endpoint in found.endpoints if endpoint.name == "tail")
    assert tail.metadata["stream"] == "true"
    assert '"Line"' in tail.metadata["reply_schema"]


async def test_statistics_count_a_stream_as_one_request(log, mesh):
    await numbers(mesh.stream(log.tail, Query(100)))
    with contextlib.suppress(MeshError):
        await numbers(mesh.stream(log.tail, Query(3, fail=True)))
    tail = next(one for one in (await mesh.service("log")).endpoints if one.name == "tail")
    assert (tail.num_requests, tail.num_errors, tail.last_error) == (2, 1, "404:the log ends here")
