"""What the command's exit codes mean, in one place; `docs/cli.md` has the same table."""

import enum

from meshkit.errors import ConfigError, ConnectionLost, DeclarationError, Disconnected, MeshError


class ExitCode(enum.IntEnum):
    """The exit codes of every command; 69 and 78 are those of sysexits.h."""

    OK = 0
    FAILURE = 1
    """What was asked for failed: a call, a service that does not import, a drain that took too long."""
    USAGE = 2
    """The command line itself is wrong."""
    UNREACHABLE = 69
    """No NATS server answers at the URL."""
    CONFIG = 78
    """A target, a meshkit.toml or a service's declaration is wrong."""
    SIGNAL = 128
    """Added to the number of a signal that ended everything at once: SIGINT 130, SIGTERM 143, SIGHUP 129."""


def exit_code(error: MeshError | ConfigError | DeclarationError) -> ExitCode:
    """The exit code of a command that ends with this error."""
    match error:
        case Disconnected() | ConnectionLost():
            return ExitCode.UNREACHABLE
        case ConfigError() | DeclarationError():
            return ExitCode.CONFIG
        case _:
            return ExitCode.FAILURE
