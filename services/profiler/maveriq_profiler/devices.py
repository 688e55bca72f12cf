"""Which GPUs of this machine a rig may measure on, by the ids under which the workers report them."""

from collections.abc import Mapping
from typing import Any

from maveriq_profiler.measuring import Rig


def devices_of(rig: Rig, nvml: Any | None) -> Mapping[str, str]:
    """NVML's UUID -> cuda:<n> of every GPU here of the rig's type; empty where it measures on the CPU.

    A CPU's shares are declared by its worker, whose node this profiler does not know: any of its type will do.
    """
    if nvml is None or rig.device == "cpu":
        return {}
    nvml.nvmlInit()
    found: dict[str, str] = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        if str(nvml.nvmlDeviceGetName(handle)) == rig.gpu_type:
            found[str(nvml.nvmlDeviceGetUUID(handle))] = f"cuda:{number}"
    return found
