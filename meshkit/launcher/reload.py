"""`meshkit run --reload`: which files change."""

import importlib.util
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from meshkit.errors import ConfigError


def require() -> None:
    """Check that files can be watched.

    Raises:
        ConfigError: The extra is not installed.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("--reload needs watchfiles: pip install 'meshkit[reload]'")


async def changes(folders: Iterable[str]) -> AsyncGenerator[str]:
    """Wait for changes of the Python and TOML files in folders, and of those below.

    Yields:
        The files of one change, for a person.
    """
    from watchfiles import PythonFilter, awatch  # pyright: ignore[reportUnknownVariableType] # one parameter

    wanted = PythonFilter(extra_extensions=[".toml"])
    # A cancellation waits for the thread that watches, which looks up every `rust_timeout` milliseconds.
    async for changed in awatch(*folders, watch_filter=wanted, rust_timeout=100):
        names = sorted({Path(path).name for _, path in changed})
        yield ", ".join(names)
