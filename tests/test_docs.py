"""The code blocks of README.md and docs/ work as they stand.

A block titled ```python title="greet.py" is written to that file, in a folder of the page's own; other
python blocks are run there, with a NATS server. In a console block every line behind `$ ` is run, and the
lines below it must be in its output, in that order; `...` stands for anything. `$ meshkit run` goes on until
the page ends.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshkit.transport.server import EmbeddedServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Page:
    """A folder with what the page has written so far, and what it runs."""

    def __init__(self, folder, url):
        self.folder = folder
        self.environment = {
            **os.environ,
            "NATS_URL": url,
            "PYTHONPATH": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.running = []

    def python(self, body):
        self.run([sys.executable, "-W", "error", "-c", body])

    def console(self, body):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE):
            if command.startswith("meshkit run"):
                self.start(command)
            else:
                appears(expected, self.run(["bash", "-c", command]), command)

    def run(self, command):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command):
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        for line in process.stdout:
            if line.rstrip().endswith(" ready"):
                return
        pytest.fail(f"{command} ended with {process.wait()}")

    def stop(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.communicate(timeout=30)
            assert process.returncode == 0


def appears(expected, output, command):
    """Every expected line is in the output, each after the one before it."""
    rest = [line.strip() for line in output.splitlines()]
    for line in filter(None, map(str.strip, expected.splitlines())):
        if line != "...":
            found = next((number for number, one in enumerate(rest) if line in one), None)
            assert found is not None, f"$ {command}\nno line {line!r} in\n{output}"
            rest = rest[found + 1 :]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_blocks_work(path, tmp_path):
    # A server of its own: a stream of one page would answer calls of others that are on its subjects.
    with EmbeddedServer() as server:
        page = Page(tmp_path, server.url)
        try:
            for block in BLOCK.finditer(path.read_text()):
                if block["title"]:
                    (tmp_path / block["title"]).write_text(block["body"])
                elif block["kind"] in {"python", "console"}:
                    getattr(page, block["kind"])(block["body"])
        finally:
            page.stop()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
