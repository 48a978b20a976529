"""`meshkit run`."""

from typing import Any

import anyio
import click

from meshkit.cli.banner import view
from meshkit.cli.exits import ExitCode
from meshkit.cli.output import nats_option
from meshkit.launcher.fleet import LaunchError
from meshkit.launcher.launch import Killed, Options, launch
from meshkit.loop import NAMES


@click.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1, type=click.Path())
@nats_option
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Processes for each service.")
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
@click.pass_context
def run(ctx: click.Context, targets: tuple[str, ...], **options: Any) -> None:
    """Run services until Ctrl-C.

    A TARGET is a Python file, a module, one service of a module (`hotel.rooms:service`), or a folder with a
    meshkit.toml; without one it is the current folder.

    Without a NATS server, in NATS_URL or otherwise, an embedded one runs as long as the services do.
    """
    try:
        anyio.run(launch, Options(targets=targets or (".",), **options), view())
    except LaunchError as error:
        click.echo(f"meshkit: {error}", err=True)
        ctx.exit(ExitCode.FAILURE)
    except Killed as killed:
        ctx.exit(ExitCode.SIGNAL + killed.number)
