"""What is declared is checked when it is declared, with an error that says what to write."""

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import pytest

from meshkit import Context, DeclarationError, Endpoint, Service
from meshkit.discovery.description import announce, describe

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheChecker


class Booking(msgspec.Struct):
    room: int
    guest: str


class Opaque:
    pass


@pytest.fixture
def service():
    return Service("rooms", version="1.2.3")


# Names, versions, subjects


@pytest.mark.parametrize("name", ["", "my rooms", "rooms.v1", "röoms", "rooms\n", "rooms>"])
def test_names_of_services_and_endpoints(name, service):
    with pytest.raises(DeclarationError, match="may hold letters, digits, - and _ only, 200 at most; write"):
        Service(name)
    with pytest.raises(DeclarationError, match="may hold letters"):

        @service.endpoint("a", name=name)
        async def endpoint() -> None: ...


def test_the_error_proposes_a_name():
    with pytest.raises(DeclarationError, match="write 'my-rooms-v1'"):
        Service("my rooms.v1")


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "1.0.0\n", "latest"])
def test_versions_are_semantic(version):
    with pytest.raises(DeclarationError, match=r"is no semantic version; write one like 1.0.0"):
        Service("rooms", version=version)


@pytest.mark.parametrize("version", ["1.0.0", "0.0.1-alpha.1+build.5"])
def test_semantic_versions(version):
    assert Service("rooms", version=version).version == version


def test_subjects_and_names_have_defaults(service):
    @service.endpoint()
    async def book(booking: Booking) -> None: ...

    hotel = service.group("hotel")

    @hotel.endpoint()
    async def price() -> float: ...

    @hotel.group("rooms").endpoint("{room}.clean", name="cleaning")
    async def clean(room: int) -> None: ...

    @hotel.group("").group("rooms").endpoint("ping")
    async def ping() -> None: ...

    assert [(one.name, one.subject, one.pattern.wire) for one in service.endpoints] == [
        ("book", "rooms.book", "rooms.book"),
        ("price", "hotel.price", "hotel.price"),
        ("cleaning", "hotel.rooms.{room}.clean", "hotel.rooms.*.clean"),
        ("ping", "hotel.rooms.ping", "hotel.rooms.ping"),
    ]


def test_a_wrong_subject_is_refused(service):
    with pytest.raises(DeclarationError, match="empty token"):
        service.endpoint("hotel..book")(book)
    with pytest.raises(DeclarationError, match="white space"):
        service.group("hotel rooms").endpoint("book")(book)


async def book(booking: Booking) -> None: ...


# Queue groups


def test_queues_are_inherited_overridden_and_switched_off(service):
    def queue_of(group, **options):
        @group.endpoint("x", **options)
        async def endpoint() -> None: ...

        return endpoint.queue

    assert queue_of(service) == "q"
    assert queue_of(service, queue="mine") == "mine"
    assert queue_of(service, queue=None) is None
    assert queue_of(service.group("g")) == "q"
    assert queue_of(service.group("g", queue="theirs")) == "theirs"
    assert queue_of(service.group("g", queue="theirs").group("h")) == "theirs"
    assert queue_of(service.group("g", queue=None)) is None
    assert queue_of(service.group("g", queue=None), queue="mine") == "mine"
    assert queue_of(Service("other", queue=None)) is None


@pytest.mark.parametrize("queue", ["", "a b", "a\r\nb", ">.abc"])
def test_wrong_queue_groups(queue):
    with pytest.raises(DeclarationError, match=r"queue group .* write None for no queue group"):
        Service("rooms", queue=queue)


# Numbers and metadata


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_timeouts_are_seconds(timeout, service):
    with pytest.raises(DeclarationError, match=r"book\(\): timeout is seconds above 0, or text such as"):
        service.endpoint("a", timeout=timeout)(book)
    with pytest.raises(DeclarationError, match=r"timeout is a number of seconds above 0"):
        service.subscribe("a", timeout=timeout)(book)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"backlog": -1}])
def test_bounds_are_counts(options):
    with pytest.raises(DeclarationError, match="is a whole number from"):
        Service("rooms", **options)


def test_metadata_is_strings(service):
    with pytest.raises(DeclarationError, match="metadata maps strings to strings: Expected `str`, got `int`"):
        Service("rooms", metadata={"shard": 1})
    original = {"shard": "1"}
    declared = Service("rooms", metadata=original)
    original["shard"] = "2"
    assert dict(declared.metadata) == {"shard": "1"}


@pytest.mark.parametrize("key", ["policy", "subject", "timeout", "idempotent", "stream", "request_schema"])
async def test_metadata_that_meshkit_writes_itself(service, key):
    with pytest.raises(
        DeclarationError, match=f"book\\(\\): metadata '{key}' is written by meshkit; choose another"
    ):
        service.endpoint("a", metadata={key: "refund within 30 days"})(book)
    assert service.endpoints == []
    # Only an endpoint's are.
    assert Service("rooms", metadata={key: "x"}).metadata == {key: "x"}


def test_what_is_announced_is_what_is_declared(service):
    service.endpoint("a", metadata={"format": "json"}, timeout=2, idempotent=True)(book)
    service.endpoint("b")(book)
    [first, second] = announce(service, "id").endpoints
    assert first.metadata == {"policy": '{"timeout":2.0,"idempotent":true}'}
    assert second.metadata == {}
    [told, _] = describe(service, "id", 1_000_000).endpoints
    assert told.metadata.items() >= {**first.metadata, "format": "json", "timeout": "2"}.items()


# Handlers


def test_two_messages(service):
    with pytest.raises(
        DeclarationError,
        match=r"two\(\) \(.*test_service.py:\d+\) takes two messages, `booking` and `guest`.*\{guest\}",
    ):

        @service.endpoint()
        async def two(booking: Booking, guest: str) -> None: ...


def test_a_token_without_a_parameter(service):
    with pytest.raises(
        DeclarationError, match=r"has \{room\}, but the function has no parameter.*`room: str`"
    ):

        @service.endpoint("hotel.{room}.price")
        async def price(booking: Booking) -> None: ...


def test_what_msgspec_cannot_decode(service):
    with pytest.raises(DeclarationError, match=r"takes `thing` as Opaque, which msgspec cannot decode"):

        @service.endpoint()
        async def message(thing: Opaque) -> None: ...

    with pytest.raises(DeclarationError, match=r"takes `room` as Opaque, which msgspec cannot decode"):

        @service.endpoint("hotel.{room}")
        async def token(room: Opaque) -> None: ...

    with pytest.raises(DeclarationError, match=r"returns .*Opaque.*, which msgspec cannot decode"):

        @service.endpoint()
        async def reply() -> list[Opaque]: ...

    assert service.endpoints == []


def test_a_parameter_without_annotation(service):
    with pytest.raises(DeclarationError, match=r"parameter `booking` has no annotation; write its type"):

        @service.endpoint()
        async def untyped(booking) -> None: ...


def test_an_annotation_that_is_not_there_at_run_time(service):
    with pytest.raises(DeclarationError, match=r"annotation 'OnlyForTheChecker' is not known.*TYPE_CHECKING"):

        @service.endpoint()
        async def hidden(amount: "OnlyForTheChecker") -> None: ...


def test_parameters_that_cannot_be_filled(service):
    with pytest.raises(DeclarationError, match=r"parameter `\*rooms: int` cannot be filled"):

        @service.endpoint()
        async def many(*rooms: int) -> None: ...

    with pytest.raises(DeclarationError, match=r"parameter `room: int` cannot be filled"):

        @service.endpoint()
        async def positional(room: int, /) -> None: ...


def test_two_contexts(service):
    with pytest.raises(DeclarationError, match=r"takes two contexts, `one` and `two`"):

        @service.endpoint()
        async def twice(one: Context, two: Context) -> None: ...


@pytest.mark.parametrize(
    "annotation", [AsyncIterator[int], AsyncIterable[int], AsyncGenerator[int, None], AsyncGenerator[int]]
)
def test_what_yields_is_a_stream(service, annotation):
    async def plain():
        yield 1

    plain.__annotations__["return"] = annotation
    endpoint = service.endpoint()(plain)
    assert endpoint.is_stream
    assert endpoint.signature.reply_schema == {"type": "integer"}
    assert not service.endpoint()(book).is_stream


def test_a_stream_of_anything(service):
    @service.endpoint()
    async def stream():
        yield 1

    assert stream.signature.reply_schema == {}


def test_a_stream_that_a_decorator_has_wrapped(service):
    def loud(function):
        @functools.wraps(function)
        def wrapper(**arguments):
            return function(**arguments)

        return wrapper

    @service.endpoint()
    @loud
    async def stream() -> AsyncIterator[int]:
        yield 1

    assert stream.is_stream


def test_streams_that_cannot_be(service):
    with pytest.raises(DeclarationError, match=r"is a `def` that yields; write `async def` for a stream"):

        @service.endpoint()
        def threaded() -> Iterator[int]:
            yield 1

    with pytest.raises(DeclarationError, match=r"is annotated with int; write `-> AsyncIterator\[T\]`"):

        @service.endpoint()
        async def wrong() -> int:
            yield 1

    with pytest.raises(DeclarationError, match=r"yields Opaque, which msgspec cannot decode"):

        @service.endpoint()
        async def unknown() -> AsyncIterator[Opaque]:
            yield Opaque()

    with pytest.raises(DeclarationError, match="a stream comes from one instance; give it a queue group"):

        @service.endpoint(queue=None)
        async def everywhere() -> AsyncIterator[int]:
            yield 1

    with pytest.raises(DeclarationError, match="yields, and nobody reads what comes of an event"):

        @service.subscribe("hotel.>")
        async def event() -> AsyncIterator[int]:
            yield 1


def test_only_functions_are_handlers(service):
    with pytest.raises(DeclarationError, match=r"is no function"):
        service.subscribe("x")(Opaque())


def test_subscriptions_are_checked_like_endpoints(service):
    with pytest.raises(DeclarationError, match="takes two messages"):

        @service.subscribe("hotel.>")
        async def two(one: int, other: int) -> None: ...

    with pytest.raises(DeclarationError, match="concurrency is a whole number"):
        service.subscribe("hotel.>", concurrency=0)(book)


def test_every_kind_of_parameter_at_once(service):
    @service.endpoint("hotel.{floor}.{kind}.{room}")
    async def everything(
        ctx: Context,
        floor: Annotated[int, msgspec.Meta(ge=0)],
        kind: Literal["single", "double"],
        room: int,
        booking: Booking | None = None,
    ) -> dict[str, Booking]: ...

    assert list(everything.pattern.parameters) == ["floor", "kind", "room"]
    assert everything.signature.message.type == Booking | None


# The declared name


async def test_the_function_stays_callable(service):
    @service.endpoint()
    async def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    @service.endpoint()
    def triple(number: int) -> int:
        return 3 * number

    assert isinstance(double, Endpoint)
    assert await double(4) == 8
    assert triple(4) == 12
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert repr(double) == "<Endpoint double on rooms.double>"


def test_an_endpoint_at_one_subject(service):
    @service.endpoint("hotel.{room}.price")
    async def price(room: int) -> float: ...

    assert price.at(room=12).subject == "hotel.12.price"
    with pytest.raises(ValueError, match="takes room; check floor, room"):
        price.at(floor=1)


def test_endpoints_that_are_in_each_others_way(service):
    """NATS merges queue groups of one name over subjects, and picks any member."""

    @service.endpoint("rooms.{room}")
    async def show(room: str) -> None: ...

    with pytest.raises(DeclarationError, match=r"listing\(\) .* on 'rooms.list' and .*show\(\).* at random"):

        @service.endpoint("rooms.list")
        async def listing() -> None: ...

    with pytest.raises(DeclarationError, match="at random"):
        service.endpoint("rooms.>")(book)
    assert [endpoint.name for endpoint in service.endpoints] == ["show"]
    # Each of these gets every call, or those of its own group.
    service.endpoint("rooms.list", queue=None)(book)
    service.endpoint("rooms.list", queue="other")(book)
    service.endpoint("rooms.{room}.price.{day}")(per_day)


async def per_day(room: int, day: str) -> None: ...


@pytest.mark.parametrize("subject", [">", "*.PING", "*.*", "*.>"])
def test_an_endpoint_does_not_answer_for_discovery(service, subject):
    with pytest.raises(DeclarationError, match="would answer for discovery too"):
        service.endpoint(subject)(book)


def test_decorators_want_parentheses(service):
    with pytest.raises(DeclarationError, match=r"write @service.endpoint\(\.\.\.\), with parentheses"):
        service.endpoint(book)
    with pytest.raises(DeclarationError, match=r"write @service.subscribe\(\.\.\.\), with parentheses"):
        service.subscribe(book)


def test_callables_that_are_no_functions(service):
    for declare in (service.endpoint(), service.subscribe("x"), service.lifespan, service.health):
        with pytest.raises(DeclarationError, match="is no function"):
            declare(functools.partial(book))


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "5"},
        {"timeout": True},
        {"concurrency": "5"},
        {"concurrency": 1.5},
        {"queue": 3},
        {"name": 3},
    ],
)
def test_values_of_another_type(service, options):
    with pytest.raises(DeclarationError):
        service.endpoint(**options)(book)
    with pytest.raises(DeclarationError):
        service.endpoint(3)(book)


def test_what_other_decorators_left_on_a_function_is_not_the_endpoints(service):
    async def tagged() -> None: ...

    tagged.subject = "evil"
    assert service.endpoint()(tagged).subject == "rooms.tagged"


async def test_nothing_is_declared_once_it_runs(service, mesh):
    async with mesh.serve(service):
        with pytest.raises(DeclarationError, match="after the service was started"):
            service.endpoint()(book)
        with pytest.raises(DeclarationError, match="after the service was started"):
            service.subscribe("x")(book)


# Lifespan and health


def test_a_lifespan_is_an_async_generator(service):
    with pytest.raises(DeclarationError, match=r"is no async generator; write `async def` with one `yield`"):

        @service.lifespan
        async def no_yield() -> None: ...


def test_a_lifespan_may_be_a_context_manager_already(service):
    @service.lifespan
    @contextlib.asynccontextmanager
    async def around() -> AsyncIterator[None]:
        yield

    assert service.surroundings is around


def test_one_lifespan(service):
    async def around() -> AsyncIterator[None]:
        yield

    service.lifespan(around)
    with pytest.raises(DeclarationError, match="has a lifespan already"):
        service.lifespan(around)


def test_lifespan_and_health_take_one_argument(service):
    with pytest.raises(DeclarationError, match="takes at most one argument, the mesh"):

        @service.lifespan
        async def around(mesh: object, more: object) -> AsyncIterator[None]:
            yield

    with pytest.raises(DeclarationError, match="takes at most one argument, the lifespan's value"):

        @service.health
        async def well(state: object, more: object) -> None: ...


def test_run_without_a_server_is_one_sentence(service, unused_port):
    with pytest.raises(SystemExit, match=r"^meshkit: cannot connect to NATS at .*nothing listens there"):
        service.run(f"nats://127.0.0.1:{unused_port}", timeout=0.1)
