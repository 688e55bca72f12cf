"""Chooses tokens from logits. Each request draws from its own generator, so its tokens do not depend on batch mates."""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass

import torch

from maveriq_worker.torch_steps import Choice, SamplerSpec

NUCLEUS_CANDIDATES = 256
"""Tokens looked at before a whole vocabulary is sorted: nearly always enough for top_p."""


@dataclass(frozen=True, slots=True)
class _Open:
    spec: SamplerSpec
    generator: torch.Generator


class Sampler:
    """The samplers of all requests in slots, by their keys."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def open(self, key: int, spec: SamplerSpec) -> None:
        # On the CPU whatever the device: one number a token, and the same on every device.
        self._open[key] = _Open(spec, torch.Generator().manual_seed(spec.seed))

    def close(self, key: int) -> None:
        self._open.pop(key, None)

    def choose(self, keys: tuple[int, ...], logits: torch.Tensor) -> tuple[Choice, ...]:
        """One token for each row of `logits` [rows, vocabulary]; temperature 0 takes the most likely."""
        each = [self._open[key] for key in keys]
        token_ids: list[int] = logits.argmax(dim=-1).tolist()
        for nucleus in (False, True):
            rows = [row for row, one in enumerate(each) if one.spec.temperature > 0 and (one.spec.top_p < 1) is nucleus]
            if rows:
                drawn = (_draw_nucleus if nucleus else _draw)(logits[rows].float(), [each[row] for row in rows])
                for row, token_id in zip(rows, drawn, strict=True):
                    token_ids[row] = token_id
        return tuple(
            Choice(key, token_id)
            if one.spec.logprobs is None
            else _with_logprobs(key, token_id, logits[row], one.spec.logprobs)
            for row, (key, token_id, one) in enumerate(zip(keys, token_ids, each, strict=True))
        )


def _probabilities(logits: torch.Tensor, each: list[_Open]) -> torch.Tensor:
    temperatures = torch.tensor([[one.spec.temperature] for one in each], device=logits.device)
    return torch.softmax(logits / temperatures, dim=-1)


def _at(cumulative: torch.Tensor, mass: torch.Tensor, each: list[_Open]) -> torch.Tensor:
    """Where each row's uniform number falls. cumulative [rows, n], mass [rows, 1] -> [rows, 1]."""
    uniform = [[torch.rand((), generator=one.generator, dtype=torch.float64).item()] for one in each]
    target = torch.tensor(uniform, dtype=torch.float64, device=cumulative.device) * mass
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)


def _draw(logits: torch.Tensor, each: list[_Open]) -> list[int]:
    cumulative = _probabilities(logits, each).double().cumsum(dim=-1)
    return _at(cumulative, cumulative[:, -1:], each)[:, 0].tolist()


def _draw_nucleus(logits: torch.Tensor, each: list[_Open]) -> list[int]:
    """From the fewest most likely tokens that together reach top_p (Holtzman et al. 2020, equation 2)."""
    probabilities = _probabilities(logits, each)
    likely, token_ids = probabilities.topk(min(NUCLEUS_CANDIDATES, logits.shape[-1]), dim=-1)
    drawn: list[int] = []
    for row, one in enumerate(each):
        cumulative, ids = likely[row].double().cumsum(dim=-1), token_ids[row]
        if float(cumulative[-1]) < one.spec.top_p:
            everything, ids = probabilities[row].sort(descending=True, stable=True)
            cumulative = everything.double().cumsum(dim=-1)
        num_kept = min(int((cumulative < one.spec.top_p).sum()) + 1, len(ids))
        kept = cumulative[None, :num_kept]
        drawn.append(int(ids[_at(kept, kept[:, -1:], [one])[0, 0]]))
    return drawn


def _with_logprobs(key: int, token_id: int, logits: torch.Tensor, num_top: int) -> Choice:
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, token_ids = logprobs.topk(min(num_top, logprobs.shape[-1]))
    top = zip(token_ids.tolist(), values.tolist(), strict=True)
    return Choice(key, token_id, float(logprobs[token_id]), tuple(top))
