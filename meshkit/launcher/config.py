"""meshkit.toml: which services a folder has, and how each is run."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from meshkit.errors import ConfigError
from meshkit.loop import NAMES, LoopName

FILE = "meshkit.toml"

# What an environment can hold.
Variable = Annotated[str, msgspec.Meta(pattern=r"^[^=\x00]+$")]
Value = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
_Table = TypeVar("_Table", bound=msgspec.Struct)


class ServiceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `[services.<name>]` table.

    Attributes:
        target: `module:service` or a Python file, relative to the folder; `<name>.py` by default.
        workers: How many processes.
        loop: The event loop that they run on.
        concurrency: In place of the service's own.
        backlog: In place of the service's own.
        timeout: In place of the service's own, in seconds.
        env: For the environment of the service's processes, where it does not say otherwise.
    """

    target: str = ""
    workers: Positive = 1
    loop: LoopName = "auto"
    concurrency: Positive | None = None
    backlog: Annotated[int, msgspec.Meta(ge=0)] | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    env: dict[Variable, Value] = {}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A meshkit.toml.

    Attributes:
        services: The tables by the services' names.
        nats: The server's URL.
    """

    services: dict[str, ServiceTable]
    nats: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file before its tables are looked at, one by one, so that an error can name the table."""

    services: dict[str, Any] = {}
    nats: str | None = None


def read(folder: Path) -> Config:
    """Read a folder's meshkit.toml.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has a field that is unknown or of the wrong type.
    """
    file = folder / FILE
    try:
        raw = msgspec.toml.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    content = _convert(raw, _File, str(file))
    if not content.services:
        raise ConfigError(f"{file}: no services; write a [services.<name>] table for each")
    tables = {
        name: _convert(table, ServiceTable, f"{file}, [services.{name}]")
        for name, table in content.services.items()
    }
    return Config(tables, content.nats)


def _convert(raw: Any, kind: type[_Table], where: str) -> _Table:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        field = f", {path.rstrip('`')}" if path else ""
        problem = problem.replace("Object contains unknown", "unknown").replace("`object`", "a table")
        if problem.startswith("unknown"):
            problem += f"; the fields here are {', '.join(kind.__struct_fields__)}"
        if problem.startswith("Invalid enum value"):
            problem += f"; write {' or '.join(NAMES)}"
        raise ConfigError(f"{where}{field}: {problem}") from None
