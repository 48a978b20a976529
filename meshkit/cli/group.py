"""The `meshkit` command: which commands there are, and how an error ends them."""

import importlib
import signal

import click

from meshkit.cli.exits import ExitCode, exit_code
from meshkit.cli.output import clean
from meshkit.errors import ConfigError, DeclarationError, MeshError

# A command's module is imported when the command is used: `meshkit run` does not pay for `meshkit ls`.
COMMANDS = {
    "run": "meshkit.cli.run:run",
    "ls": "meshkit.cli.ls:ls",
    "info": "meshkit.cli.info:info",
    "stats": "meshkit.cli.stats:stats",
    "ping": "meshkit.cli.ping:ping",
    "call": "meshkit.cli.call:call",
    "top": "meshkit.cli.top:top",
    "tap": "meshkit.cli.tap:tap",
    "graph": "meshkit.cli.graph:graph",
    "trace": "meshkit.cli.trace:trace",
    "collect": "meshkit.cli.collect:collect",
    "streams": "meshkit.cli.streams:streams",
    "dead": "meshkit.cli.dead:dead",
    "jobs": "meshkit.cli.jobs:jobs",
    "metrics": "meshkit.cli.metrics:metrics",
    "dashboards": "meshkit.cli.dashboards:dashboards",
    "policy": "meshkit.cli.policy:policy",
    "server": "meshkit.cli.server:server",
    "completion": "meshkit.cli.completion:completion",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(importlib.import_module(module), name)

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except (MeshError, ConfigError, DeclarationError) as error:
            # Where nothing was called, the error's code and class add nothing to its sentence.
            text = error.message if isinstance(error, MeshError) and error.target is None else error
            click.echo(f"meshkit: {clean(text)}", err=True)
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            # click would call it aborted, and exit with 1.
            ctx.exit(ExitCode.SIGNAL + signal.SIGINT)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MESHKIT"},
    epilog="Every option is also an environment variable: MESHKIT_RUN_WORKERS=2 is `run --workers 2`.",
)
@click.version_option(package_name="meshkit", message="meshkit %(version)s")
def group() -> None:
    """Run services on NATS, and see and call those that run."""
