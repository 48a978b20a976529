"""What the commands that look around in the mesh share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from click.shell_completion import CompletionItem

from meshkit.connecting import reach
from meshkit.discovery import registry
from meshkit.discovery.protocol import PingResponse
from meshkit.errors import ConfigError, MeshError
from meshkit.transport import Transport

T = TypeVar("T")

_COMPLETION_SECONDS = 0.5


def ask(url: str | None, question: Callable[[Transport], Awaitable[T]], *, timeout: float = 2.0) -> T:
    """Ask something of the mesh.

    Args:
        url: The NATS server.
        question: What to ask.
        timeout: Seconds to go on trying to connect.

    Raises:
        Disconnected: No server could be reached.
    """

    async def connected() -> T:
        async with reach(url, name="meshkit", timeout=timeout) as transport:
            return await question(transport)

    return asyncio.run(connected())


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del param
    there = _instances(ctx)
    return [
        CompletionItem(name) for name in sorted({one.name for one in there}) if name.startswith(incomplete)
    ]


def _complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del param
    there = _instances(ctx, ctx.params.get("name") or "")
    return [CompletionItem(one.id) for one in there if one.id.startswith(incomplete)]


def _instances(ctx: click.Context, name: str = "") -> list[PingResponse]:
    logging.disable()  # a warning would land in the line that is being completed
    try:
        return ask(
            ctx.params.get("nats"),
            lambda transport: registry.instances(transport, name),
            timeout=_COMPLETION_SECONDS,
        )
    except (MeshError, ConfigError):
        return []  # no mesh, no names


name_argument = click.argument("name", shell_complete=_complete_name)
optional_name_argument = click.argument("name", required=False, default="", shell_complete=_complete_name)
id_argument = click.argument(
    "instance", metavar="[ID]", required=False, default="", shell_complete=_complete_id
)
