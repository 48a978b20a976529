import asyncio
import contextlib
import copy
import fnmatch
import functools
import importlib.metadata
import operator
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from support import fetch, until

from meshkit import Service
from meshkit.cli.run import run
from meshkit.instance import DRAIN_TIMEOUT
from meshkit.launcher.messages import GRACE

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "examples" / "pipeline"
K8S = PIPELINE / "k8s"
DOCS = (ROOT / "docs" / "kubernetes.md").read_text()
KUBERNETES = "1.37"
IN_HAND = r'^meshkit_events_in_flight\{.*"mapper_data".*\} 1$'


def only(**properties):
    """The schema of an object with these properties and no others."""
    required = list(properties)
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}
DURATION = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?$"}
# The custom resource's definition, of prometheus-operator 0.84, as far as it is used here.
SERVICE_MONITOR = only(
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "ServiceMonitor"},
    metadata=only(name=TEXT, labels=LABELS),
    spec=only(
        selector=only(matchLabels=LABELS),
        jobLabel=TEXT,
        endpoints={"type": "array", "items": only(port=TEXT, interval=DURATION)},
    ),
)
# Of the values that the NATS project's chart has since 1.0, those that are used here. Below `env` and
# `merge` is whatever the container, or the PodMonitor, may have.
CHART_VALUES = {
    "config.jetstream.enabled": bool,
    "config.jetstream.fileStore.pvc.size": str,
    "container.env": dict,
    "container.merge": dict,
    "promExporter.enabled": bool,
    "promExporter.podMonitor.enabled": bool,
    "promExporter.podMonitor.merge": dict,
}


def documents(path):
    return list(yaml.safe_load_all((K8S / path).read_text()))


MANIFESTS = [
    document
    for path in ("core/fetcher.yaml", "core/mapper.yaml", "core/saver.yaml", "monitoring.yaml")
    for document in documents(path)
]
BUILTIN = [document for document in MANIFESTS if document["kind"] != "ServiceMonitor"]
DEPLOYMENTS = {each["metadata"]["name"]: each for each in MANIFESTS if each["kind"] == "Deployment"}
VALUES = yaml.safe_load((K8S / "nats-values.yaml").read_text())
each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)


def the(kind):
    [found] = [document for document in MANIFESTS if document["kind"] == kind]
    return found


def pod(deployment):
    return deployment["spec"]["template"]["spec"]


def container(deployment):
    [found] = pod(deployment)["containers"]
    return found


def environment(deployment):
    return {variable["name"]: variable.get("value") for variable in container(deployment)["env"]}


def durable():
    """The manifests of the durable variant, as kustomize makes them of the others."""
    made = copy.deepcopy({(each["kind"], each["metadata"]["name"]): each for each in MANIFESTS})
    for patch in documents("durable/kustomization.yaml")[0]["patches"]:
        target, operations = tuple(patch["target"].values()), yaml.safe_load(patch["patch"])
        if isinstance(operations, dict):
            assert operations.pop("$patch") == "delete"
            del made[target]
            continue
        for operation in operations:
            *way, last = [int(step) if step.isdigit() else step for step in operation["path"].split("/")[1:]]
            place = functools.reduce(operator.getitem, way, made[target])
            if operation["op"] == "remove":
                del place[last]
            else:
                assert operation["op"] == "replace"
                assert place[last]
                place[last] = operation["value"]
    return [made[key] for key in made if key[0] == "Deployment"]


def select(selector, labels):
    return selector.items() <= labels.items()


# What the validators say


@pytest.mark.parametrize("manifest", BUILTIN, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_kubernetes_takes_every_manifest(manifest):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_misspelt_field_is_found():
    manifest = copy.deepcopy(DEPLOYMENTS["mapper"])
    container(manifest)["readynessProbe"] = container(manifest).pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_prometheus_operator_takes_the_service_monitor():
    jsonschema.validate(the("ServiceMonitor"), SERVICE_MONITOR)


def test_every_manifest_is_in_a_kustomization_or_stands_alone():
    [core] = documents("core/kustomization.yaml")
    [over] = documents("durable/kustomization.yaml")
    assert set(core["resources"]) == {path.name for path in (K8S / "core").iterdir()} - {"kustomization.yaml"}
    assert over["resources"] == ["../core"]
    for kustomization in (core, over):
        assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
        assert kustomization["kind"] == "Kustomization"
        assert kustomization.keys() <= {"apiVersion", "kind", "resources", "images", "patches"}
    assert {path.name for path in K8S.iterdir()} == {"core", "durable", "monitoring.yaml", "nats-values.yaml"}


def test_the_dockerfile_has_no_flaw_that_a_linter_knows():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, PIPELINE / "Dockerfile"], capture_output=True, check=False, text=True, timeout=20
    )
    assert done.returncode == 0, done.stdout


# What one of them says of another


@each_deployment
def test_a_deployment_selects_its_own_pods_and_no_others(deployment):
    selector = deployment["spec"]["selector"]["matchLabels"]
    labels = {name: other["spec"]["template"]["metadata"]["labels"] for name, other in DEPLOYMENTS.items()}
    assert [name for name in labels if select(selector, labels[name])] == [deployment["metadata"]["name"]]


@each_deployment
def test_probes_ask_the_metrics_port(deployment):
    """/livez is for whether to kill it, /readyz for whether a rolling update may go on."""
    main = container(deployment)
    [port] = main["ports"]
    assert main["args"][main["args"].index("--metrics-port") + 1] == str(port["containerPort"])
    for probe, path in (("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")):
        assert main[f"{probe}Probe"]["httpGet"] == {"path": path, "port": port["name"]}


@each_deployment
def test_a_pod_has_the_time_that_a_drain_takes(deployment):
    assert pod(deployment)["terminationGracePeriodSeconds"] > GRACE > DRAIN_TIMEOUT


@each_deployment
def test_a_pod_is_not_root_and_cannot_become_it(deployment):
    assert pod(deployment)["securityContext"]["runAsNonRoot"]
    user = pod(deployment)["securityContext"]["runAsUser"]
    assert re.search(rf"^USER {user}:{user}$", (PIPELINE / "Dockerfile").read_text(), re.MULTILINE)
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@each_deployment
def test_pods_find_the_nats_of_the_chart(deployment):
    """The chart's Service is called like the release, if that has `nats` in it."""
    [release] = set(re.findall(r"helm upgrade --install (\S+) nats ", DOCS))
    assert "nats" in release
    assert environment(deployment)["NATS_URL"] == f"nats://{release}:4222"


def test_the_fetcher_is_alone_with_its_record():
    fetcher = DEPLOYMENTS["fetcher"]
    assert fetcher["spec"]["replicas"] == 1
    assert fetcher["spec"]["strategy"] == {"type": "Recreate"}
    [volume] = pod(fetcher)["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == the("PersistentVolumeClaim")["metadata"]["name"]
    [mount] = container(fetcher)["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": environment(fetcher)["PIPELINE_DATA"]}
    assert pod(fetcher)["securityContext"]["fsGroup"] == pod(fetcher)["securityContext"]["runAsGroup"]


def test_the_savers_find_the_secret_of_the_page():
    [variable] = [each for each in container(DEPLOYMENTS["saver"])["env"] if each["name"] == "DATABASE_URL"]
    secret = variable["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=postgresql://" in DOCS


def test_the_page_names_files_that_are_there():
    named = set(re.findall(r"(?<![\w./])examples/pipeline/[\w./-]*\w", DOCS))
    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_prometheus_finds_every_pod_by_the_service():
    service, monitor = the("Service"), the("ServiceMonitor")
    assert select(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    [port] = service["spec"]["ports"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [port["name"]]
    assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]
    for deployment in DEPLOYMENTS.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert select(service["spec"]["selector"], labels)
        assert port["targetPort"] == container(deployment)["ports"][0]["name"]
        assert port["port"] == container(deployment)["ports"][0]["containerPort"]


def test_the_values_are_those_of_the_chart():
    found = dict(leaves(VALUES))
    assert found.keys() == CHART_VALUES.keys()
    for path, value in found.items():
        assert isinstance(value, CHART_VALUES[path]), path
    release = the("ServiceMonitor")["metadata"]["labels"]["release"]
    assert found["promExporter.podMonitor.merge"] == {"metadata": {"labels": {"release": release}}}
    # What the chart makes of it: env is a list, and the rest is laid over the container.
    env = [{"name": name, "value": value} for name, value in found["container.env"].items()]
    nats = {"name": "nats", "image": "nats", "env": env} | found["container.merge"]
    manifest = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [nats]}}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def leaves(values, prefix=""):
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in CHART_VALUES:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


# What is in the image


def dockerfile():
    """The Dockerfile's instructions, as name and words."""
    text = (PIPELINE / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for name, words in dockerfile():
        for source in words[:-1] if name == "COPY" else []:
            files = list(ROOT.glob(source))
            assert files, source
            for file in files:
                path = str(file.relative_to(ROOT))
                assert any(
                    fnmatch.fnmatch(path, pattern) for entry in kept for pattern in (entry, f"{entry}/*")
                )


def test_what_is_installed_is_what_is_tested():
    [install] = [words for name, words in dockerfile() if name == "RUN"]
    assert install[:2] == ["pip", "install"]
    [extras] = [word[2:-1].split(",") for word in install if word.startswith(".[")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= project["optional-dependencies"].keys()
    assert "server" not in extras
    for word in install[2:]:
        if not word.startswith((".", "-")):
            requirement = Requirement(word)
            assert importlib.metadata.version(requirement.name) in requirement.specifier, word


def test_the_durable_variant_is_the_same_without_a_record():
    for manifest in durable():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        assert not pod(manifest).get("volumes")
        assert not container(manifest).get("volumeMounts")
        assert "PIPELINE_DATA" not in environment(manifest)


@pytest.fixture
def image(tmp_path, monkeypatch):
    """The folder that containers begin in."""
    (tmp_path / "pipeline").symlink_to(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("deployments", [DEPLOYMENTS.values(), durable()], ids=["core", "durable"])
def test_every_container_runs_the_service_of_its_name(deployments, image):
    code = "import sys; from meshkit.launcher import child, targets\n"
    code += "for each in targets.read(sys.argv[1:]).sources: print(*(one.name for one in child.load(each)))"
    found = []
    for deployment in deployments:
        command, *args = container(deployment)["args"]
        assert command == "run"
        found += run.make_context("run", args).params["targets"]
    done = subprocess.run([sys.executable, "-c", code, *found], capture_output=True, check=True, text=True)
    assert done.stdout.split() == [deployment["metadata"]["name"] for deployment in deployments]


async def test_a_mapper_is_ready_and_loses_nothing_when_it_is_replaced(image, mesh, nats_server, unused_port):
    """The container's arguments as they stand, but for the port."""
    args = [str(unused_port) if arg == "9311" else arg for arg in container(DEPLOYMENTS["mapper"])["args"]]
    # For two seconds the mapper has a chunk in hand, and is told to stop.
    env = os.environ | {"NATS_URL": nats_server.url, "PIPELINE_SERVICE_TIME": "2"}
    saver, saved = Service("saver"), []

    @saver.subscribe("saver_data")
    async def save(chunk: dict) -> None:
        saved.append(chunk["number"])

    async with mesh.serve(saver), running([sys.executable, "-m", "meshkit", *args], env) as process:
        await says(process, f" ready, metrics on port {unused_port}")
        for path in ("/livez", "/readyz"):
            assert (await fetch(unused_port, path))[0] == 200
        await mesh.publish("mapper_data", {"number": 827, "cities": []})
        while not re.search(IN_HAND, (await fetch(unused_port))[2], re.MULTILINE):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while (status := (await fetch(unused_port, "/readyz"))[0]) == 200:
            await asyncio.sleep(0.01)
        assert status == 503
        assert await process.wait() == 0
        await until(lambda: saved == [827])


@contextlib.asynccontextmanager
async def running(command, env):
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()


async def says(process, text):
    seen = ""
    while text not in seen:
        line = await process.stdout.readline()
        assert line, seen
        seen += line.decode()
