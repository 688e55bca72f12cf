"""Starts the process that measures accuracy, and hears it out. Killed with whoever waits for it."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from maveriq.contracts import Precision, VariantAccuracy
from maveriq_profiler.accuracy_orders import AccuracyLine, AccuracyOrder, Step

REPORT_S = 0.5  # a window may take milliseconds
_LINE_LIMIT_BYTES = 2**20

Report = Callable[[Step], Awaitable[None]]


@dataclass(slots=True)
class Heard:
    """What the process has said so far."""

    results: dict[str, VariantAccuracy] = field(default_factory=dict[str, VariantAccuracy])
    lost: dict[Precision, tuple[float, ...]] = field(default_factory=dict[Precision, tuple[float, ...]])
    """By each layer alone, nats a token."""
    num_tokens: int = 0
    failed: str = ""
    """Why nothing can be measured."""


async def run(order: AccuracyOrder, heard: Heard, report: Report, limit_s: float) -> None:
    """Fill `heard`; however the process ends, each of the order's variants has a result or a reason in it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "maveriq_profiler.accuracy_child",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TQDM_DISABLE": "1"}, limit=_LINE_LIMIT_BYTES,
    )  # fmt: skip
    try:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None, "they are pipes"
        child.stdin.write(order.model_dump_json().encode() + b"\n")
        async with asyncio.timeout(limit_s):
            _, words = await asyncio.gather(_hear(child.stdout, heard, report), _last_words(child.stderr))
            code = await child.wait()
        ended = "" if code == 0 else _ended(code, words)
    except TimeoutError:
        ended = f"it was stopped after {limit_s / 60:.0f} minutes; ask again with fewer --max-tokens"
    finally:
        if child.returncode is None:
            child.kill()
            await asyncio.shield(child.wait())
    if ended and not heard.failed:
        left = [each.label for each in order.subjects if each.label not in heard.results]
        heard.results |= {label: VariantAccuracy(variant=label, problem=f"{label}: {ended}") for label in left}
        heard.failed = "" if order.reference_label in heard.results and not order.layers else ended


def _ended(code: int, words: str) -> str:
    killed = " (-9: killed, as the kernel does where memory ends)" if code == -9 else ""
    return f"the measuring process ended with code {code}{killed}{': ' + words if words else ''}"


async def _last_words(errors: asyncio.StreamReader) -> str:
    """The end of a traceback names what went wrong."""
    last = ""
    async for line in errors:
        last = line.decode(errors="replace").strip() or last
    return last


async def _hear(output: asyncio.StreamReader, heard: Heard, report: Report) -> None:
    """The first and the last step of each variant are told, of those between not more than one each REPORT_S."""
    loop = asyncio.get_running_loop()
    told_s = -REPORT_S
    async for text in output:
        line = AccuracyLine.model_validate_json(text)
        if line.read_tokens is not None:
            heard.num_tokens = line.read_tokens
        elif line.step is not None:
            if line.step.num_done in (0, line.step.num_tokens) or loop.time() - told_s >= REPORT_S:
                told_s = loop.time()
                await report(line.step)
        elif line.result is not None:
            heard.results[line.result.variant] = line.result
        elif line.lost is not None:
            heard.lost[line.lost.precision] = line.lost.nats_per_token
        elif line.failed is not None:
            heard.failed = line.failed
