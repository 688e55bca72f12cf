"""What this profiler measures on: the device's name as the workers report it, and the engine's version."""

from importlib.util import find_spec
from typing import Any

from maveriq.contracts import Precision
from maveriq.engine_version import engine_version
from maveriq.law.weights import TORCH_QUANTISED
from maveriq.settings import BadSetting
from maveriq_profiler.measuring import Rig
from maveriq_profiler.settings import Settings

_ON_CPU: tuple[Precision, ...] = (Precision.FP32, Precision.BF16, *TORCH_QUANTISED)  # fp16 has no fast kernels on CPUs
_ON_CUDA: tuple[Precision, ...] = (Precision.BF16, Precision.FP16, Precision.FP32, *TORCH_QUANTISED)
_TRTLLM = (Precision.BF16, Precision.FP16)  # quantised engines need a checkpoint that says how


def find_rig(settings: Settings, nvml: Any | None) -> Rig:
    """
    Args:
        nvml: the module `pynvml`; None: not installed.

    Raises:
        BadSetting: the engine is not installed, or the device is not there; says what to do.
    """
    installed = _installed(settings)
    names = _gpu_names(nvml)
    device = settings.device
    if device is None:
        device = "cuda:0" if names and "+cpu" not in installed else "cpu"
    if device == "cpu":
        if settings.engine == "trtllm":
            raise BadSetting("MAVERIQ_ENGINE=trtllm: runs on NVIDIA GPUs alone, and NVML sees none to measure; "
                             "install the NVIDIA driver, or set MAVERIQ_ENGINE=torch")  # fmt: skip
        gpu_type, precisions = f"cpu-{settings.threads}t", _ON_CPU
    else:
        number = int(device.removeprefix("cuda:"))
        if number >= len(names):
            raise BadSetting(f"MAVERIQ_PROFILE_DEVICE={device!r}: NVML sees {len(names)} GPUs; give cpu or one of them")
        gpu_type, precisions = names[number], _TRTLLM if settings.engine == "trtllm" else _ON_CUDA
    return Rig(settings.engine, installed, gpu_type, device, settings.threads, precisions, settings.max_pp)


def _installed(settings: Settings) -> str:
    found = engine_version(settings.engine)
    if settings.engine == "trtllm":
        if not found:
            raise BadSetting(
                "MAVERIQ_ENGINE=trtllm: tensorrt_llm is not installed; on Linux with CUDA run "
                "pip install 'tensorrt-llm>=1.2' --extra-index-url https://pypi.nvidia.com, or set MAVERIQ_ENGINE=torch"
            )
        return found
    missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
    if missing or not found:
        name = missing[0] if missing else "torch"
        raise BadSetting(f"MAVERIQ_ENGINE=torch: {name} is not installed; run pip install 'maveriq-profiler[torch]'")
    return found


def _gpu_names(nvml: Any | None) -> tuple[str, ...]:
    """Product names by PCI bus, as the workers report them; none where there is no driver."""
    if nvml is None:
        return ()
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
        return tuple(str(nvml.nvmlDeviceGetName(handle)) for handle in handles)
    except nvml.NVMLError:
        return ()
