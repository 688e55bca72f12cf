"""A fleet in numbers as what is told of it. Pure: counts, shares and what they are of in, contract values out."""

from collections.abc import Mapping, Sequence

import numpy as np

from maveriq.contracts.provisioning import Bucket, Changed, Fleet, FleetTerms, RatePoint, Rented, Share, SingleType
from maveriq_planner.arrays import Flags
from maveriq_planner.provisioning.asked import Asked
from maveriq_planner.provisioning.comparing import AtRate
from maveriq_planner.provisioning.fleet_mix import Mix
from maveriq_planner.provisioning.melange import result_of
from maveriq_planner.provisioning.problem import Array, Problem
from maveriq_planner.provisioning.routing import utilisation
from maveriq_planner.provisioning.units import Pool, Unit, change_cost
from maveriq_planner.provisioning.workload import Demand

_NEGLIGIBLE = 1e-6  # of a bucket: not worth a line


def told(
    asked: Asked, terms: FleetTerms, pools: Sequence[Pool], units: Sequence[Unit], problem: Problem, mix: Mix,
    shares: Array, singles: Mapping[str, Mix | None], rates: Sequence[AtRate],
) -> Fleet:  # fmt: skip
    used = np.flatnonzero(mix.counts > 0).tolist()
    price = float(problem.price @ mix.counts)
    of_pools = problem.of_pools(mix.counts)
    change = problem.change
    return Fleet(
        currency=asked.currency,
        request_rate_per_s=asked.demand.total_per_s,
        rented=_rented(units, problem, mix.counts, shares, used),
        buckets=_buckets(asked.demand, shares, used),
        price_per_hour=price,
        bound_per_hour=price - (mix.objective - mix.bound),
        gap=mix.gap,
        change_cost=0.0 if change is None else change_cost(change, of_pools, terms.horizon_h),
        changed=() if change is None else _changed(pools, change.running, of_pools),
        single_types=tuple(
            _single(kind, one, price) if one is not None else _unable(kind, units, pools, problem)
            for kind, one in singles.items()
        ),
        curve=tuple(_point(pools, at) for at in rates),
        notes=(*asked.notes, *asked.demand.notes),
        melange=None if asked.melange is None else result_of(asked.melange, _by_row(pools, of_pools), price),
    )


def _rented(
    units: Sequence[Unit], problem: Problem, counts: Array, shares: Array, used: Sequence[int]
) -> tuple[Rented, ...]:
    busy = utilisation(problem, counts, shares)
    return tuple(
        Rented(
            name=units[u].gpu.name, gpu_type=units[u].gpu.kind, spot=units[u].spot,
            configuration=units[u].way.configuration, count=int(counts[u]), num_gpus=units[u].gpu.num_gpus,
            price_per_hour=units[u].price_per_hour, utilisation=float(busy[u]),
        )
        for u in used
    )  # fmt: skip


def _buckets(demand: Demand, shares: Array, used: Sequence[int]) -> tuple[Bucket, ...]:
    return tuple(
        Bucket(
            input_up_to=demand.input_up_to[b], output_up_to=demand.output_up_to[b],
            input_tokens=demand.input_tokens[b], output_tokens=demand.output_tokens[b],
            request_rate_per_s=demand.rate_per_s[b], shares=_shares(shares[:, b], used),
        )
        for b in range(len(demand.rate_per_s))
    )  # fmt: skip


def _shares(of_bucket: Array, used: Sequence[int]) -> tuple[Share, ...]:
    parts = [(place, float(of_bucket[u])) for place, u in enumerate(used)]
    return tuple(Share(rented=place, share=min(1.0, part)) for place, part in parts if part > _NEGLIGIBLE)


def _changed(pools: Sequence[Pool], running: Array, wanted: Array) -> tuple[Changed, ...]:
    rows = zip(pools, running.tolist(), wanted.tolist(), strict=True)
    return tuple(
        Changed(name=pool.name, running=int(before), wanted=int(after))
        for pool, before, after in rows
        if before or after
    )


def _single(kind: str, mix: Mix, price: float) -> SingleType:
    saving = 1 - price / mix.objective if mix.objective > 0 else 0.0
    return SingleType(gpu_type=kind, count=int(mix.counts.sum()), price_per_hour=mix.objective, saving=saving)


def _unable(kind: str, units: Sequence[Unit], pools: Sequence[Pool], problem: Problem) -> SingleType:
    """Why a type does not do it alone."""
    mine = [u for u, unit in enumerate(units) if unit.gpu.kind == kind]
    served: Flags = np.asarray(np.isfinite(problem.load[mine]).any(axis=0))
    available = [pools[pool].available for pool in {units[u].pool for u in mine}]
    if not served.all():
        why = f"cannot serve {(~served).sum()} of {len(served)} buckets"
    elif None in available:
        why = "none was found in time"
    else:
        why = f"takes more than the {sum(each or 0 for each in available):,} available"
    return SingleType(gpu_type=kind, count=None, price_per_hour=None, saving=None, problem=why)


def _point(pools: Sequence[Pool], at: AtRate) -> RatePoint:
    counts = {pool.name: int(count) for pool, count in zip(pools, at.counts.tolist(), strict=True)}
    return RatePoint(request_rate_per_s=at.rate_per_s, price_per_hour=at.price, single=dict(at.single), counts=counts)


def _by_row(pools: Sequence[Pool], of_pools: Array) -> dict[str, int]:
    return {pool.name: int(count) for pool, count in zip(pools, of_pools.tolist(), strict=True)}
