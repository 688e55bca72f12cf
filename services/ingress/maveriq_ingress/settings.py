"""What ingress needs from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq.settings import read

HTTP_PORT = "MAVERIQ_HTTP_PORT"


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    http_host: str
    http_port: int
    """0 lets the system choose a free one."""

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting naming the variable."""
        return cls(
            redis_url=read(env, "MAVERIQ_REDIS_URL", _redis_url),
            http_host=read(env, "MAVERIQ_HTTP_HOST", str, "127.0.0.1"),
            http_port=read(env, HTTP_PORT, _port, 8000),
        )


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("give a URL such as redis://127.0.0.1:6379/0")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise ValueError("give a number from 0 to 65535")
    return int(text)
