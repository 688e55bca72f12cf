"""The whole system as processes: the commands and settings of deploy/docker-compose.yml, on private servers.

with System(rabbitmq.url, redis.url, devices="cpu:0=300MiB", cache_dir=...) as system:
    system.kill("planner"); system.start("planner")
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.servers import die_with_parent

COMPOSE = Path(__file__).parents[2] / "deploy" / "docker-compose.yml"
SERVICES = ("ingress", "profiler", "planner", "allocator", "worker")
START_TIMEOUT_S = 60.0


class System:
    """Every service of the compose file's default profile, each in a process group of its own."""

    def __init__(self, amqp_url: str, redis_url: str, *, devices: str, cache_dir: Path, **settings: str) -> None:
        """Args:
        devices: MAVERIQ_DEVICES of the worker.
        settings: further environment variables, for every service.
        """
        self.amqp_url = amqp_url
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.http_port: int = free.getsockname()[1]
        self._compose: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self._environment = {
            "MAVERIQ_AMQP_URL": amqp_url,
            "MAVERIQ_REDIS_URL": redis_url,
            "MAVERIQ_HTTP_HOST": "127.0.0.1",
            "MAVERIQ_HTTP_PORT": str(self.http_port),
            "MAVERIQ_DEVICES": devices,
            "MAVERIQ_CACHE_DIR": str(cache_dir),
            "MAVERIQ_CALIBRATE": "off",
            "MAVERIQ_PROFILE_BUDGET_S": "1",  # what a prediction is worth is not asked here
            "MAVERIQ_PROFILE_BATCHES": "1,2,4",
            "MAVERIQ_PROFILE_PROMPTS": "32,128",
            **settings,
        }
        self._logs = Path(tempfile.mkdtemp(prefix="maveriq-system-"))
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, name: str) -> None:
        service = self._compose[name]
        own = {key: str(value) for key, value in service["environment"].items() if "$" not in str(value)}
        own.pop("MAVERIQ_HEALTH_PORT", None)  # containers have one each, processes of one machine do not
        command = [sys.executable if word == "python" else word for word in service["command"]]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env={**os.environ, **own, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def wait_ready(self) -> None:
        """Return once ingress says that it is ready.

        Raises:
            AssertionError: with the logs.
        """
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                dead = [name for name, process in self._running.items() if process.poll() is not None]
                assert not dead and time.monotonic() < until, f"did not start: {dead}\n{self.logs()}"
                time.sleep(0.1)

    def kill(self, name: str) -> None:
        """As a power cut of this one process; what it had started must end by itself."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def logs(self) -> str:
        return "\n".join(f"--- {path.stem}\n{path.read_text()[-3000:]}" for path in sorted(self._logs.iterdir()))

    def __enter__(self) -> Self:
        try:
            for name in SERVICES:
                self.start(name)
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs())
        for process in self._running.values():
            process.terminate()
        for name, process in self._running.items():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"{name} did not stop on SIGTERM\n{self.logs()}") from None
