"""Counts that all instances share: a storage for `limits` on JetStream counters.

A counter is a subject of a stream that adds up what it is sent:
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-49.md, nats-server from 2.12 on.
"""

import asyncio
import math
from datetime import datetime

import msgspec
from limits.aio.storage import Storage

from meshkit.errors import ConnectionLost, MeshError, NoResponders, Unavailable
from meshkit.headers import line
from meshkit.subject import token
from meshkit.transport import Transport

# Seconds that the server may take to answer, and for which its clock is taken to go on like ours.
PATIENCE = 0.25
_SYNCHRONISED = 60.0

# Seconds that a counter is kept longer than its window: for instances that know the server's time less well.
_MARGIN = 10
# Of one stream: a quarter of a million counters. Beyond that, the one idle longest is dropped.
_MOST_BYTES = 32 * 1024 * 1024

_NOT_FOUND = 404


class _Error(msgspec.Struct):
    code: int = 500
    description: str = ""


class _State(msgspec.Struct, frozen=True):
    last_seq: int = 0


class _Answer(msgspec.Struct):
    """What JetStream answers; those of requests for a counter have no time, others no count."""

    error: _Error | None = None
    val: int = 0
    seq: int = 0
    ts: datetime | None = None
    created: datetime | None = None
    state: _State = _State()


class CounterStorage(Storage):
    """Counters in a stream, for limits whose windows have one length.

    Windows are fixed and begin at multiples of their length by the server's clock, so that those of the
    instances need not agree. Each length has a stream of its own, made if it is missing, because JetStream
    forgets all counters of a stream after the same time. It is in the server's memory; one that shall survive
    the server can be made beforehand. Times are seconds of the event loop's clock.

    Args:
        transport: A connection to JetStream.
        seconds: The length of the windows.

    Attributes:
        generation: How often the counters are known to have begun anew, because the server lost them.
    """

    STORAGE_SCHEME = None

    def __init__(self, transport: Transport, seconds: int) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._stream = f"MESH_QUOTA_{seconds}"
        self._prefix = f"_MESH.quota.{seconds}."
        # What the server's clock is ahead of ours, and when that was true.
        self._ahead = 0.0
        self._known = -math.inf
        self._seq = 0
        self._created: datetime | None = None
        # When the counters began, by the server's clock, if others may still have to tell them something.
        self._began = -math.inf
        self.generation = 0

    @property
    def base_exceptions(self) -> type[MeshError]:
        """What the methods raise when JetStream does not do what it is asked for."""
        return MeshError

    @property
    def window(self) -> int:
        """The number of the window that it is now."""
        return int((self._loop.time() + self._ahead) // self._seconds)

    @property
    def window_end(self) -> float:
        """When that window ends."""
        return (self.window + 1) * self._seconds - self._ahead

    @property
    def is_incomplete(self) -> bool:
        """Whether the counters of this window may lack what was told to others before they were lost."""
        is_settling = self._transport.is_connected and not self._transport.is_settled
        return is_settling and self._began > self.window * self._seconds

    @property
    def is_due(self) -> bool:
        """Whether it is time to look again."""
        return self._loop.time() - self._known >= _SYNCHRONISED

    def doubt(self) -> None:
        """Look again at the next `synchronise`: the counters may be others."""
        self._known = -math.inf

    async def synchronise(self) -> None:
        """Know the server's time, that there is a stream, and whether it is the same as ever."""
        if self.is_due:
            if self._known > -math.inf:
                self._known = self._loop.time()  # who comes meanwhile goes on with what was known
            await self._open()

    async def add(self, name: str, window: int, amount: int) -> int:
        """Add to the counter of a window; gives what it has then.

        Args:
            name: The counter's: tokens of a subject.
            window: The window's number.
            amount: How many.
        """
        subject, head = f"{self._prefix}{name}.{window}", line("Nats-Incr", f"+{amount}")
        seq, generation = self._seq, self.generation
        try:
            answer = await self._request(subject, head=head)
        except (NoResponders, ConnectionLost):
            # The server has restarted, perhaps. If it had counted this already: rather too many than too few.
            await self._open()
            answer = await self._request(subject, head=head)
        if answer.seq > seq:
            self._seq = max(self._seq, answer.seq)
        elif generation == self.generation:
            self._begin_anew(answer.seq)
            self._created = None  # which the next look tells
        return answer.val

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:  # noqa: ARG002 # windows have one length
        """Add to the counter of this window; gives what it has then."""
        await self.synchronise()
        return await self.add(token(key), self.window, amount)

    async def get(self, key: str) -> int:
        """What the counter of this window has."""
        await self.synchronise()
        subject = self._subject(key, self.window)
        return (await self._request(f"$JS.API.DIRECT.GET.{self._stream}.{subject}")).val

    async def get_expiry(self, key: str) -> float:  # noqa: ARG002 # all have the same windows
        """When this window ends."""
        await self.synchronise()
        return self.window_end

    async def check(self) -> bool:
        """Whether JetStream is there."""
        try:
            await self._open()
        except MeshError:
            return False
        return True

    async def reset(self) -> None:
        """Forget all counters."""
        await self._request(self._api("PURGE"))

    async def clear(self, key: str) -> None:
        """Forget the counter of this window."""
        await self.synchronise()
        only = msgspec.json.encode({"filter": self._subject(key, self.window)})
        await self._request(self._api("PURGE"), only)

    def _subject(self, key: str, window: int) -> str:
        return f"{self._prefix}{token(key)}.{window}"

    async def _open(self) -> None:
        before, seq = self._loop.time(), self._seq
        answer = await self._ask(self._api("INFO"))
        if answer.error and answer.error.code == _NOT_FOUND:
            before = self._loop.time()
            answer = await self._ask(self._api("CREATE"), msgspec.json.encode(self._configuration()))
        if answer.error or answer.ts is None:
            raise _unavailable(answer)
        now = self._loop.time()
        self._ahead = answer.ts.timestamp() - (before + now) / 2
        self._known = now
        if answer.created is not None:
            self._see(answer.created, answer.state.last_seq, seq)

    def _see(self, created: datetime, seq: int, before: int) -> None:
        """Find out whether the counters are the same as ever.

        A cluster that makes a lost stream anew may keep the time of its creation, hence the sequence as well.
        """
        if self._created is None:
            # The first look; after a reconnect others may have lost what we never had.
            if not self._transport.is_settled:
                self._began = max(self._began, created.timestamp())
        elif created != self._created or seq < before:
            self._begin_anew(seq)
        self._created = created

    def _begin_anew(self, seq: int) -> None:
        self._seq = seq
        self._began = self._loop.time() + self._ahead
        self.generation += 1

    def _configuration(self) -> dict[str, object]:
        return {
            "name": self._stream,
            "description": f"meshkit: rate limits shared by all instances, windows of {self._seconds} s",
            "subjects": [f"{self._prefix}>"],
            "storage": "memory",
            "max_age": (self._seconds + _MARGIN) * 10**9,
            "max_bytes": _MOST_BYTES,
            "max_msgs_per_subject": 1,
            "allow_msg_counter": True,
            "allow_direct": True,
        }

    def _api(self, verb: str) -> str:
        return f"$JS.API.STREAM.{verb}.{self._stream}"

    async def _request(self, subject: str, payload: bytes = b"", head: bytes = b"") -> _Answer:
        answer = await self._ask(subject, payload, head)
        if answer.error:
            raise _unavailable(answer)
        return answer

    async def _ask(self, subject: str, payload: bytes = b"", head: bytes = b"") -> _Answer:
        message = await self._transport.request(subject, payload, head, self._loop.time() + PATIENCE)
        if not message.payload:  # there is no such counter
            return _Answer()
        try:
            return _decode(message.payload)
        except msgspec.DecodeError as error:
            raise Unavailable(f"what answers on {subject} is not JetStream: {error}") from None


_decode = msgspec.json.Decoder(_Answer, strict=False).decode  # counts are text


def _unavailable(answer: _Answer) -> Unavailable:
    return Unavailable(f"JetStream: {answer.error.description if answer.error else 'it tells no time'}")
