"""How strategies, the speeds of GPU types, NVLink and engines that span nodes decide what the allocator orders.

Messages in, messages out, through JSON, on a real Redis.
"""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    Candidate,
    Gpu,
    InventoryChanged,
    LayerSpeed,
    Message,
    NodeReported,
    Placement,
    PlacementReserved,
    PlanComputed,
    Strategy,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import connect
from tests.unit.allocator.plans import candidate, computed, memory

SHARES = {"full": 1.0, "high": 0.8, "some": 0.6, "little": 0.2, "idle": 0.0}
FREE = {"full": 90, "high": 85, "some": 100, "little": 100, "idle": 110}


class Allocator:
    """One allocator process, fed by hand."""

    def __init__(self, redis_url: str, strategy: Strategy) -> None:
        self.redis = connect(redis_url)
        settings = Settings(redis_url, 60.0, strategy=strategy)
        self._handlers = {h.message: h for h in bound(wire(self.redis, settings))}
        self.held: dict[str, int] = {}
        """Bytes held of each GPU, as last told."""

    async def tell(self, message: Message) -> list[Message]:
        """Both ways through the JSON that the broker would carry."""
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        returned = replies(ALLOCATOR, await self._handlers[type(message)].run(cause))
        heard = [decode(type(reply), reply.topic, reply.model_dump_json().encode()) for reply in returned]
        for said in heard:
            if isinstance(said, InventoryChanged):
                self.held |= {state.gpu.id: sum(h.bytes for h in state.holdings) for state in said.gpus}
        return heard

    async def place(self, plan: PlanComputed) -> Placement:
        (order,) = [said for said in await self.tell(plan) if isinstance(said, PlacementReserved)]
        return order.placement


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[dict[Strategy, Allocator]]:
    made = {strategy: Allocator(redis_url, strategy) for strategy in Strategy}
    yield made
    for allocator in made.values():
        await allocator.redis.aclose()


@pytest.fixture
def allocator(allocators: dict[Strategy, Allocator]) -> Allocator:
    return allocators[Strategy.BEST_FIT]


def node(
    name: str, *sizes: int, gpu_type: str = "A6000", shares: tuple[float, ...] = (),
    linked: dict[int, int] | None = None, spans: bool = False,
) -> NodeReported:  # fmt: skip
    """Args:
    shares: utilisation of each GPU.
    linked: by index.
    """
    gpus = tuple(
        Gpu(
            id=f"{name}/{at}", gpu_type=gpu_type, total_bytes=size, foreign_bytes=0,
            utilisation=shares[at] if shares else None,
            linked=(f"{name}/{linked[at]}",) if linked and at in linked else (),
        )
        for at, size in enumerate(sizes)
    )  # fmt: skip
    return NodeReported(node=name, engine="torch", gpus=gpus, spans_nodes=spans)


def asking(
    *candidates: Candidate, strategy: Strategy | None = None, threshold: float = 0.7, num_layers: int = 8,
    deployment_id: UUID | None = None,
) -> PlanComputed:  # fmt: skip
    plan = computed(*candidates, num_layers=num_layers, deployment_id=deployment_id or uuid4())
    intent = plan.admission.intent.model_copy(update={"strategy": strategy, "hybrid_threshold": threshold})
    return plan.model_copy(update={"admission": plan.admission.model_copy(update={"intent": intent})})


@pytest.mark.parametrize(
    ("strategy", "threshold", "expected"),
    [
        (Strategy.LEAST_LOADED, 0.7, "idle"),
        (Strategy.PACKING, 0.7, "high"),
        (Strategy.HYBRID, 0.7, "some"),
        (Strategy.HYBRID, 0.3, "little"),
        (Strategy.HYBRID, 0.9, "high"),
        (Strategy.BEST_FIT, 0.7, "high"),
        (None, 0.7, "high"),
    ],
)
async def test_an_intents_strategy_chooses_among_gpus_by_how_busy_they_were(
    allocator: Allocator, strategy: Strategy | None, threshold: float, expected: str
) -> None:
    for name, share in SHARES.items():
        await allocator.tell(node(name, FREE[name], shares=(share,)))
    placed = await allocator.place(asking(strategy=strategy, threshold=threshold))
    assert placed.node == expected
    assert placed.gap == 0


async def test_within_a_node_the_strategy_chooses_too(allocator: Allocator) -> None:
    await allocator.tell(node("n", *FREE.values(), shares=tuple(SHARES.values())))
    gpus = [(await allocator.place(asking(strategy=each))).stages[0].gpus for each in Strategy]
    assert gpus == [("n/1",), ("n/4",), ("n/2",), ("n/0",)]  # packing, least loaded, hybrid, best fit of what is left


async def test_an_intent_without_a_strategy_gets_the_allocators(allocators: dict[Strategy, Allocator]) -> None:
    chosen: dict[Strategy, str] = {}
    for name, share in SHARES.items():
        await allocators[Strategy.HYBRID].tell(node(name, FREE[name], shares=(share,)))
    for strategy in (Strategy.LEAST_LOADED, Strategy.HYBRID):
        chosen[strategy] = (await allocators[strategy].place(asking())).node
    assert chosen == {Strategy.LEAST_LOADED: "idle", Strategy.HYBRID: "some"}


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("share", [0.9, 1.0])
async def test_under_every_strategy_the_only_gpu_with_room_is_taken_at_once(
    allocator: Allocator, strategy: Strategy, share: float
) -> None:
    """MaverIQ's hybrid and packing wait for ever."""
    await allocator.tell(node("n", 100, 10, shares=(share, 0.1)))
    assert (await allocator.place(asking(strategy=strategy))).stages[0].gpus == ("n/0",)


async def test_utilisation_that_nobody_knows_counts_as_idle(allocator: Allocator) -> None:
    await allocator.tell(node("a", 100, shares=(0.5,)))
    await allocator.tell(node("b", 120))
    assert (await allocator.place(asking(strategy=Strategy.LEAST_LOADED))).node == "b"


MIXABLE = (LayerSpeed(gpu_type="A6000", decode_ms=1.0), LayerSpeed(gpu_type="K80", decode_ms=4.0))


async def test_gpu_types_mix_where_no_candidate_fits_unmixed_and_layers_go_by_speed(allocator: Allocator) -> None:
    """Of 32 layers, 31 and 1: MaverIQ's halves take 80 ms, these 35."""
    mixed = candidate(pp=2).model_copy(update={"mixable": MIXABLE})
    both = [
        *node("n", 400, gpu_type="K80").gpus,
        *(gpu.model_copy(update={"id": "n/1"}) for gpu in node("n", 400).gpus),
    ]
    await allocator.tell(NodeReported(node="n", engine="torch", gpus=tuple(both)))
    placed = await allocator.place(asking(mixed, num_layers=32))
    assert [(s.gpu_type, s.num_layers, s.reserved_bytes) for s in placed.stages] == [("A6000", 31, 310), ("K80", 1, 10)]
    assert allocator.held == {"n/0": 10, "n/1": 310}


async def test_a_worse_candidate_that_fits_unmixed_goes_before_a_mixed_one(allocator: Allocator) -> None:
    mixed = candidate(pp=2).model_copy(update={"mixable": MIXABLE})
    both = [
        *node("n", 400, gpu_type="K80").gpus,
        *(gpu.model_copy(update={"id": "n/1"}) for gpu in node("n", 400).gpus),
    ]
    await allocator.tell(NodeReported(node="n", engine="torch", gpus=tuple(both)))
    placed = await allocator.place(asking(mixed, candidate(gpu_type="K80"), num_layers=32))
    assert [(s.gpu_type, s.num_layers) for s in placed.stages] == [("K80", 32)]


async def test_tp_ranks_are_nvlink_neighbours_where_such_fit(allocator: Allocator) -> None:
    await allocator.tell(node("n", 80, 90, 100, 80, linked={0: 1, 1: 0, 2: 3, 3: 2}))
    placed = await allocator.place(asking(candidate(tp=2)))
    assert placed.stages[0].gpus == ("n/0", "n/1")
    assert (await allocator.place(asking(candidate(tp=2)))).stages[0].gpus == ("n/2", "n/3")


async def test_a_replica_of_an_engine_that_spans_nodes_holds_bytes_on_each(allocator: Allocator) -> None:
    await allocator.tell(node("a", 50, spans=True))
    await allocator.tell(node("b", 45, spans=True))
    placed = await allocator.place(asking(candidate(pp=2, stage=memory(layer=10))))
    assert placed.node == "a"
    assert [(s.node, s.gpus) for s in placed.stages] == [("a", ("a/0",)), ("b", ("b/0",))]
    assert placed.nodes == ("a", "b")
    assert allocator.held == {"a/0": 40, "b/0": 40}


async def test_a_replica_of_an_engine_that_does_not_span_nodes_is_not_placed_on_two(allocator: Allocator) -> None:
    await allocator.tell(node("a", 50))
    await allocator.tell(node("b", 45))
    said = await allocator.tell(asking(candidate(pp=2)))
    assert not [each for each in said if isinstance(each, PlacementReserved)]
    assert set(allocator.held.values()) <= {0}
