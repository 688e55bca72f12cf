"""What torch calls the precisions that it computes in."""

import torch

from maveriq.contracts import Precision

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
