"""Who takes part in a drill: servers, instances and callers, each a process; and the load on them."""

import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults import course as courses
from benchmarks.faults.bounds import Bound, none
from benchmarks.faults.course import Call, Course
from benchmarks.proxies import free_port
from benchmarks.stage import Child, Process
from meshkit.loop import chosen
from meshkit.transport.server import EmbeddedServer

Urls = str | list[str]

TIMEOUT = 2.0  # seconds that a call may take
# What must not be executed twice.
ONCE = ("write", "chain", "critical", "sheddable", "limited")
# Seconds after its deadline by which a call must be back.
_LATE = 0.5
_WARM_UP = 0.5
# Numbers of the calls of one caller under one load.
NUMBERS = 1_000_000
_loads = itertools.count(1)
_PATIENCE = 30


class Pace(NamedTuple):
    """How long a drill takes, and with how many.

    Attributes:
        before: Seconds of load before the fault.
        during: Seconds that the fault lasts.
        after: Seconds of load after it.
        instances: Of the service, where one of them is at fault.
        rate: Calls a second, of all callers together.
        is_quick: Whether this is the short form, whose times nobody is held to.
        seed: What chance in a drill begins with. The server's own choice of instances is not a part of it.
    """

    before: float
    during: float
    after: float
    instances: int
    rate: float
    is_quick: bool
    seed: int


class Players(NamedTuple):
    """The processes.

    Attributes:
        urls: The servers.
        instances: Of the service.
        callers: Who calls it.
        notes: Where executions are noted.
    """

    urls: Urls
    instances: list[Child]
    callers: list[Child]
    notes: Path


class Outcome(NamedTuple):
    """What came of a drill: figures of each kind of call, and what must hold."""

    kinds: dict[str, dict[str, Any]]
    bounds: list[Bound]


def player(role: str, *, module: str = "roles", loop: str | None = None, **settings: Any) -> Process:
    """A process of the drills."""
    return Process(f"benchmarks.faults.{module}", role, loop=loop or chosen("auto"), **settings)


@contextmanager
def players(
    urls: Urls, instances: int | Sequence[dict[str, Any]], callers: Sequence[Urls] | int = 2, **settings: Any
) -> Iterator[Players]:
    """Start them, side by side, and end them.

    Args:
        urls: The servers.
        instances: How many; or what each is given beside the settings.
        callers: How many; or the servers of each.
        settings: What the role `serve` takes.
    """
    each = [{}] * instances if isinstance(instances, int) else instances
    where = [urls] * callers if isinstance(callers, int) else callers
    with tempfile.TemporaryDirectory(prefix="meshkit-drill-") as notes, ThreadPoolExecutor(16) as pool:
        serving = [
            pool.submit(player, "serve", **{"url": urls, "directory": notes, **settings, **one})
            for one in each
        ]
        calling = [pool.submit(player, "caller", url=url) for url in where]
        taking_part = Players(urls, [], [], Path(notes))
        try:
            wait(serving + calling)
            for made, into in ((serving, taking_part.instances), (calling, taking_part.callers)):
                into += [one.result() for one in made if one.exception() is None]
            for one in serving + calling:
                one.result()
            yield taking_part
        finally:
            everybody = taking_part.instances + taking_part.callers
            # What they have to say has been heard.
            for one in everybody:
                send(one, signal.SIGKILL)
                one.stop()


def send(process: Child | EmbeddedServer, what: signal.Signals) -> None:
    """Send a signal to a process of ours, which may have ended, but is not waited for yet."""
    os.kill(process.pid, what)


def end(child: Child) -> None:
    """Have an instance drain, and wait until it has ended."""
    send(child, signal.SIGTERM)
    until(lambda: os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None)
    child.stop()


def until(condition: Callable[[], bool], seconds: float = _PATIENCE) -> float:
    """Wait for it; gives the seconds that it took.

    Raises:
        RuntimeError: It does not come.
    """
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() > began + seconds:
            raise RuntimeError("what the drill waits for does not happen")
        time.sleep(0.01)
    return time.perf_counter() - began


def start(caller: Child, kinds: Sequence[str], rate: float, **how: Any) -> None:
    """Have a caller begin to call."""
    caller.ask("start", kinds=kinds, rate=rate, first=next(_loads) * NUMBERS, **{"timeout": TIMEOUT, **how})


@contextmanager
def under_load(
    taking_part: Players,
    pace: Pace,
    *,
    kinds: Sequence[str] = ("read", "write"),
    rate: float | None = None,
    timeout: float = TIMEOUT,
    cancel_after: float | None = None,
) -> Iterator[Course]:
    """Calls at a constant rate, from before the fault, which is the block's, to a while after it.

    Args:
        taking_part: Who.
        pace: How long before and after.
        kinds: What is called, one after the other.
        rate: Calls a second, of all callers together, if not those of the pace.
        timeout: Seconds that a call may take.
        cancel_after: Seconds after which the caller of each is cancelled.
    """
    # In the short form other tests take the processors away.
    course = Course(slower=0.5 if pace.is_quick else 0.05)
    callers = taking_part.callers
    for caller in callers:
        start(caller, kinds, (rate or pace.rate) / len(callers), timeout=timeout, cancel_after=cancel_after)
    time.sleep(_WARM_UP)
    began = time.perf_counter()
    time.sleep(pace.before)
    yield course
    time.sleep(pace.after)
    calls = [Call(*call) for caller in callers for call in caller.ask("finish")]
    course.join(call for call in calls if call.due >= began)
    course.executions = courses.executions(taking_part.notes)


def outcome(
    course: Course,
    bounds: Sequence[Bound],
    *,
    moment: float = 0.0,
    timeout: float = TIMEOUT,
) -> Outcome:
    """What came of it, with what must hold in every drill.

    Args:
        course: What happened.
        bounds: What must hold in this one.
        moment: Seconds that count as during the fault, where that is a matter of a moment.
        timeout: Seconds that a call may take.
    """
    kinds = list(dict.fromkeys(call.kind for call in course.calls))
    until = max(course.over, course.fault + moment)
    figures = {kind: course.figures(kind, until=until) for kind in sorted(kinds)}
    bad = sum(call.waited > timeout + _LATE for call in course.calls)
    bad += sum(one["wrong"] for one in figures.values())
    bad += sum(one["executed twice"] for kind, one in figures.items() if kind.split(",")[0] in ONCE)
    always = none("answered wrongly, executed twice but must not be, or back after the deadline", bad)
    return Outcome(figures, [*bounds, always])


@contextmanager
def server(config: str = "") -> Iterator[EmbeddedServer]:
    """A nats-server.

    Args:
        config: Its configuration file's text; JetStream and nothing else, if there is none.
    """
    with tempfile.TemporaryDirectory(prefix="meshkit-drill-") as directory:
        file = Path(directory) / "nats.conf"
        file.write_text(config, encoding="ascii")
        with EmbeddedServer(config=file if config else None) as one:
            yield one


@contextmanager
def cluster(count: int = 3, config: str = "") -> Iterator[list[EmbeddedServer]]:
    """Servers that know each other.

    Args:
        count: How many.
        config: What else their configuration says.
    """
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                server(
                    f'{config}\nserver_name: "drill-{port}"\n'
                    f'cluster {{ name: drill, listen: "127.0.0.1:{port}", routes: [{routes}] }}\n'
                )
            )
            for port in ports
        ]
        for one in servers:
            until(lambda one=one: one.log.read_text().count("Route connection created") >= count - 1)
        yield servers
