"""A request as what can be rented, what is to be served, and how fast one serves the other. Pure: data in, data out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maveriq.contracts.provisioning import (
    Catalogue,
    ProvisioningRefused,
    ProvisioningRequest,
    RentableGpu,
    check_shape,
)
from maveriq_planner.provisioning.law_throughput import Running, ways_to_run
from maveriq_planner.provisioning.melange import MelangeConfig, read_melange
from maveriq_planner.provisioning.traces import Trace, read_trace
from maveriq_planner.provisioning.workload import (
    Demand,
    demand_of_histogram,
    demand_of_matrix,
    demand_of_trace,
    edges_of,
)

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Asked:
    currency: str
    gpus: tuple[RentableGpu, ...]
    """Rows that can serve something."""
    ways: Mapping[str, Sequence[Running]]
    """By row."""
    demand: Demand
    notes: tuple[str, ...]
    melange: MelangeConfig | None = None


@dataclass(frozen=True, slots=True)
class _Edges:
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


def asked_of(request: ProvisioningRequest, shipped: Catalogue) -> Asked:
    """Raises ProvisioningRefused."""
    given = [name for name in ("trace", "histogram", "melange") if getattr(request, name) is not None]
    if len(given) != 1 and given != ["trace", "melange"]:
        problem = "nothing says the workload" if not given else f"{' and '.join(given)} both say the workload"
        raise ProvisioningRefused("workload", problem, "give one of trace, histogram and melange")
    if request.melange is not None:
        return _of_melange(request, read_melange(request.melange, unnormalised=request.unnormalised))
    catalogue = shipped if request.catalogue is None else request.catalogue
    gpus = _chosen(catalogue.gpus, request.only)
    demand, edges = _demand(request, catalogue, gpus)
    notes = [catalogue.note] if catalogue.note else []
    ways, silent = _ways(request, gpus, demand, edges)
    able = tuple(gpu for gpu in gpus if ways[gpu.name])
    if not able:
        raise _none_speaks(request, silent)
    notes += [f"left out: {_listed(names)} ({reason})" for reason, names in silent.items()]
    return Asked(catalogue.currency, able, ways, _rated(demand, request), tuple(notes))


def _of_melange(request: ProvisioningRequest, config: MelangeConfig) -> Asked:
    """Its GPUs; its workload too, where no trace says another."""
    if request.catalogue is not None:
        raise ProvisioningRefused("catalogue", "Mélange's file has its own GPUs", "leave one of them out")
    gpus = _chosen(config.gpus, request.only)
    edges = _Edges(config.input_edges, config.output_edges)
    if request.trace is None:
        demand = demand_of_matrix(config.rates, edges.inputs, edges.outputs)
    elif config.sized:
        trace = read_trace(request.trace)
        demand = demand_of_trace(trace, edges.inputs, edges.outputs, trace.rate_per_s(request.peak_window_s))
    else:
        raise ProvisioningRefused("edges_in", "is missing, so nothing says which requests its tputs are of", "add it")
    ways = {gpu.name: [_profiled(gpu, demand, edges)] for gpu in gpus}
    return Asked("USD", gpus, ways, _rated(demand, request), (), config)


def _rated(demand: Demand, request: ProvisioningRequest) -> Demand:
    return demand if request.request_rate_per_s is None else demand.at(request.request_rate_per_s)


def _chosen(gpus: Sequence[RentableGpu], only: Sequence[str]) -> tuple[RentableGpu, ...]:
    for name in only:
        if not any(name in (gpu.name, gpu.kind) for gpu in gpus):
            known = ", ".join(gpu.name for gpu in gpus)
            raise ProvisioningRefused("only", f"{name} is not in the catalogue", f"name some of: {known}")
    return tuple(gpu for gpu in gpus if not only or gpu.name in only or gpu.kind in only)


def _demand(
    request: ProvisioningRequest, catalogue: Catalogue, gpus: Sequence[RentableGpu]
) -> tuple[Demand, _Edges]:  # fmt: skip
    """Buckets are the catalogue's, where it has a profile: it is of no others."""
    profiled = next((gpu for gpu in gpus if gpu.throughput is not None), None)
    known = None
    if catalogue.input_edges is not None and catalogue.output_edges is not None:
        known = _Edges(catalogue.input_edges, catalogue.output_edges)
    if request.histogram is not None:
        edges = _Edges(request.histogram.input_edges, request.histogram.output_edges)
        if profiled is not None and known is not None and known != edges:
            raise ProvisioningRefused(
                "histogram.input_edges",
                "its buckets are not those of the catalogue's throughput",
                "give the same edges",
            )
        demand = demand_of_histogram(request.histogram)
        return demand if request.law is None else demand.within(request.law.facts.max_context_tokens), edges
    trace = read_trace(request.trace or "")
    rate = trace.rate_per_s(request.peak_window_s)
    if profiled is None:
        return _demand_of_bare(request, trace, rate)
    if known is None:
        raise ProvisioningRefused(
            "catalogue.input_edges", f"are missing, so nothing says which requests {profiled.name}'s throughput is of",
            "add input_edges and output_edges: the longest prompt of each row, the longest answer of each column",
        )  # fmt: skip
    return demand_of_trace(trace, known.inputs, known.outputs, rate), known


def _demand_of_bare(request: ProvisioningRequest, trace: Trace, rate_per_s: float) -> tuple[Demand, _Edges]:
    """With edges of the trace's own; without requests that the model cannot take, which no GPU will."""
    short = trace if request.law is None else trace.within(request.law.facts.max_context_tokens)
    kept, left_out = len(short.arrival_s), len(trace.arrival_s) - len(short.arrival_s)
    if not kept:
        raise ProvisioningRefused("trace", "no request fits the model's context", "name a model that takes longer ones")
    edges = _Edges(edges_of(short.input_tokens, request.buckets), edges_of(short.output_tokens, request.buckets))
    demand = demand_of_trace(short, edges.inputs, edges.outputs, rate_per_s * kept / len(trace.arrival_s))
    if left_out and request.law is not None:
        most = request.law.facts.max_context_tokens
        note = f"{left_out:,} of {left_out + kept:,} requests are longer than the model's {most:,} tokens: left out"
        demand = replace(demand, notes=(*demand.notes, note))
    return demand, edges


def _ways(
    request: ProvisioningRequest, gpus: Sequence[RentableGpu], demand: Demand, edges: _Edges
) -> tuple[dict[str, list[Running]], dict[str, list[str]]]:
    """Of each row, and of those that are left out the names, by the reason."""
    ways = {gpu.name: [_profiled(gpu, demand, edges)] for gpu in gpus if gpu.throughput is not None}
    unknown = [gpu for gpu in gpus if gpu.throughput is None]
    if unknown and request.law is not None:
        predicted = ways_to_run(request.law, unknown, demand)
        ways |= {gpu.name: found for gpu, found in zip(unknown, predicted, strict=True)}
    silent: dict[str, list[str]] = {}
    for gpu in unknown:
        if not ways.get(gpu.name):
            silent.setdefault(_why_silent(gpu, request), []).append(gpu.name)
    return {gpu.name: ways.get(gpu.name, []) for gpu in gpus}, silent


def _profiled(gpu: RentableGpu, demand: Demand, edges: _Edges) -> Running:
    profile = gpu.throughput or ()
    try:
        check_shape(f"{gpu.name}.throughput", profile, len(edges.inputs), len(edges.outputs))
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise ProvisioningRefused(field, problem, "give one number for each bucket") from error
    return Running("", np.array([profile[row][column] for row, column in demand.place]))


def _why_silent(gpu: RentableGpu, request: ProvisioningRequest) -> str:
    if request.law is None:
        return "no throughput is given"
    if all(calibration.gpu_type != gpu.kind for calibration in request.law.calibrations):
        return "its type is not calibrated"
    if gpu.memory_gib is None:
        return "its memory_gib is missing"
    return f"it cannot hold {request.law.model.name}, or not serve any of the requests within the limits"


def _none_speaks(request: ProvisioningRequest, silent: Mapping[str, Sequence[str]]) -> ProvisioningRefused:
    """Of no row is known how fast it is."""
    problem = "; ".join(f"{reason}: {_listed(names)}" for reason, names in silent.items())
    if request.law is None:
        remedy = "name the model, so that the law predicts it, or give each row a throughput"
    else:
        known = sorted({calibration.gpu_type for calibration in request.law.calibrations})
        remedy = (
            f"give a catalogue with a row of a GPU type that is calibrated ({', '.join(known)}), calibrate more "
            "(maveriq calibrate), or relax the limits"
        )  # fmt: skip
    return ProvisioningRefused("catalogue", problem, remedy, code="no_throughput")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
