"""Drills in which what is between callers and instances is at fault."""

import signal
import time

from benchmarks.faults.bounds import at_least, at_most, none
from benchmarks.faults.course import failed, share
from benchmarks.faults.players import (
    NUMBERS,
    Outcome,
    Pace,
    cluster,
    outcome,
    player,
    players,
    send,
    server,
    under_load,
    until,
)
from benchmarks.stage import Child, Process
from meshkit.transport.server import EmbeddedServer

_FEW = 4
# Seconds that a call may take: longer than a server is away.
_PATIENT = 5.0
# Seconds until every connection knows that its server is gone, if its process has a lot to do. What is sent
# meanwhile is in flight.
_NOTICED = 0.1
# Connections, of so many processes.
_CROWD, _CROWDED = 500, 5
_LAME_DUCK = 'lame_duck_grace_period: "2s"\nlame_duck_duration: "30s"\n'
# A connection that does not read is cut off by the server at so many bytes, or so late.
_NARROW = 'max_pending: 2MB\nwrite_deadline: "1s"\n'
_NOISE = "noise.drill"


def server_kill(pace: Pace) -> Outcome:
    """SIGKILL to the only server, and a new one in its place."""
    pace = pace._replace(after=2 * pace.after)
    with (
        server() as nats,
        players(nats.url, _FEW) as all_,
        under_load(all_, pace, timeout=_PATIENT) as course,
    ):
        course.begins()
        nats.kill()
        killed = time.perf_counter() + _NOTICED
        time.sleep(pace.during / 4)
        nats.restart()
        course.ends()
    bounds = [
        none("idempotent calls without answer", failed(course.of("read"))),
        none("other calls without answer, beyond those in flight", course.stray("write", killed)),
        at_most("seconds to recover", course.recovered("write"), 5.0),
    ]
    return outcome(course, bounds, timeout=_PATIENT)


def cluster_kill(pace: Pace) -> Outcome:
    """SIGKILL to one server of three, to which a caller is connected."""
    with cluster() as servers:
        urls = [one.url for one in servers]
        with players(urls, 2 * _FEW) as all_, under_load(all_, pace) as course:
            victim = _of(servers, all_.callers[0].ask("server"))
            course.begins()
            victim.kill()
            killed = time.perf_counter() + _NOTICED
    bounds = [
        none("idempotent calls without answer", failed(course.of("read"))),
        none("other calls without answer, beyond those in flight", course.stray("write", killed)),
        at_most("seconds to recover", course.recovered("write"), 2.0),
    ]
    return outcome(course, bounds, moment=1.0)


def _of(servers: list[EmbeddedServer], url: str) -> EmbeddedServer:
    """The server at an address."""
    return next(one for one in servers if one.url.rpartition(":")[2] == url.rpartition(":")[2])


def lame_duck(pace: Pace) -> Outcome:
    """One server of three, to which a caller is connected, says that it is about to go."""
    with cluster(config=_LAME_DUCK) as servers:
        urls = [one.url for one in servers]
        with players(urls, 2 * _FEW) as all_, under_load(all_, pace) as course:
            victim = _of(servers, all_.callers[0].ask("server"))
            everybody = all_.callers + all_.instances

            def there() -> int:
                return sum(_of(servers, one.ask("server")) is victim for one in everybody)

            moved = there()
            course.begins()
            send(victim, signal.SIGUSR2)  # what `nats-server --signal ldm` sends
            until(lambda: there() == 0)
            course.ends()
    bounds = [
        none("calls without answer", failed(course.calls)),
        at_least("connections that were on it", moved, 1),
        at_most("seconds until none is there", course.over - course.fault, 2.0),
    ]
    return outcome(course, bounds)


def cut_off(pace: Pace) -> Outcome:
    """A caller whose network swallows everything, both ways, and then lets it through."""
    pace = pace._replace(after=2 * pace.after)  # a breaker may stay open for so long
    with server() as nats, Process("benchmarks.faults.proxy", "proxy", port=nats.port) as proxy:
        url = proxy.ask("url")
        with players(nats.url, _FEW, callers=[url, nats.url]) as all_, under_load(all_, pace) as course:
            course.begins()
            proxy.ask("hold")
            time.sleep(pace.during)
            proxy.ask("release")
            course.ends()
    first = min(call.n for call in course.calls) // NUMBERS
    course.calls = [
        call._replace(kind=f"{call.kind}, cut off") if call.n // NUMBERS == first else call
        for call in course.calls
    ]
    bounds = [
        none("calls without answer, of who was not cut off", failed(course.of("read", "write"))),
        at_least("calls without answer, of who was", failed(course.during("read, cut off")), 1),
        *(
            at_most(f"seconds to recover, {kind}", course.recovered(f"{kind}, cut off"), 5.0)
            for kind in ("read", "write")
        ),
    ]
    return outcome(course, bounds)


def crowd(pace: Pace) -> Outcome:
    """Five hundred connections, which lose their server at the same moment."""
    pace = pace._replace(after=2 * pace.after)
    with server() as nats, players(nats.url, _FEW) as all_:
        each = _CROWD // _CROWDED
        for _ in range(_CROWDED):
            all_.callers.append(player("caller", url=nats.url, connections=each))
        with under_load(all_, pace, timeout=2 * _PATIENT) as course:
            course.begins()
            nats.kill()
            killed = time.perf_counter() + _NOTICED
            nats.restart()
            course.ends()
            back = until(lambda: _connected(all_.callers) == _CROWD + 2)
    bounds = [
        at_most("seconds until all are connected", back, 10.0),
        none("idempotent calls without answer", failed(course.of("read"))),
        none("other calls without answer, beyond those in flight", course.stray("write", killed)),
        at_most("seconds to recover", course.recovered("write"), 5.0),
    ]
    return outcome(course, bounds, moment=back, timeout=2 * _PATIENT)


def _connected(callers: list[Child]) -> int:
    return sum(caller.ask("connected") for caller in callers)


def slow_consumer(pace: Pace) -> Outcome:
    """An instance that does not read, on a connection that gets more than it can hold."""
    instances = [{}] * (_FEW - 1) + [{"noise": _NOISE}]
    with server(_NARROW) as nats, players(nats.url, instances) as all_:
        victim = all_.instances[-1]
        with player("caller", url=nats.url) as flood, under_load(all_, pace) as course:
            course.begins()
            send(victim, signal.SIGSTOP)
            flood.ask("flood", subject=_NOISE, size=50_000, seconds=pace.during / 2)
            time.sleep(pace.during / 2)
            send(victim, signal.SIGCONT)
            course.ends()
        log = nats.log.read_text(errors="replace")
    again = [one for one in course.executions if one.pid == victim.pid and one.began > course.over]
    cut = "Slow Consumer" in log
    reads = [call for call in course.of("read") if call.due < course.over]
    bounds = [
        at_least("connections that the server cut off", int(cut), 1),
        none("idempotent calls without answer", failed(reads)),
        at_most("share of other calls without answer", share(course.during("write")), 1.5 / _FEW),
        at_least("calls that the instance executed when it was back", len(again), 1),
        at_most("seconds to recover", course.recovered("write"), 2.0),
    ]
    return outcome(course, bounds)
