"""What a replica answered is told by size, in a bounded number of kinds that lose no request."""

from hypothesis import given
from hypothesis import strategies as st

from maveriq_worker.sizes import MAX_KINDS, Sizes

tokens = st.integers(0, 1_000_000)


def test_requests_of_about_one_size_are_one_kind_of_their_mean_and_are_told_once() -> None:
    sizes = Sizes()
    for prompt, answer in ((100, 10), (104, 10), (5000, 300)):
        sizes.add(prompt, answer)
    assert [(each.input_tokens, each.output_tokens, each.count) for each in sizes.take()] == [
        (102, 10, 2), (5000, 300, 1),
    ]  # fmt: skip
    assert sizes.take() == ()


@given(st.lists(st.tuples(tokens, tokens), max_size=300))
def test_no_request_is_lost(asked: list[tuple[int, int]]) -> None:
    sizes = Sizes()
    for each in asked:
        sizes.add(*each)
    told = sizes.take()
    assert sum(each.count for each in told) == len(asked)
    assert len(told) <= MAX_KINDS
