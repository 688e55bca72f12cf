"""Figures keep their digits: what is small is not shown as none, what differs is not shown as equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from maveriq.cli.figures import (
    amount,
    counted_shape,
    digits,
    duration,
    gpus_of,
    limit,
    missed_by,
    mix,
    runs_as,
    shape,
    size,
)
from maveriq.contracts import Precision
from tests.unit.cli.plans import FP8, mixed
from tests.unit.cli.records import configuration


@given(some.floats(1e-9, 1e9))
def test_a_duration_or_an_amount_above_zero_is_never_shown_as_zero(value: float) -> None:
    for shown in (duration(value), amount(value), limit("slo.ttft_ms", value), size(max(1.0, value))):
        assert any(digit in "123456789" for digit in shown)
    assert "e" not in duration(value)


@given(some.floats(1e-6, 1e8))
def test_a_duration_is_right_to_three_digits(ms: float) -> None:
    number, unit = duration(ms).split()
    assert float(number) * {"ms": 1, "s": 1000}[unit] == pytest.approx(ms, rel=0.0051)


def test_a_miss_is_told_apart_from_what_was_wanted() -> None:
    assert (limit("slo.ttft_ms", 300), limit("slo.ttft_ms", 300.4), missed_by(300, 300.4)) == (
        "300 ms", "300.4 ms", "+0.13 %",
    )  # fmt: skip
    assert missed_by(0.95, 0.9) == "-5.3 %"
    assert missed_by(1, 30) == "30 times"
    assert (limit("min_accuracy", None), limit("max_price_per_hour", None)) == ("not measured", "not known")
    assert missed_by(0.95, None) == ""
    assert limit("max_gpus", 8) == "8"
    assert limit("max_price_per_hour", 2.5) == "2.5 per hour"


def test_digits_are_written_out() -> None:
    assert digits(0.0000081234) == "0.00000812"
    assert digits(1234567) == "1230000"


def test_a_variant_with_a_name_of_its_own_is_named() -> None:
    plain = configuration(Precision.INT8, 1)
    assert shape(plain) == "int8 · 1 stage"
    assert shape(plain.model_copy(update={"variant": "int8"})) == "int8 · 1 stage"
    assert shape(plain.model_copy(update={"variant": "pruned"})) == "pruned (int8) · 1 stage"


def test_a_mixed_pipeline_says_how_many_layers_have_which_precision_and_how_they_are_split() -> None:
    assert mix((Precision.INT4, Precision.FP32, Precision.INT8, Precision.INT8)) == "1 x fp32 + 2 x int8 + 1 x int4"
    assert runs_as(mixed()) == "mixed · 14 x bf16 + 16 x int8 | 22+8 layers"
    assert counted_shape(mixed().model_copy(update={"replicas": 2})).startswith("2 x mixed · 14 x bf16")
    assert gpus_of(mixed()) == "NVIDIA L4 + NVIDIA A10"
    assert (runs_as(FP8), gpus_of(FP8)) == (shape(FP8.configuration), "NVIDIA L4")
