"""What a TARGET of `meshkit run` means: which module to import, from where, and which services to take."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from meshkit.errors import ConfigError
from meshkit.launcher import config
from meshkit.policies import NO_POLICIES, Policies
from meshkit.policy import ServePolicy


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A module that declares services.

    Attributes:
        target: What was asked for, for messages.
        folder: Goes in front of the import path.
        module: Its dotted name.
        attribute: The dotted path of one Service in it; empty for every Service of the module.
        service: The name of the one service wanted; empty for whatever is there.
        table: How it is run.
        serve: What it does to protect itself, where that differs from what its code says.
        policies: For calls and endpoints, by subject.
    """

    target: str
    folder: str
    module: str
    attribute: str = ""
    service: str = ""
    table: config.ServiceTable = config.ServiceTable()
    serve: ServePolicy = ServePolicy()
    policies: Policies = NO_POLICIES


class Targets(msgspec.Struct):
    """What the targets of a command line mean together.

    Attributes:
        sources: The modules.
        nats: The server's URL, where a meshkit.toml names one.
        folders: Where the configuration lies.
    """

    sources: list[Source]
    nats: str | None
    folders: list[str]


def read(targets: Sequence[str]) -> Targets:
    """Find what targets mean without importing any of it.

    Args:
        targets: Each `module:service`, a module, a Python file, or a folder with a meshkit.toml.

    Raises:
        ConfigError: A target means nothing or cannot be read, a meshkit.toml is wrong, or two of them name
            different servers.
    """
    found = Targets([], None, [])
    for target in targets:
        try:
            _add(target, found)
        except OSError as error:
            what = error.filename or "the current folder"
            raise ConfigError(f"{what}: cannot be read: {error.strerror}") from None
    return found


def _add(target: str, found: Targets) -> None:
    folder = Path(target)
    absolute = folder.absolute()
    if (folder / config.FILE).is_file():
        content = config.read(folder)
        if content.nats and found.nats not in {None, content.nats}:
            raise ConfigError(f"{folder}: names {content.nats}, another target {found.nats}; use --nats")
        found.nats = content.nats or found.nats
        found.folders.append(target)
        for name, service in content.services.items():
            where = f"{folder / config.FILE}, [services.{name}]"
            source = _source(service.table.target or f"{name}.py", absolute, where)
            found.sources.append(
                msgspec.structs.replace(
                    source,
                    service=name,
                    table=service.table,
                    serve=service.serve,
                    policies=content.policies,
                )
            )
    elif folder.is_dir() and not (folder / "__init__.py").is_file():
        raise ConfigError(f"{target}: the folder has no {config.FILE}; write one, or name a Python file")
    else:
        found.sources.append(_source(target, Path.cwd(), target))


def _source(target: str, folder: Path, where: str) -> Source:
    module, _, attribute = target.partition(":")
    if module.endswith(".py"):
        file = folder / module
        if not file.is_file():
            raise ConfigError(f"{where}: there is no file {file}")
        folder, module = _module_of(file)
        if module in sys.stdlib_module_names:
            raise ConfigError(
                f"{where}: {file.name} has the name of a module of Python itself; rename the file"
            )
    elif not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{where}: no such file, folder or module")
    return Source(target=where, folder=str(folder), module=module, attribute=attribute)


def _module_of(file: Path) -> tuple[Path, str]:
    """The folder and the name to import a file by: a file in a package is a module of that package."""
    folder, parts = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)
