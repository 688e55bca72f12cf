"""Random fragmented clusters and streams of deployments for `fragments.py`. Pure: a random source in, an instance out.

Each stream is known to fit: it is drawn together with a placement that holds all of it at once, by a random hand that
knows none of the rules compared, and then shuffled. So the most that any rule can place is known exactly, and what a
rule refuses it refuses because of fragmentation alone. (A stream larger than its cluster would reward whoever refuses
the large models.)
"""

from dataclasses import dataclass
from random import Random

from maveriq.contracts import StageMemory

GIB = 2**30
GPUS_A_NODE = 8
DEGREES = range(1, GPUS_A_NODE + 1)  # pipeline stages
TYPES = {"RTX A6000": 47.5, "L4": 22.5, "A100-40GB": 39.4, "H100": 79.6}  # GiB
RUNTIME_GIB = 0.7  # context and activations: of the order that MaverIQ's measurements show
MAX_MISSES = 100
LOADS = (0.7, 0.8, 0.9)  # of the free bytes, at most


@dataclass(frozen=True, slots=True)
class Architecture:
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    is_gated: bool = True
    is_tied: bool = False

    @property
    def layer_params(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.intermediate


MODELS = {  # from their published config.json
    "smollm2-135m": Architecture(30, 576, 1536, 9, 3, 64, 49152, is_tied=True),
    "smollm2-1.7b": Architecture(24, 2048, 8192, 32, 32, 64, 49152, is_tied=True),
    "qwen2.5-0.5b": Architecture(24, 896, 4864, 14, 2, 64, 151936, is_tied=True),
    "qwen2.5-7b": Architecture(28, 3584, 18944, 28, 4, 128, 152064),
    "qwen3-8b": Architecture(36, 4096, 12288, 32, 8, 128, 151936),
    "gpt-j-6b": Architecture(28, 4096, 16384, 16, 16, 256, 50400, is_gated=False),
    "falcon-7b": Architecture(32, 4544, 18176, 71, 1, 64, 65024, is_gated=False, is_tied=True),
    "falcon-40b": Architecture(60, 8192, 32768, 128, 8, 64, 65024, is_gated=False, is_tied=True),
    "llama-2-7b": Architecture(32, 4096, 11008, 32, 32, 128, 32000),
    "llama-2-13b": Architecture(40, 5120, 13824, 40, 40, 128, 32000),
    "llama-2-70b": Architecture(80, 8192, 28672, 64, 8, 128, 32000),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    gpu_type: str
    total_bytes: int
    foreign_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.foreign_bytes


@dataclass(frozen=True, slots=True)
class Deployment:
    model: str
    num_layers: int
    memory: StageMemory


@dataclass(frozen=True, slots=True)
class Instance:
    nodes: tuple[tuple[Gpu, ...], ...]
    stream: tuple[Deployment, ...]
    bound: int | None = None
    """Most of the stream that fits, whoever places it; None: not known."""

    @property
    def free_bytes(self) -> int:
        return sum(gpu.free_bytes for node in self.nodes for gpu in node)


def draw(random: Random, num_gpus: int, num_types: int, load: float) -> Instance:
    """Args:
    load: share of the free bytes that the stream takes, at most.
    """
    num_nodes = num_gpus // GPUS_A_NODE
    nodes = tuple(_node(random, number, num_types, is_alone=num_nodes == 1) for number in range(num_nodes))
    free = [[gpu.free_bytes for gpu in node] for node in nodes]
    left_bytes = load * sum(map(sum, free))
    stream: list[Deployment] = []
    misses = 0  # in a row
    while misses < MAX_MISSES:
        deployment = _deployment(random)
        held = _held_somewhere(random, deployment, free)
        if held is None or sum(held.values()) > left_bytes:
            misses += 1
            continue
        for (node, gpu), num_bytes in held.items():
            free[node][gpu] -= num_bytes
        left_bytes -= sum(held.values())
        stream.append(deployment)
        misses = 0
    random.shuffle(stream)
    return Instance(nodes, tuple(stream), bound=len(stream))


def _node(random: Random, number: int, num_types: int, *, is_alone: bool) -> tuple[Gpu, ...]:
    """Of one type, or of two in one node of four, or of all where it is the only one; a third of the GPUs is empty."""
    types = [*TYPES][:num_types]
    mixed = num_types > 1 and random.random() < 0.25
    here = types if is_alone else random.sample(types, 2) if mixed else [random.choice(types)]
    gpus: list[Gpu] = []
    for slot in range(GPUS_A_NODE):
        gpu_type = here[slot * len(here) // GPUS_A_NODE]
        total = int(TYPES[gpu_type] * GIB)
        foreign = 0 if random.random() < 1 / 3 else int(total * random.uniform(0.1, 0.95))
        gpus.append(Gpu(f"n{number}/{slot}", gpu_type, total, foreign))
    return tuple(gpus)


def _deployment(random: Random) -> Deployment:
    """A model in 16 bits, with the KV cache that its slots need."""
    model = random.choice([*MODELS])
    shape = MODELS[model]
    cached_tokens = random.choice((2, 4, 8)) * random.choice((1024, 2048))
    ends = 2 * shape.vocabulary * shape.hidden
    memory = StageMemory(
        layer_bytes=2 * shape.layer_params + cached_tokens * 4 * shape.num_kv_heads * shape.head_dim,
        first_bytes=ends, last_bytes=ends, tied_saving_bytes=ends if shape.is_tied else 0,
        runtime_bytes=int(RUNTIME_GIB * GIB),
    )  # fmt: skip
    return Deployment(model, shape.num_layers, memory)


def _held_somewhere(random: Random, deployment: Deployment, free: list[list[int]]) -> dict[tuple[int, int], int] | None:
    """Bytes of each (node, GPU) of a random placement; None: a few tries found none."""
    memory = deployment.memory
    for _ in range(8):
        pp = random.choice([degree for degree in DEGREES if degree <= deployment.num_layers])
        node = random.randrange(len(free))
        gpus = random.sample(range(len(free[node])), pp)
        room = [
            (free[node][gpu] - memory.of_stage(0, first=at == 0, last=at == pp - 1)) // memory.layer_bytes
            for at, gpu in enumerate(gpus)
        ]
        if min(room) < 1 or sum(room) < deployment.num_layers:
            continue
        layers = [1] * pp
        while sum(layers) < deployment.num_layers:
            layers[random.choice([at for at in range(pp) if layers[at] < room[at]])] += 1
        return {
            (node, gpu): memory.of_stage(n, first=at == 0, last=at == pp - 1)
            for at, (gpu, n) in enumerate(zip(gpus, layers, strict=True))
        }
    return None
