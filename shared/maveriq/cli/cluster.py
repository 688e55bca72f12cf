"""All services side by side in this process, on one broker: the same code as in separate processes."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import entry_points
from typing import cast

import structlog

from maveriq.agreed_settings import amqp_url, cache_dir
from maveriq.bus import Bus, connect
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.embedded_redis import embedded_redis
from maveriq.running import SERVICE_ENTRY_POINTS, Run, end
from maveriq.settings import BadSetting
from maveriq.topology import SERVICES
from maveriq.tracing import NO_SPANS, Spans, recording

STOP_TIMEOUT_S = 30.0  # engines answer nothing more, so this is processes ending
NAMES = tuple(service.name for service in SERVICES)


class Cluster:
    """Services that run as tasks of this loop."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self._broker = InProcessBroker()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        host, port = self.env.get("MAVERIQ_HTTP_HOST", "127.0.0.1"), self.env.get("MAVERIQ_HTTP_PORT", "8000")
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"

    @property
    def names(self) -> tuple[str, ...]:
        """The services that were started."""
        return tuple(self._tasks)

    async def connect(self, spans: Spans = NO_SPANS) -> Bus:
        """A connection of its own to the cluster's broker."""
        if self.env.get("MAVERIQ_AMQP_URL"):
            return await connect(amqp_url(self.env), spans)
        return InProcessBus(self._broker, spans=spans)

    async def start(self, runs: Mapping[str, Run]) -> None:
        for name, run in runs.items():
            self._tasks[name] = asyncio.create_task(self._serve(name, run), name=name)

    async def wait_failed(self) -> CommandFailed:
        """Return only when a service has ended by itself, saying which and why."""
        ended, _ = await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        task = next(iter(ended))
        error = first_cause(task.exception())
        if isinstance(error, BadSetting):
            return CommandFailed(str(error), exit_code=2)
        why = f"{type(error).__name__}: {error}" if error is not None else "it ended by itself"
        return CommandFailed(f"{task.get_name()} stopped: {why}", code="service_stopped")

    async def wait_ready(self) -> None:
        """Until ingress serves HTTP and knows every node that starts here. Raises CommandFailed."""
        failed = asyncio.create_task(self.wait_failed())
        ready = asyncio.create_task(self._ready())
        try:
            await asyncio.wait({failed, ready}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            await ready
        finally:
            failed.cancel()
            ready.cancel()

    async def stop(self) -> None:
        """Cancel all services and wait until each has cleaned up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.gather(*(end(task) for task in self._tasks.values()))
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)  # those that failed were told of already

    async def _ready(self) -> None:
        if "ingress" not in self._tasks:
            return
        api = Api(self.url)
        await _until(api.ready)
        if "worker" in self._tasks:
            await _until(api.inventory)

    async def _serve(self, name: str, run: Run) -> None:
        structlog.contextvars.bind_contextvars(service=name)
        async with recording(name, self.env) as spans:
            bus = await self.connect(spans)
            try:
                await run(bus, self.env)
            finally:
                await bus.close()


def first_cause(error: BaseException | None) -> BaseException | None:
    """What a task group wraps: the first of its errors."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseException, error.exceptions[0])  # pyright: ignore[reportUnknownMemberType]
    return error


async def _until(answers: Callable[[], object]) -> None:
    """Ask in a thread, ten times a second, until the answer is true."""
    while True:
        if await asyncio.to_thread(answers):
            return
        await asyncio.sleep(0.1)


@asynccontextmanager
async def running_cluster(env: Mapping[str, str], only: Sequence[str] = ()) -> AsyncGenerator[Cluster, None]:
    """A cluster while the block runs; what env gives no URL for is embedded.

    Args:
        only: names of services; empty runs them all.

    Raises:
        CommandFailed: naming the service or the setting at fault.
    """
    runs = find_services(only)
    if only and not env.get("MAVERIQ_AMQP_URL"):
        raise CommandFailed(
            "one service alone talks to the others through RabbitMQ: give --amqp amqp://host",
            field="--only", exit_code=2,
        )  # fmt: skip
    async with AsyncExitStack() as stack:
        if not env.get("MAVERIQ_REDIS_URL") and not only:
            env = {**env, "MAVERIQ_REDIS_URL": stack.enter_context(embedded_redis(cache_dir(env) / "embedded-redis"))}
        if env.get("MAVERIQ_DEVICES", "").startswith("cpu"):
            env = {"MAVERIQ_PROFILE_DEVICE": "cpu", **env}  # what the worker serves on is what is to be measured
        if env.get("MAVERIQ_HTTP_PORT") == "0":
            env = {**env, "MAVERIQ_HTTP_PORT": str(_free_port())}  # whoever asks ingress has to know it
        cluster = Cluster(env)
        stack.push_async_callback(cluster.stop)
        await cluster.start(runs)
        yield cluster


def find_services(only: Sequence[str]) -> dict[str, Run]:
    """The services to run, by name, from what is installed.

    Raises:
        CommandFailed: one is not known, not installed or cannot be imported.
    """
    for name in only:
        if name not in NAMES:
            raise CommandFailed(f"{name!r} is no service; known: {', '.join(NAMES)}", field="--only", exit_code=2)
    installed = {point.name: point for point in entry_points(group=SERVICE_ENTRY_POINTS)}
    runs: dict[str, Run] = {}
    for name in only or NAMES:
        if name not in installed:
            raise CommandFailed(f"{name} is not installed: pip install maveriq-{name}", code="missing_service")
        try:
            runs[name] = installed[name].load()
        except ImportError as error:
            raise CommandFailed(f"{name} cannot start: {error}", code="missing_service") from error
    return runs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
