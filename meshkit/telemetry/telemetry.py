"""What all meshes of a connection share to be observed."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshkit.telemetry.lag import LoopLag
from meshkit.telemetry.report import Report
from meshkit.transport import Transport

if TYPE_CHECKING:  # OpenTelemetry takes 0.1 s to import, and who does not trace need not wait for it
    from meshkit.instance import Instance
    from meshkit.telemetry.traces.tracing import Tracer


class Telemetry:
    """Who reports, and where traces go.

    Args:
        transport: The connection.
        tracer: Makes spans; None where nothing is traced.
    """

    def __init__(self, transport: Transport, tracer: "Tracer | None" = None) -> None:
        self.tracer = tracer
        self.lag = LoopLag()
        # The client's own, and one of each instance that is served.
        self.reporters: list[Callable[[], Report]] = []
        # What instances that have drained did is told once more, to who sends it on.
        self.on_last: Callable[[Report], None] | None = None
        # Those that start, run or drain, by name.
        self.instances: dict[str, Instance] = {}
        # Whether there has been one.
        self.serves = False
        self._started = time.time()
        self._transport = transport

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent right now."""
        return self._transport.is_connected

    def reports(self) -> list[Report]:
        """What was done on this connection so far: of each instance, and of the client if it did anything."""
        reports = [report() for report in self.reporters]
        return [each for each in reports if each.id or each.called or each.published or each.jobs]

    def retire(self, reporter: Callable[[], Report]) -> None:
        """An instance, if it has reported, does so no more."""
        if reporter in self.reporters:
            self.reporters.remove(reporter)
            if self.on_last is not None:
                self.on_last(reporter())

    def report(self, **fields: Any) -> Report:
        """A report, with what the connection adds.

        Args:
            fields: The others, as in Report.
        """
        fields.setdefault("started", self._started)
        return Report(
            **fields,
            lag=self.lag.read(),
            is_connected=self._transport.is_connected,
            reconnects=self._transport.reconnects,
            dropped=self._transport.dropped,
        )

    def stop(self) -> None:
        """The connection ends."""
        self.lag.stop()
