import asyncio
import subprocess
import sys

import pytest

from meshkit import loop
from meshkit.errors import ConfigError


@pytest.fixture
def no_uvloop(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)


@pytest.mark.parametrize(("name", "runs"), [("auto", "uvloop"), ("uvloop", "uvloop"), ("asyncio", "asyncio")])
def test_function_runs_on_the_loop_of_that_name(name, runs):
    seen = []

    async def look(*args):
        seen.extend((type(asyncio.get_running_loop()).__module__.partition(".")[0], *args))

    loop.run(look, 1, 2, loop=name)
    assert seen == [runs, 1, 2]
    assert loop.chosen(name) == runs


def test_error_of_the_function_is_raised():
    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop.run(fail)


def test_without_uvloop_auto_is_asyncio(no_uvloop):
    assert loop.chosen("auto") == "asyncio"


def test_without_uvloop_who_asks_for_it_is_told_what_to_install(no_uvloop):
    with pytest.raises(ConfigError) as error:
        loop.chosen("uvloop")
    assert str(error.value).startswith(f"uvloop cannot be imported in {sys.prefix} (")
    assert str(error.value).endswith("): pip install 'meshkit[uvloop]'")


def test_library_does_not_import_uvloop():
    code = "import meshkit, meshkit.launcher.launch, sys; print('uvloop' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
