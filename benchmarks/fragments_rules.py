"""The rules that `fragments.py` compares: each takes a deployment and what is free, and says where its stages go.

All see the same bytes, models, pipeline degrees and nodes, and none may span nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import thread_time
from typing import Protocol

from fragments_streams import DEGREES, TYPES, Deployment, Gpu

from maveriq.contracts import Candidate, Configuration, ModelFacts, Plan, Precision, Prediction
from maveriq_allocator.choosing import Choice, Manner, Node, choose
from maveriq_allocator.packing import Fragment

Nodes = Sequence[Sequence[Gpu]]
Free = Mapping[str, int]


class Rule(Protocol):
    def place(self, deployment: Deployment, nodes: Nodes, free: Free) -> dict[str, int] | None:
        """Bytes of each GPU, in pipeline order; None: refused."""
        ...


class Ours:
    """The allocator's own decision, every GPU type equally fast."""

    def place(self, deployment: Deployment, nodes: Nodes, free: Free) -> dict[str, int] | None:
        types = {gpu.gpu_type for node in nodes for gpu in node}
        choice = self.decide(self.plan(deployment), self.snapshot(nodes, free), types)
        if choice is None:
            return None
        return {gpu: stage.reserved_bytes for stage in choice.seats[0].stages for gpu in stage.gpus}

    def snapshot(self, nodes: Nodes, free: Free) -> list[Node]:
        return [
            Node(str(number), "any", tuple(Fragment(gpu.name, gpu.gpu_type, free[gpu.name]) for gpu in node))
            for number, node in enumerate(nodes)
        ]

    def plan(self, deployment: Deployment) -> Plan:
        return _plan(deployment)

    def decide(
        self, plan: Plan, nodes: Sequence[Node], types: Iterable[str], num_replicas: int | None = None
    ) -> Choice | None:
        manner = Manner(speeds=dict.fromkeys(sorted(types), 1.0))
        return choose(plan, nodes, num_replicas=num_replicas, manner=manner, clock=thread_time)


class MaverIQ:
    """`distribute_layers` as `shared/research/peers.md` describes it.

    The GPUs with most free memory; what each may hold is the total of the GPU at its place in the order of totals, less
    what is used on it; a layer is the model's bytes over its layers, ends included; layers go round while they fit.
    The fewest stages that do; on one node, that with most free first. Where the engine would then run out of
    memory, the next node or number of stages is tried, which is more than it does.
    """

    def place(self, deployment: Deployment, nodes: Nodes, free: Free) -> dict[str, int] | None:
        for pp in DEGREES:
            for node in sorted(nodes, key=lambda gpus: -sum(free[gpu.name] for gpu in gpus)):
                order = sorted(node, key=lambda gpu: -free[gpu.name])[:pp]
                totals = sorted((gpu.total_bytes for gpu in order), reverse=True)
                limits = [total - (g.total_bytes - free[g.name]) for total, g in zip(totals, order, strict=True)]
                layer_bytes = deployment.memory.of_stage(deployment.num_layers, first=True, last=True)
                layers = round_robin(limits, layer_bytes / deployment.num_layers, deployment.num_layers)
                if layers is not None:
                    held = _held(deployment, [gpu.name for gpu in order], layers)
                    if all(free[gpu] >= num_bytes for gpu, num_bytes in held.items()):
                        return held
        return None


def round_robin(limits: Sequence[float], layer_bytes: float, num_layers: int) -> list[int] | None:
    """Layers handed out one by one while they fit; None: they do not, or a GPU gets none."""
    layers = [0] * len(limits)
    while sum(layers) < num_layers:
        before = sum(layers)
        for at, limit in enumerate(limits):
            if sum(layers) < num_layers and (layers[at] + 1) * layer_bytes <= limit:
                layers[at] += 1
        if sum(layers) == before:
            return None
    return layers if min(layers) else None


class Even:
    """Stages of the same number of layers, on the smallest fragments that hold them, wherever least is left over."""

    def place(self, deployment: Deployment, nodes: Nodes, free: Free) -> dict[str, int] | None:
        for pp in DEGREES:
            found = [held for node in nodes if (held := _evenly(deployment, pp, node, free)) is not None]
            if found:
                return min(found, key=lambda held: sum(free[gpu] for gpu in held))
        return None


class WholeGpu:
    """Even stages, each on a GPU that no other deployment is on: what is free there is its own."""

    def place(self, deployment: Deployment, nodes: Nodes, free: Free) -> dict[str, int] | None:
        unused = [[gpu for gpu in node if free[gpu.name] == gpu.free_bytes] for node in nodes]
        return Even().place(deployment, unused, free)


def _evenly(deployment: Deployment, pp: int, node: Sequence[Gpu], free: Free) -> dict[str, int] | None:
    even, more = divmod(deployment.num_layers, pp)
    if not even:
        return None
    layers = [even + (at < more) for at in range(pp)]
    names = [f"stage {at}" for at in range(pp)]
    needed = _held(deployment, names, layers)
    left = sorted((gpu.name for gpu in node), key=lambda gpu: free[gpu])
    seats: dict[str, str] = {}
    for stage in sorted(names, key=lambda name: -needed[name]):
        gpu = next((gpu for gpu in left if free[gpu] >= needed[stage]), None)
        if gpu is None:
            return None
        left.remove(gpu)
        seats[stage] = gpu
    return {seats[stage]: needed[stage] for stage in names}


def _held(deployment: Deployment, gpus: Sequence[str], layers: Sequence[int]) -> dict[str, int]:
    last = len(gpus) - 1
    return {
        gpu: deployment.memory.of_stage(n, first=at == 0, last=at == last)
        for at, (gpu, n) in enumerate(zip(gpus, layers, strict=True))
    }


def _candidates(deployment: Deployment) -> Iterator[Candidate]:
    for pp in DEGREES:
        yield Candidate(
            configuration=Configuration(
                engine="any", gpu_type=next(iter(TYPES)), tp=1, pp=pp, precision=Precision.FP16,
                kv_precision=Precision.FP16, max_batch=8, context_tokens=2048,
            ),
            prediction=Prediction(
                ttft_ms=1, tpot_ms=1, e2e_ms=1, throughput_tokens_per_s=1, memory_bytes=1, gpu_s=1, accuracy=None
            ),
            memory=deployment.memory,
            score=pp,
        )  # fmt: skip


def _plan(deployment: Deployment) -> Plan:
    facts = ModelFacts(
        architecture="any", shape_key=deployment.model, num_layers=deployment.num_layers, hidden_size=1,
        intermediate_size=1, vocab_size=1, num_heads=1, num_kv_heads=1, head_dim=1, max_context_tokens=1,
        layer_params=1, embedding_params=1, lm_head_params=1, tied_embeddings=False,
    )  # fmt: skip
    return Plan(facts=facts, candidates=tuple(_candidates(deployment)), num_considered=len(DEGREES))
