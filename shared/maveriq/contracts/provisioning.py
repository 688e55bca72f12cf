"""Which GPUs could be rented, for what, and which should be: what `maveriq provision` asks and is told."""

from typing import Self

from pydantic import Field, model_validator

from maveriq.contracts.calibration import Calibration
from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.fault import QuestionRefused
from maveriq.contracts.histogram import Histogram, Matrix, check_distribution, check_edges, check_shape
from maveriq.contracts.intent import Intent
from maveriq.contracts.message import DoorValue, Value
from maveriq.contracts.model import Model

__all__ = [
    "Bucket", "Catalogue", "Changed", "Fleet", "FleetTerms", "Histogram", "LawSources", "Matrix", "ProvisioningRefused",
    "ProvisioningRequest", "RatePoint", "RentableGpu", "Rented", "Share", "SingleType", "check_distribution",
    "check_shape",
]  # fmt: skip


class ProvisioningRefused(QuestionRefused):
    """What `maveriq provision` asked cannot be answered."""


class RentableGpu(DoorValue):
    """One row of a catalogue: an instance with one GPU or several, which is rented as a whole."""

    name: str = Field(min_length=1)
    price_per_hour: float = Field(ge=0, description="Of the whole instance.")
    gpu_type: str = Field(default="", description="Product name, as calibrations have it. '': the row's name.")
    num_gpus: int = Field(default=1, ge=1, le=1024)
    memory_gib: float | None = Field(
        default=None, gt=0, description="Of one GPU. None: not known; needed where throughput comes from the law."
    )
    throughput: Matrix | None = Field(
        default=None,
        description="Requests a second that the whole instance bears within the SLO, by input and output bucket; "
        "0: it cannot serve the bucket. None: from the GPU type's calibration.",
    )
    available: int | None = Field(default=None, ge=0, description="Instances to be had. None: no cap.")
    spot_price_per_hour: float | None = Field(default=None, ge=0, description="None: not offered.")
    spot_interruptions_per_hour: float | None = Field(
        default=None, ge=0, description="Of one instance, mean. Needed beside a spot price."
    )
    spot_available: int | None = Field(default=None, ge=0, description="None: no cap.")
    source: str = Field(default="", description="Where the price is from.")
    as_of: str = Field(default="", description="Day on which it held.")

    @property
    def kind(self) -> str:
        return self.gpu_type or self.name

    @model_validator(mode="after")
    def _spot_is_whole(self) -> Self:
        if self.spot_price_per_hour is not None and self.spot_interruptions_per_hour is None:
            raise ValueError("spot_interruptions_per_hour: a spot price without it says nothing of what is lost")
        if self.throughput is not None and any(value < 0 for row in self.throughput for value in row):
            raise ValueError("throughput: no number may be negative; 0 says that a bucket cannot be served")
        return self


class Catalogue(DoorValue):
    """What can be rented."""

    gpus: tuple[RentableGpu, ...] = Field(min_length=1)
    currency: str = "USD"
    as_of: str = Field(default="", description="Day on which the newest of its prices held.")
    note: str = ""
    input_edges: tuple[float, ...] | None = Field(
        default=None, description="Longest prompt of each row of `throughput`, in tokens, ascending."
    )
    output_edges: tuple[float, ...] | None = Field(
        default=None, description="Longest answer of each column of `throughput`."
    )

    @model_validator(mode="after")
    def _throughputs_are_of_the_buckets(self) -> Self:
        names = [gpu.name for gpu in self.gpus]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"gpus: {', '.join(twice)} is named twice")
        if (self.input_edges is None) != (self.output_edges is None):
            raise ValueError("input_edges and output_edges go together")
        check_edges("input_edges", self.input_edges)
        check_edges("output_edges", self.output_edges)
        for number, gpu in enumerate(self.gpus):
            if gpu.throughput is not None and self.input_edges is not None and self.output_edges is not None:
                check_shape(f"gpus.{number}.throughput", gpu.throughput, len(self.input_edges), len(self.output_edges))
        return self


class FleetTerms(DoorValue):
    """What the fleet must stand."""

    headroom: float = Field(default=0.0, ge=0, le=100, description="Share of load to bear beyond the workload's.")
    spare: bool = Field(default=False, description="N+1: the whole load is served after any one instance was lost.")
    spot: bool = Field(default=False, description="Whether instances may be rented that can be taken away.")
    recovery_minutes: float = Field(
        default=10.0, ge=0, le=10_080, description="From losing or renting an instance until one serves in its place."
    )
    horizon_h: float = Field(default=24.0, gt=0, le=87_660, description="Hours over which a change must pay.")
    running: dict[str, int] | None = Field(
        default=None,
        description="Instances that run already, by row; GPUs, by their type; or nodes, as `<type> x <GPUs of each>`. "
        "None: nothing is to be kept.",
    )
    start_cost: float | None = Field(
        default=None, ge=0, description="Money for each instance more. None: its price while it recovers."
    )
    stop_cost: float = Field(default=0.0, ge=0, description="Money for each instance less.")
    time_limit_s: float = Field(default=10.0, gt=0, le=86_400)


class LawSources(Value):
    """What throughputs are predicted from where the catalogue has none."""

    model: Model
    facts: ModelFacts
    calibrations: tuple[Calibration, ...]
    intent: Intent = Field(description="SLO, accuracy and precisions that count; its workload does not.")


class ProvisioningRequest(Value):
    """One of trace, histogram and melange says the workload; a trace may stand in for the workload of melange."""

    catalogue: Catalogue | None = Field(default=None, description="None: the one that ships, but Mélange's own.")
    trace: str | None = Field(default=None, description="Text of a CSV file: arrival, prompt and output tokens.")
    histogram: Histogram | None = None
    melange: str | None = Field(default=None, description="Text of a configuration file of Mélange.")
    unnormalised: bool = Field(default=False, description="Mélange's distribution need not sum to 1.")
    only: tuple[str, ...] = Field(default=(), description="Rows or GPU types to choose from. Empty: all.")
    request_rate_per_s: float | None = Field(default=None, gt=0, le=1e9, description="None: the workload's own.")
    peak_window_s: float | None = Field(
        default=None, gt=0, description="Of a trace: plan for its busiest stretch of so long. None: for its mean."
    )
    buckets: int = Field(default=6, ge=1, le=40, description="Most edges chosen from a trace, of each axis.")
    terms: FleetTerms = FleetTerms()
    law: LawSources | None = None
    curve: bool = Field(default=False, description="Whether the cost at other request rates is wanted too.")


class Rented(Value):
    """Instances of one kind that the fleet has."""

    name: str = Field(description="Row of the catalogue.")
    gpu_type: str
    spot: bool
    configuration: str = Field(description="How each runs, e.g. bf16 · TP 2; '': as its profile was taken.")
    count: int = Field(ge=1)
    num_gpus: int = Field(ge=1, description="Of one instance.")
    price_per_hour: float = Field(description="Of one instance.")
    utilisation: float = Field(ge=0, description="Share of what they bear within the SLO, headroom and loss included.")


class Share(Value):
    rented: int = Field(ge=0, description="Place in `Fleet.rented`.")
    share: float = Field(gt=0, le=1, description="Of the bucket's requests.")


class Bucket(Value):
    """Requests of one size, and who is to serve them."""

    input_up_to: float
    output_up_to: float
    input_tokens: float = Field(description="That throughput was predicted for.")
    output_tokens: float
    request_rate_per_s: float
    shares: tuple[Share, ...]


class SingleType(Value):
    """The cheapest fleet of one GPU type alone."""

    gpu_type: str
    count: int | None = Field(description="Instances. None: it cannot serve the workload alone.")
    price_per_hour: float | None
    saving: float | None = Field(description="Share of its price that the fleet saves.")
    problem: str = ""


class Changed(Value):
    """What is to be rented or given back of one row, from what runs."""

    name: str
    running: int
    wanted: int


class RatePoint(Value):
    """The cheapest fleet at another request rate."""

    request_rate_per_s: float
    price_per_hour: float | None = Field(description="None: more than the caps let be served.")
    single: dict[str, float | None] = Field(description="By GPU type.")
    counts: dict[str, int] = Field(description="By row.")


class Fleet(Value):
    """What to rent, and what goes where."""

    currency: str
    request_rate_per_s: float
    rented: tuple[Rented, ...]
    buckets: tuple[Bucket, ...]
    price_per_hour: float
    bound_per_hour: float = Field(description="No fleet of these units costs less: proven.")
    gap: float = Field(ge=0, description="Share by which a cheaper one might exist; 0: there is none.")
    change_cost: float = Field(default=0.0, description="Once, for starting and stopping.")
    changed: tuple[Changed, ...] = ()
    single_types: tuple[SingleType, ...]
    curve: tuple[RatePoint, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="What the figures leave out, one sentence each.")
    melange: dict[str, float] | None = Field(default=None, description="In Mélange's result format, where asked in it.")
