"""The wire: what the mesh asks of a connection. `nats.py` implements it on nats-py."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from meshkit.headers import parse


class Message(msgspec.Struct, gc=False):
    """What arrives.

    Attributes:
        subject: The subject that it was sent to.
        reply: Where an answer goes; empty if none is wanted.
        payload: The bytes.
        head: The headers, as `meshkit.headers` has them.
    """

    subject: str
    reply: str
    payload: bytes
    head: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Header names as they were sent, to values."""
        return parse(self.head)


class Subscription(Protocol):
    """Interest in a subject."""

    async def drain(self) -> None:
        """End the interest; returns when the callback has had every message that was delivered."""
        ...


class Transport(Protocol):
    """A connection to NATS that mends itself.

    Deadlines are times of the running event loop's clock, in seconds.
    """

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent right now."""
        ...

    @property
    def server_url(self) -> str:
        """The server that the connection is, or was last, connected to; without credentials."""
        ...

    @property
    def server_version(self) -> str:
        """That server's version."""
        ...

    @property
    def max_payload(self) -> int:
        """The largest message that server takes, headers included, in bytes."""
        ...

    async def request(self, subject: str, payload: bytes, head: bytes, deadline: float) -> Message:
        """Send a message and wait for the first answer.

        Raises:
            BadRequest: The message is larger than the server takes; nothing was sent.
            Forbidden: The connection's user may not publish to the subject.
            NoResponders: Nobody listens on the subject.
            Disconnected: There was no connection until the deadline; nothing was sent.
            DeadlineExceeded: No answer came in time.
            ConnectionLost: The connection broke after the message was sent.
        """
        ...

    async def gather(
        self, subject: str, payload: bytes = b"", *, timeout: float = 1.0, stall: float = 0.3
    ) -> list[Message]:
        """Send a message and collect the answers of everybody.

        Args:
            subject: Where to.
            payload: What.
            timeout: Seconds to wait for the first answer.
            stall: Seconds after the last answer until nobody else is expected.

        Raises:
            Forbidden: The connection's user may not publish to the subject.
            Disconnected: There is no connection, and none came within five seconds.
            ConnectionLost: The connection broke meanwhile.
        """
        ...

    async def publish(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """Send a message; returns when it is on its way to the server.

        Raises:
            BadRequest: The message is larger than the server takes.
            Disconnected: There is no connection, and none came within five seconds.
        """
        ...

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> Subscription:
        """Have messages handed to a callback, which must neither block nor raise.

        Args:
            subject: A subject, wildcards allowed.
            callback: Called in the event loop, once for each message, in order of arrival.
            queue: Members of the same queue group share the messages; empty for all of them.
        """
        ...

    async def flush(self) -> None:
        """Wait until the server has processed everything that was sent.

        Raises:
            Forbidden: A subscription made since the last flush is not permitted.
            ConnectionLost: The connection broke meanwhile.
            DeadlineExceeded: The server does not answer within ten seconds.
        """
        ...

    async def close(self) -> None:
        """Send what is to be sent and end the connection, within a few seconds whatever the server does."""
        ...
