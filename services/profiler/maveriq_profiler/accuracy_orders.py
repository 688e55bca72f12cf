"""What the profiler and the process that measures accuracy say to each other: one order in, lines out, all JSON."""

from pydantic import Field

from maveriq.contracts import Precision, Value, VariantAccuracy


class Subject(Value):
    """One variant to measure."""

    label: str
    computed_in: Precision
    source: str | None = Field(description="None: the model's weights.")
    quantised: bool


class AccuracyOrder(Value):
    source: str
    reference: Precision = Field(description="What full precision is here.")
    reference_label: str = Field(description="The variant that it is, or a name for it.")
    subjects: tuple[Subject, ...]
    text: str
    max_tokens: int
    device: str = Field(description="cpu or cuda:<n>.")
    threads: int = Field(gt=0, description="CPU threads, where the device is cpu.")


class Step(Value):
    """How far one variant is."""

    variant: str
    num_done: int
    num_tokens: int


class AccuracyLine(Value):
    """One line of the measuring process's output."""

    step: Step | None = None
    result: VariantAccuracy | None = None
    failed: str | None = Field(default=None, description="Nothing can be measured, and why.")
