"""Whether a GPU's memory is as reserved. Pure: what is held and what its driver says in, words out."""

from maveriq.contracts import Gpu, GpuState, MemoryDrifted
from maveriq_allocator.words import readable

SLACK_BYTES = 64 * 2**20  # that an allocator's rounding and a driver's own tables may take beside what was reserved


def drift(gpu: Gpu, held_bytes: int) -> str | None:
    """How; None: it is as reserved, or the driver does not tell."""
    if gpu.own_bytes is not None and gpu.own_bytes > held_bytes + SLACK_BYTES:
        return (
            f"our processes take {readable(gpu.own_bytes)}, {readable(gpu.own_bytes - held_bytes)} more than "
            f"the {readable(held_bytes)} reserved"
        )
    if held_bytes and gpu.foreign_bytes + held_bytes > gpu.total_bytes:
        return (
            f"processes that are not ours take {readable(gpu.foreign_bytes)} of {readable(gpu.total_bytes)}, "
            f"of which {readable(held_bytes)} are reserved"
        )
    return None


def drifted(node: str, state: GpuState) -> MemoryDrifted:
    gpu = state.gpu
    return MemoryDrifted(
        node=node,
        gpu=gpu.id,
        reserved_bytes=sum(holding.bytes for holding in state.holdings),
        own_bytes=gpu.own_bytes,
        foreign_bytes=gpu.foreign_bytes,
        total_bytes=gpu.total_bytes,
        detail=state.drift or "",
    )
