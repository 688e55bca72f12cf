"""A producer that knows nothing of our Python classes: the program in docs/producing.md, as it stands there."""

import asyncio
import os
import re
import sys
from pathlib import Path

from maveriq.contracts import Model
from tests.cluster.system import System

DOC = Path(__file__).parents[2] / "docs" / "producing.md"


def program() -> str:
    """The block after the comment that names this test."""
    found = re.search(rf"<!--[^>]*{Path(__file__).name} -->\n```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found is not None, f"{DOC} has lost its runnable block"
    return found[1]


async def produce(system: System, *arguments: str) -> tuple[int | None, str, str]:
    """Run the program as its own process; exit code, output, errors."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program(), *arguments,
        env={**os.environ, "MAVERIQ_AMQP_URL": system.amqp_url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(running.communicate(), 180)
    return running.returncode, out.decode(), err.decode()


async def test_the_documented_program_gets_its_states_and_its_tokens(system: System, tiny: Model) -> None:
    code, out, err = await produce(system, "plain-tiny", tiny.source)
    assert code == 0, f"{err}\n{system.logs()}"
    lines = out.splitlines()
    assert lines[0] == "accepted" and "ready" in lines and lines[-1] == "released"
    assert re.search(r"^\d+ tokens, (length|stop)$", out, re.MULTILINE)


async def test_the_documented_program_is_told_what_to_change(system: System) -> None:
    code, _, err = await produce(system, "no such name", "nowhere")
    assert code == 1
    assert "model.name: " in err
