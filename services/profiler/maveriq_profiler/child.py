"""What a process that measures does: an order in, lines out (orders.py).

A process of its own, so that its memory is its own and goes away, and the profiler's event loop stays free.
"""

import time
from typing import TextIO

from maveriq.contracts import Sample
from maveriq_profiler.cutting import Unreadable, config_from
from maveriq_profiler.facts import read
from maveriq_profiler.formats import Format
from maveriq_profiler.orders import FactsOrder, ItemOrder, ItemRan, Line, Measured, Order, ProbeOrder


def main(given: str, answers: TextIO) -> None:
    order = Order.model_validate_json(given).order
    try:
        if isinstance(order, FactsOrder):
            line = Line(reading=read(order.source))
        else:
            line = _run(order) if isinstance(order, ItemOrder) else _probe(order, answers)
    except Unreadable as error:
        line = Line(unreadable=str(error))
    _say(answers, line)


def _probe(order: ProbeOrder, answers: TextIO) -> Line:
    def report(sample: Sample) -> None:
        _say(answers, Line(progress=sample))

    import torch  # TensorRT-LLM brings it too

    from maveriq.torch_layers import DTYPES
    from maveriq_profiler import probe
    from maveriq_profiler.hop import FarSide

    begun = time.perf_counter()
    with FarSide() as far:
        if order.engine == "trtllm":
            from maveriq_profiler import trtllm_probe

            samples = trtllm_probe.measure(order, report)
        elif (problem := _unseen(order.device)) is not None:
            return problem
        else:
            samples = probe.measure(order, report)
        # last: it starts CUDA in this process, which TensorRT-LLM must do by itself
        visible = torch.device(order.device if order.engine == "torch" else "cuda:0")
        computed_in = Format(order.precision, order.kv_precision).computed_in
        hop = far.hop_ms(config_from(order.config_json).hidden_size, DTYPES[computed_in], visible)
    return Line(measured=Measured(hop_ms=hop, samples=samples, cost_s=time.perf_counter() - begun))


def _run(order: ItemOrder) -> Line:
    if order.item.engine == "trtllm":
        from maveriq_profiler import trtllm_probe

        return Line(ran=ItemRan(samples=trtllm_probe.measure_item(order)))
    if (problem := _unseen(order.device)) is not None:
        return problem
    from maveriq_profiler import run_probe

    return Line(ran=ItemRan(samples=run_probe.measure_item(order)))


def _unseen(device: str) -> Line | None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return Line(failed=f"torch sees no CUDA on {device}; install torch for CUDA, or MAVERIQ_PROFILE_DEVICE=cpu")
    return None


def _say(answers: TextIO, line: Line) -> None:
    answers.write(line.model_dump_json(exclude_none=True) + "\n")
    answers.flush()
