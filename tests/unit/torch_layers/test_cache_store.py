"""A cache in int8 gives back what was written to a 127th part of each head's largest number."""

import pytest
import torch

from maveriq.torch_layers import CacheStore

CPU = torch.device("cpu")
SHAPE = (3, 2, 8, 16)  # rows, heads, tokens, head size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_read_is_within_half_a_step_of_what_was_written(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    store = CacheStore(SHAPE, dtype, CPU, int8=True)
    new = (torch.randn(2, 2, 5, 16) * torch.tensor([0.01, 100.0])[:, None, None, None]).to(dtype)
    store.write((slice(1, 3), slice(None), slice(2, 7)), new)
    got = store.read(slice(1, 3), 8)
    assert got.dtype is dtype and got.shape == (2, 2, 8, 16)
    step = new.float().abs().amax(dim=-1, keepdim=True) / 127
    rounded = 1.0 if dtype is torch.bfloat16 else 0.8  # bf16 rounds what is read once more
    assert bool(((got[:, :, 2:7].float() - new.float()).abs() <= rounded * step).all())
    assert not got[:, :, :2].any() and not got[:, :, 7:].any()


def test_zeros_stay_zeros_and_a_full_store_is_exact() -> None:
    store = CacheStore(SHAPE, torch.float32, CPU, int8=True)
    store.write((slice(0, 1), slice(None), slice(0, 1)), torch.zeros(1, 2, 1, 16))
    assert not store.read(slice(0, 1), 1).any()
    plain, new = CacheStore(SHAPE, torch.float32, CPU, int8=False), torch.randn(1, 2, 4, 16)
    plain.write((slice(2, 3), slice(None), slice(0, 4)), new)
    assert torch.equal(plain.read(slice(2, 3), 4), new)


@pytest.mark.parametrize(("int8", "num_bytes"), [(False, 3 * 2 * 8 * 16 * 4), (True, 3 * 2 * 8 * (16 + 2))])
def test_bytes_are_those_of_the_numbers_and_their_scales(int8: bool, num_bytes: int) -> None:
    assert CacheStore(SHAPE, torch.float32, CPU, int8=int8).num_bytes == num_bytes
