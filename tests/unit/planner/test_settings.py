"""What the planner's environment may say."""

import pytest

from maveriq.agreed_settings import Method
from maveriq.settings import BadSetting
from maveriq_planner.settings import Settings
from maveriq_planner.sources import sources_of
from maveriq_planner.space import by_law


def test_depth_prices_and_estimator_come_from_the_environment() -> None:
    env = {"MAVERIQ_MAX_PP": "3", "MAVERIQ_PRICES": "NVIDIA L4=0.80,cpu-1t=0.05", "MAVERIQ_ESTIMATOR": "maveriq"}
    found = Settings.from_env(env)
    assert (found.max_pp, found.estimator) == (3, Method.MAVERIQ)
    assert found.prices == {"NVIDIA L4": 0.8, "cpu-1t": 0.05}
    plain = Settings.from_env({})
    assert (plain.max_pp, plain.prices, plain.estimator) == (8, {}, Method.LAW)
    assert sources_of(plain.estimator) is by_law


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("MAVERIQ_MAX_PP", text) for text in ("0", "-1", "many", "1.5", "129", "²")),
        *(("MAVERIQ_PRICES", text) for text in ("L4", "L4=", "L4=free", "L4=-3")),
        ("MAVERIQ_ESTIMATOR", "oracle"),
    ],
)
def test_a_senseless_setting_stops_the_start_with_its_name(name: str, text: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.from_env({name: text})
