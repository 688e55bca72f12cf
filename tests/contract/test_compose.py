"""deploy/docker-compose.yml is valid, and starts what the services are."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from maveriq.settings import NAMES
from maveriq.topology import SERVICES

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "docker-compose.yml"


def compose_command() -> list[str]:
    """docker compose where its plugin is installed, else the one that `make servers` unpacked."""
    unpacked = ROOT / ".venv" / "libexec" / "docker-compose"
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    assert unpacked.exists(), "no docker compose: run `make servers`"
    return [str(unpacked)]


@cache
def services(*profiles: str) -> dict[str, Any]:
    chosen = [argument for profile in profiles for argument in ("--profile", profile)]
    done = subprocess.run(
        [*compose_command(), "-f", COMPOSE, *chosen, "config"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    loaded: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return loaded


def test_every_service_of_the_topology_runs_by_default() -> None:
    assert {service.name for service in SERVICES} | {"rabbitmq", "redis"} == set(services())


def test_the_gpu_profile_adds_tensorrt_llm() -> None:
    added = {name: service for name, service in services("gpu").items() if name not in services()}
    assert set(added) == {"profiler-gpu", "worker-gpu"}
    assert {service["environment"]["MAVERIQ_ENGINE"] for service in added.values()} == {"trtllm"}


@pytest.mark.parametrize("profile", [(), ("gpu",)])
def test_each_service_is_started_as_its_own_module(profile: tuple[str, ...]) -> None:
    for name, service in services(*profile).items():
        if name in ("rabbitmq", "redis"):
            continue
        distribution = service["build"]["args"]["SERVICE"]
        assert service["command"] == ["python", "-m", f"maveriq_{distribution}"]
        assert (ROOT / "services" / distribution / f"maveriq_{distribution}" / "__main__.py").exists()


@pytest.mark.parametrize("profile", [(), ("gpu",)])
def test_each_services_health_is_asked_where_it_answers(profile: tuple[str, ...]) -> None:
    for name, service in services(*profile).items():
        asked = " ".join(service["healthcheck"]["test"])
        if name not in ("rabbitmq", "redis"):
            own = service["environment"]["MAVERIQ_HEALTH_PORT"]
            assert f":{service['environment'].get('MAVERIQ_HTTP_PORT', own)}/readyz" in asked, name


@pytest.mark.parametrize("profile", [(), ("gpu",)])
def test_every_setting_is_one_that_is_read(profile: tuple[str, ...]) -> None:
    for name, service in services(*profile).items():
        set_here = {variable for variable in service.get("environment", ()) if variable.startswith("MAVERIQ_")}
        assert set_here <= NAMES, name


def test_prometheus_reads_every_service_where_it_answers_and_the_broker() -> None:
    assert set(services("metrics")) - set(services()) == {"prometheus", "grafana"}
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    read = {name: one["port"] for job in jobs for one in job.get("dns_sd_configs", ()) for name in one["names"]}
    ours = {name: service for name, service in services("gpu").items() if "build" in service}
    for name, service in ours.items():
        settings = service["environment"]
        assert read.pop(name) == int(settings.get("MAVERIQ_HTTP_PORT", settings["MAVERIQ_HEALTH_PORT"])), name
        assert settings["MAVERIQ_HTTP_HOST"] == "0.0.0.0"
    assert read == {}
    assert "rabbitmq" in {job["job_name"] for job in jobs}


def test_what_asks_for_no_password_is_open_to_this_machine_alone() -> None:
    for name, service in services("gpu", "metrics").items():
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}, name
