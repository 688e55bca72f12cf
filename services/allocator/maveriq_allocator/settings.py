"""The environment as settings, read once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio.connection import parse_url

from maveriq.contracts import Strategy
from maveriq.settings import read
from maveriq_allocator.inventory import Times
from maveriq_allocator.quotas import NO_HEADROOM, NO_QUOTA, Headroom, Quotas, parse_headroom, parse_quotas

NODE_TIMEOUT_S = 60.0  # six reports of a worker at its default
GRACE_S = 60.0
MAX_SWEEP_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    node_timeout_s: float
    """A node that did not report for so long gets nothing placed on it."""
    grace_s: float = GRACE_S
    """A worker that did not report for so long has lost its reservations."""
    quotas: Quotas = NO_QUOTA
    headroom: Headroom = NO_HEADROOM

    @property
    def times(self) -> Times:
        return Times(min(MAX_SWEEP_S, self.grace_s / 6), self.grace_s)

    strategy: Strategy = Strategy.BEST_FIT
    """Of intents that name none."""


def from_env(env: Mapping[str, str]) -> Settings:
    """Raises BadSetting."""
    return Settings(
        redis_url=read(env, "MAVERIQ_REDIS_URL", _redis_url),
        node_timeout_s=read(env, "MAVERIQ_NODE_TIMEOUT_S", _positive, NODE_TIMEOUT_S),
        grace_s=read(env, "MAVERIQ_GRACE_S", _positive, GRACE_S),
        quotas=read(env, "MAVERIQ_QUOTAS", parse_quotas, NO_QUOTA),
        headroom=read(env, "MAVERIQ_HEADROOM", parse_headroom, NO_HEADROOM),
        strategy=read(env, "MAVERIQ_STRATEGY", _strategy, Strategy.BEST_FIT),
    )


def _redis_url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise ValueError("give a Redis URL, e.g. redis://localhost:6379/0") from error
    return text


def _strategy(text: str) -> Strategy:
    if text not in list(Strategy):
        raise ValueError(f"give one of {', '.join(Strategy)}")
    return Strategy(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("give a number of seconds above 0")
    return value
