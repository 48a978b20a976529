"""What happens in the mesh right now: two readings of everybody's counters, and what changed between them."""

import asyncio
import functools
import logging
import re
from time import perf_counter

import msgspec

from meshkit.discovery.protocol import EndpointStats, StatsResponse, control_subject, decode
from meshkit.errors import FAULTS, DeclarationError, Forbidden
from meshkit.job import JobReport
from meshkit.layers.statistics import OTHER, Outcomes
from meshkit.subject import Pattern
from meshkit.telemetry.distribution import total
from meshkit.telemetry.report import STATS, Called, Report, Served, readable
from meshkit.telemetry.report import decode as decode_report
from meshkit.transport import Message, Transport

log = logging.getLogger("meshkit.telemetry")

# What is counted together with others may be one of them.
_FAULT = re.compile("|".join((*FAULTS, OTHER)))
# Seconds to wait for all answers.
_ALL = 3.0
# What became of messages that no service got.
_NOT_SENT = ("NoResponders", "Disconnected")


class Reading(msgspec.Struct, frozen=True):
    """What everybody has counted so far.

    Attributes:
        at: When they were asked, on `perf_counter`.
        reports: What instances report, by service and id.
        others: What those tell of whom there is no report, which are of other clients.
        queues: The queue groups of endpoints, by service and name; empty where there is none.
    """

    at: float
    reports: dict[tuple[str, str], Report]
    others: dict[tuple[str, str], StatsResponse]
    queues: dict[tuple[str, str], str]


class ConsumerChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the messages of a consumer in one instance between two readings.

    Attributes:
        stream: The stream.
        name: The consumer's name.
        redelivered: How many deliveries were not the first of their message.
        dead: How many messages became dead letters since the instance started.
        pending: How many no instance has got yet; all instances say the same, if not at the same moment.
        unacknowledged: How many some instance has got and not said what became of; likewise.
    """

    stream: str
    name: str
    redelivered: int = 0
    dead: int = 0
    pending: int = 0
    unacknowledged: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the calls of an endpoint, or of a target, in one instance between two readings.

    Attributes:
        name: The endpoint's or the subscription's name; the target.
        subject: Its subject, with wildcards; the target.
        is_event: Whether they are events.
        queue: The queue group, one of whose members gets each call; empty if every instance gets all.
        seconds: The time between the readings; 0 if there is nothing to compare with, and all counts are 0.
        requests: How many began.
        finished: How many are over.
        succeeded: How many of them were no faults of who serves them, as `meshkit.errors.FAULTS` has it.
        spent: Seconds that all that are over took.
        outcomes: How long they took by outcome; empty where only the sum is known.
        in_flight: How many are on their way now.
        messages: Of a target, how many messages were sent that a service may have got, retries too.
        retries: Of a target, how many messages followed a first one.
        refusals: Of a target, how many calls the caller's own side refused.
        circuit: Of a target, the circuit breaker's state.
        consumer: Of a consumer, what else is known of its messages.
    """

    name: str
    subject: str
    is_event: bool = False
    queue: str = "q"
    seconds: float = 0.0
    requests: int = 0
    finished: int = 0
    succeeded: int = 0
    spent: float = 0.0
    outcomes: Outcomes = {}
    in_flight: int = 0
    messages: int = 0
    retries: int = 0
    refusals: int = 0
    circuit: str = "closed"
    consumer: ConsumerChange | None = None


class InstanceChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one instance between two readings.

    Attributes:
        service: Its service.
        id: Its id.
        served: Its endpoints, subscriptions and consumers.
        called: What it calls; of other clients' services nothing is known.
        jobs: How far its jobs are.
        is_there: Whether it has answered the second time. If not, it is gone or was busy, and of what it
            serves and calls nothing is known but that it did.
    """

    service: str
    id: str
    served: list[Change]
    called: list[Change] = []
    jobs: list[JobReport] = []
    is_there: bool = True


# Reading


async def read(transport: Transport) -> Reading:
    """Ask everybody. Takes a third of a second, or as long as answers come.

    Raises:
        Forbidden: The connection's user may not ask for `$SRV.STATS`.
        Disconnected: There is no connection.
        ConnectionLost: It broke meanwhile.
    """
    at = perf_counter()
    stats, reports = await asyncio.gather(
        transport.gather(control_subject("STATS"), most=_ALL), _ask_for_reports(transport)
    )
    unreadable: list[str] = []
    own = {(each.name, each.id): each for each in readable(reports, decode_report, unreadable)}
    of_stats = functools.partial(decode, response=StatsResponse)
    told = {(each.name, each.id): each for each in readable(stats, of_stats, unreadable)}
    if unreadable:
        log.warning("%d answers are left out, such as: %s", len(unreadable), unreadable[0])
    queues = {(each.name, one.name): one.queue_group for each in told.values() for one in each.endpoints}
    return Reading(at, own, {key: each for key, each in told.items() if key not in own}, queues)


async def _ask_for_reports(transport: Transport) -> list[Message]:
    try:
        return await transport.gather(STATS, most=_ALL)
    except Forbidden:  # who may use the protocol and no more gets what it has
        return []


async def observe(transport: Transport, seconds: float) -> list[InstanceChange]:
    """What happens within a time.

    Args:
        transport: The connection to ask on.
        seconds: How long to look.

    Raises:
        Forbidden: The connection's user may not ask for `$SRV.STATS`.
        Disconnected: There is no connection.
        ConnectionLost: It broke meanwhile.
    """
    before = await read(transport)
    await asyncio.sleep(max(0.0, seconds - (perf_counter() - before.at)))
    return changes(before, await read(transport))


# Comparing


def changes(before: Reading | None, now: Reading) -> list[InstanceChange]:
    """What happened between two readings, by service and id; those that did not answer again are in it.

    Args:
        before: The earlier one; None if there is none, and nothing is known but what is in flight.
        now: The later one.
    """
    seconds = now.at - before.at if before else 0.0
    found = [
        _reported(report, before.reports.get(key) if before else None, seconds)
        for key, report in now.reports.items()
    ]
    found += [
        _told(stats, before.others.get(key) if before else None, seconds) for key, stats in now.others.items()
    ]
    queues = now.queues
    if before:
        missing = [_reported(before.reports[key], None, 0.0) for key in before.reports.keys() - now.reports]
        answered = now.reports.keys() | now.others.keys()
        missing += [_told(before.others[key], None, 0.0) for key in before.others.keys() - answered]
        found += [msgspec.structs.replace(one, is_there=False) for one in missing]
        queues = before.queues | queues
    for one in found:
        one.served[:] = [
            msgspec.structs.replace(change, queue=queues.get((one.service, change.name), change.queue))
            for change in one.served
            if _is_subject(change.subject)
        ]
    return sorted(found, key=lambda one: (one.service, one.id))


def _is_subject(text: str) -> bool:
    """Whether it is one: others wrote it."""
    try:
        Pattern(text)
    except DeclarationError:
        return False
    return True


def _reported(report: Report, before: Report | None, seconds: float) -> InstanceChange:
    if before is None or before.started != report.started:
        # One that has just started, or that did not answer in time: nobody knows since when it counts.
        seconds = 0.0
    served = {(one.name, one.subject): one for one in before.served} if before else {}
    called = {one.target: one for one in before.called} if before else {}
    return InstanceChange(
        service=report.name,
        id=report.id,
        served=[
            _change(one.name, one.subject, one, served.get((one.name, one.subject)), seconds)
            for one in report.served
        ],
        called=[
            _change(one.target, one.target, one, called.get(one.target), seconds) for one in report.called
        ],
        jobs=report.jobs,
    )


def _change(
    name: str, subject: str, now: Served | Called, before: Served | Called | None, seconds: float
) -> Change:
    known = Change(
        name=name,
        subject=subject,
        is_event=isinstance(now, Served) and now.is_event,
        in_flight=now.in_flight,
        circuit=now.circuit if isinstance(now, Called) else "closed",
        consumer=_consumer(now, None),
    )
    # A target that was not there is new, or comes back after it was idle for so long that it was left out.
    if not seconds or before is None:
        return known
    requests = now.requests - before.requests
    finished = requests - (now.in_flight - before.in_flight)
    if requests < 0 or finished < 0:
        return known
    outcomes, faults = _since(now.outcomes, before.outcomes, finished)
    return msgspec.structs.replace(
        known,
        seconds=seconds,
        requests=requests,
        finished=finished,
        succeeded=finished - faults,
        spent=total(outcomes.values()).sum,
        outcomes=outcomes,
        consumer=_consumer(now, before),
        **_of_caller(now, before),
    )


def _since(now: Outcomes, before: Outcomes, finished: int) -> tuple[Outcomes, int]:
    """What was counted meanwhile, by outcome, and how many of it were faults.

    Args:
        now: All that has been counted.
        before: All that had been counted; an outcome that was idle for long is left out of it.
        finished: How many there are in all.
    """
    changed = {name: now[name].since(before[name]) for name in now if name in before}
    rest = finished - total(changed.values()).count
    # Either they are new, or there were many before, and how long those took that are new is not known.
    others = {name: now[name] for name in now if name not in before}
    if total(others.values()).count <= rest:
        changed |= others
        rest = 0
    faults = sum(each.count for name, each in changed.items() if is_fault(name))
    faults += max(0, rest) if any(map(is_fault, others)) else 0
    return {name: each for name, each in changed.items() if each.count}, faults


def is_fault(outcome: str) -> bool:
    """Whether an outcome counts against who serves."""
    return _FAULT.fullmatch(outcome) is not None


def _consumer(now: Served | Called, before: Served | Called | None) -> ConsumerChange | None:
    """What else is known of a consumer; with nothing to compare, no redelivery is.

    Args:
        now: What has been counted.
        before: What had been counted.
    """
    if not isinstance(now, Served) or now.consumed is None:
        return None
    consumed = now.consumed
    known = before.consumed if isinstance(before, Served) and before.consumed else consumed
    return ConsumerChange(
        stream=consumed.stream,
        name=consumed.consumer,
        redelivered=max(0, consumed.redelivered - known.redelivered),
        dead=consumed.dead,
        pending=consumed.pending,
        unacknowledged=consumed.unacknowledged,
    )


def _of_caller(now: Served | Called, before: Served | Called) -> dict[str, int]:
    if not isinstance(now, Called) or not isinstance(before, Called):
        return {}
    return {
        # Who serves counts a call when it begins.
        "messages": _sent(now) + now.in_flight - _sent(before) - before.in_flight,
        "retries": now.retries - before.retries,
        "refusals": sum(now.refusals.values()) - sum(before.refusals.values()),
    }


def _sent(called: Called) -> int:
    return sum(count for outcome, count in called.attempts.items() if outcome not in _NOT_SENT)


def _told(stats: StatsResponse, before: StatsResponse | None, seconds: float) -> InstanceChange:
    """What a service of another client tells."""
    endpoints: dict[tuple[str, str], EndpointStats] = {}
    if before is not None and before.started == stats.started:
        endpoints = {(one.name, one.subject): one for one in before.endpoints}
    served: list[Change] = []
    for one in stats.endpoints:
        change = Change(name=one.name, subject=one.subject)
        earlier = endpoints.get((one.name, one.subject))
        if earlier is not None and one.num_requests >= earlier.num_requests:
            requests = one.num_requests - earlier.num_requests
            errors = min(requests, max(0, one.num_errors - earlier.num_errors))
            change = Change(
                name=one.name,
                subject=one.subject,
                seconds=seconds,
                requests=requests,
                finished=requests,
                succeeded=requests - errors,
                spent=max(0, one.processing_time - earlier.processing_time) / 1e9,
            )
        served.append(change)
    return InstanceChange(service=stats.name, id=stats.id, served=served)
