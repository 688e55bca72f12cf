"""What tenants may hold and what stays free, as the settings say it: every part is read, and what is odd is named."""

import pytest

from maveriq_allocator.quotas import Headroom, OverQuota, Quota, Quotas, parse_headroom, parse_quotas

GIB = 2**30


def test_a_tenant_without_a_quota_of_its_own_has_that_of_all_others() -> None:
    quotas = parse_quotas("team-a=4gpus,80GiB; *=2gpus")
    assert quotas == Quotas({"team-a": Quota(80 * GIB, 4)}, Quota(gpus=2))
    assert quotas.of("team-a") == Quota(80 * GIB, 4)
    assert quotas.of("team-b") == Quota(gpus=2)


def test_without_a_star_others_may_hold_any_number() -> None:
    assert parse_quotas("a=1gpu").of("b") == Quota()


def test_nothing_may_be_allowed() -> None:
    assert parse_quotas("*=0gpus").of("b") == Quota(gpus=0)


def test_the_order_of_bytes_and_gpus_does_not_matter() -> None:
    assert parse_quotas("a=512MiB, 1 GPU").of("a") == Quota(512 * 2**20, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("team-a", "team-a is not understood"),
        ("=2gpus", "=2gpus is not understood"),
        ("a=", "a= is not understood"),
        ("a=many", "many of a is not understood"),
        ("a=2gpus,3gpus", "a has two of a kind"),
        ("a=2GiB,3GiB", "a has two of a kind"),
        ("a=1gpu;a=2gpus", "a is given twice"),
        ("a b=1gpu", "a b cannot be a tenant"),
    ],
)
def test_an_odd_quota_is_named(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_quotas(text)


def test_headroom_is_one_size_or_one_a_node() -> None:
    assert parse_headroom("512MiB") == Headroom(others_bytes=512 * 2**20)
    by_node = parse_headroom("node-1=1GiB; *=256MiB")
    assert (by_node.of("node-1"), by_node.of("node-2")) == (GIB, 2**28)
    assert parse_headroom("node-1=1GiB").of("node-2") == 0


@pytest.mark.parametrize("text", ["lots", "5", "a=lots", "a=1GiB;a=2GiB", "NVIDIA A100=1GiB"])
def test_an_odd_headroom_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size|given twice|cannot be a node"):
        parse_headroom(text)


def test_a_refusal_says_which_quota_how_much_is_used_and_how_much_is_wanted() -> None:
    told = str(OverQuota("team-a", Quota(80 * GIB, 4), "bytes", str(60 * GIB), str(30 * GIB)))
    assert "team-a may hold 80.0 GiB" in told
    assert "hold 60.0 GiB" in told
    assert "wants 30.0 GiB" in told
    told = str(OverQuota("team-a", Quota(80 * GIB, 4), "gpus", "3", "2"))
    assert "may hold 4 GPU(s)" in told
    assert "hold 3 GPU(s) and this one wants 2 GPU(s)" in told
