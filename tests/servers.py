"""Private RabbitMQ and Redis servers on free ports, for tests and benchmarks. Nothing stays behind, nothing is skipped.

with RabbitMq() as rabbitmq, Redis() as redis:
    ... rabbitmq.url, redis.url
    rabbitmq.kill(); rabbitmq.start()   # the same queues, the same port
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 60.0
CONSUMER_TIMEOUT_MS = 30 * 60 * 1000  # a delivery that is unacked for longer closes its channel; DESIGN: set on purpose

# schedulers that spin while idle cost a small machine a quarter of its throughput
ERLANG_FLAGS = "+sbwt none +sbwtdcpu none +sbwtdio none"


class ServerMissing(Exception):
    """The program is not installed; the message says what to do."""


class RabbitMq:
    """One broker node with an epmd of its own, in a folder of its own."""

    def __init__(self) -> None:
        self._server = _find(
            "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", variable="MAVERIQ_TEST_AMQP_URL"
        )
        self._epmd_program = _find("epmd", variable="MAVERIQ_TEST_AMQP_URL")
        self._folder = Path(tempfile.mkdtemp(prefix="maveriq-rabbitmq-"))
        self.port, self._dist_port, self._epmd_port = _free_ports(3)
        self._cookie = secrets.token_hex(16)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """Of the Erlang machine, for reading its CPU time."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Return once AMQP clients are answered.

        Raises:
            RuntimeError: it did not start; with the end of its log.
        """
        if self._epmd is None:
            self._epmd = _spawn([self._epmd_program], {**os.environ, **self._environment()}, self._folder / "epmd.log")
            _wait_for(lambda: _accepts(self._epmd_port), self._epmd, self._folder / "epmd.log")
        log = self._folder / "console.log"
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"consumer_timeout = {CONSUMER_TIMEOUT_MS}\n"
            "log.file = false\nlog.console = true\nlog.console.level = warning\n"
            "vm_memory_high_watermark.absolute = 2GB\ndisk_free_limit.absolute = 50MB\n"
        )
        self._process = _spawn([self._server], {**os.environ, **self._environment()}, log)
        _wait_for(lambda: _speaks_amqp(self.port), self._process, log)

    def kill(self) -> None:
        """As a power cut; `start` brings it back with what was durable."""
        if self._process is not None:
            _end(self._process, signal.SIGKILL)
            self._process = None

    def stop(self) -> None:
        """End everything and remove the folder."""
        self.kill()
        if self._epmd is not None:
            _end(self._epmd, signal.SIGKILL)
            self._epmd = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "HOME": str(folder),  # the Erlang cookie's place
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"maveriq{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_ERLANG_COOKIE": self._cookie,
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_ENABLED_PLUGINS": "",
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_FLAGS,
            "RUNNING_UNDER_SYSTEMD": "true",  # no shell stays between us and the Erlang machine
        }


class Redis:
    """One Redis server in a folder of its own."""

    def __init__(self, *, persistent: bool = False) -> None:
        """Args:
        persistent: what was written survives `kill` and `start`.
        """
        self._server = _find("redis-server", "valkey-server", variable="MAVERIQ_TEST_REDIS_URL")
        self._persistent = persistent
        self._folder = Path(tempfile.mkdtemp(prefix="maveriq-redis-"))
        (self.port,) = _free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        durable = ["--appendonly", "yes", "--appendfsync", "always"] if self._persistent else ["--appendonly", "no"]
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "", *durable]
        log = self._folder / "console.log"
        self._process = _spawn([self._server, *settings], dict(os.environ), log)
        _wait_for(lambda: _answers(self.port, b"PING\r\n", b"+PONG"), self._process, log)

    def kill(self) -> None:
        if self._process is not None:
            _end(self._process, signal.SIGKILL)
            self._process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _find(*names: str, variable: str) -> str:
    for name in names:
        found = shutil.which(name) or (name if Path(name).is_file() else None)
        # Debian's /usr/sbin/rabbitmq-server insists on its own user: the script behind it does not
        if found and not found.endswith("sbin/rabbitmq-server"):
            return found
    raise ServerMissing(
        f"{names[0]} is not installed: run `make servers` (or, as root, "
        f"`apt-get install rabbitmq-server redis-server`), or set {variable} to a server that tests may empty"
    )


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """Linux: a killed test run leaves no server either."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r} did not start:\n{tail}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _speaks_amqp(port: int) -> bool:
    """Whether the broker offers Connection.Start: its listener opens only when the node is up."""
    return _answers(port, b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")


def _answers(port: int, question: bytes, answer: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(question)
            return connection.recv(64).startswith(answer)
    except OSError:
        return False
