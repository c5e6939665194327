"""`babylon-rl train`: what its options and variables mean, a dry run, what is agreed to, and one whole update."""

import contextlib
import json

import pytest
import typer

from babylon_rl import materializing
from babylon_rl.commands import training_told
from babylon_rl.commands.train import what, without_effect
from babylon_rl.commands.training_told import agree_to_cost
from babylon_rl.database.urls import with_driver
from babylon_rl.errors import SettingsError
from babylon_rl.launching import Model, run_of
from babylon_rl.settings import REPOSITORY, Settings, get_settings
from babylon_rl.training import forecast
from babylon_rl.training.forecast import Forecast
from babylon_rl_tests.commands.played import FIRST, play
from babylon_rl_tests.training.test_batches import everything

AGES = ("--lookback-hours", "10000000", "--min-actions", "1")


@pytest.fixture(scope="module")
def dagster(server) -> dict[str, str]:
    """Environment of Dagster with a storage of these tests."""
    server.create_database("dagster_of_train")
    url = with_driver(server.url("dagster_of_train"), "psycopg2")
    return {"DAGSTER_HOME": str(REPOSITORY / "dagster_home"), "DAGSTER_PG_URL": url}


@pytest.fixture
def train(database, dagster, run, monkeypatch):
    """Function that runs the command on the test's database."""
    monkeypatch.setattr(materializing, "dagster_environment", lambda settings: dagster)

    def train(*arguments: str, **environment: str):
        values = {"BASE_MODEL": "tiny", "BABYLON_RL_THREADS": "1"} | environment
        return run("train", *arguments, "--database", database.url, **values)

    return train


# --- what is asked ---------------------------------------------------------------------------------

W, X = "2025-01-15T10:00", "2025-01-15T12:00"


@pytest.mark.parametrize(
    ("variables", "options", "asked"),
    [
        ({}, (None, None, None, False), ("chosen", None, None)),
        ({}, (W, None, None, False), ("range", W, W)),
        ({}, (None, W, X, False), ("range", W, X)),
        ({}, (None, None, None, True), ("continuous", None, None)),
        ({}, (None, W, None, True), ("continuous", W, None)),
        ({"MODE": "list"}, (None, None, None, False), ("list", None, None)),
        ({"MODE": "Continuous"}, (None, None, None, False), ("continuous", None, None)),
        ({"MODE": "single", "WINDOW_ID": X}, (None, None, None, False), ("range", X, X)),
        ({"WINDOW_ID": X}, (None, None, None, False), ("range", X, X)),
        ({"MODE": "continuous", "WINDOW_ID": X}, (None, None, None, False), ("continuous", None, None)),
        ({"MODE": "list", "WINDOW_ID": X}, (W, None, None, False), ("range", W, W)),
        ({"MODE": "nonsense"}, (W, None, None, False), ("range", W, W)),
    ],
)
def test_options_say_what_is_done_and_else_mode_and_window_id(monkeypatch, variables, options, asked):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert what(Settings(), *options) == asked


@pytest.mark.parametrize(
    ("variables", "options", "said"),
    [
        ({}, (W, W, None, False), "--window names one window"),
        ({}, (W, None, None, True), "--window names one window"),
        ({}, (None, W, None, False), "either --to"),
        ({}, (None, W, X, True), "either --to"),
        ({}, (None, None, X, False), "either --to"),
        ({"MODE": "single"}, (None, None, None, False), "WINDOW_ID"),
        ({"MODE": "production"}, (None, None, None, False), "none of list, single, continuous"),
    ],
)
def test_what_contradicts_itself_is_refused(monkeypatch, variables, options, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        what(Settings(), *options)


@pytest.mark.parametrize(
    ("kind", "first", "given", "told"),
    [
        ("chosen", None, ["iterations", "lookback_hours"], ""),
        ("range", W, ["iterations", "min_agents"], "--iterations, --min-agents"),
        ("continuous", None, ["lookback_hours"], ""),
        ("continuous", W, ["lookback_hours"], "--lookback-hours"),
        ("continuous", None, ["windows_per_iteration"], "BABYLON_RL_GROUPS_PER_UPDATE"),
    ],
)
def test_options_that_change_nothing_are_told(kind, first, given, told):
    said = without_effect(kind, first, given)
    assert told in " ".join(said) and bool(said) == bool(told)


def test_mode_list_lists_the_windows_that_are_ready(database, train):
    done = train("--json", MODE="list")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_a_window_id_that_is_none_is_told(train):
    done = train(WINDOW_ID="the third one")
    assert done.returncode == 1 and "is not a window id" in done.stderr


def test_a_backend_that_is_none_is_told(train):
    assert "no training backend 'gpu'" in train("--backend", "gpu").stderr


def test_nothing_recorded_says_where_the_newest_recording_is(database, train, tmp_path):
    assert "Nothing is recorded in the last 24 hours. Look" in train("--lookback-hours", "24").stderr
    play(database, tmp_path)
    done = train("--lookback-hours", "24")
    assert done.returncode == 1 and f"The newest recording ended in {FIRST}" in done.stderr
    assert f"The newest recording ended in {FIRST}" in train("--lookback-hours", "24", "--dry-run").stderr


# --- dry run and cost ------------------------------------------------------------------------------


def test_a_dry_run_counts_what_is_not_materialized_and_writes_nothing(database, train, tmp_path):
    play(database, tmp_path, windows=2)
    before = everything(database)
    done = train(*AGES, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and everything(database) == before
    assert (told["dry_run"], told["not_materialized"], told["batches"], told["seconds"]) == (True, 2, [], None)
    said = train(*AGES, "--dry-run").stdout
    assert "2 windows with recordings are not materialized yet" in said and "measured yet" in said
    one = json.loads(train("--window", FIRST, "--dry-run", "--json").stdout)
    assert one["groups"] == {"not_materialized": 1} and one["refused"]
    assert everything(database) == before


HOSTED = {"TRAINING_BACKEND": "wandb", "WANDB_API_KEY": "hush", "WANDB_ENTITY": "team", "WANDB_PROJECT": "mine"}
HOSTED |= {"BABYLON_RL_WANDB_BASE_MODEL": "run-0001"}  # under which the scripted endpoint answers


def test_a_hosted_backend_says_what_it_would_send_and_sends_nothing_that_nobody_agreed_to(database, train, tmp_path):
    from babylon_rl.training.runs import list_runs

    play(database, tmp_path)
    with database.connect() as connection:  # as an endpoint of the service records: free text
        connection.execute("UPDATE babylon_rl.recorded_calls SET choices = NULL, exploration = 0")
    asked = train("--window", FIRST, BABYLON_RL_TRAINING_PRICE="3", **HOSTED)
    assert asked.returncode == 2 and "nobody can be asked" in asked.stderr, asked.stderr
    assert "1 window, 8 trajectories" in asked.stderr
    assert (
        "leave this machine" in asked.stderr and "https://api.training.wandb.ai/v1, project team/mine" in asked.stderr
    )
    above = train("--window", FIRST, "--max-cost", "0", BABYLON_RL_TRAINING_PRICE="1000000", **HOSTED)
    assert above.returncode == 2 and "above the limit of $0.00" in above.stderr
    loop = train("--continuous", "--from", FIRST, **HOSTED)
    assert loop.returncode == 2 and "need a limit" in loop.stderr
    assert "hush" not in asked.stdout + asked.stderr + above.stderr + loop.stderr
    with database.connect() as connection:
        assert list_runs(connection) == []


def test_a_hosted_backend_without_a_key_is_told_before_anything_is_computed(database, train, tmp_path):
    play(database, tmp_path)
    before = everything(database)
    done = train("--window", FIRST, **{**HOSTED, "WANDB_API_KEY": ""})
    assert done.returncode == 2 and "needs WANDB_API_KEY" in done.stderr
    assert everything(database) == before


@pytest.mark.parametrize(("answer", "limit"), [(True, 1.5), (False, None)])
def test_on_a_terminal_it_is_asked_and_what_was_agreed_to_is_the_limit_of_the_update(monkeypatch, answer, limit):
    found = Forecast(
        windows=1,
        groups={},
        trajectories={"importance_weighted": {"on_policy": 8}},
        left_out={},
        tokens_by_loss={"importance_weighted": {"prompt": 400_000, "answer": 100_000}},
        refused=[],
    )
    monkeypatch.setattr(forecast, "forecast_of", lambda *_: found)
    monkeypatch.setattr(training_told.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(training_told.typer, "confirm", lambda *_, **__: answer)
    settings = Settings().model_copy(update={"training_backend": "wandb", "training_price": 3.0})
    run = run_of(settings, Model(name="m"), 1)
    said = training_told.Told(False, 1)
    seen = []
    with contextlib.suppress(typer.Exit), agree_to_cost(NoDatabase(), settings, run, [[FIRST]], False, said):
        seen.append(get_settings().max_cost)
    assert seen == ([limit] if answer else []) and get_settings().max_cost is None


class NoDatabase:
    """In the place of a database that is not asked."""

    @contextlib.contextmanager
    def connect(self):
        yield None


# --- a whole update --------------------------------------------------------------------------------


def test_the_chosen_windows_are_trained_on_once(database, train, run):
    url = ("--database", database.url)
    played = run("play", "--windows", "3", "--model", "tiny", "--first", FIRST, *url, BABYLON_RL_THREADS="1")
    assert played.returncode == 0, played.stderr
    first = train(*AGES, "--windows-per-iteration", "2", "--json", MODEL_NAME="mine")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert len(told["updates"]) == 1 and told["updates"][0].startswith("mine@1-"), told
    assert (told["choice"]["left"], len(told["choice"]["batches"][0])) == (1, 2)

    before = everything(database)
    again = train(*AGES, "--windows-per-iteration", "2", "--name", "mine")
    assert again.returncode == 0 and "Nothing new to train on" in again.stdout
    assert "2 windows: this model was trained on them" in again.stdout and "1 window more would do" in again.stdout
    assert everything(database) == before
    foreseen = json.loads(train("--window", FIRST, "--name", "other", "--dry-run", "--json").stdout)
    assert foreseen["seconds"] > 0 and foreseen["trajectories"] == {"importance_weighted": {"on_policy": 8}}
    assert everything(database) == before

    import dagster as dg

    with materializing.environment(materializing.dagster_environment(None)), dg.DagsterInstance.get() as instance:
        jobs = [(one.job_name, one.tags.get("dagster/code_location")) for one in instance.get_runs()]
    assert {("materialize_windows", "babylon_rl"), ("train_checkpoint", "babylon_rl")} == set(jobs)
