"""`meshkit metrics`: the metrics of the whole mesh, for Prometheus."""

import signal
from contextlib import closing

import anyio
import click

from meshkit.cli.output import clean, console, nats_option
from meshkit.connecting import reach
from meshkit.telemetry.metrics.gather import Gatherer
from meshkit.telemetry.metrics.listener import Answer, listening
from meshkit.telemetry.metrics.monitoring import Monitoring
from meshkit.telemetry.metrics.page import CONTENT_TYPE
from meshkit.telemetry.metrics.views import pages
from meshkit.telemetry.telemetry import Telemetry
from meshkit.transport import Transport


@click.command()
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    default=9100,
    show_default=True,
    help="Where Prometheus finds them, on all interfaces: /metrics; beside it /livez and /readyz.",
)
@click.option(
    "--server",
    "servers",
    metavar="URL",
    multiple=True,
    help="Show what this nats-server's monitoring says too, such as http://127.0.0.1:8222; may be repeated.",
)
@click.option("--once", is_flag=True, help="Print them once, and end.")
@nats_option
def metrics(port: int, servers: tuple[str, ...], *, once: bool, nats: str | None) -> None:
    """Gather the metrics of all services over NATS, and show them to Prometheus until Ctrl-C.

    No service needs a port for it. They are gathered anew for each scrape. Services of other NATS clients are
    there too, with what the NATS services protocol has: how many calls, how many errors, how long.
    """
    anyio.run(_metrics, None if once else port, servers, nats)


async def _metrics(port: int | None, servers: tuple[str, ...], url: str | None) -> None:
    with closing(Monitoring(servers)) as monitoring:
        async with reach(url, name="meshkit metrics") as transport:
            gatherer = Gatherer(transport, monitoring)
            if port is None:
                text = await gatherer.page()
                if console.is_terminal:
                    text = "".join(f"{clean(line)}\n" for line in text.split("\n")[:-1])
                click.echo(text, nl=False)
            else:
                await _show(transport, gatherer, port)


async def _show(transport: Transport, gatherer: Gatherer, port: int) -> None:
    """Show the page until SIGINT or SIGTERM."""

    async def gathered() -> Answer:
        return Answer((await gatherer.page()).encode(), CONTENT_TYPE)

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with listening(port, {**pages(Telemetry(transport)), "/metrics": gathered}):
            click.echo(f"{transport.server_url} is shown at http://127.0.0.1:{port}/metrics")
            await anext(signals)
