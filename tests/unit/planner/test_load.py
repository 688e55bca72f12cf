import pytest

from maveriq_planner.load import Replica, settle

REPLICA = Replica(
    prefill_ms=100, prefill_stage_ms=100, step_ms=lambda batch: 20.0 + batch, output_tokens=51, max_batch=8
)


def test_an_idle_replica_answers_in_its_own_time() -> None:
    load = settle(REPLICA, 1e-6)
    assert (load.busy_batch, load.ttft_ms, load.tpot_ms) == (1, pytest.approx(100), 21)
    assert load.e2e_ms(51) == pytest.approx(100 + 50 * 21)


def test_the_batch_is_the_smallest_that_finishes_requests_as_fast_as_they_come() -> None:
    for rate in (0.5, 1.0, 2.0, 2.5, 3.0):
        load = settle(REPLICA, rate)
        done = [1e3 / (100 + 50 * (20 + b) / b) for b in range(1, 9)]
        assert load.busy_batch == next(b for b, per_s in enumerate(done, start=1) if per_s > rate)


def test_what_each_request_stays_is_what_little_says_of_the_batch() -> None:
    load = settle(REPLICA, 2.5)
    stay_ms = REPLICA.prefill_ms + 50 * load.tpot_ms
    assert stay_ms == pytest.approx(load.busy_batch * REPLICA.request_ms(load.busy_batch))


def test_a_rate_at_the_capacity_or_above_is_not_sustained() -> None:
    capacity = settle(REPLICA, 1).capacity_per_s
    assert capacity == pytest.approx(1e3 / (100 + 50 * 28 / 8))
    assert settle(REPLICA, capacity * 0.999).sustained
    assert not settle(REPLICA, capacity * 1.001).sustained
    assert settle(REPLICA, capacity * 1000).busy_batch == 8


def test_waiting_grows_without_bound_towards_the_capacity_and_never_falls_with_the_rate() -> None:
    capacity = settle(REPLICA, 1).capacity_per_s
    waits = [settle(REPLICA, capacity * use).ttft_ms for use in (0.01, 0.3, 0.6, 0.9, 0.99, 0.999)]
    assert waits == sorted(waits)
    assert waits[-1] > 10_000


def test_one_slot_waits_as_an_m_m_1_queue() -> None:
    one = Replica(prefill_ms=100, prefill_stage_ms=100, step_ms=lambda _: 10.0, output_tokens=91, max_batch=1)
    assert settle(one, 0.5).ttft_ms - 100 == pytest.approx(1000 * 0.5 / (1 - 0.5))  # a request takes 1 s
