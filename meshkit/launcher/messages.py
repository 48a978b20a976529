"""What the launcher and its processes tell each other: JSON, one message a line, over two pipes."""

import msgspec

from meshkit.durable.declaration import StreamConfig
from meshkit.durable.plan import Wanted
from meshkit.instance import DRAIN_TIMEOUT
from meshkit.launcher.targets import Source
from meshkit.loop import LoopName
from meshkit.telemetry.logs import LogFormat
from meshkit.telemetry.traces.tree import Span

GRACE = DRAIN_TIMEOUT + 5.0
"""Seconds after which a process that was told to stop is killed."""


class Job(msgspec.Struct, frozen=True):
    """To a process, once at its start: what to do.

    Attributes:
        source: The module to import.
        worker: The name of the process, `rooms#1`.
        url: The NATS server.
        log_level: The least level of the messages that are logged.
        log_format: What they look like.
        loop: The event loop to run on.
        metrics_port: Where it answers HTTP; None for nowhere.
        trace: Whether it tells its spans.
    """

    source: Source
    worker: str = ""
    url: str = ""
    log_level: str = "info"
    log_format: LogFormat = "text"
    loop: LoopName = "auto"
    metrics_port: int | None = None
    trace: bool = False


class Endpoint(msgspec.Struct, frozen=True):
    """An endpoint, a subscription or a consumer, as the banner shows it.

    Attributes:
        subject: As declared.
        queue: Its queue group, if any; a consumer's stream.
        doc: The first line of its docstring.
    """

    subject: str
    queue: str | None
    doc: str


class Description(msgspec.Struct, frozen=True):
    """A service, as the banner and `meshkit streams plan` show it."""

    name: str
    version: str
    endpoints: list[Endpoint]
    subscriptions: list[Endpoint]
    consumed: list[Endpoint] = []
    consumers: list[Wanted] = []
    streams: list[StreamConfig] = []


class Described(msgspec.Struct, tag=True, frozen=True):
    """From a process that looked for services: what it found, and the folder that the code is in."""

    services: list[Description]
    folder: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From a worker: it serves."""

    instance: str


class Stopped(msgspec.Struct, tag=True, frozen=True):
    """From a worker: everything it took is answered."""


class Spans(msgspec.Struct, tag=True, frozen=True):
    """From a worker: spans that have ended, and how many traces it left out since it last told."""

    spans: list[Span]
    left_out: int = 0


class Failed(msgspec.Struct, tag=True, frozen=True):
    """From a process: it cannot do its job.

    Attributes:
        text: Why, in a sentence.
        mistake: A person has to change something: trying again is of no use.
    """

    text: str
    mistake: bool


Event = Described | Ready | Stopped | Spans | Failed
