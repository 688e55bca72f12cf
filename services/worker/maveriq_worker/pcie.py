"""Which GPUs of this machine reach one another through PCIe switches alone, as NVML tells."""

from collections.abc import Mapping
from typing import Any


def near(nvml: Any, handles: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each GPU the others with which it has a switch, or some of them, in common, below one root of the CPU's.

    Args:
        handles: NVML's, by the GPU's id.
    """
    return {
        gpu: tuple(other for other in sorted(handles) if other != gpu and _is_near(nvml, handles[gpu], handles[other]))
        for gpu in handles
    }


def _is_near(nvml: Any, one: Any, other: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other) <= nvml.NVML_TOPOLOGY_MULTIPLE)
    except nvml.NVMLError:  # some virtual machines and drivers do not tell
        return False
