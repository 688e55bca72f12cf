"""What the profiler and the process that measures for it say to each other: one order in, lines out, all JSON."""

from typing import Literal

from pydantic import Field

from maveriq.agreed_settings import EngineName
from maveriq.contracts import ModelFacts, Precision, RunSample, Sample, Value
from maveriq_profiler.grid import Grid
from maveriq_profiler.programme import Item


class FactsOrder(Value):
    """Read a source's config.json."""

    kind: Literal["facts"] = "facts"
    source: str


class ProbeOrder(Value):
    """Run cut models."""

    kind: Literal["probe"] = "probe"
    config_json: str = Field(description="As in Reading.")
    engine: EngineName
    device: str = Field(description="cpu or cuda:<n>.")
    threads: int = Field(gt=0, description="CPU threads, where the device is cpu.")
    precision: Precision
    kv_precision: Precision = Field(description="What quantised weights are computed with, where it is a full one.")
    grid: Grid


class ItemOrder(Value):
    """Run one item of a calibration's programme."""

    kind: Literal["item"] = "item"
    item: Item
    device: str = Field(description="cpu or cuda:<n>; several with commas between, where the item needs them.")
    threads: int = Field(gt=0, description="CPU threads of each stage.")


class Order(Value):
    order: FactsOrder | ProbeOrder | ItemOrder = Field(discriminator="kind")


class Reading(Value):
    """What a source's config says."""

    facts: ModelFacts
    config_json: str = Field(description="The decoder's whole config, so that a source is read once.")
    cannot_run: dict[str, str] = Field(
        default_factory=dict[str, str], description="Engines that cannot, with the reason."
    )


class Measured(Value):
    """All readings of one ProbeOrder."""

    hop_ms: float
    samples: tuple[Sample, ...]
    cost_s: float


class ItemRan(Value):
    """All readings of one ItemOrder."""

    samples: tuple[RunSample, ...] = Field(min_length=1)


class Line(Value):
    """One line of the measuring process's output: progress any number of times, then one of the others."""

    progress: Sample | None = Field(default=None, description="The latest reading, for the log.")
    ran: ItemRan | None = None
    reading: Reading | None = None
    measured: Measured | None = None
    unreadable: str | None = None
    failed: str | None = None
