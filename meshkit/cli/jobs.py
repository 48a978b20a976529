"""`meshkit jobs`: how far bounded work is."""

import logging
from collections.abc import Container, Iterable, Sequence

import click
import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from meshkit.cli.bars import Columns, Row
from meshkit.cli.discover import ask
from meshkit.cli.exits import ExitCode
from meshkit.cli.figures import lasting
from meshkit.cli.live import live, pause_option, plain, watch_option
from meshkit.cli.output import clean, console, json_option, nats_option, print_json
from meshkit.job import JobReport
from meshkit.telemetry.report import STATS, decode, readable
from meshkit.transport import Transport

log = logging.getLogger("meshkit.cli")

# Seconds to wait for all answers.
_MOST = 3.0
# Looks for which who reported a job may be silent, as while it starts again.
_PATIENCE = 5
# What goes first where there is no room for all; an empty heading is the bar's.
_LEAST = ("sent", "total", "failed", "", "left")
_COLUMNS = ("job", "total", "sent", "done", "failed", "left", "seconds left")


class Progress(msgspec.Struct, frozen=True):
    """How far a job is, by all who report one of its name.

    Attributes:
        name: What it is called.
        total: Of how many parts it consists: the most that somebody says.
        sent: How many have been handed out.
        done: How many are done.
        failed: How many never will be.
        left: How many are neither.
        seconds_left: How long it still takes at the rate so far; None where that is not known.
        services: Who reports it.
    """

    name: str
    total: int
    sent: int
    done: int
    failed: int
    left: int
    seconds_left: float | None
    services: list[str]


@click.command()
@click.argument("name", required=False, default="")
@watch_option
@pause_option
@nats_option
@json_option
@click.pass_context
def jobs(
    ctx: click.Context, name: str, *, watch: bool, interval: float, nats: str | None, as_json: bool
) -> None:
    """Show how far the jobs are that services report, or the job NAME.

    Where several instances report a job of the same name, what they have sent, done and failed is added up,
    and the largest total counts.

    With --watch it goes on until all are done; in a pipe it prints a line whenever one has changed.
    """

    async def show(transport: Transport) -> int:
        looks = _Looks(transport, name)
        if watch and console.is_terminal and not console.is_dumb_terminal and not as_json:
            return await live(looks.on_terminal, interval, full=False) or looks.exit_code()
        look = looks.as_json if as_json else looks.as_lines
        if watch:
            await plain(look, interval)
        else:
            await look()
            if not looks.jobs:
                click.echo(_nothing(name), err=True)
        return looks.exit_code()

    ctx.exit(ask(nats, show))


def _nothing(name: str) -> str:
    return f"Nobody reports a job {clean(repr(name))}." if name else "Nobody reports a job."


class _Looks:
    """Looks at jobs one after the other.

    Attributes:
        jobs: Those that are there or have been, by name.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self.jobs: dict[str, Progress] = {}
        self._transport = transport
        self._name = name
        self._has_heading = False
        # For how many looks nobody has reported it.
        self._silent: dict[str, int] = {}

    async def on_terminal(self) -> tuple[RenderableType, bool]:
        await self._look()
        return self._bars(), self._is_over()

    async def as_lines(self) -> bool:
        changed = await self._look()
        if console.is_terminal:
            if self.jobs:
                console.print(self._bars())
            return self._is_over()
        if changed and not self._has_heading:
            click.echo("\t".join(_COLUMNS))
            self._has_heading = True
        for job in changed:
            click.echo("\t".join(map(clean, _line(job))))
        return self._is_over()

    async def as_json(self) -> bool:
        is_first = not self._has_heading
        self._has_heading = True
        changed = await self._look()
        if changed or is_first:
            print_json(changed)
        return self._is_over()

    async def _look(self) -> list[Progress]:
        """Look; gives the jobs that have changed."""
        now = {job.name: job for job in await _reported(self._transport) if self._name in {"", job.name}}
        changed = [job for name, job in now.items() if not _is_same(self.jobs.get(name), job)]
        self._silent = {name: self._silent.get(name, 0) + 1 for name in self.jobs if name not in now}
        self.jobs = dict(sorted((self.jobs | now).items()))
        return changed

    def _is_over(self) -> bool:
        return bool(self.jobs) and all(
            not job.left or self._silent.get(job.name, 0) > _PATIENCE for job in self.jobs.values()
        )

    def exit_code(self) -> ExitCode:
        """How it ends: badly if the job is not there, or was and is not, and was not done."""
        gone = [job.name for job in self.jobs.values() if job.left and self._silent.get(job.name)]
        for name in gone:
            click.echo(f"meshkit: nobody reports the job {clean(repr(name))} any more", err=True)
        return ExitCode.FAILURE if gone or (self._name and not self.jobs) else ExitCode.OK

    def _bars(self) -> RenderableType:
        if not self.jobs:
            return Text(_nothing(self._name))
        return grid(list(self.jobs.values()), self._silent)


def _is_same(before: Progress | None, now: Progress) -> bool:
    return before is not None and msgspec.structs.replace(before, seconds_left=now.seconds_left) == now


def _line(job: Progress) -> tuple[object, ...]:
    left = None if job.seconds_left is None else round(job.seconds_left, 1)
    return job.name, job.total, job.sent, job.done, job.failed, job.left, left


def grid(jobs: Sequence[Progress], silent: Container[str] = ()) -> Table:
    """Jobs with their bars.

    Args:
        jobs: Which.
        silent: The names of those that nobody reports any more.
    """
    rows = [_row(job, is_silent=job.name in silent) for job in jobs]
    columns = Columns("job", "%", rows, _LEAST)
    columns.stretch()
    return columns.grid(rows, heading=True)


def _row(job: Progress, *, is_silent: bool) -> Row:
    to_go = "" if job.seconds_left is None else lasting(job.seconds_left)
    figures = {
        "sent": f"{job.sent:,}",
        "done": f"{job.done:,}",
        "failed": f"{job.failed:,}",
        "left": f"{job.left:,}",
        "total": f"{job.total:,}",
        "to go": "done" if not job.left else "silent" if is_silent else to_go,
    }
    return Row(job.name, (job.total, job.total - job.left), figures)


async def _reported(transport: Transport) -> list[Progress]:
    """What everybody reports, by name."""
    unreadable: list[str] = []
    reports = list(readable(await transport.gather(STATS, most=_MOST), decode, unreadable))
    if unreadable:
        log.warning("%d answers are left out, such as: %s", len(unreadable), unreadable[0])
    return progress((report.name, job) for report in reports for job in report.jobs)


def progress(reported: Iterable[tuple[str, JobReport]]) -> list[Progress]:
    """Jobs by all who report them, by name.

    Args:
        reported: Each with the service that reports it.
    """
    found: dict[str, list[tuple[str, JobReport]]] = {}
    for service, job in reported:
        found.setdefault(job.name, []).append((service, job))
    return [_together(name, reports) for name, reports in sorted(found.items())]


def _together(name: str, reports: Sequence[tuple[str, JobReport]]) -> Progress:
    """A job by all who report it."""
    jobs = [job for _, job in reports]
    total = max(job.total for job in jobs)
    done, failed = sum(job.done for job in jobs), sum(job.failed for job in jobs)
    left = max(0, total - done - failed)
    # What each of them does a second: it says how long it would take for what it has not done itself.
    rate = sum(
        max(0, job.total - job.done - job.failed) / job.seconds_left for job in jobs if job.seconds_left
    )
    return Progress(
        name=name,
        total=total,
        sent=sum(job.sent for job in jobs),
        done=done,
        failed=failed,
        left=left,
        seconds_left=left / rate if rate else None if left else 0.0,
        services=sorted({service for service, _ in reports}),
    )
