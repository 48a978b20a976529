"""A real Prometheus, for tests that look at what it makes of what meshkit shows it."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

INSTALL = "is missing: `make test` installs Debian's package prometheus where it may; see the README"


class Prometheus:
    """Where a running one is asked."""

    def __init__(self, url):
        self.url = url

    def query(self, promql):
        """The result of an instant query: `[{"metric": {...}, "value": [time, "1"]}, ...]`."""
        return self._get("query", query=promql)["result"]

    def value(self, promql):
        """The one number that a query gives; None if it gives nothing."""
        found = self.query(promql)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def targets(self):
        """How scraping goes, by job: `up`, `down` or `unknown`, and the error of the last one."""
        active = self._get("targets")["activeTargets"]
        return {each["labels"]["job"]: (each["health"], each["lastError"]) for each in active}

    def _get(self, what, **parameters):
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{what} {parameters}: {error.read().decode()}") from None


def tool(name):
    """The path of `prometheus` or `promtool`."""
    path = shutil.which(name)
    assert path, f"{name} {INSTALL}"
    return path


@contextmanager
def prometheus(targets, rules=None, *, interval="200ms"):
    """A Prometheus on a free port, with data of its own, for as long as the block lasts.

    Its first scrape comes after five seconds, then one every `interval`.

    Args:
        targets: Of each job, `host:port` to scrape `/metrics` of.
        rules: A file of rules.
        interval: Between two scrapes, and between two evaluations of the rules.
    """
    directory = Path(tempfile.mkdtemp(prefix="meshkit-prometheus-"))
    jobs = [{"job_name": job, "static_configs": [{"targets": [where]}]} for job, where in targets.items()]
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": jobs,
    }
    # JSON is YAML.
    (directory / "prometheus.yml").write_text(json.dumps(config))
    log = (directory / "log").open("w+")
    server = subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            "--web.listen-address=127.0.0.1:0",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        yield Prometheus(_url(server, directory / "log"))
    finally:
        server.send_signal(signal.SIGKILL)  # its data are thrown away
        server.wait()
        log.close()
        shutil.rmtree(directory)


def _url(server, log):
    """Where it listens, once it answers."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        for line in log.read_text().splitlines():
            if 'msg="Listening on"' in line:
                url = f"http://{line.rpartition('address=')[2]}"
                try:
                    with urllib.request.urlopen(f"{url}/-/ready", timeout=1):
                        return url
                except OSError:
                    pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())
