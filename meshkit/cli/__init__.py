"""The command line: one command a module, put together in `group.py`."""

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
