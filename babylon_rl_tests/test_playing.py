"""Starting a run without an end: once, under its name, and with an answer to each mistake."""

from pathlib import Path

import msgspec
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from babylon_rl import playing
from babylon_rl.cli import app
from babylon_rl.errors import SettingsError, WindowIdError
from babylon_rl.playing import train_command
from babylon_rl.settings import Settings, get_settings
from babylon_rl.training.runs import load_run, open_runs, start_run

FIRST = "2025-01-15T10:00"


@pytest.fixture
def follow(database, tmp_path: Path):
    """Function that follows from a window, on a model that is never loaded."""
    (tmp_path / "config.json").write_text("{}")
    settings = Settings().model_copy(
        update={"database_url": SecretStr(database.url), "base_model": str(tmp_path), "groups_per_update": 4}
    )

    def command(first: str = FIRST, last: str | None = None, follow: bool = True, name: str = "babylon") -> str:
        return train_command(settings, lambda *_: lambda: None, first, last, follow, name, 0)

    return command


def test_a_run_is_started_once_and_goes_on_under_its_name(database, follow):
    assert "babylon is started" in follow() and "babylon goes on" in follow()
    with database.connect() as connection:
        (run,) = open_runs(connection)
    assert (run.recipe.windows_per_update, run.last_window, run.schedule) == (4, None, {})


def test_a_name_that_is_taken_is_refused_and_a_newer_run_says_whose_windows_it_takes(database, follow):
    follow()
    with pytest.raises(SettingsError, match="other settings"):
        follow("2025-01-15T11:00")
    with database.connect() as connection:
        start_run(
            connection,
            msgspec.structs.replace(load_run(connection, "babylon"), training_run="ended", last_window=FIRST),
        )
    said = follow("2025-01-15T09:00", name="next")
    for other in ("babylon", "ended"):
        assert f"Windows from {FIRST} on are next's and no more those of {other}" in said
    assert "those of ended" not in follow("2025-01-15T11:00", name="after")
    with database.connect() as connection:
        assert load_run(connection, "babylon").first_window == FIRST
        assert [run.training_run for run in open_runs(connection)] == ["after", "next", "babylon"]


@pytest.mark.parametrize(("last", "goes_on"), [(None, False), (FIRST, True)])
def test_it_is_either_a_range_or_without_an_end(follow, last, goes_on):
    with pytest.raises(SettingsError, match="either --to"):
        follow(last=last, follow=goes_on)
    with pytest.raises(WindowIdError, match="off the hour"):
        follow("2025-01-15T10:30")


def test_simulated_agents_leave_the_applications_database_alone(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://reader@application/babylon")
    monkeypatch.setenv("BABYLON_RL_DATABASE_URL", "postgres://trainer@ours/babylon_rl")
    get_settings.cache_clear()
    assert get_settings().application_url is not None
    asked: list[Settings] = []
    monkeypatch.setattr(playing, "play_command", lambda settings, *_: asked.append(settings) or "played")
    assert CliRunner().invoke(app, ["play"]).exit_code == 0
    assert asked[0].application_url is None and "@ours/" in asked[0].database_url.get_secret_value()
