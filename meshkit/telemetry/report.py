"""What a process reports of its calls: the counters as they are, for who draws them or adds them up."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Protocol, TypeVar

import msgspec

from meshkit.discovery.protocol import UnreadableReplyError
from meshkit.job import JobReport
from meshkit.layers.statistics import OK, CallStatistics, Outcomes, Statistics
from meshkit.telemetry.distribution import Count, Distribution, Seconds
from meshkit.transport import Message

T = TypeVar("T")

STATS = "_MESH.stats"
"""Where instances answer with their Report; also with `.<service>` and `.<service>.<id>`, as `$SRV.STATS`."""

# Seconds after which what has not changed is no longer reported. It is kept, and comes back when it changes.
_IDLE = 600.0

# Entries of a list or a dict that a report may have.
_MANY = msgspec.Meta(max_length=10_000)
_Outcomes = Annotated[Outcomes, _MANY]
_Counts = Annotated[dict[str, Count], _MANY]

_COUNTED = [name for name in CallStatistics.__struct_fields__ if name != "outcomes"]


class Bound(msgspec.Struct, frozen=True):
    """A bound on concurrency: so many run of so many, so many wait of so many."""

    running: Count
    limit: Count
    waiting: Count
    backlog: Count


class Consumed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What else is counted of a consumer; the counts are those of `meshkit.durable.worker.Deliveries`.

    Attributes:
        stream: The stream whose messages are handled.
        consumer: The consumer's name.
        pending: How many messages no instance has got yet; all instances of the service say the same.
        unacknowledged: How many some instance has got and not said what became of; likewise.
    """

    stream: str
    consumer: str
    redelivered: Count = 0
    returned: Count = 0
    dead: Count = 0
    pending: Count = 0
    unacknowledged: Count = 0


class Served(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the calls of an endpoint, the events of a subscription, or the messages of a consumer.

    Attributes:
        name: The endpoint's or the subscription's.
        subject: Its subject, with wildcards.
        is_event: Whether they are events or messages.
        requests: How many arrived.
        in_flight: How many are being handled or wait.
        outcomes: How long those that are over took, by outcome, waiting included.
        queued: How long those that had to wait did.
        received: Bytes of their payloads.
        sent: Bytes of the payloads of the answers.
        bound: The endpoint's own bound on concurrency, if it has one; in `$SRV.STATS` else its service's.
        consumed: What else is counted of a consumer.
        circuits: In `$SRV.STATS`, the circuit breakers of what the instance calls that are not closed.
    """

    name: str
    subject: str
    is_event: bool = False
    requests: Count = 0
    in_flight: Count = 0
    outcomes: _Outcomes = {}
    queued: Distribution = msgspec.field(default_factory=Distribution)
    received: Count = 0
    sent: Count = 0
    bound: Bound | None = None
    consumed: Consumed | None = None
    circuits: dict[str, str] = {}


class Called(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the calls of a target, as their caller sees it; the fields are those of CallStatistics.

    Attributes:
        target: The subject that is called or, with parameters, the pattern of its subjects; `_OTHER` for all
            targets beyond those that are counted one by one.
        circuit: The circuit breaker's state: `closed`, `open` or `half-open`.
        bound: The bound on how many are on their way, if there is one.
    """

    target: str
    requests: Count = 0
    in_flight: Count = 0
    outcomes: _Outcomes = {}
    attempts: _Counts = {}
    queued: Distribution = msgspec.field(default_factory=Distribution)
    sent: Count = 0
    received: Count = 0
    retries: Count = 0
    hedges: Count = 0
    hedges_won: Count = 0
    budget_spent: Count = 0
    circuit: Annotated[str, msgspec.Meta(pattern=r"^(closed|half-open|open)\Z")] = "closed"
    circuit_opened: Count = 0
    refusals: _Counts = {}
    fallbacks: Count = 0
    bound: Bound | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an instance of a service did, or a client that is none; counts are since it started.

    Attributes:
        name: The service's; of a client the connection's, or `client`.
        id: The instance's id; empty for a client.
        version: The service's.
        started: When it started, in seconds since 1970.
        served: What it served.
        called: What it called.
        bound: The service's bound on concurrency.
        published: How many events it published.
        jobs: How far the jobs are that it does.
        lag: How late its event loop was, each time that somebody looked.
        is_connected: Whether it has a connection to NATS.
        reconnects: How often the connection was lost and came back.
        dropped: How many messages were dropped, as they came faster than they could be taken in.
    """

    name: str
    id: str = ""
    version: str = ""
    started: Seconds = 0.0
    served: Annotated[list[Served], _MANY] = []
    called: Annotated[list[Called], _MANY] = []
    bound: Bound | None = None
    published: Count = 0
    jobs: Annotated[list[JobReport], _MANY] = []
    lag: Distribution = msgspec.field(default_factory=Distribution)
    is_connected: bool = True
    reconnects: Count = 0
    dropped: Count = 0


def decode(payload: bytes) -> Report:
    """What somebody reports.

    Raises:
        UnreadableReplyError: It is no report, or one of another version of meshkit.
    """
    try:
        return msgspec.json.decode(payload, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableReplyError(f"a report: {error}") from None


def readable(answers: Iterable[Message], read: Callable[[bytes], T], unreadable: list[str]) -> Iterator[T]:
    """What can be read of what everybody has answered.

    Args:
        answers: The answers.
        read: Decodes one.
        unreadable: Gets what is wrong with each of the others.
    """
    for answer in answers:
        try:
            yield read(answer.payload)
        except UnreadableReplyError as error:
            unreadable.append(str(error))


class Bounded(Protocol):
    """What handles so many at a time."""

    @property
    def running(self) -> int:
        """How many it does."""
        ...

    @property
    def limit(self) -> int:
        """How many it may."""
        ...

    @property
    def waiting(self) -> int:
        """How many wait."""
        ...

    @property
    def backlog(self) -> int:
        """How many may."""
        ...


def bound(concurrency: Bounded | None) -> Bound | None:
    """A bound as it is now."""
    if concurrency is None:
        return None
    return Bound(concurrency.running, concurrency.limit, concurrency.waiting, concurrency.backlog)


class Recent:
    """Remembers what has changed, so that what is idle is not reported for ever."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seen: dict[tuple[str, ...], tuple[int, float]] = {}

    def is_idle(self, key: tuple[str, ...], count: int) -> bool:
        """Whether a count has stayed the same for ten minutes, as far as somebody has looked."""
        now = self._loop.time()
        seen, at = self._seen.setdefault(key, (count, now))
        if seen != count:
            self._seen[key] = (count, now)
            return False
        return now - at >= _IDLE

    def outcomes(self, what: str, outcomes: Outcomes) -> Outcomes:
        """Success, and the failures that are not idle.

        Args:
            what: Whose outcomes.
            outcomes: How long they took.
        """
        return {
            outcome: taken
            for outcome, taken in outcomes.items()
            if outcome == OK or not self.is_idle((what, outcome), taken.count)
        }


def served(
    name: str,
    subject: str,
    counted: Statistics,
    recent: Recent,
    *,
    is_event: bool = False,
    own: Bounded | None = None,
    consumed: Consumed | None = None,
) -> Served:
    """What an endpoint, a subscription or a consumer reports; the arguments are as in Served."""
    return Served(
        name=name,
        subject=subject,
        is_event=is_event,
        requests=counted.requests,
        in_flight=counted.in_flight,
        outcomes=recent.outcomes(name, counted.outcomes),
        queued=counted.queued,
        received=counted.received,
        sent=counted.sent,
        bound=bound(own),
        consumed=consumed,
    )


def called(
    targets: Iterable[tuple[str, CallStatistics, str, Bounded | None]], recent: Recent
) -> list[Called]:
    """What a caller reports, of the targets that are not idle.

    Args:
        targets: The name of each, what was counted, the circuit breaker's state, and the bound.
        recent: What was not idle.
    """
    return [
        Called(
            target=target,
            in_flight=counted.in_flight,
            outcomes=recent.outcomes(f">{target}", counted.outcomes),
            circuit=circuit,
            bound=bound(own),
            **{name: getattr(counted, name) for name in _COUNTED},
        )
        for target, counted, circuit, own in targets
        if counted.in_flight
        or (counted.requests and not recent.is_idle((">", target), 2 * counted.requests - counted.in_flight))
    ]
