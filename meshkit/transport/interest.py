"""Subscriptions, and how they go over to another connection."""

from collections import Counter
from collections.abc import Awaitable, Callable

from nats.aio.subscription import Subscription

from meshkit.headers import NO_RESPONDERS
from meshkit.transport.client import Deliver, GuardedClient


class Interest:
    """A subscription on nats-py; the interface is `meshkit.transport.Subscription`.

    Args:
        subject: A subject, wildcards allowed.
        queue: The queue group; empty for none.
        deliver: Takes the messages.
        leave: Ends it; what it is told is whether to hand out first what was delivered.
    """

    client: GuardedClient
    subscription: Subscription

    def __init__(
        self, subject: str, queue: str, deliver: Deliver, leave: Callable[["Interest", bool], Awaitable[None]]
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.deliver = deliver
        self._leave = leave

    async def begin(self, client: GuardedClient) -> None:
        """Subscribe on a client."""
        self.client = client
        self.subscription = await client.listen(self.subject, self.queue, self.deliver)

    async def drain(self) -> None:
        """End the interest; returns when the callback has had every message that was delivered."""
        await self._leave(self, True)

    async def close(self) -> None:
        """End the interest at once."""
        await self._leave(self, False)


class Crossing:
    """An interest that for a while is on two clients, so that no message is lost.

    Of a queue group's messages each comes on one of them. The others come on both, a moment apart, but for
    those of publishers whose servers know of one only. They are handed out as they come on the first client;
    when that has given its last, the second goes on with those that were not among them.

    Args:
        interest: What is on the first client.
        client: The second.
    """

    def __init__(self, interest: Interest, client: GuardedClient) -> None:
        self._interest = interest
        self._from, self._first = interest.client, interest.subscription
        self._to = client
        self._second: Subscription
        self._handed_out: Counter[tuple[bytes, bytes, bytes, bytes]] = Counter()
        self._held: list[tuple[bytes, bytes, bytes, bytes]] | None = []

    async def begin(self) -> None:
        """Subscribe on the second client."""
        interest = self._interest
        deliver = interest.deliver
        if not interest.queue:
            self._from.redirect(self._first, self._hand_out)
            deliver = self._hold
        self._second = await self._to.listen(interest.subject, interest.queue, deliver)

    def _hand_out(self, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        self._handed_out[subject, reply, head, payload] += 1
        self._interest.deliver(subject, reply, head, payload)

    def _hold(self, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        message = (subject, reply, head, payload)
        if head.startswith(NO_RESPONDERS):
            # The server's own word comes on one of them only.
            self._interest.deliver(*message)
        elif self._held is not None:
            self._held.append(message)
        elif self._handed_out[message]:
            self._handed_out[message] -= 1
        else:
            self._interest.deliver(*message)

    def give_up(self) -> None:
        """Stay on the first client; the second is closed."""
        self._from.redirect(self._first, self._interest.deliver)

    def cross(self) -> None:
        """From now on the interest is that on the second client."""
        self._interest.client, self._interest.subscription = self._to, self._second

    async def drain(self) -> None:
        """Have the first client give its last."""
        await self._from.unless_lost(self._first.drain())

    def release(self) -> None:
        """Hand out what the second client has had."""
        held, self._held = self._held or [], None
        for message in held:
            self._hold(*message)

    def settle(self) -> None:
        """Nothing comes twice any more."""
        self._to.redirect(self._second, self._interest.deliver)
