"""Mélange's configuration files and results (Griggs et al., 2024). Pure: JSON text in, catalogue and rates out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import numpy as np

from maveriq.contracts.provisioning import (
    Matrix,
    ProvisioningRefused,
    RentableGpu,
    check_distribution,
    check_shape,
)
from maveriq_planner.provisioning.problem import Array

_KNOWN = ("gpu_info", "workload_distribution", "total_request_rate", "slice_factor", "edges_in", "edges_out")
_PER_GPU = ("cost", "tputs")


@dataclass(frozen=True, slots=True)
class MelangeConfig:
    """Its `slice_factor` is read and not used: our buckets split freely, which is never dearer."""

    gpus: tuple[RentableGpu, ...]
    rates: Array  # [I, J], requests a second
    input_edges: tuple[float, ...]
    output_edges: tuple[float, ...]
    """1, 2, ... where the file says nothing of sizes."""
    sized: bool
    """Whether it says."""


def read_melange(text: str, *, unnormalised: bool = False) -> MelangeConfig:
    """
    Args:
        unnormalised: take a distribution as it is, whatever it sums to, as Mélange does.

    Raises:
        ProvisioningRefused: naming the field.
    """
    try:
        parsed: Any = json.loads(text)
    except ValueError as error:
        raise ProvisioningRefused("melange", f"is no JSON: {error}", "give Mélange's configuration file") from error
    body = _object("", parsed, _KNOWN, optional=_KNOWN[3:])
    shares = _matrix("workload_distribution", body["workload_distribution"])
    rows, columns = len(shares), len(shares[0]) if shares else 0
    remedy = "divide each share by the sum, or give --unnormalised to take the numbers as they are"
    _held("workload_distribution", remedy, lambda: check_shape("workload_distribution", shares, rows, columns))
    _held(
        "workload_distribution", remedy,
        lambda: check_distribution("workload_distribution", shares, whole=not unnormalised),
    )  # fmt: skip
    rate = _number("total_request_rate", body["total_request_rate"])
    if rate <= 0:
        raise ProvisioningRefused("total_request_rate", f"is {rate:g}", "give requests a second, more than 0")
    gpus = tuple(_gpu(name, one, rows, columns) for name, one in _object("gpu_info", body["gpu_info"]).items())
    if not gpus:
        raise ProvisioningRefused("gpu_info", "names no GPU", "give one at least, with its cost and tputs")
    return MelangeConfig(
        gpus, np.array(shares) * rate, _edges("edges_in", body.get("edges_in"), rows),
        _edges("edges_out", body.get("edges_out"), columns), sized="edges_in" in body and "edges_out" in body,
    )  # fmt: skip


def result_of(config: MelangeConfig, counts: Mapping[str, int], price_per_hour: float) -> dict[str, float]:
    """As Mélange's solver returns it: GPUs of each type, and the cost of an hour."""
    return {**{gpu.name: float(counts.get(gpu.name, 0)) for gpu in config.gpus}, "cost": round(price_per_hour, 9)}


def _gpu(name: str, body: object, rows: int, columns: int) -> RentableGpu:
    at = f"gpu_info.{name}"
    told = _object(at, body, _PER_GPU)
    cost = _number(f"{at}.cost", told["cost"])
    if cost < 0:
        raise ProvisioningRefused(f"{at}.cost", f"is {cost:g}", "give a price that is not negative")
    tputs = _matrix(f"{at}.tputs", told["tputs"])
    remedy = "give one number for each cell of workload_distribution"
    _held(f"{at}.tputs", remedy, lambda: check_shape(f"{at}.tputs", tputs, rows, columns))
    if any(value < 0 for row in tputs for value in row):
        raise ProvisioningRefused(f"{at}.tputs", "has a negative number", "give 0 where a bucket cannot be served")
    return RentableGpu(name=name, price_per_hour=cost, throughput=tputs)


def _held(field: str, remedy: str, check: Any) -> None:
    try:
        check()
    except ValueError as error:
        where, _, problem = str(error).partition(": ")
        raise ProvisioningRefused(where if problem else field, problem or where, remedy) from error


def _object(field: str, value: object, known: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Any]:
    at = field or "melange"
    if not isinstance(value, dict):
        raise ProvisioningRefused(at, "is no JSON object", "give one, as Mélange's configuration has it")
    body = cast("dict[str, Any]", value)
    for key in body if known else ():
        if key not in known:
            raise ProvisioningRefused(f"{field}.{key}".strip("."), "unknown field", f"known: {', '.join(known)}")
    for key in known:
        if key not in body and key not in optional:
            raise ProvisioningRefused(f"{field}.{key}".strip("."), "is missing", "add it")
    return body


def _matrix(field: str, value: object) -> Matrix:
    if not isinstance(value, list) or not value:
        raise ProvisioningRefused(field, "is no matrix", "give rows of numbers")
    found: list[tuple[float, ...]] = []
    for number, row in enumerate(cast("list[object]", value)):
        if not isinstance(row, list):
            raise ProvisioningRefused(f"{field}.{number}", "is no row of numbers", "give one")
        found.append(tuple(_number(f"{field}.{number}.{i}", one) for i, one in enumerate(cast("list[object]", row))))
    return tuple(found)


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ProvisioningRefused(field, f"is no number: {value!r}", "give a finite number")
    return float(value)


def _edges(field: str, value: object, count: int) -> tuple[float, ...]:
    if value is None:
        return tuple(float(number) for number in range(1, count + 1))
    edges = _matrix(field, [value])[0]
    if len(edges) != count:
        raise ProvisioningRefused(field, f"has {len(edges)} edges of {count} buckets", "give one for each")
    return edges
