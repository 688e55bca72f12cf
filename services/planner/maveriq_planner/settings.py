"""The planner's environment, read once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from maveriq import agreed_settings as agreed
from maveriq.agreed_settings import Method
from maveriq.settings import read
from maveriq_planner.prices import NAME, prices


@dataclass(frozen=True, slots=True)
class Settings:
    max_pp: int
    """Most pipeline stages considered (MAVERIQ_MAX_PP)."""
    estimator: Method
    """MAVERIQ_ESTIMATOR."""
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    """Money an hour of one GPU, by type (MAVERIQ_PRICES)."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting."""
        return cls(max_pp=agreed.max_pp(env), estimator=agreed.method(env), prices=read(env, NAME, prices, {}))
