"""A service's stderr is JSON lines: its own events, what libraries warn of, and the error that ends it."""

import json
import os
import subprocess
import sys
from typing import Any


def logged(code: str, **env: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env}
    )
    assert done.returncode == 1, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


SERVICE = """
import logging
from maveriq import running

async def run(bus, env):
    logging.getLogger("asyncio").warning("Executing %s took long", "x")
    logging.getLogger("aio_pika").warning("trying again")
    raise RuntimeError("broken")

running.amqp_url = lambda env: "memory://"
running.main("planner", run)
"""


def test_events_libraries_and_the_last_error_are_json_with_the_services_name() -> None:
    lines = logged(SERVICE, MAVERIQ_QUOTA="a=1gpus", MAVERIQ_LOG_LEVEL="INFO")
    assert [(line["event"], line["level"]) for line in lines] == [
        ("setting not known", "warning"),
        ("service starts", "info"),
        ("Executing x took long", "warning"),
        ("service stops", "info"),
        ("stopped by an error", "critical"),
    ]
    assert all(line["timestamp"] and line["service"] == "planner" for line in lines)
    assert lines[0]["nearest"] == "MAVERIQ_QUOTAS"
    assert "RuntimeError: broken" in lines[-1]["exception"]


def test_a_level_that_does_not_exist_stops_the_start_with_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVICE], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "MAVERIQ_LOG_LEVEL": "loud"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "maveriq planner: MAVERIQ_LOG_LEVEL='loud': give one of debug, info, warning, error, critical\n",
    )
