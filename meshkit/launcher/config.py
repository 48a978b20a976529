"""meshkit.toml: which services a folder has, and how each is run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec

from meshkit import policies
from meshkit.errors import ConfigError
from meshkit.loop import NAMES, LoopName
from meshkit.policies import NO_POLICIES, Policies
from meshkit.policy import UNBOUND_SERVICE, ServePolicy
from meshkit.policy import read as read_policy

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
        env: For the environment of the service's processes, where it does not say otherwise.
    """

    target: str = ""
    workers: Positive = 1
    loop: LoopName = "auto"
    env: dict[Variable, Value] = {}


class ServiceConfig(msgspec.Struct, frozen=True):
    """What a meshkit.toml says of a service, all in one table.

    Attributes:
        table: How it is run.
        serve: What it does to protect itself, where that differs from what its code says.
    """

    table: ServiceTable
    serve: ServePolicy


class Config(msgspec.Struct, frozen=True):
    """A meshkit.toml.

    Attributes:
        services: What it says of each, by name.
        nats: The server's URL.
        policies: For calls and endpoints, by subject.
    """

    services: dict[str, ServiceConfig]
    nats: str | None = None
    policies: Policies = NO_POLICIES


class _File(msgspec.Struct):
    """The file before its tables are looked at, one by one, so that an error can name the table."""

    services: dict[str, Any] = {}
    nats: str | None = None


def policies_here() -> Policies:
    """The policies of the current folder's meshkit.toml, if it has one.

    Raises:
        ConfigError: It cannot be read, or something in it is wrong.
    """
    file = Path(FILE)
    return policies.load(file) if file.is_file() else NO_POLICIES


def read(folder: Path) -> Config:
    """Read a folder's meshkit.toml.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has a field that is unknown or of the wrong type.
    """
    file = folder / FILE
    raw = policies.toml(file)
    content = _convert(raw, _File, str(file), _File.__struct_fields__)
    if not content.services:
        raise ConfigError(f"{file}: no services; write a [services.<name>] table for each")
    services = {
        name: _service(table, f"{file}, [services.{name}]") for name, table in content.services.items()
    }
    return Config(services, content.nats, policies.policies(raw, str(file)))


def _service(raw: Any, where: str) -> ServiceConfig:
    serve = ServePolicy.__struct_fields__
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: write a table, not {raw!r}")
    fields = cast("dict[str, Any]", raw)
    own = {name: value for name, value in fields.items() if name not in serve}
    said = {name: value for name, value in fields.items() if name in serve}
    table = _convert(own, ServiceTable, where, (*ServiceTable.__struct_fields__, *serve))
    policy = read_policy(ServePolicy, said, where)
    if policy.concurrency is None:
        raise ConfigError(f"{where}, {UNBOUND_SERVICE}")
    return ServiceConfig(table, policy)


def _convert(raw: Any, kind: type[_Table], where: str, fields: Iterable[str]) -> _Table:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        field = f", {path.rstrip('`')}" if path else ""
        problem = problem.replace("Object contains unknown", "unknown").replace("`object`", "a table")
        if problem.startswith("unknown"):
            problem += f"; the fields here are {', '.join(fields)}"
        if problem.startswith("Invalid enum value"):
            problem += f"; write {' or '.join(NAMES)}"
        raise ConfigError(f"{where}{field}: {problem}") from None
