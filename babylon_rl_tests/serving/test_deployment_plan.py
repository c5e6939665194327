"""The plan of a switch: its properties, over situations that are drawn and steps that are carried out."""

import random

import msgspec
import pytest

from babylon_rl.serving.deployment import NOTHING, Actual, Prepare, Retire, Route, Wanted, plan, routes_for, unrouted
from babylon_rl.serving.routing import ExperimentRoute, Routes, Target

IDS = ["run@0", "run@1", "run@2", "run@3"]
EXPERIMENT = ExperimentRoute(
    experiment_id="e1", design="paired-by-window", share=0.5, seed=1, first_window="2026-01-01T00:00", block_hours=6
)


def target(name: str, port: int = 1) -> Target:
    return Target(checkpoint_id=name, base_url=f"http://127.0.0.1:{port}/v1", model=name)


def carried_out(actual: Actual, step, bad=frozenset()) -> Actual:
    """What is there after a step; a checkpoint among `bad` is refused."""
    match step:
        case Prepare(name) if name in bad:
            return msgspec.structs.replace(actual, refused=actual.refused | {name})
        case Prepare(name):
            ready = {**actual.ready, name: target(name)}
            return msgspec.structs.replace(actual, ready=ready, fresh=actual.fresh | {name})
        case Route(routes):
            return msgspec.structs.replace(actual, routes=routes)
        case Retire(name):
            ready = {k: v for k, v in actual.ready.items() if k != name}
            return msgspec.structs.replace(actual, ready=ready, fresh=actual.fresh - {name})
    raise AssertionError(step)


def settled(wanted: Wanted, actual: Actual, bad=frozenset(), rounds: int = 20) -> Actual:
    for _ in range(rounds):
        steps = plan(wanted, actual)
        if not steps:
            return actual
        for step in steps:
            actual = carried_out(actual, step, bad)
    raise AssertionError("the plan never ends")


def drawn(generator: random.Random) -> tuple[Wanted, Actual]:
    def one() -> str | None:
        return generator.choice([*IDS, None])

    def some() -> frozenset[str]:
        return frozenset(generator.sample(IDS, generator.randint(0, len(IDS))))

    candidate = one()
    wanted = Wanted(
        promoted=one(),
        base=generator.choice(["run@0", None]),
        spare=one(),
        candidate=candidate,
        baseline=one(),
        experiment=EXPERIMENT if candidate else None,
    )
    ready = {name: target(name, generator.choice([1, 2])) for name in some()}
    roles = [target(name) if (name := one()) else None for _ in range(3)]
    before = Routes(
        promoted=roles[0],
        base=roles[1],
        candidate=roles[2],
        experiment=EXPERIMENT if roles[2] else None,
        targets={t.checkpoint_id: t for t in roles if t},
    )
    return wanted, Actual(
        routes=before,
        ready=ready,
        fresh=some() & frozenset(ready),
        busy=some() - frozenset(ready),
        refused=some(),
        resting=some(),
    )


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_there_the_plan_keeps_its_promises(seed):
    wanted, actual = drawn(random.Random(seed))
    steps = plan(wanted, actual)
    routes = next((step.routes for step in steps if isinstance(step, Route)), actual.routes)
    before, after = actual.routes, routes
    for old, new, asked in (
        (before.promoted, after.promoted, wanted.promoted),
        (before.base, after.base, wanted.base),
        (before.candidate, after.candidate, wanted.candidate),
    ):
        if new is not None and (old is None or new.checkpoint_id != old.checkpoint_id):
            assert new.checkpoint_id in actual.fresh, "a role is switched to what was attested just now"
            assert new == actual.ready[new.checkpoint_id]
        if asked is not None and asked not in actual.ready and old is not None and new is None:
            assert old == before.candidate, "what is served stays until something takes its place"
    assert (after.candidate is None) == (after.experiment is None)
    for step in steps:
        if isinstance(step, Retire):
            assert step.checkpoint_id not in after.targets and step.checkpoint_id not in before.targets
            assert step.checkpoint_id not in actual.resting | actual.busy
        if isinstance(step, Prepare):
            assert step.checkpoint_id not in actual.refused | actual.busy
    kinds = [(Prepare, Route, Retire).index(type(step)) for step in steps]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("seed", range(100))
def test_carrying_the_plan_out_comes_to_rest_with_what_is_wanted_served(seed):
    wanted, actual = drawn(random.Random(1000 + seed))
    actual = msgspec.structs.replace(actual, busy=frozenset(), refused=frozenset(), resting=frozenset())
    end = settled(wanted, actual)
    served = None if end.routes.promoted is None else end.routes.promoted.checkpoint_id
    assert served == wanted.promoted
    assert set(end.ready) == {one for one in (wanted.promoted, wanted.base, wanted.spare, wanted.candidate) if one}
    standing = end.routes.promoted or end.routes.base
    experiments = wanted.experiment is not None and standing and standing.checkpoint_id == wanted.baseline
    assert (end.routes.candidate is not None) == bool(experiments)
    assert (unrouted(wanted, end.routes) is None) == (wanted.experiment is None or bool(experiments))


def test_a_refused_checkpoint_leaves_the_old_one_serving():
    first = settled(Wanted(promoted="run@1", base="run@0"), Actual())
    then = settled(Wanted(promoted="run@2", base="run@0", spare="run@1"), first, bad=frozenset({"run@2"}))
    assert then.routes.promoted == target("run@1")
    assert "run@2" not in then.ready


def test_after_a_restart_a_refused_checkpoint_leaves_the_one_before_it_serving():
    wanted = Wanted(promoted="run@2", base="run@0", spare="run@1")
    end = settled(wanted, Actual(), bad=frozenset({"run@2"}))
    assert end.routes.promoted == target("run@1")


def test_the_one_before_serves_also_where_the_refusal_came_long_after_its_attestation():
    wanted = Wanted(promoted="run@2", base="run@0", spare="run@1")
    ready = {name: target(name) for name in ("run@0", "run@1")}
    late = Actual(ready=ready, fresh=frozenset({"run@0"}), refused=frozenset({"run@2"}))
    assert settled(wanted, late).routes.promoted == target("run@1")


def test_after_a_restart_the_base_model_answers_nobody_while_the_promoted_checkpoint_loads():
    wanted = Wanted(promoted="run@1", base="run@0", spare="run@0")
    first = Actual(ready={"run@0": target("run@0")}, fresh=frozenset({"run@0"}), busy=frozenset({"run@1"}))
    routes = routes_for(wanted, first)
    assert routes.promoted is None and routes.base is None
    refused = msgspec.structs.replace(first, busy=frozenset(), refused=frozenset({"run@1"}))
    without_spare = msgspec.structs.replace(wanted, spare=None)
    assert settled(without_spare, refused).routes.base == target("run@0")


def test_a_first_promotion_leaves_the_base_model_answering_while_it_loads():
    wanted = Wanted(promoted="run@1", base="run@0")
    base = settled(Wanted(promoted=None, base="run@0"), Actual())
    assert routes_for(wanted, msgspec.structs.replace(base, busy=frozenset({"run@1"}))).base == target("run@0")


def test_a_rollback_loads_nothing_and_attests_again():
    first = settled(Wanted(promoted="run@1", base="run@0"), Actual())
    second = settled(Wanted(promoted="run@2", base="run@0", spare="run@1"), first)
    aged = msgspec.structs.replace(second, fresh=frozenset())
    back = Wanted(promoted="run@1", base="run@0", spare="run@2")
    assert plan(back, aged) == [Prepare("run@1")]
    assert settled(back, aged).routes.promoted == target("run@1")
    assert [type(step) for step in plan(back, second)] == [Route]  # attested a moment ago


def test_a_restarted_endpoint_is_routed_to_at_its_new_address():
    wanted = Wanted(promoted="run@1", base="run@0")
    served = settled(wanted, Actual())
    died = msgspec.structs.replace(served, ready={}, fresh=frozenset())
    assert {step.checkpoint_id for step in plan(wanted, died)} == {"run@0", "run@1"}
    again = msgspec.structs.replace(
        died, ready={n: target(n, 9) for n in ("run@0", "run@1")}, fresh=frozenset({"run@0"})
    )
    (step,) = plan(wanted, again)
    assert isinstance(step, Route) and step.routes.promoted == target("run@1", 9)


def test_what_leaves_the_routes_goes_only_after_its_calls_have_ended():
    first = settled(Wanted(promoted="run@1", base="run@0"), Actual())
    wanted = Wanted(promoted="run@2", base="run@0")
    switched = msgspec.structs.replace(
        first, ready={**first.ready, "run@2": target("run@2")}, fresh=frozenset({"run@2"})
    )
    (route,) = plan(wanted, switched)
    assert isinstance(route, Route)
    resting = msgspec.structs.replace(switched, routes=route.routes, resting=frozenset({"run@1"}))
    assert plan(wanted, resting) == []
    assert plan(wanted, msgspec.structs.replace(resting, resting=frozenset())) == [Retire("run@1")]


def test_nothing_that_is_wanted_is_nothing_to_do():
    assert plan(Wanted(promoted=None, base=None), Actual()) == []
    assert plan(Wanted(promoted=None, base=None), Actual(routes=NOTHING)) == []
