"""Talks to NVIDIA's aiconfigurator-core, an optional wheel: tables of measured operations by GPU type.

The wheel reads a model from a folder with config.json. The planner has the model's facts only, and writes a Llama of
the same shape: for dense decoders the operations are the same.
"""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maveriq.contracts import Calibration, Fingerprint, Model, ModelFacts, Precision
from maveriq.settings import BadSetting
from maveriq_planner.estimate import Estimator, Kind
from maveriq_planner.estimators.vendor import VendorEngine, VendorLaw, VendorMemory
from maveriq_planner.space import by_law

ENGINE = "trtllm"
INSTALL = "pip install aiconfigurator-core"
SYSTEMS = (
    ("H200", "h200_sxm"), ("GH200", ""), ("H100 PCIe", "h100_pcie"), ("H100", "h100_sxm"), ("A100-PCIE", "a100_pcie"),
    ("A100 80GB PCIe", "a100_pcie"), ("A100", "a100_sxm"), ("A30", "a30"), ("L40S", "l40s"), ("GB200", "gb200"),
    ("GB300", "gb300"), ("B200", "b200_sxm"), ("B300", "b300_sxm"), ("RTX PRO 6000", "rtx_pro_6000_server"),
    ("L40", ""), ("L4", "l4"),
)  # fmt: skip
"""Part of NVML's product name, and the wheel's name of it ('': none); the longest part that fits decides."""
_WEIGHTS = {
    Precision.FP16: "bfloat16", Precision.BF16: "bfloat16", Precision.FP8: "fp8", Precision.INT8: "int8_wo",
    Precision.INT4: "int4_wo",
}  # fmt: skip
_CACHES = {
    Precision.FP16: "bfloat16", Precision.BF16: "bfloat16", Precision.FP8: "fp8", Precision.INT8: "int8",
}  # fmt: skip
# As the wheel's 0.12.0 has them: systems/h100_sxm.yaml (misc), sdk/backends/trtllm_backend.py (LLAMA, 16 bits).
_MEMORY = VendorMemory(
    other_bytes=3_758_096_384,
    communication_bytes={1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792},
    activation_bytes={1: 22.0, 2: 13.0, 4: 10.0, 8: 10.0},
    least_activation_bytes=70 * 2**20,
)

Compile = Callable[[ModelFacts, str, Kind, int, int, int], VendorEngine]
"""Model, system, kind, TP, PP, number of layers. Raises ValueError or RuntimeError: no tables for that."""


def installed() -> Compile:
    """Raises BadSetting: the wheel is missing."""
    try:
        module: Any = import_module("aiconfigurator_core.sdk.engine")
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"MAVERIQ_ESTIMATOR=aiconfigurator needs aiconfigurator-core, which is not installed: {INSTALL}"
        ) from error

    def compiled(facts: ModelFacts, system: str, kind: Kind, tp: int, pp: int, num_layers: int) -> VendorEngine:
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(llama_like(facts, num_layers)))
            engine: VendorEngine = module.EngineHandle.compile(
                folder, system, "trtllm", tp_size=tp, pp_size=pp, gemm_quant_mode=_WEIGHTS[kind.precision],
                kvcache_quant_mode=_CACHES[kind.kv_precision], fmha_quant_mode="bfloat16",
            )  # fmt: skip
        return engine

    return compiled


class VendorTables:
    """Sources: measured GPU types by their own law; those that the intent or the prices name, by the tables."""

    def __init__(self, compile_: Compile) -> None:
        self._compile = compile_
        self._compiled: dict[tuple[object, ...], VendorEngine] = {}

    def __call__(
        self,
        model: Model,
        facts: ModelFacts,
        fingerprints: Sequence[Fingerprint],
        calibrations: Sequence[Calibration],
        named: Sequence[str] = (),
        context_tokens: int = 0,
    ) -> tuple[tuple[Estimator, ...], tuple[str, ...]]:
        measured, silent = by_law(model, facts, fingerprints, calibrations, named, context_tokens)
        known = {one.gpu_type for one in fingerprints} | {one.gpu_type for one in calibrations}
        found: list[Estimator] = list(measured)
        reasons = list(silent)
        for gpu_type in dict.fromkeys(name for name in named if name not in known):
            for estimator, reason in self._of(model, facts, gpu_type):
                if estimator is not None:
                    found.append(estimator)
                if reason:
                    reasons.append(reason)
        return tuple(found), tuple(reasons)

    def _of(self, model: Model, facts: ModelFacts, gpu_type: str) -> list[tuple[Estimator | None, str]]:
        system = system_of(gpu_type)
        if not system:
            return [(None, f"{gpu_type} was not measured, and aiconfigurator has no tables of it")]
        if facts.num_experts:
            return [(None, f"{gpu_type} was not measured, and a mixture of experts is not asked of aiconfigurator")]
        found: list[tuple[Estimator | None, str]] = []
        for variant in model.variants:
            kind = Kind(ENGINE, gpu_type, variant, variant.cache_precision)
            found.append(self._asked(facts, system, kind))
        return found

    def _asked(self, facts: ModelFacts, system: str, kind: Kind) -> tuple[Estimator | None, str]:
        if kind.precision not in _WEIGHTS or kind.kv_precision not in _CACHES:
            return None, f"{kind.variant.label} on {kind.gpu_type}: aiconfigurator knows no such precision"

        def compiled(tp: int, pp: int, num_layers: int) -> VendorEngine:
            key = (facts.shape_key, system, kind.precision, kind.kv_precision, tp, pp, num_layers)
            if key not in self._compiled:
                self._compiled[key] = self._compile(facts, system, kind, tp, pp, num_layers)
            return self._compiled[key]

        try:
            compiled(1, 1, facts.num_layers).predict_decode_latency(1, 128)
        except (ValueError, RuntimeError) as error:
            return None, f"{kind.variant.label} on {kind.gpu_type}: aiconfigurator has no tables ({error})"
        return VendorLaw(kind, facts, compiled, _MEMORY), ""


def system_of(gpu_type: str) -> str:
    """'' where there is none."""
    fits = [(len(part), system) for part, system in SYSTEMS if part.lower() in f"{gpu_type.lower()} "]
    return max(fits)[1] if fits else ""


def llama_like(facts: ModelFacts, num_layers: int) -> dict[str, object]:
    """config.json of the same shape."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16", "hidden_size": facts.hidden_size, "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": num_layers, "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_kv_heads, "head_dim": facts.head_dim, "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_context_tokens, "tie_word_embeddings": facts.tied_embeddings,
    }  # fmt: skip
