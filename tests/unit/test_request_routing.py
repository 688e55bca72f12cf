"""A request goes to the GPU type that its size was planned for, as far as its size can be told."""

from collections import Counter
from uuid import uuid4

import pytest

from maveriq.contracts import ChatMessage, FinishReason, Lane, RequestSubmitted, Route, Sampling, ServedBy, Usage
from maveriq.lengths import CHARS_PER_TOKEN, TEMPLATE_TOKENS, Lengths, Size
from maveriq.routing import lanes_of, route, route_of, serving
from tests.fleets import LARGE, ROUTES, SMALL

THIRD = "NVIDIA H100"


def asked(prompt: str | tuple[int, ...] = "x" * 40, **sampling: object) -> RequestSubmitted:
    return RequestSubmitted(
        deployment_id=uuid4(), request_id=uuid4(), prompt=prompt, sampling=Sampling.model_validate(sampling)
    )


@pytest.fixture
def lengths() -> Lengths:
    made = Lengths()
    made.plan_for(ROUTES)
    return made


def test_a_short_request_goes_to_the_small_type_and_a_long_one_to_the_large(lengths: Lengths) -> None:
    assert route(asked(), ROUTES, lengths) == (SMALL, LARGE)
    assert route(asked("x" * 2000), ROUTES, lengths) == (LARGE, SMALL)


def test_a_request_that_asks_for_a_long_answer_is_long(lengths: Lengths) -> None:
    assert route(asked(max_tokens=300, ignore_eos=True), ROUTES, lengths) == (LARGE, SMALL)


def test_one_that_is_longer_than_every_bucket_goes_where_it_exceeds_least(lengths: Lengths) -> None:
    assert route(asked(tuple(range(5000))), ROUTES, lengths) == (LARGE, SMALL)


def test_nothing_is_routed_where_there_are_no_routes(lengths: Lengths) -> None:
    assert route(asked(), (), lengths) == ()


def test_the_smallest_bucket_that_holds_a_request_is_its_own() -> None:
    assert route_of(Size(100, 50), ROUTES) is ROUTES[0]
    assert route_of(Size(100.5, 50), ROUTES) is ROUTES[1]
    assert route_of(Size(1, 51), ROUTES) is ROUTES[1]


def test_a_bucket_that_types_share_is_shared_in_these_shares_and_a_request_keeps_its_type(lengths: Lengths) -> None:
    split = Route(
        input_up_to=100, output_up_to=50, share=1,
        served_by=(ServedBy(gpu_type=SMALL, share=0.75), ServedBy(gpu_type=LARGE, share=0.25)),
    )  # fmt: skip
    requests = [asked() for _ in range(4000)]
    went = Counter(route(one, (split,), lengths)[0] for one in requests)
    assert 0.7 < went[SMALL] / 4000 < 0.8
    assert [route(one, (split,), lengths) for one in requests[:50]] == [
        route(one, (split,), lengths) for one in requests[:50]
    ]


def test_routes_lead_only_to_types_that_serve() -> None:
    left = serving(ROUTES, frozenset({LARGE}))
    assert [[served.gpu_type for served in one.served_by] for one in left] == [[LARGE], [LARGE]]
    assert serving(ROUTES, frozenset()) == ()


def test_a_share_of_nothing_is_still_an_answer(lengths: Lengths) -> None:
    (short, _) = serving(ROUTES, frozenset({LARGE}))
    assert route(asked(), (short,), lengths) == (LARGE,)


def test_a_replica_takes_its_own_types_requests_first_and_helps_out_in_order() -> None:
    def one(*types: str) -> Route:
        shares = [ServedBy(gpu_type=kind, share=1.0 if at == 0 else 0.0) for at, kind in enumerate(types)]
        return Route(input_up_to=len(types), output_up_to=1, share=0.5, served_by=tuple(shares))

    routes = (one(SMALL, LARGE, THIRD), one(LARGE, THIRD, SMALL))
    assert lanes_of(routes, SMALL)[0] == Lane(gpu_type=SMALL)
    assert Lane(gpu_type=LARGE, rank=2) in lanes_of(routes, SMALL)
    assert Lane(gpu_type=SMALL, rank=1) in lanes_of(routes, LARGE)
    assert lanes_of(routes, THIRD)[1:] == (Lane(gpu_type=LARGE, rank=1), Lane(gpu_type=SMALL, rank=2))


def test_a_type_that_nothing_was_planned_for_helps_everybody_last() -> None:
    assert lanes_of(ROUTES, THIRD) == (Lane(gpu_type=SMALL, rank=2), Lane(gpu_type=LARGE, rank=2))


def test_a_prompt_is_as_long_as_its_characters_until_usage_says_better(lengths: Lengths) -> None:
    request = asked("x" * 4000)
    assert lengths.size(request).input_tokens == 4000 / CHARS_PER_TOKEN
    for _ in range(20):
        lengths.learn(request, Usage(prompt_tokens=2000, completion_tokens=10), FinishReason.STOP)
    assert lengths.size(request).input_tokens == pytest.approx(2000, rel=0.02)


def test_token_ids_are_counted_and_a_chat_has_its_template(lengths: Lengths) -> None:
    assert lengths.size(asked(tuple(range(77)))).input_tokens == 77
    chat = RequestSubmitted(
        deployment_id=uuid4(), request_id=uuid4(), messages=(ChatMessage(role="user", content="x" * 40),)
    )
    assert lengths.size(chat).input_tokens == 40 / CHARS_PER_TOKEN + TEMPLATE_TOKENS


def test_an_answer_is_as_long_as_planned_until_answers_to_like_prompts_say_better(lengths: Lengths) -> None:
    assert lengths.size(asked()).output_tokens == 50
    for _ in range(100):
        lengths.learn(asked(), Usage(prompt_tokens=10, completion_tokens=400), FinishReason.STOP)
    assert lengths.size(asked()).output_tokens > 380
    assert lengths.size(asked("x" * 2000)).output_tokens == 500
    assert route(asked(), ROUTES, lengths)[0] == LARGE
    assert lengths.size(asked(max_tokens=20)).output_tokens == 20


def test_an_answer_that_was_broken_off_says_nothing_of_lengths(lengths: Lengths) -> None:
    for reason in (FinishReason.CANCELLED, FinishReason.ERROR):
        lengths.learn(asked(), Usage(prompt_tokens=10, completion_tokens=1), reason)
    assert lengths.size(asked()).output_tokens == 50


def test_what_was_learned_lasts_while_the_buckets_do(lengths: Lengths) -> None:
    for _ in range(10):
        lengths.learn(asked(), Usage(prompt_tokens=10, completion_tokens=1), FinishReason.STOP)
    before = lengths.size(asked())
    lengths.plan_for(ROUTES[:1] + ROUTES[1:])
    assert lengths.size(asked()) == before
    lengths.plan_for(ROUTES[:1])
    assert lengths.size(asked()).output_tokens == 50


def test_old_traffic_is_forgotten() -> None:
    lengths = Lengths()
    lengths.plan_for(ROUTES)
    for completion_tokens in [400] * 3000 + [20] * 3000:
        lengths.learn(asked(), Usage(prompt_tokens=10, completion_tokens=completion_tokens), FinishReason.STOP)
    assert lengths.size(asked()).output_tokens < 80
