"""Which GPU type serves requests of which size."""

from pydantic import Field

from maveriq.contracts.message import Value


class ServedBy(Value):
    gpu_type: str
    share: float = Field(ge=0, le=1, description="Of the requests that go there first. 0: it only takes what is over.")


class Lane(Value):
    """The requests planned for one GPU type, as one replica takes them."""

    gpu_type: str
    rank: int = Field(
        default=0, ge=0,
        description="0: its own, which it takes as they come. Else it helps out while it has a slot free, after those "
        "of a lower rank.",
    )  # fmt: skip


class Route(Value):
    """Requests of one size, and the GPU types that answer them."""

    input_up_to: float = Field(gt=0, description="Longest prompt, in tokens.")
    output_up_to: float = Field(gt=0, description="Longest answer.")
    share: float = Field(ge=0, le=1, description="Of all requests, as planned.")
    served_by: tuple[ServedBy, ...] = Field(min_length=1, description="In order of preference.")
