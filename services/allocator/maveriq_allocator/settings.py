"""The environment as settings, read once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq import agreed_settings as agreed
from maveriq.contracts import Strategy
from maveriq.settings import number, one_of, read
from maveriq_allocator.inventory import Times
from maveriq_allocator.quotas import NO_HEADROOM, NO_QUOTA, Headroom, Quotas, parse_headroom, parse_quotas

NODE_TIMEOUT_S = 60.0  # six reports of a worker at its default
GRACE_S = 60.0
MAX_SWEEP_S = 5.0
_SILENCE = number(0.1, 86_400, "seconds")


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    node_timeout_s: float
    """A node that did not report for so long gets nothing placed on it."""
    grace_s: float = GRACE_S
    """A worker that did not report for so long has lost its reservations."""
    quotas: Quotas = NO_QUOTA
    headroom: Headroom = NO_HEADROOM
    strategy: Strategy = Strategy.BEST_FIT
    """Of intents that name none."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting."""
        return cls(
            redis_url=agreed.redis_url(env),
            node_timeout_s=read(env, "MAVERIQ_NODE_TIMEOUT_S", _SILENCE, NODE_TIMEOUT_S),
            grace_s=read(env, "MAVERIQ_GRACE_S", _SILENCE, GRACE_S),
            quotas=read(env, "MAVERIQ_QUOTAS", parse_quotas, NO_QUOTA),
            headroom=read(env, "MAVERIQ_HEADROOM", parse_headroom, NO_HEADROOM),
            strategy=read(env, "MAVERIQ_STRATEGY", one_of(Strategy), Strategy.BEST_FIT),
        )

    @property
    def silence_s(self) -> float:
        """After which nothing is placed on a node: not where it would be reclaimed at once."""
        return min(self.node_timeout_s, self.grace_s)

    @property
    def times(self) -> Times:
        return Times(min(MAX_SWEEP_S, self.grace_s / 6), self.grace_s)
