"""Gives the process that measures accuracy its order, and hears it out."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from maveriq.contracts import Precision, VariantAccuracy
from maveriq_profiler.accuracy_orders import AccuracyLine, AccuracyOrder, Step
from maveriq_profiler.children import Children

REPORT_S = 0.5  # a window may take milliseconds

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


async def run(children: Children, order: AccuracyOrder, heard: Heard, report: Report, limit_s: float) -> None:
    """Fill `heard`; however the process ends, each of the order's variants has a result or a reason in it."""
    hearing = _Hearing(heard, report)
    try:
        async with asyncio.timeout(limit_s):
            end = await children.run("maveriq_profiler.accuracy_child", order.model_dump_json(), hearing.hear)
        ended = "" if end.code == 0 else end.told
    except TimeoutError:
        ended = f"it was stopped after {limit_s / 60:.0f} minutes; ask again with fewer --max-tokens"
    if ended and not heard.failed:
        left = [each.label for each in order.subjects if each.label not in heard.results]
        heard.results |= {label: VariantAccuracy(variant=label, problem=f"{label}: {ended}") for label in left}
        heard.failed = "" if order.reference_label in heard.results and not order.layers else ended


@dataclass(slots=True)
class _Hearing:
    heard: Heard
    report: Report
    told_s: float = -REPORT_S

    async def hear(self, text: bytes) -> None:
        """The first and the last step of each variant are told, of those between not more than one each REPORT_S."""
        heard, line = self.heard, AccuracyLine.model_validate_json(text)
        if line.read_tokens is not None:
            heard.num_tokens = line.read_tokens
        elif line.step is not None:
            now_s = asyncio.get_running_loop().time()
            if line.step.num_done in (0, line.step.num_tokens) or now_s - self.told_s >= REPORT_S:
                self.told_s = now_s
                await self.report(line.step)
        elif line.result is not None:
            heard.results[line.result.variant] = line.result
        elif line.lost is not None:
            heard.lost[line.lost.precision] = line.lost.nats_per_token
        elif line.failed is not None:
            heard.failed = line.failed
