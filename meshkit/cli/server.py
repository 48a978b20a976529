"""`meshkit server`."""

import signal

import anyio
import click

from meshkit.cli.exits import ExitCode
from meshkit.cli.output import json_option, monitor_port_option, print_json
from meshkit.transport.server import EmbeddedServer

_CHECK = 0.2  # seconds between two looks at whether the server is alive


@click.command()
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=4222,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--store",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Where JetStream keeps its data; by default it is gone when the server stops.",
)
@monitor_port_option
@json_option
@click.pass_context
def server(
    ctx: click.Context, *, port: int, store: str | None, monitor_port: int | None, as_json: bool
) -> None:
    """Run a NATS server on this machine until Ctrl-C."""
    with EmbeddedServer(port=port or None, store=store, monitor=monitor_port) as embedded:
        anyio.run(_until_signal, embedded, as_json)
        if not embedded.is_running:
            click.echo("meshkit: nats-server died", err=True)
            ctx.exit(ExitCode.FAILURE)


async def _until_signal(embedded: EmbeddedServer, as_json: bool) -> None:
    """Say where the server is, and wait for SIGINT or SIGTERM, or for the server's death."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        if as_json:
            monitor = {"monitor": embedded.monitor_url} if embedded.monitor_url else {}
            print_json({"url": embedded.url, "version": embedded.version} | monitor)
        else:
            click.echo(f"nats-server {embedded.version} {embedded.url} {embedded.monitor_url}".rstrip())
        while embedded.is_running:
            with anyio.move_on_after(_CHECK):
                await anext(signals)
                return
