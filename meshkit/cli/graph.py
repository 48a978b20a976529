"""`meshkit graph`: who calls whom."""

from collections.abc import Callable, Iterable

import click
import msgspec
from rich.text import Text
from rich.tree import Tree

from meshkit.cli.discover import ask
from meshkit.cli.figures import interval_option, percent, short
from meshkit.cli.output import clean, console, json_option, nats_option, print_json, table
from meshkit.telemetry.live.changes import observe
from meshkit.telemetry.live.graph import CLIENTS, Edge, edges
from meshkit.telemetry.live.rates import grouped, worst

# Services below each other in a tree, at most; each takes that many columns.
_DEEPEST, _INDENT = 30, 4
# Instances that a line names.
_MOST_NAMED = 5


class _Arrow(msgspec.Struct, frozen=True):
    """All that a service calls of another."""

    caller: str
    callee: str
    endpoints: tuple[str, ...]
    rate: float | None
    success: float | None
    circuit: str

    @property
    def label(self) -> str:
        parts = [
            *([f"{short(self.rate)}/s"] if self.rate is not None else []),
            *([percent(self.success)] if self.success is not None else []),
            *([f"breaker {self.circuit}"] if self.circuit != "closed" else []),
        ]
        return " ".join(parts)


@click.command()
@interval_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "dot", "mermaid"]),
    help="dot is for Graphviz: `meshkit graph --format dot | dot -Tsvg`.  [default: tree on a terminal]",
)
@nats_option
@json_option
def graph(*, interval: float, form: str | None, nats: str | None, as_json: bool) -> None:
    """Show which service calls which, how often and how well.

    Services that run meshkit say what they call. What arrives beside that is from (clients), which are no
    services. Events are not in it: who publishes one does not know who listens.
    """
    if as_json and form is not None:
        raise click.UsageError("--json is a form of its own; leave out --format, or --json")
    instances = ask(nats, lambda transport: observe(transport, interval))
    if missing := [f"{one.service}/{one.id}" for one in instances if not one.is_there]:
        some = ", ".join(missing[:_MOST_NAMED]) + (", …" if len(missing) > _MOST_NAMED else "")
        text = f"{len(missing)} of {len(instances)} instances did not answer again: {some}"
        click.echo(f"meshkit: not all is known, {clean(text)}", err=True)
    services = list(dict.fromkeys(one.service for one in instances))
    found = edges(instances)
    if as_json:
        print_json({"services": services, "edges": found})
    elif form is not None:
        _FORMS[form](services, _arrows(found))
    elif not services:
        click.echo("No service answers. `meshkit run` starts those of a folder.", err=True)
    elif console.is_terminal:
        _tree(services, _arrows(found))
    else:
        columns = ("caller", "callee", "endpoint", "rate", "success", "p95 ms", "breaker")
        table(columns, [_row(edge) for edge in found])


def _row(edge: Edge) -> tuple[object, ...]:
    return (
        edge.caller,
        edge.callee,
        edge.endpoint,
        None if edge.rate is None else round(edge.rate, 2),
        None if edge.success is None else round(edge.success, 4),
        None if edge.p95 is None else round(edge.p95 * 1000, 2),
        edge.circuit,
    )


def _arrows(found: Iterable[Edge]) -> list[_Arrow]:
    """The edges of two services in one."""
    arrows: list[_Arrow] = []
    for (caller, callee), group in grouped(found, by=lambda edge: (edge.caller, edge.callee)).items():
        rates = [edge.rate for edge in group if edge.rate is not None]
        judged = [
            (edge.rate, edge.success) for edge in group if edge.rate is not None and edge.success is not None
        ]
        calls = sum(rate for rate, _ in judged)
        success = sum(rate * success for rate, success in judged) / calls if calls else None
        arrows.append(
            _Arrow(
                clean(caller),
                clean(callee),
                tuple(dict.fromkeys(clean(edge.endpoint) for edge in group)),
                sum(rates) if rates else None,
                success,
                next(iter(worst(edge.circuit for edge in group)), "closed"),
            )
        )
    return arrows


# Forms


def _tree(services: Iterable[str], arrows: list[_Arrow]) -> None:
    """Callers above what they call; what stands above already is not told again.

    What is too deep for half of the terminal begins a tree of its own.
    """
    deepest = max(1, min(_DEEPEST, console.width // 2 // _INDENT))
    calls = grouped(arrows, by=lambda arrow: arrow.caller)
    called = {arrow.callee for arrow in arrows if arrow.callee != arrow.caller}
    names = list(dict.fromkeys([CLIENTS, *map(clean, services)]))
    shown: set[str] = set()

    def grow(tree: Tree, name: str, depth: int) -> None:
        shown.add(name)
        if depth == deepest and name in calls:
            tree.add("…")
            return
        for arrow in calls.get(name, []):
            again = arrow.callee in shown and arrow.callee in calls
            branch = tree.add(_label(arrow, again=again))
            if not again:
                grow(branch, arrow.callee, depth + 1)

    # Who is called by nobody first; then circles, in which everybody is called.
    for name in (*(name for name in names if name not in called), *names):
        if name not in shown and (name != CLIENTS or name in calls):
            tree = Tree(Text(name, "bold"))
            grow(tree, name, 0)
            console.print(tree)


def _label(arrow: _Arrow, *, again: bool) -> Text:
    label = Text(arrow.callee, "bold")
    trouble = arrow.circuit != "closed" or (arrow.success is not None and arrow.success < 0.99)
    label.append(f"  {arrow.label}", "not bold red" if trouble else "not bold")
    label.append(f"  {', '.join(arrow.endpoints)}", "not bold dim")
    return label.append("  (see above)", "not bold dim") if again else label


def _dot(services: Iterable[str], arrows: list[_Arrow]) -> None:
    """The language of Graphviz: https://graphviz.org/doc/info/lang.html."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    click.echo("digraph mesh {\n  rankdir=LR\n  node [shape=box style=rounded]")
    for name in map(clean, services):
        click.echo(f"  {quoted(name)}")
    for arrow in arrows:
        click.echo(f"  {quoted(arrow.caller)} -> {quoted(arrow.callee)} [label={quoted(arrow.label)}]")
    click.echo("}")


def _mermaid(services: Iterable[str], arrows: list[_Arrow]) -> None:
    """A flowchart of Mermaid: https://mermaid.js.org/syntax/flowchart.html."""

    def quoted(text: str) -> str:
        for letter, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
            text = text.replace(letter, entity)
        return f'"{text}"'

    names = dict.fromkeys(
        [*map(clean, services), *(end for arrow in arrows for end in (arrow.caller, arrow.callee))]
    )
    ids = {name: f"n{index}" for index, name in enumerate(names)}
    click.echo("flowchart LR")
    for name, node in ids.items():
        click.echo(f"  {node}[{quoted(name)}]")
    for arrow in arrows:
        label = f"|{quoted(arrow.label)}|" if arrow.label else ""
        click.echo(f"  {ids[arrow.caller]} -->{label} {ids[arrow.callee]}")


_FORMS: dict[str, Callable[[Iterable[str], list[_Arrow]], None]] = {
    "tree": _tree,
    "dot": _dot,
    "mermaid": _mermaid,
}
