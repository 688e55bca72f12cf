"""What a config said is read once, over all starts of a profiler, until the file changes; on a real Redis."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from maveriq_profiler.children import Children, Hear
from maveriq_profiler.exit_status import ExitStatus
from maveriq_profiler.kept_readings import KeptReadings
from maveriq_profiler.measuring import ChildProbe, ModelUnreadable
from maveriq_profiler.orders import Line, Order, Reading
from maveriq_profiler.settings import CPU_LIMITS
from tests.unit.profiler.rigs import FACTS, rig

READING = Reading(facts=FACTS, config_json='{"model_type": "llama"}')


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(redis_url)
    yield connection
    await connection.aclose()


class Reader:
    """In place of the process that reads."""

    def __init__(self) -> None:
        self.num_read = 0

    async def run(self, module: str, order: str, hear: Hear) -> ExitStatus:
        self.num_read += 1
        source = cast(Any, Order.model_validate_json(order).order).source
        line = Line(unreadable="it has no layers") if "bad" in source else Line(reading=READING)
        await hear(line.model_dump_json().encode())
        return ExitStatus(code=0)


async def times_read(redis: Redis, *sources: str) -> int:
    """By a profiler that starts anew."""
    reader = Reader()
    probe = ChildProbe(rig(), CPU_LIMITS, cast(Children, reader), KeptReadings(redis))
    for source in sources:
        assert await probe.read(source) == READING
    return reader.num_read


async def test_a_local_config_is_read_again_only_when_its_file_changed(redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    folder = str(tmp_path)
    assert [await times_read(redis, folder, folder) for _ in range(2)] == [1, 0]
    os.utime(file, ns=(1, 1))
    assert [await times_read(redis, folder) for _ in range(2)] == [1, 0]


async def test_what_is_on_a_hub_may_change_unseen_so_each_start_reads_it(redis: Redis) -> None:
    assert [await times_read(redis, "org/model", "org/model") for _ in range(2)] == [1, 1]


async def test_what_could_not_be_read_is_tried_again(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("")
    for _ in range(2):
        with pytest.raises(ModelUnreadable, match="it has no layers"):
            await times_read(redis, str(tmp_path / "bad.gguf"))
