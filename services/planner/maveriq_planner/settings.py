"""The planner's environment, read once."""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq.settings import read


@dataclass(frozen=True, slots=True)
class Settings:
    max_pp: int = 8
    """Most pipeline stages considered (MAVERIQ_MAX_PP): how far a model may be cut to fit fragments."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting."""
        return cls(max_pp=read(env, "MAVERIQ_MAX_PP", _stages, default=cls().max_pp))


def _stages(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 128:
        raise ValueError("give a whole number of pipeline stages, 1 to 128")
    return int(text)
