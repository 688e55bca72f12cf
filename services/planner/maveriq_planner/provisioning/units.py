"""What can be rented, as units that serve. Pure: catalogue, demand and terms in, a problem in numbers out.

Headroom: the fleet bears (1 + headroom) times the workload's rate.

Spot: an instance that is taken away at rate l serves again after R hours, so it serves a share 1 / (1 + l R) of the
time (an alternating renewal process: mean up time over mean up and down time; Ross, Stochastic Processes, 3.4). It
counts with that share of its throughput and is paid for all the time, as starting its successor is billed too. What it
was serving is handed out again by the broker; that work done twice, half a request's time for each interruption, is
left out, being thousands of times less.

Spares (N+1): after the loss of any one instance the rest bears the whole rate, headroom included, routed anew.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maveriq.contracts.provisioning import FleetTerms, ProvisioningRefused, RentableGpu
from maveriq_planner.provisioning.law_throughput import Running
from maveriq_planner.provisioning.problem import Array, Change, Problem
from maveriq_planner.provisioning.workload import Demand

_SIZED = re.compile(r"(?P<kind>.+) x (?P<size>[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Unit:
    gpu: RentableGpu
    spot: bool
    way: Running
    pool: int

    @property
    def price_per_hour(self) -> float:
        spot = self.gpu.spot_price_per_hour
        return self.gpu.price_per_hour if not self.spot or spot is None else spot


@dataclass(frozen=True, slots=True)
class Pool:
    """One row of the catalogue on one market."""

    gpu: RentableGpu
    spot: bool

    @property
    def name(self) -> str:
        return f"{self.gpu.name} (spot)" if self.spot else self.gpu.name

    @property
    def available(self) -> int | None:
        return self.gpu.spot_available if self.spot else self.gpu.available


def pools_of(gpus: Sequence[RentableGpu], terms: FleetTerms) -> list[Pool]:
    found = [Pool(gpu, spot=False) for gpu in gpus]
    if terms.spot:
        found += [Pool(gpu, spot=True) for gpu in gpus if gpu.spot_price_per_hour is not None]
    return found


def units_of(pools: Sequence[Pool], ways: Mapping[str, Sequence[Running]]) -> list[Unit]:
    """
    Args:
        ways: by name of the row.
    """
    return [Unit(pool.gpu, pool.spot, way, number) for number, pool in enumerate(pools) for way in ways[pool.gpu.name]]


def serving_share(unit: Unit, terms: FleetTerms) -> float:
    """Of the time."""
    if not unit.spot:
        return 1.0
    lost_h = (unit.gpu.spot_interruptions_per_hour or 0.0) * terms.recovery_minutes / 60
    return 1 / (1 + lost_h)


def problem_of(units: Sequence[Unit], pools: Sequence[Pool], demand: Demand, terms: FleetTerms) -> Problem:
    throughput = np.array([unit.way.throughput * serving_share(unit, terms) for unit in units])
    load = np.full(throughput.shape, np.inf)
    rate = demand.rate_per_s * (1 + terms.headroom)
    np.divide(np.broadcast_to(rate, load.shape), throughput, out=load, where=throughput > 0)
    return Problem(
        price=np.array([unit.price_per_hour for unit in units]),
        load=load,
        pool=np.array([unit.pool for unit in units], dtype=np.intp),
        most=np.array([np.inf if pool.available is None else float(pool.available) for pool in pools]),
        spare=terms.spare,
        change=change_of(pools, terms),
    )


def change_of(pools: Sequence[Pool], terms: FleetTerms) -> Change | None:
    if terms.running is None:
        return None
    running = np.zeros(len(pools))
    for name, count in terms.running.items():
        if count < 0:
            raise ProvisioningRefused("running", f"{name} is {count}", "give a count that is not negative")
        pool, instances = _running_of(name, count, pools)
        running[pool] += instances
    start = np.array([_start_cost(pool, terms) for pool in pools])
    return Change(running, start / terms.horizon_h, np.full(len(pools), terms.stop_cost / terms.horizon_h))


def change_cost(change: Change, counts: Array, horizon_h: float) -> float:
    """Money, once. [P] counts."""
    more = counts - change.running
    hourly = change.start @ np.maximum(more, 0.0) + change.stop @ np.maximum(-more, 0.0)
    return float(hourly) * horizon_h


def _start_cost(pool: Pool, terms: FleetTerms) -> float:
    if terms.start_cost is not None:
        return terms.start_cost
    price = pool.gpu.spot_price_per_hour if pool.spot else pool.gpu.price_per_hour
    return (price or 0.0) * terms.recovery_minutes / 60


def _running_of(name: str, count: int, pools: Sequence[Pool]) -> tuple[int, int]:
    """The pool that a name means, and how many of its instances run.

    A row's name counts instances, and a type's GPUs, which make its smallest instances. `<GPU type> x <n>` counts nodes
    of n GPUs: instances of that size where there are any.
    """
    for number, pool in enumerate(pools):
        if pool.name == name:
            return number, count
    sized = _SIZED.fullmatch(name)
    kind, size = (sized["kind"], int(sized["size"])) if sized else (name, 1)
    of_kind = [n for n, pool in enumerate(pools) if pool.gpu.kind == kind and not pool.spot]
    if not of_kind:
        known = ", ".join(pool.name for pool in pools)
        raise ProvisioningRefused("running", f"{kind} is not in the catalogue", f"add a row, or name one of: {known}")
    as_large = [n for n in of_kind if sized and pools[n].gpu.num_gpus == size]
    if as_large:
        return as_large[0], count
    smallest = min(of_kind, key=lambda n: pools[n].gpu.num_gpus)
    return smallest, count * size // pools[smallest].gpu.num_gpus
