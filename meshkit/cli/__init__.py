"""The command line: one command a module, put together in `group.py`."""

import errno
import signal
import sys


def main() -> None:
    """Run the `meshkit` command."""
    try:
        from meshkit.cli.group import group

        group.main(prog_name="meshkit")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "rich"}:
            raise
        sys.exit(f"meshkit: the command line needs {missing}: pip install 'meshkit[cli]'")
    except KeyboardInterrupt:  # during the imports above
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        from meshkit.cli.output import discard

        discard()
        sys.exit("meshkit: standard output is full")
