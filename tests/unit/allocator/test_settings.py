"""What the environment may say."""

import pytest

from maveriq.contracts import Strategy
from maveriq.settings import BadSetting
from maveriq_allocator.settings import NODE_TIMEOUT_S, Settings


def test_only_the_store_must_be_named() -> None:
    assert Settings.from_env({"MAVERIQ_REDIS_URL": "redis://h/1"}) == Settings("redis://h/1", NODE_TIMEOUT_S)


def test_a_strategy_for_intents_that_name_none_may_be_set() -> None:
    env = {"MAVERIQ_REDIS_URL": "redis://h/1", "MAVERIQ_STRATEGY": "least_loaded"}
    assert Settings.from_env(env).strategy is Strategy.LEAST_LOADED


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "MAVERIQ_REDIS_URL is not set"),
        ({"MAVERIQ_REDIS_URL": "localhost"}, "MAVERIQ_REDIS_URL='localhost': give a Redis URL"),
        (
            {"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_NODE_TIMEOUT_S": "0"},
            "MAVERIQ_NODE_TIMEOUT_S='0': give a number",
        ),
        (
            {"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_STRATEGY": "llf"},
            "MAVERIQ_STRATEGY='llf': give one of packing, least_loaded, hybrid, best_fit",
        ),
        ({"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_NODE_TIMEOUT_S": "soon"}, "MAVERIQ_NODE_TIMEOUT_S='soon'"),
        ({"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_GRACE_S": "-1"}, "MAVERIQ_GRACE_S='-1': give a number"),
        (
            {"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_QUOTAS": "a"},
            "MAVERIQ_QUOTAS='a': a is not understood; give e.g.",
        ),
        ({"MAVERIQ_REDIS_URL": "redis://h", "MAVERIQ_HEADROOM": "5"}, "MAVERIQ_HEADROOM='5': 5 is not a size"),
    ],
)
def test_a_bad_value_stops_the_start_with_its_name(env: dict[str, str], told: str) -> None:
    with pytest.raises(BadSetting, match=told):
        Settings.from_env(env)


def test_it_looks_for_silent_workers_several_times_in_a_grace_period() -> None:
    short = Settings.from_env({"MAVERIQ_REDIS_URL": "redis://h/1", "MAVERIQ_GRACE_S": "3"})
    assert short.times.sweep_s == 0.5
    assert Settings.from_env({"MAVERIQ_REDIS_URL": "redis://h/1"}).times.sweep_s == 5


def test_nothing_is_placed_on_a_node_whose_reservations_would_be_reclaimed_at_once() -> None:
    given = Settings("redis://h/1", node_timeout_s=600, grace_s=30)
    assert given.silence_s == 30
    assert Settings("redis://h/1", node_timeout_s=5).silence_s == 5
