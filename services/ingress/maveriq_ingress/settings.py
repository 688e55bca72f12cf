"""What ingress needs from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq import agreed_settings as agreed
from maveriq.settings import read, whole

HTTP_PORT = "MAVERIQ_HTTP_PORT"


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    http_host: str
    http_port: int
    """0 lets the system choose a free one."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting naming the variable."""
        return cls(
            redis_url=agreed.redis_url(env),
            http_host=read(env, "MAVERIQ_HTTP_HOST", str, "127.0.0.1"),
            http_port=read(env, HTTP_PORT, whole(0, 65_535), 8000),
        )
