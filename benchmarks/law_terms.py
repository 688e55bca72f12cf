"""The law short of some of its terms, for `law_study.py` to show what each is for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from maveriq import law
from maveriq.law import Passes, Terms
from maveriq_profiler import run_terms

WITHOUT: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "attend": ("attend",),
    "idle": ("idle", "prompt_idle"),
    "a precision's own constants": ("weights[", "rows@", "compute["),
    "a layer's launches": ("layer[", "prompt_layer["),
    "prompt_weights": ("prompt_weights", "prompt_layer["),
    "hop": ("hop.",),
    "all-reduces": ("reduce.",),
}


@contextmanager
def without(prefixes: tuple[str, ...]) -> Iterator[None]:
    """Neither the fit nor the prediction knows terms whose names begin so.

    `rows@` here means the constants of a precision alone: those with brackets.
    """

    def kept(name: str) -> bool:
        return not any(name.startswith(prefix) and (prefix != "rows@" or "[" in name) for prefix in prefixes)

    def short(terms: Terms) -> Terms:
        return {name: value for name, value in terms.items() if kept(name)}

    def shortened(whole: Any) -> Any:
        def passes(*given: Any, **named: Any) -> Passes:
            found = whole(*given, **named)
            return Passes(short(found.layer), short(found.ends))

        return passes

    places: tuple[Any, ...] = (run_terms, law)
    before = [(place, name, getattr(place, name)) for place in places for name in ("decode_terms", "prefill_terms")]
    try:
        for place, name, whole in before:
            setattr(place, name, shortened(whole))
        yield
    finally:
        for place, name, whole in before:
            setattr(place, name, whole)
