"""Instances tell whoever asks on `_MESH.tap` of their calls."""

import asyncio
import contextlib
import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from support import gated, until, until_by

from meshkit import Context, NoResponders, NotFound, Overloaded, Service, ServiceError, connect
from meshkit.telemetry.traces.tracing import Tracer
from meshkit.transport.server import EmbeddedServer

SECRETS = {
    "Authorization": "Bearer abc",
    "X-Session-Cookie": "abc",
    "X-Api-Key": "abc",
    "X-Tenant": "eu",
}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Watcher:
    """Who asks, and what it is told."""

    def __init__(self, transport):
        self.transport = transport
        self.told = []
        self.reply = transport.attach("_MESH.tap", self)

    def done(self):
        return False

    def set_result(self, message):
        if message.payload:
            self.told.append(json.loads(message.payload))

    def set_exception(self, error):
        """The connection ends."""

    async def ask(self, subject, seconds=10, **options):
        wanted = json.dumps({"subject": subject, "seconds": seconds, **options}).encode()
        await self.transport.publish("_MESH.tap", wanted, reply=self.reply)
        await self.transport.flush()

    @property
    def answers(self):
        return [one for one in self.told if one["type"] == "tapped"]

    @property
    def records(self):
        return [one for one in self.told if one["type"] == "call"]


@pytest.fixture
async def watcher(mesh):
    watcher = Watcher(mesh.transport)
    yield watcher
    mesh.transport.detach(watcher.reply)


@pytest.fixture
async def rooms(mesh):
    service = Service("rooms")
    service.heard = []

    @service.endpoint("rooms.{room}.price")
    async def price(room: int) -> int:
        if room == 13:
            raise NotFound("there is no room 13")
        return 100 + room

    @service.endpoint()
    async def echo(payload: bytes) -> bytes:
        return payload

    @service.endpoint()
    async def count(to: int):
        for number in range(to):
            yield number

    @service.subscribe("hotel.{thing}.saved")
    async def saved(thing: str) -> None:
        service.heard.append(thing)

    async with mesh.serve(service) as instance:
        yield instance


async def test_calls_are_told_with_all_that_is_to_be_known(mesh, rooms, watcher):
    await watcher.ask("rooms.>")
    await until(lambda: watcher.answers)
    assert await mesh.call("rooms.12.price", returns=int, headers={"traceparent": TRACEPARENT}) == 112
    with pytest.raises(NotFound):
        await mesh.call("rooms.13.price")
    await until(lambda: len(watcher.records) == 2)
    (answer,) = watcher.answers
    assert answer == {
        "type": "tapped",
        "service": "rooms",
        "instance": rooms.id,
        "endpoints": ["price", "echo", "count"],
    }
    good, bad = watcher.records
    assert (good["service"], good["instance"], good["endpoint"]) == ("rooms", rooms.id, "price")
    assert (good["subject"], good["outcome"], good["sent"]) == ("rooms.12.price", "ok", 3)
    assert good["trace"] == "0af7651916cd43dd8448eb211c80319c"
    assert 0 < good["seconds"] < 5
    assert (bad["outcome"], bad["error"]) == ("NotFound", "there is no room 13")
    for record in watcher.records:
        assert not {"headers", "reply_headers", "payload", "reply", "is_event"} & record.keys()


async def test_the_trace_is_the_one_that_the_instance_begins_if_there_was_none(mesh, watcher):
    mesh.telemetry.tracer = Tracer(TracerProvider(), slow=1)
    service = Service("traced")
    service.traces = []

    @service.endpoint("traced.call")
    async def call() -> None:
        service.traces.append(f"{get_current_span().get_span_context().trace_id:032x}")

    async with mesh.serve(service):
        await watcher.ask("traced.>")
        await until(lambda: watcher.answers)
        await mesh.transport.request("traced.call", b"", b"", mesh._loop.time() + 5)
        await until(lambda: watcher.records)
    assert [one["trace"] for one in watcher.records] == service.traces


async def test_who_calls_is_told(mesh, rooms, watcher):
    desk = Service("desk")

    @desk.endpoint()
    async def ask(ctx: Context) -> int:
        return await ctx.mesh.call("rooms.1.price", returns=int)

    async with mesh.serve(desk) as instance:
        await watcher.ask(">")
        await until(lambda: len(watcher.answers) == 2)
        await mesh.call(ask)
        await until(lambda: len(watcher.records) == 2)
    assert [one.get("caller") for one in watcher.records] == [f"desk/{instance.id}", None]


async def test_other_subjects_are_not_told(mesh, rooms, watcher):
    await watcher.ask("rooms.{room}.price")
    await until(lambda: watcher.answers)
    await mesh.call("rooms.echo", 1)
    await mesh.call("rooms.1.price")
    await until(lambda: watcher.records)
    await watcher.ask("rooms.2.price")
    await until(lambda: len(watcher.answers) == 2)
    await mesh.call("rooms.1.price")
    await mesh.call("rooms.2.price")
    await until(lambda: len(watcher.records) == 2)
    assert [one["subject"] for one in watcher.records] == ["rooms.1.price", "rooms.2.price"]


async def test_who_serves_nothing_of_it_says_nothing(mesh, rooms, watcher):
    await watcher.ask("bills.>")
    await mesh.transport.gather("_MESH.stats")  # answered after it
    assert not watcher.told


async def test_calls_of_a_service_that_is_away_still_fail_at_once(mesh, rooms, watcher):
    await watcher.ask(">")
    with pytest.raises(NoResponders):
        await mesh.call("bills.pay", timeout=30)


async def test_headers_and_payloads_only_if_asked_for_and_no_secrets(mesh, rooms, watcher):
    await watcher.ask("rooms.echo", headers=True, payload=10)
    await until(lambda: watcher.answers)
    await mesh.call("rooms.echo", b"ab\xff4567890123", returns=bytes, headers=SECRETS)
    await until(lambda: watcher.records)
    (record,) = watcher.records
    shown = {name: value for name, value in record["headers"].items() if name in SECRETS}
    assert shown == dict.fromkeys(SECRETS, "***") | {"X-Tenant": "eu"}
    assert record["payload"] == record["reply"] == "ab\ufffd4567890"
    assert (record["received"], record["sent"]) == (13, 13)
    assert record["reply_headers"] == {}


@pytest.mark.parametrize(
    ("header", "is_secret"),
    [
        *[
            (name, True)
            for name in ("Proxy-Authentication", "X-Auth", "Set-Cookie", "X-CSRF", "jwt", "X-Pwd")
        ],
        *[(name, True) for name in ("access_key", "X-Private-Key", "apikey", "X-Bearer", "Signature")],
        *[(name, False) for name in ("X-Key", "Mesh-Priority", "traceparent-x", "X-Keyboard")],
    ],
)
async def test_secrets_are_known_by_a_word_in_their_name(mesh, rooms, watcher, header, is_secret):
    await watcher.ask("rooms.echo", headers=True)
    await until(lambda: watcher.answers)
    await mesh.call("rooms.echo", headers={header: "abc"})
    await until(lambda: watcher.records)
    assert watcher.records[0]["headers"][header] == ("***" if is_secret else "abc")


async def test_no_header_or_payload_is_longer_than_an_instance_lets_be(mesh, rooms, watcher):
    await watcher.ask("rooms.echo", headers=True)
    await until(lambda: watcher.answers)
    await mesh.call("rooms.echo", headers={f"X-{n}": "v" * 1000 for n in range(100)})
    await until(lambda: watcher.records)
    headers = watcher.records[0]["headers"]
    assert len(headers) == 30
    assert all(len(value) <= 301 for value in headers.values())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"payload": 100_000}, "payload"),
        ({"rate": 10_000}, "rate"),
        ({"rate": 0}, "rate"),
        ({"seconds": 3600}, "seconds"),
        ({"subject": "a..b"}, "empty token"),
        ({"subject": "_INBOX.>"}, "belongs to NATS"),
        ({"subject": 12}, "subject"),
    ],
)
async def test_what_an_instance_does_not_do_it_refuses(mesh, rooms, watcher, options, why):
    await watcher.ask(**{"subject": ">", **options})
    await until(lambda: watcher.answers)
    assert why in watcher.answers[0]["refused"]
    await mesh.call("rooms.1.price")
    assert not watcher.records


async def test_only_errors(mesh, rooms, watcher):
    await watcher.ask("rooms.>", errors=True)
    await until(lambda: watcher.answers)
    for room in (1, 13, 2):
        with contextlib.suppress(NotFound):
            await mesh.call(f"rooms.{room}.price")
    await until(lambda: watcher.records)
    assert [one["subject"] for one in watcher.records] == ["rooms.13.price"]
    assert "left_out" not in watcher.records[0]


async def test_whatever_a_handler_raises_its_call_is_answered(mesh, watcher):
    service = Service("odd")

    @service.endpoint("odd.call")
    async def call() -> None:
        raise ServiceError(409, "half of \ud800 a letter")

    async with mesh.serve(service):
        await watcher.ask("odd.>")
        await until(lambda: watcher.answers)
        with pytest.raises(ServiceError, match="half of"):
            await mesh.call("odd.call")
        await until(lambda: watcher.records)
    assert (watcher.records[0]["outcome"], watcher.records[0]["error"]) == ("409", "half of ? a letter")


async def test_events_are_told_and_have_no_answer(mesh, rooms, watcher):
    await watcher.ask("hotel.>", payload=100, headers=True)
    await until(lambda: watcher.answers)
    await mesh.publish("hotel.booking.saved", {"room": 12})
    await until(lambda: watcher.records)
    (record,) = watcher.records
    assert (record["endpoint"], record["is_event"], record["payload"]) == ("saved", True, '{"room":12}')
    assert not {"reply", "reply_headers", "sent"} & record.keys()


async def test_streams_are_told_when_they_are_over(mesh, rooms, watcher):
    await watcher.ask("rooms.count")
    await until(lambda: watcher.answers)
    assert [number async for number in mesh.stream("rooms.count", 5)] == [0, 1, 2, 3, 4]
    await until(lambda: watcher.records)
    assert watcher.records[0]["items"] == 5


async def test_what_is_refused_is_told_too(mesh, watcher):
    service = gated("slow", concurrency=1, backlog=0)
    async with mesh.serve(service):
        await watcher.ask("slow.>")
        await until(lambda: watcher.answers)
        waiting = asyncio.create_task(mesh.call("slow.wait"))
        await until(lambda: service.running)
        with pytest.raises(Overloaded):
            await mesh.call("slow.wait", timeout=3)
        await until(lambda: watcher.records)
        service.gate.set()
        await waiting
    assert watcher.records[0]["outcome"] == "Overloaded"


async def test_no_more_than_the_rate_and_how_many_were_left_out(mesh, rooms, watcher, clock):
    await watcher.ask("rooms.echo", rate=5)
    await until_by(clock, lambda: watcher.answers)
    for _ in range(40):
        await mesh.call("rooms.echo")
    # A second's worth at once, and one more for the one that is due.
    assert len(watcher.records) == 6
    await clock.advance(1)
    await mesh.call("rooms.echo")
    await clock.advance(0.01)
    assert [one.get("left_out", 0) for one in watcher.records] == [0] * 6 + [34]


async def test_an_instance_tells_no_more_than_it_may_whoever_asks(mesh, rooms, watcher, clock):
    others = [Watcher(mesh.transport) for _ in range(3)]
    for each in (watcher, *others):
        await each.ask("rooms.echo", rate=250)
    await until_by(clock, lambda: all(each.answers for each in (watcher, *others)))
    for _ in range(100):
        await mesh.call("rooms.echo")
    await clock.advance(0.01)
    told = sum(len(each.records) for each in (watcher, *others))
    assert 249 <= told <= 260  # a second's worth at once
    # Nor more for who begins anew.
    for _ in range(3):
        await watcher.ask("rooms.echo", seconds=0)
        await watcher.ask("rooms.echo", rate=249)
        for _ in range(100):
            await mesh.call("rooms.echo")
    await clock.advance(0.01)
    assert sum(len(each.records) for each in (watcher, *others)) <= told + 60


async def test_it_ends_with_its_lease_unless_it_is_renewed(mesh, rooms, watcher, clock):
    await watcher.ask("rooms.echo", seconds=10)
    await clock.advance(8)
    await watcher.ask("rooms.echo", seconds=10)
    await clock.advance(8)
    await mesh.call("rooms.echo")
    await clock.advance(0.01)
    assert len(watcher.records) == 1
    await clock.advance(2)
    await mesh.call("rooms.echo")
    await clock.advance(0.01)
    assert len(watcher.records) == 1


async def test_a_renewal_does_not_give_the_rate_anew(mesh, rooms, watcher, clock):
    for _ in range(3):
        await watcher.ask("rooms.echo", rate=1)
        await clock.advance(0.01)
        for _ in range(5):
            await mesh.call("rooms.echo")
    await clock.advance(0.01)
    assert len(watcher.records) == 2


async def test_who_asks_for_no_more_is_told_no_more(mesh, rooms, watcher):
    await watcher.ask("rooms.echo")
    await watcher.ask("rooms.echo", seconds=0)
    await mesh.call("rooms.echo")
    await mesh.call("rooms.1.price")
    assert not watcher.records


async def test_four_may_watch_and_all_are_told(mesh, rooms):
    watchers = [Watcher(mesh.transport) for _ in range(5)]
    for watcher in watchers:
        await watcher.ask("rooms.>")
    await until(lambda: all(watcher.answers for watcher in watchers))
    await mesh.call("rooms.echo")
    await until(lambda: all(watcher.records for watcher in watchers[:4]))
    assert watchers[4].answers[0]["refused"] == "4 others watch its calls already"
    await watchers[0].ask("rooms.>", seconds=0)
    await watchers[4].ask("rooms.>")
    await until(lambda: len(watchers[4].answers) == 2)
    assert "refused" not in watchers[4].answers[1]


@pytest.mark.parametrize("reply", ["hotel.secret", "_INBOX.>", "_INBOX", "$JS.API.STREAM.DELETE.X", ""])
async def test_an_instance_publishes_nowhere_but_to_inboxes(mesh, rooms, reply):
    published = []
    await mesh.transport.subscribe(">", published.append)
    wanted = {"subject": "rooms.>", "seconds": 10}
    await mesh.transport.publish("_MESH.tap", json.dumps(wanted).encode(), reply=reply)
    await mesh.call("rooms.echo")
    await mesh.transport.flush()
    assert not [one for one in published if b"tapped" in one.payload or one.subject == reply]


async def test_while_nobody_watches_calls_do_not_go_through_it(mesh, rooms, watcher):
    (echo,) = [one for one in rooms._taps._tappable if one.name == "echo"]
    await watcher.ask("rooms.1.price")
    await until(lambda: watcher.answers)
    assert echo.stack is echo.untapped
    await watcher.ask("rooms.echo")
    await until(lambda: len(watcher.answers) == 2)
    assert echo.stack is not echo.untapped
    await watcher.ask("rooms.echo", seconds=0)
    await until(lambda: echo.stack is echo.untapped)


async def test_calls_that_outlive_the_tap_are_answered(mesh, watcher):
    service = gated("slow")
    async with mesh.serve(service):
        await watcher.ask("slow.>")
        await until(lambda: watcher.answers)
        waiting = asyncio.create_task(mesh.call("slow.wait", returns=str))
        await until(lambda: service.running)
        await watcher.ask("slow.>", seconds=0)
        service.gate.set()
        assert await waiting == "done"
    assert not watcher.records


async def test_a_user_who_may_not_listen_there_serves_all_the_same(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ "
        '{ user: ann, password: s, permissions: { subscribe: { deny: ["_MESH.tap"] } } } ] }'
    )
    with EmbeddedServer(config=config) as server:
        async with connect(server.url.replace("nats://", "nats://ann:s@")) as mesh:
            service = gated("slow")
            service.gate.set()
            async with mesh.serve(service):
                assert await mesh.call("slow.wait", returns=str) == "done"
