"""Which version of an engine is installed here: times of another version say nothing about this one."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

TORCH_ENGINE_REVISION = 7  # of the worker's torch engine: raised when its speed or memory changes
_PACKAGES = {"torch": "torch", "trtllm": "tensorrt-llm"}


@cache
def engine_version(engine: str) -> str:
    """'' where the engine is not installed, or none that we know."""
    try:
        installed = version(_PACKAGES[engine])
    except (KeyError, PackageNotFoundError):
        return ""
    return f"{installed}-r{TORCH_ENGINE_REVISION}" if engine == "torch" else installed
