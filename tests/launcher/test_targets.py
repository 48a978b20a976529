import sys

import pytest

from meshkit import CallPolicy, Policies, RateLimit, ServePolicy
from meshkit.errors import ConfigError
from meshkit.launcher import targets
from meshkit.launcher.config import ServiceTable


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rooms.py").touch()
    return tmp_path


def read(target):
    [source] = targets.read([target]).sources
    return source


def test_file_is_imported_from_its_folder(folder):
    source = read("rooms.py")
    assert (source.folder, source.module, source.attribute) == (str(folder), "rooms", "")


def test_file_may_name_one_of_its_services(folder):
    assert read(str(folder / "rooms.py:service")).attribute == "service"


def test_file_of_a_package_is_imported_as_its_module(folder):
    inner = folder / "hotel" / "services"
    inner.mkdir(parents=True)
    for file in (folder / "hotel" / "__init__.py", inner / "__init__.py", inner / "rooms.py"):
        file.touch()
    source = read("hotel/services/rooms.py")
    assert (source.folder, source.module) == (str(folder), "hotel.services.rooms")


def test_module_and_attribute(folder):
    source = read("hotel.rooms:services.main")
    assert (source.folder, source.module, source.attribute) == (str(folder), "hotel.rooms", "services.main")


def test_folder_that_is_a_package_is_a_module(folder):
    (folder / "hotel").mkdir()
    (folder / "hotel" / "__init__.py").touch()
    assert read("hotel").module == "hotel"


def test_folder_with_a_configuration(folder):
    (folder / "meshkit.toml").write_text("""
        nats = "nats://10.0.0.1:4222"
        [services.rooms]
        workers = 2
        timeout = "250ms"
        rate_limit = { limits = "5/second", by = "caller" }
        env = { HOTEL_DB = "hotel.sqlite" }
        [services.bills]
        target = "hotel.bills:service"
        [call."hotel.>"]
        timeout = 1
        [serve."hotel.rooms.*"]
        concurrency = false
    """)
    found = targets.read(["."])
    rooms, bills = found.sources
    assert found.nats == "nats://10.0.0.1:4222"
    assert (rooms.module, rooms.service) == ("rooms", "rooms")
    assert rooms.table == ServiceTable(workers=2, env={"HOTEL_DB": "hotel.sqlite"})
    assert rooms.serve == ServePolicy(timeout=0.25, rate_limit=RateLimit("5/second", by="caller"))
    assert (bills.module, bills.attribute, bills.table.workers) == ("hotel.bills", "service", 1)
    assert bills.serve == ServePolicy()
    for source in found.sources:
        assert source.policies == Policies(
            {"hotel.>": CallPolicy(timeout=1)},
            {"hotel.rooms.*": ServePolicy(concurrency=None)},
            "meshkit.toml",
        )


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("room.py", "room.py: there is no file {folder}/room.py"),
        ("sub/rooms", "sub/rooms: no such file, folder or module"),
        (".", ".: the folder has no meshkit.toml; write one, or name a Python file"),
    ],
)
def test_target_that_means_nothing(folder, target, sentence):
    with pytest.raises(ConfigError) as error:
        targets.read([target])
    assert str(error.value) == sentence.format(folder=folder)


def test_file_named_like_a_standard_module_is_refused(folder):
    (folder / "email.py").touch()
    with pytest.raises(ConfigError, match=r"email\.py has the name of a module of Python itself; rename"):
        targets.read(["email.py"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[services.rooms", "not valid TOML: "),
        ("", "no services; write a [services.<name>] table for each"),
        ("[service.rooms]", "unknown field 'service'; the fields here are services, nats, call, serve"),
        ("[services]\nrooms = 1", "[services.rooms]: write a table, not 1"),
        (
            "[services.rooms]\nworker = 2",
            "[services.rooms]: unknown field `worker`; the fields here are",
        ),
        ("[services.rooms]\nworkers = '2'", "[services.rooms], workers: Expected `int`, got `str`"),
        ("[services.rooms]\nworkers = 0", "[services.rooms], workers: Expected `int` >= 1"),
        (
            "[services.rooms]\nloop = 'trio'",
            "[services.rooms], loop: Invalid enum value 'trio'; write auto or asyncio or uvloop",
        ),
        (
            "[services.rooms]\ntimeout = 0",
            "[services.rooms], timeout is seconds above 0, or text such as '250ms'",
        ),
        (
            "[services.rooms]\nconcurrency = false",
            "meshkit.toml, [services.rooms], concurrency is a whole number from 1 for a service as a whole",
        ),
        ("[services.rooms]\nbacklog = -1", "[services.rooms], backlog is a whole number from 0, not -1"),
        (
            "[services.rooms]\nserve = {}",
            "[services.rooms]: unknown field `serve`; the fields here are target,",
        ),
        (
            "[services.rooms]\n[call]\nretries = 1",
            'meshkit.toml: write [call."subject.pattern"] with the fields below it',
        ),
        (
            "[services.rooms]\n[call.'a.>']\nretrys = 1",
            "[call.\"a.>\"]: unknown field 'retrys'; the fields here are",
        ),
        ("[services.rooms]\n[serve.'a..b']", "[serve.\"a..b\"]: subject 'a..b' has an empty token"),
        ("[services.bills]", "[services.bills]: there is no file "),
    ],
)
def test_configuration_error_names_file_table_and_field(folder, content, sentence):
    (folder / "meshkit.toml").write_text(content)
    with pytest.raises(ConfigError) as error:
        targets.read(["."])
    assert str(error.value).startswith("meshkit.toml")
    assert sentence in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="has no file that not even root can read")
def test_configuration_that_cannot_be_read(folder):
    (folder / "meshkit.toml").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError, match=r"^meshkit\.toml: cannot be read: Input/output error$"):
        targets.read(["."])


def test_current_folder_that_is_gone(folder, monkeypatch):
    (folder / "gone").mkdir()
    monkeypatch.chdir("gone")
    (folder / "gone").rmdir()
    for target in (".", "rooms.py", "hotel.rooms"):
        with pytest.raises(ConfigError, match=r"^the current folder: cannot be read: No such file"):
            targets.read([target])


def test_configurations_that_name_different_servers(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "rooms.py").touch()
        (folder / name / "meshkit.toml").write_text(f'nats = "nats://{name}:4222"\n[services.rooms]')
    with pytest.raises(ConfigError, match="b: names nats://b:4222, another target nats://a:4222; use --nats"):
        targets.read(["a", "b"])
