"""Which GPUs of this machine NVLink joins, as NVML tells."""

from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[int, int, int]
"""Domain, bus and device on PCI: the same number whatever the driver's spelling of it."""


def nvlinks(nvml: Any, handles: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each GPU the others that it reaches: over a link of their own, or through switches, which join all on them.

    Args:
        handles: NVML's, by the GPU's id.
    """
    places = {_place(nvml.nvmlDeviceGetPciInfo(handle)): gpu for gpu, handle in handles.items()}
    reached: dict[str, set[str]] = {gpu: set() for gpu in handles}
    switched: set[str] = set()
    for gpu, handle in handles.items():
        for place, is_switch in _remotes(nvml, handle):
            if is_switch:
                switched.add(gpu)
            elif place in places:
                reached[gpu].add(places[place])
    for gpu in switched:
        reached[gpu] |= switched
    return {gpu: tuple(sorted(others - {gpu})) for gpu, others in reached.items()}


def _remotes(nvml: Any, handle: Any) -> Iterator[tuple[Place, bool]]:
    """What is at the other end of each link that is up, and whether that is a switch."""
    for link in range(int(nvml.NVML_NVLINK_MAX_LINKS)):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            place = _place(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
            kind = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)
        except nvml.NVMLError:  # the GPU has no such link, or an old driver does not tell
            continue
        yield place, kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH


def _place(pci: Any) -> Place:
    return int(pci.domain), int(pci.bus), int(pci.device)
