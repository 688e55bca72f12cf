"""Measures a model's variants, or its layers, against full precision, in a process where there is room for it."""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog

from maveriq.contracts import (
    FULL_PRECISIONS,
    AccuracyMeasured,
    AccuracyProgressed,
    AccuracyRequested,
    LayerSensitivity,
    Precision,
    Variant,
    VariantAccuracy,
)
from maveriq.contracts.accuracy import LAYER_PRECISIONS
from maveriq.engine_version import engine_version
from maveriq_profiler.accuracy import PART_TOKENS, needed_bytes
from maveriq_profiler.accuracy_orders import AccuracyOrder, Step, Subject
from maveriq_profiler.accuracy_process import Heard, run
from maveriq_profiler.borrowing import NoMemory
from maveriq_profiler.children import Children
from maveriq_profiler.measuring import ModelUnreadable, Rig
from maveriq_profiler.orders import Reading
from maveriq_profiler.variants import computed_in, obstacle, own_source, shape_difference

log = structlog.get_logger()

LIMIT_S = 5400.0  # RabbitMQ hands a message out again after two hours (deploy/helm/files/rabbitmq.conf)
_REFERENCES = (Precision.FP32, Precision.BF16)
_GIB = 2**30

Report = Callable[[AccuracyProgressed], Awaitable[None]]


class Reader(Protocol):
    async def read(self, source: str) -> Reading:
        """Raises ModelUnreadable."""
        ...


class Room(Protocol):
    def borrowed(self, num_bytes: int) -> AbstractAsyncContextManager[str]:
        """The device on which so many bytes are held. Raises NoMemory."""
        ...


class AccuracyMeasuring:
    def __init__(
        self, rig: Rig, reader: Reader, children: Children, room: Room | None, free_bytes: Callable[[], int],
        limit_s: float = LIMIT_S,
    ) -> None:  # fmt: skip
        """
        Args:
            room: where a GPU's memory is borrowed; None: it is measured in the machine's own.
            free_bytes: of that.
            limit_s: after so long what is not measured is given up.
        """
        self._rig = rig
        self._reader = reader
        self._children = children
        self._room = room
        self._free_bytes = free_bytes
        self._limit_s = limit_s

    async def measure(self, asked: AccuracyRequested, report: Report) -> AccuracyMeasured:
        """Every variant that this rig can run, and why the others were not."""
        heard = Heard()
        try:
            reading = await self._reader.read(asked.model.source)
            async with self._place(reading, asked) as (device, reference):
                problems = {} if asked.layers else await self._obstacles(asked, reading, reference)
                of_variants = () if asked.layers else asked.model.variants
                runnable = [variant for variant in of_variants if variant.label not in problems]
                order = self._order(asked, device, reference, runnable)
                await run(self._children, order, heard, lambda step: report(_progress(asked, step)), self._limit_s)
        except (ModelUnreadable, NoMemory) as error:
            return AccuracyMeasured(
                accuracy_id=asked.accuracy_id, model=asked.model, variants=(), num_tokens=0, problem=str(error)
            )
        of_variants = () if asked.layers else asked.model.variants
        found = tuple(_result(variant.label, problems, heard) for variant in of_variants)
        log.info("accuracy measured", model=asked.model.name, reference=reference, num_tokens=heard.num_tokens)
        return AccuracyMeasured(
            accuracy_id=asked.accuracy_id, model=asked.model, reference=reference, variants=found,
            sensitivity=self._sensitivity(asked, reference, heard), num_tokens=heard.num_tokens, problem=heard.failed,
        )  # fmt: skip

    def _sensitivity(self, asked: AccuracyRequested, reference: Precision, heard: Heard) -> LayerSensitivity | None:
        """A column of zeros for full precision, then those that were asked for."""
        if heard.failed or not asked.layers:
            return None
        columns = [heard.lost[precision] for precision in asked.layers]
        return LayerSensitivity(
            precisions=(reference, *asked.layers),
            layers=tuple((0.0, *row) for row in zip(*columns, strict=True)),
            evidence=f"nats a token over {heard.num_tokens} tokens of a text, one layer at a time as the torch engine "
            f"quantises it; full precision is {reference}; torch {engine_version('torch')}",
        )

    @asynccontextmanager
    async def _place(self, reading: Reading, asked: AccuracyRequested) -> AsyncGenerator[tuple[str, Precision], None]:
        """The device, and the best that fits as full precision. Raises NoMemory."""
        async with AsyncExitStack() as stack:
            problem = ""
            for precision in references(asked):
                num_bytes = needed_bytes(reading.facts, precision, kept_tokens=PART_TOKENS if asked.layers else 0)
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
        same = [
            each
            for each in runnable
            if own_source(asked.model, each) is None and each.precision is each.cache_precision is reference
        ]
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
                    int8_cache=each.cache_precision is Precision.INT8,
                    made=each.precision if each.precision in LAYER_PRECISIONS else None,
                )
                for each in runnable
                if each not in same[:1]
            ),
            text=asked.text,
            max_tokens=asked.max_tokens,
            layers=asked.layers,
            device=device,
            threads=self._rig.threads,
        )


def _result(label: str, problems: dict[str, str], heard: Heard) -> VariantAccuracy:
    problem = problems.get(label) or heard.failed or f"{label}: it was not measured"
    return heard.results.get(label) or VariantAccuracy(variant=label, problem=problem)


def references(asked: AccuracyRequested) -> tuple[Precision, ...]:
    """What may be taken for full precision, the best first. Layers are mixed with what the model is served in."""
    own = {each.precision for each in asked.model.variants if own_source(asked.model, each) is None}
    served = tuple(precision for precision in (*_REFERENCES, Precision.FP16) if precision in own)
    return served if asked.layers and served else _REFERENCES


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
