"""How tokens are chosen from logits."""

import pytest
import torch

from maveriq_worker.sampling import Sampler
from maveriq_worker.torch_steps import SamplerSpec

VOCABULARY = 600


def spec(temperature: float = 1.0, top_p: float = 1.0, seed: int = 1, logprobs: int | None = None) -> SamplerSpec:
    return SamplerSpec(temperature, top_p, seed, logprobs)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def draw(specs: dict[int, SamplerSpec], steps: int, given: torch.Tensor) -> dict[int, list[int]]:
    sampler = Sampler()
    for key, each in specs.items():
        sampler.open(key, each)
    drawn: dict[int, list[int]] = {key: [] for key in specs}
    for _ in range(steps):
        for choice in sampler.choose(tuple(specs), given):
            drawn[choice.key].append(choice.token_id)
    return drawn


def test_temperature_0_takes_the_most_likely() -> None:
    given = logits(3)
    drawn = draw({key: spec(temperature=0) for key in range(3)}, 1, given)
    assert [drawn[key][0] for key in range(3)] == given.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_request_draws_the_same_whoever_shares_the_batch(top_p: float) -> None:
    given = logits(4)
    alone = draw({2: spec(top_p=top_p, seed=9)}, 50, given[2:3])
    specs = {0: spec(temperature=0), 1: spec(seed=3), 2: spec(top_p=top_p, seed=9), 3: spec(top_p=0.999, seed=4)}
    assert draw(specs, 50, given)[2] == alone[2]


def test_another_seed_draws_otherwise() -> None:
    drawn = draw({0: spec(seed=1), 1: spec(seed=2)}, 50, logits(1).expand(2, -1))
    assert drawn[0] != drawn[1]


def test_draws_follow_the_probabilities() -> None:
    given = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    drawn = draw({0: spec()}, 4000, given)[0]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / len(drawn)
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    given = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert set(draw({0: spec(top_p=0.8)}, 500, given)[0]) == {0, 1}
    assert set(draw({0: spec(top_p=0.81)}, 500, given)[0]) == {0, 1, 2}
    assert set(draw({0: spec(top_p=0.01)}, 50, given)[0]) == {0}


def test_a_flat_distribution_is_not_cut_to_the_first_candidates() -> None:
    drawn = draw({0: spec(top_p=0.99)}, 3000, torch.zeros(1, VOCABULARY))[0]
    assert len(set(drawn)) > 500


def test_log_probabilities_are_those_of_the_model_most_likely_first() -> None:
    sampler = Sampler()
    sampler.open(5, spec(temperature=0.7, top_p=0.5, logprobs=3))
    given = logits(1)
    (choice,) = sampler.choose((5,), given)
    expected = torch.log_softmax(given[0], -1)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]))
    assert [token for token, _ in choice.top] == expected.topk(3).indices.tolist()
