"""`meshkit dashboards`: files that Grafana and Prometheus take."""

import json

import anyio
import pytest
from prometheus import tool

FILES = ["mesh.json", "service.json", "endpoint.json", "nats.json", "alerts.yaml", "prometheus.yaml"]


async def test_it_writes_files_that_prometheus_takes_as_they_are(meshkit, tmp_path):
    code, out, err = await meshkit("dashboards", "--out", "a/b")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"a/b/{name}" for name in FILES]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(FILES)
    assert all("panels" in json.loads((tmp_path / "a" / "b" / name).read_text()) for name in FILES[:4])

    # The rules too, which it names.
    command = [tool("promtool"), "check", "config", "a/b/prometheus.yaml"]
    checked = await anyio.run_process(command, cwd=tmp_path)
    assert "1 rule files found" in checked.stdout.decode()


async def test_what_is_there_is_replaced(meshkit, tmp_path):
    (tmp_path / "dashboards").mkdir()
    (tmp_path / "dashboards" / "mesh.json").write_text("old")
    code, _, _ = await meshkit("dashboards")
    assert code == 0
    assert json.loads((tmp_path / "dashboards" / "mesh.json").read_text())["uid"] == "meshkit-mesh"


async def test_objectives_are_in_the_rules(meshkit, tmp_path):
    code, _, _ = await meshkit("dashboards", "--slo", "99.5", "--latency", "250ms", "--latency-slo", "95")
    assert code == 0
    rules = (tmp_path / "dashboards" / "alerts.yaml").read_text()
    assert "> 14.4 * 0.005" in rules
    assert 'le="0.25"' in rules
    assert "> 14.4 * 0.05)" in rules.replace(" and", ")")
    assert "take longer than 0.25 s; 5 % may" in rules


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--slo", "90"), 78, "meshkit: --slo is a percentage above 93.06 and below 100, not 90"),
        (("--latency", "300ms"), 78, "meshkit: --latency 0.3s is none of the histograms' bounds, "),
        (("--latency", "fast"), 2, "seconds above 0, or text such as 250ms, is wanted."),
        (("--out", "file/below"), 78, "meshkit: --out file/below: Not a directory: file/below"),
    ],
)
async def test_what_is_wrong_is_said(meshkit, tmp_path, arguments, code, sentence):
    (tmp_path / "file").touch()
    got, out, err = await meshkit("dashboards", *arguments)
    assert (got, out) == (code, "")
    assert sentence in err
    assert not (tmp_path / "dashboards").exists()
