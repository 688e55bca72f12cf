"""Measures a model's variants against full precision: starts the process that does it where there is room for it."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from maveriq.contracts import (
    FULL_PRECISIONS,
    AccuracyMeasured,
    AccuracyProgressed,
    AccuracyRequested,
    Precision,
    Variant,
    VariantAccuracy,
)
from maveriq_profiler.accuracy import needed_bytes
from maveriq_profiler.accuracy_orders import AccuracyLine, AccuracyOrder, Step, Subject
from maveriq_profiler.borrowing import NoMemory
from maveriq_profiler.measuring import ModelUnreadable, Rig
from maveriq_profiler.orders import Reading
from maveriq_profiler.variants import computed_in, obstacle, own_source, shape_difference

log = structlog.get_logger()

REPORT_S = 0.5  # a window may take milliseconds
_REFERENCES = (Precision.FP32, Precision.BF16)
_GIB = 2**30
_LINE_LIMIT_BYTES = 2**20

Report = Callable[[AccuracyProgressed], Awaitable[None]]


class Reader(Protocol):
    async def read(self, source: str) -> Reading:
        """Raises ModelUnreadable."""
        ...


class Room(Protocol):
    def borrowed(self, num_bytes: int) -> AbstractAsyncContextManager[str]:
        """The device on which so many bytes are held. Raises NoMemory."""
        ...


@dataclass(slots=True)
class _Heard:
    results: dict[str, VariantAccuracy] = field(default_factory=dict[str, VariantAccuracy])
    num_tokens: int = 0
    failed: str = ""


class AccuracyMeasuring:
    def __init__(self, rig: Rig, reader: Reader, room: Room | None, free_bytes: Callable[[], int]) -> None:
        """
        Args:
            room: where a GPU's memory is borrowed; None: it is measured in the machine's own.
            free_bytes: of that.
        """
        self._rig = rig
        self._reader = reader
        self._room = room
        self._free_bytes = free_bytes

    async def measure(self, asked: AccuracyRequested, report: Report) -> AccuracyMeasured:
        """Every variant that this rig can run, and why the others were not."""
        heard = _Heard()
        try:
            reading = await self._reader.read(asked.model.source)
            async with self._place(reading) as (device, reference):
                problems = await self._obstacles(asked, reading, reference)
                runnable = [variant for variant in asked.model.variants if variant.label not in problems]
                order = self._order(asked, device, reference, runnable)
                await self._run(order, heard, lambda step: report(_progress(asked, step)))
        except (ModelUnreadable, NoMemory) as error:
            return AccuracyMeasured(
                accuracy_id=asked.accuracy_id, model=asked.model, variants=(), num_tokens=0, problem=str(error)
            )
        found = tuple(_result(variant.label, problems, heard) for variant in asked.model.variants)
        log.info("accuracy measured", model=asked.model.name, reference=reference, num_tokens=heard.num_tokens)
        return AccuracyMeasured(
            accuracy_id=asked.accuracy_id, model=asked.model, reference=reference, variants=found,
            num_tokens=heard.num_tokens, problem=heard.failed,
        )  # fmt: skip

    @asynccontextmanager
    async def _place(self, reading: Reading) -> AsyncGenerator[tuple[str, Precision], None]:
        """The device, and the best that fits as full precision. Raises NoMemory."""
        async with AsyncExitStack() as stack:
            problem = ""
            for precision in _REFERENCES:
                num_bytes = needed_bytes(reading.facts, precision)
                try:
                    device = await stack.enter_async_context(self._held(num_bytes))
                except NoMemory as error:
                    problem = (
                        f"{precision} takes {num_bytes / _GIB:.1f} GiB ({error}); free some and measure again, "
                        "enter the accuracies, or import them with --from-lm-eval"
                    )
                else:
                    break
            else:
                raise NoMemory(problem)
            yield device, precision

    @asynccontextmanager
    async def _held(self, num_bytes: int) -> AsyncGenerator[str, None]:
        if self._room is not None:
            async with self._room.borrowed(num_bytes) as device:
                yield device
            return
        free = self._free_bytes()
        if num_bytes > free:
            raise NoMemory(f"{free / _GIB:.1f} GiB are free")
        yield self._rig.device

    async def _obstacles(self, asked: AccuracyRequested, reading: Reading, reference: Precision) -> dict[str, str]:
        """By label, why a variant cannot be measured here."""
        found: dict[str, str] = {}
        for variant in asked.model.variants:
            problem = obstacle(asked.model, variant)
            if not problem and computed_in(variant) is Precision.FP32 and reference is not Precision.FP32:
                problem = f"{variant.label}: fp32 does not fit into the memory that is free here"
            source = own_source(asked.model, variant)
            if not problem and source is not None:
                try:
                    theirs = await self._reader.read(source)
                    problem = shape_difference(reading.facts, theirs.facts, variant.label)
                except ModelUnreadable as error:
                    problem = f"{variant.label}: {error}"
            if problem:
                found[variant.label] = problem
        return found

    def _order(
        self, asked: AccuracyRequested, device: str, reference: Precision, runnable: list[Variant]
    ) -> AccuracyOrder:
        same = [each for each in runnable if own_source(asked.model, each) is None and each.precision is reference]
        return AccuracyOrder(
            source=asked.model.source,
            reference=reference,
            reference_label=same[0].label if same else f"full precision ({reference})",
            subjects=tuple(
                Subject(
                    label=each.label,
                    computed_in=computed_in(each),
                    source=own_source(asked.model, each),
                    quantised=each.precision not in FULL_PRECISIONS,
                )
                for each in runnable
                if each not in same[:1]
            ),
            text=asked.text,
            max_tokens=asked.max_tokens,
            device=device,
            threads=self._rig.threads,
        )

    async def _run(self, order: AccuracyOrder, heard: _Heard, report: Callable[[Step], Awaitable[None]]) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "maveriq_profiler.accuracy_child",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TQDM_DISABLE": "1"}, limit=_LINE_LIMIT_BYTES,
        )  # fmt: skip
        try:
            assert child.stdin is not None and child.stdout is not None and child.stderr is not None, "they are pipes"
            child.stdin.write(order.model_dump_json().encode() + b"\n")
            _, words = await asyncio.gather(_hear(child.stdout, heard, report), _last_words(child.stderr))
            code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await asyncio.shield(child.wait())
        if code != 0 and not heard.failed:
            left = [each.label for each in order.subjects if each.label not in heard.results]
            killed = " (-9: killed, as the kernel does where memory ends)" if code == -9 else ""
            words = f"the measuring process ended with code {code}{killed}{': ' + words if words else ''}"
            heard.results |= {label: VariantAccuracy(variant=label, problem=f"{label}: {words}") for label in left}
            heard.failed = "" if order.reference_label in heard.results else words


async def _last_words(errors: asyncio.StreamReader) -> str:
    """The end of a traceback names what went wrong."""
    last = ""
    async for line in errors:
        last = line.decode(errors="replace").strip() or last
    return last


async def _hear(output: asyncio.StreamReader, heard: _Heard, report: Callable[[Step], Awaitable[None]]) -> None:
    """The first and the last step of each variant are told, of those between not more than one each REPORT_S."""
    loop = asyncio.get_running_loop()
    told_s = -REPORT_S
    async for text in output:
        line = AccuracyLine.model_validate_json(text)
        if line.step is not None:
            heard.num_tokens = line.step.num_tokens
            if line.step.num_done in (0, line.step.num_tokens) or loop.time() - told_s >= REPORT_S:
                told_s = loop.time()
                await report(line.step)
        elif line.result is not None:
            heard.results[line.result.variant] = line.result
        elif line.failed is not None:
            heard.failed = line.failed


def _result(label: str, problems: dict[str, str], heard: _Heard) -> VariantAccuracy:
    problem = problems.get(label) or heard.failed or f"{label}: it was not measured"
    return heard.results.get(label) or VariantAccuracy(variant=label, problem=problem)


def _progress(asked: AccuracyRequested, step: Step) -> AccuracyProgressed:
    return AccuracyProgressed(
        accuracy_id=asked.accuracy_id, variant=step.variant, num_done=step.num_done, num_tokens=step.num_tokens
    )


def free_host_bytes(root: Path = Path("/")) -> int:
    """What may still be allocated, by the kernel and by the control group of a container."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return sys.maxsize  # not Linux: a process that takes too much is told by its end
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free
