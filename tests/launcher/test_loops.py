"""What the services' processes run on."""

import os
import textwrap

import meshkit

SERVICE = """
    import asyncio
    from meshkit import Service

    {name} = Service("{name}")

    @{name}.endpoint()
    async def loop() -> str:
        return type(asyncio.get_running_loop()).__module__
"""


def write(folder, **configuration):
    for name, table in configuration.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(SERVICE.format(name=name)))
        with (folder / "meshkit.toml").open("a") as file:
            file.write(f"[services.{name}]\n{table}\n")


async def loops(launched, *names):
    """What runs and, from the banner, what is said to run."""
    launched.wait_for(*(f"^{name}#1 ready|:.. {name}#1 ready" for name in names))
    said = [line for line in launched.lines if line.startswith("service ")]
    async with meshkit.connect(launched.url) as mesh:
        return said, [(await mesh.call(f"{name}.loop")).partition(".")[0] for name in names]


async def test_uvloop_is_used_unless_the_configuration_says_otherwise(launch, tmp_path):
    write(tmp_path, rooms="", bills='loop = "asyncio"')
    said, runs = await loops(launch(tmp_path), "rooms", "bills")
    assert runs == ["uvloop", "asyncio"]
    assert said == ["service rooms 0.1.0, 1 worker on uvloop", "service bills 0.1.0, 1 worker on asyncio"]


async def test_option_wins_over_the_configuration(launch, tmp_path):
    write(tmp_path, rooms='loop = "uvloop"', bills="workers = 2")
    said, runs = await loops(launch(tmp_path, "--loop", "asyncio"), "rooms", "bills")
    assert runs == ["asyncio", "asyncio"]
    assert said == ["service rooms 0.1.0, 1 worker on asyncio", "service bills 0.1.0, 2 workers on asyncio"]


def without_uvloop(folder):
    """The environment of a Python that has none."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['uvloop'] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


async def test_without_uvloop_asyncio_is_used(launch, tmp_path):
    write(tmp_path, rooms="")
    said, runs = await loops(launch(tmp_path, **without_uvloop(tmp_path)), "rooms")
    assert runs == ["asyncio"]
    assert said == ["service rooms 0.1.0, 1 worker on asyncio"]


def test_uvloop_that_is_missing_is_one_sentence_before_anything_starts(launch, tmp_path):
    environment = without_uvloop(tmp_path)
    write(tmp_path, rooms='loop = "uvloop"')
    (tmp_path / "rooms.py").write_text("1 / 0")  # is not imported, nor is the server looked for
    for args in (["rooms.py", "--loop", "uvloop"], []):
        launched = launch(tmp_path, *args, "--nats", "nats://127.0.0.1:1", **environment)
        assert launched.ended() == 78
        [line] = launched.lines
        assert line.startswith("meshkit: uvloop cannot be imported in ")
        assert line.endswith(": pip install 'meshkit[uvloop]'")
