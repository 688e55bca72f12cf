"""deploy/helm is a chart that Kubernetes takes, and starts what the services are."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from maveriq.settings import NAMES
from maveriq.topology import SERVICES

CHART = Path(__file__).parents[2] / "deploy" / "helm"
HELM = Path(sys.executable).with_name("helm")
GPU_POOL = """
pools:
  - {name: cpu, devices: "cpu:0=2GiB"}
  - name: l4
    engine: trtllm
    runtimeClassName: nvidia
    nodeSelector: {nvidia.com/gpu.product: NVIDIA-L4}
    tolerations: [{key: nvidia.com/gpu, operator: Exists}]
    settings: {MAVERIQ_CALIBRATION_BUDGET_S: "600"}
settings: {MAVERIQ_QUOTAS: "team-a=4gpus;*=2gpus"}
models: {persistentVolumeClaim: {claimName: models}}
cache: {hostPath: {path: /var/cache/maveriq}}
huggingFaceSecret: hub
"""
ALL_OF_IT = (
    GPU_POOL
    + """
image: {registry: registry.example.com/ml, tag: "1", pullSecrets: [registry]}
ingress: {replicas: 2, host: maveriq.example.com, className: nginx, tlsSecret: tls, annotations: {a: b}}
rabbitmq: {storageClass: fast}
metrics: {podMonitor: true, dashboard: true}
"""
)
VALUES = {"as it comes": "", "everything": ALL_OF_IT, "own servers": "existingSecret: connections\n"}
every_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def helm(*words: str, values: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *words, "--values", "-"], input=values, capture_output=True, text=True, check=False)


@cache
def manifests(values: str = "") -> tuple[dict[str, Any], ...]:
    done = helm("template", "one", str(CHART), values=values)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return tuple(manifest for manifest in yaml.safe_load_all(done.stdout) if manifest)


def of_kind(values: str, *kinds: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in manifests(values) if found["kind"] in kinds}


def containers(values: str) -> dict[str, dict[str, Any]]:
    """Ours, by the name of what runs them."""
    running = of_kind(values, "Deployment", "DaemonSet")
    return {name: found["spec"]["template"]["spec"]["containers"][0] for name, found in running.items()}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


@every_values
def test_helm_finds_nothing_to_complain_of(values: str) -> None:
    done = helm("lint", str(CHART), "--strict", "--quiet", values=values)
    assert done.returncode == 0, done.stdout + done.stderr


@every_values
@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_kubernetes_takes_every_manifest(values: str, version: str) -> None:
    for manifest in manifests(values):
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # the operator's own kinds
        kubernetes_validate.validate(manifest, version, strict=True)


@every_values
def test_every_service_of_the_topology_runs_as_its_own_module(values: str) -> None:
    found = containers(values)
    assert {container["command"][-1] for container in found.values()} == {f"maveriq_{one.name}" for one in SERVICES}
    for name, container in found.items():
        service = name.split("-")[1]
        assert container["command"] == ["python", "-m", f"maveriq_{service}"]
        assert f"maveriq-{service}" in container["image"]


@every_values
def test_every_setting_is_one_that_is_read(values: str) -> None:
    for name, container in containers(values).items():
        assert {variable for variable in environment(container) if variable.startswith("MAVERIQ_")} <= NAMES, name
    (shared,) = (found for name, found in of_kind(values, "ConfigMap").items() if name.endswith("-settings"))
    assert set(shared["data"]) <= NAMES


@every_values
def test_each_services_health_and_metrics_are_asked_where_it_answers(values: str) -> None:
    for name, container in containers(values).items():
        own = environment(container)
        port = int(own.get("MAVERIQ_HTTP_PORT", own["MAVERIQ_HEALTH_PORT"]))
        asked = {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert asked == {port} == {each["containerPort"] for each in container["ports"]}, name
        assert own["MAVERIQ_HTTP_HOST"] == "0.0.0.0"


def test_a_pool_is_a_worker_on_each_of_its_nodes_and_one_profiler() -> None:
    running = of_kind(GPU_POOL, "DaemonSet", "Deployment")
    worker, profiler = running["one-worker-l4"], running["one-profiler-l4"]
    assert (worker["kind"], profiler["kind"]) == ("DaemonSet", "Deployment")
    assert profiler["spec"]["replicas"] == 1
    for one in (worker, profiler):
        pod = one["spec"]["template"]["spec"]
        assert (pod["runtimeClassName"], pod["nodeSelector"]) == ("nvidia", {"nvidia.com/gpu.product": "NVIDIA-L4"})
        own = environment(pod["containers"][0])
        assert (own["MAVERIQ_ENGINE"], own["MAVERIQ_CALIBRATION_BUDGET_S"]) == ("trtllm", "600")
        assert own["NVIDIA_VISIBLE_DEVICES"] == "all"
        assert pod["containers"][0]["image"].rpartition(":")[0].endswith("-trtllm")
    assert environment(containers(GPU_POOL)["one-profiler-cpu"])["MAVERIQ_PROFILE_DEVICE"] == "cpu"
    assert of_kind(GPU_POOL, "DaemonSet")["one-worker-cpu"]["spec"]["template"]["spec"]["nodeSelector"] == {
        "maveriq.io/pool": "cpu"
    }


def test_a_pool_may_have_no_profiler() -> None:
    started = set(containers("pools: [{name: l4, profiler: {enabled: false}}]"))
    assert "one-worker-l4" in started and "one-profiler-l4" not in started


def test_two_workers_of_one_node_have_names_of_their_own() -> None:
    names = [environment(c)["MAVERIQ_NODE"] for name, c in containers(GPU_POOL).items() if "worker" in name]
    assert sorted(names) == ["$(NODE_NAME)-cpu", "$(NODE_NAME)-l4"]


def test_own_servers_are_taken_from_a_secret_and_none_are_started() -> None:
    values = VALUES["own servers"]
    assert not of_kind(values, "StatefulSet", "Secret")
    for container in containers(values).values():
        from_secrets = [value["secretKeyRef"] for value in environment(container).values() if "secretKeyRef" in value]
        assert {reference["name"] for reference in from_secrets} == {"connections"}


def test_no_password_is_written_into_the_chart() -> None:
    (first,) = of_kind("", "Secret").values()
    manifests.cache_clear()
    (second,) = of_kind("", "Secret").values()
    assert first["stringData"]["rabbitmq-password"] != second["stringData"]["rabbitmq-password"]
    assert second["stringData"]["rabbitmq-password"] in second["stringData"]["amqp-url"]
    assert second["stringData"]["redis-password"] in second["stringData"]["redis-url"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ("ingres: {replicas: 2}", "ingres"),
        ("pools: [{name: l4, gpus: 4}]", "gpus"),
        ("pools: [{name: l4, engine: vllm}]", "engine"),
        ("settings: {QUOTAS: a}", "QUOTAS"),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(values: str, named: str) -> None:
    done = helm("template", "one", str(CHART), values=values)
    assert done.returncode != 0
    assert named in done.stderr
