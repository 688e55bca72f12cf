"""What a distribution brings along: installed alone, the planner can reach neither a store nor a model."""

import json
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def needed(*names: str) -> set[str]:
    """Every third-party distribution that these declare, and those in turn, extras left out: what pip would install."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for text in distribution(waiting.pop()).requires or []:
            requirement = Requirement(text)
            name = requirement.name.lower()
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                waiting.append(name)
    return found - {"maveriq"}


@pytest.fixture(scope="session")
def planner_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment that holds maveriq, the planner and what they declare, nothing else.

    Needs no network: the declared distributions are linked, file by file, from the environment that runs the tests.
    """
    home = tmp_path_factory.mktemp("planner")
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    for name in needed("maveriq", "maveriq-planner"):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))).resolve())
    for package in (ROOT / "shared/maveriq", ROOT / "services/planner/maveriq_planner"):
        (site / package.name).symlink_to(package)
    return home / "bin" / Path(sys.executable).name


def importable(python: Path, *modules: str) -> dict[str, bool]:
    code = (
        "import importlib, json, sys\n"
        "def found(name):\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: return error.name not in (name, name.partition('.')[0])\n"
        "    return True\n"
        "print(json.dumps({name: found(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-I", "-c", code, *modules], check=True, capture_output=True, text=True, timeout=60)
    return {str(name): bool(found) for name, found in json.loads(done.stdout).items()}


def test_maveriq_and_the_planner_alone_reach_neither_redis_nor_torch(planner_alone: Path) -> None:
    modules = (
        "maveriq",
        "maveriq.contracts",
        "maveriq.topology",
        "maveriq_planner.handlers",
        "maveriq_planner.__main__",
    )
    assert importable(planner_alone, *modules) == dict.fromkeys(modules, True)
    strangers = ("redis", "torch", "transformers", "maveriq_allocator", "maveriq_worker")
    assert importable(planner_alone, *strangers) == dict.fromkeys(strangers, False)


def test_what_a_producer_installs_is_light() -> None:
    """The law's terms are plain arithmetic: neither they nor the client bring numpy."""
    heavy = {"numpy", "scipy", "torch", "redis", "starlette", "matplotlib", "opentelemetry"}
    assert not {name for name in needed("maveriq") if name.startswith(tuple(heavy))}
    code = "import json, sys, maveriq.client, maveriq.law, maveriq.running; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not heavy & set(json.loads(done.stdout))


def test_the_command_line_starts_without_torch() -> None:
    code = "import json, sys, maveriq.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not {"torch", "transformers", "maveriq.torch_layers"} & set(json.loads(done.stdout))
