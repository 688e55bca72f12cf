"""What the profiler and the process that measures accuracy say to each other: one order in, lines out, all JSON."""

from pydantic import Field

from maveriq.contracts import Precision, Value, VariantAccuracy


class Subject(Value):
    """One variant to measure."""

    label: str
    computed_in: Precision
    source: str | None = Field(description="None: the model's weights.")
    quantised: bool
    int8_cache: bool = Field(default=False, description="Keys and values are kept in 8 bits, as the torch engine does.")
    made: Precision | None = Field(default=None, description="What the torch engine makes of the layers' weights.")


class AccuracyOrder(Value):
    source: str
    reference: Precision = Field(description="What full precision is here.")
    reference_label: str = Field(description="The variant that it is, or a name for it.")
    subjects: tuple[Subject, ...]
    text: str
    max_tokens: int
    layers: tuple[Precision, ...] = Field(
        default=(), description="In which each layer alone is measured, in place of the subjects."
    )
    device: str = Field(description="cpu or cuda:<n>.")
    threads: int = Field(gt=0, description="CPU threads, where the device is cpu.")


class Step(Value):
    """How far one variant is, in tokens, or the layers in one precision, in passes."""

    variant: str
    num_done: int
    num_tokens: int


class LayersLost(Value):
    """All layers in one precision."""

    precision: Precision
    nats_per_token: tuple[float, ...] = Field(description="By each layer alone.")


class AccuracyLine(Value):
    """One line of the measuring process's output."""

    read_tokens: int | None = Field(default=None, description="Of the text; said before all else.")
    step: Step | None = None
    result: VariantAccuracy | None = None
    lost: LayersLost | None = None
    failed: str | None = Field(default=None, description="Nothing can be measured, and why.")
