"""How stages that do not start are told to the worker: whether another placement of the checkpoint may do better."""

from pathlib import Path

import pytest

from maveriq_worker.stage_processes import CheckpointRefused, StageProcesses, StagesFailed
from tests.unit.worker.tiny_models import spec

REFUSES = """
import socket, sys
from maveriq_worker.stage_link import Link
from maveriq_worker.torch_steps import StageRefused
worker = Link(socket.socket(fileno=int(sys.argv[2])))
worker.receive()
worker.send(StageRefused("no such tensor", unusable={unusable}))
"""


@pytest.mark.parametrize("unusable", [True, False])
async def test_a_stage_says_whether_any_other_placement_of_its_checkpoint_would_fail_too(
    unusable: bool, tmp_path: Path
) -> None:
    stages = StageProcesses(("-c", REFUSES.format(unusable=unusable)))
    with pytest.raises(StagesFailed, match=r"^no such tensor$") as failed:
        await stages.start((spec(tmp_path, (4,), 0),))
    assert isinstance(failed.value, CheckpointRefused) == unusable
    await stages.stop()
