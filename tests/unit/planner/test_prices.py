"""Prices are read from the setting, or refused with what to write."""

import pytest

from maveriq_planner.prices import prices


def test_prices_are_money_an_hour_by_gpu_type() -> None:
    assert prices("NVIDIA L4=0.80, cpu-1t = .05,") == {"NVIDIA L4": 0.8, "cpu-1t": 0.05}
    assert prices("") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NVIDIA L4", "give a GPU type and its price"),
        ("=3", "give a GPU type and its price"),
        ("NVIDIA L4=cheap", "NVIDIA L4 is not a number"),
        ("NVIDIA L4=-1", "more than 0"),
        ("NVIDIA L4=0", "more than 0"),
        ("NVIDIA L4=nan", "more than 0"),
        ("NVIDIA L4=1,NVIDIA L4=2", "two prices"),
    ],
)
def test_a_senseless_price_says_what_to_give(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prices(text)
