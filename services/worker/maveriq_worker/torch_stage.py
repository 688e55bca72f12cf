"""One stage's part of a model: transformers' own modules, cut to a run of layers, with only their weights loaded.

The decoder's own forward runs on the shortened list of layers, so whatever it does around them (rotary embeddings,
scaled embeddings, which layer gets which mask) stays the model's. What cannot be cut so is refused by name: by the very
check that the profiler makes before it is planned for.
"""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from maveriq.torch_layers import (
    DTYPES,
    AttentionMasks,
    CannotRun,
    check_runs,
    find_parts,
    kv_copies,
    materialise_buffers,
    on_meta,
    quantise,
    quantised_bytes,
    use_cpu_kernels,
    weight_bytes,
)
from maveriq_worker.kv_slots import KvShapes, KvSlots
from maveriq_worker.stage_weights import TensorsMissing, load_weights, open_checkpoint
from maveriq_worker.torch_steps import StageSpec, Step


class StageCannotRun(Exception):
    """This stage cannot run as asked; the message says why and what to do."""


class CheckpointCannotRun(StageCannotRun):
    """No stage of this checkpoint can: any other placement of it fails alike."""


class TorchStage:
    """Layers first_layer .. first_layer + num_layers of a model, with the embedding or the head at the ends."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.device = torch.device(spec.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.dtype = DTYPES[spec.precision]
        self.is_first = spec.rank == 0
        self.is_last = spec.rank == spec.num_stages - 1
        config: Any = AutoConfig.from_pretrained(spec.checkpoint).get_text_config(decoder=True)
        self._check_runs(config)
        self._model = on_meta(config, self.dtype)
        self._parts = find_parts(self._model, spec.total_layers)
        self._decoder: Any = self._parts.owner
        self.hidden_size: int = config.hidden_size
        self._masks = AttentionMasks(self._model.config, self.dtype, self.device)
        self.weight_bytes = self._load()  # before cutting, which renames the layers
        self._parts.cut(spec.first_layer, spec.num_layers, is_first=self.is_first, is_last=self.is_last)
        use_cpu_kernels(self._model, self.device, head=self._model.get_output_embeddings())
        shapes = self._kv_shapes(kv_copies(config))
        rows, tokens = spec.max_batch, spec.context_tokens
        kv_cache_bytes = shapes.num_bytes(rows, tokens, self.dtype.itemsize, int8=spec.kv_int8)
        self._check_reserved(self.weight_bytes + kv_cache_bytes)
        self._kv = KvSlots(shapes, rows, tokens, self.dtype, self.device, int8=spec.kv_int8)
        self.kv_cache_bytes = self._kv.num_bytes

    @torch.inference_mode()
    def forward(self, step: Step, hidden: torch.Tensor | None) -> torch.Tensor:
        """Run a step's rows through this stage.

        Args:
            hidden: [rows, tokens, hidden size] from the stage before; None on the first.

        Returns:
            [rows, tokens, hidden size] for the next stage; on the last, the picks' logits [picks, vocabulary].
        """
        num_tokens = len(step.token_ids[0])
        for move in step.moves:
            self._kv.move(move.source, move.target, move.num_tokens)
        starts = torch.tensor(step.starts, device=self.device)
        positions = starts[:, None] + torch.arange(num_tokens, device=self.device)  # [rows, tokens]
        self._kv.place(step.first_row, positions, step.starts, num_tokens)
        inputs: dict[str, Any] = {
            "attention_mask": self._masks.of(positions, max(step.starts) + num_tokens),
            "position_ids": positions,
            "past_key_values": self._kv,
            "use_cache": True,
        }
        if hidden is None:
            inputs["input_ids"] = torch.tensor(step.token_ids, device=self.device)
        else:
            inputs["inputs_embeds"] = hidden
        if not self.is_last or not step.picks:
            output: torch.Tensor = self._decoder(**inputs).last_hidden_state
            return output
        kept = sorted({pick.token for pick in step.picks})
        logits: torch.Tensor = self._model(**inputs, logits_to_keep=torch.tensor(kept, device=self.device)).logits
        if len(kept) == 1 and len(step.picks) == logits.shape[0]:
            return logits[:, 0]
        return torch.stack([logits[pick.row, kept.index(pick.token)] for pick in step.picks])

    def _check_runs(self, config: Any) -> None:
        try:
            check_runs(config)
        except CannotRun as error:
            raise CheckpointCannotRun(str(error)) from error
        if self.spec.total_layers != config.num_hidden_layers:
            raise CheckpointCannotRun(
                f"the placement has {self.spec.total_layers} layers, the model has {config.num_hidden_layers}; "
                "plan again, for its checkpoint has changed"
            )

    def _load(self) -> int:
        """This stage's weights and no others, layer by layer: no more than one is ever whole that is quantised.

        Checked against the reservation before any is read. Returns bytes.
        """
        layers, ends = self._mine()
        precisions = self.spec.layer_precisions
        quantised = sum(quantised_bytes(*each) for each in zip(layers, precisions, strict=True))
        self._check_reserved(quantised + weight_bytes(*ends))
        materialise_buffers(self._model, self._model, self.device)
        checkpoint = open_checkpoint(self.spec.checkpoint)
        try:
            load_weights(self._model, _tensor_ids(*ends), checkpoint, self.device)
            for layer, precision in zip(layers, precisions, strict=True):
                load_weights(self._model, _tensor_ids(layer), checkpoint, self.device)
                quantise(layer, precision)
        except TensorsMissing as error:
            raise CheckpointCannotRun(f"{error}; give the checkpoint that belongs to its config.json") from error
        return weight_bytes(*layers, *ends)

    def _mine(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """This stage's layers, and what else it has weights of."""
        first, parts = self.spec.first_layer, self._parts
        ends: list[nn.Module] = []
        if self.is_first:
            ends += parts.modules(parts.before)
        if self.is_last:
            ends += [self._model.get_output_embeddings(), *parts.modules(parts.after)]
        return list(parts.all_layers[first : first + self.spec.num_layers]), ends

    def _check_reserved(self, needed_bytes: int) -> None:
        if needed_bytes > self.spec.reserved_bytes:
            raise StageCannotRun(
                f"stage {self.spec.rank} ({self.spec.num_layers} layers on {self.spec.device}) needs {needed_bytes} "
                f"bytes for weights and KV cache, {self.spec.reserved_bytes} bytes are reserved; give it fewer layers, "
                f"a smaller max_batch ({self.spec.max_batch}) or context_tokens ({self.spec.context_tokens})"
            )

    @torch.inference_mode()
    def _kv_shapes(self, copies: int) -> KvShapes:
        shapes = KvShapes(copies)
        if self.is_first:
            self._one_token(shapes, input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device))
        else:
            hidden = torch.zeros(1, 1, self.hidden_size, device=self.device, dtype=self.dtype)
            self._one_token(shapes, inputs_embeds=hidden)
        if len(shapes.of_layer) != self.spec.num_layers:
            raise CheckpointCannotRun(f"not every layer of {type(self._model).__name__} keeps a KV cache of its own")
        return shapes

    def _one_token(self, cache: KvShapes, **inputs: torch.Tensor) -> None:
        positions = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        masks = self._masks.of(positions, 1)
        self._decoder(attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True, **inputs)


def _tensor_ids(*modules: nn.Module) -> set[int]:
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
