"""Which GPUs reach one another over NVLink. Pure: who reaches whom in, groups out.

Pairs with a bridge, and all GPUs on switches, are groups by themselves, and these are found exactly. Of meshes, where
groups overlap, GPUs are cut into large groups one after the other: of a cube of eight, its two faces.
"""

from collections.abc import Mapping


def islands(linked: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """The number of each GPU's group: in one, each reaches each.

    Args:
        linked: for each GPU those that it reaches; others than its keys do not count.
    """
    reach = {gpu: {other for other in others if gpu in linked.get(other, ())} for gpu, others in linked.items()}
    left, number = set(linked), dict[str, int]()
    while left:
        group: set[str] = set()
        joining = set(left)
        while joining:
            gpu = min(joining, key=lambda gpu: (-len(reach[gpu] & joining), gpu))
            group.add(gpu)
            joining = (joining & reach[gpu]) - group
        for gpu in group:
            number[gpu] = len(left)
        left -= group
    return number
