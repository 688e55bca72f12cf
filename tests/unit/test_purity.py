"""What says "Pure" of itself, and the packages below, reach no broker, store, device, clock, chance or log."""

import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("ingress", "profiler", "planner", "allocator", "worker")
ROOTS = {"maveriq": ROOT / "shared", **{f"maveriq_{name}": ROOT / "services" / name for name in SERVICES}}
WHOLE = ("maveriq.contracts", "maveriq.law", "maveriq_planner.quantizing")
WORLD = ("aio_pika", "redis", "pynvml", "torch", "structlog", "asyncio", "time", "os", "random", "socket", "subprocess")


def says_pure(path: Path) -> bool:
    """In the first paragraph of its docstring."""
    return re.search(r"\bPure[.:]", path.read_text().partition("\n\n")[0]) is not None


def pure() -> list[str]:
    return sorted(
        module
        for package, folder in ROOTS.items()
        for path in (folder / package).rglob("*.py")
        if (module := ".".join(path.relative_to(folder).with_suffix("").parts)).startswith(WHOLE) or says_pure(path)
    )


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(*ROOTS, include_external_packages=True)


@pytest.mark.parametrize("module", pure())
def test_a_decision_reaches_nothing_of_the_world(module: str, imports: grimp.ImportGraph) -> None:
    for forbidden in WORLD:
        if forbidden in imports.modules:
            chain = imports.find_shortest_chain(module.removesuffix(".__init__"), forbidden)
            assert chain is None, " -> ".join(chain or ())
