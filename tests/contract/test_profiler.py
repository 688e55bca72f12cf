"""The profiler as its neighbours see it: messages in, messages out, through JSON."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq.bus import Rejected
from maveriq.bus.handling import check_handlers, decode, replies
from maveriq.contracts import (
    Admission,
    DeploymentFailed,
    FailureReason,
    FingerprintMeasured,
    Intent,
    IntentAccepted,
    LayerSensitivity,
    MeasurementProgressed,
    MeasurementRequested,
    Message,
    Model,
    Precision,
    Variant,
)
from maveriq.topology import PROFILER
from maveriq_profiler.__main__ import bound, seen, wire
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.children import Children
from maveriq_profiler.handlers import Handlers
from maveriq_profiler.orders import Reading
from maveriq_profiler.rigs import Rigs
from maveriq_profiler.settings import Settings
from tests.unit.profiler.rigs import FACTS, FakeProbe, fingerprint, rig

DEPLOYMENT = UUID("00000000-0000-4000-8000-000000000001")


def accepted(*precisions: Precision) -> IntentAccepted:
    variants = tuple(Variant(precision=precision, accuracy=1.0) for precision in precisions or (Precision.FP32,))
    model = Model(name="tiny", source="/models/tiny", variants=variants)
    return IntentAccepted(deployment_id=DEPLOYMENT, admission=Admission(intent=Intent(model="tiny"), model=model))


def wired(redis: Redis, probe: FakeProbe) -> Handlers:
    """A profiler that nothing but its handlers makes speak, of what it measures."""

    async def publish(message: Message) -> None:
        assert isinstance(message, MeasurementProgressed), f"said {message.topic} unasked"

    return wire(redis, publish, probe, Settings.from_env({"MAVERIQ_REDIS_URL": "redis://"}), {})


async def answer(redis_url: str, probe: FakeProbe, event: IntentAccepted) -> Message:
    """Both ways through the JSON that the broker would carry."""
    async with Redis.from_url(redis_url) as redis:
        cause = decode(IntentAccepted, IntentAccepted.topic, event.model_dump_json().encode())
        assert cause == event
        (reply,) = replies(PROFILER, await wired(redis, probe).on_intent_accepted(cause))
    sent = decode(type(reply), reply.topic, reply.model_dump_json().encode())
    assert sent == reply
    return sent


async def test_a_readable_model_yields_a_fingerprint_of_each_variant_that_runs_here(redis_url: str) -> None:
    event = accepted(Precision.FP32, Precision.BF16, Precision.FP8)
    reply = await answer(redis_url, FakeProbe(), event)
    assert isinstance(reply, FingerprintMeasured)
    assert (reply.deployment_id, reply.admission, reply.facts) == (DEPLOYMENT, event.admission, FACTS)
    assert [f.precision for f in reply.fingerprints] == [Precision.FP32, Precision.BF16]


async def test_a_model_whose_layers_may_be_mixed_is_measured_in_each_precision_beside_each_full_one(
    redis_url: str,
) -> None:
    event = accepted(Precision.FP32, Precision.BF16)
    lost = LayerSensitivity(
        precisions=(Precision.FP32, Precision.INT8, Precision.INT4), layers=((0.0, 0.1, 0.2),) * FACTS.num_layers
    )
    model = event.admission.model.model_copy(update={"sensitivity": lost})
    admission = event.admission.model_copy(update={"model": model})
    reply = await answer(redis_url, FakeProbe(), event.model_copy(update={"admission": admission}))
    assert isinstance(reply, FingerprintMeasured)
    assert [(f.precision, f.kv_precision) for f in reply.fingerprints] == [
        (Precision.FP32, Precision.FP32),
        (Precision.BF16, Precision.BF16),
        (Precision.INT8, Precision.FP32),
        (Precision.INT4, Precision.FP32),
        (Precision.INT8, Precision.BF16),
        (Precision.INT4, Precision.BF16),
    ]


async def test_what_only_an_engine_makes_is_measured_and_a_quantised_checkpoint_is_not(redis_url: str) -> None:
    event = accepted(Precision.FP32)
    made = Variant(precision=Precision.INT8, accuracy=0.99)
    own = Variant(precision=Precision.INT4, source="/models/q4")
    model = event.admission.model.model_copy(update={"variants": (*event.admission.model.variants, made, own)})
    admission = event.admission.model_copy(update={"model": model})
    reply = await answer(redis_url, FakeProbe(), event.model_copy(update={"admission": admission}))
    assert isinstance(reply, FingerprintMeasured)
    assert [(f.precision, f.kv_precision) for f in reply.fingerprints] == [
        (Precision.FP32, Precision.FP32),
        (Precision.INT8, Precision.BF16),
    ]


async def test_the_same_intent_twice_has_the_same_answer_and_is_measured_once(redis_url: str) -> None:
    probe = FakeProbe()
    first = await answer(redis_url, probe, accepted())
    assert await answer(redis_url, probe, accepted()) == first
    assert probe.measured == [Precision.FP32]


async def test_fingerprints_of_other_gpu_types_come_along_in_the_models_precisions(redis_url: str) -> None:
    elsewhere = rig("NVIDIA L4")
    for precision in (Precision.FP32, Precision.FP16):
        await answer(redis_url, FakeProbe(replace(elsewhere, precisions=(precision,))), accepted(precision))
    reply = await answer(redis_url, FakeProbe(), accepted(Precision.FP32))
    assert isinstance(reply, FingerprintMeasured)
    assert {(f.gpu_type, f.precision) for f in reply.fingerprints} == {
        ("cpu-1t", Precision.FP32),
        ("NVIDIA L4", Precision.FP32),
    }


async def test_an_older_engine_version_of_this_gpu_type_is_not_offered(redis_url: str) -> None:
    old = replace(rig(), engine_version="1.0-r1")
    async with Redis.from_url(redis_url) as redis:
        key = Key(FACTS.shape_key, "torch", "1.0-r1", "cpu-1t", Precision.FP32, Precision.FP32)

        async def measured() -> Any:
            return fingerprint(old)

        await Catalog(redis).get_or_measure(key, measured)
    reply = await answer(redis_url, FakeProbe(), accepted())
    assert isinstance(reply, FingerprintMeasured)
    assert [f.engine_version for f in reply.fingerprints] == [rig().engine_version]


async def test_a_variant_of_another_shape_fails_the_deployment_with_the_remedy(redis_url: str) -> None:
    class Pruned(FakeProbe):
        async def read(self, source: str) -> Reading:
            found = await super().read(source)
            narrow = {"intermediate_size": 96} if source == "/models/pruned" else {}
            return found.model_copy(update={"facts": FACTS.model_copy(update=narrow)})

    same = Variant(name="sparse", precision=Precision.BF16, source="/models/sparse")
    pruned = Variant(name="pruned", precision=Precision.BF16, source="/models/pruned")
    event = accepted(Precision.FP32)
    for variants, wanted in (((same,), FingerprintMeasured), ((same, pruned), DeploymentFailed)):
        model = event.admission.model.model_copy(update={"variants": (*event.admission.model.variants, *variants)})
        admission = event.admission.model_copy(update={"model": model})
        reply = await answer(redis_url, Pruned(), event.model_copy(update={"admission": admission}))
        assert isinstance(reply, wanted)
    assert isinstance(reply, DeploymentFailed)
    assert reply.detail.startswith("pruned: its checkpoint has intermediate_size 96")
    assert reply.detail.endswith("register it as a model of its own")


async def test_an_unreadable_model_fails_its_deployment_with_the_reason(redis_url: str) -> None:
    reply = await answer(redis_url, FakeProbe(unreadable="/models/tiny: has no config.json; give one"), accepted())
    assert isinstance(reply, DeploymentFailed)
    assert (reply.deployment_id, reply.reason) == (DEPLOYMENT, FailureReason.MODEL_UNREADABLE)
    assert "/models/tiny" in reply.detail


async def test_a_probe_that_fails_fails_its_deployment_with_the_reason(redis_url: str) -> None:
    reply = await answer(redis_url, FakeProbe(failure="out of memory"), accepted())
    assert isinstance(reply, DeploymentFailed)
    assert (reply.reason, reply.detail) == (FailureReason.PROBE_FAILED, "out of memory")


async def test_variants_that_nothing_runs_fail_with_those_that_would_run(redis_url: str) -> None:
    reply = await answer(redis_url, FakeProbe(), accepted(Precision.FP8))
    assert isinstance(reply, DeploymentFailed)
    assert reply.reason is FailureReason.PROBE_FAILED
    assert "fp32, bf16" in reply.detail and "fp8" in reply.detail


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"deployment_id": "one"}', b"\xff\xfe"])
def test_a_malformed_message_is_rejected_with_its_faults(body: bytes) -> None:
    with pytest.raises(Rejected) as rejected:
        decode(IntentAccepted, IntentAccepted.topic, body)
    assert rejected.value.faults[0].remedy


def test_an_unknown_version_is_rejected() -> None:
    with pytest.raises(Rejected, match=r"intent\.accepted\.v2"):
        decode(IntentAccepted, "intent.accepted.v2", accepted().model_dump_json().encode())


def test_an_unknown_field_of_the_model_is_rejected_by_its_name() -> None:
    body = json.loads(accepted().model_dump_json())
    body["admission"]["model"]["sauce"] = "/models/tiny"
    with pytest.raises(Rejected) as rejected:
        decode(IntentAccepted, IntentAccepted.topic, json.dumps(body).encode())
    assert rejected.value.faults[0].field == "admission.model.sauce"


async def test_the_handlers_are_what_the_topology_says(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        check_handlers(PROFILER, bound(wired(redis, FakeProbe()), Children(1)))


async def goes_round(redis_url: str, probes: dict[str, FakeProbe], event: IntentAccepted) -> list[Message]:
    """The answers of every rig that the intent came to, in order, each through JSON."""
    heard: list[Message] = []
    async with Redis.from_url(redis_url) as redis:
        rigs = Rigs(redis)
        for probe in probes.values():
            await rigs.say(seen(probe.rig))
        cause: Message = event
        while isinstance(cause, IntentAccepted | MeasurementRequested):
            at = cause.node if isinstance(cause, MeasurementRequested) else next(iter(probes))
            handlers = wired(redis, probes[at])
            if isinstance(cause, MeasurementRequested):
                answered = await handlers.on_measurement_requested(cause)
            else:
                answered = await handlers.on_intent_accepted(cause)
            (reply,) = replies(PROFILER, answered)
            cause = decode(type(reply), reply.topic, reply.model_dump_json().encode())
            heard.append(cause)
    return heard


async def test_an_intent_goes_round_all_gpu_types_once(redis_url: str) -> None:
    types = ("cpu-1t", "NVIDIA L4", "NVIDIA H100 80GB HBM3")
    probes = {probe.rig.name: probe for probe in (FakeProbe(rig(gpu_type)) for gpu_type in types)}
    *requested, measured = await goes_round(redis_url, probes, accepted())
    assert [type(message) for message in requested] == [MeasurementRequested] * 2
    assert isinstance(measured, FingerprintMeasured)
    assert {f.gpu_type for f in measured.fingerprints} == set(types)
    assert [type(message) for message in await goes_round(redis_url, probes, accepted())] == [FingerprintMeasured]
    assert [probe.measured for probe in probes.values()] == [[Precision.FP32]] * 3


async def test_a_gpu_type_that_cannot_measure_does_not_stop_the_others(redis_url: str) -> None:
    broken, whole = FakeProbe(rig("NVIDIA T4"), failure="out of memory"), FakeProbe()
    probes = {probe.rig.name: probe for probe in (broken, whole)}
    *_, measured = await goes_round(redis_url, probes, accepted())
    assert isinstance(measured, FingerprintMeasured)
    assert [f.gpu_type for f in measured.fingerprints] == ["cpu-1t"]


async def test_where_no_gpu_type_can_measure_the_deployment_fails(redis_url: str) -> None:
    probes = {p.rig.name: p for p in (FakeProbe(rig("NVIDIA T4"), failure="full"), FakeProbe(failure="full"))}
    *_, failed = await goes_round(redis_url, probes, accepted())
    assert isinstance(failed, DeploymentFailed)
    assert (failed.reason, failed.detail) == (FailureReason.PROBE_FAILED, "full")


async def test_a_model_that_the_engine_here_cannot_run_fails_unmeasured_with_the_reason(redis_url: str) -> None:
    probe = FakeProbe(cannot_run={"torch": "the torch engine cannot run TinyForCausalLM: it is none"})
    await answer(redis_url, FakeProbe(), accepted())  # what was known before does not help
    failed = await answer(redis_url, probe, accepted())
    assert isinstance(failed, DeploymentFailed)
    assert (failed.reason, failed.detail) == (FailureReason.MODEL_UNREADABLE, probe.cannot_run["torch"])
    assert not probe.measured


async def test_a_model_that_one_engine_cannot_run_is_planned_for_the_other(redis_url: str) -> None:
    why = {"torch": "the torch engine cannot run TinyForCausalLM: it is none"}
    able = replace(rig("NVIDIA L4"), engine="trtllm", precisions=(Precision.FP32,))
    probes = {probe.rig.name: probe for probe in (FakeProbe(cannot_run=why), FakeProbe(able, cannot_run=why))}
    *_, measured = await goes_round(redis_url, probes, accepted())
    assert isinstance(measured, FingerprintMeasured)
    assert [f.engine for f in measured.fingerprints] == ["trtllm"]
