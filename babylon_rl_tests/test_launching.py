"""Starting training runs: once, under their names, with the recipe that the settings say, and an answer to mistakes."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import msgspec
import pytest
from pydantic import SecretStr

from babylon_rl import launching
from babylon_rl.definitions import build_defs
from babylon_rl.defs.in_process import LOCATION, MODULE, execute_job, origin_of
from babylon_rl.errors import SettingsError, TrainingError, WindowIdError
from babylon_rl.launching import Model, as_stored, follow, keep_updating, looked_back, range_of, recipe_of, run_of
from babylon_rl.settings import REPOSITORY, Settings
from babylon_rl.training.batches import BATCHES
from babylon_rl.training.due import DueUpdate
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import load_run, open_runs, start_run

FIRST = "2025-01-15T10:00"


@pytest.fixture
def settings(database, tmp_path: Path) -> Settings:
    """Settings with a model that is never loaded."""
    (tmp_path / "config.json").write_text("{}")
    return Settings().model_copy(
        update={"database_url": SecretStr(database.url), "base_model": str(tmp_path), "groups_per_update": 4}
    )


@pytest.fixture
def following(database, settings):
    """Function that starts a run without an end."""

    def command(first: str = FIRST, name: str = "babylon") -> str:
        return follow(database, settings, run_of(settings, Model(name=name), 4), first)

    return command


def test_a_run_is_started_once_and_goes_on_under_its_name(database, following):
    assert "babylon is started" in following() and "babylon goes on" in following()
    with database.connect() as connection:
        (run,) = open_runs(connection)
    assert (run.recipe.windows_per_update, run.last_window, run.schedule) == (4, None, {})


def test_a_name_that_is_taken_is_refused_and_a_newer_run_says_whose_windows_it_takes(database, following):
    following()
    with pytest.raises(SettingsError, match="other settings"):
        following("2025-01-15T11:00")
    with database.connect() as connection:
        start_run(
            connection,
            msgspec.structs.replace(load_run(connection, "babylon"), training_run="ended", last_window=FIRST),
        )
    said = following("2025-01-15T09:00", name="next")
    for other in ("babylon", "ended"):
        assert f"Windows from {FIRST} on are next's and no more those of {other}" in said
    assert "those of ended" not in following("2025-01-15T11:00", name="after")
    with database.connect() as connection:
        assert load_run(connection, "babylon").first_window == FIRST
        assert [run.training_run for run in open_runs(connection)] == ["after", "next", "babylon"]


def test_a_window_that_is_none_starts_no_run(database, following):
    with pytest.raises(WindowIdError, match="off the hour"):
        following("2025-01-15T10:30")


def test_the_recipe_holds_what_differs_from_the_defaults_so_that_digests_stay(settings):
    plain = recipe_of(settings, Model(name="m"), 2, "torch")
    assert plain == Recipe(windows_per_update=2, minibatches=2, stale_limit=8)
    changed = settings.model_copy(
        update={"stale_updates": 3, "stale_days": 2.0, "ess_floor": 0.2, "admit": "stale, on_policy",
                "precision": "bfloat16"}
    )  # fmt: skip
    model = Model(name="m", learning_rate=1e-4, target_trajectories=10, max_dropout=0.1)
    assert recipe_of(changed, model, 9, "torch") == Recipe(
        windows_per_update=9,
        minibatches=4,
        stale_limit=3,
        stale_days=2.0,
        ess_floor=0.2,
        admit=("on_policy", "stale"),
        precision="bfloat16",
        learning_rate=1e-4,
        dropout_target=10,
        max_dropout=0.1,
    )
    for rate in (0.0, float("nan")):
        with pytest.raises(SettingsError, match="above 0"):
            recipe_of(settings, Model(name="m", learning_rate=rate), 2, "torch")
    with pytest.raises(SettingsError, match="No loss may take trajectories labelled no_text"):
        recipe_of(settings.model_copy(update={"admit": "no_text"}), Model(name="m"), 2, "torch")


def test_a_hosted_run_has_the_services_base_model_and_what_its_trainer_can_compute(settings):
    hosted = settings.model_copy(update={"training_backend": "wandb", "base_model": "tiny"})
    run = run_of(hosted, Model(name="m"), 4)
    assert (run.backend, run.base_model) == ("wandb", settings.wandb_base_model)
    assert (run.recipe.advantages, run.recipe.balanced_answers) == ("leave_one_out", None)
    auto = settings.model_copy(update={"training_backend": "auto"})
    assert run_of(auto, Model(name="m"), 4).backend == "torch"
    assert run_of(auto.model_copy(update={"wandb_api_key": SecretStr("k")}), Model(name="m"), 4).backend == "wandb"


@pytest.mark.parametrize("name", ["", "a/b", "../elsewhere", ".", "a b", "-x", "a@1", "é", "x" * 101, "a\n"])
def test_a_name_that_no_folder_or_service_can_have_is_refused(settings, name):
    with pytest.raises(SettingsError, match="cannot be called"):
        run_of(settings, Model(name=name), 4)


def test_a_base_model_on_a_hub_is_hosted_or_nothing(monkeypatch):
    monkeypatch.setenv("BASE_MODEL", "Qwen/Qwen3-14B")
    settings = Settings()
    with pytest.raises(SettingsError, match="nothing is downloaded"):
        run_of(settings, Model(name="m"), 4)
    hosted = settings.model_copy(update={"training_backend": "wandb"})
    assert run_of(hosted, Model(name="m"), 4).base_model == "Qwen/Qwen3-14B"


def test_a_name_of_another_kind_of_run_or_of_another_recipe_is_refused(database, settings, following):
    following()
    run = run_of(settings, Model(name="babylon"), 4)
    with database.connect() as connection:
        with pytest.raises(SettingsError, match="without an end"):
            as_stored(connection, run)
        mine = as_stored(connection, msgspec.structs.replace(run, training_run="mine"))
        assert mine.schedule == {BATCHES: []}
        start_run(connection, msgspec.structs.replace(mine, first_window=FIRST, last_window=FIRST))
        more = msgspec.structs.replace(mine, recipe=recipe_of(settings, Model(name="mine"), 9, "torch"))
        assert as_stored(connection, more).training_run == "mine"  # how many windows an update takes may change
        for other in ({"seed": 1}, {"recipe": Recipe(learning_rate=0.5)}, {"backend": "wandb"}):
            with pytest.raises(SettingsError, match="Name another with --name"):
                as_stored(connection, msgspec.structs.replace(mine, **other))


def test_looking_back_ends_at_the_last_closed_hour_and_begins_with_the_first_partition(settings):
    now = datetime(2026, 1, 5, 10, 30, tzinfo=UTC)
    assert looked_back(settings, 24, now) == ("2026-01-04T10:00", "2026-01-05T09:00")
    assert looked_back(settings, 10_000_000, now) == (settings.partitions_start, "2026-01-05T09:00")


def test_what_is_due_is_made_once_a_look_and_said_once(database, settings, monkeypatch):
    due = DueUpdate(training_run="m", first=FIRST, last=FIRST, key="k", said="4 of 4 new groups")
    answers = iter([due, due, "m: 0 of 4 new groups.", "m: 0 of 4 new groups."])
    launched: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(launching, "missing_windows", lambda *_: [])
    monkeypatch.setattr(launching, "due_of", lambda *_: next(answers))
    monkeypatch.setattr(launching, "launch", lambda database, stage, job, *span: launched.append(job))
    monkeypatch.setattr(launching, "told", lambda *_: "m@1: update")
    run = run_of(settings, Model(name="m"), 4)
    keep_updating(database, settings, None, run, said.append, looks=iter([None] * 3))
    assert launched == ["train_checkpoint"]
    assert said == ["m@1: update", "4 of 4 new groups: tried; it waits for other groups.", "m: 0 of 4 new groups."]


def test_a_loop_without_an_end_survives_a_failure_and_looks_at_a_window_once_an_hour(database, settings, monkeypatch):
    launched: list[str] = []
    said: list[str] = []

    def fails(database, stage, job, *span):
        launched.append(job)
        if job == "train_checkpoint":
            raise TrainingError("The disk is full.")

    due = DueUpdate(training_run="m", first=FIRST, last=FIRST, key="k", said="4 of 4 new groups")
    monkeypatch.setattr(launching, "window_of", lambda now: "2025-01-15T12:00")
    monkeypatch.setattr(launching, "missing_windows", lambda *_: [FIRST])
    monkeypatch.setattr(launching, "due_of", lambda *_: due)
    monkeypatch.setattr(launching, "launch", fails)
    keep_updating(database, settings, None, run_of(settings, Model(name="m"), 4), said.append, looks=iter([None] * 3))
    assert launched == ["materialize_windows", "train_checkpoint"]
    assert "The disk is full." in said[0] and "waits for other groups" in said[1] and len(said) == 2


# --- jobs ------------------------------------------------------------------------------------------


def test_a_job_that_a_command_runs_is_found_by_the_ui_as_one_that_it_launched():
    @dg.op
    def nothing() -> None: ...

    @dg.job(executor_def=dg.in_process_executor)  # as build_defs has it
    def a_job() -> None:
        nothing()

    with dg.DagsterInstance.ephemeral() as instance:
        result = execute_job(a_job, instance, {"dagster/partition": FIRST})
        (run,) = instance.get_runs()
    assert result.success and run.job_name == "a_job"
    assert run.tags["dagster/partition"] == FIRST and run.tags["dagster/max_retries"] == "0"
    origin = run.remote_job_origin.repository_origin
    assert (run.tags["dagster/code_location"], origin.repository_name) == (LOCATION, "__repository__")


def test_the_jobs_and_their_place_are_those_of_the_workspace():
    text = (REPOSITORY / "workspace.yaml").read_text()
    assert f"module_name: {MODULE}" in text and f"location_name: {LOCATION}" in text
    defs = build_defs()
    for name in ("materialize_windows", "train_checkpoint"):
        assert defs.resolve_job_def(name).name == origin_of(name).job_name
    assert defs.get_repository_def().name == "__repository__"


def test_a_range_that_holds_nothing_is_no_run(database, settings):
    run = run_of(settings, Model(name="m"), 4)
    for first, last, said in (
        (FIRST, "2025-01-15T09:00", "no window from"),
        (FIRST, FIRST, "Nothing is recorded"),
        ("2999-01-15T10:00", "2999-01-15T11:00", "not over yet"),
    ):
        with pytest.raises(Exception, match=said):
            range_of(database, run, first, last)
