"""The transport on nats-py: requests by an inbox of its own, on a connection that mends itself."""

# nats-py leaves many of its types open.
# pyright: reportUnknownMemberType=false

import asyncio
import itertools
import logging
import math
import os
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

from nats import errors as nats_errors

from meshkit import headers
from meshkit.deadlines import Deadlines
from meshkit.errors import BadRequest, ConnectionLost, DeadlineExceeded, Forbidden, NoResponders
from meshkit.transport import CANCEL, INBOX, PROBE, Message, Sink, fast
from meshkit.transport.client import Deliver
from meshkit.transport.connection import PENDING_LIMIT, Connection
from meshkit.transport.interest import Interest
from meshkit.transport.options import Options

log = logging.getLogger("meshkit.transport")

# Seconds.
_PUBLISH_PATIENCE = 5.0
# Calls to remember that are to be abandoned when the connection is back.
_UNTOLD = 10_000

_INBOX = INBOX.encode()


class NatsTransport(Connection):
    """A connection to NATS on nats-py; the interface is `meshkit.transport.Transport`.

    Args:
        options: The servers, and who connects.
        name: What the connection is called in the server's monitoring.
    """

    def __init__(self, options: Options, name: str | None = None) -> None:
        super().__init__(options, name)
        # Whoever gets a request knows its reply subject, and must not guess the next one from it.
        self._tokens = itertools.chain.from_iterable(iter(_random_numbers, None))
        self._answers = self._inbox.encode()
        self._token_at = len(self._answers)
        self._deadlines = Deadlines(_expire)
        self._told: set[asyncio.Future[None]] = set()
        # Calls that nobody waits for, while there is no connection to say so.
        self._untold: deque[tuple[str, str]] = deque(maxlen=_UNTOLD)

    async def connect(self, timeout: float) -> None:
        """Make the first connection.

        Args:
            timeout: Seconds to go on trying.

        Raises:
            Disconnected: No server could be reached, or it refused; the text says which and why.
        """
        await super().connect(timeout)
        await self._listen(f"{self._inbox}*", "", self._on_reply)

    def _open(self) -> None:
        super()._open()
        while self._untold and self.is_connected:
            self.abandon(*self._untold.popleft())

    async def close(self) -> None:
        """Send what is to be sent and end the connection."""
        # As long as it can be said. Streams say it themselves, and are gone then.
        for token, (subject, answer) in list(self._waiting.items()):
            if not answer.done():
                answer.set_exception(ConnectionLost())
                if token in self._waiting:
                    self.abandon(subject, (self._answers + token).decode())
        await super().close()

    # Requests

    async def request(self, subject: str, payload: bytes, head: bytes, deadline: float) -> Message:
        """Send a message and wait for the first answer."""
        if len(payload) + len(head) > self._room or self._client.pending_data_size > PENDING_LIMIT:
            await self._admit(subject, payload, head, deadline)
        token = b"%x" % next(self._tokens)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[token] = (subject, answer)
        slot = self._deadlines.add(answer, deadline)
        denied = self.denials.unasked
        try:
            sending = self._client.send(subject, payload, head, self._answers + token)
            if sending is not None:
                await sending
            message = await answer
        except (asyncio.CancelledError, DeadlineExceeded) as error:
            # At its deadline the callee stops by itself, unless it has been stopped: then it reads the call
            # later, and takes its time for just begun.
            self.abandon(subject, (self._answers + token).decode())
            if isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded(self.denials.explain(error.message, head, denied)) from None
            raise
        finally:
            slot.pop(answer, None)
            self._waiting.pop(token, None)
            del answer  # an error in it and this frame would keep each other alive
        if message.head.startswith(headers.NO_RESPONDERS) and not message.payload:
            raise NoResponders(f"no service listens on {subject!r}")
        return message

    def abandon(self, subject: str, reply: str) -> None:
        """Tell whoever answers a call that nobody waits any more."""
        if subject.startswith(("$", "_")):
            return
        if self.is_connected:
            self.tell(CANCEL + subject, reply.encode())
        else:
            self._untold.append((subject, reply))

    def tell(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """Send a small message and wait for nothing."""
        sending = self._client.send(subject, payload, head, reply.encode())
        if sending is not None:
            task = asyncio.ensure_future(sending)
            self._told.add(task)
            task.add_done_callback(self._tell_no_more)

    def _tell_no_more(self, task: "asyncio.Future[None]") -> None:
        self._told.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("somebody was not told something: %r", error)

    def attach(self, subject: str, sink: Sink) -> str:
        """Have all messages on a reply subject of its own go to a sink, until `detach`."""
        token = fast.ATTACHED + b"%x" % next(self._tokens)
        self._waiting[token] = (subject, sink)
        return (self._answers + token).decode()

    def detach(self, reply: str) -> None:
        """Drop what arrives on a reply subject from now on."""
        self._waiting.pop(reply[self._token_at :].encode(), None)

    def _on_reply(self, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        waiting = self._waiting.get(subject[self._token_at :])
        if waiting is None:
            # The caller has given up. The producer of a stream may not have been told, if it asks.
            if head.rstrip() == PROBE and reply.startswith(_INBOX):
                self.tell(reply.decode(errors="replace"), b"")
        elif not waiting[1].done():
            # Only the items of a stream have a reply subject.
            message = Message("", reply.decode(errors="replace") if reply else "", payload, head)
            try:
                waiting[1].set_result(message)
            except Exception:
                # In here it would end the connection.
                log.exception("an answer of %s was not handled", waiting[0])

    async def gather(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float = 1.0,
        stall: float = 0.3,
        most: float = math.inf,
    ) -> list[Message]:
        """Send a message and collect the answers of everybody."""
        answers: asyncio.Queue[Message] = asyncio.Queue()
        inbox = f"_INBOX.{secrets.token_hex(11)}"
        subscription = await self.subscribe(inbox, answers.put_nowait)
        # Among those who wait for an answer, to be told of a lost connection or a missing permission.
        failure: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[inbox.encode()] = (subject, failure)
        gathered: list[Message] = []
        try:
            await self.publish(subject, payload, reply=inbox)
            end = self._loop.time() + most
            while True:
                seconds = min(stall if gathered else timeout, max(0.0, end - self._loop.time()))
                message = await self._first(answers, failure, seconds)
                if message is None or message.head.startswith(headers.NO_RESPONDERS):
                    return gathered
                gathered.append(message)
        finally:
            failure.cancel()
            self._waiting.pop(inbox.encode(), None)
            await subscription.close()

    async def _first(
        self, answers: asyncio.Queue[Message], failure: "asyncio.Future[Message]", seconds: float
    ) -> Message | None:
        """The next answer; None if there is none in that time."""
        answer = asyncio.create_task(answers.get())
        try:
            tasks: set[asyncio.Future[Any]] = {answer, failure}
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()

    # Publishing

    async def publish(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """Send a message; returns when it is on its way to the server."""
        if len(payload) + len(head) > self._room or self._client.pending_data_size > PENDING_LIMIT:
            await self._admit(subject, payload, head, self._loop.time() + _PUBLISH_PATIENCE)
        sending = self._client.send(subject, payload, head, reply.encode())
        if sending is not None:
            await sending

    async def _admit(self, subject: str, payload: bytes, head: bytes, deadline: float) -> None:
        self._check_size(subject, payload, head)
        await self.ready(deadline)
        # It may be another server by now.
        self._check_size(subject, payload, head)

    def _check_size(self, subject: str, payload: bytes, head: bytes) -> None:
        # nats-py forgets the headers, and for one message too large the server ends the connection.
        size = len(payload) + headers.size(head)
        if size > self.max_payload:
            raise BadRequest(
                f"the message to {subject!r} is {size:,} bytes, the server takes {self.max_payload:,}; "
                "send less, or raise max_payload in its configuration"
            )

    # Subscribing

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = "", *, optional: bool = False
    ) -> Interest:
        """Have messages handed to a callback, which must neither block nor raise."""
        if optional:
            self._optional.add(f'"{subject.lower()}"')

        def deliver(to: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
            try:
                callback(Message(to.decode(errors="replace"), reply.decode(errors="replace"), payload, head))
            except Exception:
                # In here it would end the connection.
                log.exception("a message on %s was not handled", subject)

        await self.ready(self._loop.time() + _PUBLISH_PATIENCE)
        return await self._listen(subject, queue, deliver)

    async def _listen(self, subject: str, queue: str, deliver: Deliver) -> Interest:
        await self._steady.wait()
        interest = Interest(subject, queue, deliver, self._leave)
        await interest.begin(self._client)
        self._interests[interest] = None
        return interest

    async def flush(self) -> None:
        """Wait until the server has processed everything that was sent."""
        await self.ready(self._loop.time() + _PUBLISH_PATIENCE)
        try:
            await self._client.unless_lost(self._client.flush())
        except nats_errors.TimeoutError:
            raise DeadlineExceeded(f"NATS at {self.server_url} does not confirm what it was sent") from None
        if self._denied:
            denied, self._denied = self._denied, set()
            raise Forbidden(
                f"NATS does not let this connection's user subscribe: {'; '.join(sorted(denied))}"
            )

    async def _leave(self, interest: Interest, drain: bool) -> None:
        await self._steady.wait()
        self._interests.pop(interest, None)
        client, subscription = interest.client, interest.subscription
        try:
            if drain and self.is_connected:
                await client.unless_lost(subscription.drain())
        except (ConnectionLost, nats_errors.TimeoutError) as error:
            # Without the server's word there is nothing to wait for.
            log.warning("left %s without the server's word: %r", interest.subject, error)
        finally:
            if not client.is_closed:
                await client.forget(subscription)


def _random_numbers() -> memoryview:
    """A thousand random numbers of 64 bits: one call of the system for each would cost more than all else."""
    return memoryview(os.urandom(8192)).cast("Q")


def _expire(answer: "asyncio.Future[Message]") -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded())
