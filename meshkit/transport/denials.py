"""What the server does not let this connection's user publish to: who waits for an answer is told.

With an account's `msg_trace` the server publishes, in the sender's name, what becomes of each message whose
trace is sampled. If the sender may not publish there, the server drops the message, and names that
destination alone: no caller has heard of it.
"""

import re
from collections.abc import Mapping

from meshkit.errors import Forbidden
from meshkit.transport import Sink

# As nats-py hands it on: in lower case.
_DENIED = "permissions violation for publish to "
# https://www.w3.org/TR/trace-context/#traceparent-header
_SAMPLED = re.compile(rb"\r\ntraceparent: *(?:[^-\r\n]+-){3}[0-9a-f][13579bdf] *(?=\r\n|$)", re.IGNORECASE)
_MEANING = (
    "if nothing here does, it is the account's msg_trace destination, and the server drops each message of "
    "this user whose trace is sampled; permit it"
)


class Denials:
    """What has been denied so far.

    Args:
        waiting: Who waits for an answer, each with the subject that was called.

    Attributes:
        unasked: How often it was a subject that no call here was sent to.
    """

    def __init__(self, waiting: Mapping[bytes, tuple[str, Sink]]) -> None:
        self._waiting = waiting
        self._subject = ""
        self.unasked = 0

    def take(self, text: str) -> str:
        """Have who waits told.

        Args:
            text: What the server says.

        Returns:
            The same, with what it may mean if nobody waits.
        """
        denied = text.partition(_DENIED)[2]
        found = False
        for subject, answer in list(self._waiting.values()):
            # The server quotes the subject, which may hold quotes.
            quoted = subject.replace("\\", "\\\\").replace('"', '\\"').lower()
            if denied.startswith(f'"{quoted}"'):
                found = True
                if not answer.done():
                    answer.set_exception(Forbidden(f"this connection's user may not publish to {subject!r}"))
        if found or '"_mesh.' in denied:
            return text
        self.unasked += 1
        self._subject = denied
        return f"{text}; {_MEANING}"

    def explain(self, text: str, head: bytes, before: int) -> str:
        """Why no answer came in time, if this may be it.

        Args:
            text: What is known without it.
            head: The headers of what was sent.
            before: What `unasked` was then.
        """
        if self.unasked == before or not _SAMPLED.search(head):
            return text
        return f"{text}; this connection's user may not publish to {self._subject}: {_MEANING}"
