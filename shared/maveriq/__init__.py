"""Intent-based LLM serving: say what a model must do, and stream its tokens."""

from importlib import import_module
from typing import TYPE_CHECKING

from maveriq.contracts import (
    ChatMessage,
    Chunk,
    Deployment,
    Intent,
    Model,
    Objective,
    Precision,
    Priority,
    Sampling,
    Slo,
    Variant,
    Workload,
)

if TYPE_CHECKING:
    from maveriq.client import Client, DeploymentFailedError, connect
    from maveriq.inbox import RequestFailed
    from maveriq.subscription import Refused

__all__ = [
    "ChatMessage",
    "Chunk",
    "Client",
    "Deployment",
    "DeploymentFailedError",
    "Intent",
    "Model",
    "Objective",
    "Precision",
    "Priority",
    "Refused",
    "RequestFailed",
    "Sampling",
    "Slo",
    "Variant",
    "Workload",
    "connect",
]


def __getattr__(name: str) -> object:
    """The client loads at first use: who needs only the contracts, as an engine's processes do, loads no AMQP."""
    if name in __all__:
        return getattr(import_module("maveriq.client"), name)
    raise AttributeError(f"module 'maveriq' has no attribute {name!r}")
