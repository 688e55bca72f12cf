"""What a replica answered is counted by how it ended, and its times by how long they are."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maveriq.contracts import Chunk, FinishReason, Timing, Usage
from maveriq_worker.tally import BOUNDS_S, Spread, Tally


def last(reason: FinishReason, tokens: int | None = None) -> Chunk:
    """Tokens: None: the request ended before the engine began."""
    usage = None if tokens is None else Usage(prompt_tokens=10, completion_tokens=tokens)
    timing = None if tokens is None else Timing(queue_ms=40, prefill_ms=60, decode_ms=900)
    return Chunk(request_id=uuid4(), attempt=1, index=0, text="", token_ids=(), finish_reason=reason,
                 usage=usage, timing=timing)  # fmt: skip


def test_a_request_is_counted_by_its_end_with_its_tokens_and_times() -> None:
    tally = Tally()
    for chunk in (last(FinishReason.STOP, 10), last(FinishReason.STOP, 1), last(FinishReason.ERROR), None):
        tally.add(chunk)
    assert tally.ended == {"stop": 2, "error": 1, "client_gone": 1}
    assert (tally.prompt_tokens, tally.output_tokens) == (20, 11)
    assert tally.queue.sum_s == pytest.approx(2 * 0.04)
    assert tally.ttft.sum_s == pytest.approx(2 * 0.1)
    assert tally.tpot.sum_s == pytest.approx(0.1)  # one token has none after it


@given(st.lists(st.floats(0, 1e4), max_size=50))
def test_each_bucket_holds_all_times_up_to_its_bound(times_s: list[float]) -> None:
    spread = Spread()
    for time_s in times_s:
        spread.add(time_s)
    told = [number for _, number in spread.buckets()]
    assert told == [*(sum(time_s <= bound for time_s in times_s) for bound in BOUNDS_S), len(times_s)]
