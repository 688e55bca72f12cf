"""`maveriq up` and the commands against it, as a newcomer types them: nothing else runs on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maveriq.contracts import Model

MAVERIQ = (sys.executable, "-c", "from maveriq.cli import main; main()")
START_TIMEOUT_S = 60


class Shell:
    """One embedded cluster, and commands sent to it."""

    def __init__(self, cache_dir: Path) -> None:
        gone = ("MAVERIQ_AMQP_URL", "MAVERIQ_REDIS_URL", "MAVERIQ_URL")
        self._env = {name: value for name, value in os.environ.items() if name not in gone}
        self._env |= {"MAVERIQ_CACHE_DIR": str(cache_dir)}
        self._env |= {"MAVERIQ_CALIBRATE": "off", "MAVERIQ_PROFILE_BUDGET_S": "0.1"}
        self._env |= {
            "MAVERIQ_PROFILE_LAYERS": "1,2",
            "MAVERIQ_PROFILE_BATCHES": "1",
            "MAVERIQ_PROFILE_PROMPTS": "16,64",
        }
        self.up = subprocess.Popen(
            [*MAVERIQ, "up", "--devices", "cpu:0=40MiB,cpu:1=30MiB", "--port", "0", "--json"],
            env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_ready(self) -> None:
        assert self.up.stdout is not None
        line = self.up.stdout.readline()
        assert line, "it ended before it was ready"
        self._env["MAVERIQ_URL"] = json.loads(line)["url"]

    def run(self, *arguments: str, code: int = 0) -> Any:
        """A command's JSON."""
        done = subprocess.run(
            [*MAVERIQ, *arguments, "--json"], env=self._env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        shell.wait_ready()
        yield shell
    finally:
        if shell.up.poll() is None:
            os.killpg(shell.up.pid, signal.SIGKILL)
        shell.up.communicate()


def below(pid: int) -> set[int]:
    """All processes that a process started, and those that these started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = {int(child) for child in children.read_text().split()} if children.exists() else set[int]()
    return found.union(*(below(child) for child in found))


def test_an_embedded_cluster_serves_and_ctrl_c_leaves_nothing(shell: Shell, tiny: Model) -> None:
    shell.run("register", "tiny", tiny.source, "--variant", "fp32=1")
    short = ("--input-tokens", "16", "--output-tokens", "16", "--context-tokens", "64")
    planned = shell.run("plan", "tiny", *short)
    deployed = shell.run("deploy", "tiny", *short)
    assert planned["candidates"][0]["configuration"] == deployed["plan"]["candidates"][0]["configuration"]

    answer = shell.run("infer", "tiny", "once", "--max-tokens", "8", "--temperature", "0", "--priority", "high")
    assert answer["usage"]["completion_tokens"] <= 8 and answer["finish_reason"] in ("length", "stop")
    start = deployed["deployment_id"][:8]
    assert shell.run("chat", start, "--message", "hello", "--max-tokens", "4")["finish_reason"] in ("length", "stop")
    assert [each["state"] for each in shell.run("ps")] == ["ready"]
    held = [holding for node in shell.run("gpus") for gpu in node["gpus"] for holding in gpu["holdings"]]
    assert {holding["deployment_id"] for holding in held} == {deployed["deployment_id"]}

    too_fast = shell.run("deploy", "tiny", *short, "--tpot-ms", "0.001", code=1)
    assert too_fast["failure"]["counteroffers"][0]["constraint"] == "slo.tpot_ms"
    unknown = shell.run("deploy", "tinny", code=1)
    assert "tinny" in unknown["error"]["message"] and unknown["error"]["param"] == "model"

    started = below(shell.up.pid)
    assert len(started) > 1, "an engine and a Redis run"
    os.killpg(shell.up.pid, signal.SIGINT)
    assert shell.up.wait(30) == 0
    assert not {pid for pid in started if Path(f"/proc/{pid}").exists()}


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*MAVERIQ, "up", "--devices", "cpu:0=40MiB", "--port", port],
            env={**os.environ, "MAVERIQ_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"MAVERIQ_HTTP_PORT={port}" in done.stderr and "choose a free port" in done.stderr
    assert "Traceback" not in done.stderr
