"""Which deployment answers a request."""

from datetime import timedelta
from uuid import UUID, uuid4

from maveriq.contracts import State
from maveriq_ingress.routing import NoRoute, Route, Routes
from tests.fakes import NOW

OLD, NEW = uuid4(), uuid4()


def route(
    deployment_id: UUID,
    state: State = State.READY,
    *,
    at: int = 0,
    model: str = "m",
    running: bool = True,
    dry: bool = False,
) -> Route:
    accepted_at = NOW + timedelta(days=deployment_id == NEW)
    return Route(deployment_id, "m", state, dry, running, accepted_at, NOW + timedelta(seconds=at))


def routes(*given: Route) -> Routes:
    table = Routes()
    for one in given:
        table.update(one)
    return table


def test_ready_deployments_of_a_model_take_turns_the_newest_first() -> None:
    table = routes(route(OLD), route(NEW))
    assert [table.pick("m") for _ in range(4)] == [NEW, OLD, NEW, OLD]


def test_a_draining_deployment_is_not_asked_any_more() -> None:
    table = routes(route(OLD), route(NEW), route(NEW, State.DRAINING, at=1))
    assert [table.pick("m") for _ in range(2)] == [OLD, OLD]


def test_old_news_does_not_bring_a_released_deployment_back() -> None:
    table = routes(route(OLD, State.RELEASED, at=5))
    assert not table.update(route(OLD, State.READY, at=4))
    assert table.pick("m") is NoRoute.UNKNOWN


def test_a_deployment_without_a_running_replica_is_asked_only_when_no_other_is_there() -> None:
    table = routes(route(OLD), route(NEW, running=False))
    assert table.pick("m") == OLD
    table.update(route(OLD, State.FAILED, at=1))
    assert table.pick("m") == NEW


def test_a_model_whose_deployments_are_not_ready_yet_is_told_apart_from_an_unknown_one() -> None:
    table = routes(route(NEW, State.PLANNED))
    assert table.pick("m") is NoRoute.NOT_READY
    assert table.pick("other") is NoRoute.UNKNOWN


def test_a_deployment_can_be_named_by_its_id() -> None:
    table = routes(route(OLD), route(NEW, State.RESERVED))
    assert table.pick(str(OLD)) == OLD
    assert table.pick(str(NEW)) is NoRoute.NOT_READY
    assert table.pick(str(uuid4())) is NoRoute.UNKNOWN


def test_a_dry_run_never_serves() -> None:
    table = routes(route(NEW, State.PLANNED, dry=True))
    assert table.pick("m") is NoRoute.UNKNOWN
    assert table.pick(str(NEW)) is NoRoute.UNKNOWN


def test_a_forgotten_deployment_is_unknown() -> None:
    table = routes(route(NEW))
    table.forget(NEW)
    assert table.pick("m") is NoRoute.UNKNOWN
    assert table.versions() == {}
