"""The wire: what the mesh asks of a connection. `nats.py` implements it on nats-py."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from meshkit.headers import parse

if TYPE_CHECKING:
    from meshkit.transport.denials import Denials

# Before the subject of a call: tells its callee that nobody waits any more. The payload is the reply subject.
CANCEL = "_MESH.cancel."
# How reply subjects begin. An answer may name one for its answer: on others nothing is said, else whoever is
# called could have its caller publish what it may not itself.
INBOX = "_INBOX."
# Head of a message by which a producer asks whether its reader is still there. Readers pass over it.
PROBE = b"\r\nMesh-Seq: 0"


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

    async def close(self) -> None:
        """End the interest at once."""
        ...


class Sender(Protocol):
    """What takes messages that are ready to be sent: the transport, or what has more to do with them."""

    async def publish(self, subject: str, payload: bytes, head: bytes = b"") -> None:
        """Send one."""
        ...


class Sink(Protocol):
    """What takes the messages on a reply subject: a future, or what does as one and takes several."""

    def done(self) -> bool:
        """Whether it wants no more; then it gets nothing more."""
        ...

    def set_result(self, result: Message, /) -> None:
        """Take a message; the next ones too, as long as it is not done. It must neither block nor raise."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Be told that no more will come: ConnectionLost, or Forbidden."""
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
    def is_settled(self) -> bool:
        """Whether it is connected, and has been for so long that whoever lost the server too is back."""
        ...

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and came back."""
        ...

    @property
    def dropped(self) -> int:
        """How many messages were dropped, as they came faster than they could be taken in."""
        ...

    async def ready(self, deadline: float) -> None:
        """Wait until messages can be sent.

        Raises:
            Disconnected: They cannot until the deadline.
        """
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Have something called after each time that the connection was lost and is back."""
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

        If the task that waits is cancelled, or no answer comes in time, the callee is told, as by `abandon`.

        Raises:
            BadRequest: The message is larger than the server takes; nothing was sent.
            Forbidden: The connection's user may not publish to the subject.
            NoResponders: Nobody listens on the subject.
            Disconnected: There was no connection until the deadline; nothing was sent.
            DeadlineExceeded: No answer came in time.
            ConnectionLost: The connection broke after the message was sent.
        """
        ...

    def attach(self, subject: str, sink: Sink) -> str:
        """Have all messages on a reply subject of its own go to a sink, until `detach`.

        Args:
            subject: Where that reply subject will be sent to: if it may not be, the sink is told.
            sink: Gets payload, head and reply subject of each message. NATS's own answer that nobody listens
                is one too; its head begins with `headers.NO_RESPONDERS`.

        Returns:
            The reply subject, to publish with.
        """
        ...

    def detach(self, reply: str) -> None:
        """Drop what arrives on a reply subject from now on."""
        ...

    async def gather(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float = 1.0,
        stall: float = 0.3,
        most: float = math.inf,
    ) -> list[Message]:
        """Send a message and collect the answers of everybody.

        Args:
            subject: Where to.
            payload: What.
            timeout: Seconds to wait for the first answer.
            stall: Seconds after the last answer until nobody else is expected.
            most: Seconds after which what has come is all, even if more comes.

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

    def tell(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """Send a small message and wait for nothing. Without a connection it may be lost."""
        ...

    def abandon(self, subject: str, reply: str) -> None:
        """Tell whoever answers a call that nobody waits any more; if there is no connection, when it is back.

        Nobody else's services are told: not those on subjects that begin with `$` or `_`.

        Args:
            subject: What was called.
            reply: The call's reply subject.
        """
        ...

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = "", *, optional: bool = False
    ) -> Subscription:
        """Have messages handed to a callback, which must neither block nor raise.

        Args:
            subject: A subject, wildcards allowed.
            callback: Called in the event loop, once for each message, in order of arrival.
            queue: Members of the same queue group share the messages; empty for all of them.
            optional: Whether it does not matter if the connection's user may not subscribe to it.
        """
        ...

    @property
    def denials(self) -> "Denials":
        """What the server did not let this connection's user publish to."""
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
        """Send what is to be sent and end the connection, within a few seconds whatever the server does.

        Who still waits for an answer gets ConnectionLost, and the callees are told.
        """
        ...
