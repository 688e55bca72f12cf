"""Which engine this worker runs. Each is imported only where it was asked for."""

from collections.abc import Callable
from importlib.util import find_spec

from maveriq.agreed_settings import EngineName
from maveriq.settings import BadSetting
from maveriq_worker.engine import Engine


def engine_factory(name: EngineName) -> Callable[[], Engine]:
    """Makes a new engine for each replica.

    Raises:
        BadSetting: what the engine needs is not installed; says how to get it.
    """
    if name == "trtllm":
        if find_spec("tensorrt_llm") is None:
            raise BadSetting(
                "MAVERIQ_ENGINE=trtllm: tensorrt_llm is not installed; on a Linux machine with NVIDIA GPUs run "
                'pip install "maveriq-worker[trtllm]" --extra-index-url https://pypi.nvidia.com, '
                "or use the image nvcr.io/nvidia/tensorrt-llm/release"
            )
        from maveriq_worker.child_engine import ChildEngine

        return lambda: ChildEngine("maveriq_worker.trtllm_engine:TrtLlmEngine")
    missing = [package for package in ("torch", "transformers", "safetensors") if find_spec(package) is None]
    if missing:
        raise BadSetting(
            f'MAVERIQ_ENGINE=torch: {", ".join(missing)} not installed; run pip install "maveriq-worker[torch]"'
        )
    from maveriq_worker.torch_engine import TorchEngine

    return TorchEngine
