"""What the torch engine computes with and the profiler measures. Imports torch: only these two use it."""

from maveriq.torch_layers.attention_masks import AttentionMasks
from maveriq.torch_layers.cache_store import CacheStore, with_copies
from maveriq.torch_layers.computed_buffers import materialise_buffers
from maveriq.torch_layers.cpu_linear import use_cpu_kernels
from maveriq.torch_layers.decoder_parts import DecoderParts, Uncuttable, find_layers, find_parts
from maveriq.torch_layers.dtypes import DTYPES
from maveriq.torch_layers.heap import keep_freed_memory
from maveriq.torch_layers.kv_heads import kv_copies, kv_head_dim, num_kv_heads
from maveriq.torch_layers.quantised_linear import Int4Linear, Int8Linear
from maveriq.torch_layers.quantising import Unquantisable, matrices_of, quantise, quantised_bytes, weight_bytes
from maveriq.torch_layers.runnable import CannotRun, check_runs, on_meta
from maveriq.torch_layers.stage_core import StageCore
from maveriq.torch_layers.text_half import loader_of, text_half

__all__ = [
    "DTYPES",
    "AttentionMasks",
    "CacheStore",
    "CannotRun",
    "DecoderParts",
    "Int4Linear",
    "Int8Linear",
    "StageCore",
    "Uncuttable",
    "Unquantisable",
    "check_runs",
    "find_layers",
    "find_parts",
    "keep_freed_memory",
    "kv_copies",
    "kv_head_dim",
    "loader_of",
    "materialise_buffers",
    "matrices_of",
    "num_kv_heads",
    "on_meta",
    "quantise",
    "quantised_bytes",
    "text_half",
    "use_cpu_kernels",
    "weight_bytes",
    "with_copies",
]
