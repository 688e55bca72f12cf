"""Gives the processes that measure their orders, and makes of what they say a fingerprint or samples."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from maveriq.contracts import BYTES_PER_ELEMENT, FULL_PRECISIONS, Fingerprint, Precision, RunSample, Sample, rig_name
from maveriq_profiler.children import Children
from maveriq_profiler.exit_status import ExitStatus
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Limits, grid_for
from maveriq_profiler.kept_readings import KeptReadings
from maveriq_profiler.orders import FactsOrder, ItemOrder, Line, Order, ProbeOrder, Reading
from maveriq_profiler.programme import Item

log = structlog.get_logger()


class ModelUnreadable(Exception):
    """A source has no config that can be read, or its architecture cannot be cut."""


class ProbeFailed(Exception):
    """A cut model did not run here; the same order may do so elsewhere or later."""


@dataclass(frozen=True, slots=True)
class Rig:
    """What is measured on, and by which engine."""

    engine: str
    engine_version: str
    gpu_type: str
    device: str
    threads: int
    precisions: tuple[Precision, ...]
    """Those that the engine runs on this device."""
    max_pp: int

    @property
    def full(self) -> Precision:
        """In which quantised weights are computed with where a calibration chooses."""
        return next(each for each in self.precisions if each in FULL_PRECISIONS)

    def teaches(self, measured: Format) -> bool:
        """Whether readings tell of the GPU type: a quantised weight costs another time in each format computed in, and
        the law knows no cache that is made whole on the CPU each time it is read.
        """
        quantised = measured.precision not in FULL_PRECISIONS
        return measured.kv_precision in FULL_PRECISIONS and (not quantised or measured.kv_precision is self.full)

    @property
    def name(self) -> str:
        """Engine and GPU type as one word of a routing key."""
        return rig_name(self.engine, self.gpu_type)


class Probe(Protocol):
    @property
    def rig(self) -> Rig: ...

    async def read(self, source: str) -> Reading:
        """Raises ModelUnreadable."""
        ...

    async def measure(self, reading: Reading, wanted: Format) -> Fingerprint:
        """Raises ProbeFailed."""
        ...

    async def run_item(self, item: Item, *, device: str) -> tuple[RunSample, ...]:
        """All samples of one item of a programme.

        Args:
            device: cpu or cuda:<n>; of an item with several GPUs as many, with commas between.

        Raises ProbeFailed.
        """
        ...


class ChildProbe:
    """Measures in a child process, one at a time: two would measure each other."""

    def __init__(self, rig: Rig, limits: Limits, children: Children, kept: KeptReadings | None = None) -> None:
        """Args: kept: what is known of sources from earlier starts; None: nothing is."""
        self.rig = rig
        self._limits = limits
        self._children = children
        self._kept = kept
        self._one_at_a_time = asyncio.Lock()
        self._read: dict[tuple[str, int], Reading] = {}

    async def read(self, source: str) -> Reading:
        """What was read once stays known until the file changes; of a Hugging Face id, until this process ends."""
        key = (source, changed_ns(source))
        if key not in self._read:
            self._read[key] = await self._kept_or_read(*key)
        return self._read[key]

    async def _kept_or_read(self, source: str, changed_ns: int) -> Reading:
        kept = self._kept if changed_ns else None
        if kept is not None and (known := await kept.get(source, changed_ns)) is not None:
            return known
        line, end = await self._run(Order(order=FactsOrder(source=source)))
        if line.reading is None:
            raise ModelUnreadable(line.unreadable or f"{source}: its config.json cannot be used ({end.told})")
        if kept is not None:
            await kept.keep(source, changed_ns, line.reading)
        return line.reading

    async def measure(self, reading: Reading, wanted: Format) -> Fingerprint:
        rig, precision = self.rig, wanted.precision
        grid = grid_for(self._limits, reading.facts, BYTES_PER_ELEMENT[wanted.computed_in])  # so it is built at first
        order = ProbeOrder(
            config_json=reading.config_json,
            engine="trtllm" if rig.engine == "trtllm" else "torch",
            device=rig.device,
            threads=rig.threads,
            precision=precision,
            kv_precision=wanted.kv_precision,
            grid=grid,
        )
        log.info("measuring", architecture=reading.facts.architecture, precision=precision,
                 kv_precision=wanted.kv_precision, gpu_type=rig.gpu_type, layers=grid.layers,
                 num_points=len(grid.points))  # fmt: skip
        async with self._one_at_a_time:
            line, end = await self._run(Order(order=order))
        if line.measured is None:
            problem = line.failed or line.unreadable or end.words or end.told
            raise ProbeFailed(f"{reading.facts.architecture} at {precision} on {rig.gpu_type}: {problem}")
        return Fingerprint(
            engine=rig.engine,
            engine_version=rig.engine_version,
            gpu_type=rig.gpu_type,
            precision=precision,
            kv_precision=wanted.kv_precision,
            tp_degrees=(1,),
            max_pp=rig.max_pp,
            hop_ms=line.measured.hop_ms,
            samples=line.measured.samples,
            cost_s=line.measured.cost_s,
        )

    async def run_item(self, item: Item, *, device: str) -> tuple[RunSample, ...]:
        log.info("measuring", item=item.key, gpu_type=self.rig.gpu_type, expected_s=round(item.expected_s, 1))
        async with self._one_at_a_time:
            line, end = await self._run(Order(order=ItemOrder(item=item, device=device, threads=self.rig.threads)))
        if line.ran is None:
            problem = line.failed or line.unreadable or end.words or end.told
            raise ProbeFailed(f"{item.key} on {self.rig.gpu_type}: {problem}")
        return line.ran.samples

    async def _run(self, order: Order) -> tuple[Line, ExitStatus]:
        """The child's last line, and how it ended."""
        last = Line()

        async def hear(text: bytes) -> None:
            nonlocal last
            line = Line.model_validate_json(text)
            if line.progress is None:
                last = line
            else:
                _log_progress(line.progress)

        ended = await self._children.run("maveriq_profiler.child", order.model_dump_json(), hear)
        return last, ended


def _log_progress(one: Sample) -> None:
    log.info("measured", num_layers=one.num_layers, batch=one.batch, input_tokens=one.input_tokens,
             prefill_ms=round(one.prefill_ms, 3), decode_ms=round(one.decode_ms, 3))  # fmt: skip


def changed_ns(source: str) -> int:
    """0: it is no local file."""
    path = Path(source).expanduser()
    for one in (path / "config.json", path):
        if one.is_file():
            return one.stat().st_mtime_ns
    return 0
