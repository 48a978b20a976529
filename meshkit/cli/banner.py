"""What `meshkit run` prints: first what runs, then a line for everything that happens."""

import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from meshkit.cli.output import console, discard
from meshkit.cli.spans import drawn, plain
from meshkit.launcher.messages import Endpoint
from meshkit.launcher.view import Line, Notice, Server, View
from meshkit.telemetry.logs import JsonFormatter, LogFormat
from meshkit.telemetry.traces.tree import Span


def view(form: LogFormat) -> View:
    """The view that suits standard output, and how the services log."""
    if form == "json":
        return _Json()
    return _Terminal() if console.is_terminal else _Plain()


class _Terminal:
    def server(self, server: Server) -> None:
        text = Text(f"meshkit {version('meshkit')} · nats-server {server.version}")
        text.append(" (embedded)" if server.embedded else "")
        console.print(text.append(f" {_addresses(server)}", "cyan"))

    def services(self, lines: Sequence[Line]) -> None:
        console.print()
        services = [line.service for line in lines]
        subjects = [
            len(each.subject)
            for service in services
            for each in (*service.endpoints, *service.subscriptions, *service.consumed)
        ]
        # The same for all services, so that their columns stand below each other.
        width = min(max(subjects, default=0) + 2, console.width // 2)
        for line in lines:
            service = line.service
            title = Text(service.name, "bold")
            console.print(title.append(f" {service.version} · {_workers(line)}", "not bold"))
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(width=width, overflow="fold")  # with min_width, rich loses words
            grid.add_column(overflow="fold")
            grid.add_column(overflow="fold")
            for endpoint in service.endpoints:
                grid.add_row(f"  {endpoint.subject}", endpoint.queue or "·", endpoint.doc)
            for subscription in service.subscriptions:
                doc = f"(subscription) {subscription.doc}".rstrip()
                grid.add_row(f"  {subscription.subject}", subscription.queue or "·", doc)
            for consumer in service.consumed:
                doc = f"(consumer) {consumer.doc}".rstrip()
                grid.add_row(f"  {consumer.subject}", consumer.queue, doc)
            console.print(grid)
        console.print()

    def trace(self, spans: Sequence[Span], left_out: int) -> None:
        _tell(lambda: console.print(Text("\n").join([*drawn(spans, left_out, console.width), Text()])))

    def notice(self, notice: Notice) -> None:
        text = Text(_now(), "dim").append(f" {notice.who} ", "not dim bold")
        text.append(notice.what, "not dim red" if notice.trouble else "not dim")
        _tell(lambda: console.print(text))


class _Plain:
    def server(self, server: Server) -> None:
        self._print(f"meshkit {version('meshkit')}")
        embedded = " (embedded)" if server.embedded else ""
        self._print(f"nats-server {server.version}{embedded} {_addresses(server)}")

    def services(self, lines: Sequence[Line]) -> None:
        for line in lines:
            service = line.service
            self._print(f"service {service.name} {service.version}, {_workers(line)}")
            for endpoint in service.endpoints:
                self._print(f"endpoint {endpoint.subject}{_facts(endpoint, ', no queue group')}")
            for subscription in service.subscriptions:
                self._print(f"subscription {subscription.subject}{_facts(subscription, '')}")
            for consumer in service.consumed:
                doc = f": {consumer.doc}" if consumer.doc else ""
                self._print(f"consumer {consumer.subject}, stream {consumer.queue}{doc}")

    def trace(self, spans: Sequence[Span], left_out: int) -> None:
        self._print("\n".join(plain(spans, left_out)))

    def notice(self, notice: Notice) -> None:
        self._print(f"{_now()} {notice.who} {notice.what}")

    def _print(self, line: str) -> None:
        _tell(lambda: click.echo(line))


class _Json(_Plain):
    """The same, each line as the services' processes log theirs."""

    def notice(self, notice: Notice) -> None:
        level = "WARNING" if notice.trouble else "INFO"
        worker = {"worker": notice.who} if "#" in notice.who else {}
        line = json_line(level, f"{notice.who} {notice.what}", **worker)
        _tell(lambda: click.echo(line))

    def trace(self, spans: Sequence[Span], left_out: int) -> None:
        many = f"trace of {len(spans) + left_out} spans"
        line = json_line("INFO", many, trace_id=spans[0].trace, spans=spans)
        _tell(lambda: click.echo(line))

    def _print(self, line: str) -> None:
        _tell(lambda: click.echo(json_line("INFO", line)))


def json_line(level: str, message: str, **fields: Any) -> str:
    """What `meshkit run` itself says, as a line of JSON."""
    said = {"name": "meshkit.run", "levelname": level, "msg": message}
    return JsonFormatter().format(logging.makeLogRecord(said | fields))


def _tell(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError:
        # Nobody reads any more (`meshkit run | head`, a terminal that was closed): no reason to drop calls.
        discard()


def _addresses(server: Server) -> str:
    return f"{server.address}, monitoring {server.monitor}" if server.monitor else server.address


def _facts(declared: Endpoint, without: str) -> str:
    queue = f", queue group {declared.queue}" if declared.queue else without
    return f"{queue}: {declared.doc}" if declared.doc else queue


def _workers(line: Line) -> str:
    return f"{line.workers} worker{'s' if line.workers > 1 else ''} on {line.loop}"


def _now() -> str:
    return time.strftime("%H:%M:%S")
