"""`meshkit dead`: messages that could not be handled, to look at, to publish again, or to drop."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.text import Text

from meshkit.cli.discover import ask
from meshkit.cli.figures import lasting
from meshkit.cli.message import NOT_JSON
from meshkit.cli.output import clean, console, escaped, json_option, nats_option, print_json, table
from meshkit.connecting import connect
from meshkit.declaration import check_name
from meshkit.durable.dead import DeadLetter, dead_letter, dead_letters, how_many, newest
from meshkit.durable.dead import drop as drop_letter
from meshkit.durable.dead import replay as replay_letter
from meshkit.durable.jetstream import JetStream
from meshkit.errors import DeclarationError, MeshError
from meshkit.transport import Transport

# Of a payload on a terminal, in characters.
_MOST_PAYLOAD = 4000
# Of a number: more have none that the server gives.
_MOST_DIGITS = 18
_ANY = "*"


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """A stream's or a consumer's name, which becomes a part of a subject."""
    del ctx
    if value is None:
        return _ANY
    try:
        return check_name(param.name or "", value)
    except DeclarationError as error:
        raise click.BadParameter(str(error)) from None


def _number(text: str) -> int:
    """A dead letter's number, or how many."""
    if text.isdecimal() and len(text) <= _MOST_DIGITS and (number := int(text)):
        return number
    raise click.BadParameter("a number from 1 is wanted.")


_stream_option = click.option(
    "--stream", metavar="NAME", callback=_name, help="Those of this stream's messages alone."
)
_consumer_option = click.option("--consumer", metavar="NAME", callback=_name, help="Those of this consumer.")


@click.group()
def dead() -> None:
    """See, publish again or drop messages that could not be handled.

    A consumer's message becomes a dead letter when its handler says that it never will be handled, or when
    it was delivered `max_deliver` times in vain. It is kept until somebody replays or drops it.
    """


@dead.command()
@_stream_option
@_consumer_option
@click.option(
    "--limit", metavar="N", type=_number, default="20", show_default=True, help="The newest N alone."
)
@nats_option
@json_option
def ls(stream: str, consumer: str, *, limit: int, nats: str | None, as_json: bool) -> None:
    """List dead letters, the newest last."""

    async def look(transport: Transport) -> tuple[list[DeadLetter], int]:
        return await newest(JetStream(transport), stream, consumer, limit)

    letters, left_out = ask(nats, look)
    if as_json:
        print_json([_told(letter) for letter in letters])
    elif not letters:
        click.echo(_none(stream, consumer), err=True)
    elif console.is_terminal:
        if left_out:
            console.print(Text(f"… {left_out:,} older ones; --limit shows more", "dim"))
        _list(letters)
    else:
        table(_HEADINGS, [_row(letter) for letter in letters])
    if left_out and (as_json or not console.is_terminal):
        click.echo(f"meshkit: {left_out:,} older ones are left out; --limit shows more", err=True)


def _none(stream: str, consumer: str) -> str:
    """What is said where there is no dead letter, of these if it is said which."""
    of_stream = "" if stream == _ANY else f" of stream {stream}"
    of_consumer = "" if consumer == _ANY else f" of consumer {consumer}"
    return f"There is no dead letter{of_consumer}{of_stream}."


_HEADINGS = ("number", "time", "stream", "consumer", "attempts", "subject", "error")


def _row(letter: DeadLetter) -> tuple[object, ...]:
    time = letter.time.isoformat(timespec="milliseconds")
    where = (letter.number, time, letter.stream, letter.consumer, letter.attempts)
    return (*where, letter.subject, letter.error)


def _list(letters: Sequence[DeadLetter]) -> None:
    """Two lines for each: what it is, and why."""
    width = max(len(str(letter.number)) for letter in letters)
    for letter in letters:
        text = Text(f"{letter.number:>{width}}  ", "bold")
        text.append(clean(letter.consumer), "not bold")
        text.append(f"  {clean(letter.subject)}  {_tries(letter)}, {_age(letter)} ago", "not bold dim")
        console.print(text, no_wrap=True, overflow="ellipsis")
        error = Text(f"{'':{width}}  {clean(letter.error)}", "red")
        console.print(error, no_wrap=True, overflow="ellipsis")


def _tries(letter: DeadLetter) -> str:
    return f"{letter.attempts} attempt{'' if letter.attempts == 1 else 's'}"


def _age(letter: DeadLetter) -> str:
    return lasting(max(0.0, (datetime.now(UTC) - letter.time).total_seconds()))


def _told(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON, of its payload only the size."""
    told = msgspec.structs.asdict(letter)
    return told | {"bytes": len(told.pop("payload"))}


@dead.command()
@click.argument("number", type=_number)
@click.option("--raw", is_flag=True, help="Print the payload's bytes alone, as they are.")
@nats_option
@json_option
def show(number: int, *, raw: bool, nats: str | None, as_json: bool) -> None:
    """Show the dead letter NUMBER, its error and its payload.

    With --json the payload is in base64, and beside it as text if it is one.
    """
    letter = ask(nats, lambda transport: dead_letter(JetStream(transport), number))
    if raw:
        click.echo(letter.payload, nl=False)
    elif as_json:
        print_json(msgspec.structs.asdict(letter) | {"text": _text(letter.payload)})
    else:
        table(("dead letter", str(letter.number)), _facts(letter))
        if letter.payload:
            click.echo()
            click.echo(_payload(letter.payload))


def _facts(letter: DeadLetter) -> list[tuple[object, ...]]:
    facts: list[tuple[object, ...]] = [
        ("error", letter.error),
        ("attempts", letter.attempts),
        ("instance", letter.instance),
        ("time", letter.time.isoformat(sep=" ", timespec="seconds")),
        ("consumer", letter.consumer),
        ("stream", f"{letter.stream}, number {letter.sequence}"),
        ("subject", letter.subject),
        ("id", letter.id),
        ("payload", f"{len(letter.payload):,} bytes"),
    ]
    return facts + [(f"header {name}", value) for name, value in letter.headers.items()]


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _payload(payload: bytes) -> str:
    """A payload as one can read it: JSON indented on a terminal, else text, else only what it begins with."""
    try:
        indent = 2 if console.is_terminal else -1
        msgspec.json.decode(payload)
        text = msgspec.json.format(payload, indent=indent).decode()
    except NOT_JSON:
        text = payload.decode(errors="replace")
    text = escaped(text)
    if console.is_terminal and len(text) > _MOST_PAYLOAD:
        return f"{text[:_MOST_PAYLOAD]}… (--raw prints all of it)"
    return text


def _choice(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of what is done to some dead letters or to all."""
    for add in (
        nats_option,
        click.option("--yes", is_flag=True, help="With --all: do not ask."),
        _consumer_option,
        _stream_option,
        click.option("--all", "every", is_flag=True, help="All, or all of --stream and --consumer."),
        click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=_number),
    ):
        command = add(command)
    return command


@dead.command()
@_choice
def replay(nats: str | None, **choice: Any) -> None:
    """Publish dead letters again, and take them out.

    Only the consumer that could not handle a message gets it again. What it cannot handle this time either
    becomes a dead letter again, with a new number.
    """
    chosen = _chosen(nats, "Replay", **choice)

    async def run() -> int:
        async with connect(nats, name="meshkit") as mesh:
            js, publisher = JetStream(mesh.transport), mesh.publisher()
            return await _each(chosen(js), lambda letter: replay_letter(js, publisher, letter))

    _tell(asyncio.run(run()), "replayed", **choice)


@dead.command()
@_choice
def drop(nats: str | None, **choice: Any) -> None:
    """Take dead letters out for good."""
    chosen = _chosen(nats, "Drop", **choice)

    async def run(transport: Transport) -> int:
        js = JetStream(transport)
        return await _each(chosen(js), lambda letter: drop_letter(js, letter))

    _tell(ask(nats, run), "dropped", **choice)


def _tell(count: int, what: str, *, stream: str, consumer: str, **_: object) -> None:
    """How many it was done to."""
    if count:
        click.echo(f"{_many(count)} {what}")
    else:
        click.echo(_none(stream, consumer), err=True)


def _many(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


def _chosen(
    nats: str | None,
    verb: str,
    *,
    numbers: Sequence[int],
    every: bool,
    stream: str,
    consumer: str,
    yes: bool,
) -> Callable[[JetStream], AsyncIterator[DeadLetter]]:
    """Which dead letters are meant; asks whether it is all of them.

    Raises:
        click.UsageError: That is not clear.
        click.Abort: It is not.
        KeyboardInterrupt: Instead of an answer.
    """
    if bool(numbers) == every:
        raise click.UsageError("give the NUMBER of each dead letter, or --all")
    if numbers and (stream, consumer) != (_ANY, _ANY):
        raise click.UsageError("--stream and --consumer go with --all; a NUMBER says it all")
    if not every:
        return lambda js: _numbered(js, numbers)
    # Without standard input, as in `<&-`, there is no object for it.
    has_keys = sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]
    if not yes and not (has_keys and console.is_terminal):
        raise click.UsageError("nobody is here to be asked about --all; say --yes")
    count, last = ask(nats, lambda transport: how_many(JetStream(transport), stream, consumer))
    if count and not yes and not _agreed(f"{verb} {_many(count)}?"):
        raise click.Abort
    return lambda js: dead_letters(js, stream, consumer, last=last)


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question)
    except click.Abort:  # what click makes of Ctrl-C, and of Ctrl-D
        click.echo(err=True)
        raise KeyboardInterrupt from None


async def _numbered(js: JetStream, numbers: Sequence[int]) -> AsyncIterator[DeadLetter]:
    # Nothing is done where one of them is none.
    for letter in [await dead_letter(js, number) for number in dict.fromkeys(numbers)]:
        yield letter


async def _each(letters: AsyncIterator[DeadLetter], act: Callable[[DeadLetter], Awaitable[None]]) -> int:
    """Do something to each; gives how many there were."""
    count = 0
    async for letter in letters:
        try:
            await act(letter)
        except MeshError as error:
            before = f", {count:,} before it {'does' if count == 1 else 'do'} not" if count else ""
            error.message = f"dead letter {letter.number} stays one{before}: {error.message}"
            error.target = None
            raise
        count += 1
    return count
