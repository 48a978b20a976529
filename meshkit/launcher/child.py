"""What the launcher's processes share: the pipes to the launcher, and the import of the user's code."""

import contextlib
import importlib
import logging
import operator
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from types import ModuleType, TracebackType

import msgspec

from meshkit.errors import ConfigError, DeclarationError, MeshError
from meshkit.launcher.messages import GRACE, Event, Failed, Job
from meshkit.launcher.targets import Source
from meshkit.service import Service

log = logging.getLogger("meshkit.run")

_ABOVE_USER_CODE = {"__main__", "anyio", "asyncio", "contextlib", "importlib", "meshkit", "uvloop"}


class Launcher:
    """The launcher, as its process sees it: the job comes on standard input, events go to standard output."""

    def __init__(self) -> None:
        self._orders = os.fdopen(os.dup(0), "rb")
        self._events = os.fdopen(os.dup(1), "wb")
        self._telling = threading.Lock()
        # Neither what user code prints nor the processes that it starts get at the pipes.
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        # It was made for a pipe: a line shows up when it is printed, and as a whole.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        self.job = msgspec.json.decode(self._orders.readline(), type=Job)
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, event: Event) -> None:
        """Send an event to the launcher, from any thread."""
        with self._telling, contextlib.suppress(BrokenPipeError):  # it is gone: nobody is left to be told
            self._events.write(msgspec.json.encode(event) + b"\n")
            self._events.flush()

    def _watch(self) -> None:
        """End this process when the launcher's end of the pipe closes, whatever the event loop is doing.

        SIGTERM ends it at once while it imports, and drains it while it serves.
        """
        self._orders.read()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)


def load(source: Source) -> list[Service]:
    """Import a module and take its services.

    Raises:
        ConfigError: The module, or the service in it, does not exist.
        Exception: Whatever the user's code raises.
    """
    sys.path.insert(0, source.folder)
    try:
        module = importlib.import_module(source.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source.module}.".startswith(f"{error.name}."):
            raise
        where = f"neither in {source.folder} nor installed in {sys.prefix}"
        raise ConfigError(f"{source.target}: there is no module {error.name!r}, {where}") from None
    if source.attribute:
        found = _attribute(module, source)
    else:
        found = list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Service)))
    if not found:
        raise ConfigError(f"{source.target}: no service in it; declare one with Service(...)")
    wanted = [service for service in found if source.service in {"", service.name}]
    if not wanted:
        names = ", ".join(service.name for service in found)
        raise ConfigError(f"{source.target}: no service of that name in {module.__file__}, only {names}")
    return wanted


def _attribute(module: ModuleType, source: Source) -> list[Service]:
    try:
        value = operator.attrgetter(source.attribute)(module)
    except AttributeError as error:
        raise ConfigError(f"{source.target}: {error}") from None
    if not isinstance(value, Service):
        raise ConfigError(
            f"{source.target}: {source.attribute} is of type {type(value).__name__}, no Service"
        )
    return [value]


@contextlib.contextmanager
def failures_told(launcher: Launcher) -> Generator[None]:
    """Around user code: what it raises ends this process, and the launcher is told why in a sentence.

    Only a bug is worth more: its traceback goes to standard error.
    """
    try:
        yield
    except ConfigError as error:
        failed = Failed(str(error), mistake=True)
    except DeclarationError as error:
        failed = Failed(f"{launcher.job.source.target}: {error}", mistake=True)
    except MeshError as error:
        failed = Failed(error.message, mistake=False)
    except ModuleNotFoundError as error:
        frames = traceback.extract_tb(_user_frames(error))
        lines = [line for line in frames if "importlib" not in line.filename]
        where = f"{lines[-1].filename}, line {lines[-1].lineno}: " if lines else ""
        failed = Failed(f"{where}there is no module {error.name!r} in {sys.prefix}", mistake=True)
    except (Exception, SystemExit) as error:  # whatever it is, it is shown
        frames = _user_frames(error)
        if launcher.job.log_format == "json":
            log.critical("%s failed", launcher.job.source.target, exc_info=(type(error), error, frames))
        else:
            traceback.print_exception(type(error), error, frames)
        failed = Failed(traceback.format_exception_only(error)[-1].strip(), mistake=False)
    else:
        return
    launcher.tell(failed)
    sys.exit(1)


def _user_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the user's first frame on."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _ABOVE_USER_CODE:
        frames = frames.tb_next
    return frames
