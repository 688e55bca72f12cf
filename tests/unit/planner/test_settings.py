import pytest

from maveriq.settings import BadSetting
from maveriq_planner.settings import Settings


def test_the_pipeline_depth_comes_from_the_environment() -> None:
    assert Settings.from_env({"MAVERIQ_MAX_PP": "3"}).max_pp == 3
    assert Settings.from_env({}).max_pp == 8


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "129", "²"])
def test_a_senseless_depth_stops_the_start_with_its_name(text: str) -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_MAX_PP"):
        Settings.from_env({"MAVERIQ_MAX_PP": text})
