"""What stages say to one another: whole values in order, awake or asleep, until the other end is gone."""

import threading
import time

import pytest

from maveriq_worker.stage_link import Gone, Link, pair, ready

AWAKE_S = 5.0


def links() -> tuple[Link, Link]:
    one, other = pair()
    return Link(one), Link(other)


@pytest.mark.parametrize("spin_s", [0.0, 0.001, AWAKE_S], ids=["asleep", "awake, then asleep", "awake"])
def test_a_value_sent_later_is_received(spin_s: float) -> None:
    here, there = links()
    threading.Timer(0.05, there.send, [("step", 7)]).start()
    assert here.receive(spin_s) == ("step", 7)


def test_waiting_awake_ends_with_what_comes_first() -> None:
    (here, _), (other, there) = links(), links()
    threading.Timer(0.05, there.send, ["done"]).start()
    begun = time.perf_counter()
    assert ready([here, other], None, AWAKE_S) == [other]
    assert time.perf_counter() - begun < AWAKE_S


def test_waiting_awake_ends_with_the_other_end() -> None:
    here, there = links()
    there.send("last")
    del there
    assert here.receive(AWAKE_S) == "last"
    with pytest.raises(Gone):
        here.receive(AWAKE_S)
