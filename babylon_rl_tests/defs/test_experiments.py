"""Sensors and jobs of experiments on a real instance: what a tick requests, what a run shows and changes."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from babylon_rl.definitions import build_defs
from babylon_rl.defs import experiments as module
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.training.runs import promote
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.evaluation.two_arms import BASELINE, CANDIDATE, NOW, TwoArms, malformed

pytest_plugins = ["babylon_rl_tests.evaluation.two_arms_played"]


class Desk:
    """The definitions over the two arms, at a time that the test sets."""

    def __init__(self, arms: TwoArms, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arms, self.instance, self.now = arms, instance, NOW
        desk = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return desk.now.astimezone(tz or UTC)

        monkeypatch.setattr(module, "datetime", Clock)
        monkeypatch.setattr(module, "get_settings", lambda: arms.settings)
        self.resource = DatabaseResource(url=arms.database.url)
        self.definitions = build_defs({"database": self.resource})

    def tick(self, sensor: str) -> str:
        """The run key that a tick requests, or why it skips."""
        context = dg.build_sensor_context(
            self.instance, repository_def=self.definitions.get_repository_def(), resources={"database": self.resource}
        )
        data = self.definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        return data.run_requests[0].run_key if data.run_requests else data.skip_message

    def run(self, job: str, op: str) -> tuple[str, dict]:
        """What the job's op gave, and its metadata."""
        done = self.definitions.resolve_job_def(job).execute_in_process(instance=self.instance)
        (event,) = [event for event in done.all_events if event.is_successful_output]
        return done.output_for_node(op), dict(event.step_output_data.metadata)


@pytest.fixture
def desk(arms, instance, monkeypatch) -> Desk:
    return Desk(arms, instance, monkeypatch)


def test_a_look_is_requested_when_a_window_is_scored_and_shows_what_it_came_to(desk):
    assert desk.tick("experiment_watch") == "No experiment runs."
    assert desk.run("look_at_experiments", "look")[0] == "none"
    desk.arms.plays[CANDIDATE] = desk.arms.plays[BASELINE]
    experiment = desk.arms.start()
    windows = [shift_window(experiment.first_window, hour) for hour in range(25)]
    desk.arms.play(windows[:24], desk.arms.planned(experiment))
    desk.now = parse_window_id(windows[24]) + timedelta(minutes=9)
    first = desk.tick("experiment_watch")
    assert first.startswith("e1:24.") and desk.tick("experiment_watch") == first  # nothing else is there to be seen
    said, shown = desk.run("look_at_experiments", "look")
    assert said == "go on" and {"looks", "confidence sequence", "guardrails", "reason"} <= set(shown)
    assert "svg" in shown["confidence sequence"].value and shown["windows scored"].value == 24
    desk.arms.play(windows[24:], desk.arms.planned(experiment))
    desk.now += timedelta(hours=1)
    assert desk.tick("experiment_watch").startswith("e1:25.")


def test_what_does_harm_after_its_promotion_is_taken_back_by_the_run_that_the_sensor_requests(desk):
    assert "Nothing was served before" in desk.tick("served_watch")
    arms = desk.arms
    with arms.database.connect() as connection:
        promote(connection, "run", CANDIDATE, "x", "it looks good", {}, again=True)
        connection.execute("UPDATE babylon_rl.promotions SET promoted_at = %s WHERE to_checkpoint = %s",
                           (NOW, CANDIDATE))  # fmt: skip
    arms.plays[CANDIDATE] = malformed
    windows = [f"2026-03-02T{hour}:00" for hour in (10, 11, 12)]
    arms.play(windows, lambda agent, window: CANDIDATE)
    desk.now = parse_window_id(windows[2]) + timedelta(minutes=30)
    assert "it counts from 3" in desk.tick("served_watch")  # the third hour is not over
    desk.now += timedelta(hours=1)
    assert desk.tick("served_watch") == f"{arms_promotion(arms)}:{windows[2]}"
    said, shown = desk.run("guard_what_is_served", "guard")
    assert said == "rolled_back" and "guardrails" in shown and arms.booked()[-1][2:4] == ("watch", "rollback")
    assert "not taken back" in desk.tick("served_watch")
    assert desk.run("guard_what_is_served", "guard")[0] == "idle" and len(arms.booked()) == 3


def arms_promotion(arms: TwoArms) -> int:
    with arms.database.connect() as connection:
        return connection.execute("SELECT max(promotion_id) FROM babylon_rl.promotions").fetchone()[0]


def test_the_sensors_are_off_until_the_settings_say_on():
    for name in ("experiment_watch", "served_watch"):
        sensor = build_defs().resolve_sensor_def(name)
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED and sensor.minimum_interval_seconds == 60
