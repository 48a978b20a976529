"""JetStream's own interface: what is asked on `$JS.API`, and what it answers.

https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from meshkit.errors import ConnectionLost, MeshError, NoResponders, Unavailable
from meshkit.headers import find, whole
from meshkit.transport import Transport

T = TypeVar("T")
Config = dict[str, Any]
"""A stream's or a consumer's configuration, as JetStream has it; durations in nanoseconds."""

# Seconds that an answer may take, for which a server that has just started is asked again, and between that.
_PATIENCE = 5.0
_STARTING = 2.0
_PAUSE = 0.1
_NOT_FOUND = 404
# Of an answer to a direct request: there is no such message; how many more there are like it.
_NO_MESSAGE = b" 404"
_MORE = b"\r\nNats-Num-Pending:"
# It is not ready yet, or its cluster has no leader; the numbers are those of nats-server's errors.json.
TEMPORARY = (10008, 10023)

# The account, or the server, has none.
_NOT_ENABLED = (10039, 10076)


class JetStreamError(MeshError):
    """JetStream refuses.

    Attributes:
        number: Its own number of the error.
    """

    code = 503

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class NoJetStream(JetStreamError):
    """There is none."""


class ApiError(msgspec.Struct):
    """What JetStream says that is wrong."""

    code: int = 500
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    error: ApiError | None = None


class State(msgspec.Struct):
    """What a stream holds."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    last_ts: datetime | None = None
    consumer_count: int = 0


class StreamInfo(msgspec.Struct):
    """A stream."""

    config: Config
    state: State = msgspec.field(default_factory=State)

    @property
    def name(self) -> str:
        """Its name."""
        return self.config["name"]


class Position(msgspec.Struct):
    """How far a consumer is."""

    consumer_seq: int = 0
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct):
    """A consumer.

    Attributes:
        num_pending: Messages that have not been delivered yet.
        num_ack_pending: Messages that have been, and not acknowledged.
        num_redelivered: Those of them that have been more than once.
        num_waiting: Requests for messages that wait.
    """

    stream_name: str
    name: str
    config: Config
    delivered: Position = msgspec.field(default_factory=Position)
    ack_floor: Position = msgspec.field(default_factory=Position)
    num_pending: int = 0
    num_ack_pending: int = 0
    num_redelivered: int = 0
    num_waiting: int = 0


class StoredMessage(msgspec.Struct):
    """A message as a stream keeps it."""

    subject: str
    seq: int
    time: datetime
    data: str = ""
    hdrs: str = ""

    @property
    def payload(self) -> bytes:
        """Its bytes."""
        return base64.b64decode(self.data)

    @property
    def head(self) -> bytes:
        """Its headers, as `meshkit.headers` has them."""
        return base64.b64decode(self.hdrs).removeprefix(b"NATS/1.0").removesuffix(b"\r\n\r\n")


class _Page(msgspec.Struct):
    total: int = 0
    streams: list[StreamInfo] | None = None
    consumers: list[ConsumerInfo] | None = None


class _Names(msgspec.Struct):
    streams: list[str] | None = None


class _Found(msgspec.Struct):
    message: StoredMessage


class JetStream:
    """The streams and consumers of the account that a connection is in.

    Args:
        transport: The connection.

    Raises:
        JetStreamError: From all methods: there is none, or it refuses.
        MeshError: From all methods: it cannot be reached.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    async def stream(self, name: str) -> StreamInfo | None:
        """A stream, if there is one of that name."""
        return await self._look(f"STREAM.INFO.{name}", StreamInfo)

    async def consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        """A consumer, if there is one of that name."""
        return await self._look(f"CONSUMER.INFO.{stream}.{name}", ConsumerInfo)

    async def create_stream(self, config: Config) -> None:
        """Make a stream; no error if there is the same."""
        await self.ask(f"STREAM.CREATE.{config['name']}", StreamInfo, config)

    async def update_stream(self, config: Config) -> None:
        """Give a stream another configuration."""
        await self.ask(f"STREAM.UPDATE.{config['name']}", StreamInfo, config)

    async def put_consumer(self, stream: str, config: Config) -> None:
        """Make a consumer, or give it another configuration."""
        verb = f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}"
        await self.ask(verb, ConsumerInfo, {"stream_name": stream, "config": config})

    async def streams(self) -> AsyncIterator[StreamInfo]:
        """All streams."""
        offset = 0
        while streams := (await self.ask("STREAM.LIST", _Page, {"offset": offset})).streams:
            for stream in streams:
                yield stream
            offset += len(streams)

    async def keeping(self, subject: str) -> list[str]:
        """The names of the streams that keep messages of a subject, or of some that a pattern matches."""
        return (await self.ask("STREAM.NAMES", _Names, {"subject": subject})).streams or []

    async def consumers(self, stream: str) -> AsyncIterator[ConsumerInfo]:
        """All consumers of a stream."""
        offset, verb = 0, f"CONSUMER.LIST.{stream}"
        while consumers := (await self.ask(verb, _Page, {"offset": offset})).consumers:
            for consumer in consumers:
                yield consumer
            offset += len(consumers)

    async def message(self, stream: str, sequence: int) -> StoredMessage | None:
        """A message of a stream, if it is still there."""
        found = await self._look(f"STREAM.MSG.GET.{stream}", _Found, {"seq": sequence})
        return found and found.message

    async def last(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message of a stream on a subject, if there is one."""
        found = await self._look(f"STREAM.MSG.GET.{stream}", _Found, {"last_by_subj": subject})
        return found and found.message

    async def messages(self, stream: str, subject: str, sequence: int = 1) -> AsyncIterator[StoredMessage]:
        """The messages of a stream on the subjects of a pattern, the oldest first, from a number on."""
        verb = f"STREAM.MSG.GET.{stream}"
        while found := await self._look(verb, _Found, {"seq": sequence, "next_by_subj": subject}):
            yield found.message
            sequence = found.message.seq + 1

    async def count(self, stream: str, subject: str, sequence: int = 1) -> int | None:
        """How many messages on the subjects of a pattern a stream has, from a number on.

        None where that cannot be told: the stream allows no direct access, or the server is older than 2.11.
        https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md
        """
        body = msgspec.json.encode({"batch": 1, "seq": sequence, "next_by_subj": subject})
        deadline = self._loop.time() + _PATIENCE
        try:
            answer = await self._transport.request(f"$JS.API.DIRECT.GET.{stream}", body, b"", deadline)
        except NoResponders:
            return None
        if answer.head.startswith(_NO_MESSAGE):
            return 0
        more = whole(find(answer.head, _MORE) or "")
        return None if more is None else more + 1

    async def delete(self, stream: str, sequence: int) -> None:
        """Take a message out of a stream, if it is still there."""
        try:
            await self.ask(f"STREAM.MSG.DELETE.{stream}", _Answer, {"seq": sequence, "no_erase": True})
        except JetStreamError:
            if await self.message(stream, sequence) is not None:
                raise

    async def _look(self, verb: str, kind: type[T], body: object = None) -> T | None:
        try:
            return await self.ask(verb, kind, body)
        except JetStreamError as error:
            if error.code == _NOT_FOUND:
                return None
            raise

    async def ask(self, verb: str, kind: type[T], body: object = None) -> T:
        """Ask the interface.

        Args:
            verb: What follows `$JS.API.`.
            kind: The type of the answer.
            body: What is sent along, as JSON.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        give_up = self._loop.time() + _STARTING
        while True:
            try:
                return await self._ask(verb, kind, payload)
            except (NoResponders, ConnectionLost, JetStreamError) as error:
                is_over = self._loop.time() >= give_up
                if isinstance(error, JetStreamError) and error.number in _NOT_ENABLED:
                    raise NoJetStream(f"NATS at {self._transport.server_url}: {error.message}") from None
                if isinstance(error, JetStreamError) and (is_over or error.number not in TEMPORARY):
                    raise
                if is_over and isinstance(error, NoResponders):
                    raise NoJetStream(
                        f"NATS at {self._transport.server_url} has no JetStream; start it with --jetstream"
                    ) from None
                if is_over:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _ask(self, verb: str, kind: type[T], payload: bytes) -> T:
        subject = f"$JS.API.{verb}"
        answer = await self._transport.request(subject, payload, b"", self._loop.time() + _PATIENCE)
        try:
            if (wrong := msgspec.json.decode(answer.payload, type=_Answer).error) is not None:
                error = JetStreamError(f"JetStream: {wrong.description}", wrong.err_code)
                error.code = wrong.code
                raise error
            return msgspec.json.decode(answer.payload, type=kind)
        except msgspec.DecodeError as error:
            raise Unavailable(f"what answers on {subject} is not JetStream: {error}") from None
