"""How many reservations a second does Redis take, and does the size of the cluster matter?

A reservation is what the allocator commits: the deployment's record, and bytes of four GPUs of one node, checked and
held in one Lua script. Each is given back by a second commit, which counts too. The clients are handlers of one
allocator: they share its pool of connections, and what they commit at the same moment is one command. PING
by as many clients of the same pool in the same run is what a client pays for a round trip without any work. Packing is
one decision for a 70B model over the cluster. A placement is all that the allocator does for a plan, from the message
to those that it causes, while deployments stand (2,000 on 10,000 GPUs) and other nodes report.

    python benchmarks/reservations.py [--json] [--save] [--redis URL]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from maveriq.bus.handling import decode
from maveriq.contracts import Gpu, NodeReported, Placement, PlacementReserved, PlanComputed, Stage
from maveriq.running import relax_gc
from maveriq_allocator.__main__ import wire
from maveriq_allocator.choosing import choose
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.record import Held, Phase, Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import connect
from tests.servers import Redis
from tests.unit.allocator.plans import candidate, computed, memory

GPUS = (8, 1_000, 10_000)
CLIENTS = (1, 50)
GPUS_A_NODE = 8
GPUS_A_REPLICA = 4
GPU_BYTES = 80 * 2**30
HELD_BYTES = 2**28  # small: a busy cluster holds many at once
SECONDS = 2.0
ROUNDS = 3
PACKINGS = 20
PLACEMENTS = 40
GPUS_A_DEPLOYMENT = 5
REPORTS_A_PLACEMENT = 3  # 1,250 nodes that report every 10 s, and 40 placements a second
RESULT = Path(__file__).with_name("results") / "reservations.json"

Work = Callable[[int], Awaitable[None]]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options.add_argument("--save", action="store_true", help=f"write {RESULT.name} too")
    options.add_argument(
        "--redis", help="a Redis of this machine, which is emptied; without it a private one is started"
    )
    chosen = options.parse_args()
    with server(chosen.redis) as url:
        report = asyncio.run(measure(url))
    if chosen.save:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report) if chosen.json else table(report))


@contextmanager
def server(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with Redis() as private:
        yield private.url


async def measure(url: str) -> dict[str, Any]:
    report: dict[str, Any] = {f"clients_{clients}": {} for clients in CLIENTS}
    report["pack_ms"], report["place_ms"] = {}, {}
    for num_gpus in GPUS:
        redis = connect(url)
        await redis.flushall()
        inventory = Inventory(redis)
        for number in range(num_gpus // GPUS_A_NODE):
            await inventory.report(node(f"n{number}"))
        for clients in CLIENTS:
            report[f"clients_{clients}"][str(num_gpus)] = await rates(url, num_gpus, clients)
        report["pack_ms"][str(num_gpus)] = await packing_ms(inventory)
        report["place_ms"][str(num_gpus)] = await placing_ms(redis, url, num_gpus)
        await redis.aclose()
    report["machine"] = {"cpu": cpu_name(), "num_cores": os.cpu_count(), "python": platform.python_version()}
    return report


def node(name: str) -> NodeReported:
    gpus = (
        Gpu(id=f"{name}/{number}", gpu_type="A6000", total_bytes=GPU_BYTES, foreign_bytes=0)
        for number in range(GPUS_A_NODE)
    )
    return NodeReported(node=name, engine="torch", gpus=tuple(gpus))


async def rates(url: str, num_gpus: int, clients: int) -> dict[str, float]:
    """PING and reservations take turns, so that both see the same machine."""
    store = connect(url)
    ledger = Reservations(store)
    records = [
        [held(num_gpus, clients * 10**6 + client * 1_000 + number) for number in range(50)] for client in range(clients)
    ]
    turn = [0] * clients
    relax_gc()  # as every service does

    async def ping(client: int) -> None:
        await store.ping()

    async def reserve(client: int) -> None:
        """Hold, and the next time give back."""
        number, releasing = divmod(turn[client], 2)
        turn[client] += 1
        record = records[client][number % 50]
        blank = Record(deployment_id=record.deployment_id)
        before, after = (Loaded(2 * (number // 50) + 1, record), blank) if releasing else (
            Loaded(2 * (number // 50), blank), record
        )  # fmt: skip
        outcome = await ledger.commit(before, after)
        if outcome is not Outcome.DONE:
            raise RuntimeError(f"a reservation was {outcome}")

    found: dict[str, list[float]] = {"ping_per_s": [], "reserve_per_s": [], "reserve_p99_ms": []}
    for _ in range(ROUNDS):
        per_s, _ = await timed(ping, clients)
        found["ping_per_s"].append(per_s)
        per_s, p99_ms = await timed(reserve, clients)
        found["reserve_per_s"].append(per_s)
        found["reserve_p99_ms"].append(p99_ms)
    await store.aclose()
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


async def timed(work: Work, clients: int) -> tuple[float, float]:
    """Calls a second of all clients together, and the 99th percentile of one call in ms."""
    taken: list[float] = []
    begun = time.perf_counter()

    async def client(number: int) -> None:
        while (start := time.perf_counter()) - begun < SECONDS:
            await work(number)
            taken.append((time.perf_counter() - start) * 1e3)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(taken) / (time.perf_counter() - begun), statistics.quantiles(taken, n=100)[98]


def held(num_gpus: int, number: int) -> Record:
    """One deployment on four GPUs of one node."""
    chance = random.Random(number)
    name = f"n{chance.randrange(num_gpus // GPUS_A_NODE)}"
    gpus = chance.sample(range(GPUS_A_NODE), GPUS_A_REPLICA)
    plan = computed(candidate(pp=GPUS_A_REPLICA), deployment_id=UUID(int=number + 1))
    placement = Placement(
        replica=0, token=f"{plan.deployment_id}.0.0", node=name, model=plan.admission.model, facts=plan.plan.facts,
        candidate=plan.plan.candidates[0],
        stages=tuple(Stage(gpus=(f"{name}/{gpu}",), num_layers=2, reserved_bytes=HELD_BYTES) for gpu in gpus),
    )  # fmt: skip
    return Record(
        deployment_id=plan.deployment_id,
        planned=True,
        held=(Held(placement=placement, rank=0, phase=Phase.RESERVED),),
        num_issued=1,
    )


def large(number: int = 0) -> PlanComputed:
    layer = 2 * 10**9  # llama-2-70b in 16 bits with some cache
    stage = memory(layer=layer, first=10**9, last=10**9, runtime=10**9)
    return computed(candidate(pp=4, stage=stage), num_layers=80, deployment_id=UUID(int=10**12 + number))


async def packing_ms(inventory: Inventory) -> float:
    """The decision alone, over a snapshot that is in hand."""
    wanted = large()
    fragments = [state.fragments() for state in await inventory.snapshot()]
    taken: list[float] = []
    for _ in range(PACKINGS):
        begun = time.perf_counter()
        choose(wanted.plan, fragments, num_replicas=1)
        taken.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(taken), 3)


async def placing_ms(redis: Any, url: str, num_gpus: int) -> float:
    """A plan in, its placement out: what is free read, decided on and taken."""
    handlers, chance = wire(redis, Settings(url, node_timeout_s=60.0)), random.Random(0)
    ledger = Reservations(redis)
    for number in range(num_gpus // GPUS_A_DEPLOYMENT):
        record = held(num_gpus, 10**9 + number)
        if await ledger.commit(Loaded(0, Record(deployment_id=record.deployment_id)), record) is not Outcome.DONE:
            raise RuntimeError("a deployment that was to stand found no place")
    taken: list[float] = []
    for number in range(PLACEMENTS + 1):
        for _ in range(REPORTS_A_PLACEMENT):
            await handlers.inventory.report(node(f"n{chance.randrange(num_gpus // GPUS_A_NODE)}"))
        text = large(number).model_dump_json().encode()
        begun = time.perf_counter()
        caused = await handlers.on_plan_computed(decode(PlanComputed, PlanComputed.topic, text))
        taken.append((time.perf_counter() - begun) * 1e3)
        if not any(isinstance(message, PlacementReserved) for message in caused):
            break  # eight GPUs hold few
    return round(statistics.median(taken[1:]), 3)  # the first of an allocator reads all


def table(report: dict[str, Any]) -> str:
    rows = []
    for clients in CLIENTS:
        for num_gpus, found in report[f"clients_{clients}"].items():
            share = found["reserve_per_s"] / found["ping_per_s"]
            rows.append(
                f"{clients:2} clients, {int(num_gpus):6,} GPUs: {found['reserve_per_s']:7,.0f} reservations/s, "
                f"{share:.2f} of PING's {found['ping_per_s']:,.0f}; p99 {found['reserve_p99_ms']:.2f} ms"
            )
    rows += [f"one packing decision over {int(num):,} GPUs: {ms:.2f} ms" for num, ms in report["pack_ms"].items()]
    rows += [f"one placement on {int(num):,} GPUs: {ms:.2f} ms" for num, ms in report["place_ms"].items()]
    return "\n".join(rows)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
