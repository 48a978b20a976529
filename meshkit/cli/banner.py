"""What `meshkit run` prints: first what runs, then a line for everything that happens."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import click
from rich.table import Table
from rich.text import Text

from meshkit.cli.output import console, discard
from meshkit.launcher.messages import Endpoint
from meshkit.launcher.view import Line, Notice, Server, View


def view() -> View:
    """The view that suits standard output."""
    return _Terminal() if console.is_terminal else _Plain()


class _Terminal:
    def server(self, server: Server) -> None:
        text = Text(f"meshkit {version('meshkit')} · nats-server {server.version}")
        text.append(" (embedded)" if server.embedded else "")
        console.print(text.append(f" {server.address}", "cyan"))

    def services(self, lines: Sequence[Line]) -> None:
        console.print()
        services = [line.service for line in lines]
        subjects = [
            len(each.subject) for service in services for each in service.endpoints + service.subscriptions
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
            console.print(grid)
        console.print()

    def notice(self, notice: Notice) -> None:
        text = Text(_now(), "dim").append(f" {notice.who} ", "not dim bold")
        text.append(notice.what, "not dim red" if notice.trouble else "not dim")
        _tell(lambda: console.print(text))


class _Plain:
    def server(self, server: Server) -> None:
        self._print(f"meshkit {version('meshkit')}")
        embedded = " (embedded)" if server.embedded else ""
        self._print(f"nats-server {server.version}{embedded} {server.address}")

    def services(self, lines: Sequence[Line]) -> None:
        for line in lines:
            service = line.service
            self._print(f"service {service.name} {service.version}, {_workers(line)}")
            for endpoint in service.endpoints:
                self._print(f"endpoint {endpoint.subject}{_facts(endpoint, ', no queue group')}")
            for subscription in service.subscriptions:
                self._print(f"subscription {subscription.subject}{_facts(subscription, '')}")

    def notice(self, notice: Notice) -> None:
        self._print(f"{_now()} {notice.who} {notice.what}")

    def _print(self, line: str) -> None:
        _tell(lambda: click.echo(line))


def _tell(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError:
        # Nobody reads any more (`meshkit run | head`, a terminal that was closed): no reason to drop calls.
        discard()


def _facts(declared: Endpoint, without: str) -> str:
    queue = f", queue group {declared.queue}" if declared.queue else without
    return f"{queue}: {declared.doc}" if declared.doc else queue


def _workers(line: Line) -> str:
    return f"{line.workers} worker{'s' if line.workers > 1 else ''} on {line.loop}"


def _now() -> str:
    return time.strftime("%H:%M:%S")
