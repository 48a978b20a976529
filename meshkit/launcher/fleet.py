"""From targets to what is to run: which services there are, found out by processes of their own."""

from collections.abc import Mapping

import anyio
import msgspec

from meshkit.errors import ConfigError
from meshkit.launcher import process
from meshkit.launcher.messages import Described, Failed, Job
from meshkit.launcher.targets import Targets
from meshkit.launcher.view import Line
from meshkit.loop import LoopName, chosen
from meshkit.telemetry.logs import LogFormat

# In place of a service's name: all that are not named.
EVERY = "*"


class Fleet(msgspec.Struct, frozen=True):
    """What is to run.

    Attributes:
        lines: The services, and how many workers each gets.
        jobs: What the workers do.
        folders: Where the code and the configuration lie.
    """

    lines: list[Line]
    jobs: list[Job]
    folders: set[str]


class LaunchError(Exception):
    """A failure that no setting mends: user code does not import, or a worker ended with calls unanswered."""


async def muster(
    targets: Targets,
    *,
    url: str,
    workers: Mapping[str, int],
    log_level: str,
    loop: LoopName | None,
    log_format: LogFormat = "text",
    access_log: float | None = None,
    metrics_port: int | None = None,
    trace: bool = False,
) -> Fleet:
    """Find out what is to run.

    Args:
        targets: Where to look.
        url: The NATS server.
        workers: Processes for a service, by its name or `EVERY`; else what its meshkit.toml says.
        log_level: The least level of what they log.
        log_format: What it looks like.
        access_log: Which share of the calls is in the access log; None for what is said elsewhere.
        loop: The event loop they run on; None for what its meshkit.toml says.
        metrics_port: The first worker's port for HTTP, from which on each has one; None for none.
        trace: Whether they tell their spans.

    Raises:
        ConfigError: A target or a declaration is wrong, two services have the same name, or there is no such
            service, loop or port.
        LaunchError: User code does not import; its traceback is on standard error.
    """
    answers = await _describe([Job(source, url=url, log_format=log_format) for source in targets.sources])
    fleet = Fleet([], [], set(targets.folders))
    places: dict[str, str] = {}
    for source, answer in zip(targets.sources, answers, strict=True):
        if isinstance(answer, Failed):
            if answer.mistake:
                raise ConfigError(answer.text)
            raise LaunchError(f"{source.target} cannot be imported: {answer.text}")
        fleet.folders.add(answer.folder)
        for service in answer.services:
            name = service.name
            if name in places:
                raise ConfigError(f"{source.target}: service {name!r} comes from {places[name]} already")
            places[name] = source.target
            serve = source.serve
            if access_log is not None:
                serve = msgspec.structs.replace(serve, access_log=access_log)
            wanted = msgspec.structs.replace(source, service=name, serve=serve)
            count = workers.get(name) or workers.get(EVERY) or source.table.workers
            on = chosen(loop or source.table.loop)
            fleet.lines.append(Line(service, count, on))
            for number in range(1, count + 1):
                port = None if metrics_port is None else metrics_port + len(fleet.jobs)
                worker = f"{name}#{number}"
                fleet.jobs.append(Job(wanted, worker, url, log_level, log_format, on, port, trace))
    for name in workers.keys() - {EVERY, *places}:
        raise ConfigError(f"--workers: there is no service {name!r} here, only {', '.join(places)}")
    count = len(fleet.jobs)
    if metrics_port and (last := metrics_port + count - 1) > 65535:
        raise ConfigError(
            f"{count} workers need the ports {metrics_port} to {last}, and 65535 is the last one"
        )
    return fleet


async def _describe(jobs: list[Job]) -> list[Described | Failed]:
    """The answer of a process for each job, side by side."""
    answers: dict[int, Described | Failed] = {}

    async def ask(number: int, job: Job) -> None:
        async with process.start("meshkit.launcher.describe", job) as running:
            answer = await running.event()
            if not isinstance(answer, Described | Failed):
                ending = await running.wait()
                answer = Failed(f"its process {ending}", mistake=False)
        answers[number] = answer

    async with anyio.create_task_group() as tasks:
        for number, job in enumerate(jobs):
            tasks.start_soon(ask, number, job)
    return [answers[number] for number in range(len(jobs))]
