"""What stages say to one another: whole values in order, until the other end is gone."""

import threading

import pytest

from maveriq_worker.stage_link import Gone, Link, pair, ready


def links() -> tuple[Link, Link]:
    one, other = pair()
    return Link(one), Link(other)


def test_a_value_sent_later_is_received() -> None:
    here, there = links()
    threading.Timer(0.05, there.send, [("step", 7)]).start()
    assert here.receive() == ("step", 7)


def test_waiting_for_several_ends_with_what_comes_first() -> None:
    (here, _), (other, there) = links(), links()
    threading.Timer(0.05, there.send, ["done"]).start()
    assert ready([here, other], None) == [other]


def test_what_was_said_is_heard_before_the_end() -> None:
    here, there = links()
    there.send("last")
    del there
    assert here.receive() == "last"
    with pytest.raises(Gone):
        here.receive()
