"""What the torch engine computes with and the profiler measures. Imports torch: only these two use it."""

from maveriq.torch_layers.attention_masks import AttentionMasks
from maveriq.torch_layers.cache_store import CacheStore
from maveriq.torch_layers.cpu_linear import use_cpu_kernels
from maveriq.torch_layers.dtypes import DTYPES
from maveriq.torch_layers.quantised_linear import Int4Linear, Int8Linear
from maveriq.torch_layers.quantising import Unquantisable, quantise, quantised_bytes, weight_bytes
from maveriq.torch_layers.stage_core import StageCore

__all__ = [
    "DTYPES",
    "AttentionMasks",
    "CacheStore",
    "Int4Linear",
    "Int8Linear",
    "StageCore",
    "Unquantisable",
    "quantise",
    "quantised_bytes",
    "use_cpu_kernels",
    "weight_bytes",
]
