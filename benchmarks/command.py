"""How the suite's commands end: with one sentence if something is wrong, and with nothing left behind."""

import signal
import sys
from collections.abc import Callable

from meshkit import ConfigError


def run(main: Callable[[], None]) -> None:
    """Run a command to its end, or to Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # Envoy would outlive both
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ConfigError, RuntimeError) as error:  # no nats-server; a process that said what went wrong there
        sys.exit(str(error))
