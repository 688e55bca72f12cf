"""What a worker refuses: placements that it cannot run, malformed messages, and settings that make no sense."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from maveriq.bus.envelope import Envelope
from maveriq.bus.inprocess import InProcessBus
from maveriq.contracts import (
    MessageRefused,
    Placement,
    PlacementReserved,
    ReplicaFailed,
    ReplicaReady,
)
from maveriq.settings import BadSetting
from maveriq.topology import EXCHANGE
from maveriq_worker.__main__ import run
from maveriq_worker.settings import Settings
from tests.contract.worker_scene import MIB, Scene
from tests.unit.worker.engine_double import NODE, Heard, placement, until


async def test_a_placement_on_gpus_that_are_not_here_fails_by_name(scene: Scene) -> None:
    await scene.reserve(placement(gpus=(f"{NODE}/cpu:0", "GPU-elsewhere")))
    failed = await scene.hears(ReplicaFailed)
    assert "GPU-elsewhere" in failed.detail
    assert failed.token == "token-1"
    assert not scene.engines


async def test_a_placement_for_another_engine_fails_by_name(scene: Scene) -> None:
    await scene.reserve(placement(engine="trtllm"))
    assert "trtllm" in (await scene.hears(ReplicaFailed)).detail


async def test_a_replica_that_does_not_fit_beside_what_still_runs_is_refused(scene: Scene) -> None:
    def large(token: str, replica: int) -> Placement:
        at = placement(token=token, replica=replica)
        return at.model_copy(
            update={"stages": tuple(stage.model_copy(update={"reserved_bytes": 200 * MIB}) for stage in at.stages)}
        )

    await scene.reserve(large("token-1", 0))
    await scene.hears(ReplicaReady)
    await scene.reserve(large("token-2", 1))
    refused = await scene.hears(ReplicaFailed)
    assert refused.token == "token-2"
    assert "held by what still runs" in refused.detail
    assert len(scene.engines) == 1
    await scene.reserve(large("token-3", 0))  # takes the place of the first
    assert (await scene.hears(ReplicaReady, 2)).token == "token-3"


def raw(scene: Scene, **changes: object) -> bytes:
    body = PlacementReserved(deployment_id=scene.deployment_id, node=NODE, placement=placement())
    return json.dumps(body.model_dump(mode="json") | changes).encode()


async def test_malformed_placements_are_refused_to_their_sender_and_the_next_is_handled(scene: Scene) -> None:
    answers = Heard()
    mailbox = await scene.outside.mailbox(answers)
    topic = PlacementReserved.topic
    for body, sent_as in (
        (b"{not json", topic),
        (raw(scene, deployment_id="seven"), topic),
        (raw(scene, placement={}), topic),
        (raw(scene), "placement.reserved.v9"),
    ):
        envelope = Envelope(body, topic=sent_as, message_id=str(uuid4()), reply_to=mailbox.address)
        scene.broker.post(envelope, f"{topic}.{NODE}", exchange=EXCHANGE)
    await until(lambda: len(answers.messages) == 4)
    fields = [m.faults[0].field for m in answers.messages if isinstance(m, MessageRefused)]
    assert fields[1] == "deployment_id"
    assert fields[2].startswith("placement.")
    assert fields[3] == "type"
    await scene.reserve()
    await scene.hears(ReplicaReady)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAVERIQ_NODE", "a b"),
        ("MAVERIQ_ENGINE", "vllm"),
        ("MAVERIQ_DEVICES", "cpu:0"),
        ("MAVERIQ_DEVICES", "cpu:0=1GiB,cpu:0=1GiB"),
        ("MAVERIQ_DEVICES", "cpu:0=0B"),
        ("MAVERIQ_THREADS_PER_STAGE", "0"),
        ("MAVERIQ_REPORT_S", "soon"),
    ],
)
async def test_a_bad_setting_stops_the_start_with_its_name(name: str, value: str, bus: InProcessBus) -> None:
    with pytest.raises(BadSetting, match=name):
        await run(bus, {"MAVERIQ_DEVICES": "cpu:0=1GiB", name: value})


def test_a_host_s_name_is_one_word_of_a_routing_key() -> None:
    assert Settings.from_env({"MAVERIQ_NODE": "ip-10-0-0-1.ec2.internal"}).node == "ip-10-0-0-1-ec2-internal"


async def test_an_engine_that_is_not_installed_stops_the_start_and_says_how_to_get_it(
    bus: InProcessBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("maveriq_worker.engines.find_spec", lambda name: None)
    for engine in ("torch", "trtllm"):
        with pytest.raises(BadSetting, match=rf'MAVERIQ_ENGINE={engine}: .*pip install "maveriq-worker\[{engine}\]"'):
            await run(bus, {"MAVERIQ_DEVICES": "cpu:0=1GiB", "MAVERIQ_ENGINE": engine})
