"""Whether a calibration may speak of a configuration. Pure: both in, the reason against out."""

from collections.abc import Sequence

from maveriq.contracts import FULL_PRECISIONS, Calibration, ModelFacts, Precision, Scope

_REACH = 4.0  # MaverIQ's data: fitted to 6B and 7B models the law still holds for layers four times as large
_LONGER = 4.0  # what is linear in the context, or in its square, is that at four times as much
_WORST_FIT = 0.10  # median miss of its own samples; a fingerprint taken on a busy CPU does no worse
_MIN_MODELS = 2  # one model's error for another is 8 % at the median, two models' 1 %


def uncovered(
    calibration: Calibration, facts: ModelFacts, precision: Precision, kv_precision: Precision,
    *, tp: int = 1, pp: int = 1, context_tokens: int = 0,
) -> str:  # fmt: skip
    """Why it is not to be trusted here; '' where it is.

    Args:
        context_tokens: prompt and answer of the mean request; 0: of any that was seen.
    """
    seen = calibration.scope
    if seen.num_models < _MIN_MODELS:
        return f"it has seen {seen.num_models} model(s), and {_MIN_MODELS} are the least"
    miss = calibration.latency_residuals.median
    if miss > _WORST_FIT:
        return f"it misses what it was fitted to by {miss:.0%} at the median: the GPU was busy while it was measured"
    for name, value, sizes in (
        ("layer_params", facts.layer_params, seen.layer_params),
        ("hidden_size", facts.hidden_size, seen.hidden_size),
        ("vocab_size", facts.vocab_size, seen.vocab_size),
    ):
        if not sizes[0] / _REACH <= value <= sizes[1] * _REACH:
            return f"{name} {value} is more than {_REACH:g} times outside what it has seen ({sizes[0]} to {sizes[1]})"
    if context_tokens > _LONGER * seen.max_context_tokens:
        return (
            f"prompts and answers of {context_tokens} tokens are more than {_LONGER:g} times as long as what it has "
            f"seen ({seen.max_context_tokens})"
        )
    if facts.num_experts and not seen.mixtures:
        return "it has seen no mixture of experts"
    if unseen := _unseen(seen, precision, kv_precision, tp):
        return unseen
    if pp > 1 and max(seen.pp_degrees) == 1:
        return "it has seen no pipeline"
    return ""


def _unseen(seen: Scope, precision: Precision, kv_precision: Precision, tp: int) -> str:
    """Which number format or TP degree is new to it; '' where none is."""
    for name, wanted, known in (
        ("precision", precision, seen.precisions),
        ("KV precision", kv_precision, seen.kv_precisions),
        ("TP", tp, seen.tp_degrees),
    ):
        if wanted not in known:
            return f"it has not seen {name} {wanted}, only {_listed(known)}"
    if seen.computed_in and precision not in FULL_PRECISIONS and kv_precision in FULL_PRECISIONS:
        formats = [full for quantised, full in seen.computed_in if quantised is precision]
        if kv_precision not in formats:
            return f"it has not seen {precision} weights computed in {kv_precision}, only in {_listed(formats)}"
    return ""


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
