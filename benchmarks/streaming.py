"""How fast do a worker's tokens reach a client over the broker, and over plain SSE, on this machine?

Ours is the real path: the worker's `Serving` and outbox, RabbitMQ, and `maveriq.Client.generate`. SSE is uvicorn on
uvloop with httptools and a raw ASGI application, read by aiohttp. The two ends of a path are processes of their own,
on uvloop, and both paths are fed by the same engine: one token a step for each request, no computing. It steps as
soon as all requests have taken the last step's tokens, so what is measured is what the paths can carry; in the idle
case it steps at a fixed pace, and the time from the step to the client's hands is taken. CPU is that of all
processes of a path, the broker's included.

    python benchmarks/streaming.py [--json] [--save] [--amqp URL]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.servers import RabbitMq

STREAMS = (1, 8, 32, 64)
TOKENS = {1: 12_000, 8: 64_000, 32: 128_000, 64: 256_000}  # of all streams: seconds, so the start counts little
IDLE_PACE_S = 0.01  # a fast engine's pace for one stream; at slower ones the CPU sleeps deeper, for both ways
IDLE_TOKENS = 200
REPEATS = 3
ENDS = Path(__file__).with_name("streaming_ends.py")
RESULT = Path(__file__).with_name("results") / "streaming.json"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Way:
    """A way for tokens, with everything on it running."""

    reader: "subprocess.Popen[str]"
    pids: tuple[int, ...]
    """Whose CPU time it costs."""

    def read(self, streams: int, tokens: int, *, timed: bool = False) -> Any:
        """Have the reader read; what it says, and the CPU time of all in ms."""
        assert self.reader.stdin is not None and self.reader.stdout is not None
        before = cpu_ms(self.pids)
        self.reader.stdin.write(json.dumps({"streams": streams, "tokens": tokens, "timed": timed}) + "\n")
        self.reader.stdin.flush()
        line = self.reader.stdout.readline()
        if not line:
            sys.exit("a reader died; its error is above")
        return json.loads(line) | {"cpu_ms": cpu_ms(self.pids) - before}


@dataclass(frozen=True, slots=True)
class Rate:
    tokens_per_s: float
    cpu_ms_per_1k: float


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options.add_argument("--save", action="store_true", help=f"write {RESULT.name} too")
    options.add_argument("--amqp", help="a RabbitMQ of this machine; without it a private one is started")
    chosen = options.parse_args()
    result = measure(chosen.amqp, chatty=not chosen.json)
    if chosen.save:
        RESULT.write_text(json.dumps({**result, "machine": machine()}, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(result))


def measure(amqp: str | None, *, chatty: bool) -> dict[str, Any]:
    with ExitStack() as running:
        if amqp is None:
            broker = running.enter_context(RabbitMq())
            url, broker_pids = broker.url, [broker.pid]
        else:
            url, broker_pids = amqp, [*beams()]
        ours = running.enter_context(our_way(url, broker_pids, 0))
        sse = running.enter_context(sse_way(0))
        streams = {str(count): compare(ours, sse, count, chatty) for count in STREAMS}
        idle_ours = running.enter_context(our_way(url, broker_pids, IDLE_PACE_S))
        idle_sse = running.enter_context(sse_way(IDLE_PACE_S))
        idle = {"ours": idle_p50_ms(idle_ours), "sse": idle_p50_ms(idle_sse)}
    if chatty:
        print(f"idle, p50: {idle['ours']:.2f} ms over the broker, {idle['sse']:.2f} ms over SSE")
    return {"streams": streams, "idle_p50_ms": idle}


def compare(ours: Way, sse: Way, count: int, chatty: bool) -> dict[str, float]:
    """Medians of interleaved runs, so that both ways meet the same machine."""
    runs = [(rate(ours, count), rate(sse, count)) for _ in range(REPEATS + 1)][1:]  # the first warms up
    found = {
        "ours_tokens_per_s": statistics.median(our.tokens_per_s for our, _ in runs),
        "sse_tokens_per_s": statistics.median(their.tokens_per_s for _, their in runs),
        "ours_cpu_ms_per_1k": statistics.median(our.cpu_ms_per_1k for our, _ in runs),
        "sse_cpu_ms_per_1k": statistics.median(their.cpu_ms_per_1k for _, their in runs),
    }
    if chatty:
        ratio = found["ours_tokens_per_s"] / found["sse_tokens_per_s"]
        print(
            f"{count:>3} streams: {found['ours_tokens_per_s']:>8,.0f} tokens/s over the broker, "
            f"{found['sse_tokens_per_s']:>8,.0f} over SSE ({ratio:.2f}); "
            f"CPU ms per 1,000 tokens {found['ours_cpu_ms_per_1k']:.1f} and {found['sse_cpu_ms_per_1k']:.1f}",
            flush=True,
        )
    return {name: round(value, 2) for name, value in found.items()}


def rate(way: Way, count: int) -> Rate:
    read = way.read(count, TOKENS[count] // count)
    if read["num"] != TOKENS[count] // count * count:
        sys.exit(f"tokens were lost: {read['num']} of {TOKENS[count]} came")
    return Rate(read["num"] / read["took_s"], read["cpu_ms"] / read["num"] * 1000)


def idle_p50_ms(way: Way) -> float:
    read = way.read(1, IDLE_TOKENS, timed=True)
    return round(float(statistics.median(read["latencies_ms"][10:])), 3)


@contextmanager
def our_way(url: str, broker_pids: Sequence[int], pace_s: float) -> Iterator[Way]:
    deployment_id = str(uuid4())
    with end("serve", "ours", url, deployment_id, str(pace_s)) as server:
        said(server)
        with end("read", "ours", url, deployment_id) as reader:
            yield Way(reader, (server.pid, reader.pid, *broker_pids))


@contextmanager
def sse_way(pace_s: float) -> Iterator[Way]:
    with end("serve", "sse", str(pace_s)) as server, end("read", "sse", said(server)) as reader:
        yield Way(reader, (server.pid, reader.pid))


@contextmanager
def end(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(ENDS), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        sys.exit("a server did not start; its error is above")
    return line


def cpu_ms(pids: Sequence[int]) -> float:
    """User and system time of the processes, all threads."""
    return sum(_ticks(pid) for pid in pids) / TICKS_PER_S * 1000


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def beams() -> tuple[int, ...]:
    """The Erlang machines here: with --amqp, the broker is one of them."""
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if path.read_text() == "beam.smp\n"]
    if not found:
        sys.exit("--amqp: no RabbitMQ runs on this machine, so its CPU time cannot be read")
    return tuple(found)


def machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(": ")[2] if model else platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
