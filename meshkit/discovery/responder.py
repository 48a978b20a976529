"""The server's half of discovery: answers to `$SRV` and `_MESH.health`, for one instance of a service.

The answers bypass the handlers' concurrency bound: tools stop listening 300 ms after the last answer, and an
instance under full load is the one that somebody wants to look at.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from meshkit.discovery.directory import ANNOUNCE
from meshkit.discovery.health import Check, HealthResponse, health_subject, run_checks
from meshkit.discovery.protocol import InfoResponse, StatsResponse, control_subject
from meshkit.telemetry.report import STATS, Report
from meshkit.transport import Message, Subscription, Transport

log = logging.getLogger("meshkit.discovery")

_Answer = Callable[[], Awaitable[bytes]]


class Responder:
    """Answers for one instance.

    Args:
        transport: The connection to answer on.
        describe: What the instance is; asked once, as `start` begins.
        announce: What callers are to know before they call.
        stats: What its endpoints did so far; asked for each request, so it must be quick.
        report: All that it did so far; likewise.
        checks: Its health checks by name. Without any it is healthy as long as it answers.
    """

    def __init__(
        self,
        transport: Transport,
        describe: Callable[[], InfoResponse],
        announce: Callable[[], InfoResponse],
        stats: Callable[[], StatsResponse],
        report: Callable[[], Report],
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self._transport = transport
        self._describe = describe
        self._announce = announce
        # Where, and what.
        self._announcement: tuple[str, bytes] | None = None
        self._stats = stats
        self._report = report
        self._checks = checks or {}
        self._subscriptions: list[Subscription] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer; the server knows the subscriptions after the transport's next flush."""
        info = self._describe()
        answers: dict[str, _Answer] = {
            control_subject("PING"): partial(_constant, msgspec.json.encode(info.ping())),
            control_subject("INFO"): partial(_constant, msgspec.json.encode(info)),
            control_subject("STATS"): self._answer_stats,
            health_subject(): partial(self._answer_health, info),
            STATS: self._answer_report,
        }
        for subject, answer in answers.items():
            for scope in ("", f".{info.name}", f".{info.name}.{info.id}"):
                on_request = partial(self._on_request, answer)
                interest = await self._transport.subscribe(
                    subject + scope, on_request, optional=subject == STATS
                )
                self._subscriptions.append(interest)
        announcement = msgspec.json.encode(self._announce())
        if len(announcement) > self._transport.max_payload:
            log.warning("%s has too many endpoints for one message; policies are not announced", info.name)
            return
        self._announcement = f"{ANNOUNCE}.{info.name}.{info.id}", announcement
        # One instance of a service speaks for all.
        on_request = partial(self._on_request, partial(_constant, announcement))
        self._subscriptions.append(
            await self._transport.subscribe(ANNOUNCE, on_request, info.name, optional=True)
        )

    def announce(self) -> None:
        """Tell everybody who has asked before that there is something new."""
        if self._announcement is not None:
            self._transport.tell(*self._announcement)

    async def stop(self) -> None:
        """Answer what has arrived, and nothing more."""
        await asyncio.gather(*(subscription.drain() for subscription in self._subscriptions))
        if self._answering:
            await asyncio.wait(self._answering)

    async def _answer_stats(self) -> bytes:
        return msgspec.json.encode(self._stats())

    async def _answer_report(self) -> bytes:
        return msgspec.json.encode(self._report())

    async def _answer_health(self, info: InfoResponse) -> bytes:
        checks = await run_checks(self._checks)
        healthy = all(outcome == "ok" for outcome in checks.values())
        return msgspec.json.encode(
            HealthResponse(
                service=info.name, id=info.id, version=info.version, healthy=healthy, checks=checks
            )
        )

    def _on_request(self, answer: _Answer, message: Message) -> None:
        if not message.reply:  # somebody published where one asks; there is nobody to answer
            return
        # In a context of its own: the subscription's is that of whoever started the service.
        task = asyncio.get_running_loop().create_task(
            self._send(answer, message.reply), context=contextvars.Context()
        )
        self._answering.add(task)
        task.add_done_callback(partial(self._sent, message.subject))

    async def _send(self, answer: _Answer, reply: str) -> None:
        await self._transport.publish(reply, await answer())

    def _sent(self, subject: str, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a request on %s was not answered: %s", subject, error, exc_info=error)


async def _constant(payload: bytes) -> bytes:
    return payload
