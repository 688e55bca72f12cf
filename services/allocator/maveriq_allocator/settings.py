"""The environment as settings, read once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio.connection import parse_url

from maveriq.settings import read

NODE_TIMEOUT_S = 60.0  # six reports of a worker at its default


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    node_timeout_s: float
    """A node this much behind the newest report of all gets nothing placed on it."""


def from_env(env: Mapping[str, str]) -> Settings:
    """Raises BadSetting."""
    return Settings(
        redis_url=read(env, "MAVERIQ_REDIS_URL", _redis_url),
        node_timeout_s=read(env, "MAVERIQ_NODE_TIMEOUT_S", _positive, NODE_TIMEOUT_S),
    )


def _redis_url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise ValueError("give a Redis URL, e.g. redis://localhost:6379/0") from error
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("give a number of seconds above 0")
    return value
