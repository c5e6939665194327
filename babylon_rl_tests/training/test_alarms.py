"""Alarms as functions: when each kind is raised, relative to exploration, and what is done about it."""

import msgspec
import pytest

from babylon_rl.evaluation.measured import entries, measured_for
from babylon_rl.groups.health import AlarmLimits, BatchHealth, alarms_of, health_of, label_of
from babylon_rl.plans import PLANS, plan_digest
from babylon_rl.training.alarms import last_good, respond
from babylon_rl.training.recipe import Recipe

LIMITS = AlarmLimits()
HEALTHY = BatchHealth(
    answers=100, shares={"BUY": 0.4, "HOLD": 0.2, "SELL": 0.4}, explored=0.0, fees=0.03, windows=16, no_spread=0.0
)


def features(acted: str, pnl: float = 1.0, fees: float = 0.1, malformed: int = 0) -> dict:
    return {"acted": acted, "window_pnl": pnl, "fees": fees, "malformed": malformed}


def kinds(health: BatchHealth) -> list[str]:
    return [alarm.kind for alarm in alarms_of(health, LIMITS)]


@pytest.mark.parametrize(
    ("kind", "at", "below"),
    [
        ("one_sided", {"shares": {"SELL": 0.95, "BUY": 0.05}}, {"shares": {"SELL": 0.94, "BUY": 0.06}}),
        ("one_sided", {"shares": {"BUY": 1.0}}, {"shares": {"BUY+SELL": 1.0}}),
        ("all_hold", {"shares": {"HOLD": 0.95, "BUY": 0.05}}, {"shares": {"HOLD": 0.94, "BUY": 0.06}}),
        ("malformed", {"shares": {"malformed": 0.2, "BUY": 0.8}}, {"shares": {"malformed": 0.19, "BUY": 0.81}}),
        ("overtrading", {"fees": 0.5}, {"fees": 0.49}),
        ("no_spread", {"no_spread": 0.5}, {"no_spread": 0.49}),
    ],
)
def test_each_kind_is_raised_at_its_limit_and_not_below(kind, at, below):
    assert kinds(msgspec.structs.replace(HEALTHY, **at)) == [kind]
    assert kinds(msgspec.structs.replace(HEALTHY, **below)) == []


def test_a_healthy_batch_and_one_that_nobody_played_raise_nothing():
    assert kinds(HEALTHY) == [] and kinds(health_of([], {})) == []


@pytest.mark.parametrize("exploration", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize(("label", "kind"), [("SELL", "one_sided"), ("HOLD", "all_hold")])
def test_a_policy_that_always_says_the_same_is_seen_whatever_it_explores(exploration, label, kind):
    shown = 1 - exploration * 2 / 3
    shares = {label: shown, "OTHER": 1 - shown}
    health = msgspec.structs.replace(HEALTHY, shares=shares, explored=exploration * 2 / 3)
    assert kind in kinds(health)
    less = {label: 0.94 * shown, "OTHER": 1 - 0.94 * shown}
    assert kind not in kinds(msgspec.structs.replace(health, shares=less))


def test_health_is_counted_from_what_is_stored():
    batch = [
        features("SELL ACME"),
        features("SELL BOLT (failed)"),
        features("HOLD", pnl=0.0, fees=0.0),
        features("invalid (failed)", pnl=0.0, fees=0.0, malformed=1),
    ]
    health = health_of(
        batch, {"trainable": 3, "no_spread": 1, "not_ready": 5}, [(0.1, 3), (0.1, 3), (0.1, 3), (0.0, 0)]
    )
    assert health.shares == {"HOLD": 0.25, "SELL": 0.5, "malformed": 0.25}
    assert health.explored == pytest.approx(0.1 * 2 / 3 * 3 / 4)
    assert health.fees == pytest.approx(0.2 / 2.2)
    assert (health.windows, health.no_spread) == (4, 0.25)


def test_fees_without_any_gain_or_loss_are_overtrading_and_no_trade_is_not():
    assert health_of([features("BUY ACME", pnl=-0.1, fees=0.1)], {}).fees == 1.0
    assert health_of([features("HOLD", pnl=0.0, fees=0.0)], {}).fees == 0.0


@pytest.mark.parametrize(
    ("acted", "label"),
    [("BUY ACME, SELL BOLT", "BUY+SELL"), ("BUY ACME, BUY BOLT", "BUY"), ("nothing", "malformed"), ("", "malformed")],
)
def test_several_actions_are_one_label_and_none_is_malformed(acted, label):
    assert label_of(features(acted)) == label


@pytest.mark.parametrize(
    ("alarm", "step", "before", "kind", "checkpoint"),
    [
        (False, 0, 0, "none", None),
        (False, 3, 2, "none", None),
        (True, 0, 0, "explore", None),
        (True, 0, 1, "explore", None),
        (True, 3, 0, "step_back", "run@2"),
        (True, 3, 1, "step_back", "run@2"),
        (True, 3, 2, "stop", "run@2"),
        (True, 0, 2, "stop", "run@2"),
    ],
)
def test_what_is_done_about_an_alarm(alarm, step, before, kind, checkpoint):
    alarms = alarms_of(msgspec.structs.replace(HEALTHY, fees=0.9), LIMITS) if alarm else []
    done = respond(alarms, LIMITS, 0.1, played_step=step, alarmed_before=before, last_good="run@2")
    assert (done.kind, done.checkpoint) == (kind, checkpoint)
    assert done.exploration == (0.3 if alarm else 0.1)


def test_an_alarm_never_lowers_exploration():
    alarms = alarms_of(msgspec.structs.replace(HEALTHY, fees=0.9), LIMITS)
    assert respond(alarms, LIMITS, 0.5, played_step=0, alarmed_before=0, last_good="run@0").exploration == 0.5


def test_the_last_good_checkpoint_is_the_nearest_ancestor_without_an_alarm_and_the_start_otherwise():
    parents = {"run@3": "run@2", "run@2": "run@1", "run@1": "run@0", "run@0": None}
    assert last_good("run@3", parents, set()) == "run@2"
    assert last_good("run@3", parents, {"run@2"}) == "run@1"
    assert last_good("run@3", parents, set(parents)) == "run@0"
    assert last_good("run@0", parents, set()) == "run@0"


def test_a_run_that_was_stored_before_there_were_alarms_still_has_its_recipe():
    stored = Recipe().as_json()
    del stored["alarms"]
    assert msgspec.convert(stored, Recipe) == Recipe()


def test_settings_of_the_dropout_are_part_of_a_recipe_only_where_they_are_set():
    assert "dropout" not in str(Recipe().as_json())
    other = Recipe(dropout_target=64, max_dropout=0.5)
    assert other.as_json()["dropout_target"] == 64 and other.digest() != Recipe().digest()
    assert msgspec.convert(other.as_json(), Recipe) == other
    assert msgspec.json.decode(msgspec.json.encode(Recipe()), type=Recipe) == Recipe()


def test_the_measurements_that_the_package_comes_with_are_of_its_plans():
    named = [entry.base_model for entry in entries()]
    assert "smollm2-135m" in named
    assert all(measured_for(base_model, plan_digest(PLANS[base_model])) for base_model in named)
