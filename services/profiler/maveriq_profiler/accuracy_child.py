"""Runs a model's variants, or its layers, over a text: an order in, lines out (accuracy_orders.py).

Real weights, in a process of its own with low priority: what serves and what is timed come first.
"""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
import gc
import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoConfig, AutoTokenizer

from maveriq.contracts import VariantAccuracy
from maveriq.contracts.accuracy import layers_label
from maveriq.torch_layers import DTYPES, loader_of, quantise, text_half
from maveriq_profiler.accuracy import MIN_TOKENS, PART_TOKENS, Score, Window, compared, windows
from maveriq_profiler.accuracy_orders import AccuracyLine, AccuracyOrder, LayersLost, Step, Subject
from maveriq_profiler.cutting import Unreadable, layers_of
from maveriq_profiler.int8_cache import Int8Cache
from maveriq_profiler.layer_losses import losses

_ROWS = 128  # positions whose log-sum-exp is taken in fp32 at once
_NICE = 10

# What loading or running a checkpoint of any format may raise when this machine cannot.
_CANNOT = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError)

Say = Callable[[AccuracyLine], None]


class CannotRun(Exception):
    """A checkpoint does not run here; says why."""


class Weights:
    """The model's own, which several variants are made of. A .gguf takes long to read, so it is read once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._read: Any = None
        self._config: Any = None
        self._kind: Any = None

    def load(self, dtype: torch.dtype) -> Any:
        """Raises CannotRun."""
        if not self._source.endswith(".gguf"):
            return load(self._source, dtype)
        if self._read is None:
            model = load(self._source, torch.float32)
            self._read, self._config, self._kind = model.state_dict(), model.config, type(model)
        config = copy.deepcopy(self._config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what was read is dequantised
        return self._kind.from_pretrained(None, config=config, state_dict=dict(self._read), dtype=dtype)


def load(source: str, dtype: torch.dtype, device: str | None = None) -> Any:
    """
    Args:
        device: where quantised weights go at once; some formats cannot be moved.

    Raises:
        CannotRun.
    """
    where, options = _place(source)
    there = {} if device in (None, "cpu") else {"device_map": device}
    try:
        loader = loader_of(AutoConfig.from_pretrained(where, **options))
        model, loading = loader.from_pretrained(where, dtype=dtype, output_loading_info=True, **options, **there)
    except _CANNOT as error:
        why = f"{source} cannot be loaded here ({_first_line(error)})"
        raise CannotRun(f"{why}; measure it where it can, or enter its accuracy") from error
    if missing := sorted(loading["missing_keys"]):
        raise CannotRun(f"{source} lacks weights: {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}")
    writes_only = model.config.get_text_config(decoder=True) is model.config
    return model if writes_only else text_half(model, dtype)


def score(
    model: Any, tokens: torch.Tensor, parts: tuple[Window, ...], report: Callable[[int], None], *,
    int8_cache: bool = False,
) -> Score:  # fmt: skip
    """
    Args:
        tokens: [number of tokens]
        int8_cache: attention reads keys and values as 8 bits keep them.
    """
    keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    total = Score()
    with torch.inference_mode():
        for part in parts:
            seen = tokens[None, part.begin : part.end]  # [1, width]
            wanted = part.num_scored + 1
            options: dict[str, Any] = {"logits_to_keep": wanted} if keep else {}
            if int8_cache:
                options["past_key_values"] = Int8Cache(config=model.config)
            logits = model(input_ids=seen, use_cache=int8_cache, **options).logits[
                0, -wanted:-1
            ]  # [scored, vocabulary]
            targets = seen[0, -part.num_scored :]
            for row in range(0, part.num_scored, _ROWS):
                some = logits[row : row + _ROWS].float()
                chosen = some.gather(1, targets[row : row + _ROWS, None]).squeeze(1)
                total.add(float((some.logsumexp(1) - chosen).double().sum()), some.argmax(1).tolist())
            report(part.end)
    return total


def measure(order: AccuracyOrder, say: Say) -> None:
    torch.set_num_threads(order.threads)
    where, options = _place(order.source)
    tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
    tokens = torch.tensor(tokenizer(order.text)["input_ids"][: order.max_tokens], device=order.device)
    if len(tokens) < MIN_TOKENS:
        return say(AccuracyLine(failed=f"text: it has {len(tokens)} tokens; give at least {MIN_TOKENS}"))
    say(AccuracyLine(read_tokens=len(tokens)))
    weights = Weights(order.source)
    if order.layers:
        return _measure_layers(order, weights, tokens, say)

    def scored(label: str, load_model: Callable[[], Any], *, int8_cache: bool = False) -> Score:
        _tell(say, label, len(tokens), 0)
        model = load_model().eval()
        model = model if model.device == tokens.device else model.to(tokens.device)
        parts = windows(len(tokens), _context(model, tokens))
        tell = partial(_tell, say, label, len(tokens))
        return score(model, tokens, parts, tell, int8_cache=int8_cache)

    try:
        full = scored(order.reference_label, lambda: weights.load(DTYPES[order.reference]))
    except (CannotRun, *_CANNOT) as error:
        return say(AccuracyLine(failed=f"full precision does not run here: {_first_line(error)}"))
    say(AccuracyLine(result=compared(order.reference_label, full, full)))
    for subject in order.subjects:
        gc.collect()
        try:
            load_it = partial(_load_subject, subject, weights, order.device)
            theirs = scored(subject.label, load_it, int8_cache=subject.int8_cache)
        except (CannotRun, *_CANNOT) as error:
            say(AccuracyLine(result=VariantAccuracy(variant=subject.label, problem=_words(subject, error))))
        else:
            say(AccuracyLine(result=compared(subject.label, theirs, full)))
    return None


def _measure_layers(order: AccuracyOrder, weights: Weights, tokens: torch.Tensor, say: Say) -> None:
    try:
        model = weights.load(DTYPES[order.reference]).eval().to(tokens.device)
        layers = _layers_of(model)
        parts = torch.split(tokens, min(PART_TOKENS, _context(model, tokens)))
        for precision in order.layers:
            tell = partial(_tell, say, layers_label(precision), len(layers) * len(parts))
            tell(0)
            lost = losses(model, layers, parts, precision, tell)
            say(AccuracyLine(lost=LayersLost(precision=precision, nats_per_token=lost)))
    except (CannotRun, Unreadable, *_CANNOT) as error:
        say(AccuracyLine(failed=f"the layers cannot be measured here: {_first_line(error)}"))


def _load_subject(subject: Subject, weights: Weights, device: str) -> Any:
    dtype = DTYPES[subject.computed_in]
    if subject.source is None:
        model = weights.load(dtype)
        if subject.made is not None:
            model = model.to(device)  # first: its kernels want the weights packed in their own way
            for layer in _layers_of(model):
                quantise(layer, subject.made)
        return model
    model = load(subject.source, dtype, device if subject.quantised else None)
    quantised = subject.source.endswith(".gguf") or getattr(model.config, "quantization_config", None) is not None
    if subject.quantised and not quantised:
        raise CannotRun(f"{subject.source} holds no quantised weights; register it with the precision that it has")
    return model


def _layers_of(model: Any) -> Any:
    """An nn.ModuleList. Raises Unreadable."""
    return layers_of(model, model.config.get_text_config(decoder=True).num_hidden_layers)


def _context(model: Any, tokens: torch.Tensor) -> int:
    """Tokens that the model reads at once."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or len(tokens)


def _place(source: str) -> tuple[str, dict[str, str]]:
    """As transformers wants a source named."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        return str(path.parent), {"gguf_file": path.name}
    return (str(path) if path.exists() else source), {}


def _tell(say: Say, label: str, of: int, done: int) -> None:
    say(AccuracyLine(step=Step(variant=label, num_done=done, num_tokens=of)))


def _words(subject: Subject, error: Exception) -> str:
    return f"{subject.label}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__


def main(given: str, answers: TextIO) -> None:
    order = AccuracyOrder.model_validate_json(given)
    os.nice(_NICE)

    def say(line: AccuracyLine) -> None:
        answers.write(line.model_dump_json(exclude_none=True) + "\n")
        answers.flush()

    measure(order, say)
