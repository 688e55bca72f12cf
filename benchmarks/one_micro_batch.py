"""The worker's torch pipeline with all requests in one micro-batch, so that a pass of a whole batch has it to itself.

Started by `full_models.py` in place of `python -m maveriq_worker.torch_pipeline`; nothing else differs.
"""

import sys
from collections.abc import Collection

from maveriq_worker import torch_pipeline
from maveriq_worker.scheduler import Scheduler


def one_group(*, max_batch: int, num_groups: int, eos_ids: Collection[int]) -> Scheduler:
    return Scheduler(max_batch=max_batch, num_groups=1, eos_ids=eos_ids)


if __name__ == "__main__":
    torch_pipeline.Scheduler = one_group  # type: ignore[assignment, attr-defined]
    how, *numbers = sys.argv[1:]
    torch_pipeline.lead([int(number) for number in numbers], spawn=how == "spawn")
