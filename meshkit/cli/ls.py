"""`meshkit ls`: the services of the mesh."""

import click

from meshkit.cli.discover import ask
from meshkit.cli.output import json_option, nats_option, print_json, table
from meshkit.discovery import registry


@click.command()
@nats_option
@json_option
def ls(*, nats: str | None, as_json: bool) -> None:
    """List the services that answer."""
    found = ask(nats, registry.services)
    if as_json:
        print_json(found)
    elif found:
        columns = ("name", "versions", "instances", "endpoints", "description")
        table(
            columns,
            [
                (
                    service.name,
                    ", ".join(service.versions),
                    len(service.instances),
                    len(service.endpoints),
                    service.description,
                )
                for service in found
            ],
        )
    else:
        click.echo("No service answers. `meshkit run` starts those of a folder.", err=True)
