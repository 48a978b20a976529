"""`meshkit ping`: which instances answer, how fast, and how they are."""

import click

from meshkit.cli.discover import ask, optional_name_argument
from meshkit.cli.exits import ExitCode
from meshkit.cli.output import json_option, nats_option, print_json, table
from meshkit.discovery import registry

_HEALTH = {True: "ok", False: "fails", None: ""}


@click.command()
@optional_name_argument
@nats_option
@json_option
@click.pass_context
def ping(ctx: click.Context, name: str, *, nats: str | None, as_json: bool) -> None:
    """Ping the instances of the service NAME, or of all services.

    Fails unless every instance answers and none says that it is unhealthy.
    """
    found = ask(nats, lambda transport: registry.ping(transport, name))
    if as_json:
        print_json(found)
    elif found:
        table(
            ("service", "id", "version", "rtt ms", "health"),
            [
                (
                    one.service,
                    one.id,
                    one.version,
                    None if one.rtt_ms is None else round(one.rtt_ms, 2),
                    _HEALTH[one.healthy],
                )
                for one in found
            ],
        )
    else:
        click.echo("No service answers.", err=True)
    if not found or any(one.rtt_ms is None or one.healthy is False for one in found):
        ctx.exit(ExitCode.FAILURE)
