"""All of `meshkit run`: the server, one fleet of workers after the other, and what a signal does."""

import contextlib
import signal
from collections.abc import Mapping, Sequence

import anyio
import msgspec

from meshkit.errors import ConfigError
from meshkit.launcher import reload, targets
from meshkit.launcher.beside import beside
from meshkit.launcher.fleet import Fleet, LaunchError, muster
from meshkit.launcher.server import server
from meshkit.launcher.supervisor import supervise
from meshkit.launcher.traces import Traces
from meshkit.launcher.view import Notice, View
from meshkit.loop import LoopName, chosen
from meshkit.telemetry.logs import LogFormat


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says.

    Attributes:
        targets: Which services: `targets.py`.
        nats: The server's URL; None for the one of a meshkit.toml, else an embedded server.
        workers: Processes for a service, by its name or `EVERY`; else what meshkit.toml says, else one.
        reload: Whether to start anew when a file changes.
        log_level: The least level of what the workers log.
        log_format: What it looks like.
        access_log: Which share of the calls is in the services' access log; None for what is said elsewhere.
        loop: The event loop they run on; None for what meshkit.toml says, else the best there is.
        metrics_port: The first worker's port for HTTP, from which on each has one; None for none.
        monitor_port: The port on which the embedded server tells of itself; None for none.
        trace: Whether traces are shown.
    """

    targets: Sequence[str]
    nats: str | None = None
    workers: Mapping[str, int] = {}
    reload: bool = False
    log_level: str = "info"
    log_format: LogFormat = "text"
    access_log: float | None = None
    loop: LoopName | None = None
    metrics_port: int | None = None
    monitor_port: int | None = None
    trace: bool = False


class Killed(Exception):
    """A signal ended everything at once.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


async def launch(options: Options, view: View) -> None:
    """Run services until SIGINT, SIGTERM or SIGHUP, then drain them; a second signal kills them.

    Args:
        options: Which, and how.
        view: Is told of everything.

    Raises:
        ConfigError: A target, a file or a declaration is wrong.
        Disconnected: The server cannot be reached.
        LaunchError: User code does not import, or a worker ended with calls unanswered.
        Killed: A signal came before anything was served, or while it drained.
    """
    run = _Run(options, view)
    with anyio.CancelScope() as scope:
        async with beside(run.obey_signals, scope):
            await run.run()
    if run.killed_by is not None:
        raise Killed(run.killed_by)


class _Run:
    def __init__(self, options: Options, view: View) -> None:
        self._options = options
        self._view = view
        self._stop: anyio.Event | None = None  # of the fleet that runs
        self._next: Fleet | None = None  # runs after it
        self._traces = Traces()
        self._is_ending = False
        self.killed_by: int | None = None

    async def obey_signals(self, scope: anyio.CancelScope) -> None:
        """Drain at the first signal; cancel everything at the second, or if nothing has been started yet."""
        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            ending.append(signal.SIGHUP)
        with anyio.open_signal_receiver(*ending) as signals:
            async for number in signals:
                if number == signal.SIGHUP and self._is_ending:
                    continue  # a terminal that closes says so more than once
                if self._stop is None or self._is_ending:
                    self.killed_by = number
                    scope.cancel()
                    return
                self._is_ending = True
                self._view.notice(Notice("meshkit", f"draining on {number.name}, a second one kills"))
                self._stop.set()

    async def run(self) -> None:
        """From the targets to the end of the last worker."""
        found = targets.read(self._options.targets)
        if self._options.reload:
            reload.require()
        for source in found.sources:
            chosen(self._options.loop or source.table.loop)  # what is missing is said before anything starts
        async with server(self._options.nats or found.nats, self._view, self._options.monitor_port) as nats:
            fleet = await self._muster(found, nats.url)
            self._view.server(nats)
            self._view.services(fleet.lines)
            reloading = beside(self._follow_files, fleet, nats.url)
            async with (
                reloading if self._options.reload else contextlib.nullcontext(),
                beside(self._traces.show, self._view) if self._options.trace else contextlib.nullcontext(),
            ):
                await self._serve(fleet)

    async def _muster(self, found: targets.Targets, url: str) -> Fleet:
        options = self._options
        return await muster(
            found,
            url=url,
            workers=options.workers,
            log_level=options.log_level,
            log_format=options.log_format,
            access_log=options.access_log,
            loop=options.loop,
            metrics_port=options.metrics_port,
            trace=options.trace,
        )

    async def _serve(self, fleet: Fleet | None) -> None:
        """One fleet after the other, until a signal or until there is no next one."""
        is_clean = True
        while fleet and not self._is_ending:
            self._stop, self._next = anyio.Event(), None
            try:
                is_clean &= await supervise(fleet.jobs, self._stop, self._view, self._traces)
            except ConfigError as error:
                if not self._options.reload or self._is_ending:
                    raise
                await self._wait_for_change(error)
            fleet = self._next
        if not is_clean:
            raise LaunchError("a worker ended with calls unanswered")

    async def _wait_for_change(self, error: ConfigError) -> None:
        self._view.notice(Notice("reload", f"{error}; waits for a change", trouble=True))
        if self._next is None:
            self._stop = anyio.Event()
            await self._stop.wait()

    async def _follow_files(self, fleet: Fleet, url: str) -> None:
        """After a change, have the next fleet take over, provided that the new code imports."""
        lines = fleet.lines
        async for files in reload.changes(fleet.folders):
            try:
                fleet = await self._muster(targets.read(self._options.targets), url)
            except (ConfigError, LaunchError) as error:
                self._view.notice(
                    Notice("reload", f"{files} changed: {error}; waits for a change", trouble=True)
                )
                continue
            self._view.notice(Notice("reload", f"{files} changed, workers start anew"))
            if fleet.lines != lines:
                self._view.services(fleet.lines)
                lines = fleet.lines
            assert self._stop is not None
            self._next = fleet
            self._stop.set()
