"""One stage's part of a model: transformers' own modules, cut to a run of layers, with only their weights loaded.

The decoder's own forward runs on the shortened list of layers, so whatever it does around them (rotary embeddings,
scaled embeddings, which layer gets which mask) stays the model's. What cannot be cut so is refused by name.
"""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from maveriq.torch_layers import DTYPES, AttentionMasks, quantise, quantised_bytes, use_cpu_kernels, weight_bytes
from maveriq_worker.kv_slots import KvShapes, KvSlots
from maveriq_worker.stage_weights import TensorsMissing, load_weights, materialise_buffers, open_checkpoint
from maveriq_worker.torch_steps import StageSpec, Step

MASKS = ("full_attention", "sliding_attention")


class StageCannotRun(Exception):
    """This stage cannot run as asked; the message says why and what to do."""


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
        self._model = _on_meta(spec, self.dtype)
        self._name = type(self._model).__name__
        self._decoder: Any = self._model.base_model
        self._config: Any = self._decoder.config
        self.hidden_size: int = self._config.hidden_size
        self._masks = AttentionMasks(self._config, self.dtype, self.device)
        self._check_kinds()
        self._layers, self._norm = self._parts()
        self.weight_bytes = self._load()  # before cutting, which renames the layers
        self._cut()
        use_cpu_kernels(self._model, self.device, head=self._model.get_output_embeddings())
        if not self.is_first:
            self._check_passes_through()
        shapes = self._kv_shapes()
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

    def _check_kinds(self) -> None:
        if unknown := [kind for kind in self._masks.kinds if kind not in MASKS]:
            raise self._unsupported(f"its layers of kind {', '.join(unknown)} keep no plain KV cache")

    def _parts(self) -> tuple[str, str | None]:
        """Names of the decoder's list of layers and of its last norm; refuses what has other weights besides."""
        total = int(self._config.num_hidden_layers)
        if self.spec.total_layers != total:
            raise StageCannotRun(f"the placement has {self.spec.total_layers} layers, {self._name} has {total}")
        children = dict(self._decoder.named_children())
        lists = [name for name, part in children.items() if isinstance(part, nn.ModuleList) and len(part) == total]
        if len(lists) != 1:
            raise self._unsupported("its decoder has no single list of layers")
        embedding = self._model.get_input_embeddings()
        others = [
            name
            for name, part in children.items()
            if name != lists[0] and part is not embedding and (_has_weights(part) or "norm" in name)
        ]
        if len(others) > 1 or any("norm" not in name and name != "ln_f" for name in others):
            raise self._unsupported(f"it has weights beside embedding, layers, norm and head: {', '.join(others)}")
        if "logits_to_keep" not in inspect.signature(type(self._model).forward).parameters:
            raise self._unsupported("its forward cannot be asked for single positions (logits_to_keep)")
        return lists[0], others[0] if others else None

    def _load(self) -> int:
        """This stage's weights and no others, layer by layer: no more than one is ever whole that is quantised.

        Checked against the reservation before any is read. Returns bytes.
        """
        layers, ends = self._mine()
        precisions = self.spec.layer_precisions
        quantised = sum(quantised_bytes(*each) for each in zip(layers, precisions, strict=True))
        self._check_reserved(quantised + weight_bytes(*ends))
        materialise_buffers(self._model, self.device)
        checkpoint = open_checkpoint(self.spec.checkpoint)
        try:
            load_weights(self._model, _tensor_ids(*ends), checkpoint, self.device)
            for layer, precision in zip(layers, precisions, strict=True):
                load_weights(self._model, _tensor_ids(layer), checkpoint, self.device)
                quantise(layer, precision)
        except TensorsMissing as error:
            raise self._unsupported(str(error)) from error
        return weight_bytes(*layers, *ends)

    def _mine(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """This stage's layers, and what else it has weights of."""
        first = self.spec.first_layer
        ends: list[nn.Module] = []
        if self.is_first:
            ends.append(self._model.get_input_embeddings())
        if self.is_last:
            ends.append(self._model.get_output_embeddings())
            ends += [getattr(self._decoder, self._norm)] if self._norm else []
        return list(getattr(self._decoder, self._layers)[first : first + self.spec.num_layers]), ends

    def _cut(self) -> None:
        """Drop the other stages' layers, and the norm but on the last stage."""
        mine = slice(self.spec.first_layer, self.spec.first_layer + self.spec.num_layers)
        setattr(self._decoder, self._layers, getattr(self._decoder, self._layers)[mine])
        if getattr(self._config, "layer_types", None) is not None:
            self._config.layer_types = self._config.layer_types[mine]  # forward counts layers from 0
        if hasattr(self._decoder, "embedding_multiplier") and not self.is_first:
            self._decoder.embedding_multiplier = 1.0  # Granite scales in forward, whatever comes in
        if self._norm is not None and not self.is_last:
            setattr(self._decoder, self._norm, nn.Identity())
        self._model.eval()

    def _check_reserved(self, needed_bytes: int) -> None:
        if needed_bytes > self.spec.reserved_bytes:
            raise StageCannotRun(
                f"stage {self.spec.rank} ({self.spec.num_layers} layers on {self.spec.device}) needs {needed_bytes} "
                f"bytes for weights and KV cache, {self.spec.reserved_bytes} bytes are reserved; give it fewer layers, "
                f"a smaller max_batch ({self.spec.max_batch}) or context_tokens ({self.spec.context_tokens})"
            )

    @torch.inference_mode()
    def _check_passes_through(self) -> None:
        """With no layers and no norm a later stage must hand on what it gets: else the forward adds something."""
        layers, norm = getattr(self._decoder, self._layers), self._norm
        kept = getattr(self._decoder, norm) if norm else None
        setattr(self._decoder, self._layers, nn.ModuleList())
        if norm:
            setattr(self._decoder, norm, nn.Identity())
        given = torch.linspace(-2, 3, self.hidden_size, device=self.device, dtype=self.dtype).view(1, 1, -1)
        got = self._one_token(KvShapes(), inputs_embeds=given)
        setattr(self._decoder, self._layers, layers)
        if norm:
            setattr(self._decoder, norm, kept)
        if not torch.equal(given, got):
            raise self._unsupported("its forward changes the activations it is given, so it cannot be cut into stages")

    @torch.inference_mode()
    def _kv_shapes(self) -> KvShapes:
        shapes = KvShapes()
        if self.is_first:
            self._one_token(shapes, input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device))
        else:
            hidden = torch.zeros(1, 1, self.hidden_size, device=self.device, dtype=self.dtype)
            self._one_token(shapes, inputs_embeds=hidden)
        if len(shapes.of_layer) != self.spec.num_layers:
            raise self._unsupported("not every layer keeps a KV cache of its own")
        return shapes

    def _one_token(self, cache: KvShapes, **inputs: torch.Tensor) -> torch.Tensor:
        positions = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        masks = self._masks.of(positions, 1)
        output: torch.Tensor = self._decoder(
            attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True, **inputs
        ).last_hidden_state
        return output

    def _unsupported(self, why: str) -> StageCannotRun:
        return StageCannotRun(f"the torch engine cannot run {self._name}: {why}; register another model or engine")


def _on_meta(spec: StageSpec, dtype: torch.dtype) -> Any:
    """The whole model without weights: cheap, and each layer knows its number."""
    config = AutoConfig.from_pretrained(spec.checkpoint)
    # The sdpa of transformers refuses capped attention scores (Gemma 2).
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def _tensor_ids(*modules: nn.Module) -> set[int]:
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
