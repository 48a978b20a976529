"""`meshkit collect`: what NATS servers tell of messages becomes spans."""

import importlib
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import click

from meshkit.cli.output import clean, nats_option
from meshkit.cli.trace import print_hop
from meshkit.connecting import reach
from meshkit.errors import ConfigError, MeshError
from meshkit.subject import problem
from meshkit.telemetry.environment import wants
from meshkit.telemetry.paths import path
from meshkit.telemetry.paths.hops import told_by
from meshkit.telemetry.traces.exporting import span_exporter
from meshkit.transport import Transport

if TYPE_CHECKING:  # OpenTelemetry takes 0.1 s to import
    from opentelemetry.sdk.trace.export import SpanExporter

    from meshkit.telemetry.paths.collector import Latency, Told


@click.command()
@click.argument("subjects", metavar="SUBJECT...", nargs=-1, required=True)
@click.option(
    "--console", is_flag=True, help="Print what is told; spans are then exported only if OTEL_* says so."
)
@nats_option
def collect(subjects: Sequence[str], *, console: bool, nats: str | None) -> None:
    """Make spans of what NATS servers tell of messages, until Ctrl-C.

    SUBJECT is where they tell it: the account's `msg_trace` destination, on which the path of every message
    with a sampled trace is published, and the subjects that exports name for the latency of their services.
    The spans belong to the messages' traces and go by OTLP to whom the OTEL_* variables name, else to
    http://localhost:4318. Several of these commands share the work.
    """
    for subject in subjects:
        if wrong := problem(subject, wildcards=True):
            raise click.UsageError(f"subject {subject!r} {wrong}")
    anyio.run(_collect, subjects, nats, _exporter(console=console), _show if console else None)


async def _collect(
    subjects: Sequence[str],
    nats: str | None,
    exporter: "SpanExporter | None",
    show: "Callable[[Told], object] | None",
) -> None:
    from meshkit.telemetry.paths.collector import collecting

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            reach(nats, name="meshkit") as transport,
            collecting(transport, subjects, exporter, show=show) as collected,
        ):
            for subject in subjects:
                await _check(transport, subject)
            click.echo(f"collecting from {', '.join(map(clean, subjects))}", err=True)
            await anext(signals)
    click.echo(
        f"events: {collected.events}, of no trace: {collected.no_trace}, "
        f"not understood: {collected.unreadable}; spans: {collected.spans}",
        err=True,
    )


async def _check(transport: Transport, subject: str) -> None:
    """Warn if this connection's user, and so perhaps others, may not publish where the servers tell."""
    if "*" in subject or ">" in subject:
        return  # nobody can publish to that
    try:
        found = await path.trace(transport, subject)
    except MeshError as error:
        click.echo(
            f"meshkit: whether one may publish to {clean(subject)} is not known: {clean(error.message)}",
            err=True,
        )
        return
    if found.origin.error:
        click.echo(
            f"meshkit: this connection's user may not publish to {clean(subject)}. If that is the account's "
            "msg_trace destination, the server drops every sampled message of such a user: permit it to all.",
            err=True,
        )


def _exporter(*, console: bool) -> "SpanExporter | None":
    try:
        importlib.import_module("opentelemetry.sdk.trace")  # spans are made with it
    except ModuleNotFoundError:
        raise ConfigError("spans need OpenTelemetry: pip install 'meshkit[otlp]'") from None
    which = wants("traces") or (None if console else "otlp")
    return span_exporter(which) if which else None


def _show(told: "Told") -> None:
    from meshkit.telemetry.paths.collector import Latency, trace_of

    ids = trace_of(told)
    of = f"trace {ids[0]:032x} span {ids[1]:016x}" if ids else "no trace"
    if isinstance(told, Latency):
        click.echo(f"{of}: latency {_in_words(told)}")
        return
    hop = told_by(told)
    click.echo(f"{of}: message to {clean(hop.subject)}")
    print_hop(hop)


def _in_words(told: "Latency") -> str:
    parts = {"requestor": told.requestor.rtt, "service": told.service, "system": told.system}
    if told.responder is not None:
        parts["responder"] = told.responder.rtt
    took = ", ".join(f"{name} {nanoseconds / 1e6:.3f}" for name, nanoseconds in parts.items())
    who = clean(told.responder.name or told.responder.acc) if told.responder else "nobody"
    why = f" {clean(told.description)}" if told.description else ""
    return f"{told.total / 1e6:.3f} ms ({took}), status {told.status}{why}, answered by {who}"
