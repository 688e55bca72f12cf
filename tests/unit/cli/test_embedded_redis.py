"""What a profiler found out outlives an embedded cluster, and nothing else does."""

from pathlib import Path

from redis import Redis

from maveriq.cli.embedded_redis import embedded_redis
from maveriq_profiler.kept_readings import KeptReadings

FOUND_OUT = {
    "maveriq:profiler:fingerprints:a shape",
    "maveriq:profiler:calibration-measured:torch|2|cpu-1t",
    KeptReadings(None).key,
}


def test_only_what_was_measured_or_read_is_there_at_the_next_start(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url, Redis.from_url(url) as redis:
        for key in (*FOUND_OUT, "maveriq:ingress:deployments"):
            redis.set(key, "1")
    with embedded_redis(tmp_path) as url, Redis.from_url(url, decode_responses=True) as redis:
        assert set(redis.scan_iter()) == FOUND_OUT
