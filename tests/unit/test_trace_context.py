"""What counts as a W3C trace context, what it becomes, and which trace begins where there is none."""

from uuid import UUID

import pytest

from maveriq.bus.envelope import Envelope, seal, trace_of
from maveriq.contracts import DeploymentKept, ReleaseRequested
from maveriq.trace_context import begun, received
from tests.fakes import ADMISSION, NOW, PLAN

TRACE_ID, PARENT_ID, ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", UUID(int=5)
GIVEN = f"00-{TRACE_ID}-{PARENT_ID}-01"


def test_what_is_well_formed_goes_on_as_it_came() -> None:
    headers = {"traceparent": GIVEN, "tracestate": "congo=t61rcWkgMzE,rojo@vendor=00f0"}
    trace = received({**headers, "deadline": "7"})
    assert trace is not None
    assert trace.headers() == headers


@pytest.mark.parametrize(
    "given",
    [
        "", GIVEN.upper(), GIVEN[:-1], f"{GIVEN}-more", f"{GIVEN}\n", f" {GIVEN}", f"ff{GIVEN[2:]}", f"0{GIVEN}",
        f"00-{'0' * 32}-{PARENT_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01", f"cc{GIVEN[2:]}more", GIVEN.encode(), 7, None,
    ],
)  # fmt: skip
def test_what_is_malformed_counts_as_none(given: object) -> None:
    assert received({"traceparent": given, "tracestate": "a=1"}) is None


def test_of_a_later_version_what_we_know_goes_on_in_ours() -> None:
    trace = received({"traceparent": f"cc-{TRACE_ID}-{PARENT_ID}-ff-what.the.future.brings"})
    assert trace is not None
    assert trace.headers() == {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-03"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=1, b=2 ,,c=3", "a=1,b=2,c=3"),
        ("a=1,a=2", ""), ("A=1", ""), ("a=1,nonsense", ""), ("a=ü", ""), (",".join(f"k{n}=1" for n in range(33)), ""),
        (f"a={'x' * 250},b={'x' * 250},c={'x' * 250}", f"a={'x' * 250},b={'x' * 250}"), (b"a=1", ""),
    ],
)  # fmt: skip
def test_a_state_is_passed_on_up_to_512_characters_and_a_malformed_one_is_left_out(given: object, kept: str) -> None:
    trace = received({"traceparent": GIVEN, "tracestate": given})
    assert trace is not None
    assert trace.state == kept


def test_a_message_without_a_trace_begins_the_same_one_each_time_it_is_handed_out() -> None:
    envelope = Envelope(b"{}", message_id=str(ID), headers={"traceparent": "nonsense", "tracestate": "a=1"})
    trace = trace_of(envelope)
    assert trace == trace_of(envelope) == begun(ID) != begun(UUID(int=6))
    (header,) = trace.headers().values()
    assert received({"traceparent": header}) is not None


def test_low_bits_of_new_traces_are_spread_for_samplers_go_by_them() -> None:
    low = [int(begun(UUID(int=n)).trace_id[16:], 16) / 2**64 for n in range(400)]
    assert all(any(start <= each < start + 0.1 for each in low) for start in (n / 10 for n in range(10)))


def test_a_message_that_goes_round_begins_a_trace_of_its_own() -> None:
    trace, kept = begun(ID), DeploymentKept(
        deployment_id=ID, admission=ADMISSION, plan=PLAN, since=NOW,
        version=0, rounds=1, mark=ID,
    )  # fmt: skip
    assert seal(kept, ID, cause=ID, trace=trace).headers == {"cause": str(ID)}
    assert seal(ReleaseRequested(deployment_id=ID), ID, trace=trace).headers == trace.headers()
