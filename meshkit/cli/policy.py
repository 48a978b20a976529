"""`meshkit policy`: what holds for the calls to a subject, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from meshkit.cli.discover import ask
from meshkit.cli.output import clean, json_option, nats_option, print_json, table
from meshkit.discovery.directory import Directory
from meshkit.errors import MeshError
from meshkit.launcher.config import FILE, policies_here
from meshkit.policies import Source, load, put_together
from meshkit.policy import CALL_DEFAULTS, SHARED, CallPolicy, ServePolicy, in_words
from meshkit.subject import check
from meshkit.transport import Transport

_DEFAULT = "default"


class _Field(msgspec.Struct):
    """A field of a policy, as JSON has it."""

    value: Any
    source: str = msgspec.field(name="from")


@click.group()
def policy() -> None:
    """Show what holds for calls: `meshkit policy show SUBJECT`."""


@policy.command()
@click.argument("subject")
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(),
    help=f"Whose policies; by default those of ./{FILE}, if there is one.",
)
@nats_option
@json_option
def show(subject: str, *, file: str | None, nats: str | None, as_json: bool) -> None:
    """Show what holds for calls to SUBJECT, and where each of it stands.

    That is what the service announces, and what a meshkit.toml says. Below it stands what the meshkit.toml
    says for the endpoint that serves SUBJECT, if it says something.
    """
    try:
        check(subject)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    policies = policies_here() if file is None else load(Path(file))
    target, announced = _announced(nats, subject)
    said = [Source(CALL_DEFAULTS, _DEFAULT), *announced]
    call = _fields([*said, *policies.for_call(subject)], [*said, *policies.for_call(target)])
    serve = _fields(policies.for_endpoint(target))
    if as_json:
        print_json({"subject": subject, "target": target, "call": call, "serve": serve})
        return
    table(("call", "value", "from"), _rows(CallPolicy, call))
    if serve:
        click.echo()
        table(("serve", "value", "from"), _rows(ServePolicy, serve))


def _announced(nats: str | None, subject: str) -> tuple[str, list[Source]]:
    """The target that a subject belongs to, and what its service announces, if it can be asked."""

    async def learn(transport: Transport) -> tuple[str, list[Source]]:
        directory = Directory(transport)
        await directory.learn()
        try:
            return directory.find(subject)
        finally:
            await directory.close()

    try:
        return ask(nats, learn)
    except MeshError as error:
        click.echo(f"meshkit: what services announce is left out: {clean(error.message)}", err=True)
        return subject, []


def _fields(sources: Sequence[Source], of_target: Sequence[Source] = ()) -> dict[str, _Field]:
    """What is said of each field, what is nothing but a default last.

    Args:
        sources: Who says something of the subject.
        of_target: Who says something of all subjects of its target, which share some of it.
    """
    effective, stands = put_together(sources)
    fields = {name: _Field(value, stands[name]) for name, value in vars(effective).items()}
    shared, stands = put_together(of_target)
    fields |= {name: _Field(value, stands[name]) for name, value in vars(shared).items() if name in SHARED}
    return dict(sorted(fields.items(), key=lambda item: item[1].source == _DEFAULT))


def _rows(kind: type[CallPolicy | ServePolicy], fields: dict[str, _Field]) -> list[tuple[str, str, str]]:
    return [(name, in_words(kind, name, field.value), field.source) for name, field in fields.items()]
