"""The worker's settings: what stages wait awake for, and a bad value that stops the start with its name."""

import pytest

from maveriq.settings import BadSetting
from maveriq_worker.engine import SPIN_MS
from maveriq_worker.settings import Settings


@pytest.mark.parametrize(("env", "spin_ms"), [({}, SPIN_MS), ({"MAVERIQ_STAGE_SPIN_MS": "0"}, 0.0)])
def test_stages_wait_awake_unless_told_not_to(env: dict[str, str], spin_ms: float) -> None:
    assert Settings.from_env(env).stage_spin_ms == spin_ms


@pytest.mark.parametrize("text", ["-1", "ever", "nan", "10001"])
def test_a_time_to_wait_awake_that_makes_no_sense_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_STAGE_SPIN_MS"):
        Settings.from_env({"MAVERIQ_STAGE_SPIN_MS": text})
