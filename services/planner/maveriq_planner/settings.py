"""The planner's environment, read once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from maveriq.settings import read
from maveriq_planner.prices import NAME, prices


class Method(StrEnum):
    """Where predictions come from."""

    LAW = "law"
    """GPU types' calibrations, else the model's own fingerprint."""
    MAVERIQ = "maveriq"
    """The published method, from fingerprints."""
    AICONFIGURATOR = "aiconfigurator"
    """As `law`; the vendor's tables for GPU types that were never measured."""


@dataclass(frozen=True, slots=True)
class Settings:
    max_pp: int = 8
    """Most pipeline stages considered (MAVERIQ_MAX_PP): how far a model may be cut to fit fragments."""
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    """Money an hour of one GPU, by type (MAVERIQ_PRICES)."""
    estimator: Method = Method.LAW
    """MAVERIQ_ESTIMATOR."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting."""
        plain = cls()
        return cls(
            max_pp=read(env, "MAVERIQ_MAX_PP", _stages, default=plain.max_pp),
            prices=read(env, NAME, prices, default=plain.prices),
            estimator=read(env, "MAVERIQ_ESTIMATOR", _method, default=plain.estimator),
        )


def _stages(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 128:
        raise ValueError("give a whole number of pipeline stages, 1 to 128")
    return int(text)


def _method(text: str) -> Method:
    try:
        return Method(text)
    except ValueError:
        raise ValueError(f"give one of {', '.join(Method)}") from None
