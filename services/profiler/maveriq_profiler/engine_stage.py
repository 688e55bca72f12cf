"""One stage of a model, run as the worker's torch engine runs it: what is timed here is what will be served.

Alike: linear layers in blocks or packed, a cache in rows taken once, masks and positions made for each pass, one
position's logits, a greedy choice on the host. Not alike: no scheduler and no sampler, which are Python of microseconds
beside a pass of milliseconds.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from maveriq.torch_layers import (
    DTYPES,
    AttentionMasks,
    CacheStore,
    kv_copies,
    quantise,
    use_cpu_kernels,
    with_copies,
)
from maveriq_profiler.cutting import build, layers_of, parts_of
from maveriq_profiler.formats import Format

PREFILL_TOKENS = 512  # the engine reads a longer prompt in pieces of so many
_TOKEN = 7  # which token is read makes no difference to random weights


@dataclass(frozen=True, slots=True)
class Pass:
    """What the first stage tells the others of a pass: pickled for each, as the engine does."""

    token_ids: tuple[tuple[int, ...], ...]
    """[rows][tokens], as many tokens in each row."""
    starts: tuple[int, ...]
    """Position of each row's first token."""
    picks: tuple[tuple[int, int, int], ...]
    """Request, row and token whose successor is chosen; empty where a prompt goes on in the next pass."""
    room: tuple[int, int]
    """Rows and tokens of the cache to work in: each shape has its own, taken when it is first used."""


def decode_pass(batch: int, cached_tokens: int, context_tokens: int) -> Pass:
    picks = tuple((row, row, 0) for row in range(batch))
    return Pass(((_TOKEN,),) * batch, (cached_tokens,) * batch, picks, (batch, context_tokens))


def prompt_passes(batch: int, input_tokens: int, context_tokens: int) -> tuple[Pass, ...]:
    """As the engine's scheduler divides them: a long prompt in pieces, of short ones as many as make a piece."""
    together = max(1, min(batch, PREFILL_TOKENS // input_tokens))
    passes: list[Pass] = []
    for first in range(0, batch, together):
        rows = min(together, batch - first)
        for start in range(0, input_tokens, PREFILL_TOKENS):
            width = min(PREFILL_TOKENS, input_tokens - start)
            ends = start + width == input_tokens
            picks = tuple((row, row, width - 1) for row in range(rows)) if ends else ()
            passes.append(Pass(((_TOKEN,) * width,) * rows, (start,) * rows, picks, (batch, context_tokens)))
    return tuple(passes)


def build_for_engine(config: Any, device: str, wanted: Format) -> Any:
    """With random weights. Raises Unreadable."""
    if getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "eager"  # the sdpa of transformers refuses capped scores (Gemma 2)
    model = build(config, device, DTYPES[wanted.computed_in])
    for layer in layers_of(model, config.num_hidden_layers):
        quantise(layer, wanted.precision)
    use_cpu_kernels(model, torch.device(device), head=model.get_output_embeddings())
    return model


class Rows:
    """The cache: what transformers' layers call of one."""

    def __init__(self, num_rows: int, context_tokens: int, *, copies: int, int8: bool) -> None:
        """copies: how often in a row the layers hand over each head; one of them is kept."""
        self._num_rows, self._context_tokens, self._copies, self._int8 = num_rows, context_tokens, copies, int8
        self._stores: dict[int, tuple[CacheStore, CacheStore]] = {}
        self._num_used, self._start = 0, 0

    def place(self, num_rows: int, start: int) -> None:
        """Where the next pass writes; every row starts at the same position."""
        self._num_used, self._start = num_rows, start

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, heads, tokens, head size] of both; all of each row's from its position 0."""
        keys, values = keys[:, :: self._copies], values[:, :: self._copies]
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._room(keys), self._room(values))
        rows, end = slice(0, self._num_used), self._start + keys.shape[2]
        held: list[torch.Tensor] = []
        for store, new in zip(self._stores[layer_idx], (keys, values), strict=True):
            store.write((rows, slice(None), slice(self._start, end)), new)
            held.append(with_copies(store.read(rows, end), self._copies))
        return held[0], held[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start

    def _room(self, like: torch.Tensor) -> CacheStore:
        shape = (self._num_rows, like.shape[1], self._context_tokens, like.shape[3])
        return CacheStore(shape, like.dtype, like.device, int8=self._int8)


class EngineStage:
    """Some consecutive layers of a model, with the embedding or the head at the ends."""

    def __init__(
        self, model: Any, *, first_layer: int, num_layers: int, is_first: bool, is_last: bool, int8_cache: bool = False
    ) -> None:
        """
        Args:
            model: of transformers; keeps only these layers from now on.
        """
        self._int8_cache = int8_cache
        self._parts = parts_of(model, model.config.num_hidden_layers)
        self._model, self._decoder = model, self._parts.owner
        self._config: Any = self._decoder.config
        self._all: list[Any] = list(self._parts.all_layers)
        self._kinds_of_layers: list[str] | None = getattr(self._config, "layer_types", None)
        self._one_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.is_last = is_last
        first: torch.Tensor = next(model.parameters())
        self.device = first.device
        self._masks = AttentionMasks(self._config, first.dtype, first.device)
        self._parts.cut(first_layer, num_layers, is_first=is_first, is_last=is_last)
        self.use(first_layer, num_layers)
        self._rooms: dict[tuple[int, int], Rows] = {}

    def use(self, first_layer: int, num_layers: int) -> None:
        """Run these of the model's layers only."""
        mine = slice(first_layer, first_layer + num_layers)
        setattr(self._decoder, self._parts.layers, torch.nn.ModuleList(self._all[mine]))
        self._config.num_hidden_layers = num_layers
        if self._kinds_of_layers is not None:
            self._config.layer_types = self._kinds_of_layers[mine]

    @torch.inference_mode()
    def forward(self, step: Pass, hidden: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            hidden: [rows, tokens, hidden size] from the stage before; None on the first.

        Returns:
            [rows, tokens, hidden size]; on the last stage the logits of the picks [rows, vocabulary].
        """
        num_tokens = len(step.token_ids[0])
        starts = torch.tensor(step.starts, device=self.device)
        positions = starts[:, None] + torch.arange(num_tokens, device=self.device)  # [rows, tokens]
        if step.room not in self._rooms:
            self._rooms[step.room] = Rows(*step.room, copies=kv_copies(self._config), int8=self._int8_cache)
        rows = self._rooms[step.room]
        rows.place(len(step.starts), step.starts[0])
        inputs: dict[str, Any] = {
            "attention_mask": self._masks.of(positions, max(step.starts) + num_tokens),
            "position_ids": positions,
            "past_key_values": rows,
            "use_cache": True,
        }
        if hidden is None:
            inputs["input_ids"] = torch.tensor(step.token_ids, device=self.device)
        else:
            inputs["inputs_embeds"] = hidden
        if not self.is_last or not step.picks:
            output: torch.Tensor = self._decoder(**inputs).last_hidden_state
            return output
        token = step.picks[0][2]
        if self._one_only:
            inputs["logits_to_keep"] = torch.tensor([token], device=self.device)
        logits: torch.Tensor = self._model(**inputs).logits
        return logits[:, 0 if self._one_only else token]


def chosen(logits: torch.Tensor, step: Pass) -> tuple[tuple[int, int], ...]:
    """Request and token; nothing of a prompt that goes on."""
    if not step.picks:
        return ()
    most_likely: Any = logits.argmax(dim=-1)
    return tuple((pick[0], token_id) for pick, token_id in zip(step.picks, most_likely.tolist(), strict=True))
