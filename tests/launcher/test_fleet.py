import re
import sys
import textwrap

import pytest

from meshkit.errors import ConfigError
from meshkit.launcher import targets
from meshkit.launcher.fleet import EVERY, LaunchError, muster
from meshkit.launcher.messages import Description, Endpoint


@pytest.fixture(autouse=True)
def write(tmp_path, monkeypatch):
    """Writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, code):
        (tmp_path / name).write_text(textwrap.dedent(code))

    write(
        "rooms.py",
        """
        from meshkit import Service

        service = again = Service("rooms", version="1.0.0")
        bills = Service("bills")

        @service.endpoint("hotel.rooms.{room}.price")
        async def price(room: int) -> float:
            '''Price of a room.

            For a night.
            '''

        @service.subscribe("hotel.*.error", queue="shared")
        async def on_error(): ...
    """,
    )
    return write


async def find(*wanted, workers=None, loop=None):
    found = targets.read(wanted)
    return await muster(found, url="nats://nowhere", workers=workers or {}, log_level="info", loop=loop)


async def test_file_gives_every_service_in_it_once():
    fleet = await find("rooms.py")
    assert [(line.service.name, line.workers) for line in fleet.lines] == [("rooms", 1), ("bills", 1)]
    assert [job.worker for job in fleet.jobs] == ["rooms#1", "bills#1"]


async def test_service_is_described(tmp_path):
    fleet = await find("rooms:service")
    assert fleet.lines[0].service == Description(
        name="rooms",
        version="1.0.0",
        endpoints=[Endpoint("hotel.rooms.{room}.price", "q", "Price of a room.")],
        subscriptions=[Endpoint("hotel.*.error", "shared", "")],
    )
    assert fleet.folders == {str(tmp_path)}


async def test_configuration_picks_services_and_the_number_of_their_workers(write):
    write("meshkit.toml", "[services.bills]\ntarget = 'rooms.py'\nworkers = 2\n")
    assert [job.worker for job in (await find(".")).jobs] == ["bills#1", "bills#2"]
    assert [job.worker for job in (await find(".", workers={EVERY: 1})).jobs] == ["bills#1"]


async def test_number_of_one_services_workers_goes_before_that_of_all():
    fleet = await find("rooms.py", workers={"bills": 3, EVERY: 2})
    assert [(line.service.name, line.workers) for line in fleet.lines] == [("rooms", 2), ("bills", 3)]
    fleet = await find("rooms.py", workers={"bills": 3})
    assert [(line.service.name, line.workers) for line in fleet.lines] == [("rooms", 1), ("bills", 3)]


async def test_workers_for_a_service_that_is_not_there():
    with pytest.raises(ConfigError, match=r"^--workers: there is no service 'bill' here, only rooms, bills$"):
        await find("rooms.py", workers={"bill": 3})


async def test_loop_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert [line.loop for line in (await find("rooms.py")).lines] == ["asyncio", "asyncio"]
    with pytest.raises(ConfigError, match=r"^uvloop cannot be imported in "):
        await find("rooms.py", loop="uvloop")


@pytest.mark.parametrize(("outside", "version"), [(None, "2.0.0"), ("Savoy", "1.0.0")])
async def test_environment_of_the_configuration_is_a_default(write, monkeypatch, outside, version):
    if outside:
        monkeypatch.setenv("HOTEL", outside)
    write("meshkit.toml", "[services.bills]\nenv = { HOTEL = 'Ritz' }\n")
    write(
        "bills.py",
        """
        import os
        from meshkit import Service

        bills = Service("bills", version="2.0.0" if os.environ["HOTEL"] == "Ritz" else "1.0.0")
    """,
    )
    assert (await find(".")).lines[0].service.version == version


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("hotel", "hotel: there is no module 'hotel', neither in {folder} nor installed in {prefix}"),
        ("rooms.main", "rooms.main: there is no module 'rooms.main', neither in"),
        ("rooms.py:main", "rooms.py:main: module 'rooms' has no attribute 'main'"),
        ("rooms.py:price", "rooms.py:price: price is of type Endpoint, no Service"),
        ("empty.py", "empty.py: no service in it; declare one with Service(...)"),
        ("wrong.py", "wrong.py: service name 'a b' may hold"),
        ("missing.py", "{folder}/missing.py, line 2: there is no module 'antigravity2' in {prefix}"),
    ],
)
async def test_mistake_is_one_sentence(write, tmp_path, capfd, target, sentence):
    write("empty.py", "")
    write("wrong.py", "from meshkit import Service\nservice = Service('a b')")
    write("missing.py", "import json\nimport antigravity2")
    with pytest.raises(ConfigError) as error:
        await find(target)
    assert str(error.value).startswith(sentence.format(folder=tmp_path, prefix=sys.prefix))
    assert not capfd.readouterr().err


async def test_service_that_the_configuration_names_is_not_there(write):
    write("meshkit.toml", "[services.main]\ntarget = 'rooms.py'\n")
    message = r"meshkit.toml, \[services.main\]: no service of that name in .*/rooms.py, only rooms, bills"
    with pytest.raises(ConfigError, match=message):
        await find(".")


async def test_file_named_like_a_standard_module_does_not_get_in_the_way(write):
    write("signal.py", "1 / 0")
    assert len((await find("rooms.py")).lines) == 2


async def test_two_services_of_the_same_name():
    with pytest.raises(ConfigError, match=r"^rooms.py: service 'rooms' comes from rooms:service already$"):
        await find("rooms:service", "rooms.py")


@pytest.mark.parametrize(
    ("code", "shown", "sentence"),
    [
        (
            "1 / 0",
            r'Traceback .*:\n  File ".*/bug.py", line 1, in <module>',
            "ZeroDivisionError: division by zero",
        ),
        ("x = (", r'  File ".*/bug.py", line 1\n    x = \(', "SyntaxError: '(' was never closed"),
        ("import os; os._exit(3)", "", "its process crashed (exit code 3)"),
    ],
)
async def test_bug_shows_the_users_frames_only(write, capfd, code, shown, sentence):
    write("bug.py", code)
    with pytest.raises(LaunchError) as error:
        await find("bug.py")
    assert str(error.value) == f"bug.py cannot be imported: {sentence}"
    written = capfd.readouterr().err
    assert re.match(shown, written)
    assert "importlib" not in written


async def test_what_user_code_prints_or_reads_is_not_taken_for_messages(write, capfd):
    write(
        "chatty.py",
        """
        import os, sys
        from meshkit import Service

        print("hello")
        os.system("echo there")
        assert sys.stdin.read() == ""
        service = Service("chatty")
    """,
    )
    assert (await find("chatty.py")).lines[0].service.name == "chatty"
    assert capfd.readouterr().err == "hello\nthere\n"
