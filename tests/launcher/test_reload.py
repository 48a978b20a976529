import subprocess
import sys

import meshkit

SERVICE = """
from meshkit import Service
import prices

service = Service("rooms", version="{version}")

@service.endpoint()
async def price() -> float:
    return prices.PRICE
"""


async def price(launched):
    async with meshkit.connect(launched.url) as mesh:
        return await mesh.call("rooms.price")


async def test_changed_files_are_taken_over_as_soon_as_they_import(launch, tmp_path):
    service, prices = tmp_path / "rooms.py", tmp_path / "prices.py"
    service.write_text(SERVICE.format(version="1.0.0"))
    prices.write_text("PRICE = 1.0")
    launched = launch(tmp_path, "rooms.py", "--reload")
    launched.wait_for("rooms#1 ready")
    [worker] = launched.workers()

    prices.write_text("PRICE = (")
    launched.wait_for(
        "SyntaxError", r"reload prices.py changed: rooms.py cannot be imported: SyntaxError: .*; waits"
    )
    assert launched.workers() == [worker]
    assert await price(launched) == 1.0

    prices.write_text("PRICE = 2.0")
    launched.wait_for("reload prices.py changed", "rooms#1 stopped", "rooms#1 ready")
    assert await price(launched) == 2.0

    service.write_text(SERVICE.format(version="2.0.0"))
    launched.wait_for("reload rooms.py changed", "^service rooms 2.0.0", "rooms#1 ready")


def test_mistake_of_a_worker_waits_for_the_next_change(launch, tmp_path):
    lifespan = """
@service.lifespan
async def lifespan():
    raise meshkit.ConfigError("no database")
    yield
"""
    service = tmp_path / "rooms.py"
    code = "import meshkit\nservice = meshkit.Service('rooms')\n"
    service.write_text(code + lifespan)
    launched = launch(tmp_path, "rooms.py", "--reload")
    launched.wait_for("reload rooms#1: no database; waits for a change")
    service.write_text(code)
    launched.wait_for("reload rooms.py changed", "rooms#1 ready")


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "rooms.py").touch()
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "watchfiles" else found(name, *rest)
from meshkit.cli import main
sys.argv = ["meshkit", "run", "rooms.py", "--reload"]
main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert (ran.returncode, ran.stderr) == (
        78,
        "meshkit: --reload needs watchfiles: pip install 'meshkit[reload]'\n",
    )
