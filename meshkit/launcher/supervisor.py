"""Keeps workers running: starts them, starts them again when they crash, and drains them in the end."""

import random
from collections.abc import Iterable, Iterator

import anyio

from meshkit.errors import ConfigError
from meshkit.launcher import process
from meshkit.launcher.beside import beside
from meshkit.launcher.messages import GRACE, Described, Event, Failed, Job, Ready, Spans, Stopped
from meshkit.launcher.traces import Traces
from meshkit.launcher.view import Notice, View

FIRST_DELAY = 0.1
"""Seconds before a crashed worker is started again; they double with every crash..."""
LAST_DELAY = 10.0
"""...up to these."""
STEADY = 10.0
"""Seconds after which a worker counts as running well: its next crash is a first one."""


async def supervise(jobs: Iterable[Job], stop: anyio.Event, view: View, traces: Traces) -> bool:
    """Keep a worker running for each job until `stop` is set, and drain them.

    A cancellation kills them.

    Args:
        jobs: What the workers do.
        stop: Set from outside; and when a worker fails with a mistake that a restart does not mend.
        view: Is told what happens.
        traces: Gets the spans that the workers tell of.

    Returns:
        Whether each drained as it should.

    Raises:
        ConfigError: The sentence of that mistake, when all are drained.
    """
    crew = [_Worker(job, stop, view, traces) for job in jobs]
    async with anyio.create_task_group() as tasks:
        for worker in crew:
            tasks.start_soon(worker.keep)
    if mistake := next((worker.mistake for worker in crew if worker.mistake), None):
        raise ConfigError(mistake)
    return all(worker.is_clean for worker in crew)


def delays() -> Iterator[float]:
    """Seconds to wait before each attempt to start something again: twice as long every time, with jitter."""
    longest = FIRST_DELAY
    while True:
        # What crashed together must not come back together.
        yield longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret
        longest = min(2 * longest, LAST_DELAY)


class _Worker:
    def __init__(self, job: Job, stop: anyio.Event, view: View, traces: Traces) -> None:
        self._job = job
        self._stop = stop
        self._view = view
        self._traces = traces
        self._has_served = False
        self._is_serving = False
        self._reason = ""
        self.mistake = ""
        self.is_clean = True

    async def keep(self) -> None:
        """Run the process again and again, until told to stop."""
        crashes = delays()
        while not self._stop.is_set():
            started = anyio.current_time()
            ending = await self._live()
            if self._stop.is_set():
                self._judge(ending)
                return
            if anyio.current_time() - started >= STEADY:
                crashes = delays()
            delay = next(crashes)
            self._say(f"{ending}, starts again in {delay:.1f} s", trouble=True)
            with anyio.move_on_after(delay):
                await self._stop.wait()

    async def _live(self) -> str:
        """One process, from its start to its end; returns how it ended."""
        self._is_serving, self._reason = False, ""
        async with process.start("meshkit.launcher.worker", self._job) as running:
            async with beside(self._drain, running), beside(self._bury, running):
                while event := await running.event():
                    self._hear(event)
                ending = await running.wait()
            return f"failed ({self._reason})" if self._reason else ending

    def _hear(self, event: Event) -> None:
        match event:
            case Ready():
                self._has_served = self._is_serving = True
                port = self._job.metrics_port
                self._say("ready" if port is None else f"ready, metrics on port {port}")
            case Stopped():
                self._is_serving = False
            case Spans():
                self._traces.add(event, anyio.current_time())
            # What has worked may work again, such as a port that somebody else has for a moment.
            case Failed(text, mistake=True) if not self._has_served:
                self.mistake = f"{self._job.worker}: {text}"
                self._stop.set()
            case Failed(text):
                self._reason = text
            case Described():
                raise AssertionError("a worker describes nothing")

    async def _drain(self, running: process.Process) -> None:
        """Have the process end when all stop; cancelled when it has."""
        await self._stop.wait()
        running.stop()
        await anyio.sleep(GRACE)
        self._say(f"has not drained in {GRACE:.0f} s, is killed", trouble=True)
        running.kill()

    async def _bury(self, running: process.Process) -> None:
        """Have nothing outlive the process: what it forked holds its connection and its pipes."""
        await running.wait()
        running.kill()

    def _judge(self, ending: str) -> None:
        """Whether it went well when it was told to stop: one that served has said that it is done."""
        if self._is_serving:
            self.is_clean = False
            self._say(f"{ending} with calls unanswered", trouble=True)
        elif not self.mistake:
            self._say("stopped")

    def _say(self, what: str, *, trouble: bool = False) -> None:
        self._view.notice(Notice(self._job.worker, what, trouble=trouble))
