"""`meshkit run`."""

from typing import Any, get_args

import anyio
import click

from meshkit.cli.banner import json_line, view
from meshkit.cli.exits import ExitCode, exit_code
from meshkit.cli.output import monitor_port_option, nats_option
from meshkit.cli.quantity import share
from meshkit.errors import ConfigError, DeclarationError, MeshError
from meshkit.launcher.fleet import EVERY, LaunchError
from meshkit.launcher.launch import Killed, Options, launch
from meshkit.loop import NAMES
from meshkit.telemetry.logs import LogFormat, configure


def _workers(text: str) -> tuple[str, int]:
    """A service and how many processes it gets: `mapper=10`; `10` is for every service."""
    service, _, many = text.rpartition("=")
    if not many.isdecimal() or int(many) < 1 or text.startswith("="):
        raise click.BadParameter("a number from 1 on is wanted, or one for a service, such as mapper=10.")
    return service or EVERY, int(many)


@click.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1, type=click.Path())
@nats_option
@click.option(
    "--workers",
    metavar="[SERVICE=]N",
    type=_workers,
    multiple=True,
    help="Processes for each service, or for this one; may be repeated.",
)
@click.option(
    "--loop",
    type=click.Choice(NAMES),
    help="The event loop that they run on; auto, the default, is uvloop where it is installed.",
)
@click.option("--reload", is_flag=True, help="Start anew when a source file changes.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What the services' processes log.",
)
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default="text",
    show_default=True,
    help="What it looks like; json: a JSON object a line, also what is said here.",
)
@click.option(
    "--access-log",
    metavar="SHARE",
    type=share,
    help="Log this share of the calls, such as 10%, and all that fail with a code from 500 on.",
)
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Have the first worker answer HTTP here, the next one on the next port: /metrics, /livez, /readyz.",
)
@monitor_port_option
@click.option("--trace", is_flag=True, help="Show every call as a tree of what was done for it.")
@click.pass_context
def run(
    ctx: click.Context, targets: tuple[str, ...], workers: tuple[tuple[str, int], ...], **options: Any
) -> None:
    """Run services until Ctrl-C.

    A TARGET is a Python file, a module, one service of a module (`hotel.rooms:service`), or a folder with a
    meshkit.toml; without one it is the current folder.

    Without a NATS server, in NATS_URL or otherwise, an embedded one runs as long as the services do.
    """
    form: LogFormat = options["log_format"]
    if form == "json":
        configure(form, "warning")
    try:
        anyio.run(launch, Options(targets=targets or (".",), workers=dict(workers), **options), view(form))
    except (LaunchError, MeshError, ConfigError, DeclarationError) as error:
        if form == "text" and not isinstance(error, LaunchError):
            raise
        text = str(getattr(error, "message", error))
        click.echo(json_line("ERROR", text) if form == "json" else f"meshkit: {text}", err=True)
        ctx.exit(ExitCode.FAILURE if isinstance(error, LaunchError) else exit_code(error))
    except Killed as killed:
        ctx.exit(ExitCode.SIGNAL + killed.number)
