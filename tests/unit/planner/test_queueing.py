"""Latencies under load: exact where theory is, near a simulation elsewhere."""

from math import factorial

import numpy as np
import pytest

from maveriq_planner.curves import curves_of, patience
from maveriq_planner.queueing import Latencies, Replicas, line_longer, replicas_of, settle
from tests.unit.planner.simulation import Engine, simulate

NO_BOUND = np.array([np.inf])
ENGINES = {
    "a batch costs almost nothing": Engine(50, lambda b: 20 + 0.1 * b, 32, 100),
    "a batch of 10 takes twice one of 1": Engine(50, lambda b: 10 + b, 16, 50),
    "compute is the bound": Engine(100, lambda b: 2 + 10 * b, 8, 50),
    "prompts are the bound": Engine(300, lambda b: 15 + 0.3 * b, 16, 40),
    "few slots": Engine(30, lambda b: 20 + b, 4, 100),
}


def replicas(engine: Engine) -> Replicas:
    grid = np.arange(1.0, engine.slots + 1)
    prefill = np.array([engine.prefill_ms])
    step = np.array([[engine.step_ms(int(b)) for b in grid]])
    curves = curves_of(prefill, prefill, grid, step, engine.output_tokens)
    found = patience(curves, np.array([engine.slots]))[:, 0]
    return replicas_of(curves, np.array([0]), np.array([float(engine.slots)]), found)


def capacity(engine: Engine) -> float:
    return float(replicas(engine).full_per_ms[0])


def settled(engine: Engine, rate: float, *, in_flight: float = np.inf, percentile: float = 95.0) -> Latencies:
    return settle(replicas(engine), np.array([rate]), np.array([in_flight]), percentile)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("use", [0.1, 0.4, 0.7])
def test_up_to_seven_tenths_of_capacity_latencies_are_those_of_a_simulated_replica(name: str, use: float) -> None:
    """Found: E2E and TPOT within 20 % in the mean (5 % but where prompts are the bound); percentile 95 within 15 %
    but where these are, there up to 40 % too short."""
    engine = ENGINES[name]
    rate = capacity(engine) * use
    ttft, tpot, e2e = simulate(engine, rate, num_requests=4000, seed=1)
    found = settled(engine, rate)
    assert found.tpot_ms[0] == pytest.approx(tpot.mean(), rel=0.2)
    assert found.e2e_ms[0] == pytest.approx(e2e.mean(), rel=0.2)
    assert 0.8 * ttft.mean() < found.ttft_ms[0] < ttft.mean() + 0.1 * e2e.mean()
    for predicted, seen in (
        (found.tpot_percentile_ms[0], np.quantile(tpot, 0.95)),
        (found.e2e_percentile_ms[0], np.quantile(e2e, 0.95)),
    ):
        assert 0.6 * seen < predicted < 1.3 * seen
    assert found.ttft_percentile_ms[0] > 0.6 * np.quantile(ttft, 0.95)


@pytest.mark.parametrize("name", ENGINES)
def test_near_capacity_latencies_are_rather_too_long_than_too_short(name: str) -> None:
    engine = ENGINES[name]
    rate = capacity(engine) * 0.92
    ttft, _, e2e = simulate(engine, rate, num_requests=10000, seed=5)
    found = settled(engine, rate)
    assert found.e2e_ms[0] > 0.9 * e2e.mean()
    assert found.e2e_percentile_ms[0] > 0.9 * np.quantile(e2e, 0.95)
    assert found.ttft_percentile_ms[0] > 0.9 * np.quantile(ttft, 0.95)


@pytest.mark.parametrize("name", ENGINES)
def test_a_bound_on_requests_in_flight_bounds_the_latencies_as_in_a_simulated_replica(name: str) -> None:
    """At a rate that the replica cannot bear: in flight is always as many as may be. Within 15 %."""
    engine = ENGINES[name]
    for in_flight in (engine.slots // 2, engine.slots):
        rate = capacity(engine) * 3
        _, _, e2e = simulate(engine, rate, num_requests=3000, seed=3, in_flight=in_flight)
        found = settled(engine, rate, in_flight=in_flight)
        assert not found.sustained[0]
        assert found.e2e_ms[0] == pytest.approx(e2e.mean(), rel=0.15)
    line = settled(engine, capacity(engine) * (1 - 1e-12), in_flight=engine.slots + 4)
    most = 4 / capacity(engine)
    assert line.ttft_ms[0] <= engine.prefill_ms * 1.5 + most + line.tpot_ms[0] + engine.prefill_ms * engine.slots


def test_a_rate_that_the_bound_on_requests_in_flight_cannot_bring_is_not_sustained() -> None:
    engine = ENGINES["a batch costs almost nothing"]
    alone = 1 / (50 + 99 * engine.step_ms(1))
    assert settled(engine, alone * 0.99, in_flight=1).sustained[0]
    assert not settled(engine, alone * 1.01, in_flight=1).sustained[0]


def test_an_idle_replica_answers_in_its_own_time() -> None:
    found = settled(Engine(100, lambda b: 20.0 + b, 8, 51), 1e-9)
    assert found.batch[0] == pytest.approx(1, abs=1e-4)
    assert found.ttft_ms[0] == pytest.approx(100, rel=1e-4)
    assert found.tpot_ms[0] == pytest.approx(21, rel=1e-4)
    assert found.e2e_ms[0] == pytest.approx(100 + 50 * 21, rel=1e-4)
    assert found.e2e_percentile_ms[0] == pytest.approx(found.e2e_ms[0], rel=1e-3)


@pytest.mark.parametrize("use", [0.2, 0.5, 0.8, 0.95])
def test_one_slot_waits_as_an_m_m_1_queue(use: float) -> None:
    one = Engine(100, lambda _: 10.0, 1, 91)  # a request takes 1 s
    found = settled(one, use * 1e-3)
    assert found.ttft_ms[0] - 100 == pytest.approx(1000 * use / (1 - use))
    assert found.ttft_percentile_ms[0] - 100 == pytest.approx(
        max(1000 * use / (1 - use), np.log(use / 0.05) * 1000 / (1 - use))
    )


@pytest.mark.parametrize("use", [0.1, 0.5, 0.8])
def test_requests_in_hand_are_exact_where_all_share_one_processor(use: float) -> None:
    """M/M/1 with processor sharing: each stays 1 / (1 - use) times as long as alone."""
    shared = Engine(10, lambda b: 10.0 * b, 64, 100)
    found = settled(shared, use / 1000)
    assert found.batch[0] == pytest.approx(1 / (1 - use), rel=1e-3)


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 32])
def test_in_heavy_traffic_the_chance_of_a_full_replica_is_that_of_erlang(slots: int) -> None:
    """Times that no batch lengthens make it M/M/s, whose chance to wait is Erlang's C."""
    grid = np.arange(1.0, slots + 1)
    no_prompt, step = np.zeros(1), np.full((1, slots), 1000.0)
    k = patience(curves_of(no_prompt, no_prompt, grid, step, 2), np.array([slots]))[0, 0]
    use = 0.97
    offered = use * slots
    last = offered**slots / factorial(slots) / (1 - use)
    erlang = last / (sum(offered**n / factorial(n) for n in range(slots)) + last)
    assert use**k == pytest.approx(erlang, rel=0.01)
    assert k == pytest.approx(np.sqrt(2 * (slots + 1)) - 1, rel=0.06)


def test_a_rate_at_the_capacity_or_above_is_not_sustained() -> None:
    engine = Engine(100, lambda b: 20.0 + b, 8, 51)
    assert capacity(engine) == pytest.approx(8 / (8 * 100 + 50 * 28))
    assert settled(engine, capacity(engine) * 0.999).sustained[0]
    for more in (1.001, 1000):
        found = settled(engine, capacity(engine) * more)
        assert not found.sustained[0]
        assert found.batch[0] == 8


def test_latencies_never_fall_with_the_rate_and_the_line_grows_without_bound() -> None:
    engine = ENGINES["a batch of 10 takes twice one of 1"]
    found = [settled(engine, capacity(engine) * use) for use in (0.01, 0.3, 0.6, 0.9, 0.99, 0.9999)]
    for field in ("ttft_ms", "tpot_ms", "e2e_ms", "ttft_percentile_ms", "tpot_percentile_ms", "e2e_percentile_ms"):
        values = [float(getattr(one, field)[0]) for one in found]
        assert values == sorted(values)
    assert found[-1].ttft_ms[0] > 100_000


@pytest.mark.parametrize("percentile", [None, 50.0, 95.0, 99.9])
def test_the_line_alone_never_takes_longer_than_the_first_token(percentile: float | None) -> None:
    """What searches for replicas start from: it may not rule out what settling admits."""
    for engine in ENGINES.values():
        for use in (0.1, 0.5, 0.9, 0.99):
            rate = np.array([capacity(engine) * use])
            found = settle(replicas(engine), rate, NO_BOUND, percentile or 95.0)
            ttft = found.ttft_ms if percentile is None else found.ttft_percentile_ms
            assert not line_longer(replicas(engine), rate, ttft - engine.prefill_ms + 1e-9, percentile)[0]


def test_a_higher_percentile_is_never_shorter_and_none_above_half_is_below_the_mean() -> None:
    for engine in ENGINES.values():
        for use in (0.1, 0.5, 0.9):
            rate = capacity(engine) * use
            found = [settled(engine, rate, percentile=p) for p in (50, 90, 95, 99, 99.9)]
            for field, mean in (("ttft_percentile_ms", "ttft_ms"), ("e2e_percentile_ms", "e2e_ms")):
                values = [float(getattr(one, field)[0]) for one in found]
                assert values == sorted(values)
                assert values[0] >= getattr(found[0], mean)[0]
