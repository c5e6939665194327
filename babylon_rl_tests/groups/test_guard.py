"""The leak guard over recorded windows: whatever is planted in a prompt leaves its run out, and the others stay."""

import json

import msgspec
import pandas as pd
import psycopg
import pytest
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups, market_outcomes
from babylon_rl.groups.guard import leaked
from babylon_rl.groups.hindsight_facts import Market
from babylon_rl.groups.searching import LeakGuard
from babylon_rl.groups.verification import leaking_groups, left_out_for_leaks
from babylon_rl.groups.windows import group_windows
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.history import Question
from babylon_rl.outcomes.outcomes import outcomes_of
from babylon_rl.recording.hindsight import Hindsight, hindsights, shown
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.recorder import Recorder
from babylon_rl.scoring.scorers import score_window
from babylon_rl.windows import shift_window
from babylon_rl_tests.groups import clean
from babylon_rl_tests.groups.planted import PLANTED, ROWS, STRENGTH, Hour
from babylon_rl_tests.market.scripted import endpoint, first_choice

FIRST = "2025-01-15T10:00"
AGENTS, EACH = 8, 4  # agents of a window, and how many of them get a leak


def play(database, tmp_path, count: int, seed: int = 5, agents: int = AGENTS) -> dict[str, object]:
    """Windows of the simulated market with their outcomes; the worlds by window."""
    worlds = {shift_window(FIRST, n): make_window(seed, "train", n) for n in range(count)}
    with Recorder(database, tmp_path / "spool.jsonl") as recorder, endpoint(first_choice) as script:
        where, sampling = Endpoint(script.base_url, "policy"), Sampling(temperature=1.0, exploration=0.1, seed=1)
        play_windows(
            database, recorder, where, list(worlds.items()), agents=agents, label=Label("x"), sampling=sampling
        )
        recorder.flush()
    with database.connect() as connection:
        connection.execute("DELETE FROM llm_call_logs")  # they would speak against what is altered
        replace_windows(connection, market_outcomes, list(worlds), outcomes_of(connection, list(worlds)))
    return worlds


def plant(connection: psycopg.Connection, trajectory_id: str, text: str, **columns: str) -> None:
    """Put a text at the end of the run's prompt, and values into its row."""
    (steps,) = connection.execute(
        'SELECT "stepsJson" FROM trajectories WHERE "trajectoryId" = %s', (trajectory_id,)
    ).fetchone()
    value = json.loads(steps)
    value[-1]["llmCalls"][0]["userPrompt"] += f"\n{text}"
    connection.execute(
        """UPDATE trajectories SET "stepsJson" = %(steps)s, "metadataJson" = coalesce(%(metadata)s, "metadataJson"),
           "aiJudgeReasoning" = %(judged)s WHERE "trajectoryId" = %(id)s""",
        {
            "steps": json.dumps(value),
            "metadata": columns.get("metadataJson"),
            "judged": columns.get("aiJudgeReasoning"),
            "id": trajectory_id,
        },
    )


def groups_of(database, window_ids) -> dict[str, dict]:
    """Rows of `art_groups` by window, made as the asset makes them."""
    with database.connect() as connection:
        reader = RangeReader(Recordings.of(connection), window_ids)
        outcomes = outcomes_of(connection, window_ids)
        scored = pd.concat([score_window(reader.trainable(one), outcomes) for one in window_ids])
    windows = pd.DataFrame([{"window_id": one, "status": "ready", "reason": ""} for one in window_ids])
    made = group_windows(database, window_ids, windows, scored)
    assert not made.failed
    return {row["window_id"]: row for row in made.frame.to_dict("records")}


def runs_of(database, window_id: str) -> list[tuple[str, float, float]]:
    with database.connect() as connection:
        return connection.execute(
            'SELECT "trajectoryId", "finalPnL", "finalBalance" FROM trajectories WHERE "windowId" = %s ORDER BY 1',
            (window_id,),
        ).fetchall()


def left_out(row: dict) -> dict[str, str]:
    return {one["trajectory_id"]: one["reason"] for one in row["left_out"]}


@pytest.mark.parametrize("seed", [5, 6])
def test_each_planted_leak_leaves_its_run_out_and_the_others_stay(database, tmp_path, seed):
    assert len(PLANTED) >= 30
    kinds = list(PLANTED)
    worlds = play(database, tmp_path, -(-len(kinds) // EACH), seed)
    assert not any(row["left_out"] for row in groups_of(database, list(worlds)).values())
    planted: dict[str, dict[str, str]] = {window_id: {} for window_id in worlds}
    with database.connect() as connection:
        for number, kind in enumerate(kinds):
            window_id = list(worlds)[number // EACH]
            trajectory_id, pnl, balance = runs_of(database, window_id)[number % EACH * 2]
            hour = Hour(window_id, worlds[window_id], pnl, balance)
            plant(connection, trajectory_id, PLANTED[kind](hour), **ROWS.get(kind, lambda h: {})(hour))
            if kind == "a judge's strength":
                connection.execute(
                    """INSERT INTO reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion", "overallScore",
                       reasoning, "strengthsJson", "criteriaJson") VALUES ('1', %s, 'm', '1', 1, '', %s, '{}')""",
                    (trajectory_id, json.dumps([STRENGTH])),
                )
            planted[window_id][trajectory_id] = kind
    missed, wrong = [], []
    for window_id, row in groups_of(database, list(worlds)).items():
        found = left_out(row)
        missed += [kind for name, kind in planted[window_id].items() if not found.get(name, "").startswith("leak: ")]
        wrong += [found[name] for name in found.keys() - planted[window_id].keys()]
    assert (missed, wrong) == ([], [])


def test_a_leak_that_is_learned_of_later_is_told_of_stored_groups(database, tmp_path):
    (window_id,) = play(database, tmp_path, 1, agents=4)
    (name, _, _), *_ = runs_of(database, window_id)

    def found(what) -> list[list]:
        with database.connect() as connection:
            return what(connection).to_numpy().tolist()

    def store() -> None:
        with database.connect() as connection:
            replace_windows(
                connection, art_groups, [window_id], pd.DataFrame(list(groups_of(database, [window_id]).values()))
            )

    def leaking(connection):
        return leaking_groups(Recordings.of(connection), [window_id])

    with database.connect() as connection:
        plant(connection, name, "The company's owner is arrested at noon.")
    store()
    assert found(leaking) == [] == found(lambda c: left_out_for_leaks(c, [window_id]))
    known = json.dumps({"gameKnowledge": {"futureOutcomes": ["The company's owner is arrested at noon."]}})
    with database.connect() as connection:
        connection.execute('UPDATE trajectories SET "metadataJson" = %s WHERE "trajectoryId" = %s', (known, name))
    ((at, which, what),) = found(leaking)
    assert (at, which) == (window_id, name) and what.startswith("leak: gameKnowledge: 'the company")
    store()
    assert found(leaking) == []
    ((at, count, why),) = found(lambda c: left_out_for_leaks(c, [window_id]))
    assert (at, count) == (window_id, 1) and why == what


def test_a_price_of_the_moment_is_no_leak_and_the_same_price_later_is():
    runs, market = clean.simulated(9, 0)
    run = runs[0]
    path = clean.make_window(9, "train", 0).instrument("ACME").path
    for minute, price in zip((0, 20, 40), path, strict=False):
        for asked in (1, 21, 41):
            at = clean.ms(clean.parse_window_id(run.window_id)) + asked * 60_000
            found = leaked([clean.asked(run, f"ACME is at {price:.4f}.", at)], market, {}, {}, {})
            assert bool(found) == (minute > asked)


def test_figures_of_an_answer_are_forecasts_and_later_words_in_it_are_none():
    runs, market = clean.simulated(9, 1)
    close = clean.make_window(9, "train", 1).instrument("ACME").close
    rows = {runs[0].trajectory_id: Hindsight(words=("The run was right to sell before noon.",))}
    for answer, is_leak in ((f"ACME goes to {close:.4f}", False), ("The run was right to sell before noon!", True)):
        (call,) = runs[0].steps[0].llm_calls
        said = clean.altered(runs[0], msgspec.structs.replace(call, response=answer))
        assert bool(leaked([said], market, rows, {}, {})) == is_leak


def test_an_outcome_that_was_public_before_the_decision_is_no_secret():
    (run, *_), _ = clean.simulated(9, 2)
    text, row = "Will it rain in Oslo?", {"instrument": "q-1", "kind": "question", "outcome": "YES", "open": 0.5}
    start = clean.ms(run.start_time)
    for since, is_leak in ((None, True), (start - 1, False), (start + 600_000, True)):
        market = Market([{**row, "question": text}], [], {"q-1": Question(text, since)})
        said = clean.asked(run, f"{text} Resolved YES.", start + 60_000)
        assert bool(leaked([said], market, {}, {}, {})) == is_leak


def test_what_was_shown_beside_the_prompt_explains_a_figure_but_no_later_price_of_a_history():
    (run, *_), market = clean.simulated(9, 3)
    close = clean.make_window(9, "train", 3).instrument("ACME").close
    told = clean.asked(run, f"ACME is at {close:.4f}.", clean.ms(run.start_time) + 60_000)
    beside = {run.trajectory_id: {0: [[{"providerName": "prices", "data": {"ACME": close}}]]}}
    assert leaked([told], market, {}, {}, beside)
    without = Market([{"instrument": "ACME", "kind": "ticker", "open": 1.0, "close": close}], [], {})
    assert leaked([told], without, {}, {}, {}) and not leaked([told], without, {}, {}, beside)


def test_clean_windows_of_the_simulated_market_raise_less_than_one_alarm_in_a_hundred_runs():
    looked = alarms = 0
    for index in range(500):
        runs, market = clean.simulated(9, index)
        looked, alarms = looked + len(runs), alarms + len(leaked(runs, market, {}, {}, {}))
    assert looked == 2000 and alarms < looked // 100


@pytest.mark.parametrize("kept", [True, False], ids=["figures kept beside the prompt", "nothing kept"])
def test_clean_windows_of_an_application_with_much_to_say_raise_few_alarms(kept):
    looked = alarms = 0
    for seed in range(50):
        app = clean.App(seed)
        made = [app.run(f"run-{n}") for n in range(4)]
        beside = {run.trajectory_id: shown for run, shown in made} if kept else {}
        looked, alarms = looked + 4, alarms + len(leaked([run for run, _ in made], app.market(), {}, {}, beside))
    assert looked == 200 and alarms <= 2


def test_a_price_of_five_digits_is_found_even_where_a_hundred_figures_stand():
    looked = found = 0
    for seed in range(40):
        app = clean.App(seed)
        run, shown = app.run("run", 1)
        name = max(app.prices, key=lambda ticker: app.prices[ticker][-1])
        *before, close = app.prices[name]
        (call,) = run.steps[0].llm_calls
        said = msgspec.structs.replace(call, user_prompt=f"{call.user_prompt}\n{name} ends at {close:.2f}.")
        leaks = leaked([clean.altered(run, said)], app.market(), {}, {}, {"run": shown})
        if close not in before:  # it could not have been seen
            looked, found = looked + 1, found + bool(leaks)
    assert looked > 20 and found >= 0.9 * looked, (looked, found)


def test_rows_tell_what_they_can_whatever_columns_are_missing(database, tmp_path):
    (window_id,) = play(database, tmp_path, 1, agents=4)
    (name, _, _), *_ = runs_of(database, window_id)
    with database.connect() as connection:
        plant(connection, name, "", metadataJson="{no JSON", aiJudgeReasoning='He said "well done". It paid off.')
        recordings = Recordings.of(connection)
        assert hindsights(recordings, [name])[name].words == ("He said  .", "It paid off.")
        assert shown(recordings, [name])[name][0][0][0]["providerName"] == "prices"
        for alter in (
            "DROP TABLE reward_judgments",
            'ALTER TABLE trajectories DROP "aiJudgeReasoning"',
            'ALTER TABLE trajectories ALTER "metadataJson" TYPE jsonb USING \'{"gameKnowledge": {"a": true}}\'',
        ):
            connection.execute(alter)
            hindsights(recordings, [name])
        assert hindsights(recordings, [name])[name] == Hindsight((), {"a": True})
        connection.execute('ALTER TABLE trajectories DROP "metadataJson"')
        assert hindsights(recordings, [name])[name] == Hindsight()
        for table in ('"StockPrice"', '"PredictionPriceHistory"', '"Market"', '"Organization"'):
            connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.SQL(table)))
            recorded = RangeReader(recordings, [window_id]).trainable(window_id)
            assert LeakGuard(recordings, [window_id]).leaks(recorded, []) == {}
