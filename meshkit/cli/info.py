"""`meshkit info`: what a service offers, and its instances."""

from collections.abc import Iterable, Mapping

import click

from meshkit.cli.discover import ask, id_argument, name_argument
from meshkit.cli.output import json_option, nats_option, print_json, table
from meshkit.cli.shape import shape
from meshkit.discovery import registry
from meshkit.discovery.protocol import DECLARED_SUBJECT, REPLY_SCHEMA, REQUEST_SCHEMA
from meshkit.discovery.registry import DiscoveredEndpoint, DiscoveredInstance, DiscoveredService

_SCHEMAS = {REQUEST_SCHEMA: "request", REPLY_SCHEMA: "reply"}


@click.command()
@name_argument
@id_argument
@nats_option
@json_option
def info(name: str, instance: str, *, nats: str | None, as_json: bool) -> None:
    """Show what the service NAME offers, and its instances, or its instance ID alone."""
    found = ask(nats, lambda transport: registry.service(transport, name, instance))
    if as_json:
        print_json(found)
    else:
        table(("service", found.name), list(_rows(found)))


def _rows(service: DiscoveredService) -> Iterable[tuple[str, str]]:
    """Name and value of everything, with an empty row above each endpoint and each instance."""
    if service.description:
        yield "description", service.description
    yield "versions", ", ".join(service.versions)
    yield "instances", str(len(service.instances))
    for endpoint in service.endpoints:
        yield "", ""
        yield from _endpoint(endpoint)
    for instance in service.instances:
        yield "", ""
        yield from _instance(instance)


def _endpoint(endpoint: DiscoveredEndpoint) -> Iterable[tuple[str, str]]:
    yield "endpoint", endpoint.name
    # meshkit's endpoints tell the names of the wildcards.
    yield "subject", endpoint.metadata.get(DECLARED_SUBJECT, endpoint.subject)
    yield "queue group", endpoint.queue_group or "none: every instance answers"
    for key, label in _SCHEMAS.items():
        if key in endpoint.metadata:
            yield label, shape(endpoint.metadata[key])
    yield from _metadata(endpoint.metadata)


def _instance(instance: DiscoveredInstance) -> Iterable[tuple[str, str]]:
    yield "instance", instance.id
    yield "version", instance.version
    if instance.started is not None:
        yield "started", instance.started.isoformat(sep=" ", timespec="seconds")
    if instance.healthy is not None:
        yield "health", "ok" if instance.healthy else "fails"
    for check, outcome in instance.checks.items():
        yield f"check {check}", outcome
    yield from _metadata(instance.metadata)


def _metadata(metadata: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for key, value in metadata.items():
        if key not in {DECLARED_SUBJECT, *_SCHEMAS}:
            yield key, value
