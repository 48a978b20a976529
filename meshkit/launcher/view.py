"""What the launcher shows, and to whom: the command line draws it."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from meshkit.launcher.messages import Description
from meshkit.loop import Loop
from meshkit.telemetry.traces.tree import Span


class Server(msgspec.Struct, frozen=True):
    """The NATS server.

    Attributes:
        url: How to reach it.
        address: The same without credentials.
        version: Its version.
        embedded: Whether it ends with the services.
        monitor: Where an embedded one tells of itself over HTTP; empty for nowhere.
    """

    url: str
    address: str
    version: str
    embedded: bool
    monitor: str = ""


class Line(msgspec.Struct, frozen=True):
    """A service, how many workers it gets, and the event loop that they run on."""

    service: Description
    workers: int
    loop: Loop


class Notice(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
        who: The worker, or another part of the launcher.
        what: What happened to it.
        trouble: Whether it is bad news.
    """

    who: str
    what: str
    trouble: bool = False


class View(Protocol):
    """Where it all shows."""

    def server(self, server: Server) -> None:
        """This is the server."""
        ...

    def services(self, lines: Sequence[Line]) -> None:
        """These services start."""
        ...

    def trace(self, spans: Sequence[Span], left_out: int) -> None:
        """These spans are a trace, which has so many more."""
        ...

    def notice(self, notice: Notice) -> None:
        """Something happened."""
        ...
