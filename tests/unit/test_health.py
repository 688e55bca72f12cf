"""A service that is given a port tells there whether it lives, whether the broker answers it, and its metrics."""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from maveriq.bus import Bus
from maveriq.health import health
from maveriq.settings import BadSetting


@dataclass
class Broker:
    connected: bool = True


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


async def asked(port: str, path: str, method: str = "GET") -> tuple[int, Any]:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, f"http://127.0.0.1:{port}{path}")
    return answer.status_code, answer.json()["status"]


async def test_it_is_alive_always_and_ready_while_the_broker_answers() -> None:
    broker, port = Broker(), free_port()
    async with health(cast(Bus, broker), {"MAVERIQ_HEALTH_PORT": port}):
        assert await asked(port, "/healthz") == (200, "alive")
        assert await asked(port, "/readyz?verbose") == (200, "ready")
        broker.connected = False
        assert await asked(port, "/healthz") == (200, "alive")
        assert await asked(port, "/readyz") == (503, "not ready")


async def test_whoever_asks_for_anything_else_is_told_what_to_ask() -> None:
    port = free_port()
    async with health(cast(Bus, Broker()), {"MAVERIQ_HEALTH_PORT": port}):
        assert await asked(port, "/") == (404, "ask GET /healthz, GET /readyz or GET /metrics")
        assert (await asked(port, "/healthz", "POST"))[0] == 404
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"x" * 20_000)  # no end of a head in all that may be one
        assert await reader.read() == b""
        writer.close()
        assert await asked(port, "/healthz") == (200, "alive")


async def test_prometheus_reads_what_the_process_takes() -> None:
    port = free_port()
    async with health(cast(Bus, Broker()), {"MAVERIQ_HEALTH_PORT": port}), httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert "python_info" in {family.name for family in text_string_to_metric_families(answer.text)}


async def test_a_port_that_cannot_be_had_stops_the_start_with_the_settings_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(BadSetting, match=f"MAVERIQ_HEALTH_PORT={port}: cannot listen on 127.0.0.1"):
            async with health(cast(Bus, Broker()), {"MAVERIQ_HEALTH_PORT": port}):
                pass
