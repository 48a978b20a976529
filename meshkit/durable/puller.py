"""Fetching from a consumer ahead of what is handled, and keeping what is being handled from being taken back.

A pull request asks for so many messages, and the server sends them as there are any
(https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-37.md).
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from meshkit.durable.delivery import ACK, WORKING, of_consumer
from meshkit.headers import find, whole
from meshkit.transport import INBOX, Message, Transport
from meshkit.transport import Subscription as Interest

log = logging.getLogger("meshkit.durable")

# Seconds that a pull request is valid, and after which the server says that it is still there.
_EXPIRES = 30
_HEARTBEAT = 5
# Seconds between looks at whether it does, and after a request that came to nothing.
_LOOK = 1.0
_PAUSE = 0.25

_HEARTBEATS = b" 100"
# Of the request itself: nobody listens where the consumer should.
_NOBODY = "it is not there; if it was deleted, it is made anew when its service starts"
_LEFT = b"\r\nNats-Pending-Messages:"


class Puller:
    """Fetches the messages of one consumer.

    Args:
        transport: The connection.
        stream: The stream that the consumer is on.
        consumer: Its name.
        window: How many messages there may be here at a time, handled or waiting.
        ack_wait: Seconds after which the server takes a message back.
        take: Gets each message; whoever has handled it calls `settle` with its reply subject.

    Attributes:
        first: How the reply subjects of first deliveries begin, but for those of a JetStream domain.
    """

    def __init__(
        self,
        transport: Transport,
        stream: str,
        consumer: str,
        *,
        window: int,
        ack_wait: float,
        take: Callable[["Puller", Message], None],
    ) -> None:
        self._transport = transport
        self._name = f"{consumer} of {stream}"
        self._ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self.first = f"{ACK}{stream}.{consumer}.1."
        self._is_ours = of_consumer(stream, consumer)
        self._window = window
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._inbox = f"{INBOX}{secrets.token_hex(11)}"
        self._interest: Interest | None = None
        # How many messages the server still owes; by reply subject, since when each is here.
        self._owed = 0
        self._here: dict[str, float] = {}
        self._extend_after = ack_wait / 3
        self._heard = 0.0
        self._reconnects = transport.reconnects
        # What the server could not be told yet.
        self._unsaid: list[tuple[str, bytes]] = []
        self._is_lost = False
        self._timer: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to fetch.

        Raises:
            Forbidden: The connection's user may not.
        """
        self._interest = await self._transport.subscribe(self._inbox, self._on_message)
        self._timer = asyncio.create_task(self._tend())
        self._pull()

    async def stop(self) -> None:
        """Fetch no more; returns when all that was delivered was taken. What is here goes on to be kept."""
        interest, self._interest = self._interest, None
        if interest is not None:
            await interest.drain()

    async def close(self) -> None:
        """Nothing is kept from being taken back any more."""
        if self._again is not None:
            self._again.cancel()
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait([self._timer])
        if self._transport.is_connected:
            self._say()

    def _say(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for reply, verdict in unsaid:
            self._transport.tell(reply, verdict)

    def settle(self, reply: str, verdict: bytes) -> None:
        """Tell the server what became of a message."""
        if self._here.pop(reply, None) is None:
            return
        if self._transport.is_connected:
            self._transport.tell(reply, verdict)
        else:
            self._unsaid.append((reply, verdict))
        self._pull()

    def _pull(self) -> None:
        """Ask for more, half a window at a time."""
        room = self._window - len(self._here) - self._owed
        if room <= 0 or (self._owed and 2 * room < self._window):
            return
        if self._interest is None or self._again is not None or not self._transport.is_connected:
            return
        if not self._owed:
            self._heard = self._loop.time()
        self._owed += room
        ask = b'{"batch":%d,"expires":%d000000000,"idle_heartbeat":%d000000000}'
        self._transport.tell(self._ask, ask % (room, _EXPIRES, _HEARTBEAT), reply=self._inbox)

    def _on_message(self, message: Message) -> None:
        self._heard = self._loop.time()
        if message.reply.startswith(self.first) or self._is_ours(message.reply):
            self._is_lost = False
            self._owed = max(0, self._owed - 1)
            self._here[message.reply] = self._heard
            self._take(self, message)
        elif message.head.startswith(b" ") and not message.head.startswith(_HEARTBEATS):
            self._told(message.head)

    def _told(self, head: bytes) -> None:
        """A request is over before all that it asked for came."""
        left = whole(find(head, _LEFT) or "")
        self._owed = 0 if left is None else max(0, self._owed - left)
        if head.startswith((b" 404", b" 408")):
            self._pull()
            return
        if not self._is_lost:
            said = head.partition(b"\r\n")[0].decode(errors="replace").strip()
            log.warning("%s: %s", self._name, _NOBODY if said == "503" else said)
        self._is_lost = True
        self._again = self._again or self._loop.call_later(_PAUSE, self._pull_again)

    def _pull_again(self) -> None:
        self._again = None
        self._pull()

    async def _tend(self) -> None:
        """Keep what is here, and notice that the server has forgotten what it owes."""
        while True:
            await asyncio.sleep(min(_LOOK, self._extend_after))
            if not self._transport.is_connected:
                continue
            if self._reconnects != self._transport.reconnects:
                # Requests end with the connection.
                self._reconnects, self._owed = self._transport.reconnects, 0
            elif self._owed and self._loop.time() - self._heard > 2 * _HEARTBEAT + 1:
                log.warning("%s: the server says nothing any more, it is asked again", self._name)
                self._owed = 0
            self._say()
            self._extend()
            self._pull()

    def _extend(self) -> None:
        now = self._loop.time()
        due: list[str] = []
        for reply, since in self._here.items():
            if now - since < self._extend_after:
                break
            due.append(reply)
        for reply in due:
            del self._here[reply]
            self._here[reply] = now  # the last again: they are in order
            self._transport.tell(reply, WORKING)
