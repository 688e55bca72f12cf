"""What each stage's process of the torch engine is told."""

from pathlib import Path

from maveriq.contracts import FULL_PRECISIONS, Configuration, Precision
from maveriq.law.weights import TORCH_QUANTISED
from maveriq_worker.checkpoints import eos_ids
from maveriq_worker.engine import EngineFailed, Launch, LocalStage
from maveriq_worker.torch_steps import StageSpec


def check(launch: Launch) -> None:
    """
    Raises:
        EngineFailed: this engine cannot run such a configuration.
    """
    asked, stages = launch.configuration, launch.stages
    computed = computed_in(asked)
    if asked.tp != 1 or any(len(stage.devices) != 1 for stage in stages):
        raise EngineFailed(f"the torch engine runs each stage on one device, not tp {asked.tp}; plan with tp 1")
    for rank, stage in enumerate(stages):
        _check_layers(rank, stage, asked.precision, computed)
    if asked.kv_precision not in (computed, Precision.INT8):
        raise EngineFailed(f"the torch engine keeps its KV cache in {computed} or int8, not {asked.kv_precision}")
    if computed is Precision.FP16 and any(stage.devices[0].kind == "cpu" for stage in stages):
        raise EngineFailed("the torch engine serves fp16 on CUDA devices only; choose fp32 or bf16 on CPUs")


def stage_specs(launch: Launch, checkpoint: Path) -> tuple[StageSpec, ...]:
    """Of a launch that `check` lets pass."""
    asked, stages = launch.configuration, launch.stages
    devices = [stage.devices[0] for stage in stages]
    apart = len({device.index for device in devices}) == len(devices)
    nccl = apart and all(device.kind == "cuda" for device in devices)
    layers = [stage.num_layers for stage in stages]
    return tuple(
        StageSpec(
            rank=rank,
            num_stages=len(stages),
            first_layer=sum(layers[:rank]),
            num_layers=layers[rank],
            total_layers=sum(layers),
            checkpoint=checkpoint,
            precision=computed_in(asked),
            device="cpu" if devices[rank].kind == "cpu" else f"cuda:{devices[rank].index}",
            backend="nccl" if nccl else "gloo",
            rendezvous=Path(),  # chosen when the processes start
            max_batch=asked.max_batch,
            context_tokens=asked.context_tokens,
            reserved_bytes=stages[rank].reserved_bytes,
            threads=launch.threads_per_stage,
            eos_ids=eos_ids(checkpoint),
            precisions=_of_layers(stages[rank], asked.precision),
            kv_int8=asked.kv_precision is Precision.INT8,
        )
        for rank in range(len(stages))
    )


def source(launch: Launch) -> str:
    """Where the checkpoint of the variant asked for is."""
    variant = launch.model.variant(launch.configuration.variant, launch.configuration.precision)
    return (variant.source if variant else None) or launch.model.source


def computed_in(asked: Configuration) -> Precision:
    """What embedding, lm_head, norms and activations are in: `law.unquantised_bytes` counts the same."""
    if asked.precision in FULL_PRECISIONS:
        return asked.precision
    return asked.kv_precision if asked.kv_precision in FULL_PRECISIONS else Precision.BF16


def _of_layers(stage: LocalStage, asked: Precision) -> tuple[Precision, ...]:
    return stage.precisions or (asked,) * stage.num_layers


def _check_layers(rank: int, stage: LocalStage, asked: Precision, computed: Precision) -> None:
    wanted = _of_layers(stage, asked)
    if len(wanted) != stage.num_layers:
        raise EngineFailed(f"stage {rank} has {stage.num_layers} layers and precisions of {len(wanted)}; plan again")
    possible = (computed, *TORCH_QUANTISED)
    refused = next((precision for precision in wanted if precision not in possible), None)
    if refused is not None:
        raise EngineFailed(
            f"the torch engine keeps layers in {', '.join(possible)} where it computes in {computed}, not in {refused} "
            f"(stage {rank}); plan with one of these"
        )
