"""`meshkit dashboards`: files for Grafana and Prometheus."""

from pathlib import Path

import click
import msgspec

from meshkit.cli.quantity import duration
from meshkit.errors import ConfigError
from meshkit.telemetry.dashboards.alerts import objectives, rules
from meshkit.telemetry.dashboards.boards import dashboards as of_grafana

_RUNBOOK = "docs/observability.md"

_PROMETHEUS = """\
# For `meshkit metrics --port 9100`, which tells of the whole mesh: prometheus --config.file=prometheus.yaml
global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files:
  - alerts.yaml
scrape_configs:
  - job_name: mesh
    static_configs:
      - targets: ["127.0.0.1:9100"]
  # Or each process by itself, if it runs with `--metrics-port`. What is scraped both ways counts twice.
  # - job_name: rooms
  #   static_configs:
  #     - targets: ["127.0.0.1:9101", "127.0.0.1:9102"]
"""


@click.command()
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="dashboards",
    show_default=True,
    help="Where the files go; those that are there are replaced.",
)
@click.option(
    "--slo",
    metavar="PERCENT",
    type=float,
    default=99.9,
    show_default=True,
    help="Alert if fewer calls succeed, over 30 days.",
)
@click.option(
    "--latency",
    metavar="DURATION",
    default="500ms",
    show_default=True,
    type=duration,
    help="What is slow: a bound of the histograms.",
)
@click.option(
    "--latency-slo",
    metavar="PERCENT",
    type=float,
    default=99,
    show_default=True,
    help="Alert if fewer successful calls are as fast as that.",
)
def dashboards(*, out: Path, slo: float, latency: float, latency_slo: float) -> None:
    """Write dashboards for Grafana, and alert rules for Prometheus.

    They are made from the definitions of the metrics, so they fit the meshkit that writes them; write them
    anew when it changes. In Grafana: Dashboards, New, Import.
    """
    files = {f"{name}.json": _json(dashboard) for name, dashboard in of_grafana().items()}
    files |= {
        "alerts.yaml": rules(objectives(slo, latency, latency_slo), _RUNBOOK),
        "prometheus.yaml": _PROMETHEUS,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text)
            click.echo(out / name)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}: {error.filename}") from None


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
