"""A rig as the other profilers know it: what it measures on, and with which engine."""

from maveriq.contracts import Precision, Value


class RigSeen(Value):
    name: str
    engine: str
    engine_version: str
    gpu_type: str
    precisions: tuple[Precision, ...]
    max_pp: int = 1
    """Most pipeline stages that the engine can run there."""
