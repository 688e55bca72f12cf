"""Instances of `fragments.py` from a file, so that anybody's clusters and streams can be tried.

A JSON list of instances, sizes in bytes; `bound` may be left out where nobody knows it:

    [{"nodes": [[{"name": "a0", "gpu_type": "L4", "total_bytes": 24152899584, "foreign_bytes": 3221225472}, ...], ...],
      "stream": [{"model": "llama-2-7b", "num_layers": 32, "memory": {"layer_bytes": 404750336,
                  "first_bytes": 262144000, "last_bytes": 262144000, "tied_saving_bytes": 0,
                  "runtime_bytes": 751619276}}, ...],
      "bound": 12}]
"""

from collections import Counter
from pathlib import Path

from fragments_streams import Instance
from pydantic import TypeAdapter, ValidationError

_INSTANCES = TypeAdapter(list[Instance])


def read(path: Path) -> list[Instance]:
    """Raises SystemExit, which names the field."""
    try:
        instances = _INSTANCES.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SystemExit(f"{path}: {error}") from error
    for number, instance in enumerate(instances):
        if (problem := _problem(instance)) is not None:
            raise SystemExit(f"{path}: instance {number}: {problem}")
    return instances


def _problem(instance: Instance) -> str | None:
    gpus = [gpu for node in instance.nodes for gpu in node]
    if not gpus or not instance.stream:
        return "give nodes with GPUs, and a stream"
    (name, times), *_ = Counter(gpu.name for gpu in gpus).most_common(1)
    if times > 1:
        return f"{times} GPUs are named {name}"
    bad = [gpu.name for gpu in gpus if not 0 <= gpu.foreign_bytes <= gpu.total_bytes]
    return f"foreign_bytes of {bad[0]} are not from 0 to its total_bytes" if bad else None


def write(path: Path, instances: list[Instance]) -> None:
    path.write_bytes(_INSTANCES.dump_json(instances))
