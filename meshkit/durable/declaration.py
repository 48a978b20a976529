"""What is declared of durable endpoints: streams, and who consumes them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec

from meshkit.declaration import check_count, check_name
from meshkit.errors import DeclarationError
from meshkit.knobs import DURATION
from meshkit.policies import Source
from meshkit.policy import ServePolicy
from meshkit.signature import Signature
from meshkit.subject import Pattern

Retention: TypeAlias = Literal["limits", "interest", "workqueue"]
Storage: TypeAlias = Literal["file", "memory"]
Discard: TypeAlias = Literal["old", "new"]
Start: TypeAlias = Literal["all", "new"]

_NANOSECONDS = 1_000_000_000
# Before the subjects of messages that wait, by partition, for who handles them in order.
PARTITIONED = "_MESH.partition."
OWNER = "meshkit.service"
"""The metadata of a consumer that say whose it is."""
# In place of the number of a stream's first message that is copied: the next that it gets.
NEXT = -1
# Fields that JetStream calls otherwise, and defaults as they are when they have been read.
_JETSTREAM = {"max_messages": "max_msgs", "replicas": "num_replicas"}
_SECONDS = {"duplicate_window": 120.0}
# Most of what is unlimited is written like that.
_UNLIMITED = -1

CONCURRENCY = 10
"""How many messages an instance handles at a time where nothing says otherwise, or that it is not bounded."""

USUAL = ServePolicy(
    timeout=None, rate_limit=None, concurrency=CONCURRENCY, adaptive=False, backlog=0, access_log=0
)
"""What holds for a consumer where neither its declaration nor a file says anything else."""


class StreamConfig(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A stream: which messages JetStream keeps, and for how long. Made or updated when a service starts.

    What is left out is as below when the stream is made, and stays as it is if there is one. So do subjects
    that it keeps beside those that are declared.

    Args:
        name: The stream's name: letters, digits, `-` and `_`.
        subjects: The subjects of the messages that it keeps; wildcards allowed. Streams may not overlap.
        retention: `limits`: until a limit is reached; `interest`: until all consumers have handled a message;
            `workqueue`: until its consumer has, and then consumers may not overlap.
        storage: `file` or `memory`.
        max_age: How long messages are kept, in seconds or as text such as `"7d"`; None for any time.
        max_bytes: How many bytes of them; None for any number.
        max_messages: How many of them; None for any number.
        discard: At a limit, `old` messages are dropped, or `new` ones refused.
        duplicate_window: How long a message's id is remembered, in seconds or as text: another message with
            the same id is not stored.
        replicas: On how many servers of a cluster it is kept.
        description: A line for who looks at it.

    Raises:
        DeclarationError: A field cannot have its value; the text says what to write.
    """

    name: str
    subjects: Sequence[str]
    retention: Retention = "limits"
    storage: Storage = "file"
    max_age: float | str | None = None
    max_bytes: int | None = None
    max_messages: int | None = None
    discard: Discard = "old"
    duplicate_window: float | str = "2m"
    replicas: int = 1
    description: str = ""

    def __post_init__(self) -> None:
        where = f"stream {check_name('stream', self.name)!r}"
        given = cast("object", self.subjects)
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise DeclarationError(f"{where}: subjects is a list, such as ['orders.>'], not {given!r}")
        patterns = [Pattern(subject) for subject in self.subjects]
        _set(self, "subjects", tuple(pattern.wire for pattern in patterns))
        for name, allowed in (("retention", Retention), ("storage", Storage), ("discard", Discard)):
            check_one_of(f"{where}: {name}", getattr(self, name), allowed)
        for name in ("max_bytes", "max_messages"):
            if (most := getattr(self, name)) is not None:
                check_count(f"{where}: {name}", most)
        check_count(f"{where}: replicas", self.replicas)
        if self.max_age is not None:
            _set(self, "max_age", check_duration(f"{where}: max_age", self.max_age))
        window = check_duration(f"{where}: duplicate_window", self.duplicate_window)
        if isinstance(self.max_age, float):
            window = min(window, self.max_age)  # JetStream wants it
        _set(self, "duplicate_window", window)

    @property
    def left_out(self) -> set[str]:
        """The fields that are not said, as JetStream calls them: of a stream that exists they stay."""
        fields = {name: _JETSTREAM.get(name, name) for name in self.__struct_fields__[2:]}
        usual = zip(fields, self.__struct_defaults__, strict=True)
        said = {name for name, default in usual if getattr(self, name) != _SECONDS.get(name, default)}
        return {called for name, called in fields.items() if name not in said}

    @property
    def config(self) -> dict[str, Any]:
        """The same as JetStream has it."""
        assert not isinstance(self.max_age, str)
        assert not isinstance(self.duplicate_window, str)
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "storage": self.storage,
            "max_age": nanoseconds(self.max_age or 0),
            "max_bytes": self.max_bytes or _UNLIMITED,
            "max_msgs": self.max_messages or _UNLIMITED,
            "discard": self.discard,
            "duplicate_window": nanoseconds(self.duplicate_window),
            "num_replicas": self.replicas,
            "description": self.description,
            "allow_direct": True,
        }


_set = msgspec.structs.force_setattr


class Consumption:
    """A declared consumer: a function that handles the messages of a stream.

    Attributes:
        stream: The stream, or the name of one.
        name: The consumer's in JetStream.
        subject: As declared.
        pattern: The same as a pattern.
        start: With which messages a new consumer starts.
        serve: What bounds it.
        max_deliver: How often a message is delivered at most.
        ack_wait: Seconds after which a message is taken back from an instance that says nothing.
        retry_delay: The most to wait before the second delivery, in seconds.
        retry_delay_most: What that doubles up to.
        deduplicate: Seconds for which the ids of handled messages are remembered; None for not at all.
        partitions: How many there are; 0 if messages are handled in any order.
        signature: How the function is called.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        pattern: Pattern,
        *,
        stream: StreamConfig | str,
        name: str,
        start: Start,
        serve: ServePolicy,
        max_deliver: int,
        ack_wait: float | str,
        retry_delay: float | str,
        retry_delay_most: float | str,
        deduplicate: float | str | None,
        ordered_by: str | None,
        partitions: int | None,
        service: str,
    ) -> None:
        self.signature = Signature(function, pattern)
        self.pattern = pattern
        self.subject = pattern.declared
        where = self.signature.where
        if self.signature.is_stream:
            raise DeclarationError(f"{where} yields, and nobody reads what comes of a message")
        self.stream = _stream(where, stream, pattern)
        self.name = check_name("consumer", name)
        self._service = service
        self.start = check_one_of(f"{where}: start", start, Start)
        if serve.adaptive is True:
            raise DeclarationError(f"{where}: adaptive is for calls, which can be refused; leave it out")
        self.serve = serve
        self.max_deliver = check_count(f"{where}: max_deliver", max_deliver)
        self.ack_wait = check_duration(f"{where}: ack_wait", ack_wait)
        self.retry_delay = check_duration(f"{where}: retry_delay", retry_delay)
        self.retry_delay_most = check_duration(f"{where}: retry_delay_most", retry_delay_most)
        self.deduplicate = (
            None if deduplicate is None else check_duration(f"{where}: deduplicate", deduplicate)
        )
        self.partitions = 0
        if ordered_by is None and partitions is not None:
            raise DeclarationError(f"{where}: partitions are for messages in order; say ordered_by= what")
        if ordered_by is not None:
            if ordered_by not in pattern.parameters:
                raise DeclarationError(
                    f"{where}: ordered_by is a {{parameter}} of the subject {pattern.declared!r}, "
                    f"not {ordered_by!r}"
                )
            if isinstance(self.stream, StreamConfig) and self.stream.retention != "limits":
                raise DeclarationError(
                    f"{where}: ordered_by copies messages from a stream of retention 'limits', and "
                    f"{self.stream.name!r} is of {self.stream.retention!r}, of which copies could be lost or "
                    "made twice"
                )
            self.partitions = check_count(f"{where}: partitions", 8 if partitions is None else partitions)
            self._key = pattern.wire.split(".")[: pattern.parameters[ordered_by]].count("*") + 1

    @property
    def source(self) -> str:
        """The name of the stream whose messages are handled."""
        return self.stream if isinstance(self.stream, str) else self.stream.name

    @property
    def replicas(self) -> int:
        """On how many servers streams of its own are kept."""
        return 1 if isinstance(self.stream, str) else self.stream.replicas

    @property
    def consumed(self) -> str:
        """The name of the stream that the consumers are on: with partitions, one of its own."""
        return f"{self.source}-{self.name}" if self.partitions else self.source

    @property
    def prefix(self) -> str:
        """What stands before the partition in the subjects of that stream."""
        return f"{PARTITIONED}{self.source}.{self.name}."

    @property
    def partitioned(self) -> dict[str, Any]:
        """The stream that copies messages into partitions.

        https://docs.nats.io/nats-concepts/subject_mapping#deterministic-subject-token-partitioning
        """
        tokens = self.pattern.wire.split(".")
        stars = iter(range(1, len(tokens) + 1))
        copied = ".".join(f"{{{{wildcard({next(stars)})}}}}" if each == "*" else each for each in tokens)
        transform = {
            "src": self.pattern.wire,
            "dest": f"{self.prefix}{{{{partition({self.partitions},{self._key})}}}}.{copied}",
        }
        since = {"opt_start_seq": NEXT} if self.start == "new" else {}
        return {
            "name": self.consumed,
            "description": f"meshkit: what {self.name} handles in order",
            "retention": "workqueue",
            "storage": "file",
            "num_replicas": self.replicas,
            "sources": [{"name": self.source, "subject_transforms": [transform], **since}],
        }

    @property
    def consumers(self) -> list[dict[str, Any]]:
        """The consumers as JetStream has them: one, or one for each partition."""
        config = {
            "ack_policy": "explicit",
            "ack_wait": nanoseconds(self.ack_wait),
            # Whoever gets a message once too often puts it to the dead letters.
            "max_deliver": _UNLIMITED,
            # What waits to be tried again must not keep others from being delivered.
            "max_ack_pending": 1 if self.partitions else _UNLIMITED,
            "deliver_policy": "all" if self.partitions else self.start,
            "metadata": {OWNER: self._service},
        }
        if not self.partitions:
            return [config | _named(self.name, self.pattern.wire)]
        return [
            config | _named(f"{self.name}-{number}", f"{self.prefix}{number}.>")
            for number in range(self.partitions)
        ]

    @property
    def policies(self) -> list[Source]:
        """What bounds it, the weakest first."""
        return [Source(USUAL, "default"), Source(self.serve, f"consumer {self.name}")]


def _named(name: str, subject: str) -> dict[str, Any]:
    return {"name": name, "durable_name": name, "filter_subject": subject}


def _stream(where: str, stream: object, pattern: Pattern) -> StreamConfig | str:
    if isinstance(stream, str):
        return check_name("stream", stream)
    if not isinstance(stream, StreamConfig):
        raise DeclarationError(f"{where}: stream is a StreamConfig or the name of a stream, not {stream!r}")
    if not any(Pattern(subject).covers(pattern.wire) for subject in stream.subjects):
        raise DeclarationError(
            f"{where}: stream {stream.name!r} keeps {', '.join(stream.subjects)}, and not "
            f"{pattern.declared!r}; add that to its subjects"
        )
    return stream


def check_streams(where: str, streams: object) -> tuple[StreamConfig, ...]:
    """Streams.

    Raises:
        DeclarationError: They are none.
    """
    given = cast("Sequence[object]", streams) if isinstance(streams, Sequence) else [streams]
    for stream in given:
        if not isinstance(stream, StreamConfig):
            raise DeclarationError(f"{where}: streams is a list of StreamConfig, not {stream!r}")
    return cast("tuple[StreamConfig, ...]", tuple(given))


def check_one_of(what: str, value: Any, allowed: Any) -> Any:
    """One of the values of a Literal.

    Raises:
        DeclarationError: It is none of them.
    """
    if value not in get_args(allowed):
        raise DeclarationError(f"{what} is {' or '.join(map(repr, get_args(allowed)))}, not {value!r}")
    return value


def check_duration(what: str, value: object) -> float:
    """Seconds, of a number or of text.

    Raises:
        DeclarationError: It is neither.
    """
    try:
        return DURATION.check(what, value)
    except ValueError as error:
        raise DeclarationError(str(error)) from None


def nanoseconds(seconds: float) -> int:
    """As JetStream has durations."""
    return round(seconds * _NANOSECONDS)
