"""What every broker must do for mailboxes. Runs on both."""

from contextlib import suppress
from uuid import uuid4

import pytest

from maveriq.bus import MailboxGone, Unroutable
from maveriq.bus.envelope import Envelope
from maveriq.contracts import (
    Chunk,
    ChunksProduced,
    FinishReason,
    Message,
    ReleaseAccepted,
    ReleaseRequested,
    ReplicaStopped,
    Usage,
)
from tests.broker.sides import Side, until


def chunks(index: int, finish: FinishReason | None = None) -> ChunksProduced:
    usage = Usage(prompt_tokens=3, completion_tokens=index) if finish else None
    return ChunksProduced(
        chunks=(
            Chunk(
                request_id=uuid4(),
                attempt=1,
                index=index,
                text="é ",
                token_ids=(index,),
                finish_reason=finish,
                usage=usage,
            ),
        )
    )


async def test_what_is_sent_arrives_in_order_confirmed_or_not(side: Side) -> None:
    heard: list[Message] = []
    mailbox = await (await side.bus()).mailbox(heard.append)
    sender = await side.bus()
    sent = [chunks(index, FinishReason.STOP if index % 7 == 0 else None) for index in range(1, 101)]
    for index, message in enumerate(sent):
        await sender.send(mailbox.address, message, confirm=index % 10 == 0)
    await until(lambda: len(heard) == len(sent))
    assert heard == sent


async def test_a_confirmed_send_says_that_the_owner_has_left(side: Side) -> None:
    owner, sender = await side.bus(), await side.bus()
    mailbox = await owner.mailbox(lambda message: None)
    await sender.send(mailbox.address, chunks(0), confirm=True)
    await owner.close()
    await sender.send(mailbox.address, chunks(1), confirm=False)
    with pytest.raises(MailboxGone):
        await sender.send(mailbox.address, chunks(2), confirm=True)


async def test_a_closed_mailbox_is_gone_and_its_bus_is_not(side: Side) -> None:
    heard: list[Message] = []
    owner, sender = await side.bus(), await side.bus()
    closed, kept = await owner.mailbox(heard.append), await owner.mailbox(heard.append)
    assert closed.address != kept.address
    await closed.close()
    with pytest.raises(MailboxGone):
        await sender.send(closed.address, chunks(0), confirm=True)
    await sender.send(kept.address, chunks(0), confirm=True)
    await until(lambda: heard)


async def test_the_address_starts_with_the_name_it_was_given(side: Side) -> None:
    mailbox = await (await side.bus()).mailbox(lambda message: None, name="ingress")
    assert mailbox.address.startswith("ingress.")


async def test_a_bound_mailbox_hears_its_key_until_it_is_unbound(side: Side) -> None:
    heard: list[Message] = []
    bus = await side.bus()
    mailbox = await bus.mailbox(heard.append)
    await mailbox.bind("release.accepted.v1")
    accepted = ReleaseAccepted(deployment_id=uuid4())
    await bus.publish(accepted)
    await until(lambda: heard == [accepted])
    await mailbox.unbind("release.accepted.v1")
    with suppress(Unroutable):  # where no service has declared its queue
        await bus.publish(ReleaseAccepted(deployment_id=uuid4()))
    await bus.send(mailbox.address, chunks(0), confirm=True)
    await until(lambda: len(heard) == 2)
    assert isinstance(heard[1], ChunksProduced)


async def test_a_key_may_stand_for_many(side: Side) -> None:
    heard: list[Message] = []
    bus = await side.bus()
    mailbox = await bus.mailbox(heard.append)
    await mailbox.bind("replica.*.v1")
    stopped = ReplicaStopped(deployment_id=uuid4(), replica=0, token="t", node="n")
    await bus.publish(stopped)
    await until(lambda: heard == [stopped])


async def test_what_a_mailbox_cannot_read_does_not_stop_it(side: Side) -> None:
    heard: list[Message] = []
    bus = await side.bus()
    mailbox = await bus.mailbox(heard.append)
    for envelope in (
        Envelope(b"{}"),
        Envelope(b"{}", topic="no.such.v1"),
        Envelope(b"{not json", topic=ReleaseRequested.topic),
    ):
        await side.post(envelope, mailbox.address, exchange="")
    await bus.send(mailbox.address, chunks(0), confirm=True)
    await until(lambda: heard)
    assert isinstance(heard[0], ChunksProduced)
