"""`meshkit stats`: what the endpoints of a service did."""

from collections.abc import Iterable

import click

from meshkit.cli.discover import ask, id_argument, name_argument
from meshkit.cli.output import console, json_option, nats_option, print_json, table
from meshkit.discovery import registry
from meshkit.discovery.registry import DiscoveredEndpoint

_COLUMNS = ("endpoint", "requests", "errors", "avg ms", "total ms", "last error")


@click.command()
@name_argument
@id_argument
@click.option("--instances", is_flag=True, help="Show each instance, not the sum.")
@nats_option
@json_option
def stats(name: str, instance: str, *, instances: bool, nats: str | None, as_json: bool) -> None:
    """Show the statistics of the service NAME, or of its instance ID.

    Times are those of the handlers, waiting for a free one included.
    """
    found = ask(nats, lambda transport: registry.service(transport, name, instance))
    if as_json:
        print_json(found.instances if instances else found.endpoints)
    elif instances and console.is_terminal:
        # An id is too wide to stand beside the numbers.
        for one in found.instances:
            console.print(f"\ninstance {one.id}")
            table(_COLUMNS, list(_rows(one.endpoints)))
    elif instances:
        table(
            ("instance", *_COLUMNS),
            [(one.id, *row) for one in found.instances for row in _rows(one.endpoints)],
        )
    else:
        table(_COLUMNS, list(_rows(found.endpoints)))


def _rows(endpoints: Iterable[DiscoveredEndpoint]) -> Iterable[tuple[object, ...]]:
    for endpoint in endpoints:
        yield (
            endpoint.name,
            endpoint.num_requests,
            endpoint.num_errors,
            _milliseconds(endpoint.average_processing_time),
            _milliseconds(endpoint.processing_time),
            endpoint.last_error,
        )


def _milliseconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
